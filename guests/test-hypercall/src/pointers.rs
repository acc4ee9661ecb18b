//! Pointers that lead nowhere, in every call that takes one: `-EFAULT`, and nothing else happens.

use proxenos_guest::abi::event_channel::EvtchnOp;
use proxenos_guest::abi::hypercall::MulticallEntry;
use proxenos_guest::abi::mmu::{MmuExtCommand, UpdateVaFlags};
use proxenos_guest::abi::{Errno, GuestVirt, Hypercall, PAGE_SIZE};
use proxenos_guest::arch::{hypercall1, hypercall2, hypercall3};
use proxenos_guest::hypercall::check as result_of;
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::{Arch, Word, check_eq, memory};

/// Addresses that are the hypervisor's, whole or in part, or no addresses at all.
#[cfg(target_arch = "x86")]
const FORBIDDEN: [u64; 9] = [
    0xfbff_fffc,
    0xfc00_0000,
    0xfc00_0004,
    0xfc40_0000,
    0xfd00_0000,
    0xff00_0000,
    0xffff_f000,
    0xffff_fffc,
    0xffff_ffff,
];
#[cfg(target_arch = "x86_64")]
const FORBIDDEN: [u64; 14] = [
    0x0000_7fff_ffff_fffc,
    0x0000_8000_0000_0000,
    0x0001_0000_0000_0000,
    0x7fff_ffff_ffff_fff8,
    0x8000_0000_0000_0000,
    0xffff_7fff_ffff_fffc,
    0xffff_8000_0000_0000,
    0xffff_8100_0000_0000,
    0xffff_8200_0000_0000,
    0xffff_87ff_ffff_f000,
    0xffff_87ff_ffff_fffc,
    0xffff_ffff_ffff_f000,
    0xffff_ffff_ffff_fff8,
    0xffff_ffff_ffff_ffff,
];

/// The calls that take a pointer first, with a second argument that makes them use it.
const POINTER_FIRST: [(Hypercall, usize); 7] = [
    (Hypercall::SetTrapTable, 0),
    (Hypercall::MmuUpdate, 1),
    (Hypercall::SetGdt, 296),
    (Hypercall::Multicall, 1),
    (Hypercall::EventChannelOp, 0),
    (Hypercall::PhysdevOp, 0),
    (Hypercall::Dom0Op, 0),
];

pub fn bad() {
    section("pointers that lead nowhere");
    let hole = Hole::new();
    let refused = |at: u64, what: &str| {
        for (call, second) in POINTER_FIRST {
            // SAFETY: nothing is mapped there, so nothing can be read or written; the third argument is no pointer.
            let result = unsafe { hypercall3(call.raw() as usize, at as usize, second, 0) };
            check_eq!(result_of(result), Err(Errno::EFAULT), "{call:?} at {at:#x} ({what})");
        }
        // SAFETY: as above.
        let result = unsafe { hypercall3(Hypercall::ConsoleIo.raw() as usize, 0, 16, at as usize) };
        check_eq!(result_of(result), Err(Errno::EFAULT), "console write from {at:#x} ({what})");
        for command in 0..3 {
            // SAFETY: as above.
            let result = unsafe { hypercall3(Hypercall::GrantTableOp.raw() as usize, command, at as usize, 1) };
            check_eq!(result_of(result), Err(Errno::EFAULT), "grant operation {command} at {at:#x} ({what})");
        }
    };
    for at in FORBIDDEN {
        refused(at, "not the guest's");
    }
    refused(hole.at.raw(), "not mapped");
    refused(hole.at.raw() + 2048, "not mapped");
    refused(hole.at.raw() - 1, "the second byte is not mapped");
    refused(hole.at.raw() - 2, "the third byte is not mapped");
    long_lists(&hole);
    read_only();
}

/// A page that is not mapped, behind one that is.
struct Hole {
    before: GuestVirt,
    at: GuestVirt,
}

impl Hole {
    fn new() -> Self {
        let before = memory::alloc_frame().expect("padding");
        let after = memory::alloc_frame().expect("padding");
        assert_eq!(before.virt().raw() + PAGE_SIZE as u64, after.virt().raw(), "frames come in order");
        // SAFETY: a fresh frame.
        unsafe { memory::update_va_mapping(after.virt(), Pte::NONE, UpdateVaFlags::INVLPG) }.expect("may be unmapped");
        Self { before: before.virt(), at: after.virt() }
    }
}

/// Lists that begin well and end nowhere, and lists so long that their size overflows.
fn long_lists(hole: &Hole) {
    section("lists that end nowhere");
    let room = |size: usize| (hole.at.raw() as usize - size, size);
    let (calls, size) = room(size_of::<MulticallEntry<Arch>>());
    let list = calls as *mut MulticallEntry<Arch>;
    // SAFETY: the entry lies at the end of a mapped page that is ours.
    unsafe { list.write_unaligned(MulticallEntry { op: 17, args: [0; 7] }) };
    // SAFETY: the first call is xen_version, the second does not exist.
    let result = unsafe { hypercall2(Hypercall::Multicall.raw() as usize, calls, 2) };
    check_eq!(result_of(result), Err(Errno::EFAULT), "a multicall whose second entry is not mapped");
    for count in [usize::MAX / size, usize::MAX, 0x8000_0000] {
        // SAFETY: as above; no list can be that long.
        let result = unsafe { hypercall2(Hypercall::Multicall.raw() as usize, calls, count) };
        check_eq!(result_of(result), Err(Errno::EFAULT), "a multicall of {count:#x} entries");
    }

    let mut flush = [memory::extended(MmuExtCommand::TlbFlush, 0, 0)];
    let (at, _) = room(size_of_val(&flush));
    // SAFETY: the request lies at the end of a mapped page that is ours.
    unsafe { (at as *mut u8).copy_from(flush.as_mut_ptr().cast(), size_of_val(&flush)) };
    let mut done: u32 = 77;
    // SAFETY: the one request there is flushes the TLB.
    let result = unsafe { hypercall3(Hypercall::MmuUpdate.raw() as usize, at, 2, &raw mut done as usize) };
    check_eq!(result_of(result), Err(Errno::EFAULT), "an mmu_update whose second request is not mapped");
    check_eq!(hole.before.raw() as usize % PAGE_SIZE, 0);
}

/// Results cannot be written where the guest itself could not write.
fn read_only() {
    section("results into read-only memory");
    let frame = memory::alloc_frame().expect("padding");
    let op = EvtchnOp { cmd: 5, reserved: 0, ..EvtchnOp::default() };
    // SAFETY: a fresh frame; the operation asks for the state of port 0.
    unsafe {
        frame.words().cast::<EvtchnOp>().write_unaligned(op);
        memory::remap(frame, PteFlags::KERNEL_RO).expect("may be made read-only");
    }
    // SAFETY: reads and writes that one frame.
    let result = unsafe { hypercall1(Hypercall::EventChannelOp.raw() as usize, frame.virt().raw() as usize) };
    check_eq!(result_of(result), Err(Errno::EFAULT), "a result into a read-only page");

    let list = frame.words().wrapping_add(128).cast::<MulticallEntry<Arch>>();
    // SAFETY: made writable for the writes only; the frame is ours.
    unsafe {
        memory::remap(frame, PteFlags::KERNEL_RW).expect("may be made writable");
        list.write_unaligned(MulticallEntry { op: 17, args: [0 as Word; 7] });
        memory::remap(frame, PteFlags::KERNEL_RO).expect("may be made read-only");
    }
    // SAFETY: as above.
    let result = unsafe { hypercall2(Hypercall::Multicall.raw() as usize, list as usize, 1) };
    check_eq!(result_of(result), Err(Errno::EFAULT), "a multicall's result into a read-only page");
}
