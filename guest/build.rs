//! Tells guests where the linker script of their architecture is.
//!
//! A guest's own build script passes it on, in three lines:
//!
//! ```text
//! fn main() {
//!     println!("cargo::rustc-link-arg-bins=-T{}", std::env::var("DEP_PROXENOS_GUEST_SCRIPT").unwrap());
//! }
//! ```

use std::env;

fn main() {
    let arch = match env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it").as_str() {
        "x86" => "x86_32",
        _ => "x86_64",
    };
    let here = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let script = format!("{here}/link/{arch}.ld");
    println!("cargo::rerun-if-changed={script}");
    println!("cargo::metadata=SCRIPT={script}");
}
