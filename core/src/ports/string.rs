//! `ins` and `outs`, repeated or not, decoded from their bytes and carried out element by element (Intel SDM vol. 2,
//! INS, OUTS, REP).
//!
//! Promises: any bytes give a result. An element is moved wholly or not at all: memory is tried before a port is read,
//! since what a device has given cannot be given back. When one faults, those before it are done and the registers say
//! so, so the guest goes on where it was once it has dealt with the fault. A repetition stops after [`PATIENCE`]
//! elements, or when somebody else is due, with the instruction still to be executed: so it makes way for what is due,
//! as a CPU's does. No state, no lock.

use super::{IoPort, Mode, Ports, Span, Width};
use crate::addr::GuestVirt;
use crate::bounce::DataSegments;
use crate::code::LONGEST;
use crate::descriptor;
use crate::domain::{Arch, Domain};
use crate::host::{Hardware, Host};
use crate::paging::Pager;
use crate::paging::format::bits;
use crate::personality::Personality;
use crate::segments::Segments;
use crate::store::{CodeWidth, RegisterFile};
use proxenos_abi::Selector;

/// Elements that are moved at most before the guest is looked at again.
pub const PATIENCE: u32 = 256;
/// How often it is asked whether somebody else is due.
const ASK_EVERY: u32 = 16;

/// Registers, as instructions number them.
const RCX: u8 = 1;
const RDX: u8 = 2;
const RSI: u8 = 6;
const RDI: u8 = 7;
/// Flags: one step at a time; string instructions go down.
const TRAP_FLAG: u64 = 1 << 8;
const DIRECTION_FLAG: u64 = 1 << 10;
/// Vectors.
const STACK_FAULT: u8 = 12;
const GENERAL_PROTECTION: u8 = 13;

/// A segment register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Segment {
    /// `es`
    Es,
    /// `cs`
    Cs,
    /// `ss`
    Ss,
    /// `ds`
    Ds,
    /// `fs`
    Fs,
    /// `gs`
    Gs,
}

/// Which way, with the segment that the memory lies in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Direction {
    /// From the port to `es:di`.
    In,
    /// From `si` in this segment to the port.
    Out(Segment),
}

/// Bits of an address, and of the count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum AddressSize {
    Bits16,
    Bits32,
    Bits64,
}

impl AddressSize {
    const fn mask(self) -> u64 {
        match self {
            Self::Bits16 => 0xffff,
            Self::Bits32 => 0xffff_ffff,
            Self::Bits64 => u64::MAX,
        }
    }

    /// A register with a new value in the bits that count: 32 bits replace the whole register, 16 leave the rest.
    const fn replace(self, old: u64, new: u64) -> u64 {
        match self {
            Self::Bits16 => old & !0xffff | new & 0xffff,
            Self::Bits32 => new & 0xffff_ffff,
            Self::Bits64 => new,
        }
    }
}

/// What keeps an element from being moved. The guest's registers are as before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// An exception with code 0.
    Exception(u8),
    /// Memory that cannot be read, or written.
    Page {
        /// The first byte that cannot.
        at: GuestVirt,
        /// It was to be written.
        write: bool,
    },
}

/// The memory that string instructions see.
pub trait StringMemory {
    /// Reads.
    fn load(&mut self, segment: Segment, offset: u64, into: &mut [u8]) -> Result<(), Fault>;
    /// Makes sure that so many bytes at `es` can be written, and changes nothing.
    fn try_store(&mut self, offset: u64, bytes: usize) -> Result<(), Fault>;
    /// Writes at `es`.
    fn store(&mut self, offset: u64, from: &[u8]) -> Result<(), Fault>;
    /// Whether somebody else is due.
    fn is_preempted(&self) -> bool;
}

/// An `ins` or `outs`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StringAccess {
    direction: Direction,
    width: Width,
    address: AddressSize,
    repeated: bool,
    /// The instruction's bytes.
    length: u8,
}

impl StringAccess {
    /// Decodes an instruction; `None` if it is none of these, or is not all there.
    #[must_use]
    pub fn decode(bytes: &[u8], code: CodeWidth) -> Option<Self> {
        let bytes = &bytes[..bytes.len().min(LONGEST)];
        let (mut word, mut short_address, mut repeated, mut segment) = (false, false, false, Segment::Ds);
        for (at, &byte) in bytes.iter().enumerate() {
            // A REX prefix counts only right before the opcode, and all it could say is no matter here.
            let opcode = match byte {
                0x40..=0x4f if code == CodeWidth::Bits64 => *bytes.get(at + 1)?,
                byte => byte,
            };
            let length = at + 1 + usize::from(opcode != byte);
            match opcode {
                0x6c..=0x6f => {
                    return Some(Self {
                        direction: if opcode & 2 == 0 { Direction::In } else { Direction::Out(segment) },
                        width: match (opcode & 1, word) {
                            (0, _) => Width::Byte,
                            (_, true) => Width::Word,
                            (_, false) => Width::Long,
                        },
                        address: match (code, short_address) {
                            (CodeWidth::Bits32, true) => AddressSize::Bits16,
                            (CodeWidth::Bits32, false) | (CodeWidth::Bits64, true) => AddressSize::Bits32,
                            (CodeWidth::Bits64, false) => AddressSize::Bits64,
                        },
                        repeated,
                        length: length as u8,
                    });
                }
                // Behind a REX prefix another prefix takes its meaning away; it is looked at when it is its turn.
                _ if opcode != byte => {}
                0x66 => word = true,
                0x67 => short_address = true,
                0xf2 | 0xf3 => repeated = true,
                0x26 => segment = Segment::Es,
                0x2e => segment = Segment::Cs,
                0x36 => segment = Segment::Ss,
                0x3e => segment = Segment::Ds,
                0x64 => segment = Segment::Fs,
                0x65 => segment = Segment::Gs,
                _ => return None,
            }
        }
        None
    }

    /// Which ports every element of it uses.
    #[must_use]
    pub fn span(self, registers: &impl RegisterFile) -> Span {
        Span { port: IoPort(registers.general(RDX) as u16), width: self.width }
    }

    /// Moves elements until all are, one faults, or it is time for others.
    ///
    /// # Errors
    /// The fault; what was moved before it is done.
    pub fn carry_out(
        self,
        registers: &mut impl RegisterFile,
        code: CodeWidth,
        memory: &mut impl StringMemory,
        ports: &impl Ports,
    ) -> Result<(), Fault> {
        let patience = if registers.flags() & TRAP_FLAG != 0 { 1 } else { PATIENCE };
        for moved in 0..patience {
            if self.repeated && registers.general(RCX) & self.address.mask() == 0 {
                break;
            }
            if moved % ASK_EVERY == ASK_EVERY - 1 && memory.is_preempted() {
                return Ok(());
            }
            self.element(registers, memory, ports)?;
            if !self.repeated {
                break;
            }
            let count = registers.general(RCX);
            registers.set_general(RCX, self.address.replace(count, count.wrapping_sub(1)));
        }
        if self.repeated && registers.general(RCX) & self.address.mask() != 0 {
            return Ok(());
        }
        let next = registers.ip().wrapping_add(self.length.into());
        registers.set_ip(if code == CodeWidth::Bits32 { next & 0xffff_ffff } else { next });
        Ok(())
    }

    fn element(
        self,
        registers: &mut impl RegisterFile,
        memory: &mut impl StringMemory,
        ports: &impl Ports,
    ) -> Result<(), Fault> {
        let Span { port, .. } = self.span(registers);
        let bytes = usize::from(self.width.bytes());
        let index = if self.direction == Direction::In { RDI } else { RSI };
        let offset = registers.general(index) & self.address.mask();
        match self.direction {
            Direction::In => {
                memory.try_store(offset, bytes)?;
                memory.store(offset, &ports.port_in(port, self.width).to_le_bytes()[..bytes])?;
            }
            Direction::Out(segment) => {
                let mut value = [0; 4];
                memory.load(segment, offset, &mut value[..bytes])?;
                ports.port_out(port, self.width, u32::from_le_bytes(value));
            }
        }
        let down = registers.flags() & DIRECTION_FLAG != 0;
        let step = if down { (bytes as u64).wrapping_neg() } else { bytes as u64 };
        registers.set_general(index, self.address.replace(registers.general(index), offset.wrapping_add(step)));
        Ok(())
    }
}

/// A guest's memory, by its segments.
pub struct GuestStrings<'a, H: Hardware> {
    /// The machine.
    pub host: &'a Host<H>,
    /// The domain.
    pub dom: &'a Domain,
    /// Its descriptor tables.
    pub segments: &'a mut Segments,
    /// How its code is decoded.
    pub code: CodeWidth,
    /// Who executes: an application of an x86_32 guest's reaches less than its kernel.
    pub mode: Mode,
    /// Its selectors.
    pub cs: Selector,
    /// Of its stack.
    pub ss: Selector,
    /// The others.
    pub data: DataSegments,
    /// In 64-bit code, the bases of `fs` and `gs`.
    pub bases: [u64; 2],
}

/// What is done with memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Read,
    Write,
}

impl<H: Hardware> GuestStrings<'_, H> {
    /// Where an operand lies, if its segment allows it.
    fn reach<P: Personality>(
        &mut self,
        segment: Segment,
        offset: u64,
        bytes: usize,
        how: Use,
    ) -> Result<GuestVirt, Fault> {
        let refused = Fault::Exception(if segment == Segment::Ss { STACK_FAULT } else { GENERAL_PROTECTION });
        let at = if self.code == CodeWidth::Bits64 {
            let base = match segment {
                Segment::Fs => self.bases[0],
                Segment::Gs => self.bases[1],
                _ => 0,
            };
            GuestVirt(base.wrapping_add(offset))
        } else {
            let DataSegments { ds, es, fs, gs } = self.data;
            let selector = match segment {
                Segment::Es => es,
                Segment::Cs => self.cs,
                Segment::Ss => self.ss,
                Segment::Ds => ds,
                Segment::Fs => fs,
                Segment::Gs => gs,
            };
            let raw = self.segments.descriptor::<P, H>(self.host, self.dom, selector).ok_or(refused)?;
            let (offset, bytes) = (offset as u32, bytes as u32);
            match how {
                Use::Read => descriptor::readable_at(raw, offset, bytes),
                Use::Write => descriptor::writable_at(raw, offset, bytes),
            }
            .ok_or(refused)?
        };
        // A descriptor may reach further than the guest's own.
        if P::in_guest_range(at, bytes as u64) { Ok(at) } else { Err(refused) }
    }

    /// Whether a page is the application's too, if that is who asks. Everything else is for the access to find out.
    fn may_touch<P: Personality>(&self, at: GuestVirt) -> bool {
        if P::ARCH == Arch::X86_64 || self.mode == Mode::Kernel {
            return true;
        }
        let pager = Pager::new(self.host, self.dom);
        let found = pager.walk::<P::Tables>(&pager.lock(), at);
        found.is_some_and(|found| found.entry.0 & found.rights & bits::US != 0)
    }
}

/// Copies piece by piece, so that a fault names the page it is in.
fn by_pages(
    at: GuestVirt,
    bytes: usize,
    write: bool,
    mut copy: impl FnMut(GuestVirt, core::ops::Range<usize>) -> bool,
) -> Result<(), Fault> {
    let in_first = (crate::addr::PAGE_SIZE - at.page_offset()).min(bytes);
    for part in [0..in_first, in_first..bytes] {
        let at = at.offset(part.start as u64);
        if !part.is_empty() && !copy(at, part) {
            return Err(Fault::Page { at, write });
        }
    }
    Ok(())
}

/// [`GuestStrings`] of a guest of one architecture.
pub struct StringsOf<'a, P: Personality, H: Hardware>(pub GuestStrings<'a, H>, pub core::marker::PhantomData<P>);

impl<P: Personality, H: Hardware> StringMemory for StringsOf<'_, P, H> {
    fn load(&mut self, segment: Segment, offset: u64, into: &mut [u8]) -> Result<(), Fault> {
        let at = self.0.reach::<P>(segment, offset, into.len(), Use::Read)?;
        by_pages(at, into.len(), false, |at, part| {
            self.0.may_touch::<P>(at) && self.0.host.hw.copy_from_guest(at, &mut into[part]).is_ok()
        })
    }

    fn try_store(&mut self, offset: u64, bytes: usize) -> Result<(), Fault> {
        let at = self.0.reach::<P>(Segment::Es, offset, bytes, Use::Write)?;
        // What is there is written again: no one can tell.
        let mut there = [0; 4];
        let hw = &self.0.host.hw;
        by_pages(at, bytes, true, |at, part| {
            self.0.may_touch::<P>(at)
                && hw.copy_from_guest(at, &mut there[part.clone()]).is_ok()
                && hw.copy_to_guest(at, &there[part]).is_ok()
        })
    }

    fn store(&mut self, offset: u64, from: &[u8]) -> Result<(), Fault> {
        let at = self.0.reach::<P>(Segment::Es, offset, from.len(), Use::Write)?;
        by_pages(at, from.len(), true, |at, part| self.0.host.hw.copy_to_guest(at, &from[part]).is_ok())
    }

    fn is_preempted(&self) -> bool {
        self.0.host.hw.preemption_wanted()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Registers;
    use alloc::vec::Vec;
    use core::cell::{Cell, RefCell};
    use proptest::prelude::*;

    /// Ports that give ascending numbers, and log what they get.
    #[derive(Default)]
    struct Device {
        next: Cell<u8>,
        got: RefCell<Vec<(u16, Width, u32)>>,
    }

    impl Ports for Device {
        fn port_in(&self, _: IoPort, width: Width) -> u32 {
            let first = self.next.get();
            self.next.set(first.wrapping_add(width.bytes() as u8));
            let bytes: [u8; 4] = core::array::from_fn(|index| first.wrapping_add(index as u8));
            u32::from_le_bytes(bytes) & width.mask()
        }

        fn port_out(&self, port: IoPort, width: Width, value: u32) {
            self.got.borrow_mut().push((port.0, width, value));
        }
    }

    /// Memory that ends somewhere, and tells who asked for which segment.
    struct Memory {
        bytes: Vec<u8>,
        segments: Vec<Segment>,
        preempted: bool,
    }

    impl Memory {
        fn new(length: usize) -> Self {
            Self { bytes: (0..length).map(|at| at as u8).collect(), segments: Vec::new(), preempted: false }
        }

        fn range(&self, offset: u64, bytes: usize, write: bool) -> Result<core::ops::Range<usize>, Fault> {
            let end = offset.checked_add(bytes as u64).filter(|&end| end <= self.bytes.len() as u64);
            end.map(|end| offset as usize..end as usize)
                .ok_or(Fault::Page { at: GuestVirt(offset.max(self.bytes.len() as u64)), write })
        }
    }

    impl StringMemory for Memory {
        fn load(&mut self, segment: Segment, offset: u64, into: &mut [u8]) -> Result<(), Fault> {
            self.segments.push(segment);
            into.copy_from_slice(&self.bytes[self.range(offset, into.len(), false)?]);
            Ok(())
        }

        fn try_store(&mut self, offset: u64, bytes: usize) -> Result<(), Fault> {
            self.range(offset, bytes, true).map(drop)
        }

        fn store(&mut self, offset: u64, from: &[u8]) -> Result<(), Fault> {
            let range = self.range(offset, from.len(), true)?;
            self.bytes[range].copy_from_slice(from);
            Ok(())
        }

        fn is_preempted(&self) -> bool {
            self.preempted
        }
    }

    fn registers(count: u64, index: u64, flags: u64) -> Registers {
        let mut registers = Registers { ip: 0x1000, flags, ..Registers::default() };
        registers.general[1] = count;
        registers.general[2] = 0xffff_01f0;
        registers.general[6] = index;
        registers.general[7] = index;
        registers
    }

    fn run(
        bytes: &[u8],
        code: CodeWidth,
        registers: &mut Registers,
        memory: &mut Memory,
        device: &Device,
    ) -> Result<(), Fault> {
        StringAccess::decode(bytes, code).expect("a string instruction").carry_out(registers, code, memory, device)
    }

    #[test]
    fn a_repetition_moves_all_of_it() {
        let (mut memory, device) = (Memory::new(64), Device::default());
        let mut state = registers(5, 8, 0);
        // rep insw
        assert_eq!(run(&[0xf3, 0x66, 0x6d], CodeWidth::Bits32, &mut state, &mut memory, &device), Ok(()));
        assert_eq!((state.ip, state.general[1], state.general[7]), (0x1003, 0, 18));
        assert_eq!(memory.bytes[6..20], [6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 18, 19]);
        // rep outsd, from gs, downwards
        let mut state = registers(2, 12, DIRECTION_FLAG);
        memory = Memory::new(64);
        assert_eq!(run(&[0x65, 0xf3, 0x6f], CodeWidth::Bits64, &mut state, &mut memory, &device), Ok(()));
        assert_eq!((state.ip, state.general[1], state.general[6]), (0x1003, 0, 4));
        let long = |value| (0x1f0, Width::Long, value);
        assert_eq!(device.got.borrow()[..], [long(0x0f0e_0d0c), long(0x0b0a_0908)]);
        assert_eq!(memory.segments, [Segment::Gs, Segment::Gs]);
    }

    #[test]
    fn without_a_prefix_it_is_one_and_the_count_stays() {
        let (mut memory, device) = (Memory::new(16), Device::default());
        let mut state = registers(0, 3, 0);
        assert_eq!(run(&[0x6c], CodeWidth::Bits32, &mut state, &mut memory, &device), Ok(()));
        assert_eq!((state.ip, state.general[1], state.general[7], memory.bytes[3]), (0x1001, 0, 4, 0));
        // A repetition of none is none.
        let mut state = registers(0, 3, 0);
        assert_eq!(run(&[0xf2, 0x6c], CodeWidth::Bits32, &mut state, &mut memory, &device), Ok(()));
        assert_eq!((state.ip, state.general[7], device.next.get()), (0x1002, 3, 1));
    }

    #[test]
    fn addresses_have_their_size() {
        let (mut memory, device) = (Memory::new(16), Device::default());
        let mut state = registers(0xabcd_0001, 0x7777_0004, 0);
        assert_eq!(run(&[0x67, 0xf3, 0x6c], CodeWidth::Bits32, &mut state, &mut memory, &device), Ok(()));
        assert_eq!((state.general[1], state.general[7], state.ip), (0xabcd_0000, 0x7777_0005, 0x1003));
        let mut state = registers(0xabcd_0000_0000_0001, 0x7777_0000_0000_0004, 0);
        assert_eq!(run(&[0x67, 0xf3, 0x48, 0x6e], CodeWidth::Bits64, &mut state, &mut memory, &device), Ok(()));
        assert_eq!((state.general[1], state.general[6], state.ip), (0, 5, 0x1004));
    }

    #[test]
    fn a_fault_half_way_can_be_restarted() {
        let (mut memory, device) = (Memory::new(10), Device::default());
        let mut state = registers(4, 0, 0);
        let fault = run(&[0xf3, 0x6d], CodeWidth::Bits64, &mut state, &mut memory, &device);
        assert_eq!(fault, Err(Fault::Page { at: GuestVirt(10), write: true }));
        assert_eq!((state.ip, state.general[1], state.general[7]), (0x1000, 2, 8), "two are done");
        assert_eq!(device.next.get(), 8, "the device was not asked for what could not be stored");
        assert_eq!(memory.bytes[8..], [8, 9]);
        memory.bytes.resize(16, 0);
        assert_eq!(run(&[0xf3, 0x6d], CodeWidth::Bits64, &mut state, &mut memory, &device), Ok(()));
        assert_eq!(memory.bytes, (0..16).collect::<Vec<u8>>());
    }

    #[test]
    fn it_makes_way() {
        let (mut memory, device) = (Memory::new(4096), Device::default());
        let mut state = registers(1000, 0, 0);
        assert_eq!(run(&[0xf3, 0x6c], CodeWidth::Bits32, &mut state, &mut memory, &device), Ok(()));
        assert_eq!((state.ip, state.general[1]), (0x1000, 1000 - u64::from(PATIENCE)));
        memory.preempted = true;
        let before = state.general[1];
        assert_eq!(run(&[0xf3, 0x6c], CodeWidth::Bits32, &mut state, &mut memory, &device), Ok(()));
        assert_eq!((state.ip, before - state.general[1]), (0x1000, u64::from(ASK_EVERY) - 1), "some, but not none");
        // Stepped, it is one at a time.
        state.flags = TRAP_FLAG;
        let before = state.general[1];
        assert_eq!(run(&[0xf3, 0x6c], CodeWidth::Bits32, &mut state, &mut memory, &device), Ok(()));
        assert_eq!(before - state.general[1], 1);
        state.general[1] = 1;
        assert_eq!(run(&[0xf3, 0x6c], CodeWidth::Bits32, &mut state, &mut memory, &device), Ok(()));
        assert_eq!((state.ip, state.general[1]), (0x1002, 0), "the last one ends it");
    }

    #[test]
    fn others_are_none() {
        for bytes in [&[][..], &[0xf3], &[0xec], &[0xf0, 0x6c], &[0x48], &[0x0f, 0x6c], &[0xa4]] {
            assert_eq!(StringAccess::decode(bytes, CodeWidth::Bits64), None, "{bytes:x?}");
        }
        assert_eq!(StringAccess::decode(&[0x48, 0x6c], CodeWidth::Bits32), None, "dec eax");
        let mut long = [0x66; 16];
        long[15] = 0x6c;
        assert_eq!(StringAccess::decode(&long, CodeWidth::Bits32), None, "sixteen bytes");
        assert!(StringAccess::decode(&long[1..], CodeWidth::Bits32).is_some());
    }

    proptest! {
        /// However it is interrupted, a repetition comes to the same.
        #[test]
        fn in_parts_or_whole(
            count in 0u64..600, width in 0..3usize, down in any::<bool>(), out in any::<bool>(), end in 0usize..2400,
        ) {
            let opcode: &[u8] = match (width, out) {
                (0, false) => &[0xf3, 0x6c],
                (0, true) => &[0xf3, 0x6e],
                (1, false) => &[0x66, 0xf3, 0x6d],
                (1, true) => &[0x66, 0xf3, 0x6f],
                (_, false) => &[0xf3, 0x6d],
                (_, true) => &[0xf3, 0x6f],
            };
            let size = 1u64 << width;
            let start = if down { 2400 } else { 0 };
            let flags = if down { DIRECTION_FLAG } else { 0 };
            let (mut memory, device) = (Memory::new(end), Device::default());
            let mut state = registers(count, start, flags);
            let mut faults = 0;
            for _ in 0..20 {
                if state.ip != 0x1000 {
                    break;
                }
                if run(opcode, CodeWidth::Bits64, &mut state, &mut memory, &device).is_err() {
                    faults += 1;
                    memory.bytes.resize(2404, 0);
                }
            }
            prop_assert_eq!(state.ip, 0x1000 + opcode.len() as u64);
            prop_assert_eq!(state.general[1], 0);
            let moved = count * size;
            let index = state.general[if out { 6 } else { 7 }];
            prop_assert_eq!(index, if down { start - moved } else { moved });
            prop_assert!(faults <= 1);
            if out {
                prop_assert_eq!(device.got.borrow().len() as u64, count);
            } else {
                prop_assert_eq!(device.next.get(), moved as u8);
            }
        }
    }
}
