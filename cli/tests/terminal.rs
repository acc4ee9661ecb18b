//! What happens at a terminal: it is taken over byte by byte, given back as it was, and Ctrl-] leaves.

#![allow(dead_code, reason = "the fake has more than is used here")]

mod fake;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Child;
use std::time::{Duration, Instant};

use fake::{Fake, Manner};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

/// A terminal, and what sits at it.
struct Seat {
    user: File,
    terminal: OwnedFd,
    seen: String,
}

impl Seat {
    fn new() -> Self {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&user).unwrap();
        unlockpt(&user).unwrap();
        let terminal = open(ptsname(&user, Vec::new()).unwrap(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        tcsetwinsize(&terminal, Winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        Self { user: File::from(user), terminal, seen: String::new() }
    }

    fn spawn(&self, fake: &Fake, args: &[&str]) -> Child {
        let end = || self.terminal.try_clone().unwrap();
        fake.proxenos(args).stdin(end()).stdout(end()).stderr(end()).env("TERM", "xterm").spawn().unwrap()
    }

    fn is_cooked(&self) -> bool {
        tcgetattr(&self.terminal).unwrap().local_modes.contains(LocalModes::ICANON | LocalModes::ECHO)
    }

    fn type_in(&mut self, text: &str) {
        self.user.write_all(text.as_bytes()).unwrap();
    }

    fn expect(&mut self, words: &str) {
        let until = Instant::now() + Duration::from_secs(60);
        let mut buffer = [0; 4096];
        while !self.seen.contains(words) {
            assert!(Instant::now() < until, "no {words:?} in {:?}", self.seen);
            let wait = Timespec { tv_sec: 1, tv_nsec: 0 };
            if poll(&mut [PollFd::new(&self.user, PollFlags::IN)], Some(&wait)).unwrap() > 0 {
                let len = self.user.read(&mut buffer).unwrap();
                self.seen += &String::from_utf8_lossy(&buffer[..len]);
            }
        }
    }
}

fn kernel(fake: &Fake) -> String {
    let path = fake.dir.path().join("k");
    std::fs::write(&path, b"\x7fELF").unwrap();
    path.display().to_string()
}

#[test]
fn ctrl_bracket_leaves_the_console_and_the_guest_goes_on() {
    let fake = Fake::start(Manner::Proper, 2);
    let mut seat = Seat::new();
    let mut child = seat.spawn(&fake, &["run", &kernel(&fake), "--name", "g", "--", "print=one", "print=two", "echo"]);
    // Lines begin at the left.
    seat.expect("one\r\ntwo\r\n");
    assert!(!seat.is_cooked());
    // Ctrl-C is the guest's.
    seat.type_in("x\x03y");
    seat.expect("x\x03y");
    seat.type_in("\x1d");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    seat.expect("proxenos console g");
    assert!(seat.is_cooked(), "the terminal is as it was");
    assert_eq!(fake.json(&["info", "g"])["state"], "running");
}

#[test]
fn the_terminal_is_given_back_when_the_guest_ends() {
    let fake = Fake::start(Manner::Proper, 1);
    let mut seat = Seat::new();
    let mut child = seat.spawn(&fake, &["run", &kernel(&fake), "--", "echo"]);
    seat.type_in("q");
    seat.expect("q");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(seat.is_cooked());
}

#[test]
fn top_draws_until_q_is_typed() {
    let fake = Fake::start(Manner::Proper, 1);
    let mut seat = Seat::new();
    let mut child = seat.spawn(&fake, &["top", "--interval", "200ms"]);
    seat.expect("Domain-0");
    assert!(!seat.is_cooked());
    seat.type_in("q");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(seat.is_cooked());
}
