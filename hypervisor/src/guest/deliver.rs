//! Entering a guest's kernel: what `core` works out ([`proxenos_core::bounce`]) is written to the guest's stack and
//! loaded into the frame that the guest goes on with.
//!
//! A guest whose stack cannot be written, or that has no handler for what it did, cannot go on: it is stopped, with a
//! record of where it was.

use super::end::crash;
use super::hw::Hw;
use super::quick::{self, Next};
use super::{Running, faults, user};
use crate::cpu::entry::{TrapFrame, resume_guest};
use crate::cpu::idt::Vector;
use crate::cpu::percpu::Cpu;
use core::arch::asm;
use proxenos_abi::shared_info::SharedInfo;
use proxenos_abi::{Selector, X86_32, X86_64};
use proxenos_core::addr::GuestVirt;
use proxenos_core::bounce::{self, Callback, Cause, Context, DataSegments, Mode, SoftwareInterrupt, TrapHandler};
use proxenos_core::domain::Arch;
use proxenos_core::machine::{GuestMemory, MachineMemory};
use proxenos_core::personality::Personality;
use proxenos_core::vcpu::Vcpu;
use x86_64::registers::model_specific::{FsBase, GsBase};

/// An exception is the guest's to handle. `at` is the address of a page fault.
pub fn exception(run: &mut Running, frame: &mut TrapFrame, vector: Vector, code: u32, at: Option<GuestVirt>) {
    let Some(handler) = run.vcpu.traps.get(vector.0) else {
        return match at {
            Some(at) => crash(run, frame, format_args!("{} at {:#x} with no handler for it", vector.name(), at.0)),
            None => crash(run, frame, format_args!("{} with no handler for it", vector.name())),
        };
    };
    let cause = Cause::exception(vector.0, code, at.unwrap_or_default());
    enter_handler(run, frame, &handler, &cause);
}

/// The guest executed `int 0x80`, and the address is the one behind it. From here on this is as if its gate were closed
/// like others.
pub fn system_call(run: &mut Running, frame: &mut TrapFrame) {
    frame.rip = frame.rip.wrapping_sub(INT_BYTES);
    if run.dom.arch == Arch::X86_32 {
        frame.rip &= 0xffff_ffff;
    }
    software_interrupt(run, frame, Vector::SYSTEM_CALL);
}

/// Length of `int n`.
const INT_BYTES: u64 = 2;

/// The guest executed `int n`, and no gate let it through.
pub fn software_interrupt(run: &mut Running, frame: &mut TrapFrame, vector: Vector) {
    let cs = Selector(frame.cs as u16);
    let outcome = match run.dom.arch {
        Arch::X86_32 => run.vcpu.traps.software_interrupt::<X86_32>(vector.0, cs, Mode::of_ring(cs)),
        Arch::X86_64 => run.vcpu.traps.software_interrupt::<X86_64>(vector.0, cs, run.vcpu.mode),
    };
    match outcome {
        SoftwareInterrupt::Deliver(handler) => {
            frame.rip = frame.rip.wrapping_add(INT_BYTES);
            enter_handler(run, frame, &handler, &Cause::Plain);
        }
        SoftwareInterrupt::Protection(code) => exception(run, frame, Vector(13), code, None),
    }
}

/// An event waits, and the guest takes upcalls: its callback is entered with events masked.
pub fn event(run: &mut Running, frame: &mut TrapFrame) {
    // A guest that has named no callback has to look for itself.
    let Some(callback) = run.vcpu.event_callback else { return };
    if quick::event(run, frame, callback) == Next::Guest {
        return mask_events(run);
    }
    mask_events(run);
    enter_kernel(run, frame, &callback, &Cause::Plain);
}

fn mask_events(run: &Running) {
    run.host.hw.store8(run.shared(SharedInfo::EVTCHN_UPCALL_MASK), 1);
}

fn enter_handler(run: &mut Running, frame: &mut TrapFrame, handler: &TrapHandler, cause: &Cause) {
    if handler.masks_events {
        mask_events(run);
    }
    enter_kernel(run, frame, &handler.at, cause);
}

/// Enters the guest's kernel.
pub fn enter_kernel(run: &mut Running, frame: &mut TrapFrame, to: &Callback, cause: &Cause) {
    match run.dom.arch {
        Arch::X86_32 => enter_kernel_of::<X86_32>(run, frame, to, cause),
        Arch::X86_64 => enter_kernel_of::<X86_64>(run, frame, to, cause),
    }
}

fn enter_kernel_of<P: Personality>(run: &mut Running, frame: &mut TrapFrame, to: &Callback, cause: &Cause) {
    let mode = frame.mode::<P>(&run.vcpu);
    // An x86_32 guest's changes with its ring.
    user::enter_kernel(run);
    let entry = bounce::enter::<P>(&frame.context(), mode, run.vcpu.kernel_stack, to, cause);
    let base = match P::ARCH {
        Arch::X86_32 => match run.vcpu.segments.stack_base::<P, Hw>(run.host, &run.dom, entry.frame.ss) {
            Some(base) => base,
            None => {
                return crash(run, frame, format_args!("its kernel's stack segment {:04x} is none", entry.frame.ss.0));
            }
        },
        Arch::X86_64 => 0,
    };
    let mut at = GuestVirt(entry.frame.sp.wrapping_add(base));
    if P::ARCH == Arch::X86_32 {
        at.0 &= 0xffff_ffff;
    }
    let write = |bytes: &[u8]| run.host.hw.copy_to_guest(at, bytes);
    if !P::in_guest_range(at, entry.frame.size()) || entry.frame.with_bytes(write).is_err() {
        return crash(run, frame, format_args!("its kernel's stack at {:#x} cannot be written", at.0));
    }
    frame.set_context(&entry.context);
}

impl TrapFrame {
    /// What entering the kernel saves or changes.
    #[inline(always)]
    pub fn context(&self) -> Context {
        Context {
            ip: self.rip,
            cs: Selector(self.cs as u16),
            flags: self.rflags,
            sp: self.rsp,
            ss: Selector(self.ss as u16),
            rcx: self.rcx,
            r11: self.r11,
        }
    }

    /// Who was interrupted.
    #[inline(always)]
    pub fn mode<P: Personality>(&self, vcpu: &Vcpu) -> Mode {
        match P::ARCH {
            Arch::X86_32 => Mode::of_ring(Selector(self.cs as u16)),
            Arch::X86_64 => vcpu.mode,
        }
    }

    /// Where the guest goes on. (rcx and r11 stay what they are.)
    #[inline(always)]
    pub fn set_context(&mut self, context: &Context) {
        self.rip = context.ip;
        self.cs = context.cs.0.into();
        self.rflags = context.flags;
        self.rsp = context.sp;
        self.ss = context.ss.0.into();
    }
}

/// The `iretq` to a guest faulted: what the guest was to go on with cannot be loaded. Its kernel is told by the
/// failsafe callback; if that is what could not be entered, the guest is at its end.
///
/// `fault` is the frame of the fault, taken in the hypervisor; the guest's general registers are in it, and its `rsp`
/// points to the five words that `iretq` was to load.
pub fn return_failed(fault: &TrapFrame) -> ! {
    // What `iretq` itself raises for what it loads. A machine check or a double fault there is no fault of the guest's.
    if !matches!(fault.vector().0, 10..=14) {
        crate::fault::report_trap(fault);
    }
    // SAFETY: the stack of this CPU, where `trap_return` had just come to the last five words of the guest's frame.
    let [rip, cs, rflags, rsp, ss] = unsafe { *(fault.rsp as *const [u64; 5]) };
    let mut frame = TrapFrame { rip, cs, rflags, rsp, ss, ..*fault };
    let cpu = Cpu::current();
    // SAFETY: the entry that led here has ended, and with it its reference.
    let Some(run) = (unsafe { cpu.local.running() }) else { crate::fault::report_trap(fault) };
    match run.vcpu.failsafe_callback {
        Some(callback) if run.vcpu.mode == Mode::User || (callback.cs.0, callback.ip.0) != (cs as u16, rip) => {
            // Bits that no `iretq` may bring back must not go on into the handler either.
            frame.rflags = frame.rflags & !IOPL | IF;
            let segments = data_segments(run.dom.arch);
            enter_kernel(run, &mut frame, &callback, &Cause::Failsafe(segments));
        }
        _ => crash(
            run,
            &frame,
            format_args!("its state cannot be loaded ({}), and it has no way to be told", fault.vector().name()),
        ),
    }
    super::leave(cpu, run, &mut frame);
    // SAFETY: the frame is the guest's, changed only by entering its kernel; page and descriptor tables are its own.
    // The stack between here and that frame is not needed.
    unsafe {
        cpu.guest_frame().write(frame);
        resume_guest()
    }
}

/// The guest's data segments could not be loaded when it was to go on: its tables have changed since it loaded them.
/// Its kernel is told by the failsafe callback, with all four null.
#[cold]
pub fn segments_refused(run: &mut Running, frame: &mut TrapFrame, segments: DataSegments) {
    let _ = data_segments(run.dom.arch);
    match run.vcpu.failsafe_callback {
        Some(callback) => enter_kernel(run, frame, &callback, &Cause::Failsafe(segments)),
        None => crash(run, frame, format_args!("its data segments cannot be loaded, and it has no way to be told")),
    }
}

/// I/O privilege level, which is always 0 in a guest's flags.
const IOPL: u64 = 3 << 12;
/// Interrupts are on whenever a guest runs.
const IF: u64 = 1 << 9;

/// The data selectors as they are, for the failsafe frame; then null, so that the kernel starts with something sound.
/// An x86_64 guest's bases of fs and gs stay: they may be those of `set_segment_base`, by which its kernel finds what
/// is its own.
fn data_segments(arch: Arch) -> DataSegments {
    let left = faults::data_selectors();
    let bases = (FsBase::read(), GsBase::read());
    // SAFETY: null selectors can always be loaded; the hypervisor uses none of the four.
    unsafe {
        asm!(
            "mov ds, {0:x}", "mov es, {0:x}", "mov fs, {0:x}", "mov gs, {0:x}",
            in(reg) 0u64,
            options(nostack, preserves_flags)
        );
    }
    if arch == Arch::X86_64 {
        FsBase::write(bases.0);
        GsBase::write(bases.1);
    }
    left
}
