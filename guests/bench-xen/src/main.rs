//! The peer of `guests/bench`: what the same operations cost a guest of today's Xen, as its domain 0 on x86_64. A line
//! `bench NAME N` for each, with the names, the loop, the application and the trapping instructions of that guest: its
//! own files.
//!
//! It speaks the interface of Xen 4.17, and of that no more than it needs: ELF notes, the hypercall page, two-level
//! event channels, and the calls that it times. It is no guest of Proxenos, and knows nothing of the SDK.
//!
//! Command line: `only=NAME` measures that one, `rounds=N` so many times (default 8); `only=memory` looks at nothing
//! but when it began and what memory there is for domains.
#![no_std]
#![no_main]

mod abi;
#[path = "../../bench/src/application.rs"]
mod application;
mod calls;
mod console;
mod domains;
mod events;
mod hypercall;
#[path = "../../bench/src/instructions.rs"]
mod instructions;
#[path = "../../bench/src/measure.rs"]
mod measure;
mod memory;
mod others;
mod paging;
mod partner;
mod pins;
mod platform;
mod start;
mod traps;
mod user;

use measure::Bench;
use partner::Window;

/// What the start calls.
fn main() {
    let began = platform::read_tsc();
    let (version, extra) = (hypercall::xen_version(), hypercall::extra_version());
    let extra = core::ffi::CStr::from_bytes_until_nul(&extra).ok().and_then(|text| text.to_str().ok()).unwrap_or("");
    println!("xen {}.{}{extra}", version >> 16, version & 0xffff);
    if platform::option("only") == Some("memory") {
        println!("bench boot {began}");
        println!("memory {}", (hypercall::free_pages() + hypercall::own_pages()) * memory::PAGE as u64);
        println!("bench done");
        return;
    }
    let bench = Bench::begin();
    calls::run(&bench);
    paging::run(&bench);
    pins::run(&bench);
    events::run(&bench);
    traps::run(&bench);
    let window = Window::new();
    domains::run(&bench, window);
    others::run(&bench, window);
    println!("bench done");
}
