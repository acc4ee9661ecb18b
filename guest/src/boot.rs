//! From the first instruction to the guest's `main`, and what the guest was started with.

use crate::arch::{BootRegisters, Word};
use crate::{StartInfo, console, shutdown};
use core::sync::atomic::{AtomicPtr, Ordering};
use proxenos_abi::start_info::StartInfoFlags;
use proxenos_abi::{GuestVirt, GuestWord};

static START_INFO: AtomicPtr<StartInfo> = AtomicPtr::new(core::ptr::null_mut());

/// Declares a guest: its `main` (`fn(&StartInfo)`), and what its `__xen_guest` section says.
///
/// `entry!(main)` is what almost every guest wants. `entry!(main, "XEN_VER=2.0,...")` sets the section's text, which
/// must give the VIRT_BASE the linker script has.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        $crate::entry!($main, $crate::__guest_note!());
    };
    ($main:path, $note:expr) => {
        const _: () = {
            const NOTE: &str = $note;

            #[used]
            #[unsafe(link_section = "__xen_guest")]
            static XEN_GUEST: [u8; NOTE.len() + 1] = {
                let mut bytes = [0; NOTE.len() + 1];
                let mut at = 0;
                while at < NOTE.len() {
                    bytes[at] = NOTE.as_bytes()[at];
                    at += 1;
                }
                bytes
            };

            #[unsafe(no_mangle)]
            fn __proxenos_guest_main(si: &$crate::StartInfo) {
                let main: fn(&$crate::StartInfo) = $main;
                main(si);
            }
        };
    };
}

/// What the `__xen_guest` section says unless a guest asks for something else.
#[cfg(target_arch = "x86")]
#[doc(hidden)]
#[macro_export]
macro_rules! __guest_note {
    () => {
        "XEN_VER=2.0,LOADER=generic,VIRT_BASE=0xC0000000"
    };
}

/// What the `__xen_guest` section says unless a guest asks for something else.
#[cfg(target_arch = "x86_64")]
#[doc(hidden)]
#[macro_export]
macro_rules! __guest_note {
    () => {
        "XEN_VER=2.0,LOADER=generic,VIRT_BASE=0x400000"
    };
}

unsafe extern "Rust" {
    fn __proxenos_guest_main(si: &StartInfo);
}

/// Called by the first instructions, on the SDK's stack, with what esi (rsi) held.
pub(crate) extern "C" fn start(si: *mut StartInfo) -> ! {
    START_INFO.store(si, Ordering::Relaxed);
    let si = start_info();
    console::attach(si);
    // SAFETY: the signature is the one `entry!` gives the symbol.
    unsafe { __proxenos_guest_main(si) };
    shutdown::shutdown(shutdown::POWEROFF)
}

/// What the hypervisor told us when the guest started.
pub fn start_info() -> &'static StartInfo {
    // SAFETY: the interface puts a `start_info_t` there, readable and ours alone, before the first instruction runs; no
    // code of ours writes to it or frees its page.
    unsafe { &*START_INFO.load(Ordering::Relaxed) }
}

/// Virtual address of the `start_info_t`.
pub fn start_info_address() -> GuestVirt {
    GuestVirt(START_INFO.load(Ordering::Relaxed) as usize as u64)
}

/// What the registers held when the guest's first instruction ran.
pub fn registers() -> BootRegisters {
    crate::arch::boot_registers()
}

/// The ring we run in, by the code selector's privilege level.
pub fn ring() -> u8 {
    (registers().cs & 3) as u8
}

/// Whether this is domain 0, which has the emergency console.
pub fn is_initial_domain() -> bool {
    start_info().flags().contains(StartInfoFlags::INITDOMAIN)
}

/// The command line.
pub fn command_line() -> &'static str {
    core::str::from_utf8(start_info().command_line()).unwrap_or("")
}

/// The value of `key=value` on the command line, where words are separated by spaces.
pub fn option(key: &str) -> Option<&'static str> {
    command_line().split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// The module (initial ram disk), if one was given.
pub fn module() -> Option<&'static [u8]> {
    let (start, len) = (start_info().mod_start.get(), start_info().mod_len.get());
    if len == 0 {
        return None;
    }
    // SAFETY: the builder mapped the module there; nothing of ours writes to it.
    Some(unsafe { core::slice::from_raw_parts(start as usize as *const u8, len as usize) })
}

/// Frames that belong to the domain.
pub fn frames() -> u64 {
    Word::to_u64(start_info().nr_pages.get())
}
