//! A handler's code selector that cannot be loaded, for every reason there is in the GDT; and those that look odd but
//! can.

use crate::raise::{expect_direct, expect_failsafe};
use crate::tables::{
    CODE, CONFORMING, DATA, GOOD_CODE, GOOD_DATA, GRANULAR, PRESENT, RING, SEGMENT, SIZE, Tables, flat, local,
};
use proxenos_guest::abi::{Errno, GuestArch, GuestVirt, Selector};
use proxenos_guest::arch::Word;
use proxenos_guest::test::section;
use proxenos_guest::traps::{self, vector};
use proxenos_guest::{Arch, check_eq, hypercall};

/// One slot in each page of the GDT. The first page is the hypervisor's copy, the second is our own frame.
const SLOTS: [u16; 2] = [30, 800];

pub fn run(tables: &Tables) {
    let flat_data = [Arch::FLAT_GUESTOS_DS; 4];
    section("handlers in code segments that can be loaded");
    for slot in SLOTS {
        for (descriptor, what) in loadable() {
            tables.set(slot, descriptor);
            expect_direct(what, Selector::gdt(slot, RING), flat_data);
        }
    }
    section("handlers in code segments that cannot be loaded");
    for slot in SLOTS {
        for (descriptor, what) in unloadable() {
            tables.set(slot, descriptor);
            expect_failsafe(what, Selector::gdt(slot, RING), tables.data_selectors());
        }
        // And with the data registers as they usually are.
        expect_failsafe("flat data", Selector::gdt(slot, RING), flat_data);
        tables.set(slot, 0);
    }
    for (selector, what) in [
        (Selector(RING as u16), "null"),
        (Selector::gdt(1023, RING), "the GDT's last entry, empty"),
        (Selector::gdt(1024, RING), "behind the GDT"),
        (Selector::gdt(8191, RING), "the last selector there is"),
        (local(1), "there is no LDT"),
        (local(8191), "the last selector of the LDT there is not"),
    ] {
        expect_failsafe(what, selector, tables.data_selectors());
    }
    loads(tables);
    refused();
}

/// The kernel loads segments itself: what the CPU has against them is told with the selector in the code.
fn loads(tables: &Tables) {
    section("segments that the kernel cannot load");
    let absent = |descriptor: u64| descriptor & !(u64::from(PRESENT) << 40);
    for slot in SLOTS {
        let selector = Selector::gdt(slot, RING);
        let code = u32::from(selector.raw() & !3);
        let (np, ss, gp) = (vector::SEGMENT_NOT_PRESENT, vector::STACK, vector::GENERAL_PROTECTION);
        for (descriptor, into_es, into_ss, what) in [
            (GOOD_DATA, None, None, "data"),
            (absent(GOOD_DATA), Some(np), Some(ss), "data that is not present"),
            (flat(PRESENT | SEGMENT | 1, RING, GRANULAR | 0x40), None, Some(gp), "read-only data"),
            (GOOD_CODE, None, Some(gp), "code that can be read"),
            (flat(PRESENT | SEGMENT | 9, RING, GRANULAR | SIZE), Some(gp), Some(gp), "code that cannot be read"),
            (absent(GOOD_CODE), Some(np), Some(gp), "code that is not present"),
            (0, Some(gp), Some(gp), "nothing"),
        ] {
            tables.set(slot, descriptor);
            for (register, expected) in [("es", into_es), ("ss", into_ss)] {
                let before = traps::count();
                let selector = u32::from(selector.raw());
                // SAFETY: it faults, or the register gets a flat segment, and is put back.
                let loaded = unsafe {
                    match register {
                        "es" => proxenos_guest::attempt!("mov es, {0:e}", in(reg) selector),
                        _ => proxenos_guest::attempt!("mov ss, {0:e}", in(reg) selector),
                    }
                };
                // SAFETY: the flat segment.
                unsafe {
                    core::arch::asm!("mov es, {0:e}", "mov ss, {0:e}", in(reg) u32::from(Arch::FLAT_GUESTOS_DS.raw()))
                };
                check_eq!(loaded, expected.is_none(), "{what} into {register}");
                let trap = traps::last_trap();
                match expected {
                    Some(vector) => {
                        check_eq!(traps::count().wrapping_sub(before), 1, "{what} into {register}");
                        check_eq!((trap.vector, trap.error_code), (vector, code), "{what} into {register}")
                    }
                    None => check_eq!(traps::count(), before, "{what} into {register}"),
                };
            }
        }
        tables.set(slot, 0);
    }
}

fn loadable() -> impl Iterator<Item = (u64, &'static str)> {
    [
        (GOOD_CODE, "code"),
        (flat(PRESENT | SEGMENT | 0x8, RING, GRANULAR | SIZE), "execute-only code, not accessed"),
        (flat(PRESENT | CODE | CONFORMING, RING, GRANULAR | SIZE), "conforming code"),
        // Long mode ignores the limit.
        #[cfg(target_arch = "x86_64")]
        (flat(PRESENT | CODE, RING, SIZE) & !0xf_0000_0000_ffff, "64-bit code of limit 0"),
        // An x86_64 kernel that thinks it is in ring 0.
        #[cfg(target_arch = "x86_64")]
        (flat(PRESENT | CODE, 0, GRANULAR | SIZE), "code of ring 0, which becomes ring 3"),
        #[cfg(target_arch = "x86_64")]
        (flat(PRESENT | CODE | CONFORMING, 1, GRANULAR | SIZE), "conforming code of ring 1, which becomes ring 3"),
    ]
    .into_iter()
}

fn unloadable() -> impl Iterator<Item = (u64, &'static str)> {
    [
        (0, "an empty descriptor"),
        (GOOD_DATA, "data"),
        (flat(PRESENT | SEGMENT, RING, GRANULAR | 0x40), "read-only data"),
        (flat(CODE, RING, GRANULAR | SIZE), "code that is not present"),
        (flat(CODE, 0, GRANULAR | SIZE), "code of ring 0 that is not present"),
        (flat(CODE, RING, GRANULAR | 0x60), "64-bit code with 32-bit default that is not present"),
        (flat(CODE, RING, GRANULAR | 0x20), "64-bit code that is not present"),
        (flat(DATA, RING, GRANULAR | 0x40), "data that is not present"),
        (flat(0x09, RING, 0), "a task state segment that is not present"),
        (flat(0x02, RING, 0), "a local descriptor table that is not present"),
        (flat(0x0c, RING, 0), "a call gate that is not present"),
        (!(1 << 47), "all bits but one"),
        #[cfg(target_arch = "x86")]
        (flat(PRESENT | CODE, 3, GRANULAR | SIZE), "code of ring 3"),
        #[cfg(target_arch = "x86")]
        (flat(PRESENT | CODE, 2, GRANULAR | SIZE), "code of ring 2"),
        #[cfg(target_arch = "x86")]
        (flat(PRESENT | CODE | CONFORMING, 2, GRANULAR | SIZE), "conforming code of ring 2"),
        // A gate with a target that would do: ring 1's flat code.
        #[cfg(target_arch = "x86")]
        (0x0819 << 16 | 0xec00 << 32 | 0x1000, "a call gate"),
    ]
    .into_iter()
}

/// What the hypervisor can tell when it is named is not accepted in the first place.
fn refused() {
    section("handlers that are refused");
    let good = proxenos_guest::arch::event_callback();
    let failsafe = crate::entries::address();
    let flat_cs = Arch::FLAT_GUESTOS_CS;
    let callbacks = |event: (Selector, GuestVirt), failsafe: (Selector, GuestVirt)| {
        // SAFETY: refused, or the entry points are made for it.
        unsafe { hypercall::set_callbacks(event, failsafe) }
    };
    let trap = |cs: Selector, at: u64| {
        let entry = proxenos_guest::abi::context::TrapInfo::<Arch>::new(
            0x40,
            proxenos_guest::abi::context::TrapFlags::empty(),
            cs,
            at as Word,
        );
        // SAFETY: nobody raises this vector.
        unsafe { hypercall::set_trap_table(&[entry, traps::end_of_table()]) }
    };
    let rings: &[u8] = if cfg!(target_arch = "x86") { &[0, 2, 3] } else { &[0, 1, 2] };
    let reserved = (256..296).map(|slot| Selector::gdt(slot, RING)).filter(|&selector| selector != flat_cs);
    for cs in rings.iter().map(|&ring| Selector::gdt(30, ring)).chain(reserved) {
        check_eq!(callbacks((cs, good), (flat_cs, failsafe)), Err(Errno::EPERM), "event callback in {cs:x?}");
        check_eq!(callbacks((flat_cs, good), (cs, failsafe)), Err(Errno::EPERM), "failsafe callback in {cs:x?}");
        check_eq!(trap(cs, good.raw()), Err(Errno::EPERM), "handler in {cs:x?}");
    }
    #[cfg(target_arch = "x86_64")]
    for at in [1 << 47, 1 << 63, 0xffff_7fff_ffff_ffffu64, 0xffff_8000_0000_0000, 0xffff_87ff_ffff_ffff] {
        let bad = GuestVirt(at);
        check_eq!(callbacks((flat_cs, bad), (flat_cs, failsafe)), Err(Errno::EINVAL), "event callback at {at:#x}");
        check_eq!(callbacks((flat_cs, good), (flat_cs, bad)), Err(Errno::EINVAL), "failsafe callback at {at:#x}");
        check_eq!(trap(flat_cs, at), Err(Errno::EINVAL), "handler at {at:#x}");
    }
    // The callbacks are the old ones: what is half good changes nothing.
    expect_failsafe("after refusals", Selector::gdt(1023, RING), [Arch::FLAT_GUESTOS_DS; 4]);
}
