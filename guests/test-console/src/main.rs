//! The emergency console (`console_io`): what is written, what is counted, what is refused.
//!
//! What appears is judged by whoever reads the console: see `expect` and `forbid` in this guest's manifest.
#![no_std]
#![no_main]

use proxenos_guest::abi::Errno;
use proxenos_guest::arch::hypercall3;
use proxenos_guest::hypercall::{check as result_of, console_read, console_write};
use proxenos_guest::test::section;
use proxenos_guest::{StartInfo, check, check_eq, println};

proxenos_guest::test_guest!(main);

fn main(_: &StartInfo) {
    proxenos_guest::init();
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
