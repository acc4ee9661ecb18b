//! Entries from rings 2 and 3 of an x86_32 guest: on the stack of `stack_switch`, with that of the interrupted code in
//! the frame.
//!
//! `iret` leads out of ring 1, so no help of the hypervisor's is needed to get there.

mod faults;
mod misaligned;
mod own_segments;
mod ports;
pub mod switch;
mod vectors;

use crate::entries;
use crate::raise;
use crate::tables::{CODE, DATA, GOOD_DATA, GRANULAR, PRESENT, RING, SIZE, Tables, flat, with_base};
use core::sync::atomic::Ordering;
use proxenos_guest::abi::context::{TrapFlags, TrapInfo};
use proxenos_guest::abi::x86_32::{FLAT_RING1_CS, FLAT_RING1_DS, FLAT_RING3_CS, FLAT_RING3_DS};
use proxenos_guest::abi::{GuestVirt, Selector};
use proxenos_guest::memory::{self, Frame};
use proxenos_guest::test::section;
use proxenos_guest::traps::{self, vector};
use proxenos_guest::{arch, check, check_eq, hypercall, shared_info};
use switch::{Found, Start, enter, snippet};

/// Room above the kernel's stack pointer, which is looked at but not used.
const ABOVE: usize = 256;
/// The vector of system calls.
const SYSTEM_CALL: u8 = 0x80;
const TF: usize = 1 << 8;
const NT: usize = 1 << 14;
const RF: usize = 1 << 16;

pub fn run(tables: &Tables) {
    let stack = memory::alloc_frame().expect("padding");
    let kernel = Kernel { sp: top(stack) };
    // SAFETY: the frame is for nothing else.
    check_eq!(unsafe { hypercall::stack_switch(FLAT_RING1_DS, GuestVirt(kernel.sp as u64)) }, Ok(()));
    switch::open_snippets();
    refused();
    kernel.exceptions();
    kernel.system_calls();
    faults::run(&kernel);
    misaligned::run(&kernel);
    kernel.bad_stacks();
    kernel.flags();
    kernel.event();
    kernel.failsafe(tables);
    kernel.ring2(tables);
    kernel.stack_with_base(tables);
    own_segments::run(&kernel, tables);
    vectors::run(&kernel, tables);
    ports::run(&kernel);
}

fn top(stack: Frame) -> usize {
    stack.virt().raw() as usize + 4096 - ABOVE
}

/// Makes [`switch::back`] the handler of a vector, in this code segment.
fn catch_in(vector: u8, cs: Selector, flags: TrapFlags) {
    let entry = TrapInfo::new(vector, flags, cs, switch::back().raw() as u32);
    // SAFETY: the vector is raised by what is run by `enter` only.
    unsafe { hypercall::set_trap_table(&[entry, traps::end_of_table()]) }.expect("a selector of our ring");
}

/// Runs code until this vector is raised.
fn until(vector: u8, start: &Start) -> Found {
    catch_in(vector, FLAT_RING1_CS, TrapFlags::from_dpl(if matches!(vector, 3 | 4 | SYSTEM_CALL) { 3 } else { 0 }));
    let found = enter(start);
    raise::set_handler(vector, FLAT_RING1_CS, TrapFlags::from_dpl(if matches!(vector, 3 | 4) { 3 } else { 0 }));
    found
}

fn refused() {
    section("kernel stacks that are refused");
    for ss in [0u16, 0x0808, 0x0820, 0x0004] {
        // SAFETY: refused.
        let result = unsafe { hypercall::stack_switch(Selector(ss), GuestVirt(0x1000)) };
        check_eq!(result, Err(proxenos_guest::abi::Errno::EPERM), "ss {ss:#x}");
    }
}

/// The kernel's side.
struct Kernel {
    /// Where frames from outer rings begin.
    sp: usize,
}

impl Kernel {
    /// Checks that the kernel was entered from `start` by a frame of these words below the interrupted registers, with
    /// the code at this distance from its start.
    #[track_caller]
    fn check(&self, what: &str, found: &Found, below: &[usize], start: &Start, distance: usize) {
        let count = below.len();
        check_eq!(found.sp, self.sp - 4 * (count + 5), "{what}: on the stack of stack_switch");
        check_eq!(found.ss, usize::from(FLAT_RING1_DS.raw()), "{what}: ss");
        check_eq!(found.cs, usize::from(FLAT_RING1_CS.raw()), "{what}: cs");
        check_eq!(&found.words[..count], below, "{what}: below the registers");
        let registers = &found.words[count..];
        check_eq!(registers[0], start.eip.raw() as usize + distance, "{what}: eip");
        check_eq!(registers[1] & 0xffff, usize::from(start.cs.raw()), "{what}: cs");
        // Arithmetic flags are the code's own business, and a fault sets RF.
        let arithmetic = 0x8d5;
        check_eq!((registers[2] ^ start.flags) & !(arithmetic | RF), 0, "{what}: flags {:#x}", registers[2]);
        check_eq!(registers[3], start.esp, "{what}: esp");
        check_eq!(registers[4] & 0xffff, usize::from(start.ss.raw()), "{what}: ss");
        check_eq!(found.flags & (TF | NT | RF | 3 << 12), 0, "{what}: flags in the kernel: {:#x}", found.flags);
        check!(found.flags & 1 << 9 != 0, "{what}: interrupts in the kernel");
    }

    fn exceptions(&self) {
        section("exceptions in ring 3");
        let user_sp = 0x1234_5678;
        let case = |what: &str, vector: u8, code: &[usize], snippet: unsafe extern "C" fn(), distance: usize| {
            let start = Start::ring3(snippet, user_sp);
            self.check(what, &until(vector, &start), code, &start, distance);
        };
        case("ud2", vector::INVALID_OPCODE, &[], snippet::__ring_ud2, 0);
        case("int3", vector::BREAKPOINT, &[], snippet::__ring_int3, 1);
        case("into", vector::OVERFLOW, &[], snippet::__ring_into, 5);
        case("int 0x82", vector::GENERAL_PROTECTION, &[0x412], snippet::__ring_hypercall, 5);
        case("int 0x45", vector::GENERAL_PROTECTION, &[0x45 << 3 | 2], snippet::__ring_int45, 0);
        case("cli", vector::GENERAL_PROTECTION, &[0], snippet::__ring_cli, 0);
        case("hlt", vector::GENERAL_PROTECTION, &[0], snippet::__ring_hlt, 0);
        case("in", vector::GENERAL_PROTECTION, &[0], snippet::__ring_in, 0);
        case("es = ring 1's data", vector::GENERAL_PROTECTION, &[0x820], snippet::__ring_kernel_data, 5);
        case("ss = ring 1's data", vector::GENERAL_PROTECTION, &[0x820], snippet::__ring_kernel_stack, 5);

        // Software interrupts, by what the handler's entry allows.
        for (dpl, delivered) in [(0, false), (1, false), (2, false), (3, true)] {
            let start = Start::ring3(snippet::__ring_int45, user_sp);
            catch_in(0x45, FLAT_RING1_CS, TrapFlags::from_dpl(dpl));
            let found = until(vector::GENERAL_PROTECTION, &start);
            let (code, distance): (&[usize], usize) = if delivered { (&[], 2) } else { (&[0x45 << 3 | 2], 0) };
            self.check("int 0x45", &found, code, &start, distance);
        }
        raise::set_handler(0x45, FLAT_RING1_CS, TrapFlags::empty());

        // A handler for the hypercall's vector is the guest's to have: it sees what its applications try.
        catch_in(0x82, FLAT_RING1_CS, TrapFlags::from_dpl(3));
        let start = Start::ring3(snippet::__ring_hypercall, user_sp);
        self.check("int 0x82 with a handler", &enter(&start), &[], &start, 7);
        check_eq!(hypercall::xen_version(), Ok(0x0002_0000), "but ours is still the hypervisor's");
        raise::set_handler(0x82, FLAT_RING1_CS, TrapFlags::empty());
        check_eq!(hypercall::xen_version(), Ok(0x0002_0000));

        // The data registers are the application's until the kernel changes them.
        let start = Start::ring3(snippet::__ring_data_ud2, user_sp);
        let found = until(vector::INVALID_OPCODE, &start);
        self.check("ud2 with data", &found, &[], &start, 7);
        check_eq!(found.ds, usize::from(FLAT_RING3_DS.raw()), "ds");
        let start = Start::ring3(snippet::__ring_ud2, user_sp);
        let found = until(vector::INVALID_OPCODE, &start);
        check_eq!((found.ds, found.eax), (0, 0x5eed), "iret has emptied ds, and other registers arrive");
        // The FPU's first use is nobody's business.
        let start = Start::ring3(snippet::__ring_fpu, user_sp);
        self.check("floating point", &until(vector::INVALID_OPCODE, &start), &[], &start, 4);
    }

    /// An application's stack is of no interest.
    fn bad_stacks(&self) {
        section("applications with bad stacks");
        for esp in [0, 4, 0xfbff_fffc, 0xfc00_0000, 0xfd00_0010, 0xffff_fffc, 0xffff_ffff, 0xc000_0000, 1] {
            let start = Start::ring3(snippet::__ring_ud2, esp);
            self.check("ud2", &until(vector::INVALID_OPCODE, &start), &[], &start, 0);
            let start = Start::ring3(snippet::__ring_hypercall, esp);
            self.check("int 0x82", &until(vector::GENERAL_PROTECTION, &start), &[0x412], &start, 5);
        }
    }

    /// `int 0x80`, whose gate is open: who may raise it, and how its handler is entered, is what the guest has said all
    /// the same.
    fn system_calls(&self) {
        section("int 0x80 in ring 3");
        let start = Start::ring3(snippet::__ring_int80, 0x1234_5678);
        for (dpl, delivered) in [(0, false), (1, false), (2, false), (3, true)] {
            catch_in(SYSTEM_CALL, FLAT_RING1_CS, TrapFlags::from_dpl(dpl));
            let found = until(vector::GENERAL_PROTECTION, &start);
            let (code, distance): (&[usize], usize) = if delivered { (&[], 2) } else { (&[0x80 << 3 | 2], 0) };
            self.check("int 0x80", &found, code, &start, distance);
        }
        check_eq!(shared_info::upcall_mask().load(Ordering::SeqCst), 0, "events are as they were");
        catch_in(SYSTEM_CALL, FLAT_RING1_CS, TrapFlags::from_dpl(3) | TrapFlags::MASK_EVENTS);
        self.check("with events masked", &enter(&start), &[], &start, 2);
        check_eq!(shared_info::upcall_mask().load(Ordering::SeqCst), 1, "events are masked");
        proxenos_guest::events::unmask_upcalls();
        // Once more as it was, and with flags that are cleared on the way.
        catch_in(SYSTEM_CALL, FLAT_RING1_CS, TrapFlags::from_dpl(3));
        for flags in [0x202, 0x202 | NT, 0x202 | TF] {
            let start = Start { flags, ..start };
            self.check("flags", &enter(&start), &[], &start, 2);
        }
        // Another stack counts from the next call on.
        let lower = Kernel { sp: self.sp - 64 };
        for kernel in [&lower, self] {
            // SAFETY: the frame is for nothing else.
            check_eq!(unsafe { hypercall::stack_switch(FLAT_RING1_DS, GuestVirt(kernel.sp as u64)) }, Ok(()));
            kernel.check("another stack", &enter(&start), &[], &start, 2);
        }
        raise::set_handler(SYSTEM_CALL, FLAT_RING1_CS, TrapFlags::empty());
    }

    fn flags(&self) {
        section("flags of applications");
        const AC: usize = 1 << 18;
        const ID: usize = 1 << 21;
        const DF: usize = 1 << 10;
        for flag in [NT, AC, ID, DF, NT | AC | ID | DF | RF] {
            let start = Start { flags: 0x202 | flag, ..Start::ring3(snippet::__ring_ud2, 0x1000) };
            self.check("flags", &until(vector::INVALID_OPCODE, &start), &[], &start, 0);
        }
        // Those that iret in ring 1 may not change.
        for flags in [0x2, 0x202 | 3 << 12, 0x2 | 3 << 12] {
            let wanted = Start::ring3(snippet::__ring_ud2, 0x1000);
            let found = until(vector::INVALID_OPCODE, &Start { flags, ..wanted });
            self.check("flags that are not ours to change", &found, &[], &wanted, 0);
        }
        // A single step.
        let start = Start { flags: 0x202 | TF, ..Start::ring3(snippet::__ring_data_ud2, 0x1000) };
        self.check("a single step", &until(vector::DEBUG, &start), &[], &start, 5);
        // int3 in a single step: the breakpoint comes, with TF in its frame, and no step of the handler's.
        let start = Start { flags: 0x202 | TF, ..Start::ring3(snippet::__ring_int3, 0x1000) };
        self.check("int3 in a single step", &until(vector::BREAKPOINT, &start), &[], &start, 1);
    }

    /// An event that waits finds an application, on the first entry that the timer causes.
    fn event(&self) {
        section("an event in ring 3");
        let back = (FLAT_RING1_CS, switch::back());
        // SAFETY: `back` is entered from `enter` only: until then, events are masked.
        unsafe { hypercall::set_callbacks(back, (FLAT_RING1_CS, entries::address())) }.expect("selectors of our ring");
        check!(proxenos_guest::events::mask_upcalls());
        shared_info::upcall_pending().store(1, Ordering::SeqCst);
        let start = Start::ring3(snippet::__ring_spin, 0x1000);
        shared_info::upcall_mask().store(0, Ordering::SeqCst);
        let found = enter(&start);
        check_eq!(shared_info::upcall_mask().load(Ordering::SeqCst), 1, "events are masked in the callback");
        entries::install_failsafe();
        check_eq!(arch::failsafe_count(), 0);
        proxenos_guest::events::unmask_upcalls();
        self.check("an event", &found, &[], &start, 0);
    }

    /// A handler that cannot be entered, when it is an application that it should be entered from: the kernel's stack
    /// was taken already, and the failsafe frame goes below what is there.
    fn failsafe(&self, tables: &Tables) {
        section("handlers that cannot be entered from ring 3");
        tables.set(60, 0);
        let cs = Selector::gdt(60, RING);
        let failsafes = entries::count();
        catch_in(vector::INVALID_OPCODE, cs, TrapFlags::empty());
        let start = Start::ring3(snippet::__ring_data_ud2, 0x1000);
        let found = enter(&start);
        raise::set_handler(vector::INVALID_OPCODE, FLAT_RING1_CS, TrapFlags::empty());
        check_eq!(entries::count() - failsafes, 1, "failsafe callbacks");
        self.check("and then the handler", &found, &[], &start, 7);
        let seen = entries::found();
        check_eq!(seen.sp, self.sp - 4 * (5 + 7), "the failsafe frame, without a stack of its own");
        let data = usize::from(FLAT_RING3_DS.raw());
        check_eq!(&seen.words[..4], &[data, 0, 0, 0][..], "ds, es, fs, gs");
        check_eq!(seen.words[4], switch::back().raw() as usize, "eip");
        check_eq!(seen.words[5] & 0xffff, usize::from(cs.raw()), "cs");
        check_eq!(&seen.words[7..12], &found.words[..5], "the exception's frame above it");
    }

    /// Ring 2 is outside, too.
    fn ring2(&self, tables: &Tables) {
        section("ring 2");
        tables.set(70, flat(PRESENT | CODE, 2, GRANULAR | SIZE));
        tables.set(71, flat(PRESENT | DATA, 2, GRANULAR | SIZE));
        let start = |snippet: unsafe extern "C" fn()| Start {
            cs: Selector::gdt(70, 2),
            ss: Selector::gdt(71, 2),
            ..Start::ring3(snippet, 0x1000)
        };
        let ud2 = start(snippet::__ring_ud2);
        self.check("ud2", &until(vector::INVALID_OPCODE, &ud2), &[], &ud2, 0);
        let call = start(snippet::__ring_hypercall);
        self.check("int 0x82", &until(vector::GENERAL_PROTECTION, &call), &[0x412], &call, 5);
        let cli = start(snippet::__ring_cli);
        self.check("cli", &until(vector::GENERAL_PROTECTION, &cli), &[0], &cli, 0);
        // Supervisor to the page tables.
        let kernel_page = self.sp;
        let read = Start { esp: kernel_page, ..start(snippet::__ring_read) };
        self.check("a read of the kernel's", &until(vector::INVALID_OPCODE, &read), &[], &read, 3);
        tables.set(70, 0);
        tables.set(71, 0);
    }

    /// A kernel stack in a segment that has a base: the frame lies at base + esp, also where that wraps.
    fn stack_with_base(&self, tables: &Tables) {
        section("a kernel stack with a base");
        for base in [0x1000u32, 0x0800_0000, 0xc000_0000, 0xf000_0000, 0xffff_fff0] {
            tables.set(80, with_base(GOOD_DATA, base));
            let ss = Selector::gdt(80, RING);
            let esp = (self.sp as u32).wrapping_sub(base);
            // SAFETY: the frame is for nothing else.
            check_eq!(unsafe { hypercall::stack_switch(ss, GuestVirt(esp.into())) }, Ok(()));
            let start = Start::ring3(snippet::__ring_ud2, 0x1000);
            let found = until(vector::INVALID_OPCODE, &start);
            check_eq!(found.ss, usize::from(ss.raw()), "base {base:#x}: ss");
            check_eq!(found.sp, esp.wrapping_sub(20) as usize, "base {base:#x}: esp");
            check_eq!(found.words[0], start.eip.raw() as usize, "base {base:#x}: eip");
            check_eq!(found.words[1] & 0xffff, usize::from(FLAT_RING3_CS.raw()), "base {base:#x}: cs");
            check_eq!(found.words[3], 0x1000, "base {base:#x}: esp of the application");
        }
        // SAFETY: as above.
        check_eq!(unsafe { hypercall::stack_switch(FLAT_RING1_DS, GuestVirt(self.sp as u64)) }, Ok(()));
        tables.set(80, 0);
    }
}
