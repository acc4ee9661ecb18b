//! Segment descriptors that guests put into their tables: which are harmless, and how they are stored.
//!
//! Promise: no descriptor that [`check`] lets through can raise a guest's privilege, give an x86_32 guest 64-bit code,
//! or make the CPU write to the table. The invariants behind it:
//!
//! * A descriptor that is not present faults on every use, so its other bits do not matter.
//! * An x86_32 kernel runs in ring 1, which the CPU counts as supervisor. What keeps it out of the hypervisor is that
//!   it can only form 32-bit addresses, so code with the L bit is refused; and that no segment is ring 0's, so DPL 0 is
//!   refused, as Xen 2.0 does. Base and limit do not matter: in compatibility mode addresses wrap at 4 GiB (Intel SDM
//!   vol. 3 §3.4.4), below everything of the hypervisor's but what the guest may read. Conforming code runs in the
//!   caller's ring and needs none but the same DPL rule.
//! * An x86_64 guest runs in ring 3 and can use no DPL but 3. Kernels bring tables made for ring 0 all the same; a
//!   lower DPL is raised to 3, which gives the segment to nobody but the guest that wrote it, instead of turning the
//!   kernel away.
//! * System descriptors are 16 bytes long in long mode, two entries of the table that guests write one by one: none
//!   is let through to the CPU. Call gates of x86_32 guests (NetBSD has them in its LDT) are stored with DPL 0, so
//!   that the CPU refuses each call with #GP before it looks at anything else, and can be emulated from [`call_gate`].
//! * The accessed bit is set in what is stored: the CPU then never writes to a table, which is mapped read-only.

use crate::addr::GuestVirt;
use crate::domain::Arch;
use core::ops::RangeInclusive;
use proxenos_abi::Selector;
use proxenos_abi::arch::{FIRST_RESERVED_GDT_ENTRY, LAST_RESERVED_GDT_ENTRY};
use proxenos_abi::x86_32::FLAT_RING1_CS;

/// The entries of a GDT that are the hypervisor's.
pub const RESERVED: RangeInclusive<u16> = FIRST_RESERVED_GDT_ENTRY..=LAST_RESERVED_GDT_ENTRY;

/// Whether a kernel may be entered by a selector, be it at a handler, at a callback or through a gate: of the ring of
/// its flat code segment, and no other entry of the hypervisor's than that.
#[must_use]
pub const fn is_entry(target: Selector, flat: Selector) -> bool {
    let (index, own) = (target.index(), target.is_local());
    let reserved = !own && index >= *RESERVED.start() && index <= *RESERVED.end();
    target.rpl() == flat.rpl() && (!reserved || target.0 == flat.0)
}

/// The descriptor is none that guests may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadDescriptor;

/// Bits of a descriptor (Intel SDM vol. 3 §3.4.5).
mod bits {
    /// Type: code or data has been used.
    pub(super) const ACCESSED: u64 = 1 << 40;
    /// Type, of data: writable.
    pub(super) const WRITABLE: u64 = 1 << 41;
    /// Type, of data: the limit is the segment's lower end.
    pub(super) const EXPAND_DOWN: u64 = 1 << 42;
    /// Type: code.
    pub(super) const CODE: u64 = 1 << 43;
    /// Type: code or data, not a system descriptor.
    pub(super) const SEGMENT: u64 = 1 << 44;
    /// Shift of the privilege level.
    pub(super) const DPL: u32 = 45;
    /// Present.
    pub(super) const PRESENT: u64 = 1 << 47;
    /// 64-bit code.
    pub(super) const LONG: u64 = 1 << 53;
    /// 32-bit default size.
    pub(super) const BIG: u64 = 1 << 54;
    /// The limit counts pages.
    pub(super) const PAGES: u64 = 1 << 55;
    /// Type and S bit.
    pub(super) const KIND: u64 = 0x1f << 40;
    /// A 32-bit call gate's type and S bit.
    pub(super) const CALL_GATE: u64 = 0xc << 40;
    /// Bits of a call gate that are reserved. The CPU does not look at them before it has refused DPL 0; in a stored
    /// gate the lower two hold the DPL that the guest gave it.
    pub(super) const GATE_RESERVED: u64 = 0x7 << 37;
    /// Shift of the guest's DPL in a stored gate.
    pub(super) const GATE_DPL: u32 = 37;
}

/// Checks a descriptor for a guest's table; returns it as it is to be stored. What was returned once passes again
/// unchanged.
///
/// # Errors
/// [`BadDescriptor`].
pub const fn check(arch: Arch, raw: u64) -> Result<u64, BadDescriptor> {
    if raw & bits::PRESENT == 0 {
        return Ok(raw);
    }
    if raw & bits::SEGMENT == 0 {
        return match arch {
            Arch::X86_32 => check_gate(raw),
            Arch::X86_64 => Err(BadDescriptor),
        };
    }
    let is_code = raw & bits::CODE != 0;
    let (long, big) = (raw & bits::LONG != 0, raw & bits::BIG != 0);
    match arch {
        Arch::X86_32 if long || dpl(raw) == 0 => Err(BadDescriptor),
        Arch::X86_32 => Ok(raw | bits::ACCESSED),
        // L is reserved in data, and with D in code.
        Arch::X86_64 if long && (big || !is_code) => Err(BadDescriptor),
        Arch::X86_64 => Ok(raw | bits::ACCESSED | 3 << bits::DPL),
    }
}

/// Checks a system descriptor of an x86_32 guest: call gates only.
const fn check_gate(raw: u64) -> Result<u64, BadDescriptor> {
    if raw & bits::KIND != bits::CALL_GATE || !is_entry(Selector((raw >> 16) as u16), FLAT_RING1_CS) {
        return Err(BadDescriptor);
    }
    let stored = raw & bits::GATE_RESERVED;
    let guest_dpl = stored >> bits::GATE_DPL & 3;
    match (dpl(raw), stored) {
        // As stored before. A guest that writes it itself says the same in another way.
        (0, _) if guest_dpl != 0 && stored == guest_dpl << bits::GATE_DPL => Ok(raw),
        (0, _) => Err(BadDescriptor),
        (dpl, 0) => Ok(raw & !(3 << bits::DPL) | dpl << bits::GATE_DPL),
        _ => Err(BadDescriptor),
    }
}

/// A descriptor's privilege level.
const fn dpl(raw: u64) -> u64 {
    raw >> bits::DPL & 3
}

/// An x86_32 guest's call gate, for a call to be carried out in the CPU's stead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CallGate {
    /// Where it leads: the code segment.
    pub target: Selector,
    /// Where it leads: the offset.
    pub offset: u32,
    /// Words to copy from the caller's stack, 0 to 31.
    pub parameters: u8,
    /// The least privileged ring that may call it.
    pub dpl: u8,
}

/// The call gate that a stored descriptor holds, if it holds one.
#[must_use]
pub const fn call_gate(stored: u64) -> Option<CallGate> {
    if stored & bits::PRESENT == 0 || stored & bits::KIND != bits::CALL_GATE {
        return None;
    }
    Some(CallGate {
        target: Selector((stored >> 16) as u16),
        offset: (stored & 0xffff) as u32 | (stored >> 32) as u32 & 0xffff_0000,
        parameters: (stored >> 32) as u8 & 0x1f,
        dpl: (stored >> bits::GATE_DPL) as u8 & 3,
    })
}

/// Whether a code segment can be entered from an outer ring without changing rings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Conforming {
    /// Its code runs in the caller's ring.
    Yes,
    /// Its code runs in its own.
    No,
}

/// A code segment, for a transfer to be carried out in the CPU's stead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Code {
    /// Its ring.
    pub dpl: u8,
    /// Who may enter it.
    pub conforming: Conforming,
    /// Whether it is there.
    pub present: bool,
}

/// The code segment that a descriptor is, if it is one.
#[must_use]
pub const fn code(raw: u64) -> Option<Code> {
    const NEEDED: u64 = bits::SEGMENT | bits::CODE;
    if raw & NEEDED != NEEDED {
        return None;
    }
    // In code, the bit that makes data expand down.
    let conforming = if raw & bits::EXPAND_DOWN != 0 { Conforming::Yes } else { Conforming::No };
    Some(Code { dpl: dpl(raw) as u8, conforming, present: raw & bits::PRESENT != 0 })
}

/// A segment that can be a stack's, if it is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StackSegment {
    /// Its ring.
    pub dpl: u8,
    /// Whether it is there.
    pub present: bool,
}

/// The stack segment that a descriptor is, if it is one.
#[must_use]
pub const fn stack_segment(raw: u64) -> Option<StackSegment> {
    if !is_writable(raw | bits::PRESENT) {
        return None;
    }
    Some(StackSegment { dpl: dpl(raw) as u8, present: raw & bits::PRESENT != 0 })
}

/// Whether a code segment is a 64-bit one.
#[must_use]
pub const fn is_long(raw: u64) -> bool {
    raw & bits::LONG != 0
}

/// Whether a segment is a 32-bit one: of operands and addresses in code, of the stack pointer in a stack.
#[must_use]
pub const fn is_wide(raw: u64) -> bool {
    raw & bits::BIG != 0
}

/// A code or data segment's base, 32 bits.
#[must_use]
pub const fn base(raw: u64) -> u32 {
    (raw >> 16) as u32 & 0x00ff_ffff | (raw >> 32) as u32 & 0xff00_0000
}

/// A segment's limit: the highest offset in it (of data that expands down, the highest that is *not* in it).
#[must_use]
pub const fn limit(raw: u64) -> u32 {
    let limit = (raw & 0xffff) as u32 | (raw >> 32) as u32 & 0xf_0000;
    if raw & bits::PAGES != 0 { limit << 12 | 0xfff } else { limit }
}

/// The base of a segment of present, writable data, which a stack's is too. For callers that do not care for the
/// segment's limit; else see [`writable_at`].
#[must_use]
pub const fn writable_base(raw: u64) -> Option<u64> {
    if is_writable(raw) { Some(base(raw) as u64) } else { None }
}

/// Whether a descriptor is of present, writable data.
const fn is_writable(raw: u64) -> bool {
    const NEEDED: u64 = bits::PRESENT | bits::SEGMENT | bits::WRITABLE;
    raw & (NEEDED | bits::CODE) == NEEDED
}

/// Where `bytes` at an offset in a segment lie, if it is a present, writable data segment and they are all within it:
/// the checks that the CPU makes before it pushes to a stack (Intel SDM vol. 3 §5.3, §5.4).
#[must_use]
pub const fn writable_at(raw: u64, offset: u32, bytes: u32) -> Option<GuestVirt> {
    if !is_writable(raw) { None } else { within(raw, offset, bytes) }
}

/// The same for reading: data of any kind, or code that can be read.
#[must_use]
pub const fn readable_at(raw: u64, offset: u32, bytes: u32) -> Option<GuestVirt> {
    const NEEDED: u64 = bits::PRESENT | bits::SEGMENT;
    // The bit that makes data writable makes code readable.
    let readable = raw & bits::CODE == 0 || raw & bits::WRITABLE != 0;
    if raw & NEEDED != NEEDED || !readable { None } else { within(raw, offset, bytes) }
}

/// Where `bytes` at an offset lie, if they are all within the segment. Code does not expand down.
const fn within(raw: u64, offset: u32, bytes: u32) -> Option<GuestVirt> {
    if bytes == 0 {
        return None;
    }
    let (first, Some(last)) = (offset, offset.checked_add(bytes - 1)) else { return None };
    let inside = if raw & bits::EXPAND_DOWN == 0 || raw & bits::CODE != 0 {
        last <= limit(raw)
    } else {
        first > limit(raw) && (raw & bits::BIG != 0 || last <= 0xffff)
    };
    if inside { Some(GuestVirt(base(raw).wrapping_add(offset) as u64)) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FLAT_CODE_RING1: u64 = 0x00cf_bb00_0000_ffff;
    const FLAT_DATA_RING3: u64 = 0x00cf_f300_0000_ffff;
    const CODE_64_RING3: u64 = 0x00af_fb00_0000_ffff;

    fn with_dpl(raw: u64, dpl: u64) -> u64 {
        raw & !(3 << 45) | dpl << 45
    }

    #[test]
    fn segments_of_an_x86_32_guest() {
        let check = |raw| check(Arch::X86_32, raw);
        for raw in [FLAT_CODE_RING1, FLAT_DATA_RING3] {
            for dpl in 1..4 {
                assert_eq!(check(with_dpl(raw, dpl)), Ok(with_dpl(raw, dpl)));
            }
            assert_eq!(check(with_dpl(raw, 0)), Err(BadDescriptor));
            assert_eq!(check(raw & !(1 << 40)), Ok(raw), "the accessed bit is set");
            assert_eq!(check(raw | 1 << 53), Err(BadDescriptor), "L");
            assert_eq!(check(raw & !(1 << 54) | 1 << 53), Err(BadDescriptor), "L without D");
            assert_eq!(check(raw | 1 << 42), Ok(raw | 1 << 42), "conforming code, or data that expands down");
        }
        assert_eq!(check(with_dpl(FLAT_CODE_RING1, 0) | 1 << 42), Err(BadDescriptor), "conforming code of ring 0");
        assert_eq!(check(0), Ok(0));
        // Not present: anything goes, untouched.
        for raw in [CODE_64_RING3, with_dpl(FLAT_CODE_RING1, 0), 0x0000_8900_0000_0067] {
            assert_eq!(check(raw & !(1 << 47)), Ok(raw & !(1 << 47)));
        }
    }

    #[test]
    fn segments_of_an_x86_64_guest() {
        let check = |raw| check(Arch::X86_64, raw);
        for raw in [FLAT_CODE_RING1, FLAT_DATA_RING3, CODE_64_RING3] {
            for dpl in 0..4 {
                assert_eq!(check(with_dpl(raw, dpl)), Ok(with_dpl(raw, 3)));
            }
        }
        assert_eq!(check(CODE_64_RING3 & !(1 << 40)), Ok(CODE_64_RING3));
        assert_eq!(check(CODE_64_RING3 | 1 << 54), Err(BadDescriptor), "L with D");
        assert_eq!(check(FLAT_DATA_RING3 & !(1 << 54) | 1 << 53), Err(BadDescriptor), "L in data");
    }

    #[test]
    fn system_descriptors() {
        for kind in 0..16u64 {
            for dpl in 0..4 {
                let raw = 0x8000_0000_0819_1234 | kind << 40 | dpl << 45 | 1 << 47;
                assert_eq!(check(Arch::X86_64, raw), Err(BadDescriptor));
                if kind != 0xc || dpl == 0 {
                    assert_eq!(check(Arch::X86_32, raw), Err(BadDescriptor), "type {kind:#x} dpl {dpl}");
                }
            }
        }
    }

    #[test]
    fn call_gates_are_closed_and_remembered() {
        // NetBSD's: lcall 7,0 to selector 0x11 (ring 1), one parameter.
        let gate = 0xc012_ec01_0011_3456;
        let stored = check(Arch::X86_32, gate).unwrap();
        assert_eq!(stored, 0xc012_8c61_0011_3456, "DPL 0 to the CPU");
        assert_eq!(check(Arch::X86_32, stored), Ok(stored), "the table can be checked again");
        let (target, offset) = (Selector(0x11), 0xc012_3456);
        assert_eq!(call_gate(stored), Some(CallGate { target, offset, parameters: 1, dpl: 3 }));
        assert_eq!(call_gate(FLAT_CODE_RING1), None);
        assert_eq!(call_gate(stored & !(1 << 47)), None);
        // Bit 39 is reserved, and 37 and 38 too in a gate that the guest writes with a DPL.
        for reserved in 37..40 {
            assert_eq!(check(Arch::X86_32, gate | 1 << reserved), Err(BadDescriptor));
        }
        assert_eq!(check(Arch::X86_32, stored | 1 << 39), Err(BadDescriptor));
        for (target, good) in [
            (0x0819u64, true), // the flat kernel segment
            (0x0011, true),
            (0x0815, true),  // the LDT's, at a reserved index
            (0x0801, false), // the hypervisor's
            (0x0821, false),
            (0x0010, false), // ring 0
            (0x0013, false),
        ] {
            let raw = gate & !0xffff_0000 | target << 16;
            assert_eq!(check(Arch::X86_32, raw).is_ok(), good, "{target:#x}");
        }
    }

    #[test]
    fn stacks_are_looked_up_as_the_cpu_would() {
        let at = |raw, offset, bytes| writable_at(raw, offset, bytes).map(|at| at.0);
        assert_eq!(at(FLAT_DATA_RING3, 0xffff_fff0, 16), Some(0xffff_fff0));
        assert_eq!(at(FLAT_DATA_RING3, 0xffff_fff0, 17), None);
        assert_eq!(at(FLAT_CODE_RING1, 0x1000, 4), None, "code");
        assert_eq!(at(FLAT_DATA_RING3 & !(1 << 41), 0x1000, 4), None, "read-only");
        assert_eq!(at(FLAT_DATA_RING3 & !(1 << 47), 0x1000, 4), None, "not present");
        assert_eq!(at(0, 0, 4), None);
        // Base 0x12345678, 256 bytes.
        let small = 0x1240_f334_5678_00ff;
        assert_eq!((base(small), writable_base(small)), (0x1234_5678, Some(0x1234_5678)));
        assert_eq!(writable_base(FLAT_CODE_RING1), None);
        assert_eq!((at(small, 0xfc, 4), at(small, 0xfd, 4)), (Some(0x1234_5774), None));
        let down = small | 1 << 42;
        assert_eq!((at(down, 0xff, 4), at(down, 0x100, 4)), (None, Some(0x1234_5778)));
        assert_eq!(at(down & !(1 << 54), 0xfffd, 4), None, "a 16-bit stack ends at 64 KiB");
        assert_eq!(at(down, 0xf000_0000, 4), Some(0x0234_5678), "addresses wrap at 4 GiB");
        assert_eq!(limit(FLAT_DATA_RING3), u32::MAX);
        let readable = |raw, offset, bytes| readable_at(raw, offset, bytes).map(|at| at.0);
        assert_eq!(readable(FLAT_CODE_RING1, 0x1000, 4), Some(0x1000), "code that can be read");
        assert_eq!(readable(FLAT_CODE_RING1 & !(1 << 41), 0x1000, 4), None, "and some that cannot");
        assert_eq!(readable(FLAT_DATA_RING3 & !(1 << 41), 0xffff_fffc, 4), Some(0xffff_fffc), "read-only data");
        assert_eq!(readable(FLAT_CODE_RING1 | 1 << 42, 0x1000, 4), Some(0x1000), "conforming code has no other end");
        assert_eq!(readable(small, 0xfd, 4), None);
        assert_eq!((readable(0, 0, 4), readable(FLAT_DATA_RING3, 0, 0)), (None, None));
    }

    proptest! {
        /// Whatever passes is harmless, by the rules of the CPU alone.
        #[test]
        fn what_passes_is_harmless(random in any::<u64>(), bias in 0u8..4) {
            // Half of all random descriptors are not present, most others system descriptors.
            let raw = match bias {
                0 => random,
                1 => random | 1 << 47 | 1 << 44,
                2 => random & !bits::KIND | 1 << 47 | bits::CALL_GATE,
                _ => random & !bits::KIND & !0xffff_0000 & !bits::GATE_RESERVED | 1 << 47 | bits::CALL_GATE | 0x0819_0000,
            };
            for arch in [Arch::X86_32, Arch::X86_64] {
                let Ok(stored) = check(arch, raw) else { continue };
                prop_assert_eq!(check(arch, stored), Ok(stored), "what passed passes again");
                if stored & 1 << 47 == 0 {
                    prop_assert_eq!(stored, raw);
                    continue;
                }
                let (segment, dpl, long) = (stored >> 44 & 1, stored >> 45 & 3, stored >> 53 & 1);
                if segment == 0 {
                    prop_assert_eq!((arch, dpl), (Arch::X86_32, 0), "only gates that nobody can call");
                    prop_assert!(call_gate(stored).is_some_and(|gate| gate.dpl > 0 && gate.target.rpl() == 1));
                } else {
                    prop_assert!(stored >> 40 & 1 == 1, "the CPU has nothing to write");
                    let harmless = if arch == Arch::X86_32 { dpl > 0 && long == 0 } else { dpl == 3 };
                    prop_assert!(harmless, "dpl {} long {}", dpl, long);
                    prop_assert_eq!((base(stored), limit(stored)), (base(raw), limit(raw)));
                }
            }
        }
    }
}
