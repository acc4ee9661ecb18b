//! The life of domains: what it takes to create one, to bring it to its first instruction, and to destroy it; and what
//! memory it takes besides its own.
//!
//! The domain has 4 MiB and does next to nothing: it notes the time-stamp counter with its first instruction, and waits
//! for good.

use crate::Bench;
use crate::control::{Window, ask, create, destroy, frames, free, info, unpause, window, word};
use core::cell::Cell;
use proxenos_guest::abi::context::FullExecutionContext;
use proxenos_guest::abi::dom0_ops::args::BuildDomain;
use proxenos_guest::abi::mmu::{MmuCommand, MmuExtCommand};
use proxenos_guest::abi::shared_info::SharedInfo;
use proxenos_guest::abi::zerocopy::{FromZeros, IntoBytes};
use proxenos_guest::abi::{DomId, Errno, GuestArch, GuestWord, Hypercall, Mfn};
use proxenos_guest::arch::{Arch, Word, read_tsc};
use proxenos_guest::{hypercall, memory};

/// Its memory, in KiB.
const MEMORY: u64 = 4 << 10;
/// Rounds of what takes long.
const ROUNDS: usize = 3;
/// How many there are at once where their memory is measured.
const MANY: usize = 8;

/// What its first frames are: tables, then these. Only those are mapped.
const PAGES: usize = 8;
const CODE: usize = 4;
const STACK: usize = 5;
const NOTES: usize = 6;
/// Where the first of them is mapped.
const BASE: u64 = if Arch::PAGE_TABLE_LEVELS == 2 { 0xc000_0000 } else { 0xffff_ff80_0000_0000 };

/// Bits of entries that both architectures have (Intel SDM vol. 3 §4.3, §4.5): present, writable, user, accessed,
/// dirty.
const TABLE: u64 = 0x67;
const READ_ONLY: u64 = 0x21;
const WRITABLE: u64 = 0x63;
const USER: u64 = 4;

pub fn run(bench: &Bench) {
    let names = ["domain-create", "domain-create-to-first", "domain-destroy", "memory-per-domain"];
    if !names.iter().any(|name| bench.measures(name)) {
        return;
    }
    let window = window();
    if bench.measures("domain-create") {
        let last = Cell::new(None);
        let end_of_last = |_| end(last.take());
        bench.measure("domain-create", end_of_last, |()| {
            last.set(create(MEMORY).ok());
            last.get().is_some()
        });
        end_of_last(0);
    }
    if bench.measures("domain-create-to-first") {
        let least = (0..ROUNDS).map(|_| to_first_instruction(window)).min();
        bench.report("domain-create-to-first", least.unwrap_or(0));
    }
    if bench.measures("domain-destroy") {
        bench.measure("domain-destroy", |_| started(window), |id| destroy(id).is_ok());
    }
    if bench.measures("memory-per-domain") {
        // What of the hypervisor's tables a number needs when it is given for the first time stays.
        many(window, || ());
        let before = free();
        let taken = many(window, || before - free());
        bench.report("memory-per-domain", taken / MANY as u64 - (MEMORY << 10));
    }
}

fn end(domain: Option<DomId>) {
    if let Some(domain) = domain {
        destroy(domain).expect("it can be destroyed");
    }
}

/// Does something while there are many.
fn many<T>(window: Window, meanwhile: impl FnOnce() -> T) -> T {
    let domains = [(); MANY].map(|()| started(window));
    let value = meanwhile();
    domains.into_iter().for_each(|id| end(Some(id)));
    value
}

/// A domain that waits.
fn started(window: Window) -> DomId {
    let (id, notes) = build(window).expect("there is memory for it");
    unpause(id).expect("it is built");
    wait_for_note(id, notes, window);
    id
}

/// Instructions from before a domain is created until it runs.
fn to_first_instruction(window: Window) -> u64 {
    let before = read_tsc();
    let (id, notes) = build(window).expect("there is memory for it");
    unpause(id).expect("it is built");
    let first = wait_for_note(id, notes, window);
    end(Some(id));
    first - before
}

/// When it executed its first instruction.
fn wait_for_note(id: DomId, notes: Mfn, window: Window) -> u64 {
    window.show(id, notes).expect("a frame of its");
    while window.number(0) == 0 {
        let _ = hypercall::sched_yield();
    }
    let first = window.number(0);
    window.close();
    first
}

/// Its code: the counter's value to its notes; then it waits, again and again.
fn code() -> [u8; 32] {
    let mut code = [0x90; 32];
    let sched_op = Hypercall::SchedOp.raw() as u8;
    let notes = if Arch::PAGE_TABLE_LEVELS == 2 {
        (BASE + 4096 * NOTES as u64) as u32
    } else {
        // From the end of the first of the two stores.
        4096 * (NOTES - CODE) as u32 - 8
    };
    // rdtsc; mov [notes], eax; mov [notes + 4], edx
    code[..4].copy_from_slice(&[0x0f, 0x31, 0x89, 0x05]);
    code[4..8].copy_from_slice(&notes.to_le_bytes());
    code[8..10].copy_from_slice(&[0x89, 0x15]);
    let high = if Arch::PAGE_TABLE_LEVELS == 2 { notes + 4 } else { notes + 4 - 6 };
    code[10..14].copy_from_slice(&high.to_le_bytes());
    // mov eax, SCHED_OP; mov ebx (edi), block; int 0x82 (syscall); jmp back
    let (argument, call) = if Arch::PAGE_TABLE_LEVELS == 2 { (0xbb, [0xcd, 0x82]) } else { (0xbf, [0x0f, 0x05]) };
    code[14..24].copy_from_slice(&[0xb8, sched_op, 0, 0, 0, argument, 1, 0, 0, 0]);
    code[24..26].copy_from_slice(&call);
    code[26..28].copy_from_slice(&[0xeb, 0xf2]);
    code
}

/// Builds it, as 2.0's tools do: its number, and where it notes the time. It is paused.
fn build(window: Window) -> Result<(DomId, Mfn), Errno> {
    let id = create(MEMORY)?;
    let mut list = [0 as Word; PAGES];
    let count = frames(id, &mut list)?;
    assert!(count == PAGES, "as many as were asked for");
    let own = list.map(|frame| Mfn(frame.to_u64()));
    let put = |table: usize, slot: usize, value: u64| -> Result<(), Errno> {
        window.show(id, own[table])?;
        window.write(slot * size_of::<Word>(), &value.to_le_bytes()[..size_of::<Word>()]);
        window.close();
        Ok(())
    };
    let entry = |index: usize, bits: u64| own[index].addr().raw() | bits;
    let (tables, user) = if Arch::PAGE_TABLE_LEVELS == 2 {
        put(0, (BASE >> 22) as usize, entry(1, TABLE))?;
        (2, 0)
    } else {
        put(0, 511, entry(3, TABLE))?;
        put(3, 0, entry(2, TABLE))?;
        put(2, 0, entry(1, TABLE))?;
        (4, USER)
    };
    for page in 0..PAGES {
        put(1, page, entry(page, user | if page < tables { READ_ONLY } else { WRITABLE }))?;
    }
    window.show(id, own[CODE])?;
    window.write(0, &code());
    window.close();
    // It has no callback: an event would only keep it from waiting.
    let shared = info(id)?.shared_info_frame;
    window.show(id, Mfn(shared.to_u64()))?;
    window.write(SharedInfo::EVTCHN_MASK, &[0xff; 128]);
    window.close();
    let pin = if Arch::PAGE_TABLE_LEVELS == 2 { MmuExtCommand::PinL2Table } else { MmuExtCommand::PinL4Table };
    let mut requests = [memory::extended(MmuExtCommand::SetForeigndom, 0, u64::from(id.0) << 8); PAGES + 2];
    for (pfn, frame) in own.iter().enumerate() {
        requests[1 + pfn] = memory::request(MmuCommand::MachphysUpdate, frame.addr(), pfn as Word);
    }
    requests[PAGES + 1] = memory::extended(pin, own[0].addr().raw(), 0);
    // SAFETY: none of the frames is ours.
    unsafe { hypercall::mmu_update(&requests) }.map_err(|(errno, _)| errno)?;
    begin(id, own[0])?;
    Ok((id, own[NOTES]))
}

/// Passes the context on in which it begins.
fn begin(id: DomId, top: Mfn) -> Result<(), Errno> {
    let mut context = FullExecutionContext::<Arch>::new_zeroed();
    let (entry, stack) = (BASE + 4096 * CODE as u64, BASE + 4096 * (STACK + 1) as u64);
    let (entry, stack) = (Word::from_u64_truncating(entry), Word::from_u64_truncating(stack));
    let data = Word::from(Arch::FLAT_GUESTOS_DS.raw());
    let cpu = &mut context.cpu_ctxt;
    cpu.cs = Arch::FLAT_GUESTOS_CS.raw().into();
    cpu.ss = data;
    cpu.eflags = 0x202;
    #[cfg(target_arch = "x86")]
    {
        (cpu.ds, cpu.es, cpu.fs, cpu.gs) = (data, data, data, data);
        (cpu.eip, cpu.esp) = (entry, stack);
    }
    #[cfg(target_arch = "x86_64")]
    {
        (cpu.rip, cpu.rsp) = (entry, stack);
    }
    (context.guestos_ss, context.guestos_esp) = (data, stack);
    context.pt_base = Word::from_u64_truncating(top.addr().raw());
    let at = word(context.as_bytes().as_ptr() as usize as u64);
    ask(BuildDomain::<Arch> { domain: id, ctxt: at, ..BuildDomain::default() }).map(drop)
}
