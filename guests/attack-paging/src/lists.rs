//! Requests themselves: across an edge, with pointers that are not the guest's, in lists that change.

use crate::{REFUSED, TOP, blank, frame, map, remap, store, write};
use proxenos_guest::abi::hypercall::MulticallEntry;
use proxenos_guest::abi::mmu::{MmuCommand, MmuExtCommand};
use proxenos_guest::abi::{Errno, GuestArch, GuestVirt, GuestWord, Hypercall, MachineAddr, Mfn, PAGE_SIZE};
use proxenos_guest::arch::{hypercall3, hypercall4};
use proxenos_guest::hypercall::check as result_of;
use proxenos_guest::memory::{self, tables};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::{Arch, Word, check, check_eq, hypercall, probe};

const WORD: u64 = size_of::<Word>() as u64;

/// `mmu_update` of a list at any address, with the count going to any.
fn update_at(list: u64, count: usize, done: u64) -> Result<usize, Errno> {
    // SAFETY: the lists of these tests change pages of their own only; what is no list is refused.
    result_of(unsafe { hypercall3(Hypercall::MmuUpdate.raw() as usize, list as usize, count, done as usize) })
}

/// The words of a request that flushes, which harms nobody.
fn flush() -> [Word; 2] {
    [3, MmuExtCommand::TlbFlush.raw() as Word]
}

pub fn edges() {
    // Two pages next to each other, of which the list's second request lies in both, or in one and nothing.
    let (first, second) = (frame(), frame());
    check_eq!(second.virt().raw(), first.virt().raw() + PAGE_SIZE as u64, "frames are handed out in order");
    let begin = second.virt().raw() - 3 * WORD;
    for (index, word) in flush().into_iter().chain(flush()).enumerate() {
        check!(store(GuestVirt(begin), index, word));
    }
    check_eq!(update_at(begin, 2, 0), Ok(0), "a list in two pages");
    let done = frame();
    check_eq!(map(second.virt(), Pte::NONE), Ok(()));
    check_eq!(update_at(begin, 2, done.virt().raw()), Err(Errno::EFAULT), "a list that ends in nothing");
    check_eq!(probe::load(done.virt()).map(|word| word.to_u64() as u32), Some(1), "its first request was carried out");
    // A count of requests that no address space holds.
    for count in [u32::MAX as usize, 0x8000_0000, 0x2000_0001] {
        check_eq!(update_at(begin, count, 0), Err(Errno::EFAULT), "{count:#x} requests");
    }
    check_eq!(remap(second, PteFlags::KERNEL_RW), Ok(()));

    // Entries that lie across two, or in no table.
    let (address, entry) = tables::entry_of(first.virt()).expect("mapped");
    if WORD == 8 {
        let askew = MachineAddr(address.raw() + 4);
        // SAFETY: refused.
        check_eq!(unsafe { memory::write_entry(askew, entry) }, REFUSED, "half of one entry, half of the next");
    }
    // The last entry of a table and the first of what comes behind it are two things.
    let table = blank();
    check_eq!(memory::pin(1, table.mfn()), Ok(()));
    check_eq!(write(table.mfn(), Arch::PAGE_TABLE_ENTRIES - 1, entry), Ok(()));
    let behind = MachineAddr(table.mfn().addr().raw() + PAGE_SIZE as u64);
    if memory::pfn_of_mfn(behind.mfn()).is_none() {
        // SAFETY: refused.
        check_eq!(unsafe { memory::write_entry(behind, entry) }, REFUSED, "behind it");
    }
    check_eq!(write(table.mfn(), Arch::PAGE_TABLE_ENTRIES - 1, Pte::NONE), Ok(()));
    check_eq!(memory::unpin(table.mfn()), Ok(()));
    check_eq!(remap(table, PteFlags::KERNEL_RW), Ok(()));

    // Pages from the last that is ours on.
    let start = Arch::HYPERVISOR_VIRT_START;
    for at in [start, start + 0x1000, Arch::HYPERVISOR_VIRT_END - 0x1000, Arch::MACHINE_TO_PHYS] {
        check_eq!(map(GuestVirt(at), entry), REFUSED, "at {at:#x}");
    }
    // Page numbers whose address is none.
    for page in [usize::MAX, usize::MAX >> 1, 1 << (usize::BITS - 12), (1 << (usize::BITS - 12)) | 0x100] {
        // SAFETY: refused.
        let result = unsafe { hypercall3(Hypercall::UpdateVaMapping.raw() as usize, page, entry.0 as usize, 0) };
        check_eq!(result_of(result), REFUSED.map(|()| 0), "page {page:#x}");
    }
    // Descriptors: across two, in tables, in what is not ours; LDTs into the hypervisor's range.
    let page = blank();
    let at = page.mfn().addr().raw();
    for (address, what) in [
        (at + 4, "across two"),
        (at + PAGE_SIZE as u64 - 4, "across two pages"),
        (tables::root().addr().raw(), "in the top table"),
        (Mfn(0xb8).addr().raw(), "in I/O memory"),
        (Mfn(0xf_ffff).addr().raw(), "nowhere"),
    ] {
        // SAFETY: refused.
        check_eq!(unsafe { hypercall::update_descriptor(MachineAddr(address), 0) }, REFUSED, "{what}");
    }
    for (at, entries) in [(start, 1), (start - 0x1000, 513), (page.virt().raw() + 8, 1), (page.virt().raw(), 8193)] {
        // SAFETY: refused.
        check_eq!(unsafe { memory::set_ldt(GuestVirt(at), entries) }, REFUSED, "{entries} at {at:#x}");
    }
    check_eq!(remap(page, PteFlags::KERNEL_RW), Ok(()));
}

/// Machine-to-physical entries of all memory: what the hypervisor alone writes.
pub fn hypervisor_pointers() {
    let page = frame();
    let number = memory::machine_to_phys(page.mfn());
    let (args, start) = (page.virt().raw(), Arch::HYPERVISOR_VIRT_START);
    for (index, word) in flush().into_iter().enumerate() {
        check!(store(page.virt(), index, word));
    }
    let entry_of_ours = Arch::MACHINE_TO_PHYS + page.mfn().raw() * WORD;
    for at in [start, entry_of_ours, start - 1, start - 2, start - 3, start + 8, Arch::HYPERVISOR_VIRT_END - 4] {
        check_eq!(update_at(args, 1, at), Ok(0), "the count to {at:#x}: the work is done, the count is not written");
        check_eq!(update_at(at, 1, 0), Err(Errno::EFAULT), "a list at {at:#x}");
    }
    check_eq!(memory::machine_to_phys(page.mfn()), number, "no count was written over it");
    // The frame whose entries the table holds is not to be had by its own number, for writing.
    let own = proxenos_guest::shared_info::double_word(proxenos_guest::abi::shared_info::SharedInfo::MFN_TO_PFN_START);
    check_eq!(map(page.virt(), Pte::new(Mfn(own), PteFlags::KERNEL_RW)), REFUSED);
    let entry = |op: Hypercall, args: [Word; 4]| {
        let [a, b, c, d] = args;
        MulticallEntry::<Arch> { op: op.raw() as Word, args: [a, b, c, d, 0, 0, 0] }
    };
    // Within a multicall, whose own results go into its list.
    let mut list = [
        entry(Hypercall::MmuUpdate, [start as Word, 1, 0, 0]),
        entry(Hypercall::UpdateVaMapping, [(start >> 12) as Word, 0, 0, 0]),
        entry(Hypercall::SetGdt, [start as Word, 512, 0, 0]),
        entry(Hypercall::Multicall, [start as Word, 1, 0, 0]),
    ];
    // SAFETY: each is refused.
    check_eq!(unsafe { hypercall::multicall(&mut list) }, Ok(()));
    let expected = [Errno::EFAULT, Errno::EINVAL, Errno::EFAULT, Errno::EINVAL];
    for (call, errno) in list.iter().zip(expected) {
        check_eq!(call.args[proxenos_guest::abi::hypercall::MULTICALL_RESULT_ARG], errno.to_word());
    }
    for call in [Hypercall::MmuUpdate, Hypercall::Multicall, Hypercall::SetGdt, Hypercall::SetTrapTable] {
        for at in [start, start + 0x1000, Arch::MACHINE_TO_PHYS, Arch::HYPERVISOR_VIRT_END - 8] {
            // SAFETY: refused.
            let result = unsafe { hypercall4(call.raw() as usize, at as usize, 512, at as usize, at as usize) };
            check_eq!(result_of(result), Err(Errno::EFAULT), "{call:?} at {at:#x}");
        }
    }
}

/// The list's first requests rewrite, unmap or take away what the next ones are read from.
pub fn changing() {
    let list = frame();
    let put = |words: &[Word]| {
        for (index, &word) in words.iter().enumerate() {
            check!(store(list.virt(), index, word));
        }
    };
    let [flush_ptr, flush_val] = flush();
    let at = list.mfn().addr().raw();
    let set = |machine: u64, value: Word| {
        let request = memory::request(MmuCommand::NormalPtUpdate, MachineAddr(machine), value);
        [request.ptr, request.val]
    };
    let done = frame();
    let counted = || probe::load(done.virt()).map(|word| word.to_u64() as u32);
    // A good request becomes a bad one, by the one before it.
    let [ptr, val] = set(at + 2 * WORD, 1);
    put(&[ptr, val, flush_ptr, flush_val]);
    check_eq!(update_at(list.virt().raw(), 2, done.virt().raw()), REFUSED.map(|()| 0), "command 1 is none");
    check_eq!(counted(), Some(1));
    // The value that is looked at is the one that is stored: a table's entry, good when the list was made.
    let (table, page) = (blank(), frame());
    check_eq!(memory::pin(1, table.mfn()), Ok(()));
    let bad = Pte::new(tables::root(), PteFlags::KERNEL_RW).0;
    let good = Pte::new(page.mfn(), PteFlags::KERNEL_RW).0;
    let [ptr, val] = set(at + 3 * WORD, bad);
    let [next, value] = set(table.mfn().addr().raw(), good);
    put(&[ptr, val, next, value]);
    check_eq!(update_at(list.virt().raw(), 2, done.virt().raw()), REFUSED.map(|()| 0), "a bad entry by then");
    check_eq!((counted(), probe::load(table.virt())), (Some(1), Some(0)));
    check_eq!(memory::unpin(table.mfn()), Ok(()));
    // The count is written over the list.
    put(&[flush_ptr, flush_val, flush_ptr, flush_val]);
    check_eq!(update_at(list.virt().raw(), 2, list.virt().raw() + 2 * WORD), Ok(0));
    // The list's page becomes a table: not while it is mapped writable; not under the requests.
    let pin = memory::extended(MmuExtCommand::PinL1Table, at, 0);
    put(&[pin.ptr, pin.val, flush_ptr, flush_val]);
    check_eq!(update_at(list.virt().raw(), 2, done.virt().raw()), REFUSED.map(|()| 0));
    check_eq!(counted(), Some(0));
    // It is unmapped by its own first request, and flushed by its second. The third is found or not, and nothing else.
    let (address, entry) = tables::entry_of(list.virt()).expect("mapped");
    let [ptr, val] = set(address.raw(), 0);
    put(&[ptr, val, flush_ptr, flush_val, flush_ptr, flush_val]);
    let result = update_at(list.virt().raw(), 3, done.virt().raw());
    check!(matches!(result, Ok(0) | Err(Errno::EFAULT)), "{result:?}");
    check!(!probe::is_readable(list.virt()), "it is unmapped");
    check_eq!(hypercall::audit(), Ok(()));
    // SAFETY: the entry as it was.
    check_eq!(unsafe { memory::write_entry(address, entry) }, Ok(()));
    // It is replaced by another page with other requests, between two of them.
    let other = frame();
    let [ptr, val] = set(address.raw(), Pte::new(other.mfn(), PteFlags::KERNEL_RW).0);
    put(&[ptr, val, flush_ptr, flush_val]);
    check!(store(other.virt(), 2, 1), "command 1 is none");
    let result = update_at(list.virt().raw(), 2, 0);
    check!(matches!(result, Ok(0) | Err(Errno::EINVAL)), "{result:?}: by the old page or by the new");
    check_eq!(map(list.virt(), entry), Ok(()));
    for frame in [list, other, table] {
        check_eq!(remap(frame, PteFlags::KERNEL_RO), Ok(()));
        check_eq!(
            memory::pin(TOP, frame.mfn()).is_ok(),
            frame.mfn() == table.mfn(),
            "contents decide, and no reference"
        );
    }
    check_eq!(memory::unpin(table.mfn()), Ok(()));
}
