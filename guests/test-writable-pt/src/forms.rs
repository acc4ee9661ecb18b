//! Every form of store, on an entry and on plain memory: memory, registers and flags must end the same.

use crate::{Range, frame};
use core::arch::asm;
use proxenos_guest::abi::GuestVirt;
use proxenos_guest::memory;
use proxenos_guest::pte::{Pte, PteFlags};
use proxenos_guest::test::section;
use proxenos_guest::{Word, check, check_eq, probe};

/// CF, PF, AF, ZF, SF, OF.
const ALL: Word = 0x8d5;
/// Without AF, which logic leaves undefined.
const LOGIC: Word = ALL & !0x10;
/// CF and ZF: what the instructions on bits leave defined.
const BITS: Word = 0x41;

/// What an instruction works with and leaves: rax, rcx, flags.
type State = (Word, Word, Word);

struct Form {
    name: &'static str,
    run: fn(GuestVirt, State) -> State,
    /// Offset of its operand in the entry.
    offset: u64,
    /// Flags to compare.
    flags: Word,
    start: Start,
}

/// What the entry holds before.
#[derive(Clone, Copy)]
enum Start {
    /// Not present: any bits.
    Junk,
    /// A good entry without its present bit.
    Absent,
    /// A good entry.
    Present,
}

#[cfg(target_arch = "x86_64")]
macro_rules! execute {
    ($instruction:literal, $at:ident, $state:ident) => {
        // SAFETY: writes to a page of the test's own; the flags put in are arithmetic ones.
        unsafe {
            asm!("push rdx", "popfq", $instruction, "pushfq", "pop rdx",
                inout("rdi") $at.raw() => _, inout("rax") $state.0, inout("rcx") $state.1, inout("rdx") $state.2)
        }
    };
}

#[cfg(target_arch = "x86")]
macro_rules! execute {
    ($instruction:literal, $at:ident, $state:ident) => {
        // SAFETY: writes to a page of the test's own; the flags put in are arithmetic ones.
        unsafe {
            asm!("push edx", "popfd", $instruction, "pushfd", "pop edx",
                inout("edi") $at.raw() as u32 => _, inout("eax") $state.0, inout("ecx") $state.1, inout("edx") $state.2)
        }
    };
}

/// A form in both architectures: `di` in the text stands for the register that holds the address.
macro_rules! form {
    ($list:ident, $narrow:literal, $wide:literal, $offset:expr, $flags:expr, $start:ident) => {
        $list(&Form {
            name: $narrow,
            run: |at, mut state| {
                #[cfg(target_arch = "x86")]
                execute!($narrow, at, state);
                #[cfg(target_arch = "x86_64")]
                execute!($wide, at, state);
                state
            },
            offset: $offset,
            flags: $flags,
            start: Start::$start,
        })
    };
}

pub fn run() {
    section("forms of store");
    let range = Range::new(1);
    let spare = frame();
    let compare = |form: &Form| compare(range, spare, form);
    form!(compare, "mov [edi], ecx", "mov [rdi], rcx", 0, ALL, Junk);
    form!(compare, "mov dword ptr [edi], 0x1230", "mov qword ptr [rdi], 0x1230", 0, ALL, Junk);
    form!(compare, "mov word ptr [edi], cx", "mov dword ptr [rdi + 4], ecx", 0, ALL, Junk);
    form!(compare, "mov byte ptr [edi], ah", "mov byte ptr [rdi], ah", 1, ALL, Junk);
    form!(compare, "mov byte ptr [edi + 1], 0x55", "mov byte ptr [rdi + 5], 0x55", 0, ALL, Junk);
    form!(compare, "stosd", "stosq", 0, ALL, Junk);
    form!(compare, "stosb", "stosd", 0, ALL, Junk);
    form!(
        compare,
        "push esi; push eax; mov esi, esp; movsd; pop eax; pop esi",
        "push rsi; push rax; mov rsi, rsp; movsq; pop rax; pop rsi",
        0,
        ALL,
        Junk
    );
    form!(compare, "xchg [edi], ecx", "xchg [rdi], rcx", 0, ALL, Junk);
    form!(compare, "xchg [edi], ch", "xchg [rdi], ch", 2, ALL, Junk);
    form!(compare, "xchg [edi], cx", "xchg [rdi], ecx", 0, ALL, Junk);
    form!(compare, "lock cmpxchg [edi], ecx", "lock cmpxchg [rdi], rcx", 0, ALL, Junk);
    form!(compare, "mov eax, [edi]; lock cmpxchg [edi], ecx", "mov rax, [rdi]; lock cmpxchg [rdi], rcx", 0, ALL, Junk);
    form!(compare, "cmpxchg [edi], cl", "cmpxchg [rdi], ecx", 0, ALL, Junk);
    form!(compare, "lock xadd [edi], ecx", "lock xadd [rdi], rcx", 0, ALL, Junk);
    form!(compare, "lock bts dword ptr [edi], 1", "lock bts qword ptr [rdi], 1", 0, BITS, Present);
    form!(compare, "lock bts dword ptr [edi], 0", "lock bts qword ptr [rdi], 0", 0, BITS, Absent);
    form!(compare, "lock btr dword ptr [edi], 0", "lock btr qword ptr [rdi], 0", 0, BITS, Present);
    form!(compare, "lock btr dword ptr [edi], 5", "lock btr qword ptr [rdi], 5", 0, BITS, Present);
    form!(compare, "lock btc dword ptr [edi], 6", "lock btc qword ptr [rdi], 63", 0, BITS, Junk);
    form!(compare, "mov ecx, 9; bts [edi], ecx", "mov ecx, 9; bts [rdi], rcx", 0, BITS, Present);
    form!(compare, "lock and dword ptr [edi], -3", "lock and qword ptr [rdi], -3", 0, LOGIC, Present);
    form!(compare, "and [edi], ecx", "and [rdi], rcx", 0, LOGIC, Junk);
    form!(compare, "lock or dword ptr [edi], 1", "lock or qword ptr [rdi], 1", 0, LOGIC, Absent);
    form!(compare, "or byte ptr [edi], 1", "or byte ptr [rdi], 1", 0, LOGIC, Absent);
    form!(compare, "xor [edi], cx", "xor [rdi], cx", 0, LOGIC, Junk);
    form!(compare, "add [edi], ecx", "add [rdi], rcx", 0, ALL, Junk);
    form!(compare, "add byte ptr [edi], 0x70", "add byte ptr [rdi], 0x70", 3, ALL, Junk);
    form!(compare, "adc word ptr [edi], 0x7fff", "adc word ptr [rdi], 0x7fff", 2, ALL, Junk);
    form!(compare, "sub [edi], cx", "sub [rdi], ecx", 0, ALL, Junk);
    form!(compare, "sbb [edi], ch", "sbb [rdi], ch", 1, ALL, Junk);
    form!(compare, "lock inc dword ptr [edi]", "lock inc qword ptr [rdi]", 0, ALL, Absent);
    form!(compare, "lock dec dword ptr [edi]", "lock dec qword ptr [rdi]", 0, ALL, Present);
    form!(compare, "not dword ptr [edi]", "not qword ptr [rdi]", 0, ALL, Present);
    form!(compare, "neg dword ptr [edi]", "neg qword ptr [rdi]", 0, ALL, Junk);
    repeated(range, spare);
    undecoded(range);
}

/// Executes a form on plain memory and on an entry.
fn compare(range: Range, spare: proxenos_guest::memory::Frame, form: &Form) {
    const SLOT: usize = 5;
    let good = Pte::new(spare.mfn(), PteFlags::KERNEL_RO).0;
    let old = match form.start {
        Start::Junk => 0xfedc_ba98_7654_3210u64 as Word & !1,
        Start::Absent => good & !1,
        Start::Present => good,
    };
    for (rax, rcx, flags) in [(0x0102_0304, 0x1111_2222, 0), (0xffff_fffe, 0x8000_0000, ALL), (0, !1, 0x41)] {
        let flags = flags | 2;
        // SAFETY: a page of the test's own.
        check!(unsafe { probe::store(spare.virt(), old) });
        let plain = (form.run)(GuestVirt(spare.virt().raw() + form.offset), (rax, rcx, flags));
        let wanted = probe::load(spare.virt());
        // SAFETY: an entry of the test's own range.
        let set = unsafe {
            memory::write_entry(
                proxenos_guest::abi::MachineAddr(range.machine.raw() + 5 * size_of::<Word>() as u64),
                Pte(old),
            )
        };
        check_eq!(set, Ok(()), "{}", form.name);
        let table = (form.run)(GuestVirt(range.slot(SLOT).raw() + form.offset), (rax, rcx, flags));
        check_eq!(range.read(SLOT).map(|entry| entry.0), wanted, "{}: what is there", form.name);
        check_eq!((table.0, table.1), (plain.0, plain.1), "{}: registers", form.name);
        check_eq!(table.2 & form.flags, plain.2 & form.flags, "{}: flags", form.name);
    }
    check!(range.write(SLOT, Pte::NONE));
}

/// String instructions that write many entries.
fn repeated(range: Range, spare: proxenos_guest::memory::Frame) {
    section("repeated stores");
    let entry = Pte::new(spare.mfn(), PteFlags::KERNEL_RO);
    let count: Word = 1 << proxenos_guest::arch::LEVEL_BITS;
    let left: Word;
    // SAFETY: the entries of the test's own range.
    unsafe {
        #[cfg(target_arch = "x86")]
        asm!("rep stosd", inout("edi") range.table.raw() as u32 => _, inout("ecx") count => left, in("eax") entry.0);
        #[cfg(target_arch = "x86_64")]
        asm!("rep stosq", inout("rdi") range.table.raw() => _, inout("rcx") count => left, in("rax") entry.0);
    }
    check_eq!(left, 0);
    let same = (0..count as usize).all(|index| range.read(index) == Some(entry));
    check!(same, "every entry is there");
    check!(probe::is_readable(range.page(count as usize - 1)), "and maps its page");
    // Copied from a page that the table itself maps: they cannot both be had at a time.
    let source = frame();
    for index in 0..64 {
        let value = Pte::new(source.mfn(), PteFlags::KERNEL_RO).0;
        // SAFETY: a page of the test's own.
        check!(unsafe { probe::store(GuestVirt(source.virt().raw() + index * size_of::<Word>() as u64), value) });
    }
    check!(range.write(600 % count as usize, Pte::new(source.mfn(), PteFlags::KERNEL_RO)));
    let from = range.page(600 % count as usize);
    // SAFETY: the entries of the test's own range.
    unsafe {
        #[cfg(target_arch = "x86")]
        asm!("push esi", "mov esi, eax", "rep movsd", "pop esi",
            inout("edi") range.table.raw() as u32 => _, inout("ecx") 64 => _, in("eax") from.raw() as u32);
        #[cfg(target_arch = "x86_64")]
        asm!("rep movsq", inout("rdi") range.table.raw() => _, inout("rcx") 64u64 => _, inout("rsi") from.raw() => _);
    }
    let same = (0..64).all(|index| range.read(index) == Some(Pte::new(source.mfn(), PteFlags::KERNEL_RO)));
    check!(same, "every entry is copied");
    (0..count as usize).for_each(|index| {
        check!(range.write(index, Pte::NONE));
    });
}

/// A store that nobody expects on a page table goes through all the same.
fn undecoded(range: Range) {
    section("a store of another kind");
    let entry = Pte::new(frame().mfn(), PteFlags::KERNEL_RO);
    // SAFETY: an entry of the test's own range; the stack below is free.
    unsafe {
        #[cfg(target_arch = "x86")]
        asm!("push {1}", "pop dword ptr [{0}]", in(reg) range.slot(3).raw() as u32, in(reg) entry.0);
        #[cfg(target_arch = "x86_64")]
        asm!("push {1}", "pop qword ptr [{0}]", in(reg) range.slot(3).raw(), in(reg) entry.0);
    }
    check_eq!(range.read(3), Some(entry));
    check!(probe::is_readable(range.page(3)));
    check!(range.write(3, Pte::NONE));
}
