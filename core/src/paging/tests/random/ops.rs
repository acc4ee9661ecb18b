//! What guests do in a random sequence. An [`Op`] names frames, slots and entries by what they are to the domain, so
//! that a random one often means something, and a failing sequence reads as a list of requests.

use crate::sim_hw::Mode;
use alloc::vec::Vec;

/// A frame, as a request may name it.
#[derive(Clone, Copy, Debug)]
pub enum Frame {
    /// The caller's, by pfn.
    Own(usize),
    /// Another domain's.
    Of(usize, usize),
    /// The page the caller shares with the hypervisor.
    SharedInfo,
    /// The hypervisor's.
    Hypervisor,
    /// Nobody's.
    Free,
    /// I/O memory: below 1 MiB, beyond RAM, and what nobody may map.
    LowIo,
    HighIo,
    ForbiddenIo,
    /// More than the CPU's addresses hold.
    Beyond,
}

/// Pages of the region from this one on are mapped by other L1 tables than [`L1`], if at all.
pub const WINDOW: usize = 1024;

/// A slot of a table.
#[derive(Clone, Copy, Debug)]
pub enum Slot {
    /// One of the first, where the region's pages are mapped.
    Page(usize),
    /// The one in a top table that leads to the region.
    Region,
    /// The one, in a table above L1, that leads to the pages from [`WINDOW`] on.
    Window,
    /// The last that is the guest's, and the first that is not.
    LastOwn,
    FirstReserved,
    /// The very last.
    Last,
}

/// An entry's contents.
#[derive(Clone, Copy, Debug)]
pub enum Entry {
    Empty,
    /// What stands in this slot of the caller's L1 table.
    Again(usize),
    /// A mapping with these flags.
    Maps(Frame, u64),
    Junk(u64),
}

/// A foreign domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Foreign {
    None,
    Dom(u16),
    Io,
    Xen,
    Nobody,
}

/// A request to `mmu_update`.
#[derive(Clone, Copy, Debug)]
pub enum Req {
    Update {
        table: Frame,
        slot: Slot,
        entry: Entry,
    },
    MachPhys {
        frame: Frame,
        pfn: u64,
    },
    Pin {
        frame: Frame,
        level: u8,
    },
    Unpin {
        frame: Frame,
    },
    NewBase {
        frame: Frame,
    },
    /// None, if there is no frame.
    NewUserBase {
        frame: Option<Frame>,
    },
    Flush,
    FlushPage(usize),
    FlushCaches,
    SetLdt {
        page: usize,
        offset: u64,
        entries: u64,
    },
    ClearForeign,
    SetForeign(Foreign),
    Reassign {
        frame: Frame,
    },
    Transfer {
        frame: Frame,
        to: u16,
    },
    Unknown(u64),
}

/// Something a guest does.
#[derive(Clone, Debug)]
pub enum Op {
    /// One request, with a foreign domain set before it.
    One(Foreign, Req),
    /// Several in one call.
    Batch(Vec<Req>),
    Remap {
        page: usize,
        entry: Entry,
        flags: u64,
    },
    RemapForeign {
        page: usize,
        entry: Entry,
        flags: u64,
        domain: u16,
    },
    SetGdt {
        frames: Vec<Frame>,
        entries: u64,
    },
    UpdateDescriptor {
        frame: Frame,
        index: u64,
        descriptor: u64,
    },
    /// The CPU looks into the LDT.
    LdtFault {
        offset: u64,
    },
    Load {
        page: usize,
        mode: Mode,
    },
    /// Writes an entry into a page, as it would into a table.
    Store {
        page: usize,
        slot: usize,
        entry: Entry,
    },
    /// Turns writable page tables on or off.
    Assist(bool),
    /// Writes entries of the table at a page, from a slot on, by instructions of this form.
    Write {
        page: usize,
        slot: usize,
        form: usize,
        entries: Vec<Entry>,
    },
    /// Gives frames back to the hypervisor.
    GiveUp {
        frame: Frame,
        order: u64,
        domain: Foreign,
    },
    /// Gets some in their place.
    Take {
        pfn: usize,
        order: u64,
        domain: Foreign,
    },
}

/// Instructions that write rcx to an entry, exchange it, set and clear bits of it, write a byte of it, and add to it;
/// each for entries of 32 bits and of 64.
pub const FORMS: [(&[u8], &[u8]); 6] = [
    (&[0x89, 0x08], &[0x48, 0x89, 0x08]),
    (&[0x87, 0x08], &[0x48, 0x87, 0x08]),
    (&[0x09, 0x08], &[0x48, 0x09, 0x08]),
    (&[0x21, 0x08], &[0x48, 0x21, 0x08]),
    (&[0x88, 0x08], &[0x88, 0x08]),
    (&[0x0f, 0xc1, 0x08], &[0x48, 0x0f, 0xc1, 0x08]),
];
