//! Why an image is refused, in words a user can act on.

use core::fmt;
use elf::ParseError;

/// What is wrong with an image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ImageError {
    /// It does not begin as an ELF file does.
    NotElf,
    /// It is big-endian.
    ByteOrder,
    /// The file ends before what it says it holds.
    Truncated(&'static str),
    /// The ELF class or machine is neither i386 in 32 bits nor x86-64 in 64.
    WrongMachine {
        /// Bits of its class.
        bits: u32,
        /// `e_machine`.
        machine: u16,
    },
    /// It is no executable with fixed addresses.
    NotExecutable {
        /// `e_type`.
        kind: u16,
    },
    /// The header is damaged.
    Malformed(&'static str),
    /// There is no segment to load.
    NothingToLoad,
    /// A segment has more bytes in the file than in memory.
    FileLargerThanMemory {
        /// Its address.
        at: u64,
    },
    /// A segment's bytes are not all in the file.
    SegmentBeyondFile {
        /// Its address.
        at: u64,
    },
    /// Two segments share an address.
    Overlap {
        /// Address of the lower.
        first: u64,
        /// Address of the other.
        second: u64,
    },
    /// It would lie in the hypervisor's part of the address space, or at no address at all.
    OutsideGuestSpace {
        /// The first address.
        start: u64,
        /// The address behind the last.
        end: u64,
    },
    /// The entry point is in no segment.
    EntryOutside {
        /// The entry point.
        entry: u64,
    },
    /// Its sections have no names, so that `__xen_guest` cannot be found.
    NoSectionNames,
    /// There is no `__xen_guest` section.
    NoGuestSection,
    /// `__xen_guest` does not say `XEN_VER=2.0`.
    NoVersion,
    /// `__xen_guest` says neither `LOADER=generic` nor `GUEST_OS=linux`.
    NoLoader,
    /// `VIRT_BASE` is no number.
    BadVirtBase,
    /// The initial mapping would not begin on a page boundary.
    BaseNotAligned {
        /// Where it would begin.
        base: u64,
    },
    /// `VIRT_BASE` lies above the lowest segment.
    BaseAboveImage {
        /// `VIRT_BASE`.
        base: u64,
        /// The lowest segment's address.
        lowest: u64,
    },
    /// It asks for its symbol table, and that is damaged.
    SymbolTable(&'static str),
    /// The hypervisor has not enough memory to read it.
    OutOfMemory,
}

impl ImageError {
    /// The fault behind an error of the `elf` crate, met while reading `what`.
    pub(super) fn from_parser(error: ParseError, what: &'static str) -> Self {
        match error {
            ParseError::BadMagic(_) => Self::NotElf,
            ParseError::UnsupportedElfEndianness(_) => Self::ByteOrder,
            ParseError::SliceReadError((_, end)) if end <= 64 => Self::Truncated(what),
            ParseError::SliceReadError(_) | ParseError::IntegerOverflow => {
                Self::Truncated("program or section headers")
            }
            ParseError::UnsupportedElfClass(_) => Self::Malformed("unknown ELF class"),
            ParseError::UnsupportedVersion(_) => Self::Malformed("unknown ELF version"),
            ParseError::BadEntsize(_) => Self::Malformed("header table entries of a wrong size"),
            _ => Self::Malformed("unreadable header"),
        }
    }
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotElf => write!(f, "not an ELF file"),
            Self::ByteOrder => write!(f, "the ELF file is not little-endian"),
            Self::Truncated(what) => write!(f, "the file is truncated: its {what} reach beyond its end"),
            Self::WrongMachine { bits, machine } => {
                write!(f, "a {bits}-bit ELF file for machine {machine}: neither 32-bit i386 (3) nor 64-bit x86-64 (62)")
            }
            Self::NotExecutable { kind } => {
                write!(f, "ELF type {kind} is not an executable with fixed addresses (2); link without -pie")
            }
            Self::Malformed(what) => write!(f, "damaged ELF header: {what}"),
            Self::NothingToLoad => write!(f, "no segment to load"),
            Self::FileLargerThanMemory { at } => {
                write!(f, "the segment at {at:#x} is larger in the file than in memory")
            }
            Self::SegmentBeyondFile { at } => {
                write!(f, "the file is truncated: the segment at {at:#x} reaches beyond its end")
            }
            Self::Overlap { first, second } => write!(f, "the segments at {first:#x} and {second:#x} overlap"),
            Self::OutsideGuestSpace { start, end } => {
                write!(f, "addresses {start:#x} to {end:#x} are not all a guest's")
            }
            Self::EntryOutside { entry } => write!(f, "the entry point {entry:#x} is in no segment"),
            Self::NoSectionNames => write!(f, "sections have no names, so there is no __xen_guest section"),
            Self::NoGuestSection => write!(f, "no __xen_guest section: not a guest kernel"),
            Self::NoVersion => write!(f, "__xen_guest does not say XEN_VER=2.0"),
            Self::NoLoader => write!(f, "__xen_guest says neither LOADER=generic nor GUEST_OS=linux"),
            Self::BadVirtBase => write!(f, "VIRT_BASE in __xen_guest is not a number"),
            Self::BaseNotAligned { base } => write!(f, "the initial mapping at {base:#x} is not on a page boundary"),
            Self::BaseAboveImage { base, lowest } => {
                write!(f, "VIRT_BASE {base:#x} is above the image's lowest address {lowest:#x}")
            }
            Self::SymbolTable(what) => write!(f, "BSD_SYMTAB is asked for, but {what}"),
            Self::OutOfMemory => write!(f, "not enough memory to read the image"),
        }
    }
}

impl core::error::Error for ImageError {}
