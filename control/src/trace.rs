//! The hypervisor's trace buffers, read where they lie (`trace.h`; the rules are in the hypervisor's
//! `core/src/trace.rs`).
//!
//! A CPU goes on writing while it is read: what may have been overwritten meanwhile is dropped afterwards.

use crate::dom0::{op, refused};
use crate::map::Window;
use alloc::vec::Vec;
use proxenos_guest::abi::dom0_ops::args::{GetTbufs, PhysInfo};
use proxenos_guest::abi::trace::{TraceBuffer, TraceRecord as Record};
use proxenos_guest::abi::zerocopy::{FromBytes, FromZeros, IntoBytes};
use proxenos_guest::abi::{DomId, Errno, MachineAddr, PAGE_SIZE, X86_64};
use proxenos_rpc::{Cause, Failure, MAX_CPUS, TraceCpu, TraceRecord};

/// Reads machine memory that is the hypervisor's to show.
struct Reader {
    window: Window,
    /// The last page.
    page: Option<(MachineAddr, Vec<u8>)>,
}

impl Reader {
    /// A value of the interface at a machine address.
    fn value<T: FromZeros + IntoBytes + FromBytes>(&mut self, at: MachineAddr) -> Option<T> {
        let mut value = T::new_zeroed();
        let bytes = value.as_mut_bytes();
        for (index, byte) in bytes.iter_mut().enumerate() {
            let at = at.raw() + index as u64;
            let (base, offset) = (MachineAddr(at & !(PAGE_SIZE as u64 - 1)), at as usize % PAGE_SIZE);
            if self.page.as_ref().is_none_or(|(of, _)| *of != base) {
                self.page = Some((base, self.window.read(DomId::XEN, base.mfn())?));
            }
            *byte = self.page.as_ref()?.1[offset];
        }
        Some(value)
    }

    /// A buffer's head, as it is now.
    fn head(&mut self, at: MachineAddr) -> Option<Head> {
        self.page = None;
        let buffer: TraceBuffer<X86_64> = self.value(at)?;
        let (records, size, next) = (MachineAddr(buffer.data), buffer.size, buffer.head);
        (size > 1).then_some(Head { records, size, next })
    }
}

/// What a buffer's head says.
#[derive(Clone, Copy)]
struct Head {
    records: MachineAddr,
    size: u64,
    /// Records ever written.
    next: u64,
}

impl Head {
    /// The oldest record that is surely whole.
    fn first(self) -> u64 {
        self.next.saturating_sub(self.size - 1)
    }
}

/// How far every CPU is, and records of one of them: from `from` on, at most so many, with the number of the first.
pub fn read(cpu: u32, from: u64, most: usize) -> Result<(Vec<TraceCpu>, u64, Vec<TraceRecord>), Failure> {
    let none = "there are no trace buffers; start the host with the hypervisor's option tbuf_size=";
    let place = op(GetTbufs::<X86_64>::default()).map_err(|errno| match errno {
        Errno::ENODATA => Failure::new(Cause::WrongState, none),
        other => refused("asking for the trace buffers", other),
    })?;
    let info = op(PhysInfo::<X86_64>::default()).map_err(|errno| refused("counting the CPUs", errno))?;
    let unreadable = || Failure::new(Cause::Internal, "the trace buffers cannot be read");
    let window = Window::new().map_err(|errno| refused("mapping the trace buffers", errno))?;
    let mut reader = Reader { window, page: None };
    let buffer = |cpu: u32| MachineAddr(place.mach_addr.to_u64() + u64::from(cpu) * u64::from(place.size));
    let count = (info.cores * info.ht_per_core.max(1)).min(MAX_CPUS as u32);
    let mut cpus = Vec::new();
    for cpu in 0..count {
        let head = reader.head(buffer(cpu)).ok_or_else(unreadable)?;
        cpus.push(TraceCpu { cpu, first: head.first(), next: head.next });
    }
    if cpu >= count {
        return Err(Failure::new(Cause::Invalid, &alloc::format!("there is no CPU {cpu}: the machine has {count}")));
    }
    let head = reader.head(buffer(cpu)).ok_or_else(unreadable)?;
    let from = from.clamp(head.first(), head.next);
    let mut records = Vec::new();
    for number in (from..head.next).take(most) {
        let at = head.records.raw() + number % head.size * size_of::<Record>() as u64;
        let record: Record = reader.value(MachineAddr(at)).ok_or_else(unreadable)?;
        let data = [record.d1, record.d2, record.d3, record.d4, record.d5];
        records.push(TraceRecord { cycles: record.cycles, event: record.event, data });
    }
    let now = reader.head(buffer(cpu)).ok_or_else(unreadable)?;
    let lost = now.first().saturating_sub(from).min(records.len() as u64);
    records.drain(..lost as usize);
    Ok((cpus, from + lost, records))
}
