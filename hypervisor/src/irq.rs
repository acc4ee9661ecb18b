//! Interrupt lines: the I/O APICs' inputs, and what becomes of an interrupt that comes through one.
//!
//! A line's number is the one that guests and firmware's `INTERRUPT_LINE` registers know: below 16 an interrupt of the
//! PC/AT, which the MADT may place on another input; above, the input itself. Each has a vector of its own for good.
//! All inputs are masked until [`proxenos_core::pirq`], which keeps the books, opens one.
//!
//! An interrupt finds either a guest running or the idle loop: interrupts are disabled everywhere else. It is told to
//! whoever has the line, which closes a level-triggered one, and then to the local APIC as over; so the I/O APIC never
//! has to deliver it twice for one cause.
//!
//! The lock [`REGISTERS`] makes an access to an I/O APIC one: index, then data. It is innermost.

use crate::acpi::{self, IoApic};
use crate::cpu::idt::Vector;
use crate::cpu::percpu::{Cpu, CpuId};
use crate::mm::ioremap::{self, Access};
use crate::options::Com1;
use crate::time::apic;
use crate::{boot, guest};
use arrayvec::ArrayVec;
use proxenos_abi::{DomId, Pirq};
use proxenos_core::event::{PIRQS, PirqSharing};
use proxenos_core::pirq::{LineControl, Pirqs, Trigger};
use proxenos_core::sync::Mutex;
use spin::Once;
use x86_64::VirtAddr;

/// Registers of an I/O APIC (Intel 82093AA data sheet, section 3.2): an index at 0, the register it selects at 0x10.
const WINDOW: u64 = 0x10;
const SIZE: u64 = 0x20;
const VERSION: u32 = 1;
const REDIRECTION: u32 = 0x10;
/// Bits of a redirection entry.
const ACTIVE_LOW: u32 = 1 << 13;
const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;
/// Where a redirection entry's upper half has its destination.
const DESTINATION_SHIFT: u32 = 24;
/// Interrupts of the PC/AT.
const ISA_LINES: u32 = 16;

/// Vectors of the lines: 80, and 48 more. Between them are 0x80 and 0x82, which mean something to guests.
const FIRST_VECTORS: core::ops::Range<u8> = 0x30..0x80;
const MORE_VECTORS: core::ops::Range<u8> = 0x90..0xc0;
const FIRST_COUNT: u8 = FIRST_VECTORS.end - FIRST_VECTORS.start;
const _: () = assert!(FIRST_COUNT + (MORE_VECTORS.end - MORE_VECTORS.start) == PIRQS as u8);

fn vector_of(line: Pirq) -> Vector {
    let offset = line.0 as u8;
    Vector(if offset < FIRST_COUNT {
        FIRST_VECTORS.start + offset
    } else {
        MORE_VECTORS.start + (offset - FIRST_COUNT)
    })
}

/// The line that a vector belongs to.
#[must_use]
pub fn line_of(vector: Vector) -> Option<Pirq> {
    let number = match vector.0 {
        number if FIRST_VECTORS.contains(&number) => number - FIRST_VECTORS.start,
        number if MORE_VECTORS.contains(&number) => number - MORE_VECTORS.start + FIRST_COUNT,
        _ => return None,
    };
    Some(Pirq(number.into()))
}

/// An I/O APIC, mapped.
#[derive(Clone, Copy)]
struct Chip {
    registers: VirtAddr,
    /// Number of its first input among all of the machine's.
    first: u32,
    inputs: u32,
}

static CHIPS: Once<ArrayVec<Chip, { acpi::MAX_IO_APICS }>> = Once::new();
static REGISTERS: Mutex<()> = Mutex::new(());

impl Chip {
    fn read(self, index: u32) -> u32 {
        let _guard = REGISTERS.lock();
        // SAFETY: the MADT says that an I/O APIC's registers are here, and `init` has mapped them. Nobody else uses
        // them.
        unsafe {
            self.registers.as_mut_ptr::<u32>().write_volatile(index);
            (self.registers + WINDOW).as_ptr::<u32>().read_volatile()
        }
    }

    fn write(self, index: u32, value: u32) {
        let _guard = REGISTERS.lock();
        // SAFETY: as for `read`. An entry that is not masked has a vector of a line's.
        unsafe {
            self.registers.as_mut_ptr::<u32>().write_volatile(index);
            (self.registers + WINDOW).as_mut_ptr::<u32>().write_volatile(value);
        }
    }

    /// Sets an input's redirection entry. The half with the mask comes last.
    fn redirect(self, input: u32, low: u32, destination: u32) {
        let index = REDIRECTION + 2 * input;
        self.write(index + 1, destination << DESTINATION_SHIFT);
        self.write(index, low);
    }
}

/// Finds the I/O APICs and masks all their inputs. They stay mapped, which keeps their frames from guests
/// ([`ioremap::device_frames`]).
pub fn init() {
    let chips = acpi::machine().io_apics.iter().filter_map(map).collect();
    CHIPS.call_once(|| chips);
}

fn map(chip: &IoApic) -> Option<Chip> {
    let Ok(registers) = ioremap::map(chip.registers, SIZE, Access::Device) else {
        log::warn!("no room to map the I/O APIC at {:#x}", chip.registers);
        return None;
    };
    let mut mapped = Chip { registers, first: chip.first, inputs: 0 };
    mapped.inputs = (mapped.read(VERSION) >> 16 & 0xff) + 1;
    for input in 0..mapped.inputs {
        mapped.redirect(input, MASKED, 0);
    }
    log::debug!("I/O APIC at {:#x}: inputs {}..{}, masked", chip.registers, chip.first, chip.first + mapped.inputs);
    Some(mapped)
}

/// Where a line arrives.
struct Place {
    chip: Chip,
    input: u32,
    trigger: Trigger,
    polarity: u32,
}

fn place(line: Pirq) -> Option<Place> {
    let moved = acpi::machine().isa_overrides.iter().find(|moved| u32::from(moved.line) == line.0);
    let (number, trigger, polarity) = match moved {
        Some(moved) => (moved.input, moved.trigger, if moved.is_active_low { ACTIVE_LOW } else { 0 }),
        // An input that another line of the PC/AT has been moved to is that line's.
        None if acpi::machine().isa_overrides.iter().any(|moved| moved.input == line.0) => return None,
        None if line.0 < ISA_LINES => (line.0, Trigger::Edge, 0),
        // As PCI has it.
        None => (line.0, Trigger::Level, ACTIVE_LOW),
    };
    let chips = CHIPS.get()?;
    let chip = *chips.iter().find(|chip| (chip.first..chip.first + chip.inputs).contains(&number))?;
    Some(Place { chip, input: number - chip.first, trigger, polarity })
}

/// The I/O APICs, as the books open and close lines.
struct IoApics;

impl LineControl for IoApics {
    fn trigger(&self, line: Pirq) -> Option<Trigger> {
        place(line).map(|place| place.trigger)
    }

    fn open(&self, line: Pirq) {
        let Some(place) = place(line) else { return };
        let level = if place.trigger == Trigger::Level { LEVEL } else { 0 };
        // To this CPU: the domain that binds or answers runs here. Numbers of CPUs have eight bits here.
        let cpu = Some(Cpu::current()).filter(|cpu| cpu.apic_id().0 < 0xff).unwrap_or_else(|| Cpu::of(CpuId::BOOT));
        place.chip.redirect(place.input, u32::from(vector_of(line).0) | place.polarity | level, cpu.apic_id().0);
    }

    fn close(&self, line: Pirq) {
        let Some(place) = place(line) else { return };
        let index = REDIRECTION + 2 * place.input;
        // The rest stays: an interrupt that is under way is compared with it when it ends.
        place.chip.write(index, place.chip.read(index) | MASKED);
    }
}

static LINES: Pirqs = Pirqs::new(&IoApics);

/// The books of all lines.
#[must_use]
pub fn lines() -> &'static Pirqs {
    &LINES
}

/// The line of COM1, which the hypervisor keeps for itself where it uses the port.
const COM1_LINE: Pirq = Pirq(4);

/// Lets the console interrupt. To guests its line is busy from now on, as in Xen 2.0.
pub fn open_console() {
    if boot::options().com1 == Com1::Off {
        return;
    }
    if let Err(error) = LINES.bind(DomId::XEN, COM1_LINE, PirqSharing::Exclusive) {
        log::debug!("the serial port cannot interrupt: {error:?}");
    }
    // A byte that came before was not announced, and as long as it waits none is.
    guest::console_interrupted();
}

/// A line has interrupted.
pub fn interrupt(line: Pirq) {
    if line == COM1_LINE && boot::options().com1 != Com1::Off {
        guest::console_interrupted();
    } else {
        guest::line_interrupted(line);
    }
    apic::end_of_interrupt();
}
