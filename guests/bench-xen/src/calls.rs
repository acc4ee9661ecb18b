//! Hypercalls that touch neither memory nor events: what the way in and out costs.

use crate::abi::{self, MulticallEntry, call};
use crate::hypercall;
use crate::measure::Bench;
use crate::memory::{self, Frame, PAGE};

/// Far enough in the future for a timer that shall not fire, in nanoseconds.
const AN_HOUR: u64 = 3_600_000_000_000;

pub fn run(bench: &Bench) {
    let nothing = |_| ();
    let version = hypercall::xen_version();
    bench.measure("null", nothing, |()| hypercall::xen_version() == version);
    bench.measure("bad-number", nothing, |()| hypercall::no_call() == abi::ENOSYS);
    multicall::<1>(bench, "multicall-1", version);
    multicall::<16>(bench, "multicall-16", version);
    let later = memory::system_time() + AN_HOUR;
    bench.measure("set-timer", |_| later, hypercall::set_timer);
    assert!(hypercall::set_timer(0), "a timer can be cancelled");
    // A stack for entries from applications, of which there are none.
    let stack = Frame::new().virt() + PAGE as u64;
    // SAFETY: the stack is ours, and not in use.
    bench.measure("stack-switch", nothing, |()| unsafe { hypercall::stack_switch(stack) });
    task_switch(bench, stack);
    bench.measure("yield", nothing, |()| hypercall::sched_yield());
}

/// So many `xen_version` in one call.
fn multicall<const COUNT: usize>(bench: &Bench, name: &str, version: isize) {
    let entry = MulticallEntry { op: call::XEN_VERSION as u64, result: 0, args: [0; 6] };
    let mut calls = [entry; COUNT];
    // SAFETY: none of the calls changes anything.
    bench.measure(name, |_| (), |()| unsafe { hypercall::multicall(&mut calls) });
    assert!(!bench.measures(name) || calls.iter().all(|call| call.result == version as u64), "every call was made");
}

/// What a kernel puts into one call when it changes tasks.
fn task_switch(bench: &Bench, stack: u64) {
    let entry = |call: usize, [first, second]: [u64; 2]| MulticallEntry {
        op: call as u64,
        result: 0,
        args: [first, second, 0, 0, 0, 0],
    };
    let mut calls =
        [entry(call::FPU_TASKSWITCH, [1, 0]), entry(call::STACK_SWITCH, [u64::from(abi::KERNEL_SS), stack])];
    // SAFETY: the stack is ours, and not in use; nothing here uses the FPU.
    bench.measure("multicall-task-switch", |_| (), |()| unsafe { hypercall::multicall(&mut calls) });
}
