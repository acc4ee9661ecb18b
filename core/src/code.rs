//! The bytes of the instruction that a guest stands at.
//!
//! An instruction may end right before a page that is not there, so what can be read may be less than the longest there
//! is; whoever decodes it finds out whether that is enough. Nothing of it is trusted: the guest may change it
//! meanwhile. No lock.

use crate::addr::{GuestVirt, PAGE_SIZE};
use crate::host::Hardware;
use crate::personality::Personality;

/// The longest instruction there is.
pub const LONGEST: usize = 15;

/// Reads what a guest has at `at`: as many bytes as the longest instruction has, or else those up to the end of the
/// page. `None` if not even those can be read, or they are not the guest's.
pub fn fetch<'a, P: Personality, H: Hardware>(hw: &H, at: GuestVirt, bytes: &'a mut [u8; LONGEST]) -> Option<&'a [u8]> {
    let in_page = (PAGE_SIZE - at.page_offset()).min(LONGEST);
    let mut read = |length: usize| {
        let allowed = P::in_guest_range(at, length as u64);
        (allowed && hw.copy_from_guest(at, &mut bytes[..length]).is_ok()).then_some(length)
    };
    let length = read(LONGEST).or_else(|| read(in_page))?;
    Some(&bytes[..length])
}
