//! What the builder writes, handed to the paging code as the hypervisor does, and then used as a kernel would: the page
//! tables must pass validation, and the CPU must find through them what the layout promises.

use super::*;
use crate::addr::{DomId, GuestVirt};
use crate::domain::{Arch, Domain, Privileges};
use crate::frame::{FrameInfo, FrameTable, FrameType};
use crate::frame_alloc::{FrameAllocator, Zone};
use crate::host::{Domains, Host, MachineToPhys};
use crate::machine::CpuTables;
use crate::paging::format::{FourLevel, HYPERVISOR_L4_SLOTS, TwoLevel};
use crate::paging::shadow::Access;
use crate::paging::{Pager, PagingError, Target};
use crate::sim::{SimAccess, SimFault, SimMachine, SimRing};
use crate::sync::Mutex;
use alloc::boxed::Box;
use alloc::vec::Vec;
use proxenos_abi::Port;
use proxenos_abi::start_info::StartInfoFlags;
use proxenos_image::Image;
use proxenos_image::builder::{DomainKind, FrameContents, Layout, Request, StartOfDay, populate};
use proxenos_image::recipe::Recipe;

/// Frames of the machine, and of the domain.
const MACHINE: u64 = 0x1800;
const PAGES: u64 = 2048;
/// The first frame of RAM: the first MiB is the PC's.
const FIRST: u64 = 0x400;

struct World {
    host: Host<SimMachine>,
    dom: Domain,
    layout: Layout,
    frames: Vec<Mfn>,
    top: Mfn,
}

/// A machine with one domain, built in frames that run backwards, its tables not yet anybody's.
fn world(arch: Arch, base: u64) -> World {
    let records: Vec<FrameInfo> = (0..MACHINE).map(|_| FrameInfo::reserved()).collect();
    let frames = FrameTable::new(Box::leak(records.into_boxed_slice()));
    let hw = SimMachine::new(MACHINE as usize);
    let mut alloc = FrameAllocator::new(frames);
    alloc.adopt_range(Mfn(FIRST), MACHINE - FIRST);
    alloc.release_range(Mfn(FIRST), MACHINE - FIRST);
    let shared_info = alloc.alloc_shared(DomId::DOM0, &hw).unwrap();
    let gdt_page = alloc.alloc_hypervisor(0, Zone::Any, &hw).unwrap();
    let mut owned: Vec<Mfn> =
        (0..PAGES).map(|_| alloc.alloc_owned(DomId::DOM0, 0, Zone::Below4G, &hw).unwrap()).collect();
    owned.reverse();

    let file = Recipe::small(arch, base).build();
    let image = Image::parse(&file).unwrap();
    let request = Request { module_bytes: 5000, pages: PAGES, kind: DomainKind::Initial };
    let layout = Layout::plan(&image, &request).unwrap();
    let flags = StartInfoFlags::PRIVILEGED | StartInfoFlags::INITDOMAIN;
    let start = StartOfDay { shared_info, flags, controller: Port(0), command_line: b"" };
    let frame = |pfn: Pfn| owned[pfn.0 as usize];
    let top =
        populate(&mut MachineFrames::new(&hw, frame), FrameContents::Unknown, &layout, &image, &[9; 5000], &start)
            .unwrap();
    let dom = Domain::new(DomId::DOM0, arch, Privileges::CONTROL, shared_info, gdt_page);
    let host = Host {
        hw,
        frames,
        machine_frames: MACHINE,
        alloc: Mutex::new(alloc),
        m2p: MachineToPhys::new(None, None),
        hypervisor_slots: [0; HYPERVISOR_L4_SLOTS],
        forbidden_io: Vec::new(),
        domains: Domains::new(),
        new_privileges: Privileges::empty(),
        watched: 0.into(),
    };
    World { host, dom, layout, frames: owned, top }
}

impl World {
    /// What the hypervisor does before the first instruction.
    fn install(&self) -> Result<(), PagingError> {
        let pager = Pager::new(&self.host, &self.dom);
        let mut state = self.dom.paging.lock();
        match self.dom.arch {
            Arch::X86_32 => {
                pager.create_upper_tables(&mut state)?;
                pager.pin::<TwoLevel>(&mut state, self.top, 2)?;
                pager.set_base::<TwoLevel>(&mut state, self.top)?;
            }
            Arch::X86_64 => {
                pager.pin::<FourLevel>(&mut state, self.top, 4)?;
                pager.set_base::<FourLevel>(&mut state, self.top)?;
            }
        }
        self.host.hw.load_root(self.dom.roots.of(crate::bounce::Mode::Kernel).unwrap());
        Ok(())
    }

    /// An access of the kernel's, with faults that shadowing causes repaired.
    fn kernel(&self, at: u64, access: SimAccess) -> Result<u64, SimFault> {
        let at = GuestVirt(at);
        let ring = if self.dom.arch == Arch::X86_32 { SimRing::Supervisor } else { SimRing::User };
        let mut found = self.host.hw.access(at, access, ring);
        if found.is_err() && self.dom.arch == Arch::X86_32 {
            let how = Access { write: access == SimAccess::Write, user: false };
            let pager = Pager::new(&self.host, &self.dom);
            if pager.resolve_shadow_fault::<TwoLevel>(&mut self.dom.paging.lock(), at, how) {
                found = self.host.hw.access(at, access, ring);
            }
        }
        found.map(|at| at.0)
    }
}

const KERNELS: [(Arch, u64); 3] =
    [(Arch::X86_32, 0xc000_0000), (Arch::X86_32, 0xc010_0000), (Arch::X86_64, 0xffff_ffff_8000_0000)];

#[test]
fn the_tables_are_valid_and_lead_where_the_layout_says() {
    for (arch, base) in KERNELS {
        let world = world(arch, base);
        world.install().unwrap();
        let layout = &world.layout;
        for (at, frame) in (base..layout.end.0).step_by(4096).zip(&world.frames) {
            let place = (frame.0 << 12) + 8;
            assert_eq!(world.kernel(at + 8, SimAccess::Read), Ok(place), "{at:#x}");
            let is_table = (layout.pt_base..layout.start_info).contains(&GuestVirt(at));
            let user = u32::from(arch == Arch::X86_64) << 2;
            let written = if is_table { Err(SimFault { code: 3 | user }) } else { Ok(place) };
            assert_eq!(world.kernel(at + 8, SimAccess::Write), written, "{at:#x}");
            let record = world.host.frames.info(*frame).unwrap();
            let kind = record.type_word().kind();
            assert_eq!(kind == FrameType::Writable, !is_table, "I1 at {at:#x}: {kind:?}");
        }
        // Nothing before or behind the region, and nothing of it for applications of x86_32.
        assert_eq!(world.kernel(base - 1, SimAccess::Read).unwrap_err().code & 1, 0);
        assert_eq!(world.kernel(layout.end.0, SimAccess::Read).unwrap_err().code & 1, 0);
        let as_application = world.host.hw.access(GuestVirt(base), SimAccess::Read, SimRing::User);
        assert_eq!(as_application.is_err(), arch == Arch::X86_32);
        let top = world.host.frames.info(world.top).unwrap().type_word();
        let level = if arch == Arch::X86_32 { 2 } else { 4 };
        assert_eq!(top.kind(), FrameType::table(level));
    }
}

#[test]
fn a_kernel_can_unmap_and_map_through_them() {
    for (arch, base) in KERNELS {
        let world = world(arch, base);
        world.install().unwrap();
        let pager = Pager::new(&world.host, &world.dom);
        // The page before the end is padding. Its entry is changed as `update_va_mapping` would.
        let at = GuestVirt(world.layout.end.0 - 4096);
        let update = |change: fn(u64) -> u64| {
            let state = world.dom.paging.lock();
            match arch {
                Arch::X86_32 => {
                    let found = pager.walk::<TwoLevel>(&state, at).unwrap();
                    let new = crate::paging::format::Pte(change(found.entry.0));
                    pager.update_l1::<TwoLevel>(found.table, found.index, new, Target::Own)
                }
                Arch::X86_64 => {
                    let found = pager.walk::<FourLevel>(&state, at).unwrap();
                    let new = crate::paging::format::Pte(change(found.entry.0));
                    pager.update_l1::<FourLevel>(found.table, found.index, new, Target::Own)
                }
            }
        };
        let before = world.kernel(at.0, SimAccess::Write).unwrap();
        update(|entry| entry & !1).unwrap();
        assert_eq!(world.kernel(at.0, SimAccess::Read).unwrap_err().code & 1, 0);
        update(|entry| entry | 1).unwrap();
        assert_eq!(world.kernel(at.0, SimAccess::Write), Ok(before));
        update(|entry| entry & !2).unwrap();
        assert_eq!(world.kernel(at.0, SimAccess::Write).unwrap_err().code & 1, 1);
        assert_eq!(world.kernel(at.0, SimAccess::Read), Ok(before));
    }
}

#[test]
fn a_table_mapped_writable_is_not_accepted() {
    for (arch, base) in KERNELS {
        let world = world(arch, base);
        // Make the first table's own mapping writable, in the L1 table that has it: the last but few of the tables.
        let first_table = world.top.0 << 12;
        let tables = (world.layout.pt_base.0 - base) >> 12..(world.layout.start_info.0 - base) >> 12;
        let hw = &world.host.hw;
        let mut changed = 0;
        for pfn in tables {
            let table = world.frames[pfn as usize].0 << 12;
            for offset in (0..4096).step_by(4) {
                let slot = crate::addr::MachineAddr(table + offset);
                let entry = hw.load32(slot);
                // The entry that maps the first table: read-only, and not a reference from a table above.
                if u64::from(entry) & !0xfff == first_table && entry & 0x43 == 1 {
                    hw.store32(slot, entry | 2);
                    changed += 1;
                }
            }
        }
        assert_eq!(changed, 1);
        assert!(world.install().is_err(), "a page table that its guest could write");
    }
}
