//! The control domain: builds and runs the other domains, and talks to the host's command line.
//!
//! What it decides is in `proxenos-control-core`; here is how it reaches the hypervisor, its guests and the host:
//! hypercalls, a guest's shared page, virtio consoles. One loop does a turn of everything that has happened and then
//! waits for the next event. Upcalls only set flags that the loop looks at.
#![no_std]
#![no_main]

extern crate alloc;

mod build;
mod dma;
mod dom0;
mod heap;
mod inspect;
mod link;
mod log;
mod machine;
mod map;
mod pci;
mod port;
mod trace;

use core::sync::atomic::{AtomicBool, Ordering};
use port::Port;
use proxenos_control_core::{Server, Work};
use proxenos_guest::abi::Virq;
use proxenos_guest::{StartInfo, events, shutdown, time};

proxenos_guest::entry!(main);

/// Something has happened.
static WOKEN: AtomicBool = AtomicBool::new(false);
/// A device has interrupted.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// Something has become of a domain.
static DOMAINS_CHANGED: AtomicBool = AtomicBool::new(false);

/// Has the loop do a turn.
fn wake() {
    WOKEN.store(true, Ordering::Release);
}

fn main(_: &StartInfo) {
    proxenos_guest::init();
    events::handle_virq(Virq::Timer, |_| wake()).expect("the timer is ours");
    let exceptions = events::handle_virq(Virq::DomExc, |_| {
        DOMAINS_CHANGED.store(true, Ordering::Release);
        wake();
    });
    exceptions.expect("domain 0 is told of the others");
    let mut ports = port::all(|_| {
        INTERRUPTED.store(true, Ordering::Release);
        wake();
    });
    log::line(format_args!("control: {} channels to the host", ports.len()));
    let mut server = Server::new(machine::Hypervisor::new(), ports.len(), heap::for_images());
    loop {
        let work = turn(&mut server, &mut ports);
        if server.stops() {
            shutdown::shutdown(shutdown::POWEROFF);
        }
        if work == Work::Done {
            // What is late already is due at once.
            match server.next_deadline() {
                Some(at) => proxenos_guest::hypercall::set_timer_op(at.0.max(1)),
                None => time::cancel_timer(),
            }
            .expect("a timer can be set");
            events::wait_until(|| WOKEN.swap(false, Ordering::Acquire));
        }
    }
}

/// Does a turn of everything.
fn turn(server: &mut Server<machine::Hypervisor>, ports: &mut [Port]) -> Work {
    if INTERRUPTED.swap(false, Ordering::AcqRel) {
        // Before the queues are looked at: what comes later interrupts again.
        ports.iter_mut().for_each(Port::acknowledge);
        pci::interrupts_handled();
    }
    if DOMAINS_CHANGED.swap(false, Ordering::AcqRel) {
        server.domains_changed();
    }
    for id in link::rung() {
        server.rang(id);
    }
    let mut work = Work::Done;
    for (number, port) in ports.iter_mut().enumerate() {
        if server.channel(number).wants_input() && port.receive(|bytes| server.receive(number, bytes)) {
            work = Work::Left;
        }
    }
    if server.turn() == Work::Left {
        work = Work::Left;
    }
    for (number, port) in ports.iter_mut().enumerate() {
        let channel = server.channel(number);
        while let sent @ 1.. = port.send(channel.unsent()) {
            channel.sent(sent);
            // There may be room now for what was held back.
            work = Work::Left;
        }
    }
    work
}
