//! `grant_table_op` and MMUEXT_TRANSFER_PAGE: as far as one domain alone can see them, its table, and every way in
//! which it cannot make anything of grants without another domain; and between domains, with `test=between`
//! ([`between`]).
#![no_std]
#![no_main]

mod between;
mod partner;

use proxenos_guest::abi::arch::Padded;
use proxenos_guest::abi::grant_table::{
    GrantFlags, GrantMapFlags, GrantStatus, GrantTableCommand, MapGrantRef, SetupTable, UnmapGrantRef,
};
use proxenos_guest::abi::mmu::{MmuUpdate, UpdateVaFlags};
use proxenos_guest::abi::{DomId, Errno, GrantRef, GuestArch, GuestVirt, GuestWord, Mfn};
use proxenos_guest::arch::hypercall3;
use proxenos_guest::memory::{self, Frame};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::{Arch, StartInfo, Word, boot, check, check_eq, hypercall, probe};

proxenos_guest::test_guest!(main);

/// The number of the call.
const GRANT_TABLE_OP: usize = 20;
/// Frames that a table can have.
const MOST: usize = 4;
/// What stands where nothing is to be written.
const UNTOUCHED: Word = 0x7e57_7e57;

fn main(_: &StartInfo) {
    proxenos_guest::init();
    if !boot::is_initial_domain() {
        return partner::serve();
    }
    if boot::option("test") == Some("between") {
        return between::run();
    }
    let table = the_table();
    calls();
    pointers();
    to_oneself(table);
    handles();
    transfers();
}

fn frame() -> Frame {
    memory::alloc_frame().expect("the domain has more memory than this test needs")
}

fn call<T>(command: GrantTableCommand, operations: &mut [T]) -> Result<usize, Errno> {
    // SAFETY: nothing that this test asks for is mapped over memory in use, nor given away.
    unsafe { hypercall::grant_table_op(command.raw(), operations) }
}

/// Maps a frame at a page of the test's own.
fn map(at: GuestVirt, entry: Pte) -> Result<(), Errno> {
    // SAFETY: the tests map pages of their own, to which no reference exists.
    unsafe { memory::update_va_mapping(at, entry, UpdateVaFlags::INVLPG) }
}

/// Sets a table up: the status, and the list.
fn set_up(dom: DomId, frames: u16) -> (i16, [Word; MOST + 1]) {
    let mut list = [UNTOUCHED; MOST + 1];
    let frame_list = Padded::from_u64(list.as_mut_ptr() as usize as u64).expect("an address of ours");
    let mut op = [SetupTable::<Arch> { dom, nr_frames: frames, status: 77, frame_list, pad: 0 }];
    check_eq!(call(GrantTableCommand::SetupTable, &mut op), Ok(0));
    (op[0].status, list)
}

/// The table, mapped at a page of the test's own.
fn the_table() -> Frame {
    section("the table");
    let okay = GrantStatus::Okay.raw();
    let (status, list) = set_up(DomId::SELF, 0);
    check_eq!((status, list), (okay, [UNTOUCHED; MOST + 1]), "no frames");
    let (status, one) = set_up(DomId::SELF, 1);
    check_eq!((status, one[1]), (okay, UNTOUCHED));
    let (status, all) = set_up(DomId::SELF, MOST as u16);
    check_eq!((status, all[0], all[MOST]), (okay, one[0], UNTOUCHED), "it grows, and what there was stays");
    let (_, two) = set_up(DomId::DOM0, 2);
    check_eq!((two[0], two[1]), (all[0], all[1]), "a privileged domain names itself by number");
    for (dom, frames, status) in [
        (DomId::SELF, MOST as u16 + 1, GrantStatus::GeneralError),
        (DomId::SELF, u16::MAX, GrantStatus::GeneralError),
        (DomId(77), 1, GrantStatus::BadDomain),
        (DomId::IO, 1, GrantStatus::BadDomain),
        (DomId::XEN, 1, GrantStatus::BadDomain),
    ] {
        check_eq!(set_up(dom, frames), (status.raw(), [UNTOUCHED; MOST + 1]), "{dom:?}, {frames} frames");
    }
    for &word in &all[1..MOST] {
        check!(all[..MOST].iter().filter(|&&other| other == word).count() == 1, "frame {word:#x} is there once");
    }
    let place = frame();
    for &word in &all[..MOST] {
        let mfn = Mfn(word.to_u64());
        check_eq!(map(place.virt(), Pte::new(mfn, PteFlags::KERNEL_RW)), Ok(()), "we can write to it");
        let empty = (0..4096 / size_of::<Word>()).all(|index| {
            // SAFETY: mapped just now.
            unsafe { place.words().add(index).read_volatile() == 0 }
        });
        check!(empty, "it grants nothing yet");
        check_eq!(memory::pin(1, mfn), Err(Errno::EINVAL), "and is no page table, ever");
        let mut word = [word];
        // SAFETY: it is refused.
        let given = unsafe {
            hypercall::dom_mem_op(
                proxenos_guest::abi::hypercall::DomMemOp::DecreaseReservation,
                &mut word,
                0,
                DomId::SELF,
            )
        };
        check_eq!(given, Ok(0), "nor ours to give back");
    }
    check_eq!(map(place.virt(), Pte::new(Mfn(one[0].to_u64()), PteFlags::KERNEL_RW)), Ok(()));
    place
}

fn calls() {
    section("calls");
    let mut ops = [UnmapGrantRef::<Arch>::default(); 2];
    check_eq!(call(GrantTableCommand::UnmapGrantRef, &mut ops[..0]), Ok(0), "nothing to do");
    check_eq!(call(GrantTableCommand::SetupTable, &mut ops[..0]), Err(Errno::EINVAL), "a table is one");
    check_eq!(call(GrantTableCommand::SetupTable, &mut ops), Err(Errno::EINVAL));
    for count in [513, 1 << 20, u32::MAX as usize] {
        for command in 0..4 {
            // SAFETY: refused before the list is looked at.
            let result = unsafe { hypercall3(GRANT_TABLE_OP, command, ops.as_mut_ptr() as usize, count) };
            check_eq!(hypercall::check(result), Err(Errno::EINVAL), "{count} operations");
        }
    }
    for command in [3, 4, 0xffff_ffff] {
        // SAFETY: there is no such command.
        let result = unsafe { hypercall3(GRANT_TABLE_OP, command, ops.as_mut_ptr() as usize, 1) };
        check_eq!(hypercall::check(result), Err(Errno::ENOSYS), "command {command:#x}");
    }
}

fn pointers() {
    section("pointers");
    let (hole, read_only) = (frame(), memory::tables::new_table().expect("a frame"));
    check_eq!(map(hole.virt(), Pte::NONE), Ok(()));
    let bad = [
        Arch::HYPERVISOR_VIRT_START,
        Arch::MACHINE_TO_PHYS,
        Arch::HYPERVISOR_VIRT_START - 4,
        hole.virt().raw(),
        hole.virt().raw() + 4095,
        read_only.virt().raw(),
    ];
    for at in bad {
        for command in 0..3 {
            // SAFETY: the list is nowhere, or of zeroes: it maps nothing and unmaps nothing.
            let result = unsafe { hypercall3(GRANT_TABLE_OP, command, at as usize, 1) };
            check_eq!(hypercall::check(result), Err(Errno::EFAULT), "command {command}, at {at:#x}");
        }
        let frame_list = Padded::from_u64(at).expect("an address");
        let mut op = [SetupTable::<Arch> { dom: DomId::SELF, nr_frames: 1, status: 77, frame_list, pad: 0 }];
        check_eq!(call(GrantTableCommand::SetupTable, &mut op), Err(Errno::EFAULT), "frames to {at:#x}");
        check_eq!(op[0].status, 77, "and nothing is said");
    }
}

/// A domain grants nothing to itself; what it might have granted is unchanged.
fn to_oneself(table: Frame) {
    section("grants to oneself");
    let (granted, at) = (frame(), frame());
    check_eq!(map(at.virt(), Pte::NONE), Ok(()));
    // Domain 0 is whom an entry names that names nobody.
    let flags = u32::from(GrantFlags::PERMIT_ACCESS.bits());
    let entry = table.words().cast::<u32>();
    // SAFETY: the table is mapped there.
    unsafe {
        entry.add(1).write_volatile(granted.mfn().raw() as u32);
        entry.write_volatile(flags);
    }
    let host = Padded::from_u64(at.virt().raw()).expect("an address of ours");
    let op = |dom, grant, flags: GrantMapFlags| MapGrantRef::<Arch> {
        host_virt_addr: host,
        dom: DomId(dom),
        grant: GrantRef(grant),
        flags: flags.bits(),
        handle: 77,
        dev_bus_addr: Padded::default(),
    };
    let both = GrantMapFlags::HOST_MAP | GrantMapFlags::DEVICE_MAP;
    let mut ops = [
        op(0, 0, both),
        op(0, 1, both),
        op(0x7ff0, 0, both),
        op(77, 0, both),
        op(0x7ff2, 0, GrantMapFlags::HOST_MAP),
        op(0, 0, GrantMapFlags::READONLY),
        op(0, 0, GrantMapFlags::empty()),
    ];
    check_eq!(call(GrantTableCommand::MapGrantRef, &mut ops), Ok(0), "each has a status of its own");
    let bad_domain = GrantStatus::BadDomain.raw();
    let bad_ref = GrantStatus::BadGrantRef.raw();
    for (index, op) in ops.iter().enumerate() {
        check_eq!(op.handle, if index < 5 { bad_domain } else { bad_ref }, "operation {index}");
        check_eq!(op.dev_bus_addr.to_u64(), 0);
    }
    check_eq!(probe::load(at.virt()), None, "nothing is mapped");
    // SAFETY: the table is mapped there.
    check_eq!(unsafe { entry.read_volatile() }, flags, "the entry is as it was");
    check_eq!(memory::pin(1, granted.mfn()), Err(Errno::EINVAL), "a page of ours, mapped to be written");
    check_eq!(map(granted.virt(), Pte::NONE), Ok(()));
    check_eq!(memory::pin(1, granted.mfn()), Ok(()), "to grant a frame keeps it from nothing");
    check_eq!(memory::unpin(granted.mfn()), Ok(()));
}

fn handles() {
    section("handles that nobody has");
    let at = frame();
    let mut ops = [UnmapGrantRef::<Arch>::default(); 512];
    for (index, op) in ops.iter_mut().enumerate() {
        op.host_virt_addr = Padded::from_u64(at.virt().raw()).expect("an address of ours");
        op.handle = if index < 256 { index as u16 } else { 0xffff - index as u16 };
        op.status = 77;
    }
    check_eq!(call(GrantTableCommand::UnmapGrantRef, &mut ops), Ok(0));
    check!(ops.iter().all(|op| op.status == GrantStatus::BAD_HANDLE.raw()), "as many as there can be in a call");
    check!(probe::is_writable(at.virt()), "what is mapped there stays");
}

fn transfers() {
    section("frames for nobody");
    let given = frame();
    check_eq!(map(given.virt(), Pte::NONE), Ok(()));
    for (to, grant) in [(0, 0), (0, 511), (0, 2048), (0, 0xffff), (77, 0), (0x7ff0, 0), (0x7ff2, 0)] {
        let request = MmuUpdate::<Arch>::transfer_page(given.mfn().addr(), DomId(to), GrantRef(grant));
        // SAFETY: it is refused.
        let result = unsafe { memory::update(request.expect("a frame of ours")) };
        check_eq!(result, Err(Errno::EINVAL), "to domain {to:#x}, grant {grant}");
    }
    check_eq!(map(given.virt(), Pte::new(given.mfn(), PteFlags::KERNEL_RW)), Ok(()), "it is still ours");
    check!(probe::is_writable(given.virt()));
}
