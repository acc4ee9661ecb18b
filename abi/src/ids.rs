//! Newtypes for the interface's numbers: domains, frames, addresses, ports, interrupts and selectors.
//!
//! Each is as wide as its field in memory where it has one (`DomId`, `Port`, `GrantRef`, `Selector`), or 64 bits where
//! the field's width is the guest's (`Mfn`, `Pfn`, addresses).

/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page frame, for both architectures.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;

newtype! {
    /// A domain's number (`domid_t`, `xen.h`). Ordinary domains lie below [`FIRST_RESERVED`](Self::FIRST_RESERVED).
    pub struct DomId(u16);
}

impl DomId {
    /// `DOMID_FIRST_RESERVED`: from here on, numbers have special meanings.
    pub const FIRST_RESERVED: Self = Self(0x7ff0);
    /// `DOMID_SELF`: the caller itself, where a call accepts it.
    pub const SELF: Self = Self(0x7ff0);
    /// `DOMID_IO`: owner of I/O memory. As a foreign domain it allows I/O mappings only.
    pub const IO: Self = Self(0x7ff1);
    /// `DOMID_XEN`: owner of those parts of the hypervisor's memory that a privileged domain may map.
    pub const XEN: Self = Self(0x7ff2);
    /// The initial, controlling domain.
    pub const DOM0: Self = Self(0);

    /// Whether the number cannot be an ordinary domain's.
    #[inline]
    pub const fn is_reserved(self) -> bool {
        self.0 >= Self::FIRST_RESERVED.0
    }
}

newtype! {
    /// An event-channel port (`event_channel.h`): an index into the domain's own channels, below
    /// [`NR_EVENT_CHANNELS`](crate::event_channel::NR_EVENT_CHANNELS).
    pub struct Port(u32);
}

newtype! {
    /// A physical interrupt line (`event_channel.h`).
    pub struct Pirq(u32);
}

newtype! {
    /// An index into a domain's grant table (`grant_ref_t`, `grant_table.h`).
    pub struct GrantRef(u16);
}

newtype! {
    /// A machine page frame number: a machine address divided by the page size.
    pub struct Mfn(u64);
}

newtype! {
    /// A pseudo-physical page frame number: a frame's index in its domain's own, contiguous view of its memory.
    pub struct Pfn(u64);
}

newtype! {
    /// A machine address, in bytes.
    pub struct MachineAddr(u64);
}

newtype! {
    /// An address in a guest's virtual address space, in bytes; zero-extended for x86_32 guests.
    pub struct GuestVirt(u64);
}

newtype! {
    /// A segment selector: descriptor index, table indicator (bit 2) and requested privilege level (bits 0 and 1).
    pub struct Selector(u16);
}

impl Mfn {
    /// The frame's first byte.
    #[inline]
    pub const fn addr(self) -> MachineAddr {
        MachineAddr(self.0 << PAGE_SHIFT)
    }
}

impl MachineAddr {
    /// The frame that holds the address.
    #[inline]
    pub const fn mfn(self) -> Mfn {
        Mfn(self.0 >> PAGE_SHIFT)
    }

    /// Byte offset within the frame.
    #[inline]
    pub const fn page_offset(self) -> usize {
        self.0 as usize & (PAGE_SIZE - 1)
    }
}

impl GuestVirt {
    /// The address `bytes` further, wrapping at 2^64: whoever touches memory checks the range.
    #[inline]
    #[must_use]
    pub const fn offset(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }

    /// Byte offset within the page.
    #[inline]
    pub const fn page_offset(self) -> usize {
        self.0 as usize & (PAGE_SIZE - 1)
    }
}

impl Selector {
    /// The null selector.
    pub const NULL: Self = Self(0);

    /// A selector of the global descriptor table.
    #[inline]
    pub const fn gdt(index: u16, rpl: u8) -> Self {
        Self(index << 3 | (rpl & 3) as u16)
    }

    /// Index of the descriptor in its table.
    #[inline]
    pub const fn index(self) -> u16 {
        self.0 >> 3
    }

    /// Requested privilege level, 0 to 3.
    #[inline]
    pub const fn rpl(self) -> u8 {
        (self.0 & 3) as u8
    }

    /// Whether the descriptor is one of the local table's.
    #[inline]
    pub const fn is_local(self) -> bool {
        self.0 & 4 != 0
    }

    /// Whether the selector is null: index 0 of the global table, with any privilege level.
    #[inline]
    pub const fn is_null(self) -> bool {
        self.0 & !3 == 0
    }
}

numbers! {
    /// A virtual interrupt (`VIRQ_*`, `xen.h`).
    pub enum Virq: u32 {
        /// `VIRQ_MISDIRECT`: catches those that are bound to no port.
        Misdirect = 0,
        /// `VIRQ_TIMER`: time has been updated, or the requested timeout has passed.
        Timer = 1,
        /// `VIRQ_DEBUG`: the guest is asked to dump its state.
        Debug = 2,
        /// `VIRQ_CONSOLE`: bytes have come in on the emergency console (domain 0).
        Console = 3,
        /// `VIRQ_DOM_EXC`: something exceptional happened to some domain (domain 0).
        DomExc = 4,
        /// `VIRQ_PARITY_ERR`: an NMI reported a parity error (domain 0).
        ParityErr = 5,
        /// `VIRQ_IO_ERR`: an NMI reported an I/O error (domain 0).
        IoErr = 6,
    }
}

/// `NR_VIRQS`: how many virtual interrupts there are.
pub const NR_VIRQS: usize = 7;
const _: () = assert!(NR_VIRQS == Virq::ALL.len());
