//! Faults that may be the hypervisor's own doing: page faults under shadows, `int n` and far calls through closed
//! gates, the first use of the FPU, the LDT's pages. What is left is the guest's and is delivered to it.

use super::Running;
use super::deliver;
use super::fpu::{self, DeviceNotAvailable};
use super::hw::Hw;
use super::ports;
use super::trace;
use crate::cpu::entry::TrapFrame;
use crate::cpu::idt::Vector;
use crate::cpu::{debugreg, extable};
use crate::ex_table;
use crate::mm::layout;
use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};
use proxenos_abi::hypercall::VmAssistType;
use proxenos_abi::{Selector, X86_32, X86_64};
use proxenos_core::addr::GuestVirt;
use proxenos_core::assist;
use proxenos_core::bounce::DataSegments;
use proxenos_core::call_gate;
use proxenos_core::domain::Arch;
use proxenos_core::machine::CpuTables;
use proxenos_core::paging::Pager;
use proxenos_core::paging::format::{Format, FourLevel, TwoLevel};
use proxenos_core::paging::shadow::Access;
use proxenos_core::personality::Personality;
use proxenos_core::ports::string::Fault;
use proxenos_core::store::RegisterFile;
use proxenos_core::trace::Event;
use x86_64::instructions::tables::{lidt, sidt};
use x86_64::registers::control::Cr2;
use x86_64::structures::DescriptorTablePointer;

/// Error code of a page fault: the page was present (Intel SDM vol. 3 §4.7).
pub const PRESENT: u64 = 1 << 0;
/// It was a write.
pub const WRITE: u64 = 1 << 1;
/// It came from ring 3.
pub const USER: u64 = 1 << 2;
/// Flags that say something of the instruction that was interrupted: it is stepped, and its breakpoint is done.
const TRAP_FLAG: u64 = 1 << 8;
const RESUME_FLAG: u64 = 1 << 16;
/// Bytes of a full descriptor table.
const FULL_TABLE: u64 = 8192 * 8;

/// Where a gate's number begins in an error code: bit 3 (Intel SDM vol. 3 §6.13), but 4 on CPUs that get it wrong.
static GATE_SHIFT: AtomicU32 = AtomicU32::new(3);

/// Finds out how this CPU numbers gates in error codes. QEMU's emulation (7.2 at least) puts the gate's offset there,
/// halved, which in long mode is twice its number; a guest's `int n` would then be taken for another. Other CPUs are
/// not asked: some hosts' KVM cannot emulate the question.
pub fn init() {
    let host = raw_cpuid::CpuId::new().get_hypervisor_info();
    if host.is_none_or(|host| host.identify() != raw_cpuid::Hypervisor::QEMU) {
        return;
    }
    const VECTOR: u64 = 0xff;
    let full = sidt();
    let short = DescriptorTablePointer { limit: (VECTOR * 16 - 1) as u16, base: full.base };
    // SAFETY: the table is the same but for the last vector, the spurious interrupt's, which cannot come while
    // interrupts are disabled. `int` finds no gate, faults, and goes on behind itself.
    unsafe {
        lidt(&short);
        asm!("2: int {vector}", "3:", ex_table!("2b", "3b"), vector = const VECTOR);
        lidt(&full);
    }
    if extable::last_error_code() == VECTOR << 4 | 2 {
        log::debug!("this CPU doubles the gate numbers in error codes");
        GATE_SHIFT.store(4, Ordering::Relaxed);
    }
}

/// How an access failed, from the fault's error code.
pub fn access(error_code: u64) -> Access {
    Access { write: error_code & WRITE != 0, user: error_code & USER != 0 }
}

/// A page fault in a guest.
pub fn page_fault(run: &mut Running, frame: &mut TrapFrame) {
    let at = Cr2::read_raw();
    if (layout::HYPERVISOR_START..layout::HYPERVISOR_END).contains(&at) {
        return fault_in_hypervisor_range(run, frame, at);
    }
    let mut code = frame.error_code;
    trace::event(|| Event::PageFault { domain: run.dom.id, code: code as u32, address: at, ip: frame.rip });
    if table_fault(run, frame, GuestVirt(at)) == assist::Outcome::Resolved {
        return;
    }
    let resolved = match run.dom.arch {
        Arch::X86_32 => shadow_fault::<TwoLevel>(run, GuestVirt(at), &mut code),
        Arch::X86_64 => run.dom.log.is_on() && shadow_fault::<FourLevel>(run, GuestVirt(at), &mut code),
    };
    if resolved {
        return;
    }
    deliver::exception(run, frame, Vector::PAGE_FAULT, code as u32, Some(GuestVirt(at)));
}

/// A fault under shadows: true if it is one of theirs, and dealt with. Else its code is made what the guest's own
/// tables say.
#[inline]
fn shadow_fault<F: Format>(run: &Running, at: GuestVirt, code: &mut u64) -> bool {
    let mut state = run.dom.paging.lock();
    let pager = Pager::new(run.host, &run.dom);
    if pager.resolve_shadow_fault::<F>(&mut state, at, access(*code)) {
        return true;
    }
    // The shadow may lack an entry that the guest's tables have: whether there is a page is theirs to say.
    let present = pager.walk_as_cpu::<F>(&state, at).is_some_and(|found| found.entry.present());
    *code = *code & !PRESENT | if present { PRESENT } else { 0 };
    false
}

/// A fault that comes of writable page tables, perhaps.
#[inline]
fn table_fault(run: &mut Running, frame: &mut TrapFrame, at: GuestVirt) -> assist::Outcome {
    if !run.dom.is_assisted(VmAssistType::WritablePagetables) {
        return assist::Outcome::Other;
    }
    match run.dom.arch {
        Arch::X86_32 => table_fault_of::<X86_32>(run, frame, at),
        Arch::X86_64 => table_fault_of::<X86_64>(run, frame, at),
    }
}

fn table_fault_of<P: Personality>(run: &mut Running, frame: &mut TrapFrame, at: GuestVirt) -> assist::Outcome {
    let (host, dom, segments) = (run.host, &*run.dom, &mut run.vcpu.segments);
    let (cs, before, access) = (Selector(frame.cs as u16), frame.rip, access(frame.error_code));
    let outcome = assist::page_fault::<P, Hw, _>(host, dom, at, access, frame, || {
        segments.code_segments::<P, Hw>(host, dom, cs, data_selector())
    });
    if frame.rip != before {
        instruction_done(run, frame);
    }
    outcome
}

/// An instruction was carried out for the guest: it is done as far as breakpoints and single steps are concerned too.
fn instruction_done(run: &mut Running, frame: &mut TrapFrame) {
    let steps = frame.rflags & TRAP_FLAG != 0;
    frame.rflags &= !RESUME_FLAG;
    if steps {
        run.vcpu.debug.report_step();
        debug(run, frame);
    }
}

/// The guest's DS, which nothing on the way here has changed.
fn data_selector() -> Selector {
    let ds: u16;
    // SAFETY: reads a segment register.
    unsafe { asm!("mov {:x}, ds", out(reg) ds, options(nomem, nostack, preserves_flags)) }
    Selector(ds)
}

/// A general register of a frame, borrowed by the number that instructions have for it.
macro_rules! register {
    ($frame:ident, $number:expr, $($borrow:tt)+) => {
        match $number & 15 {
            0 => $($borrow)+ $frame.rax,
            1 => $($borrow)+ $frame.rcx,
            2 => $($borrow)+ $frame.rdx,
            3 => $($borrow)+ $frame.rbx,
            4 => $($borrow)+ $frame.rsp,
            5 => $($borrow)+ $frame.rbp,
            6 => $($borrow)+ $frame.rsi,
            7 => $($borrow)+ $frame.rdi,
            8 => $($borrow)+ $frame.r8,
            9 => $($borrow)+ $frame.r9,
            10 => $($borrow)+ $frame.r10,
            11 => $($borrow)+ $frame.r11,
            12 => $($borrow)+ $frame.r12,
            13 => $($borrow)+ $frame.r13,
            14 => $($borrow)+ $frame.r14,
            _ => $($borrow)+ $frame.r15,
        }
    };
}

impl RegisterFile for TrapFrame {
    #[inline]
    fn general(&self, number: u8) -> u64 {
        *register!(self, number, &)
    }

    #[inline]
    fn set_general(&mut self, number: u8, value: u64) {
        *register!(self, number, &mut) = value;
    }

    #[inline]
    fn ip(&self) -> u64 {
        self.rip
    }

    #[inline]
    fn set_ip(&mut self, value: u64) {
        self.rip = value;
    }

    #[inline]
    fn flags(&self) -> u64 {
        self.rflags
    }

    #[inline]
    fn set_flags(&mut self, value: u64) {
        self.rflags = value;
    }
}

/// A fault at an address of ours: either the CPU looked into the guest's LDT, which is mapped on demand, or the guest
/// tried to touch what is not its own.
fn fault_in_hypervisor_range(run: &mut Running, frame: &mut TrapFrame, at: u64) {
    if map_ldt_page(run, at) {
        return;
    }
    let address = match ldt_offset(run, at) {
        Some(offset) => run.vcpu.segments.ldt_address(offset),
        None => GuestVirt(at),
    };
    deliver::exception(run, frame, Vector::PAGE_FAULT, frame.error_code as u32, Some(address));
}

/// Where in the guest's LDT an address of ours lies, if it does.
fn ldt_offset(run: &Running, at: u64) -> Option<u64> {
    at.checked_sub(run.host.hw.ldt_address(run.dom.id)).filter(|&offset| offset < FULL_TABLE)
}

/// Maps the page of the guest's LDT that the CPU looked for at `at`; false if that is not what it did, or there is
/// none.
pub fn map_ldt_page(run: &mut Running, at: u64) -> bool {
    let Some(offset) = ldt_offset(run, at) else { return false };
    match run.dom.arch {
        Arch::X86_32 => run.vcpu.segments.ldt_fault::<X86_32, Hw>(run.host, &run.dom, offset),
        Arch::X86_64 => run.vcpu.segments.ldt_fault::<X86_64, Hw>(run.host, &run.dom, offset),
    }
}

/// #GP in a guest: an `int n`, whose gates are all closed, or the real thing.
pub fn general_protection(run: &mut Running, frame: &mut TrapFrame) {
    /// The error code names a gate, and the event was not external (Intel SDM vol. 3 §6.13).
    const FROM_IDT: u64 = 2;
    if frame.error_code & 7 == FROM_IDT {
        let vector = Vector((frame.error_code >> GATE_SHIFT.load(Ordering::Relaxed)) as u8);
        return deliver::software_interrupt(run, frame, vector);
    }
    if run.dom.arch == Arch::X86_32 && frame.error_code != 0 && call_gate(run, frame) {
        return;
    }
    if frame.error_code == 0 {
        match ports::general_protection(run, frame, data_selectors()) {
            ports::Outcome::Done => return instruction_done(run, frame),
            ports::Outcome::Fault(Fault::Exception(vector)) => {
                return deliver::exception(run, frame, Vector(vector), 0, None);
            }
            ports::Outcome::Fault(Fault::Page { at, write }) => {
                let access = Access { write, user: frame.cs & 3 == 3 };
                return match run.dom.arch {
                    Arch::X86_32 => deliver_page_fault::<TwoLevel>(run, frame, at, access),
                    Arch::X86_64 => deliver_page_fault::<FourLevel>(run, frame, at, access),
                };
            }
            ports::Outcome::Other => {}
        }
    }
    deliver::exception(run, frame, Vector(13), frame.error_code as u32, None);
}

/// Carries out a call or jump through a call gate of the guest's, if that is what it did, or delivers the fault that it
/// came to; false when it did something else.
fn call_gate(run: &mut Running, frame: &mut TrapFrame) -> bool {
    let low = |register: u64| register as u32;
    let mut registers = call_gate::Registers {
        general: [frame.rax, frame.rcx, frame.rdx, frame.rbx, frame.rsp, frame.rbp, frame.rsi, frame.rdi].map(low),
        ip: frame.rip as u32,
        cs: Selector(frame.cs as u16),
        ss: Selector(frame.ss as u16),
        data: data_selectors(),
    };
    let code = frame.error_code as u32;
    match call_gate::general_protection(run.host, &run.dom, &mut run.vcpu, &mut registers, code) {
        call_gate::Outcome::Other => return false,
        call_gate::Outcome::Done => {
            frame.rip = registers.ip.into();
            frame.rsp = registers.general[4].into();
            frame.cs = registers.cs.0.into();
            frame.ss = registers.ss.0.into();
        }
        call_gate::Outcome::Fault { vector, code } => deliver::exception(run, frame, Vector(vector), code, None),
        call_gate::Outcome::PageFault { at, access } => {
            deliver_page_fault::<TwoLevel>(run, frame, at, access);
        }
    }
    true
}

/// A page fault that an instruction carried out by the hypervisor came to.
fn deliver_page_fault<F: Format>(run: &mut Running, frame: &mut TrapFrame, at: GuestVirt, access: Access) {
    let pager = Pager::new(run.host, &run.dom);
    let found = pager.walk::<F>(&pager.lock(), at);
    let present = if found.is_some_and(|found| found.entry.present()) { PRESENT } else { 0 };
    let code = present | if access.write { WRITE } else { 0 } | if access.user { USER } else { 0 };
    deliver::exception(run, frame, Vector::PAGE_FAULT, code as u32, Some(at));
}

/// The data selectors as the guest left them.
pub fn data_selectors() -> DataSegments {
    let (ds, es, fs, gs): (u16, u16, u16, u16);
    // SAFETY: reads four registers.
    unsafe {
        asm!(
            "mov {0:x}, ds", "mov {1:x}, es", "mov {2:x}, fs", "mov {3:x}, gs",
            out(reg) ds, out(reg) es, out(reg) fs, out(reg) gs,
            options(nomem, nostack, preserves_flags)
        );
    }
    DataSegments { ds: Selector(ds), es: Selector(es), fs: Selector(fs), gs: Selector(gs) }
}

/// #NM in a guest.
pub fn device_not_available(run: &mut Running, frame: &mut TrapFrame) {
    if fpu::device_not_available(&mut run.vcpu.fpu, &run.context.fpu) == DeviceNotAvailable::ForGuest {
        deliver::exception(run, frame, Vector::DEVICE_NOT_AVAILABLE, 0, None);
    }
}

/// #DB in a guest. What DR6 says is kept for it to ask for (`get_debugreg`).
pub fn debug(run: &mut Running, frame: &mut TrapFrame) {
    run.vcpu.debug.report(debugreg::take_status());
    deliver::exception(run, frame, Vector::DEBUG, 0, None);
}
