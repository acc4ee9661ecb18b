//! The PCI bus as `core` sees it: functions by their addresses, and their configuration space.

/// Which function of which device on which bus.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PciAddress(u16);

impl PciAddress {
    /// The function with these numbers; `None` when one is too large: 256 buses, 32 devices, 8 functions.
    #[must_use]
    pub const fn new(bus: u32, device: u32, function: u32) -> Option<Self> {
        if bus > 255 || device > 31 || function > 7 {
            return None;
        }
        Some(Self((bus << 8 | device << 3 | function) as u16))
    }

    /// The number of its function.
    #[must_use]
    pub const fn function(self) -> u32 {
        (self.0 & 7) as u32
    }

    /// The first function of its device, which every device has.
    #[must_use]
    pub const fn first_function(self) -> Self {
        Self(self.0 & !7)
    }

    /// Bus, device and function as configuration addresses have them: 8, 5 and 3 bits.
    #[must_use]
    pub const fn raw(self) -> u16 {
        self.0
    }
}

/// How much of a register is accessed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    /// A byte.
    One,
    /// Two bytes, aligned.
    Two,
    /// Four bytes, aligned.
    Four,
}

/// Configuration space.
pub trait PciConfig {
    /// Reads a register; all ones where there is no function. `register` is aligned to `width`.
    fn pci_read(&self, at: PciAddress, register: u8, width: Width) -> u32;
    /// Writes a register, or nothing where there is no function. `register` is aligned to `width`.
    fn pci_write(&self, at: PciAddress, register: u8, width: Width, value: u32);
}
