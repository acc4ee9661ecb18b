//! What the types do beyond lying right: decoding, conversion, and code generic over both architectures.

use proxenos_abi::arch::{AbiType, GuestWord};
use proxenos_abi::context::{CpuContext, FullExecutionContext, FullExecutionContextV1A, TrapFlags, TrapInfo};
use proxenos_abi::dom0_ops::{Dom0Command, Dom0Op, Dom0Request, Dom0Version, args::*};
use proxenos_abi::event_channel::*;
use proxenos_abi::frames::has_error_code;
use proxenos_abi::grant_table::{GrantFlags, GrantType};
use proxenos_abi::hypercall::{
    Hypercall, SWITCH_TO_USER_IN_SYSCALL, SWITCH_TO_USER_RAX, SegmentBase, ShutdownReason, SwitchToUser,
};
use proxenos_abi::io::blkif::{BlkifArch, BlkifRequest, BlkifResponse, BlkifSlot, segment};
use proxenos_abi::io::domain_controller::{ControlMsg, MemRequest, MessageType, control_slot};
use proxenos_abi::mmu::{MmuCommand, MmuExtCommand, MmuUpdate};
use proxenos_abi::payload::Payload;
use proxenos_abi::sched_ctl::{BvtAdjdom, SchedAdjdom};
use proxenos_abi::start_info::{MAX_CMDLINE, StartInfo, StartInfoFlags};
use proxenos_abi::zerocopy::{FromBytes, FromZeros, IntoBytes};
use proxenos_abi::{
    DomId, Errno, GrantRef, GuestArch, MachineAddr, Mfn, Padded, Pirq, Port, Selector, Virq, X86_32, X86_64, x86_32,
};

#[test]
fn words_refuse_what_they_cannot_hold() {
    assert_eq!(u32::from_u64(0xffff_ffff), Some(u32::MAX));
    assert_eq!(u32::from_u64(1 << 32), None);
    assert_eq!(<u64 as GuestWord>::from_u64(u64::MAX), Some(u64::MAX));
    assert_eq!(u32::from_u64_truncating(1 << 32 | 5), 5);
    assert!(Padded::<X86_32>::from_u64(1 << 32).is_none());
    assert_eq!(Padded::<X86_64>::from_u64(1 << 32).map(Padded::to_u64), Some(1 << 32));
}

#[test]
fn errors_keep_their_sign_in_both_widths() {
    assert_eq!(Errno::EFAULT.to_word::<u32>(), 0xffff_fff2);
    assert_eq!(Errno::EFAULT.to_word::<u64>(), 0xffff_ffff_ffff_fff2);
    assert_eq!(Errno::from_result(-38), Some(Errno::ENOSYS));
    for none in [0, 38, -40, i64::MIN, -4096] {
        assert_eq!(Errno::from_result(none), None, "{none}");
    }
}

#[test]
fn numbers_convert_both_ways_and_others_are_refused() {
    for &call in Hypercall::ALL {
        assert_eq!(Hypercall::try_from(call.raw()), Ok(call));
    }
    for unknown in [24, 26, 31, 32, u32::MAX] {
        assert!(Hypercall::try_from(unknown).is_err(), "{unknown}");
    }
    assert!(Dom0Command::try_from(26).is_err());
    assert!(MmuCommand::try_from(1).is_err());
    assert!(Virq::try_from(7).is_err());
    assert_eq!(ShutdownReason::Suspend.sched_op_arg(), 0x202);
}

/// A domain's first page, written and read back by code that does not know the architecture.
fn start_info_round_trip<A: GuestArch>() {
    let mut info = StartInfo::<A> { flags: StartInfoFlags::PRIVILEGED.bits(), ..StartInfo::default() };
    info.shared_info = Padded::from_u64(0x1234_5000).expect("fits both");
    assert_eq!(info.set_command_line(b"console=xen"), 11);
    let bytes = info.as_bytes().to_vec();
    assert_eq!(bytes[8..16], 0x1234_5000u64.to_le_bytes(), "padding makes it 64 bits in both layouts");
    let read = StartInfo::<A>::read_from_bytes(&bytes).expect("as long as the type");
    assert_eq!(read, info);
    assert_eq!(read.command_line(), b"console=xen");
    assert_eq!(read.flags(), StartInfoFlags::PRIVILEGED);
}

#[test]
fn start_info_is_generic() {
    start_info_round_trip::<X86_32>();
    start_info_round_trip::<X86_64>();
}

#[test]
fn command_line_always_ends_in_nul() {
    let mut info = StartInfo::<X86_32>::default();
    assert_eq!(info.set_command_line(&[b'x'; MAX_CMDLINE + 1]), MAX_CMDLINE - 1);
    assert_eq!(info.command_line().len(), MAX_CMDLINE - 1);
    info.cmd_line = [b'y'; MAX_CMDLINE];
    assert_eq!(info.command_line().len(), MAX_CMDLINE, "a guest may have left out the NUL");
}

/// Structures may be read at any address: nothing here needs alignment.
fn unaligned<A: GuestArch>() {
    fn is_packed<T: AbiType>() {
        assert_eq!(align_of::<T>(), 1);
    }
    is_packed::<StartInfo<A>>();
    is_packed::<A::ExecutionContext>();
    is_packed::<FullExecutionContext<A>>();
    let mut bytes = vec![0u8; 1 + size_of::<MmuUpdate<A>>()];
    bytes[1] = 3;
    let update = MmuUpdate::<A>::ref_from_bytes(&bytes[1..]).expect("at an odd address");
    assert_eq!(update.command(), Some(MmuCommand::ExtendedCommand));
}

#[test]
fn structures_are_unaligned() {
    unaligned::<X86_32>();
    unaligned::<X86_64>();
}

fn mmu<A: GuestArch>() {
    let update = MmuUpdate::<A>::from_parts(MmuCommand::MachphysUpdate, 0x1234_5678, A::Word::ZERO).expect("fits");
    assert_eq!((update.command(), update.address()), (Some(MmuCommand::MachphysUpdate), MachineAddr(0x1234_5678)));

    let ldt = MmuUpdate::<A>::extended(MmuExtCommand::SetLdt, 0x8000, 17).expect("fits");
    assert_eq!((ldt.command(), ldt.ext_command()), (Some(MmuCommand::ExtendedCommand), Some(MmuExtCommand::SetLdt)));
    assert_eq!((ldt.address(), ldt.ext_arg()), (MachineAddr(0x8000), 17));

    let transfer =
        MmuUpdate::<A>::transfer_page(MachineAddr(0x0765_4abc), DomId(0x7ff1), GrantRef(0xbeef)).expect("fits");
    assert_eq!(transfer.ext_command(), Some(MmuExtCommand::TransferPage));
    assert_eq!((transfer.ext_domain(), transfer.ext_grant_ref()), (DomId(0x7ff1), GrantRef(0xbeef)));
    assert_eq!(transfer.address().mfn(), Mfn(0x7654));
}

#[test]
fn mmu_requests_pack_their_arguments() {
    mmu::<X86_32>();
    mmu::<X86_64>();
    assert!(MmuUpdate::<X86_32>::from_parts(MmuCommand::NormalPtUpdate, 1 << 32, 0).is_none());
    let unknown = MmuUpdate::<X86_32> { ptr: 1, val: 15 };
    assert_eq!((unknown.command(), unknown.ext_command()), (None, None));
}

#[test]
fn event_channel_requests_decode() {
    let bind = EvtchnBindVirq { virq: Virq::Timer.raw(), port: Port(0) };
    let op = EvtchnOp::new(bind);
    assert_eq!(op.as_bytes()[..12], [1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(op.decode(), Ok(EvtchnRequest::BindVirq(bind)));
    assert!(EvtchnOp { cmd: 7, ..op }.decode().is_err());
}

#[test]
fn channel_states_survive_the_union() {
    for channel in [
        Channel::Closed,
        Channel::Unbound(DomId(3)),
        Channel::Interdomain(DomId(4), Port(1023)),
        Channel::Pirq(Pirq(9)),
        Channel::Virq(Virq::Console),
    ] {
        let mut status = EvtchnStatus { u: Payload([0xff; 8]), ..EvtchnStatus::default() };
        status.set_channel(channel);
        assert_eq!(status.channel(), Ok(channel));
    }
    let unknown = EvtchnStatus { status: 5, ..EvtchnStatus::default() };
    assert!(unknown.channel().is_err());
}

#[test]
fn writing_a_member_leaves_the_rest_of_the_union() {
    let mut payload = Payload([0xaa; 8]);
    payload.write(0x0102_0304u32);
    assert_eq!(payload.0, [4, 3, 2, 1, 0xaa, 0xaa, 0xaa, 0xaa]);
    assert_eq!(payload.read::<u16>(), 0x0304);
}

fn dom0<A: GuestArch>() {
    let create = CreateDomain::<A> {
        memory_kb: Padded::from_u64(65536).expect("fits"),
        cpu: u32::MAX,
        domain: DomId(7),
        ..CreateDomain::default()
    };
    let mut op = Dom0Op::new(create);
    assert_eq!(op.version(), Ok(Dom0Version::V19));
    assert_eq!(op.decode::<A>(), Ok(Dom0Request::CreateDomain(create)));
    op.interface_version = 0xaaaa_001a;
    assert_eq!(op.version(), Ok(Dom0Version::V1A));
    for raw in 0..40 {
        op.cmd = raw;
        let command = op.decode::<A>().map(|request| request.command());
        assert_eq!(command, Dom0Command::try_from(raw), "decoding keeps the command");
    }
}

#[test]
fn dom0_requests_decode() {
    dom0::<X86_32>();
    dom0::<X86_64>();
    let bvt = BvtAdjdom { mcu_adv: 1, warpback: 2, warpvalue: -3, warpl: -4, warpu: 5 };
    let adjust = SchedAdjdom { u: Payload::of(bvt), ..SchedAdjdom::default() };
    assert_eq!(Dom0Op::new(adjust).argument::<SchedAdjdom>().u.read::<BvtAdjdom>(), bvt);
}

#[test]
fn domain_flags_hold_cpu_and_reason() {
    let flags = DomainFlags::PAUSED.with_cpu(3).with_shutdown_reason(2);
    assert_eq!(flags.bits(), 0x0002_030c);
    assert_eq!((flags.cpu(), flags.shutdown_reason()), (3, 2));
    assert_eq!(flags.with_cpu(0).with_shutdown_reason(0).bits(), 0xc);
}

#[test]
fn grant_flags_know_their_type() {
    let flags = GrantFlags::PERMIT_ACCESS | GrantFlags::READONLY;
    assert_eq!(flags.grant_type(), Some(GrantType::PermitAccess));
    assert_eq!(GrantFlags::TYPE_MASK.grant_type(), None);
}

fn block<A: BlkifArch>() {
    let word: A::Word = segment::new(MachineAddr(0x0012_3000), 2, 7).expect("fits");
    let mut slot = BlkifSlot::<A> { req: BlkifRequest::default() };
    slot.req.frame_and_sects = [word; 11];
    let segments = slot.req.frame_and_sects;
    assert_eq!(
        (segment::frame(segments[0]), segment::first_sect(word), segment::last_sect(word)),
        (MachineAddr(0x0012_3000), 2, 7)
    );
    let response = BlkifResponse { id: word, operation: 1, status: -1 };
    slot.set_response(response);
    assert_eq!(slot.response(), response);
    let after = slot.req.frame_and_sects;
    assert_eq!(after[1..], segments[1..], "a response covers the slot's beginning only");
    assert_eq!(A::slot(A::RING_SIZE as u32 + 3), 3);
}

#[test]
fn block_slots_are_unions() {
    block::<X86_32>();
    block::<X86_64>();
}

#[test]
fn control_messages_check_their_length() {
    let body = MemRequest { target: 1024, status: 0 };
    let mut message = ControlMsg::new(MessageType::MemRequest, 0, 0xff, body);
    assert_eq!((message.length, message.body()), (8, Some(body)));
    message.length = 7;
    assert_eq!(message.body::<MemRequest>(), None);
    message.length = 255;
    assert_eq!(message.bytes().len(), 60, "a guest's length is not trusted");
    assert_eq!(control_slot(u32::MAX), 7);
}

#[test]
fn contexts_move_between_versions() {
    let mut old = FullExecutionContext::<X86_32> { pt_base: 0x5000, ..FullExecutionContext::default() };
    old.cpu_ctxt = x86_32::ExecutionContext { ds: 1, gs: 4, eip: 5, ..x86_32::ExecutionContext::default() };
    old.trap_ctxt[14] = TrapInfo::new(14, TrapFlags::MASK_EVENTS, x86_32::FLAT_RING1_CS, 0xc000_0000);
    let new: FullExecutionContextV1A = old.reordered();
    assert_eq!({ new.cpu_ctxt.gs }, 4);
    assert_eq!(new.as_bytes()[4 + 64..4 + 68], [4, 0, 0, 0], "gs comes last");
    assert_eq!(new.reordered::<x86_32::ExecutionContext>(), old);
}

fn registers<A: GuestArch>() {
    let mut context = A::ExecutionContext::new_zeroed();
    context.set_ip(0x1000);
    context.set_sp(0x2000);
    context.set_flags(0x202);
    context.set_code(A::FLAT_GUESTOS_CS);
    context.set_stack(A::FLAT_GUESTOS_DS);
    context.set_start_info(0x3000);
    assert_eq!((context.ip(), context.sp(), context.flags(), context.start_info()), (0x1000, 0x2000, 0x202, 0x3000));
    assert_eq!((context.code(), context.stack()), (A::FLAT_GUESTOS_CS, A::FLAT_GUESTOS_DS));
    assert_eq!(context.code().rpl(), A::KERNEL_RING);
}

/// What x86_64 guests have of the interface of March 2005 (`arch-x86_64.h` and `xen.h` at 1de2eb95ef).
#[test]
fn applications_of_x86_64_guests_are_those_of_march_2005() {
    assert_eq!((Hypercall::SwitchToUser.raw(), Hypercall::SetSegmentBase.raw()), (23, 25));
    assert_eq!(MmuExtCommand::NewUserBaseptr.raw(), 14);
    assert_eq!([SegmentBase::Fs, SegmentBase::GsUser, SegmentBase::GsKernel].map(SegmentBase::raw), [0, 1, 2]);
    assert_eq!(SWITCH_TO_USER_IN_SYSCALL, 1 << 8);
    let frame = SwitchToUser { r11: 1, rcx: 2, flags: 3, rip: 4, cs: 5, rflags: 6, rsp: 7, ss: 8 };
    let words: Vec<u64> = frame.as_bytes().chunks(8).map(|word| word[0].into()).collect();
    assert_eq!((words, frame.as_bytes().len()), ((1..=8).collect(), 64));
    // Ours: beside the one that there was.
    assert_eq!(SWITCH_TO_USER_RAX & SWITCH_TO_USER_IN_SYSCALL, 0);
}

#[test]
fn registers_are_generic() {
    registers::<X86_32>();
    registers::<X86_64>();
    assert_eq!(X86_32::FLAT_GUESTOS_CS, Selector::gdt(259, 1));
    assert_eq!(X86_64::FLAT_GUESTOS_CS, Selector::gdt(261, 3));
}

#[test]
fn error_codes_come_with_seven_exceptions() {
    let with: Vec<u8> = (0..=255).filter(|&vector| has_error_code(vector)).collect();
    assert_eq!(with, [8, 10, 11, 12, 13, 14, 17]);
}
