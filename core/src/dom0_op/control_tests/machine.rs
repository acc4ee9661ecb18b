//! PHYSINFO, SETTIME, READCONSOLE, GETTBUFS, MSR.

use super::*;
use crate::control::DateAtZero;
use crate::frame_alloc::Zone;
use crate::machine::{Clock, MachineMemory};
use crate::sim_hw::KNOWN_MSR;
use proxenos_abi::dom0_ops::args::{GetTbufs, Msr, PhysInfo, ReadConsole, SetTime};
use proxenos_abi::{GuestArch, GuestWord, MachineAddr, Padded, X86_32, X86_64};

/// A test of a request whose layout is the caller's.
macro_rules! by_caller {
    ($world:ident, $test:ident) => {
        match $world.guests[0].dom.arch {
            Arch::X86_32 => $test::<X86_32>($world),
            Arch::X86_64 => $test::<X86_64>($world),
        }
    };
}

fn word<A: GuestArch>(value: u64) -> Padded<A> {
    Padded::new(A::Word::from_u64_truncating(value))
}

#[test]
fn the_machine_is_described() {
    fn test<A: GuestArch>(world: &mut World) {
        let (result, info) = world.control_op(PhysInfo::<A>::default());
        assert_eq!(result, OK);
        assert_eq!(({ info.ht_per_core }, { info.cores }, { info.cpu_khz }), (1, 2, 2_400_000));
        assert_eq!({ info.total_pages.value }.to_u64(), world.host.frames.len());
        assert_eq!({ info.free_pages.value }.to_u64(), world.host.alloc.lock().free_frames(Zone::Any));
    }
    everywhere(|world| by_caller!(world, test));
}

#[test]
fn the_date_is_set() {
    everywhere(|world| {
        let date = || *world.host.hw.controlled.date.lock();
        assert_eq!(date(), None);
        let now = world.host.hw.now_ns();
        let at = |secs, usecs, system_time| SetTime { secs, usecs, system_time };
        assert_eq!(world.control_op(at(1_100_000_000, 2_500_000, now)).0, OK);
        let expected = 1_100_000_002_500_000_000 - now as i64;
        assert_eq!(*world.host.hw.controlled.date.lock(), Some(DateAtZero(expected)));
        // The caller's page has it, in seconds and microseconds, with versions that agree.
        let page = world.guests[0].dom.shared_info.addr().0;
        let field = |offset: u64| world.host.hw.load32(MachineAddr(page + offset));
        assert_eq!(field(272), field(276));
        assert_eq!(u64::from(field(296)), (expected as u64) / 1_000_000_000);
        // A time before 1970 now, or after what there are seconds for, changes nothing.
        let refused = [at(0, 0, now + 1_000_000_000_000), at(0, 0, u64::MAX), at(u32::MAX, 1_000_000, 0)];
        for argument in refused {
            assert_eq!(world.control_op(argument).0, error(Errno::EINVAL), "{argument:?}");
        }
        assert_eq!(*world.host.hw.controlled.date.lock(), Some(DateAtZero(expected)));
    });
}

#[test]
fn the_log_is_read_and_forgotten() {
    fn test<A: GuestArch>(world: &mut World) {
        let text: Vec<u8> = (0..1300_u32).map(|at| at as u8).collect();
        *world.host.hw.controlled.log.lock() = (text.clone(), 100);
        let to = world.guests[0].va(DATA).0;
        let read = |to: u64, count: u32, cmd: u32| ReadConsole::<A> { text: word(to), count, cmd };
        let start = || world.host.hw.controlled.log.lock().1;
        assert_eq!(start(), 100);
        // All that there is; no more than asked for; nothing is forgotten by it.
        assert_eq!(world.control_op(read(to, 4000, 0)).0, 1200);
        assert_eq!(world.data(1200), text[100..]);
        assert_eq!(world.control_op(read(to, 7, 2)).0, 7);
        assert_eq!(world.control_op(read(to, 0, 0)).0, 0);
        // Where it cannot be written to nothing is forgotten either.
        for bad in [world.guests[0].va(FRAMES + 3).0, world.guests[0].va(TOP).0, u64::MAX] {
            assert_eq!(world.control_op(read(bad, 600, 1)).0, error(Errno::EFAULT));
        }
        assert_eq!(world.host.hw.controlled.log.lock().1, 100);
        assert_eq!(world.control_op(read(to, 1000, 1)).0, 1000);
        assert_eq!(world.host.hw.controlled.log.lock().1, 1300, "what was not read is forgotten too");
        assert_eq!(world.control_op(read(to, 1000, 1)).0, 0);
    }
    everywhere(|world| by_caller!(world, test));
}

#[test]
fn trace_buffers_are_found_by_who_can_read_them() {
    fn test<A: GuestArch>(world: &mut World) {
        let answer = |world: &mut World| {
            let (result, found) = world.control_op(GetTbufs::<A> { mach_addr: word(5), size: 5 });
            (result, { found.mach_addr.value }.to_u64(), { found.size })
        };
        assert_eq!(answer(world), (error(Errno::ENODATA), 0, 0));
        for reader in [Arch::X86_32, Arch::X86_64] {
            *world.host.hw.controlled.trace_reader.lock() = Some(reader);
            let expected = if reader == world.guests[0].dom.arch {
                (OK, 0x12_3000, 0xa000)
            } else {
                (error(Errno::ENODATA), 0, 0)
            };
            assert_eq!(answer(world), expected);
        }
    }
    everywhere(|world| by_caller!(world, test));
}

#[test]
fn registers_of_cpus_are_read_and_written() {
    everywhere(|world| {
        let known = KNOWN_MSR.0;
        let msr = |write, cpu_mask, msr, value: u64| Msr {
            write,
            cpu_mask,
            msr,
            in1: value as u32,
            in2: (value >> 32) as u32,
            out1: 0xaa,
            out2: 0xaa,
        };
        let value = |answer: (u64, Msr)| (answer.0, u64::from(answer.1.out2) << 32 | u64::from(answer.1.out1));
        // The caller's CPU, which is 1, comes first; bits of CPUs that do not exist mean nothing.
        for (mask, expected) in [(1, 0), (2, 1), (3, 1), (!0, 1), (!2, 0)] {
            assert_eq!(value(world.control_op(msr(0, mask, known, 0))), (OK, expected), "{mask:#x}");
        }
        let untouched = 0xaa_0000_00aa;
        for mask in [0, 4, 0x8000_0000] {
            assert_eq!(value(world.control_op(msr(0, mask, known, 0))), (error(Errno::EINVAL), untouched), "{mask:#x}");
            assert_eq!(world.control_op(msr(1, mask, known, 7)).0, error(Errno::EINVAL));
        }
        assert_eq!(world.control_op(msr(0, 3, known + 1, 0)).0, error(Errno::EINVAL), "no such register");
        assert_eq!(world.control_op(msr(1, 3, known + 1, 0)).0, error(Errno::EINVAL));
        assert_eq!(world.control_op(msr(1, 3, 0xc000_0082, 0)).0, error(Errno::EPERM), "the hypervisor's own");
        assert_eq!(world.control_op(msr(1, 1, known, 5 << 32 | 6)).0, OK);
        assert_eq!(value(world.control_op(msr(0, 1, known, 0))), (OK, 5 << 32 | 6));
        assert_eq!(value(world.control_op(msr(0, 2, known, 0))), (OK, 1), "the other CPU's is what it was");
        assert_eq!(world.control_op(msr(77, 3, known, 9)).0, OK);
        assert_eq!(value(world.control_op(msr(0, 2, known, 0))), (OK, 9));
    });
}
