//! `in` and `out`, decoded from their bytes and carried out on a set of registers (Intel SDM vol. 2, IN, OUT; §2.1).
//!
//! Promises: any bytes give a result; nothing but the accumulator and the instruction pointer changes. No state, no
//! lock.

use super::{IoPort, Ports, Span, Width};
use crate::assist::CodeSegments;
use crate::code::{self, LONGEST};
use crate::host::{Hardware, Host};
use crate::personality::Personality;
use crate::store::{CodeWidth, RegisterFile};

/// Registers, as instructions number them.
const ACCUMULATOR: u8 = 0;
const DX: u8 = 2;

/// Which way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Direction {
    In,
    Out,
}

/// An `in` or `out`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortAccess {
    direction: Direction,
    width: Width,
    /// The port that stands in the instruction; else it is in dx.
    immediate: Option<u8>,
    /// The instruction's bytes.
    length: u8,
}

impl PortAccess {
    /// Decodes an instruction; `None` if it is none of these, or is not all there.
    #[must_use]
    pub fn decode(bytes: &[u8], code: CodeWidth) -> Option<Self> {
        let (mut word, mut at) = (false, 0);
        let opcode = loop {
            let byte = *bytes[..bytes.len().min(LONGEST)].get(at)?;
            at += 1;
            match byte {
                0x66 => word = true,
                // Segments, the size of addresses and repetition mean nothing here.
                0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67 | 0xf2 | 0xf3 => {}
                0x40..=0x4f if code == CodeWidth::Bits64 => {
                    let opcode = *bytes[..bytes.len().min(LONGEST)].get(at)?;
                    // A REX prefix counts only right before the opcode, and all it could say is no matter here.
                    if opcode & 0xf4 == 0xe4 {
                        at += 1;
                        break opcode;
                    }
                }
                opcode => break opcode,
            }
        };
        if opcode & 0xf4 != 0xe4 {
            return None;
        }
        let immediate = if opcode & 8 == 0 {
            at += 1;
            Some(*bytes[..bytes.len().min(LONGEST)].get(at - 1)?)
        } else {
            None
        };
        Some(Self {
            direction: if opcode & 2 == 0 { Direction::In } else { Direction::Out },
            width: match (opcode & 1, word) {
                (0, _) => Width::Byte,
                (_, true) => Width::Word,
                (_, false) => Width::Long,
            },
            immediate,
            length: at as u8,
        })
    }

    /// Which ports it uses.
    #[must_use]
    pub fn span(self, registers: &impl RegisterFile) -> Span {
        let port = IoPort(self.immediate.map_or(registers.general(DX) as u16, u16::from));
        Span { port, width: self.width }
    }

    /// Carries it out.
    pub fn carry_out(self, registers: &mut impl RegisterFile, code: CodeWidth, ports: &impl Ports) {
        let Span { port, .. } = self.span(registers);
        let old = registers.general(ACCUMULATOR);
        let mask = u64::from(self.width.mask());
        match self.direction {
            Direction::Out => ports.port_out(port, self.width, (old & mask) as u32),
            Direction::In => {
                let read = u64::from(ports.port_in(port, self.width)) & mask;
                // 32 bits replace the whole register, fewer leave the rest.
                let kept = if self.width == Width::Long { 0 } else { old & !mask };
                registers.set_general(ACCUMULATOR, kept | read);
            }
        }
        let next = registers.ip().wrapping_add(self.length.into());
        registers.set_ip(if code == CodeWidth::Bits32 { next & 0xffff_ffff } else { next });
    }
}

/// An instruction that a guest has executed, as far as it can be read.
#[derive(Clone, Copy, Debug)]
pub struct Fetched {
    bytes: [u8; LONGEST],
    length: usize,
}

impl Fetched {
    /// Its bytes, and others behind it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Reads what a guest stands at.
#[must_use]
pub fn fetch<P: Personality, H: Hardware>(
    host: &Host<H>,
    segments: &CodeSegments,
    registers: &impl RegisterFile,
) -> Option<Fetched> {
    let at = segments.linear(segments.code, registers.ip());
    let mut bytes = [0; LONGEST];
    let length = code::fetch::<P, H>(&host.hw, at, &mut bytes)?.len();
    Some(Fetched { bytes, length })
}

#[cfg(test)]
mod tests {
    use super::super::{Level, Mode, Rights, touches};
    use super::*;
    use crate::store::Registers;
    use core::cell::RefCell;
    use proptest::prelude::*;

    /// What a port was asked: which way, its number, the width, what was written.
    type Asked = (Direction, u16, Width, u32);

    /// Ports that answer with their number and log what they are asked.
    #[derive(Default)]
    struct Log(RefCell<alloc::vec::Vec<Asked>>);

    impl Ports for Log {
        fn port_in(&self, port: IoPort, width: Width) -> u32 {
            self.0.borrow_mut().push((Direction::In, port.0, width, 0));
            0xa5a5_0000 | u32::from(port.0)
        }

        fn port_out(&self, port: IoPort, width: Width, value: u32) {
            self.0.borrow_mut().push((Direction::Out, port.0, width, value));
        }
    }

    /// What the instruction asks of the ports, rax and rip after it.
    fn run(bytes: &[u8], code: CodeWidth) -> Option<(Asked, u64, u64)> {
        let mut registers = Registers { ip: 0x1000, ..Registers::default() };
        registers.general[0] = 0x1122_3344_5566_7788;
        registers.general[2] = 0xffff_03c4;
        let log = Log::default();
        PortAccess::decode(bytes, code)?.carry_out(&mut registers, code, &log);
        let [only] = log.0.borrow()[..] else { panic!("one access") };
        Some((only, registers.general[0], registers.ip))
    }

    #[test]
    fn every_form() {
        use CodeWidth::{Bits32, Bits64};
        use Direction::{In, Out};
        use Width::{Byte, Long, Word};
        const RAX: u64 = 0x1122_3344_5566_7788;
        for (bytes, code, access, rax, length) in [
            (&[0xe4, 0x61][..], Bits32, (In, 0x61, Byte, 0), RAX & !0xff | 0x61, 2),
            (&[0xe5, 0x61], Bits32, (In, 0x61, Long, 0), 0xa5a5_0061, 2),
            (&[0x66, 0xe5, 0x61], Bits32, (In, 0x61, Word, 0), RAX & !0xffff | 0x61, 3),
            (&[0xe6, 0x80], Bits32, (Out, 0x80, Byte, 0x88), RAX, 2),
            (&[0xe7, 0xff], Bits64, (Out, 0xff, Long, 0x5566_7788), RAX, 2),
            (&[0xec], Bits32, (In, 0x3c4, Byte, 0), RAX & !0xff | 0xc4, 1),
            (&[0xed], Bits64, (In, 0x3c4, Long, 0), 0xa5a5_03c4, 1),
            (&[0xee], Bits32, (Out, 0x3c4, Byte, 0x88), RAX, 1),
            (&[0x66, 0xef], Bits32, (Out, 0x3c4, Word, 0x7788), RAX, 2),
            (&[0x48, 0xef], Bits64, (Out, 0x3c4, Long, 0x5566_7788), RAX, 2),
            (&[0x66, 0x41, 0xed], Bits64, (In, 0x3c4, Word, 0), RAX & !0xffff | 0x3c4, 3),
            (&[0xf3, 0x65, 0xee], Bits32, (Out, 0x3c4, Byte, 0x88), RAX, 3),
        ] {
            assert_eq!(run(bytes, code), Some((access, rax, 0x1000 + length)), "{bytes:x?}");
        }
    }

    #[test]
    fn others_are_none() {
        // String forms, halt, a locked one, one that is not all there, one that is too long; a REX prefix is `inc` in
        // 32-bit code.
        for bytes in
            [&[0x6c][..], &[0xf3, 0x6f], &[0xf4], &[0xf0, 0xec], &[0xe4], &[0x66], &[], &[0x48, 0xec], &[0xe8, 0]]
        {
            assert_eq!(run(bytes, CodeWidth::Bits32), None, "{bytes:x?}");
        }
        assert_eq!(run(&[0x66; 15], CodeWidth::Bits32), None);
        let mut long = [0x66; 16];
        long[15] = 0xec;
        assert_eq!(run(&long, CodeWidth::Bits32), None, "sixteen bytes");
        assert!(run(&long[1..], CodeWidth::Bits32).is_some(), "fifteen");
    }

    proptest! {
        #[test]
        fn any_bytes_do(bytes in proptest::collection::vec(any::<u8>(), 0..20), wide in any::<bool>()) {
            let code = if wide { CodeWidth::Bits64 } else { CodeWidth::Bits32 };
            if let Some(((_, _, width, value), _, ip)) = run(&bytes, code) {
                prop_assert!(value <= width.mask());
                prop_assert!(ip > 0x1000 && ip <= 0x1000 + bytes.len().min(15) as u64);
            }
        }
    }

    #[test]
    fn rights_follow_the_level() {
        let mut rights = Rights::NONE;
        let mut after = |level| {
            rights.set_level(Level::from_raw(level));
            (rights.allow(Mode::Kernel), rights.allow(Mode::Application))
        };
        assert_eq!(after(0), (false, false));
        assert_eq!(after(1), (true, false));
        assert_eq!(after(3), (true, true));
        assert_eq!(after(2), (true, false));
        assert_eq!(after(0), (true, false), "what a kernel was given it keeps");
        assert_eq!(after(7), (true, true), "two bits count");
        rights.assign_level(Level::from_raw(1));
        assert!(rights.allow(Mode::Kernel) && !rights.allow(Mode::Application));
        rights.assign_level(Level::from_raw(0));
        assert_eq!(rights, Rights::NONE, "another domain takes it away");
        rights.note_devices();
        assert!(rights.any() && !rights.allow(Mode::Kernel) && !rights.allow(Mode::Application));
        rights.assign_level(Level::from_raw(4));
        assert!(rights.any(), "devices are no matter of the level");
    }

    #[test]
    fn an_access_touches_what_it_covers() {
        let com1 = 0x3f8..=0x3ff;
        for (port, width, expected) in [
            (0x3f7, Width::Byte, false),
            (0x3f7, Width::Word, true),
            (0x3f4, Width::Long, false),
            (0x3f5, Width::Long, true),
            (0x3ff, Width::Byte, true),
            (0x400, Width::Long, false),
            (0xffff, Width::Long, false),
        ] {
            assert_eq!(touches(IoPort(port), width, com1.clone()), expected, "{port:x} {width:?}");
        }
    }
}
