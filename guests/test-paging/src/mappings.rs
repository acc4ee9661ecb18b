//! Mapping pages: one's own, nobody's, the hypervisor's.

use crate::{check_read_only, frame, map, remap, store};
use proxenos_guest::abi::mmu::{MmuCommand, MmuExtCommand, UpdateVaFlags};
use proxenos_guest::abi::shared_info::SharedInfo;
use proxenos_guest::abi::{DomId, Errno, GuestArch, GuestVirt, MachineAddr, Mfn, Pfn};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::{Arch, Word, boot, check, check_eq, hypercall, memory, probe};

pub fn run() {
    own();
    flushing();
    not_ours();
    io_memory();
    hypervisor_addresses();
    batches();
    checked_stores();
    machine_to_phys();
}

fn own() {
    section("pages of our own");
    let (one, two) = (frame(), frame());
    check!(store(one.virt(), 0x1111) && store(two.virt(), 0x2222));

    check_eq!(remap(one, PteFlags::KERNEL_RO), Ok(()));
    check_read_only(one.virt(), "a page made read-only");
    check_eq!(map(one.virt(), Pte::NONE), Ok(()));
    check!(!probe::is_readable(one.virt()), "a page unmapped");
    check!(memory::pte_of(one.virt()).is_none());

    check_eq!(map(one.virt(), Pte::new(two.mfn(), PteFlags::KERNEL_RW)), Ok(()), "two mappings of a frame");
    check_eq!(probe::load(one.virt()), Some(0x2222));
    check!(store(one.virt(), 0x3333));
    check_eq!(probe::load(two.virt()), Some(0x3333), "one mapping shows what the other wrote");
    check_eq!(memory::pte_of(one.virt()).map(Pte::mfn), Some(two.mfn()), "the guest's own entry says the same");

    check_eq!(remap(one, PteFlags::KERNEL_RW), Ok(()));
    check_eq!(probe::load(one.virt()), Some(0x1111), "the frame kept its contents");

    // An entry that is not present may hold anything.
    check_eq!(map(one.virt(), Pte(0xffff_fffe)), Ok(()));
    check!(!probe::is_readable(one.virt()));
    check_eq!(memory::entry_of(one.virt()).map(|(_, entry)| entry), Some(Pte(0xffff_fffe)), "and keeps it");
    check_eq!(remap(one, PteFlags::KERNEL_RW), Ok(()));
}

fn flushing() {
    section("flushing");
    let (one, two) = (frame(), frame());
    check!(store(one.virt(), 1) && store(two.virt(), 2));
    let lazily = |flags| {
        // SAFETY: pages of the test's own.
        let first = unsafe { memory::update_va_mapping(one.virt(), Pte::new(two.mfn(), PteFlags::KERNEL_RW), flags) };
        check_eq!(first, Ok(()));
    };
    lazily(UpdateVaFlags::FLUSH_TLB);
    check_eq!(probe::load(one.virt()), Some(2), "UVMF_FLUSH_TLB");
    check_eq!(remap(one, PteFlags::KERNEL_RW), Ok(()));
    check_eq!(probe::load(one.virt()), Some(1), "UVMF_INVLPG");
    lazily(UpdateVaFlags::empty());
    check_eq!(memory::flush_page(one.virt()), Ok(()));
    check_eq!(probe::load(one.virt()), Some(2), "MMUEXT_INVLPG");
    check_eq!(remap(one, PteFlags::KERNEL_RW), Ok(()));
    lazily(UpdateVaFlags::empty());
    check_eq!(memory::flush_tlb(), Ok(()));
    check_eq!(probe::load(one.virt()), Some(2), "MMUEXT_TLB_FLUSH");
    check_eq!(remap(one, PteFlags::KERNEL_RW), Ok(()));
    check_eq!(memory::flush_page(GuestVirt(Arch::HYPERVISOR_VIRT_START)), Ok(()), "the hypervisor's page: no harm");
    // SAFETY: changes nothing.
    check_eq!(unsafe { memory::update(memory::extended(MmuExtCommand::FlushCache, 0, 0)) }, Ok(()));
}

/// Frames of RAM that are not ours: between the first MiB and our last there is nothing but RAM.
fn foreign_frames() -> impl Iterator<Item = Mfn> {
    let shared = MachineAddr(boot::start_info().shared_info.to_u64()).mfn();
    let last = (0..boot::frames()).map(|pfn| memory::mfn_of(Pfn(pfn)).raw()).max().unwrap_or(0);
    (0x101..last).map(Mfn).filter(move |&frame| frame != shared && memory::pfn_of_mfn(frame).is_none())
}

/// One of them.
pub fn foreign_frame() -> Mfn {
    foreign_frames().next().expect("the hypervisor has some RAM for itself")
}

/// Every frame of RAM between the first MiB and our last that is not ours must be out of reach.
fn not_ours() {
    section("frames that are not ours");
    let spare = frame();
    let mut tried = 0;
    for frame in foreign_frames() {
        for flags in [PteFlags::KERNEL_RW, PteFlags::KERNEL_RO] {
            check_eq!(map(spare.virt(), Pte::new(frame, flags)), Err(Errno::EINVAL), "{frame:?} with {flags:?}");
        }
        tried += 1;
    }
    check!(tried > 0, "there were such frames");
    check_eq!(memory::pte_of(spare.virt()).map(Pte::mfn), Some(spare.mfn()), "the entry stayed as it was");
    check!(probe::is_writable(spare.virt()));
    let table = proxenos_guest::shared_info::double_word(SharedInfo::MFN_TO_PFN_START);
    if table != 0 {
        for flags in [PteFlags::KERNEL_RW, PteFlags::KERNEL_RO] {
            let entry = Pte::new(Mfn(table), flags);
            check_eq!(map(spare.virt(), entry), Err(Errno::EINVAL), "machine_to_phys without DOMID_XEN");
        }
    }
}

/// Domain 0 may map the first MiB, and what else is no memory; but for what no guest may have.
fn io_memory() {
    section("I/O memory");
    let spare = frame();
    let flags = PteFlags::KERNEL_RW | PteFlags::UNCACHED;
    check_eq!(map(spare.virt(), Pte::new(Mfn(0xb8), flags)), Ok(()), "the frame buffer of old");
    check_eq!(map(spare.virt(), Pte::new(Mfn(0xf0), PteFlags::KERNEL_RO)), Ok(()), "the BIOS");
    check!(probe::is_readable(spare.virt()));
    // The firmware's last page, below 4 GiB: what a CPU executes first is a jump.
    let firmware = Pte::new(Mfn(0xfffff), PteFlags::KERNEL_RO | PteFlags::UNCACHED);
    let first = || probe::load(GuestVirt(spare.virt().raw() + 0xff0)).map(|word| word as u8);
    check_eq!((map(spare.virt(), firmware), first()), (Ok(()), Some(0xea)), "far from all RAM");
    check_eq!(remap(spare, PteFlags::KERNEL_RW), Ok(()));
    check_eq!((as_io(spare.virt(), firmware), first()), (Ok(()), Some(0xea)), "the same as DOMID_IO's");
    check_eq!(remap(spare, PteFlags::KERNEL_RW), Ok(()));
    // What no guest has: the local APIC, the I/O APIC, and RAM, whosever it is.
    let own = frame().mfn();
    for (mfn, what) in [(Mfn(0xfee00), "the local APIC"), (Mfn(0xfec00), "the I/O APIC"), (foreign_frame(), "RAM")] {
        for flags in [flags, PteFlags::KERNEL_RW, PteFlags::KERNEL_RO] {
            let entry = Pte::new(mfn, flags);
            check_eq!(map(spare.virt(), entry), Err(Errno::EINVAL), "{what} with {flags:?}");
            check_eq!(as_io(spare.virt(), entry), Err(Errno::EINVAL), "{what} as DOMID_IO's, with {flags:?}");
        }
    }
    check_eq!(as_io(spare.virt(), Pte::new(own, PteFlags::KERNEL_RO)), Err(Errno::EINVAL), "our own as DOMID_IO's");
    check!(store(spare.virt(), 5));
}

/// Maps a frame of DOMID_IO's.
fn as_io(at: GuestVirt, entry: Pte) -> Result<(), Errno> {
    let (slot, _) = memory::entry_of(at).expect("mapped");
    let list = [
        memory::extended(MmuExtCommand::SetForeigndom, 0, u64::from(DomId::IO.0) << 8),
        memory::request(MmuCommand::NormalPtUpdate, slot, entry.0),
        memory::extended(MmuExtCommand::Invlpg, at.raw(), 0),
    ];
    // SAFETY: a page of the test's own.
    unsafe { hypercall::mmu_update(&list) }.map(drop).map_err(|(errno, _)| errno)
}

fn hypervisor_addresses() {
    section("the hypervisor's addresses");
    let spare = frame();
    let entry = Pte::new(spare.mfn(), PteFlags::KERNEL_RW);
    let (first, last) = (Arch::HYPERVISOR_VIRT_START, Arch::HYPERVISOR_VIRT_END - 4096);
    for at in [first, Arch::MACHINE_TO_PHYS, first + (((last - first) / 2) & !0xfff), last].map(GuestVirt) {
        check_eq!(map(at, entry), Err(Errno::EINVAL), "a mapping at {at:#x}");
        check_eq!(map(at, Pte::NONE), Err(Errno::EINVAL), "unmapping {at:#x}");
    }
    // SAFETY: a page number beyond the address space maps nothing.
    let result = hypercall::check(unsafe { proxenos_guest::arch::hypercall3(14, usize::MAX, entry.0 as usize, 0) });
    check_eq!(result, Err(Errno::EINVAL), "a page number beyond the address space");
}

fn batches() {
    section("lists of requests");
    let frames = [frame(), frame(), frame()];
    let entry = |index: usize| memory::entry_of(frames[index].virt()).map_or(MachineAddr(0), |(at, _)| at);
    let read_only = |index: usize| Pte::new(frames[index].mfn(), PteFlags::KERNEL_RO).0;
    let request = |index: usize, value: Word| memory::request(MmuCommand::NormalPtUpdate, entry(index), value);
    let bad = Pte(read_only(1)).with(PteFlags::GLOBAL).0;
    let list = [request(0, read_only(0)), request(1, bad), request(2, read_only(2))];
    // SAFETY: pages of the test's own.
    check_eq!(unsafe { hypercall::mmu_update(&list) }, Err((Errno::EINVAL, 1)), "stops at the second");
    check_eq!(memory::flush_tlb(), Ok(()));
    check_read_only(frames[0].virt(), "the first was carried out");
    check!(probe::is_writable(frames[1].virt()), "the second was not");
    check!(probe::is_writable(frames[2].virt()), "nor the third");
    let list = [request(0, read_only(0)), request(1, read_only(1)), request(2, read_only(2))];
    // SAFETY: pages of the test's own.
    check_eq!(unsafe { hypercall::mmu_update(&list) }, Ok(3));
    check_eq!(memory::flush_tlb(), Ok(()));
    for frame in frames {
        check_read_only(frame.virt(), "all carried out");
    }
    // SAFETY: nothing is asked.
    check_eq!(unsafe { hypercall::mmu_update(&[]) }, Ok(0), "no request");
    let unknown = proxenos_guest::abi::mmu::MmuUpdate::<Arch> { ptr: 1, val: 0 };
    // SAFETY: command 1 does not exist.
    check_eq!(unsafe { hypercall::mmu_update(&[unknown]) }, Err((Errno::EINVAL, 0)), "command 1");
    // 14, the base for applications, is for four-level guests.
    let first = if cfg!(target_arch = "x86") { 14 } else { 15 };
    for command in first..=16 {
        let unknown = proxenos_guest::abi::mmu::MmuUpdate::<Arch> { ptr: 3, val: command };
        // SAFETY: the extended command does not exist.
        check_eq!(unsafe { hypercall::mmu_update(&[unknown]) }, Err((Errno::EINVAL, 0)), "extended command {command}");
    }
}

/// MMU_NORMAL_PT_UPDATE on a frame that is no table is a store, if the frame is ours.
fn checked_stores() {
    section("stores to frames that are no tables");
    let spare = frame();
    let at = |offset: u64| MachineAddr(spare.mfn().addr().raw() + offset);
    // SAFETY: a frame of the test's own.
    check_eq!(unsafe { memory::write_entry(at(64), Pte(0x1234_5678)) }, Ok(()));
    check_eq!(probe::load(GuestVirt(spare.virt().raw() + 64)), Some(0x1234_5678));
    for frame in [foreign_frame(), Mfn(0xf_ffff)] {
        // SAFETY: refused.
        let result = unsafe { memory::write_entry(frame.addr(), Pte(0)) };
        check_eq!(result, Err(Errno::EINVAL), "a store to {frame:?}");
    }
}

fn machine_to_phys() {
    section("machine_to_phys");
    let spare = frame();
    let set = |frame: Mfn, value: Word| {
        // SAFETY: says nothing about mappings; the test puts the entry back.
        unsafe { memory::update(memory::request(MmuCommand::MachphysUpdate, frame.addr(), value)) }
    };
    check_eq!(memory::machine_to_phys(spare.mfn()), Some(spare.pfn().raw() as Word));
    check_eq!(set(spare.mfn(), 0x00ab_cdef), Ok(()));
    check_eq!(memory::machine_to_phys(spare.mfn()), Some(0x00ab_cdef));
    check_eq!(set(spare.mfn(), spare.pfn().raw() as Word), Ok(()));
    check_eq!(memory::machine_to_phys(spare.mfn()), Some(spare.pfn().raw() as Word));
    check_eq!(set(foreign_frame(), 7), Err(Errno::EINVAL), "a frame that is not ours");
    check_eq!(set(Mfn(0xf_ffff), 7), Err(Errno::EINVAL), "a frame that is not there");
}

/// Every frame that is left can be mapped and keeps what is written to it: none is there twice.
pub fn all_of_memory() {
    section("all of the domain's memory");
    let first = frame();
    check!(store(first.virt(), first.pfn().raw() as Word));
    let mut last = first;
    while let Some(next) = memory::alloc_frame() {
        // SAFETY: a fresh frame, mapped.
        unsafe { next.words().write_volatile(next.pfn().raw() as Word) };
        last = next;
    }
    check_eq!(last.pfn().raw() + 1, boot::frames(), "the last frame");
    let wrong = (first.pfn().raw()..=last.pfn().raw())
        .filter(|&pfn| {
            let at = memory::virt_of(Pfn(pfn)).raw() as usize as *const Word;
            // SAFETY: mapped just now; tables among them are readable.
            unsafe { at.read_volatile() != pfn as Word }
        })
        .count() as u64;
    // Frames that became page tables on the way hold entries instead.
    let tables = (boot::frames() >> proxenos_guest::arch::LEVEL_BITS) + 8;
    check!(wrong <= tables, "{wrong} frames do not hold what was written");
}
