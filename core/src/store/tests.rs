//! The decoder against another one, and each form against results worked out by hand.

use super::*;
use iced_x86::{Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind};
use proptest::prelude::*;

fn theirs(bytes: &[u8], code: CodeWidth) -> Instruction {
    let bits = if code == CodeWidth::Bits64 { 64 } else { 32 };
    Decoder::new(bits, bytes, DecoderOptions::NONE).decode()
}

/// Bytes that are an instruction of ours more often than chance would have it.
fn bytes() -> impl Strategy<Value = [u8; 16]> {
    let prefix = prop_oneof![
        Just(0x66u8),
        Just(0xf0),
        Just(0xf3),
        Just(0xf2),
        Just(0x67),
        Just(0x3e),
        Just(0x64),
        Just(0x48),
        Just(0x4c),
        Just(0x41)
    ];
    const OPCODES: [u8; 27] = [
        0x88, 0x89, 0xc6, 0xc7, 0xa2, 0xa3, 0xa4, 0xa5, 0xaa, 0xab, 0x86, 0x87, 0x01, 0x08, 0x11, 0x19, 0x21, 0x29,
        0x31, 0x80, 0x81, 0x83, 0xf6, 0xf7, 0xfe, 0xff, 0x0f,
    ];
    const SECOND: [u8; 10] = [0xb0, 0xb1, 0xc0, 0xc1, 0xab, 0xb3, 0xbb, 0xba, 0xc7, 0x11];
    let start = (
        proptest::collection::vec(prefix, 0..3),
        proptest::sample::select(&OPCODES[..]),
        proptest::sample::select(&SECOND[..]),
        any::<[u8; 16]>(),
    );
    start.prop_map(|(prefixes, opcode, second, tail)| {
        let mut bytes = tail;
        bytes[..prefixes.len()].copy_from_slice(&prefixes);
        bytes[prefixes.len()] = opcode;
        if opcode == 0x0f {
            bytes[prefixes.len() + 1] = second;
        }
        bytes
    })
}

fn mnemonics(store: &Store) -> &'static [Mnemonic] {
    use Mnemonic as M;
    match store.operation {
        Operation::Move => &[M::Mov],
        Operation::Arithmetic(Arithmetic::Add) => &[M::Add],
        Operation::Arithmetic(Arithmetic::Or) => &[M::Or],
        Operation::Arithmetic(Arithmetic::Adc) => &[M::Adc],
        Operation::Arithmetic(Arithmetic::Sbb) => &[M::Sbb],
        Operation::Arithmetic(Arithmetic::And) => &[M::And],
        Operation::Arithmetic(Arithmetic::Sub) => &[M::Sub],
        Operation::Arithmetic(Arithmetic::Xor) => &[M::Xor],
        Operation::Increment => &[M::Inc],
        Operation::Decrement => &[M::Dec],
        Operation::Not => &[M::Not],
        Operation::Negate => &[M::Neg],
        Operation::Exchange => &[M::Xchg],
        Operation::ExchangeAdd => &[M::Xadd],
        Operation::CompareExchange => &[M::Cmpxchg],
        Operation::BitSet => &[M::Bts],
        Operation::BitReset => &[M::Btr],
        Operation::BitComplement => &[M::Btc],
        Operation::StoreString => &[M::Stosb, M::Stosw, M::Stosd, M::Stosq],
        Operation::MoveString => &[M::Movsb, M::Movsw, M::Movsd, M::Movsq],
    }
}

/// Number and first bit of a general register of iced's.
fn number_of(register: iced_x86::Register) -> (u8, u8) {
    use iced_x86::Register as R;
    match register {
        R::AH | R::CH | R::DH | R::BH => (register as u8 - R::AH as u8, 8),
        _ => (register.full_register().number() as u8, 0),
    }
}

fn compare(bytes: &[u8], code: CodeWidth) -> Result<bool, TestCaseError> {
    let Ok(store) = decode(bytes, code) else { return Ok(false) };
    let their = theirs(bytes, code);
    if their.is_invalid() {
        // Decoded here is what a processor would not have executed: it cannot have faulted on its operand.
        return Ok(false);
    }
    prop_assert!(mnemonics(&store).contains(&their.mnemonic()), "{:?} is {:?}", store, their.mnemonic());
    prop_assert_eq!(usize::from(store.length), their.len());
    prop_assert_eq!(store.width.bytes() as usize, their.memory_size().size());
    let is_string = store.operation == Operation::StoreString || store.operation == Operation::MoveString;
    prop_assert_eq!(store.repeat == Repeat::Yes, is_string && (their.has_rep_prefix() || their.has_repne_prefix()));
    let mut factory = InstructionInfoFactory::new();
    let writes = |access| {
        matches!(access, OpAccess::Write | OpAccess::ReadWrite | OpAccess::ReadCondWrite | OpAccess::CondWrite)
    };
    let written = factory.info(&their).used_memory().iter().filter(|used| writes(used.access())).count();
    prop_assert_eq!(written, 1, "one memory operand is written");
    if !is_string && their.op_count() == 2 {
        match store.source {
            Source::Immediate(value) => {
                // Of a bit's number, more than the low byte does not count.
                let byte =
                    matches!(store.operation, Operation::BitSet | Operation::BitReset | Operation::BitComplement);
                let mask = if byte { 0xff } else { store.width.mask() };
                prop_assert_eq!(value & mask, their.immediate(1) & mask);
            }
            Source::Register { number, shift } => {
                prop_assert_eq!(their.op1_kind(), OpKind::Register);
                prop_assert_eq!((number, shift), number_of(their.op1_register()));
            }
        }
    }
    Ok(true)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn another_decoder_agrees(bytes in bytes(), wide in any::<bool>()) {
        compare(&bytes, if wide { CodeWidth::Bits64 } else { CodeWidth::Bits32 })?;
    }

    #[test]
    fn the_quick_decoder_agrees(
        mut bytes in any::<[u8; 16]>(),
        rex in proptest::option::of(0x40..0x50u8),
        general in any::<[u64; 16]>(),
        ip in any::<u64>(),
        wide in any::<bool>(),
    ) {
        let code = if wide { CodeWidth::Bits64 } else { CodeWidth::Bits32 };
        match rex {
            Some(rex) => bytes[..2].copy_from_slice(&[rex, 0x89]),
            None => bytes[0] = 0x89,
        }
        let ip = if wide { ip } else { ip & 0xffff_ffff };
        let mut registers = Registers { general, ip, flags: 2 };
        let quick = Move::decode(&bytes, code, &registers);
        let store = decode(&bytes, code).ok().filter(|store| store.operation == Operation::Move);
        prop_assert_eq!(quick.is_some(), store.is_some());
        if let (Some(quick), Some(store)) = (quick, store) {
            let value = store.carry_out(&mut registers, 0, 0);
            prop_assert_eq!((quick.value, quick.width, quick.next), (value, store.width, registers.ip));
        }
    }

    #[test]
    fn any_bytes_give_a_result(bytes in any::<[u8; 16]>(), length in 0..=16usize, wide in any::<bool>()) {
        let code = if wide { CodeWidth::Bits64 } else { CodeWidth::Bits32 };
        if let Ok(store) = decode(&bytes[..length], code) {
            prop_assert!(usize::from(store.length) <= length.min(LONGEST));
            for shorter in 0..usize::from(store.length) {
                prop_assert_eq!(decode(&bytes[..shorter], code), Err(NotDecoded::Truncated));
            }
        }
    }
}

/// What kernels store entries with must be known, in all its encodings.
#[test]
fn the_usual_stores_are_known() {
    let both: &[&[u8]] = &[
        &[0x89, 0x08],                               // mov [rax], ecx
        &[0x88, 0x21],                               // mov [rcx], ah
        &[0x66, 0x89, 0x44, 0x8d, 0x10],             // mov [rbp + rcx * 4 + 16], ax
        &[0xc7, 0x04, 0x25, 1, 2, 3, 4, 0, 0, 0, 0], // mov dword [disp32], 0
        &[0xc6, 0x80, 1, 2, 3, 4, 0x55],             // mov byte [rax + disp32], 0x55
        &[0x87, 0x13],                               // xchg [rbx], edx
        &[0xf0, 0x0f, 0xb1, 0x0a],                   // lock cmpxchg [rdx], ecx
        &[0xf0, 0x0f, 0xc1, 0x06],                   // lock xadd [rsi], eax
        &[0xf0, 0x0f, 0xab, 0x08],                   // lock bts [rax], ecx
        &[0xf0, 0x0f, 0xba, 0x28, 1],                // lock bts dword [rax], 1
        &[0xf0, 0x0f, 0xba, 0x30, 6],                // lock btr dword [rax], 6
        &[0xf0, 0x0f, 0xba, 0x38, 6],                // lock btc dword [rax], 6
        &[0xf0, 0x83, 0x20, 0xfd],                   // lock and dword [rax], -3
        &[0xf0, 0x81, 0x08, 0, 0, 0, 1],             // lock or dword [rax], 0x1000000
        &[0x80, 0x30, 0x40],                         // xor byte [rax], 0x40
        &[0xf0, 0xff, 0x00],                         // lock inc dword [rax]
        &[0xf7, 0x10],                               // not dword [rax]
        &[0xab],
        &[0xf3, 0xab],
        &[0xa5],
        &[0xf3, 0xa4],
    ];
    let wide: &[&[u8]] = &[
        &[0x48, 0x89, 0x3e],                                     // mov [rsi], rdi
        &[0x4c, 0x89, 0x04, 0xca],                               // mov [rdx + rcx * 8], r8
        &[0x40, 0x88, 0x30],                                     // mov [rax], sil
        &[0x48, 0xc7, 0x05, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], // mov qword [rip], -1
        &[0x48, 0xa3, 1, 2, 3, 4, 5, 6, 7, 8],                   // mov [moffs64], rax
        &[0xf0, 0x4d, 0x0f, 0xb1, 0x08],                         // lock cmpxchg [r8], r9
        &[0xf0, 0x48, 0x0f, 0xba, 0x28, 63],                     // lock bts qword [rax], 63
        &[0xf3, 0x48, 0xab],                                     // rep stosq
        &[0x48, 0xa5],                                           // movsq
        &[0x67, 0x48, 0x89, 0x08],                               // mov [eax], rcx
    ];
    for bytes in both.iter().chain(wide) {
        assert!(compare(bytes, CodeWidth::Bits64).expect("agreement"), "{bytes:x?}");
    }
    for bytes in both {
        assert!(compare(bytes, CodeWidth::Bits32).expect("agreement"), "{bytes:x?}");
    }
    assert!(compare(&[0xa3, 1, 2, 3, 4], CodeWidth::Bits32).expect("agreement"), "mov [moffs32], eax");
}

struct Case {
    code: &'static [u8],
    before: Registers,
    old: u64,
    new: u64,
    changed: &'static [(usize, u64)],
    flags: u64,
}

fn registers(general: &[(usize, u64)], flags: u64) -> Registers {
    let mut registers = Registers { ip: 0x1000, flags, ..Registers::default() };
    general.iter().for_each(|&(number, value)| registers.general[number] = value);
    registers
}

#[test]
fn each_form_does_what_the_manual_says() {
    let full = u64::MAX;
    const fn ones(count: u32) -> u64 {
        u64::MAX >> (64 - count)
    }
    const LOW: u64 = ones(32);
    let cases = [
        // mov [rcx], ah
        Case {
            code: &[0x88, 0x21],
            before: registers(&[(0, 0x1234)], 2),
            old: 0xff,
            new: 0x12,
            changed: &[],
            flags: 2,
        },
        // mov dword [rax], -2
        Case {
            code: &[0xc7, 0x00, 0xfe, 0xff, 0xff, 0xff],
            before: registers(&[], 0x8d5),
            old: 0,
            new: 0xffff_fffe,
            changed: &[],
            flags: 0x8d5,
        },
        // mov qword [rax], -2
        Case {
            code: &[0x48, 0xc7, 0x00, 0xfe, 0xff, 0xff, 0xff],
            before: registers(&[], 2),
            old: 0,
            new: full - 1,
            changed: &[],
            flags: 2,
        },
        // xchg [rbx], edx: the register's upper half is cleared
        Case {
            code: &[0x87, 0x13],
            before: registers(&[(2, full)], 2),
            old: 7,
            new: ones(32),
            changed: &[(2, 7)],
            flags: 2,
        },
        // xchg [rbx], dh
        Case {
            code: &[0x86, 0x33],
            before: registers(&[(2, 0x0102_0304)], 2),
            old: 7,
            new: 3,
            changed: &[(2, 0x0102_0704)],
            flags: 2,
        },
        // cmpxchg [rdx], rcx: equal
        Case {
            code: &[0x48, 0x0f, 0xb1, 0x0a],
            before: registers(&[(0, 5), (1, 9)], CF | OF | 2),
            old: 5,
            new: 9,
            changed: &[],
            flags: ZF | PF | 2,
        },
        // cmpxchg [rdx], ecx: different (3 - 5)
        Case {
            code: &[0x0f, 0xb1, 0x0a],
            before: registers(&[(0, 3), (1, 9)], 2),
            old: 5,
            new: 5,
            changed: &[(0, 5)],
            flags: CF | AF | SF | 2,
        },
        // xadd [rsi], eax
        Case {
            code: &[0x0f, 0xc1, 0x06],
            before: registers(&[(0, 1)], 2),
            old: ones(32),
            new: 0,
            changed: &[(0, LOW)],
            flags: CF | PF | AF | ZF | 2,
        },
        // bts [rax], ecx: the bit's number is taken modulo 32, the other flags stay
        Case {
            code: &[0x0f, 0xab, 0x08],
            before: registers(&[(1, 32 + 4)], ZF | CF | 2),
            old: 0x20,
            new: 0x30,
            changed: &[],
            flags: ZF | 2,
        },
        // btr dword [rax], 5
        Case {
            code: &[0x0f, 0xba, 0x30, 5],
            before: registers(&[], 2),
            old: 0x30,
            new: 0x10,
            changed: &[],
            flags: CF | 2,
        },
        // btc qword [rax], 63
        Case {
            code: &[0x48, 0x0f, 0xba, 0x38, 63],
            before: registers(&[], CF | 2),
            old: 1,
            new: 1 << 63 | 1,
            changed: &[],
            flags: 2,
        },
        // and dword [rax], -3
        Case {
            code: &[0x83, 0x20, 0xfd],
            before: registers(&[], CF | OF | 2),
            old: 0x8000_0003,
            new: 0x8000_0001,
            changed: &[],
            flags: SF | 2,
        },
        // or byte [rax], 0x80
        Case {
            code: &[0x80, 0x08, 0x80],
            before: registers(&[], 2),
            old: 1,
            new: 0x81,
            changed: &[],
            flags: SF | PF | 2,
        },
        // add byte [rax], 0x7f: signed overflow
        Case {
            code: &[0x80, 0x00, 0x7f],
            before: registers(&[], 2),
            old: 1,
            new: 0x80,
            changed: &[],
            flags: OF | SF | AF | 2,
        },
        // adc word [rax], cx with carry
        Case {
            code: &[0x66, 0x11, 0x08],
            before: registers(&[(1, 0xffff)], CF | 2),
            old: 0,
            new: 0,
            changed: &[],
            flags: CF | AF | ZF | PF | 2,
        },
        // sbb dword [rax], 0 with borrow
        Case {
            code: &[0x83, 0x18, 0],
            before: registers(&[], CF | 2),
            old: 0x10,
            new: 0xf,
            changed: &[],
            flags: AF | PF | 2,
        },
        // sub byte [rax], 1: signed overflow
        Case {
            code: &[0x80, 0x28, 1],
            before: registers(&[], 2),
            old: 0x80,
            new: 0x7f,
            changed: &[],
            flags: OF | AF | 2,
        },
        // xor [rax], rax with itself
        Case {
            code: &[0x48, 0x31, 0x00],
            before: registers(&[(0, full)], CF | 2),
            old: full,
            new: 0,
            changed: &[],
            flags: ZF | PF | 2,
        },
        // inc dword [rax]: CF stays
        Case {
            code: &[0xff, 0x00],
            before: registers(&[], CF | 2),
            old: ones(32),
            new: 0,
            changed: &[],
            flags: CF | ZF | PF | AF | 2,
        },
        // dec byte [rax]: CF stays
        Case {
            code: &[0xfe, 0x08],
            before: registers(&[], 2),
            old: 0,
            new: 0xff,
            changed: &[],
            flags: SF | PF | AF | 2,
        },
        // neg dword [rax]; not word [rax]
        Case {
            code: &[0xf7, 0x18],
            before: registers(&[], 2),
            old: 1,
            new: ones(32),
            changed: &[],
            flags: CF | SF | PF | AF | 2,
        },
        Case {
            code: &[0x66, 0xf7, 0x10],
            before: registers(&[], CF | 2),
            old: 0xf0f0,
            new: 0x0f0f,
            changed: &[],
            flags: CF | 2,
        },
        // stosq, backwards
        Case {
            code: &[0x48, 0xab],
            before: registers(&[(0, 0xabc), (7, 0x5000)], DF | 2),
            old: 0,
            new: 0xabc,
            changed: &[(7, 0x4ff8)],
            flags: DF | 2,
        },
    ];
    for case in cases {
        let store = decode(case.code, CodeWidth::Bits64).expect("a known store");
        let mut found = case.before.clone();
        let new = store.carry_out(&mut found, case.old, 0);
        let mut expected = case.before;
        expected.ip += case.code.len() as u64;
        expected.flags = case.flags;
        case.changed.iter().for_each(|&(number, value)| expected.general[number] = value);
        assert_eq!((new, found), (case.new, expected), "{:x?}", case.code);
    }
}

#[test]
fn repeated_stores_go_on_until_the_count_is_zero() {
    let store = decode(&[0xf3, 0xa5], CodeWidth::Bits32).expect("rep movsd");
    let mut found = registers(&[(1, 2), (6, 0xffff_fffc), (7, 0x2000)], 2);
    assert_eq!(store.reads_from(&found), Some(0xffff_fffc));
    assert_eq!(store.carry_out(&mut found, 1, 0x1111), 0x1111);
    assert_eq!(found, registers(&[(1, 1), (6, 0), (7, 0x2004)], 2), "the same instruction again");
    assert_eq!(store.carry_out(&mut found, 1, 0x2222), 0x2222);
    assert_eq!((found.ip, found.general[usize::from(RCX)]), (0x1002, 0));
}

#[test]
fn an_instruction_pointer_ends_where_its_code_does() {
    let mut found = Registers { ip: 0xffff_fffe, ..Registers::default() };
    decode(&[0x89, 0x08], CodeWidth::Bits32).expect("a store").carry_out(&mut found, 0, 0);
    assert_eq!(found.ip, 0);
    found.ip = 0x1_0000_0000;
    decode(&[0x67, 0x89, 0x08], CodeWidth::Bits64).expect("a store").carry_out(&mut found, 0, 0);
    assert_eq!(found.ip, 0x1_0000_0003);
}
