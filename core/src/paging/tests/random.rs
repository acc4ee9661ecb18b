//! Random sequences of requests from several domains, judged after every step.
//!
//! An [`Op`] names frames, slots and entries by what they are to the domain, so that a random one often means something,
//! and a failing sequence, which proptest shrinks, reads as a list of requests.

extern crate std;

use super::world::*;
use crate::addr::{DomId, Mfn};
use crate::domain::{Arch, Privileges, RunState};
use crate::paging::format::bits;
use crate::sim_hw::Mode;
use crate::store::Registers;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;
use proxenos_abi::hypercall::{VmAssistCommand, VmAssistType};
use proxenos_abi::mmu::MmuExtCommand;
use proxenos_abi::{Errno, Hypercall};

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
const WINDOW: usize = 1024;

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

/// Where most of it happens: where few pages are in play, requests meet.
fn hot_page() -> impl Strategy<Value = usize> {
    prop_oneof![
        3 => Just(SPARE),
        3 => Just(SPARE2),
        4 => Just(DATA),
        2 => Just(DATA + 1),
        1 => Just(SECOND_TOP),
        1 => Just(L1),
    ]
}

/// Pages that an x86_32 domain's own tables are read at, if a directory is hung in at [`WINDOW`]: the region's first table, the
/// directory that is hung in, the table in slot 1, the hypervisor's slots.
fn linear_page() -> impl Strategy<Value = usize> {
    prop_oneof![4 => Just(0x300), 2 => Just(0x301), 2 => 0..8usize, 1 => Just(1007), 1 => 1008..1024usize]
        .prop_map(|page| WINDOW + page)
}

/// What may well be a directory.
fn directory() -> impl Strategy<Value = usize> {
    prop_oneof![3 => Just(TOP), 3 => Just(SECOND_TOP), 2 => Just(SPARE), 2 => Just(SPARE2), 1 => Just(DATA)]
}

fn frame() -> impl Strategy<Value = Frame> {
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

fn slot() -> impl Strategy<Value = Slot> {
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

fn flags() -> impl Strategy<Value = u64> {
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

fn entry() -> impl Strategy<Value = Entry> {
    prop_oneof![
        3 => Just(Entry::Empty),
        3 => hot_page().prop_map(Entry::Again),
        16 => (frame(), flags()).prop_map(|(frame, flags)| Entry::Maps(frame, flags)),
        1 => any::<u64>().prop_map(Entry::Junk),
    ]
}

fn foreign_domain() -> impl Strategy<Value = Foreign> {
    prop_oneof![
        20 => Just(Foreign::None),
        5 => (0..3u16).prop_map(Foreign::Dom),
        1 => Just(Foreign::Io),
        1 => Just(Foreign::Xen),
        1 => Just(Foreign::Nobody),
    ]
}

/// log2 of an extent's frames.
fn order() -> impl Strategy<Value = u64> {
    prop_oneof![8 => Just(0), 1 => Just(1), 1 => 2..12u64]
}

fn request() -> impl Strategy<Value = Req> {
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

fn descriptor() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(0x00cf_bb00_0000_ffff), // flat code of ring 1
        Just(0x00cf_f300_0000_ffff), // flat data of ring 3
        Just(0x00af_9b00_0000_ffff), // 64-bit code of ring 0
        Just(0x0000_8b00_0000_0067), // a TSS
        any::<u64>(),
    ]
}

/// Instructions that write rcx to an entry, exchange it, set and clear bits of it, write a byte of it, and add to it; each for
/// entries of 32 bits and of 64.
const FORMS: [(&[u8], &[u8]); 6] = [
    (&[0x89, 0x08], &[0x48, 0x89, 0x08]),
    (&[0x87, 0x08], &[0x48, 0x87, 0x08]),
    (&[0x09, 0x08], &[0x48, 0x09, 0x08]),
    (&[0x21, 0x08], &[0x48, 0x21, 0x08]),
    (&[0x88, 0x08], &[0x88, 0x08]),
    (&[0x0f, 0xc1, 0x08], &[0x48, 0x0f, 0xc1, 0x08]),
];

/// Entries that a kernel may well write itself: one that is refused ends the domain.
fn good_entry() -> impl Strategy<Value = Entry> {
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

fn write(page: impl Strategy<Value = usize> + 'static) -> BoxedStrategy<Op> {
    let form = prop_oneof![4 => Just(0), 1 => 0..FORMS.len()];
    let slot = prop_oneof![3 => 0..4usize, 2 => hot_page(), 1 => 0..FRAMES];
    (page, slot, form, proptest::collection::vec(good_entry(), 1..9))
        .prop_map(|(page, slot, form, entries)| Op::Write { page, slot, form, entries })
        .boxed()
}

/// Boxed, as a plot is: as one type they would overflow a test's stack.
fn op() -> BoxedStrategy<Op> {
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

/// Several steps that belong together, by one domain: what a kernel does, or somebody who is up to something.
fn plot() -> BoxedStrategy<Vec<Op>> {
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
pub(super) fn story(plots: core::ops::Range<usize>) -> impl Strategy<Value = Vec<(usize, Op)>> {
    proptest::collection::vec((0..3usize, plot()), plots)
        .prop_map(|plots| plots.into_iter().flat_map(|(who, ops)| ops.into_iter().map(move |op| (who, op))).collect())
}

fn domain_id(foreign: Foreign) -> DomId {
    match foreign {
        Foreign::None => DomId::SELF,
        Foreign::Dom(id) => DomId(id),
        Foreign::Io => DomId::IO,
        Foreign::Xen => DomId::XEN,
        Foreign::Nobody => DomId(77),
    }
}

/// What the ops mean to one domain of a world, now.
struct Meaning<'a> {
    world: &'a World,
    who: usize,
}

impl Meaning<'_> {
    fn guest(&self) -> &Guest {
        &self.world.guests[self.who]
    }

    fn frame(&self, frame: Frame) -> Mfn {
        match frame {
            Frame::Own(pfn) => self.guest().frames[pfn],
            Frame::Of(dom, pfn) => self.world.guests[dom % self.world.guests.len()].frames[pfn],
            Frame::SharedInfo => self.guest().dom.shared_info,
            Frame::Hypervisor => self.guest().dom.gdt_page,
            Frame::Free => {
                let alloc = self.world.host.alloc.lock();
                alloc.blocks().next().map_or(Mfn(0x1ff), |(first, _)| first)
            }
            Frame::LowIo => Mfn(0xb8),
            Frame::HighIo => Mfn(0xf_0000),
            Frame::ForbiddenIo => Mfn(0xfee00),
            Frame::Beyond => Mfn(1 << 30),
        }
    }

    fn slot(&self, slot: Slot) -> usize {
        let narrow = self.guest().dom.arch == Arch::X86_32;
        match slot {
            Slot::Page(page) => page,
            Slot::Region if narrow => 0x300,
            Slot::Region => (self.guest().base() >> 39 & 511) as usize,
            Slot::Window => {
                if narrow {
                    0x301
                } else {
                    2
                }
            }
            Slot::LastOwn => {
                if narrow {
                    1007
                } else {
                    255
                }
            }
            Slot::FirstReserved => {
                if narrow {
                    1008
                } else {
                    256
                }
            }
            Slot::Last => {
                if narrow {
                    1023
                } else {
                    511
                }
            }
        }
    }

    fn entry(&self, entry: Entry) -> u64 {
        use crate::paging::format::{Format, FourLevel, TwoLevel};
        let guest = self.guest();
        match entry {
            Entry::Empty => 0,
            Entry::Again(slot) => match guest.dom.arch {
                Arch::X86_32 => TwoLevel::load(&guest.host.hw, guest.frames[L1], slot).0,
                Arch::X86_64 => FourLevel::load(&guest.host.hw, guest.frames[L1], slot).0,
            },
            Entry::Maps(frame, flags) => self.frame(frame).addr().0 & bits::FRAME | flags,
            Entry::Junk(junk) => junk,
        }
    }

    fn request(&self, request: Req) -> Request {
        let at = |frame| self.frame(frame).addr().0;
        match request {
            Req::Update { table, slot, entry } => {
                self.guest().set(self.frame(table), self.slot(slot), self.entry(entry))
            }
            Req::MachPhys { frame, pfn } => self.guest().machphys(self.frame(frame), pfn),
            Req::Pin { frame, level } => pin(self.frame(frame), level),
            Req::Unpin { frame } => unpin(self.frame(frame)),
            Req::NewBase { frame } => new_base(self.frame(frame)),
            Req::Flush => extended(MmuExtCommand::TlbFlush, 0, 0),
            Req::FlushPage(page) => extended(MmuExtCommand::Invlpg, self.guest().va(page).0, 0),
            Req::FlushCaches => extended(MmuExtCommand::FlushCache, 0, 0),
            Req::SetLdt { page, offset, entries } => {
                extended(MmuExtCommand::SetLdt, self.guest().va(page).0 + offset, entries)
            }
            Req::ClearForeign => extended(MmuExtCommand::ClearForeigndom, 0, 0),
            Req::SetForeign(whom) => foreign(domain_id(whom)),
            Req::Reassign { frame } => reassign(self.frame(frame)),
            Req::Transfer { frame, to } => extended(MmuExtCommand::TransferPage, at(frame), u64::from(to) << 8),
            Req::Unknown(command) => (3, command),
        }
    }
}

/// Counts what was carried out and what was refused, by the request's name, so that a test can see that both happen.
#[derive(Default)]
pub(super) struct Score {
    by_name: BTreeMap<String, (u32, u32)>,
    /// Numbers of linear entries that there were after some step.
    linear: BTreeSet<u32>,
}

impl Score {
    fn count(&mut self, what: &impl core::fmt::Debug, result: u64) {
        let text = alloc::format!("{what:?}");
        let name = text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        let (carried_out, refused) = self.by_name.entry(name.to_string()).or_default();
        *(if (result as i64) < 0 { refused } else { carried_out }) += 1;
    }
}

type Verdict = Result<(), Vec<String>>;

impl World {
    fn requests(&mut self, who: usize, requests: &[Req], score: &mut Score) -> Verdict {
        let meaning = Meaning { world: self, who };
        let words: Vec<u64> = requests.iter().flat_map(|&request| <[u64; 2]>::from(meaning.request(request))).collect();
        if !self.guests[who].put_args(&words) {
            return Ok(());
        }
        // A batch that stops half way has done its first half, for good; only a lone request is all or nothing.
        let before = requests.split_last().map_or(&[][..], |(_, before)| before);
        let lone = before.iter().all(|request| matches!(request, Req::SetForeign(_)));
        let result = self.judge(who, |guest| {
            let done = guest.mmu_update_in_place(requests.len());
            if lone { done.result } else { done.result & !(1 << 63) }
        })?;
        if lone && let Some(request) = requests.last() {
            score.count(request, result);
        }
        Ok(())
    }

    fn perform(&mut self, who: usize, op: &Op, score: &mut Score) -> Verdict {
        let meaning = Meaning { world: self, who };
        let mut result = OK;
        match op {
            Op::One(Foreign::None, request) => return self.requests(who, &[*request], score),
            Op::One(whom, request) => return self.requests(who, &[Req::SetForeign(*whom), *request], score),
            Op::Batch(requests) => return self.requests(who, requests, score),
            &Op::Remap { page, entry, flags } => {
                let value = meaning.entry(entry);
                result = self.judge(who, |guest| guest.remap(page, value, flags))?;
            }
            &Op::RemapForeign { page, entry, flags, domain } => {
                let value = meaning.entry(entry);
                result = self.judge(who, |guest| {
                    let args = [guest.va(page).0 >> 12, value, flags, domain.into(), 0, 0];
                    guest.call(Hypercall::UpdateVaMappingOtherdomain, args)
                })?;
            }
            Op::SetGdt { frames, entries } => {
                let words: Vec<u64> = frames.iter().map(|&frame| meaning.frame(frame).0).collect();
                if self.guests[who].put_args(&words) {
                    let args = |guest: &Guest| [guest.va(ARGS).0, *entries, 0, 0, 0, 0];
                    result = self.judge(who, |guest| guest.call(Hypercall::SetGdt, args(guest)))?;
                }
            }
            &Op::UpdateDescriptor { frame, index, descriptor } => {
                let at = meaning.frame(frame).addr().0 + 8 * index;
                let args = [at, descriptor & 0xffff_ffff, descriptor >> 32, 0, 0, 0];
                result = self.judge(who, |guest| guest.call(Hypercall::UpdateDescriptor, args))?;
            }
            &Op::LdtFault { offset } => {
                use proxenos_abi::{X86_32, X86_64};
                result = self.judge(who, |guest| {
                    guest.run();
                    let (host, dom) = (guest.host.clone(), guest.dom.clone());
                    let segments = &mut guest.vcpu.segments;
                    let found = match dom.arch {
                        Arch::X86_32 => segments.ldt_fault::<X86_32, _>(&host, &dom, offset),
                        Arch::X86_64 => segments.ldt_fault::<X86_64, _>(&host, &dom, offset),
                    };
                    if found { OK } else { error(Errno::EFAULT) }
                })?;
            }
            &Op::Load { page, mode } => {
                let at = self.guests[who].va(page);
                self.guests[who].run();
                result = self.host.hw.guest_load(at, mode).map_or(error(Errno::EFAULT), |_| OK);
            }
            &Op::Store { page, slot, entry } => {
                let value = meaning.entry(entry);
                // Into the frame there, at an entry's place; a 32-bit guest writes two of them.
                let at = self.guests[who].va(page).offset(8 * slot as u64);
                self.guests[who].run();
                result = self.host.hw.guest_store(at, value, Mode::Kernel).map_or(error(Errno::EFAULT), |()| OK);
            }
            &Op::Assist(on) => {
                let command = if on { VmAssistCommand::Enable } else { VmAssistCommand::Disable };
                result = self.guests[who].assist(command, VmAssistType::WritablePagetables);
            }
            Op::Write { page, slot, form, entries } => {
                let guest = &self.guests[who];
                let (narrow, wide) = FORMS[*form];
                let code = if guest.dom.arch == Arch::X86_32 { narrow } else { wide };
                for (slot, &entry) in (*slot..).zip(entries) {
                    let mut registers = Registers::default();
                    registers.general[1] = meaning.entry(entry);
                    let at = guest.va(*page).offset(slot as u64 * guest.width());
                    if guest.execute(at, code, &mut registers).is_err() {
                        result = error(Errno::EFAULT);
                    }
                }
            }
            &Op::GiveUp { frame, order, domain } => {
                let words = [meaning.frame(frame).0];
                if self.guests[who].put_args(&words) {
                    let id = domain_id(domain).0.into();
                    let done = self
                        .judge(who, |guest| guest.call(Hypercall::DomMemOp, [1, guest.va(ARGS).0, 1, order, id, 0]))?;
                    result = if done == 1 { OK } else { error(Errno::EINVAL) };
                }
            }
            &Op::Take { pfn, order, domain } => {
                if self.guests[who].put_args(&[0]) {
                    let id = domain_id(domain).0;
                    let at = self.guests[who].va(ARGS);
                    let done =
                        self.judge(who, |guest| guest.call(Hypercall::DomMemOp, [0, at.0, 1, order, id.into(), 0]))?;
                    result = if done == 1 { OK } else { error(Errno::EINVAL) };
                    let first = self.host.hw.guest_load(at, Mode::Kernel).map_or(0, |word| word as u32);
                    let whose = if id == DomId::SELF.0 { who } else { id.into() };
                    if done == 1 {
                        self.guests[whose].frames[pfn] = Mfn(first.into());
                    }
                }
            }
        }
        self.pardon();
        score.count(op, result);
        self.verdict().map(|_| ())
    }

    /// A domain that wrote what it must not would be no more. Here it lives on, since all must be well with it.
    fn pardon(&self) {
        for guest in &self.guests {
            if guest.dom.paging.lock().writable.refused.take().is_some() {
                assert!(guest.dom.run_state().contains(RunState::CRASHED), "it is to be ended");
                guest.dom.clear_state(RunState::CRASHED);
            }
        }
    }

    /// Carries out a sequence, as far as the domains are able to speak.
    pub(super) fn play(&mut self, ops: &[(usize, Op)], score: &mut Score) -> Result<(), TestCaseError> {
        let frames = self.census();
        for (step, (who, op)) in ops.iter().enumerate() {
            let who = who % self.guests.len();
            self.guests[who].rescue();
            let verdict = self.perform(who, op, score);
            score.linear.insert(self.linear_total());
            if let Err(violations) = verdict {
                let text = violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                return Err(TestCaseError::fail(alloc::format!("step {step}, domain {who}, {op:?}: {text}")));
            }
        }
        let after = self.census();
        if after != frames {
            return Err(TestCaseError::fail(alloc::format!("{frames} frames of the hypervisor became {after}")));
        }
        Ok(())
    }

    fn census(&self) -> u64 {
        self.check().hypervisor
    }
}

pub(super) fn arch() -> impl Strategy<Value = Arch> {
    prop_oneof![Just(Arch::X86_32), Just(Arch::X86_64)]
}

/// A privileged domain, one with devices, and a plain one, of any architectures, and how much memory there is: enough, or
/// so little that shadows soon fail.
fn world() -> impl Strategy<Value = (usize, Vec<(Arch, Privileges)>)> {
    let domains = (arch(), arch(), arch()).prop_map(|(first, second, third)| {
        alloc::vec![(first, PRIVILEGED), (second, Privileges::DEVICES), (third, PLAIN)]
    });
    (prop_oneof![3 => Just(0x100 + 384), 1 => Just(0x100 + 112)], domains)
}

/// How many sequences are tried, unless PROPTEST_CASES says otherwise.
const CASES: u32 = 96;
/// Their greatest length.
pub(super) const LENGTH: usize = 40;

pub(super) fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES);
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 4096, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn random_requests_keep_every_invariant(
        (frames, domains) in world(),
        ops in story(1..LENGTH),
    ) {
        World::with_memory(frames, &domains, None).play(&ops, &mut Score::default())?;
    }
}

/// The generator is worth something only if every kind of request is carried out and refused now and then.
#[test]
fn random_requests_are_neither_all_good_nor_all_bad() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
    let mut runner = TestRunner::new_with_rng(config(), TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let sequences = proptest::collection::vec(story(40..41), 32);
    let sequences = sequences.new_tree(&mut runner).expect("nothing is filtered").current();
    let mut total = Score::default();
    for (arch, ops) in [Arch::X86_32, Arch::X86_64].into_iter().cycle().zip(sequences) {
        let mut world = World::new(&[(arch, PRIVILEGED), (arch, Privileges::DEVICES), (arch, PLAIN)]);
        world.play(&ops, &mut total).unwrap_or_else(|error| panic!("{error}"));
    }
    let both =
        "GiveUp LdtFault Load NewBase Pin Reassign Remap RemapForeign SetGdt SetLdt Store Take Unpin Update Write";
    for name in both.split(' ') {
        let (carried_out, refused) = total.by_name.get(name).copied().unwrap_or_default();
        assert!(carried_out > 0 && refused > 0, "{name}: {:#?}", total.by_name);
    }
    assert!(total.linear.last() > Some(&2), "linear entries: {:?}", total.linear);
}
