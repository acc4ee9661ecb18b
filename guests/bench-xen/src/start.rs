//! Start of day: the notes by which Xen knows the kernel, the first instructions, and what they were given.

use crate::abi::{self, note};
use crate::memory;
use core::arch::global_asm;
use core::ffi::CStr;
use core::sync::atomic::{AtomicUsize, Ordering};

/// Where the image is linked, and where the initial mapping begins.
pub const VIRT_BASE: usize = 0x40_0000;
/// Bytes of the stack.
const STACK_BYTES: usize = 64 << 10;

unsafe extern "C" {
    /// Xen fills it before the first instruction: 32 bytes of code a hypercall.
    pub fn hypercall_page();
}

// A note: lengths of name and contents, type, name, contents, each padded to four bytes.
global_asm!(
    r#"
    .macro xen_note_number type, value
        .long   4, 8, \type
        .asciz  "Xen"
        .quad   \value
    .endm
    .macro xen_note_text type, text
        .long   4, 9f - 8f, \type
        .asciz  "Xen"
    8:  .asciz  "\text"
    9:  .balign 4
    .endm

    .section .note.Xen, "a", @note
    .balign 4
    xen_note_text   {guest_os}, "bench-xen"
    xen_note_text   {loader}, "generic"
    xen_note_text   {xen_version}, "xen-3.0"
    xen_note_number {virt_base}, {base}
    xen_note_number {paddr_offset}, {base}
    xen_note_number {entry}, _start
    xen_note_number {page}, hypercall_page

    .text
    .balign 4096
    .globl  hypercall_page, _start
    hypercall_page:
        .skip   4096
    _start:
        lea     rsp, [{stack} + {stack_bytes}]
        cld
        xor     ebp, ebp
        mov     rdi, rsi
        call    {start}
        ud2
    "#,
    guest_os = const note::GUEST_OS,
    loader = const note::LOADER,
    xen_version = const note::XEN_VERSION,
    virt_base = const note::VIRT_BASE,
    paddr_offset = const note::PADDR_OFFSET,
    entry = const note::ENTRY,
    page = const note::HYPERCALL_PAGE,
    base = const VIRT_BASE,
    stack = sym STACK,
    stack_bytes = const STACK_BYTES,
    start = sym start,
);

#[repr(C, align(4096))]
struct Stack(core::cell::UnsafeCell<[u8; STACK_BYTES]>);

// SAFETY: only the first instructions take its address.
unsafe impl Sync for Stack {}

static STACK: Stack = Stack(core::cell::UnsafeCell::new([0; STACK_BYTES]));

static START_INFO: AtomicUsize = AtomicUsize::new(0);

extern "C" fn start(start_info: usize) -> ! {
    START_INFO.store(start_info, Ordering::Relaxed);
    memory::map_shared_page();
    crate::main();
    crate::console::shut_down();
}

/// A word of `start_info`.
pub fn start_info(offset: usize) -> usize {
    // SAFETY: Xen passed the address; the structure stays where it is, and is not written to.
    unsafe { ((START_INFO.load(Ordering::Relaxed) + offset) as *const usize).read() }
}

/// The value of `name=value` on the command line.
pub fn option(name: &str) -> Option<&'static str> {
    let line = START_INFO.load(Ordering::Relaxed) + abi::start_info::CMD_LINE;
    // SAFETY: as above.
    let line = unsafe { core::slice::from_raw_parts(line as *const u8, abi::start_info::CMD_LINE_BYTES) };
    let line = CStr::from_bytes_until_nul(line).ok()?.to_str().ok()?;
    line.split_ascii_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}
