//! Buffers as a reader of either architecture finds them.

use super::*;
use crate::sim::SimMachine;
use proxenos_abi::zerocopy::FromBytes;
use proxenos_abi::{GuestArch, GuestWord};

const FIRST: Mfn = Mfn(3);
const CPUS: u32 = 3;
const PAGES: u32 = 2;

fn buffers(machine: &SimMachine, reader: Arch) -> TraceBuffers {
    TraceBuffers::new(machine, FIRST, CPUS, PAGES, reader)
}

/// A buffer's head, as its reader sees it: data, size, head.
fn head<A: GuestArch>(machine: &SimMachine, cpu: u32) -> (u64, u64, u64) {
    let mut bytes = [0; 40];
    let bytes = &mut bytes[..size_of::<TraceBuffer<A>>()];
    machine.read(MachineAddr(FIRST.addr().0 + u64::from(cpu * PAGES) * 4096), bytes);
    let buffer = TraceBuffer::<A>::read_from_bytes(bytes).expect("as many bytes");
    let (data, size, head) = (buffer.data, buffer.size, buffer.head);
    (data.to_u64(), size.to_u64(), head.to_u64())
}

fn record(machine: &SimMachine, data: u64, index: u64) -> TraceRecord {
    let mut bytes = [0; 32];
    machine.read(MachineAddr(data + 32 * index), &mut bytes);
    TraceRecord::read_from_bytes(&bytes).expect("as many bytes")
}

fn follow<A: GuestArch>(reader: Arch, header: u64) {
    let machine = SimMachine::new(16);
    let buffers = buffers(&machine, reader);
    assert_eq!((buffers.address(), buffers.bytes_each()), (FIRST.addr(), 8192));
    let capacity = (8192 - header) / 32;
    for cpu in 0..CPUS {
        let at = FIRST.addr().0 + u64::from(cpu) * 8192;
        assert_eq!(head::<A>(&machine, cpu), (at + header, capacity, 0), "CPU {cpu}");
    }
    // Three times around, followed by a reader that looks every few records.
    let (data, ..) = head::<A>(&machine, 1);
    let mut read = 0;
    for number in 0..3 * capacity {
        let event = Event::Switched { to: DomId(number as u16) };
        buffers.record(&machine, 1, 1_000 + number, event);
        if number % 7 == 0 || number + 1 == 3 * capacity {
            while read < head::<A>(&machine, 1).2 {
                let found = record(&machine, data, read % capacity);
                let expected =
                    TraceRecord { cycles: 1_000 + read, event: 0x0001_0009, d1: read as u32, ..Default::default() };
                assert_eq!(found, expected);
                read += 1;
            }
        }
    }
    assert_eq!(read, 3 * capacity);
    // Nobody else's buffer has changed, nor what lies around them.
    for cpu in [0, 2] {
        let (data, _, count) = head::<A>(&machine, cpu);
        assert_eq!(count, 0);
        assert!((0..capacity).all(|index| record(&machine, data, index) == TraceRecord::default()), "CPU {cpu}");
    }
    assert!((0..3 * 4096).step_by(8).all(|at| machine.load64(MachineAddr(at)) == 0));
    assert!((9 * 4096..16 * 4096).step_by(8).all(|at| machine.load64(MachineAddr(at)) == 0));
}

#[test]
fn readers_of_both_architectures_follow_the_head() {
    follow::<X86_32>(Arch::X86_32, 20);
    follow::<X86_64>(Arch::X86_64, 40);
}

#[test]
fn a_record_is_there_before_it_is_counted() {
    let machine = SimMachine::new(16);
    let buffers = buffers(&machine, Arch::X86_64);
    let (data, ..) = head::<X86_64>(&machine, 0);
    // What guests write to the head is not believed.
    machine.store64(MachineAddr(FIRST.addr().0), 0);
    machine.store64(MachineAddr(FIRST.addr().0 + 16), 77);
    buffers.record(&machine, 0, 5, Event::Woken(DomId(4)));
    assert_eq!(head::<X86_64>(&machine, 0).2, 1);
    assert_eq!((record(&machine, data, 0).cycles, record(&machine, data, 0).d1), (5, 4));
    // A CPU that has none.
    buffers.record(&machine, CPUS, 6, Event::Woken(DomId(4)));
    assert_eq!(record(&machine, data, 1), TraceRecord::default());
}

#[test]
fn numbers_are_those_of_the_tools_of_the_time() {
    let dom = DomId(7);
    let words = [1, 2, 3, 4];
    for (event, number, data) in [
        (Event::DomainAdded(dom), 0x10000, [7, 0, 0, 0, 0]),
        (Event::DomainRemoved(dom), 0x10001, [7, 0, 0, 0, 0]),
        (Event::Woken(dom), 0x10002, [7, 0, 0, 0, 0]),
        (Event::Blocked(dom), 0x10003, [7, 0, 0, 0, 0]),
        (Event::Yielded(dom), 0x10004, [7, 0, 0, 0, 0]),
        (Event::SchedulerControlled, 0x10006, [0; 5]),
        (Event::DomainAdjusted(dom), 0x10007, [7, 0, 0, 0, 0]),
        (Event::Switched { to: IDLE }, 0x10009, [0x7fff, 0, 0, 0, 0]),
        (Event::ControlBegun { command: 12, words }, 0x2000c, [0, 1, 2, 3, 4]),
        (Event::ControlEnded { command: 12, result: 9, words }, 0x3000c, [9, 1, 2, 3, 4]),
        (
            Event::Hypercall { caller: dom, number: 20, arguments: [1 << 40 | 2, 3 << 32] },
            0x10_0014,
            [7, 2, 1 << 8, 0, 3],
        ),
        (Event::PageFault { domain: dom, code: 6, address: 5 << 32 | 9, ip: 8 }, 0x11_0000, [7, 6, 9, 5, 8]),
    ] {
        assert_eq!(event.encode(), (number, data), "{event:?}");
    }
}
