//! Clocks of known rate, to measure the TSC against.

use crate::acpi::{self, PmTimer};
use crate::mm::ioremap::{self, Access};
use proxenos_core::timekeeping::clock::ReferenceClock;
use x86_64::VirtAddr;
use x86_64::instructions::port::Port;

/// Bytes of the HPET's registers.
const HPET_SIZE: u64 = 1024;
/// Ticks a second of the ACPI power management timer (ACPI 6.4, section 4.8.2.1).
const PM_TIMER_HZ: u64 = 3_579_545;
/// Ticks a second of the 8254.
const PIT_HZ: u64 = 1_193_182;
/// How often a clock is read before it is thought to stand still: even the slowest ticks once a microsecond, and no
/// read takes less than a few nanoseconds.
const READS: u32 = 2000;

/// A clock that counts up at a known rate and wraps.
#[derive(Debug)]
pub enum Reference {
    /// The high precision event timer.
    Hpet {
        /// Its main counter.
        counter: VirtAddr,
        /// Its rate in Hz.
        hz: u64,
    },
    /// The ACPI power management timer.
    PmTimer(PmTimer),
    /// Channel 0 of the 8254. (Channel 2, which others use, is gated by a port that not every machine with an 8254 has.
    /// Nobody wants channel 0's interrupt.)
    Pit,
}

impl Reference {
    /// The best one that runs.
    pub fn find() -> Option<Self> {
        let hpet = || hpet().filter(Self::runs);
        let pm_timer = || acpi::machine().pm_timer.map(Self::PmTimer).filter(Self::runs);
        let pit = || Some(pit()).filter(Self::runs);
        hpet().or_else(pm_timer).or_else(pit)
    }

    /// What people call it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Hpet { .. } => "HPET",
            Self::PmTimer(_) => "ACPI timer",
            Self::Pit => "8254",
        }
    }

    /// How fast it counts, and how far.
    #[must_use]
    pub const fn clock(&self) -> ReferenceClock {
        match self {
            Self::Hpet { hz, .. } => ReferenceClock { hz: *hz, mask: u32::MAX as u64 },
            Self::PmTimer(timer) => ReferenceClock { hz: PM_TIMER_HZ, mask: timer.mask as u64 },
            Self::Pit => ReferenceClock { hz: PIT_HZ, mask: 0xffff },
        }
    }

    /// The counter now.
    #[must_use]
    pub fn read(&self) -> u64 {
        match self {
            // SAFETY: `hpet` mapped the registers, for good. The lower half counts alone where the counter has but 32
            // bits.
            Self::Hpet { counter, .. } => unsafe { counter.as_ptr::<u32>().read_volatile() }.into(),
            Self::PmTimer(timer) => (timer.register.read32() & timer.mask).into(),
            Self::Pit => pit_count().into(),
        }
    }

    /// Ticks from one reading to a later one, less than a turn of the counter.
    #[must_use]
    pub const fn elapsed(&self, from: u64, to: u64) -> u64 {
        to.wrapping_sub(from) & self.clock().mask
    }

    fn runs(&self) -> bool {
        let first = self.read();
        (0..READS).any(|_| self.read() != first)
    }
}

/// The HPET, running (IA-PC HPET specification 1.0a, section 2.3).
fn hpet() -> Option<Reference> {
    const CAPABILITIES: u64 = 0x00;
    const CONFIGURATION: u64 = 0x10;
    const COUNTER: u64 = 0xf0;
    const ENABLE: u64 = 1 << 0;
    let base = ioremap::map(acpi::machine().hpet?, HPET_SIZE, Access::Device).ok()?;
    // SAFETY: the HPET table says that the registers are here; nobody else uses them. Counting disturbs nothing.
    let femtoseconds = unsafe {
        let configuration: *mut u64 = (base + CONFIGURATION).as_mut_ptr();
        configuration.write_volatile(configuration.read_volatile() | ENABLE);
        (base + CAPABILITIES).as_ptr::<u64>().read_volatile() >> 32
    };
    // The specification allows at most 100 ns a tick.
    (1..=100_000_000)
        .contains(&femtoseconds)
        .then(|| Reference::Hpet { counter: base + COUNTER, hz: 1_000_000_000_000_000 / femtoseconds })
}

/// Channel 0 of the 8254, counting down 65536 ticks over and over (mode 2).
fn pit() -> Reference {
    for (port, value) in [(0x43, 0x34), (0x40, 0), (0x40, 0)] {
        // SAFETY: the ports are the 8254's or nobody's; its interrupt is masked.
        unsafe { Port::<u8>::new(port).write(value) };
    }
    Reference::Pit
}

/// Channel 0's counter, made to count up.
fn pit_count() -> u16 {
    // SAFETY: as for `pit`. Writing 0 to the control port latches the count, which the two reads deliver.
    let [low, high] = unsafe {
        Port::<u8>::new(0x43).write(0);
        [Port::<u8>::new(0x40).read(), Port::<u8>::new(0x40).read()]
    };
    u16::from_le_bytes([low, high]).wrapping_neg()
}
