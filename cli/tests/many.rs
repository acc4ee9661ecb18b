//! Five hundred idle guests on a host with 3 GiB: what each costs the hypervisor, and that nothing of it stays.
//! This needs built images, and `cargo xtask test cli/many` brings them.

mod shell;

use serde_json::Value;
use shell::{Shell, variable};

/// Guests of each architecture, of the least memory that the start of a day allows.
const EACH: u64 = 250;
const MEBIBYTES: u64 = 4;
/// What the hypervisor may spend on an idle domain, in KiB.
const LIMIT: u64 = 32;
/// What shadows of an idle guest of that size may take: four frames of the directory, two for each of two tables, two
/// above.
const SHADOWS: u64 = 40;
/// What the control domain may spend on one, apart from the one image of all, in bytes: what it knows of it, and the
/// little that it has written.
const CONTROL: u64 = 2048;
/// Commands get so many names at a time.
const AT_ONCE: usize = 50;

fn free_kib(shell: &Shell) -> u64 {
    shell.json(&["info"])["memory_free_kib"].as_u64().unwrap()
}

/// Bytes that the control domain uses.
fn used(shell: &Shell) -> u64 {
    shell.json(&["info"])["control_used_bytes"].as_u64().unwrap()
}

/// Creates guests, and returns their names and what each took, in KiB.
fn create(shell: &Shell, arch: &str, count: u64) -> (Vec<String>, u64) {
    let guest = variable(&format!("PROXENOS_ECHO_{}", arch.to_uppercase()));
    let before = free_kib(shell);
    let names: Vec<String> = (0..count).map(|number| format!("{arch}-{number}")).collect();
    for name in &names {
        shell.text(&["run", "-d", "-m", &MEBIBYTES.to_string(), "--name", name, guest.to_str().unwrap()]);
    }
    (names, (before - free_kib(shell)).div_ceil(count))
}

fn destroy(shell: &Shell, names: &[String]) {
    for names in names.chunks(AT_ONCE) {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        shell.text(&[&["destroy"], &names[..]].concat());
    }
}

#[test]
#[ignore = "needs built images: cargo xtask test cli/"]
fn five_hundred_guests() {
    let shell = Shell { dir: tempfile::tempdir().unwrap() };
    shell.text(&["host", "start", "--accel", "tcg", "--memory", "3G"]);
    // The image is there then, with the first domain of all.
    let (first, _) = create(&shell, "x86_64", 1);
    shell.reaches(&first[0], "blocked");
    let control = used(&shell);
    destroy(&shell, &first);
    let (mut names, four_level) = create(&shell, "x86_64", EACH);
    shell.reaches(names.last().unwrap(), "blocked");
    let control = used(&shell).saturating_sub(control) / (EACH - 1);
    println!("control domain: {control} bytes a domain");
    assert!(control <= CONTROL, "{control} bytes");
    let (others, two_level) = create(&shell, "x86_32", EACH);
    names.extend(others);
    shell.reaches(names.last().unwrap(), "blocked");
    let list = shell.json(&["list"]);
    let all: Vec<&Value> = list.as_array().unwrap().iter().filter(|domain| domain["id"] != 0).collect();
    assert_eq!(all.len() as u64, 2 * EACH);
    assert!(all.iter().all(|domain| domain["state"] == "blocked"), "all are idle: {list}");
    let cost = |took: u64| took - MEBIBYTES * 1024;
    println!("x86_64: {} KiB a domain; x86_32: {}, shadows included", cost(four_level), cost(two_level));
    assert!(cost(four_level) <= LIMIT, "{} KiB", cost(four_level));
    assert!(cost(two_level) <= LIMIT + SHADOWS, "{} KiB", cost(two_level));
    destroy(&shell, &names);
    // The heap keeps what it has grown to; from then on the same domains take nothing more.
    let (left, remembered) = (free_kib(&shell), used(&shell));
    for arch in ["x86_32", "x86_64"] {
        destroy(&shell, &create(&shell, arch, EACH).0);
    }
    assert_eq!(free_kib(&shell), left, "nothing of them stays");
    // Of those that have ended, the control domain remembers a few, with what they have written.
    assert!(used(&shell).abs_diff(remembered) <= 8 * CONTROL, "{} bytes, and {remembered} before", used(&shell));
}
