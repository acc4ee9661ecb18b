//! Far calls and jumps, decoded from their bytes: which selector they name, and how long they are.
//!
//! Pure arithmetic on bytes and registers (Intel SDM vol. 2 §2.1, CALL, JMP): the direct forms (9A, EA) and those
//! through memory (FF /3, FF /5), with 16-bit and 32-bit operands and addresses, as an x86_32 guest's code may have
//! them. No lock.

use crate::code::LONGEST;
use proxenos_abi::Selector;

/// What a code segment's D bit says of operands and addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Size {
    /// 16 bits.
    Narrow,
    /// 32 bits.
    Wide,
}

impl Size {
    const fn other(self) -> Self {
        match self {
            Self::Narrow => Self::Wide,
            Self::Wide => Self::Narrow,
        }
    }

    const fn bytes(self) -> usize {
        match self {
            Self::Narrow => 2,
            Self::Wide => 4,
        }
    }

    const fn mask(self) -> u32 {
        match self {
            Self::Narrow => 0xffff,
            Self::Wide => u32::MAX,
        }
    }
}

/// Whether the caller wants to come back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A call.
    Call,
    /// A jump.
    Jump,
}

/// A segment register, as instructions number them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "their names")]
pub enum SegmentRegister {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
}

/// General registers, as instructions number them: eax, ecx, edx, ebx, esp, ebp, esi, edi.
pub type General = [u32; 8];
const BX: usize = 3;
const SP: usize = 4;
const BP: usize = 5;
const SI: usize = 6;
const DI: usize = 7;

/// Where the selector stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// In the instruction.
    Direct(Selector),
    /// In memory, at this offset of a segment.
    Memory(SegmentRegister, u32),
}

/// A far call or jump.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FarTransfer {
    /// Which.
    pub kind: Kind,
    /// To what.
    pub target: Target,
    /// The instruction's bytes.
    pub length: u32,
}

/// Reads an instruction's bytes one after another.
struct Bytes<'a> {
    all: &'a [u8],
    at: usize,
}

impl Bytes<'_> {
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.all.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn number(&mut self, bytes: usize) -> Option<u32> {
        (0..bytes).try_fold(0, |value, index| Some(value | u32::from(self.byte()?) << (8 * index)))
    }

    /// A displacement of a byte, sign-extended.
    fn short(&mut self) -> Option<u32> {
        Some(i32::from(self.byte()? as i8) as u32)
    }
}

/// What an instruction of a code segment of this size is, if it is a far transfer.
#[must_use]
pub fn decode(code: &[u8], default: Size, general: &General) -> Option<FarTransfer> {
    let mut bytes = Bytes { all: &code[..code.len().min(LONGEST)], at: 0 };
    let (mut operand, mut address, mut segment) = (default, default, None);
    let opcode = loop {
        match bytes.byte()? {
            0x26 => segment = Some(SegmentRegister::Es),
            0x2e => segment = Some(SegmentRegister::Cs),
            0x36 => segment = Some(SegmentRegister::Ss),
            0x3e => segment = Some(SegmentRegister::Ds),
            0x64 => segment = Some(SegmentRegister::Fs),
            0x65 => segment = Some(SegmentRegister::Gs),
            0x66 => operand = default.other(),
            0x67 => address = default.other(),
            // Without a meaning here.
            0xf2 | 0xf3 => {}
            opcode => break opcode,
        }
    };
    let (kind, target) = match opcode {
        0x9a | 0xea => {
            let _offset = bytes.number(operand.bytes())?;
            let selector = Selector(bytes.number(2)? as u16);
            (if opcode == 0x9a { Kind::Call } else { Kind::Jump }, Target::Direct(selector))
        }
        0xff => {
            let modrm = bytes.byte()?;
            let kind = match modrm >> 3 & 7 {
                3 => Kind::Call,
                5 => Kind::Jump,
                _ => return None,
            };
            let (usual, offset) = match address {
                Size::Wide => wide_address(&mut bytes, modrm, general)?,
                Size::Narrow => narrow_address(&mut bytes, modrm, general)?,
            };
            let selector_at = offset.wrapping_add(operand.bytes() as u32) & address.mask();
            (kind, Target::Memory(segment.unwrap_or(usual), selector_at))
        }
        _ => return None,
    };
    Some(FarTransfer { kind, target, length: bytes.at as u32 })
}

/// 32-bit addressing (table 2-2 and 2-3): the segment that goes with it, and the offset.
fn wide_address(bytes: &mut Bytes<'_>, modrm: u8, general: &General) -> Option<(SegmentRegister, u32)> {
    let (mode, rm) = (modrm >> 6, usize::from(modrm & 7));
    let mut segment = SegmentRegister::Ds;
    let base = match (mode, rm) {
        (3, _) => return None,
        (_, 4) => {
            let sib = bytes.byte()?;
            let (scale, index, base) = (sib >> 6, usize::from(sib >> 3 & 7), usize::from(sib & 7));
            let scaled = if index == SP { 0 } else { general[index] << scale };
            let base = if base == BP && mode == 0 {
                bytes.number(4)?
            } else {
                if base == SP || base == BP {
                    segment = SegmentRegister::Ss;
                }
                general[base]
            };
            base.wrapping_add(scaled)
        }
        (0, BP) => bytes.number(4)?,
        _ => {
            if rm == BP {
                segment = SegmentRegister::Ss;
            }
            general[rm]
        }
    };
    let displacement = match mode {
        0 => 0,
        1 => bytes.short()?,
        _ => bytes.number(4)?,
    };
    Some((segment, base.wrapping_add(displacement)))
}

/// 16-bit addressing (table 2-1).
fn narrow_address(bytes: &mut Bytes<'_>, modrm: u8, general: &General) -> Option<(SegmentRegister, u32)> {
    let (mode, rm) = (modrm >> 6, modrm & 7);
    let sum = |a: usize, b: usize| general[a].wrapping_add(general[b]);
    let (segment, base) = match (mode, rm) {
        (3, _) => return None,
        (0, 6) => (SegmentRegister::Ds, bytes.number(2)?),
        (_, 0) => (SegmentRegister::Ds, sum(BX, SI)),
        (_, 1) => (SegmentRegister::Ds, sum(BX, DI)),
        (_, 2) => (SegmentRegister::Ss, sum(BP, SI)),
        (_, 3) => (SegmentRegister::Ss, sum(BP, DI)),
        (_, 4) => (SegmentRegister::Ds, general[SI]),
        (_, 5) => (SegmentRegister::Ds, general[DI]),
        (_, 6) => (SegmentRegister::Ss, general[BP]),
        _ => (SegmentRegister::Ds, general[BX]),
    };
    let displacement = match mode {
        0 => 0,
        1 => bytes.short()?,
        _ => bytes.number(2)?,
    };
    Some((segment, base.wrapping_add(displacement) & 0xffff))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REGISTERS: General = [0x1000_0000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000, 0x7000, 0x8000];

    fn wide(code: &[u8]) -> Option<FarTransfer> {
        decode(code, Size::Wide, &REGISTERS)
    }

    #[test]
    fn direct_forms() {
        let call = |target, length| Some(FarTransfer { kind: Kind::Call, target, length });
        let seven = Target::Direct(Selector(7));
        assert_eq!(wide(&[0x9a, 1, 2, 3, 4, 7, 0, 0xcc]), call(seven, 7));
        assert_eq!(wide(&[0x66, 0x9a, 1, 2, 7, 0]), call(seven, 6));
        assert_eq!(decode(&[0x9a, 1, 2, 7, 0], Size::Narrow, &REGISTERS), call(seven, 5));
        assert_eq!(decode(&[0x66, 0x9a, 1, 2, 3, 4, 7, 0], Size::Narrow, &REGISTERS), call(seven, 8));
        assert_eq!(
            wide(&[0x2e, 0xf3, 0xea, 0, 0, 0, 0, 0xf, 1]).map(|far| (far.kind, far.target, far.length)),
            Some((Kind::Jump, Target::Direct(Selector(0x10f)), 9))
        );
        assert_eq!(wide(&[0x9a, 1, 2, 3, 4, 7]), None, "cut short");
    }

    #[test]
    fn forms_through_memory() {
        use SegmentRegister::{Ds, Fs, Ss};
        for (code, segment, offset) in [
            (&[0xff, 0x18][..], Ds, 0x1000_0004), // [eax]
            (&[0xff, 0x2b], Ds, 0x4004),          // jmp [ebx]
            (&[0xff, 0x5d, 0xf8], Ss, 0x5ffc),    // [ebp - 8]
            (&[0xff, 0x1d, 0x78, 0x56, 0x34, 0x12], Ds, 0x1234_567c),
            (&[0xff, 0x1c, 0x24], Ss, 0x5004),               // [esp]
            (&[0xff, 0x5c, 0x24, 8], Ss, 0x500c),            // [esp + 8]
            (&[0xff, 0x1c, 0x8b], Ds, 0xc004),               // [ebx + ecx * 4]
            (&[0xff, 0x1c, 0x75, 1, 0, 0, 0], Ds, 0xe005),   // [esi * 2 + 1]
            (&[0xff, 0x9e, 0, 0, 0, 0xff], Ds, 0xff00_7004), // [esi - 0x1000000]
            (&[0x64, 0xff, 0x1a], Fs, 0x3004),
            (&[0x66, 0xff, 0x1a], Ds, 0x3002),
            (&[0x67, 0xff, 0x1a], Ss, 0xd004),          // [bp + si]
            (&[0x67, 0xff, 0x1e, 0xfe, 0xff], Ds, 2),   // [0xfffe], which wraps
            (&[0x67, 0xff, 0x5f, 0x80], Ds, 0x3f84),    // [bx - 128]
            (&[0x67, 0xff, 0x9e, 0, 0x10], Ss, 0x7004), // [bp + 0x1000]
        ] {
            let far = wide(code);
            assert_eq!(far.map(|far| far.target), Some(Target::Memory(segment, offset)), "{code:x?}");
            assert_eq!(far.map(|far| far.length as usize), Some(code.len()), "{code:x?}");
        }
    }

    #[test]
    fn everything_else_is_none() {
        for code in
            [&[0xff, 0xd8][..], &[0xff, 0xe8], &[0xff, 0x10], &[0xff, 0x30], &[0x90], &[0x0f, 0xb4], &[], &[0xff]]
        {
            assert_eq!(wide(code), None, "{code:x?}");
        }
        assert_eq!(wide(&[0x66; 40]), None, "nothing but prefixes");
        let mut long = [0x2e; 20];
        long[13..].copy_from_slice(&[0x9a, 0, 0, 0, 0, 7, 0]);
        assert_eq!(wide(&long), None, "longer than an instruction can be");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_within_their_bounds(code in proptest::collection::vec(any::<u8>(), 0..24), narrow in any::<bool>()) {
            let size = if narrow { Size::Narrow } else { Size::Wide };
            if let Some(far) = decode(&code, size, &REGISTERS) {
                prop_assert!(far.length as usize <= code.len().min(LONGEST));
                prop_assert_eq!(decode(&code[..far.length as usize], size, &REGISTERS), Some(far), "no byte behind it counts");
            }
        }
    }
}
