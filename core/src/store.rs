//! One instruction that writes to memory: decoded from its bytes and carried out on a set of registers.
//!
//! For a guest that writes to its own page tables ([`crate::paging::writable`]) a single store is cheaper to carry out
//! here than to allow. Known are the forms that compilers and kernels change a word in place with: `mov`, `movs`,
//! `stos`, `xchg`, `cmpxchg`, `xadd`, `bts`/`btr`/`btc`, and the arithmetic that takes memory as its destination.
//! Anything else is [`NotDecoded`], which is no error: the caller has another way.
//!
//! Where the operand lies is not worked out: the page fault has said it. So of an address only its length matters here.
//! (For a store that begins in the page before the table, the fault names the table's first byte. All of it is then
//! stored there, checked like any other, and nothing in the page before: on hardware, and in 2.0, it would be divided.
//! A kernel that writes entries never does that.) Promises: any bytes at all give a result, and registers change only
//! as the manual says (Intel SDM vol. 2; flags it calls undefined stay as they are). No state, no lock.

mod quick;
mod registers;
#[cfg(test)]
mod tests;

use crate::code::LONGEST;
pub use quick::Move;
pub use registers::{RegisterFile, Registers};

/// What a code segment's instructions are decoded as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CodeWidth {
    /// 32-bit code.
    Bits32,
    /// 64-bit code.
    Bits64,
}

/// Why there is no [`Store`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotDecoded {
    /// The bytes end before the instruction does.
    Truncated,
    /// It is none of those known here.
    Unknown,
}

/// The size of an operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Word,
    /// 32 bits.
    Long,
    /// 64 bits.
    Quad,
}

impl Width {
    /// How many bytes.
    #[inline]
    #[must_use]
    pub const fn bytes(self) -> u64 {
        1 << self as u32
    }

    /// All bits of such an operand.
    #[inline]
    #[must_use]
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    const fn bits(self) -> u32 {
        8 << self as u32
    }

    const fn sign(self) -> u64 {
        1 << (self.bits() - 1)
    }
}

/// Arithmetic with memory as its destination, by the number that encodes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Arithmetic {
    Add,
    Or,
    Adc,
    Sbb,
    And,
    Sub,
    Xor,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Operation {
    Move,
    Arithmetic(Arithmetic),
    Increment,
    Decrement,
    Not,
    Negate,
    Exchange,
    ExchangeAdd,
    CompareExchange,
    BitSet,
    BitReset,
    BitComplement,
    StoreString,
    MoveString,
}

/// What goes into the memory operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    /// A register, from this bit on: 8 for ah, ch, dh and bh.
    Register {
        number: u8,
        shift: u8,
    },
    Immediate(u64),
}

/// Whether a string instruction is to be repeated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Repeat {
    /// Once.
    No,
    /// As often as rcx says.
    Yes,
}

/// A decoded instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Store {
    operation: Operation,
    source: Source,
    /// Size of the memory operand.
    pub width: Width,
    /// Whether it writes more than once.
    pub repeat: Repeat,
    /// Of rsi, rdi and rcx in string instructions.
    address: Width,
    /// Bits of the instruction pointer.
    pointer: Width,
    length: u8,
}

const CF: u64 = 1 << 0;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const DF: u64 = 1 << 10;
const OF: u64 = 1 << 11;
/// The flags that arithmetic sets.
const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;

const RAX: u8 = 0;
const RCX: u8 = 1;
const RSI: u8 = 6;
const RDI: u8 = 7;

/// Reads an instruction's bytes one after the other.
struct Code<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Code<'_> {
    #[inline]
    fn byte(&mut self) -> Result<u8, NotDecoded> {
        let byte = *self.bytes.get(self.at).ok_or(NotDecoded::Truncated)?;
        self.at += 1;
        Ok(byte)
    }

    fn skip(&mut self, count: usize) -> Result<(), NotDecoded> {
        self.at += count;
        if self.at > self.bytes.len() { Err(NotDecoded::Truncated) } else { Ok(()) }
    }

    /// An immediate, sign-extended: never more than 32 bits of it.
    fn immediate(&mut self, width: Width) -> Result<Source, NotDecoded> {
        let first = u64::from(self.byte()?);
        let count = width.bytes().min(4);
        let mut value = first;
        for index in 1..count {
            value |= u64::from(self.byte()?) << (8 * index);
        }
        let unused = 64 - 8 * count as u32;
        Ok(Source::Immediate(((value << unused) as i64 >> unused) as u64))
    }

    /// The byte that names a register and a memory operand, and the rest of the latter. Gives the register's three
    /// bits.
    #[inline]
    fn memory_operand(&mut self) -> Result<u8, NotDecoded> {
        let modrm = self.byte()?;
        let (mode, rm) = (modrm >> 6, modrm & 7);
        let mut displacement = match mode {
            0 if rm == 5 => 4,
            0 => 0,
            1 => 1,
            2 => 4,
            _ => return Err(NotDecoded::Unknown),
        };
        if rm == 4 && self.byte()? & 7 == 5 && mode == 0 {
            displacement = 4;
        }
        self.skip(displacement)?;
        Ok(modrm >> 3 & 7)
    }
}

/// Decodes the instruction that `bytes` begin with.
///
/// # Errors
/// It is not known here, or goes on behind the bytes.
pub fn decode(bytes: &[u8], code: CodeWidth) -> Result<Store, NotDecoded> {
    let long = code == CodeWidth::Bits64;
    let bytes = &bytes[..bytes.len().min(LONGEST)];
    let mut code = Code { bytes, at: 0 };
    let (mut narrow, mut short_address, mut segment, mut repeat, mut lock) = (false, false, false, false, false);
    let mut opcode = loop {
        match code.byte()? {
            0x66 => narrow = true,
            0x67 => short_address = true,
            0xf0 => lock = true,
            0xf2 | 0xf3 => repeat = true,
            // In 64-bit code only fs and gs count.
            0x26 | 0x2e | 0x36 | 0x3e if long => {}
            0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 => segment = true,
            opcode => break opcode,
        }
    };
    let mut rex = 0;
    if long && opcode & 0xf0 == 0x40 {
        rex = opcode;
        opcode = code.byte()?;
    }
    if short_address && !long {
        return Err(NotDecoded::Unknown);
    }
    let full = match (rex & 8 != 0, narrow) {
        (true, _) => Width::Quad,
        (false, true) => Width::Word,
        (false, false) => Width::Long,
    };
    let address = if long && !short_address { Width::Quad } else { Width::Long };
    let width = if opcode & 1 == 0 { Width::Byte } else { full };
    let register = |bits: u8, width: Width| match bits {
        4..=7 if rex == 0 && width == Width::Byte => Source::Register { number: bits - 4, shift: 8 },
        _ => Source::Register { number: bits | (rex & 4) << 1, shift: 0 },
    };
    let accumulator = Source::Register { number: 0, shift: 0 };
    let (operation, source, width) = match opcode {
        0x88 | 0x89 => (Operation::Move, register(code.memory_operand()?, width), width),
        0xc6 | 0xc7 if code.memory_operand()? == 0 => (Operation::Move, code.immediate(width)?, width),
        0xa2 | 0xa3 => {
            code.skip(address.bytes() as usize)?;
            (Operation::Move, accumulator, width)
        }
        0x86 | 0x87 => (Operation::Exchange, register(code.memory_operand()?, width), width),
        0xaa | 0xab => (Operation::StoreString, accumulator, width),
        0xa4 | 0xa5 if !segment => (Operation::MoveString, accumulator, width),
        0x00..=0x3f if opcode & 7 < 2 => {
            let operation = Operation::Arithmetic(arithmetic(opcode >> 3)?);
            (operation, register(code.memory_operand()?, width), width)
        }
        0x80 | 0x81 | 0x83 => {
            let operation = Operation::Arithmetic(arithmetic(code.memory_operand()?)?);
            (operation, code.immediate(if opcode == 0x81 { width } else { Width::Byte })?, width)
        }
        0xf6 | 0xf7 => match code.memory_operand()? {
            2 => (Operation::Not, accumulator, width),
            3 => (Operation::Negate, accumulator, width),
            _ => return Err(NotDecoded::Unknown),
        },
        0xfe | 0xff => match code.memory_operand()? {
            0 => (Operation::Increment, accumulator, width),
            1 => (Operation::Decrement, accumulator, width),
            _ => return Err(NotDecoded::Unknown),
        },
        0x0f => {
            let opcode = code.byte()?;
            let width = if opcode & 1 == 0 { Width::Byte } else { full };
            match opcode {
                0xb0 | 0xb1 => (Operation::CompareExchange, register(code.memory_operand()?, width), width),
                0xc0 | 0xc1 => (Operation::ExchangeAdd, register(code.memory_operand()?, width), width),
                0xab => (Operation::BitSet, register(code.memory_operand()?, full), full),
                0xb3 => (Operation::BitReset, register(code.memory_operand()?, full), full),
                0xbb => (Operation::BitComplement, register(code.memory_operand()?, full), full),
                0xba => {
                    let operation = match code.memory_operand()? {
                        5 => Operation::BitSet,
                        6 => Operation::BitReset,
                        7 => Operation::BitComplement,
                        _ => return Err(NotDecoded::Unknown),
                    };
                    (operation, code.immediate(Width::Byte)?, full)
                }
                _ => return Err(NotDecoded::Unknown),
            }
        }
        _ => return Err(NotDecoded::Unknown),
    };
    let is_string = matches!(operation, Operation::StoreString | Operation::MoveString);
    if lock && (is_string || operation == Operation::Move) {
        return Err(NotDecoded::Unknown);
    }
    let repeat = if repeat && is_string { Repeat::Yes } else { Repeat::No };
    let pointer = if long { Width::Quad } else { Width::Long };
    Ok(Store { operation, source, width, repeat, address, pointer, length: code.at as u8 })
}

fn arithmetic(number: u8) -> Result<Arithmetic, NotDecoded> {
    Ok(match number {
        0 => Arithmetic::Add,
        1 => Arithmetic::Or,
        2 => Arithmetic::Adc,
        3 => Arithmetic::Sbb,
        4 => Arithmetic::And,
        5 => Arithmetic::Sub,
        6 => Arithmetic::Xor,
        _ => return Err(NotDecoded::Unknown),
    })
}

impl Store {
    /// `movs`: the offset in its segment that it reads from, which [`carry_out`](Self::carry_out) wants the contents
    /// of.
    #[must_use]
    pub fn reads_from(&self, registers: &impl RegisterFile) -> Option<u64> {
        (self.operation == Operation::MoveString).then(|| registers.general(RSI) & self.address.mask())
    }

    /// Carries the instruction out: once, if it repeats. `old` is what the memory operand holds, `read` what
    /// [`reads_from`](Self::reads_from) points to; returns what the operand holds afterwards.
    pub fn carry_out(&self, registers: &mut impl RegisterFile, old: u64, read: u64) -> u64 {
        let (width, mask) = (self.width, self.width.mask());
        let old = old & mask;
        let source = match self.source {
            Source::Immediate(value) => value & mask,
            Source::Register { number, shift } => registers.general(number) >> shift & mask,
        };
        let flags = registers.flags();
        let mut changed = flags;
        let mut ends = true;
        let new = match self.operation {
            Operation::Move => source,
            Operation::Arithmetic(operation) => compute(operation, old, source, width, &mut changed),
            Operation::Increment | Operation::Decrement => {
                let operation = if self.operation == Operation::Increment { Arithmetic::Add } else { Arithmetic::Sub };
                let new = compute(operation, old, 1, width, &mut changed);
                changed = changed & !CF | flags & CF;
                new
            }
            Operation::Not => !old & mask,
            Operation::Negate => compute(Arithmetic::Sub, 0, old, width, &mut changed),
            Operation::Exchange => {
                self.write_register(registers, old);
                source
            }
            Operation::ExchangeAdd => {
                let new = compute(Arithmetic::Add, old, source, width, &mut changed);
                self.write_register(registers, old);
                new
            }
            Operation::CompareExchange => {
                let wanted = registers.general(RAX) & mask;
                compute(Arithmetic::Sub, wanted, old, width, &mut changed);
                if wanted == old {
                    source
                } else {
                    write(registers, RAX, old, width, 0);
                    old
                }
            }
            Operation::BitSet | Operation::BitReset | Operation::BitComplement => {
                let bit = 1 << (source & u64::from(width.bits() - 1));
                changed = flags & !CF | if old & bit != 0 { CF } else { 0 };
                match self.operation {
                    Operation::BitSet => old | bit,
                    Operation::BitReset => old & !bit,
                    _ => old ^ bit,
                }
            }
            Operation::StoreString | Operation::MoveString => {
                ends = self.step(registers);
                if self.operation == Operation::MoveString { read & mask } else { source }
            }
        };
        if ends {
            registers.set_ip(registers.ip().wrapping_add(self.length.into()) & self.pointer.mask());
        }
        registers.set_flags(changed);
        new
    }

    fn write_register(&self, registers: &mut impl RegisterFile, value: u64) {
        if let Source::Register { number, shift } = self.source {
            write(registers, number, value, self.width, shift);
        }
    }

    /// A string instruction's registers go on by one; true when it is at its end.
    fn step(&self, registers: &mut impl RegisterFile) -> bool {
        let bytes = self.width.bytes();
        let step = if registers.flags() & DF == 0 { bytes } else { bytes.wrapping_neg() };
        let mut advance = |number: u8, by: u64| {
            let value = registers.general(number).wrapping_add(by);
            write(registers, number, value, self.address, 0);
            value & self.address.mask()
        };
        advance(RDI, step);
        if self.operation == Operation::MoveString {
            advance(RSI, step);
        }
        self.repeat == Repeat::No || advance(RCX, u64::MAX) == 0
    }
}

/// Writes a part of a register: 32 bits clear what is above them, fewer leave it alone.
fn write(registers: &mut impl RegisterFile, number: u8, value: u64, width: Width, shift: u8) {
    let mask = width.mask();
    let value = match width {
        Width::Long | Width::Quad => value & mask,
        Width::Byte | Width::Word => registers.general(number) & !(mask << shift) | (value & mask) << shift,
    };
    registers.set_general(number, value);
}

/// The result of arithmetic and the flags it sets.
fn compute(operation: Arithmetic, a: u64, b: u64, width: Width, flags: &mut u64) -> u64 {
    let (mask, sign) = (width.mask(), width.sign());
    let carry_in = match operation {
        Arithmetic::Adc | Arithmetic::Sbb => *flags & CF,
        _ => 0,
    };
    let result = mask
        & match operation {
            Arithmetic::Add | Arithmetic::Adc => a.wrapping_add(b).wrapping_add(carry_in),
            Arithmetic::Sub | Arithmetic::Sbb => a.wrapping_sub(b).wrapping_sub(carry_in),
            Arithmetic::Or => a | b,
            Arithmetic::And => a & b,
            Arithmetic::Xor => a ^ b,
        };
    let carries = match operation {
        // Carries out of each bit, by what went in and what came out.
        Arithmetic::Add | Arithmetic::Adc => a & b | (a | b) & !result,
        Arithmetic::Sub | Arithmetic::Sbb => !a & b | (!a | b) & result,
        _ => 0,
    };
    let overflow = match operation {
        Arithmetic::Add | Arithmetic::Adc => (a ^ result) & (b ^ result),
        Arithmetic::Sub | Arithmetic::Sbb => (a ^ b) & (a ^ result),
        _ => 0,
    };
    // Logic leaves AF undefined; it is cleared, as the processors do.
    let mut set = 0;
    set |= if carries & sign != 0 { CF } else { 0 };
    set |= if carries & 8 != 0 { AF } else { 0 };
    set |= if overflow & sign != 0 { OF } else { 0 };
    set |= if result & sign != 0 { SF } else { 0 };
    set |= if result == 0 { ZF } else { 0 };
    set |= if (result as u8).count_ones().is_multiple_of(2) { PF } else { 0 };
    *flags = *flags & !ARITHMETIC | set;
    result
}
