//! Model-specific registers that a domain in control names: an access may fault, and is then refused.

use super::errand;
use super::percpu::CpuId;
use crate::ex_table;
use core::arch::asm;
use proxenos_core::control::{MsrNumber, MsrRefused};

/// Reads a register of a CPU that runs.
///
/// # Errors
/// The CPU has none of that number.
pub fn read(cpu: CpuId, register: MsrNumber) -> Result<u64, MsrRefused> {
    errand::send(cpu, |[number, _]| read_here(MsrNumber(number as u32)), [register.0.into(), 0]).ok_or(MsrRefused)
}

/// Writes a register of a CPU that runs: one on which nothing that the hypervisor itself relies on depends.
///
/// # Errors
/// The CPU has none of that number, or not with that value.
pub fn write(cpu: CpuId, register: MsrNumber, value: u64) -> Result<(), MsrRefused> {
    let work = |[number, value]: [u64; 2]| write_here(MsrNumber(number as u32), value).then_some(0);
    errand::send(cpu, work, [register.0.into(), value]).map(drop).ok_or(MsrRefused)
}

fn read_here(register: MsrNumber) -> Option<u64> {
    let (low, high, failed): (u32, u32, u32);
    // SAFETY: reading a register changes nothing that anybody relies on; where there is none, the fault goes on behind
    // it.
    unsafe {
        asm!(
            "mov {failed:e}, 1",
            "2: rdmsr",
            "xor {failed:e}, {failed:e}",
            "3:",
            ex_table!("2b", "3b"),
            in("ecx") register.0,
            out("eax") low,
            out("edx") high,
            failed = out(reg) failed,
            options(nostack)
        );
    }
    (failed == 0).then_some(u64::from(high) << 32 | u64::from(low))
}

fn write_here(register: MsrNumber, value: u64) -> bool {
    let failed: u32;
    // SAFETY: the callers' registers are none that the hypervisor's own soundness depends on (`dom0_op::msr` in
    // `core`); where there is none, the fault goes on behind it.
    unsafe {
        asm!(
            "mov {failed:e}, 1",
            "2: wrmsr",
            "xor {failed:e}, {failed:e}",
            "3:",
            ex_table!("2b", "3b"),
            in("ecx") register.0,
            in("eax") value as u32,
            in("edx") (value >> 32) as u32,
            failed = out(reg) failed,
            options(nostack)
        );
    }
    failed == 0
}
