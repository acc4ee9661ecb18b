//! `cargo xtask run`: one guest, live on the terminal.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::compile::{self, Hypervisor};
use crate::console::{self, Capture, Live};
use crate::further::Module;
use crate::guest_meta::Arch;
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
    /// Further domains.
    pub further: Vec<Module>,
}

/// Builds the hypervisor and, unless a file is given, the guest.
pub fn build(workspace: &Workspace, args: &DomainArgs) -> Result<Built> {
    for file in args.kernel.iter().chain(&args.initrd) {
        ensure!(file.is_file(), "no such file: {}", file.display());
    }
    let toolchain = Toolchain::bare_metal(workspace)?;
    let guests = workspace.guests()?;
    let domain0 = args.kernel.as_deref().map_or(Ok(args.arch), elf::arch)?;
    let mut wanted: Vec<(Arch, Vec<&Guest>)> = Arch::ALL.map(|arch| (arch, Vec::new())).to_vec();
    let own = args.kernel.is_none().then_some((args.guest.as_str(), args.arch));
    for (name, arch) in own.into_iter().chain(args.further.iter().filter_map(|further| further.package(domain0))) {
        let guest = find(&guests, name, arch)?;
        let of_arch = wanted.iter_mut().filter(|(of, _)| *of == arch);
        of_arch.filter(|(_, list)| list.iter().all(|known| known.name != name)).for_each(|(_, list)| list.push(guest));
    }
    wanted.retain(|(_, list)| !list.is_empty());
    let made = compile::everything(&toolchain, workspace, args.profile.profile(), &wanted);
    let hypervisor = made.hypervisor.0?;
    let mut built = HashMap::new();
    for (arch, (executables, _)) in made.guests {
        built.extend(executables?.into_iter().map(|executable| ((executable.package, arch), executable.path)));
    }
    let executable =
        |name: &str, arch: Arch| built.get(&(name.to_owned(), arch)).context("cargo made no executable for the guest");
    let kernel = match &args.kernel {
        Some(file) => file.clone(),
        None => executable(&args.guest, args.arch)?.clone(),
    };
    let further = args.further.iter().map(|further| {
        let package = further.package(domain0).map(|(name, arch)| executable(name, arch)).transpose()?;
        Ok(further.module(package.map(PathBuf::as_path)))
    });
    Ok(Built { hypervisor, kernel, further: further.collect::<Result<_>>()? })
}

fn find<'a>(guests: &'a [Guest], name: &str, arch: Arch) -> Result<&'a Guest> {
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
        let (kernel, initrd, further) = (None, None, Vec::new());
        let hello = DomainArgs { arch, guest: "hello".to_owned(), kernel, initrd, further, ..args.domain.clone() };
        Ok(build(&workspace, &hello)?.kernel)
    })?;
    let boot = if args.domain.initrd.is_none() && built.further.is_empty() {
        Boot::Pvh { hypervisor: built.hypervisor.elf.clone(), kernel: Some(built.kernel) }
    } else {
        Boot::Multiboot {
            hypervisor: built.hypervisor.multiboot.clone(),
            kernel: built.kernel,
            initrd: args.domain.initrd.clone(),
            further: built.further,
        }
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
