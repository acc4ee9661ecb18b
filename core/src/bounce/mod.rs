//! Entering a guest's kernel: its trap handlers and callbacks, and the frames it is entered with.
//!
//! Everything here is arithmetic on registers; the caller writes the [`Frame`] to the guest's stack (with fault
//! recovery) and loads the registers. Promises: what the guest finds is what Xen 2.0 would have left on the stack, word
//! for word; no handler's selector leads to ring 0 or to a segment of the hypervisor's; on x86_64 no handler's address
//! is non-canonical. No lock: a [`TrapTable`] belongs to whoever runs the virtual CPU.
//!
//! Sources: 2.0's entry path as observed (x86_32), its March 2005 successor's (x86_64, where rcx and r11 are saved
//! below the hardware's part of the frame because the handler is entered by `sysret`).

mod handlers;
#[cfg(test)]
mod tests;

pub use handlers::{Callback, SYSTEM_CALL, SoftwareInterrupt, TrapHandler, TrapTable};

use crate::addr::GuestVirt;
use crate::domain::Arch;
use crate::personality::Personality;
use proxenos_abi::zerocopy::IntoBytes;
use proxenos_abi::{GuestWord, Selector};

/// Whether a guest is in its kernel or in an application.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Mode {
    /// The kernel: ring 1 on x86_32; on x86_64 ring 3, as applications, so the hypervisor keeps count.
    Kernel,
    /// An application, which has the kernel's stack switched to on entry.
    User,
}

impl Mode {
    /// The mode of an x86_32 guest, by its code selector. Ring 2 counts as an application, as in Xen 2.0.
    #[inline]
    #[must_use]
    pub const fn of_ring(cs: Selector) -> Self {
        if cs.rpl() & 2 == 0 { Self::Kernel } else { Self::User }
    }
}

/// Registers of an interrupted guest, as far as entering its kernel saves or changes them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Context {
    /// eip, rip.
    pub ip: u64,
    /// cs.
    pub cs: Selector,
    /// eflags, rflags.
    pub flags: u64,
    /// esp, rsp.
    pub sp: u64,
    /// ss.
    pub ss: Selector,
    /// rcx; unused on x86_32.
    pub rcx: u64,
    /// r11; unused on x86_32.
    pub r11: u64,
}

/// Data selectors, as they were when the hypervisor could not load them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DataSegments {
    /// ds.
    pub ds: Selector,
    /// es.
    pub es: Selector,
    /// fs.
    pub fs: Selector,
    /// gs.
    pub gs: Selector,
}

/// Why the kernel is entered. It decides what is pushed besides the interrupted registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// An event, a software interrupt, or an exception without an error code.
    Plain,
    /// An exception with an error code.
    Code(u32),
    /// A page fault.
    PageFault {
        /// The CPU's error code.
        code: u32,
        /// The address that faulted.
        at: GuestVirt,
    },
    /// The guest's own state could not be loaded; these were its data selectors.
    Failsafe(DataSegments),
}

impl Cause {
    /// The cause that goes with an exception's vector (Intel SDM vol. 3 §6.3.1, table 6-1).
    #[inline]
    #[must_use]
    pub const fn exception(vector: u8, code: u32, fault_address: GuestVirt) -> Self {
        match vector {
            14 => Self::PageFault { code, at: fault_address },
            8 | 10..=13 | 17 => Self::Code(code),
            _ => Self::Plain,
        }
    }
}

/// Words of the largest frame: x86_64's for the failsafe callback.
pub const FRAME_WORDS: usize = 11;

/// What is to be written to the guest's stack before it is entered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Segment of the stack. Its base counts on x86_32; on x86_64 all stacks are flat.
    pub ss: Selector,
    /// Offset of the frame's lowest byte in that segment; the stack pointer that the kernel starts with.
    pub sp: u64,
    /// Bytes in a word of it: 4 or 8.
    word: usize,
    /// Its words, the lowest first; those from `len` on are not part of it.
    words: [u64; FRAME_WORDS],
    /// How many words it has.
    len: usize,
}

/// Where a [`Frame`] is written.
pub trait FrameMemory {
    /// Why it cannot be.
    type Error;
    /// Writes a word, which belongs so many words above the frame's lowest byte.
    ///
    /// # Errors
    /// The word cannot be written.
    fn store<const INDEX: usize>(&mut self, word: u64) -> Result<(), Self::Error>;
}

impl Frame {
    /// Its words, the lowest first.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words[..self.len]
    }

    /// Puts words above those it has.
    #[inline(always)]
    fn push<const N: usize>(&mut self, words: [u64; N]) {
        self.words[self.len..self.len + N].copy_from_slice(&words);
        self.len += N;
    }

    /// Passes its words to `memory`, the lowest first. Inlined where mode and cause are known, this is as many stores
    /// as there are words, and no frame is ever built.
    ///
    /// # Errors
    /// The first that a store returns; the words above are not passed then.
    #[inline(always)]
    pub fn store<S: FrameMemory>(&self, memory: &mut S) -> Result<(), S::Error> {
        // A loop the compiler might keep, and with it the array.
        macro_rules! each {
            ($($index:literal)*) => {
                const { assert!([$($index),*].len() == FRAME_WORDS) };
                $(if $index < self.len {
                    memory.store::<$index>(self.words[$index])?;
                })*
            };
        }
        each!(0 1 2 3 4 5 6 7 8 9 10);
        Ok(())
    }

    /// Passes its bytes, as they are to lie in memory, to `write`.
    #[inline]
    pub fn with_bytes<R>(&self, write: impl FnOnce(&[u8]) -> R) -> R {
        if self.word == 8 {
            return write(self.words().as_bytes());
        }
        let mut narrow = [0u32; FRAME_WORDS];
        for (narrow, word) in narrow.iter_mut().zip(self.words()) {
            *narrow = *word as u32;
        }
        write(narrow[..self.len].as_bytes())
    }

    /// How many bytes it has.
    #[inline]
    #[must_use]
    pub fn size(&self) -> u64 {
        (self.len * self.word) as u64
    }
}

/// How a kernel is entered: the frame to write, then the registers to load. All others stay.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// What to write where.
    pub frame: Frame,
    /// The registers.
    pub context: Context,
}

/// Flags that are clear in a handler: TF, NT, RF and VM (Intel SDM vol. 3 §6.12.1.2, §20.3.1).
pub const CLEARED_FLAGS: u64 = 1 << 8 | 1 << 14 | 1 << 16 | 1 << 17;
/// Bits of a page fault's error code that guests get: present, write, user, and (with NX) instruction fetch.
const PAGE_FAULT_CODE: u32 = 0x17;
/// The one of them that says that an application caused it.
const PAGE_FAULT_USER: u32 = 1 << 2;
/// Long mode aligns the stack to this before it pushes (Intel SDM vol. 3 §6.14.2).
const STACK_ALIGN: u64 = 16;

/// Works out how to enter a guest's kernel at `to`.
///
/// `kernel_stack` is what `stack_switch` set. An interrupted application is left for it; an interrupted kernel goes on
/// with its own stack.
#[inline(always)]
#[must_use]
pub fn enter<P: Personality>(
    context: &Context,
    mode: Mode,
    kernel_stack: (Selector, GuestVirt),
    to: &Callback,
    cause: &Cause,
) -> Entry {
    let frame = Frame::new::<P>(context, mode, kernel_stack, cause);
    let context = frame.registers(context, to);
    Entry { frame, context }
}

impl Frame {
    /// The first half of [`enter`]: what is to be written where.
    #[inline(always)]
    #[must_use]
    pub fn new<P: Personality>(
        context: &Context,
        mode: Mode,
        kernel_stack: (Selector, GuestVirt),
        cause: &Cause,
    ) -> Self {
        let (stack_ss, stack_sp) = match mode {
            Mode::Kernel => (context.ss, context.sp),
            Mode::User => (kernel_stack.0, kernel_stack.1.0),
        };
        let mut frame = Self { ss: stack_ss, sp: 0, word: P::Word::BYTES, words: [0; FRAME_WORDS], len: 0 };
        if P::ARCH == Arch::X86_64 {
            frame.push([context.rcx, context.r11]);
        }
        match *cause {
            Cause::Plain => {}
            Cause::Code(code) => frame.push([u64::from(code)]),
            Cause::PageFault { code, at } => frame.push([at.0, u64::from(page_fault_code(P::ARCH, mode, code))]),
            Cause::Failsafe(DataSegments { ds, es, fs, gs }) => {
                frame.push([ds, es, fs, gs].map(|selector| u64::from(selector.0)));
            }
        }
        frame.push([context.ip, u64::from(context.cs.0), context.flags]);
        if P::ARCH == Arch::X86_64 || mode == Mode::User {
            frame.push([context.sp, u64::from(context.ss.0)]);
        }

        let size = frame.size();
        (frame.ss, frame.sp) = match P::ARCH {
            Arch::X86_32 => (stack_ss, u64::from((stack_sp as u32).wrapping_sub(size as u32))),
            // The kernel's data segment is flat and always the same; an application may have left any in ss.
            Arch::X86_64 => (P::FLAT_GUESTOS_DS, (stack_sp & !(STACK_ALIGN - 1)).wrapping_sub(size)),
        };
        frame
    }

    /// The second half: the registers that go with it.
    #[inline(always)]
    #[must_use]
    pub fn registers(&self, context: &Context, to: &Callback) -> Context {
        Context {
            ip: to.ip.0,
            cs: to.cs,
            flags: context.flags & !CLEARED_FLAGS,
            sp: self.sp,
            ss: self.ss,
            rcx: context.rcx,
            r11: context.r11,
        }
    }
}

/// A page fault's error code as the guest gets it. An x86_64 kernel runs in ring 3, so to the CPU all its faults are an
/// application's; here the bit says whose they were.
const fn page_fault_code(arch: Arch, mode: Mode, code: u32) -> u32 {
    let code = code & PAGE_FAULT_CODE;
    match (arch, mode) {
        (Arch::X86_64, Mode::Kernel) => code & !PAGE_FAULT_USER,
        (Arch::X86_64, Mode::User) => code | PAGE_FAULT_USER,
        (Arch::X86_32, _) => code,
    }
}
