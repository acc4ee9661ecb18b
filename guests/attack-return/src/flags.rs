//! Flags brought back by `iret` and `popf`: those that are not the guest's to change stay as they are, the others are
//! the guest's business, also across hypercalls and exceptions.

use core::arch::asm;
use proxenos_guest::abi::event_channel::{EvtchnOp, EvtchnStatus};
use proxenos_guest::abi::{DomId, Hypercall, Port};
use proxenos_guest::test::section;
use proxenos_guest::{arch, attempt, check, check_eq, println};

const TF: usize = 1 << 8;
const IF: usize = 1 << 9;
const DF: usize = 1 << 10;
const IOPL: usize = 3 << 12;
const NT: usize = 1 << 14;
const RF: usize = 1 << 16;
const VM: usize = 1 << 17;
const AC: usize = 1 << 18;
const VIF: usize = 1 << 19;
const VIP: usize = 1 << 20;
const ID: usize = 1 << 21;

/// What a guest may have.
const ITS_OWN: usize = DF | NT | AC | ID;

/// The hypercall behind the flags: one whose argument is copied in and out, which the direction flag must not turn
/// round.
const CALL: usize = Hypercall::EventChannelOp.raw() as usize;

fn request() -> EvtchnOp {
    EvtchnOp::new(EvtchnStatus { dom: DomId::SELF, port: Port(0), ..Default::default() })
}

/// What the call gave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Outcome {
    result: usize,
    status: EvtchnStatus,
}

/// Loads flags by `$load`, does `$middle`, and gives the flags then and what a call gave, if there was one.
#[cfg(target_arch = "x86")]
macro_rules! with_flags {
    ($flags:expr, [$($load:literal),*], [$($middle:literal),*]) => {{
        let mut op = request();
        let (after, result): (usize, usize);
        // SAFETY: the flags are harmless to what runs before they are put back.
        unsafe {
            asm!(
                $($load,)*
                $($middle,)*
                "pushfd",
                "pop {flags}",
                "push 0x202",
                "popfd",
                flags = inout(reg) $flags => after,
                inout("eax") CALL => result,
                in("ebx") &raw mut op,
                out("ecx") _,
            );
        }
        (after, Outcome { result, status: op.argument() })
    }};
}

#[cfg(target_arch = "x86_64")]
macro_rules! with_flags {
    ($flags:expr, [$($load:literal),*], [$($middle:literal),*]) => {{
        let mut op = request();
        let (after, result): (usize, usize);
        // SAFETY: the flags are harmless to what runs before they are put back.
        unsafe {
            asm!(
                $($load,)*
                $($middle,)*
                "pushfq",
                "pop {flags}",
                "push 0x202",
                "popfq",
                flags = inout(reg) $flags => after,
                inout("rax") CALL => result,
                in("rdi") &raw mut op,
                out("rcx") _,
                out("r11") _,
            );
        }
        (after, Outcome { result, status: op.argument() })
    }};
}

// The opcode is `push cs`, which the assembler takes for the 16-bit form.
#[cfg(target_arch = "x86")]
macro_rules! by_iret {
    ($flags:expr, [$($middle:literal),*]) => {
        with_flags!($flags, ["push {flags}", ".byte 0x0e", "lea ecx, [7f]", "push ecx", "iretd", "7:"], [$($middle),*])
    };
}

#[cfg(target_arch = "x86")]
macro_rules! by_popf {
    ($flags:expr, [$($middle:literal),*]) => { with_flags!($flags, ["push {flags}", "popfd"], [$($middle),*]) };
}

#[cfg(target_arch = "x86_64")]
macro_rules! by_iret {
    ($flags:expr, [$($middle:literal),*]) => {
        with_flags!(
            $flags,
            [
                "mov rcx, rsp",
                "mov r11d, ss",
                "push r11",
                "push rcx",
                "push {flags}",
                "mov r11d, cs",
                "push r11",
                "lea r11, [rip + 7f]",
                "push r11",
                "iretq",
                "7:"
            ],
            [$($middle),*]
        )
    };
}

#[cfg(target_arch = "x86_64")]
macro_rules! by_popf {
    ($flags:expr, [$($middle:literal),*]) => { with_flags!($flags, ["push {flags}", "popfq"], [$($middle),*]) };
}

/// An exception that goes on behind itself: the listing of what traps differs in the size of a word.
#[cfg(target_arch = "x86")]
macro_rules! trapping {
    ($way:ident, $flags:expr) => {
        $way!($flags, ["2: ud2", "3:", ".pushsection .guest_fixups, \"a\", @progbits", ".long 2b, 3b", ".popsection"])
    };
}

#[cfg(target_arch = "x86_64")]
macro_rules! trapping {
    ($way:ident, $flags:expr) => {
        $way!($flags, ["2: ud2", "3:", ".pushsection .guest_fixups, \"a\", @progbits", ".quad 2b, 3b", ".popsection"])
    };
}

#[cfg(target_arch = "x86")]
macro_rules! calling {
    ($way:ident, $flags:expr) => {
        $way!($flags, ["int 0x82"])
    };
}

#[cfg(target_arch = "x86_64")]
macro_rules! calling {
    ($way:ident, $flags:expr) => {
        $way!($flags, ["syscall"])
    };
}

/// Every way to load flags, with nothing, a hypercall and an exception behind it: what the flags are then, and what the
/// call returned.
fn every_way(flags: usize) -> [(&'static str, usize, Option<Outcome>); 6] {
    let (iret_call, popf_call) = (calling!(by_iret, flags), calling!(by_popf, flags));
    [
        ("iret", by_iret!(flags, []).0, None),
        ("iret and a hypercall", iret_call.0, Some(iret_call.1)),
        ("iret and an exception", trapping!(by_iret, flags).0, None),
        ("popf", by_popf!(flags, []).0, None),
        ("popf and a hypercall", popf_call.0, Some(popf_call.1)),
        ("popf and an exception", trapping!(by_popf, flags).0, None),
    ]
}

pub fn run() {
    section("flags by iret and popf");
    let single = [DF, NT, RF, AC, ID, VIF, VIP, IOPL, 1 << 12, 2 << 12];
    let together = [NT | DF, IOPL | NT | RF | AC | ID | DF, VIF | VIP | IOPL];
    let plain = calling!(by_popf, 0x202usize).1;
    check_eq!(plain.result, 0, "the call with flags as usual");
    check!(plain.status != request().argument::<EvtchnStatus>(), "and what it filled in");
    for flags in single.into_iter().chain(together).chain([0]) {
        println!("   {flags:#x}");
        for interrupts in [0, IF] {
            for (way, after, outcome) in every_way(2 | flags | interrupts) {
                check_eq!(after & (IOPL | VM | RF | VIF | VIP | TF), 0, "{flags:#x} by {way}: not its own");
                check!(after & IF != 0, "{flags:#x} by {way}: interrupts stay on");
                check_eq!(after & ITS_OWN, flags & ITS_OWN, "{flags:#x} by {way}: its own");
                if let Some(outcome) = outcome {
                    check_eq!(outcome, plain, "{flags:#x} by {way}: what the call gave");
                }
            }
        }
    }
    // A return that could not be carried out as it stood would have been repaired by the SDK's callback, unseen.
    check_eq!(arch::failsafe_count(), 0, "failsafe callbacks");
    still_unprivileged();
}

/// What IOPL would allow.
pub fn still_unprivileged() {
    // SAFETY: refused.
    unsafe {
        check!(!attempt!("cli"), "cli");
        check!(!attempt!("sti"), "sti");
        check!(!attempt!("in al, 0x80", out("al") _), "in");
        check!(!attempt!("out 0x80, al", in("al") 0u8), "out");
        check!(!attempt!("hlt"), "hlt");
    }
}
