//! Entry points for all 256 vectors, and the frame they build.
//!
//! The interface pushes, from low to high, rcx, r11, `cr2` (page faults only), an error code (where the exception has
//! one), rip, cs, rflags, rsp and ss. Each entry takes rcx and r11 back into their registers and fills in what its
//! vector lacks, so that every handler sees the same frame.

use core::arch::global_asm;
use proxenos_abi::GuestVirt;

/// The interrupted context. What a handler writes here is what the interrupted code goes on with.
#[derive(Clone, Debug, Default)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the registers'")]
pub struct TrapFrame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbx: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rax: u64,
    pub(crate) vector: u64,
    pub(crate) cr2: u64,
    pub(crate) error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

impl TrapFrame {
    /// The vector.
    pub fn vector(&self) -> u8 {
        self.vector as u8
    }

    /// The error code; zero for vectors without one.
    pub fn error_code(&self) -> u32 {
        self.error_code as u32
    }

    /// The address whose access faulted; zero for vectors other than 14.
    pub fn fault_address(&self) -> GuestVirt {
        GuestVirt(self.cr2)
    }

    /// Instruction pointer.
    pub fn ip(&self) -> GuestVirt {
        GuestVirt(self.rip)
    }

    /// Makes the interrupted code go on elsewhere.
    pub fn set_ip(&mut self, ip: GuestVirt) {
        self.rip = ip.raw();
    }

    /// Code selector.
    pub fn cs(&self) -> u16 {
        self.cs as u16
    }

    /// Flags.
    pub fn flags(&self) -> usize {
        self.rflags as usize
    }

    /// Changes the flags.
    pub fn set_flags(&mut self, flags: usize) {
        self.rflags = flags as u64;
    }

    /// The accumulator, rax.
    pub fn accumulator(&self) -> usize {
        self.rax as usize
    }

    /// Changes the accumulator.
    pub fn set_accumulator(&mut self, value: usize) {
        self.rax = value as u64;
    }

    /// The interrupted stack pointer.
    pub fn sp(&self) -> GuestVirt {
        GuestVirt(self.rsp)
    }

    /// Stack selector.
    pub fn user_ss(&self) -> Option<u16> {
        Some(self.ss as u16)
    }
}

impl core::fmt::Display for TrapFrame {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        writeln!(f, "vector {} error {:#x} cr2 {:016x}", self.vector, self.error_code, self.cr2)?;
        writeln!(
            f,
            "rip {:04x}:{:016x} rsp {:04x}:{:016x} rflags {:08x}",
            self.cs, self.rip, self.ss, self.rsp, self.rflags
        )?;
        writeln!(f, "rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}", self.rax, self.rbx, self.rcx, self.rdx)?;
        writeln!(f, "rsi {:016x} rdi {:016x} rbp {:016x}  r8 {:016x}", self.rsi, self.rdi, self.rbp, self.r8)?;
        writeln!(f, " r9 {:016x} r10 {:016x} r11 {:016x} r12 {:016x}", self.r9, self.r10, self.r11, self.r12)?;
        write!(f, "r13 {:016x} r14 {:016x} r15 {:016x}", self.r13, self.r14, self.r15)
    }
}

/// Bytes from one entry point to the next.
const STUB_SIZE: usize = 32;

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
    .balign 32
    .globl __guest_trap_stubs
    __guest_trap_stubs:
    .set .Lguest_vector, 0
    .rept 256
        .balign 32
        pop     rcx
        pop     r11
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
    .globl __guest_trap_common, __guest_trap_of_kernel
    __guest_trap_common:
        push    rax
        push    rcx
        push    rdx
        push    rbx
        push    rsi
        push    rdi
        push    rbp
        push    r8
        push    r9
        push    r10
        push    r11
        push    r12
        push    r13
        push    r14
        push    r15
        cmp     qword ptr [{user}], 0
        jne     __guest_trap_of_application
    __guest_trap_of_kernel:
        mov     rdi, rsp
        mov     rbx, rsp
        and     rsp, -16
        cld
        call    {dispatch}
        mov     rsp, rbx
        pop     r15
        pop     r14
        pop     r13
        pop     r12
        pop     r11
        pop     r10
        pop     r9
        pop     r8
        pop     rbp
        pop     rdi
        pop     rsi
        pop     rbx
        pop     rdx
        pop     rcx
        pop     rax
        add     rsp, 24
        iretq
    "#,
    dispatch = sym crate::traps::dispatch,
    user = sym super::user::STATE,
);
