//! Descriptor tables of our own: two pages of GDT and two of LDT.

use proxenos_guest::abi::{GuestArch, MachineAddr, Selector};
use proxenos_guest::memory::{self, Frame};
use proxenos_guest::pte::PteFlags;
use proxenos_guest::{Arch, check_eq, hypercall};

/// Entries of the GDT, and of the LDT.
pub const ENTRIES: usize = 1024;
/// The ring our kernel runs in.
pub const RING: u8 = Arch::FLAT_GUESTOS_CS.rpl();

/// Bits of a descriptor's access byte: present, code or data (not a system descriptor), and types.
pub const PRESENT: u8 = 0x80;
pub const SEGMENT: u8 = 0x10;
pub const CODE: u8 = SEGMENT | 0xb;
pub const DATA: u8 = SEGMENT | 0x3;
/// With [`CODE`]: conforming.
pub const CONFORMING: u8 = 0x4;
/// Flags: limit in pages, and the size of our kernel's code.
pub const GRANULAR: u8 = 0x80;
pub const SIZE: u8 = if cfg!(target_arch = "x86") { 0x40 } else { 0x20 };

/// A descriptor of base 0 and limit 4 GiB.
pub const fn flat(access: u8, ring: u8, flags: u8) -> u64 {
    0x000f_0000_0000_ffff | ((access | ring << 5) as u64) << 40 | (flags as u64) << 48
}

/// The same with a base.
#[cfg(target_arch = "x86")]
pub const fn with_base(descriptor: u64, base: u32) -> u64 {
    descriptor | (base as u64 & 0xff_ffff) << 16 | (base as u64 >> 24) << 56
}

/// Code that our kernel can run.
pub const GOOD_CODE: u64 = flat(PRESENT | CODE, RING, GRANULAR | SIZE);
/// Data that it can use.
pub const GOOD_DATA: u64 = flat(PRESENT | DATA, RING, GRANULAR | 0x40);

/// A selector of the LDT, for our ring.
pub const fn local(slot: u16) -> Selector {
    Selector(slot << 3 | 4 | RING as u16)
}

/// Slots of the GDT with data that is ours to use, so that each data register can hold something of its own.
const DATA_SLOTS: [u16; 3] = [20, 21, 700];

/// The tables.
pub struct Tables {
    gdt: [Frame; 2],
    /// Pages of the LDT, one behind the other. Not installed.
    pub ldt: [Frame; 2],
}

impl Tables {
    /// Makes and installs a GDT.
    pub fn install() -> Self {
        let tables = Self::filled(&[]);
        for slot in DATA_SLOTS {
            tables.set(slot, GOOD_DATA);
        }
        tables
    }

    /// Makes a GDT that holds these descriptors, and installs it.
    pub fn filled(descriptors: &[(u16, u64)]) -> Self {
        let frame = || memory::alloc_frame().expect("padding");
        let tables = Self { gdt: [frame(), frame()], ldt: [frame(), frame()] };
        assert_eq!(tables.ldt[0].virt().raw() + 4096, tables.ldt[1].virt().raw());
        for &(slot, descriptor) in descriptors {
            let at = tables.gdt[usize::from(slot) / 512].words().cast::<u64>();
            // SAFETY: a fresh frame.
            unsafe { at.add(usize::from(slot) % 512).write_volatile(descriptor) };
        }
        for frame in tables.gdt {
            // SAFETY: no reference into the frame exists.
            unsafe { memory::remap(frame, PteFlags::KERNEL_RO) }.expect("a frame of ours");
        }
        tables.reinstall();
        tables
    }

    /// Makes it the GDT once more.
    pub fn reinstall(&self) {
        let frames = self.gdt.map(|frame| hypercall::frame_word(frame.mfn()));
        // SAFETY: the selectors in use are the reserved ones, which the hypervisor fills in, or the caller wants to see
        // what becomes of them.
        unsafe { hypercall::set_gdt(&frames, ENTRIES) }.expect("frames of ours");
    }

    /// Selectors for ds, es, fs and gs: four that differ.
    pub fn data_selectors(&self) -> [Selector; 4] {
        let [a, b, c] = DATA_SLOTS.map(|slot| Selector::gdt(slot, RING));
        [a, b, c, Arch::FLAT_GUESTOS_DS]
    }

    /// Machine address of a descriptor of the GDT.
    pub fn address(&self, slot: u16) -> MachineAddr {
        let (page, index) = (usize::from(slot) / 512, u64::from(slot) % 512);
        MachineAddr(self.gdt[page].mfn().addr().raw() + index * 8)
    }

    /// Changes a descriptor of the GDT.
    #[track_caller]
    pub fn set(&self, slot: u16, descriptor: u64) {
        // SAFETY: no segment in use, or the caller wants to see what becomes of it.
        let result = unsafe { hypercall::update_descriptor(self.address(slot), descriptor) };
        check_eq!(result, Ok(()), "descriptor {descriptor:#x} in slot {slot}");
    }
}
