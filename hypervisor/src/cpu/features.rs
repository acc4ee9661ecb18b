//! What this CPU can do, and the control registers set accordingly.
//!
//! Everything is read once, on the boot CPU; others that are not alike ([`fingerprint`]) are not used.

use raw_cpuid::{CpuId, CpuIdReaderNative};
use spin::Once;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags, Efer, EferFlags};
use x86_64::registers::model_specific::Msr;

/// What the hypervisor wants to know of the CPU.
#[derive(Clone, Debug)]
pub struct Features {
    /// 1 GiB pages.
    pub huge_pages: Support,
    /// The local APIC's registers as MSRs.
    pub x2apic: Support,
    /// The local APIC's timer can compare with the TSC.
    pub tsc_deadline: Support,
    /// The TSC runs at one rate whatever the CPU does.
    pub invariant_tsc: Support,
    /// `sysenter`.
    pub sysenter: Support,
    /// The page attribute table.
    pub pat: Support,
    /// The TSC can be moved by IA32_TSC_ADJUST.
    pub tsc_adjust: Support,
    /// The TSC's frequency where CPUID tells it, in Hz.
    pub tsc_hz: Option<u64>,
    /// The maker, such as `GenuineIntel`.
    pub vendor: arrayvec::ArrayString<12>,
    /// The model, as the maker puts it.
    pub brand: arrayvec::ArrayString<48>,
}

/// Whether the CPU has something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Support {
    /// It has it.
    Yes,
    /// It has not.
    No,
}

impl Support {
    fn of(present: bool) -> Self {
        if present { Self::Yes } else { Self::No }
    }

    /// Whether the CPU has it.
    #[must_use]
    pub fn is_there(self) -> bool {
        self == Self::Yes
    }
}

/// What CPUID says of a CPU that guests could depend on, bit by bit; what differs between the CPUs of a machine by its
/// nature is left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fingerprint([[u32; 4]; FINGERPRINT.len()]);

impl Fingerprint {
    /// That of a CPU with one feature more or less, for tests.
    pub fn of_another_model(mut self) -> Self {
        self.0[0][3] ^= 1 << 26;
        self
    }
}

/// Leaf, subleaf, and the bits of eax to edx that count.
const FINGERPRINT: [(u32, u32, [u32; 4]); 7] = [
    // ebx has the APIC number; OSXSAVE follows CR4.
    (1, 0, [!0, 0, !(1 << 27), !0]),
    // OSPKE follows CR4.
    (7, 0, [!0, !0, !(1 << 4), !0]),
    // The size in ebx follows XCR0.
    (0xd, 0, [!0, 0, !0, !0]),
    (0xd, 1, [!0, 0, !0, !0]),
    (0x8000_0001, 0, [0, 0, !0, !0]),
    (0x8000_0007, 0, [0, 0, 0, !0]),
    (0x8000_0008, 0, [!0, !0, 0, 0]),
];

/// That of this CPU.
pub fn fingerprint() -> Fingerprint {
    Fingerprint(FINGERPRINT.map(|(leaf, subleaf, masks)| {
        let last = raw_cpuid::cpuid!(leaf & 0x8000_0000).eax;
        if leaf > last {
            return [0; 4];
        }
        let found = raw_cpuid::cpuid!(leaf, subleaf);
        [found.eax & masks[0], found.ebx & masks[1], found.ecx & masks[2], found.edx & masks[3]]
    }))
}

static FEATURES: Once<Features> = Once::new();

/// The CPU's features.
pub fn get() -> &'static Features {
    FEATURES.call_once(detect)
}

fn detect() -> Features {
    let cpuid = CpuId::new();
    let basic = cpuid.get_feature_info();
    let extended = cpuid.get_extended_processor_and_feature_identifiers();
    let power = cpuid.get_advanced_power_mgmt_info();
    let basic_has = |test: fn(&raw_cpuid::FeatureInfo) -> bool| Support::of(basic.as_ref().is_some_and(test));
    let mut vendor = arrayvec::ArrayString::new();
    if let Some(info) = cpuid.get_vendor_info() {
        let _ = vendor.try_push_str(info.as_str());
    }
    let mut brand = arrayvec::ArrayString::new();
    if let Some(info) = cpuid.get_processor_brand_string() {
        let _ = brand.try_push_str(info.as_str().trim());
    }
    Features {
        huge_pages: Support::of(extended.as_ref().is_some_and(|e| e.has_1gib_pages())),
        x2apic: basic_has(raw_cpuid::FeatureInfo::has_x2apic),
        tsc_deadline: basic_has(raw_cpuid::FeatureInfo::has_tsc_deadline),
        invariant_tsc: Support::of(power.is_some_and(|p| p.has_invariant_tsc())),
        sysenter: basic_has(raw_cpuid::FeatureInfo::has_sysenter_sysexit),
        pat: basic_has(raw_cpuid::FeatureInfo::has_pat),
        tsc_adjust: Support::of(cpuid.get_extended_feature_info().is_some_and(|e| e.has_tsc_adjust_msr())),
        tsc_hz: tsc_frequency(&cpuid),
        vendor,
        brand,
    }
}

/// The TSC's frequency as CPUID gives it: exactly by leaf 15h (Intel SDM vol. 3, 18.7.3), or from a hypervisor below us
/// by leaf 40000010h (kHz; a convention of VMware's that KVM and others follow).
fn tsc_frequency(cpuid: &CpuId<CpuIdReaderNative>) -> Option<u64> {
    let plausible = |hz: &u64| (100_000_000..20_000_000_000).contains(hz);
    let exact = cpuid.get_tsc_info().and_then(|info| info.tsc_frequency());
    let told = cpuid.get_hypervisor_info().and_then(|info| info.tsc_frequency()).map(|khz| u64::from(khz) * 1000);
    exact.or(told).filter(plausible)
}

const IA32_SYSENTER_CS: u32 = 0x174;
const IA32_PAT: u32 = 0x277;
/// The PAT after reset: write-back, write-through, uncached-, uncached, twice. Guests' PCD and PWT bits mean what they
/// always did.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// Sets this CPU's control registers as the hypervisor needs them.
///
/// - Paging protections bind the hypervisor too: CR0.WP and EFER.NXE on.
/// - Off, whatever the firmware left: SMEP, SMAP and UMIP, which would change what an x86_32 kernel in ring 1
///   (supervisor to the CPU) sees; OSXSAVE, since guests of this interface save with FXSAVE; PGE, since nothing is
///   global; PCID; FSGSBASE, PKE and CET; PCE; TSD, so guests read the TSC.
/// - What is in the FPU's registers is nobody's: the first use traps (CR0.TS).
/// - Alignment checks (CR0.AM) are a guest application's own business: on, they cost nothing below ring 3.
/// - `sysenter` faults: it would enter the hypervisor by no gate.
pub fn set_control_registers() {
    let cr0 = Cr0Flags::PROTECTED_MODE_ENABLE
        | Cr0Flags::MONITOR_COPROCESSOR
        | Cr0Flags::TASK_SWITCHED
        | Cr0Flags::EXTENSION_TYPE
        | Cr0Flags::NUMERIC_ERROR
        | Cr0Flags::WRITE_PROTECT
        | Cr0Flags::ALIGNMENT_MASK
        | Cr0Flags::PAGING;
    let cr4 = Cr4Flags::PHYSICAL_ADDRESS_EXTENSION
        | Cr4Flags::MACHINE_CHECK_EXCEPTION
        | Cr4Flags::OSFXSR
        | Cr4Flags::OSXMMEXCPT_ENABLE;
    let features = get();
    // SAFETY: long mode stays on with the same page tables, whose entries use NX only where EFER.NXE has been on since
    // the boot code; no code of ours depends on a feature that this turns off. SYSENTER_CS = 0 makes `sysenter` fault.
    unsafe {
        Cr0::write(cr0);
        Cr4::write(cr4);
        Efer::write(Efer::read() | EferFlags::NO_EXECUTE_ENABLE);
        if features.sysenter.is_there() {
            Msr::new(IA32_SYSENTER_CS).write(0);
        }
        if features.pat.is_there() {
            Msr::new(IA32_PAT).write(PAT_RESET);
        }
    }
    super::speculation::apply();
}
