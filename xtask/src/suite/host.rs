//! Host tests: `cargo test`, package by package, with a line for each of its tests.

use anyhow::{Context, Result};

use super::{Report, Verdict, session};
use crate::cargo;
use crate::console::Capture;
use crate::process::{self, End};
use crate::workspace::Workspace;

/// The name under which a package's tests are counted.
pub fn group(package: &str) -> String {
    format!("host/{package}")
}

/// Runs a package's tests, all of them or those whose names contain a text.
pub fn run(report: &mut Report, workspace: &Workspace, package: &str, only: Option<&str>) -> Result<()> {
    if process::interrupted() {
        return Ok(());
    }
    let mut command = cargo::host();
    command.current_dir(workspace.root()).args(["test", "--no-fail-fast", "--color", "never", "-p", package]);
    command.args(only);
    let capture = Capture::default();
    let (end, errors) = process::stream(&mut command, None, capture.clone())?;
    let output = capture.text();
    let name = group(package);
    let log = report.log(&name);
    std::fs::write(&log, format!("{errors}{output}")).with_context(|| format!("cannot write {}", log.display()))?;

    let mut failed = false;
    for (test, result) in output.lines().filter_map(parse) {
        let full = format!("{name}::{test}");
        let verdict = match result {
            Single::Ok => Verdict::Pass,
            Single::Ignored if session::runs(test) || is_example(test) => continue,
            Single::Ignored => {
                std::fs::write(
                    report.log(&full),
                    "an ignored test needs a row of its own: xtask/src/suite/session.rs\n",
                )?;
                Verdict::Fail("nothing runs it".to_owned())
            }
            Single::Failed => {
                failed = true;
                // The report shows the log by the test's name.
                std::fs::write(report.log(&full), excerpt(&output, test))?;
                Verdict::Fail("see below".to_owned())
            }
        };
        report.add(&full, &verdict, None);
    }
    match end {
        End::Exited(status) if status.success() => {}
        // The failed tests have said it all.
        End::Exited(_) if failed => {}
        End::Exited(_) => report.add(&name, &Verdict::Fail("did not build or did not finish".to_owned()), None),
        _ => report.add(&name, &Verdict::Fail("interrupted".to_owned()), None),
    }
    Ok(())
}

/// What libtest says of one test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Single {
    Ok,
    Failed,
    Ignored,
}

/// Reads `test NAME ... ok`.
fn parse(line: &str) -> Option<(&str, Single)> {
    let (name, result) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let name = name.strip_suffix(" - should panic").unwrap_or(name);
    let result = match result.split([',', ' ']).next()? {
        "ok" => Single::Ok,
        "FAILED" => Single::Failed,
        "ignored" => Single::Ignored,
        _ => return None,
    };
    Some((name, result))
}

/// Whether a test is an example of the documentation. Those of the SDK are ignored: they are guests.
fn is_example(test: &str) -> bool {
    test.contains(" - ")
}

/// What a failed test printed: the part under its `---- NAME stdout ----`.
fn excerpt(output: &str, test: &str) -> String {
    let heading = format!("---- {test} stdout ----");
    let mut lines = output.lines().skip_while(|line| *line != heading).peekable();
    let Some(first) = lines.next() else { return String::new() };
    let rest = lines.take_while(|line| !line.starts_with("---- ") && *line != "failures:");
    std::iter::once(first).chain(rest).fold(String::new(), |text, line| text + line + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_tests_are_known_or_examples() {
        assert!(session::runs("five_hundred_guests") && !session::runs("five_hundred"));
        assert!(is_example("src/lib.rs - (line 3)") && !is_example("five_hundred_guests"));
    }

    #[test]
    fn libtests_lines_are_read() {
        assert_eq!(parse("test frames::tests::a ... ok"), Some(("frames::tests::a", Single::Ok)));
        assert_eq!(parse("test b - should panic ... ok"), Some(("b", Single::Ok)));
        assert_eq!(parse("test c ... FAILED"), Some(("c", Single::Failed)));
        assert_eq!(parse("test d ... ignored, slow"), Some(("d", Single::Ignored)));
        assert_eq!(parse("test src/lib.rs - x (line 3) ... ok"), Some(("src/lib.rs - x (line 3)", Single::Ok)));
        assert_eq!(parse("test result: ok. 3 passed; 0 failed"), None);
        assert_eq!(parse("running 3 tests"), None);
    }

    #[test]
    fn a_failures_own_words_are_cut_out() {
        let output = "failures:\n\n---- a stdout ----\nboom\n---- b stdout ----\nbang\n\nfailures:\n    a\n    b\n";
        assert_eq!(excerpt(output, "a"), "---- a stdout ----\nboom\n");
        assert_eq!(excerpt(output, "b"), "---- b stdout ----\nbang\n\n");
        assert_eq!(excerpt(output, "c"), "");
    }
}
