//! Hypercalls, by the hypercall page: `call hypercall_page + 32 * number`, as the interface has it. What the page holds
//! is Xen's: it saves rcx and r11, puts the number into rax, and executes `syscall`.

use crate::abi::{
    self, AllocUnbound, BindInterdomain, Domctl, MmuExt, MmuUpdate, MulticallEntry, Reservation, Sysctl, TrapInfo,
    call, evtchn, memory_op, sched,
};
use crate::start::hypercall_page;
use core::arch::asm;

/// A hypercall. What is not an argument of it is not looked at.
///
/// # Safety
/// That of the call.
#[inline(always)]
unsafe fn hypercall<const NUMBER: usize>(arguments: [usize; 4]) -> isize {
    let result;
    let [first, second, third, fourth] = arguments;
    // SAFETY: the page holds code that makes the call and returns; registers of arguments count as lost.
    unsafe {
        asm!(
            "call {page} + {offset}",
            page = sym hypercall_page,
            offset = const NUMBER * abi::CALL_BYTES,
            inlateout("rdi") first => _,
            inlateout("rsi") second => _,
            inlateout("rdx") third => _,
            inlateout("r10") fourth => _,
            lateout("rax") result,
            out("r8") _,
            out("rcx") _,
            out("r11") _,
        );
    }
    result
}

/// `xen_version`: the release, 16 bits a part.
#[inline(always)]
pub fn xen_version() -> isize {
    // SAFETY: it changes nothing.
    unsafe { hypercall::<{ call::XEN_VERSION }>([abi::version::VERSION, 0, 0, 0]) }
}

/// What follows the release's two numbers.
pub fn extra_version() -> [u8; abi::version::EXTRAVERSION_BYTES] {
    let mut text = [0; abi::version::EXTRAVERSION_BYTES];
    let at = text.as_mut_ptr() as usize;
    // SAFETY: the buffer is as long as the call wants it.
    unsafe { hypercall::<{ call::XEN_VERSION }>([abi::version::EXTRAVERSION, at, 0, 0]) };
    text
}

/// A number that is no call.
#[inline(always)]
pub fn no_call() -> isize {
    // SAFETY: there is no such call.
    unsafe { hypercall::<{ call::NONE }>([0; 4]) }
}

/// `console_io`: writes.
pub fn console_write(text: &[u8]) {
    // SAFETY: the text is there, and read only.
    unsafe { hypercall::<{ call::CONSOLE_IO }>([0, text.len(), text.as_ptr() as usize, 0]) };
}

/// Several calls in one.
///
/// # Safety
/// That of the calls.
#[inline(always)]
pub unsafe fn multicall(calls: &mut [MulticallEntry]) -> bool {
    // SAFETY: the list is there; the caller answers for what is in it.
    unsafe { hypercall::<{ call::MULTICALL }>([calls.as_mut_ptr() as usize, calls.len(), 0, 0]) == 0 }
}

/// The time, of the system's, at which the timer is to fire; 0 for never.
#[inline(always)]
pub fn set_timer(at: u64) -> bool {
    // SAFETY: a timer's event is masked.
    unsafe { hypercall::<{ call::SET_TIMER_OP }>([at as usize, 0, 0, 0]) == 0 }
}

/// The stack for entries from applications.
///
/// # Safety
/// The stack is for nothing else while applications run.
#[inline(always)]
pub unsafe fn stack_switch(top: u64) -> bool {
    // SAFETY: the caller answers for the stack.
    unsafe { hypercall::<{ call::STACK_SWITCH }>([usize::from(abi::KERNEL_SS), top as usize, 0, 0]) == 0 }
}

/// The next use of the FPU traps.
#[inline(always)]
pub fn fpu_taskswitch() -> bool {
    // SAFETY: nothing here uses the FPU, but for where the trap is wanted.
    unsafe { hypercall::<{ call::FPU_TASKSWITCH }>([1, 0, 0, 0]) == 0 }
}

/// Memory given back or asked for, of a domain's: whether each extent was. The list is rewritten where frames come.
///
/// # Safety
/// What is given back is mapped nowhere.
#[inline(always)]
pub unsafe fn reserve(command: usize, list: &mut [u64], order: u32, domid: u16) -> bool {
    let (extents, count) = (list.as_mut_ptr() as u64, list.len() as u64);
    let argument = Reservation { extents, count, order, flags: 0, domid };
    let argument = &raw const argument as usize;
    // SAFETY: the argument and its list are what the command wants; the caller answers for the frames.
    unsafe { hypercall::<{ call::MEMORY_OP }>([command, argument, 0, 0]) == list.len() as isize }
}

/// Switches writable page tables on or off.
pub fn writable_page_tables(command: usize) -> bool {
    let kind = abi::vm_assist::WRITABLE_PAGETABLES;
    // SAFETY: stores to tables are checked as requests are.
    unsafe { hypercall::<{ call::VM_ASSIST }>([command, kind, 0, 0]) == 0 }
}

/// Somebody else's turn.
#[inline(always)]
pub fn sched_yield() -> bool {
    // SAFETY: it changes nothing of ours.
    unsafe { hypercall::<{ call::SCHED_OP }>([sched::YIELD, 0, 0, 0]) == 0 }
}

/// Waits for an event, and lets upcalls come.
#[inline(always)]
pub fn block() -> bool {
    // SAFETY: it changes nothing of ours.
    unsafe { hypercall::<{ call::SCHED_OP }>([sched::BLOCK, 0, 0, 0]) == 0 }
}

/// The machine's end.
pub fn reboot() {
    let reason = sched::REBOOT;
    // SAFETY: nothing is to come.
    unsafe { hypercall::<{ call::SCHED_OP }>([sched::SHUTDOWN, &raw const reason as usize, 0, 0]) };
}

/// Changes entries of page tables; whether all were.
///
/// # Safety
/// Nothing refers to what is unmapped.
#[inline(always)]
pub unsafe fn mmu_update(list: &[MmuUpdate]) -> bool {
    let mut done = 0_u32;
    let out = &raw mut done as usize;
    // SAFETY: the list and the count are there; the caller answers for the changes.
    let result = unsafe {
        hypercall::<{ call::MMU_UPDATE }>([list.as_ptr() as usize, list.len(), out, usize::from(abi::DOMID_SELF)])
    };
    result == 0 && done as usize == list.len()
}

/// One operation on page tables or the TLB.
///
/// # Safety
/// After it what is in use is mapped as before.
#[inline(always)]
pub unsafe fn mmuext(cmd: u32, arg1: u64) -> bool {
    // SAFETY: as the caller says.
    unsafe { mmuext_of_domain(cmd, arg1, abi::DOMID_SELF) }
}

/// One operation on page tables of a domain's.
///
/// # Safety
/// As of [`mmuext`].
#[inline(always)]
pub unsafe fn mmuext_of_domain(cmd: u32, arg1: u64, domain: u16) -> bool {
    let list = [MmuExt { cmd, arg1, arg2: 0 }];
    // SAFETY: the list is there; the caller answers for the operation. No count of operations done is asked for.
    unsafe { hypercall::<{ call::MMUEXT_OP }>([list.as_ptr() as usize, 1, 0, usize::from(domain)]) == 0 }
}

/// Changes the lowest level's entry of an address.
///
/// # Safety
/// Nothing refers to what is unmapped.
#[inline(always)]
pub unsafe fn update_va_mapping(at: u64, entry: u64, flags: u64) -> bool {
    // SAFETY: the caller answers for the change.
    unsafe { hypercall::<{ call::UPDATE_VA_MAPPING }>([at as usize, entry as usize, flags as usize, 0]) == 0 }
}

/// Maps another domain's frame.
///
/// # Safety
/// Nothing refers to what was mapped there.
pub unsafe fn map_of_domain(at: u64, entry: u64, domain: u16) -> bool {
    let (at, entry, flags) = (at as usize, entry as usize, abi::uvmf::INVLPG as usize);
    // SAFETY: the caller answers for the change.
    unsafe { hypercall::<{ call::UPDATE_VA_MAPPING_OTHERDOMAIN }>([at, entry, flags, usize::from(domain)]) == 0 }
}

/// Asks for something of a domain.
///
/// # Safety
/// That of the command.
#[inline(always)]
pub unsafe fn domctl(request: &mut Domctl) -> bool {
    let argument = &raw mut *request as usize;
    // SAFETY: the request is what the call wants; the caller answers for what is in it.
    unsafe { hypercall::<{ call::DOMCTL }>([argument, 0, 0, 0]) == 0 }
}

/// Pages of memory that nobody has.
pub fn free_pages() -> u64 {
    let mut request = Sysctl { cmd: abi::PHYSINFO, version: abi::CONTROL_VERSION, argument: [0; 16] };
    let argument = &raw mut request as usize;
    // SAFETY: the request is what the call wants.
    let told = unsafe { hypercall::<{ call::SYSCTL }>([argument, 0, 0, 0]) };
    assert_eq!(told, 0, "domain 0 may ask");
    request.argument[6]
}

/// Pages of memory that we have.
pub fn own_pages() -> u64 {
    let domain = abi::DOMID_SELF;
    let argument = &raw const domain as usize;
    // SAFETY: the argument is what the command wants.
    let told = unsafe { hypercall::<{ call::MEMORY_OP }>([memory_op::CURRENT_RESERVATION, argument, 0, 0]) };
    told.try_into().expect("it has no errors")
}

/// Handlers of traps; the last element's address is 0.
///
/// # Safety
/// Each handler is made for its vector.
pub unsafe fn set_trap_table(table: &[TrapInfo]) -> bool {
    // SAFETY: the table is there; the caller answers for the handlers.
    unsafe { hypercall::<{ call::SET_TRAP_TABLE }>([table.as_ptr() as usize, 0, 0, 0]) == 0 }
}

/// Entries for events, for registers that cannot be restored, and for applications' `syscall`.
///
/// # Safety
/// Each is made for it.
pub unsafe fn set_callbacks(event: u64, failsafe: u64, syscall: u64) -> bool {
    // SAFETY: the caller answers for the entries.
    unsafe { hypercall::<{ call::SET_CALLBACKS }>([event as usize, failsafe as usize, syscall as usize, 0]) == 0 }
}

/// A channel to a domain: our end, and its. Ours is pending at first.
pub fn bind(domain: u16) -> Option<(u32, u32)> {
    let mut far = AllocUnbound { dom: domain, remote_dom: abi::DOMID_SELF, port: 0 };
    let argument = &raw mut far as usize;
    // SAFETY: the argument is what the command wants.
    if unsafe { hypercall::<{ call::EVENT_CHANNEL_OP }>([evtchn::ALLOC_UNBOUND, argument, 0, 0]) } != 0 {
        return None;
    }
    let mut near = BindInterdomain { remote_dom: domain, remote_port: far.port, local_port: 0 };
    let argument = &raw mut near as usize;
    // SAFETY: as above.
    let bound = unsafe { hypercall::<{ call::EVENT_CHANNEL_OP }>([evtchn::BIND_INTERDOMAIN, argument, 0, 0]) };
    (bound == 0).then_some((near.local_port, far.port))
}

/// Sends an event.
#[inline(always)]
pub fn send(port: u32) -> bool {
    let argument = &raw const port as usize;
    // SAFETY: the argument is what the command wants.
    unsafe { hypercall::<{ call::EVENT_CHANNEL_OP }>([evtchn::SEND, argument, 0, 0]) == 0 }
}
