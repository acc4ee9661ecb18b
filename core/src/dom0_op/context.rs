//! A virtual CPU's whole state as the interface lays it out (`full_execution_context_t`), from what it is made of and
//! back.
//!
//! The layout is the subject's architecture's. If that is not the caller's, a flag says so
//! ([`ContextFlags::OTHER_ARCH`]). The order of an x86_32 CPU's registers is that of the caller's version.
//!
//! Promise: what is made of a context ([`load`]) is what a guest may have: a state that the CPU enters outside of its
//! rings, with flags that no guest has, or an FPU image that it does not load, is refused or put right before anything
//! is changed.

use crate::addr::GuestVirt;
use crate::bounce::{Callback, DataSegments};
use crate::others::{FpuImage, MachineState, Registers};
use crate::personality::Personality;
use crate::vcpu::Vcpu;
use alloc::vec::Vec;
use proxenos_abi::context::{ContextFlags, FullExecutionContext, TrapInfo};
use proxenos_abi::dom0_ops::Dom0Version;
use proxenos_abi::x86_32::ExecutionContextV1A;
use proxenos_abi::zerocopy::{FromBytes, FromZeros, IntoBytes};
use proxenos_abi::{Errno, GuestArch, GuestWord, Selector, X86_32, X86_64};

/// A context on the heap: it is too large for a stack.
pub(super) struct Boxed<A: GuestArch>(Vec<FullExecutionContext<A>>);

impl<A: GuestArch> Boxed<A> {
    /// One of zeroes.
    pub(super) fn zeroed() -> Result<Self, Errno> {
        let mut vec = Vec::new();
        vec.try_reserve_exact(1).map_err(|_| Errno::ENOMEM)?;
        vec.push(FullExecutionContext::new_zeroed());
        Ok(Self(vec))
    }

    pub(super) fn get(&self) -> &FullExecutionContext<A> {
        &self.0[0]
    }

    pub(super) fn get_mut(&mut self) -> &mut FullExecutionContext<A> {
        &mut self.0[0]
    }
}

/// How an architecture lays its registers out.
pub(super) trait Layout: Personality {
    /// The registers as they go into a context of a version.
    fn lay_out(registers: &Registers, version: Dom0Version) -> Self::ExecutionContext;
    /// The registers that a context of a version has.
    fn take_up(context: &Self::ExecutionContext, version: Dom0Version) -> Registers;
    /// What a context keeps of the FPU.
    fn fpu(image: &FpuImage) -> Self::FpuContext;
    /// The fast trap's vector.
    fn fast_vector(index: Self::FastTrapIdx) -> u32;
    /// As [`fast_vector`](Self::fast_vector), back.
    fn fast_index(vector: u8) -> Self::FastTrapIdx;
}

impl Layout for X86_32 {
    fn lay_out(registers: &Registers, version: Dom0Version) -> Self::ExecutionContext {
        let Registers { general, ip, sp, flags, code, stack, data, .. } = *registers;
        let [eax, ebx, ecx, edx, esi, edi, ebp, ..] = general.map(|value| value as u32);
        let selector = |selector: Selector| u32::from(selector.0);
        let context = Self::ExecutionContext {
            ebx,
            ecx,
            edx,
            esi,
            edi,
            ebp,
            eax,
            ds: selector(data.ds),
            es: selector(data.es),
            fs: selector(data.fs),
            gs: selector(data.gs),
            unused: 0,
            eip: ip as u32,
            cs: selector(code),
            eflags: flags as u32,
            esp: sp as u32,
            ss: selector(stack),
        };
        match version {
            Dom0Version::V19 => context,
            // As large, field by field in another order.
            Dom0Version::V1A => Self::ExecutionContext::read_from_bytes(ExecutionContextV1A::from(context).as_bytes())
                .expect("both are as large"),
        }
    }

    fn take_up(context: &Self::ExecutionContext, version: Dom0Version) -> Registers {
        let context = match version {
            Dom0Version::V19 => *context,
            Dom0Version::V1A => {
                ExecutionContextV1A::read_from_bytes(context.as_bytes()).expect("both are as large").into()
            }
        };
        let mut general = [0; 15];
        let named = [context.eax, context.ebx, context.ecx, context.edx, context.esi, context.edi, context.ebp];
        general.iter_mut().zip(named).for_each(|(register, value)| *register = value.into());
        let selector = |value: u32| Selector(value as u16);
        Registers {
            general,
            ip: context.eip.into(),
            sp: context.esp.into(),
            flags: context.eflags.into(),
            code: selector(context.cs),
            stack: selector(context.ss),
            data: DataSegments {
                ds: selector(context.ds),
                es: selector(context.es),
                fs: selector(context.fs),
                gs: selector(context.gs),
            },
            bases: [0; 3],
        }
    }

    fn fpu(image: &FpuImage) -> Self::FpuContext {
        *image.first_chunk().expect("an image is larger")
    }

    fn fast_vector(index: u32) -> u32 {
        index
    }

    fn fast_index(vector: u8) -> u32 {
        vector.into()
    }
}

impl Layout for X86_64 {
    fn lay_out(registers: &Registers, _: Dom0Version) -> Self::ExecutionContext {
        let Registers { general, ip, sp, flags, code, stack, .. } = *registers;
        let [rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15] = general;
        Self::ExecutionContext {
            r15,
            r14,
            r13,
            r12,
            rbp,
            rbx,
            r11,
            r10,
            r9,
            r8,
            rax,
            rcx,
            rdx,
            rsi,
            rdi,
            rip: ip,
            cs: code.0.into(),
            eflags: flags,
            rsp: sp,
            ss: stack.0.into(),
        }
    }

    fn take_up(context: &Self::ExecutionContext, _: Dom0Version) -> Registers {
        let c = context;
        Registers {
            general: [
                c.rax, c.rbx, c.rcx, c.rdx, c.rsi, c.rdi, c.rbp, c.r8, c.r9, c.r10, c.r11, c.r12, c.r13, c.r14, c.r15,
            ],
            ip: c.rip,
            sp: c.rsp,
            flags: c.eflags,
            code: Selector(c.cs as u16),
            stack: Selector(c.ss as u16),
            // They have no place in this architecture's context.
            data: MachineState::ZERO.registers.data,
            bases: [0; 3],
        }
    }

    fn fpu(image: &FpuImage) -> Self::FpuContext {
        *image
    }

    fn fast_vector(_: [u8; 0]) -> u32 {
        0
    }

    fn fast_index(_: u8) -> [u8; 0] {
        []
    }
}

/// Flags that a guest may begin with: CF, PF, AF, ZF, SF, TF, DF, OF, RF, AC and ID. Not IOPL, NT, VM, VIF or VIP.
const GIVEN_FLAGS: u64 = 0x0025_0dd5;
/// Flags that every guest has: IF, and the one that is always set.
const FIXED_FLAGS: u64 = 1 << 9 | 1 << 1;
/// Where FXSAVE stores MXCSR, and which of its bits exist (Intel SDM vol. 1 §10.2.3): the others must be zero.
const MXCSR: usize = 24;
const MXCSR_MASK: u32 = 0xffff;

/// Makes a virtual CPU of a context, but for its page tables and descriptor tables. On failure it is of no use.
pub(super) fn load<A: Layout>(
    context: &FullExecutionContext<A>,
    version: Dom0Version,
    vcpu: &mut Vcpu,
    state: &mut MachineState,
) -> Result<(), Errno> {
    let cpu_ctxt = context.cpu_ctxt;
    let mut registers = A::take_up(&cpu_ctxt, version);
    // What ring 0's selectors are elsewhere is what the CPU or whoever loads them refuses; here it would be ring 0.
    let enters = |selector: Selector| match A::KERNEL_RING {
        3 => selector.rpl() == 3,
        _ => matches!(selector.rpl(), 1 | 3),
    };
    if !enters(registers.code) || !enters(registers.stack) || registers.code.rpl() != registers.stack.rpl() {
        return Err(Errno::EINVAL);
    }
    if !A::in_guest_range(GuestVirt(registers.ip), 1) {
        return Err(Errno::EINVAL);
    }
    registers.flags = registers.flags & GIVEN_FLAGS | FIXED_FLAGS;
    state.registers = registers;

    let flags = ContextFlags::from_bits_retain(context.flags.to_u64() as u32);
    vcpu.fpu.initialised = flags.contains(ContextFlags::I387_VALID);
    if vcpu.fpu.initialised {
        let fpu = context.fpu_ctxt;
        let given: &[u8] = fpu.as_ref();
        state.fpu = [0; 512];
        state.fpu[..given.len()].copy_from_slice(given);
        let mxcsr: [u8; 4] = *state.fpu[MXCSR..].first_chunk().expect("within the image");
        let mxcsr = u32::from_le_bytes(mxcsr) & MXCSR_MASK;
        state.fpu[MXCSR..MXCSR + 4].copy_from_slice(&mxcsr.to_le_bytes());
    }

    for (vector, entry) in (0..=u8::MAX).zip(context.trap_ctxt) {
        let address = entry.address;
        if address != A::Word::ZERO {
            // The table is by vector; what an entry says of its own is not asked, as in 2.0.
            vcpu.traps.set::<A>(&TrapInfo { vector, ..entry }).map_err(|_| Errno::EINVAL)?;
        }
    }
    let index = context.fast_trap_idx;
    vcpu.traps.set_fast_trap::<A>(A::fast_vector(index)).map_err(|_| Errno::EINVAL)?;
    vcpu.event_callback = callback::<A>(context.event_callback_cs, context.event_callback_eip)?;
    vcpu.failsafe_callback = callback::<A>(context.failsafe_callback_cs, context.failsafe_callback_eip)?;

    let (ss, esp) = (Selector(context.guestos_ss.to_u64() as u16), GuestVirt(context.guestos_esp.to_u64()));
    // None at all is what domain 0 begins with.
    if ss.0 != 0 && !enters(ss) {
        return Err(Errno::EINVAL);
    }
    vcpu.set_kernel_stack(ss, esp);
    let registers = context.debugreg;
    for (register, value) in (0..).zip(registers).filter(|(register, _)| !matches!(register, 4 | 5)) {
        // A register of zero is one that was never set.
        if value != A::Word::ZERO {
            let _ = vcpu.debug.set::<A>(register, value.to_u64()).map_err(|_| Errno::EINVAL)?;
        }
    }
    Ok(())
}

fn callback<A: Layout>(cs: A::Word, ip: A::Word) -> Result<Option<Callback>, Errno> {
    if ip == A::Word::ZERO {
        return Ok(None);
    }
    let callback = Callback::new::<A>(Selector(cs.to_u64() as u16), GuestVirt(ip.to_u64()));
    callback.map(Some).map_err(|_| Errno::EINVAL)
}

/// Puts what a virtual CPU is into a context, but for its page tables.
pub(super) fn store<A: Layout>(
    context: &mut FullExecutionContext<A>,
    version: Dom0Version,
    vcpu: &Vcpu,
    state: &MachineState,
) {
    let word = |value: u64| A::Word::from_u64_truncating(value);
    let flags = if vcpu.fpu.initialised { ContextFlags::I387_VALID } else { ContextFlags::empty() };
    context.flags = word(flags.bits().into());
    context.cpu_ctxt = A::lay_out(&state.registers, version);
    if vcpu.fpu.initialised {
        context.fpu_ctxt = A::fpu(&state.fpu);
    }
    let mut traps = context.trap_ctxt;
    for (vector, entry) in (0..=u8::MAX).zip(&mut traps) {
        if let Some(handler) = vcpu.traps.get(vector) {
            *entry = TrapInfo::new(vector, handler.flags(), handler.at.cs, word(handler.at.ip.0));
        }
    }
    context.trap_ctxt = traps;
    context.fast_trap_idx = A::fast_index(vcpu.traps.fast_vector());
    let (ldt_base, ldt_entries) = vcpu.segments.ldt();
    (context.ldt_base, context.ldt_ents) = (word(ldt_base.0), word(ldt_entries.into()));
    let mut frames = [A::Word::ZERO; 16];
    let mut entries = 0;
    for (slot, frame) in frames.iter_mut().zip(vcpu.segments.gdt_frames()) {
        *slot = word(frame.0);
        entries = vcpu.segments.gdt_entries();
    }
    (context.gdt_frames, context.gdt_ents) = (frames, word(entries.into()));
    let (ss, sp) = vcpu.kernel_stack;
    (context.guestos_ss, context.guestos_esp) = (word(ss.0.into()), word(sp.0));
    context.debugreg = core::array::from_fn(|register| word(vcpu.debug.get(register as u32).unwrap_or(0)));
    let place = |callback: Option<Callback>| callback.map_or((0, 0), |callback| (callback.cs.0.into(), callback.ip.0));
    let (cs, ip) = place(vcpu.event_callback);
    (context.event_callback_cs, context.event_callback_eip) = (word(cs), word(ip));
    let (cs, ip) = place(vcpu.failsafe_callback);
    (context.failsafe_callback_cs, context.failsafe_callback_eip) = (word(cs), word(ip));
}
