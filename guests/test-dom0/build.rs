//! Links the guest where the SDK's linker script says.
fn main() {
    println!("cargo::rustc-link-arg-bins=-T{}", std::env::var("DEP_PROXENOS_GUEST_SCRIPT").unwrap());
}
