//! The last 32 KiB that were written to the console, for readers that come later.
//!
//! A position counts all bytes ever written, so a reader that comes back knows what it missed.

use core::ops::Range;

/// Bytes that are kept.
const SIZE: usize = 32 << 10;

/// A place in the stream: the number of bytes written before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Position(pub u64);

/// What a read gave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reading {
    /// Bytes copied.
    pub copied: usize,
    /// Where to go on.
    pub next: Position,
    /// Bytes that were overwritten before they were read.
    pub lost: u64,
}

/// The ring. The console's lock guards it.
pub struct Ring {
    bytes: [u8; SIZE],
    written: u64,
    /// What lies before this is as if it had been overwritten, to those who ask what is kept.
    forgotten: u64,
}

impl Ring {
    /// An empty ring.
    pub const fn new() -> Self {
        Self { bytes: [0; SIZE], written: 0, forgotten: 0 }
    }

    /// Appends bytes, over the oldest ones.
    pub fn write(&mut self, bytes: &[u8]) {
        let kept = &bytes[bytes.len().saturating_sub(SIZE)..];
        self.written += (bytes.len() - kept.len()) as u64;
        let at = (self.written % SIZE as u64) as usize;
        let first = kept.len().min(SIZE - at);
        self.bytes[at..at + first].copy_from_slice(&kept[..first]);
        self.bytes[..kept.len() - first].copy_from_slice(&kept[first..]);
        self.written += kept.len() as u64;
    }

    /// From the oldest byte that is kept and was not forgotten, to the end.
    pub fn kept(&self) -> Range<Position> {
        let oldest = self.written.saturating_sub(SIZE as u64).max(self.forgotten);
        Position(oldest)..Position(self.written)
    }

    /// What lies before this is not kept any more.
    pub fn forget(&mut self, until: Position) {
        self.forgotten = until.0.clamp(self.forgotten, self.written);
    }

    /// Copies what was written from `from` on. A position that lies ahead is taken for the end.
    pub fn read_since(&self, from: Position, into: &mut [u8]) -> Reading {
        let oldest = self.written.saturating_sub(SIZE as u64);
        let start = from.0.clamp(oldest, self.written);
        let copied = into.len().min((self.written - start) as usize);
        let at = (start % SIZE as u64) as usize;
        let first = copied.min(SIZE - at);
        into[..first].copy_from_slice(&self.bytes[at..at + first]);
        into[first..copied].copy_from_slice(&self.bytes[..copied - first]);
        Reading { copied, next: Position(start + copied as u64), lost: start.saturating_sub(from.0) }
    }
}
