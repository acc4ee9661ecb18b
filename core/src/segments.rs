//! Segment descriptor tables of a running guest: `set_gdt`, `update_descriptor` and the LDT.
//!
//! A guest's tables live in its own frames, typed as descriptor tables: it can read them, and change them only through
//! here. The CPU sees pages 1 and up of its GDT where they are; page 0 as a copy of the hypervisor's, since descriptors
//! 256..295 are reserved in it. The copy is the domain's own, not the CPU's: a domain has one virtual CPU, and the task
//! register keeps the TSS that it was loaded with whichever table is current.
//!
//! The LDT is filled in on demand: a page of it is taken when the CPU first faults on it ([`Segments::ldt_fault`]); the
//! first one also at the end of the request that sets the LDT or makes it look elsewhere, as in 2.0. A page that is
//! taken cannot become anything else, so all are given up when a mapping of any descriptor page of the domain's goes
//! ([`Segments::drop_moved_ldt`]), and looked up anew.
//!
//! Owned by whoever runs the virtual CPU; no lock, but taking a frame as a descriptor table takes the paging lock.

mod flat;

use crate::addr::{GuestVirt, MachineAddr, Mfn};
use crate::assist::CodeSegments;
use crate::descriptor;
use crate::domain::{Arch, Domain};
use crate::frame::{FrameType, TypeRest};
use crate::host::{Hardware, Host};
use crate::machine::{DescriptorPage, TableRegister};
use crate::paging::Pager;
use crate::personality::Personality;
use crate::store::CodeWidth;
use core::mem::offset_of;
use flat::{FlatSegments, Use};
use proxenos_abi::{Errno, Selector};

/// Descriptors in a page.
const PER_PAGE: u16 = 512;
/// Pages of a full table: 8192 descriptors.
pub const TABLE_PAGES: usize = 16;
/// Descriptors of a full table.
const TABLE_ENTRIES: u64 = 8192;
/// Entries of the table a domain starts with: up to and with the reserved ones.
pub const INITIAL_GDT_ENTRIES: u16 = *descriptor::RESERVED.end() + 1;
/// Index of the two descriptors that name the domain's LDT.
pub const LDT_DESCRIPTOR: u16 = 266;

/// A virtual CPU's descriptor tables.
#[derive(Debug)]
pub struct Segments {
    gdt: [Option<Mfn>; TABLE_PAGES],
    gdt_entries: u16,
    /// That table, as a CPU loads it.
    gdt_register: TableRegister,
    /// Which segments are known to be flat.
    flat: FlatSegments,
    ldt_base: GuestVirt,
    ldt_entries: u16,
    ldt: [Option<Mfn>; TABLE_PAGES],
    /// Some page of it is in use.
    has_ldt_pages: bool,
    /// Its first page is to be taken before the guest goes on.
    ldt_first_page_due: bool,
}

impl Default for Segments {
    fn default() -> Self {
        Self::new()
    }
}

impl Segments {
    /// No LDT, and the GDT that holds the reserved descriptors only. They are nobody's yet ([`place`](Self::place)).
    #[must_use]
    pub const fn new() -> Self {
        Self {
            gdt: [None; TABLE_PAGES],
            gdt_entries: INITIAL_GDT_ENTRIES,
            gdt_register: TableRegister::new(0, INITIAL_GDT_ENTRIES),
            flat: FlatSegments::new(),
            ldt_base: GuestVirt(0),
            ldt_entries: 0,
            ldt: [None; TABLE_PAGES],
            has_ldt_pages: false,
            ldt_first_page_due: false,
        }
    }

    /// Entries of the GDT.
    #[must_use]
    pub const fn gdt_entries(&self) -> u16 {
        self.gdt_entries
    }

    /// The guest's frames of its GDT, if it has made any its own.
    pub(crate) fn gdt_frames(&self) -> impl Iterator<Item = Mfn> + '_ {
        self.gdt.iter().map_while(|frame| *frame)
    }

    /// Where its LDT lies, and how many entries that has.
    pub(crate) const fn ldt(&self) -> (GuestVirt, u16) {
        (self.ldt_base, self.ldt_entries)
    }

    /// The guest's frames that its tables lie in, each with what it is mapped as; of the LDT those in use so far.
    pub fn pages(&self) -> impl Iterator<Item = (DescriptorPage, Mfn)> + '_ {
        let gdt = (0..).zip(&self.gdt).filter_map(|(page, frame)| Some((DescriptorPage::Gdt(page), (*frame)?)));
        let ldt = (0..).zip(&self.ldt).filter_map(|(page, frame)| Some((DescriptorPage::Ldt(page), (*frame)?)));
        gdt.chain(ldt)
    }

    /// They are the tables of this domain: before it runs.
    pub fn place<H: Hardware>(&mut self, host: &Host<H>, dom: &Domain) {
        self.gdt_register = TableRegister::new(host.hw.gdt_address(dom.id), self.gdt_entries);
    }

    /// Loads both tables into this CPU.
    pub fn load<H: Hardware>(&self, host: &Host<H>, dom: &Domain) {
        self.load_gdt(host, dom);
        host.hw.load_ldt(self.ldt_entries);
    }

    /// Loads the GDT only, where it is known whether there is an LDT to load, or to forget.
    #[inline]
    pub fn load_gdt<H: Hardware>(&self, host: &Host<H>, dom: &Domain) {
        host.hw.load_gdt(dom.id, self.gdt_entries, &self.gdt_register);
    }

    /// Entries of the LDT; 0 if there is none.
    #[inline]
    #[must_use]
    pub const fn ldt_entries(&self) -> u16 {
        self.ldt_entries
    }

    /// `set_gdt`: makes the guest's frames its GDT. On failure the old one stays.
    pub fn set_gdt<P: Personality, H: Hardware>(
        &mut self,
        host: &Host<H>,
        dom: &Domain,
        frames: &[Mfn],
        entries: u16,
    ) -> Result<(), Errno> {
        let pager = Pager::new(host, dom);
        let mut state = pager.lock();
        // The first page last: once something has been cleared there, nothing may be refused.
        for (first, &frame) in frames.iter().enumerate().rev() {
            let mut take = || pager.get_frame_and_type::<P::Tables>(&mut state, frame, dom.id, FrameType::Descriptor);
            if take().is_err() && !(first == 0 && clear_reserved(host, dom, frame) && take().is_ok()) {
                for &frame in &frames[first + 1..] {
                    pager.put_frame_and_type::<P::Tables>(&mut state, frame);
                }
                return Err(Errno::EINVAL);
            }
        }
        for (page, slot) in self.gdt.iter_mut().enumerate() {
            let new = frames.get(page).copied();
            // The CPU must not reach the old frame any more when it is given up: it may write accessed bits there.
            if page > 0 && *slot != new {
                host.hw.map_descriptors(dom.id, DescriptorPage::Gdt(page as u8), new);
            }
            if let Some(old) = core::mem::replace(slot, new) {
                pager.put_frame_and_type::<P::Tables>(&mut state, old);
            }
        }
        drop(state);
        for index in (0..PER_PAGE).filter(|index| !descriptor::RESERVED.contains(index)) {
            let value = frames.first().map_or(0, |&frame| host.hw.load64(entry(frame, index)));
            host.hw.store64(entry(dom.gdt_page, index), value);
        }
        self.gdt_entries = entries;
        self.place(host, dom);
        self.flat.forget();
        host.hw.load_gdt(dom.id, entries, &self.gdt_register);
        Ok(())
    }

    /// `update_descriptor`: a checked store of one descriptor, to a descriptor table or to plain memory.
    pub fn update_descriptor<P: Personality, H: Hardware>(
        &mut self,
        host: &Host<H>,
        dom: &Domain,
        at: MachineAddr,
        value: u64,
    ) -> Result<(), Errno> {
        if !at.0.is_multiple_of(8) || !host.is_ram(at.mfn()) {
            return Err(Errno::EINVAL);
        }
        let value = descriptor::check(P::ARCH, value).map_err(|_| Errno::EINVAL)?;
        let (mfn, index) = (at.mfn(), (at.page_offset() / 8) as u16);
        let is_first_page = self.gdt[0] == Some(mfn);
        if is_first_page && descriptor::RESERVED.contains(&index) {
            return Err(Errno::EINVAL);
        }
        let info = host.frames.get(mfn, dom.id).map_err(|_| Errno::EINVAL)?;
        let pager = Pager::new(host, dom);
        let mut state = pager.lock();
        let word = info.type_word();
        let kind = match word.kind() {
            FrameType::Descriptor if word.count() > 0 => FrameType::Descriptor,
            _ => FrameType::Writable,
        };
        let result = pager.get_frame_and_type::<P::Tables>(&mut state, mfn, dom.id, kind);
        if result.is_ok() {
            host.hw.store64(at, value);
            self.flat.forget_entry(index);
            pager.mark_dirty(mfn);
            if is_first_page {
                host.hw.store64(entry(dom.gdt_page, index), value);
            }
            pager.put_frame_and_type::<P::Tables>(&mut state, mfn);
        }
        drop(state);
        host.put_frame(mfn, info);
        result.map_err(|_| Errno::EINVAL)
    }

    /// MMUEXT_SET_LDT: from now on the LDT lies at `base` in the guest's address space.
    pub fn set_ldt<P: Personality, H: Hardware>(
        &mut self,
        host: &Host<H>,
        dom: &Domain,
        base: GuestVirt,
        entries: u64,
    ) -> Result<(), Errno> {
        if base.page_offset() != 0 || entries > TABLE_ENTRIES || !P::in_guest_range(base, entries * 8) {
            return Err(Errno::EINVAL);
        }
        if (base, entries) == (self.ldt_base, u64::from(self.ldt_entries)) {
            return Ok(());
        }
        self.drop_ldt::<P, H>(host, dom);
        self.ldt_base = base;
        self.ldt_entries = entries as u16;
        self.ldt_first_page_due = entries != 0;
        self.write_ldt_descriptor(host, dom);
        host.hw.load_ldt(self.ldt_entries);
        Ok(())
    }

    /// Forgets which frames the LDT lies in, so that they are looked up anew: the address space has changed.
    pub fn drop_ldt<P: Personality, H: Hardware>(&mut self, host: &Host<H>, dom: &Domain) {
        if !self.has_ldt_pages {
            return;
        }
        self.has_ldt_pages = false;
        self.ldt_first_page_due = true;
        let pager = Pager::new(host, dom);
        let mut state = pager.lock();
        for (page, slot) in self.ldt.iter_mut().enumerate() {
            if let Some(old) = slot.take() {
                host.hw.map_descriptors(dom.id, DescriptorPage::Ldt(page as u8), None);
                pager.put_frame_and_type::<P::Tables>(&mut state, old);
            }
        }
    }

    /// Whether any page of the LDT is in use.
    #[inline]
    #[must_use]
    pub const fn has_ldt_pages(&self) -> bool {
        self.has_ldt_pages
    }

    /// Gives up all frames of both tables: the domain has ended and runs nowhere.
    pub fn release<P: Personality, H: Hardware>(&mut self, host: &Host<H>, dom: &Domain) {
        self.drop_ldt::<P, H>(host, dom);
        self.ldt_entries = 0;
        self.gdt_entries = INITIAL_GDT_ENTRIES;
        self.place(host, dom);
        self.flat.forget();
        let pager = Pager::new(host, dom);
        let mut state = pager.lock();
        for (page, slot) in self.gdt.iter_mut().enumerate() {
            let Some(old) = slot.take() else { continue };
            if page > 0 {
                host.hw.map_descriptors(dom.id, DescriptorPage::Gdt(page as u8), None);
            }
            pager.put_frame_and_type::<P::Tables>(&mut state, old);
        }
    }

    /// Gives the LDT's pages up if a mapping of a descriptor page has gone since the last look: what was mapped there
    /// may now become something else, and something else be mapped there. To be called after each request that changes
    /// mappings.
    #[inline]
    pub fn drop_moved_ldt<P: Personality, H: Hardware>(&mut self, host: &Host<H>, dom: &Domain) {
        if dom.has_ldt_moved() {
            dom.ldt_has_not_moved();
            self.drop_ldt::<P, H>(host, dom);
        }
    }

    /// At the end of a hypercall that may have changed mappings or the LDT: looks where the LDT lies now
    /// ([`drop_moved_ldt`](Self::drop_moved_ldt)), and takes its first page, if it has been set or dropped. That there
    /// is none is no error yet.
    #[inline]
    pub fn refresh_ldt<P: Personality, H: Hardware>(&mut self, host: &Host<H>, dom: &Domain) {
        if dom.has_ldt_moved() || self.ldt_first_page_due {
            self.look_up_ldt::<P, H>(host, dom);
        }
    }

    #[cold]
    fn look_up_ldt<P: Personality, H: Hardware>(&mut self, host: &Host<H>, dom: &Domain) {
        self.drop_moved_ldt::<P, H>(host, dom);
        if core::mem::take(&mut self.ldt_first_page_due) {
            let _: bool = self.ldt_fault::<P, H>(host, dom, 0);
        }
    }

    /// The CPU looked for a descriptor at `offset` in the LDT and found no page. Takes the guest's page there as a
    /// descriptor table and returns true; or false, when the guest has none: the fault is its own, at the address
    /// that is returned by [`ldt_address`](Self::ldt_address).
    pub fn ldt_fault<P: Personality, H: Hardware>(&mut self, host: &Host<H>, dom: &Domain, offset: u64) -> bool {
        let page = (offset >> 12) as usize;
        if offset >= u64::from(self.ldt_entries) * 8 || self.ldt[page].is_some() {
            return false;
        }
        let pager = Pager::new(host, dom);
        let mut state = pager.lock();
        let Some(found) = pager.walk::<P::Tables>(&state, self.ldt_address(offset)) else { return false };
        if !found.entry.present() {
            return false;
        }
        let frame = found.entry.mfn();
        if pager.get_frame_and_type::<P::Tables>(&mut state, frame, dom.id, FrameType::Descriptor).is_err() {
            return false;
        }
        self.ldt[page] = Some(frame);
        self.has_ldt_pages = true;
        host.hw.map_descriptors(dom.id, DescriptorPage::Ldt(page as u8), Some(frame));
        true
    }

    /// Where in the guest's address space a descriptor of the LDT lies.
    #[must_use]
    pub fn ldt_address(&self, offset: u64) -> GuestVirt {
        self.ldt_base.offset(offset)
    }

    /// Where entries from ring 3 begin, for the short way of x86_32 guests' system calls.
    #[inline]
    pub(crate) fn set_kernel_stack(&mut self, ss: Selector, sp: GuestVirt) {
        self.flat.set_kernel(ss, sp);
    }

    /// Linear address of a kernel's stack segment, for a frame that is pushed on its behalf; `None` if it is no segment
    /// that the guest could use as one. One that begins at 0 is remembered ([`is_flat_stack`](Self::is_flat_stack)).
    pub fn stack_base<P: Personality, H: Hardware>(
        &mut self,
        host: &Host<H>,
        dom: &Domain,
        ss: Selector,
    ) -> Option<u64> {
        let base = self.data_base::<P, H>(host, dom, ss)?;
        if base == 0 {
            self.flat.learn(Use::Stack, ss);
        }
        Some(base)
    }

    /// Linear address of a segment of writable data.
    fn data_base<P: Personality, H: Hardware>(
        &mut self,
        host: &Host<H>,
        dom: &Domain,
        selector: Selector,
    ) -> Option<u64> {
        if selector == P::FLAT_GUESTOS_DS {
            return Some(0);
        }
        descriptor::writable_base(self.descriptor::<P, H>(host, dom, selector)?)
    }

    /// Whether [`stack_base`](Self::stack_base) would say 0, as far as that is known without a look at the tables.
    #[inline]
    #[must_use]
    pub fn is_flat_stack<P: Personality>(&self, ss: Selector) -> bool {
        self.flat.is_flat::<P>(ss)
    }

    /// For the entry in assembly: where in this the frame of a system call from an x86_32 guest's application is found
    /// to lie, if its kernel's stack is known to be flat, aligned and the guest's, else 0. Like the next two, 32 bits
    /// wide.
    pub const SYSTEM_CALL_FRAME: usize = offset_of!(Self, flat) + FlatSegments::SYSTEM_CALL_FRAME;
    /// Where in this that stack's selector is.
    pub const KERNEL_STACK: usize = offset_of!(Self, flat) + FlatSegments::KERNEL;
    /// Where in this a selector of the guest's own is that is known to be flat; or what is none.
    pub const FLAT_STACK: usize = offset_of!(Self, flat) + FlatSegments::KNOWN;

    /// What [`stack_base`](Self::stack_base) says, without remembering it.
    #[cfg(test)]
    pub(crate) fn looked_up_base<P: Personality, H: Hardware>(
        &mut self,
        host: &Host<H>,
        dom: &Domain,
        ss: Selector,
    ) -> Option<u64> {
        self.data_base::<P, H>(host, dom, ss)
    }

    /// What the entry of system calls finds.
    #[cfg(test)]
    pub(crate) const fn system_call_frame(&self) -> u32 {
        self.flat.system_call_frame()
    }

    /// Where the guest's code and data segments lie, to look at the instruction that it executes; `None` if that is
    /// none that is looked at (16-bit code).
    pub fn code_segments<P: Personality, H: Hardware>(
        &mut self,
        host: &Host<H>,
        dom: &Domain,
        cs: Selector,
        ds: Selector,
    ) -> Option<CodeSegments> {
        let own = if P::ARCH == Arch::X86_64 { CodeWidth::Bits64 } else { CodeWidth::Bits32 };
        let (width, code) = if cs == P::FLAT_GUESTOS_CS {
            (own, 0)
        } else if self.flat.is_known(Use::Code, cs) {
            (CodeWidth::Bits32, 0)
        } else {
            match self.descriptor::<P, H>(host, dom, cs)? {
                raw if descriptor::is_long(raw) => (CodeWidth::Bits64, 0),
                raw if descriptor::is_wide(raw) => {
                    let base = descriptor::base(raw);
                    if base == 0 {
                        self.flat.learn(Use::Code, cs);
                    }
                    (CodeWidth::Bits32, base.into())
                }
                _ => return None,
            }
        };
        let data = if width == CodeWidth::Bits64 || self.flat.is_known(Use::Data, ds) {
            Some(0)
        } else {
            let data = self.data_base::<P, H>(host, dom, ds);
            if data == Some(0) {
                self.flat.learn(Use::Data, ds);
            }
            data
        };
        Some(CodeSegments { width, code, data })
    }

    /// The descriptor that a selector names now.
    pub(crate) fn descriptor<P: Personality, H: Hardware>(
        &mut self,
        host: &Host<H>,
        dom: &Domain,
        selector: Selector,
    ) -> Option<u64> {
        let index = selector.index();
        let page = usize::from(index / PER_PAGE);
        let frame = if selector.is_local() {
            if self.ldt[page].is_none() {
                self.ldt_fault::<P, H>(host, dom, u64::from(index) * 8);
            }
            self.ldt[page].filter(|_| index < self.ldt_entries)?
        } else {
            if index == 0 || index >= self.gdt_entries {
                return None;
            }
            if page == 0 { dom.gdt_page } else { self.gdt[page]? }
        };
        Some(host.hw.load64(entry(frame, index % PER_PAGE)))
    }

    /// Writes the system descriptor that names the LDT (Intel SDM vol. 3 §8.2.3: 16 bytes in long mode).
    fn write_ldt_descriptor<H: Hardware>(&self, host: &Host<H>, dom: &Domain) {
        const PRESENT_LDT: u64 = 0x82 << 40;
        let base = host.hw.ldt_address(dom.id);
        let limit = (u64::from(self.ldt_entries) * 8).saturating_sub(1);
        let low = (limit & 0xffff)
            | (base & 0xff_ffff) << 16
            | PRESENT_LDT
            | (limit >> 16 & 0xf) << 48
            | (base >> 24 & 0xff) << 56;
        host.hw.store64(entry(dom.gdt_page, LDT_DESCRIPTOR), low);
        host.hw.store64(entry(dom.gdt_page, LDT_DESCRIPTOR + 1), base >> 32);
    }
}

/// Clears the slots of a GDT's first page that are not the guest's, where nothing but those keeps it from being one, as
/// 2.0 does: a kernel need never have written there. True if it may be one now.
fn clear_reserved<H: Hardware>(host: &Host<H>, dom: &Domain, frame: Mfn) -> bool {
    let Ok(info) = host.frames.get(frame, dom.id) else { return false };
    let writable = info.get_type(FrameType::Writable, |stamp| host.hw.flush_if_older(stamp)).is_ok();
    let mut others = (0..PER_PAGE).filter(|index| !descriptor::RESERVED.contains(index));
    // If it is mapped writable, it cannot be one whatever lies there.
    let good = writable
        && info.type_word().count() == 1
        && others.all(|index| descriptor::check(dom.arch, host.hw.load64(entry(frame, index))).is_ok());
    if good {
        descriptor::RESERVED.for_each(|index| host.hw.store64(entry(frame, index), 0));
    }
    if writable {
        let _: TypeRest = info.put_type(|| host.hw.stamp());
    }
    host.put_frame(frame, info);
    good
}

fn entry(page: Mfn, index: u16) -> MachineAddr {
    MachineAddr(page.addr().0 + 8 * u64::from(index))
}
