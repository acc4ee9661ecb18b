//! Trace buffers: what each CPU did lately, for a reader in domain 0 (`trace.h`, `DOM0_GETTBUFS`).
//!
//! There is one buffer a CPU, all of one size and one behind the other in machine memory, owned by DOMID_XEN and
//! shared: whoever controls the machine maps them, to be read. Each begins with a head in the layout of the reader's
//! architecture, which is domain 0's. The records lie behind it. `head` counts all records ever written; the next goes
//! to that number modulo `size`, over the oldest.
//!
//! Promises: a record is whole in memory before `head` counts it; nothing is ever read back from the buffers. A reader
//! that is more than `size` - 1 records behind has lost the others: the one that is being written then is the oldest.
//! An x86_32 reader's `head` wraps at 2^32, where a `size` that is no power of two makes the place jump once, as in
//! 2.0.
//!
//! No lock: only its own CPU writes to a buffer, with interrupts off.
//!
//! Where nobody asked for buffers (`tbuf_size=`) nothing is recorded, and the places that would record cost a
//! comparison, or nothing.

use crate::addr::{DomId, MachineAddr, Mfn, PAGE_SIZE};
use crate::domain::Arch;
use crate::machine::MachineMemory;
use alloc::vec::Vec;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use proxenos_abi::trace::{TraceBuffer, TraceRecord};
use proxenos_abi::zerocopy::IntoBytes;
use proxenos_abi::{X86_32, X86_64};

/// What stands for the domain where none runs (2.0's number of the idle domain).
pub const IDLE: DomId = DomId(0x7fff);

/// What is recorded. Numbers below 0x100000 are those of 2.0's tools, and mean the same; where 2.0 had the address of a
/// structure, this has nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A domain exists that has not yet run.
    DomainAdded(DomId),
    /// It exists no more.
    DomainRemoved(DomId),
    /// It may run again.
    Woken(DomId),
    /// It waits, or was stopped.
    Blocked(DomId),
    /// It gave its CPU up.
    Yielded(DomId),
    /// A scheduler's parameters are set or read.
    SchedulerControlled,
    /// A domain's are.
    DomainAdjusted(DomId),
    /// This CPU goes over to a domain, or to none ([`IDLE`]).
    Switched {
        /// Who runs now.
        to: DomId,
    },
    /// A privileged domain makes a `dom0_op`.
    ControlBegun {
        /// The command.
        command: u32,
        /// The argument's first words.
        words: [u32; 4],
    },
    /// It is done.
    ControlEnded {
        /// The command.
        command: u32,
        /// What the caller gets.
        result: u32,
        /// The argument's first words, with what was written to them.
        words: [u32; 4],
    },
    /// A domain makes a hypercall.
    Hypercall {
        /// Who.
        caller: DomId,
        /// The number.
        number: u32,
        /// The first two arguments, each as low and high half.
        arguments: [u64; 2],
    },
    /// A page fault that the short ways leave to the long one.
    PageFault {
        /// Whose.
        domain: DomId,
        /// The CPU's error code.
        code: u32,
        /// Where.
        address: u64,
        /// The instruction.
        ip: u64,
    },
}

const SCHED: u32 = 0x0001_0000;
const CONTROL_BEGUN: u32 = 0x0002_0000;
const CONTROL_ENDED: u32 = 0x0003_0000;
const HYPERCALL: u32 = 0x0010_0000;
const PAGE_FAULT: u32 = 0x0011_0000;

impl Event {
    /// Its number and data, as they are recorded.
    #[must_use]
    pub const fn encode(self) -> (u32, [u32; 5]) {
        const fn of(domain: DomId) -> [u32; 5] {
            [domain.0 as u32, 0, 0, 0, 0]
        }
        match self {
            Self::DomainAdded(domain) => (SCHED, of(domain)),
            Self::DomainRemoved(domain) => (SCHED + 1, of(domain)),
            Self::Woken(domain) => (SCHED + 2, of(domain)),
            Self::Blocked(domain) => (SCHED + 3, of(domain)),
            Self::Yielded(domain) => (SCHED + 4, of(domain)),
            Self::SchedulerControlled => (SCHED + 6, [0; 5]),
            Self::DomainAdjusted(domain) => (SCHED + 7, of(domain)),
            Self::Switched { to } => (SCHED + 9, of(to)),
            Self::ControlBegun { command, words: [a, b, c, d] } => {
                (CONTROL_BEGUN.wrapping_add(command), [0, a, b, c, d])
            }
            Self::ControlEnded { command, result, words: [a, b, c, d] } => {
                (CONTROL_ENDED.wrapping_add(command), [result, a, b, c, d])
            }
            Self::Hypercall { caller, number, arguments: [a, b] } => {
                (HYPERCALL + number, [caller.0 as u32, a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32])
            }
            Self::PageFault { domain, code, address, ip } => {
                (PAGE_FAULT, [domain.0 as u32, code, address as u32, (address >> 32) as u32, ip as u32])
            }
        }
    }
}

/// One CPU's buffer.
struct Buffer {
    /// Where its `head` lies, which is a word of the reader's.
    head: MachineAddr,
    records: MachineAddr,
    /// How many records have been written. Only the CPU itself changes it.
    written: AtomicU64,
}

/// The buffers of all CPUs.
pub struct TraceBuffers {
    reader: Arch,
    first: Mfn,
    pages_each: u32,
    /// How many records a buffer holds.
    capacity: u64,
    buffers: Vec<Buffer>,
}

impl TraceBuffers {
    /// How many frames the buffers of so many CPUs take.
    #[must_use]
    pub const fn frames(cpus: u32, pages_each: u32) -> u64 {
        cpus as u64 * pages_each as u64
    }

    /// Makes buffers of `pages_each` pages, at least one, in the frames from `first` on, for a reader of this
    /// architecture. The frames are zeroed, and contiguous; an x86_32 reader's lie below 4 GiB.
    #[must_use]
    pub fn new(memory: &impl MachineMemory, first: Mfn, cpus: u32, pages_each: u32, reader: Arch) -> Self {
        let header = match reader {
            Arch::X86_32 => size_of::<TraceBuffer<X86_32>>(),
            Arch::X86_64 => size_of::<TraceBuffer<X86_64>>(),
        };
        let bytes = u64::from(pages_each) * PAGE_SIZE as u64;
        let capacity = (bytes - header as u64) / size_of::<TraceRecord>() as u64;
        let buffer = |cpu: u32| {
            let at = MachineAddr(first.addr().0 + u64::from(cpu) * bytes);
            let records = MachineAddr(at.0 + header as u64);
            let head = match reader {
                Arch::X86_32 => {
                    let fields =
                        TraceBuffer::<X86_32> { data: records.0 as u32, size: capacity as u32, ..Default::default() };
                    memory.write(at, fields.as_bytes());
                    offset_of!(TraceBuffer<X86_32>, head)
                }
                Arch::X86_64 => {
                    let fields = TraceBuffer::<X86_64> { data: records.0, size: capacity, ..Default::default() };
                    memory.write(at, fields.as_bytes());
                    offset_of!(TraceBuffer<X86_64>, head)
                }
            };
            Buffer { head: MachineAddr(at.0 + head as u64), records, written: AtomicU64::new(0) }
        };
        Self { reader, first, pages_each, capacity, buffers: (0..cpus).map(buffer).collect() }
    }

    /// Where the first buffer lies.
    #[must_use]
    pub const fn address(&self) -> MachineAddr {
        self.first.addr()
    }

    /// How many bytes each has.
    #[must_use]
    pub const fn bytes_each(&self) -> u32 {
        self.pages_each * PAGE_SIZE as u32
    }

    /// Whose layout their heads have.
    #[must_use]
    pub const fn reader(&self) -> Arch {
        self.reader
    }

    /// Records an event on a CPU, at a time of its TSC's. The caller runs on that CPU. A CPU without a buffer records
    /// nothing.
    pub fn record(&self, memory: &impl MachineMemory, cpu: u32, cycles: u64, event: Event) {
        let Some(buffer) = self.buffers.get(cpu as usize) else { return };
        let written = buffer.written.load(Relaxed);
        let (number, [d1, d2, d3, d4, d5]) = event.encode();
        let record = TraceRecord { cycles, event: number, d1, d2, d3, d4, d5 };
        let at = written % self.capacity * size_of::<TraceRecord>() as u64;
        memory.write(MachineAddr(buffer.records.0 + at), record.as_bytes());
        buffer.written.store(written + 1, Relaxed);
        // Stores become visible in order, and this is one that orders those before it (`MachineMemory`).
        match self.reader {
            Arch::X86_32 => memory.store32(buffer.head, (written + 1) as u32),
            Arch::X86_64 => memory.store64(buffer.head, written + 1),
        }
    }
}

#[cfg(test)]
mod tests;
