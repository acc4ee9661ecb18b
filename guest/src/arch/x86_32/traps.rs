//! Entry points for all 256 vectors, and the frame they build.
//!
//! The interface pushes, from low to high, `cr2` (page faults only), an error code (where the exception has one), eip,
//! cs and eflags, and from ring 3 esp and ss as well. Each entry fills in what its vector lacks, so that every handler
//! sees the same frame.
//!
//! Segment registers are pushed by their opcodes: the assembler takes `push ds` for the 16-bit form.

use core::arch::global_asm;
use proxenos_abi::GuestVirt;

/// The interrupted context. What a handler writes here is what the interrupted code goes on with.
#[derive(Debug)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the registers'")]
pub struct TrapFrame {
    pub gs: u32,
    pub fs: u32,
    pub es: u32,
    pub ds: u32,
    pub edi: u32,
    pub esi: u32,
    pub ebp: u32,
    /// What `pusha` stored: not the interrupted stack pointer, and not restored; see [`TrapFrame::sp`].
    pub esp_in_handler: u32,
    pub ebx: u32,
    pub edx: u32,
    pub ecx: u32,
    pub eax: u32,
    vector: u32,
    cr2: u32,
    error_code: u32,
    eip: u32,
    cs: u32,
    eflags: u32,
    /// Pushed only when the trap came from ring 3.
    user_esp: u32,
    /// Pushed only when the trap came from ring 3.
    user_ss: u32,
}

impl TrapFrame {
    /// The vector.
    pub fn vector(&self) -> u8 {
        self.vector as u8
    }

    /// The error code; zero for vectors without one.
    pub fn error_code(&self) -> u32 {
        self.error_code
    }

    /// The address whose access faulted; zero for vectors other than 14.
    pub fn fault_address(&self) -> GuestVirt {
        GuestVirt(u64::from(self.cr2))
    }

    /// Instruction pointer.
    pub fn ip(&self) -> GuestVirt {
        GuestVirt(u64::from(self.eip))
    }

    /// Makes the interrupted code go on elsewhere.
    pub fn set_ip(&mut self, ip: GuestVirt) {
        self.eip = ip.raw() as u32;
    }

    /// Code selector.
    pub fn cs(&self) -> u16 {
        self.cs as u16
    }

    /// Flags.
    pub fn flags(&self) -> usize {
        self.eflags as usize
    }

    /// Changes the flags.
    pub fn set_flags(&mut self, flags: usize) {
        self.eflags = flags as u32;
    }

    /// The accumulator, eax.
    pub fn accumulator(&self) -> usize {
        self.eax as usize
    }

    /// Changes the accumulator.
    pub fn set_accumulator(&mut self, value: usize) {
        self.eax = value as u32;
    }

    /// The interrupted stack pointer. From our own ring none is pushed: it is where the frame ended.
    pub fn sp(&self) -> GuestVirt {
        let sp = if self.cs & 3 == 3 { self.user_esp as usize } else { &raw const self.user_esp as usize };
        GuestVirt(sp as u64)
    }

    /// Stack selector, which the frame holds only when the trap came from ring 3.
    pub fn user_ss(&self) -> Option<u16> {
        (self.cs & 3 == 3).then_some(self.user_ss as u16)
    }
}

impl core::fmt::Display for TrapFrame {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        writeln!(
            f,
            "vector {} error {:#x} cr2 {:08x} eip {:04x}:{:08x} eflags {:08x} esp {:08x}",
            self.vector,
            self.error_code,
            self.cr2,
            self.cs as u16,
            self.eip,
            self.eflags,
            self.sp()
        )?;
        writeln!(f, "eax {:08x} ebx {:08x} ecx {:08x} edx {:08x}", self.eax, self.ebx, self.ecx, self.edx)?;
        write!(
            f,
            "esi {:08x} edi {:08x} ebp {:08x} ds {:04x} es {:04x} fs {:04x} gs {:04x}",
            self.esi, self.edi, self.ebp, self.ds as u16, self.es as u16, self.fs as u16, self.gs as u16
        )
    }
}

/// Bytes from one entry point to the next.
const STUB_SIZE: usize = 16;

unsafe extern "C" {
    fn __guest_trap_stubs();
}

/// Address of the entry point of a vector, for `set_trap_table`.
pub fn trap_stub(vector: u8) -> GuestVirt {
    let first = __guest_trap_stubs as *const () as usize;
    GuestVirt((first + usize::from(vector) * STUB_SIZE) as u64)
}

global_asm!(
    r#"
    .text
    .balign 16
    .globl __guest_trap_stubs
    __guest_trap_stubs:
    .set .Lguest_vector, 0
    .rept 256
        .balign 16
        .if .Lguest_vector == 14
        .elseif .Lguest_vector == 8 || .Lguest_vector == 10 || .Lguest_vector == 11 || .Lguest_vector == 12 || .Lguest_vector == 13 || .Lguest_vector == 17
            push    0
        .else
            push    0
            push    0
        .endif
        .byte   0x68            /* push imm32 */
        .long   .Lguest_vector
        .byte   0xe9            /* jmp rel32 */
        .long   __guest_trap_common - . - 4
        .set .Lguest_vector, .Lguest_vector + 1
    .endr
    .balign 16
    __guest_trap_common:
        pushad
        .byte   0x1e            /* push ds */
        .byte   0x06            /* push es */
        .byte   0x0f, 0xa0      /* push fs */
        .byte   0x0f, 0xa8      /* push gs */
        mov     eax, {data}
        mov     ds, eax
        mov     es, eax
        mov     ebx, esp
        and     esp, -16
        sub     esp, 12
        push    ebx
        cld
        call    {dispatch}
        mov     esp, ebx
        .byte   0x0f, 0xa9      /* pop gs */
        .byte   0x0f, 0xa1      /* pop fs */
        .byte   0x07            /* pop es */
        .byte   0x1f            /* pop ds */
        popad
        add     esp, 12
        iretd
    "#,
    data = const proxenos_abi::x86_32::FLAT_RING1_DS.raw(),
    dispatch = sym crate::traps::dispatch,
);
