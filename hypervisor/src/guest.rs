//! Where guests begin: what the platform layer calls when the machine is up and when a guest traps.

use crate::cpu::entry::TrapFrame;
use crate::fault;

/// What guest code keeps per CPU, in [`crate::cpu::percpu::Cpu::local`].
#[derive(Debug, Default)]
pub struct CpuLocal {}

/// A trap from a guest.
pub fn trap(frame: &mut TrapFrame) {
    fault::report_trap(frame)
}

/// The machine is up: builds domain 0 and runs it.
pub fn start() -> ! {
    panic!("there is no guest to run")
}
