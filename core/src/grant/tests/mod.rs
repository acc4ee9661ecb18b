//! Grants between the domains of a simulated machine: one that is privileged (0), one that maps ([`MAPPER`]), one that
//! grants ([`GRANTOR`]), of either architecture and mixed. All is judged by the audit and the simulated TLBs.

mod attacks;
mod ends;
mod map;
mod random;
mod setup;
mod transfer;
mod unmap;

use crate::addr::{DomId, MachineAddr, Mfn};
use crate::domain::Arch;
use crate::machine::{GuestMemory, MachineMemory};
use crate::paging::tests::world::*;
use alloc::vec::Vec;
use proxenos_abi::grant_table::SetupTable;
use proxenos_abi::grant_table::{
    GrantFlags, GrantMapFlags, GrantStatus, GrantTableCommand, MapGrantRef, UnmapGrantRef,
};
use proxenos_abi::zerocopy::{FromBytes, IntoBytes};
use proxenos_abi::{GrantRef, Hypercall, X86_64};

/// The domain that maps.
pub const MAPPER: usize = 1;
/// The domain that grants.
pub const GRANTOR: usize = 2;
/// A page of the region where nothing is.
pub const FREE_PAGE: usize = FRAMES + 4;

/// Access to be read, and to be written.
pub const RO: GrantFlags = GrantFlags::PERMIT_ACCESS.union(GrantFlags::READONLY);
pub const ACCESS: GrantFlags = GrantFlags::PERMIT_ACCESS;
/// What the hypervisor sets.
pub const READING: GrantFlags = GrantFlags::READING;
pub const BOTH: GrantFlags = GrantFlags::READING.union(GrantFlags::WRITING);

/// Ways to map.
pub const HOST: GrantMapFlags = GrantMapFlags::HOST_MAP;
pub const HOST_RO: GrantMapFlags = GrantMapFlags::HOST_MAP.union(GrantMapFlags::READONLY);
pub const DEVICE: GrantMapFlags = GrantMapFlags::DEVICE_MAP;
pub const DEVICE_RO: GrantMapFlags = GrantMapFlags::DEVICE_MAP.union(GrantMapFlags::READONLY);

/// Statuses, as they are in the fields.
pub const OKAY: i16 = GrantStatus::Okay as i16;
pub const GENERAL: i16 = GrantStatus::GeneralError as i16;
pub const BAD_DOMAIN: i16 = GrantStatus::BadDomain as i16;
pub const BAD_REF: i16 = GrantStatus::BadGrantRef as i16;
pub const NO_SPACE: i16 = GrantStatus::NoDeviceSpace as i16;

/// Runs a test where all domains are of one architecture, and where those that map and grant are of two.
#[track_caller]
pub fn everywhere(test: impl Fn(&mut World)) {
    use Arch::{X86_32, X86_64};
    for (mapper, grantor) in [(X86_32, X86_32), (X86_64, X86_64), (X86_32, X86_64), (X86_64, X86_32)] {
        let mut world = World::new(&[(mapper, PRIVILEGED), (mapper, PLAIN), (grantor, PLAIN)]);
        test(&mut world);
        world.check();
    }
}

impl World {
    /// The frame of a domain's grant table, set up if it is not yet.
    pub fn table(&mut self, who: usize) -> Mfn {
        let at = self.guests[who].va(ARGS).offset(64).0;
        let mut op = setup(DomId::SELF, 1, at);
        assert_eq!(self.guests[who].grants(GrantTableCommand::SetupTable, core::slice::from_mut(&mut op)), OK);
        assert_eq!({ op.status }, OKAY);
        let mut word = [0; 4];
        self.guests[who].run();
        self.host.hw.copy_from_guest(self.guests[who].va(ARGS).offset(64), &mut word).expect("mapped");
        Mfn(u32::from_le_bytes(word).into())
    }

    /// A domain writes an entry of its table.
    pub fn write_grant(&mut self, who: usize, grant: u16, flags: GrantFlags, to: usize, frame: u64) {
        let at = self.table(who).addr().0 + 8 * u64::from(grant);
        self.host.hw.store32(MachineAddr(at + 4), frame as u32);
        self.host.hw.store32(MachineAddr(at), u32::from(flags.bits()) | (to as u32) << 16);
    }

    /// The grantor grants a frame of its own to the mapper.
    pub fn grant(&mut self, grant: u16, flags: GrantFlags, pfn: usize) {
        let frame = self.guests[GRANTOR].frames[pfn].0;
        self.write_grant(GRANTOR, grant, flags, MAPPER, frame);
    }

    /// The flags that the grantor sees.
    pub fn flags(&mut self, grant: u16) -> GrantFlags {
        let at = self.table(GRANTOR).addr().0 + 8 * u64::from(grant);
        GrantFlags::from_bits_retain(self.host.hw.load32(MachineAddr(at)) as u16)
    }

    /// The mapper maps a grant of the grantor's at a page: the handle, or the status.
    pub fn map(&mut self, grant: u16, flags: GrantMapFlags, page: usize) -> i16 {
        let at = self.guests[MAPPER].va(page).0;
        let mut op = mapping(GRANTOR, grant, flags, at);
        assert_eq!(self.guests[MAPPER].grants(GrantTableCommand::MapGrantRef, core::slice::from_mut(&mut op)), OK);
        op.handle
    }

    /// As [`map`](Self::map), where it works.
    #[track_caller]
    pub fn mapped(&mut self, grant: u16, flags: GrantMapFlags, page: usize) -> u16 {
        let handle = self.map(grant, flags, page);
        assert!(handle >= 0, "status {handle}");
        self.check();
        handle as u16
    }

    /// As [`map`](Self::map), where it is refused: nothing but the status may change.
    #[track_caller]
    pub fn map_refused(&mut self, grant: u16, flags: GrantMapFlags, page: usize, status: i16) {
        let (flags_before, before) = (self.flags(grant % 512), self.snapshot());
        assert_eq!(self.map(grant, flags, page), status);
        assert_eq!(self.flags(grant % 512), flags_before, "the entry is as it was");
        assert!(self.snapshot() == before, "so is all else");
        self.check();
    }

    /// The mapper unmaps by address, device address (or 0) and handle: the status.
    pub fn unmap_by(&mut self, at: u64, device: u64, handle: u16) -> i16 {
        let mut op = unmapping(at, device, handle);
        assert_eq!(self.guests[MAPPER].grants(GrantTableCommand::UnmapGrantRef, core::slice::from_mut(&mut op)), OK);
        self.check();
        op.status
    }

    /// The mapper unmaps a page.
    pub fn unmap(&mut self, page: usize, handle: u16) -> i16 {
        self.unmap_by(self.guests[MAPPER].va(page).0, 0, handle)
    }

    /// References to a frame of the grantor's, and its type.
    pub fn counts(&self, pfn: usize) -> (u32, u32) {
        let info = self.host.frames.info(self.guests[GRANTOR].frames[pfn]).expect("RAM");
        (info.refs().count(), info.type_word().count())
    }
}

/// GNTTABOP_setup_table.
pub fn setup(dom: DomId, nr_frames: u16, list: u64) -> SetupTable<X86_64> {
    SetupTable {
        dom,
        nr_frames,
        status: 77,
        frame_list: proxenos_abi::arch::Padded::new(list),
        ..SetupTable::default()
    }
}

/// GNTTABOP_map_grant_ref.
pub fn mapping(dom: usize, grant: u16, flags: GrantMapFlags, at: u64) -> MapGrantRef<X86_64> {
    MapGrantRef {
        host_virt_addr: proxenos_abi::arch::Padded::new(at),
        dom: DomId(dom as u16),
        grant: GrantRef(grant),
        flags: flags.bits(),
        handle: 77,
        ..MapGrantRef::default()
    }
}

/// GNTTABOP_unmap_grant_ref.
pub fn unmapping(at: u64, device: u64, handle: u16) -> UnmapGrantRef<X86_64> {
    UnmapGrantRef {
        host_virt_addr: proxenos_abi::arch::Padded::new(at),
        dev_bus_addr: proxenos_abi::arch::Padded::new(device),
        handle,
        status: 77,
        pad: 0,
    }
}

impl Guest {
    /// `grant_table_op` on operations at the beginning of the arguments' page. (They look the same to both
    /// architectures.)
    pub fn grants<T: IntoBytes + FromBytes + proxenos_abi::zerocopy::Immutable>(
        &mut self,
        command: GrantTableCommand,
        ops: &mut [T],
    ) -> u64 {
        assert!(self.rescue(), "arguments can be passed");
        let at = self.va(ARGS);
        // More than a page of them goes on in the next.
        assert!(ops.as_bytes().len() <= 4096);
        self.run();
        self.host.hw.copy_to_guest(at, ops.as_bytes()).expect("mapped");
        let result = self.call(Hypercall::GrantTableOp, [command.raw().into(), at.0, ops.len() as u64, 0, 0, 0]);
        self.run();
        let mut bytes: Vec<u8> = alloc::vec![0; ops.as_bytes().len()];
        if self.host.hw.copy_from_guest(at, &mut bytes).is_ok() {
            ops.as_mut_bytes().copy_from_slice(&bytes);
        }
        result
    }
}
