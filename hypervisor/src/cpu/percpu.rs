//! What each CPU has for itself: its stacks, its descriptor tables, and the [`Cpu`] at the top of its stack.
//!
//! Guests own the fs and gs bases, so the hypervisor finds its per-CPU data from the stack pointer alone: a CPU's stack
//! is [`STACK_SIZE`] bytes, aligned to that; its last eight bytes point to the [`Cpu`], which lies right below them. An
//! interrupt stack, aligned alike, has the same pointer in its last eight bytes. So [`Cpu::current`] is one `or` and
//! one load on every stack.
//!
//! No lock: a `Cpu` is used by its own CPU, with interrupts disabled; what others may touch is atomic.

use crate::cpu::entry::TrapFrame;
use crate::cpu::{features, gdt, idt};
use crate::mm::layout::{self, PAGE_SIZE, STACK_SIZE, VirtRange};
use crate::mm::paging::{self, Flags};
use crate::time::apic::ApicId;
use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use proxenos_abi::Mfn;
use proxenos_core::shootdown::CpuTlb;
use x86_64::VirtAddr;
use x86_64::structures::tss::TaskStateSegment;

/// A CPU's number: 0 is the boot CPU, the others follow in the order they are started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuId(pub u32);

impl CpuId {
    /// The CPU that booted.
    pub const BOOT: Self = Self(0);
}

bitflags::bitflags! {
    /// What interrupts left to do; see [`Cpu::take_pending`].
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Pending: u32 {
        /// The timer that [`crate::time::set_deadline`] armed has fired (or may have: look at the clock).
        const TIMER = 1 << 0;
        /// A command was typed at the console.
        const COMMAND = 1 << 1;
        /// An NMI reported a parity error.
        const PARITY_ERROR = 1 << 2;
        /// An NMI reported an I/O error.
        const IO_ERROR = 1 << 3;
        /// The run queue has changed.
        const SCHEDULE = 1 << 4;
    }
}

/// A CPU's own data, at the top of its stack. TSS.RSP0 points at its first byte, so a trap from a guest builds its
/// [`TrapFrame`] right below it.
#[repr(C, align(16))]
pub struct Cpu {
    /// Which CPU this is.
    pub id: CpuId,
    /// What interrupts left to do.
    pending: AtomicU32,
    /// When its timer is to fire, in nanoseconds of [`crate::time::now_ns`]; `u64::MAX` when it is not armed; 0 when it
    /// has fired.
    deadline: AtomicU64,
    /// Non-maskable interrupts taken.
    pub nmi_count: AtomicU64,
    /// Interrupts of its timer taken.
    pub timer_count: AtomicU64,
    /// What others know of its TLB, and want of it.
    pub tlb: CpuTlb,
    /// Where interrupts reach it.
    apic: AtomicU32,
    /// Another CPU has stopped it ([`super::ipi`]).
    pub stopped: AtomicBool,
    /// What guest code keeps per CPU.
    pub local: crate::guest::CpuLocal,
}

/// Bytes above the [`Cpu`]: the pointer to it, and eight more, so that it is aligned.
const POINTER: u64 = 16;
/// Bytes at the top of a CPU's stack that are not stack: TSS.RSP0 points below them.
pub const RESERVED: u64 = size_of::<Cpu>() as u64 + POINTER;

const _: () = {
    assert!(RESERVED.is_multiple_of(16) && RESERVED <= PAGE_SIZE);
    assert!(size_of::<TaskStateSegment>() < PAGE_SIZE as usize);
};

/// Whether the boot CPU runs on its own stack yet: before that there is no [`Cpu`].
static READY: AtomicBool = AtomicBool::new(false);

impl Cpu {
    /// The CPU this runs on.
    #[inline(always)]
    #[must_use]
    pub fn current() -> &'static Self {
        let this: *const Self;
        // SAFETY: from `enter` on, every stack the hypervisor runs on is STACK_SIZE long, aligned to that, mapped at
        // its top, and ends in a pointer to the CPU's `Cpu`, which is never unmapped or written as a whole again.
        unsafe {
            asm!(
                "mov {0}, rsp",
                "or {0}, {mask}",
                "mov {0}, [{0} - 7]",
                out(reg) this,
                mask = const STACK_SIZE - 1,
                options(nostack, preserves_flags, pure, readonly)
            );
            &*this
        }
    }

    /// The CPU this runs on, or `None` early in the boot.
    #[must_use]
    pub fn try_current() -> Option<&'static Self> {
        READY.load(Ordering::Relaxed).then(Self::current)
    }

    /// A CPU that runs, or is being started.
    ///
    /// # Panics
    /// If it has no area: nobody is to name such a CPU.
    #[must_use]
    pub fn of(id: CpuId) -> &'static Self {
        assert!(id.0 < AREAS.load(Ordering::Acquire), "there is no CPU {}", id.0);
        // SAFETY: `build` wrote it before it counted the area, which is never unmapped; what others may touch is
        // atomic.
        unsafe { &*Area::of(id).cpu().as_ptr() }
    }

    /// Where interrupts reach this CPU.
    #[must_use]
    pub fn apic_id(&self) -> ApicId {
        ApicId(self.apic.load(Ordering::Relaxed))
    }

    /// Notes where interrupts reach it: before anybody sends any.
    pub fn set_apic_id(&self, id: ApicId) {
        self.apic.store(id.0, Ordering::Relaxed);
    }

    /// Notes that an interrupt left something to do.
    pub fn set_pending(&self, what: Pending) {
        self.pending.fetch_or(what.bits(), Ordering::Relaxed);
    }

    /// Whether interrupts left anything to do.
    #[inline]
    #[must_use]
    pub fn has_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed) != 0
    }

    /// What interrupts left to do since the last call.
    #[must_use]
    pub fn take_pending(&self) -> Pending {
        if self.pending.load(Ordering::Relaxed) == 0 {
            return Pending::empty();
        }
        Pending::from_bits_retain(self.pending.swap(0, Ordering::Relaxed))
    }

    /// The one place where the hypervisor lets itself be interrupted: sleeps until an interrupt has come, unless
    /// something is pending already, and returns what is pending then; it may be nothing.
    ///
    /// The caller holds no lock that an interrupt's handler takes (the console's).
    pub fn wait_for_interrupt(&self) -> Pending {
        if self.pending.load(Ordering::Relaxed) == 0 {
            // SAFETY: every gate is in place. `sti` takes effect behind the next instruction, so no interrupt slips in
            // before `hlt`.
            unsafe { asm!("sti", "hlt", "cli", options(nostack)) }
        }
        self.take_pending()
    }

    /// When this CPU's timer is to fire.
    #[inline]
    #[must_use]
    pub fn deadline(&self) -> u64 {
        self.deadline.load(Ordering::Relaxed)
    }

    /// Notes when this CPU's timer is to fire.
    pub(crate) fn set_deadline(&self, ns: u64) {
        self.deadline.store(ns, Ordering::Relaxed);
    }

    /// It has fired, perhaps a little before its time: it is not armed for that any more.
    pub(super) fn timer_has_fired(&self) {
        self.set_deadline(0);
    }

    /// The area that holds this CPU's stacks and tables.
    #[must_use]
    pub fn area(&self) -> Area {
        Area::of(self.id)
    }

    /// Where a trap from a guest puts its frame: the top of this CPU's stack.
    #[must_use]
    pub fn guest_frame(&self) -> *mut TrapFrame {
        (core::ptr::from_ref(self) as usize - size_of::<TrapFrame>()) as *mut TrapFrame
    }
}

/// A CPU's area: see [`layout::CPU_AREAS`].
#[derive(Clone, Copy)]
pub struct Area {
    base: VirtAddr,
}

impl Area {
    /// The area of one CPU.
    #[must_use]
    pub const fn of(cpu: CpuId) -> Self {
        Self { base: VirtAddr::new_truncate(layout::CPU_AREAS + cpu.0 as u64 * layout::CPU_AREA_SIZE) }
    }

    /// The CPU's own stack, guard page included.
    #[must_use]
    pub fn stack(self) -> VirtRange {
        let bottom = self.base + layout::CPU_STACK;
        bottom..bottom + STACK_SIZE
    }

    /// An interrupt stack, guard included.
    #[must_use]
    pub fn ist_stack(self, which: idt::Ist) -> VirtRange {
        let bottom = self.base + layout::CPU_IST_STACKS + which as u64 * STACK_SIZE;
        bottom..bottom + STACK_SIZE
    }

    /// The page of the GDT.
    #[must_use]
    pub fn gdt(self) -> VirtAddr {
        self.base + layout::CPU_GDT
    }

    /// The page of the TSS.
    #[must_use]
    pub fn tss(self) -> VirtAddr {
        self.base + layout::CPU_TSS
    }

    /// This CPU's mapping of the page of code `.text.percpu`.
    #[must_use]
    pub fn text(self) -> VirtAddr {
        self.base + layout::CPU_TEXT
    }

    /// Where the CPU's [`Cpu`] lies, which is also TSS.RSP0.
    #[must_use]
    pub fn cpu(self) -> VirtAddr {
        self.stack().end - RESERVED
    }
}

/// What an address near a stack is; see [`classify`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StackAddress {
    /// Within a stack.
    Stack,
    /// In the guard page below a stack.
    Guard,
    /// Neither.
    Elsewhere,
}

/// Tells whether `at` lies in a stack of the CPU `id`, or in a guard below one.
#[must_use]
pub fn classify(id: CpuId, at: VirtAddr) -> StackAddress {
    let area = Area::of(id);
    if layout::boot_stack().contains(&at) {
        return StackAddress::Stack;
    }
    let main = (area.stack(), PAGE_SIZE);
    let interrupt = idt::Ist::ALL.map(|which| (area.ist_stack(which), STACK_SIZE - IST_STACK_MAPPED));
    for (range, guard) in core::iter::once(main).chain(interrupt) {
        if range.contains(&at) {
            return if at < range.start + guard { StackAddress::Guard } else { StackAddress::Stack };
        }
    }
    StackAddress::Elsewhere
}

/// Bytes of an interrupt stack that are mapped; the rest is guard.
const IST_STACK_MAPPED: u64 = 4 * PAGE_SIZE;

/// How many areas are built: those of the first CPUs by number.
static AREAS: AtomicU32 = AtomicU32::new(0);

/// Maps a CPU's area, unless one that did not start has left it, and fills in its [`Cpu`], GDT and TSS. Areas are built
/// in the order of numbers.
///
/// # Panics
/// When memory runs out: a machine that cannot spare 25 pages for each CPU cannot run guests.
pub fn build(id: CpuId) -> Area {
    let area = Area::of(id);
    let areas = AREAS.load(Ordering::Relaxed);
    assert!(id.0 <= areas, "CPUs are numbered as they come");
    if id.0 == areas {
        map(area);
    }
    fill(id, area);
    AREAS.fetch_max(id.0 + 1, Ordering::Release);
    area
}

fn map(area: Area) {
    let data = Flags::DATA;
    let stack = area.stack();
    paging::map_fresh(stack.start + PAGE_SIZE..stack.end, data);
    for which in idt::Ist::ALL {
        let ist = area.ist_stack(which);
        paging::map_fresh(ist.end - IST_STACK_MAPPED..ist.end, data);
    }
    paging::map_fresh(area.gdt()..area.gdt() + PAGE_SIZE, data);
    paging::map_fresh(area.tss()..area.tss() + PAGE_SIZE, data);
    let text: Mfn = layout::image_to_machine(layout::percpu_text()).mfn();
    paging::map(area.text()..area.text() + PAGE_SIZE, text.addr(), Flags::TEXT);
}

/// Writes what a CPU finds in its area. No CPU uses that.
fn fill(id: CpuId, area: Area) {
    let stack = area.stack();
    let cpu: *mut Cpu = area.cpu().as_mut_ptr();
    // SAFETY: the pages are mapped for this CPU, which does not run, and nobody else has anything to do with them;
    // `cpu` is aligned because RESERVED is a multiple of its alignment and the stack's top is page-aligned.
    unsafe {
        cpu.write(Cpu {
            id,
            pending: AtomicU32::new(0),
            deadline: AtomicU64::new(u64::MAX),
            nmi_count: AtomicU64::new(0),
            timer_count: AtomicU64::new(0),
            tlb: CpuTlb::default(),
            apic: AtomicU32::new(0),
            stopped: AtomicBool::new(false),
            local: crate::guest::CpuLocal::default(),
        });
        for end in idt::Ist::ALL.map(|which| area.ist_stack(which).end).into_iter().chain([stack.end]) {
            let pointer: *mut *const Cpu = (end - 8u64).as_mut_ptr();
            pointer.write(cpu);
        }
        let tss: *mut TaskStateSegment = area.tss().as_mut_ptr();
        let mut contents = TaskStateSegment::new();
        contents.privilege_stack_table[0] = area.cpu();
        for which in idt::Ist::ALL {
            contents.interrupt_stack_table[which as usize] = area.ist_stack(which).end - POINTER;
        }
        tss.write(contents);
        let table: *mut gdt::Table = area.gdt().as_mut_ptr();
        (*table).fill_boot(area.tss());
    }
}

/// Takes over the boot CPU, which runs on a borrowed stack: loads its tables, moves to its own stack and calls `next`
/// there.
///
/// # Safety
/// `area` comes from [`build`] and belongs to the CPU this runs on, whose current stack is not needed any more.
pub unsafe fn enter(area: Area, next: extern "C" fn() -> !) -> ! {
    // SAFETY: `build` filled the table, and the area is never unmapped.
    unsafe {
        gdt::load(area.gdt());
        gdt::load_tss();
        idt::load_with_stacks();
    }
    features::set_control_registers();
    READY.store(true, Ordering::Relaxed);
    // SAFETY: the stack is mapped, and the first frame lies below the `Cpu` at its top.
    unsafe { switch_stack(area.cpu().as_u64(), next) }
}

/// Takes over a CPU that has been started, and runs on its own stack already: loads its tables.
///
/// # Safety
/// `area` comes from [`build`] and belongs to the CPU this runs on.
pub unsafe fn take_over(area: Area) {
    // SAFETY: `build` filled the table, and the area is never unmapped.
    unsafe {
        gdt::load(area.gdt());
        gdt::load_tss();
    }
    idt::load();
    features::set_control_registers();
}

/// Continues in `next` on an empty stack.
///
/// # Safety
/// Below `top`, aligned to 16, is a mapped stack that nobody uses; what is on the present one is forgotten.
#[unsafe(naked)]
unsafe extern "C" fn switch_stack(top: u64, next: extern "C" fn() -> !) -> ! {
    naked_asm!("mov rsp, rdi", "xor ebp, ebp", "call rsi", "ud2")
}
