//! I/O ports: which of a guest's rings may use them, and the instructions that do.
//!
//! Two things give a guest ports: its I/O privilege level, which opens all of them (`DOM0_IOPL`), and devices that its
//! domain was given, whose own ports its kernel and its applications then use ([`Granted`](crate::physdev::Granted)),
//! as 2.0's I/O bitmap had it.
//!
//! A guest's I/O privilege level is virtual. The CPU's own stays 0, since a ring-1 kernel at level 1 could clear the
//! interrupt flag for good; so every `in` and `out` of a guest faults, and those that its level allows are carried out
//! by the hypervisor ([`instruction`], [`string`]). A kernel cannot see the level in its flags, which Xen 2.0 showed
//! there, neither by `pushf` nor in frames: what the two say agrees.
//!
//! No lock: the rights are the virtual CPU's own.

pub mod instruction;
pub mod string;

/// A port, by its number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct IoPort(pub u16);

/// An I/O privilege level, 0 to 3 (`DOM0_IOPL`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Level(u8);

impl Level {
    /// The level of a request, of which the low two bits count.
    #[must_use]
    pub const fn from_raw(level: u32) -> Self {
        Self((level & 3) as u8)
    }
}

/// Who in a guest executes an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Its kernel.
    Kernel,
    /// An application.
    Application,
}

/// What a virtual CPU may do with ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rights {
    kernel: bool,
    applications: bool,
    /// Its domain has devices with ports: which, those know.
    devices: bool,
}

impl Rights {
    /// None, as at the start of a day.
    pub const NONE: Self = Self { kernel: false, applications: false, devices: false };

    /// `DOM0_IOPL`: level 1 is the kernel's, level 3 everybody's.
    ///
    /// A kernel that once had the right keeps it. It was told in its flags what it has, and restores what it read there
    /// when it changes tasks (a new task inherits its level from them); it reads 0 here, and would give its right away
    /// unawares. It loses nothing by it that it could not ask for again.
    pub const fn set_level(&mut self, level: Level) {
        self.kernel |= level.0 >= 1;
        self.applications = level.0 >= 3;
    }

    /// `DOM0_IOPL` by another domain, which knows what it says: the level is what it is from now on, whatever it was.
    pub const fn assign_level(&mut self, level: Level) {
        self.kernel = level.0 >= 1;
        self.applications = level.0 >= 3;
    }

    /// The domain was given a device that has ports.
    pub const fn note_devices(&mut self) {
        self.devices = true;
    }

    /// Whether there are any.
    #[inline]
    #[must_use]
    pub const fn any(self) -> bool {
        self.kernel || self.applications || self.devices
    }

    /// Whether code of this mode may use all ports.
    #[must_use]
    pub const fn allow(self, mode: Mode) -> bool {
        match mode {
            Mode::Kernel => self.kernel,
            Mode::Application => self.applications,
        }
    }
}

/// An instruction's use of ports: from which on, and how many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// The first.
    pub port: IoPort,
    /// How many.
    pub width: Width,
}

impl Span {
    /// Whether it lies within some ports as a whole.
    #[must_use]
    pub fn lies_within(self, ports: &core::ops::RangeInclusive<u16>) -> bool {
        let last = self.port.0.checked_add(self.width.bytes() - 1);
        *ports.start() <= self.port.0 && last.is_some_and(|last| last <= *ports.end())
    }
}

/// The machine's ports.
pub trait Ports {
    /// Reads; the result has no more bits than the width.
    fn port_in(&self, port: IoPort, width: Width) -> u32;
    /// Writes the low bits of a value.
    fn port_out(&self, port: IoPort, width: Width, value: u32);
}

/// How much an instruction moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Word,
    /// 32 bits.
    Long,
}

impl Width {
    /// How many ports it covers.
    #[must_use]
    pub const fn bytes(self) -> u16 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Long => 4,
        }
    }

    const fn mask(self) -> u32 {
        u32::MAX >> (32 - 8 * self.bytes())
    }
}

/// Whether a port access of this width touches any of these ports.
#[must_use]
pub fn touches(port: IoPort, width: Width, ports: core::ops::RangeInclusive<u16>) -> bool {
    let last = u32::from(port.0) + u32::from(width.bytes()) - 1;
    u32::from(port.0) <= u32::from(*ports.end()) && last >= u32::from(*ports.start())
}
