//! What operations cost a guest: a line `bench NAME N` for each, N in cycles of the time-stamp counter.
//!
//! Where a run counts instructions (`icount`), a cycle is an instruction, the guest's own included: the figures repeat
//! to the digit. Elsewhere they are the CPU's cycles, and vary.
//!
//! A second domain of the same image is the one that turns and events go to.
//!
//! Command line: `only=NAME` measures that one, `rounds=N` so many times (default 8); `only=memory` looks at nothing
//! but when it began and what memory there is for domains. With `profile=yes` it says `bench waits` and waits for a key
//! before it measures, and what is done many times over is not divided.
#![no_std]
#![no_main]

#[cfg(target_arch = "x86_64")]
mod application;
mod calls;
mod control;
mod domains;
mod entries;
mod events;
mod instructions;
mod measure;
mod others;
mod paging;
mod pins;
mod platform;
#[cfg(target_arch = "x86")]
mod ring3;
mod traps;
#[cfg(target_arch = "x86_64")]
mod user64;
mod wake;
mod writable;

pub use measure::Bench;
use proxenos_guest::arch::read_tsc;
use proxenos_guest::{StartInfo, boot, hypercall, println};

proxenos_guest::entry!(main);

fn main(_: &StartInfo) {
    let began = read_tsc();
    proxenos_guest::init();
    if !boot::is_initial_domain() {
        others::partner();
    }
    let bench = Bench::begin();
    if boot::option("only") == Some("memory") {
        println!("bench boot {began}");
        println!("memory {}", control::free() + control::of_domains());
        println!("bench done");
        return;
    }
    if bench.profile {
        wait_for_key();
    }
    calls::run(&bench);
    paging::run(&bench);
    pins::run(&bench);
    writable::run(&bench);
    domains::run(&bench);
    events::run(&bench);
    traps::run(&bench);
    others::run(&bench);
    println!("bench done");
}

/// Lets who watches prepare for what comes.
fn wait_for_key() {
    println!("bench waits");
    while hypercall::console_read(&mut [0]) != Ok(1) {
        let _ = hypercall::sched_yield();
    }
}
