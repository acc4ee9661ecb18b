//! The hypervisor's command line: words separated by white space, `name` or `name=value`.
//!
//! | option             | meaning                                                                            |
//! |--------------------|------------------------------------------------------------------------------------|
//! | `dom0_mem=SIZE`    | memory of domain 0: a number with suffix K, M or G (without one: K)                |
//! | `dom0_shadow=SIZE` | the most memory that domain 0's shadow page tables may take; default: by its memory      |
//! | `com1=BAUD[,..]`   | speed of the serial console; what follows a comma is ignored; default 115200       |
//! | `com1=off`         | no serial console                                                                  |
//! | `loglvl=LEVEL`     | `error`, `warn`, `info` (default), `debug`, `trace`, or `all`                      |
//! | `noreboot`         | after a fatal error, halt instead of rebooting                                     |
//! | `p2m=scrambled`    | give domain 0 its frames in no order, to find guests that rely on one              |
//! | `debug-exit=PORT`  | there is an isa-debug-exit device at this I/O port: leave QEMU through it          |
//! | `audit`            | when a domain ends, check the memory of the whole machine; a fault is fatal        |
//! | `audit=calls`      | and whenever a guest makes the debugging call 31                                   |
//! | `sched=NAME[,N]`   | scheduler: `bvt` (default; N: context switch allowance), `rrobin` (N: slice) or `atropos`; N in µs |
//! | `guest-console`    | for tests: all domains may write to the console; their lines begin with `(dN) `      |
//! | `maxcpus=N`        | use this many CPUs at most; `nosmp` is `maxcpus=1`                                 |
//! | `tbuf_size=PAGES`  | keep trace buffers of so many pages (256 at most) for each CPU, 2.0's tools find them; default 0: none |
//! | `check-cpus`       | before any guest runs, have all CPUs flush for one another                         |
//! | `provoke=FAULT`    | for tests of the fault reports only: once booted, fault like this ([`Provocation`])  |
//! | `tsc-skew=PPM`     | for tests of the clock only: take the TSC to be so many parts in a million faster than measured, until it is measured again |
//! | `tsc-skew=PPM,kept` | and do not measure it again                                                       |
//!
//! What follows the word `--` is not ours but domain 0's ([`split_guest_part`]).
//!
//! This module uses nothing but `core`, so that host tests can include it.

use core::fmt;
use core::num::NonZeroU16;

/// A size in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Bytes(pub u64);

/// What the serial console does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Com1 {
    /// Not used.
    Off,
    /// Used, with so many bits a second.
    Baud(u32),
}

/// The least important messages that are printed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum LogLevel {
    /// What stops something.
    Error,
    /// What is wrong but can be lived with.
    Warn,
    /// What a user wants to see.
    Info,
    /// What somebody who looks for a fault wants to see.
    Debug,
    /// Everything.
    Trace,
}

/// What happens after a fatal error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnFatal {
    /// The machine starts again.
    Reboot,
    /// It stops, so that the message can be read.
    Halt,
}

/// The order of domain 0's frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum P2m {
    /// As they come, mostly ascending.
    Natural,
    /// In none.
    Scrambled,
}

/// When the memory of the whole machine is audited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Audit {
    /// Never.
    Off,
    /// When a domain ends.
    AtEnd,
    /// Then, and when a guest asks for it.
    OnCall,
}

/// Whether all CPUs are checked at boot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CpuCheck {
    /// They are not.
    Skip,
    /// They are.
    Run,
}

/// A number of microseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Micros(pub u32);

/// The scheduler, and its own parameter where it has one and that is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scheduler {
    /// Borrowed virtual time; its context switch allowance.
    Bvt(Option<Micros>),
    /// Round robin; its slice.
    RoundRobin(Option<Micros>),
    /// Atropos.
    Atropos,
}

/// Who may write to the machine's console.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestConsole {
    /// Domain 0 only.
    Domain0,
    /// All domains.
    All,
}

/// An interrupt with a stack of its own, but for the double fault's: that one's end no fault could report.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InterruptStack {
    /// NMI.
    Nmi,
    /// Debug exceptions.
    Debug,
    /// Machine checks.
    MachineCheck,
}

/// A fault that the hypervisor makes on purpose once it has booted, for tests of the reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Provocation {
    /// `panic`: a panic.
    Panic,
    /// `page-fault`: a read where nothing is mapped.
    PageFault,
    /// `invalid-opcode`: an instruction that does not exist.
    InvalidOpcode,
    /// `stack-overflow`: recursion into the guard page below the stack.
    StackOverflow,
    /// `write-text`: a write to the hypervisor's code.
    WriteText,
    /// `execute-data`: a jump to one of its variables.
    ExecuteData,
    /// `double-fault`: a fault without a stack for it.
    DoubleFault,
    /// `cpu-panic`: a panic on the last CPU, while the others are anywhere.
    CpuPanic,
    /// `lost-cpu`: the other CPUs are not told to start. They have to be left out.
    LostCpu,
    /// `tsc-apart`: the other CPUs' time stamp counters are an hour ahead. They have to be set, or left out.
    TscApart,
    /// `lost-reference`: a reference to a frame of domain 0's that nobody has. The audit has to find it.
    LostReference,
    /// `features-apart`: the other CPUs find another model than the boot CPU's. They have to be left out.
    FeaturesApart,
    /// `machine-check`: a machine check where the stack of the moment cannot be used.
    MachineCheck,
    /// `overflow-nmi`, `overflow-debug`, `overflow-machine-check`: pushes below an interrupt's stack.
    InterruptStackOverflow(InterruptStack),
}

/// For how long the clock's rate is wrong on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kept {
    /// Until it is measured again.
    AtFirst,
    /// For good.
    Always,
}

/// A rate that is wrong on purpose, for tests of the clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Skew {
    /// By how much the TSC is taken to be faster than it is, in parts in a million.
    pub ppm: u32,
    /// For how long.
    pub kept: Kept,
}

/// The size of each CPU's trace buffer, in pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TracePages(pub NonZeroU16);

/// An I/O port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoPort(pub u16);

/// The options. What is not said keeps its default.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// `dom0_mem`: memory of domain 0, or as much as it needs.
    pub dom0_mem: Option<Bytes>,
    /// `dom0_shadow`: limit of domain 0's shadow page tables, or what follows from its memory.
    pub dom0_shadow: Option<Bytes>,
    /// `com1`.
    pub com1: Com1,
    /// `loglvl`.
    pub log_level: LogLevel,
    /// `noreboot`.
    pub on_fatal: OnFatal,
    /// `p2m`.
    pub p2m: P2m,
    /// `debug-exit`.
    pub debug_exit: Option<IoPort>,
    /// `audit`.
    pub audit: Audit,
    /// `sched`.
    pub scheduler: Scheduler,
    /// `guest-console`.
    pub guest_console: GuestConsole,
    /// `maxcpus`: how many CPUs may be used; all that there are if it is not said.
    pub max_cpus: Option<NonZeroU16>,
    /// `tbuf_size`: trace buffers, if there are to be any.
    pub trace: Option<TracePages>,
    /// `check-cpus`.
    pub cpu_check: CpuCheck,
    /// `provoke`.
    pub provoke: Option<Provocation>,
    /// `tsc-skew`.
    pub tsc_skew: Option<Skew>,
}

/// A word of the command line that was not understood, and is ignored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Complaint<'a> {
    /// There is no such option.
    Unknown(&'a str),
    /// The option exists, the value makes no sense.
    BadValue(&'a str),
}

impl fmt::Display for Complaint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(word) => write!(f, "unknown option \"{word}\" is ignored"),
            Self::BadValue(word) => write!(f, "option \"{word}\" has a value that makes no sense and is ignored"),
        }
    }
}

impl Options {
    /// What holds where the command line says nothing.
    pub const DEFAULT: Self = Self {
        dom0_mem: None,
        dom0_shadow: None,
        com1: Com1::Baud(115_200),
        log_level: LogLevel::Info,
        on_fatal: OnFatal::Reboot,
        p2m: P2m::Natural,
        debug_exit: None,
        audit: if cfg!(debug_assertions) { Audit::AtEnd } else { Audit::Off },
        scheduler: Scheduler::Bvt(None),
        guest_console: GuestConsole::Domain0,
        max_cpus: None,
        trace: None,
        cpu_check: CpuCheck::Skip,
        provoke: None,
        tsc_skew: None,
    };

    /// Reads a command line, up to the word `--`. Each word that is not understood is passed to `complain` and
    /// otherwise ignored; of an option that is given twice the last counts.
    pub fn parse<'a>(command_line: &'a str, complain: &mut dyn FnMut(Complaint<'a>)) -> Self {
        let mut options = Self::DEFAULT;
        for word in split_guest_part(command_line).0.split_ascii_whitespace() {
            match options.set(word) {
                Ok(()) => {}
                Err(complaint) => complain(complaint),
            }
        }
        options
    }

    fn set<'a>(&mut self, word: &'a str) -> Result<(), Complaint<'a>> {
        let bad = Complaint::BadValue(word);
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word, None),
        };
        match (name, value) {
            ("noreboot", None) => self.on_fatal = OnFatal::Halt,
            ("dom0_mem", Some(value)) => self.dom0_mem = Some(size(value).ok_or(bad)?),
            ("dom0_shadow", Some(value)) => self.dom0_shadow = Some(size(value).ok_or(bad)?),
            ("com1", Some("off")) => self.com1 = Com1::Off,
            ("com1", Some(value)) => self.com1 = Com1::Baud(baud(value).ok_or(bad)?),
            ("loglvl", Some(value)) => self.log_level = log_level(value).ok_or(bad)?,
            ("p2m", Some("scrambled")) => self.p2m = P2m::Scrambled,
            ("debug-exit", Some(value)) => self.debug_exit = Some(IoPort(port(value).ok_or(bad)?)),
            ("audit", None) => self.audit = Audit::AtEnd,
            ("audit", Some("calls")) => self.audit = Audit::OnCall,
            ("sched", Some(value)) => self.scheduler = scheduler(value).ok_or(bad)?,
            ("guest-console", None) => self.guest_console = GuestConsole::All,
            ("maxcpus", Some(value)) => self.max_cpus = Some(cpus(value).ok_or(bad)?),
            ("nosmp", None) => self.max_cpus = Some(NonZeroU16::MIN),
            ("tbuf_size", Some("0")) => self.trace = None,
            ("tbuf_size", Some(value)) => self.trace = Some(trace_pages(value).ok_or(bad)?),
            ("check-cpus", None) => self.cpu_check = CpuCheck::Run,
            ("provoke", Some(value)) => self.provoke = Some(provocation(value).ok_or(bad)?),
            ("tsc-skew", Some(value)) => self.tsc_skew = Some(skew(value).ok_or(bad)?),
            (
                "noreboot" | "dom0_mem" | "dom0_shadow" | "com1" | "loglvl" | "p2m" | "debug-exit" | "audit" | "sched"
                | "guest-console" | "maxcpus" | "nosmp" | "tbuf_size" | "check-cpus" | "provoke" | "tsc-skew",
                _,
            ) => {
                return Err(bad);
            }
            _ => return Err(Complaint::Unknown(word)),
        }
        Ok(())
    }
}

/// Splits a command line at the first word `--`: what is ours, and what is domain 0's (`None` without such a word). (A
/// module's command line is split alike: `domain_options`.)
#[must_use]
pub fn split_guest_part(command_line: &str) -> (&str, Option<&str>) {
    for (at, _) in command_line.match_indices("--") {
        let (before, behind) = (&command_line[..at], &command_line[at + 2..]);
        let starts = before.is_empty() || before.ends_with(|c: char| c.is_ascii_whitespace());
        let ends = behind.is_empty() || behind.starts_with(|c: char| c.is_ascii_whitespace());
        if starts && ends {
            return (before, Some(behind.trim_ascii()));
        }
    }
    (command_line, None)
}

/// A scheduler's name as Xen 2.0 has it, and a number of microseconds where there is something to set.
fn scheduler(text: &str) -> Option<Scheduler> {
    let (name, number) = match text.split_once(',') {
        Some((name, number)) => (name, Some(micros(number)?)),
        None => (text, None),
    };
    match (name, number) {
        ("bvt", allowance) => Some(Scheduler::Bvt(allowance)),
        ("rrobin", slice) => Some(Scheduler::RoundRobin(slice)),
        ("atropos", None) => Some(Scheduler::Atropos),
        _ => None,
    }
}

/// A number of microseconds above 0, less than a second.
pub fn micros(text: &str) -> Option<Micros> {
    let number = u32::try_from(decimal(text)?).ok()?;
    (1..1_000_000).contains(&number).then_some(Micros(number))
}

/// A size: a whole number above 0 and a suffix, K without one.
pub fn size(text: &str) -> Option<Bytes> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 10),
    };
    let number: u64 = decimal(digits)?;
    let bytes = number.checked_mul(1 << shift)?;
    (bytes > 0).then_some(Bytes(bytes))
}

/// A speed that the UART's divisor can make: 115200 divided by a whole number.
fn baud(text: &str) -> Option<u32> {
    let number = text.split_once(',').map_or(text, |(number, _)| number);
    let baud = u32::try_from(decimal(number)?).ok()?;
    ((2..=115_200).contains(&baud) && 115_200 % baud == 0).then_some(baud)
}

fn cpus(text: &str) -> Option<NonZeroU16> {
    NonZeroU16::new(u16::try_from(decimal(text)?).ok()?)
}

fn trace_pages(text: &str) -> Option<TracePages> {
    let pages = u16::try_from(decimal(text)?).ok().filter(|&pages| pages <= 256)?;
    NonZeroU16::new(pages).map(TracePages)
}

fn log_level(text: &str) -> Option<LogLevel> {
    match text {
        "error" => Some(LogLevel::Error),
        "warn" => Some(LogLevel::Warn),
        "info" => Some(LogLevel::Info),
        "debug" => Some(LogLevel::Debug),
        "trace" | "all" => Some(LogLevel::Trace),
        _ => None,
    }
}

fn provocation(text: &str) -> Option<Provocation> {
    match text {
        "panic" => Some(Provocation::Panic),
        "page-fault" => Some(Provocation::PageFault),
        "invalid-opcode" => Some(Provocation::InvalidOpcode),
        "stack-overflow" => Some(Provocation::StackOverflow),
        "write-text" => Some(Provocation::WriteText),
        "execute-data" => Some(Provocation::ExecuteData),
        "double-fault" => Some(Provocation::DoubleFault),
        "cpu-panic" => Some(Provocation::CpuPanic),
        "lost-cpu" => Some(Provocation::LostCpu),
        "tsc-apart" => Some(Provocation::TscApart),
        "features-apart" => Some(Provocation::FeaturesApart),
        "machine-check" => Some(Provocation::MachineCheck),
        "overflow-nmi" => Some(Provocation::InterruptStackOverflow(InterruptStack::Nmi)),
        "overflow-debug" => Some(Provocation::InterruptStackOverflow(InterruptStack::Debug)),
        "overflow-machine-check" => Some(Provocation::InterruptStackOverflow(InterruptStack::MachineCheck)),
        "lost-reference" => Some(Provocation::LostReference),
        _ => None,
    }
}

/// Parts in a million, up to a hundredth, and perhaps `,kept`.
fn skew(text: &str) -> Option<Skew> {
    let (number, kept) = match text.split_once(',') {
        Some((number, "kept")) => (number, Kept::Always),
        Some(_) => return None,
        None => (text, Kept::AtFirst),
    };
    let ppm = u32::try_from(decimal(number)?).ok()?;
    (1..=10_000).contains(&ppm).then_some(Skew { ppm, kept })
}

/// A port: hexadecimal with `0x`, else decimal; not 0.
fn port(text: &str) -> Option<u16> {
    let number = match text.strip_prefix("0x") {
        Some(digits) if digits.starts_with(|c: char| c.is_ascii_hexdigit()) => u16::from_str_radix(digits, 16).ok()?,
        Some(_) => return None,
        None => u16::try_from(decimal(text)?).ok()?,
    };
    (number > 0).then_some(number)
}

/// A decimal number: digits only, where `u64`'s own parser would take a sign.
pub fn decimal(text: &str) -> Option<u64> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}
