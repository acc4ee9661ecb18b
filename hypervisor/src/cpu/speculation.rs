//! What this CPU gives away by speculation: asking it, and doing what [`proxenos_core::speculation`] decides.
//!
//! Everything is asked once, on the boot CPU; others are taken to be alike. No lock.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};
use proxenos_core::speculation::{Branches, Capabilities, Cpu, FpuSwitch, Has, OnSwitch, Policy, Vendor, decide};
use raw_cpuid::native_cpuid::cpuid_count;
use raw_cpuid::{CpuId, CpuIdResult, Hypervisor};
use spin::Once;
use x86_64::registers::model_specific::Msr;

const IA32_SPEC_CTRL: Msr = Msr::new(0x48);
const IA32_PRED_CMD: Msr = Msr::new(0x49);
const IA32_ARCH_CAPABILITIES: Msr = Msr::new(0x10a);
const IA32_FLUSH_CMD: Msr = Msr::new(0x10b);
const EFER: Msr = Msr::new(0xc000_0080);
/// Bits of theirs.
const IBRS: u64 = 1 << 0;
const IBPB: u64 = 1 << 0;
const L1D_FLUSH: u64 = 1 << 0;
const AUTOMATIC_IBRS: u64 = 1 << 21;

static POLICY: Once<Policy> = Once::new();
/// The policy has nothing done when another domain's turn comes.
static SWITCHES_PLAINLY: AtomicBool = AtomicBool::new(false);

/// What is done here.
#[must_use]
pub fn policy() -> &'static Policy {
    POLICY.call_once(|| decide(&identify()))
}

fn identify() -> Cpu {
    let cpuid = CpuId::new();
    let emulated = cpuid.get_hypervisor_info().is_some_and(|info| info.identify() == Hypervisor::QEMU);
    let vendor = match cpuid.get_vendor_info().as_ref().map(|info| info.as_str()) {
        _ if emulated => Vendor::Emulator,
        Some("GenuineIntel") => Vendor::Intel,
        Some("AuthenticAMD" | "HygonGenuine") => Vendor::Amd,
        _ => Vendor::Other,
    };
    let basic = cpuid.get_feature_info();
    let (features, amd, newer) = (leaf(7), leaf(0x8000_0008), leaf(0x8000_0021));
    let bits = [
        (features.edx, 26, Has::IBPB | Has::IBRS),
        (features.edx, 10, Has::MD_CLEAR),
        (features.edx, 28, Has::L1D_FLUSH),
        (amd.ebx, 12, Has::IBPB),
        (amd.ebx, 14, Has::IBRS),
        (amd.ebx, 2, Has::ERROR_POINTERS),
        (newer.eax, 8, Has::AUTOMATIC_IBRS),
    ];
    let has = bits.iter().filter(|(register, bit, _)| register >> bit & 1 != 0).map(|&(_, _, has)| has).collect();
    let capabilities = if features.edx >> 29 & 1 != 0 {
        // SAFETY: CPUID says that the register is there.
        Capabilities::from_bits_truncate(unsafe { { IA32_ARCH_CAPABILITIES }.read() })
    } else {
        Capabilities::empty()
    };
    Cpu {
        vendor,
        family: basic.as_ref().map_or(0, |info| info.family_id().into()),
        model: basic.as_ref().map_or(0, |info| info.model_id().into()),
        has,
        capabilities,
    }
}

/// A leaf of CPUID; zeros where there is none.
fn leaf(number: u32) -> CpuIdResult {
    // The first of each half says which is the last.
    let last = cpuid_count(number & 0x8000_0000, 0).eax;
    if number > last { CpuIdResult { eax: 0, ebx: 0, ecx: 0, edx: 0 } } else { cpuid_count(number, 0) }
}

/// Sets on this CPU what is set once.
pub fn apply() {
    let plainly = policy().on_switch.is_empty() && policy().fpu != FpuSwitch::Eager;
    SWITCHES_PLAINLY.store(plainly, Ordering::Relaxed);
    // SAFETY: the policy names only what CPUID says is there; predictions are all that it changes.
    unsafe {
        match policy().branches {
            Branches::Open => {}
            Branches::Ibrs => { IA32_SPEC_CTRL }.write(IBRS),
            Branches::AutomaticIbrs => { EFER }.write(EFER.read() | AUTOMATIC_IBRS),
        }
    }
}

/// Says in the log what this machine leaks.
pub fn report() {
    let policy = policy();
    let open = policy.open();
    if policy.leaks.is_empty() {
        log::debug!("speculation: nothing is known to leak");
    } else if open.is_empty() {
        log::info!("speculation: this CPU leaks by {}; dealt with", policy.leaks);
    } else {
        log::warn!(
            "speculation: this CPU leaks by {}; NOT dealt with: {open}. Do not run guests here that must not read each \
             other's memory",
            policy.leaks
        );
    }
}

/// Whether neither [`enter_domain`] nor the FPU's part (`guest::fpu::enter`) would do anything. A constant of the
/// boot's; false before [`apply`].
#[inline]
pub fn switches_plainly() -> bool {
    SWITCHES_PLAINLY.load(Ordering::Relaxed)
}

/// This CPU goes over to a domain: nothing of the last one's is left in it to be found by speculation, as far as that
/// can be had.
#[inline]
pub fn enter_domain() {
    let actions = policy().on_switch;
    if !actions.is_empty() {
        clear(actions);
    }
}

#[cold]
fn clear(actions: OnSwitch) {
    // SAFETY: the policy names only what CPUID says is there. The registers only ever empty something; VERW reads a
    // selector, and any does.
    unsafe {
        if actions.contains(OnSwitch::IBPB) {
            { IA32_PRED_CMD }.write(IBPB);
        }
        if actions.contains(OnSwitch::L1D_FLUSH) {
            { IA32_FLUSH_CMD }.write(L1D_FLUSH);
        }
        if actions.contains(OnSwitch::VERW) {
            // Only the form with a memory operand clears anything.
            let selector: u16 = 0;
            asm!("verw word ptr [{}]", in(reg) &raw const selector, options(nostack));
        }
    }
}
