//! What the ACPI tables say about this machine: interrupt controllers, reference clocks, how to turn it off and reset
//! it.
//!
//! The `acpi` crate finds and reads the tables. No AML is run: the one thing needed from it, the sleep type of state
//! S5, is a constant package, which [`sleep_type`] finds by its encoding.

use crate::boot::{self, info::AcpiRoot};
use crate::cpu::smp::MAX_CPUS;
use crate::mm::ioremap::{self, Access};
use crate::time::apic::ApicId;
use acpi::address::{AddressSpace, GenericAddress};
use acpi::fadt::Fadt;
use acpi::hpet::HpetInfo;
use acpi::madt::{Madt, MadtEntry};
use acpi::{AcpiHandler, AcpiTables, AmlTable, PhysicalMapping};
use arrayvec::ArrayVec;
use core::ptr::NonNull;
use proxenos_abi::MachineAddr;
use proxenos_core::pirq::Trigger;
use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::port::Port;

/// A register that a table names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Register {
    /// In the I/O space.
    Port(u16),
    /// In memory, mapped.
    Memory(VirtAddr),
}

impl Register {
    /// The register of a generic address, mapped if need be.
    fn new(address: GenericAddress) -> Option<Self> {
        match address.address_space {
            AddressSpace::SystemIo => Some(Self::Port(u16::try_from(address.address).ok().filter(|&port| port != 0)?)),
            AddressSpace::SystemMemory if address.address != 0 => {
                ioremap::map(MachineAddr(address.address), 4, Access::Device).ok().map(Self::Memory)
            }
            _ => None,
        }
    }

    /// Reads 32 bits.
    #[must_use]
    pub fn read32(self) -> u32 {
        // SAFETY: the firmware says that a readable register is there; reading the registers used here has no side
        // effect.
        unsafe {
            match self {
                Self::Port(port) => Port::new(port).read(),
                Self::Memory(at) => at.as_ptr::<u32>().read_volatile(),
            }
        }
    }

    fn read16(self) -> u16 {
        // SAFETY: as for `read32`.
        unsafe {
            match self {
                Self::Port(port) => Port::new(port).read(),
                Self::Memory(at) => at.as_ptr::<u16>().read_volatile(),
            }
        }
    }

    fn write8(self, value: u8) {
        // SAFETY: only the registers that turn off or reset the machine are written; that is what the caller wants.
        unsafe {
            match self {
                Self::Port(port) => Port::new(port).write(value),
                Self::Memory(at) => at.as_mut_ptr::<u8>().write_volatile(value),
            }
        }
    }

    fn write16(self, value: u16) {
        // SAFETY: as for `write8`.
        unsafe {
            match self {
                Self::Port(port) => Port::new(port).write(value),
                Self::Memory(at) => at.as_mut_ptr::<u16>().write_volatile(value),
            }
        }
    }
}

/// The ACPI power management timer: counts up at 3.579545 MHz.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PmTimer {
    /// Its register.
    pub register: Register,
    /// The bits that count: 24 or 32.
    pub mask: u32,
}

/// How the machine is turned off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum PowerOff {
    /// By the fixed hardware's control registers (ACPI 6.4, section 4.8.3.2.1).
    Fixed { pm1a: Register, pm1b: Option<Register>, type_a: u8, type_b: u8, enable: Option<(u16, u8)> },
    /// By the sleep control register of hardware-reduced ACPI (section 4.8.3.7).
    Reduced { control: Register, sleep_type: u8 },
}

/// More I/O APICs than this stay as the firmware left them, which is masked.
pub const MAX_IO_APICS: usize = 16;

/// An I/O APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoApic {
    /// Its registers.
    pub registers: MachineAddr,
    /// Number of its first input among all of the machine's ("global system interrupt").
    pub first: u32,
}

/// An interrupt of the PC/AT that arrives at another input, or is triggered in another way, than it was there
/// (ACPI 6.4, section 5.2.12.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IsaOverride {
    /// Which interrupt, 0 to 15.
    pub line: u8,
    /// The input.
    pub input: u32,
    /// How it is triggered.
    pub trigger: Trigger,
    /// Asserted is low.
    pub is_active_low: bool,
}

/// What the tables say.
#[derive(Debug, Default)]
pub struct Machine {
    /// The CPUs, by the numbers of their APICs, in the order of the table: the boot CPU is one of them.
    pub cpus: ArrayVec<ApicId, MAX_CPUS>,
    /// The I/O APICs.
    pub io_apics: ArrayVec<IoApic, MAX_IO_APICS>,
    /// Interrupts of the PC/AT that arrive in another way than they did there.
    pub isa_overrides: ArrayVec<IsaOverride, 16>,
    /// The HPET's registers.
    pub hpet: Option<MachineAddr>,
    /// The power management timer.
    pub pm_timer: Option<PmTimer>,
    /// Index of the real-time clock's century register.
    pub century_register: Option<u8>,
    power_off: Option<PowerOff>,
    reset: Option<(Register, u8)>,
}

/// Flag of a CPU's entry in the MADT: it is there, and may be started (ACPI 6.4, table 5.47).
const CPU_ENABLED: u32 = 1 << 0;

impl Machine {
    /// Notes a CPU. Firmware may name one in both of its ways.
    fn add_cpu(&mut self, cpu: ApicId) {
        if !self.cpus.contains(&cpu) {
            let _ = self.cpus.try_push(cpu);
        }
    }
}

static MACHINE: Once<Machine> = Once::new();

/// What the tables say; nothing before [`init`].
pub fn machine() -> &'static Machine {
    static NOTHING: Machine = Machine {
        cpus: ArrayVec::new_const(),
        io_apics: ArrayVec::new_const(),
        isa_overrides: ArrayVec::new_const(),
        hpet: None,
        pm_timer: None,
        century_register: None,
        power_off: None,
        reset: None,
    };
    MACHINE.get().unwrap_or(&NOTHING)
}

/// Maps firmware tables for the crate.
#[derive(Clone)]
struct Mapper;

impl AcpiHandler for Mapper {
    unsafe fn map_physical_region<T>(&self, at: usize, size: usize) -> PhysicalMapping<Self, T> {
        // A table may be shorter than the structure that describes its newest version.
        let size = size.max(size_of::<T>());
        let Ok(start) = ioremap::map(MachineAddr(at as u64), size as u64, Access::Table) else {
            panic!("the ACPI tables name {size} bytes at {at:#x}, which cannot be mapped");
        };
        let start = NonNull::new(start.as_mut_ptr()).expect("mapped addresses are not null");
        // SAFETY: `start` maps the region, readable for as long as the mapping lives. The crate only reads it.
        unsafe { PhysicalMapping::new(at, start, size, size, self.clone()) }
    }

    fn unmap_physical_region<T>(region: &PhysicalMapping<Self, T>) {
        let at = VirtAddr::from_ptr(region.virtual_start().as_ptr());
        ioremap::unmap(at, region.region_length() as u64);
    }
}

/// Reads the tables.
pub fn init() {
    // SAFETY: the loader vouches for the address, or the BIOS's memory is searched, which holds no registers that
    // reading would upset.
    let tables = unsafe {
        match boot::info().acpi {
            Some(AcpiRoot::Rsdp(at)) => AcpiTables::from_rsdp(Mapper, at.0 as usize),
            Some(AcpiRoot::Rsdt(at)) => AcpiTables::from_rsdt(Mapper, 0, at.0 as usize),
            Some(AcpiRoot::Xsdt(at)) => AcpiTables::from_rsdt(Mapper, 2, at.0 as usize),
            None => AcpiTables::search_for_rsdp_bios(Mapper),
        }
    };
    match tables {
        Ok(tables) => {
            MACHINE.call_once(|| read(&tables));
        }
        Err(error) => log::warn!("no ACPI tables: {error:?}"),
    }
}

fn read(tables: &AcpiTables<Mapper>) -> Machine {
    let mut machine = Machine::default();
    if let Ok(madt) = tables.find_table::<Madt>() {
        for entry in madt.get().entries() {
            match entry {
                MadtEntry::LocalApic(cpu) if cpu.flags & CPU_ENABLED != 0 => {
                    machine.add_cpu(ApicId(cpu.apic_id.into()));
                }
                MadtEntry::LocalX2Apic(cpu) if cpu.flags & CPU_ENABLED != 0 => {
                    machine.add_cpu(ApicId(cpu.x2apic_id));
                }
                MadtEntry::IoApic(chip) => {
                    let registers = MachineAddr(chip.io_apic_address.into());
                    let _ = machine.io_apics.try_push(IoApic { registers, first: chip.global_system_interrupt_base });
                }
                MadtEntry::InterruptSourceOverride(entry) if entry.bus == 0 && entry.irq < 16 => {
                    // As the bus has it, or 3 for the other way: the PC/AT's is edges, and high.
                    let is_active_low = entry.flags & 3 == 3;
                    let trigger = if entry.flags >> 2 & 3 == 3 { Trigger::Level } else { Trigger::Edge };
                    let input = entry.global_system_interrupt;
                    let moved = IsaOverride { line: entry.irq, input, trigger, is_active_low };
                    let _ = machine.isa_overrides.try_push(moved);
                }
                _ => {}
            }
        }
    }
    machine.hpet = HpetInfo::new(tables).ok().map(|hpet| MachineAddr(hpet.base_address as u64));
    let Ok(fadt) = tables.find_table::<Fadt>() else { return machine };
    let flags = fadt.flags;
    machine.pm_timer = fadt.pm_timer_block().ok().flatten().and_then(|address| {
        let mask = if flags.pm_timer_is_32_bit() { u32::MAX } else { 0xff_ffff };
        Some(PmTimer { register: Register::new(address)?, mask })
    });
    machine.century_register = Some(fadt.century).filter(|&index| index != 0);
    if flags.supports_system_reset_via_fadt() {
        machine.reset = fadt.reset_register().ok().and_then(|at| Some((Register::new(at)?, fadt.reset_value)));
    }
    machine.power_off = power_off(tables, &fadt);
    machine
}

fn power_off(tables: &AcpiTables<Mapper>, fadt: &Fadt) -> Option<PowerOff> {
    let mut code = tables.dsdt().ok().into_iter().chain(tables.ssdts());
    let [type_a, type_b] = code.find_map(|table| with_aml(&table, sleep_type))?;
    if { fadt.flags }.system_is_hw_reduced_acpi() {
        let control = Register::new(fadt.sleep_control_register().ok()??)?;
        return Some(PowerOff::Reduced { control, sleep_type: type_a });
    }
    let enable = u16::try_from(fadt.smi_cmd_port).ok().filter(|&port| port != 0 && fadt.acpi_enable != 0);
    Some(PowerOff::Fixed {
        pm1a: Register::new(fadt.pm1a_control_block().ok()?)?,
        pm1b: fadt.pm1b_control_block().ok().flatten().and_then(Register::new),
        type_a,
        type_b,
        enable: enable.map(|port| (port, fadt.acpi_enable)),
    })
}

/// Calls `look` with the byte code of a table.
fn with_aml<R>(table: &AmlTable, look: impl FnOnce(&[u8]) -> Option<R>) -> Option<R> {
    let length = table.length as usize;
    let start = ioremap::map(MachineAddr(table.address as u64), length as u64, Access::Table).ok()?;
    // SAFETY: `length` bytes are mapped from `start` on, and nothing writes to firmware tables.
    let result = look(unsafe { core::slice::from_raw_parts(start.as_ptr(), length) });
    ioremap::unmap(start, length as u64);
    result
}

/// The two sleep types of `Name (_S5, Package () {a, b, ..})` in AML byte code (ACPI 6.4, sections 7.4.2 and 20.2.5.4).
fn sleep_type(aml: &[u8]) -> Option<[u8; 2]> {
    const PACKAGE: u8 = 0x12;
    let name = aml.windows(5).position(|bytes| &bytes[..4] == b"_S5_" && bytes[4] == PACKAGE)?;
    let package = &aml[name + 5..];
    // The two highest bits of the package's first byte tell how many more bytes its length has; then comes the number
    // of elements.
    let header = 1 + usize::from(package.first()? >> 6) + 1;
    let mut rest = package.get(header..)?.iter();
    let mut number = || match rest.next()? {
        0x00 => Some(0),
        0x01 => Some(1),
        0x0a => rest.next().copied(),
        _ => None,
    };
    let first = number()?;
    Some([first & 7, number().unwrap_or(first) & 7])
}

/// Enters S5: the machine goes off. Returns if it cannot or does not.
pub fn enter_s5() {
    match machine().power_off {
        None => {}
        Some(PowerOff::Reduced { control, sleep_type }) => control.write8(sleep_type << 2 | 1 << 5),
        Some(PowerOff::Fixed { pm1a, pm1b, type_a, type_b, enable }) => {
            const SCI_EN: u16 = 1 << 0;
            const SLP_TYP: u16 = 7 << 10;
            const SLP_EN: u16 = 1 << 13;
            if let Some((port, value)) = enable.filter(|_| pm1a.read16() & SCI_EN == 0) {
                // SAFETY: the FADT says that writing this value to this port hands the registers over to us.
                unsafe { Port::new(port).write(value) };
                (0..1_000_000).find(|_| pm1a.read16() & SCI_EN != 0);
            }
            let sleep = |register: Register, sleep_type: u8| {
                let kept = register.read16() & !(SLP_TYP | SLP_EN);
                register.write16(kept | u16::from(sleep_type) << 10 | SLP_EN);
            };
            sleep(pm1a, type_a);
            if let Some(pm1b) = pm1b {
                sleep(pm1b, type_b);
            }
        }
    }
    for _ in 0..1_000_000 {
        core::hint::spin_loop();
    }
}

/// Resets the machine by the register that the FADT names. Returns if there is none.
pub fn reset() {
    if let Some((register, value)) = machine().reset {
        register.write8(value);
        for _ in 0..1_000_000 {
            core::hint::spin_loop();
        }
    }
}
