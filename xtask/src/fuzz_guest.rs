//! `cargo xtask fuzz-guest`: the blind guest, one seed after the other, until the time is over.
//!
//! The guest may do to itself what it likes: that it was ended is counted, and the next seed begins. A failure is what
//! the host must not do: a panic (a violation that an audit found is one), a triple fault, silence. Time is counted in
//! instructions, so the command that is printed with a failure repeats it to the digit, with the same compiler and
//! QEMU.

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};

use crate::FuzzGuestArgs;
use crate::accel::Accel;
use crate::compile::{self, Hypervisor, Profile};
use crate::console::{self, Capture};
use crate::guest_meta::{Arch, Machine};
use crate::process;
use crate::qemu::{self, Boot, Clock, Debugger, Outcome, Vm};
use crate::toolchain::Toolchain;
use crate::workspace::Workspace;

/// The guest.
const GUEST: &str = "fuzz-blind";
/// Memory of the machine, in MiB.
const MEMORY: u32 = 128;
/// Operations of one boot.
const OPERATIONS: u32 = 20_000;
/// What each thousand operations print, and the seed and the first one besides.
const HEARTBEAT: &str = "blind: ";
/// A console that is silent for so long belongs to a machine that hangs.
const SILENCE: Duration = Duration::from_secs(30);
/// What QEMU 7.2's emulation says before it stops because code goes on from a page of RAM to one of nothing.
const EMULATOR: &str = "translator_access: Assertion `phys_page != -1' failed";

/// How a seed went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The guest did all its operations.
    Finished,
    /// The hypervisor, or the guest itself, ended the guest.
    Ended,
    /// QEMU stopped at an assertion of its own that guests can break.
    Emulator,
    /// The host did what it must not.
    Failed(&'static str),
    /// The user stopped it.
    Interrupted,
}

/// Judges one boot.
fn judge(outcome: Outcome, console: &str) -> Verdict {
    // Every end of a domain is audited, so a machine without such a line did not get there.
    let audited = console.lines().any(|line| line.contains("audit: ") && line.trim_end().ends_with(": all hold"));
    match outcome {
        Outcome::Interrupted => Verdict::Interrupted,
        Outcome::Panic => Verdict::Failed("the hypervisor panicked"),
        Outcome::TimedOut => Verdict::Failed("no sign of life for 30 s"),
        Outcome::PowerOff => Verdict::Failed("the machine was reset or switched off (a triple fault?)"),
        Outcome::Failed if console.contains(EMULATOR) => Verdict::Emulator,
        Outcome::Failed => Verdict::Failed("QEMU failed"),
        Outcome::Shutdown(_) if !audited => Verdict::Failed("the machine ended without the domain's end"),
        Outcome::Shutdown(0) => Verdict::Finished,
        // Of what it has done to itself, it may give any reason.
        Outcome::Shutdown(_) => Verdict::Ended,
    }
}

/// The seed after this one, as SplitMix64 has it.
fn next(seed: u64) -> u64 {
    let seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The command that repeats a seed.
fn command_for(arch: Arch, seed: u64) -> String {
    format!(
        "cargo xtask run --guest {GUEST} --arch {arch} --memory {MEMORY} --accel tcg --icount --hv-args audit=calls \
         --cmdline \"seed={seed} operations={OPERATIONS}\""
    )
}

/// A console that remembers when it last heard anything.
#[derive(Clone)]
struct Heard {
    capture: Capture,
    last: Arc<Mutex<Instant>>,
}

impl Write for Heard {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.capture.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Boots one seed.
fn boot(hypervisor: &Hypervisor, kernel: &Path, seed: u64) -> Result<(Verdict, String)> {
    let vm = Vm {
        machine: Machine::Pc,
        memory: MEMORY,
        accel: Accel::Tcg,
        boot: Boot::Pvh { hypervisor: hypervisor.elf.clone(), kernel: Some(kernel.to_owned()) },
        hv_args: "audit=calls".to_owned(),
        cmdline: format!("seed={seed} operations={OPERATIONS}"),
        clock: Clock::Instructions,
        debugger: Debugger::None,
    };
    let links = tempfile::tempdir()?;
    let heard = Heard { capture: Capture::default(), last: Arc::new(Mutex::new(Instant::now())) };
    let sink = heard.clone();
    let silent = move || heard.last.lock().unwrap_or_else(PoisonError::into_inner).elapsed() > SILENCE;
    let capture = sink.capture.clone();
    let mut command = vm.command(links.path())?;
    command.stdin(std::process::Stdio::null());
    let (end, errors) = process::stream_until(&mut command, silent, sink)?;
    let console = capture.text();
    let text = format!("{console}{errors}");
    Ok((judge(Outcome::read(end, &console, &errors), &text), text))
}

/// Boots seeds until the time is over or one fails; the value is the exit status.
pub fn command(args: &FuzzGuestArgs) -> Result<u8> {
    let workspace = Workspace::load()?;
    qemu::need()?;
    let guests = workspace.guests()?;
    let guest =
        guests.iter().find(|guest| guest.name == GUEST).with_context(|| format!("there is no guest `{GUEST}`"))?;
    let archs: Vec<Arch> = args.arch.map_or_else(|| Arch::ALL.to_vec(), |arch| vec![arch]);
    let toolchain = Toolchain::bare_metal(&workspace)?;
    let wanted: Vec<_> = archs.iter().map(|arch| (*arch, vec![guest])).collect();
    let made = compile::everything(&toolchain, &workspace, Profile::Release, &wanted);
    let hypervisor = made.hypervisor.0?;
    let mut kernels = Vec::new();
    for (arch, (built, _)) in made.guests {
        kernels.push((arch, built?.pop().context("cargo made no executable for the guest")?.path));
    }
    let log = workspace.target_subdir("test-logs")?.join("fuzz-guest.log");
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut seed = args.seed.unwrap_or_else(now);
    let start = Instant::now();
    let (mut finished, mut ended, mut emulator, mut operations) = (0u32, 0u32, 0u32, 0);
    while start.elapsed() < Duration::from_secs(args.seconds) || finished + ended == 0 {
        for (arch, kernel) in &kernels {
            console::step(&format!("{arch}: seed {seed}"));
            let (verdict, text) = boot(&hypervisor, kernel, seed)?;
            operations += text.matches(HEARTBEAT).count().saturating_sub(2);
            std::fs::write(&log, text).with_context(|| format!("cannot write {}", log.display()))?;
            match verdict {
                Verdict::Finished => finished += 1,
                Verdict::Ended => ended += 1,
                Verdict::Emulator => emulator += 1,
                Verdict::Interrupted => return Ok(Outcome::Interrupted.status()),
                Verdict::Failed(why) => {
                    anstream::eprintln!("{0}error:{0:#} {arch}, seed {seed}: {why}", console::ERROR);
                    console::step(&format!("the console is in {}; to repeat it:", log.display()));
                    println!("{}", command_for(*arch, seed));
                    return Ok(1);
                }
            }
        }
        seed = next(seed);
    }
    console::step(&format!(
        "{} boots, {operations} thousand operations: {finished} guests did all of theirs, {ended} were ended, {emulator} stopped QEMU; \
         the host outlived all",
        finished + ended + emulator
    ));
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUDITED: &str = "(px) audit: 3 frames: all hold\n";

    #[test]
    fn a_guests_end_is_no_failure() {
        assert_eq!(judge(Outcome::Shutdown(0), AUDITED), Verdict::Finished);
        assert_eq!(judge(Outcome::Shutdown(126), AUDITED), Verdict::Ended);
        assert_eq!(judge(Outcome::Shutdown(3), AUDITED), Verdict::Ended);
    }

    #[test]
    fn what_the_host_must_not_do_is_one() {
        let others = [Outcome::Panic, Outcome::TimedOut, Outcome::PowerOff, Outcome::Failed];
        for outcome in others {
            assert!(matches!(judge(outcome, AUDITED), Verdict::Failed(_)), "{outcome:?}");
        }
        assert!(matches!(judge(Outcome::Shutdown(0), "no word of it"), Verdict::Failed(_)));
    }

    #[test]
    fn the_command_that_is_printed_repeats_the_seed() {
        let line = command_for(Arch::X86_32, 0x1234_5678_9abc_def0);
        assert!(line.contains("seed=1311768467463790320 operations=20000"), "{line}");
        assert!(line.contains("--arch x86_32") && line.contains("--icount"), "{line}");
    }

    #[test]
    fn seeds_do_not_come_again_soon() {
        let mut seeds = std::collections::BTreeSet::from([1]);
        let mut seed = 1;
        for _ in 0..10_000 {
            seed = next(seed);
            assert!(seeds.insert(seed));
        }
    }
}
