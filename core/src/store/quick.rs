//! The short way for the store that almost every kernel sets an entry with. No state, no lock.

use super::{CodeWidth, RegisterFile, Width};

/// The one form that almost every store has, `mov` from a full register: what [`decode`](super::decode) and
/// [`Store::carry_out`](super::Store::carry_out) would make of it, in a fraction of the time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Move {
    /// What is stored.
    pub value: u64,
    /// The size of the operand.
    pub width: Width,
    /// Where the instruction ends.
    pub next: u64,
}

impl Move {
    /// Decodes it; `None` if it is anything else.
    #[inline(always)]
    pub fn decode(bytes: &[u8; 16], code: CodeWidth, registers: &impl RegisterFile) -> Option<Self> {
        let [a, b, c, d, ..] = *bytes;
        let mut word = u64::from(u32::from_le_bytes([a, b, c, d]));
        let long = code == CodeWidth::Bits64;
        let (mut rex, mut length) = (0, 2);
        if long && word & 0xf0 == 0x40 {
            (rex, length) = (word as u8, 3);
            word >>= 8;
        }
        let (modrm, sib) = (word >> 8 & 0xff, word >> 16 & 7);
        if word & 0xff != 0x89 || modrm >= 0xc0 {
            return None;
        }
        let (mode, rm) = (modrm >> 6, modrm & 7);
        if modrm & 0xc7 > 7 || rm == 4 || modrm & 0xc7 == 5 {
            length += u64::from(rm == 4)
                + match mode {
                    1 => 1,
                    2 => 4,
                    _ if rm == 5 || rm == 4 && sib == 5 => 4,
                    _ => 0,
                };
        }
        let width = if rex & 8 != 0 { Width::Quad } else { Width::Long };
        let pointer = if long { Width::Quad } else { Width::Long };
        let number = (modrm >> 3 & 7) as u8 | (rex & 4) << 1;
        Some(Self {
            value: registers.general(number) & width.mask(),
            width,
            next: registers.ip().wrapping_add(length) & pointer.mask(),
        })
    }
}
