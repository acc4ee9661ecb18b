//! `cargo xtask`: build, run, test and package Proxenos.
mod qemu;
mod symbols;

fn main() {}
