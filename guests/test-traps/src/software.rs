//! Software interrupts, the trap table's rules, and what the frame holds.

use crate::{expect, note, seen};
use core::arch::asm;
use core::sync::atomic::Ordering;
use proxenos_guest::abi::context::{TrapFlags, TrapInfo};
use proxenos_guest::abi::hypercall::MulticallEntry;
use proxenos_guest::abi::{Errno, GuestArch, GuestVirt, GuestWord, Hypercall, Selector};
use proxenos_guest::arch::{hypercall1, trap_stub};
use proxenos_guest::test::section;
use proxenos_guest::traps::{self, vector};
use proxenos_guest::{Arch, Word, attempt, check, check_eq, hypercall, shared_info};

/// A vector for an application's system calls.
const SYSTEM_CALL: u8 = 0x80;

/// `int n` with the stack pointer and the address behind it.
macro_rules! int {
    ($n:literal) => {{
        let (sp, behind): (usize, usize);
        // SAFETY: the vector has a handler that lets us go on.
        #[cfg(target_arch = "x86")]
        unsafe {
            asm!(
                "mov {sp}, esp",
                concat!("int ", $n),
                "2: lea {behind}, [2b]",
                sp = out(reg) sp,
                behind = out(reg) behind,
            )
        };
        // SAFETY: the vector has a handler that lets us go on.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            asm!(
                "mov {sp}, rsp",
                concat!("int ", $n),
                "2: lea {behind}, [rip + 2b]",
                sp = out(reg) sp,
                behind = out(reg) behind,
            )
        };
        (GuestVirt(sp as u64), GuestVirt(behind as u64))
    }};
}

pub fn run() {
    delivered();
    refused();
    table();
    events_masked();
    fast();
    in_a_list();
    every_vector();
    registers();
}

fn delivered() {
    section("software interrupts");
    traps::set_handler(SYSTEM_CALL, note);
    traps::install_vector(SYSTEM_CALL, TrapFlags::from_dpl(3)).expect("the entry is accepted");
    let before = traps::count();
    let (sp, behind) = int!("0x80");
    let trap = expect("int 0x80", before, SYSTEM_CALL, 0);
    check_eq!(trap.ip, behind, "eip behind the instruction");
    check_eq!(seen().sp, sp, "stack pointer in the frame");
    check_eq!(seen().cs, Arch::FLAT_GUESTOS_CS.raw(), "cs in the frame");
    check_eq!(seen().flags & 0x3200, 0x200, "interrupt flag and privilege level in the frame");

    traps::set_handler(vector::OVERFLOW, note);
    let before = traps::count();
    let (_, behind) = int!("4");
    check_eq!(expect("int 4", before, vector::OVERFLOW, 0).ip, behind);
    traps::set_handler(vector::BREAKPOINT, note);
    let before = traps::count();
    let (_, behind) = int!("3");
    check_eq!(expect("int 3", before, vector::BREAKPOINT, 0).ip, behind);
    traps::clear_handler(vector::OVERFLOW);
    traps::clear_handler(vector::BREAKPOINT);

    if Arch::KERNEL_RING == 1 {
        traps::install_vector(SYSTEM_CALL, TrapFlags::from_dpl(1)).expect("the entry is accepted");
        let before = traps::count();
        int!("0x80");
        expect("int 0x80 that ring 1 may raise, from ring 1", before, SYSTEM_CALL, 0);
    }
}

fn refused() {
    section("software interrupts that are refused");
    let code = |n: u32| n << 3 | 2;
    let before = traps::count();
    // SAFETY: raises #GP.
    check!(!unsafe { attempt!("int 0x81") });
    expect("int 0x81, which has no handler", before, vector::GENERAL_PROTECTION, code(0x81));
    let before = traps::count();
    // SAFETY: raises #GP.
    check!(!unsafe { attempt!("int 14") });
    expect("int 14, which only the processor may raise", before, vector::GENERAL_PROTECTION, code(14));
    let before = traps::count();
    // SAFETY: raises #GP.
    check!(!unsafe { attempt!("int 0xff") });
    expect("int 0xff", before, vector::GENERAL_PROTECTION, code(0xff));
    traps::install_vector(SYSTEM_CALL, TrapFlags::from_dpl(0)).expect("the entry is accepted");
    let before = traps::count();
    // SAFETY: raises #GP.
    check!(!unsafe { attempt!("int 0x80") });
    expect("int 0x80 that only ring 0 may raise", before, vector::GENERAL_PROTECTION, code(0x80));
}

/// Selectors are checked entry by entry; what stands before a bad one is installed.
fn table() {
    section("trap table");
    let address = Word::from_u64_truncating(trap_stub(SYSTEM_CALL).raw());
    let bad: &[u16] = if Arch::KERNEL_RING == 1 {
        &[0x0000, 0x0010, 0x0808, 0x0818, 0x0821, 0x0831]
    } else {
        &[0x0000, 0x0010, 0x0808, 0x0833]
    };
    for &cs in bad {
        let entry = |vector, cs| TrapInfo::<Arch>::new(vector, TrapFlags::from_dpl(3), cs, address);
        let table = [
            entry(SYSTEM_CALL, Arch::FLAT_GUESTOS_CS),
            entry(0x82, Selector(cs)),
            entry(0x83, Arch::FLAT_GUESTOS_CS),
            traps::end_of_table(),
        ];
        traps::install_vector(SYSTEM_CALL, TrapFlags::from_dpl(0)).expect("the entry is accepted");
        // SAFETY: the entry points are the SDK's.
        check_eq!(unsafe { hypercall::set_trap_table(&table) }, Err(Errno::EPERM), "code selector {cs:#x}");
        let before = traps::count();
        int!("0x80");
        expect("the entry before the bad one", before, SYSTEM_CALL, 0);
        let before = traps::count();
        // SAFETY: raises #GP.
        check!(!unsafe { attempt!("int 0x83") });
        expect("the entry behind the bad one", before, vector::GENERAL_PROTECTION, 0x83 << 3 | 2);
    }
}

/// Flag 4 of an entry masks events; without it the mask stays as it is.
fn events_masked() {
    section("events masked on entry");
    let mask = || shared_info::upcall_mask().load(Ordering::Relaxed);
    traps::install_vector(SYSTEM_CALL, TrapFlags::from_dpl(3)).expect("the entry is accepted");
    int!("0x80");
    check_eq!(seen().upcall_mask, 0, "an entry without the flag");
    traps::install_vector(SYSTEM_CALL, TrapFlags::from_dpl(3) | TrapFlags::MASK_EVENTS).expect("accepted");
    int!("0x80");
    check_eq!(seen().upcall_mask, 1, "an entry with the flag");
    check_eq!(mask(), 1, "and the kernel unmasks by itself");
    proxenos_guest::events::unmask_upcalls();
}

/// The fast trap is the handler as it was, whatever the table says later.
fn fast() {
    section("fast traps");
    let install = |flags| traps::install_vector(SYSTEM_CALL, flags).expect("the entry is accepted");
    for vector in [1, 3, 0x1f, 0x30, 0x7f, 0x81, 0x82, 0xff] {
        check_eq!(hypercall::set_fast_trap(vector), Err(Errno::EPERM), "vector {vector:#x}");
    }
    // SAFETY: the number is no vector.
    let result = unsafe { hypercall1(Hypercall::SetFastTrap.raw() as usize, 0x180) };
    check_eq!(hypercall::check(result), Err(Errno::EPERM), "0x180");
    for vector in 0x20..=0x2f {
        check_eq!(hypercall::set_fast_trap(vector), Ok(()), "vector {vector:#x}");
    }
    install(TrapFlags::from_dpl(3));
    check_eq!(hypercall::set_fast_trap(SYSTEM_CALL), Ok(()));
    let before = traps::count();
    let (sp, behind) = int!("0x80");
    check_eq!(expect("a fast int 0x80", before, SYSTEM_CALL, 0).ip, behind);
    check_eq!((seen().sp, seen().upcall_mask), (sp, 0), "stack pointer and events");
    install(TrapFlags::from_dpl(0) | TrapFlags::MASK_EVENTS);
    let before = traps::count();
    int!("0x80");
    expect("after a change of the table", before, SYSTEM_CALL, 0);
    check_eq!(seen().upcall_mask, 0, "events are not masked");
    check_eq!(hypercall::set_fast_trap(SYSTEM_CALL), Err(Errno::EPERM), "a handler that masks events");
    let before = traps::count();
    int!("0x80");
    expect("after a refusal", before, SYSTEM_CALL, 0);
    check_eq!(hypercall::set_fast_trap(0), Ok(()));
    let before = traps::count();
    // SAFETY: raises #GP.
    check!(!unsafe { attempt!("int 0x80") });
    expect("none any more", before, vector::GENERAL_PROTECTION, 0x402);
    // One that may not be used is as if it were none: the table decides.
    install(TrapFlags::from_dpl(0));
    check_eq!(hypercall::set_fast_trap(SYSTEM_CALL), Ok(()));
    let before = traps::count();
    // SAFETY: raises #GP.
    check!(!unsafe { attempt!("int 0x80") });
    expect("a fast trap of ring 0", before, vector::GENERAL_PROTECTION, 0x402);
    install(TrapFlags::from_dpl(3) | TrapFlags::MASK_EVENTS);
    int!("0x80");
    check_eq!(seen().upcall_mask, 1, "by the table");
    proxenos_guest::events::unmask_upcalls();
    check_eq!(hypercall::set_fast_trap(0), Ok(()));
}

/// A table of 256 entries, all of them open: `int n` comes without a code, whichever vector it is. (What an exception
/// pushes a code for has it from the processor only.)
fn every_vector() {
    section("int of every vector that is open");
    let address = Word::from_u64_truncating(trap_stub(SYSTEM_CALL).raw());
    let mut table = [traps::end_of_table(); 257];
    for (vector, entry) in (0..=255u8).zip(&mut table) {
        *entry = TrapInfo::new(vector, TrapFlags::from_dpl(3), Arch::FLAT_GUESTOS_CS, address);
    }
    // SAFETY: the entry point is for frames without code, and nothing else is raised until the table is the old one.
    check_eq!(unsafe { hypercall::set_trap_table(&table) }, Ok(()));
    let code = proxenos_guest::memory::alloc_frame().expect("padding").words().cast::<u8>();
    for vector in 0..=255u8 {
        // The hypercall of an x86_32 kernel is the hypervisor's.
        if Arch::KERNEL_RING == 1 && vector == 0x82 {
            continue;
        }
        let before = traps::count();
        // SAFETY: a fresh frame, which gets `int` and a return, to be called.
        unsafe {
            code.write_volatile(0xcd);
            code.add(1).write_volatile(vector);
            code.add(2).write_volatile(0xc3);
            core::mem::transmute::<*mut u8, extern "C" fn()>(code)();
        }
        let (trap, at) = (traps::last_trap(), GuestVirt(code as usize as u64 + 2));
        check_eq!((traps::count().wrapping_sub(before), trap.error_code, trap.ip), (1, 0, at), "int {vector:#x}");
    }
    traps::install().expect("the entries are accepted");
    for vector in 20..=255u8 {
        traps::install_vector(vector, TrapFlags::from_dpl(0)).expect("the entry is accepted");
    }
}

/// Calls that change their caller, in a list: each has its effect, and the next one is made.
fn in_a_list() {
    section("trap table, fast trap, debug registers in a list");
    let address = Word::from_u64_truncating(trap_stub(SYSTEM_CALL).raw());
    let entry = |dpl| TrapInfo::<Arch>::new(SYSTEM_CALL, TrapFlags::from_dpl(dpl), Arch::FLAT_GUESTOS_CS, address);
    let (open, closed) = ([entry(3), traps::end_of_table()], [entry(0), traps::end_of_table()]);
    let bad = [TrapInfo::<Arch>::new(SYSTEM_CALL, TrapFlags::from_dpl(3), Selector(0), address), traps::end_of_table()];
    let at = |table: &[TrapInfo<Arch>; 2]| table.as_ptr() as usize as Word;
    let call = |number: Hypercall, first: Word, second: Word| MulticallEntry::<Arch> {
        op: number.raw() as Word,
        args: [first, second, 0, 0, 0, 0x5a5a, 0],
    };
    let place = core::ptr::from_ref(&open) as usize as Word;
    let mut list = [
        call(Hypercall::SetTrapTable, at(&closed), 0),
        call(Hypercall::SetTrapTable, at(&bad), 0),
        call(Hypercall::SetTrapTable, at(&open), 0),
        call(Hypercall::SetFastTrap, SYSTEM_CALL.into(), 0),
        call(Hypercall::SetDebugreg, 1, place),
        call(Hypercall::GetDebugreg, 1, 0),
        call(Hypercall::SetDebugreg, 1, 0),
        call(Hypercall::FpuTaskswitch, 0, 0),
        call(Hypercall::XenVersion, 0, 0),
    ];
    // SAFETY: the entry points are the SDK's, and no breakpoint is turned on.
    check_eq!(unsafe { hypercall::multicall(&mut list) }, Ok(()));
    let results = list.map(|entry| { entry.args }[5]);
    check_eq!(results, [0, Errno::EPERM.to_word(), 0, 0, 0, place, 0, 0, 0x0002_0000]);
    let before = traps::count();
    int!("0x80");
    expect("the handler of the list", before, SYSTEM_CALL, 0);
    check_eq!(hypercall::set_fast_trap(0), Ok(()));
    traps::set_handler(vector::DEVICE_NOT_AVAILABLE, note);
    let before = traps::count();
    // SAFETY: uses the FPU, which is nobody's here.
    unsafe { asm!("fninit") };
    expect("the next use of the FPU", before, vector::DEVICE_NOT_AVAILABLE, 0);
    traps::clear_handler(vector::DEVICE_NOT_AVAILABLE);
}

unsafe extern "C" {
    /// Fills the registers with the patterns of `before`, raises vector 0x80, and stores what they hold to `after`.
    fn __trap_with_registers(before: *const Word, after: *mut Word);
}

/// Every register survives a trap whose handler changes none.
fn registers() {
    section("registers across a trap");
    const COUNT: usize = if size_of::<Word>() == 4 { 7 } else { 15 };
    traps::install_vector(SYSTEM_CALL, TrapFlags::from_dpl(3)).expect("the entry is accepted");
    let before: [Word; COUNT] = core::array::from_fn(|index| 0x7171_0000 + index as Word);
    let mut after = [0; COUNT];
    // SAFETY: the routine keeps the C ABI; the handler only notes the frame.
    unsafe { __trap_with_registers(before.as_ptr(), after.as_mut_ptr()) };
    check_eq!(after, before);
}

#[cfg(target_arch = "x86")]
core::arch::global_asm!(
    r#"
    .text
    .globl __trap_with_registers
    __trap_with_registers:
        push    ebp
        push    ebx
        push    esi
        push    edi
        mov     ebp, dword ptr [esp + 20]
        mov     eax, dword ptr [ebp]
        mov     ebx, dword ptr [ebp + 4]
        mov     ecx, dword ptr [ebp + 8]
        mov     edx, dword ptr [ebp + 12]
        mov     esi, dword ptr [ebp + 16]
        mov     edi, dword ptr [ebp + 20]
        mov     ebp, dword ptr [ebp + 24]
        int     0x80
        push    eax
        mov     eax, dword ptr [esp + 28]
        pop     dword ptr [eax]
        mov     dword ptr [eax + 4], ebx
        mov     dword ptr [eax + 8], ecx
        mov     dword ptr [eax + 12], edx
        mov     dword ptr [eax + 16], esi
        mov     dword ptr [eax + 20], edi
        mov     dword ptr [eax + 24], ebp
        pop     edi
        pop     esi
        pop     ebx
        pop     ebp
        ret
    "#
);

#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    r#"
    .text
    .globl __trap_with_registers
    __trap_with_registers:
        push    rbp
        push    rbx
        push    r12
        push    r13
        push    r14
        push    r15
        push    rsi
        mov     rax, rdi
        mov     rbx, qword ptr [rax + 8]
        mov     rcx, qword ptr [rax + 16]
        mov     rdx, qword ptr [rax + 24]
        mov     rsi, qword ptr [rax + 32]
        mov     rdi, qword ptr [rax + 40]
        mov     rbp, qword ptr [rax + 48]
        mov     r8, qword ptr [rax + 56]
        mov     r9, qword ptr [rax + 64]
        mov     r10, qword ptr [rax + 72]
        mov     r11, qword ptr [rax + 80]
        mov     r12, qword ptr [rax + 88]
        mov     r13, qword ptr [rax + 96]
        mov     r14, qword ptr [rax + 104]
        mov     r15, qword ptr [rax + 112]
        mov     rax, qword ptr [rax]
        int     0x80
        push    rax
        mov     rax, qword ptr [rsp + 8]
        pop     qword ptr [rax]
        mov     qword ptr [rax + 8], rbx
        mov     qword ptr [rax + 16], rcx
        mov     qword ptr [rax + 24], rdx
        mov     qword ptr [rax + 32], rsi
        mov     qword ptr [rax + 40], rdi
        mov     qword ptr [rax + 48], rbp
        mov     qword ptr [rax + 56], r8
        mov     qword ptr [rax + 64], r9
        mov     qword ptr [rax + 72], r10
        mov     qword ptr [rax + 80], r11
        mov     qword ptr [rax + 88], r12
        mov     qword ptr [rax + 96], r13
        mov     qword ptr [rax + 104], r14
        mov     qword ptr [rax + 112], r15
        pop     rsi
        pop     r15
        pop     r14
        pop     r13
        pop     r12
        pop     rbx
        pop     rbp
        ret
    "#
);
