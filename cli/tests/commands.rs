//! The program itself against a control domain of lies ([`fake`]): every command, its output, and what it does when
//! nobody answers, when the channel is full of noise, and when all channels are taken.

#![allow(dead_code, reason = "the fake has more than is used here")]

mod fake;

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use fake::{Fake, Manner, failed, host_dir, proxenos, record};
use serde_json::json;

/// A fake with three guests, each of which has been given a command line.
fn with_guests() -> Fake {
    let fake = Fake::start(Manner::Proper, 2);
    for name in ["a", "b", "c"] {
        fake.text(&["run", "--detach", "--name", name, "--memory", "16M", &kernel(&fake)]);
    }
    fake
}

/// A file that looks like a kernel, of a few chunks.
fn kernel(fake: &Fake) -> String {
    let path = fake.dir.path().join("kernel.elf");
    let mut bytes = b"\x7fELF".to_vec();
    bytes.extend((0..50_000u32).map(|n| (n * 7 % 251) as u8));
    std::fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

#[test]
fn list_is_whole_and_in_order() {
    let fake = with_guests();
    let list = fake.json(&["list"]);
    let names: Vec<_> = list.as_array().unwrap().iter().map(|d| d["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["Domain-0", "a", "b", "c"]);
    assert_eq!(list[1]["memory_kib"], 16 << 10);
    assert_eq!(list[1]["state"], "blocked");
    let text = fake.text(&["list"]);
    assert!(text.lines().count() == 5 && text.contains("x86_64") && text.contains("16M"), "{text}");
}

#[test]
fn info_tells_of_host_and_domain() {
    let fake = with_guests();
    let host = fake.json(&["info"]);
    assert_eq!((&host["scheduler"], &host["cpus"], &host["domains"]), (&json!("bvt"), &json!(2), &json!(4)));
    assert_eq!(fake.json(&["info", "b"])["id"], 2);
    assert_eq!(fake.json(&["info", "2"])["name"], "b");
    assert!(fake.text(&["info"]).contains("memory_free_kib"));
    let (status, words) = fake.failure(&["info", "nobody"]);
    assert!(status == 66 && words.contains("nobody") && words.contains("proxenos list"), "{words}");
}

#[test]
fn lives_are_changed() {
    let fake = with_guests();
    fake.text(&["pause", "a", "2"]);
    assert_eq!(fake.json(&["info", "a"])["state"], "paused");
    assert_eq!(fake.json(&["info", "b"])["state"], "paused");
    fake.text(&["unpause", "a"]);
    assert_eq!(fake.json(&["info", "a"])["state"], "running");
    fake.text(&["reboot", "--force", "a"]);
    assert_eq!(fake.json(&["info", "a"])["restarts"], 1);
    let exit = fake.json(&["shutdown", "--wait", "a"]);
    assert_eq!((&exit["name"], &exit["shutdown_reason"]), (&json!("a"), &json!(0)));
    fake.text(&["reboot", "b"]);
    assert_eq!(fake.output(&["wait", "b"]).status.code(), Some(1), "a reboot is reason 1");
    assert_eq!(fake.json(&["destroy", "c"])["end"], "destroyed");
    assert_eq!(fake.output(&["wait", "c"]).status.code(), Some(101));
    assert_eq!(fake.json(&["list"]).as_array().unwrap().len(), 1);
}

#[test]
fn all_of_some_are_tried_and_the_failures_told() {
    let fake = with_guests();
    let (status, words) = fake.failure(&["destroy", "nobody", "a", "noone", "b"]);
    assert!(status == 66 && words.contains("nobody") && words.contains("noone"), "{words}");
    assert_eq!(fake.json(&["list"]).as_array().unwrap().len(), 2);
}

#[test]
fn memory_and_cpu_are_set() {
    let fake = with_guests();
    let (status, words) = fake.failure(&["mem-set", "a", "64M"]);
    assert!(status == 77 && words.contains("more than its limit"), "{words}");
    fake.text(&["mem-max", "a", "64"]);
    assert_eq!(fake.json(&["mem-set", "a", "32M"])["memory_kib"], 32 << 10);
    fake.text(&["pin", "a", "1"]);
    let info = fake.json(&["info", "a"]);
    assert_eq!((&info["cpu"], &info["pinned"]), (&json!(1), &json!(true)));
    fake.text(&["pin", "a", "any"]);
    assert_eq!(fake.json(&["info", "a"])["pinned"], false);
}

#[test]
fn all_three_schedulers_are_read_and_set() {
    use proxenos_rpc::{DomainSched, HostSched, Nanos};
    let fake = with_guests();
    assert_eq!(fake.json(&["sched"]), json!({ "scheduler": "bvt", "allowance_ns": 5_000_000 }));
    assert_eq!(fake.json(&["sched", "--allowance", "1ms"])["allowance_ns"], 1_000_000);
    assert_eq!(fake.json(&["sched"])["allowance_ns"], 1_000_000);
    let set = fake.json(&["sched", "a", "--weight", "200", "--warp", "-3", "--warp-limit", "4ms"]);
    assert_eq!(set, fake.json(&["sched", "a"]), "what was set is read");
    assert_eq!((&set["advance"], &set["warp"], &set["warping"]), (&json!(5), &json!(-3), &json!(true)));
    assert_eq!((&set["warp_limit_ns"], &set["unwarp_ns"]), (&json!(4_000_000), &json!(1_000_000_000)));
    let (status, words) = fake.failure(&["sched", "a", "--period", "1s"]);
    assert!(status == 64 && words.contains("bvt"), "{words}");
    assert_eq!(fake.failure(&["sched", "a", "--warp-limit", "1us"]).0, 64);

    fake.state.lock().unwrap().host_sched = Some(HostSched::RoundRobin { slice: Nanos(7_000) });
    assert_eq!(fake.json(&["sched", "--slice", "2ms"]), json!({ "scheduler": "rrobin", "slice_ns": 2_000_000 }));
    assert_eq!(fake.failure(&["sched", "--allowance", "2ms"]).0, 64);

    fake.state.lock().unwrap().host_sched = Some(HostSched::Atropos);
    for domain in fake.state.lock().unwrap().domains.values_mut() {
        let (period, slice, latency) = (Nanos(10), Nanos(0), Nanos(10));
        domain.sched = DomainSched::Atropos { period, slice, latency, extra: true };
    }
    assert_eq!(fake.failure(&["sched", "--slice", "2ms"]).0, 64);
    let set = fake.json(&["sched", "b", "--period", "20ms", "--slice", "5ms", "--extra", "false"]);
    assert_eq!((&set["period_ns"], &set["slice_ns"]), (&json!(20_000_000), &json!(5_000_000)));
    assert_eq!((&set["latency_ns"], &set["extra"]), (&json!(10), &json!(false)));
    assert_eq!(fake.failure(&["sched", "b", "--slice", "1s"]).0, 64);
    assert!(fake.text(&["sched", "b"]).contains("period     20ms"), "{}", fake.text(&["sched", "b"]));
}

#[test]
fn logs_and_traces_are_read_to_their_end() {
    let fake = Fake::start(Manner::Proper, 1);
    assert_eq!(fake.text(&["dmesg"]), "(px) one\n(px) two\n");
    assert_eq!(fake.json(&["dmesg", "--control"]), json!(["control: up"]));
    let trace = fake.json(&["trace"]);
    let numbers: Vec<_> = trace.as_array().unwrap().iter().map(|r| (r["cpu"].as_u64(), r["number"].as_u64())).collect();
    // Without gaps, and no further than there was at first, though reading makes more.
    for cpu in 0..2 {
        let of_cpu: Vec<_> =
            numbers.iter().filter(|(of, _)| *of == Some(cpu)).map(|(_, number)| number.unwrap()).collect();
        assert!(of_cpu.len() < 7 && of_cpu.iter().zip(2..).all(|(&number, expected)| number == expected), "{of_cpu:?}");
        assert!(of_cpu.len() >= 3);
    }
    assert!(fake.text(&["trace", "--cpu", "1"]).lines().count() >= 3);
    assert_eq!(fake.failure(&["trace", "--cpu", "9"]).0, 66);
}

#[test]
fn top_without_a_terminal_is_one_look() {
    let fake = with_guests();
    let top = fake.json(&["top", "--interval", "100ms"]);
    assert_eq!(top["domains"].as_array().unwrap().len(), 4);
    assert_eq!(top["domains"][1]["cpu_percent"], 0.0);
    assert!(fake.text(&["top", "--interval", "100ms"]).contains("4 domains, 2 CPUs (bvt)"));
}

#[test]
fn a_dump_has_registers_stack_and_memory() {
    let fake = with_guests();
    let file = fake.dir.path().join("memory");
    let file = file.to_str().unwrap();
    let text = fake.text(&["dump", "a", "--memory", file]);
    assert!(text.contains("rip ffff880000001234") && text.contains("stack of a guest"), "{text}");
    let memory = std::fs::read(file).unwrap();
    assert_eq!(memory.len(), 16 << 20);
    // The frame that is missing is a hole.
    let expected = |at: usize| if at / 4096 == 2 { 0 } else { (at / 4096) as u8 };
    assert!(memory.iter().enumerate().all(|(at, &byte)| byte == expected(at)));
    let dump = fake.json(&["dump", "a", "--at", "0xdead"]);
    assert_eq!((&dump["registers"]["rip"], &dump["memory"]["bytes"]), (&json!("0xffff880000001234"), &json!("")));
}

#[test]
fn run_prints_the_console_and_exits_with_the_guests_reason() {
    let fake = Fake::start(Manner::Proper, 1);
    let kernel = kernel(&fake);
    let output = fake.output(&["run", &kernel, "--", "print=Hello,_world", "exit=0"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(output.stdout, b"Hello, world\n");
    let output = fake.output(&["run", &kernel, "--", "exit=5"]);
    assert_eq!(output.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&output.stderr).contains("reason 5"), "{output:?}");
    assert_eq!(fake.output(&["run", &kernel, "--", "exit=64"]).status.code(), Some(102));
    let output = fake.output(&["run", &kernel, "--name", "x", "--", "crash"]);
    assert_eq!(output.status.code(), Some(100));
    assert!(String::from_utf8_lossy(&output.stderr).contains("proxenos dump x"), "{output:?}");
    // The same kernel was uploaded once.
    assert_eq!(fake.state.lock().unwrap().uploaded, 50_004);
}

#[test]
fn a_flood_comes_through_whole_under_credit() {
    let fake = Fake::start(Manner::Proper, 1);
    let output = fake.output(&["run", &kernel(&fake), "--", "flood=1000000", "exit=0"]);
    assert!(output.status.success());
    assert!(output.stdout.len() == 1_000_000 && (0..1_000_000).all(|n| output.stdout[n] == b'a' + (n % 26) as u8));
}

#[test]
fn input_goes_to_the_guest_as_it_has_room() {
    let fake = Fake::start(Manner::Proper, 2);
    let kernel = kernel(&fake);
    let mut child = fake
        .proxenos(&["run", &kernel, "--name", "echo", "--", "echo"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let text = "the guest has room for eight bytes at a time; ";
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).unwrap();
    let mut echoed = vec![0; text.len()];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut echoed).unwrap();
    assert_eq!(echoed, text.as_bytes());
    // The end of the input is not the end of the guest, as `q` is.
    stdin.write_all(b"q").unwrap();
    drop(stdin);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_console_can_be_attached_later() {
    let fake = Fake::start(Manner::Proper, 1);
    fake.text(&["run", "--detach", "--name", "late", &kernel(&fake), "--", "print=late", "exit=3"]);
    let output = fake.output(&["console", "late"]);
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(3), &b"late\n"[..]));
    assert_eq!(fake.failure(&["console", "late"]).0, 66);
}

#[test]
fn create_reads_both_kinds_of_file() {
    let fake = Fake::start(Manner::Proper, 1);
    kernel(&fake);
    let ramdisk = fake.dir.path().join("disk");
    std::fs::write(ramdisk, "any bytes").unwrap();
    let write = |name: &str, text: &str| {
        let path = fake.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let toml = write("g.toml", "name = 'one'\nkernel = 'kernel.elf'\nramdisk = 'disk'\nmemory = '8M'\nweight = 50\n");
    let created = fake.json(&["create", &toml, "--paused"]);
    assert_eq!(
        (&created["name"], &created["memory_kib"], &created["state"]),
        (&json!("one"), &json!(8192), &json!("paused"))
    );
    assert_eq!(fake.json(&["sched", "one"])["advance"], 20);
    let classic =
        write("guest.conf", "kernel = \"kernel.elf\"\nname = 'two' # xm's\nmemory = 12\ncpu = 1\nroot = '/dev/x'\n");
    let created = fake.json(&["create", &classic, "--memory", "24M"]);
    assert_eq!((&created["memory_kib"], &created["cpu"], &created["pinned"]), (&json!(24576), &json!(1), &json!(true)));
    assert_eq!(&*fake.state.lock().unwrap().domains[&2].config.cmdline, "root=/dev/x");
    let (status, words) = fake.failure(&["create", &classic]);
    assert!(status == 77 && words.contains("two") && words.contains("--name"), "{words}");
    let (status, words) = fake.failure(&["create", &write("bad", "kernel = 'k'\ndisk = ['phy:a,b,w']\n")]);
    assert!(status == 64 && words.contains("line 2") && words.contains("block devices"), "{words}");
    let (status, words) = fake.failure(&["create", &write("bad.toml", "kernel = 'k'\nnmae = 'x'\n")]);
    assert!(status == 64 && words.contains("nmae") && words.contains("line 2"), "{words}");
    let (status, words) = fake.failure(&["create", &write("lost.toml", "kernel = 'nowhere'\n")]);
    assert!(status == 66 && words.contains("nowhere"), "{words}");
    let (status, words) = fake.failure(&["create", &write("not.toml", "kernel = 'g.toml'\n")]);
    assert!(status == 65 && words.contains("neither an ELF"), "{words}");
    assert_eq!(fake.failure(&["create", "no/such/file"]).0, 66);
}

/// The time it takes is the time that was given, not an age.
#[test]
fn a_control_domain_that_never_answers_is_given_up() {
    for manner in [Manner::Silent, Manner::SilentAfterHello] {
        let fake = Fake::start(manner, 1);
        let start = Instant::now();
        let (status, words) = fake.failure(&["--timeout", "1", "list"]);
        assert!(status == 75 && words.contains("not answer") && words.contains("try:"), "{words}");
        assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    }
}

#[test]
fn noise_and_others_answers_are_passed_over() {
    let fake = Fake::start(Manner::Noisy, 1);
    assert_eq!(fake.json(&["list"])[0]["name"], "Domain-0");
    assert!(fake.output(&["run", &kernel(&fake), "--", "print=x", "exit=0"]).status.success());
}

#[test]
fn another_version_is_told_and_left() {
    let fake = Fake::start(Manner::Newer, 1);
    let (status, words) = fake.failure(&["list"]);
    assert!(status == 76 && words.contains("version 2"), "{words}");
}

#[test]
fn nonsense_is_a_mistake_of_the_protocol_for_every_command() {
    let fake = Fake::start(Manner::Absurd, 1);
    for args in
        [&["list"][..], &["info"], &["info", "a"], &["dmesg"], &["trace"], &["top"], &["sched"], &["sched", "a"]]
    {
        let (status, words) = fake.failure(args);
        assert!(status == 76 && words.contains("fits no question"), "{args:?}: {words}");
    }
    assert_eq!(fake.failure(&["dump", "a"]).0, 76);
    assert_eq!(fake.failure(&["wait", "a"]).0, 76);
    assert_eq!(fake.failure(&["console", "a"]).0, 76);
    assert_eq!(fake.failure(&["run", &kernel(&fake)]).0, 76);
}

#[test]
fn commands_at_the_same_time_have_channels_of_their_own() {
    let fake = with_guests();
    let children: Vec<_> = (0..8)
        .map(|_| fake.proxenos(&["--json", "list"]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap())
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(list.as_array().unwrap().len(), 4);
    }
}

#[test]
fn when_all_channels_are_taken_it_says_so() {
    let fake = Fake::start(Manner::Proper, 1);
    let kernel = kernel(&fake);
    let mut console = fake
        .proxenos(&["run", &kernel, "--name", "long", "--", "print=there", "echo"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 6];
    console.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    let (status, words) = fake.failure(&["--timeout", "1", "list"]);
    assert!(status == 75 && words.contains("in use"), "{words}");
    // A client that dies leaves nothing behind, neither a lock nor half a message.
    console.kill().unwrap();
    console.wait().unwrap();
    assert_eq!(fake.json(&["list"]).as_array().unwrap().len(), 2);
}

#[test]
fn a_host_that_does_not_run_is_told_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let (status, words) = failed(&proxenos(dir.path(), &["list"]).output().unwrap());
    assert!(status == 69 && words.contains("proxenos host start"), "{words}");
    let (status, words) = failed(&proxenos(dir.path(), &["--host", "x", "list"]).output().unwrap());
    assert!(status == 69 && words.contains("--host x"), "{words}");
    assert_eq!(failed(&proxenos(dir.path(), &["--host", "../x", "list"]).output().unwrap()).0, 64);
    assert_eq!(proxenos(dir.path(), &["host", "status"]).output().unwrap().status.code(), Some(69));
    // What is left of a machine that has ended: sockets nobody listens at, and another process' number.
    let host = host_dir(dir.path());
    drop(std::os::unix::net::UnixListener::bind(host.join("channel-0.sock")).unwrap());
    let (status, words) = failed(&proxenos(dir.path(), &["list"]).output().unwrap());
    assert!(status == 69 && words.contains("has ended"), "{words}");
    let list = proxenos(dir.path(), &["--json", "host", "list"]).output().unwrap();
    let list: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
    assert_eq!((&list[0]["host"], &list[0]["state"]), (&json!("default"), &json!("dead")));
    assert!(proxenos(dir.path(), &["host", "stop"]).output().unwrap().status.success());
    assert!(!host.exists(), "what was left is gone");
}

#[test]
fn stop_ends_the_process_that_was_started_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let host = host_dir(dir.path());
    let mut machine = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    // Another process has the number by now: the beginning is not the same.
    record(&host, machine.id());
    let text = std::fs::read_to_string(host.join("host.json")).unwrap();
    std::fs::write(host.join("host.json"), text.replace("\"began\":", "\"began\":1")).unwrap();
    assert!(proxenos(dir.path(), &["host", "stop", "--force"]).output().unwrap().status.success());
    assert_eq!(machine.try_wait().unwrap(), None);
    let host = host_dir(dir.path());
    record(&host, machine.id());
    let status = proxenos(dir.path(), &["--json", "host", "status"]).output().unwrap();
    assert!(status.status.success());
    assert!(proxenos(dir.path(), &["host", "stop", "--force"]).output().unwrap().status.success());
    assert!(machine.wait().unwrap().code().is_none(), "it was ended by a signal");
    assert!(!host.exists());
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_done() {
    let fake = Fake::start(Manner::Proper, 1);
    for args in [
        &["list", "--nonsense"][..],
        &["pause"],
        &["pause", "9x"],
        &["pause", "-a"],
        &["pin", "a", "x"],
        &["mem-set", "a", "lots"],
        &["sched", "--weight", "5"],
        &["sched", "a", "--weight", "5", "--advance", "4"],
        &["--timeout", "0", "list"],
        &["host", "start", "--memory", "64M", "--control-memory", "64M", "--host", "other"],
        &["dump", "a", "--at", "xyz"],
    ] {
        assert_eq!(fake.failure(args).0, 64, "{args:?}");
    }
    assert!(fake.state.lock().unwrap().requests.is_empty());
}

#[test]
fn completions_and_manual_pages_are_made() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let output = proxenos(dir.path(), &["completions", shell]).output().unwrap();
        assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("mem-set"), "{shell}");
    }
    let man = dir.path().join("man");
    assert!(proxenos(dir.path(), &["man", man.to_str().unwrap()]).output().unwrap().status.success());
    for page in ["proxenos.1", "proxenos-run.1", "proxenos-host-start.1"] {
        assert!(std::fs::read_to_string(man.join(page)).unwrap().contains(".TH"), "{page}");
    }
    assert!(std::fs::read_to_string(man.join("proxenos.1")).unwrap().contains("asked for a reboot"), "exit statuses");
}
