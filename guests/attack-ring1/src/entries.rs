//! The other ways into ring 0: every software interrupt, and the fast system calls.

use proxenos_guest::arch::hypercall0;
use proxenos_guest::test::section;
use proxenos_guest::{check, check_eq, hypercall, println, traps};

/// Executes `int n` from a page of code that is written for it, and tells what came of it.
fn interrupt(vector: u8, code: *mut u8) -> bool {
    // SAFETY: the page is ours and executable; `int n` is followed by a return.
    unsafe {
        code.write_volatile(0xcd);
        code.add(1).write_volatile(vector);
        code.add(2).write_volatile(0xc3);
        proxenos_guest::attempt!("call {code}", code = in(reg) code, inout("eax") 17 => _, inout("ebx") 0 => _)
    }
}

pub fn run() {
    interrupts();
    fast_calls();
}

/// `int n` for every n: the trap that the table has for it, or #GP. Nothing else, and nobody dies.
fn interrupts() {
    section("every software interrupt");
    for vector in 0..=255u8 {
        traps::set_handler(vector, |frame| {
            // Refused: behind the two bytes of the instruction there is a return.
            if frame.vector() == traps::vector::GENERAL_PROTECTION && frame.error_code() & 2 != 0 {
                frame.set_ip(proxenos_guest::abi::GuestVirt(frame.ip().raw() + 2));
            }
            traps::Outcome::Handled
        });
    }
    let page = proxenos_guest::memory::alloc_frame().expect("padding");
    let mut refused = 0;
    for vector in 0..=255u8 {
        let before = traps::count();
        check!(interrupt(vector, page.words().cast()), "int {vector:#x}");
        let trap = traps::last_trap();
        match vector {
            // The hypercall itself raises nothing.
            0x82 => {
                check_eq!(traps::count(), before);
            }
            3 | 4 => {
                check_eq!((traps::count() - before, trap.vector), (1, vector), "int {vector}");
            }
            _ => {
                check_eq!(traps::count() - before, 1, "int {vector:#x}");
                check_eq!((trap.vector, trap.error_code), (13, u32::from(vector) << 3 | 2), "int {vector:#x}");
                refused += 1;
            }
        }
    }
    println!("   {refused} are refused");
    (0..=255).for_each(traps::clear_handler);
}

/// `syscall` and `sysenter` are not how a 32-bit guest calls. An AMD processor enters ring 0 by the former; the guest
/// is to see an invalid opcode, at or behind the instruction.
fn fast_calls() {
    section("fast system calls");
    for instruction in ["sysenter", "syscall"] {
        let completed: u32;
        // SAFETY: the instruction traps; ecx and edx are what it may change besides.
        unsafe {
            match instruction {
                "sysenter" => core::arch::asm!(
                    "2: sysenter",
                    "mov eax, 1",
                    "jmp 4f",
                    "3: mov eax, 0",
                    "4:",
                    proxenos_guest::__fixup!(),
                    inout("eax") 17 => completed,
                    inout("ecx") 0 => _,
                    inout("edx") 0 => _,
                ),
                _ => core::arch::asm!(
                    "2: syscall",
                    "5: mov eax, 1",
                    "jmp 4f",
                    "3: mov eax, 0",
                    "4:",
                    proxenos_guest::__fixup!(),
                    ".pushsection .guest_fixups, \"a\", @progbits",
                    ".long 5b, 3b",
                    ".popsection",
                    inout("eax") 17 => completed,
                    inout("ecx") 0 => _,
                    inout("edx") 0 => _,
                ),
            }
        }
        check_eq!(completed, 0, "{instruction} traps");
        let vector = traps::last_trap().vector;
        check!(vector == 6 || vector == 13, "{instruction} raises vector {vector}");
    }
    // SAFETY: changes nothing.
    check_eq!(hypercall::check(unsafe { hypercall0(63) }), Err(proxenos_guest::abi::Errno::ENOSYS));
}
