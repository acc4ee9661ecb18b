//! How QEMU is started, and the contract between it, the hypervisor and this tool.
//!
//! # Ways to boot
//!
//! - **PVH** (the default): `-kernel proxenos` (ELF64 with a `XEN_ELFNOTE_PHYS32_ENTRY` note), `-initrd GUEST`, which
//!   arrives as the one and only module, and without a command line of its own.
//! - **Multiboot 1** (chosen when there is an initrd or a further domain besides the kernel): `-kernel
//!   proxenos.multiboot`, `-initrd "GUEST args,INITRD,GUEST domain options -- args"`. `proxenos.multiboot` is made
//!   after linking from the hypervisor's ELF64 file: an ELF32 file with the same segments at the same *physical*
//!   addresses and a Multiboot 1 header that this tool adds. It is entered in 32-bit protected mode at the ELF64 file's
//!   `e_entry` (translated to a physical address when it is a virtual one) with `eax = 0x2badb002` and `ebx` = the
//!   Multiboot 1 information.
//! - **Multiboot 2** (the ISO, by GRUB): the ELF64 file itself, which holds a Multiboot 2 header in its first 32 KiB.
//!   Entered at `e_entry` as well, with `eax = 0x36d76289`.
//!
//! PVH and Multiboot 1 work on pc, q35 and microvm; an ISO needs a drive, which microvm lacks.
//!
//! So the hypervisor provides: a PVH note; a Multiboot 2 header; one 32-bit `e_entry` that tells the two Multiboot
//! versions apart by `eax`. It must **not** hold a Multiboot 1 header (magic `0x1badb002`) in the first 8 KiB of
//! its file: QEMU looks for one before it looks for the PVH note.
//!
//! # Command lines
//!
//! The hypervisor's options stand in its own command line (`-append`). Under Multiboot 1 QEMU puts the file's path
//! before them as first word, which the hypervisor drops; under PVH and Multiboot 2 there is no such word. The guest's
//! command line is the first module's command line without its first word (the file name). Under PVH a module has none:
//! the guest's command line is then what follows the word `--` in the hypervisor's own command line, which is taken
//! wherever the module carries none (`debug-exit=0xf4 loglvl=all -- root=/dev/ram0 quiet`).
//!
//! # The end of a run
//!
//! Every machine has an `isa-debug-exit` device at port 0xf4, one byte written is what counts, and the hypervisor is
//! told by `debug-exit=0xf4`. When domain 0 shuts down with reason `r` (0..=0x7e) the hypervisor writes `r`, QEMU ends
//! with `(r << 1) | 1`, and `r` is the exit status of `cargo xtask run`. A hypervisor that panics writes 0x7f: exit
//! status 125. A refused domain-0 image is such a panic too. QEMU ending with 0 is an ACPI power-off: 0.
//!
//! # The console
//!
//! COM1. Lines of the hypervisor's log begin with `(px) `, of domain N's, where it may write any, with `(dN) `; all
//! else is domain 0's.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::accel::Accel;
use crate::apt;
use crate::further::Module;
use crate::guest_meta::Machine;
use crate::process::End;

/// The emulator.
pub const PROGRAM: &str = "qemu-system-x86_64";

/// Port of the exit device.
const EXIT_PORT: &str = "0xf4";

/// What the hypervisor writes to the exit port when it panics.
const PANIC: u8 = 0x7f;

/// Exit status of this tool for a hypervisor's panic.
pub const PANIC_STATUS: u8 = 125;

/// What is booted, and how.
#[derive(Clone, Debug)]
pub enum Boot {
    /// The ELF64 file, by PVH.
    Pvh {
        /// The hypervisor.
        hypervisor: PathBuf,
        /// Domain 0's kernel; the hypervisor panics without one.
        kernel: Option<PathBuf>,
    },
    /// The ELF32 file, by Multiboot 1.
    Multiboot {
        /// The hypervisor.
        hypervisor: PathBuf,
        /// Domain 0's kernel.
        kernel: PathBuf,
        /// Its initial RAM disk.
        initrd: Option<PathBuf>,
        /// Further domains.
        further: Vec<Module>,
    },
    /// An image with a boot loader, which has all command lines in it.
    Iso(PathBuf),
    /// Another hypervisor, by Multiboot 1: its options are `hv_args`, and no more.
    Peer {
        /// The hypervisor.
        hypervisor: PathBuf,
        /// Domain 0's kernel.
        kernel: PathBuf,
    },
}

/// Whether guest time is the host's or counted in instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Time passes as on the host.
    Host,
    /// An instruction takes a nanosecond, and a halted CPU skips to its next timer.
    Instructions,
}

/// Whether to wait for a debugger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Debugger {
    /// Start at once.
    None,
    /// Stop at the first instruction, and listen on TCP port 1234.
    Wait,
}

/// A machine to be started.
#[derive(Clone, Debug)]
pub struct Vm {
    /// The machine type.
    pub machine: Machine,
    /// Memory in MiB.
    pub memory: u32,
    /// What runs the CPU.
    pub accel: Accel,
    /// The way in.
    pub boot: Boot,
    /// The hypervisor's options.
    pub hv_args: String,
    /// The guest's command line.
    pub cmdline: String,
    /// The clock.
    pub clock: Clock,
    /// The debugger.
    pub debugger: Debugger,
}

/// Makes sure that QEMU is there.
pub fn need() -> Result<()> {
    apt::need_program(PROGRAM, &["qemu-system-x86"], "to boot the hypervisor")
}

/// The hypervisor's command line: what every run needs, the user's options, and the guest's line where no module
/// carries it.
pub fn hypervisor_line(hv_args: &str, guest_line: Option<&str>) -> String {
    let mut line = format!("debug-exit={EXIT_PORT}");
    if !hv_args.is_empty() {
        line.push(' ');
        line.push_str(hv_args);
    }
    if let Some(guest) = guest_line.filter(|guest| !guest.is_empty()) {
        line.push_str(" -- ");
        line.push_str(guest);
    }
    line
}

impl Vm {
    /// The command that starts it. `links` is a directory for links to the modules, which must outlive QEMU: QEMU
    /// splits the names of Multiboot modules at spaces and commas.
    ///
    /// # Errors
    /// Where the machine cannot boot that way, or a file is missing.
    pub fn command(&self, links: &Path) -> Result<Command> {
        let mut command = Command::new(PROGRAM);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-serial", "stdio"]);
        command.args(["-no-reboot", "-device", &format!("isa-debug-exit,iobase={EXIT_PORT},iosize=0x04")]);
        command.args(["-machine", &self.machine.to_string(), "-m", &format!("{}M", self.memory), "-cpu", "max"]);
        command.args(["-accel", self.accel.name()]);
        if self.clock == Clock::Instructions {
            ensure!(self.accel == Accel::Tcg, "instructions are counted under TCG only: use --accel tcg");
            command.args(["-icount", "shift=0,sleep=off", "-rtc", "base=2004-11-05T12:00:00,clock=vm"]);
        }
        if self.debugger == Debugger::Wait {
            command.args(["-gdb", "tcp::1234", "-S"]);
        }
        match &self.boot {
            Boot::Pvh { hypervisor, kernel } => {
                command.arg("-kernel").arg(hypervisor);
                if let Some(kernel) = kernel {
                    command.arg("-initrd").arg(link(links, "domain0", kernel)?);
                }
                command.args(["-append", &hypervisor_line(&self.hv_args, Some(&self.cmdline))]);
            }
            Boot::Multiboot { hypervisor, kernel, initrd, further } => {
                // Its own path is part of what the loader copies: no longer in one checkout than in another.
                command.arg("-kernel").arg(link(links, "hypervisor", hypervisor)?);
                let mut modules = link(links, "domain0", kernel)?.into_os_string();
                // A comma ends a module; a doubled one stands for itself.
                modules.push(format!(" {}", self.cmdline.replace(',', ",,")).trim_end());
                if let Some(initrd) = initrd {
                    modules.push(",");
                    modules.push(link(links, "initrd", initrd)?);
                }
                for (number, module) in (1..).zip(further) {
                    modules.push(",");
                    modules.push(link(links, &format!("domain{number}"), &module.kernel)?);
                    modules.push(format!(" {}", module.line.replace(',', ",,")));
                }
                command.arg("-initrd").arg(modules);
                command.args(["-append", &hypervisor_line(&self.hv_args, None)]);
            }
            Boot::Peer { hypervisor, kernel } => {
                let mut module = link(links, "domain0", kernel)?.into_os_string();
                module.push(format!(" {}", self.cmdline.replace(',', ",,")).trim_end());
                command.arg("-kernel").arg(link(links, "hypervisor", hypervisor)?).arg("-initrd").arg(module);
                command.args(["-append", &self.hv_args]);
            }
            Boot::Iso(image) => {
                ensure!(self.machine != Machine::Microvm, "the microvm machine has no CD-ROM drive");
                let mut drive = OsString::from("media=cdrom,readonly=on,format=raw,file=");
                drive.push(image.to_string_lossy().replace(',', ",,"));
                command.args(["-boot", "d", "-vga", "std", "-drive"]).arg(drive);
            }
        }
        Ok(command)
    }
}

fn link(dir: &Path, name: &str, file: &Path) -> Result<PathBuf> {
    let target = file.canonicalize().with_context(|| format!("cannot find {}", file.display()))?;
    let path = dir.join(name);
    std::os::unix::fs::symlink(&target, &path).with_context(|| format!("cannot link {}", path.display()))?;
    Ok(path)
}

/// How a machine ended, as the contract above has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Domain 0 shut down, with this reason.
    Shutdown(u8),
    /// The hypervisor panicked.
    Panic,
    /// ACPI power-off, or QEMU was told to quit.
    PowerOff,
    /// QEMU itself failed.
    Failed,
    /// It was killed after its time.
    TimedOut,
    /// The user stopped it.
    Interrupted,
}

impl Outcome {
    /// Reads QEMU's end. Its status 1 is both a shutdown with reason 0 and its own failure to start; a machine
    /// that wrote nothing and a QEMU that complained tell the second.
    pub fn read(end: End, console: &str, errors: &str) -> Self {
        let status = match end {
            End::Exited(status) => status,
            End::TimedOut => return Self::TimedOut,
            End::Stuck => return Self::Failed,
            End::Interrupted => return Self::Interrupted,
        };
        match status.code() {
            Some(0) => Self::PowerOff,
            Some(1) if console.is_empty() && !errors.is_empty() => Self::Failed,
            Some(code) if code & 1 == 1 => match u8::try_from(code >> 1) {
                Ok(PANIC) => Self::Panic,
                Ok(reason) => Self::Shutdown(reason),
                Err(_) => Self::Failed,
            },
            _ => Self::Failed,
        }
    }

    /// The exit status that stands for it.
    pub fn status(self) -> u8 {
        match self {
            Self::PowerOff => 0,
            Self::Shutdown(reason) => reason,
            Self::TimedOut => 124,
            Self::Panic => PANIC_STATUS,
            Self::Failed => 126,
            Self::Interrupted => 130,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    fn exit(code: i32) -> End {
        End::Exited(ExitStatus::from_raw(code << 8))
    }

    #[test]
    fn exit_codes_are_read_back() {
        assert_eq!(Outcome::read(exit(0), "x", ""), Outcome::PowerOff);
        assert_eq!(Outcome::read(exit(1), "x", "warning"), Outcome::Shutdown(0));
        assert_eq!(Outcome::read(exit(1), "", "qemu: bad option"), Outcome::Failed);
        assert_eq!(Outcome::read(exit(7), "x", ""), Outcome::Shutdown(3));
        assert_eq!(Outcome::read(exit(255), "x", ""), Outcome::Panic);
        assert_eq!(Outcome::read(exit(2), "x", ""), Outcome::Failed);
        assert_eq!(Outcome::read(End::Exited(ExitStatus::from_raw(9)), "x", ""), Outcome::Failed);
        assert_eq!(Outcome::read(End::TimedOut, "x", "").status(), 124);
    }

    #[test]
    fn the_guests_line_follows_two_dashes() {
        assert_eq!(hypervisor_line("", None), "debug-exit=0xf4");
        assert_eq!(hypervisor_line("loglvl=all", Some("a b")), "debug-exit=0xf4 loglvl=all -- a b");
        assert_eq!(hypervisor_line("", Some("")), "debug-exit=0xf4");
    }

    fn vm(machine: Machine, boot: Boot) -> Vm {
        Vm {
            machine,
            memory: 64,
            accel: Accel::Tcg,
            boot,
            hv_args: String::new(),
            cmdline: "a=1,2 b".to_owned(),
            clock: Clock::Host,
            debugger: Debugger::None,
        }
    }

    fn arguments(command: &Command) -> Vec<String> {
        command.get_args().map(|a| a.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn multiboot_modules_are_one_list_with_commas_doubled() {
        let dir = tempfile::tempdir().expect("a directory");
        let kernel = dir.path().join("a, strange name");
        std::fs::write(&kernel, "").expect("writable");
        let links = tempfile::tempdir().expect("a directory");
        let boot = |initrd| Boot::Multiboot {
            hypervisor: kernel.clone(),
            kernel: kernel.clone(),
            initrd,
            further: vec![Module { kernel: kernel.clone(), line: "domain mem=8M -- x,y".to_owned() }],
        };
        let command = vm(Machine::Pc, boot(Some(kernel.clone()))).command(links.path()).expect("valid");
        let place = links.path().display();
        let last = "domain1 domain mem=8M -- x,,y";
        let list = format!("{place}/domain0 a=1,,2 b,{place}/initrd,{place}/{last}");
        assert!(arguments(&command).contains(&list));
        let bare = tempfile::tempdir().expect("a directory");
        let command = vm(Machine::Pc, boot(None)).command(bare.path()).expect("valid");
        let place = bare.path().display();
        assert!(arguments(&command).contains(&format!("{place}/domain0 a=1,,2 b,{place}/{last}")));
    }

    #[test]
    fn a_peer_is_told_nothing_of_our_hypervisors() {
        let dir = tempfile::tempdir().expect("a directory");
        let kernel = dir.path().join("guest");
        std::fs::write(&kernel, "").expect("writable");
        let mut peer = vm(Machine::Pc, Boot::Peer { hypervisor: kernel.clone(), kernel });
        peer.hv_args = "console=com1".to_owned();
        let command = peer.command(dir.path()).expect("valid");
        let tail = ["-initrd".to_owned(), format!("{}/domain0 a=1,,2 b", dir.path().display())];
        let tail: Vec<_> = tail.into_iter().chain(["-append".to_owned(), "console=com1".to_owned()]).collect();
        assert!(arguments(&command).ends_with(&tail));
    }

    #[test]
    fn a_microvm_has_no_drive_for_an_image() {
        let links = tempfile::tempdir().expect("a directory");
        assert!(vm(Machine::Microvm, Boot::Iso("x.iso".into())).command(links.path()).is_err());
    }

    #[test]
    fn a_missing_kernel_is_named() {
        let links = tempfile::tempdir().expect("a directory");
        let boot = Boot::Pvh { hypervisor: "px".into(), kernel: Some("no/such/file".into()) };
        let error = vm(Machine::Pc, boot).command(links.path()).expect_err("missing");
        assert!(format!("{error:#}").contains("no/such/file"));
    }
}
