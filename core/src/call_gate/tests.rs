//! Every rule of a transfer through a gate, and whole transfers on the simulated machine.

use super::*;
use crate::addr::Mfn;
use crate::domain::Arch;
use crate::machine::{GuestMemory, MachineMemory};
use crate::paging::tests::world::*;
use alloc::vec::Vec;
use proptest::prelude::*;
use proxenos_abi::Hypercall;

/// Flat segments by access byte: code and data of a ring.
const fn flat(access: u64) -> u64 {
    0x00cf_0000_0000_ffff | access << 40
}

const fn gate(target: u16, offset: u32, dpl: u64, parameters: u64) -> u64 {
    (offset & 0xffff) as u64
        | (target as u64) << 16
        | parameters << 32
        | (0x8c | dpl << 5) << 40
        | (offset as u64 >> 16) << 48
}

/// Slots of the GDT.
const CODE1: u16 = 1;
const DATA1: u16 = 2;
const CODE3: u16 = 3;
const DATA3: u16 = 4;
const CODE2: u16 = 5;
const CONFORMING1: u16 = 6;
const ABSENT1: u16 = 7;
const SMALL1: u16 = 8;
const GATE: u16 = 9;
const NARROW3: u16 = 10;

const fn selector(slot: u16, rpl: u16) -> Selector {
    Selector(slot << 3 | rpl)
}

/// Pages of the region: the caller's code and stack, and the kernel's.
const TEXT: usize = DATA;
const USER_STACK: usize = DATA + 1;
const KERNEL_STACK: usize = DATA + 2;

struct Scene {
    world: World,
    gdt: Mfn,
}

impl Scene {
    fn new() -> Self {
        let mut world = World::of(Arch::X86_32);
        let gdt = world.guests[1].frames[DATA + 3];
        let entries = [
            (CODE1, flat(0xbb)),
            (DATA1, flat(0xb3)),
            (CODE3, flat(0xfb)),
            (DATA3, flat(0xf3)),
            (CODE2, flat(0xdb)),
            (CONFORMING1, flat(0xbf)),
            (ABSENT1, flat(0x3b)),
            (SMALL1, 0x0040_bb00_0000_0fff),
            // A 16-bit stack at the region's base.
            (NARROW3, 0xc000_f300_0000_ffff),
        ];
        for (slot, raw) in entries {
            world.host.hw.store64(crate::addr::MachineAddr(gdt.addr().0 + 8 * u64::from(slot)), raw);
        }
        let guest = world.guest(1);
        assert_eq!(guest.remap(DATA + 3, 0, 2), OK);
        for page in [TEXT, USER_STACK] {
            let entry = guest.entry(page, bits::RW | bits::D) | bits::US;
            assert_eq!(guest.remap(page, entry, 2), OK);
        }
        assert!(guest.put_args(&[gdt.0]));
        assert_eq!(guest.call(Hypercall::SetGdt, [guest.va(ARGS).0, 512, 0, 0, 0, 0]), OK);
        let top = guest.va(KERNEL_STACK).offset(4096);
        guest.vcpu.set_kernel_stack(selector(DATA1, 1), top);
        Self { world, gdt }
    }

    fn install(&mut self, slot: u16, raw: u64) {
        let at = self.gdt.addr().0 + 8 * u64::from(slot);
        let args = [at, raw & 0xffff_ffff, raw >> 32, 0, 0, 0];
        assert_eq!(self.world.guest(1).call(Hypercall::UpdateDescriptor, args), OK, "{raw:#x}");
    }

    /// Registers of a caller in a ring, whose code is in [`TEXT`] and whose stack's top holds these words.
    fn caller(&mut self, ring: u16, code: &[u8], stack: &[u32]) -> Registers {
        let guest = self.world.guest(1);
        guest.run();
        let (ip, top) = (guest.va(TEXT), guest.va(USER_STACK).offset(2048));
        guest.host.hw.copy_to_guest(ip, code).expect("mapped");
        let bytes: Vec<u8> = stack.iter().flat_map(|word| word.to_le_bytes()).collect();
        guest.host.hw.copy_to_guest(top, &bytes).expect("mapped");
        let (code, data) = if ring == 3 { (CODE3, DATA3) } else { (CODE1, DATA1) };
        let data = selector(data, ring);
        let mut general = [0; 8];
        general[ESP] = top.0 as u32;
        let data_segments = DataSegments { ds: data, es: data, fs: data, gs: data };
        Registers { general, ip: ip.0 as u32, cs: selector(code, ring), ss: data, data: data_segments }
    }

    fn attempt(&mut self, registers: &mut Registers, code: u32) -> Outcome {
        let guest = self.world.guest(1);
        guest.run();
        let (host, dom) = (guest.host.clone(), guest.dom.clone());
        let before = *registers;
        let outcome = general_protection(&*host, &dom, &mut guest.vcpu, registers, code);
        if outcome != Outcome::Done {
            assert_eq!(*registers, before, "what is refused changes nothing");
        }
        self.world.check();
        outcome
    }

    fn words(&self, at: u32, count: usize) -> Vec<u32> {
        let mut bytes = alloc::vec![0; 4 * count];
        self.world.guests[1].run();
        self.world.host.hw.copy_from_guest(GuestVirt(at.into()), &mut bytes).expect("mapped");
        bytes.chunks(4).map(|word| u32::from_le_bytes(word.try_into().expect("four"))).collect()
    }
}

/// `lcall selector, 0`.
fn lcall(selector: Selector) -> [u8; 7] {
    let [low, high] = selector.0.to_le_bytes();
    [0x9a, 0, 0, 0, 0, low, high]
}

fn ljmp(selector: Selector) -> [u8; 7] {
    let mut code = lcall(selector);
    code[0] = 0xea;
    code
}

fn code_of(selector: Selector) -> u32 {
    (selector.0 & !3).into()
}

const ENTRY: u32 = 0xc012_3456;

#[test]
fn an_application_calls_its_kernel() {
    for parameters in [0u32, 1, 2, 31] {
        let mut scene = Scene::new();
        scene.install(GATE, gate(selector(CODE1, 1).0, ENTRY, 3, parameters.into()));
        let stack: Vec<u32> = (100..140).collect();
        let mut registers = scene.caller(3, &lcall(selector(GATE, 3)), &stack);
        let before = registers;
        assert_eq!(scene.attempt(&mut registers, code_of(selector(GATE, 3))), Outcome::Done);
        let top = scene.world.guests[1].va(KERNEL_STACK).offset(4096).0 as u32;
        let sp = top - 4 * (4 + parameters);
        let mut general = before.general;
        general[ESP] = sp;
        let data = before.data;
        let expected = Registers { general, ip: ENTRY, cs: selector(CODE1, 1), ss: selector(DATA1, 1), data };
        assert_eq!(registers, expected);
        let mut frame = alloc::vec![before.ip + 7, before.cs.0.into()];
        frame.extend(&stack[..parameters as usize]);
        frame.extend([before.general[ESP], before.ss.0.into()]);
        assert_eq!(scene.words(sp, frame.len()), frame);
    }
}

#[test]
fn a_call_through_memory() {
    let mut scene = Scene::new();
    scene.install(GATE, gate(selector(CODE1, 1).0, ENTRY, 3, 0));
    // lcall *4(%esp), which skips a word; the offset there is ignored.
    let stack = [1, 0xdead_beef, selector(GATE, 3).0.into()];
    let mut registers = scene.caller(3, &[0xff, 0x5c, 0x24, 4], &stack);
    let back = registers.ip + 4;
    assert_eq!(scene.attempt(&mut registers, code_of(selector(GATE, 3))), Outcome::Done);
    assert_eq!(scene.words(registers.general[ESP], 1), [back]);
}

#[test]
fn of_a_narrow_stacks_pointer_half_counts() {
    let mut scene = Scene::new();
    scene.install(GATE, gate(selector(CODE1, 1).0, ENTRY, 3, 1));
    let mut registers = scene.caller(3, &lcall(selector(GATE, 3)), &[77]);
    registers.ss = selector(NARROW3, 3);
    registers.general[ESP] = registers.general[ESP] & 0xffff | 0xabcd_0000;
    let before = registers;
    assert_eq!(scene.attempt(&mut registers, code_of(selector(GATE, 3))), Outcome::Done);
    let frame = scene.words(registers.general[ESP], 5);
    assert_eq!(frame[2..], [77, before.general[ESP], before.ss.0.into()]);
    // The same within a ring: the other half stays.
    scene.install(GATE, gate(selector(CONFORMING1, 1).0, ENTRY, 3, 0));
    let mut registers = before;
    assert_eq!(scene.attempt(&mut registers, code_of(selector(GATE, 3))), Outcome::Done);
    assert_eq!(registers.general[ESP], before.general[ESP] - 8);
}

#[test]
fn within_a_ring_the_stack_stays() {
    let mut scene = Scene::new();
    scene.install(GATE, gate(selector(CODE1, 1).0, ENTRY, 1, 5));
    let mut registers = scene.caller(1, &lcall(selector(GATE, 1)), &[]);
    let before = registers;
    assert_eq!(scene.attempt(&mut registers, code_of(selector(GATE, 0))), Outcome::Done);
    assert_eq!((registers.cs, registers.ss, registers.ip), (selector(CODE1, 1), before.ss, ENTRY));
    assert_eq!(registers.general[ESP], before.general[ESP] - 8, "and no parameter is copied");
    assert_eq!(scene.words(registers.general[ESP], 2), [before.ip + 7, before.cs.0.into()]);
    // A jump leaves nothing behind at all.
    let mut registers = scene.caller(1, &ljmp(selector(GATE, 1)), &[]);
    let before = registers;
    assert_eq!(scene.attempt(&mut registers, code_of(selector(GATE, 0))), Outcome::Done);
    assert_eq!(registers, Registers { ip: ENTRY, cs: selector(CODE1, 1), ..before });
}

#[test]
fn conforming_code_runs_in_the_callers_ring() {
    for code in [lcall(selector(GATE, 3)), ljmp(selector(GATE, 3))] {
        let mut scene = Scene::new();
        scene.install(GATE, gate(selector(CONFORMING1, 1).0, ENTRY, 3, 3));
        let mut registers = scene.caller(3, &code, &[]);
        let ss = registers.ss;
        assert_eq!(scene.attempt(&mut registers, code_of(selector(GATE, 3))), Outcome::Done);
        assert_eq!((registers.cs, registers.ss, registers.ip), (selector(CONFORMING1, 3), ss, ENTRY));
    }
}

#[test]
fn what_the_rules_refuse_faults_as_it_should() {
    let named = selector(GATE, 3);
    let cases = [
        // The gate is for ring 1.
        (gate(selector(CODE1, 1).0, ENTRY, 1, 0), lcall(named), PROTECTION, named),
        (gate(selector(CODE1, 1).0, ENTRY, 2, 0), lcall(named), PROTECTION, named),
        // A jump does not change rings.
        (gate(selector(CODE1, 1).0, ENTRY, 3, 0), ljmp(named), PROTECTION, selector(CODE1, 1)),
        // The target is data, nothing, beyond the table, or not there.
        (gate(selector(DATA1, 1).0, ENTRY, 3, 0), lcall(named), PROTECTION, selector(DATA1, 1)),
        (gate(selector(100, 1).0, ENTRY, 3, 0), lcall(named), PROTECTION, selector(100, 1)),
        (gate(selector(600, 1).0, ENTRY, 3, 0), lcall(named), PROTECTION, selector(600, 1)),
        (gate(selector(GATE, 1).0, ENTRY, 3, 0), lcall(named), PROTECTION, selector(GATE, 1)),
        (gate(selector(ABSENT1, 1).0, ENTRY, 3, 0), lcall(named), NOT_PRESENT, selector(ABSENT1, 1)),
        (gate(1, ENTRY, 3, 0), lcall(named), PROTECTION, Selector::NULL),
        // The entry lies beyond its segment.
        (gate(selector(SMALL1, 1).0, 0x1000, 3, 0), lcall(named), PROTECTION, Selector::NULL),
        // Ring 2 has no stack.
        (gate(selector(CODE2, 1).0, ENTRY, 3, 0), lcall(named), INVALID_TSS, Selector::NULL),
    ];
    for (raw, code, vector, whose) in cases {
        let mut scene = Scene::new();
        scene.install(GATE, raw);
        let mut registers = scene.caller(3, &code, &[]);
        let outcome = scene.attempt(&mut registers, code_of(named));
        assert_eq!(outcome, fault(vector, whose), "{raw:#x} {code:x?}");
    }
    // A selector that asks for less than its bearer has.
    let mut scene = Scene::new();
    scene.install(GATE, gate(selector(CODE1, 1).0, ENTRY, 1, 0));
    let mut registers = scene.caller(1, &lcall(selector(GATE, 3)), &[]);
    assert_eq!(scene.attempt(&mut registers, code_of(named)), fault(PROTECTION, named));
}

#[test]
fn stacks_that_cannot_be_had() {
    let named = selector(GATE, 3);
    let case = |ss: Selector, sp: u64, prepare: fn(&mut Scene)| {
        let mut scene = Scene::new();
        scene.install(GATE, gate(selector(CODE1, 1).0, ENTRY, 3, 2));
        scene.world.guest(1).vcpu.set_kernel_stack(ss, GuestVirt(sp));
        prepare(&mut scene);
        let mut registers = scene.caller(3, &lcall(named), &[1, 2, 3]);
        scene.attempt(&mut registers, code_of(named))
    };
    let region = Scene::new().world.guests[1].va(KERNEL_STACK).0;
    let good = selector(DATA1, 1);
    let nothing = |_: &mut Scene| ();
    assert_eq!(case(Selector(0), region + 4096, nothing), fault(INVALID_TSS, Selector::NULL));
    assert_eq!(case(selector(DATA1, 3), region + 4096, nothing), fault(INVALID_TSS, good), "another ring's selector");
    assert_eq!(case(selector(DATA3, 1), region + 4096, nothing), fault(INVALID_TSS, selector(DATA3, 1)), "segment");
    assert_eq!(case(selector(CODE1, 1), region + 4096, nothing), fault(INVALID_TSS, selector(CODE1, 1)), "code");
    let absent = |scene: &mut Scene| scene.install(DATA1, flat(0x33));
    assert_eq!(case(good, region + 4096, absent), fault(STACK, good), "not there");
    let small = |scene: &mut Scene| scene.install(DATA1, 0x0040_b300_0000_00ff);
    assert_eq!(case(good, 0x100 + 8, small), fault(STACK, good), "beyond its limit");
    // Pages: of the kernel's stack, and of parameters that the caller could not read itself.
    let write = Access { write: true, user: false };
    assert_eq!(
        case(good, 0x2000, nothing),
        Outcome::PageFault { at: GuestVirt(0x2000 - 24), access: write },
        "not mapped"
    );
    let hypervisor = case(good, 0xfc00_1000, nothing);
    assert_eq!(hypervisor, Outcome::PageFault { at: GuestVirt(0xfc00_1000 - 24), access: write });
    let mut scene = Scene::new();
    scene.install(GATE, gate(selector(CODE1, 1).0, ENTRY, 3, 2));
    let mut registers = scene.caller(3, &lcall(named), &[]);
    let secret = scene.world.guests[1].va(KERNEL_STACK).0;
    registers.general[ESP] = secret as u32;
    let read = Access { write: false, user: true };
    let outcome = scene.attempt(&mut registers, code_of(named));
    assert_eq!(
        outcome,
        Outcome::PageFault { at: GuestVirt(secret), access: read },
        "the kernel's memory as parameters"
    );
    // From the last word of a page that is the caller's into one that is not.
    let edge = scene.world.guests[1].va(KERNEL_STACK).0 - 4;
    registers.general[ESP] = edge as u32;
    assert_eq!(
        scene.attempt(&mut registers, code_of(named)),
        Outcome::PageFault { at: GuestVirt(secret), access: read }
    );
}

#[test]
fn what_is_no_transfer_through_a_gate_is_the_guests() {
    let named = selector(GATE, 3);
    let mut scene = Scene::new();
    scene.install(GATE, gate(selector(CODE1, 1).0, ENTRY, 3, 0));
    // mov %eax,%ds names the gate too; so does an interrupt's number, or an external event; other selectors are no
    // gates.
    let mut registers = scene.caller(3, &[0x8e, 0xd8], &[]);
    assert_eq!(scene.attempt(&mut registers, code_of(named)), Outcome::Other);
    let mut registers = scene.caller(3, &lcall(named), &[]);
    for code in [0, 1, code_of(named) | 1, code_of(named) | 2, code_of(selector(CODE1, 0)), 0x1_0000 | code_of(named)] {
        assert_eq!(scene.attempt(&mut registers, code), Outcome::Other, "{code:#x}");
    }
    let mut registers = scene.caller(3, &lcall(selector(CODE3, 3)), &[]);
    assert_eq!(scene.attempt(&mut registers, code_of(named)), Outcome::Other, "another selector");
    registers.ip = 0x1000;
    assert_eq!(scene.attempt(&mut registers, code_of(named)), Outcome::Other, "code that is not there");
    registers.cs = selector(300, 3);
    assert_eq!(scene.attempt(&mut registers, code_of(named)), Outcome::Other, "nor its segment");
}

proptest! {
    /// Whatever the gate and its target are: what is entered is code, of a ring that the caller may enter in this way.
    #[test]
    fn only_what_the_rules_allow_is_entered(
        ring in 1..4u8,
        rpl in 0..4u16,
        dpl in 1..4u8,
        target in prop_oneof![any::<u64>(), any::<u64>().prop_map(|raw| raw | 0x98 << 40)],
        jump in any::<bool>(),
        offset in prop_oneof![Just(0), any::<u32>()],
    ) {
        let Ok(target) = descriptor::check(Arch::X86_32, target) else { return Ok(()) };
        let gate = CallGate { target: Selector(0x11), offset, parameters: 0, dpl };
        let kind = if jump { Kind::Jump } else { Kind::Call };
        if let Ok(entered) = enter(kind, selector(GATE, rpl), &gate, Some(target), ring) {
            let (target_ring, conforming) = ((target >> 45 & 3) as u8, target >> 42 & 1 == 1);
            prop_assert!(ring <= dpl && rpl <= u16::from(dpl));
            prop_assert!(target >> 43 & 3 == 3 && target >> 47 & 1 == 1, "present code");
            prop_assert!(target_ring >= 1 && target_ring <= ring && target >> 53 & 1 == 0);
            prop_assert!(offset <= descriptor::limit(target));
            let expected = if conforming || target_ring == ring { Ring::Same } else { Ring::Inner(target_ring) };
            prop_assert_eq!(entered, expected);
            prop_assert!(!jump || expected == Ring::Same);
        }
    }
}
