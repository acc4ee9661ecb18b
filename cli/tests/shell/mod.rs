//! A shell with a host of its own, for tests that need built images: `cargo xtask test cli/` brings them.

#![allow(dead_code, reason = "no test uses all of it")]

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A directory of its own, and the host in it, which ends with it.
pub struct Shell {
    pub dir: tempfile::TempDir,
}

impl Shell {
    /// A command, to be run.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_proxenos"));
        command.args(args).env("XDG_RUNTIME_DIR", self.dir.path()).env_remove("PROXENOS_HOST").stdin(Stdio::null());
        command
    }

    /// What a command comes to.
    pub fn output(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// What a command says that is refused with that status.
    pub fn refused(&self, status: i32, args: &[&str]) -> String {
        let output = self.output(args);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// A console, or a run: what is written to it is read on and on.
    pub fn talk(&self, args: &[&str]) -> Talk {
        let mut command = self.command(args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let said = Arc::new(Mutex::new(String::new()));
        let heard = said.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(len @ 1..) = output.read(&mut buffer) {
                heard.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..len]));
            }
        });
        Talk { child, input, said }
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
        self.until(name, || self.json(&["info", name])["state"] == state);
    }

    /// Waits until something is so with a domain.
    pub fn until(&self, name: &str, mut is_so: impl FnMut() -> bool) {
        let until = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < until, "{name} is {}", self.json(&["info", name]));
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let hosts = std::fs::read_dir(self.dir.path().join("proxenos")).into_iter().flatten().flatten();
        for host in hosts.filter(|host| host.path().is_dir()) {
            if std::thread::panicking() {
                let log = std::fs::read_to_string(host.path().join("console.log")).unwrap_or_default();
                eprintln!("the console of {}:\n{log}", host.path().display());
            }
            self.output(&["--host", host.file_name().to_str().unwrap(), "host", "stop", "--force"]);
        }
    }
}

/// Somebody at a console.
pub struct Talk {
    child: Child,
    input: ChildStdin,
    said: Arc<Mutex<String>>,
}

impl Talk {
    /// Types a line.
    pub fn type_in(&mut self, line: &str) {
        self.input.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// Waits until that has been said, and forgets everything up to there.
    pub fn expect(&self, words: &str) {
        let until = Instant::now() + PATIENCE;
        loop {
            let mut said = self.said.lock().unwrap();
            if let Some(at) = said.find(words) {
                said.drain(..at + words.len());
                return;
            }
            assert!(Instant::now() < until, "no {words:?} in {said:?}");
            drop(said);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for the end: the exit status.
    pub fn status(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How long anything may take: far longer than it does.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where a built guest is.
pub fn variable(name: &str) -> PathBuf {
    std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set: use `cargo xtask test cli/`")).into()
}
