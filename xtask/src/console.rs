//! What this tool says itself, and how a machine's console is shown.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use anstyle::{AnsiColor, Style};

/// Style of the word that begins an error.
pub const ERROR: Style = AnsiColor::Red.on_default().bold();
/// Style of what passed.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// Style of what was skipped, and of notes.
pub const NOTE: Style = AnsiColor::Yellow.on_default();
/// Style of the hypervisor's own lines.
pub const DIM: Style = Style::new().dimmed();

/// How the hypervisor's log lines begin.
const HYPERVISOR_PREFIX: &[u8] = b"(px) ";

/// Says what is being done, in one line.
pub fn step(text: &str) {
    anstream::eprintln!("{}xtask:{:#} {text}", Style::new().bold(), Style::new().bold());
}

/// Says something the user may want to act on.
pub fn note(text: &str) {
    anstream::eprintln!("{NOTE}note:{NOTE:#} {text}");
}

/// Everything a machine wrote, kept for judging.
#[derive(Clone, Default)]
pub struct Capture(Arc<Mutex<Vec<u8>>>);

impl Capture {
    /// The text so far, without carriage returns; bytes that are no UTF-8 are replaced.
    pub fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }
}

impl Write for Capture {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Copies a console to the terminal, with the hypervisor's lines dimmed, to a log file and to memory.
pub struct Live<W> {
    terminal: Dimmer<W>,
    log: Option<File>,
    capture: Capture,
}

impl<W: Write> Live<W> {
    /// Shows on `terminal`; the log and the capture get the bytes as they are.
    pub fn new(terminal: W, log: Option<File>, capture: Capture) -> Self {
        Self { terminal: Dimmer::new(terminal), log, capture }
    }
}

impl<W: Write> Write for Live<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.capture.write_all(bytes)?;
        if let Some(log) = &mut self.log {
            log.write_all(bytes)?;
        }
        self.terminal.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.terminal.flush()
    }
}

/// Dims the lines that begin with the hypervisor's prefix. A line's first bytes are held back only as long as they may
/// still become the prefix.
struct Dimmer<W> {
    out: W,
    /// How many bytes of the prefix the current line has shown so far; none once that is decided.
    matched: Option<usize>,
    dimmed: bool,
}

impl<W: Write> Dimmer<W> {
    fn new(out: W) -> Self {
        Self { out, matched: Some(0), dimmed: false }
    }

    fn byte(&mut self, byte: u8) -> io::Result<()> {
        if let Some(matched) = self.matched {
            if byte == HYPERVISOR_PREFIX[matched] {
                self.matched = Some(matched + 1);
                if matched + 1 == HYPERVISOR_PREFIX.len() {
                    write!(self.out, "{DIM}")?;
                    self.out.write_all(HYPERVISOR_PREFIX)?;
                    (self.matched, self.dimmed) = (None, true);
                }
                return Ok(());
            }
            self.out.write_all(&HYPERVISOR_PREFIX[..matched])?;
            self.matched = None;
        }
        if byte == b'\n' {
            if self.dimmed {
                write!(self.out, "{DIM:#}")?;
            }
            (self.matched, self.dimmed) = (Some(0), false);
        }
        // Carriage returns come before line feeds, where they neither begin a line nor change one.
        self.out.write_all(&[byte])
    }
}

impl<W: Write> Write for Dimmer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.byte(*byte)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl<W> Drop for Live<W> {
    fn drop(&mut self) {
        if self.terminal.dimmed {
            anstream::print!("{DIM:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(pieces: &[&[u8]]) -> String {
        let mut dimmer = Dimmer::new(Vec::new());
        for piece in pieces {
            dimmer.write_all(piece).expect("a vector takes all");
        }
        String::from_utf8(dimmer.out).expect("UTF-8")
    }

    #[test]
    fn only_the_hypervisors_lines_are_dimmed() {
        let text = shown(&[b"(px) boot\r\nhello (px) x\n(py)\n"]);
        assert_eq!(text, format!("{DIM}(px) boot\r{DIM:#}\nhello (px) x\n(py)\n"));
    }

    #[test]
    fn pieces_of_any_size_give_the_same() {
        let whole = shown(&[b"(px) a\nb\n(p"]);
        let pieces: Vec<&[u8]> = b"(px) a\nb\n(p".chunks(1).collect();
        assert_eq!(shown(&pieces), whole);
        assert!(whole.ends_with("b\n"), "the last two bytes wait for the third: {whole:?}");
    }

    #[test]
    fn a_prompt_is_not_held_back() {
        assert_eq!(shown(&[b"login: "]), "login: ");
    }
}
