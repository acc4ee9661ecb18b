//! Calling cargo from a program that cargo itself started.
//!
//! `cargo run` fills the environment with variables that describe *this* package, this toolchain and this build. An
//! inner cargo of another toolchain would take them for its own settings, so they are taken out first.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

/// Prefixes of variables that configure or describe a build.
const SCRUBBED: [&str; 3] = ["CARGO", "RUST", "DOC"];

/// Variables under those prefixes that an inner cargo needs: the user's places, network settings and verbosity.
const KEPT: [&str; 14] = [
    "CARGO_HOME",
    "CARGO_HTTP_",
    "CARGO_NET_",
    "CARGO_REGISTRIES_",
    "CARGO_REGISTRY_",
    "CARGO_SOURCE_",
    "CARGO_TERM_",
    "CARGO_BUILD_JOBS",
    "CARGO_INCREMENTAL",
    "RUSTUP_HOME",
    "RUSTUP_DIST_",
    "RUSTUP_UPDATE_",
    "RUSTUP_AUTO_INSTALL",
    "RUST_BACKTRACE",
];

/// The cargo that started this program.
pub fn host_cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from)
}

/// A call of the host's cargo, with the user's own settings left as they are.
pub fn host() -> Command {
    let mut command = Command::new(host_cargo());
    for (key, _) in std::env::vars_os() {
        if describes_package(&key.to_string_lossy()) {
            command.env_remove(key);
        }
    }
    command
}

/// Takes out of a command's environment what would steer or confuse another toolchain.
pub fn scrub(command: &mut Command) {
    for (key, _) in std::env::vars_os() {
        if is_scrubbed(&key.to_string_lossy()) {
            command.env_remove(key);
        }
    }
    // `cargo run` adds the active toolchain's libraries here; another rustc must find its own.
    if let Some(paths) = std::env::var_os("LD_LIBRARY_PATH") {
        let kept: Vec<PathBuf> = std::env::split_paths(&paths).filter(|path| !is_cargos(path)).collect();
        match std::env::join_paths(kept) {
            Ok(joined) if joined != OsString::new() => command.env("LD_LIBRARY_PATH", joined),
            _ => command.env_remove("LD_LIBRARY_PATH"),
        };
    }
}

fn is_scrubbed(key: &str) -> bool {
    SCRUBBED.iter().any(|prefix| key.starts_with(prefix)) && !KEPT.iter().any(|kept| key.starts_with(kept))
}

/// What cargo tells the programs it runs about their own package.
fn describes_package(key: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"]
        .iter()
        .any(|prefix| key.starts_with(prefix))
}

fn is_cargos(path: &std::path::Path) -> bool {
    let text = path.to_string_lossy();
    let of_target = std::env::current_exe().is_ok_and(|exe| exe.parent().is_some_and(|dir| path.starts_with(dir)));
    text.contains("rustlib") || text.contains("/toolchains/") || of_target
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_build_is_scrubbed_and_the_rest_is_kept() {
        for key in [
            "CARGO",
            "CARGO_TARGET_DIR",
            "CARGO_PKG_NAME",
            "RUSTUP_TOOLCHAIN",
            "RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "RUSTC",
        ] {
            assert!(is_scrubbed(key), "{key}");
        }
        for key in ["CARGO_HOME", "RUSTUP_HOME", "CARGO_NET_OFFLINE", "PATH", "HOME", "RUST_BACKTRACE"] {
            assert!(!is_scrubbed(key), "{key}");
        }
    }
}
