//! The two callbacks' entry points.
//!
//! An upcall is entered with events masked and eip, cs, eflags on the stack. Unmasking before the return opens a race:
//! an event that arrives between the last look at the pending flag and the unmasking would be left lying, and one that
//! arrives between the unmasking and `iret` would enter a second time on top of this frame, and so on without bound.
//! Hence the end of the callback restores every register first, then unmasks and looks once more; an upcall
//! that interrupts these few instructions finds that out by the interrupted eip, drops its own frame, whose registers
//! equal those of the frame below, and carries on as if the outer one had never begun to return.

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
        cmp     dword ptr [esp], offset __guest_event_return
        jb      2f
        cmp     dword ptr [esp], offset __guest_event_return_end
        jae     2f
        add     esp, 12
    2:  push    eax
        push    ecx
        push    edx
        .byte   0x1e            /* push ds */
        .byte   0x06            /* push es */
        mov     eax, {data}
        mov     ds, eax
        mov     es, eax
        push    ebp
        mov     ebp, esp
        and     esp, -16
        cld
        call    {dispatch}
        mov     esp, ebp
        pop     ebp
        .byte   0x07            /* pop es */
        .byte   0x1f            /* pop ds */
        pop     edx
        pop     ecx
        pop     eax
    __guest_event_return:
        mov     byte ptr ss:[{shared} + 1], 0
        cmp     byte ptr ss:[{shared}], 0
        jne     3f
        iretd
    3:  mov     byte ptr ss:[{shared} + 1], 1
    __guest_event_return_end:
        jmp     2b

    /* From low to high: ds, es, fs, gs, eip, cs, eflags. What could not be loaded is replaced by what can. */
    .globl __guest_failsafe_callback
    __guest_failsafe_callback:
        mov     dword ptr [esp], eax
        mov     eax, {data}
        mov     ds, eax
        mov     es, eax
        xor     eax, eax
        mov     fs, eax
        mov     gs, eax
        inc     dword ptr [{failsafes}]
        pop     eax
        add     esp, 12
        iretd
    "#,
    data = const proxenos_abi::x86_32::FLAT_RING1_DS.raw(),
    dispatch = sym crate::events::upcall,
    shared = sym crate::shared_info::PAGE,
    failsafes = sym FAILSAFES,
);
