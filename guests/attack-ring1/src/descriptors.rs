//! Descriptors that long mode reads otherwise than a 32-bit kernel may mean, by every way to install one: `set_gdt`,
//! `update_descriptor`, the LDT. Each must be refused or be of no use.

use proxenos_guest::abi::mmu::MmuExtCommand;
use proxenos_guest::abi::{Errno, MachineAddr, Selector};
use proxenos_guest::arch::segments::{self, Landed, Through};
use proxenos_guest::memory::{self, Frame};
use proxenos_guest::pte::PteFlags;
use proxenos_guest::test::section;
use proxenos_guest::{check, check_eq, hypercall, probe};

/// Where in the GDT the attacks go: a slot of the first page, which the hypervisor copies, and one of the second.
const SLOTS: [u16; 2] = [10, 600];
/// Entries of our GDT: two pages.
const ENTRIES: usize = 1024;
/// Entries of our LDT.
const LDT_ENTRIES: u32 = 512;

/// A flat code or data descriptor: base 0, limit 4 GiB, with this access byte and these flags (bits 4 to 7: G, D, L,
/// AVL).
const fn flat(access: u8, flags: u8) -> u64 {
    0x000f_0000_0000_ffff | (access as u64) << 40 | (flags as u64) << 48
}

/// A gate of this access byte to an entry point.
const fn gate(access: u8, selector: u16, offset: u32) -> u64 {
    (offset & 0xffff) as u64 | (selector as u64) << 16 | (access as u64) << 40 | ((offset >> 16) as u64) << 48
}

const GRANULAR: u8 = 0x80;
const DEFAULT_32: u8 = 0x40;
const LONG: u8 = 0x20;

/// 32-bit code and data for ring 1: these are ours to have.
const GOOD_CODE: u64 = flat(0xba, GRANULAR | DEFAULT_32);
const GOOD_DATA: u64 = flat(0xb2, GRANULAR | DEFAULT_32);

/// What must never become usable.
fn forbidden() -> impl Iterator<Item = (u64, &'static str)> {
    let code = [0x9a, 0x9b, 0x9e, 0x9f, 0xba, 0xbb, 0xbe, 0xbf, 0xda, 0xfa, 0xfe].into_iter().flat_map(|access| {
        [LONG, LONG | GRANULAR, LONG | DEFAULT_32, LONG | DEFAULT_32 | GRANULAR]
            .map(|flags| (flat(access, flags), "64-bit code"))
    });
    let ring0 = [0x92, 0x96, 0x9a, 0x9e].map(|access| (flat(access, GRANULAR | DEFAULT_32), "ring 0"));
    let system = [0xa1, 0xa2, 0xa3, 0xa5, 0xa6, 0xa7, 0xa9, 0xab, 0xae, 0xaf, 0xe9, 0xeb, 0xee, 0xef, 0x89, 0x82]
        .map(|access| (flat(access, 0), "a system descriptor"));
    code.chain(ring0).chain(system)
}

/// Whether a selector can be used to run 64-bit code, or at all where it should not exist.
fn unusable(selector: Selector, what: &str) {
    check!(segments::jump_to(selector) != Landed::Code64, "jump by {selector:x?}: {what}");
    check!(segments::call_to(selector) != Landed::Code64, "call by {selector:x?}: {what}");
}

/// The tables of this attack.
struct Tables {
    gdt: [Frame; 2],
    ldt: Frame,
}

impl Tables {
    /// Frames for the tables, next to each other, zeroed.
    fn new() -> Self {
        let frame = || memory::alloc_frame().expect("padding");
        Self { gdt: [frame(), frame()], ldt: frame() }
    }

    fn slot(&self, slot: u16) -> (Frame, usize) {
        (self.gdt[usize::from(slot) / 512], usize::from(slot) % 512)
    }

    /// Machine address of a descriptor of the GDT.
    fn address(&self, slot: u16) -> MachineAddr {
        let (frame, index) = self.slot(slot);
        MachineAddr(frame.mfn().addr().raw() + index as u64 * 8)
    }

    fn set_writable(&self, frame: Frame) {
        // SAFETY: no reference into the frame exists.
        check_eq!(unsafe { memory::remap(frame, PteFlags::KERNEL_RW) }, Ok(()), "the frame is ours again");
    }

    /// Writes a descriptor to a frame that is no table now.
    fn write(&self, frame: Frame, index: usize, descriptor: u64) {
        // SAFETY: mapped writable, ours.
        unsafe { frame.words().cast::<u64>().add(index).write_volatile(descriptor) };
    }

    fn install(&self) -> Result<(), Errno> {
        for frame in self.gdt {
            // SAFETY: no reference into the frame exists.
            unsafe { memory::remap(frame, PteFlags::KERNEL_RO) }?;
        }
        let frames = self.gdt.map(|frame| hypercall::frame_word(frame.mfn()));
        // SAFETY: the selectors in use are the reserved ones, which the hypervisor fills in.
        unsafe { hypercall::set_gdt(&frames, ENTRIES) }
    }

    /// Back to a GDT of one empty page.
    fn uninstall(&self, spare: Frame) {
        // SAFETY: as in `install`.
        check_eq!(unsafe { hypercall::set_gdt(&[hypercall::frame_word(spare.mfn())], 512) }, Ok(()));
        for frame in self.gdt {
            self.set_writable(frame);
        }
    }
}

pub fn run() {
    let tables = Tables::new();
    let spare = memory::alloc_frame().expect("padding");
    // SAFETY: a fresh frame.
    unsafe { memory::remap(spare, PteFlags::KERNEL_RO) }.expect("a page of ours");
    works(&tables, spare);
    by_set_gdt(&tables, spare);
    by_update(&tables, spare);
    by_ldt(&tables);
    gates(&tables, spare);
    wrapping_segments(&tables, spare);
    writable_tables(&tables, spare);
}

/// What is allowed works, so the tests below can tell.
fn works(tables: &Tables, spare: Frame) {
    section("descriptors that are ours to have");
    for slot in SLOTS {
        let (frame, index) = tables.slot(slot);
        tables.write(frame, index, GOOD_CODE);
        tables.write(frame, index + 1, GOOD_DATA);
    }
    check_eq!(tables.install(), Ok(()));
    for slot in SLOTS {
        let (code, data) = (Selector::gdt(slot, 1), Selector::gdt(slot + 1, 1));
        check_eq!(segments::jump_to(code), Landed::Code32, "32-bit code in slot {slot}");
        check_eq!(segments::call_to(code), Landed::Code32, "32-bit code in slot {slot}");
        let at = memory::virt_base().raw() as u32;
        check!(matches!(segments::load_through(data, at), Through::Value(_)), "data in slot {slot}");
        check_eq!(segments::rights(code).map(|rights| rights & 0x00e0_7e00), Some(0x00c0_3a00), "rights, slot {slot}");
        // SAFETY: no segment in use.
        check_eq!(unsafe { hypercall::update_descriptor(tables.address(slot), 0) }, Ok(()));
        check_eq!(segments::jump_to(code), Landed::Refused, "and now there is none in slot {slot}");
    }
    tables.uninstall(spare);
}

/// A table that is installed with the descriptor in it.
fn by_set_gdt(tables: &Tables, spare: Frame) {
    section("64-bit code and the like by set_gdt");
    for (descriptor, what) in forbidden() {
        for slot in SLOTS {
            let (frame, index) = tables.slot(slot);
            tables.write(frame, index, descriptor);
            let installed = tables.install();
            for rpl in 0..4 {
                unusable(Selector::gdt(slot, rpl), what);
            }
            match installed {
                Ok(()) => tables.uninstall(spare),
                Err(errno) => {
                    check_eq!(errno, Errno::EINVAL, "{what}, {descriptor:#x}");
                    tables.gdt.iter().for_each(|&frame| tables.set_writable(frame));
                }
            }
            tables.write(frame, index, 0);
        }
    }
}

/// A table that is installed first.
fn by_update(tables: &Tables, spare: Frame) {
    section("64-bit code and the like by update_descriptor");
    check_eq!(tables.install(), Ok(()));
    for (descriptor, what) in forbidden() {
        for slot in SLOTS {
            // SAFETY: no segment in use.
            let updated = unsafe { hypercall::update_descriptor(tables.address(slot), descriptor) };
            check!(updated.is_ok() || updated == Err(Errno::EINVAL), "{what}, {descriptor:#x}: {updated:?}");
            if what == "64-bit code" {
                check_eq!(updated, Err(Errno::EINVAL), "{what}, {descriptor:#x}");
            }
            for rpl in 0..4 {
                unusable(Selector::gdt(slot, rpl), what);
            }
            // SAFETY: no segment in use.
            check_eq!(unsafe { hypercall::update_descriptor(tables.address(slot), 0) }, Ok(()));
        }
    }
    // The reserved slots of the first page are the hypervisor's.
    for slot in 256..296 {
        // SAFETY: the hypervisor's descriptors are not taken from there.
        let _ = unsafe { hypercall::update_descriptor(tables.address(slot), flat(0x9a, LONG | GRANULAR)) };
        check!(segments::jump_to(Selector::gdt(slot, 0)) != Landed::Code64, "reserved slot {slot}");
    }
    check_eq!(segments::jump_to(Selector(0x0819)), Landed::Code32, "the flat code segment is still there");
    tables.uninstall(spare);
}

fn by_ldt(tables: &Tables) {
    section("64-bit code and the like in the LDT");
    let set = |entries: u32| {
        let at = tables.ldt.virt();
        // SAFETY: no selector of the LDT is in use.
        unsafe { memory::update(memory::extended(MmuExtCommand::SetLdt, at.raw(), entries.into())) }
    };
    let selector = |index: u16, rpl: u16| Selector(index << 3 | 4 | rpl);
    tables.write(tables.ldt, 3, GOOD_CODE);
    // SAFETY: no reference into the frame exists.
    check_eq!(unsafe { memory::remap(tables.ldt, PteFlags::KERNEL_RO) }, Ok(()));
    check_eq!(set(LDT_ENTRIES), Ok(()));
    check_eq!(segments::jump_to(selector(3, 1)), Landed::Code32, "32-bit code");
    check_eq!(set(0), Ok(()));
    check_eq!(segments::jump_to(selector(3, 1)), Landed::Refused, "there is no LDT any more");
    for (descriptor, what) in forbidden() {
        tables.set_writable(tables.ldt);
        tables.write(tables.ldt, 3, descriptor);
        // SAFETY: no reference into the frame exists.
        check_eq!(unsafe { memory::remap(tables.ldt, PteFlags::KERNEL_RO) }, Ok(()));
        check_eq!(set(LDT_ENTRIES), Ok(()));
        for rpl in 0..4 {
            unusable(selector(3, rpl), what);
        }
        // Once more through a page that was taken as a table while it was good.
        let at = MachineAddr(tables.ldt.mfn().addr().raw() + 8 * 3);
        // SAFETY: no segment in use.
        let _ = unsafe { hypercall::update_descriptor(at, GOOD_CODE) };
        let _ = segments::load_es(selector(3, 1));
        // SAFETY: no segment in use.
        let _ = unsafe { hypercall::update_descriptor(at, descriptor) };
        for rpl in 0..4 {
            unusable(selector(3, rpl), what);
        }
        check_eq!(set(0), Ok(()));
    }
    tables.set_writable(tables.ldt);
    tables.write(tables.ldt, 3, 0);
}

unsafe extern "C" {
    /// Where the gates lead: code that tells its mode and returns far, as [`segments::call_to`] expects.
    fn __attack_gate_target();
}

core::arch::global_asm!(
    r#"
    .text
    .globl __attack_gate_target
    __attack_gate_target:
        xor     eax, eax
        .byte   0x40, 0x90
        retf
    "#
);

/// Call gates: long mode takes them for 64-bit gates of 16 bytes, through which one would enter ring 0. Here they lead
/// to our own code, by every code segment that the hypervisor may have and by ring 1's.
fn gates(tables: &Tables, spare: Frame) {
    section("call gates");
    let target = __attack_gate_target as *const () as usize as u32;
    for access in [0x8c, 0xac, 0xec] {
        for slot in 256u16..296 {
            for code in [slot << 3, slot << 3 | 1] {
                gate_to(tables, spare, gate(access, code, target), Selector(code));
            }
        }
    }
}

fn gate_to(tables: &Tables, spare: Frame, descriptor: u64, code: Selector) {
    for slot in SLOTS {
        let (frame, index) = tables.slot(slot);
        tables.write(frame, index, descriptor);
        let installed = tables.install();
        for rpl in 0..4 {
            let landed = segments::call_to(Selector::gdt(slot, rpl));
            check!(landed != Landed::Code64, "by gate {descriptor:#x} into 64-bit code");
            let ring = segments::rights(code).map(|rights| rights >> 13 & 3);
            check!(landed == Landed::Refused || ring == Some(1), "by gate {descriptor:#x} into ring {ring:?}");
        }
        match installed {
            Ok(()) => tables.uninstall(spare),
            Err(_) => tables.gdt.iter().for_each(|&frame| tables.set_writable(frame)),
        }
        tables.write(frame, index, 0);
    }
}

/// Base and offset that add up to more than 4 GiB: the address wraps, it does not go on above.
fn wrapping_segments(tables: &Tables, spare: Frame) {
    section("segments that wrap around");
    let ours = memory::virt_base();
    let direct = probe::load(ours);
    check!(direct.is_some());
    for base in [0x4000_0000u32, 0x8000_0000, 0xfff0_0000, 0xffff_fffc] {
        let (low, high) = (u64::from(base & 0x00ff_ffff), u64::from(base >> 24));
        let descriptor = GOOD_DATA | low << 16 | high << 56;
        let (frame, index) = tables.slot(SLOTS[0]);
        tables.write(frame, index, descriptor);
        let installed = tables.install();
        if installed.is_ok() {
            let offset = (ours.raw() as u32).wrapping_sub(base);
            let through = segments::load_through(Selector::gdt(SLOTS[0], 1), offset);
            let wrapped = direct.map_or(Through::NoAccess, Through::Value);
            check!(through == wrapped || through == Through::NoAccess, "base {base:#x}: {through:x?}");
            tables.uninstall(spare);
        } else {
            tables.gdt.iter().for_each(|&frame| tables.set_writable(frame));
        }
        tables.write(frame, index, 0);
    }
}

/// A frame is never writable and a descriptor table at once.
fn writable_tables(tables: &Tables, spare: Frame) {
    section("descriptor tables that can be written");
    let frames = tables.gdt.map(|frame| hypercall::frame_word(frame.mfn()));
    // SAFETY: refused.
    let result = unsafe { hypercall::set_gdt(&frames, ENTRIES) };
    check_eq!(result, Err(Errno::EINVAL), "a table that is mapped writable");
    check_eq!(tables.install(), Ok(()));
    for frame in tables.gdt {
        // SAFETY: no reference into the frame exists.
        let result = unsafe { memory::remap(frame, PteFlags::KERNEL_RW) };
        check_eq!(result, Err(Errno::EINVAL), "a table mapped writable");
        check_eq!(memory::pin(1, frame.mfn()), Err(Errno::EINVAL), "a table as page table");
    }
    tables.uninstall(spare);
}
