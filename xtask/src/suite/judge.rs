//! Whether a run of a guest passed: by its exit status, its result line, and what its manifest expects.

use regex_lite::Regex;

use super::Verdict;
use crate::guest_meta::{Kind, Max, RunSpec};
use crate::qemu::{Outcome, PANIC_STATUS};

/// How a test guest's last line begins.
const RESULT: &str = "Test result: ";

/// How the line begins that the hypervisor prints when it has found the machine's memory in order, and how it ends.
const AUDIT: (&str, &str) = ("audit: ", ": all hold");

/// Judges a run. All must hold: it ended as expected, said so, left the machine's memory in order, and showed what it
/// should and nothing it should not.
pub fn judge(kind: Kind, spec: &RunSpec, outcome: Outcome, console: &str) -> Verdict {
    let skipped = match ending(spec, outcome)
        .and_then(|()| audited(spec, console))
        .and_then(|()| result_line(kind, spec, console))
    {
        Ok(skipped) => skipped,
        Err(why) => return Verdict::Fail(why),
    };
    // A guest that skips its test cannot show what it would have shown.
    if let Some(why) = skipped {
        return Verdict::Skip(why);
    }
    match expectations(spec, console) {
        Ok(()) => Verdict::Pass,
        Err(why) => Verdict::Fail(why),
    }
}

fn ending(spec: &RunSpec, outcome: Outcome) -> Result<(), String> {
    let wanted = spec.expect_status;
    match outcome {
        Outcome::TimedOut => Err(format!("no end after {} s", spec.timeout)),
        Outcome::Interrupted => Err("interrupted".to_owned()),
        Outcome::Failed => Err("QEMU failed".to_owned()),
        Outcome::Panic if wanted == PANIC_STATUS => Ok(()),
        Outcome::Panic => Err("the hypervisor panicked".to_owned()),
        Outcome::PowerOff | Outcome::Shutdown(_) if wanted == PANIC_STATUS => {
            Err("the hypervisor did not panic, as was expected".to_owned())
        }
        Outcome::PowerOff | Outcome::Shutdown(_) if outcome.status() == wanted => Ok(()),
        Outcome::PowerOff | Outcome::Shutdown(_) => {
            Err(format!("shut down with reason {}, expected {wanted}", outcome.status()))
        }
    }
}

/// The domain's end must have been audited, whatever it was, unless the hypervisor's own end is what is wanted.
fn audited(spec: &RunSpec, console: &str) -> Result<(), String> {
    let audits = |line: &str| line.contains(AUDIT.0) && line.trim_end().ends_with(AUDIT.1);
    if spec.expect_status == PANIC_STATUS || console.lines().any(audits) {
        return Ok(());
    }
    Err("no audit at the domain's end".to_owned())
}

/// Reads the result line. A test that is expected to shut down with 0 must have exactly one; nobody may have a bad one.
/// Some text means that the test was skipped, and why.
fn result_line(kind: Kind, spec: &RunSpec, console: &str) -> Result<Option<String>, String> {
    let results: Vec<&str> = console.lines().filter_map(|line| line.trim_end().strip_prefix(RESULT)).collect();
    let mut skipped = None;
    for result in &results {
        let (word, rest) = result.split_once([' ', ':']).unwrap_or((result, ""));
        match word {
            "SUCCESS" => {}
            "SKIP" => skipped = Some(rest.trim_start_matches([':', ' ']).to_owned()),
            _ => return Err(format!("{RESULT}{result}")),
        }
    }
    match results.len() {
        0 if kind == Kind::Test && spec.expect_status == 0 => Err("no result line".to_owned()),
        0 | 1 => Ok(skipped),
        many => Err(format!("{many} result lines")),
    }
}

fn expectations(spec: &RunSpec, console: &str) -> Result<(), String> {
    let mut rest = console;
    for text in &spec.expect {
        match rest.split_once(text.as_str()) {
            Some((_, after)) => rest = after,
            None if console.contains(text.as_str()) => return Err(format!("out of order: `{text}`")),
            None => return Err(format!("not on the console: `{text}`")),
        }
    }
    if let Some(text) = spec.forbid.iter().find(|text| console.contains(text.as_str())) {
        return Err(format!("forbidden on the console: `{text}`"));
    }
    spec.max.iter().try_for_each(|max| within(max, console))
}

fn within(max: &Max, console: &str) -> Result<(), String> {
    let regex = Regex::new(&max.pattern).map_err(|error| error.to_string())?;
    let found = regex.captures(console).and_then(|captures| captures.get(1));
    let found = found.ok_or_else(|| format!("nothing on the console is like `{}`", max.pattern))?.as_str();
    match found.replace(['_', ','], "").parse::<u64>() {
        Ok(number) if number <= max.value => Ok(()),
        Ok(number) => Err(format!("{number} is over the limit of {} (`{}`)", max.value, max.pattern)),
        Err(_) => Err(format!("`{found}` is no number (`{}`)", max.pattern)),
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, Outcome, RunSpec, Verdict};
    use crate::guest_meta::GuestMeta;

    fn spec(keys: &str) -> RunSpec {
        let json = serde_json::from_str(&format!(r#"{{"proxenos": {{{keys}}}}}"#)).expect("JSON");
        GuestMeta::from_package_metadata(&json).expect("valid").runs.remove(0)
    }

    /// Judges what ended with a good audit.
    fn judge(kind: Kind, spec: &RunSpec, outcome: Outcome, console: &str) -> Verdict {
        super::judge(
            kind,
            spec,
            outcome,
            &format!("{console}(px) audit: 3 frames, 1 tables; checks: I1 1: all hold\r\n"),
        )
    }

    #[test]
    fn an_end_that_was_not_audited_is_a_failure() {
        let (good, panics) = (spec(""), spec(r#""expect-status": 125"#));
        let success = "Test result: SUCCESS\n";
        for kind in [Kind::Test, Kind::Example] {
            assert!(failed(&super::judge(kind, &good, Outcome::Shutdown(0), success)));
            let bad = format!("{success}(px) audit: I3, frame 0x5: references should be 0x1, is 0x2\n");
            assert!(failed(&super::judge(kind, &good, Outcome::Shutdown(0), &bad)));
            assert_eq!(super::judge(kind, &panics, Outcome::Panic, success), Verdict::Pass);
            assert_eq!(judge(kind, &good, Outcome::Shutdown(0), success), Verdict::Pass);
        }
    }

    fn failed(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Fail(_))
    }

    #[test]
    fn a_test_needs_status_and_line() {
        let spec = spec("");
        let judge = |outcome, console| judge(Kind::Test, &spec, outcome, console);
        let success = "hello\r\nTest result: SUCCESS\r\n";
        assert_eq!(judge(Outcome::Shutdown(0), success), Verdict::Pass);
        assert_eq!(judge(Outcome::PowerOff, success), Verdict::Pass);
        assert!(failed(&judge(Outcome::Shutdown(3), success)));
        assert!(failed(&judge(Outcome::Panic, success)));
        assert!(failed(&judge(Outcome::TimedOut, success)));
        assert!(failed(&judge(Outcome::Failed, success)));
        assert!(failed(&judge(Outcome::Shutdown(0), "hello\n")));
        assert!(failed(&judge(Outcome::Shutdown(0), "Test result: FAILURE\n")));
        assert!(failed(&judge(Outcome::Shutdown(0), "Test result: SUCCESSFUL\n")));
        assert!(failed(&judge(Outcome::Shutdown(0), "Test result: SUCCESS\nTest result: SUCCESS\n")));
        assert!(failed(&judge(Outcome::Shutdown(0), "Test result: ERROR\nTest result: SUCCESS\n")));
        assert!(failed(&judge(Outcome::Shutdown(0), "say Test result: SUCCESS\n")));
    }

    #[test]
    fn a_skip_passes_with_its_reason() {
        let verdict = judge(Kind::Test, &spec(""), Outcome::Shutdown(0), "Test result: SKIP: no NX\n");
        assert_eq!(verdict, Verdict::Skip("no NX".to_owned()));
        assert!(failed(&judge(Kind::Test, &spec(""), Outcome::Shutdown(1), "Test result: SKIP\n")));
    }

    #[test]
    fn an_example_needs_no_line_but_may_not_fail() {
        assert_eq!(judge(Kind::Example, &spec(""), Outcome::Shutdown(0), ""), Verdict::Pass);
        assert!(failed(&judge(Kind::Example, &spec(""), Outcome::Shutdown(0), "Test result: ERROR\n")));
    }

    #[test]
    fn a_panic_can_be_what_is_expected() {
        let spec = spec(r#""expect-status": 125, "expect": "bad image""#);
        assert_eq!(judge(Kind::Test, &spec, Outcome::Panic, "(px) bad image\n"), Verdict::Pass);
        assert!(failed(&judge(Kind::Test, &spec, Outcome::Panic, "(px) other\n")));
        assert!(failed(&judge(Kind::Test, &spec, Outcome::Shutdown(125), "(px) bad image\n")));
        assert!(failed(&judge(Kind::Test, &spec, Outcome::Shutdown(0), "(px) bad image\n")));
    }

    #[test]
    fn expected_texts_come_in_order() {
        let spec = spec(r#""expect": ["one", "two"], "forbid": ["three"]"#);
        let judge = |console| judge(Kind::Example, &spec, Outcome::Shutdown(0), console);
        assert_eq!(judge("one\ntwo\n"), Verdict::Pass);
        assert!(failed(&judge("two\none\n")));
        assert!(failed(&judge("one\n")));
        assert!(failed(&judge("one\ntwo\nthree\n")));
    }

    #[test]
    fn numbers_have_limits() {
        let spec = spec(r#""max": [{"pattern": "boot: ([0-9_,]+) instructions", "value": 40000000}]"#);
        let judge = |console| judge(Kind::Example, &spec, Outcome::Shutdown(0), console);
        assert_eq!(judge("(px) boot: 40_000_000 instructions\n"), Verdict::Pass);
        assert!(failed(&judge("(px) boot: 40,000,001 instructions\n")));
        assert!(failed(&judge("nothing\n")));
        assert!(failed(&judge("boot: , instructions\n")));
    }
}
