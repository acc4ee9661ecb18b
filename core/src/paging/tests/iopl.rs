//! The quick answer to `DOM0_IOPL` (`crate::dom0_op`): it must be what the way at length answers, and leave the same
//! rights, wherever the request lies and whatever it says.

use super::quick::at_length;
use super::world::*;
use crate::addr::{GuestVirt, MachineAddr};
use crate::domain::{Arch, Privileges};
use crate::hypercall::answer;
use crate::machine::MachineMemory;
use crate::paging::format::bits::RW;
use alloc::vec;
use proptest::prelude::*;
use proxenos_abi::dom0_ops::args::Iopl;
use proxenos_abi::dom0_ops::{Dom0Command, Dom0Op, Dom0Version};
use proxenos_abi::zerocopy::{FromBytes, IntoBytes};
use proxenos_abi::{DomId, Errno, Hypercall, X86_32, X86_64};

/// Bytes of a page.
const PAGE_SIZE: u64 = 4096;
/// The page that requests begin in; the next is mapped, or not.
const PAGE: usize = DATA + 3;
/// The command, and some that there are not.
const COMMANDS: [u32; 4] = [Dom0Command::Iopl.raw(), 0, 1, 0x10e];
/// Bytes of a request.
const SIZE: u64 = size_of::<Dom0Op>() as u64;

fn request(domain: DomId, iopl: u32) -> Dom0Op {
    let mut op = Dom0Op::new(Iopl { domain, iopl, ..Iopl::default() });
    op.interface_version = Dom0Version::V19.raw();
    op
}

/// Puts a request at an offset of the page, as far as it fits into this one and the next.
fn put(guest: &Guest, op: &Dom0Op, offset: u64) -> GuestVirt {
    for (byte, index) in op.as_bytes().iter().zip(offset..2 * PAGE_SIZE) {
        let frame = guest.frames[PAGE + (index / PAGE_SIZE) as usize];
        guest.host.hw.write(MachineAddr(frame.addr().0 + index % PAGE_SIZE), &[*byte]);
    }
    GuestVirt(guest.va(PAGE).0 + offset)
}

/// Makes the call by the quick answer alone.
fn quickly(guest: &mut Guest, at: GuestVirt) -> Option<u64> {
    guest.run();
    let args = [at.0, 0, 0, 0, 0, 0];
    let (host, dom) = (guest.host.clone(), guest.dom.clone());
    match dom.arch {
        Arch::X86_32 => answer::<X86_32, _>(&host, &dom, &mut guest.vcpu, Hypercall::Dom0Op, &args),
        Arch::X86_64 => answer::<X86_64, _>(&host, &dom, &mut guest.vcpu, Hypercall::Dom0Op, &args),
    }
}

#[test]
fn what_kernels_ask_for_is_answered_at_once() {
    for arch in [Arch::X86_32, Arch::X86_64] {
        for (domain, version) in [(DomId::SELF, Dom0Version::V19), (DomId(0), Dom0Version::V1A)] {
            let mut world = World::of(arch);
            let guest = world.guest(0);
            let mut op = request(domain, 3);
            op.interface_version = version.raw();
            let at = put(guest, &op, PAGE_SIZE - SIZE);
            let before = guest.vcpu.ports;
            assert_eq!(quickly(guest, at), Some(OK), "{arch:?}");
            assert_ne!(guest.vcpu.ports, before);
            assert_eq!(quickly(guest, GuestVirt(at.0 + 1)), None, "in two pages");
        }
    }
}

/// The first of some values, or another of them, or any at all that is above 2^16.
fn mostly(meant: &'static [u32]) -> impl Strategy<Value = u32> {
    prop_oneof![6 => Just(meant[0]), 4 => prop::sample::select(meant), 1 => 0x1_0000..=u32::MAX]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_quick_answer_is_the_one_at_length(
        privileges in prop::sample::select(vec![Privileges::all(), Privileges::CONTROL, Privileges::DEVICES, PLAIN]),
        wide: bool,
        requests in prop::collection::vec(
            (
                mostly(&COMMANDS),
                mostly(&[0xaaaa_0019, 0xaaaa_001a, 0xaaaa_0018, 0]),
                mostly(&[0x7ff0, 0, 1, 0x0001_7ff0, 9]),
                mostly(&[0, 1, 2, 3, 4, 7]),
                prop_oneof![0..PAGE_SIZE, PAGE_SIZE - SIZE - 4..PAGE_SIZE],
                0..8_u8,
            ),
            1..6,
        ),
    ) {
        let arch = if wide { Arch::X86_64 } else { Arch::X86_32 };
        let of = |privileges| World::new(&[(arch, privileges), (Arch::X86_32, PLAIN)]);
        let (mut quick, mut slow) = (of(privileges), of(privileges));
        for (command, version, domain, iopl, offset, place) in requests {
            let mut op = request(DomId(0), iopl);
            (op.cmd, op.interface_version) = (command, version);
            // The number has 16 bits, and two bytes behind it mean nothing.
            let mut bytes: [u8; SIZE as usize] = op.as_bytes().try_into().unwrap();
            bytes[8..12].copy_from_slice(&domain.to_le_bytes());
            let op = Dom0Op::read_from_bytes(&bytes).unwrap();
            let mut results = [0; 2];
            for (world, is_quick, result) in [(&mut quick, true, 0), (&mut slow, false, 1)] {
                let guest = world.guest(0);
                // The next page is there, or nothing is; or the request lies where no guest may look.
                let entry = if place & 1 == 0 { guest.entry(PAGE + 1, RW) } else { 0 };
                prop_assert_eq!(guest.remap(PAGE + 1, entry, 2), OK);
                let at = match place {
                    7 if wide => GuestVirt(0xffff_8000_0000_0000 + offset),
                    7 => GuestVirt(0xfc00_0000 + offset),
                    _ => put(guest, &op, offset),
                };
                let args = [at.0, 0, 0, 0, 0, 0];
                results[result] = match is_quick {
                    true => guest.call(Hypercall::Dom0Op, args),
                    false => at_length(guest, Hypercall::Dom0Op, args),
                };
            }
            prop_assert_eq!(results[0], results[1]);
            prop_assert!(privileges.contains(Privileges::CONTROL) || results[0] == error(Errno::EPERM));
            prop_assert_eq!(quick.guest(0).vcpu.ports, slow.guest(0).vcpu.ports);
            prop_assert_eq!(quick.guest(1).vcpu.ports, slow.guest(1).vcpu.ports);
            prop_assert_eq!(quick.snapshot(), slow.snapshot());
        }
    }
}
