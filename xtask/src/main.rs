//! `cargo xtask`: the one tool that builds, runs, tests and packages Proxenos.
//!
//! This file is the command line and nothing else: each subcommand is a module.

mod accel;
mod apt;
mod bench;
mod cargo;
mod compile;
mod console;
mod elf;
mod further;
mod fuzz_guest;
mod guest_meta;
mod iso;
mod lint;
mod multiboot;
mod plot;
mod process;
mod qemu;
mod run;
mod suite;
mod symbols;
mod toolchain;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::compile::Profile;
use crate::guest_meta::{Arch, Machine};

/// Build, run, test and package the Proxenos hypervisor and its guests.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the hypervisor and the guests
    Build(BuildArgs),
    /// Boot the hypervisor with a guest in QEMU and show the console; the exit status is the guest's
    Run(RunArgs),
    /// Run every test: host tests, format, lints, and the guests in QEMU
    Test(TestArgs),
    /// Measure what operations cost a guest, in instructions; fails where a budget or the baseline is exceeded
    Bench(BenchArgs),
    /// Boot the blind guest, seed after seed; fails where the host does not outlive it, with the command that repeats
    /// it
    FuzzGuest(FuzzGuestArgs),
    /// Make a bootable ISO image with the hypervisor and a guest
    Image(ImageArgs),
    /// Draw what each scheduler does with the same loads, on a simulated machine
    PlotShares(PlotArgs),
    /// Check format and lints of the whole workspace
    Lint,
    /// Remove everything that was built
    Clean,
}

#[derive(Args)]
struct BuildArgs {
    /// Only these packages: guests, or `proxenos`, the hypervisor
    packages: Vec<String>,
    /// Only this architecture's guests; both without it
    #[arg(long)]
    arch: Option<Arch>,
    #[command(flatten)]
    profile: ProfileArgs,
}

#[derive(Args, Clone)]
struct ProfileArgs {
    /// Optimised build (the default)
    #[arg(long, conflicts_with = "debug")]
    release: bool,
    /// Build without optimisation, with debug assertions
    #[arg(long)]
    debug: bool,
}

impl ProfileArgs {
    fn profile(&self) -> Profile {
        if self.debug { Profile::Debug } else { Profile::Release }
    }
}

/// What domain 0 is made of: shared by `run` and `image`.
#[derive(Args, Clone)]
struct DomainArgs {
    /// Architecture of the guest to build
    #[arg(long, default_value = "x86_64")]
    arch: Arch,
    /// The package under guests/ to build and boot
    #[arg(long, value_name = "NAME", default_value = "hello", conflicts_with = "kernel")]
    guest: String,
    /// Boot this guest ELF file instead, whatever its architecture
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk for the guest
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The guest's command line
    #[arg(long, value_name = "TEXT", default_value = "", allow_hyphen_values = true)]
    cmdline: String,
    /// A further domain: `GUEST[/ARCH] [options] [-- command line]`; may be repeated
    #[arg(long = "domain", value_name = "TEXT")]
    further: Vec<further::Further>,
    /// Options for the hypervisor
    #[arg(long, value_name = "TEXT", default_value = "", allow_hyphen_values = true)]
    hv_args: String,
    #[command(flatten)]
    profile: ProfileArgs,
}

#[derive(Args)]
struct RunArgs {
    #[command(flatten)]
    domain: DomainArgs,
    /// The machine's memory in MiB
    #[arg(long, value_name = "MiB", default_value_t = 128)]
    memory: u32,
    /// The machine's CPUs
    #[arg(long, value_name = "CPUS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    smp: u16,
    /// The machine QEMU makes
    #[arg(long, default_value = "pc")]
    machine: Machine,
    /// How QEMU runs the CPU; auto takes KVM where it really works
    #[arg(long, default_value = "auto")]
    accel: accel::Choice,
    /// Stop at the first instruction and wait for gdb on port 1234
    #[arg(long)]
    gdb: bool,
    /// Copy the console to this file
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// One nanosecond an instruction: the run repeats to the digit (TCG only)
    #[arg(long, hide = true)]
    icount: bool,
}

#[derive(Args)]
struct TestArgs {
    /// Only tests whose name contains this
    filter: Option<String>,
    /// Name the tests that would run in QEMU and stop
    #[arg(long)]
    list: bool,
}

#[derive(Args)]
struct BenchArgs {
    /// Only this architecture; both without it
    #[arg(long)]
    arch: Option<Arch>,
    /// Only operations whose name contains this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Make the figures the new baseline, and draw the plot and SPECIFICATION.md's table of it
    #[arg(long)]
    save: bool,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
    /// Measure twice, and fail where a digit differs
    #[arg(long)]
    repeat: bool,
    /// Measure nothing: draw the plot and SPECIFICATION.md's table of the committed figures
    #[arg(long, conflicts_with_all = ["save", "json", "filter", "arch", "repeat"])]
    redraw: bool,
    /// Say where the instructions of this one operation go, by function, in place of measuring
    #[arg(long, value_name = "OP", conflicts_with_all = ["save", "json", "filter", "repeat", "redraw"])]
    profile: Option<String>,
    /// With --profile: each instruction as well, in the order in which they were executed
    #[arg(long, requires = "profile")]
    listing: bool,
    /// Measure this peer too, in the same emulator; with --save, make its figures the committed ones
    #[arg(long, value_name = "NAME")]
    peer: Option<bench::Peer>,
}

#[derive(Args)]
struct FuzzGuestArgs {
    /// Only this architecture; both, in turn, without it
    #[arg(long)]
    arch: Option<Arch>,
    /// How long to begin new seeds
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// The first seed; the time of day without it
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(Args)]
struct ImageArgs {
    #[command(flatten)]
    domain: DomainArgs,
    /// Where to write the image; target/proxenos.iso without it
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Args)]
struct PlotArgs {
    /// Where to write the picture; target/sched-shares.svg without it
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

fn main() -> ExitCode {
    let result = process::catch_interrupts().and_then(|()| match Cli::parse().command {
        Command::Build(args) => compile::command(args.arch, args.profile.profile(), &args.packages).map(|()| 0),
        Command::Run(args) => run::command(&args),
        Command::Test(args) => suite::command(args.filter.as_deref(), args.list),
        Command::Bench(args) => bench::command(&args),
        Command::FuzzGuest(args) => fuzz_guest::command(&args),
        Command::Image(args) => iso::command(&args).map(|()| 0),
        Command::PlotShares(args) => plot::command(args.output.as_deref()).map(|()| 0),
        Command::Lint => lint::command(),
        Command::Clean => workspace::clean().map(|()| 0),
    });
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            anstream::eprintln!("{}error:{:#} {error:#}", console::ERROR, console::ERROR);
            ExitCode::FAILURE
        }
    }
}
