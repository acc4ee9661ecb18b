//! The frame of a test guest: checks, a result, an end.
//!
//! ```ignore
//! proxenos_guest::test_guest!(main);
//!
//! fn main(_: &StartInfo) {
//!     section("versions");
//!     check_eq!(hypercall::xen_version(), Ok(0x0002_0000));
//! }
//! ```
//!
//! A failed check is reported and the test goes on. At the end one line says `Test result: ` and one of four words, and
//! the domain shuts down with the matching reason:
//!
//! | word | meaning | reason |
//! |---|---|---|
//! | `SUCCESS` | every check held, and there was at least one | 0 |
//! | `FAILURE` | a check did not hold: a promise is broken | 16 |
//! | `ERROR` | the test could not be carried out: it panicked, or it checked nothing | 17 |
//! | `SKIP` | the test does not apply here | 0 |

use crate::shutdown::{self, Reason};
use crate::{StartInfo, println};
use core::fmt::Debug;
use core::panic::Location;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

static RUNNING: AtomicBool = AtomicBool::new(false);
static PASSED: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicU32 = AtomicU32::new(0);

/// Failures that are shown; the rest is only counted, so that a check in a loop cannot flood the console.
const SHOWN_FAILURES: u32 = 50;

/// Declares a test guest: like [`crate::entry!`], with a result at the end of its `main`.
#[macro_export]
macro_rules! test_guest {
    ($main:path $(, $note:expr)?) => {
        fn __proxenos_test_main(si: &$crate::StartInfo) {
            $crate::test::run(si, $main)
        }
        $crate::entry!(__proxenos_test_main $(, $note)?);
    };
}

/// Runs a test and ends the domain with its result.
pub fn run(si: &StartInfo, test: fn(&StartInfo)) -> ! {
    RUNNING.store(true, Ordering::Relaxed);
    test(si);
    finish()
}

/// Ends the test now, with the result so far.
pub fn finish() -> ! {
    let (passed, failed) = (PASSED.load(Ordering::Relaxed), FAILED.load(Ordering::Relaxed));
    println!("{passed} checks held, {failed} did not");
    match (passed, failed) {
        (0, 0) => end("ERROR", shutdown::TEST_ERROR),
        (_, 0) => end("SUCCESS", shutdown::POWEROFF),
        _ => end("FAILURE", shutdown::TEST_FAILURE),
    }
}

/// Ends the test as one that does not apply.
pub fn skip(why: &str) -> ! {
    println!("skipped: {why}");
    end("SKIP", shutdown::POWEROFF)
}

/// Ends the test as one that could not be carried out.
pub fn error(why: &str) -> ! {
    println!("error: {why}");
    end("ERROR", shutdown::TEST_ERROR)
}

/// Called by the panic handler: a panic in a test is an error of the test.
pub(crate) fn panicked() {
    if RUNNING.load(Ordering::Relaxed) {
        end("ERROR", shutdown::TEST_ERROR);
    }
}

fn end(word: &str, reason: Reason) -> ! {
    RUNNING.store(false, Ordering::Relaxed);
    println!("Test result: {word}");
    shutdown::shutdown(reason)
}

/// Prints a heading: what the next checks are about.
pub fn section(title: &str) {
    println!("-- {title}");
}

/// Counts a check. `what` is formatted only when it is shown.
#[track_caller]
pub fn record(held: bool, what: core::fmt::Arguments<'_>) -> bool {
    if held {
        PASSED.store(PASSED.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        return true;
    }
    let failed = FAILED.load(Ordering::Relaxed) + 1;
    FAILED.store(failed, Ordering::Relaxed);
    if failed <= SHOWN_FAILURES {
        let at = Location::caller();
        println!("FAILED {}:{}: {what}", at.file(), at.line());
    }
    held
}

/// Counts a check that two values are equal, and shows both if they are not.
#[track_caller]
pub fn record_eq<A: PartialEq<B> + Debug, B: Debug>(left: A, right: B, what: core::fmt::Arguments<'_>) -> bool {
    record(left == right, format_args!("{what}: {left:x?}, expected {right:x?}"))
}

/// Checks a condition: `check!(x > 1)`, or with a message as `format!` takes it: `check!(x > 1, "x is {x}")`. The value
/// is whether it held.
#[macro_export]
macro_rules! check {
    ($condition:expr $(,)?) => {
        $crate::test::record($condition, ::core::format_args!("{}", ::core::stringify!($condition)))
    };
    ($condition:expr, $($message:tt)+) => {
        $crate::test::record($condition, ::core::format_args!($($message)+))
    };
}

/// Checks that the first value is the second: `check_eq!(got, expected)`, or with a message.
#[macro_export]
macro_rules! check_eq {
    ($left:expr, $right:expr $(,)?) => {
        $crate::test::record_eq($left, $right, ::core::format_args!("{}", ::core::stringify!($left)))
    };
    ($left:expr, $right:expr, $($message:tt)+) => {
        $crate::test::record_eq($left, $right, ::core::format_args!($($message)+))
    };
}
