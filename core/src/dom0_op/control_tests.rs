//! Requests of a privileged domain on the simulated machine: callers and subjects of either architecture. Domain 0
//! calls, domain 1 is the subject, parked.

mod machine;
mod scheduling;
mod subject;

use crate::addr::DomId;
use crate::domain::{Arch, Privileges};
use crate::machine::GuestMemory;
use crate::paging::tests::world::*;
use alloc::vec::Vec;
use proxenos_abi::dom0_ops::{Dom0Argument, Dom0Command, Dom0Op, Dom0Version};
use proxenos_abi::zerocopy::{FromBytes, IntoBytes};
use proxenos_abi::{Errno, Hypercall};

/// The domain that is dealt with.
const SUBJECT: DomId = DomId(1);

/// Runs a test with callers and subjects of each architecture; all is judged by the audit in the end.
#[track_caller]
fn everywhere(test: impl Fn(&mut World)) {
    use Arch::{X86_32, X86_64};
    for (caller, subject) in [(X86_32, X86_32), (X86_64, X86_64), (X86_32, X86_64), (X86_64, X86_32)] {
        let mut world = World::new(&[(caller, PRIVILEGED), (subject, PLAIN)]);
        let vcpu = core::mem::take(&mut world.guests[1].vcpu);
        world.host.hw.park(&world.guests[1].dom, vcpu);
        test(&mut world);
        world.check();
    }
}

impl World {
    /// Domain 0 makes a request: its result, and the request as it is then.
    fn dom0_op_raw(&mut self, op: Dom0Op) -> (u64, Dom0Op) {
        let caller = &mut self.guests[0];
        caller.run();
        let at = caller.va(ARGS);
        self.host.hw.copy_to_guest(at, op.as_bytes()).expect("mapped");
        let result = self.guests[0].call(Hypercall::Dom0Op, [at.0, 0, 0, 0, 0, 0]);
        let mut bytes = [0; size_of::<Dom0Op>()];
        self.host.hw.copy_from_guest(at, &mut bytes).expect("mapped");
        (result, Dom0Op::read_from_bytes(&bytes).expect("as many bytes"))
    }

    /// The same, with an argument, in the later version: the result, and the argument as it is then.
    fn control_op<T: Dom0Argument>(&mut self, argument: T) -> (u64, T) {
        let op = Dom0Op { interface_version: Dom0Version::V1A.raw(), ..Dom0Op::new(argument) };
        let (result, op) = self.dom0_op_raw(op);
        (result, op.argument())
    }

    /// Bytes of the page where the caller has its data.
    fn data(&self, bytes: usize) -> Vec<u8> {
        let mut all = alloc::vec![0; bytes];
        self.guests[0].run();
        self.host.hw.copy_from_guest(self.guests[0].va(DATA), &mut all).expect("mapped");
        all
    }
}

#[test]
fn what_comes_before_the_command() {
    everywhere(|world| {
        let op = |cmd: u32, version: u32| Dom0Op { cmd, interface_version: version, ..Dom0Op::new(sched_id()) };
        for version in [0xaaaa_0019, 0xaaaa_001a] {
            assert_eq!(world.dom0_op_raw(op(Dom0Command::SchedId.raw(), version)).0, OK);
            // Numbers that the header does not have: memory types, performance counters and the like came later, or are
            // gone.
            for number in [0, 1, 3, 4, 5, 26, 31, 32, 33, 34, 99, u32::MAX] {
                assert_eq!(world.dom0_op_raw(op(number, version)).0, error(Errno::ENOSYS), "{number}");
            }
        }
        for version in [0, 0xaaaa_0018, 0xaaaa_001b] {
            assert_eq!(world.dom0_op_raw(op(Dom0Command::SchedId.raw(), version)).0, error(Errno::EACCES));
        }
        let at = world.guests[1].va(ARGS).0;
        let refused = world.guests[1].call(Hypercall::Dom0Op, [at, 0, 0, 0, 0, 0]);
        assert_eq!(refused, error(Errno::EPERM));
    });
}

#[test]
fn requests_are_recorded() {
    use crate::trace::Event;
    everywhere(|world| {
        *world.host.hw.controlled.events.lock() = Some(Vec::new());
        assert_eq!(world.control_op(sched_id()).0, OK);
        let events = world.host.hw.controlled.events.lock().take().expect("recorded");
        let id = world.control_op(sched_id()).1.sched_id;
        let begun = Event::ControlBegun { command: 24, words: [0; 4] };
        assert_eq!(events, [begun, Event::ControlEnded { command: 24, result: 0, words: [id, 0, 0, 0] }]);
    });
}

fn sched_id() -> proxenos_abi::dom0_ops::args::SchedId {
    proxenos_abi::dom0_ops::args::SchedId { sched_id: 0 }
}

/// A subject that is not there, and domain 0 itself.
const NOBODY: DomId = DomId(9);
const ONESELF: DomId = DomId(0);

#[test]
fn privileges_are_what_the_tests_think() {
    assert!(PRIVILEGED.contains(Privileges::CONTROL) && PLAIN.is_empty());
}
