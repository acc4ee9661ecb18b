//! Exceptions that any code can raise.

use crate::{expect, note, seen};
use core::arch::asm;
use proxenos_guest::abi::context::TrapFlags;
use proxenos_guest::abi::mmu::UpdateVaFlags;
use proxenos_guest::abi::{GuestArch, GuestVirt};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::traps::{self, vector};
use proxenos_guest::{Arch, attempt, check, check_eq, memory, probe};

/// Bits of a page fault's error code. The user bit (4) is clear: the fault came from the kernel, whatever its ring.
const WRITE: u32 = 2;
/// Set where the page was mapped.
const PROTECTION: u32 = 1;
// Bit 2, an application's fault, is never set for a kernel's own, though on x86_64 that runs in ring 3 too: the code
// says what the guest means by it.

pub fn run() {
    simple();
    page_faults();
    fresh_stacks();
    selectors();
    single_step();
    nested();
    addresses();
}

fn simple() {
    section("exceptions");
    let before = traps::count();
    // SAFETY: raises #UD.
    check!(!unsafe { attempt!("ud2") });
    let trap = expect("ud2", before, vector::INVALID_OPCODE, 0);
    let (first, second): (u8, u8);
    // SAFETY: the instruction that trapped lies in our code.
    unsafe {
        let at = trap.ip.raw() as usize as *const u8;
        (first, second) = (at.read(), at.add(1).read());
    }
    check_eq!((first, second), (0x0f, 0x0b), "eip points to the instruction");

    let before = traps::count();
    // SAFETY: raises #DE; the registers it would change are declared.
    check!(!unsafe { attempt!("div {zero:e}", zero = in(reg) 0u32, inout("eax") 1u32 => _, inout("edx") 0u32 => _) });
    expect("div by zero", before, vector::DIVIDE, 0);

    traps::set_handler(vector::BREAKPOINT, note);
    let before = traps::count();
    let behind: usize;
    // SAFETY: raises #BP, which the handler ignores.
    #[cfg(target_arch = "x86")]
    unsafe {
        asm!("int3", "2: lea {behind:e}, [2b]", behind = out(reg) behind)
    };
    // SAFETY: raises #BP, which the handler ignores.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("int3", "2: lea {behind}, [rip + 2b]", behind = out(reg) behind)
    };
    let trap = expect("int3", before, vector::BREAKPOINT, 0);
    check_eq!(trap.ip, GuestVirt(behind as u64), "int3 is behind us");
    check_eq!(seen().cs, Arch::FLAT_GUESTOS_CS.raw(), "cs in the frame");
    traps::clear_handler(vector::BREAKPOINT);
}

fn page_faults() {
    section("page faults");
    let hole = memory::alloc_frame().expect("padding");
    let read_only = memory::alloc_frame().expect("padding");
    // SAFETY: fresh frames.
    unsafe {
        memory::update_va_mapping(hole.virt(), Pte::NONE, UpdateVaFlags::INVLPG).expect("may be unmapped");
        memory::remap(read_only, PteFlags::KERNEL_RO).expect("may be made read-only");
    }
    let hole = GuestVirt(hole.virt().raw() + 0x124);
    let before = traps::count();
    check_eq!(probe::load(hole), None);
    check_eq!(expect("read of a hole", before, vector::PAGE_FAULT, 0).fault_address, hole);
    let before = traps::count();
    // SAFETY: nothing is mapped there.
    check!(!unsafe { probe::store(hole, 1) });
    check_eq!(expect("write to a hole", before, vector::PAGE_FAULT, WRITE).fault_address, hole);
    let at = GuestVirt(read_only.virt().raw() + 0xff8);
    check!(probe::is_readable(at), "a read-only page can be read");
    let before = traps::count();
    // SAFETY: the page is read-only.
    check!(!unsafe { probe::store(at, 1) });
    check_eq!(expect("write to a read-only page", before, vector::PAGE_FAULT, WRITE | PROTECTION).fault_address, at);
    check_eq!(probe::load(at), Some(0), "and nothing was written");

    // An access across the edge of a mapped page faults at the first byte that is not mapped.
    let edge = GuestVirt(memory::page_base(hole).raw() - 2);
    let before = traps::count();
    check_eq!(probe::load(edge), None);
    check_eq!(expect("read across an edge", before, vector::PAGE_FAULT, 0).fault_address, memory::page_base(hole));

    // The machine-to-physical table: readable in the kernel, never writable.
    let table = GuestVirt(Arch::MACHINE_TO_PHYS);
    check!(probe::is_readable(table), "machine_to_phys can be read");
    let before = traps::count();
    // SAFETY: the table is read-only.
    check!(!unsafe { probe::store(table, 1) });
    check_eq!(traps::last_trap().vector, vector::PAGE_FAULT);
    check_eq!(traps::count().wrapping_sub(before), 1);
}

/// Executes an instruction that traps, on a stack of its own.
macro_rules! on_stack {
    ($top:expr, $instruction:literal, $operand:expr) => {{
        // SAFETY: the instruction traps and is listed; its handler leaves all registers as they are.
        #[cfg(target_arch = "x86")]
        unsafe {
            asm!(
                "mov {own}, esp", "mov esp, {top}", concat!("2: ", $instruction), "3: mov esp, {own}",
                proxenos_guest::__fixup!(),
                own = out(reg) _, top = in(reg) $top, in("ecx") $operand,
            )
        };
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            asm!(
                "mov {own}, rsp", "mov rsp, {top}", concat!("2: ", $instruction), "3: mov rsp, {own}",
                proxenos_guest::__fixup!(),
                own = out(reg) _, top = in(reg) $top, in("rcx") $operand,
            )
        };
    }};
}

/// A frame that is pushed on a page which was neither read nor written to marks it as both, and disturbs nothing else.
fn fresh_stacks() {
    section("frames on pages that are not accessed or dirty yet");
    let hole = memory::alloc_frame().expect("padding");
    // SAFETY: a fresh frame.
    unsafe { memory::update_va_mapping(hole.virt(), Pte::NONE, UpdateVaFlags::INVLPG) }.expect("may be unmapped");
    let hole = hole.virt().raw() as usize + 0x88;
    let used = PteFlags::ACCESSED | PteFlags::DIRTY;
    for (what, unused) in [("neither", used), ("not dirty", PteFlags::DIRTY)] {
        for vector in [vector::INVALID_OPCODE, vector::PAGE_FAULT, vector::GENERAL_PROTECTION, 0x80] {
            let stack = memory::alloc_frame().expect("padding");
            let top = stack.virt().raw() as usize + 4096;
            // SAFETY: a fresh frame.
            unsafe { memory::remap(stack, PteFlags::KERNEL_RW.difference(unused)) }.expect("it is ours");
            traps::set_handler(0x80, note);
            traps::install_vector(0x80, TrapFlags::from_dpl(3)).expect("the entry is accepted");
            let before = traps::count();
            match vector {
                vector::INVALID_OPCODE => on_stack!(top, "ud2", 0usize),
                vector::PAGE_FAULT => on_stack!(top, "mov byte ptr [ecx], 0", hole),
                vector::GENERAL_PROTECTION => on_stack!(top, "hlt", 0usize),
                _ => on_stack!(top, "int 0x80", 0usize),
            }
            let trap = expect(what, before, vector, if vector == vector::PAGE_FAULT { WRITE } else { 0 });
            if vector == vector::PAGE_FAULT {
                check_eq!(trap.fault_address, GuestVirt(hole as u64), "{what}: the guest's own fault");
            }
            let flags = memory::tables::pte_of(stack.virt()).map(Pte::flags).unwrap_or(PteFlags::empty());
            check!(flags.contains(used), "{what}, vector {vector}: {flags:?}");
        }
    }
}

/// Faults of handlers, and of handlers of those: each has its frame below the last one's, and all go on in turn.
fn nested() {
    section("nested faults");
    const HOLE: GuestVirt = GuestVirt(0x10);
    static MISSED: core::sync::atomic::AtomicUsize = core::sync::atomic::AtomicUsize::new(0);
    fn fault() {
        let missed = usize::from(probe::load(HOLE).is_some());
        MISSED.fetch_add(missed, core::sync::atomic::Ordering::Relaxed);
    }
    fn outer(frame: &mut proxenos_guest::TrapFrame) -> traps::Outcome {
        let (ip, flags) = (frame.ip(), frame.flags());
        fault();
        // SAFETY: its handler lets us go on.
        unsafe { asm!("int3") };
        fault();
        let same = (frame.ip(), frame.flags()) == (ip, flags);
        MISSED.fetch_add(usize::from(!same), core::sync::atomic::Ordering::Relaxed);
        traps::Outcome::NotMine
    }
    fn inner(_: &mut proxenos_guest::TrapFrame) -> traps::Outcome {
        fault();
        traps::Outcome::Handled
    }
    traps::set_handler(vector::INVALID_OPCODE, outer);
    traps::set_handler(vector::BREAKPOINT, inner);
    for round in 0..100 {
        let before = traps::count();
        // SAFETY: raises #UD.
        check!(!unsafe { attempt!("ud2") });
        check_eq!(traps::count().wrapping_sub(before), 5, "round {round}");
    }
    check_eq!(MISSED.load(core::sync::atomic::Ordering::Relaxed), 0, "faults and frames");
    traps::clear_handler(vector::INVALID_OPCODE);
    traps::clear_handler(vector::BREAKPOINT);
}

#[cfg(target_arch = "x86")]
fn selectors() {
    use proxenos_guest::abi::Selector;
    use proxenos_guest::arch::segments;

    section("selectors");
    for (selector, what) in [
        (0x1001u16, "behind the GDT"),
        (0xfff9, "the last one"),
        (0x0011, "an empty descriptor"),
        (0x000d, "there is no LDT"),
        (0x0808, "reserved, ring 0"),
    ] {
        let before = traps::count();
        check!(!segments::load_es(Selector(selector)), "{what}");
        expect(what, before, vector::GENERAL_PROTECTION, u32::from(selector & !3));
    }
    let before = traps::count();
    check!(segments::load_es(Selector(0)), "null can be loaded");
    check!(segments::load_fs(Selector(0x0821)), "the flat data selector can be loaded");
    check!(!segments::load_ss(Selector(0)), "but not into ss");
    expect("null into ss", before, vector::GENERAL_PROTECTION, 0);
}

#[cfg(target_arch = "x86_64")]
fn selectors() {}

/// One step with TF: #DB behind the next instruction, with TF set in the frame and clear in the handler.
fn single_step() {
    const TF: usize = 1 << 8;
    section("single step");
    fn step(frame: &mut proxenos_guest::TrapFrame) -> traps::Outcome {
        let outcome = note(frame);
        frame.set_flags(frame.flags() & !TF);
        outcome
    }
    traps::set_handler(vector::DEBUG, step);
    let before = traps::count();
    let behind: usize;
    // SAFETY: sets TF for one instruction; the handler clears it.
    #[cfg(target_arch = "x86")]
    unsafe {
        asm!(
            "pushfd",
            "or dword ptr [esp], 0x100",
            "popfd",
            "nop",
            "2: lea {behind:e}, [2b]",
            behind = out(reg) behind,
        )
    };
    // SAFETY: sets TF for one instruction; the handler clears it.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!(
            "pushfq",
            "or qword ptr [rsp], 0x100",
            "popfq",
            "nop",
            "2: lea {behind}, [rip + 2b]",
            behind = out(reg) behind,
        )
    };
    traps::clear_handler(vector::DEBUG);
    let trap = expect("single step", before, vector::DEBUG, 0);
    check_eq!(trap.ip, GuestVirt(behind as u64), "behind the next instruction");
    check!(seen().flags & TF != 0, "TF in the frame: {:#x}", seen().flags);
    check!(seen().handler_flags & TF == 0, "TF in the handler: {:#x}", seen().handler_flags);
}

#[cfg(target_arch = "x86")]
fn addresses() {
    section("the hypervisor's addresses");
    for at in [0xfd00_0000u64, 0xfe00_0000, 0xff00_0000, 0xffc0_0000, 0xffff_fffc] {
        let before = traps::count();
        check!(!probe::is_readable(GuestVirt(at)), "{at:#x} cannot be read");
        // On a processor that enforces the segment's limit, #GP comes first.
        let got = traps::last_trap().vector;
        check!(got == vector::PAGE_FAULT || got == vector::GENERAL_PROTECTION, "vector {got}");
        check_eq!(traps::count().wrapping_sub(before), 1);
    }
}

#[cfg(target_arch = "x86_64")]
fn addresses() {
    section("the hypervisor's addresses and non-canonical ones");
    for at in [0xffff_8000_0000_0000u64, 0xffff_8200_0000_0000, 0xffff_87ff_ffff_f000] {
        let before = traps::count();
        check!(!probe::is_readable(GuestVirt(at)), "{at:#x} cannot be read");
        check_eq!(traps::last_trap().vector, vector::PAGE_FAULT);
        check_eq!(traps::last_trap().fault_address, GuestVirt(at));
        check_eq!(traps::count().wrapping_sub(before), 1);
    }
    for at in [0x0000_8000_0000_0000u64, 0x8000_0000_0000_0000, 0xffff_7fff_ffff_fff8] {
        let before = traps::count();
        check!(!probe::is_readable(GuestVirt(at)), "{at:#x} is no address");
        expect("a non-canonical address", before, vector::GENERAL_PROTECTION, 0);
    }
    let before = traps::count();
    // SAFETY: faults; rbp is put back.
    let completed = unsafe {
        let completed: u32;
        asm!(
            "mov {saved}, rbp",
            "mov rbp, {bad}",
            "2: mov {bad}, [rbp]",
            "mov {completed:e}, 1",
            "jmp 4f",
            "3: mov {completed:e}, 0",
            "4: mov rbp, {saved}",
            proxenos_guest::__fixup!(),
            saved = out(reg) _,
            bad = inout(reg) 0x8000_0000_0000_0000u64 => _,
            completed = out(reg) completed,
        );
        completed
    };
    check_eq!(completed, 0);
    // QEMU's emulation raises #GP for every non-canonical address, whatever its segment; CPUs raise #SS here.
    let trap = traps::last_trap();
    check!(traps::count() > before, "a non-canonical address in the stack's segment faults");
    check!(matches!(trap.vector, vector::STACK | vector::GENERAL_PROTECTION), "as {:#x}", trap.vector);
    check_eq!(trap.error_code, 0);
}
