//! Links the guest by its own script: where today's Xen loads it, and with the notes that it looks for.
fn main() {
    let script = format!("{}/link.ld", std::env::var("CARGO_MANIFEST_DIR").unwrap());
    println!("cargo::rerun-if-changed={script}");
    println!("cargo::rustc-link-arg-bins=-T{script}");
}
