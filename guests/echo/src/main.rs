//! A guest that does what is typed at its console, a line at a time:
//!
//! | line | what it does |
//! |---|---|
//! | `exit N` | ends with reason N |
//! | `crash` | executes an undefined instruction, for which it has no handler |
//! | `memory` | says how many pages it has |
//! | `line` | says its command line |
//! | `ramdisk` | says how long its ramdisk is, and the sum of its bytes |
//! | anything else | says it again |
//!
//! It ends when its controller asks for it, with the reason that is asked for, and has the size that it is asked to
//! have.
//!
//! On its command line: `when` says what time it was when it began; `exit=N` ends at once with reason N; and of guests
//! that mean harm, each for ever: `flood` writes as fast as it can; `corrupt` writes nonsense over its control
//! interface; `indices` writes there what lies just beyond what makes sense, and moves backwards; `stall` answers
//! nothing and reads nothing.
#![no_std]
#![no_main]

use core::sync::atomic::Ordering;
use proxenos_guest::abi::Port;
use proxenos_guest::abi::io::domain_controller::{CONTROL_MSG_BYTES, ControlIf};
use proxenos_guest::abi::shared_info::CONTROL_IF_OFFSET;
use proxenos_guest::shutdown::{Reason, asked, shutdown};
use proxenos_guest::{StartInfo, balloon, boot, console, events, hypercall, println, shared_info, time};

proxenos_guest::entry!(main);

/// The longest line.
const LINE: usize = 200;

fn main(si: &StartInfo) {
    // No trap table: a fault is the end.
    shared_info::map().expect("the shared page can be mapped");
    let began = time::system_time();
    events::install().expect("the callbacks can be installed");
    let controller = Port(si.domain_controller_evtchn.into());
    events::set_handler(controller, |_| {});
    events::unmask(controller);
    events::unmask_upcalls();
    println!("ready");
    match boot::command_line() {
        "flood" => flood(),
        "corrupt" => corrupt(controller),
        "indices" => indices(controller),
        "stall" => stall(),
        "when" => {
            println!("began at {began}");
            converse();
        }
        _ => match boot::option("exit").and_then(|reason| reason.parse().ok()) {
            Some(reason) => shutdown(Reason(reason)),
            None => converse(),
        },
    }
}

fn converse() {
    let (mut line, mut len) = ([0; LINE], 0);
    loop {
        // All slots of the ring: what finds no room here is lost.
        let (mut typed, mut taken) = ([0; 8 * CONTROL_MSG_BYTES], 0);
        events::wait_until(|| {
            taken = console::read(&mut typed);
            taken > 0 || asked().is_some()
        });
        if let Some(reason) = asked() {
            println!("asked to end: {}", reason.0);
            shutdown(reason);
        }
        for &byte in &typed[..taken] {
            match byte {
                b'\n' => {
                    obey(core::str::from_utf8(&line[..len]).unwrap_or("?"));
                    len = 0;
                }
                byte if len < LINE => {
                    line[len] = byte;
                    len += 1;
                }
                _ => {}
            }
        }
    }
}

fn obey(line: &str) {
    match line.split_once(' ') {
        Some(("exit", reason)) => shutdown(Reason(reason.parse().unwrap_or(0))),
        _ if line == "crash" => crash(),
        _ if line == "memory" => println!("{} pages", balloon::size()),
        _ if line == "line" => println!("line: {}", boot::command_line()),
        _ if line == "ramdisk" => {
            let ramdisk = boot::module().unwrap_or_default();
            let sum = ramdisk.iter().fold(0_u32, |sum, &byte| sum.wrapping_add(byte.into()));
            println!("ramdisk: {} bytes, sum {sum}", ramdisk.len());
        }
        _ => println!("you said: {line}"),
    }
}

fn crash() {
    // SAFETY: does not come back.
    unsafe { core::arch::asm!("ud2", options(noreturn)) }
}

fn flood() {
    for number in 0_u64.. {
        println!("line {number} of a flood");
    }
}

fn corrupt(controller: Port) {
    for number in 0_u32.. {
        for offset in (0..size_of::<ControlIf>()).step_by(4) {
            let nonsense = number.wrapping_mul(0x9e37_79b9) ^ offset as u32;
            shared_info::word(CONTROL_IF_OFFSET + offset).store(nonsense, Ordering::Relaxed);
        }
        // Whoever is told looks at it, or does not.
        let _ = events::send(controller);
        let _ = hypercall::sched_yield();
    }
}

fn indices(controller: Port) {
    let index = |offset| shared_info::word(CONTROL_IF_OFFSET + offset);
    let [out, answered, input, taken] =
        [ControlIf::TX_REQ_PROD, ControlIf::TX_RESP_PROD, ControlIf::RX_REQ_PROD, ControlIf::RX_RESP_PROD].map(index);
    loop {
        for step in [9, 1, u32::MAX, 8, u32::MAX - 8, 1 << 31] {
            // From where the other side is: nine messages at once, one back, nearly all the way round.
            out.store(answered.load(Ordering::Relaxed).wrapping_add(step), Ordering::Relaxed);
            taken.store(input.load(Ordering::Relaxed).wrapping_add(step), Ordering::Relaxed);
            let _ = events::send(controller);
            let _ = hypercall::sched_yield();
        }
        answered.fetch_sub(1, Ordering::Relaxed);
        input.fetch_add(1, Ordering::Relaxed);
    }
}

fn stall() {
    loop {
        events::wait();
    }
}
