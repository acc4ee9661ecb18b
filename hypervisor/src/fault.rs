//! The end: reports of panics and of faults in the hypervisor.
//!
//! A report may find the machine in any state. It takes no lock that it cannot do without ([`console::emergency`]),
//! reads the stack only where the stack is, and if it faults itself, stops at once.

use crate::console;
use crate::cpu::entry::{Origin, TrapFrame};
use crate::cpu::idt::Vector;
use crate::cpu::ipi;
use crate::cpu::percpu::{self, Cpu, CpuId, StackAddress};
use crate::mm::{layout, paging};
use crate::power;
use crate::symbols::{Symbolised, build_id};
use core::arch::asm;
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU32, Ordering};
use x86_64::VirtAddr;
use x86_64::registers::control::{Cr2, Cr3, Cr4};

/// Frames of a backtrace that are printed.
const MAX_FRAMES: usize = 32;

/// How many reports have begun.
static REPORTS: AtomicU32 = AtomicU32::new(0);

/// Begins the one report there is: all other CPUs stop, this one too if another is faster. A second report then means
/// that the first failed.
fn begin() -> impl Write {
    ipi::stop_others();
    if REPORTS.fetch_add(1, Ordering::Relaxed) > 0 {
        let _ = writeln!(console::emergency(), "(px) a fault while reporting a fault: stopped");
        power::stop_fatally();
    }
    console::emergency()
}

/// Reports a trap in the hypervisor that nothing was prepared for, and stops.
pub fn report_trap(frame: &TrapFrame) -> ! {
    let mut out = begin();
    // Writing to the console cannot fail.
    let _ = describe_trap(&mut out, frame);
    drop(out);
    power::stop_fatally()
}

fn describe_trap(out: &mut impl Write, frame: &TrapFrame) -> fmt::Result {
    let vector = frame.vector();
    let whose = match frame.origin() {
        Origin::Hypervisor => "in the hypervisor",
        Origin::Guest => "from a guest, with nobody to take it",
    };
    writeln!(out, "(px) FATAL: {} (vector {:#04x}) {whose}", vector.name(), vector.0)?;
    if let Some(reason) = stack_overflow(frame) {
        writeln!(out, "(px) {reason}")?;
    }
    if vector == Vector::PAGE_FAULT {
        writeln!(out, "(px) error code {:#x}: {}", frame.error_code, PageFaultCode(frame.error_code))?;
    } else if vector.has_error_code() {
        writeln!(out, "(px) error code {:#x}: {}", frame.error_code, SelectorCode(frame.error_code))?;
    }
    identify(out)?;
    registers(out, frame)?;
    if frame.origin() == Origin::Hypervisor {
        code_bytes(out, frame.rip)?;
        writeln!(out, "(px) backtrace:")?;
        writeln!(out, "(px)   {:#018x} {}", frame.rip, Symbolised(VirtAddr::new_truncate(frame.rip)))?;
        caller(out, frame)?;
        backtrace(out, frame.rbp)?;
    }
    Ok(())
}

/// Which build this is, and which CPU.
fn identify(out: &mut impl Write) -> fmt::Result {
    let cpu = Cpu::try_current().map_or(CpuId::BOOT, |cpu| cpu.id);
    writeln!(out, "(px) Proxenos {} build {}, CPU {}", env!("CARGO_PKG_VERSION"), build_id(), cpu.0)?;
    match ipi::stopped() {
        0 => Ok(()),
        others => writeln!(out, "(px) {others} other CPUs stopped"),
    }
}

fn registers(out: &mut impl Write, f: &TrapFrame) -> fmt::Result {
    writeln!(out, "(px) rip {:016x} cs  {:04x} rflags {:08x}", f.rip, f.cs, f.rflags)?;
    writeln!(out, "(px) rsp {:016x} ss  {:04x}", f.rsp, f.ss)?;
    writeln!(out, "(px) rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}", f.rax, f.rbx, f.rcx, f.rdx)?;
    writeln!(out, "(px) rsi {:016x} rdi {:016x} rbp {:016x} r8  {:016x}", f.rsi, f.rdi, f.rbp, f.r8)?;
    writeln!(out, "(px) r9  {:016x} r10 {:016x} r11 {:016x} r12 {:016x}", f.r9, f.r10, f.r11, f.r12)?;
    writeln!(out, "(px) r13 {:016x} r14 {:016x} r15 {:016x}", f.r13, f.r14, f.r15)?;
    let cr3 = Cr3::read().0.start_address().as_u64();
    writeln!(out, "(px) cr2 {:016x} cr3 {cr3:016x} cr4 {:08x}", Cr2::read_raw(), Cr4::read_raw())
}

/// If the fault was a push into the guard page below a stack, which one's.
fn stack_overflow(frame: &TrapFrame) -> Option<&'static str> {
    let guard = |at: u64| {
        let cpu = Cpu::try_current()?;
        let at = VirtAddr::try_new(at).ok()?;
        (percpu::classify(cpu.id, at) == StackAddress::Guard).then_some(())
    };
    let suspect = match frame.vector() {
        // The CPU could not even push the page fault's frame.
        Vector::DOUBLE_FAULT => guard(Cr2::read_raw()).or_else(|| guard(frame.rsp)),
        Vector::PAGE_FAULT => guard(Cr2::read_raw()),
        _ => None,
    };
    suspect.map(|()| "STACK OVERFLOW: the guard page below a stack was hit")
}

/// The bytes before and at `rip`, the latter in brackets.
fn code_bytes(out: &mut impl Write, rip: u64) -> fmt::Result {
    let text = layout::text();
    let Ok(at) = VirtAddr::try_new(rip) else { return Ok(()) };
    if !text.contains(&at) || at - text.start < 16 || text.end - at < 8 {
        return writeln!(out, "(px) rip is outside the hypervisor's code");
    }
    let start: *const u8 = (at - 16u64).as_ptr();
    // SAFETY: the 24 bytes lie in the image's code, which is mapped and constant.
    let bytes = unsafe { core::slice::from_raw_parts(start, 24) };
    write!(out, "(px) code")?;
    for (index, byte) in bytes.iter().enumerate() {
        if index == 16 { write!(out, " <{byte:02x}>")? } else { write!(out, " {byte:02x}")? }
    }
    writeln!(out)
}

/// Where a call to what is no code came from. There was no function yet to begin a frame, so the frame pointers do not
/// lead there: it is the word on top of the stack, if that is a call's.
fn caller(out: &mut impl Write, frame: &TrapFrame) -> fmt::Result {
    let in_text = |at: u64| VirtAddr::try_new(at).is_ok_and(|at| layout::text().contains(&at));
    if in_text(frame.rip) || !in_stack(frame.rsp) {
        return Ok(());
    }
    let word: *const u64 = VirtAddr::new_truncate(frame.rsp).as_ptr();
    // SAFETY: the word lies in the mapped part of a stack; it is read as a number, whatever it means.
    let ret = unsafe { word.read_volatile() };
    if !in_text(ret) {
        return Ok(());
    }
    writeln!(out, "(px)   {ret:#018x} {}", Symbolised(VirtAddr::new_truncate(ret.wrapping_sub(1))))
}

/// Whether two words can be read at an address because it lies in a stack of this CPU.
fn in_stack(at: u64) -> bool {
    let cpu = Cpu::try_current().map_or(CpuId::BOOT, |cpu| cpu.id);
    let is_stack = |at: u64| VirtAddr::try_new(at).is_ok_and(|at| percpu::classify(cpu, at) == StackAddress::Stack);
    at.is_multiple_of(8) && is_stack(at) && is_stack(at.wrapping_add(8))
}

/// Follows the frame pointers from `rbp` on, as long as they lead upwards within one stack.
fn backtrace(out: &mut impl Write, rbp: u64) -> fmt::Result {
    let mut frame = rbp;
    // Recursion is told once, not line by line.
    let (mut last, mut repeats) = (0, 0u32);
    let mut printed = 0;
    while printed < MAX_FRAMES {
        if !in_stack(frame) {
            break;
        }
        let words: *const [u64; 2] = VirtAddr::new_truncate(frame).as_ptr();
        // SAFETY: both words lie in the mapped part of a stack; they are read as numbers, whatever they mean.
        let [next, ret] = unsafe { words.read_volatile() };
        if ret == 0 {
            break;
        }
        if ret == last {
            repeats += 1;
        } else {
            if repeats > 0 {
                writeln!(out, "(px)   the same {repeats} times more")?;
            }
            (last, repeats) = (ret, 0);
            printed += 1;
            // A return address points behind the call, possibly at the next function.
            writeln!(out, "(px)   {ret:#018x} {}", Symbolised(VirtAddr::new_truncate(ret.wrapping_sub(1))))?;
        }
        if next <= frame {
            break;
        }
        frame = next;
    }
    Ok(())
}

/// A page fault's error code (Intel SDM vol. 3, figure 4-12).
struct PageFaultCode(u64);

impl fmt::Display for PageFaultCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bit = |bit: u32| self.0 >> bit & 1 != 0;
        let what = match (bit(4), bit(1)) {
            (true, _) => "execution",
            (false, true) => "write",
            (false, false) => "read",
        };
        let who = if bit(2) { "user" } else { "supervisor" };
        let why = match (bit(3), bit(0)) {
            (true, _) => "a page-table entry with reserved bits",
            (false, true) => "a protection",
            (false, false) => "no page",
        };
        write!(f, "{who} {what} met {why} at {:#018x}", Cr2::read_raw())?;
        let here = VirtAddr::try_new(Cr2::read_raw()).ok().and_then(paging::translate);
        if let Some((to, flags)) = here {
            write!(f, " (mapped to {to:#x}, {flags:?})")?;
        }
        Ok(())
    }
}

/// The error code of a fault that concerns a descriptor (Intel SDM vol. 3, figure 6-7).
struct SelectorCode(u64);

impl fmt::Display for SelectorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return write!(f, "no particular descriptor");
        }
        let table = match self.0 >> 1 & 3 {
            0 => "GDT",
            2 => "LDT",
            _ => "IDT",
        };
        let external = if self.0 & 1 != 0 { ", by an external event" } else { "" };
        write!(f, "{table} entry {}{external}", self.0 >> 3 & 0x1fff)
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let rbp: u64;
    // SAFETY: reads a register. The image is built with frame pointers, so it holds this function's frame.
    unsafe { asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack, preserves_flags)) }
    let mut out = begin();
    // Writing to the console cannot fail.
    let _ = describe_panic(&mut out, info, rbp);
    drop(out);
    power::stop_fatally()
}

fn describe_panic(out: &mut impl Write, info: &PanicInfo<'_>, rbp: u64) -> fmt::Result {
    write!(out, "(px) FATAL: {}", info.message())?;
    match info.location() {
        Some(at) => writeln!(out, " ({}:{})", at.file(), at.line())?,
        None => writeln!(out)?,
    }
    identify(out)?;
    writeln!(out, "(px) backtrace:")?;
    backtrace(out, rbp)
}
