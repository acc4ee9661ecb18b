//! The context switch: what of a domain's state lies in a CPU while it runs, and the way of that to memory and back.
//!
//! There is one stack a CPU, and a guest's registers lie at its top whenever the hypervisor runs. So a switch replaces that
//! frame, on the way back to a guest, and nothing else of the stack: it is a store and a load of registers, page-table base,
//! descriptor tables, breakpoints and FPU. What is left of the old domain in the CPU when it is parked is nothing: from then on
//! any CPU may run it, look at it, or take its memory.
//!
//! No lock: what is in a CPU is that CPU's, what is in [`Running`] its owner's.

use super::{CpuLocal, Running, deliver, faults, fpu, syscall};
use crate::cpu::entry::TrapFrame;
use crate::cpu::gdt;
use crate::cpu::percpu::Cpu;
use crate::cpu::speculation;
use crate::cpu::tlb;
use crate::ex_table;
use core::arch::asm;
use proxenos_abi::{Selector, X86_32, X86_64};
use proxenos_core::bounce::DataSegments;
use proxenos_core::domain::Arch;
use proxenos_core::machine::CpuTables;
use proxenos_core::paging::Pager;
use proxenos_core::personality::Personality;
use proxenos_image::builder::InitialState;
use x86_64::VirtAddr;
use x86_64::registers::model_specific::{FsBase, GsBase, KernelGsBase};

/// A domain's state that is in the CPU while it runs, apart from what its [`Vcpu`](proxenos_core::vcpu::Vcpu) knows anyway.
#[derive(Clone, Debug)]
pub struct Context {
    /// General registers, and where it stands.
    pub frame: TrapFrame,
    /// Data selectors.
    pub data: DataSegments,
    /// Segment bases of x86_64 guests, which selectors alone do not say.
    pub bases: Bases,
    /// The FPU's registers, once it has used them.
    pub fpu: fpu::State,
}

/// Bases of the segments fs and gs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bases {
    /// Of fs.
    pub fs: VirtAddr,
    /// Of gs.
    pub gs: VirtAddr,
    /// Of gs in the other mode ([`super::user`]).
    pub other_gs: VirtAddr,
}

impl Context {
    /// As a domain starts.
    pub fn at_start(state: &InitialState) -> Self {
        let frame = TrapFrame {
            rip: state.ip.0,
            cs: state.code.0.into(),
            rflags: state.flags,
            rsp: state.sp.0,
            ss: state.data.0.into(),
            rsi: state.start_info.0,
            ..TrapFrame::default()
        };
        let data = DataSegments { ds: state.data, es: state.data, fs: state.data, gs: state.data };
        Self { frame, data, ..Self::zero() }
    }

    /// All registers zero.
    pub fn zero() -> Self {
        Self {
            frame: TrapFrame::default(),
            data: DataSegments { ds: Selector::NULL, es: Selector::NULL, fs: Selector::NULL, gs: Selector::NULL },
            bases: Bases { fs: VirtAddr::zero(), gs: VirtAddr::zero(), other_gs: VirtAddr::zero() },
            fpu: fpu::State::new(),
        }
    }
}

/// The domain that ran here no longer does: `run` gets what is the guest's. Its page tables and descriptor tables are still this
/// CPU's, until [`load`] or [`unload`].
pub fn save(local: &CpuLocal, run: &mut Running, frame: &TrapFrame) {
    // No table of its stays open while it does not run.
    drop(Pager::new(run.host, &run.dom).lock());
    let context = &mut *run.context;
    copy_frame(frame, &mut context.frame);
    context.data = faults::data_selectors();
    if run.dom.arch == Arch::X86_64 {
        context.bases = Bases { fs: FsBase::read(), gs: GsBase::read(), other_gs: KernelGsBase::read() };
    }
    fpu::save(&mut run.vcpu.fpu, &mut context.fpu);
    local.breakpoints.set(run.vcpu.debug.control() != 0);
}

/// Makes a domain the one that this CPU's tables and registers are of. `frame` becomes what it goes on with.
pub fn load(local: &CpuLocal, run: &mut Running, frame: &mut TrapFrame) {
    let root = run.dom.paging.lock().cpu_root().expect("a domain that can run has a page-table base");
    tlb::begin_to_walk();
    run.host.hw.load_root(root);
    run.vcpu.segments.load(run.host, &run.dom);
    if local.syscall.replace(Some(run.dom.arch)) != Some(run.dom.arch) {
        syscall::allow(run.dom.arch);
    }
    if run.vcpu.debug.control() != 0 || local.breakpoints.get() {
        run.host.hw.load_breakpoints(&run.vcpu.debug);
    }
    speculation::enter_domain();
    fpu::enter(&mut run.vcpu.fpu, &run.context.fpu);
    copy_frame(&run.context.frame, frame);
    let data = run.context.data;
    map_local_segments(run, &data);
    let loaded = load_data_segments(&data);
    if run.dom.arch == Arch::X86_64 {
        FsBase::write(run.context.bases.fs);
        GsBase::write(run.context.bases.gs);
        KernelGsBase::write(run.context.bases.other_gs);
    }
    if loaded == Loaded::Partly {
        deliver::segments_refused(run, frame, data);
    }
}

/// Leaves this CPU with nothing of any domain's: the hypervisor's own page tables and descriptor tables.
pub fn unload(cpu: &Cpu) {
    tlb::rest();
    // SAFETY: the CPU's own table, which was filled when its area was built, and is never unmapped.
    unsafe { gdt::load(cpu.area().gdt()) }
}

/// Copies a frame, by words: what the compiler calls for so many bytes copies single ones, on the CPUs that do that fast.
#[inline]
fn copy_frame(from: &TrapFrame, to: &mut TrapFrame) {
    // SAFETY: two frames, of which the second is ours alone; the direction flag is clear.
    unsafe {
        asm!(
            "rep movsq",
            inout("rcx") size_of::<TrapFrame>() / 8 => _,
            inout("rsi") core::ptr::from_ref(from) => _,
            inout("rdi") core::ptr::from_mut(to) => _,
            options(nostack, preserves_flags)
        );
    }
}

/// The pages of the LDT that data selectors name are mapped, where the guest has them: the CPU could not ask for them in the
/// midst of a switch.
fn map_local_segments(run: &mut Running, data: &DataSegments) {
    let all = [data.ds, data.es, data.fs, data.gs];
    if all.iter().any(|selector| selector.is_local()) {
        match run.dom.arch {
            Arch::X86_32 => map_local_segments_of::<X86_32>(run, all),
            Arch::X86_64 => map_local_segments_of::<X86_64>(run, all),
        }
    }
}

#[cold]
fn map_local_segments_of<P: Personality>(run: &mut Running, all: [Selector; 4]) {
    for selector in all.into_iter().filter(|selector| selector.is_local()) {
        // Where there is none, loading the selector fails, and the guest is told.
        let _: bool = run.vcpu.segments.ldt_fault::<P, _>(run.host, &run.dom, u64::from(selector.index()) * 8);
    }
}

/// Whether all data segments could be loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Loaded {
    All,
    /// Those that could not are null.
    Partly,
}

/// Loads the segment registers that `iretq` does not. The guest may have changed its tables since it loaded them last, so each may
/// fail; such a register is made null.
fn load_data_segments(data: &DataSegments) -> Loaded {
    let failed: u32;
    // SAFETY: the selectors name descriptors of the guest's tables, which were checked, and the hypervisor uses none of the four
    // registers. One that cannot be loaded faults (#GP, #NP, or #PF at the LDT's place), and is made null behind that.
    unsafe {
        asm!(
            "xor {failed:e}, {failed:e}",
            "2: mov ds, {ds:e}",
            "3: mov es, {es:e}",
            "4: mov fs, {fs:e}",
            "5: mov gs, {gs:e}",
            "6:",
            ".pushsection .text.fixup, \"ax\", @progbits",
            "12: xor {ds:e}, {ds:e}", "mov {failed:e}, 1", "jmp 2b",
            "13: xor {es:e}, {es:e}", "mov {failed:e}, 1", "jmp 3b",
            "14: xor {fs:e}, {fs:e}", "mov {failed:e}, 1", "jmp 4b",
            "15: xor {gs:e}, {gs:e}", "mov {failed:e}, 1", "jmp 5b",
            ".popsection",
            ex_table!("2b", "12b"),
            ex_table!("3b", "13b"),
            ex_table!("4b", "14b"),
            ex_table!("5b", "15b"),
            failed = out(reg) failed,
            ds = inout(reg) u64::from(data.ds.0) => _,
            es = inout(reg) u64::from(data.es.0) => _,
            fs = inout(reg) u64::from(data.fs.0) => _,
            gs = inout(reg) u64::from(data.gs.0) => _,
            options(nostack)
        );
    }
    if failed == 0 { Loaded::All } else { Loaded::Partly }
}
