//! The "edu" device.

use crate::config::{self, Place};
use core::sync::atomic::{AtomicU32, Ordering};
use proxenos_guest::abi::mmu::UpdateVaFlags;
use proxenos_guest::abi::{MachineAddr, Mfn};
use proxenos_guest::memory;
use proxenos_guest::pte::{Pte, PteFlags};

/// Its vendor and device.
pub const ID: u32 = 0x11e8_1234;
/// What its first register says: version 1.0.
pub const VERSION: u32 = 0x0100_00ed;
/// Registers, by their offsets.
const INTERRUPT_STATUS: usize = 0x24;
const RAISE: usize = 0x60;
const ACKNOWLEDGE: usize = 0x64;
const DMA_SOURCE: usize = 0x80;
const DMA_TARGET: usize = 0x88;
const DMA_COUNT: usize = 0x90;
const DMA_COMMAND: usize = 0x98;
/// The device's own memory, as its DMA addresses it.
const OWN_MEMORY: u32 = 0x4_0000;
/// Bytes moved: less than the whole, which QEMU 7.2 takes for too much.
const DMA_BYTES: u32 = 2048;
/// Commands of DMA: go, and interrupt when it is done.
const FROM_MEMORY_AND_INTERRUPT: u32 = 1 | 4;
/// Command register: answers to memory, masters the bus.
const MEMORY_AND_MASTER: u32 = 6;

/// One of them.
#[derive(Clone, Copy)]
pub struct Edu {
    /// Where it is.
    pub place: Place,
    /// Its interrupt line.
    pub line: u32,
    registers: usize,
}

impl Edu {
    /// Maps the registers of the device that has them at a machine address.
    pub fn new(place: Place, at: u32, line: u32) -> Self {
        let command = config::read(place, 4, 2).1;
        config::write(place, 4, 2, command | MEMORY_AND_MASTER).expect("a device of ours");
        let page = memory::alloc_frame().expect("padding").virt();
        let entry = Pte::new(Mfn(u64::from(at) >> 12), PteFlags::KERNEL_RW | PteFlags::UNCACHED);
        // SAFETY: a fresh frame is mapped over.
        unsafe { memory::update_va_mapping(page, entry, UpdateVaFlags::INVLPG) }.expect("device memory may be mapped");
        Self { place, line, registers: page.raw() as usize }
    }

    fn register(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: a register of 32 bits of the device, mapped for good.
        unsafe { &*((self.registers + offset) as *const AtomicU32) }
    }

    fn load(&self, offset: usize) -> u32 {
        self.register(offset).load(Ordering::SeqCst)
    }

    fn store(&self, offset: usize, value: u32) {
        self.register(offset).store(value, Ordering::SeqCst);
    }

    /// Its first register.
    pub fn version(&self) -> u32 {
        self.load(0)
    }

    /// Makes it interrupt.
    pub fn raise(&self) {
        self.store(RAISE, 1);
    }

    /// Takes its interrupt back. Whether it did.
    pub fn acknowledge(&self) -> bool {
        let status = self.load(INTERRUPT_STATUS);
        self.store(ACKNOWLEDGE, status);
        status != 0
    }

    /// Makes it read from a page of memory, which takes its time, and interrupt when it is done.
    pub fn start_dma(&self, from: MachineAddr) {
        self.store(DMA_SOURCE, from.raw() as u32);
        self.store(DMA_TARGET, OWN_MEMORY);
        self.store(DMA_COUNT, DMA_BYTES);
        self.store(DMA_COMMAND, FROM_MEMORY_AND_INTERRUPT);
    }
}
