//! `cargo xtask run`: one guest, live on the terminal.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::compile::{self, Hypervisor, Profile};
use crate::console::{self, Capture, Live};
use crate::guest_meta::Arch;
use crate::qemu::{self, Boot, Clock, Debugger, Outcome, Vm};
use crate::toolchain::Toolchain;
use crate::workspace::Workspace;
use crate::{DomainArgs, RunArgs, accel, process};

/// What the domain's options come to.
pub struct Built {
    /// The hypervisor.
    pub hypervisor: Hypervisor,
    /// Domain 0's kernel.
    pub kernel: PathBuf,
}

/// Builds the hypervisor and, unless a file is given, the guest.
pub fn build(workspace: &Workspace, args: &DomainArgs) -> Result<Built> {
    for file in args.kernel.iter().chain(&args.initrd) {
        ensure!(file.is_file(), "no such file: {}", file.display());
    }
    let toolchain = Toolchain::bare_metal(workspace)?;
    let profile = args.profile.profile();
    let hypervisor = compile::hypervisor(&toolchain, workspace, profile)?;
    let kernel = match &args.kernel {
        Some(file) => file.clone(),
        None => guest(&toolchain, workspace, profile, args.arch, &args.guest)?,
    };
    Ok(Built { hypervisor, kernel })
}

fn guest(toolchain: &Toolchain, workspace: &Workspace, profile: Profile, arch: Arch, name: &str) -> Result<PathBuf> {
    let guests = workspace.guests()?;
    let Some(guest) = guests.iter().find(|g| g.name == name) else {
        let names: Vec<&str> = guests.iter().map(|g| g.name.as_str()).collect();
        bail!("there is no guest `{name}`; there are: {}", names.join(", "));
    };
    ensure!(guest.meta.arch.contains(&arch), "guest `{name}` is not for {arch}");
    let built = compile::guests(toolchain, workspace, profile, arch, &[guest])?;
    built.into_iter().find(|e| e.package == name).map(|e| e.path).context("cargo made no executable for the guest")
}

/// Runs the guest; the value is the exit status.
pub fn command(args: &RunArgs) -> Result<u8> {
    let workspace = Workspace::load()?;
    qemu::need()?;
    let built = build(&workspace, &args.domain)?;
    let choice = if args.icount && args.accel == accel::Choice::Auto { accel::Choice::Tcg } else { args.accel };
    let boot = match &args.domain.initrd {
        None => Boot::Pvh { hypervisor: built.hypervisor.elf.clone(), kernel: Some(built.kernel) },
        Some(initrd) => Boot::Multiboot {
            hypervisor: built.hypervisor.multiboot.clone(),
            kernel: built.kernel,
            initrd: Some(initrd.clone()),
        },
    };
    let vm = Vm {
        machine: args.machine,
        memory: args.memory,
        accel: choice.resolve(&workspace, &built.hypervisor.elf)?,
        boot,
        hv_args: args.domain.hv_args.clone(),
        cmdline: args.domain.cmdline.clone(),
        clock: if args.icount { Clock::Instructions } else { Clock::Host },
        debugger: if args.gdb { Debugger::Wait } else { Debugger::None },
    };
    let log = match &args.log {
        Some(path) => Some(File::create(path).with_context(|| format!("cannot write {}", path.display()))?),
        None => None,
    };
    if args.gdb {
        let symbols = built.hypervisor.debug.display();
        console::step(&format!("waiting for gdb: type  gdb {symbols} -ex 'target remote :1234'"));
    }
    let links = tempfile::tempdir()?;
    let capture = Capture::default();
    let live = Live::new(anstream::stdout(), log, capture.clone());
    let (end, errors) = process::stream(&mut vm.command(links.path())?, None, live)?;
    anstream::eprint!("{errors}");
    let outcome = Outcome::read(end, &capture.text(), &errors);
    match outcome {
        Outcome::Panic => anstream::eprintln!("{0}error:{0:#} the hypervisor panicked", console::ERROR),
        Outcome::Failed => anstream::eprintln!("{0}error:{0:#} QEMU failed", console::ERROR),
        Outcome::Shutdown(reason @ 1..) => console::step(&format!("the guest shut down with reason {reason}")),
        _ => {}
    }
    Ok(outcome.status())
}
