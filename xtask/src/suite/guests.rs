//! Guests in QEMU: which runs there are, and running them, two at a time.
//!
//! Always under TCG: what it makes of a guest does not depend on the host, and it knows every machine there is.

use std::collections::{HashMap, VecDeque};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::nmi::Injector;
use super::talk::{self, Talk};
use super::{Verdict, judge, log_path, spoil};
use crate::accel::Accel;
use crate::compile::Hypervisor;
use crate::console::Capture;
use crate::guest_meta::{Arch, Boot, Input, Kind, RunSpec};
use crate::iso::{self, Contents};
use crate::process;
use crate::qemu::{self, Clock, Debugger, Outcome, Vm};
use crate::workspace::{Guest, Workspace};

/// How many QEMUs run at once: each is one busy thread, and a guest that is starved of time may run out of it.
const WORKERS: usize = 2;

/// One run of one guest.
#[derive(Clone, Debug)]
pub struct Row {
    /// `guest/arch`, or `guest/arch/run`.
    pub name: String,
    /// The guest's package.
    pub guest: String,
    /// Its directory, for files its manifest names.
    pub dir: PathBuf,
    /// Architecture.
    pub arch: Arch,
    /// How it is judged.
    pub kind: Kind,
    /// Everything else.
    pub spec: RunSpec,
}

/// Every run of every guest, in the order of names.
pub fn plan(guests: &[Guest]) -> Vec<Row> {
    let mut rows = Vec::new();
    for guest in guests {
        for spec in &guest.meta.runs {
            for arch in &spec.arch {
                let suffix = spec.name.as_ref().map(|name| format!("/{name}")).unwrap_or_default();
                rows.push(Row {
                    name: format!("{}/{arch}{suffix}", guest.name),
                    guest: guest.name.clone(),
                    dir: guest.dir.clone(),
                    arch: *arch,
                    kind: guest.meta.kind,
                    spec: spec.clone(),
                });
            }
        }
    }
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    rows
}

impl Row {
    /// The guests that it takes, each with its architecture.
    pub fn guests(&self) -> impl Iterator<Item = (&str, Arch)> {
        let further = self.spec.domains.iter().chain(&self.spec.uploads).filter_map(|domain| domain.package(self.arch));
        core::iter::once((self.guest.as_str(), self.arch)).chain(further)
    }
}

/// The guests' executables.
pub type Images = HashMap<(String, Arch), PathBuf>;

/// What all runs share.
pub struct Runner {
    hypervisor: Hypervisor,
    images: Images,
    logs: PathBuf,
}

impl Runner {
    /// With everything built.
    pub fn new(workspace: &Workspace, hypervisor: Hypervisor, images: Images) -> Result<Self> {
        Ok(Self { hypervisor, images, logs: workspace.target_subdir("test-logs")? })
    }

    /// Runs all rows and tells of each as it ends, on the calling thread.
    pub fn run_all(&self, rows: Vec<Row>, mut done: impl FnMut(&str, &Verdict, f32)) {
        let queue = Mutex::new(VecDeque::from(rows));
        let (sender, receiver) = mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..WORKERS {
                let (queue, sender) = (&queue, sender.clone());
                scope.spawn(move || {
                    while !process::interrupted() {
                        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                        let Some(row) = next else { break };
                        let start = Instant::now();
                        let verdict = self.run(&row).unwrap_or_else(|error| Verdict::Fail(format!("{error:#}")));
                        if sender.send((row.name, verdict, start.elapsed().as_secs_f32())).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            for (name, verdict, seconds) in receiver {
                done(&name, &verdict, seconds);
            }
        });
    }

    fn image(&self, guest: &str, arch: Arch) -> Option<&Path> {
        self.images.get(&(guest.to_owned(), arch)).map(PathBuf::as_path)
    }

    fn run(&self, row: &Row) -> Result<Verdict> {
        let Some(built) = self.image(&row.guest, row.arch) else {
            return Ok(Verdict::Fail("the guest was not built".to_owned()));
        };
        let scratch = tempfile::tempdir()?;
        let spec = &row.spec;
        let kernel = if spec.spoil.is_empty() {
            built.to_owned()
        } else {
            let spoiled = scratch.path().join("spoiled");
            std::fs::write(&spoiled, spoil::apply(std::fs::read(built)?, &spec.spoil)?)?;
            spoiled
        };
        let vm = Vm {
            machine: spec.machine,
            memory: spec.memory,
            accel: Accel::Tcg,
            boot: self.boot(row, kernel, scratch.path())?,
            hv_args: hypervisor_args(spec),
            cmdline: spec.cmdline.clone(),
            clock: if spec.icount { Clock::Instructions } else { Clock::Host },
            debugger: Debugger::None,
        };
        let mut command = vm.command(scratch.path())?;
        command.args(["-smp", &spec.cpus.to_string()]);
        // The last one counts.
        if let Some(model) = &spec.cpu_model {
            command.args(["-cpu", model]);
        }
        for device in &spec.devices {
            command.args(["-device", device]);
        }
        let talk = match &spec.script {
            Some(script) => {
                Some(Talk::start(script, talk::add_channels(&mut command, scratch.path()), self.images.clone())?)
            }
            None => None,
        };
        let capture = Capture::default();
        let injector = spec.nmi.as_ref().map(|nmis| Injector::new(&mut command, nmis, scratch.path(), &capture));
        let (start, limit) = (Instant::now(), Duration::from_secs(spec.timeout));
        let over = || start.elapsed() > limit || talk.as_ref().is_some_and(Talk::has_failed);
        let typist = typist(&mut command, &spec.input, &capture)?;
        let result = process::stream_until(&mut command, over, capture.clone());
        // Its pipe has no other end any more, but it may wait for a text that never came.
        typist.stop();
        let injected = injector.map(Injector::stop);
        let talked = talk.map_or(Ok(()), Talk::finish);
        let (end, errors) = result?;
        let console = capture.text();
        let log = log_path(&self.logs, &row.name);
        std::fs::write(&log, format!("{console}{errors}"))
            .with_context(|| format!("cannot write {}", log.display()))?;
        if let Err(error) = talked {
            return Ok(Verdict::Fail(format!("the script: {error:#}")));
        }
        let verdict = judge::judge(row.kind, spec, Outcome::read(end, &console, &errors), &console);
        match injected {
            Some(injected) if verdict == Verdict::Pass => Ok(injected?.judge(&console)),
            _ => Ok(verdict),
        }
    }

    fn boot(&self, row: &Row, kernel: PathBuf, scratch: &Path) -> Result<qemu::Boot> {
        let initrd = row.spec.initrd.as_ref().map(|file| row.dir.join(file));
        let mut further = Vec::new();
        for domain in &row.spec.domains {
            let built = match domain.package(row.arch) {
                Some((name, arch)) => Some(self.image(name, arch).with_context(|| format!("`{name}` was not built"))?),
                None => None,
            };
            further.push(domain.module(built));
        }
        Ok(match row.spec.boot {
            Boot::Pvh => qemu::Boot::Pvh { hypervisor: self.hypervisor.elf.clone(), kernel: Some(kernel) },
            Boot::Multiboot => {
                qemu::Boot::Multiboot { hypervisor: self.hypervisor.multiboot.clone(), kernel, initrd, further }
            }
            Boot::Iso => {
                let image = scratch.join("image.iso");
                let contents = Contents {
                    hypervisor: &self.hypervisor.elf,
                    kernel: &kernel,
                    initrd: initrd.as_deref(),
                    further: &further,
                    hypervisor_line: qemu::hypervisor_line(&hypervisor_args(&row.spec), None),
                    guest_line: row.spec.cmdline.clone(),
                    menu_seconds: 0,
                };
                iso::make(&contents, &image)?;
                qemu::Boot::Iso(image)
            }
        })
    }
}

/// A run's own options, after the one that all runs have: of two that are the same, the last counts.
fn hypervisor_args(spec: &RunSpec) -> String {
    format!("audit {}", spec.hv_args).trim_end().to_owned()
}

/// Somebody who types at a console.
struct Typist(Option<(Arc<AtomicBool>, JoinHandle<()>)>);

impl Typist {
    fn stop(self) {
        if let Some((stop, thread)) = self.0 {
            stop.store(true, Ordering::Relaxed);
            drop(thread.join());
        }
    }
}

/// Connects the command's standard input with what is to be typed when the console has shown what it is to come after.
fn typist(command: &mut Command, input: &[Input], console: &Capture) -> Result<Typist> {
    if input.is_empty() {
        command.stdin(Stdio::null());
        return Ok(Typist(None));
    }
    let (reader, mut writer) = std::io::pipe().context("no pipe")?;
    command.stdin(reader);
    let stop = Arc::new(AtomicBool::new(false));
    let (input, console, ended) = (input.to_vec(), console.clone(), stop.clone());
    let thread = std::thread::spawn(move || {
        let mut shown = HashMap::<String, usize>::new();
        for Input { after, send } in input {
            let wanted = shown.entry(after.clone()).or_default();
            *wanted += 1;
            while console.text().matches(&after).count() < *wanted {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            // A machine that has ended reads nothing.
            drop(writer.write_all(send.as_bytes()));
        }
        // The pipe stays open: its end would be one more thing that the machine sees.
        while !ended.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    Ok(Typist(Some((stop, thread))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_meta::GuestMeta;

    #[test]
    fn every_run_of_every_architecture_is_a_row() {
        let json = r#"{"proxenos": {"kind": "test", "run": [{"name": "q35", "machine": "q35", "arch": ["x86_64"]}]}}"#;
        let meta = GuestMeta::from_package_metadata(&serde_json::from_str(json).expect("JSON")).expect("valid");
        let guest = Guest { name: "g".to_owned(), dir: "guests/g".into(), meta };
        let names: Vec<String> = plan(&[guest]).into_iter().map(|row| row.name).collect();
        assert_eq!(names, ["g/x86_32", "g/x86_64", "g/x86_64/q35"]);
    }
}
