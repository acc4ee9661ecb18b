//! Registers as an instruction sees them, wherever they are kept. No state of its own, no lock.

/// General registers in the order of their numbers (rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15), and what else
/// an instruction changes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Registers {
    /// General registers.
    pub general: [u64; 16],
    /// Offset of the instruction in its code segment.
    pub ip: u64,
    /// Flags.
    pub flags: u64,
}

/// Registers, however they are kept.
pub trait RegisterFile {
    /// A general register, by its number (0 to 15).
    fn general(&self, number: u8) -> u64;
    /// Writes one.
    fn set_general(&mut self, number: u8, value: u64);
    /// The instruction pointer.
    fn ip(&self) -> u64;
    /// Writes it.
    fn set_ip(&mut self, value: u64);
    /// The flags.
    fn flags(&self) -> u64;
    /// Writes them.
    fn set_flags(&mut self, value: u64);
}

impl RegisterFile for Registers {
    fn general(&self, number: u8) -> u64 {
        self.general[usize::from(number & 15)]
    }

    fn set_general(&mut self, number: u8, value: u64) {
        self.general[usize::from(number & 15)] = value;
    }

    fn ip(&self) -> u64 {
        self.ip
    }

    fn set_ip(&mut self, value: u64) {
        self.ip = value;
    }

    fn flags(&self) -> u64 {
        self.flags
    }

    fn set_flags(&mut self, value: u64) {
        self.flags = value;
    }
}
