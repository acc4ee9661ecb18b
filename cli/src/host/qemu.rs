//! QEMU's command line for a host. What makes it a machine for the hypervisor is as in xtask's `qemu.rs`: Multiboot 1
//! with domain 0 as the first module, an exit device, the console at COM1.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use clap::ValueEnum;

use super::Place;

/// The emulator.
pub const PROGRAM: &str = "qemu-system-x86_64";

/// What runs the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Accel {
    /// KVM where a host comes up with it, else QEMU's translator
    Auto,
    /// The CPU itself
    Kvm,
    /// QEMU's translator
    Tcg,
}

/// The hypervisor's scheduler, by its option's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scheduler {
    /// Borrowed virtual time
    Bvt,
    /// Round robin
    Rrobin,
    /// Atropos: guaranteed slices of periods
    Atropos,
}

impl Scheduler {
    /// The option's value.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bvt => "bvt",
            Self::Rrobin => "rrobin",
            Self::Atropos => "atropos",
        }
    }
}

/// The machine, all decided.
pub struct Machine<'a> {
    /// Where its sockets and logs go.
    pub place: &'a Place,
    /// `kvm` or `tcg`.
    pub accel: &'a str,
    /// CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Channels.
    pub channels: u32,
    /// The hypervisor's Multiboot 1 image.
    pub hypervisor: &'a Path,
    /// The control domain. No comma or space is in its path.
    pub control: &'a Path,
    /// Its command line.
    pub control_line: &'a str,
    /// The hypervisor's options.
    pub options: &'a str,
    /// Where QEMU writes its number.
    pub pid_file: &'a Path,
}

impl Machine<'_> {
    /// The command. It returns when the machine has begun, which then is nobody's child, or with what is wrong on its
    /// standard error.
    pub fn command(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        let comma = |path: &Path| path.to_string_lossy().replace(',', ",,");
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-no-reboot"]);
        command
            .args(["-name", &format!("proxenos-{}", self.place.name()), "-daemonize", "-pidfile"])
            .arg(self.pid_file);
        command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04", "-machine", "pc", "-cpu", "max"]);
        command.args(["-m", &format!("{}M", self.memory_mib), "-smp", &self.cpus.to_string(), "-accel", self.accel]);
        command.args(["-chardev", &format!("file,id=console,path={}", comma(&self.place.console_log()))]);
        command.args(["-serial", "chardev:console"]);
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", comma(&self.place.qmp()))]);
        for channel in 0..self.channels {
            let socket = comma(&self.place.channel(channel));
            command.args(["-chardev", &format!("socket,id=channel{channel},path={socket},server=on,wait=off")]);
            command.args(["-device", &format!("virtio-serial-pci,id=bus{channel},max_ports=1")]);
            command.args(["-device", &format!("virtconsole,bus=bus{channel}.0,chardev=channel{channel}")]);
        }
        let mut module = OsString::from(self.control);
        if !self.control_line.is_empty() {
            module.push(format!(" {}", self.control_line.replace(',', ",,")));
        }
        command.arg("-kernel").arg(self.hypervisor).arg("-initrd").arg(module);
        command.args(["-append", &format!("debug-exit=0xf4 {}", self.options)]);
        command
    }
}
