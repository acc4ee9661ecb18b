//! What a domain has in the CPU, with values that are recognised: registers, floating point, segments, breakpoints.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use proxenos_guest::abi::{Hypercall, Selector};
use proxenos_guest::memory::{self, Frame};
use proxenos_guest::pte::PteFlags;
use proxenos_guest::traps::{self, Outcome, vector};
use proxenos_guest::{TrapFrame, hypercall};

// Two routines that put values into all registers and say whether they stay there; the carry flag is among them, which
// `dec` leaves. The first counts down in memory. The second yields, so often, and looks behind each time; it also looks
// at what the call itself leaves: its result, and of `syscall` where it goes on and its flags.
#[cfg(target_arch = "x86_64")]
global_asm!(
    ".pushsection .text.switch_registers, \"ax\", @progbits",
    ".macro fill_registers",
    "   push rbx",
    "   push rbp",
    "   push r12",
    "   push r13",
    "   push r14",
    "   push r15",
    "   push rdi",
    "   mov rbx, 0x22222222",
    "   mov rdx, 0x44444444",
    "   mov rsi, -0x55555555",
    "   mov rbp, -0x77777777",
    "   mov r8, 0x08080808",
    "   mov r9, -0x09090909",
    "   mov r10, 0x10101010",
    "   mov r12, 0x13131313",
    "   mov r13, -0x14141414",
    "   mov r14, 0x15151515",
    "   mov r15, -0x16161616",
    ".endm",
    ".macro compare_registers",
    "   cmp rbx, 0x22222222",
    "   jne 3f",
    "   cmp rdx, 0x44444444",
    "   jne 3f",
    "   cmp rsi, -0x55555555",
    "   jne 3f",
    "   cmp rbp, -0x77777777",
    "   jne 3f",
    "   cmp r8, 0x08080808",
    "   jne 3f",
    "   cmp r9, -0x09090909",
    "   jne 3f",
    "   cmp r10, 0x10101010",
    "   jne 3f",
    "   cmp r12, 0x13131313",
    "   jne 3f",
    "   cmp r13, -0x14141414",
    "   jne 3f",
    "   cmp r14, 0x15151515",
    "   jne 3f",
    "   cmp r15, -0x16161616",
    "   jne 3f",
    ".endm",
    ".macro answer",
    "   mov eax, 1",
    "   jmp 4f",
    "3: xor eax, eax",
    "4: pop rdi",
    "   pop r15",
    "   pop r14",
    "   pop r13",
    "   pop r12",
    "   pop rbp",
    "   pop rbx",
    "   ret",
    ".endm",
    ".globl switch_registers, yield_registers",
    "switch_registers:",
    "   fill_registers",
    "   mov rax, -0x11111111",
    "   mov rcx, -0x33333333",
    "   mov rdi, 0x66666666",
    "   mov r11, -0x12121212",
    "   stc",
    "2: dec dword ptr [rsp]",
    "   jnz 2b",
    "   jnc 3f",
    "   cmp rax, -0x11111111",
    "   jne 3f",
    "   cmp rcx, -0x33333333",
    "   jne 3f",
    "   cmp rdi, 0x66666666",
    "   jne 3f",
    "   cmp r11, -0x12121212",
    "   jne 3f",
    "   compare_registers",
    "   answer",
    "yield_registers:",
    "   fill_registers",
    "2: mov eax, {sched_op}",
    "   mov edi, 0",
    "   stc",
    "   syscall",
    "5: jnc 3f",
    "   test rax, rax",
    "   jnz 3f",
    "   test rdi, rdi",
    "   jnz 3f",
    "   lea rax, [rip + 5b]",
    "   cmp rcx, rax",
    "   jne 3f",
    "   shr r11, 22",
    "   jnz 3f",
    "   compare_registers",
    "   dec dword ptr [rsp]",
    "   jnz 2b",
    "   answer",
    ".purgem fill_registers",
    ".purgem compare_registers",
    ".purgem answer",
    ".popsection",
    sched_op = const Hypercall::SchedOp.raw(),
);

#[cfg(target_arch = "x86")]
global_asm!(
    ".pushsection .text.switch_registers, \"ax\", @progbits",
    ".macro fill_registers",
    "   mov eax, [esp + 4]",
    "   push ebx",
    "   push ebp",
    "   push esi",
    "   push edi",
    "   push eax",
    "   mov ecx, 0xa3333333",
    "   mov edx, 0x44444444",
    "   mov esi, 0xb5555555",
    "   mov edi, 0x66666666",
    "   mov ebp, 0xc7777777",
    ".endm",
    ".macro compare_registers",
    "   cmp ecx, 0xa3333333",
    "   jne 3f",
    "   cmp edx, 0x44444444",
    "   jne 3f",
    "   cmp esi, 0xb5555555",
    "   jne 3f",
    "   cmp edi, 0x66666666",
    "   jne 3f",
    "   cmp ebp, 0xc7777777",
    "   jne 3f",
    ".endm",
    ".macro answer",
    "   mov eax, 1",
    "   jmp 4f",
    "3: xor eax, eax",
    "4: pop ecx",
    "   pop edi",
    "   pop esi",
    "   pop ebp",
    "   pop ebx",
    "   ret",
    ".endm",
    ".globl switch_registers, yield_registers",
    "switch_registers:",
    "   fill_registers",
    "   mov eax, 0x91111111",
    "   mov ebx, 0x22222222",
    "   stc",
    "2: dec dword ptr [esp]",
    "   jnz 2b",
    "   jnc 3f",
    "   cmp eax, 0x91111111",
    "   jne 3f",
    "   cmp ebx, 0x22222222",
    "   jne 3f",
    "   compare_registers",
    "   answer",
    "yield_registers:",
    "   fill_registers",
    "2: mov eax, {sched_op}",
    "   mov ebx, 0",
    "   stc",
    "   int 0x82",
    "   jnc 3f",
    "   test eax, eax",
    "   jnz 3f",
    "   test ebx, ebx",
    "   jnz 3f",
    "   compare_registers",
    "   dec dword ptr [esp]",
    "   jnz 2b",
    "   answer",
    ".purgem fill_registers",
    ".purgem compare_registers",
    ".purgem answer",
    ".popsection",
    sched_op = const Hypercall::SchedOp.raw(),
);

unsafe extern "C" {
    fn switch_registers(count: u32) -> u32;
    fn yield_registers(count: u32) -> u32;
}

/// Whether all registers keep their values while this counts down.
pub fn registers_are_kept(count: u32) -> bool {
    // SAFETY: saves what must be saved.
    unsafe { switch_registers(count) != 0 }
}

/// Whether all registers keep their values through so many yields.
pub fn registers_are_kept_by_yields(count: u32) -> bool {
    // SAFETY: saves what must be saved.
    unsafe { yield_registers(count) != 0 }
}

/// The code that [`registers_are_kept`] runs.
pub fn registers_code() -> usize {
    switch_registers as *const () as usize
}

/// Values for the floating-point unit: integers on its stack, vectors, and the control words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Floating {
    pub stack: [u32; 3],
    pub vectors: [u32; 8],
    pub control: u16,
    pub mxcsr: u32,
}

impl Floating {
    /// Recognisable ones.
    pub const fn of(seed: u32) -> Self {
        let mut vectors = [0; 8];
        let mut index = 0;
        while index < 8 {
            vectors[index] = seed.wrapping_mul(0x9e37_79b9).wrapping_add(index as u32 * 0x85eb);
            index += 1;
        }
        Self { stack: [seed & 0xffff, seed & 0xff, 77], vectors, control: 0x0b7f, mxcsr: 0x3f80 }
    }

    /// Loads them.
    pub fn load(&self) {
        // SAFETY: loads registers that no compiled code uses.
        unsafe {
            asm!(
                "fninit",
                "fldcw [{control}]",
                "ldmxcsr [{mxcsr}]",
                "fild dword ptr [{stack}]",
                "fild dword ptr [{stack} + 4]",
                "fild dword ptr [{stack} + 8]",
                control = in(reg) &raw const self.control,
                mxcsr = in(reg) &raw const self.mxcsr,
                stack = in(reg) self.stack.as_ptr(),
            );
            asm!("movups xmm0, [{0}]", "movups xmm7, [{0} + 16]", in(reg) self.vectors.as_ptr());
            #[cfg(target_arch = "x86_64")]
            asm!("movups xmm15, [{0}]", in(reg) self.vectors.as_ptr());
        }
    }

    /// What is in the unit now.
    pub fn store() -> Self {
        let mut seen = Self { stack: [0; 3], vectors: [0; 8], control: 0, mxcsr: 0 };
        // SAFETY: stores to the fields.
        unsafe {
            asm!(
                "fnstcw [{control}]",
                "stmxcsr [{mxcsr}]",
                "fistp dword ptr [{stack} + 8]",
                "fistp dword ptr [{stack} + 4]",
                "fistp dword ptr [{stack}]",
                control = in(reg) &raw mut seen.control,
                mxcsr = in(reg) &raw mut seen.mxcsr,
                stack = in(reg) seen.stack.as_mut_ptr(),
            );
            asm!("movups [{0}], xmm0", "movups [{0} + 16], xmm7", in(reg) seen.vectors.as_mut_ptr());
            #[cfg(target_arch = "x86_64")]
            {
                let mut last = [0_u32; 4];
                asm!("movups [{0}], xmm15", in(reg) last.as_mut_ptr());
                // The same as in the first, unless something is wrong.
                if last != seen.vectors[..4] {
                    seen.vectors = [last[0]; 8];
                }
            }
        }
        seen
    }
}

/// A local descriptor table with two data segments, which begin at places of ours.
pub struct Ldt {
    frame: Frame,
}

/// Entries of the table.
const ENTRIES: u32 = 512;
/// The kernel's ring.
const RING: u16 = if cfg!(target_arch = "x86") { 1 } else { 3 };

/// The selector of a slot of the LDT.
pub const fn local(slot: u16) -> u16 {
    slot << 3 | 4 | RING
}

/// A data segment of the kernel's ring that begins at an address and has no limit.
pub fn data_segment(base: *const u32) -> u64 {
    let base = base as usize as u64;
    0x00cf_9300_0000_ffff | (RING as u64) << 45 | (base & 0xff_ffff) << 16 | (base >> 24 & 0xff) << 56
}

impl Ldt {
    /// Makes it the domain's.
    pub fn install(bases: [*const u32; 2]) -> Self {
        let frame = memory::alloc_frame().expect("a frame for the LDT");
        for (slot, base) in bases.into_iter().enumerate() {
            // SAFETY: a fresh frame.
            unsafe { frame.words().cast::<u64>().add(slot).write(data_segment(base)) };
        }
        // SAFETY: nobody writes to the frame from now on, and no selector of an older LDT is in use.
        unsafe {
            memory::remap(frame, PteFlags::KERNEL_RO).expect("a frame can be read-only");
            memory::set_ldt(frame.virt(), ENTRIES).expect("a table of two segments");
        }
        Self { frame }
    }

    /// Changes where a segment begins, from its next load on.
    pub fn set(&self, slot: usize, raw: u64) {
        let at = memory::machine_of(proxenos_guest::abi::GuestVirt(self.frame.virt().raw() + 8 * slot as u64));
        // SAFETY: nothing is read through it.
        unsafe { hypercall::update_descriptor(at, raw) }.expect("a data segment");
    }

    /// Loads fs and gs with the two segments.
    pub fn load(&self) {
        let [fs, gs] = [local(0), local(1)].map(u32::from);
        // SAFETY: the compiler uses neither.
        unsafe { asm!("mov fs, {0:e}", "mov gs, {1:e}", in(reg) fs, in(reg) gs) };
    }

    /// What is read through fs and gs, if they are still those.
    pub fn read(&self) -> Option<[u32; 2]> {
        if selectors() != [local(0), local(1)].map(Selector) {
            return None;
        }
        let (first, second): (u32, u32);
        // SAFETY: both segments begin at words of ours.
        unsafe { asm!("mov {0:e}, fs:[0]", "mov {1:e}, gs:[0]", out(reg) first, out(reg) second) };
        Some([first, second])
    }
}

/// Whether a selector names a data segment that may be read. (No fault, whatever it names.)
pub fn is_readable(selector: u16) -> bool {
    let readable: u8;
    // SAFETY: looks only.
    unsafe { asm!("verr {0:x}", "setz {1}", in(reg) selector, out(reg_byte) readable) };
    readable != 0
}

/// ds, es, fs and gs.
pub fn data_selectors() -> [Selector; 4] {
    let (ds, es): (u32, u32);
    // SAFETY: reads two registers.
    unsafe { asm!("mov {0:e}, ds", "mov {1:e}, es", out(reg) ds, out(reg) es) };
    let [fs, gs] = selectors();
    [Selector(ds as u16), Selector(es as u16), fs, gs]
}

/// Loads one of them, by its number in [`data_selectors`].
///
/// # Safety
/// What ds and es are loaded with must begin at 0 and have no limit.
pub unsafe fn load_data_selector(which: usize, selector: Selector) {
    let selector = u32::from(selector.raw());
    // SAFETY: the compiler uses neither fs nor gs, and finds ds and es to be what they were.
    unsafe {
        match which {
            0 => asm!("mov ds, {0:e}", in(reg) selector),
            1 => asm!("mov es, {0:e}", in(reg) selector),
            2 => asm!("mov fs, {0:e}", in(reg) selector),
            _ => asm!("mov gs, {0:e}", in(reg) selector),
        }
    }
}

/// fs and gs.
pub fn selectors() -> [Selector; 2] {
    let (fs, gs): (u32, u32);
    // SAFETY: reads two registers.
    unsafe { asm!("mov {0:e}, fs", "mov {1:e}, gs", out(reg) fs, out(reg) gs) };
    [Selector(fs as u16), Selector(gs as u16)]
}

/// What breakpoints are set on.
pub static WATCHED: AtomicU32 = AtomicU32::new(0);

static DEBUG_EXCEPTIONS: AtomicUsize = AtomicUsize::new(0);

fn on_debug(_: &mut TrapFrame) -> Outcome {
    DEBUG_EXCEPTIONS.store(DEBUG_EXCEPTIONS.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    Outcome::Handled
}

/// Counts debug exceptions from now on.
pub fn count_debug_exceptions() {
    traps::set_handler(vector::DEBUG, on_debug);
}

/// Debug exceptions since the last call.
pub fn debug_exceptions() -> usize {
    DEBUG_EXCEPTIONS.swap(0, Ordering::Relaxed)
}

/// Sets the first breakpoint: a write to four bytes.
pub fn watch(at: *mut u32) {
    set_breakpoints(&[(at as usize, 0b1101)]);
}

/// Sets breakpoints, each with its address and its condition and length as DR7 has them.
pub fn set_breakpoints(all: &[(usize, usize)]) {
    let mut control = 0;
    for (number, &(at, kind)) in all.iter().enumerate() {
        hypercall::set_debugreg(number, at).expect("an address of ours");
        control |= 1 << (2 * number) | kind << (16 + 4 * number);
    }
    hypercall::set_debugreg(7, control).expect("breakpoints that may be");
}
