//! A shell with a host of its own, for tests that need built images: `cargo xtask test cli/` brings them.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A directory of its own, and the host in it, which ends with it.
pub struct Shell {
    pub dir: tempfile::TempDir,
}

impl Shell {
    /// What a command comes to.
    pub fn output(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_proxenos"))
            .args(args)
            .env("XDG_RUNTIME_DIR", self.dir.path())
            .env_remove("PROXENOS_HOST")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// What a command prints, which succeeds.
    pub fn text(&self, args: &[&str]) -> String {
        let output = self.output(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same as JSON.
    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.text(&[&["--json"], args].concat())).unwrap()
    }

    /// Looks at a domain until it is in that state.
    pub fn reaches(&self, name: &str, state: &str) {
        let until = Instant::now() + Duration::from_secs(60);
        while self.json(&["info", name])["state"] != state {
            assert!(Instant::now() < until, "{name} is {}", self.json(&["info", name]));
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("proxenos/default/console.log")).unwrap_or_default();
            eprintln!("the machine's console:\n{log}");
        }
        self.output(&["host", "stop", "--force"]);
    }
}

/// Where a built guest is.
pub fn variable(name: &str) -> PathBuf {
    std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set: use `cargo xtask test cli/`")).into()
}
