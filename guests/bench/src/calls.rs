//! Hypercalls that touch neither memory nor events: what the way in and out costs.

use crate::Bench;
use proxenos_guest::abi::hypercall::{MULTICALL_RESULT_ARG, MulticallEntry};
use proxenos_guest::abi::{Errno, GuestArch, GuestVirt, GuestWord, Hypercall};
use proxenos_guest::arch::hypercall1;
use proxenos_guest::{Arch, Word, hypercall, memory, time};

/// What `xen_version` answers.
const VERSION: u32 = 0x0002_0000;
/// A number that is no call.
const NO_CALL: usize = 63;
/// Far enough in the future for a timer that shall not fire, in nanoseconds.
const AN_HOUR: u64 = 3_600_000_000_000;

pub fn run(bench: &Bench) {
    let nothing = |_| ();
    bench.measure("null", nothing, |()| hypercall::xen_version() == Ok(VERSION));
    // SAFETY: the call does not exist.
    let no_call = || unsafe { hypercall1(NO_CALL, 0) };
    bench.measure("bad-number", nothing, |()| Word::from_u64_truncating(no_call() as u64) == Errno::ENOSYS.to_word());
    multicall::<1>(bench, "multicall-1");
    multicall::<16>(bench, "multicall-16");
    let later = time::system_time() + AN_HOUR;
    bench.measure("set-timer", |_| later, |at| hypercall::set_timer_op(at).is_ok());
    time::cancel_timer().expect("a timer can be cancelled");
    // The stack that the kernel has from the start; it is used for entries from ring 3, of which there are none.
    let stack = memory::boot_stack_end();
    let ss = Arch::FLAT_GUESTOS_DS;
    // SAFETY: the stack is ours, and not in use.
    bench.measure("stack-switch", nothing, |()| unsafe { hypercall::stack_switch(ss, stack) }.is_ok());
    task_switch(bench, stack);
    bench.measure("yield", nothing, |()| hypercall::sched_yield().is_ok());
}

/// So many `xen_version` in one call.
fn multicall<const COUNT: usize>(bench: &Bench, name: &str) {
    let entry = MulticallEntry::<Arch> { op: Hypercall::XenVersion.raw() as Word, args: [0; 7] };
    let mut calls = [entry; COUNT];
    // SAFETY: none of the calls changes anything.
    bench.measure(name, |_| (), |()| unsafe { hypercall::multicall(&mut calls) }.is_ok());
    let done = |entry: &MulticallEntry<Arch>| { entry.args }[MULTICALL_RESULT_ARG] == VERSION as Word;
    assert!(!bench.measures(name) || calls.iter().all(done), "every call was made");
}

/// What a kernel puts into one call when it changes tasks.
fn task_switch(bench: &Bench, stack: GuestVirt) {
    let entry = |call: Hypercall, [first, second]: [Word; 2]| MulticallEntry::<Arch> {
        op: call.raw() as Word,
        args: [first, second, 0, 0, 0, 0, 0],
    };
    let ss = Word::from(Arch::FLAT_GUESTOS_DS.0);
    let mut calls = [
        entry(Hypercall::FpuTaskswitch, [0; 2]),
        entry(Hypercall::StackSwitch, [ss, Word::from_u64_truncating(stack.0)]),
    ];
    // SAFETY: the stack is ours, and not in use; nothing here uses the FPU.
    bench.measure("multicall-task-switch", |_| (), |()| unsafe { hypercall::multicall(&mut calls) }.is_ok());
}
