//! What the loader told us, copied out of its memory and the same whatever the boot protocol.

use crate::mm::ranges::MachineRange;
use arrayvec::ArrayVec;
use proxenos_abi::MachineAddr;

/// Regions of the memory map that are kept.
pub const MAX_REGIONS: usize = 128;
/// Modules that are kept.
pub const MAX_MODULES: usize = 8;
/// Bytes of all command lines together.
pub const MAX_TEXT: usize = 8192;

/// Who loaded us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// PVH, version of its start information.
    Pvh(u32),
    /// Multiboot 1.
    Multiboot1,
    /// Multiboot 2.
    Multiboot2,
}

impl core::fmt::Display for Protocol {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Pvh(version) => write!(f, "PVH, version {version}"),
            Self::Multiboot1 => write!(f, "Multiboot 1"),
            Self::Multiboot2 => write!(f, "Multiboot 2"),
        }
    }
}

/// What a region of the memory map is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RegionKind {
    /// Memory, free for us but for what the loader put there.
    Ram,
    /// ACPI tables.
    AcpiTables,
    /// ACPI's to keep.
    AcpiNvs,
    /// Bad memory.
    Unusable,
    /// Anything else.
    Reserved,
}

impl RegionKind {
    /// The kind for a type number of the BIOS's e820 map, which all three protocols use (ACPI 6.4, table 15.1).
    #[must_use]
    pub const fn from_e820(number: u32) -> Self {
        match number {
            1 => Self::Ram,
            3 => Self::AcpiTables,
            4 => Self::AcpiNvs,
            5 => Self::Unusable,
            _ => Self::Reserved,
        }
    }
}

/// A region of the memory map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Region {
    /// Its bytes.
    pub range: MachineRange,
    /// What it is.
    pub kind: RegionKind,
}

/// A range of [`BootInfo`]'s text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TextRange {
    start: u16,
    length: u16,
}

/// Something the loader loaded besides the hypervisor: first domain 0's kernel, then its initrd.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Module {
    /// Its bytes.
    pub range: MachineRange,
    /// Its command line, file name included where the loader gives one; see [`BootInfo::text`].
    pub command_line: TextRange,
}

/// What a loader may know of ACPI.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AcpiRoot {
    /// Where the root pointer (RSDP) lies.
    Rsdp(MachineAddr),
    /// Where the root table with 32-bit pointers (RSDT) lies.
    Rsdt(MachineAddr),
    /// Where the root table with 64-bit pointers (XSDT) lies.
    Xsdt(MachineAddr),
}

/// What the loader told us.
#[derive(Clone, Debug)]
pub struct BootInfo {
    /// Who loaded us.
    pub protocol: Protocol,
    /// The memory map as it was given: unordered, possibly overlapping.
    pub regions: ArrayVec<Region, MAX_REGIONS>,
    /// The modules, in order.
    pub modules: ArrayVec<Module, MAX_MODULES>,
    /// The hypervisor's command line.
    pub command_line: TextRange,
    /// Where ACPI's tables begin, if the loader knows.
    pub acpi: Option<AcpiRoot>,
    text: ArrayVec<u8, MAX_TEXT>,
}

/// Why what the loader left cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BootError {
    /// No known magic number in the register where it belongs.
    UnknownProtocol(u32),
    /// A structure does not begin with its magic number or has an impossible size.
    BadStructure(&'static str),
    /// A pointer leads outside the first 4 GiB.
    BadPointer(&'static str),
    /// There is no memory map.
    NoMemoryMap,
    /// More regions, modules or text than there is room for.
    TooMuch(&'static str),
}

impl core::fmt::Display for BootError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::UnknownProtocol(magic) => {
                write!(f, "started by no boot protocol known here (PVH, Multiboot 1 or 2): magic number {magic:#x}")
            }
            Self::BadStructure(what) => write!(f, "the loader's {what} is malformed"),
            Self::BadPointer(what) => write!(f, "the loader's {what} lies beyond 4 GiB or wraps around"),
            Self::NoMemoryMap => write!(f, "the loader gave no memory map"),
            Self::TooMuch(what) => write!(f, "the loader gave more {what} than there is room for"),
        }
    }
}

impl BootInfo {
    /// Nothing known yet.
    #[must_use]
    pub const fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            regions: ArrayVec::new_const(),
            modules: ArrayVec::new_const(),
            command_line: TextRange { start: 0, length: 0 },
            acpi: None,
            text: ArrayVec::new_const(),
        }
    }

    /// A command line. What is not UTF-8 in it is cut off.
    #[must_use]
    pub fn text(&self, range: TextRange) -> &str {
        let bytes = &self.text[usize::from(range.start)..][..usize::from(range.length)];
        match core::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or(""),
        }
    }

    /// Keeps a copy of a command line.
    pub(super) fn keep_text(&mut self, text: &[u8]) -> Result<TextRange, BootError> {
        let too_much = BootError::TooMuch("command-line text");
        let start = self.text.len() as u16;
        self.text.try_extend_from_slice(text).map_err(|_| too_much)?;
        Ok(TextRange { start, length: text.len() as u16 })
    }

    /// Adds a region of the memory map; empty ones and such as wrap around are dropped.
    pub(super) fn add_region(&mut self, start: u64, length: u64, e820_type: u32) -> Result<(), BootError> {
        let Some(end) = start.checked_add(length).filter(|&end| end > start) else { return Ok(()) };
        let kind = RegionKind::from_e820(e820_type);
        let range = MachineAddr(start)..MachineAddr(end);
        self.regions.try_push(Region { range, kind }).map_err(|_| BootError::TooMuch("memory regions"))
    }

    /// Adds a module of `start..end`.
    pub(super) fn add_module(&mut self, start: u64, end: u64, command_line: &[u8]) -> Result<(), BootError> {
        if end < start {
            return Err(BootError::BadStructure("module"));
        }
        let command_line = self.keep_text(command_line)?;
        let module = Module { range: MachineAddr(start)..MachineAddr(end), command_line };
        self.modules.try_push(module).map_err(|_| BootError::TooMuch("modules"))
    }
}
