//! When a domain that waited executes its first instruction after it was sent an event: its callback notes the
//! time-stamp counter.
//!
//! The note lies in a page of the domain's own image, which domain 0 maps and reads.

use crate::control::{Window, frames, window};
use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};
use proxenos_guest::abi::{DomId, GuestArch, GuestVirt, GuestWord, Mfn, PAGE_SIZE};
use proxenos_guest::arch::{event_callback, failsafe_callback};
use proxenos_guest::{Arch, Word, hypercall, memory};

/// Frames of the other domain: its 8 MiB.
const FRAMES: usize = 2048;

/// A page with the note in its first words, and the list of the other's frames behind it.
#[repr(C, align(4096))]
struct Page<T>(UnsafeCell<T>);

// SAFETY: a guest has one CPU; each use of a pointer into it argues for itself.
unsafe impl<T> Sync for Page<T> {}

static NOTE: Page<[u8; PAGE_SIZE]> = Page(UnsafeCell::new([0; PAGE_SIZE]));
static LIST: Page<[Word; FRAMES]> = Page(UnsafeCell::new([0; FRAMES]));
/// Where the callback goes on.
static NEXT: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" {
    fn __noting_callback();
}

#[cfg(target_arch = "x86")]
global_asm!(
    r#"
    .text
    .globl __noting_callback
    __noting_callback:
        push    eax
        push    edx
        rdtsc
        mov     dword ptr [{note}], eax
        mov     dword ptr [{note} + 4], edx
        pop     edx
        pop     eax
        jmp     dword ptr [{next}]
    "#,
    note = sym NOTE,
    next = sym NEXT,
);

#[cfg(target_arch = "x86_64")]
global_asm!(
    r#"
    .text
    .globl __noting_callback
    __noting_callback:
        push    rax
        push    rdx
        rdtsc
        mov     dword ptr [rip + {note}], eax
        mov     dword ptr [rip + {note} + 4], edx
        pop     rdx
        pop     rax
        jmp     qword ptr [rip + {next}]
    "#,
    note = sym NOTE,
    next = sym NEXT,
);

/// Instructions of the callback up to the one that reads the counter.
pub const BEFORE: u64 = 2;

/// Has each upcall noted from now on.
pub fn note_upcalls() {
    let cs = Arch::FLAT_GUESTOS_CS;
    NEXT.store(event_callback().raw() as usize, Ordering::Relaxed);
    let noting = GuestVirt(__noting_callback as *const () as usize as u64);
    // SAFETY: it goes on where the SDK's own callback begins, with all registers as they were.
    unsafe { hypercall::set_callbacks((cs, noting), (cs, failsafe_callback())) }.expect("callbacks of ours");
}

/// The other domain's note, mapped; none if it is not found. Its image is ours, so that its frame has the same number
/// there.
pub fn note_of(domain: DomId) -> Option<Window> {
    let pfn = memory::pfn_of(GuestVirt(NOTE.0.get() as usize as u64)).raw();
    // SAFETY: nothing else uses the list.
    let list = unsafe { &mut *LIST.0.get() };
    let count = frames(domain, list).ok()?;
    let is_it = |&&frame: &&Word| memory::machine_to_phys(Mfn(frame.to_u64())).is_some_and(|at| at.to_u64() == pfn);
    let frame = list[..count].iter().find(is_it)?;
    let window = window();
    window.show(domain, Mfn(frame.to_u64())).ok()?;
    Some(window)
}
