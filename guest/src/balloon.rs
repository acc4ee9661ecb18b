//! The balloon: how much memory the domain has, between what it cannot do without and what it started with.
//!
//! The controller asks by a message (`CMSG_MEM_REQUEST`), which is done and answered when the console is
//! [read](crate::console::read). Promise: a request that fails leaves the domain as large as it was.

use crate::memory::frames;
use proxenos_abi::Errno;

/// Pages that the domain has.
pub fn size() -> usize {
    frames::count()
}

/// Makes the domain so many pages large.
///
/// # Errors
/// EINVAL for more than it started with: the list of its frames ends there. ENOMEM when it uses more than that, or the
/// hypervisor has no more for it.
pub fn resize(pages: usize) -> Result<(), Errno> {
    let before = size();
    if pages > crate::boot::frames() as usize {
        return Err(Errno::EINVAL);
    }
    if pages < before && pages < frames::least() {
        return Err(Errno::ENOMEM);
    }
    approach(pages).inspect_err(|_| {
        // The way back is one that it has come; what is refused even so stays where it is.
        let _ = approach(before);
    })
}

fn approach(pages: usize) -> Result<(), Errno> {
    while size() > pages {
        frames::give_back_last()?;
    }
    while size() < pages {
        frames::take_another()?;
    }
    Ok(())
}
