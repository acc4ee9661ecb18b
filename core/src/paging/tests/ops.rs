//! What the domains of a random sequence may do, and how often: the [`Op`]s and the strategies that make them up.

use super::world::*;
use crate::paging::format::bits;
use crate::sim_hw::Mode;
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;

/// A frame, as a request may name it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Frame {
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
pub(super) const WINDOW: usize = 1024;

/// A slot of a table.
#[derive(Clone, Copy, Debug)]
pub(super) enum Slot {
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
pub(super) enum Entry {
    Empty,
    /// What stands in this slot of the caller's L1 table.
    Again(usize),
    /// A mapping with these flags.
    Maps(Frame, u64),
    Junk(u64),
}

/// A foreign domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Foreign {
    None,
    Dom(u16),
    Io,
    Xen,
    Nobody,
}

/// A request to `mmu_update`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Req {
    Update { table: Frame, slot: Slot, entry: Entry },
    MachPhys { frame: Frame, pfn: u64 },
    Pin { frame: Frame, level: u8 },
    Unpin { frame: Frame },
    NewBase { frame: Frame },
    Flush,
    FlushPage(usize),
    FlushCaches,
    SetLdt { page: usize, offset: u64, entries: u64 },
    ClearForeign,
    SetForeign(Foreign),
    Reassign { frame: Frame },
    Transfer { frame: Frame, to: u16 },
    Unknown(u64),
}

/// Something a guest does.
#[derive(Clone, Debug)]
pub(super) enum Op {
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
    /// Gives a frame back to the hypervisor (what `dom_mem_op` will do).
    GiveUp {
        frame: Frame,
    },
    /// Gets one in its place.
    Take {
        pfn: usize,
    },
}

/// Where most of it happens: where few pages are in play, requests meet.
pub(super) fn hot_page() -> impl Strategy<Value = usize> {
    prop_oneof![
        3 => Just(SPARE),
        3 => Just(SPARE2),
        4 => Just(DATA),
        2 => Just(DATA + 1),
        1 => Just(SECOND_TOP),
        1 => Just(L1),
    ]
}

pub(super) fn frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        6 => (0..FRAMES).prop_map(Frame::Own),
        30 => hot_page().prop_map(Frame::Own),
        4 => (0..3usize, 0..FRAMES).prop_map(|(dom, pfn)| Frame::Of(dom, pfn)),
        1 => Just(Frame::SharedInfo),
        1 => Just(Frame::Hypervisor),
        1 => Just(Frame::Free),
        1 => Just(Frame::LowIo),
        1 => Just(Frame::HighIo),
        1 => Just(Frame::ForbiddenIo),
        1 => Just(Frame::Beyond),
    ]
}

pub(super) fn slot() -> impl Strategy<Value = Slot> {
    prop_oneof![
        3 => (0..FRAMES + 2).prop_map(Slot::Page),
        6 => hot_page().prop_map(Slot::Page),
        3 => (0..3usize).prop_map(Slot::Page),
        2 => Just(Slot::Region),
        2 => Just(Slot::Window),
        1 => Just(Slot::LastOwn),
        1 => Just(Slot::FirstReserved),
        1 => Just(Slot::Last),
    ]
}

pub(super) fn flags() -> impl Strategy<Value = u64> {
    let usual = bits::P | bits::A | bits::US;
    prop_oneof![
        6 => Just(usual),
        6 => Just(usual | bits::RW),
        2 => Just(usual | bits::RW | bits::D),
        2 => Just(bits::P | bits::RW),
        1 => Just(bits::P),
        1 => Just(usual & !bits::P),
        1 => Just(usual | bits::PCD | bits::PWT),
        1 => Just(usual | bits::G),
        1 => Just(usual | bits::RW | bits::PAT_OR_PS),
        1 => Just(usual | bits::NX),
        1 => Just(usual | bits::AVL),
        1 => Just(usual | 1 << 60),
    ]
}

pub(super) fn entry() -> impl Strategy<Value = Entry> {
    prop_oneof![
        3 => Just(Entry::Empty),
        3 => hot_page().prop_map(Entry::Again),
        16 => (frame(), flags()).prop_map(|(frame, flags)| Entry::Maps(frame, flags)),
        1 => any::<u64>().prop_map(Entry::Junk),
    ]
}

pub(super) fn foreign_domain() -> impl Strategy<Value = Foreign> {
    prop_oneof![
        20 => Just(Foreign::None),
        5 => (0..3u16).prop_map(Foreign::Dom),
        1 => Just(Foreign::Io),
        1 => Just(Foreign::Xen),
        1 => Just(Foreign::Nobody),
    ]
}

pub(super) fn request() -> impl Strategy<Value = Req> {
    prop_oneof![
        16 => (frame(), slot(), entry()).prop_map(|(table, slot, entry)| Req::Update { table, slot, entry }),
        10 => (frame(), 1..5u8).prop_map(|(frame, level)| Req::Pin { frame, level }),
        6 => frame().prop_map(|frame| Req::Unpin { frame }),
        4 => prop_oneof![Just(TOP), Just(SECOND_TOP)].prop_map(|pfn| Req::NewBase { frame: Frame::Own(pfn) }),
        2 => frame().prop_map(|frame| Req::NewBase { frame }),
        1 => (frame(), 0..99u64).prop_map(|(frame, pfn)| Req::MachPhys { frame, pfn }),
        1 => Just(Req::Flush),
        1 => (0..FRAMES).prop_map(Req::FlushPage),
        1 => Just(Req::FlushCaches),
        2 => (0..FRAMES, prop_oneof![9 => Just(0), 1 => Just(8)], prop_oneof![8 => 0..1025u64, 1 => 8000..9000u64])
            .prop_map(|(page, offset, entries)| Req::SetLdt { page, offset, entries }),
        1 => Just(Req::ClearForeign),
        1 => foreign_domain().prop_map(Req::SetForeign),
        2 => frame().prop_map(|frame| Req::Reassign { frame }),
        1 => (frame(), 0..4u16).prop_map(|(frame, to)| Req::Transfer { frame, to }),
        1 => (14..256u64).prop_map(Req::Unknown),
    ]
}

pub(super) fn descriptor() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(0x00cf_bb00_0000_ffff), // flat code of ring 1
        Just(0x00cf_f300_0000_ffff), // flat data of ring 3
        Just(0x00af_9b00_0000_ffff), // 64-bit code of ring 0
        Just(0x0000_8b00_0000_0067), // a TSS
        any::<u64>(),
    ]
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    let page = || prop_oneof![6 => hot_page(), 2 => 0..FRAMES + 2, 1 => hot_page().prop_map(|page| WINDOW + page)];
    let usual_page = hot_page;
    prop_oneof![
        20 => (foreign_domain(), request()).prop_map(|(foreign, request)| Op::One(foreign, request)),
        3 => proptest::collection::vec(request(), 2..6).prop_map(Op::Batch),
        // What prepares a frame to be a table, and what makes it one.
        5 => (usual_page(), any::<bool>()).prop_map(|(page, gone)| Op::Remap {
            page,
            entry: if gone { Entry::Empty } else { Entry::Maps(Frame::Own(page), bits::P | bits::A | bits::US) },
            flags: 0,
        }),
        5 => (usual_page(), 1..5u8).prop_map(|(pfn, level)| {
            Op::One(Foreign::None, Req::Pin { frame: Frame::Own(pfn), level })
        }),
        3 => prop_oneof![Just(TOP), Just(SECOND_TOP), Just(SPARE), Just(SPARE2)].prop_map(|pfn| {
            Op::One(Foreign::None, Req::Unpin { frame: Frame::Own(pfn) })
        }),
        2 => (0..3u16, hot_page()).prop_map(|(dom, pfn)| {
            Op::One(Foreign::Dom(dom), Req::Reassign { frame: Frame::Own(pfn) })
        }),
        2 => (prop_oneof![Just(SPARE), Just(SPARE2), Just(DATA)], 0..1025u64).prop_map(|(page, entries)| {
            Op::One(Foreign::None, Req::SetLdt { page, offset: 0, entries })
        }),
        2 => (prop_oneof![Just(SPARE), Just(SPARE2), Just(DATA)], 296..513u64).prop_map(|(pfn, entries)| {
            Op::SetGdt { frames: alloc::vec![Frame::Own(pfn)], entries }
        }),
        6 => (page(), entry(), 0..4u64).prop_map(|(page, entry, flags)| Op::Remap { page, entry, flags }),
        3 => (page(), entry(), 0..4u64, 0..4u16)
            .prop_map(|(page, entry, flags, domain)| Op::RemapForeign { page, entry, flags, domain }),
        2 => (proptest::collection::vec(frame(), 1..4), 290..1600u64)
            .prop_map(|(frames, entries)| Op::SetGdt { frames, entries }),
        2 => (frame(), 0..512u64, descriptor())
            .prop_map(|(frame, index, descriptor)| Op::UpdateDescriptor { frame, index, descriptor }),
        3 => prop_oneof![0..0x100u64, 0..0x2000u64].prop_map(|offset| Op::LdtFault { offset }),
        5 => (page(), prop_oneof![Just(Mode::Kernel), Just(Mode::User)]).prop_map(|(page, mode)| Op::Load { page, mode }),
        8 => (page(), 0..FRAMES, entry()).prop_map(|(page, slot, entry)| Op::Store { page, slot, entry }),
        2 => frame().prop_map(|frame| Op::GiveUp { frame }),
        2 => prop_oneof![hot_page(), DATA..FRAMES].prop_map(|pfn| Op::Take { pfn }),
    ]
}

/// Several steps that belong together, by one domain: what a kernel does, or somebody who is up to something.
pub(super) fn plot() -> impl Strategy<Value = Vec<Op>> {
    let own = |request| Op::One(Foreign::None, request);
    let readable = bits::P | bits::A | bits::US;
    let gone_or_read_only = move |page: usize, gone: bool| Op::Remap {
        page,
        entry: if gone { Entry::Empty } else { Entry::Maps(Frame::Own(page), readable) },
        flags: 0,
    };
    let writable = move |page| Op::Remap { page, entry: Entry::Maps(Frame::Own(page), readable | bits::RW), flags: 0 };
    let hook =
        |table, entry| Op::One(Foreign::None, Req::Update { table: Frame::Own(table), slot: Slot::Window, entry });
    let table_above = || prop_oneof![Just(TOP), Just(4)];
    prop_oneof![
        30 => op().prop_map(|op| vec![op]),
        // A page is used, loses its mapping without a flush, and becomes a table.
        2 => (hot_page(), 1..5u8, any::<bool>()).prop_map(move |(page, level, gone)| vec![
            Op::Store { page, slot: 0, entry: Entry::Empty },
            gone_or_read_only(page, gone),
            own(Req::Pin { frame: Frame::Own(page), level }),
        ]),
        // Or is given away, or back.
        1 => (hot_page(), 0..3u16).prop_map(move |(page, to)| vec![
            Op::Load { page, mode: Mode::Kernel },
            gone_or_read_only(page, true),
            Op::One(Foreign::Dom(to), Req::Reassign { frame: Frame::Own(page) }),
        ]),
        1 => hot_page().prop_map(move |page| vec![
            Op::Load { page, mode: Mode::Kernel },
            gone_or_read_only(page, true),
            Op::GiveUp { frame: Frame::Own(page) },
            Op::Take { pfn: page },
        ]),
        // Another domain's page is mapped for a while.
        1 => (0..3usize, hot_page(), hot_page(), flags()).prop_map(move |(dom, frame, page, flags)| vec![
            Op::RemapForeign { page, entry: Entry::Maps(Frame::Of(dom, frame), flags), flags: 0, domain: dom as u16 },
            Op::Store { page, slot: 0, entry: Entry::Empty },
            gone_or_read_only(page, true),
        ]),
        // A table is hung up, walked, and taken down again; then it is memory.
        2 => (table_above(), hot_page(), hot_page(), hot_page(), hot_page()).prop_map(move |(above, table, page, frame, next)| vec![
            own(Req::Update {
                table: Frame::Own(table),
                slot: Slot::Page(page),
                entry: Entry::Maps(Frame::Own(frame), readable | bits::RW),
            }),
            gone_or_read_only(table, false),
            hook(above, Entry::Maps(Frame::Own(table), readable | bits::RW)),
            Op::Load { page: WINDOW + page, mode: Mode::Kernel },
            hook(above, Entry::Empty),
            own(Req::Pin { frame: Frame::Own(next), level: 1 }),
            writable(table),
        ]),
        // Segment tables come and go.
        1 => (hot_page(), 0..4096u64).prop_map(move |(page, offset)| vec![
            gone_or_read_only(page, false),
            own(Req::SetLdt { page, offset: 0, entries: 512 }),
            Op::LdtFault { offset },
            own(Req::NewBase { frame: Frame::Own(SECOND_TOP) }),
            writable(page),
        ]),
    ]
}

/// What several domains do in turn.
pub(super) fn story(plots: core::ops::Range<usize>) -> impl Strategy<Value = Vec<(usize, Op)>> {
    proptest::collection::vec((0..3usize, plot()), plots)
        .prop_map(|plots| plots.into_iter().flat_map(|(who, ops)| ops.into_iter().map(move |op| (who, op))).collect())
}
