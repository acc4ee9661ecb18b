//! Loading, reading through and jumping to selectors that may be refused. For tests of the descriptor tables.

use core::arch::asm;
use proxenos_abi::Selector;

/// What came of an access through a selector.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Through {
    /// The selector could not be loaded.
    NotLoaded,
    /// It could, but the access faulted.
    NoAccess,
    /// What was read.
    Value(u32),
}

/// Loads es with a selector, reads a word at this offset through it, and puts es back.
#[inline(never)]
pub fn load_through(selector: Selector, offset: u32) -> Through {
    let loaded = load_es(selector);
    let value: u32;
    let completed: u32;
    if !loaded {
        return Through::NotLoaded;
    }
    // SAFETY: es is restored before the compiler's code runs on; the read may fault and is listed.
    unsafe {
        asm!(
            "mov {saved:e}, es",
            "mov es, {selector:e}",
            "2: mov {value:e}, es:[{value:e}]",
            "mov {completed:e}, 1",
            "jmp 4f",
            "3: mov {completed:e}, 0",
            "4: mov es, {saved:e}",
            crate::__fixup!(),
            saved = out(reg) _,
            selector = in(reg) u32::from(selector.raw()),
            value = inout(reg) offset => value,
            completed = out(reg) completed,
        );
    }
    if completed != 0 { Through::Value(value) } else { Through::NoAccess }
}

macro_rules! load_segment {
    ($(#[$meta:meta])* $name:ident, $register:literal) => {
        $(#[$meta])*
        #[inline(never)]
        pub fn $name(selector: Selector) -> bool {
            let completed: u32;
            // SAFETY: the register is put back before the compiler's code runs on.
            unsafe {
                asm!(
                    concat!("mov {saved:e}, ", $register),
                    concat!("2: mov ", $register, ", {selector:e}"),
                    "mov {completed:e}, 1",
                    "jmp 4f",
                    "3: mov {completed:e}, 0",
                    concat!("4: mov ", $register, ", {saved:e}"),
                    crate::__fixup!(),
                    saved = out(reg) _,
                    selector = in(reg) u32::from(selector.raw()),
                    completed = out(reg) completed,
                );
            }
            completed != 0
        }
    };
}

load_segment!(
    /// Tells whether ds can be loaded with a selector; it is put back.
    load_ds,
    "ds"
);
load_segment!(
    /// Tells whether es can be loaded with a selector; it is put back.
    load_es,
    "es"
);
load_segment!(
    /// Tells whether fs can be loaded with a selector; it is put back.
    load_fs,
    "fs"
);
load_segment!(
    /// Tells whether gs can be loaded with a selector; it is put back.
    load_gs,
    "gs"
);

/// Tells whether ss can be loaded with a selector; it is put back by the very next instruction.
#[inline(never)]
pub fn load_ss(selector: Selector) -> bool {
    let completed: u32;
    // SAFETY: no interrupt is taken between a load of ss and the next instruction, which puts it back.
    unsafe {
        asm!(
            "mov {saved:e}, ss",
            "2: mov ss, {selector:e}",
            "mov ss, {saved:e}",
            "mov {completed:e}, 1",
            "jmp 4f",
            "3: mov {completed:e}, 0",
            "4:",
            crate::__fixup!(),
            saved = out(reg) _,
            selector = in(reg) u32::from(selector.raw()),
            completed = out(reg) completed,
        );
    }
    completed != 0
}

/// The access rights that `lar` shows of a descriptor: bits 8 to 15 and 20 to 23 of its second word.
#[inline(never)]
pub fn rights(selector: Selector) -> Option<u32> {
    let rights: u32;
    let valid: u8;
    // SAFETY: `lar` changes its result and the zero flag only.
    unsafe {
        asm!(
            "lar {rights:e}, {selector:e}",
            "setz {valid}",
            selector = in(reg) u32::from(selector.raw()),
            rights = lateout(reg) rights,
            valid = lateout(reg_byte) valid,
        );
    }
    (valid != 0).then_some(rights)
}

/// The limit, in bytes, that `lsl` shows of a descriptor.
#[inline(never)]
pub fn limit(selector: Selector) -> Option<u32> {
    let limit: u32;
    let valid: u8;
    // SAFETY: `lsl` changes its result and the zero flag only.
    unsafe {
        asm!(
            "lsl {limit:e}, {selector:e}",
            "setz {valid}",
            selector = in(reg) u32::from(selector.raw()),
            limit = lateout(reg) limit,
            valid = lateout(reg_byte) valid,
        );
    }
    (valid != 0).then_some(limit)
}

/// Where a far transfer of control led.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Landed {
    /// Nowhere: it faulted.
    Refused,
    /// Into 32-bit code.
    Code32,
    /// Into 64-bit code: a guest must never get there.
    Code64,
}

impl Landed {
    fn from_eax(eax: u32) -> Self {
        match eax {
            0 => Self::Code64,
            1 => Self::Code32,
            _ => Self::Refused,
        }
    }
}

/// Jumps far to a selector, finds out in which mode the code there runs, and jumps back.
///
/// Byte 0x40 tells the modes apart: it is `inc eax` in 32-bit code, and a prefix without effect on the `nop` behind
/// it in 64-bit code.
#[inline(never)]
pub fn jump_to(selector: Selector) -> Landed {
    let eax: u32;
    // SAFETY: where the jump lands, the code preserves everything but eax and comes back; if it faults, the stack
    // pointer is unchanged at the recovery.
    unsafe {
        asm!(
            "mov {scratch:e}, cs",
            "push {scratch:e}",
            "lea {scratch:e}, [6f]",
            "push {scratch:e}",
            "push {selector:e}",
            "lea {scratch:e}, [5f]",
            "push {scratch:e}",
            "2: jmp fword ptr [esp]",
            "5: xor eax, eax",
            ".byte 0x40, 0x90",
            "jmp fword ptr [esp + 8]",
            "3: mov eax, 2",
            "6: add esp, 16",
            crate::__fixup!(),
            selector = in(reg) u32::from(selector.raw()),
            scratch = out(reg) _,
            out("eax") eax,
        );
    }
    Landed::from_eax(eax)
}

/// Calls far to a selector, finds out in which mode the code there runs, and returns.
#[inline(never)]
pub fn call_to(selector: Selector) -> Landed {
    let eax: u32;
    // SAFETY: as in `jump_to`.
    unsafe {
        asm!(
            "push {selector:e}",
            "lea {scratch:e}, [5f]",
            "push {scratch:e}",
            "2: call fword ptr [esp]",
            "jmp 6f",
            "5: xor eax, eax",
            ".byte 0x40, 0x90",
            "retf",
            "3: mov eax, 2",
            "6: add esp, 8",
            crate::__fixup!(),
            selector = in(reg) u32::from(selector.raw()),
            scratch = out(reg) _,
            out("eax") eax,
        );
    }
    Landed::from_eax(eax)
}
