//! Stack pointers at odd places: harmless in a hypercall, which needs no stack; at an exception the frame lands where
//! it should, or the guest is stopped (`deaths`).

use crate::entry::{self, RESUME, WORDS};
use core::arch::asm;
use proxenos_guest::abi::{GuestArch, Selector};
use proxenos_guest::memory::{self, Frame};
use proxenos_guest::pte::PteFlags;
use proxenos_guest::test::section;
use proxenos_guest::{Arch, check_eq, events, println};

/// Places where no stack can be, by name.
pub fn bad_places() -> impl Iterator<Item = (&'static str, usize)> {
    #[cfg(target_arch = "x86")]
    let fixed = [
        ("zero", 0),
        ("wrapped", 8),
        ("hypervisor", 0xfc00_1000),
        ("edge", 0xfc00_0004),
        ("last-page", 0xffff_fff0),
        ("top", 0xffff_ffff),
    ];
    #[cfg(target_arch = "x86_64")]
    let fixed = [
        ("zero", 0),
        ("wrapped", 16),
        ("hypervisor", 0xffff_8000_0000_1000),
        ("percpu", 0xffff_8080_0002_f800),
        ("machine-to-phys", 0xffff_8100_0000_1000),
        ("direct-map", 0xffff_8300_0300_0800),
        ("edge", 0xffff_8800_0000_0010),
        ("half-canonical", (1 << 47) + 16),
        ("non-canonical", (1 << 47) + 0x1000),
        ("top", usize::MAX),
    ];
    let frame = || memory::alloc_frame().expect("padding");
    let in_page = |page: Frame| page.virt().raw() as usize + 0x800;
    let (read_only, unmapped) = (frame(), frame());
    // SAFETY: fresh frames.
    unsafe {
        memory::remap(read_only, PteFlags::KERNEL_RO).expect("a page of ours");
        memory::update_va_mapping(
            unmapped.virt(),
            proxenos_guest::pte::Pte::NONE,
            proxenos_guest::abi::mmu::UpdateVaFlags::INVLPG,
        )
        .expect("may be unmapped");
    }
    let (_, l1) = memory::tables::tables_of(unmapped.virt()).last().expect("a page table");
    let table = memory::virt_of(memory::pfn_of_mfn(l1).expect("ours")).raw() as usize + 0x800;
    fixed.into_iter().chain([("read-only", in_page(read_only)), ("unmapped", in_page(unmapped)), ("page-table", table)])
}

/// A hypercall with this stack pointer.
#[cfg(target_arch = "x86")]
#[inline(never)]
pub fn call_at(sp: usize) -> usize {
    let result;
    // SAFETY: the stack pointer is put back, and nothing is pushed meanwhile: upcalls are masked, and the call needs no
    // stack.
    unsafe {
        asm!(
            "xchg esp, {sp}",
            "int 0x82",
            "xchg esp, {sp}",
            sp = inout(reg) sp => _,
            inout("eax") 17usize => result,
            in("ebx") 0,
        );
    }
    result
}

/// A hypercall with this stack pointer.
#[cfg(target_arch = "x86_64")]
#[inline(never)]
pub fn call_at(sp: usize) -> usize {
    let result;
    // SAFETY: the stack pointer is put back, and nothing is pushed meanwhile: upcalls are masked, and the call needs no
    // stack.
    unsafe {
        asm!(
            "xchg rsp, {sp}",
            "syscall",
            "xchg rsp, {sp}",
            sp = inout(reg) sp => _,
            inout("rax") 17usize => result,
            in("rdi") 0,
            out("rcx") _,
            out("r11") _,
        );
    }
    result
}

/// #UD with this stack. Gives the instruction's address.
#[cfg(target_arch = "x86")]
#[inline(never)]
pub fn trap_at(ss: Selector, sp: usize) -> usize {
    let at;
    // SAFETY: the handler notes the frame and comes back with the stack from before.
    unsafe {
        asm!(
            "mov dword ptr [{resume}], esp",
            "lea eax, [4f]",
            "mov dword ptr [{resume} + 4], eax",
            "lea {at}, [3f]",
            "mov ss, {ss:e}",
            "mov esp, {sp}",
            "3: ud2",
            "4:",
            resume = sym RESUME,
            ss = in(reg) u32::from(ss.raw()),
            sp = in(reg) sp,
            at = out(reg) at,
            out("eax") _,
        );
    }
    at
}

/// #UD with this stack. Gives the instruction's address.
#[cfg(target_arch = "x86_64")]
#[inline(never)]
pub fn trap_at(_: Selector, sp: usize) -> usize {
    let at;
    // SAFETY: the handler notes the frame and comes back with the stack from before.
    unsafe {
        asm!(
            "mov qword ptr [{resume}], rsp",
            "lea rax, [rip + 4f]",
            "mov qword ptr [{resume} + 8], rax",
            "lea {at}, [rip + 3f]",
            "mov rsp, {sp}",
            "3: ud2",
            "4:",
            resume = sym RESUME,
            sp = in(reg) sp,
            at = out(reg) at,
            out("rax") _,
            out("rcx") _,
        );
    }
    at
}

pub fn run() {
    section("hypercalls with bad stacks");
    let were_unmasked = events::mask_upcalls();
    for (place, sp) in bad_places() {
        check_eq!(call_at(sp), 0x0002_0000, "{place}");
        check_eq!(call_at(sp | 1), 0x0002_0000, "{place}, odd");
        println!("   {place}");
    }
    if were_unmasked {
        events::unmask_upcalls();
    }
    entry::catch(6);
    frames();
    #[cfg(target_arch = "x86")]
    segments();
    entry::release(6);
}

/// Where a frame of #UD lies that is pushed at a stack pointer.
fn frame_at(sp: usize) -> usize {
    let aligned = if cfg!(target_arch = "x86_64") { sp & !15 } else { sp };
    aligned.wrapping_sub(size_of::<[usize; WORDS]>())
}

#[track_caller]
fn check_frame(what: &str, at: usize, (ss, sp): (Selector, usize), frame: usize) {
    let found = entry::found();
    check_eq!(found.sp, frame, "{what}: where the frame lies");
    check_eq!(found.ip(), at, "{what}: ip");
    check_eq!(found.cs(), usize::from(Arch::FLAT_GUESTOS_CS.raw()), "{what}: cs");
    if cfg!(target_arch = "x86_64") {
        check_eq!(found.frame[WORDS - 2], sp, "{what}: rsp");
    }
    check_eq!(found.ss, usize::from(ss.raw()), "{what}: ss");
    // Interrupts on; TF, IOPL, NT, RF and VM off.
    check_eq!(found.flags & 0x3_7300, 0x200, "{what}: flags");
}

fn frames() {
    section("exceptions on odd stacks");
    let ss = Arch::FLAT_GUESTOS_DS;
    let (low, high) = (memory::alloc_frame().expect("padding"), memory::alloc_frame().expect("padding"));
    let edge = high.virt().raw() as usize;
    check_eq!(low.virt().raw() as usize + 4096, edge);
    let size = size_of::<[usize; WORDS]>();
    for sp in [edge, edge + size, edge + 8, edge + 4096].into_iter().chain(edge + 16..edge + 33) {
        check_frame("a frame", trap_at(ss, sp), (ss, sp), frame_at(sp));
    }
    // Across pages that have not been used yet: the hypervisor's write counts as an access of the guest's.
    let fresh = PteFlags::KERNEL_RW - PteFlags::ACCESSED - PteFlags::DIRTY;
    let used = PteFlags::ACCESSED | PteFlags::DIRTY;
    for frame in [low, high] {
        // SAFETY: no reference into the frame exists.
        check_eq!(unsafe { memory::remap(frame, fresh) }, Ok(()));
    }
    let sp = edge + 16;
    check_frame("a frame across fresh pages", trap_at(ss, sp), (ss, sp), frame_at(sp));
    // x86_32's frame has 12 bytes and lies in the upper page alone.
    let touched = if cfg!(target_arch = "x86") { &[high][..] } else { &[low, high][..] };
    for frame in touched {
        let flags = memory::pte_of(frame.virt()).map(|pte| pte.flags() & used);
        check_eq!(flags, Some(used), "accessed and dirty");
    }
}

/// Stack segments of the guest's own: the frame lies at base + esp, in 32 bits.
#[cfg(target_arch = "x86")]
fn segments() {
    section("exceptions on stacks with a base");
    let gdt = Gdt::install();
    let page = memory::alloc_frame().expect("padding");
    let top = page.virt().raw() as u32 + 0x800;
    for base in [0, 0x1000, 0xc000_0000, 0xf000_0000, 0xfc00_0000, 0xffff_f000, 0xffff_ffff, 1] {
        gdt.set(base);
        let sp = top.wrapping_sub(base) as usize;
        let at = trap_at(Gdt::SELECTOR, sp);
        check_frame("a frame", at, (Gdt::SELECTOR, sp), sp.wrapping_sub(12));
        println!("   base {base:#x}");
    }
}

/// A GDT of ours with one data segment.
#[cfg(target_arch = "x86")]
pub struct Gdt(Frame);

#[cfg(target_arch = "x86")]
impl Gdt {
    const SLOT: u16 = 9;
    /// The segment.
    pub const SELECTOR: Selector = Selector::gdt(Self::SLOT, 1);

    /// Makes and installs it.
    pub fn install() -> Self {
        let frame = memory::alloc_frame().expect("padding");
        // SAFETY: a fresh frame.
        unsafe { memory::remap(frame, PteFlags::KERNEL_RO) }.expect("a page of ours");
        let word = proxenos_guest::hypercall::frame_word(frame.mfn());
        // SAFETY: the selectors in use are the reserved ones, which the hypervisor fills in.
        unsafe { proxenos_guest::hypercall::set_gdt(&[word], 512) }.expect("a frame of ours");
        Self(frame)
    }

    /// Gives the segment a base; its limit is 4 GiB.
    pub fn set(&self, base: u32) {
        let descriptor = 0x00cf_b200_0000_ffff | u64::from(base & 0xff_ffff) << 16 | u64::from(base >> 24) << 56;
        let at = proxenos_guest::abi::MachineAddr(self.0.mfn().addr().raw() + 8 * u64::from(Self::SLOT));
        // SAFETY: no segment in use.
        let result = unsafe { proxenos_guest::hypercall::update_descriptor(at, descriptor) };
        check_eq!(result, Ok(()));
    }
}
