//! Devices that domain 0 gives to others, one each: their configuration, memory and interrupts are theirs, and nothing
//! else is.

use crate::edu::{Edu, VERSION};
use crate::{config, lines};
use core::sync::atomic::{AtomicU32, Ordering};
use proxenos_guest::abi::dom0_ops::Dom0Op;
use proxenos_guest::abi::dom0_ops::args::PcidevAccess;
use proxenos_guest::abi::mmu::UpdateVaFlags;
use proxenos_guest::abi::{DomId, Errno, Mfn, Virq};
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::{boot, check_eq, events, hypercall, memory};

static ENDED: AtomicU32 = AtomicU32::new(0);

/// Domain 0.
pub fn give(devices: &[Edu; 2]) {
    section("devices for others");
    events::handle_virq(Virq::DomExc, |_| ENDED.store(ENDED.load(Ordering::Relaxed) + 1, Ordering::Relaxed))
        .expect("domain 0 may");
    for (number, device) in (1..).zip(devices) {
        let (bus, dev, func) = device.place;
        let access = PcidevAccess { domain: DomId(number), pad: 0, bus, dev, func, enable: 1 };
        // SAFETY: the device is for whoever has it.
        check_eq!(unsafe { hypercall::dom0_op(&mut Dom0Op::new(access)) }, Ok(0), "{:?}", device.place);
    }
    // A domain that has got its device says so by its end.
    events::wait_until(|| ENDED.load(Ordering::Relaxed) == 2);
}

/// Another domain: waits for its device, and does with it what domain 0 does with all of them.
pub fn run() {
    section("a device of another's");
    check_eq!(lines::bind_alone(4), Err(Errno::EPERM), "the console's line");
    let edu = loop {
        match config::given() {
            Some(edu) => break edu,
            None => check_eq!(hypercall::sched_yield(), Ok(())),
        };
    };
    check_eq!(edu.version(), VERSION, "{:?} answers at its base address", edu.place);
    section("what is not given with it");
    for line in (0..24).filter(|&line| line != edu.line) {
        check_eq!(lines::bind_alone(line), Err(Errno::EPERM), "line {line}");
    }
    let page = memory::alloc_frame().expect("padding");
    let own = config::read(edu.place, config::BASE_ADDRESS, 4).1 >> 12;
    // Behind its megabyte, before it, and well-known places.
    for frame in [own + 256, own - 1, 0xb8, 0xf0, 0xfec00, 0xfee00, 0xfffff] {
        // SAFETY: a fresh frame.
        let mapped = unsafe {
            let entry = Pte::new(Mfn(frame.into()), PteFlags::KERNEL_RW | PteFlags::UNCACHED);
            memory::update_va_mapping(page.virt(), entry, UpdateVaFlags::INVLPG)
        };
        check_eq!(mapped, Err(Errno::EINVAL), "frame {frame:#x}");
    }
    match boot::option("shared") {
        Some(_) => lines::shared(&edu),
        None => lines::of_one(&edu),
    }
}
