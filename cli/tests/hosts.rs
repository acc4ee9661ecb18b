//! Hosts that are started and stopped, with a script in QEMU's place whose machine is a process that sleeps, and a
//! control domain of lies ([`fake`]) at its sockets.

#![allow(dead_code, reason = "the fake has more than is used here")]

mod fake;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fake::{Fake, Manner, failed, proxenos};

/// Puts a script where QEMU is looked for, and images where a host's are.
fn install(root: &Path, script: &str) {
    let bin = root.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let program = bin.join("qemu-system-x86_64");
    std::fs::write(&program, format!("#!/bin/sh\necho \"$@\" > {}/arguments\n{script}", root.display())).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let images = root.join("images");
    std::fs::create_dir_all(&images).unwrap();
    for image in ["proxenos.multiboot", "control"] {
        std::fs::write(images.join(image), "").unwrap();
    }
}

fn command(root: &Path, args: &[&str]) -> Command {
    let mut command = proxenos(root, args);
    let path = format!("{}:{}", root.join("bin").display(), std::env::var("PATH").unwrap());
    command.env("PATH", path).env("PROXENOS_IMAGES", root.join("images")).env("PROXENOS_ACCEL", "tcg");
    command.stdin(Stdio::null());
    command
}

/// As QEMU: a machine that goes on, its number, and sockets by the time it returns.
const MACHINE: &str = r#"
dir="$XDG_RUNTIME_DIR/proxenos/default"
sleep 1000 > /dev/null 2>&1 &
echo $! > "$dir/qemu.pid"
while ! [ -S "$dir/channel-0.sock" ]; do sleep 0.05; done
"#;

/// The control domain comes up when its machine is there.
fn answer_when_started(fake: &Fake) {
    let host = fake.dir.path().join("proxenos/default");
    let until = Instant::now() + Duration::from_secs(60);
    while !host.join("qemu.pid").exists() {
        assert!(Instant::now() < until, "nothing is started");
        std::thread::sleep(Duration::from_millis(10));
    }
    fake.listen(Manner::Proper, &host, 1);
}

fn pid(fake: &Fake) -> u64 {
    let status = command(fake.dir.path(), &["--json", "host", "status"]).output().unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["state"], "running");
    status["pid"].as_u64().unwrap()
}

fn is_there(pid: u64) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn a_host_outlives_the_command_that_started_it_and_is_found_and_stopped() {
    let fake = Fake::without_host();
    let root = fake.dir.path();
    install(root, MACHINE);
    let args = ["host", "start", "--channels", "3", "--cpus", "2", "--memory", "256M", "--sched", "atropos"];
    let child = command(root, &args).stderr(Stdio::piped()).spawn().unwrap();
    answer_when_started(&fake);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let machine = pid(&fake);
    assert!(is_there(machine));
    let line = std::fs::read_to_string(root.join("arguments")).unwrap();
    for part in ["-m 256M", "-smp 2", "-accel tcg", "channel-2.sock", "dom0_mem=128M sched=atropos", "-daemonize"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert!(!line.contains("channel-3.sock"), "{line}");
    let again = command(root, &["host", "start"]).output().unwrap();
    assert!(again.status.success() && String::from_utf8_lossy(&again.stderr).contains("already"), "{again:?}");
    assert_eq!(pid(&fake), machine);
    assert!(command(root, &["list"]).output().unwrap().status.success());
    assert!(command(root, &["host", "stop"]).output().unwrap().status.success());
    assert!(!is_there(machine));
    assert!(fake.state.lock().unwrap().requests.contains(&"HostStop".to_owned()), "it was asked first");
    assert!(!root.join("proxenos/default").exists());
}

#[test]
fn run_starts_the_host_that_it_needs() {
    let fake = Fake::without_host();
    let root = fake.dir.path();
    install(root, MACHINE);
    let kernel = root.join("k");
    std::fs::write(&kernel, b"\x7fELF").unwrap();
    let args = ["run", kernel.to_str().unwrap(), "--", "print=hello", "exit=0"];
    let child = command(root, &args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    answer_when_started(&fake);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stdout == b"hello\n", "{output:?}");
    assert!(command(root, &["host", "stop", "--force"]).output().unwrap().status.success());
}

#[test]
fn what_keeps_a_host_from_starting_is_told_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let start = |args: &[&str]| {
        let failure = failed(&command(root, &[&["host", "start"], args].concat()).output().unwrap());
        assert!(!root.join("proxenos/default").exists());
        failure
    };
    install(root, "echo 'that is no machine' >&2; exit 1\n");
    let (status, words) = start(&[]);
    assert!(status == 69 && words.contains("that is no machine"), "{words}");

    install(root, "sleep 0 & echo $! > $XDG_RUNTIME_DIR/proxenos/default/qemu.pid; wait");
    let (status, words) = start(&[]);
    assert!(status == 69 && words.contains("ended at once"), "{words}");

    // It runs and says something, and its control domain does not: it is ended.
    let console = "echo '(px) what happened' > $XDG_RUNTIME_DIR/proxenos/default/console.log";
    let silent = format!(
        "{console}\nsleep 1000 >/dev/null 2>&1 & echo $! > {0}/pid; cp {0}/pid {0}/proxenos/default/qemu.pid",
        root.display()
    );
    install(root, &silent);
    let (status, words) = start(&["--timeout", "1"]);
    assert!(status == 69 && words.contains("(px) what happened") && words.contains("default.failed.log"), "{words}");
    let machine = std::fs::read_to_string(root.join("pid")).unwrap().trim().parse().unwrap();
    assert!(!is_there(machine));

    let (status, words) = start(&["--images", "/nowhere"]);
    assert!(status == 66 && words.contains("/nowhere") && words.contains("cargo xtask build proxenos"), "{words}");
    let output = command(root, &["host", "start"]).env("PATH", "/nowhere").output().unwrap();
    let (status, words) = failed(&output);
    assert!(status == 69 && words.contains("not installed"), "{words}");
}
