//! `cargo xtask run`: one guest, live on the terminal.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::compile::{self, Hypervisor};
use crate::console::{self, Capture, Live};
use crate::qemu::{self, Boot, Clock, Debugger, Outcome, Vm};
use crate::toolchain::Toolchain;
use crate::workspace::{Guest, Workspace};
use crate::{DomainArgs, RunArgs, accel, elf, process};

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
    let guests = workspace.guests()?;
    let mut wanted = Vec::new();
    if args.kernel.is_none() {
        wanted.push((args.arch, vec![find(&guests, args)?]));
    }
    let made = compile::everything(&toolchain, workspace, args.profile.profile(), &wanted);
    let hypervisor = made.hypervisor.0?;
    let mut built = Vec::new();
    for (_, (executables, _)) in made.guests {
        built.extend(executables?);
    }
    let kernel = match &args.kernel {
        Some(file) => file.clone(),
        None => built.pop().context("cargo made no executable for the guest")?.path,
    };
    Ok(Built { hypervisor, kernel })
}

fn find<'a>(guests: &'a [Guest], args: &DomainArgs) -> Result<&'a Guest> {
    let (name, arch) = (&args.guest, args.arch);
    let Some(guest) = guests.iter().find(|guest| guest.name == *name) else {
        let names: Vec<&str> = guests.iter().map(|guest| guest.name.as_str()).collect();
        bail!("there is no guest `{name}`; there are: {}", names.join(", "));
    };
    ensure!(guest.meta.arch.contains(&arch), "guest `{name}` is not for {arch}");
    Ok(guest)
}

/// Runs the guest; the value is the exit status.
pub fn command(args: &RunArgs) -> Result<u8> {
    let workspace = Workspace::load()?;
    qemu::need()?;
    let built = build(&workspace, &args.domain)?;
    let choice = if args.icount && args.accel == accel::Choice::Auto { accel::Choice::Tcg } else { args.accel };
    let arch = args.domain.kernel.as_deref().map_or(Ok(args.domain.arch), elf::arch)?;
    let accel = choice.resolve(&workspace, &built.hypervisor.elf, arch, || {
        let hello = DomainArgs { arch, guest: "hello".to_owned(), kernel: None, initrd: None, ..args.domain.clone() };
        Ok(build(&workspace, &hello)?.kernel)
    })?;
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
        accel,
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
    let mut command = vm.command(links.path())?;
    command.args(["-smp", &args.smp.to_string()]);
    let (end, errors) = process::stream(&mut command, None, live)?;
    let outcome = Outcome::read(end, &capture.text(), &errors);
    if outcome != Outcome::Interrupted {
        anstream::eprint!("{errors}");
    }
    match outcome {
        Outcome::Panic => anstream::eprintln!("{0}error:{0:#} the hypervisor panicked", console::ERROR),
        Outcome::Failed => anstream::eprintln!("{0}error:{0:#} QEMU failed", console::ERROR),
        Outcome::Shutdown(reason @ 1..) => console::step(&format!("the guest shut down with reason {reason}")),
        _ => {}
    }
    Ok(outcome.status())
}
