//! What `core` may ask of the machine: memory by machine address, guest memory by virtual address, TLBs, a clock.
//!
//! The hypervisor implements these over its direct map and a few instructions; host tests implement them over a
//! vector. All calls are statically dispatched. Machine memory may be changed by guests at any time, so every access
//! is a single, aligned, atomic load or store of the width named, and a value read once is never assumed to be there
//! at the second look.

use crate::addr::{DomId, GuestVirt, MachineAddr, Mfn, PAGE_SIZE};
use crate::debugreg::DebugRegisters;
use proxenos_abi::Selector;
use proxenos_abi::hypercall::SegmentBase;

/// RAM, by machine address. Callers pass only addresses inside frames that exist (see `FrameTable::contains`), aligned
/// to the access; implementations may panic otherwise.
pub trait MachineMemory {
    /// Reads a byte.
    fn load8(&self, at: MachineAddr) -> u8;
    /// Writes a byte.
    fn store8(&self, at: MachineAddr, value: u8);
    /// Reads 32 bits, little-endian, aligned to 4.
    fn load32(&self, at: MachineAddr) -> u32;
    /// Writes 32 bits, aligned to 4.
    fn store32(&self, at: MachineAddr, value: u32);
    /// Reads 64 bits, aligned to 8.
    fn load64(&self, at: MachineAddr) -> u64;
    /// Writes 64 bits, aligned to 8.
    fn store64(&self, at: MachineAddr, value: u64);
    /// Atomically replaces `old` by `new`; on mismatch returns what was there.
    fn cas32(&self, at: MachineAddr, old: u32, new: u32) -> Result<(), u32>;
    /// Atomically replaces `old` by `new`; on mismatch returns what was there.
    fn cas64(&self, at: MachineAddr, old: u64, new: u64) -> Result<(), u64>;
    /// Atomically replaces what is there by `new`, returns what was there.
    #[inline]
    fn swap32(&self, at: MachineAddr, new: u32) -> u32 {
        let mut old = self.load32(at);
        while let Err(seen) = self.cas32(at, old, new) {
            old = seen;
        }
        old
    }
    /// Atomically replaces what is there by `new`, returns what was there.
    #[inline]
    fn swap64(&self, at: MachineAddr, new: u64) -> u64 {
        let mut old = self.load64(at);
        while let Err(seen) = self.cas64(at, old, new) {
            old = seen;
        }
        old
    }
    /// Atomically sets `bits`, returns the value before.
    fn or32(&self, at: MachineAddr, bits: u32) -> u32;
    /// Atomically clears all but `bits`, returns the value before.
    #[inline]
    fn and32(&self, at: MachineAddr, bits: u32) -> u32 {
        let mut old = self.load32(at);
        while let Err(seen) = self.cas32(at, old, old & bits) {
            old = seen;
        }
        old
    }
    /// Fills a frame with zeroes.
    fn clear_frame(&self, frame: Mfn);
    /// Copies a frame to another.
    fn copy_frame(&self, from: Mfn, to: Mfn) {
        for offset in (0..PAGE_SIZE as u64).step_by(8) {
            let word = self.load64(MachineAddr(from.addr().0 + offset));
            self.store64(MachineAddr(to.addr().0 + offset), word);
        }
    }
    /// Whether 64 bytes at two addresses, aligned to that, are the same.
    #[inline]
    fn is_same_line(&self, one: MachineAddr, other: MachineAddr) -> bool {
        (0..64).step_by(8).all(|at| self.load64(MachineAddr(one.0 + at)) == self.load64(MachineAddr(other.0 + at)))
    }
    /// All the bits that are set anywhere in 64 bytes, aligned to that: whether there is anything to see in them.
    #[inline]
    fn bits_of_line(&self, at: MachineAddr) -> u64 {
        (0..64).step_by(8).fold(0, |bits, offset| bits | self.load64(MachineAddr(at.0 + offset)))
    }
    /// Copies bytes out of machine memory; the range may cross frames.
    fn read(&self, at: MachineAddr, into: &mut [u8]);
    /// Copies bytes into machine memory; the range may cross frames.
    fn write(&self, at: MachineAddr, from: &[u8]);
}

/// A guest pointer did not lead where the guest said: not mapped, not writable, or in the hypervisor's range.
/// Becomes `-EFAULT` at the hypercall boundary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadPointer;

/// Memory of the guest that is running on this CPU, by the guest's own virtual addresses, with its own page
/// protections. A pointer into the hypervisor's range or an unmapped page is an error, never a fault.
pub trait GuestMemory {
    /// Copies from the guest.
    fn copy_from_guest(&self, from: GuestVirt, into: &mut [u8]) -> Result<(), BadPointer>;
    /// Copies to the guest.
    fn copy_to_guest(&self, to: GuestVirt, from: &[u8]) -> Result<(), BadPointer>;

    /// Reads a few words of 64 bits, little-endian, from any address. What is small goes faster in this way.
    #[inline]
    fn read_words<const N: usize>(&self, from: GuestVirt) -> Result<[u64; N], BadPointer> {
        let mut words = [0_u64; N];
        for (index, word) in (0..).zip(&mut words) {
            let mut bytes = [0; 8];
            self.copy_from_guest(from.offset(8 * index), &mut bytes)?;
            *word = u64::from_le_bytes(bytes);
        }
        Ok(words)
    }

    /// The same, but all ones where not all of them can be read: to a caller whom such words tell nothing, this costs
    /// less.
    #[inline]
    fn read_words_or_ones<const N: usize>(&self, from: GuestVirt) -> [u64; N] {
        self.read_words(from).unwrap_or([u64::MAX; N])
    }

    /// Writes 32 bits, little-endian, to any address.
    #[inline]
    fn write_u32(&self, to: GuestVirt, value: u32) -> Result<(), BadPointer> {
        if to.0.is_multiple_of(4) {
            self.write_aligned_u32(to, value)
        } else {
            self.copy_to_guest(to, &value.to_le_bytes())
        }
    }

    /// Writes 64 bits, little-endian, to any address.
    #[inline]
    fn write_u64(&self, to: GuestVirt, value: u64) -> Result<(), BadPointer> {
        if to.0.is_multiple_of(8) {
            self.write_aligned_u64(to, value)
        } else {
            self.copy_to_guest(to, &value.to_le_bytes())
        }
    }

    /// [`write_u32`](Self::write_u32) to a multiple of four, which the caller has made sure of: such a word lies on one
    /// page.
    #[inline]
    fn write_aligned_u32(&self, to: GuestVirt, value: u32) -> Result<(), BadPointer> {
        self.copy_to_guest(to, &value.to_le_bytes())
    }

    /// [`write_u64`](Self::write_u64) to a multiple of eight, likewise.
    #[inline]
    fn write_aligned_u64(&self, to: GuestVirt, value: u64) -> Result<(), BadPointer> {
        self.copy_to_guest(to, &value.to_le_bytes())
    }
}

/// The translation caches of this CPU (and, through stamps, of all).
pub trait Tlb {
    /// Drops every translation of the guest running here.
    fn flush_all(&self);
    /// Drops the translations of one page.
    fn flush_page(&self, at: GuestVirt);
    /// Writes back and drops the data caches (`wbinvd`).
    fn flush_caches(&self);
    /// Writes back and drops what the data caches of all CPUs hold of a frame of RAM (`clflush`).
    fn flush_frame(&self, frame: Mfn);
    /// The global flush clock: a stamp taken now is older than every later flush. What the caller has unmapped before
    /// is unmapped for every walk behind such a flush, whatever access it was done by (a full barrier).
    fn stamp(&self) -> u32;
    /// [`stamp`](Self::stamp), for a caller whose last access to memory was an atomic exchange, which is the barrier.
    #[inline]
    fn stamp_behind_exchange(&self) -> u32 {
        self.stamp()
    }
    /// Flushes every TLB, of all CPUs, that was last flushed before `stamp` was taken; when it returns all have. May be
    /// called with any lock held ([`crate::shootdown`]).
    fn flush_if_older(&self, stamp: u32);
}

/// A selector that the CPU does not load: it names no data segment of ring 3's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotLoaded;

/// What GDTR holds, as it is loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct TableRegister {
    limit: u16,
    /// The address, lowest word first.
    base: [u16; 4],
}

impl TableRegister {
    /// Of a table with so many descriptors, one at least.
    #[must_use]
    pub const fn new(base: u64, entries: u16) -> Self {
        let base = [base as u16, (base >> 16) as u16, (base >> 32) as u16, (base >> 48) as u16];
        Self { limit: (entries as u32 * 8 - 1) as u16, base }
    }
}

/// What the CPU walks and looks segments up in.
pub trait CpuTables {
    /// Makes a frame this CPU's L4 table; every translation of the old one is dropped.
    fn load_root(&self, l4: Mfn);
    /// Sets the base of fs or gs of the guest whose kernel runs here: a canonical address. (The user's selector is not
    /// set so.)
    fn set_segment_base(&self, which: SegmentBase, base: u64);
    /// Loads gs, and with it the base that it has while an application runs.
    ///
    /// # Errors
    /// The CPU does not load this selector; gs is what it was.
    fn load_user_gs(&self, selector: Selector) -> Result<(), NotLoaded>;
    /// Maps (or unmaps) a frame as a page of a domain's descriptor tables, which lie in the hypervisor's range.
    fn map_descriptors(&self, domain: DomId, page: DescriptorPage, frame: Option<Mfn>);
    /// Linear address of a domain's global descriptor table.
    fn gdt_address(&self, domain: DomId) -> u64;
    /// Makes the domain's global descriptor table this CPU's, with this many entries: which makes `register`.
    fn load_gdt(&self, domain: DomId, entries: u16, register: &TableRegister);
    /// Makes the domain's local descriptor table this CPU's, with this many entries; 0 means none. The table's
    /// descriptor has been written into the domain's first GDT page.
    fn load_ldt(&self, entries: u16);
    /// Linear address of a domain's LDT, for its descriptor.
    fn ldt_address(&self, domain: DomId) -> u64;
    /// Makes the next use of the FPU trap (sets CR0.TS).
    fn trap_fpu(&self);
    /// Makes a guest's breakpoints this CPU's (DR0 to DR3 and DR7).
    fn load_breakpoints(&self, registers: &DebugRegisters);
}

/// A page of a domain's descriptor tables: sixteen for each table, 8192 descriptors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DescriptorPage {
    /// Of the global table. Page 0 is the hypervisor's copy.
    Gdt(u8),
    /// Of the local table.
    Ldt(u8),
}

/// The machine's own console.
pub trait Console {
    /// Writes domain 0's bytes.
    fn console_write(&self, bytes: &[u8]);
    /// Writes another domain's, whose lines are told apart from others'.
    fn console_log(&self, domain: DomId, bytes: &[u8]);
    /// Reads what was typed, up to the buffer's size; returns how much.
    fn console_read(&self, into: &mut [u8]) -> usize;
}

/// What waits for this CPU while the hypervisor works, with interrupts off.
pub trait Preemption {
    /// Whether the CPU's timer is due, so that a long request should make way.
    fn preemption_wanted(&self) -> bool;
}

/// Monotonic time.
pub trait Clock {
    /// Nanoseconds since the hypervisor's boot.
    fn now_ns(&self) -> u64;
}
