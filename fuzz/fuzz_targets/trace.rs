//! Several domains do what the bytes say; whatever it is, the whole machine stays in order (`proxenos_core::fuzzing`).
#![no_main]

use libfuzzer_sys::fuzz_target;
use proxenos_core::fuzzing;

fuzz_target!(|bytes: &[u8]| {
    if let Err(error) = fuzzing::run(bytes) {
        panic!("{error}\n{}", fuzzing::explain(bytes));
    }
});
