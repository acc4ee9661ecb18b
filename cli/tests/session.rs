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

fn name(number: usize) -> String {
    format!("guest{number}")
}

/// What is asked for: each has another size and weight.
fn mebibytes(number: usize) -> usize {
    4 + 4 * (number % 4)
}

fn weight(number: usize) -> usize {
    50 + 10 * number
}

/// These two crash.
const CRASHING: [usize; 2] = [4, 5];

#[test]
#[ignore = "needs built images: cargo xtask test session"]
fn twenty_guests_are_what_was_asked_for() {
    let shell = Shell { dir: tempfile::tempdir().unwrap() };
    let dir = shell.dir.path().to_owned();
    let kernels = [variable("PROXENOS_HELLO_X86_64"), variable("PROXENOS_HELLO_X86_32")];
    shell.text(&["host", "start", "--accel", "tcg", "--memory", "768M", "--hv-args", "tbuf_size=4"]);
    // The first domain of each kind has the hypervisor's heap grow.
    let kernel = |arch: usize| kernels[arch].to_str().unwrap();
    for arch in [0, 1] {
        assert_eq!(shell.output(&["run", kernel(arch)]).status.code(), Some(0));
    }
    let free = shell.json(&["info"])["memory_free_kib"].as_u64().unwrap();
    let log = || std::fs::read_to_string(dir.join("proxenos/default/console.log")).unwrap();

    // Create and list.
    let mut entries = [0; 2];
    for number in 0..GUESTS {
        let mut kernel = kernels[number % 2].clone();
        if CRASHING.contains(&number) {
            let broken = dir.join(format!("crashing{}", number % 2));
            entries[number % 2] = crashing(&kernel, &broken);
            kernel = broken;
        }
        let file = dir.join(format!("{number}.toml"));
        let text = format!(
            "name = '{}'\nkernel = '{}'\nmemory = {}\nweight = {}\ncmdline = 'number={number}'\nrestart = 'never'\n",
            name(number),
            kernel.display(),
            mebibytes(number),
            weight(number)
        );
        std::fs::write(&file, text).unwrap();
        shell.text(&["create", "--paused", file.to_str().unwrap()]);
    }
    let list = shell.json(&["list"]);
    assert_eq!(list.as_array().unwrap().len(), GUESTS + 1);
    for number in 0..GUESTS {
        let seen = &list[number + 1];
        assert_eq!(seen["name"], name(number));
        assert_eq!(seen["arch"], ARCHES[number % 2]);
        assert_eq!(seen["memory_kib"], mebibytes(number) << 10);
        assert_eq!((&seen["state"], &seen["restart"]), (&json!("paused"), &json!("never")));
        assert_eq!(shell.json(&["sched", &name(number)])["advance"], 1000 / weight(number));
    }
    assert_eq!(
        shell.output(&["create", "--paused", dir.join("7.toml").to_str().unwrap()]).status.code(),
        Some(77),
        "its name is taken"
    );

    // Re-weight, pin, memory limits.
    for number in [0, 1] {
        let guest = &name(number);
        let set = shell.json(&["sched", guest, "--weight", "500", "--warp-limit", "20ms", "--unwarp", "1s"]);
        assert_eq!(set, shell.json(&["sched", guest]), "what is set is read");
        assert_eq!((&set["advance"], &set["warp_limit_ns"]), (&json!(2), &json!(20_000_000)));
        shell.text(&["pin", guest, "0"]);
        assert_eq!(shell.json(&["info", guest])["pinned"], true);
        shell.text(&["pin", guest, "any"]);
        assert_eq!(shell.json(&["info", guest])["pinned"], false);
        assert_eq!(shell.output(&["pin", guest, "7"]).status.code(), Some(77), "there is one CPU");
        shell.text(&["mem-max", guest, "64M"]);
        assert_eq!(shell.json(&["info", guest])["memory_limit_kib"], 64 << 10);
    }
    shell.text(&["sched", "--allowance", "2ms"]);
    assert_eq!(shell.json(&["sched"])["allowance_ns"], 2_000_000);

    // Run some to their ends, and stop some on their way.
    for number in [0, 1] {
        shell.text(&["unpause", &name(number)]);
        assert_eq!(shell.output(&["wait", &name(number)]).status.code(), Some(0));
    }
    for number in [2, 3] {
        shell.text(&["unpause", &name(number)]);
        shell.text(&["pause", &name(number)]);
        assert_eq!(shell.json(&["info", &name(number)])["state"], "paused");
    }

    // Crash and dump.
    for number in CRASHING {
        let guest = &name(number);
        shell.text(&["unpause", guest]);
        shell.reaches(guest, "crashed");
        let entry = entries[number % 2];
        let dump = shell.json(&["dump", guest, "--at", &format!("{entry:#x}"), "--len", "2"]);
        let ip = if number % 2 == 0 { "rip" } else { "eip" };
        assert_eq!(dump["registers"][ip], format!("{entry:#x}"));
        assert_eq!(dump["memory"]["bytes"], "0f0b");
        let memory = dir.join("memory");
        shell.text(&["dump", guest, "--memory", memory.to_str().unwrap()]);
        assert_eq!(memory.metadata().unwrap().len(), (mebibytes(number) as u64) << 20);
    }

    // Start anew.
    for number in [6, 7] {
        let guest = &name(number);
        shell.text(&["reboot", "--force", guest]);
        assert_eq!(shell.json(&["info", guest])["restarts"], 1);
    }

    // Look on.
    let top = shell.json(&["top", "--interval", "200ms"]);
    assert!(top["domains"].as_array().unwrap().len() >= GUESTS - 3, "{top}");
    assert!(!shell.json(&["trace"]).as_array().unwrap().is_empty());
    assert!(shell.text(&["dmesg"]).contains("Proxenos"));
    for arch in [0, 1] {
        let output = shell.output(&["run", kernel(arch), "--", "said=this"]);
        let console = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && console.contains("said=this") && console.contains("Goodbye"), "{output:?}");
        assert!(console.contains(ARCHES[arch]));
    }

    // End them all: their memory comes back. (How many frames exactly is for the hypervisor's own tests to say.)
    for seen in shell.json(&["list"]).as_array().unwrap().iter().skip(1) {
        assert_eq!(shell.json(&["destroy", seen["name"].as_str().unwrap()])["end"], "destroyed");
    }
    assert_eq!(shell.json(&["list"]).as_array().unwrap().len(), 1);
    let now = shell.json(&["info"])["memory_free_kib"].as_u64().unwrap();
    assert!(now.abs_diff(free) <= 64, "{now} KiB are free, and {free} KiB were");

    // And the host.
    let machine = shell.json(&["host", "status"])["pid"].as_u64().unwrap();
    let log = log();
    assert!(log.contains("(px)"));
    shell.text(&["host", "stop"]);
    let is_there = std::fs::read_to_string(format!("/proc/{machine}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    assert!(!is_there && shell.output(&["host", "status"]).status.code() == Some(69));
}
