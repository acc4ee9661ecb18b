//! Domains that yield to one another at once: what each has in the CPU is its own again when it goes on, and nothing of
//! the others' is there meanwhile. They are as unlike as can be: one has an LDT and breakpoints, the others have none,
//! but bases of their own where there are such.

use crate::state::{self, Floating, Ldt, WATCHED};
use crate::{ends, number};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use proxenos_guest::abi::dom0_ops::args::{GetDomainInfo, PauseDomain, PinCpuDomain, UnpauseDomain};
use proxenos_guest::abi::dom0_ops::{Dom0Argument, Dom0Op};
use proxenos_guest::abi::{DomId, Errno, Padded, Virq};
use proxenos_guest::test::section;
use proxenos_guest::{Arch, Word, check, check_eq, events, hypercall, traps};

const ROUNDS: u32 = 300;
/// Yields in a row.
const YIELDS: u32 = 25;

static WORDS: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];

/// Who has an LDT and breakpoints.
const HAS_BOTH: u32 = 1;
/// Who has an LDT only.
const HAS_LDT: u32 = 5;

/// Every domain's part: they differ by their mark. It goes on until domain 0 lets it end.
pub fn part() {
    rounds(number("mark"), ends::may_leave);
    ends::take_leave();
}

/// Domain 0.
pub fn run() {
    section("what is in the CPU, through yields");
    rounds(number("mark"), || true);
    ends::dismiss(&[1, 2]);
}

/// How often each of the others is looked at, stopped and moved.
const LOOKS: u32 = 250;

/// Where the context of one that is looked at goes: more than it takes.
static CONTEXT: [AtomicU64; 1024] = [const { AtomicU64::new(0) }; 1024];

/// Domain 0, which has two CPUs and all it can do to domains while they yield to one another.
pub fn watch() {
    proxenos_guest::init();
    events::handle_virq(Virq::Timer, |_| ()).expect("the timer can be bound");
    section("looked at, stopped and moved while they yield");
    for look in 0..LOOKS {
        for number in 1..=3 {
            let domain = DomId(number);
            let ctxt = Padded::new(CONTEXT.as_ptr() as Word);
            check_eq!(ask(GetDomainInfo::<Arch> { domain, ctxt, ..GetDomainInfo::default() }), Ok(()), "{number}");
            let cpu = (look.wrapping_mul(number.into()) >> 1) % 2;
            check_eq!(ask(PinCpuDomain { domain, pad: 0, cpu: cpu as i32 }), Ok(()), "{number} to {cpu}");
            check_eq!(ask(PauseDomain { domain, pad: 0 }), Ok(()), "{number}");
            check_eq!(ask(UnpauseDomain { domain, pad: 0 }), Ok(()), "{number}");
        }
        check_eq!(hypercall::sched_yield(), Ok(()));
    }
    ends::dismiss(&[1, 2, 3]);
}

fn ask<T: Dom0Argument>(argument: T) -> Result<(), Errno> {
    // SAFETY: of memory of ours only the request and the context are written to.
    unsafe { hypercall::dom0_op(&mut Dom0Op::new(argument)) }.map(drop)
}

fn rounds(mark: u32, is_over: fn() -> bool) {
    proxenos_guest::init();
    ends::listen();
    events::handle_virq(Virq::Timer, |_| ()).expect("the timer can be bound");
    state::count_debug_exceptions();
    WORDS.iter().zip([mark, !mark]).for_each(|(word, value)| word.store(value, Ordering::Relaxed));
    let ldt = [HAS_BOTH, HAS_LDT]
        .contains(&mark)
        .then(|| Ldt::install(WORDS.each_ref().map(|word| word.as_ptr().cast_const())));
    match &ldt {
        Some(ldt) => ldt.load(),
        None => bases::set(WORDS.each_ref().map(AtomicU32::as_ptr)),
    }
    if mark == HAS_BOTH {
        state::watch(WATCHED.as_ptr());
    }
    let floating = Floating::of(mark);
    floating.load();
    for round in (0..).take_while(|&round| round < ROUNDS || !is_over()) {
        check!(state::registers_are_kept_by_yields(YIELDS), "round {round}: general registers");
        WATCHED.store(round, Ordering::SeqCst);
        let breaks = usize::from(mark == HAS_BOTH);
        check_eq!(state::debug_exceptions(), breaks, "round {round}: breakpoints");
        let seen = match &ldt {
            Some(ldt) => ldt.read(),
            None => {
                check!(!state::is_readable(state::local(0)), "round {round}: an LDT of another's");
                bases::read([mark, !mark])
            }
        };
        check_eq!(seen, Some([mark, !mark]), "round {round}: words at fs and gs");
        // A trap finds this kernel's handler, by its own entry.
        let before = traps::count();
        check_eq!(proxenos_guest::probe::load(proxenos_guest::abi::GuestVirt(0x10)), None);
        check_eq!(traps::count(), before + 1, "round {round}: traps");
        if round % 16 == 15 {
            check_eq!(Floating::store(), floating, "round {round}: the floating-point unit");
            floating.load();
        }
    }
    let _ = hypercall::set_debugreg(7, 0);
}

#[cfg(target_arch = "x86_64")]
mod bases {
    use core::arch::asm;
    use proxenos_guest::abi::hypercall::SegmentBase;
    use proxenos_guest::{check_eq, hypercall};

    pub fn set(to: [*mut u32; 2]) {
        let [fs, gs] = to.map(|at| at as u64);
        for (which, base) in [(SegmentBase::Fs, fs), (SegmentBase::GsKernel, gs)] {
            // SAFETY: nothing else uses them.
            check_eq!(unsafe { hypercall::set_segment_base(which, base) }, Ok(()));
        }
    }

    /// What is there.
    pub fn read(_: [u32; 2]) -> Option<[u32; 2]> {
        let (first, second): (u32, u32);
        // SAFETY: both begin at words of ours.
        unsafe { asm!("mov {0:e}, fs:[0]", "mov {1:e}, gs:[0]", out(reg) first, out(reg) second) };
        Some([first, second])
    }
}

#[cfg(target_arch = "x86")]
mod bases {
    /// A segment's base is its descriptor's here.
    pub fn set(_: [*mut u32; 2]) {}

    /// What would be there.
    pub fn read(expected: [u32; 2]) -> Option<[u32; 2]> {
        Some(expected)
    }
}
