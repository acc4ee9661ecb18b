//! The hypervisor's command line.

#[path = "../../src/options.rs"]
mod options;

#[path = "../../src/domain_options.rs"]
mod domain_options;

use domain_options::{DomainOptions, Reservation, Weight};
use options::{
    Audit, Bytes, Com1, Complaint, CpuCheck, GuestConsole, InterruptStack, IoPort, Kept, LogLevel, Micros, OnFatal,
    Options, P2m, Provocation, Scheduler, Skew, TracePages, split_guest_part,
};
use proptest::prelude::*;
use std::num::NonZeroU16;

/// The options of a line that must be wholly understood.
fn understood(line: &str) -> Options {
    Options::parse(line, &mut |complaint| panic!("{line:?}: {complaint}"))
}

fn complaints(line: &str) -> Vec<Complaint<'_>> {
    let mut all = Vec::new();
    let options = Options::parse(line, &mut |complaint| all.push(complaint));
    assert_eq!(options, Options::DEFAULT, "{line:?}: what is not understood changes nothing");
    all
}

#[test]
fn an_empty_line_leaves_the_defaults() {
    assert_eq!(understood(""), Options::DEFAULT);
    assert_eq!(understood("  \t "), Options::DEFAULT);
}

#[test]
fn every_option_is_understood() {
    let expected = Options {
        dom0_mem: Some(Bytes(64 << 20)),
        dom0_shadow: Some(Bytes(384 << 10)),
        com1: Com1::Baud(9600),
        log_level: LogLevel::Debug,
        on_fatal: OnFatal::Halt,
        p2m: P2m::Scrambled,
        debug_exit: Some(IoPort(0xf4)),
        audit: Audit::AtEnd,
        scheduler: Scheduler::RoundRobin(Some(Micros(2000))),
        guest_console: GuestConsole::All,
        max_cpus: NonZeroU16::new(3),
        trace: NonZeroU16::new(10).map(TracePages),
        cpu_check: CpuCheck::Run,
        provoke: Some(Provocation::Panic),
        tsc_skew: Some(Skew { ppm: 200, kept: Kept::Always }),
    };
    let line = "dom0_mem=64M dom0_shadow=384K com1=9600,8n1 loglvl=debug noreboot p2m=scrambled debug-exit=0xf4 audit \
                sched=rrobin,2000 guest-console maxcpus=3 tbuf_size=10 check-cpus provoke=panic tsc-skew=200,kept";
    assert_eq!(understood(line), expected);
    assert_eq!(understood("nosmp").max_cpus, NonZeroU16::new(1));
    assert_eq!(understood("tbuf_size=256").trace, NonZeroU16::new(256).map(TracePages));
    assert_eq!(understood("tbuf_size=5 tbuf_size=0").trace, None);
    for bad in ["tbuf_size", "tbuf_size=", "tbuf_size=257", "tbuf_size=-1", "tbuf_size=4K"] {
        assert_eq!(complaints(bad), [Complaint::BadValue(bad)]);
    }
    assert_eq!(understood("audit=calls").audit, Audit::OnCall);
    assert_eq!(understood("tsc-skew=1").tsc_skew, Some(Skew { ppm: 1, kept: Kept::AtFirst }));
    assert_eq!(understood("com1=off").com1, Com1::Off);
    assert_eq!(understood("loglvl=all").log_level, LogLevel::Trace);
    assert_eq!(understood("debug-exit=244").debug_exit, Some(IoPort(244)));
}

#[test]
fn schedulers_have_names() {
    assert_eq!(understood("sched=bvt").scheduler, Scheduler::Bvt(None));
    assert_eq!(understood("sched=bvt,500").scheduler, Scheduler::Bvt(Some(Micros(500))));
    assert_eq!(understood("sched=atropos").scheduler, Scheduler::Atropos);
    for bad in ["sched=", "sched", "sched=rr", "sched=bvt,", "sched=bvt,0", "sched=bvt,1000000", "sched=atropos,5"] {
        assert_eq!(complaints(bad), [Complaint::BadValue(bad)]);
    }
}

#[test]
fn a_module_is_a_domain_if_it_says_so() {
    let parse = |line| DomainOptions::parse(line, &mut |complaint| panic!("{complaint}"));
    for none in ["", "guest.elf", "domain", "guest.elf quiet domain", "guest.elf -- domain", "guest.elf domain0"] {
        assert_eq!(parse(none), None, "{none:?}");
    }
    let plain = parse("guest.elf domain").expect("a domain");
    assert_eq!((plain.memory, plain.shadow, plain.cpu), (Bytes(16 << 20), None, None));
    assert_eq!((plain.weight, plain.reserve, plain.command_line), (None, None, ""));
    let whole = "/a/b domain mem=8M shadow=600K cpu=1 weight=300 reserve=500/20000 -- x -- y=1  z ";
    let whole = parse(whole).expect("a domain");
    assert_eq!((whole.memory, whole.shadow, whole.cpu), (Bytes(8 << 20), Some(Bytes(600 << 10)), Some(1)));
    let reserve = Reservation { slice: Micros(500), period: Micros(20_000) };
    assert_eq!((whole.weight, whole.reserve), (Some(Weight(300)), Some(reserve)));
    assert_eq!(whole.command_line, "x -- y=1  z");
}

#[test]
fn what_is_not_understood_of_a_domain_is_complained_about() {
    let bad =
        ["mem=", "mem=x", "cpu=65536", "cpu=-1", "weight=0", "weight=1001", "reserve=5", "reserve=6/5", "reserve=0/5"];
    for word in bad {
        let (line, mut all) = (format!("g domain {word} nonsense"), Vec::new());
        let options = DomainOptions::parse(&line, &mut |complaint| all.push(complaint));
        assert_eq!(options, DomainOptions::parse("g domain", &mut |_| ()));
        assert_eq!(all, [Complaint::BadValue(word), Complaint::Unknown("nonsense")]);
    }
}

#[test]
fn every_fault_can_be_provoked() {
    for (text, fault) in [
        ("panic", Provocation::Panic),
        ("page-fault", Provocation::PageFault),
        ("invalid-opcode", Provocation::InvalidOpcode),
        ("stack-overflow", Provocation::StackOverflow),
        ("write-text", Provocation::WriteText),
        ("execute-data", Provocation::ExecuteData),
        ("double-fault", Provocation::DoubleFault),
        ("cpu-panic", Provocation::CpuPanic),
        ("lost-cpu", Provocation::LostCpu),
        ("tsc-apart", Provocation::TscApart),
        ("features-apart", Provocation::FeaturesApart),
        ("machine-check", Provocation::MachineCheck),
        ("overflow-nmi", Provocation::InterruptStackOverflow(InterruptStack::Nmi)),
        ("overflow-debug", Provocation::InterruptStackOverflow(InterruptStack::Debug)),
        ("overflow-machine-check", Provocation::InterruptStackOverflow(InterruptStack::MachineCheck)),
        ("lost-reference", Provocation::LostReference),
    ] {
        assert_eq!(understood(&format!("provoke={text}")).provoke, Some(fault), "{text}");
    }
}

#[test]
fn sizes_have_suffixes_and_are_kib_without() {
    for (text, bytes) in [("512", 512 << 10), ("512k", 512 << 10), ("3M", 3 << 20), ("2G", 2 << 30)] {
        assert_eq!(understood(&format!("dom0_mem={text}")).dom0_mem, Some(Bytes(bytes)), "{text}");
    }
}

#[test]
fn the_last_of_two_counts() {
    assert_eq!(understood("com1=off com1=38400").com1, Com1::Baud(38400));
}

#[test]
fn unknown_words_are_complained_about() {
    assert_eq!(complaints("nonsense=1"), [Complaint::Unknown("nonsense=1")]);
    assert_eq!(complaints("noreboots"), [Complaint::Unknown("noreboots")]);
}

#[test]
fn values_without_sense_are_complained_about() {
    let words = [
        "dom0_mem=",
        "dom0_mem=0",
        "dom0_mem=K",
        "dom0_mem=-1",
        "dom0_mem=+1",
        "dom0_mem=1KM",
        "dom0_mem",
        "dom0_mem=99999999999G",
        "dom0_mem=1é",
        "com1=7",
        "com1=",
        "com1=0",
        "com1=230400",
        "loglvl=",
        "loglvl=loud",
        "noreboot=1",
        "p2m=sorted",
        "p2m",
        "debug-exit=0",
        "debug-exit=0x",
        "debug-exit=0x+4",
        "debug-exit=70000",
        "maxcpus",
        "maxcpus=0",
        "maxcpus=-1",
        "maxcpus=70000",
        "nosmp=1",
        "check-cpus=yes",
        "provoke",
        "provoke=",
        "provoke=PANIC",
        "provoke=triple-fault",
    ];
    for word in words {
        assert_eq!(complaints(word), [Complaint::BadValue(word)]);
    }
}

#[test]
fn the_guest_part_begins_behind_a_word_of_two_dashes() {
    assert_eq!(split_guest_part("a -- b c"), ("a ", Some("b c")));
    assert_eq!(split_guest_part("-- x -- y"), ("", Some("x -- y")));
    assert_eq!(split_guest_part("a --"), ("a ", Some("")));
    assert_eq!(split_guest_part("a --b c-- d"), ("a --b c-- d", None));
    assert_eq!(understood("noreboot -- com1=off").com1, Options::DEFAULT.com1);
}

proptest! {
    #[test]
    fn no_line_panics(line in ".*") {
        Options::parse(&line, &mut |_| {});
    }

    #[test]
    fn no_value_panics(name in "dom0_mem|com1|loglvl|p2m|debug-exit|maxcpus|provoke", value in "\\PC{0,24}") {
        Options::parse(&format!("{name}={value}"), &mut |_| {});
    }
}
