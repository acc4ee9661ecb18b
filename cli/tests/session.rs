//! A host of its own and twenty guests of both architectures, from the shell: what is seen is what was asked for.
//! Nothing here is played: this needs built images, and `cargo xtask test cli/session` brings them.

mod shell;

use std::path::Path;

use serde_json::json;
use shell::{Shell, variable};

/// A kernel whose first instruction is an undefined one, before it could have any handler: it crashes. Also its entry.
fn crashing(kernel: &Path, to: &Path) -> u64 {
    let mut elf = std::fs::read(kernel).unwrap();
    let is_64 = elf[4] == 2;
    let number = |elf: &[u8], at: usize, len: usize| {
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(&elf[at..at + len]);
        u64::from_le_bytes(bytes)
    };
    let word = if is_64 { 8 } else { 4 };
    let entry = number(&elf, 24, word);
    let (table, size, count) = if is_64 {
        (number(&elf, 32, 8), number(&elf, 54, 2), number(&elf, 56, 2))
    } else {
        (number(&elf, 28, 4), number(&elf, 42, 2), number(&elf, 44, 2))
    };
    let (offset_at, address_at, size_at) = if is_64 { (8, 16, 32) } else { (4, 8, 16) };
    let at = (0..count).map(|n| (table + n * size) as usize).find_map(|header| {
        let field = |at: usize| number(&elf, header + at, word);
        let within = entry.checked_sub(field(address_at))?;
        (number(&elf, header, 4) == 1 && within < field(size_at)).then(|| (field(offset_at) + within) as usize)
    });
    let at = at.expect("the entry is in a segment");
    elf[at..at + 2].copy_from_slice(&[0x0f, 0x0b]);
    std::fs::write(to, elf).unwrap();
    entry
}

const GUESTS: usize = 20;
const ARCHES: [&str; 2] = ["x86_64", "x86_32"];

/// What a guest was asked to be.
struct Guest {
    name: String,
    arch: &'static str,
    mebibytes: u64,
    limit: u64,
    weight: u64,
    restart: &'static str,
    restarts: u64,
    state: &'static str,
    cpu: Option<u64>,
}

impl Guest {
    /// Each has another size and weight.
    fn new(number: usize) -> Self {
        let mebibytes = 4 + 4 * (number as u64 % 4);
        Self {
            name: format!("guest{number}"),
            arch: ARCHES[number % 2],
            mebibytes,
            limit: mebibytes,
            weight: 50 + 10 * number as u64,
            restart: if REBOOTING.contains(&number) { "on-reboot" } else { "never" },
            restarts: 0,
            state: "paused",
            cpu: None,
        }
    }

    fn description(&self, kernel: &Path) -> String {
        let Self { name, mebibytes, weight, restart, .. } = self;
        let kernel = kernel.display();
        format!(
            "name = '{name}'\nkernel = '{kernel}'\nmemory = {mebibytes}\nweight = {weight}\ncmdline = 'of {name}'\n\
             restart = '{restart}'\n"
        )
    }
}

/// What is listed is what was asked for: all of them, in their order of birth, and everything about each.
fn compare(shell: &Shell, guests: &[Guest]) {
    let list = shell.json(&["list"]);
    let mut listed: Vec<_> = list.as_array().unwrap().iter().skip(1).collect();
    listed.sort_by_key(|seen| guests.iter().position(|guest| seen["name"] == guest.name.as_str()));
    assert_eq!(listed.len(), guests.len(), "{list}");
    for (guest, seen) in guests.iter().zip(listed) {
        let known = json!({
            "name": guest.name, "arch": guest.arch, "memory_kib": guest.mebibytes << 10,
            "memory_limit_kib": guest.limit << 10, "restart": guest.restart, "restarts": guest.restarts,
            "state": guest.state, "pinned": guest.cpu.is_some(),
        });
        for (field, value) in known.as_object().unwrap() {
            assert_eq!(&seen[field], value, "{field} of {seen}");
        }
        assert!(guest.cpu.is_none_or(|cpu| seen["cpu"] == cpu), "the CPU of {seen}");
        assert_eq!(shell.json(&["sched", &guest.name])["advance"], 1000 / guest.weight, "the weight of {seen}");
    }
}

/// These two run to their end, and these crash, are started anew from outside, are ballooned, reboot and shut down when
/// they are asked to, and are pinned: one of each architecture.
const ENDING: [usize; 2] = [0, 1];
const CRASHING: [usize; 2] = [4, 5];
const RESET: [usize; 2] = [6, 7];
const BALLOONED: [usize; 2] = [10, 11];
const REBOOTING: [usize; 2] = [12, 13];
const STOPPING: [usize; 2] = [14, 15];
const PINNED: [usize; 2] = [16, 17];

#[test]
#[ignore = "needs built images: cargo xtask test cli/"]
fn twenty_guests_are_what_was_asked_for() {
    let shell = Shell { dir: tempfile::tempdir().unwrap() };
    let dir = shell.dir.path().to_owned();
    let kernels = |what: &str| ["X86_64", "X86_32"].map(|arch| variable(&format!("PROXENOS_{what}_{arch}")));
    let (hello, echo) = (kernels("HELLO"), kernels("ECHO"));
    shell.text(&["host", "start", "--accel", "tcg", "--cpus", "2", "--memory", "768M", "--hv-args", "tbuf_size=4"]);
    // The first domain of each kind has the hypervisor's heap grow.
    let kernel = |arch: usize| hello[arch].to_str().unwrap();
    for arch in [0, 1] {
        assert_eq!(shell.output(&["run", kernel(arch)]).status.code(), Some(0));
    }
    let free = || shell.json(&["info"])["memory_free_kib"].as_u64().unwrap();
    let free_before = free();

    // Create and list.
    let mut entries = [0; 2];
    let mut guests: Vec<Guest> = (0..GUESTS).map(Guest::new).collect();
    for (number, guest) in guests.iter().enumerate() {
        let mut kernel = if number < 8 { &hello } else { &echo }[number % 2].clone();
        if CRASHING.contains(&number) {
            let broken = dir.join(format!("crashing{}", number % 2));
            entries[number % 2] = crashing(&kernel, &broken);
            kernel = broken;
        }
        let file = dir.join(format!("{number}.toml"));
        std::fs::write(&file, guest.description(&kernel)).unwrap();
        shell.text(&["create", "--paused", file.to_str().unwrap()]);
    }
    compare(&shell, &guests);
    shell.refused(77, &["create", "--paused", dir.join("7.toml").to_str().unwrap()]);

    // Re-weight, pin, memory limits.
    for number in ENDING {
        let guest = &mut guests[number];
        (guest.weight, guest.limit) = (500, 64);
        let set = shell.json(&["sched", &guest.name, "--weight", "500", "--warp-limit", "20ms", "--unwarp", "1s"]);
        assert_eq!(set, shell.json(&["sched", &guest.name]), "what is set is read");
        assert_eq!((&set["advance"], &set["warp_limit_ns"]), (&json!(2), &json!(20_000_000)));
        shell.text(&["mem-max", &guest.name, "64M"]);
    }
    for (cpu, number) in PINNED.into_iter().enumerate() {
        shell.text(&["pin", &guests[number].name, &cpu.to_string()]);
        guests[number].cpu = Some(cpu as u64);
        shell.refused(77, &["pin", &guests[number].name, "7"]);
    }
    shell.text(&["sched", "--allowance", "2ms"]);
    assert_eq!(shell.json(&["sched"])["allowance_ns"], 2_000_000);
    compare(&shell, &guests);

    // Let those run that wait for what is typed, and pause two of them.
    for guest in &mut guests[8..] {
        shell.text(&["unpause", &guest.name]);
        shell.reaches(&guest.name, "blocked");
        guest.state = "blocked";
    }
    for number in [8, 9] {
        shell.text(&["pause", &guests[number].name]);
        guests[number].state = "paused";
    }
    compare(&shell, &guests);

    // Balloon: down, and as far up again as is asked.
    for (less, number) in [4, 6].into_iter().zip(BALLOONED) {
        let guest = &mut guests[number];
        let before = free();
        let (most, limit) = (guest.mebibytes, format!("{}M", guest.mebibytes - less / 2));
        let half = most - less;
        assert_eq!(shell.json(&["mem-set", &guest.name, &format!("{half}M")])["memory_kib"], half << 10);
        assert!(free().abs_diff(before + (less << 10)) <= 64, "what it gave is free: {before}, {}", free());
        shell.text(&["mem-max", &guest.name, &limit]);
        shell.refused(77, &["mem-set", &guest.name, &format!("{most}M")]);
        assert_eq!(shell.json(&["mem-set", &guest.name, &limit])["memory_kib"], (most - less / 2) << 10);
        (guest.mebibytes, guest.limit) = (most - less / 2, most - less / 2);
        let mut console = shell.talk(&["console", &guest.name]);
        console.type_in("memory");
        console.expect(&format!("{} pages\n", guest.mebibytes << 8));
    }
    compare(&shell, &guests);

    // Crash and dump.
    for number in CRASHING {
        let guest = &mut guests[number];
        shell.text(&["unpause", &guest.name]);
        shell.reaches(&guest.name, "crashed");
        guest.state = "crashed";
        let entry = entries[number % 2];
        let dump = shell.json(&["dump", &guest.name, "--at", &format!("{entry:#x}"), "--len", "2"]);
        let ip = if number % 2 == 0 { "rip" } else { "eip" };
        assert_eq!(dump["registers"][ip], format!("{entry:#x}"));
        assert_eq!(dump["memory"]["bytes"], "0f0b");
        let memory = dir.join("memory");
        shell.text(&["dump", &guest.name, "--memory", memory.to_str().unwrap()]);
        assert_eq!(memory.metadata().unwrap().len(), guest.mebibytes << 20);
    }

    // Reboot: when asked, and from outside.
    for number in REBOOTING {
        let guest = &mut guests[number];
        let console = shell.talk(&["console", &guest.name]);
        console.expect("ready");
        shell.text(&["reboot", &guest.name]);
        console.expect("asked to end: 1\n");
        console.expect("ready");
        shell.reaches(&guest.name, "blocked");
        guest.restarts = 1;
    }
    for number in RESET {
        let guest = &mut guests[number];
        shell.text(&["reboot", "--force", &guest.name]);
        shell.text(&["pause", &guest.name]);
        guest.restarts = 1;
    }
    compare(&shell, &guests);

    // Ends: their own, and asked for.
    for number in ENDING {
        shell.text(&["unpause", &guests[number].name]);
        assert_eq!(shell.output(&["wait", &guests[number].name]).status.code(), Some(0));
    }
    for number in STOPPING {
        let exit = shell.json(&["shutdown", "--wait", &guests[number].name]);
        assert_eq!((&exit["name"], &exit["shutdown_reason"]), (&json!(guests[number].name), &json!(0)));
    }
    let gone = [ENDING, STOPPING].concat();
    let left = |(number, guest)| (!gone.contains(&number)).then_some(guest);
    let guests: Vec<Guest> = guests.into_iter().enumerate().filter_map(left).collect();
    compare(&shell, &guests);

    // Look on.
    let top = shell.json(&["top", "--interval", "200ms"]);
    assert_eq!(top["domains"].as_array().unwrap().len(), guests.len() + 1, "{top}");
    assert!(!shell.json(&["trace"]).as_array().unwrap().is_empty());
    assert!(shell.text(&["dmesg"]).contains("Proxenos"));
    for arch in [0, 1] {
        let output = shell.output(&["run", kernel(arch), "--", "said=this"]);
        let console = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && console.contains("said=this") && console.contains("Goodbye"), "{output:?}");
        assert!(console.contains(ARCHES[arch]));
    }

    // End them all: their memory comes back. (How many frames exactly is for the hypervisor's own tests to say.)
    for guest in &guests {
        assert_eq!(shell.json(&["destroy", &guest.name])["end"], "destroyed");
    }
    compare(&shell, &[]);
    assert!(free().abs_diff(free_before) <= 64, "{} KiB are free, and {free_before} KiB were", free());

    // And the host.
    let machine = shell.json(&["host", "status"])["pid"].as_u64().unwrap();
    let log = std::fs::read_to_string(dir.join("proxenos/default/console.log")).unwrap();
    assert!(log.contains("(px)"));
    shell.text(&["host", "stop"]);
    let is_there = std::fs::read_to_string(format!("/proc/{machine}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    assert!(!is_there && shell.output(&["host", "status"]).status.code() == Some(69));
}
