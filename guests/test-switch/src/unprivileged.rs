//! What a domain without privileges is refused, call by call: nothing of the machine's, and nothing of another
//! domain's.

use crate::ends;
use proxenos_guest::abi::dom0_ops::args::{GetDomainInfo, Iopl, SchedId};
use proxenos_guest::abi::dom0_ops::{Dom0Argument, Dom0Op};
use proxenos_guest::abi::event_channel::{
    Channel, EvtchnAllocUnbound, EvtchnBindInterdomain, EvtchnBindPirq, EvtchnClose, EvtchnStatus,
};
use proxenos_guest::abi::hypercall::DomMemOp;
use proxenos_guest::abi::mmu::{MmuExtCommand, UpdateVaFlags};
use proxenos_guest::abi::physdev::{PciCfgregRead, PhysdevOp};
use proxenos_guest::abi::{DomId, Errno, Mfn, Pirq, Port, Virq};
use proxenos_guest::hypercall::event_channel_op;
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::{Arch, attempt, check, check_eq, events, hypercall, memory};

/// Domains that there are, one that there is not, and numbers with a meaning.
const OTHERS: [DomId; 5] = [DomId::DOM0, DomId(1), DomId(77), DomId::IO, DomId::XEN];

pub fn run() {
    proxenos_guest::init();
    channels();
    control();
    memory_of_others();
    ends::take_leave();
}

fn channels() {
    section("event channels");
    let bind = |dom1, dom2, port2| {
        event_channel_op(EvtchnBindInterdomain { dom1, dom2, port1: Port(0), port2: Port(port2) }).map(drop)
    };
    for other in OTHERS {
        check_eq!(bind(other, DomId::SELF, 0), Err(Errno::EPERM), "in {other:?}'s name");
        let refused = if matches!(other, DomId(0 | 1)) { Errno::EPERM } else { Errno::ESRCH };
        check_eq!(bind(DomId::SELF, other, 0), Err(refused), "to any port of {other:?}'s");
        let status = EvtchnStatus { dom: other, port: Port(1), ..EvtchnStatus::default() };
        check_eq!(event_channel_op(status).map(drop), Err(Errno::EPERM), "{other:?}'s ports");
        let close = EvtchnClose { dom: other, pad: 0, port: Port(1) };
        check_eq!(event_channel_op(close).map(drop), Err(Errno::EPERM), "{other:?}'s ports");
    }
    for pirq in [0, 4, 9, 127, 128] {
        let pirq = EvtchnBindPirq { pirq: Pirq(pirq), flags: 1, port: Port(0) };
        let refused = event_channel_op(pirq).map(drop);
        check!(matches!(refused, Err(Errno::EPERM | Errno::EINVAL)), "{refused:?}");
    }
    // What is its own it may.
    let (one, two) = events::bind_loopback().expect("it may connect to itself");
    check_eq!(events::close(one), Ok(()));
    check_eq!(events::close(two), Ok(()));
    let offer = event_channel_op(EvtchnAllocUnbound { dom: DomId::DOM0, pad: 0, port: Port(0) }).expect("it may offer");
    check_eq!(events::status(offer.port), Ok(Channel::Unbound(DomId::DOM0)));
    check_eq!(events::close(offer.port), Ok(()));
    for virq in [Virq::Timer, Virq::Debug, Virq::Console, Virq::DomExc, Virq::ParityErr, Virq::IoErr] {
        let port = events::bind_virq(virq).expect("anybody may wait for one");
        check_eq!(events::close(port), Ok(()));
    }
}

fn ask(argument: impl Dom0Argument) -> Result<usize, Errno> {
    // SAFETY: it is refused.
    unsafe { hypercall::dom0_op(&mut Dom0Op::new(argument)) }
}

fn control() {
    section("control of the machine");
    check_eq!(ask(SchedId { sched_id: 0 }), Err(Errno::EPERM));
    check_eq!(ask(GetDomainInfo::<Arch>::default()), Err(Errno::EPERM));
    for iopl in [0, 1, 3] {
        check_eq!(ask(Iopl { domain: DomId::SELF, pad: 0, iopl }), Err(Errno::EPERM), "level {iopl}");
    }
    // SAFETY: they trap.
    check!(!unsafe { attempt!("in al, 0x80", out("al") _) } && !unsafe { attempt!("cli") }, "ports and interrupts");
    let mut op = PhysdevOp::new(PciCfgregRead { bus: 0, dev: 0, func: 0, reg: 0, len: 4, value: 0x77 });
    // SAFETY: it is refused.
    check_eq!(unsafe { hypercall::physdev_op(&mut op) }.map(drop), Err(Errno::EPERM), "PCI");
    check_eq!(hypercall::console_read(&mut [0; 4]), Err(Errno::EPERM), "the console");
}

fn memory_of_others() {
    section("memory");
    let page = memory::alloc_frame().expect("a frame");
    for other in OTHERS.into_iter().chain([DomId::SELF]) {
        // SAFETY: it is refused.
        let result = unsafe {
            let entry = Pte::new(page.mfn(), PteFlags::KERNEL_RO);
            hypercall::update_va_mapping_otherdomain(page.virt(), entry, UpdateVaFlags::INVLPG, other)
        };
        check_eq!(result, Err(Errno::EPERM), "as {other:?}'s");
    }
    let flush_caches = memory::extended(MmuExtCommand::FlushCache, 0, 0);
    // SAFETY: it is refused.
    check_eq!(unsafe { memory::update(flush_caches) }, Err(Errno::EINVAL), "the caches");
    for frame in [0, 0xb8, 0xf0, 0x100, 0xfed00, 0xfee00, 0xfffff].map(Mfn) {
        // SAFETY: a page of the test's own.
        let mapped = unsafe {
            memory::update_va_mapping(page.virt(), Pte::new(frame, PteFlags::KERNEL_RO), UpdateVaFlags::INVLPG)
        };
        check_eq!(mapped, Err(Errno::EINVAL), "{frame:?}");
    }
    for (order, domain) in [(1, DomId::SELF), (0, DomId::DOM0), (0, DomId(77))] {
        // SAFETY: it is refused.
        let given = unsafe { hypercall::dom_mem_op(DomMemOp::IncreaseReservation, &mut [0], order, domain) };
        check!(!matches!(given, Ok(1)), "2^{order} frames for {domain:?}: {given:?}");
    }
}
