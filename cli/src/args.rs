//! The command line: what there is, and what each says of itself. `man` and `completions` are made from this.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use proxenos_rpc::{Deadline, DomainId, Kib, Name, Nanos, OnCrash, Restart, Subject};

use crate::host::{Accel, DEFAULT, Scheduler};
use crate::problem::STATUSES;
use crate::units::{parse_size, parse_time};

/// Run guests on a Proxenos host.
///
/// A host is a machine on this computer (QEMU) with the hypervisor and its control domain in it. It is started when a
/// guest is run, or by `proxenos host start`, and goes on until `proxenos host stop`.
#[derive(Parser)]
#[command(name = "proxenos", version, arg_required_else_help = true, after_help = STATUSES)]
pub struct Cli {
    /// Which host
    #[arg(long, global = true, value_name = "NAME", env = "PROXENOS_HOST", default_value = DEFAULT)]
    pub host: String,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// How many seconds the control domain may take for what is asked (default 10; for a shutdown 60, to make a domain
    /// 120)
    #[arg(long, global = true, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=600))]
    pub timeout: Option<u32>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// The deadline of a call that takes so many seconds unless the user says otherwise.
    pub fn deadline(&self, default: u32) -> Deadline {
        Deadline(self.timeout.unwrap_or(default) * 1000)
    }
}

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    /// Create a domain and attach to its console, until it ends or Ctrl-] is typed
    Run(RunArgs),
    /// Create a domain from a configuration file
    Create(CreateArgs),
    /// List the domains
    #[command(visible_alias = "ls")]
    List,
    /// Attach to a domain's console; Ctrl-] leaves it
    Console(ConsoleArgs),
    /// Stop domains where they are
    Pause(Domains),
    /// Let paused domains go on
    Unpause(Domains),
    /// Ask domains to shut down
    Shutdown(ShutdownArgs),
    /// Ask domains to reboot, or start them anew
    Reboot(RebootArgs),
    /// End domains without asking them
    Destroy(Domains),
    /// Wait for a domain's end; the exit status is the domain's
    Wait(Domain),
    /// Ask a domain to give memory back or take some (its balloon)
    MemSet(MemArgs),
    /// Set how much memory a domain may have
    MemMax(MemArgs),
    /// Show the host, or a domain
    Info(InfoArgs),
    /// Show the hypervisor's log
    Dmesg(DmesgArgs),
    /// Watch what the domains do; without a terminal, or with --json: once
    Top(TopArgs),
    /// Show or set the scheduler's parameters, or a domain's
    Sched(SchedArgs),
    /// Keep a domain on a CPU
    Pin(PinArgs),
    /// Show the hypervisor's trace
    Trace(TraceArgs),
    /// Show the virtual CPU and memory of a domain, such as one that crashed
    Dump(DumpArgs),
    /// Start, stop and find hosts
    #[command(subcommand)]
    Host(HostCommand),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write manual pages into a directory
    Man {
        /// The directory
        dir: PathBuf,
    },
}

/// A domain by number or name.
#[derive(Args, Clone)]
pub struct Domain {
    /// A domain's number or name
    #[arg(value_parser = subject)]
    pub domain: Subject,
}

/// Some domains.
#[derive(Args, Clone)]
pub struct Domains {
    /// Domains' numbers or names
    #[arg(value_parser = subject, required = true, value_name = "DOMAIN")]
    pub domains: Vec<Subject>,
}

fn subject(text: &str) -> Result<Subject, String> {
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return text.parse().map(|id| Subject::Id(DomainId(id))).map_err(|_| "no domain has such a number".to_owned());
    }
    Name::new(text).map(Subject::Name).map_err(|why| format!("no domain has such a name: {why}"))
}

/// What may be said of a guest beside its file.
#[derive(Args, Clone)]
pub struct GuestArgs {
    /// The domain's name; made from the file's without it
    #[arg(long)]
    pub name: Option<String>,
    /// Its memory: a number of MiB, or with K, M or G
    #[arg(long, short, value_name = "SIZE", value_parser = parse_size)]
    pub memory: Option<Kib>,
    /// The memory that it may grow to
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub max_memory: Option<Kib>,
    /// The CPU that it stays on
    #[arg(long)]
    pub cpu: Option<u32>,
    /// Its ramdisk
    #[arg(long, value_name = "FILE")]
    pub ramdisk: Option<PathBuf>,
    /// Its share of the CPU in relation to others', 1 to 1000, where 100 is the usual (scheduler bvt)
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub weight: Option<u32>,
    /// When it is started again
    #[arg(long, value_enum)]
    pub restart: Option<RestartArg>,
    /// What happens when it crashes
    #[arg(long, value_enum)]
    pub on_crash: Option<CrashArg>,
    /// For a guest crate of this workspace: the architecture to build
    #[arg(long, value_enum, default_value = "x86-64")]
    pub arch: ArchArg,
}

/// When a domain is started again.
#[derive(Clone, Copy, ValueEnum)]
pub enum RestartArg {
    /// Never
    Never,
    /// When it says reboot
    OnReboot,
    /// Whenever it ends
    Always,
}

impl From<RestartArg> for Restart {
    fn from(arg: RestartArg) -> Self {
        match arg {
            RestartArg::Never => Self::Never,
            RestartArg::OnReboot => Self::OnReboot,
            RestartArg::Always => Self::Always,
        }
    }
}

/// What happens to a domain that crashes.
#[derive(Clone, Copy, ValueEnum)]
pub enum CrashArg {
    /// It is destroyed
    Destroy,
    /// It stays, to be dumped
    Keep,
    /// It is started again
    Restart,
}

impl From<CrashArg> for OnCrash {
    fn from(arg: CrashArg) -> Self {
        match arg {
            CrashArg::Destroy => Self::Destroy,
            CrashArg::Keep => Self::Keep,
            CrashArg::Restart => Self::Restart,
        }
    }
}

/// An architecture.
#[derive(Clone, Copy, ValueEnum)]
pub enum ArchArg {
    /// 32 bits
    #[value(alias = "x86_32")]
    X86_32,
    /// 64 bits
    #[value(alias = "x86_64")]
    X86_64,
}

impl ArchArg {
    /// Its usual name.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_32 => "x86_32",
            Self::X86_64 => "x86_64",
        }
    }
}

/// `run`.
#[derive(Args)]
pub struct RunArgs {
    /// A kernel (ELF, gzipped or not), a configuration file, or the directory of a guest crate of this workspace
    pub path: PathBuf,
    /// What follows -- is the kernel's command line
    #[arg(last = true, value_name = "WORD")]
    pub cmdline: Vec<String>,
    /// Do not attach to the console
    #[arg(long, short)]
    pub detach: bool,
    #[command(flatten)]
    pub guest: GuestArgs,
}

/// `create`.
#[derive(Args)]
pub struct CreateArgs {
    /// A configuration file: TOML if its name ends in .toml, else one of xm's
    pub file: PathBuf,
    /// Leave it paused
    #[arg(long, short)]
    pub paused: bool,
    /// What follows -- is the kernel's command line
    #[arg(last = true, value_name = "WORD")]
    pub cmdline: Vec<String>,
    #[command(flatten)]
    pub guest: GuestArgs,
}

/// `console`.
#[derive(Args)]
pub struct ConsoleArgs {
    #[command(flatten)]
    pub domain: Domain,
    /// Only look on
    #[arg(long, short)]
    pub read_only: bool,
    /// Begin with at most so much of what was written before
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "64K")]
    pub replay: Kib,
    /// Begin with what is written from now on
    #[arg(long, conflicts_with = "replay")]
    pub no_replay: bool,
}

/// `shutdown`.
#[derive(Args)]
pub struct ShutdownArgs {
    #[command(flatten)]
    pub domains: Domains,
    /// Ask for a suspend record instead
    #[arg(long)]
    pub suspend: bool,
    /// Wait for the end
    #[arg(long, short)]
    pub wait: bool,
}

/// `reboot`.
#[derive(Args)]
pub struct RebootArgs {
    #[command(flatten)]
    pub domains: Domains,
    /// Do not ask: end the domain and start it from its images
    #[arg(long, short)]
    pub force: bool,
}

/// `mem-set`, `mem-max`.
#[derive(Args)]
pub struct MemArgs {
    #[command(flatten)]
    pub domain: Domain,
    /// A number of MiB, or with K, M or G
    #[arg(value_parser = parse_size)]
    pub size: Kib,
}

/// `info`.
#[derive(Args)]
pub struct InfoArgs {
    /// A domain's number or name; the host without one
    #[arg(value_parser = subject)]
    pub domain: Option<Subject>,
}

/// `dmesg`.
#[derive(Args)]
pub struct DmesgArgs {
    /// The control domain's log instead
    #[arg(long)]
    pub control: bool,
    /// Go on as more is written
    #[arg(long, short)]
    pub follow: bool,
}

/// `top`.
#[derive(Args)]
pub struct TopArgs {
    /// How often to look
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "1s")]
    pub interval: Nanos,
}

/// `sched`. Which options are for what is decided by the scheduler that runs.
#[derive(Args)]
pub struct SchedArgs {
    /// A domain's number or name; the scheduler as a whole without one
    #[arg(value_parser = subject)]
    pub domain: Option<Subject>,
    /// bvt, the host: how long a domain runs before another takes its place
    #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with = "domain")]
    pub allowance: Option<Nanos>,
    /// rrobin, the host: how long a turn is. atropos, a domain: its part of each period
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub slice: Option<Nanos>,
    /// bvt, a domain: its share in relation to others', 1 to 1000 (1000 / advance)
    #[arg(long, requires = "domain", conflicts_with = "advance")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub weight: Option<u32>,
    /// bvt, a domain: how fast its virtual time goes, the inverse of its weight
    #[arg(long, requires = "domain", value_parser = clap::value_parser!(u32).range(1..))]
    pub advance: Option<u32>,
    /// bvt, a domain: how far it warps, in units of virtual time; 0 switches warping off
    #[arg(long, requires = "domain", allow_negative_numbers = true)]
    pub warp: Option<i32>,
    /// bvt, a domain: how long it may stay warped
    #[arg(long, value_name = "TIME", requires = "domain", value_parser = parse_time)]
    pub warp_limit: Option<Nanos>,
    /// bvt, a domain: how long it must then stay unwarped
    #[arg(long, value_name = "TIME", requires = "domain", value_parser = parse_time)]
    pub unwarp: Option<Nanos>,
    /// atropos, a domain: it gets its slice every so often
    #[arg(long, value_name = "TIME", requires = "domain", value_parser = parse_time)]
    pub period: Option<Nanos>,
    /// atropos, a domain: when it wants to run after it wakes
    #[arg(long, value_name = "TIME", requires = "domain", value_parser = parse_time)]
    pub latency: Option<Nanos>,
    /// atropos, a domain: whether it takes time that is left over
    #[arg(long, value_name = "YES", requires = "domain", action = clap::ArgAction::Set)]
    pub extra: Option<bool>,
}

/// `pin`.
#[derive(Args)]
pub struct PinArgs {
    #[command(flatten)]
    pub domain: Domain,
    /// A CPU's number, or `any`
    #[arg(value_parser = cpu)]
    pub cpu: Cpu,
}

/// A CPU, or any.
#[derive(Clone, Copy)]
pub struct Cpu(pub Option<u32>);

fn cpu(text: &str) -> Result<Cpu, String> {
    match text {
        "any" => Ok(Cpu(None)),
        number => number.parse().map(|cpu| Cpu(Some(cpu))).map_err(|_| "write a CPU's number, or any".to_owned()),
    }
}

/// `trace`.
#[derive(Args)]
pub struct TraceArgs {
    /// Only this CPU
    #[arg(long)]
    pub cpu: Option<u32>,
    /// Go on as more is recorded
    #[arg(long, short)]
    pub follow: bool,
}

/// `dump`.
#[derive(Args)]
pub struct DumpArgs {
    #[command(flatten)]
    pub domain: Domain,
    /// Also write its memory to this file, as the domain counts its frames; what cannot be read is left out (zeros)
    #[arg(long, short, value_name = "FILE")]
    pub memory: Option<PathBuf>,
    /// Show memory at this virtual address (hexadecimal) instead of the stack
    #[arg(long, value_name = "ADDRESS", value_parser = hex)]
    pub at: Option<u64>,
    /// How much memory to show
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=16384))]
    pub len: u32,
}

fn hex(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).map_err(|_| "write a hexadecimal number".to_owned())
}

/// `host`.
#[derive(Subcommand)]
pub enum HostCommand {
    /// Start the host, if it does not run
    Start(StartArgs),
    /// End the host and all its domains
    Stop {
        /// Do not ask the control domain
        #[arg(long, short)]
        force: bool,
    },
    /// Say whether the host runs; exit status 69 if not
    Status,
    /// List the hosts
    #[command(visible_alias = "ls")]
    List,
}

/// `host start`.
#[derive(Args)]
pub struct StartArgs {
    /// What runs the CPU
    #[arg(long, value_enum, default_value = "auto", env = "PROXENOS_ACCEL")]
    pub accel: Accel,
    /// CPUs
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub cpus: u32,
    /// The machine's memory: a number of MiB, or with K, M or G
    #[arg(long, short, value_name = "SIZE", value_parser = parse_size, default_value = "512M")]
    pub memory: Kib,
    /// The control domain's part of it
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "128M")]
    pub control_memory: Kib,
    /// How many commands and consoles there can be at a time
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=24))]
    pub channels: u32,
    /// The hypervisor's scheduler
    #[arg(long, value_enum, default_value = "bvt")]
    pub sched: Scheduler,
    /// Further options of the hypervisor
    #[arg(long, value_name = "TEXT", default_value = "", allow_hyphen_values = true)]
    pub hv_args: String,
    /// The control domain's command line
    #[arg(long, value_name = "TEXT", default_value = "", allow_hyphen_values = true)]
    pub control_args: String,
    /// Directory of the images: one with proxenos.multiboot and control, or a workspace's target directory
    #[arg(long, value_name = "DIR", env = "PROXENOS_IMAGES")]
    pub images: Option<PathBuf>,
}

/// A host that is started on demand.
#[derive(Parser)]
#[command(no_binary_name = true)]
pub struct OnDemand {
    /// As `host start` without options.
    #[command(flatten)]
    pub args: StartArgs,
}
