//! `dom0_op`, where it is about the machine, its schedulers, and a domain that goes on: domain 0 asks, domain 1 is the
//! subject.
//!
//! The same program is both. The subject ([`subject`]) keeps a page that names itself, which domain 0 finds by peeking
//! at its memory, and answers each event with one, after a note in that page.
#![no_std]
#![no_main]

mod control;
mod moves;
mod policies;
mod ports;
mod subject;
mod trace;
mod watch;

use proxenos_guest::abi::dom0_ops::{Dom0Argument, Dom0Op, Dom0Version};
use proxenos_guest::abi::{DomId, Errno};
use proxenos_guest::{StartInfo, boot, hypercall};

proxenos_guest::test_guest!(main);

/// The other domain, and one that there is not.
const SUBJECT: DomId = DomId(1);
const NOBODY: DomId = DomId(77);

fn main(_: &StartInfo) {
    proxenos_guest::init();
    if !boot::is_initial_domain() {
        return subject::run();
    }
    if let Some(last) = boot::option("watch") {
        return watch::run(last.parse().expect("the last domain's number"));
    }
    if let Some(name) = boot::option("sched") {
        return policies::run(name);
    }
    control::machine();
    control::schedulers();
    control::log();
    control::date();
    control::registers();
    let subject = subject::Subject::meet();
    control::date_elsewhere(&subject);
    control::registers_meanwhile(&subject);
    moves::run(&subject);
    subject.debug();
    subject.shadows();
    trace::run(&subject);
    control::devices();
    control::ports(&subject);
    subject.dismiss();
}

/// Makes a request: the result, and the argument as it is then.
fn ask<T: Dom0Argument>(argument: T) -> (Result<usize, Errno>, T) {
    let mut op = Dom0Op { interface_version: Dom0Version::V1A.raw(), ..Dom0Op::new(argument) };
    // SAFETY: no request of this test's changes memory that anything but the test depends on.
    let result = unsafe { hypercall::dom0_op(&mut op) };
    (result, op.argument())
}

/// How many CPUs there are.
fn cpus() -> u32 {
    boot::option("cpus").and_then(|text| text.parse().ok()).expect("the command line says")
}
