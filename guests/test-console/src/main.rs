//! The emergency console (`console_io`): what is written, what is counted, what is refused.
//!
//! What appears is judged by whoever reads the console: see `expect` and `forbid` in this guest's manifest.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};
use proxenos_guest::abi::{Errno, Virq};
use proxenos_guest::arch::hypercall3;
use proxenos_guest::hypercall::{check as result_of, console_read, console_write};
use proxenos_guest::test::section;
use proxenos_guest::{StartInfo, boot, check, check_eq, events, println};

proxenos_guest::test_guest!(main);

fn main(_: &StartInfo) {
    proxenos_guest::init();
    if boot::option("typed").is_some() {
        return typed();
    }
    written();
    counted();
    read();
    refused();
}

fn written() {
    section("written");
    let text = b"shown to the end\n";
    check_eq!(console_write(text), Ok(text.len()));
    check!(console_write(b"shown up to the zero\n\0but HIDDEN behind it\n").is_ok());
    let mut line = [b'-'; 301];
    for (at, byte) in line[..300].iter_mut().enumerate() {
        *byte = b'a' + (at % 26) as u8;
    }
    line[300] = b'\n';
    check_eq!(console_write(&line), Ok(line.len()), "a long line in one piece");
    println!("formatted: {} {:#x} {:>5}|", 17, 0xbeef, "x");
}

/// The count is capped, whatever the bytes are.
fn counted() {
    section("counted");
    let silence = [0u8; 5000];
    check_eq!(console_write(&silence[..0]), Ok(0));
    check_eq!(console_write(&silence[..1]), Ok(1));
    check_eq!(console_write(&silence[..4095]), Ok(4095));
    check_eq!(console_write(&silence[..4096]), Ok(4095), "one more than fits");
    check_eq!(console_write(&silence), Ok(4095));
}

fn read() {
    section("read");
    let mut buffer = [0x5a; 16];
    check_eq!(console_read(&mut buffer), Ok(0), "nobody has typed anything");
    check_eq!(console_read(&mut buffer[..0]), Ok(0));
    check_eq!(buffer, [0x5a; 16]);
}

fn refused() {
    section("refused");
    let byte = [0u8; 1];
    let raw = |command: usize, count: usize| {
        // SAFETY: nothing is written to the byte: the command is a write or does not exist.
        result_of(unsafe { hypercall3(18, command, count, byte.as_ptr() as usize) })
    };
    for command in [2, 3, 255, 0xffff_ffff] {
        check_eq!(raw(command, 1), Err(Errno::ENOSYS), "command {command}");
    }
    check_eq!(raw(0, 0xffff_ffff), Err(Errno::EINVAL), "a negative count");
    check_eq!(raw(0, 0x8000_0000), Err(Errno::EINVAL), "the most negative count");
}

static CONSOLE: AtomicU32 = AtomicU32::new(0);
static DEBUG: AtomicU32 = AtomicU32::new(0);

/// Somebody types, to us and to the hypervisor: see `input` in this guest's manifest.
fn typed() {
    section("typed");
    events::handle_virq(Virq::Console, |_| _ = CONSOLE.fetch_add(1, Ordering::Relaxed)).expect("free");
    events::handle_virq(Virq::Debug, |_| _ = DEBUG.fetch_add(1, Ordering::Relaxed)).expect("free");
    check_eq!(CONSOLE.load(Ordering::Relaxed), 0, "nobody has typed anything");
    println!("type to the guest");
    // The first two of three that would switch are ours, since no third follows.
    expect_line(b"hello\x01\x01, guest!");
    println!("ask for VIRQ_DEBUG");
    events::wait_until(|| DEBUG.load(Ordering::Relaxed) > 0);
    expect_line(b"and back!");
    check_eq!(DEBUG.load(Ordering::Relaxed), 1, "VIRQ_DEBUG");
    check_eq!(console_read(&mut [0; 8]), Ok(0), "what was for the hypervisor is not ours");
}

/// Checks what is typed up to an exclamation mark. Waits for it: VIRQ_CONSOLE comes whenever there is something where
/// nothing was.
fn expect_line(expected: &[u8]) {
    let mut line = [0; 32];
    let mut got = 0;
    while !line[..got].ends_with(b"!") && got < line.len() {
        events::wait_until(|| CONSOLE.swap(0, Ordering::Relaxed) > 0);
        got += console_read(&mut line[got..]).expect("it may be read");
    }
    check_eq!(&line[..got], expected);
}
