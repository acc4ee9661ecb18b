//! The last bytes of a stream that grows for ever, by their place in it.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Keeps the last bytes of a stream.
#[derive(Debug)]
pub struct Scrollback {
    kept: VecDeque<u8>,
    /// How many bytes there have been.
    end: u64,
    limit: usize,
}

impl Scrollback {
    /// Keeps at most so many bytes.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self { kept: VecDeque::new(), end: 0, limit }
    }

    /// Puts bytes at the end; as many fall out at the beginning as are too many.
    pub fn push(&mut self, bytes: &[u8]) {
        self.end += bytes.len() as u64;
        let bytes = &bytes[bytes.len().saturating_sub(self.limit)..];
        let excess = (self.kept.len() + bytes.len()).saturating_sub(self.limit);
        self.kept.drain(..excess);
        self.kept.extend(bytes);
    }

    /// Where the oldest byte is that is still there.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.end - self.kept.len() as u64
    }

    /// Where the next byte will be: how many there have been.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// Up to `most` bytes from a place on, and where they really begin: later, if what was there has fallen out.
    #[must_use]
    pub fn read(&self, from: u64, most: usize) -> (u64, Vec<u8>) {
        let from = from.clamp(self.start(), self.end);
        let skip = (from - self.start()) as usize;
        (from, self.kept.iter().skip(skip).take(most).copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn it_is_the_end_of_the_stream(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20),
            limit in 0usize..60,
            from in 0u64..900,
            most in 0usize..70,
        ) {
            let mut kept = Scrollback::new(limit);
            let mut all = Vec::new();
            for piece in &pieces {
                kept.push(piece);
                all.extend(piece);
            }
            prop_assert_eq!(kept.end(), all.len() as u64);
            prop_assert_eq!(kept.start(), all.len().saturating_sub(limit) as u64);
            let (begin, bytes) = kept.read(from, most);
            prop_assert!(begin >= from.min(kept.end()) && begin >= kept.start() && begin <= kept.end());
            let begin = begin as usize;
            prop_assert_eq!(&bytes[..], &all[begin..(begin + most).min(all.len())]);
        }
    }
}
