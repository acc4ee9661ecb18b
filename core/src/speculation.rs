//! What a CPU is known to give away by speculation, and what is done about it: the policy, as a function of what the
//! CPU says of itself.
//!
//! SPECIFICATION.md ("Speculation") says what this protects and what it does not. In short: nothing that costs on the
//! way to and from a guest. What is done is done when a CPU goes from one domain to another, and once at the start. A
//! CPU that nothing is known of is taken to leak; one that says it does not is believed; an emulated one does not
//! speculate.
//!
//! Sources: Intel's "CPUID Enumeration and Architectural MSRs" and list of affected processors; AMD's "Software
//! techniques for managing speculation" and APM vol. 3, CPUID. No state, no lock.

use core::fmt;

/// Who made a CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Vendor {
    /// Intel.
    Intel,
    /// AMD, and Hygon, whose CPUs are AMD's.
    Amd,
    /// Anybody else.
    Other,
    /// Nobody: a program that executes one instruction after the other.
    Emulator,
}

bitflags::bitflags! {
    /// What CPUID says that a CPU has.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Has: u32 {
        /// IBPB, a barrier for branch predictions (7.EDX bit 26, or 80000008h.EBX bit 12).
        const IBPB = 1 << 0;
        /// IA32_SPEC_CTRL with IBRS (7.EDX bit 26, or 80000008h.EBX bit 14).
        const IBRS = 1 << 1;
        /// VERW overwrites the buffers that MDS leaks (7.EDX bit 10).
        const MD_CLEAR = 1 << 2;
        /// IA32_FLUSH_CMD (7.EDX bit 28).
        const L1D_FLUSH = 1 << 3;
        /// EFER.AIBRSE: IBRS that need not be written again and again (80000021h.EAX bit 8).
        const AUTOMATIC_IBRS = 1 << 4;
        /// FXSAVE and FXRSTOR keep the pointers of the last x87 error always (80000008h.EBX bit 2).
        const ERROR_POINTERS = 1 << 5;
    }

    /// Bits of IA32_ARCH_CAPABILITIES.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Capabilities: u64 {
        /// Not affected by Meltdown and L1TF.
        const RDCL_NO = 1 << 0;
        /// IBRS need be set only once.
        const IBRS_ALL = 1 << 1;
        /// Not affected by MDS.
        const MDS_NO = 1 << 5;
    }

    /// Ways in which a CPU leaks across the borders that this hypervisor draws.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Leaks: u32 {
        /// Meltdown (CVE-2017-5754): ring 3 reads what is mapped for the supervisor.
        const MELTDOWN = 1 << 0;
        /// L1TF (CVE-2018-3646): what an entry that is not present names is read, if it is in the cache.
        const L1TF = 1 << 1;
        /// MDS (CVE-2018-12130 and others): what passed the CPU's buffers a moment ago.
        const MDS = 1 << 2;
        /// LazyFP (CVE-2018-3665): the FPU's registers, in spite of TS.
        const LAZY_FP = 1 << 3;
        /// Spectre 2 (CVE-2017-5715): branches of one go where another has trained them to.
        const BRANCHES = 1 << 4;
    }

    /// What is done when a CPU goes over to a domain.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct OnSwitch: u32 {
        /// Forget branch predictions.
        const IBPB = 1 << 0;
        /// Overwrite the buffers.
        const VERW = 1 << 1;
        /// Empty the first-level cache.
        const L1D_FLUSH = 1 << 2;
    }
}

/// What a CPU says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cpu {
    /// Who made it.
    pub vendor: Vendor,
    /// Family, extended family included.
    pub family: u32,
    /// Model, extended model included.
    pub model: u32,
    /// Features.
    pub has: Has,
    /// IA32_ARCH_CAPABILITIES; empty where there is none.
    pub capabilities: Capabilities,
}

/// When the FPU's registers are given to a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FpuSwitch {
    /// At its first use.
    Lazy,
    /// With the CPU.
    Eager,
}

/// Whether the pointers of the last x87 error have to be overwritten when the registers are another's: FXRSTOR of some
/// CPUs leaves them, unless there is an error (CVE-2006-1056).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorPointers {
    /// FXRSTOR loads them.
    Loaded,
    /// It may leave the last domain's.
    Overwrite,
}

/// How predictions made in the guest are kept from the hypervisor's branches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Branches {
    /// Not at all.
    Open,
    /// IA32_SPEC_CTRL.IBRS, set once.
    Ibrs,
    /// EFER.AIBRSE, set once.
    AutomaticIbrs,
}

/// What is done on a CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// What it leaks, by itself.
    pub leaks: Leaks,
    /// What is done when it goes over to a domain.
    pub on_switch: OnSwitch,
    /// How its FPU is switched.
    pub fpu: FpuSwitch,
    /// And what may be left in that.
    pub error_pointers: ErrorPointers,
    /// What is set once.
    pub branches: Branches,
}

/// Models of Intel's family 6 that execute in order (Bonnell, Saltwell).
const IN_ORDER: [u32; 5] = [0x1c, 0x26, 0x27, 0x35, 0x36];

impl Cpu {
    fn leaks(&self) -> Leaks {
        let by_design = Leaks::MELTDOWN | Leaks::L1TF | Leaks::MDS | Leaks::LAZY_FP;
        match self.vendor {
            Vendor::Emulator => Leaks::empty(),
            Vendor::Amd => Leaks::BRANCHES,
            Vendor::Intel if self.family == 6 && IN_ORDER.contains(&self.model) => Leaks::empty(),
            Vendor::Intel | Vendor::Other => {
                let mut leaks = by_design | Leaks::BRANCHES;
                if self.capabilities.contains(Capabilities::RDCL_NO) {
                    leaks.remove(Leaks::MELTDOWN | Leaks::L1TF);
                }
                if self.capabilities.contains(Capabilities::MDS_NO) {
                    leaks.remove(Leaks::MDS);
                }
                leaks
            }
        }
    }
}

/// What to do on a CPU.
#[must_use]
pub fn decide(cpu: &Cpu) -> Policy {
    let leaks = cpu.leaks();
    let mut on_switch = OnSwitch::empty();
    let needs = [
        (Leaks::BRANCHES, Has::IBPB, OnSwitch::IBPB),
        (Leaks::MDS, Has::MD_CLEAR, OnSwitch::VERW),
        (Leaks::L1TF, Has::L1D_FLUSH, OnSwitch::L1D_FLUSH),
    ];
    for (leak, means, action) in needs {
        on_switch.set(action, leaks.contains(leak) && cpu.has.contains(means));
    }
    let ibrs = cpu.has.contains(Has::IBRS) && cpu.capabilities.contains(Capabilities::IBRS_ALL);
    let branches = match () {
        () if !leaks.contains(Leaks::BRANCHES) => Branches::Open,
        () if cpu.has.contains(Has::AUTOMATIC_IBRS) => Branches::AutomaticIbrs,
        () if ibrs => Branches::Ibrs,
        () => Branches::Open,
    };
    let keeps_pointers = cpu.vendor == Vendor::Amd && !cpu.has.contains(Has::ERROR_POINTERS);
    Policy {
        leaks,
        on_switch,
        fpu: if leaks.contains(Leaks::LAZY_FP) { FpuSwitch::Eager } else { FpuSwitch::Lazy },
        error_pointers: if keeps_pointers { ErrorPointers::Overwrite } else { ErrorPointers::Loaded },
        branches,
    }
}

impl Policy {
    /// What guests can read that is not theirs, in spite of all that is done.
    #[must_use]
    pub fn open(&self) -> Leaks {
        let mut open = self.leaks;
        // What these leave open is what shares a core, or the hypervisor's own: SPECIFICATION.md.
        open.remove(Leaks::LAZY_FP);
        if self.on_switch.contains(OnSwitch::VERW) {
            open.remove(Leaks::MDS);
        }
        if self.on_switch.contains(OnSwitch::IBPB) && self.branches != Branches::Open {
            open.remove(Leaks::BRANCHES);
        }
        open
    }
}

/// Names, for the boot log: `Meltdown, L1TF`.
impl fmt::Display for Leaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (Self::MELTDOWN, "Meltdown"),
            (Self::L1TF, "L1TF"),
            (Self::MDS, "MDS"),
            (Self::LAZY_FP, "LazyFP"),
            (Self::BRANCHES, "Spectre 2"),
        ];
        let mut separator = "";
        for (_, name) in names.into_iter().filter(|&(leak, _)| self.contains(leak)) {
            write!(f, "{separator}{name}")?;
            separator = ", ";
        }
        if self.is_empty() { f.write_str("nothing") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    fn cpu(vendor: Vendor, model: u32, has: Has, capabilities: Capabilities) -> Cpu {
        Cpu { vendor, family: if vendor == Vendor::Amd { 0x19 } else { 6 }, model, has, capabilities }
    }

    #[test]
    fn known_cpus() {
        let (all, none) = (Leaks::all(), Leaks::empty());
        let microcode = Has::IBPB | Has::IBRS | Has::MD_CLEAR | Has::L1D_FLUSH;
        let everything = OnSwitch::IBPB | OnSwitch::VERW | OnSwitch::L1D_FLUSH;
        let cascade_lake = Capabilities::RDCL_NO | Capabilities::IBRS_ALL | Capabilities::MDS_NO;
        let lazy_and_branches = Leaks::LAZY_FP | Leaks::BRANCHES;
        for (name, cpu, leaks, on_switch, branches, open) in [
            (
                "Haswell of 2013",
                cpu(Vendor::Intel, 0x3c, Has::empty(), Capabilities::empty()),
                all,
                OnSwitch::empty(),
                Branches::Open,
                all - Leaks::LAZY_FP,
            ),
            (
                "with microcode of 2019",
                cpu(Vendor::Intel, 0x3c, microcode, Capabilities::empty()),
                all,
                everything,
                Branches::Open,
                Leaks::MELTDOWN | Leaks::L1TF | Leaks::BRANCHES,
            ),
            (
                "Cascade Lake",
                cpu(Vendor::Intel, 0x55, microcode, cascade_lake),
                lazy_and_branches,
                OnSwitch::IBPB,
                Branches::Ibrs,
                none,
            ),
            (
                "Saltwell",
                cpu(Vendor::Intel, 0x36, Has::empty(), Capabilities::empty()),
                none,
                OnSwitch::empty(),
                Branches::Open,
                none,
            ),
            (
                "Zen 1",
                cpu(Vendor::Amd, 1, Has::IBPB, Capabilities::empty()),
                Leaks::BRANCHES,
                OnSwitch::IBPB,
                Branches::Open,
                Leaks::BRANCHES,
            ),
            (
                "Zen 4",
                cpu(Vendor::Amd, 0x61, Has::IBPB | Has::AUTOMATIC_IBRS, Capabilities::empty()),
                Leaks::BRANCHES,
                OnSwitch::IBPB,
                Branches::AutomaticIbrs,
                none,
            ),
            (
                "unknown",
                cpu(Vendor::Other, 0, Has::empty(), Capabilities::empty()),
                all,
                OnSwitch::empty(),
                Branches::Open,
                all - Leaks::LAZY_FP,
            ),
            (
                "QEMU",
                cpu(Vendor::Emulator, 0, Has::all(), Capabilities::empty()),
                none,
                OnSwitch::empty(),
                Branches::Open,
                none,
            ),
        ] {
            let policy = decide(&cpu);
            assert_eq!(policy.leaks, leaks, "{name}");
            assert_eq!(policy.on_switch, on_switch, "{name}");
            assert_eq!(policy.branches, branches, "{name}");
            assert_eq!(policy.open(), open, "{name}");
        }
    }

    #[test]
    fn the_fpu_is_switched_as_it_must_be() {
        let policy = |vendor, has| decide(&cpu(vendor, 0x3c, has, Capabilities::empty()));
        assert_eq!(policy(Vendor::Intel, Has::empty()).fpu, FpuSwitch::Eager);
        assert_eq!(policy(Vendor::Other, Has::empty()).fpu, FpuSwitch::Eager);
        assert_eq!(policy(Vendor::Amd, Has::empty()).fpu, FpuSwitch::Lazy);
        assert_eq!(policy(Vendor::Emulator, Has::empty()).fpu, FpuSwitch::Lazy);
        assert_eq!(policy(Vendor::Amd, Has::empty()).error_pointers, ErrorPointers::Overwrite);
        assert_eq!(policy(Vendor::Amd, Has::ERROR_POINTERS).error_pointers, ErrorPointers::Loaded);
        assert_eq!(policy(Vendor::Intel, Has::empty()).error_pointers, ErrorPointers::Loaded);
    }

    /// Nothing that a CPU says makes it leak more, and nothing is done that it has no means for.
    #[test]
    fn what_a_cpu_says_only_helps() {
        for vendor in [Vendor::Intel, Vendor::Amd, Vendor::Other, Vendor::Emulator] {
            for has in (0..=Has::all().bits()).map(Has::from_bits_truncate) {
                for capabilities in (0..64).map(Capabilities::from_bits_truncate) {
                    let policy = decide(&cpu(vendor, 0x8e, has, capabilities));
                    let plain = decide(&cpu(vendor, 0x8e, Has::empty(), Capabilities::empty()));
                    assert!(plain.leaks.contains(policy.leaks) && plain.open().contains(policy.open()));
                    let means = [
                        (OnSwitch::IBPB, Has::IBPB),
                        (OnSwitch::VERW, Has::MD_CLEAR),
                        (OnSwitch::L1D_FLUSH, Has::L1D_FLUSH),
                    ];
                    assert!(
                        means
                            .iter()
                            .all(|&(action, means)| { !policy.on_switch.contains(action) || has.contains(means) })
                    );
                    assert!(policy.branches != Branches::Ibrs || has.contains(Has::IBRS));
                }
            }
        }
    }

    #[test]
    fn names() {
        assert_eq!(Leaks::empty().to_string(), "nothing");
        assert_eq!((Leaks::MELTDOWN | Leaks::MDS).to_string(), "Meltdown, MDS");
    }
}
