//! Building a domain in frames that are reached by their machine addresses: how the hypervisor does it. What is built,
//! and where it lies, is [`proxenos_image::builder`]'s.
//!
//! Nothing is validated or pinned here: the caller hands the page tables to the paging code as it would a guest's. No
//! lock is needed, since the frames are nobody else's yet.

#[cfg(test)]
mod paged_tests;

use crate::addr::{MachineAddr, Mfn, Pfn};
use crate::machine::MachineMemory;
use proxenos_image::builder::{BuildError, DomainMemory};

/// A new domain's frames: the machine's memory, and which frame of it each of the domain's is.
pub struct MachineFrames<'a, M, F> {
    memory: &'a M,
    frames: F,
}

impl<'a, M: MachineMemory, F: Fn(Pfn) -> Mfn> MachineFrames<'a, M, F> {
    /// The domain whose frames `frames` gives.
    pub const fn new(memory: &'a M, frames: F) -> Self {
        Self { memory, frames }
    }
}

impl<M: MachineMemory, F: Fn(Pfn) -> Mfn> DomainMemory for MachineFrames<'_, M, F> {
    type Error = BuildError;

    fn mfn(&self, pfn: Pfn) -> Mfn {
        (self.frames)(pfn)
    }

    fn clear(&mut self, pfn: Pfn) -> Result<(), BuildError> {
        self.memory.clear_frame(self.mfn(pfn));
        Ok(())
    }

    fn write(&mut self, pfn: Pfn, offset: usize, bytes: &[u8]) -> Result<(), BuildError> {
        self.memory.write(MachineAddr(self.mfn(pfn).addr().0 + offset as u64), bytes);
        Ok(())
    }
}
