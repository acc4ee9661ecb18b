//! Memory for the arguments of calls, which nothing else points to: what a call finds there is what was put there.

use core::sync::atomic::{AtomicUsize, Ordering};

const WORDS: usize = 1024;

#[repr(C, align(4096))]
struct Page([AtomicUsize; WORDS]);

static PAGE: Page = Page([const { AtomicUsize::new(0) }; WORDS]);

/// Address of a word.
pub fn at(index: usize) -> usize {
    &raw const PAGE.0[index] as usize
}

/// Sets a word.
pub fn set(index: usize, word: usize) {
    PAGE.0[index].store(word, Ordering::Relaxed);
}

/// Sets 32 bits at a byte's offset from the first word, which is a multiple of 4.
pub fn set_u32(offset: usize, value: u32) {
    let shift = offset % size_of::<usize>() * 8;
    let word = &PAGE.0[offset / size_of::<usize>()];
    let old = word.load(Ordering::Relaxed) & !((u32::MAX as usize) << shift);
    word.store(old | (value as usize) << shift, Ordering::Relaxed);
}

/// 32 bits at a byte's offset, as [`set_u32`] has them.
pub fn get_u32(offset: usize) -> u32 {
    let shift = offset % size_of::<usize>() * 8;
    (PAGE.0[offset / size_of::<usize>()].load(Ordering::Relaxed) >> shift) as u32
}
