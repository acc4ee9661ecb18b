//! SHADOW_CONTROL and DEBUG: a domain's memory and registers.

use super::*;
use crate::addr::GuestVirt;
use crate::dom0_op::debug::Status;
use crate::machine::MachineMemory;
use crate::others::VirtualCpus;
use crate::sim_hw::Mode;
use proxenos_abi::dom0_ops::args::{DebugOp, ShadowControl, ShadowControlOp, ShadowControlStats};
use proxenos_abi::{GuestArch, GuestWord, Padded, X86_32, X86_64};

fn word<A: GuestArch>(value: u64) -> Padded<A> {
    Padded::new(A::Word::from_u64_truncating(value))
}

/// The subject writes to a page of its own.
fn store(world: &World, page: usize, value: u64) {
    let guest = &world.guests[1];
    guest.run();
    world.host.hw.guest_store(guest.va(page), value, Mode::Kernel).expect("writable");
}

#[test]
fn what_a_domain_writes_is_recorded() {
    fn test<A: GuestArch>(world: &mut World) {
        let to = world.guests[0].va(DATA).0;
        let request = |op: ShadowControlOp, to: u64, pages: u64| ShadowControl::<A> {
            domain: SUBJECT,
            pad: 0,
            op: op.raw(),
            dirty_bitmap: word(to),
            pages: word(pages),
            stats: ShadowControlStats { dirty_net_count: 9, ..ShadowControlStats::default() },
        };
        use ShadowControlOp::*;
        let room = |op| request(op, to, 64);
        for op in [Peek, Clean, Flush, EnableTranslate] {
            assert_eq!(world.control_op(room(op)).0, error(Errno::EINVAL), "{op:?}: it is not watched");
        }
        assert_eq!(world.control_op(room(Off)).0, OK, "nothing to turn off");
        assert_eq!(world.control_op(room(EnableLogdirty)).0, OK);
        world.guests[1].run_its_tables();
        store(world, DATA, 1);
        store(world, DATA + 2, 1);
        let recorded = |world: &mut World, op| {
            let (result, answer) = world.control_op(room(op));
            assert_eq!(result, OK, "{op:?}");
            assert_eq!({ answer.pages.value }.to_u64(), FRAMES as u64);
            let bits = world.data(3).iter().rev().fold(0_u32, |all, &byte| all << 8 | u32::from(byte));
            let stats = answer.stats;
            assert_eq!({ stats.dirty_net_count }, 0);
            (bits, { stats.dirty_count })
        };
        let both = 1 << DATA | 1 << (DATA + 2);
        assert_eq!(recorded(world, Peek), (both, 2));
        // Without room, or without a bitmap, the counts are told; and CLEAN begins counting anew.
        for bad in [request(Peek, to, FRAMES as u64 - 1), request(Peek, 0, 64)] {
            let (result, answer) = world.control_op(bad);
            let stats = answer.stats;
            assert_eq!((result, { stats.dirty_count }), (error(Errno::EINVAL), 2));
        }
        // Where the bitmap cannot be written to nothing is lost.
        let (unmapped, read_only) = (world.guests[0].va(FRAMES + 3).0, world.guests[0].va(TOP).0);
        for bad in [unmapped, read_only] {
            assert_eq!(world.control_op(request(Clean, bad, 64)).0, error(Errno::EINVAL));
        }
        assert_eq!(recorded(world, Clean), (both, 2));
        assert_eq!(recorded(world, Peek), (0, 0));
        world.guests[1].run_its_tables();
        store(world, DATA + 2, 5);
        assert_eq!(recorded(world, Clean).0, 1 << (DATA + 2));
        assert_eq!(world.control_op(room(Flush)).0, OK);
        world.guests[1].run_its_tables();
        store(world, DATA + 3, 5);
        assert_eq!(recorded(world, Peek).0, 1 << (DATA + 3));
        for (domain, errno) in [(NOBODY, Errno::ESRCH), (ONESELF, Errno::EINVAL)] {
            assert_eq!(world.control_op(ShadowControl { domain, ..room(EnableTest) }).0, error(errno));
        }
        assert_eq!(world.control_op(ShadowControl { op: 77, ..room(Off) }).0, error(Errno::EINVAL));
        assert_eq!(world.control_op(room(Off)).0, OK);
        world.guests[1].run_its_tables();
        store(world, DATA + 4, 5);
        assert_eq!(world.control_op(room(Peek)).0, error(Errno::EINVAL));
    }
    everywhere(|world| match world.guests[0].dom.arch {
        Arch::X86_32 => test::<X86_32>(world),
        Arch::X86_64 => test::<X86_64>(world),
    });
}

impl Guest {
    /// Its CPU comes back to it: it walks what it is to walk now.
    fn run_its_tables(&self) {
        self.run();
        let root = self.dom.roots.of(self.vcpu.mode).expect("it has a base");
        crate::machine::CpuTables::load_root(&self.host.hw, root);
    }
}

fn request(opcode: u8, at: u64, in2: u32, in3: u32) -> DebugOp {
    let (in1, in4) = (at as u32, (at >> 32) as u32);
    DebugOp { domain: SUBJECT, opcode, in1, in2, in3, in4, status: 77, ..DebugOp::default() }
}

/// A debugger's request: its status, and what it gave.
fn ask(world: &mut World, request: DebugOp) -> (u32, u64) {
    let (result, answer) = world.control_op(request);
    assert_eq!(result, OK);
    (answer.status, u64::from(answer.out2) << 32 | u64::from(answer.out1))
}

const DONE: u32 = Status::Done as u32;
const UNKNOWN: u32 = Status::Unknown as u32;
const NO_MEMORY: u32 = Status::NoMemory as u32;

#[test]
fn memory_is_peeked_and_poked() {
    everywhere(|world| {
        let va = |world: &World, page: usize, offset: u64| world.guests[1].va(page).offset(offset).0;
        store(world, DATA, 0x1122_3344);
        let at = va(world, DATA, 0);
        assert_eq!(ask(world, request(b'r', at, 4, 0)), (DONE, 0x1122_3344));
        assert_eq!(ask(world, request(b'w', at + 1, 2, 0xffff_aabb)), (DONE, 0));
        assert_eq!(ask(world, request(b'r', at, 8, 0)).1 as u32, 0x11aa_bb44);
        // A page that the domain only reads is written all the same; its tables are not, and nobody else's frames.
        let (spare, table) = (va(world, SPARE, 0), va(world, L1, 0));
        assert_eq!(ask(world, request(b'w', spare, 4, 5)).0, DONE);
        assert_eq!(world.host.hw.load32(world.guests[1].frames[SPARE].addr()), 5);
        assert_eq!(ask(world, request(b'r', table, 4, 0)).0, DONE);
        assert_eq!(ask(world, request(b'w', table, 4, 0)).0, NO_MEMORY);
        // Across pages, whole or not at all.
        let edge = va(world, DATA, 4094);
        assert_eq!(ask(world, request(b'w', edge, 4, 0xa1b2_c3d4)).0, DONE);
        assert_eq!(ask(world, request(b'r', edge, 4, 0)), (DONE, 0xa1b2_c3d4));
        let torn = va(world, FRAMES - 1, 4094);
        let shared = va(world, FRAMES, 4094);
        assert_eq!(ask(world, request(b'r', torn, 4, 0)).0, DONE, "the page it shares with us comes behind");
        assert_eq!(ask(world, request(b'w', shared, 4, !0)).0, NO_MEMORY);
        assert_eq!(ask(world, request(b'r', shared, 2, 0)), (DONE, 0));
        for bad in [0, u64::MAX, u64::MAX - 2, 0xffff_8000_0000_0000, 1 << 32, 0xffff_fffe] {
            assert_eq!(ask(world, request(b'r', bad, 4, 0)).0, NO_MEMORY, "{bad:#x}");
            assert_eq!(ask(world, request(b'w', bad, 4, 0)).0, NO_MEMORY, "{bad:#x}");
        }
        for bad in
            [request(b'r', at, 4097, 0), request(b'w', at, 0, 0), request(b'w', at, 5, 0), request(b'?', at, 1, 0)]
        {
            assert_eq!(ask(world, bad).0, UNKNOWN);
        }
        assert_eq!(ask(world, request(b'r', at, 4096, 0)).0, DONE);
        let _ = GuestVirt(at);
    });
}

#[test]
fn registers_are_peeked_and_poked() {
    everywhere(|world| {
        let is_wide = world.guests[1].dom.arch == Arch::X86_64;
        let put = |number: u32, value: u64| DebugOp {
            in3: value as u32,
            in4: (value >> 32) as u32,
            ..request(b'p', number.into(), 0, 0)
        };
        for number in 0..17 {
            let exists = is_wide || !(7..15).contains(&number);
            let value = 0x1000 + u64::from(number);
            let expected = if exists { DONE } else { UNKNOWN };
            assert_eq!(ask(world, put(number, value)).0, expected, "{number}");
            if exists {
                assert_eq!(ask(world, request(b'g', number.into(), 0, 0)), (DONE, value));
            }
        }
        assert_eq!(ask(world, put(0, 1 << 40)).0, if is_wide { DONE } else { UNKNOWN });
        assert_eq!(ask(world, put(16, 1 << 47)).0, UNKNOWN, "no address of an instruction");
        assert_eq!(ask(world, put(17, 0x200)).0, UNKNOWN, "flags are not set");
        assert_eq!(ask(world, request(b'g', 17, 0, 0)).0, DONE);
        for number in [18, 99, u32::MAX] {
            assert_eq!(ask(world, request(b'g', number.into(), 0, 0)).0, UNKNOWN);
        }
        let ip = world.host.hw.with_stopped(&world.guests[1].dom, |stopped| stopped.state.registers.ip);
        assert_eq!(ip, Ok(0x1010));
    });
}

#[test]
fn a_debugger_stops_and_goes_on() {
    use crate::domain::RunState;
    everywhere(|world| {
        assert_eq!(ask(world, request(b's', 0, 0, 0)).0, DONE);
        assert!(world.guests[1].dom.run_state().contains(RunState::PAUSED));
        assert_eq!(ask(world, request(b'c', 0, 0, 0)).0, DONE);
        assert!(world.guests[1].dom.run_state().is_empty());
        for (domain, status) in [(NOBODY, Status::NoDomain), (ONESELF, Status::Oneself)] {
            for opcode in [b's', b'c', b'r', b'w', b'g', b'p', b'?'] {
                assert_eq!(ask(world, DebugOp { domain, ..request(opcode, 0, 1, 0) }).0, status as u32);
            }
        }
        // While it is busy elsewhere the request makes way, and is made again.
        world.host.hw.keep_running(SUBJECT, 3);
        assert_eq!(ask(world, request(b'g', 0, 0, 0)).0, DONE);
    });
}
