//! Bytes as a sequence of [`Op`]s in a world: what a fuzzer invents.
//!
//! Every sequence of bytes means something, and a byte that changes changes little: an operation is one byte, each of
//! its fields one or a few more. Most choices lead to the few pages where requests meet, as in the random tests.

use super::ops::*;
use super::play::{Counts, Score};
use crate::domain::{Arch, Privileges};
use crate::paging::format::bits;
use crate::paging::tests::world::*;
use crate::sim_hw::Mode;
use alloc::string::String;
use alloc::vec::Vec;
use arbitrary::Unstructured;

/// The most steps of a trace.
const STEPS: usize = 64;

/// A world and what happens in it.
pub struct Trace {
    frames: usize,
    domains: [(Arch, Privileges); 3],
    /// The CPU's timer is due at every so many looks; 0 is never.
    preempt_every: usize,
    ops: Vec<(usize, Op)>,
}

/// Pages, the likely ones often.
const PAGES: [usize; 16] =
    [SPARE, SPARE, SPARE, SPARE2, SPARE2, SPARE2, DATA, DATA, DATA, DATA + 1, SECOND_TOP, TOP, L1, 3, 4, ARGS];
/// Flags of entries.
const FLAGS: [u64; 16] = {
    let usual = bits::P | bits::A | bits::US;
    [
        usual,
        usual,
        usual,
        usual | bits::RW,
        usual | bits::RW,
        usual | bits::RW,
        usual | bits::RW | bits::D,
        bits::P | bits::RW,
        bits::P,
        usual & !bits::P,
        usual | bits::PCD | bits::PWT,
        usual | bits::G,
        usual | bits::RW | bits::PAT_OR_PS,
        usual | bits::NX,
        usual | bits::AVL,
        usual | 1 << 60,
    ]
};
/// Descriptors: none, flat code of ring 1, flat data of ring 3, 64-bit code of ring 0, a TSS, a call gate to ring 0.
const DESCRIPTORS: [u64; 6] = [
    0,
    0x00cf_bb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_9b00_0000_ffff,
    0x0000_8b00_0000_0067,
    0x0000_ec00_0008_0000,
];

/// Bytes that are read as choices; behind their end all are 0.
struct Bytes<'a>(Unstructured<'a>);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        self.0.arbitrary().unwrap_or(0)
    }

    fn below(&mut self, end: usize) -> usize {
        if end <= 256 {
            usize::from(self.byte()) % end
        } else {
            usize::from(self.0.arbitrary::<u16>().unwrap_or(0)) % end
        }
    }

    fn word(&mut self) -> u64 {
        self.0.arbitrary().unwrap_or(0)
    }

    fn arch(&mut self) -> Arch {
        if self.byte() & 1 == 0 { Arch::X86_32 } else { Arch::X86_64 }
    }

    /// A page of the domain's own.
    fn pfn(&mut self) -> usize {
        let byte = usize::from(self.byte());
        if byte < 224 { PAGES[byte % PAGES.len()] } else { byte % FRAMES }
    }

    /// A page of the region: one of those, one where tables are hung in, or one where those show themselves.
    fn page(&mut self) -> usize {
        match self.byte() % 8 {
            0..=4 => self.pfn(),
            5 => WINDOW + self.pfn(),
            6 => WINDOW + [0x300, 0x301, 0, 1, 1007, 1008, 1022, 1023][self.below(8)],
            _ => FRAMES + self.below(2),
        }
    }

    fn frame(&mut self) -> Frame {
        match self.byte() % 32 {
            0..=21 => Frame::Own(self.pfn()),
            22..=24 => Frame::Of(self.below(3), self.pfn()),
            25 => Frame::SharedInfo,
            26 => Frame::Hypervisor,
            27 => Frame::Free,
            28 => Frame::LowIo,
            29 => Frame::HighIo,
            30 => Frame::ForbiddenIo,
            _ => Frame::Beyond,
        }
    }

    fn slot(&mut self) -> Slot {
        match self.byte() % 16 {
            0..=7 => Slot::Page(self.pfn()),
            8 | 9 => Slot::Page(self.below(1024)),
            10 | 11 => Slot::Region,
            12 | 13 => Slot::Window,
            14 => Slot::LastOwn,
            _ => [Slot::FirstReserved, Slot::Last][self.below(2)],
        }
    }

    fn entry(&mut self) -> Entry {
        match self.byte() % 16 {
            0..=2 => Entry::Empty,
            3..=5 => Entry::Again(self.pfn()),
            15 => Entry::Junk(self.word()),
            _ => Entry::Maps(self.frame(), FLAGS[self.below(FLAGS.len())]),
        }
    }

    fn foreign(&mut self) -> Foreign {
        match self.byte() % 32 {
            0..=19 => Foreign::None,
            20..=28 => Foreign::Dom(self.below(3) as u16),
            29 => Foreign::Io,
            30 => Foreign::Xen,
            _ => Foreign::Nobody,
        }
    }

    fn order(&mut self) -> u64 {
        [0, 0, 0, 0, 0, 1, 2, 11][self.below(8)]
    }

    fn request(&mut self) -> Req {
        match self.byte() % 32 {
            0..=8 => Req::Update { table: self.frame(), slot: self.slot(), entry: self.entry() },
            9..=14 => Req::Pin { frame: self.frame(), level: 1 + self.byte() % 4 },
            15..=18 => Req::Unpin { frame: self.frame() },
            19 | 20 => Req::NewBase { frame: Frame::Own([TOP, SECOND_TOP][self.below(2)]) },
            21 => match self.byte() % 4 {
                0 => Req::NewBase { frame: self.frame() },
                1 => Req::NewUserBase { frame: Some(self.frame()) },
                2 => Req::NewUserBase { frame: Some(Frame::Own([TOP, SECOND_TOP][self.below(2)])) },
                _ => Req::NewUserBase { frame: None },
            },
            22 => Req::MachPhys { frame: self.frame(), pfn: self.byte().into() },
            23 => Req::Flush,
            24 => Req::FlushPage(self.page()),
            25 => Req::FlushCaches,
            26 => Req::SetLdt {
                page: self.page(),
                offset: if self.byte() < 240 { 0 } else { 8 },
                entries: self.below(9000) as u64,
            },
            27 => Req::ClearForeign,
            28 => Req::SetForeign(self.foreign()),
            29 => Req::Reassign { frame: self.frame() },
            30 => Req::Transfer { frame: self.frame(), to: self.below(4) as u16 },
            _ => Req::Unknown(15 + self.below(241) as u64),
        }
    }

    fn op(&mut self) -> Op {
        match self.byte() % 64 {
            0..=15 => Op::One(self.foreign(), self.request()),
            16..=19 => Op::Batch((0..2 + self.below(4)).map(|_| self.request()).collect()),
            // What prepares a frame to be a table, makes it one, and hangs it in.
            20..=23 => {
                let (page, gone) = (self.pfn(), self.byte() & 1 == 0);
                let entry =
                    if gone { Entry::Empty } else { Entry::Maps(Frame::Own(page), bits::P | bits::A | bits::US) };
                Op::Remap { page, entry, flags: 0 }
            }
            24..=27 => Op::One(Foreign::None, Req::Pin { frame: Frame::Own(self.pfn()), level: 1 + self.byte() % 4 }),
            28..=31 => {
                let (table, flags) = (Frame::Own(self.pfn()), FLAGS[self.below(FLAGS.len())]);
                let above = Frame::Own([TOP, SECOND_TOP, 4, SPARE][self.below(4)]);
                let slot = [Slot::Window, Slot::Region][usize::from(self.byte() > 200)];
                Op::One(Foreign::None, Req::Update { table: above, slot, entry: Entry::Maps(table, flags) })
            }
            32..=36 => Op::Remap { page: self.page(), entry: self.entry(), flags: self.below(4) as u64 },
            37 | 38 => Op::RemapForeign {
                page: self.page(),
                entry: self.entry(),
                flags: self.below(4) as u64,
                domain: self.below(4) as u16,
            },
            39 | 40 => {
                let frames = (0..1 + self.below(3)).map(|_| self.frame()).collect();
                Op::SetGdt { frames, entries: 290 + self.below(1310) as u64 }
            }
            41 | 42 => {
                let (frame, index) = (self.frame(), self.below(512) as u64);
                let which = self.below(DESCRIPTORS.len() + 1);
                let descriptor = DESCRIPTORS.get(which).copied().unwrap_or_else(|| self.word());
                Op::UpdateDescriptor { frame, index, descriptor }
            }
            43 | 44 => Op::LdtFault { offset: self.below(0x2000) as u64 },
            45..=48 => {
                Op::Load { page: self.page(), mode: if self.byte() & 1 == 0 { Mode::Kernel } else { Mode::User } }
            }
            49..=52 => Op::Store { page: self.page(), slot: self.below(512), entry: self.entry() },
            53..=57 => {
                let (page, slot, form) = (self.page(), self.below(1024), self.below(FORMS.len()));
                Op::Write { page, slot, form, entries: (0..1 + self.below(8)).map(|_| self.entry()).collect() }
            }
            58 => Op::Assist(true),
            59 => Op::Assist(false),
            60 | 61 => Op::GiveUp { frame: self.frame(), order: self.order(), domain: self.foreign() },
            _ => Op::Take { pfn: self.pfn(), order: self.order(), domain: self.foreign() },
        }
    }
}

impl Trace {
    /// What these bytes mean.
    pub fn of(bytes: &[u8]) -> Self {
        let mut bytes = Bytes(Unstructured::new(bytes));
        let frames = if bytes.byte() < 192 { 0x100 + 384 } else { 0x100 + 112 };
        let domains = [PRIVILEGED, Privileges::DEVICES, PLAIN].map(|privileges| (bytes.arch(), privileges));
        let preempt_every = bytes.below(8);
        let mut ops = Vec::new();
        while !bytes.0.is_empty() && ops.len() < STEPS {
            ops.push((bytes.below(3), bytes.op()));
        }
        Self { frames, domains, preempt_every, ops }
    }

    /// Carries it out.
    ///
    /// # Errors
    /// Which step broke what.
    pub fn play(&self) -> Result<(), String> {
        let mut world = World::with_memory(self.frames, &self.domains, None);
        world.host.hw.preempt_every(self.preempt_every);
        world.play(&self.ops, &mut Score { counts: Counts::Nothing, ..Score::default() })
    }

    /// What is carried out, a line a step.
    pub fn list(&self) -> String {
        let Self { frames, domains, preempt_every, ops } = self;
        let head = alloc::format!("{frames:#x} frames, {domains:?}, preempted at every {preempt_every}. look\n");
        ops.iter()
            .zip(0..)
            .fold(head, |text, ((who, op), step)| text + &alloc::format!("{step}: domain {who}: {op:?}\n"))
    }
}
