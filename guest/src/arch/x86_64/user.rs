//! The way to an application and back.
//!
//! [`enter`] looks to its caller like a call that returns when something has happened to the application: it keeps the
//! kernel's registers on the stack, makes that place the stack for entries from user mode, and leaves by
//! `switch_to_user`. Whatever brings the kernel back (a trap, an event, a system call) finds itself at that very place
//! with an application to come from ([`STATE`]), stores the application's registers, and returns from [`enter`]. So no
//! handler of the kernel's runs in between.
//!
//! An entry comes from the application if one is under way *and* the frame ends where the stack for such entries
//! begins; an event that interrupts the kernel on its way out is pushed further below.

use super::TrapFrame;
use crate::racy::Racy;
use core::arch::global_asm;
use core::mem::offset_of;
use proxenos_abi::hypercall::SwitchToUser;
use proxenos_abi::{GuestArch, GuestVirt, Hypercall, X86_64};

/// What the entries need to know.
#[repr(C)]
pub(super) struct State {
    /// Where the registers of the application that runs go; null when none does.
    pub(super) registers: *mut TrapFrame,
    /// Where the frames of entries from it end.
    pub(super) frames_end: u64,
    /// What is to be rsp when it has come back.
    sp: u64,
}

pub(super) static STATE: Racy<State> = Racy::new(State { registers: core::ptr::null_mut(), frames_end: 0, sp: 0 });

/// What [`enter`] returns for a system call; less is a vector.
pub const CAME_BY_SYSCALL: u64 = 0x100;
/// What it returns for an event. Upcalls are masked then.
pub const CAME_BY_EVENT: u64 = 0x101;
/// What it returns where the application's registers could not be loaded.
pub const CAME_BY_FAILSAFE: u64 = 0x102;

unsafe extern "C" {
    /// Goes on with an application until it comes back, and says why it did, or with which error the call failed. `how`
    /// is the frame's `flags`.
    ///
    /// # Safety
    /// The registers are nobody else's meanwhile.
    #[link_name = "__guest_user_enter"]
    pub fn enter(registers: *mut TrapFrame, how: u64) -> u64;
    fn __guest_system_call();
}

/// Where `syscall` of an application leads, for `set_callbacks`.
pub fn system_call_entry() -> GuestVirt {
    GuestVirt(__guest_system_call as *const () as usize as u64)
}

/// Words that an entry and [`enter`] have between them: rax for `switch_to_user`, and what keeps the stack aligned.
const ABOVE: usize = 16;

global_asm!(
    r#"
    .text
    .balign 16
    .globl __guest_user_enter
    __guest_user_enter:
        push    rbx
        push    rbp
        push    r12
        push    r13
        push    r14
        push    r15
        sub     rsp, 8
        mov     r12, rdi
        mov     r13, rsi
        mov     [{state} + {sp}], rsp
        lea     rsi, [rsp - {above}]
        mov     [{state} + {frames_end}], rsi
        mov     edi, {kernel_ds}
        mov     eax, {stack_switch}
        syscall
        test    rax, rax
        jnz     2f
        lea     rsp, [rsp - {above} - {frame}]
        mov     rdi, r12
        mov     rax, [rdi + {rax}]
        mov     [rsp + {frame}], rax
        mov     rax, [rdi + {r11}]
        mov     [rsp + {frame_r11}], rax
        mov     rax, [rdi + {rcx}]
        mov     [rsp + {frame_rcx}], rax
        mov     [rsp + {frame_flags}], r13
        mov     rax, [rdi + {rip}]
        mov     [rsp + {frame_rip}], rax
        mov     rax, [rdi + {cs}]
        mov     [rsp + {frame_cs}], rax
        mov     rax, [rdi + {rflags}]
        mov     [rsp + {frame_rflags}], rax
        mov     rax, [rdi + {app_sp}]
        mov     [rsp + {frame_rsp}], rax
        mov     rax, [rdi + {ss}]
        mov     [rsp + {frame_ss}], rax
        mov     rbx, [rdi + {rbx}]
        mov     rdx, [rdi + {rdx}]
        mov     rsi, [rdi + {rsi}]
        mov     rbp, [rdi + {rbp}]
        mov     r8, [rdi + {r8}]
        mov     r9, [rdi + {r9}]
        mov     r10, [rdi + {r10}]
        mov     r12, [rdi + {r12}]
        mov     r13, [rdi + {r13}]
        mov     r14, [rdi + {r14}]
        mov     r15, [rdi + {r15}]
        mov     [{state} + {registers}], rdi
        mov     rdi, [rdi + {rdi}]
        mov     eax, {switch_to_user}
        syscall
    __guest_user_back:
        mov     qword ptr [{state} + {registers}], 0
        mov     rsp, [{state} + {sp}]
    2:  add     rsp, 8
        pop     r15
        pop     r14
        pop     r13
        pop     r12
        pop     rbp
        pop     rbx
        ret

    /* rcx, r11, rip, cs, rflags, rsp and ss are on the stack. */
    .balign 16
    .globl __guest_system_call
    __guest_system_call:
        pop     rcx
        pop     r11
        push    0
        push    0
        push    {by_syscall}
        jmp     __guest_trap_common
    .globl __guest_event_of_application
    __guest_event_of_application:
        pop     rcx
        pop     r11
        push    0
        push    0
        push    {by_event}
        jmp     __guest_trap_common
    /* rcx, r11, ds, es, fs, gs and as above. */
    .globl __guest_failsafe_of_application
    __guest_failsafe_of_application:
        pop     rcx
        pop     r11
        add     rsp, 32
        push    0
        push    0
        push    {by_failsafe}
        jmp     __guest_trap_common

    /* All registers are on the stack, and an application may be under way. */
    .globl __guest_trap_of_application
    __guest_trap_of_application:
        lea     rax, [rsp + {size}]
        cmp     rax, [{state} + {frames_end}]
        jne     __guest_trap_of_kernel
        mov     rsi, rsp
        mov     rdi, [{state} + {registers}]
        mov     ecx, {size} / 8
        cld
        rep movsq
        mov     rax, [rsp + {vector}]
        jmp     __guest_user_back
    "#,
    state = sym STATE,
    registers = const offset_of!(State, registers),
    frames_end = const offset_of!(State, frames_end),
    sp = const offset_of!(State, sp),
    above = const ABOVE,
    frame = const size_of::<SwitchToUser>(),
    kernel_ds = const X86_64::FLAT_GUESTOS_DS.raw(),
    stack_switch = const Hypercall::StackSwitch.raw(),
    switch_to_user = const Hypercall::SwitchToUser.raw(),
    by_syscall = const CAME_BY_SYSCALL,
    by_event = const CAME_BY_EVENT,
    by_failsafe = const CAME_BY_FAILSAFE,
    size = const size_of::<TrapFrame>(),
    vector = const offset_of!(TrapFrame, vector),
    frame_r11 = const offset_of!(SwitchToUser, r11),
    frame_rcx = const offset_of!(SwitchToUser, rcx),
    frame_flags = const offset_of!(SwitchToUser, flags),
    frame_rip = const offset_of!(SwitchToUser, rip),
    frame_cs = const offset_of!(SwitchToUser, cs),
    frame_rflags = const offset_of!(SwitchToUser, rflags),
    frame_rsp = const offset_of!(SwitchToUser, rsp),
    frame_ss = const offset_of!(SwitchToUser, ss),
    r15 = const offset_of!(TrapFrame, r15),
    r14 = const offset_of!(TrapFrame, r14),
    r13 = const offset_of!(TrapFrame, r13),
    r12 = const offset_of!(TrapFrame, r12),
    r11 = const offset_of!(TrapFrame, r11),
    r10 = const offset_of!(TrapFrame, r10),
    r9 = const offset_of!(TrapFrame, r9),
    r8 = const offset_of!(TrapFrame, r8),
    rbp = const offset_of!(TrapFrame, rbp),
    rdi = const offset_of!(TrapFrame, rdi),
    rsi = const offset_of!(TrapFrame, rsi),
    rbx = const offset_of!(TrapFrame, rbx),
    rdx = const offset_of!(TrapFrame, rdx),
    rcx = const offset_of!(TrapFrame, rcx),
    rax = const offset_of!(TrapFrame, rax),
    rip = const offset_of!(TrapFrame, rip),
    cs = const offset_of!(TrapFrame, cs),
    rflags = const offset_of!(TrapFrame, rflags),
    app_sp = const offset_of!(TrapFrame, rsp),
    ss = const offset_of!(TrapFrame, ss),
);
