//! The simulated CPU: page tables, descriptor tables, console.
//!
//! It has no TLB: an access walks the tables that are loaded (four levels, Intel SDM vol. 3 §4.5), as if they were
//! flushed all the time. Whether a flush was asked for is counted in [`SimMachine`].

use super::{FRAME, SimMachine, frame_base};
use crate::addr::{DomId, GuestVirt, MachineAddr, Mfn, PAGE_SHIFT};
use crate::machine::{
    BadPointer, Console, CpuTables, DescriptorPage, GuestMemory, MachineMemory, NotLoaded, TableRegister,
};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use proxenos_abi::Selector;
use proxenos_abi::hypercall::SegmentBase;

/// What an access does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SimAccess {
    /// Reads.
    Read,
    /// Writes.
    Write,
}

/// Who makes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SimRing {
    /// Rings 0 to 2. CR0.WP is set, as in the hypervisor.
    Supervisor,
    /// Ring 3.
    User,
}

/// A page fault: the CPU's error code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SimFault {
    /// Bit 0: the page is present; bit 1: a write; bit 2: ring 3.
    pub code: u32,
}

/// What the CPU has been told.
#[derive(Debug, Default)]
pub(super) struct CpuState {
    root: Option<Mfn>,
    /// Pages mapped by hand, by page number: the frame, and what it allows.
    pages: BTreeMap<u64, (Mfn, SimAccess)>,
    /// Pages of descriptor tables: domain, 0 for GDT or 1 for LDT, page.
    descriptors: BTreeMap<(DomId, u8, u8), Mfn>,
    gdt: Option<(DomId, u16)>,
    ldt_entries: u16,
    fpu_traps: bool,
    written: Vec<u8>,
    typed: VecDeque<u8>,
}

/// Bits of a page-table entry.
mod pte {
    pub(super) const P: u64 = 1 << 0;
    pub(super) const RW: u64 = 1 << 1;
    pub(super) const US: u64 = 1 << 2;
    pub(super) const A: u64 = 1 << 5;
    pub(super) const D: u64 = 1 << 6;
    pub(super) const PS: u64 = 1 << 7;
    pub(super) const FRAME: u64 = 0x000f_ffff_ffff_f000;
}

impl SimMachine {
    /// Maps the page that holds `at` without page tables, for what they are not the point of. A page mapped by hand
    /// hides what the tables have there.
    pub fn map_by_hand(&self, at: GuestVirt, frame: Mfn, allows: SimAccess) {
        self.cpu.lock().pages.insert(at.0 >> PAGE_SHIFT, (frame, allows));
    }

    /// The L4 table that is loaded.
    #[must_use]
    pub fn root(&self) -> Option<Mfn> {
        self.cpu.lock().root
    }

    /// The frame that is mapped as a page of a domain's descriptor tables.
    #[must_use]
    pub fn descriptors(&self, domain: DomId, page: DescriptorPage) -> Option<Mfn> {
        self.cpu.lock().descriptors.get(&key(domain, page)).copied()
    }

    /// Whose GDT is loaded and how many entries it has, and how many the LDT has.
    #[must_use]
    pub fn loaded_tables(&self) -> (Option<(DomId, u16)>, u16) {
        let cpu = self.cpu.lock();
        (cpu.gdt, cpu.ldt_entries)
    }

    /// Whether the next use of the FPU traps; asking resets it.
    pub fn take_fpu_trap(&self) -> bool {
        core::mem::take(&mut self.cpu.lock().fpu_traps)
    }

    /// What was written to the console since it was last asked for.
    pub fn take_console_output(&self) -> Vec<u8> {
        core::mem::take(&mut self.cpu.lock().written)
    }

    /// Types on the console.
    pub fn type_on_console(&self, bytes: &[u8]) {
        self.cpu.lock().typed.extend(bytes);
    }

    /// Accesses an address as the CPU would: walks the loaded tables, sets accessed and dirty bits, answers where the
    /// address leads.
    ///
    /// # Errors
    /// The page fault that the access causes.
    pub fn access(&self, at: GuestVirt, access: SimAccess, ring: SimRing) -> Result<MachineAddr, SimFault> {
        let write = access == SimAccess::Write;
        let user = ring == SimRing::User;
        let fault = |present: u32| SimFault { code: present | u32::from(write) << 1 | u32::from(user) << 2 };
        let (by_hand, root) = {
            let cpu = self.cpu.lock();
            (cpu.pages.get(&(at.0 >> PAGE_SHIFT)).copied(), cpu.root)
        };
        if let Some((frame, allows)) = by_hand {
            let denied = write && allows == SimAccess::Read;
            return if denied { Err(fault(1)) } else { Ok(MachineAddr(frame_base(frame) + at.0 % FRAME)) };
        }

        let mut table = frame_base(root.ok_or(fault(0))?);
        let mut path = Vec::new();
        let mut rights = pte::RW | pte::US;
        for shift in [39, 30, 21, PAGE_SHIFT] {
            let slot = MachineAddr(table + (at.0 >> shift) % 512 * 8);
            let entry = self.load64(slot);
            if entry & pte::P == 0 {
                return Err(fault(0));
            }
            rights &= entry;
            path.push(slot);
            table = entry & pte::FRAME;
            if shift == PAGE_SHIFT || entry & pte::PS != 0 {
                if (write && rights & pte::RW == 0) || (user && rights & pte::US == 0) {
                    return Err(fault(1));
                }
                let leaf = path.len() - 1;
                for (level, slot) in path.into_iter().enumerate() {
                    let dirty = if level == leaf && write { pte::D } else { 0 };
                    self.or32(slot, (pte::A | dirty) as u32);
                }
                return Ok(MachineAddr((table & !((1 << shift) - 1)) + at.0 % (1 << shift)));
            }
        }
        unreachable!("the last level always leads to a page")
    }
}

fn key(domain: DomId, page: DescriptorPage) -> (DomId, u8, u8) {
    match page {
        DescriptorPage::Gdt(page) => (domain, 0, page),
        DescriptorPage::Ldt(page) => (domain, 1, page),
    }
}

impl GuestMemory for SimMachine {
    fn copy_from_guest(&self, from: GuestVirt, into: &mut [u8]) -> Result<(), BadPointer> {
        for (byte, at) in into.iter_mut().zip(from.0..) {
            let at = self.access(GuestVirt(at), SimAccess::Read, SimRing::Supervisor).map_err(|_| BadPointer)?;
            *byte = self.load8(at);
        }
        Ok(())
    }

    fn copy_to_guest(&self, to: GuestVirt, from: &[u8]) -> Result<(), BadPointer> {
        for (&byte, at) in from.iter().zip(to.0..) {
            let at = self.access(GuestVirt(at), SimAccess::Write, SimRing::Supervisor).map_err(|_| BadPointer)?;
            self.store8(at, byte);
        }
        Ok(())
    }
}

/// No bus.
impl crate::pci::PciConfig for SimMachine {
    fn pci_read(&self, _: crate::pci::PciAddress, _: u8, _: crate::pci::Width) -> u32 {
        u32::MAX
    }

    fn pci_write(&self, _: crate::pci::PciAddress, _: u8, _: crate::pci::Width, _: u32) {}
}

impl CpuTables for SimMachine {
    fn load_root(&self, l4: Mfn) {
        self.cpu.lock().root = Some(l4);
    }

    fn set_segment_base(&self, _: SegmentBase, _: u64) {}

    fn load_user_gs(&self, _: Selector) -> Result<(), NotLoaded> {
        Ok(())
    }

    fn map_descriptors(&self, domain: DomId, page: DescriptorPage, frame: Option<Mfn>) {
        let descriptors = &mut self.cpu.lock().descriptors;
        match frame {
            Some(frame) => descriptors.insert(key(domain, page), frame),
            None => descriptors.remove(&key(domain, page)),
        };
    }

    fn gdt_address(&self, domain: DomId) -> u64 {
        0xffff_8200_0000_0000 + u64::from(domain.0) * 0x2_0000
    }

    fn load_gdt(&self, domain: DomId, entries: u16, _: &TableRegister) {
        self.cpu.lock().gdt = Some((domain, entries));
    }

    fn load_ldt(&self, entries: u16) {
        self.cpu.lock().ldt_entries = entries;
    }

    fn ldt_address(&self, domain: DomId) -> u64 {
        0xffff_8200_0001_0000 + u64::from(domain.0) * 0x2_0000
    }

    fn load_breakpoints(&self, _: &crate::debugreg::DebugRegisters) {}

    fn trap_fpu(&self) {
        self.cpu.lock().fpu_traps = true;
    }
}

impl Console for SimMachine {
    fn console_write(&self, bytes: &[u8]) {
        self.cpu.lock().written.extend(bytes);
    }

    fn console_log(&self, _: DomId, bytes: &[u8]) {
        self.cpu.lock().written.extend(bytes);
    }

    fn console_read(&self, into: &mut [u8]) -> usize {
        let typed = &mut self.cpu.lock().typed;
        let count = typed.len().min(into.len());
        for (byte, typed) in into.iter_mut().zip(typed.drain(..count)) {
            *byte = typed;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_pointers_fault_where_nothing_is_mapped() {
        let machine = SimMachine::new(2);
        machine.map_by_hand(GuestVirt(0x5000), Mfn(1), SimAccess::Write);
        machine.map_by_hand(GuestVirt(0x6000), Mfn(0), SimAccess::Read);
        assert_eq!(machine.copy_to_guest(GuestVirt(0x5ffc), &[7; 4]), Ok(()));
        assert_eq!(machine.copy_to_guest(GuestVirt(0x5ffc), &[7; 5]), Err(BadPointer));
        let mut bytes = [0; 5];
        assert_eq!(machine.copy_from_guest(GuestVirt(0x5ffc), &mut bytes), Ok(()));
        assert_eq!(bytes, [7, 7, 7, 7, 0]);
        assert_eq!(machine.copy_from_guest(GuestVirt(0x6ffc), &mut bytes), Err(BadPointer));
    }

    #[test]
    fn the_cpu_walks_its_tables() {
        let machine = SimMachine::new(0x800);
        let at = GuestVirt(0xffff_8080_4060_1234);
        // L4 in frame 1, L3 in 2, L2 in 3 (slot 3 a page of 2 MiB), L1 in 4.
        let entry = |table: u64, shift: u32| MachineAddr(table * 4096 + (at.0 >> shift) % 512 * 8);
        machine.store64(entry(1, 39), 0x2007);
        machine.store64(entry(2, 30), 0x3007);
        machine.store64(entry(3, 21), 0x4007);
        machine.store64(entry(4, 12), 0x7003);
        let read = |ring| machine.access(at, SimAccess::Read, ring);
        let write = |ring| machine.access(at, SimAccess::Write, ring);
        assert_eq!(read(SimRing::Supervisor), Err(SimFault { code: 0 }), "no tables are loaded");
        machine.load_root(Mfn(1));
        assert_eq!(read(SimRing::Supervisor), Ok(MachineAddr(0x7234)));
        assert_eq!(read(SimRing::User), Err(SimFault { code: 5 }));
        assert_eq!(machine.load64(entry(4, 12)), 0x7023);
        assert_eq!(write(SimRing::Supervisor), Ok(MachineAddr(0x7234)));
        assert_eq!((machine.load64(entry(3, 21)), machine.load64(entry(4, 12))), (0x4027, 0x7063));
        machine.store64(entry(2, 30), 0x3005);
        assert_eq!(write(SimRing::Supervisor), Err(SimFault { code: 3 }), "read-only on the way");
        machine.store64(entry(3, 21), 0x20_0085);
        assert_eq!(read(SimRing::User), Ok(MachineAddr(0x20_1234)), "a page of 2 MiB");
        machine.store64(entry(1, 39), 0x2006);
        assert_eq!(write(SimRing::User), Err(SimFault { code: 6 }), "not present");
    }

    #[test]
    fn the_console_has_two_ends() {
        let machine = SimMachine::new(0);
        machine.type_on_console(b"abc");
        let mut buffer = [0; 2];
        assert_eq!((machine.console_read(&mut buffer), buffer), (2, *b"ab"));
        assert_eq!((machine.console_read(&mut buffer), buffer), (1, *b"cb"));
        machine.console_write(b"hi");
        assert_eq!(machine.take_console_output(), b"hi");
        assert_eq!(machine.take_console_output(), b"");
    }
}
