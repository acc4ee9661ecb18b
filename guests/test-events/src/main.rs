//! Event channels (`event_channel.h`, and the comments on `shared_info_t` in `xen.h`).
#![no_std]
#![no_main]

mod delivery;

use core::sync::atomic::Ordering;
use proxenos_guest::abi::event_channel::{
    Channel, EvtchnAllocUnbound, EvtchnBindInterdomain, EvtchnClose, EvtchnStatus,
};
use proxenos_guest::abi::{DomId, Errno, Port, Virq};
use proxenos_guest::arch::hypercall1;
use proxenos_guest::hypercall::{check as result_of, event_channel_op};
use proxenos_guest::test::section;
use proxenos_guest::{StartInfo, check, check_eq, events, shared_info, time};

proxenos_guest::test_guest!(main);

fn main(_: &StartInfo) {
    proxenos_guest::init();
    misdirected();
    virqs();
    interdomain();
    unbound();
    closing();
    wrong();
    delivery::run();
    exhaustion();
}

/// A virtual interrupt that is bound to no port comes to port 0, and to no other. The timer's ticks are such while
/// nobody wants them.
fn misdirected() {
    section("virtual interrupts that are not bound");
    events::mask_upcalls();
    let after_a_while = || {
        (0..32).for_each(|word| shared_info::pending_word(word).store(0, Ordering::SeqCst));
        let until = time::system_time() + 40_000_000;
        while time::system_time() < until {
            core::hint::spin_loop();
        }
        (0..1024)
            .map(Port)
            .filter(|&port| shared_info::is_pending(port))
            .fold((0, None), |(n, _), port| (n + 1, Some(port)))
    };
    check_eq!(after_a_while(), (1, Some(Port(0))), "the timer's, unbound");
    let port = events::bind_virq(Virq::Timer).expect("a free virtual interrupt");
    check_eq!(after_a_while(), (1, Some(port)), "bound");
    check_eq!(events::close(port), Ok(()));
    check_eq!(after_a_while(), (1, Some(Port(0))), "unbound again");
    events::clear(Port(0));
    shared_info::pending_selector().store(0, Ordering::SeqCst);
    shared_info::upcall_pending().store(0, Ordering::SeqCst);
    events::unmask_upcalls();
}

fn virqs() {
    section("virtual interrupts");
    let port = events::bind_virq(Virq::Debug).expect("a free virtual interrupt");
    check_eq!(events::status(port), Ok(Channel::Virq(Virq::Debug)));
    check_eq!(events::bind_virq(Virq::Debug), Ok(port), "bound already: the port it has");
    check_eq!(events::bind_virq(Virq::Misdirect), Ok(Port(0)), "port 0 has it for good");
    check_eq!(events::close(port), Ok(()));
    check_eq!(events::status(port), Ok(Channel::Closed));
    check_eq!(events::bind_virq(Virq::Debug), Ok(port), "free again, and so is its port");
    check_eq!(events::close(port), Ok(()));
    for virq in [7u32, 8, 31, 32, 0x8000_0000, u32::MAX] {
        let request = proxenos_guest::abi::event_channel::EvtchnBindVirq { virq, port: Port(0) };
        check_eq!(event_channel_op(request).map(|bound| bound.port), Err(Errno::EINVAL), "virtual interrupt {virq:#x}");
    }
}

fn interdomain() {
    section("channels to ourselves");
    let (one, two) = events::bind_loopback().expect("domain 0 may connect to itself");
    check!(one != two, "{one} and {two}");
    check_eq!(events::status(one), Ok(Channel::Interdomain(DomId::DOM0, two)));
    check_eq!(events::status(two), Ok(Channel::Interdomain(DomId::DOM0, one)));
    let again = EvtchnBindInterdomain { dom1: DomId::SELF, dom2: DomId::SELF, port1: one, port2: Port(0) };
    let bound = event_channel_op(again).map(|bound| (bound.port1, bound.port2));
    check_eq!(bound, Ok((one, two)), "a pair that is bound already is found again");
    let by_number = EvtchnBindInterdomain { dom1: DomId::DOM0, dom2: DomId::DOM0, port1: one, port2: two };
    check_eq!(event_channel_op(by_number).map(|bound| (bound.port1, bound.port2)), Ok((one, two)));
    let (three, four) = events::bind_loopback().expect("a second pair");
    let crossed = EvtchnBindInterdomain { dom1: DomId::SELF, dom2: DomId::SELF, port1: one, port2: three };
    check_eq!(event_channel_op(crossed).map(drop), Err(Errno::EINVAL), "ports that are bound to others");
    for port in [one, three] {
        check_eq!(events::close(port), Ok(()));
    }
    check_eq!(events::status(two), Ok(Channel::Unbound(DomId::DOM0)), "the far end waits for a new connection");
    check_eq!(events::close(two), Ok(()));
    check_eq!(events::close(four), Ok(()));
    check_eq!(events::status(four), Ok(Channel::Closed));
}

fn unbound() {
    section("unbound ports");
    let request = EvtchnAllocUnbound { dom: DomId::SELF, pad: 0, port: Port(0) };
    let port = event_channel_op(request).map(|made| made.port).expect("a port for ourselves");
    check_eq!(events::status(port), Ok(Channel::Unbound(DomId::DOM0)));
    check_eq!(events::send(port), Err(Errno::EINVAL), "nobody listens yet");
    let bind = EvtchnBindInterdomain { dom1: DomId::SELF, dom2: DomId::SELF, port1: Port(0), port2: port };
    let bound = event_channel_op(bind).expect("the port waits for us");
    check_eq!(bound.port2, port);
    let other = bound.port1;
    check_eq!(events::status(port), Ok(Channel::Interdomain(DomId::DOM0, other)));
    check_eq!(events::close(other), Ok(()));
    check_eq!(events::close(port), Ok(()));
}

fn closing() {
    section("closing");
    let (one, two) = events::bind_loopback().expect("a pair");
    check_eq!(events::close(one), Ok(()));
    check_eq!(events::close(one), Err(Errno::EINVAL), "closed already");
    check_eq!(events::close(two), Ok(()));
    check_eq!(events::close(Port(0)), Err(Errno::EINVAL), "port 0 stays");
    check_eq!(events::status(Port(0)), Ok(Channel::Virq(Virq::Misdirect)));
}

fn wrong() {
    section("what does not exist");
    for port in [1000, 1024, 1025, 0x7fff_ffff, 0x8000_0000, u32::MAX].map(Port) {
        check_eq!(events::send(port), Err(Errno::EINVAL), "send on port {port}");
        check_eq!(events::close(port), Err(Errno::EINVAL), "close of port {port}");
        if port.raw() >= 1024 {
            check_eq!(events::status(port), Err(Errno::EINVAL), "status of port {port}");
        }
    }
    check_eq!(events::send(Port(0)), Err(Errno::EINVAL), "send on a virtual interrupt's port");
    for dom in [DomId(77), DomId(0x7fef), DomId::IO, DomId::XEN] {
        let status = EvtchnStatus { dom, port: Port(1), ..EvtchnStatus::default() };
        check_eq!(event_channel_op(status).map(drop), Err(Errno::ESRCH), "status in {dom:?}");
        let close = EvtchnClose { dom, pad: 0, port: Port(1) };
        check_eq!(event_channel_op(close).map(drop), Err(Errno::ESRCH), "close in {dom:?}");
        let bind = EvtchnBindInterdomain { dom1: DomId::SELF, dom2: dom, port1: Port(0), port2: Port(0) };
        check_eq!(event_channel_op(bind).map(drop), Err(Errno::ESRCH), "bind to {dom:?}");
    }
    for command in [7u32, 8, 255, u32::MAX] {
        let mut op = [0u32; 8];
        op[0] = command;
        // SAFETY: the command does not exist; the operation is as large as any.
        let result = unsafe { hypercall1(16, op.as_mut_ptr() as usize) };
        check_eq!(result_of(result), Err(Errno::ENOSYS), "command {command}");
    }
}

/// All 1024 ports can be had; then there is no space left, and nothing is lost.
fn exhaustion() {
    section("as many ports as there are");
    let request = EvtchnAllocUnbound { dom: DomId::SELF, pad: 0, port: Port(0) };
    let used = (0..1024).filter(|&port| events::status(Port(port)) != Ok(Channel::Closed)).count();
    let mut got = 0;
    let error = loop {
        match event_channel_op(request) {
            Ok(_) => got += 1,
            Err(errno) => break errno,
        }
    };
    check_eq!(error, Errno::ENOSPC);
    check_eq!(used + got, 1024);
    check_eq!(events::close(Port(1023)), Ok(()));
    check_eq!(event_channel_op(request).map(|made| made.port), Ok(Port(1023)), "the freed port is found");
}
