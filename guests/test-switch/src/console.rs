//! `console_io` of domains other than 0: refused, but for writes where the hypervisor's option `guest-console` lets
//! them (`may-write=` on the command line), and nothing that is typed goes to them.

use crate::ends;
use proxenos_guest::abi::Errno;
use proxenos_guest::arch::hypercall3;
use proxenos_guest::hypercall::{check as result_of, console_read, console_write};
use proxenos_guest::test::section;
use proxenos_guest::{boot, check_eq, println};

/// What is typed, when others have been told to try.
const TYPED: &[u8] = b"for domain 0";

/// Domain 0: what was typed is all there when others have tried to have it.
pub fn run() {
    proxenos_guest::init();
    section("console_io of others");
    println!("let them try");
    ends::dismiss(&[1, 2]);
    let mut line = [0; TYPED.len()];
    let mut got = 0;
    while got < line.len() {
        got += console_read(&mut line[got..]).expect("domain 0 may");
    }
    check_eq!(&line, TYPED);
    println!("it came");
}

/// Another domain: tries everything, some thousand times, for as long as somebody may type.
pub fn refused() {
    proxenos_guest::init();
    let text = b"HIDDEN?\n";
    let may_write = boot::option("may-write").is_some();
    check_eq!(console_write(text), if may_write { Ok(text.len()) } else { Err(Errno::EPERM) });
    check_eq!(console_write(&[]), if may_write { Ok(0) } else { Err(Errno::EPERM) }, "nothing at all");
    let mut buffer = [0x5a; 16];
    for _ in 0..5000 {
        check_eq!(console_read(&mut buffer), Err(Errno::EPERM), "a read");
    }
    check_eq!(console_read(&mut []), Err(Errno::EPERM), "a read of nothing");
    check_eq!(buffer, [0x5a; 16]);
    for (command, count) in [(2, 1), (255, 1), (1, usize::MAX), (0xffff_ffff, 0)] {
        // SAFETY: no command that there is writes to the buffer for a caller that may not read.
        let result = result_of(unsafe { hypercall3(18, command, count, buffer.as_ptr() as usize) });
        check_eq!(result, Err(Errno::EPERM), "command {command}");
    }
    ends::take_leave();
}
