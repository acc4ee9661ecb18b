//! Frames word by word, and the rules for handlers.

use super::*;
use alloc::vec::Vec;
use proptest::prelude::*;
use proxenos_abi::context::{TrapFlags, TrapInfo};
use proxenos_abi::{Errno, X86_32, X86_64};

/// Flags with everything set that an entry clears.
const FLAGS: u64 = 0x202 | CLEARED_FLAGS;

const KERNEL32: Context = Context {
    ip: 0xc000_1000,
    cs: Selector(0x819),
    flags: FLAGS,
    sp: 0xc010_0003,
    ss: Selector(0x821),
    rcx: 1,
    r11: 2,
};
const USER32: Context =
    Context { ip: 0x804_8000, cs: Selector(0x82b), flags: FLAGS, sp: 0xbfff_fff0, ss: Selector(0x833), rcx: 1, r11: 2 };
const KERNEL64: Context = Context {
    ip: 0xffff_ffff_8000_1000,
    cs: Selector(0x82b),
    flags: FLAGS,
    sp: 0xffff_ffff_8010_000b,
    ss: Selector(0x833),
    rcx: 0xcc,
    r11: 0x11,
};
const STACK: (Selector, GuestVirt) = (Selector(0x821), GuestVirt(0xc020_0000));
const STACK64: (Selector, GuestVirt) = (Selector(0x833), GuestVirt(0xffff_ffff_8020_0000));
const HANDLER: Callback = Callback { cs: Selector(0x11), ip: GuestVirt(0xc000_2000) };
const SEGMENTS: DataSegments = DataSegments { ds: Selector(1), es: Selector(2), fs: Selector(3), gs: Selector(4) };

fn enter32(context: &Context, cause: Cause) -> Entry {
    enter::<X86_32>(context, Mode::of_ring(context.cs), STACK, &HANDLER, &cause)
}

fn enter64(mode: Mode, cause: Cause) -> Entry {
    enter::<X86_64>(&KERNEL64, mode, STACK64, &HANDLER, &cause)
}

/// The words of a frame, stored one by one.
struct Stored(Vec<u64>);

impl FrameMemory for Stored {
    type Error = ();
    fn store<const INDEX: usize>(&mut self, word: u64) -> Result<(), ()> {
        assert_eq!(INDEX, self.0.len());
        self.0.push(word);
        Ok(())
    }
}

/// What must be so in every entry.
fn check(entry: &Entry, context: &Context, bytes: u64) {
    assert_eq!(entry.frame.words().len() as u64 * bytes, entry.frame.size());
    let mut stored = Stored(Vec::new());
    assert_eq!((entry.frame.store(&mut stored), &stored.0[..]), (Ok(()), entry.frame.words()), "word by word");
    assert_eq!((entry.context.sp, entry.context.ss), (entry.frame.sp, entry.frame.ss));
    assert_eq!((entry.context.ip, entry.context.cs), (HANDLER.ip.0, HANDLER.cs));
    assert_eq!(entry.context.flags, 0x202);
    assert_eq!((entry.context.rcx, entry.context.r11), (context.rcx, context.r11));
}

#[test]
fn x86_32_from_the_kernel() {
    let fault = GuestVirt(0xdead_b000);
    for (cause, pushed) in [
        (Cause::Plain, &[][..]),
        (Cause::Code(0x412), &[0x412][..]),
        (Cause::PageFault { code: 0xffff_ffff, at: fault }, &[0xdead_b000, 0x17]),
        (Cause::Failsafe(SEGMENTS), &[1, 2, 3, 4]),
    ] {
        let entry = enter32(&KERNEL32, cause);
        check(&entry, &KERNEL32, 4);
        let words: Vec<u64> = pushed.iter().copied().chain([0xc000_1000, 0x819, FLAGS]).collect();
        assert_eq!(entry.frame.words(), words);
        assert_eq!(entry.frame.ss, KERNEL32.ss);
        assert_eq!(entry.frame.sp, 0xc010_0003 - 4 * words.len() as u64, "no alignment");
    }
}

#[test]
fn x86_32_from_an_application() {
    let entry = enter32(&USER32, Cause::Code(6));
    check(&entry, &USER32, 4);
    assert_eq!(entry.frame.words(), [6, 0x804_8000, 0x82b, FLAGS, 0xbfff_fff0, 0x833]);
    assert_eq!((entry.frame.ss, entry.frame.sp), (Selector(0x821), 0xc020_0000 - 24));
    entry.frame.with_bytes(|bytes| assert_eq!(bytes[..8], [6, 0, 0, 0, 0x00, 0x80, 0x04, 0x08]));
    // Ring 2 is left like ring 3.
    let ring2 = Context { cs: Selector(0x0a), ..USER32 };
    assert_eq!(enter32(&ring2, Cause::Plain).frame.words().len(), 5);
    // A stack pointer of 0 wraps within 32 bits.
    let low = Context { sp: 0, ..KERNEL32 };
    assert_eq!(enter32(&low, Cause::Plain).frame.sp, 0xffff_fff4);
}

#[test]
fn x86_64_frames() {
    let hardware = [KERNEL64.ip, 0x82b, FLAGS, KERNEL64.sp, 0x833];
    let fault = GuestVirt(0xffff_ffff_c000_0000);
    for (cause, pushed) in [
        (Cause::Plain, &[][..]),
        (Cause::Code(0x412), &[0x412][..]),
        (Cause::PageFault { code: 0xffff_ffe7, at: fault }, &[0xffff_ffff_c000_0000, 0x3]),
        (Cause::Failsafe(SEGMENTS), &[1, 2, 3, 4]),
    ] {
        let entry = enter64(Mode::Kernel, cause);
        check(&entry, &KERNEL64, 8);
        let words: Vec<u64> = [0xcc, 0x11].iter().chain(pushed).copied().chain(hardware).collect();
        assert_eq!(entry.frame.words(), words);
        assert_eq!(entry.frame.sp, 0xffff_ffff_8010_0000 - 8 * words.len() as u64, "aligned, as the CPU would");
    }
    let entry = enter64(Mode::User, Cause::PageFault { code: 0x10, at: fault });
    assert_eq!(entry.frame.words()[2..4], [fault.0, 0x14], "the fault was an application's");
    assert_eq!(entry.frame.sp, STACK64.1.0 - 8 * 9);
    // An application's ss, or none at all, is not what the kernel runs on.
    let null = Context { ss: Selector::NULL, ..KERNEL64 };
    let entry = enter::<X86_64>(&null, Mode::Kernel, (Selector::NULL, GuestVirt(0)), &HANDLER, &Cause::Plain);
    assert_eq!((entry.context.ss, entry.frame.words()[6]), (Selector(0x833), 0));
}

#[test]
fn exceptions_have_the_cpu_s_error_codes() {
    let at = GuestVirt(0x1234);
    let with_code: Vec<u8> = (0..32).filter(|&vector| Cause::exception(vector, 5, at) == Cause::Code(5)).collect();
    assert_eq!(with_code, [8, 10, 11, 12, 13, 17]);
    assert_eq!(Cause::exception(14, 5, at), Cause::PageFault { code: 5, at });
    assert_eq!(Cause::exception(6, 5, at), Cause::Plain);
}

fn trap<P: Personality>(vector: u8, flags: u8, cs: u16, address: u64) -> TrapInfo<P> {
    let address = P::Word::from_u64(address).unwrap();
    TrapInfo::new(vector, TrapFlags::from_bits_retain(flags), Selector(cs), address)
}

#[test]
fn selectors_of_handlers() {
    let mut table = TrapTable::new();
    for good in [0x0819, 0x0011, 0x07f9, 0x0941, 0xffe9, 0x0815, 0x0925] {
        assert_eq!(table.set(&trap::<X86_32>(14, 0, good, 4)), Ok(()), "{good:#x}");
    }
    // Other rings; and the reserved entries 256 to 295, with the hypervisor's own segments.
    for bad in [0x0818, 0x081b, 0x0010, 0x0012, 0x0013, 0x0814, 0x0801, 0x0821, 0x0829, 0x0939] {
        assert_eq!(table.set(&trap::<X86_32>(14, 0, bad, 4)), Err(Errno::EPERM), "{bad:#x}");
    }
    for good in [0x082b, 0x0013, 0x0943, 0x0827] {
        assert_eq!(table.set(&trap::<X86_64>(14, 0, good, 4)), Ok(()), "{good:#x}");
    }
    for bad in [0x0819, 0x0829, 0x0823, 0x0833, 0x0803, 0x0010, 0x0011] {
        assert_eq!(table.set(&trap::<X86_64>(14, 0, bad, 4)), Err(Errno::EPERM), "{bad:#x}");
    }
}

#[test]
fn addresses_of_handlers() {
    let new = |ip| Callback::new::<X86_64>(Selector(0x82b), GuestVirt(ip)).map(|callback| callback.ip.0);
    for good in [0, 0x7fff_ffff_ffff, 0xffff_8800_0000_0000, u64::MAX] {
        assert_eq!(new(good), Ok(good));
    }
    for bad in [0x8000_0000_0000, 0xffff_7fff_ffff_ffff, 0xffff_8000_0000_0000, 0xffff_87ff_ffff_ffff] {
        assert_eq!(new(bad), Err(Errno::EINVAL), "{bad:#x}");
    }
    assert!(Callback::new::<X86_32>(Selector(0x819), GuestVirt(0xffff_ffff)).is_ok());
}

#[test]
fn flags_of_handlers() {
    let mut table = TrapTable::new();
    assert_eq!(table.get(14), None);
    for vector in [1, 7, 14] {
        table.set(&trap::<X86_32>(vector, 7, 0x819, 0xc000_0000 + u64::from(vector))).unwrap();
        let handler = table.get(vector).unwrap();
        assert_eq!((handler.dpl, handler.at.ip.0), (3, 0xc000_0000 + u64::from(vector)));
        assert_eq!(handler.masks_events, vector == 14);
    }
    assert_eq!(table.set(&trap::<X86_32>(14, 0, 0x800, 1)), Err(Errno::EPERM));
    assert_eq!(table.get(14).map(|handler| handler.dpl), Some(3), "a refused entry changes nothing");
}

#[test]
fn software_interrupts() {
    let mut table = TrapTable::new();
    for (vector, dpl) in [(0x80, 3), (0x20, 1), (0x21, 0), (3, 0), (4, 0), (13, 0)] {
        table.set(&trap::<X86_32>(vector, dpl, 0x819, 0xc000_0000)).unwrap();
    }
    let delivered = |vector, cs: u16| {
        let cs = Selector(cs);
        match table.software_interrupt::<X86_32>(vector, cs, Mode::of_ring(cs)) {
            SoftwareInterrupt::Deliver(handler) => {
                assert_eq!(Some(handler), table.get(vector));
                true
            }
            SoftwareInterrupt::Protection(code) => {
                assert_eq!(code, u32::from(vector) * 8 + 2);
                false
            }
        }
    };
    let (kernel, ring2, user) = (0x819, 0x12, 0x82b);
    assert!(delivered(0x80, user) && delivered(0x80, ring2) && delivered(0x80, kernel));
    assert!(!delivered(0x20, user) && !delivered(0x20, ring2) && delivered(0x20, kernel));
    assert!(!delivered(0x21, kernel) && !delivered(13, user));
    assert!(delivered(3, user) && delivered(4, user));
    assert!(!delivered(0x55, kernel), "no handler");
    assert!(!delivered(0x82, user), "the hypercall gate is the kernel's");
    let in_mode = |vector, mode| table.software_interrupt::<X86_64>(vector, Selector(0x82b), mode);
    assert!(matches!(in_mode(0x20, Mode::Kernel), SoftwareInterrupt::Deliver(_)));
    assert_eq!(in_mode(0x20, Mode::User), SoftwareInterrupt::Protection(0x102));
}

#[test]
fn fast_traps() {
    let mut table = TrapTable::new();
    let (kernel, user) = (Selector(0x819), Selector(0x82b));
    let int =
        |table: &TrapTable, vector, cs: Selector| table.software_interrupt::<X86_32>(vector, cs, Mode::of_ring(cs));
    for vector in [1, 3, 0x1f, 0x30, 0x7f, 0x81, 0x82, 0xff, 0x120, 0x180, u32::MAX] {
        assert_eq!(table.set_fast_trap::<X86_32>(vector), Err(Errno::EPERM), "{vector:#x}");
    }
    for vector in (0x20..=0x2f).chain([0x80, 0]) {
        assert_eq!(table.set_fast_trap::<X86_32>(vector), Ok(()), "{vector:#x}");
    }
    assert_eq!(int(&table, 0x80, user), SoftwareInterrupt::Protection(0x402), "without a handler it is none");

    table.set(&trap::<X86_32>(0x80, 3, 0x819, 0xc000_0000)).unwrap();
    let first = table.get(0x80).unwrap();
    assert_eq!(table.set_fast_trap::<X86_32>(0x80), Ok(()));
    // What the table says later does not count, not even that events are to be masked.
    table.set(&trap::<X86_32>(0x80, 4, 0x819, 0xc000_1000)).unwrap();
    assert!(table.get(0x80).unwrap().masks_events);
    assert_eq!(table.plain_system_call(), (0x819, 0xc000_0000), "nor to the short way");
    assert_eq!(int(&table, 0x80, user), SoftwareInterrupt::Deliver(first));
    assert_eq!(int(&table, 0x80, kernel), SoftwareInterrupt::Deliver(first));
    assert_eq!(table.set_fast_trap::<X86_32>(0x80), Err(Errno::EPERM), "no gate masks events");
    assert_eq!(int(&table, 0x80, user), SoftwareInterrupt::Deliver(first), "a refusal changes nothing");
    assert_eq!(table.set_fast_trap::<X86_32>(0), Ok(()));
    assert_eq!(table.plain_system_call(), (0, 0), "the table's masks events");
    assert_eq!(int(&table, 0x80, user), SoftwareInterrupt::Protection(0x402), "the table's privilege level");
    assert_eq!(int(&table, 0x80, kernel), SoftwareInterrupt::Protection(0x402));

    // Where the fast trap may not be used, the table decides.
    table.set(&trap::<X86_32>(0x2e, 1, 0x819, 0xc000_0000)).unwrap();
    let first = table.get(0x2e).unwrap();
    assert_eq!(table.set_fast_trap::<X86_32>(0x2e), Ok(()));
    assert_eq!(int(&table, 0x2e, user), SoftwareInterrupt::Protection(0x172));
    table.set(&trap::<X86_32>(0x2e, 3, 0x819, 0xc000_1000)).unwrap();
    assert_eq!(int(&table, 0x2e, user), SoftwareInterrupt::Deliver(table.get(0x2e).unwrap()));
    assert_eq!(int(&table, 0x2e, kernel), SoftwareInterrupt::Deliver(first));
    let kernel64 = table.software_interrupt::<X86_64>(0x2e, Selector(0x82b), Mode::Kernel);
    assert_eq!(kernel64, SoftwareInterrupt::Deliver(first), "an x86_64 kernel counts as ring 1");
}

proptest! {
    /// A kernel that pops the frame again, as `iret` does, is where it was.
    #[test]
    fn frames_lead_back(
        (ip, sp, flags) in any::<(u32, u32, u32)>(),
        ring in 1u16..4,
        code in prop::option::of(any::<u32>()),
    ) {
        let context = Context {
            ip: ip.into(), cs: Selector(8 | ring), flags: flags.into(), sp: sp.into(), ss: Selector(16 | ring), ..Context::default()
        };
        let entry = enter32(&context, code.map_or(Cause::Plain, Cause::Code));
        let words = &entry.frame.words()[usize::from(code.is_some())..];
        prop_assert_eq!(&words[..3], &[context.ip, u64::from(context.cs.0), context.flags]);
        let base = if ring == 1 { sp } else { STACK.1.0 as u32 };
        prop_assert_eq!(entry.frame.sp as u32, base.wrapping_sub(entry.frame.size() as u32));
        prop_assert_eq!(words.len(), if ring == 1 { 3 } else { 5 });
        prop_assert_eq!(entry.context.flags & CLEARED_FLAGS, 0);
        prop_assert!(entry.frame.sp <= u64::from(u32::MAX));
    }
}

#[test]
fn what_is_open_to_all_is_where_every_ring_is_led() {
    let mut table = TrapTable::new();
    let led = |table: &TrapTable| {
        let to = [0x819, 0x82b].map(|cs| {
            let cs = Selector(cs);
            match table.software_interrupt::<X86_32>(0x80, cs, Mode::of_ring(cs)) {
                SoftwareInterrupt::Deliver(handler) => Some(handler),
                SoftwareInterrupt::Protection(_) => None,
            }
        });
        to[0].filter(|_| to[0] == to[1])
    };
    for (dpl, fast, open) in [(1, false, false), (3, false, true), (3, true, true), (1, true, false)] {
        table.set(&trap::<X86_32>(0x80, dpl, 0x819, 0xc000_0000 + u64::from(dpl))).unwrap();
        assert_eq!(table.set_fast_trap::<X86_32>(if fast { 0x80 } else { 0 }), Ok(()));
        assert_eq!(table.open_to_all(0x80).is_some(), open, "{dpl} {fast}");
        assert!(table.open_to_all(0x80).is_none_or(|handler| Some(handler) == led(&table)), "{dpl} {fast}");
        // The table's own handler is another then.
        table.set(&trap::<X86_32>(0x80, 3, 0x819, 0xc000_1000)).unwrap();
        assert!(table.open_to_all(0x80).is_none_or(|handler| Some(handler) == led(&table)), "{dpl} {fast}");
    }
}
