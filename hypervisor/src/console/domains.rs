//! What domains other than 0 write to the console, where the options let them (`guest-console`): whole lines that begin
//! with `(dN) `.
//!
//! A line is kept until its end comes, or [`LONGEST`] bytes of it. The lock [`LINES`] is taken before the console's.

use super::CONSOLE;
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use core::fmt::Write;
use proxenos_abi::DomId;
use proxenos_core::sync::Mutex;

/// Bytes of a line that are kept; one that is longer is broken.
const LONGEST: usize = 160;

struct Line {
    domain: DomId,
    text: ArrayVec<u8, LONGEST>,
}

static LINES: Mutex<Vec<Line>> = Mutex::new(Vec::new());

impl Line {
    fn end(&mut self) {
        let mut console = CONSOLE.lock();
        console.start_line();
        // Writing to the console cannot fail.
        let _ = write!(super::log::Lines(&mut console), "(d{}) ", self.domain.0);
        console.write(&self.text);
        console.write(b"\n");
        self.text.clear();
    }
}

/// A domain writes.
pub fn write(domain: DomId, bytes: &[u8]) {
    let mut lines = LINES.lock();
    let index = lines.iter().position(|line| line.domain == domain).unwrap_or_else(|| {
        lines.push(Line { domain, text: ArrayVec::new() });
        lines.len() - 1
    });
    let line = &mut lines[index];
    for &byte in bytes {
        if byte == b'\n' || line.text.is_full() {
            line.end();
        }
        if byte != b'\n' {
            line.text.push(byte);
        }
    }
}

/// A domain has ended: it will not finish its line.
pub fn finish(domain: DomId) {
    let mut lines = LINES.lock();
    if let Some(index) = lines.iter().position(|line| line.domain == domain) {
        let mut line = lines.swap_remove(index);
        if !line.text.is_empty() {
            line.end();
        }
    }
}
