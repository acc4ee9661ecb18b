//! The calling convention: which numbers exist, which registers survive, what a bad pointer gives.
#![no_std]
#![no_main]

mod pointers;
mod registers;

use proxenos_guest::abi::hypercall::{MULTICALL_RESULT_ARG, MulticallEntry};
use proxenos_guest::abi::{Errno, GuestArch, Hypercall};
use proxenos_guest::arch::{hypercall1, hypercall2, hypercall5};
use proxenos_guest::hypercall::check as result_of;
use proxenos_guest::test::section;
use proxenos_guest::{Arch, StartInfo, Word, check, check_eq, hypercall};

proxenos_guest::test_guest!(main);

fn main(_: &StartInfo) {
    proxenos_guest::init();
    numbers();
    version();
    registers::preserved();
    pointers::bad();
    multicalls();
    commands();
}

/// What a call with no meaningful argument returns.
fn call(number: usize) -> Result<usize, Errno> {
    // SAFETY: only called with numbers that are no call, or with a first argument that is refused.
    result_of(unsafe { hypercall1(number, 0) })
}

fn numbers() {
    section("numbers that are no call");
    for number in 23..=64 {
        let exists = Arch::PAGE_TABLE_LEVELS == 4 && Hypercall::from_raw(number).is_some();
        if !exists {
            check_eq!(call(number as usize), Err(Errno::ENOSYS), "number {number}");
        }
    }
    for number in [255, 256, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, usize::MAX] {
        check_eq!(call(number), Err(Errno::ENOSYS), "number {number:#x}");
    }
    // Not masked with 31, as Xen 2.0 did: these would be xen_version.
    for number in [17 + 32, 17 + 64, 17 + 0x8000_0000] {
        check_eq!(call(number), Err(Errno::ENOSYS), "number {number:#x}");
    }
    #[cfg(target_arch = "x86_64")]
    check_eq!(call(17 + (1 << 32)), Err(Errno::ENOSYS), "the whole of rax counts");
}

fn version() {
    section("version");
    check_eq!(hypercall::xen_version(), Ok(0x0002_0000));
    // SAFETY: the call changes nothing.
    check_eq!(result_of(unsafe { hypercall1(17, 1) }), Err(Errno::ENOSYS), "a command other than 0");
    // The wrappers' several ways to pass arguments must not disturb each other.
    // SAFETY: as above; the further arguments have no meaning.
    check_eq!(result_of(unsafe { hypercall5(17, 0, 1, 2, 3, 4) }), Ok(0x0002_0000));
}

fn multicalls() {
    section("multicall");
    const MARK: Word = 0x00c0_ffee;
    let entry =
        |op: Word, first: Word| MulticallEntry::<Arch> { op, args: [first, MARK, MARK, MARK, MARK, MARK, MARK] };
    let mut list = [entry(17, 0), entry(63, 0), entry(17, 1), entry(17, 0)];
    // SAFETY: none of the calls changes anything.
    check_eq!(unsafe { hypercall::multicall(&mut list) }, Ok(()));
    let expected = [0x0002_0000, Errno::ENOSYS.to_word(), Errno::ENOSYS.to_word(), 0x0002_0000];
    for (index, (entry, expected)) in list.iter().zip(expected).enumerate() {
        let args = entry.args;
        check_eq!(args[MULTICALL_RESULT_ARG], expected, "result of call {index}");
        check_eq!([args[1], args[2], args[3], args[4], args[6]], [MARK; 5], "the other arguments of call {index}");
    }
    let mut many = [entry(17, 0); 64];
    // SAFETY: as above.
    check_eq!(unsafe { hypercall::multicall(&mut many) }, Ok(()));
    check!(many.iter().all(|entry| { entry.args }[MULTICALL_RESULT_ARG] == 0x0002_0000), "64 calls at once");
    // SAFETY: as above.
    check_eq!(unsafe { hypercall::multicall(&mut []) }, Ok(()), "no calls at all");

    let mut inner = [entry(17, 0)];
    let mut outer = [entry(13, inner.as_mut_ptr() as Word)];
    outer[0].args[1] = 1;
    // SAFETY: as above.
    check_eq!(unsafe { hypercall::multicall(&mut outer) }, Ok(()));
    let result = { outer[0].args }[MULTICALL_RESULT_ARG];
    check_eq!(result, Errno::EINVAL.to_word(), "a multicall within a multicall");
    check_eq!({ inner[0].args }[MULTICALL_RESULT_ARG], MARK, "and it has not been carried out");
}

/// Commands of calls, right and wrong, where they need no more than numbers.
fn commands() {
    section("commands");
    check_eq!(hypercall::sched_yield(), Ok(()));
    let raw = |call: Hypercall, a: usize, b: usize| {
        // SAFETY: called with commands that do not exist or with values that are refused.
        result_of(unsafe { hypercall2(call.raw() as usize, a, b) })
    };
    for op in [3, 4, 255] {
        check_eq!(raw(Hypercall::SchedOp, op, 0), Err(Errno::ENOSYS), "sched_op {op}");
    }
    check_eq!(raw(Hypercall::StackSwitch, 0, 0), Err(Errno::EPERM), "a stack selector of ring 0");
    check_eq!(raw(Hypercall::SetGdt, 0, 295), Err(Errno::EINVAL), "a GDT without the reserved entries");
    check_eq!(raw(Hypercall::SetGdt, 0, 8193), Err(Errno::EINVAL), "a GDT that is too large");
    check_eq!(raw(Hypercall::SetTimerOp, 0, 0), Ok(0));
}
