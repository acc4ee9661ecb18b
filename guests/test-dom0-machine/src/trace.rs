//! The trace buffers, as a reader in domain 0 follows them.

use crate::subject::Subject;
use crate::{SUBJECT, ask, cpus, moves};
use core::sync::atomic::{AtomicU32, Ordering, fence};
use proxenos_guest::abi::dom0_ops::args::GetTbufs;
use proxenos_guest::abi::mmu::{MmuCommand, MmuExtCommand};
use proxenos_guest::abi::trace::{TraceBuffer, TraceRecord};
use proxenos_guest::abi::{DomId, Errno, GuestVirt, GuestWord, Mfn};
use proxenos_guest::memory::{self, Frame, tables};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::{Arch, boot, check, check_eq, hypercall};

/// How often everything may be tried.
const ROUNDS: u32 = 100;
/// Pages that can be mapped: those of two CPUs.
const MOST_PAGES: usize = 8;

const SWITCH: u32 = 0x0001_0009;
const BLOCK: u32 = 0x0001_0003;
const WAKE: u32 = 0x0001_0002;
const CONTROL_BEGUN: u32 = 0x0002_0000;
const HYPERCALLS: core::ops::Range<u32> = 0x0010_0000..0x0010_0020;

/// Maps a frame of the hypervisor's in place of one of ours.
fn map(window: Frame, theirs: Mfn, flags: PteFlags) -> Result<(), Errno> {
    let (at, _) = tables::entry_of(window.virt()).expect("mapped");
    let list = [
        memory::extended(MmuExtCommand::SetForeigndom, 0, u64::from(DomId::XEN.0) << 8),
        memory::request(MmuCommand::NormalPtUpdate, at, Pte::new(theirs, flags).0),
    ];
    // SAFETY: no reference is held to the page.
    unsafe { hypercall::mmu_update(&list) }.map(drop).map_err(|(errno, _)| errno)
}

/// The buffers, mapped page by page.
struct Buffers {
    pages: [GuestVirt; MOST_PAGES],
    start: u64,
    size: u64,
}

impl Buffers {
    fn load(&self, at: u64) -> u32 {
        let offset = at - self.start;
        let page = self.pages[(offset / 4096) as usize].raw() + offset % 4096;
        // SAFETY: a word of a page that is mapped for good, and is only read.
        unsafe { (page as usize as *const AtomicU32).as_ref() }.expect("not null").load(Ordering::Acquire)
    }

    fn read<const WORDS: usize>(&self, at: u64) -> [u32; WORDS] {
        core::array::from_fn(|index| self.load(at + 4 * index as u64))
    }

    /// A buffer's head: where the records are, how many there is room for, and how many were written.
    fn head(&self, cpu: u32) -> (u64, u64, u64) {
        let width = size_of::<proxenos_guest::Word>() as u64;
        let word = |index: u64| {
            let at = self.start + u64::from(cpu) * self.size + index * width;
            let low = u64::from(self.load(at));
            if width == 8 { low | u64::from(self.load(at + 4)) << 32 } else { low }
        };
        (word(0), word(1), word(2))
    }
}

pub fn run(subject: &Subject) {
    section("traces");
    let (result, found) = ask(GetTbufs::<Arch>::default());
    if !boot::command_line().split_ascii_whitespace().any(|word| word == "traced") {
        check_eq!((result, { found.size }), (Err(Errno::ENODATA), 0), "nobody asked for any");
        return;
    }
    check_eq!(result, Ok(0));
    let (start, size) = (found.mach_addr.value.to_u64(), u64::from(found.size));
    let pages = (size * u64::from(cpus()) / 4096) as usize;
    check!(start % 4096 == 0 && size % 4096 == 0 && (1..=MOST_PAGES).contains(&pages), "{size} bytes at {start:#x}");
    let frames = [(); MOST_PAGES].map(|()| memory::alloc_frame().expect("memory"));
    for (index, &window) in (0..).zip(&frames[..pages]) {
        let theirs = Mfn(start / 4096 + index);
        check_eq!(map(window, theirs, PteFlags::KERNEL_RW), Err(Errno::EINVAL), "they are not to be written");
        check_eq!(map(window, theirs, PteFlags::KERNEL_RO), Ok(()));
    }
    check_eq!(memory::flush_tlb(), Ok(()));
    let buffers = Buffers { pages: frames.map(|frame| frame.virt()), start, size };
    for cpu in 0..cpus() {
        let (data, capacity, _) = buffers.head(cpu);
        let header = size_of::<TraceBuffer<Arch>>() as u64;
        check_eq!(data, start + u64::from(cpu) * size + header, "CPU {cpu}");
        check_eq!(capacity, (size - header) / size_of::<TraceRecord>() as u64, "CPU {cpu}");
    }
    let mut read: [u64; 2] =
        core::array::from_fn(|cpu| if (cpu as u32) < cpus() { buffers.head(cpu as u32).2 } else { 0 });
    let mut seen = [false; 6];
    // Where the subject is on another CPU, that one records too. Then both are on one, and each has to wait for the
    // other, sooner or later.
    for round in 0..ROUNDS {
        subject.exchange();
        for (cpu, read) in (0..cpus()).zip(&mut read) {
            let (data, capacity, head) = buffers.head(cpu);
            check!(head > *read || round > 0, "CPU {cpu} has recorded something");
            let mut last = 0;
            for index in (*read).max(head.saturating_sub(capacity - 1))..head {
                fence(Ordering::Acquire);
                let [low, high, event, d1, ..] = buffers.read::<8>(data + 32 * (index % capacity));
                let cycles = u64::from(high) << 32 | u64::from(low);
                check!(cycles >= last, "CPU {cpu}: record {index} is of before");
                last = cycles;
                let of_subject = d1 == u32::from(SUBJECT.0);
                seen[0] |= event == SWITCH && of_subject;
                seen[1] |= event == SWITCH && d1 == 0;
                seen[2] |= event == BLOCK && of_subject;
                seen[3] |= event == WAKE && of_subject;
                seen[4] |= HYPERCALLS.contains(&event) && of_subject;
                seen[5] |= HYPERCALLS.contains(&event) && d1 == 0;
            }
            *read = head;
        }
        if round == 0 {
            check_eq!(moves::pin(SUBJECT, 0), Ok(0));
        } else if seen == [true; 6] {
            break;
        }
    }
    check_eq!(seen, [true; 6], "switches to both, sleep, wake, calls of both");
    let (data, capacity, head) = buffers.head(0);
    check_eq!(ask(GetTbufs::<Arch>::default()).0, Ok(0));
    let now = buffers.head(0).2;
    let records = (head..now).map(|index| buffers.read::<8>(data + 32 * (index % capacity))[2]);
    check!(cpus() > 1 || records.clone().any(|event| event == CONTROL_BEGUN + 21), "the request itself");
}
