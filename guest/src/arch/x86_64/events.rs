//! The two callbacks' entry points.
//!
//! An upcall is entered with events masked and rcx, r11, rip, cs, rflags, rsp, ss on the stack; the kernel returns by
//! an `iretq` of its own, which stays in ring 3. Unmasking before the return opens a race: an event that arrives
//! between the last look at the pending flag and the unmasking would be left lying, and one that arrives between the
//! unmasking and `iretq` would enter a second time on top of this frame, and so on without bound. Hence the end of the
//! callback restores every register first, then unmasks and looks once more; an upcall that interrupts these few
//! instructions finds that out by the interrupted rip, drops its own frame, whose registers equal those of the frame
//! below, and carries on as if the outer one had never begun to return.

use core::arch::global_asm;
use core::sync::atomic::{AtomicUsize, Ordering};
use proxenos_abi::GuestVirt;

static FAILSAFES: AtomicUsize = AtomicUsize::new(0);

/// How often the failsafe callback has run: the hypervisor could not restore a segment register of ours.
pub fn failsafe_count() -> usize {
    FAILSAFES.load(Ordering::Relaxed)
}

unsafe extern "C" {
    fn __guest_event_callback();
    fn __guest_failsafe_callback();
}

/// Address of the event callback, for `set_callbacks`.
pub fn event_callback() -> GuestVirt {
    GuestVirt(__guest_event_callback as *const () as usize as u64)
}

/// Address of the failsafe callback, for `set_callbacks`.
pub fn failsafe_callback() -> GuestVirt {
    GuestVirt(__guest_failsafe_callback as *const () as usize as u64)
}

global_asm!(
    r#"
    .text
    .globl __guest_event_callback
    __guest_event_callback:
        /* rcx and r11 are saved in the frame, so they are free here. */
        lea     rcx, [rsp + 56]
        cmp     rcx, qword ptr [{user} + {frames_end}]
        jne     4f
        cmp     qword ptr [{user}], 0
        jne     __guest_event_of_application
    4:  mov     rcx, qword ptr [rsp + 16]
        cmp     rcx, offset __guest_event_return
        jb      2f
        cmp     rcx, offset __guest_event_return_end
        jae     2f
        mov     rcx, qword ptr [rsp]
        mov     r11, qword ptr [rsp + 8]
        mov     rsp, qword ptr [rsp + 40]
        push    r11
        push    rcx
    2:  push    rax
        push    rdx
        push    rsi
        push    rdi
        push    r8
        push    r9
        push    r10
        push    rbp
        mov     rbp, rsp
        and     rsp, -16
        cld
        call    {dispatch}
        mov     rsp, rbp
        pop     rbp
        pop     r10
        pop     r9
        pop     r8
        pop     rdi
        pop     rsi
        pop     rdx
        pop     rax
        pop     rcx
        pop     r11
    __guest_event_return:
        mov     byte ptr [{shared} + 1], 0
        cmp     byte ptr [{shared}], 0
        jne     3f
        iretq
    3:  mov     byte ptr [{shared} + 1], 1
    __guest_event_return_end:
        push    r11
        push    rcx
        jmp     2b

    /* From low to high: rcx, r11, ds, es, fs, gs, rip, cs, rflags, rsp, ss. 64-bit code needs none of the four. */
    .globl __guest_failsafe_callback
    __guest_failsafe_callback:
        inc     qword ptr [{failsafes}]
        lea     rcx, [rsp + 88]
        cmp     rcx, qword ptr [{user} + {frames_end}]
        jne     5f
        cmp     qword ptr [{user}], 0
        jne     __guest_failsafe_of_application
    5:  xor     ecx, ecx
        mov     ds, ecx
        mov     es, ecx
        mov     fs, ecx
        mov     gs, ecx
        pop     rcx
        pop     r11
        add     rsp, 32
        iretq
    "#,
    dispatch = sym crate::events::upcall,
    user = sym super::user::STATE,
    frames_end = const core::mem::offset_of!(super::user::State, frames_end),
    shared = sym crate::shared_info::PAGE,
    failsafes = sym FAILSAFES,
);
