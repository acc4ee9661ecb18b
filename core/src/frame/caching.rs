//! Frames of which caches and memory may say different things.
//!
//! A guest may set PCD and PWT in its L1 entries, and so map a frame uncached that others, the hypervisor's direct map
//! among them, use through the caches. Such aliases are not kept coherent (Intel SDM vol. 3 §11.12.4; AMD64 APM vol. 2
//! §7.8.7): what is written past the caches is in memory, while a cache may hold the line as it was. Whoever then reads
//! the frame to judge it sees one thing, and once the line is evicted the CPU sees another (Xen's XSA-402). The rule
//! that makes this harmless:
//!
//! - *Mapping.* An entry with PCD or PWT that names RAM is accepted from any domain that may map the frame at all, as
//!   2.0 does. What caches hold of the frame is first written back and dropped, so that nobody reads from memory what
//!   was there before it was scrubbed. If the entry is writable the frame is marked.
//! - *Reuse.* A marked frame that becomes a page table or a descriptor table, that is given to another domain, or that
//!   is freed, first loses its mark, and its lines are dropped: before its entries are looked at, before the other
//!   domain has it, before it is scrubbed. By then no writable mapping of it is left in any table or TLB, so no write
//!   can follow.
//!
//! A mark is therefore never found on a table, nor on a free frame. A table may be mapped uncached for reading: that
//! reads what is in memory, which is its owner's concern alone. Entries above L1 cannot have these bits where the CPU
//! walks them (they would say how the table below is read, past what the hypervisor has written to it):
//! [`Format::REFUSED_ABOVE`].
//!
//! A line is dropped in the caches of all CPUs (`clflush`), so this costs 64 instructions and concerns nobody else.
//!
//! [`Format::REFUSED_ABOVE`]: crate::paging::format::Format::REFUSED_ABOVE

use super::FrameInfo;
use crate::atomics::Ordering;

impl FrameInfo {
    /// Notes that the frame is mapped uncached and writable. The caller holds a reference to it as writable memory.
    pub(crate) fn mark_uncached(&self) {
        self.uncached.store(1, Ordering::Release);
    }

    /// Whether that was noted.
    pub(crate) fn is_uncached(&self) -> bool {
        self.uncached.load(Ordering::Acquire) != 0
    }

    /// Takes the note back; true if there was one: then the caller drops what caches hold of the frame. It is no
    /// writable memory any more.
    #[inline]
    #[must_use]
    pub(crate) fn take_uncached(&self) -> bool {
        let marked = self.is_uncached();
        if marked {
            self.uncached.store(0, Ordering::Release);
        }
        marked
    }
}
