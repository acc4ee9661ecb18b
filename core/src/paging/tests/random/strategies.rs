//! Random [`Op`]s, one at a time.

use super::ops::*;
use crate::paging::format::bits;
use crate::paging::tests::world::*;
use crate::sim_hw::Mode;
use alloc::vec;
use proptest::prelude::*;

/// Where most of it happens: where few pages are in play, requests meet.
pub fn hot_page() -> impl Strategy<Value = usize> {
    prop_oneof![
        3 => Just(SPARE),
        3 => Just(SPARE2),
        4 => Just(DATA),
        2 => Just(DATA + 1),
        1 => Just(SECOND_TOP),
        1 => Just(L1),
    ]
}

/// Pages that an x86_32 domain's own tables are read at, if a directory is hung in at [`WINDOW`]: the region's first
/// table, the directory that is hung in, the table in slot 1, the hypervisor's slots.
pub fn linear_page() -> impl Strategy<Value = usize> {
    prop_oneof![4 => Just(0x300), 2 => Just(0x301), 2 => 0..8usize, 1 => Just(1007), 1 => 1008..1024usize]
        .prop_map(|page| WINDOW + page)
}

/// What may well be a directory.
pub fn directory() -> impl Strategy<Value = usize> {
    prop_oneof![3 => Just(TOP), 3 => Just(SECOND_TOP), 2 => Just(SPARE), 2 => Just(SPARE2), 1 => Just(DATA)]
}

pub fn frame() -> impl Strategy<Value = Frame> {
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

pub fn slot() -> impl Strategy<Value = Slot> {
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

pub fn flags() -> impl Strategy<Value = u64> {
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

pub fn entry() -> impl Strategy<Value = Entry> {
    prop_oneof![
        3 => Just(Entry::Empty),
        3 => hot_page().prop_map(Entry::Again),
        16 => (frame(), flags()).prop_map(|(frame, flags)| Entry::Maps(frame, flags)),
        1 => any::<u64>().prop_map(Entry::Junk),
    ]
}

pub fn foreign_domain() -> impl Strategy<Value = Foreign> {
    prop_oneof![
        20 => Just(Foreign::None),
        5 => (0..3u16).prop_map(Foreign::Dom),
        1 => Just(Foreign::Io),
        1 => Just(Foreign::Xen),
        1 => Just(Foreign::Nobody),
    ]
}

/// log2 of an extent's frames.
pub fn order() -> impl Strategy<Value = u64> {
    prop_oneof![8 => Just(0), 1 => Just(1), 1 => 2..12u64]
}

pub fn request() -> impl Strategy<Value = Req> {
    prop_oneof![
        16 => (frame(), slot(), entry()).prop_map(|(table, slot, entry)| Req::Update { table, slot, entry }),
        10 => (frame(), 1..5u8).prop_map(|(frame, level)| Req::Pin { frame, level }),
        6 => frame().prop_map(|frame| Req::Unpin { frame }),
        4 => prop_oneof![Just(TOP), Just(SECOND_TOP)].prop_map(|pfn| Req::NewBase { frame: Frame::Own(pfn) }),
        2 => frame().prop_map(|frame| Req::NewBase { frame }),
        2 => prop_oneof![Just(TOP), Just(SECOND_TOP)].prop_map(|pfn| Req::NewUserBase { frame: Some(Frame::Own(pfn)) }),
        1 => proptest::option::of(frame()).prop_map(|frame| Req::NewUserBase { frame }),
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
        1 => (15..256u64).prop_map(Req::Unknown),
    ]
}

pub fn descriptor() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(0x00cf_bb00_0000_ffff), // flat code of ring 1
        Just(0x00cf_f300_0000_ffff), // flat data of ring 3
        Just(0x00af_9b00_0000_ffff), // 64-bit code of ring 0
        Just(0x0000_8b00_0000_0067), // a TSS
        any::<u64>(),
    ]
}

/// Entries that a kernel may well write itself: one that is refused ends the domain.
pub fn good_entry() -> impl Strategy<Value = Entry> {
    let readable = bits::P | bits::A | bits::US;
    prop_oneof![
        3 => Just(Entry::Empty),
        2 => hot_page().prop_map(Entry::Again),
        6 => (hot_page(), any::<bool>()).prop_map(move |(page, dirty)| {
            Entry::Maps(Frame::Own(page), readable | if dirty { bits::D } else { 0 })
        }),
        4 => (DATA..FRAMES).prop_map(move |page| Entry::Maps(Frame::Own(page), readable | bits::RW)),
        1 => entry(),
    ]
}

pub fn write(page: impl Strategy<Value = usize> + 'static) -> BoxedStrategy<Op> {
    let form = prop_oneof![4 => Just(0), 1 => 0..FORMS.len()];
    let slot = prop_oneof![3 => 0..4usize, 2 => hot_page(), 1 => 0..FRAMES];
    (page, slot, form, proptest::collection::vec(good_entry(), 1..9))
        .prop_map(|(page, slot, form, entries)| Op::Write { page, slot, form, entries })
        .boxed()
}

/// Boxed, as a plot is: as one type they would overflow a test's stack.
pub fn op() -> BoxedStrategy<Op> {
    let page = || {
        prop_oneof![
            12 => hot_page(),
            4 => 0..FRAMES + 2,
            2 => hot_page().prop_map(|page| WINDOW + page),
            1 => linear_page(),
        ]
    };
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
        8 => write(page()),
        1 => any::<bool>().prop_map(Op::Assist),
        2 => (frame(), order(), foreign_domain()).prop_map(|(frame, order, domain)| Op::GiveUp { frame, order, domain }),
        2 => (prop_oneof![hot_page(), DATA..FRAMES], order(), foreign_domain())
            .prop_map(|(pfn, order, domain)| Op::Take { pfn, order, domain }),
    ]
    .boxed()
}
