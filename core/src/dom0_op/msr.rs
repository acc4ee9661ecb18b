//! `DOM0_MSR`: model-specific registers of the CPUs in a mask.
//!
//! A CPU that has no such register refuses (-EINVAL; 2.0 died of that). All registers may be read. Written may be all
//! but those on which the hypervisor itself stands, or by which one CPU would come to differ from the others in what
//! domains rely on (-EPERM): entry points, descriptor bases, what a CPU records in memory, the clock, the interrupt
//! controller, memory types, speculation. (2.0 kept nothing back.)

use crate::control::{CpuMask, MsrNumber, MsrRefused};
use crate::host::Hardware;
use crate::hypercall::Caller;
use crate::preempt::Stop;
use crate::sched::CpuId;
use core::ops::RangeInclusive;
use proxenos_abi::Errno;
use proxenos_abi::dom0_ops::Dom0Version;
use proxenos_abi::dom0_ops::args::Msr;

/// What is not written (Intel SDM vol. 4; AMD APM vol. 2, appendix A).
const OWN: [RangeInclusive<u32>; 20] = [
    // TSC, APIC_BASE.
    0x10..=0x10,
    0x1b..=0x1b,
    // TSC_ADJUST, SPEC_CTRL, PRED_CMD.
    0x3b..=0x3b,
    0x48..=0x49,
    // Microcode.
    0x79..=0x79,
    // ARCH_CAPABILITIES, FLUSH_CMD.
    0x10a..=0x10b,
    // TSX_CTRL, MCU_OPT_CTRL.
    0x122..=0x123,
    // SYSENTER's.
    0x174..=0x176,
    // MISC_ENABLE.
    0x1a0..=0x1a0,
    // DEBUGCTL, and where branches lead.
    0x1d9..=0x1d9,
    // MTRRs and PAT: different ones on two CPUs, or for the hypervisor's memory, are nobody's to make.
    0x200..=0x27f,
    0x2ff..=0x2ff,
    // PEBS, its area (and BTS's), and processor trace: by these a CPU writes to memory, at addresses that nobody
    // checks.
    0x3f1..=0x3f1,
    0x560..=0x58f,
    0x600..=0x600,
    // CET and its stacks.
    0x6a0..=0x6a8,
    // TSC deadline, XSS; the x2APIC.
    0x6e0..=0x6e0,
    0x800..=0x8ff,
    // EFER, STAR, LSTAR, CSTAR, FMASK; bases of fs and gs.
    0xc000_0080..=0xc000_0102,
    // SYSCFG, HWCR, IORRs, TOP_MEM; DE_CFG and the like of AMD's.
    0xc001_0010..=0xc001_103f,
];

/// Whether a register may be written.
fn may_be_written(register: MsrNumber) -> bool {
    !OWN.iter().any(|own| own.contains(&register.0)) && register.0 != 0xda0
}

/// `DOM0_MSR`. Bits of CPUs that do not exist mean nothing, but one has to. Of several CPUs the caller's is asked
/// first, if it is among them: if that refuses, nothing has changed anywhere; and it is the one whose value is read.
/// Else it is the lowest.
pub(super) fn msr<H: Hardware>(caller: &mut Caller<'_, H>, _: Dom0Version, argument: &mut Msr) -> Result<u64, Stop> {
    let hw = &caller.host.hw;
    let (register, mask) = (MsrNumber(argument.msr), CpuMask(argument.cpu_mask));
    if { argument.write } != 0 && !may_be_written(register) {
        return Err(Errno::EPERM.into());
    }
    let here = hw.this_cpu();
    let count = u16::try_from(hw.processors().count).unwrap_or(u16::MAX);
    let others = (0..count).map(CpuId).filter(|&cpu| cpu != here);
    let mut cpus = core::iter::once(here).chain(others).filter(|&cpu| mask.contains(cpu)).peekable();
    let first = *cpus.peek().ok_or(Errno::EINVAL)?;
    let refused = |_: MsrRefused| Stop::Error(Errno::EINVAL);
    if { argument.write } != 0 {
        let value = u64::from(argument.in2) << 32 | u64::from(argument.in1);
        for cpu in cpus {
            hw.write_msr(cpu, register, value).map_err(refused)?;
        }
    } else {
        let value = hw.read_msr(first, register).map_err(refused)?;
        argument.out1 = value as u32;
        argument.out2 = (value >> 32) as u32;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_hypervisor_stands_on_is_not_written() {
        for own in [
            0x10,
            0x1b,
            0x48,
            0x174,
            0x277,
            0x2ff,
            0x3f1,
            0x560,
            0x570,
            0x600,
            0x6e0,
            0x808,
            0xc000_0080,
            0xc000_0082,
            0xc000_0101,
        ] {
            assert!(!may_be_written(MsrNumber(own)), "{own:#x}");
        }
        for other in [0, 0x8b, 0xc1, 0x186, 0x38f, 0x6e1, 0xc000_0103, u32::MAX] {
            assert!(may_be_written(MsrNumber(other)), "{other:#x}");
        }
    }
}
