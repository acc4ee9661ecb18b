//! `int` of every vector from rings 3 and 2: what no handler is open for is #GP with the vector in its code, and
//! nothing else happens. (From ring 1: `attack-ring1`. From x86_64 kernels and applications: `test-user64`.)

use super::switch::{Start, enter};
use super::{Kernel, catch_in, until};
use crate::raise;
use crate::tables::{CODE, DATA, GRANULAR, PRESENT, SIZE, Tables, flat};
use proxenos_guest::abi::context::TrapFlags;
use proxenos_guest::abi::x86_32::{FLAT_RING1_CS, FLAT_RING3_CS, FLAT_RING3_DS};
use proxenos_guest::abi::{GuestVirt, Selector};
use proxenos_guest::memory;
use proxenos_guest::pte::PteFlags;
use proxenos_guest::test::section;
use proxenos_guest::traps::vector;
use proxenos_guest::{check_eq, hypercall};

/// Bytes of each: `int n`, `ud2`.
const BYTES: usize = 4;
/// Slots of the GDT for ring 2.
const SLOTS: [u16; 2] = [95, 96];

pub fn run(kernel: &Kernel, tables: &Tables) {
    section("int of every vector from rings 3 and 2");
    let code = memory::alloc_frame().expect("padding");
    for n in 0..=255u8 {
        // What other tests have left open.
        if n >= 0x20 {
            raise::set_handler(n, FLAT_RING1_CS, TrapFlags::empty());
        }
        for (index, byte) in [0xcd, n, 0x0f, 0x0b].into_iter().enumerate() {
            // SAFETY: a fresh frame, of 4096 bytes.
            unsafe { code.words().cast::<u8>().add(usize::from(n) * BYTES + index).write_volatile(byte) };
        }
    }
    // SAFETY: no reference into the frame exists.
    check_eq!(unsafe { memory::remap(code, PteFlags::KERNEL_RO | PteFlags::USER) }, Ok(()));
    tables.set(SLOTS[0], flat(PRESENT | CODE, 2, GRANULAR | SIZE));
    tables.set(SLOTS[1], flat(PRESENT | DATA, 2, GRANULAR | 0x40));
    let ring2 = SLOTS.map(|slot| Selector::gdt(slot, 2));
    for (cs, ss) in [(FLAT_RING3_CS, FLAT_RING3_DS), (ring2[0], ring2[1])] {
        let start = |n: u8| Start {
            eip: GuestVirt(code.virt().raw() + u64::from(n) * BYTES as u64),
            cs,
            flags: 0x202,
            esp: 0x1000,
            ss,
        };
        for n in 0..=255u8 {
            let start = start(n);
            match n {
                vector::BREAKPOINT | vector::OVERFLOW => kernel.check("int", &until(n, &start), &[], &start, 2),
                _ => {
                    let code = usize::from(n) << 3 | 2;
                    kernel.check("int", &until(vector::GENERAL_PROTECTION, &start), &[code], &start, 0);
                }
            }
        }
        // Each of them open to all, whatever the processor pushes when it raises it itself; and one to ring 1 only.
        for n in 0..=255u8 {
            let start = start(n);
            catch_in(n, FLAT_RING1_CS, TrapFlags::from_dpl(3));
            kernel.check("int", &enter(&start), &[], &start, 2);
            let level = if matches!(n, vector::BREAKPOINT | vector::OVERFLOW) { 3 } else { 0 };
            raise::set_handler(n, FLAT_RING1_CS, TrapFlags::from_dpl(level));
        }
        let (n, start) = (0x45, start(0x45));
        catch_in(n, FLAT_RING1_CS, TrapFlags::from_dpl(1));
        let code = usize::from(n) << 3 | 2;
        kernel.check("int", &until(vector::GENERAL_PROTECTION, &start), &[code], &start, 0);
        raise::set_handler(n, FLAT_RING1_CS, TrapFlags::empty());
    }
    SLOTS.iter().for_each(|&slot| tables.set(slot, 0));
    check_eq!(hypercall::xen_version(), Ok(0x0002_0000), "the hypercall is the kernel's as before");
}
