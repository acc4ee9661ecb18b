//! The machine: processors, schedulers, log, date, registers.

use crate::subject::{Subject, Wish};
use crate::{NOBODY, SUBJECT, ask, cpus, moves};
use core::sync::atomic::Ordering;
use proxenos_guest::abi::dom0_ops::args::{Iopl, Msr, PcidevAccess, PhysInfo, ReadConsole, SchedId, SetTime};
use proxenos_guest::abi::payload::Payload;
use proxenos_guest::abi::sched_ctl::{BvtAdjdom, BvtCtl, SchedAdjdom, SchedCtl, SchedDirection, SchedulerId};
use proxenos_guest::abi::{Errno, GuestWord, Padded};
use proxenos_guest::test::section;
use proxenos_guest::{Arch, Word, check, check_eq, shared_info, time};

/// What RDTSCP gives beside the time; nobody uses it here. And its value in the end.
const TSC_AUX: u32 = 0xc000_0103;
const LAST_AUX: u32 = 3;
const BVT: u32 = SchedulerId::Bvt.raw();
const PUT: u32 = SchedDirection::Put.raw();
const GET: u32 = SchedDirection::Get.raw();

pub fn machine() {
    section("the machine");
    let (result, info) = ask(PhysInfo::<Arch>::default());
    check_eq!(result, Ok(0));
    let (threads, cores, khz) = (info.ht_per_core, info.cores, info.cpu_khz);
    check_eq!(threads * cores, cpus(), "CPUs");
    let hz = shared_info::cpu_frequency();
    check!((u64::from(khz)).abs_diff(hz / 1000) <= hz / 100_000, "{khz} kHz, and guests are told {hz} Hz");
    let (total, free) = (info.total_pages.value.to_u64(), info.free_pages.value.to_u64());
    check!(free > 0 && free < total, "{free} of {total} pages are free");
}

pub fn schedulers() {
    section("schedulers");
    check_eq!(ask(SchedId { sched_id: 99 }), (Ok(0), SchedId { sched_id: BVT }));
    let global = |direction, sched_id, allowance| {
        let mut u = Payload::default();
        u.write(BvtCtl { ctx_allow: allowance });
        let (result, answer) = ask(SchedCtl { sched_id, direction, u });
        let u = answer.u;
        let read: BvtCtl = u.read();
        (result, read.ctx_allow)
    };
    let before = global(GET, BVT, 0).1;
    check_eq!(global(PUT, BVT, 3_000_000).0, Ok(0));
    check_eq!(global(GET, BVT, 0), (Ok(0), 3_000_000));
    check_eq!(global(PUT, 1, 5_000_000).0, Err(Errno::EINVAL), "another scheduler");
    check_eq!(global(PUT, BVT, 1).0, Err(Errno::EINVAL), "no allowance");
    check_eq!(global(GET, BVT, 0), (Ok(0), 3_000_000));
    check_eq!(global(PUT, BVT, before).0, Ok(0));
    let own = |direction, domain, mcu_adv| {
        let mut u = Payload::default();
        u.write(BvtAdjdom { mcu_adv, ..BvtAdjdom::default() });
        let (result, answer) = ask(SchedAdjdom { sched_id: BVT, direction, domain, u, ..SchedAdjdom::default() });
        let u = answer.u;
        let read: BvtAdjdom = u.read();
        (result, read.mcu_adv)
    };
    for domain in [SUBJECT, proxenos_guest::abi::DomId::DOM0] {
        let before = own(GET, domain, 0).1;
        check_eq!(own(PUT, domain, 20).0, Ok(0));
        check_eq!(own(GET, domain, 0), (Ok(0), 20));
        check_eq!(own(PUT, domain, 0).0, Err(Errno::EINVAL));
        check_eq!(own(PUT, domain, before).0, Ok(0));
    }
    check_eq!(own(GET, NOBODY, 0).0, Err(Errno::ESRCH));
}

/// Reads the log into a page of ours.
fn read_log(into: &mut [u8], cmd: u32) -> Result<usize, Errno> {
    let text = Padded::new(into.as_mut_ptr() as Word);
    ask(ReadConsole::<Arch> { text, count: into.len() as u32, cmd }).0
}

pub fn log() {
    section("the log");
    let mut text = [0_u8; 4096];
    let count = read_log(&mut text, 0).expect("it can be read");
    check!(count > 100, "{count} bytes");
    check!(text[..count].windows(5).any(|part| part == b"(px) "), "the hypervisor's own lines are there");
    let mut again = [0_u8; 4096];
    let more = read_log(&mut again, 1).expect("it can be read");
    check!(more >= count && again[..count] == text[..count], "reading changes nothing");
    // What comes meanwhile is what this test prints.
    check_eq!(read_log(&mut again, 0), Ok(0), "it was forgotten");
    let nowhere = ReadConsole::<Arch> { text: Padded::new(64), count: 10, cmd: 1 };
    proxenos_guest::println!("something to read");
    check_eq!(ask(nowhere).0, Err(Errno::EFAULT));
    let count = read_log(&mut again, 0).expect("it can be read");
    check!(again[..count].windows(9).any(|part| part == b"something"));
}

pub fn date() {
    section("the date");
    const DATE: u32 = 1_234_567_890;
    let now = time::system_time();
    let at = |secs, usecs, system_time| SetTime { secs, usecs, system_time };
    check_eq!(ask(at(DATE, 250_000, now)).0, Ok(0));
    let versions = || {
        use proxenos_guest::abi::shared_info::SharedInfo;
        [SharedInfo::TIME_VERSION1, SharedInfo::TIME_VERSION2].map(|at| shared_info::word(at).load(Ordering::Relaxed))
    };
    check_eq!(versions()[0], versions()[1]);
    let shows = || u64::from(time::wall_clock().seconds) * 1_000_000 + u64::from(time::wall_clock().microseconds);
    let start = u64::from(DATE) * 1_000_000 + 250_000;
    let expected = || start + (time::system_time() - now) / 1000;
    check!(shows().abs_diff(expected()) < 100_000, "at once: {} instead of {}", shows(), expected());
    // And when the clock was written anew.
    let until = now + 60_000_000;
    while time::system_time() < until {}
    check!(shows().abs_diff(expected()) < 100_000, "later: {} instead of {}", shows(), expected());
    check_eq!(ask(at(0, 0, u64::MAX)).0, Err(Errno::EINVAL));
    check!(shows().abs_diff(expected()) < 100_000, "as before");
}

/// Other domains have the date as well: one that sleeps when it wakes, one that runs soon.
pub fn date_elsewhere(subject: &Subject) {
    section("the date of others");
    let set = |secs| {
        let (usecs, system_time) = (0, time::system_time());
        check_eq!(ask(SetTime { secs, usecs, system_time }).0, Ok(0));
        secs
    };
    // It sleeps; then it goes round and round.
    let secs = set(1_000_000_000);
    subject.exchange();
    check!(subject.date().wrapping_sub(secs) < 60, "it shows {} instead of {secs}", subject.date());
    subject.keep_busy(true);
    let secs = set(1_500_000_000);
    check!(
        subject.eventually(|| subject.date().wrapping_sub(secs) < 60),
        "it shows {} instead of {secs}",
        subject.date()
    );
    subject.keep_busy(false);
}

/// A CPU's registers are read while a domain there has the whole machine audited, again and again: neither waits for
/// the other.
pub fn registers_meanwhile(subject: &Subject) {
    section("registers of a CPU that audits");
    const ROUNDS: u32 = 8;
    subject.wish(Wish::Audits);
    let cpu = cpus() - 1;
    let before = subject.rounds();
    for _ in 0..ROUNDS {
        let (result, answer) = ask(Msr { cpu_mask: 1 << cpu, msr: TSC_AUX, ..Msr::default() });
        check_eq!((result, answer.out1), (Ok(0), LAST_AUX));
        if cpus() == 1 {
            check_eq!(proxenos_guest::hypercall::sched_yield(), Ok(()));
        }
    }
    check!(subject.eventually(|| subject.rounds() != before), "it audits");
    subject.keep_busy(false);
}

/// The subject gets ports: first those of a device, then all, then those of the device again.
pub fn ports(subject: &Subject) {
    section("ports");
    let device = |dev, func| ask(PcidevAccess { domain: SUBJECT, pad: 0, bus: 0, dev, func, enable: 1 }).0;
    let level = |domain, iopl| ask(Iopl { domain, pad: 0, iopl }).0;
    subject.try_ports(Wish::NoPorts);
    check_eq!(device(1, 1), Ok(0), "the disk controller");
    check_eq!(device(2, 0), Ok(0), "the device for teachers");
    subject.try_ports(Wish::PortsOfDevice);
    subject.keep_busy(true);
    check_eq!(level(SUBJECT, 1), Ok(0), "while it runs");
    subject.keep_busy(false);
    subject.try_ports(Wish::AllPorts);
    check_eq!(level(SUBJECT, 0), Ok(0));
    subject.try_ports(Wish::PortsOfDevice);
    check_eq!(level(NOBODY, 1), Err(Errno::ESRCH));
    // Wherever it runs.
    for cpu in 0..cpus() {
        check_eq!(moves::pin(SUBJECT, cpu as i32), Ok(0));
        subject.try_ports(Wish::PortsOfDevice);
    }
}

/// The subject gets the host bridge, which does no harm; it looks at it when it ends.
pub fn devices() {
    section("devices");
    let give = |domain, bus, dev, func, enable| ask(PcidevAccess { domain, pad: 0, bus, dev, func, enable }).0;
    for (bus, dev, func) in [(256, 0, 0), (0, 32, 0), (0, 0, 8)] {
        check_eq!(give(NOBODY, bus, dev, func, 1), Err(Errno::EINVAL));
    }
    check_eq!(give(SUBJECT, 0, 0, 0, 0), Err(Errno::EINVAL), "nothing is taken away");
    check_eq!(give(NOBODY, 0, 0, 0, 1), Err(Errno::ESRCH));
    check_eq!(give(SUBJECT, 0, 31, 7, 1), Err(Errno::ENODEV));
    check_eq!(give(SUBJECT, 0, 0, 0, 1), Ok(0));
    check_eq!(give(SUBJECT, 0, 0, 0, 1), Ok(0), "again");
    check_eq!(give(proxenos_guest::abi::DomId::DOM0, 0, 0, 0, 1), Ok(0), "which has them all");
}

pub fn registers() {
    section("registers of CPUs");
    const EFER: u32 = 0xc000_0080;
    /// Its upper half has to be zero, where there is one.
    const PKRS: u32 = 0x6e1;
    let msr = |write, cpu_mask, msr, value: u64| {
        let (in1, in2) = (value as u32, (value >> 32) as u32);
        let (result, answer) = ask(Msr { write, cpu_mask, msr, in1, in2, out1: 0, out2: 0 });
        result.map(|_| u64::from(answer.out2) << 32 | u64::from(answer.out1))
    };
    for cpu in 0..cpus() {
        check_eq!(msr(1, 1 << cpu, TSC_AUX, u64::from(cpu) + 7), Ok(0));
    }
    for cpu in 0..cpus() {
        check_eq!(msr(0, 1 << cpu, TSC_AUX, 0), Ok(u64::from(cpu) + 7), "CPU {cpu} has its own");
    }
    check_eq!(msr(1, u32::MAX, TSC_AUX, LAST_AUX.into()), Ok(0));
    check!((0..cpus()).all(|cpu| msr(0, 1 << cpu, TSC_AUX, 0) == Ok(LAST_AUX.into())));
    check!(msr(0, 1, EFER, 0).is_ok_and(|efer| efer & 1 << 10 != 0), "long mode is active");
    check_eq!(msr(1, 1, EFER, 0), Err(Errno::EPERM));
    for records in [0x3f1, 0x570, 0x600] {
        check_eq!(msr(1, 1, records, 0), Err(Errno::EPERM), "{records:#x}: where a CPU writes to memory by itself");
    }
    check_eq!(msr(0, 1 << 31, TSC_AUX, 0), Err(Errno::EINVAL), "no such CPU");
    check_eq!(msr(0, 0, TSC_AUX, 0), Err(Errno::EINVAL));
    for cpu in 0..cpus() {
        check_eq!(msr(1, 1 << cpu, PKRS, u64::MAX), Err(Errno::EINVAL), "CPU {cpu} refuses");
    }
}
