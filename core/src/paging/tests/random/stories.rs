//! Random sequences of [`Op`]s that belong together.

use super::ops::*;
use super::strategies::*;
use crate::paging::format::bits;
use crate::paging::tests::world::*;
use crate::sim_hw::Mode;
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;

/// Several steps that belong together, by one domain: what a kernel does, or somebody who is up to something.
pub fn plot() -> BoxedStrategy<Vec<Op>> {
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
            Op::GiveUp { frame: Frame::Own(page), order: 0, domain: Foreign::None },
            Op::Take { pfn: page, order: 0, domain: Foreign::None },
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
        // Directories are pinned, name each other (or themselves), are read as L1 tables, and let go.
        3 => (directory(), directory(), flags(), linear_page(), entry(), any::<[bool; 4]>()).prop_map(
            move |(first, second, flags, page, entry, [as_base, unpins, clears, again])| {
                let hang = |table, named| own(Req::Update {
                    table: Frame::Own(table),
                    slot: Slot::Window,
                    entry: Entry::Maps(Frame::Own(named), flags),
                });
                let mut ops: Vec<Op> = [first, second].into_iter().flat_map(|pfn| [
                    gone_or_read_only(pfn, false),
                    own(Req::Pin { frame: Frame::Own(pfn), level: 2 }),
                ]).collect();
                ops.extend([hang(first, second), hang(second, first)]);
                if as_base {
                    ops.push(own(Req::NewBase { frame: Frame::Own(first) }));
                }
                ops.extend([
                    Op::Load { page, mode: Mode::Kernel },
                    Op::Remap { page, entry, flags: 2 },
                    Op::Store { page, slot: 0, entry },
                ]);
                if unpins {
                    ops.extend([first, second].map(|pfn| own(Req::Unpin { frame: Frame::Own(pfn) })));
                }
                if clears {
                    ops.push(hook(first, Entry::Empty));
                }
                if again {
                    ops.extend([hang(first, first), Op::Load { page, mode: Mode::Kernel }]);
                }
                ops.push(writable(second));
                ops
            },
        ),
        // A table is hung up and written to; then something happens.
        6 => (table_above(), prop_oneof![Just(SPARE), Just(SPARE2), Just(DATA)])
            .prop_flat_map(|(above, table)| {
                (Just(above), Just(table), write(Just(table)), op(), write(Just(table)), write(hot_page()), op())
            })
            .prop_map(move |(above, table, first, between, second, third, last)| vec![
                Op::Assist(true),
                gone_or_read_only(table, false),
                hook(above, Entry::Maps(Frame::Own(table), readable | bits::RW)),
                first,
                between,
                second,
                third,
                last,
            ]),
        // Segment tables come and go.
        2 => (hot_page(), 0..8192u64, any::<[bool; 3]>()).prop_map(move |(page, offset, [second, moves, gone])| vec![
            gone_or_read_only(page, false),
            gone_or_read_only(page + 1, false),
            own(Req::SetLdt { page, offset: 0, entries: 1024 }),
            Op::LdtFault { offset },
            if moves {
                gone_or_read_only(if second { page + 1 } else { page }, gone)
            } else {
                own(Req::NewBase { frame: Frame::Own(SECOND_TOP) })
            },
            writable(page),
        ]),
    ]
    .boxed()
}

/// What several domains do in turn.
pub fn story(plots: core::ops::Range<usize>) -> impl Strategy<Value = Vec<(usize, Op)>> {
    proptest::collection::vec((0..3usize, plot()), plots)
        .prop_map(|plots| plots.into_iter().flat_map(|(who, ops)| ops.into_iter().map(move |op| (who, op))).collect())
}
