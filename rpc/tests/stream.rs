//! Messages through a stream: there and back, cut anywhere, between garbage; and that what is bounded fits.

use proptest::prelude::*;
use proxenos_rpc::*;

fn text<const N: usize>() -> impl Strategy<Value = Text<N>> {
    ".{0,80}".prop_map(|text| Text::cut(&text))
}

fn bytes<const N: usize>() -> impl Strategy<Value = Bytes<N>> {
    prop::collection::vec(prop_oneof![Just(0u8), Just(0xff), any::<u8>()], 0..400).prop_map(|b| Bytes::new(b).unwrap())
}

fn name() -> impl Strategy<Value = Name> {
    "[a-zA-Z][-_.+a-zA-Z0-9]{0,62}".prop_map(|name| Name::new(&name).unwrap())
}

fn subject() -> impl Strategy<Value = Subject> {
    prop_oneof![any::<u16>().prop_map(|id| Subject::Id(DomainId(id))), name().prop_map(Subject::Name)]
}

fn state() -> impl Strategy<Value = State> {
    prop_oneof![
        Just(State::Building),
        Just(State::Running),
        Just(State::Ready),
        Just(State::Blocked),
        Just(State::Paused),
        any::<u8>().prop_map(|r| State::ShutDown(ShutdownReason(r))),
        Just(State::Crashed),
        Just(State::Dying),
    ]
}

fn domain_sched() -> impl Strategy<Value = DomainSched> {
    prop_oneof![
        (any::<u32>(), any::<bool>(), any::<i32>(), any::<u64>(), any::<u64>()).prop_map(
            |(advance, warping, warp, limit, unwarp)| DomainSched::Bvt {
                advance,
                warping,
                warp,
                warp_limit: Millis(limit),
                unwarp: Millis(unwarp),
            }
        ),
        (any::<u64>(), any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(period, slice, latency, extra)| {
            DomainSched::Atropos { period: Nanos(period), slice: Nanos(slice), latency: Nanos(latency), extra }
        }),
        Just(DomainSched::RoundRobin),
    ]
}

fn host_sched() -> impl Strategy<Value = HostSched> {
    prop_oneof![
        any::<u64>().prop_map(|ns| HostSched::Bvt { context_allowance: Nanos(ns) }),
        Just(HostSched::Atropos),
        any::<u64>().prop_map(|ns| HostSched::RoundRobin { slice: Nanos(ns) }),
    ]
}

fn info() -> impl Strategy<Value = Info> {
    (name(), state(), any::<(u16, u64, u64, u32, bool, u64, u64, u64, u32, u64)>(), text()).prop_map(
        |(name, state, numbers, image)| {
            let (id, memory, limit, cpu, pinned, time, frame, at, restarts, written) = numbers;
            Info {
                id: DomainId(id),
                name,
                arch: if pinned { Arch::X86_32 } else { Arch::X86_64 },
                state,
                memory: Kib(memory),
                memory_limit: Kib(limit),
                cpu,
                pinned,
                cpu_time: Nanos(time),
                shared_info_frame: frame,
                created_at: Nanos(at),
                restarts,
                restart: Restart::OnReboot,
                on_crash: OnCrash::Keep,
                console_written: written,
                console_clients: restarts,
                image,
            }
        },
    )
}

fn config() -> impl Strategy<Value = Config> {
    (name(), any::<(u64, Option<u64>, Option<u32>)>(), prop::option::of(domain_sched()), text(), text()).prop_map(
        |(name, (memory, limit, cpu), sched, cmdline, image)| Config {
            name,
            memory: Kib(memory),
            memory_limit: limit.map(Kib),
            cpu,
            sched,
            cmdline,
            restart: Restart::Always,
            on_crash: OnCrash::Restart,
            start: Start::Paused,
            image,
        },
    )
}

fn exit() -> impl Strategy<Value = Exit> {
    (any::<(u16, u8, u64, u64, bool)>(), name()).prop_map(|((id, reason, at, time, restarted), name)| Exit {
        id: DomainId(id),
        name,
        reason: match reason {
            254 => ExitReason::Crashed,
            255 => ExitReason::Destroyed,
            reason => ExitReason::ShutDown(ShutdownReason(reason)),
        },
        at: Nanos(at),
        cpu_time: Nanos(time),
        restarted,
    })
}

fn image() -> impl Strategy<Value = Image> {
    any::<(u64, u32, [u8; 32])>().prop_map(|(len, sum, digest)| Image {
        len,
        checksum: Checksum(sum),
        digest: Digest(digest),
    })
}

fn request() -> impl Strategy<Value = Request> {
    let upload = || any::<u32>().prop_map(UploadId);
    prop_oneof![
        Just(Request::HostInfo),
        any::<u16>().prop_map(|id| Request::List { from: DomainId(id) }),
        subject().prop_map(Request::Describe),
        (config(), image(), prop::option::of(image())).prop_map(|(config, kernel, ramdisk)| Request::CreateBegin {
            config: Box::new(config),
            kernel,
            ramdisk
        }),
        (upload(), any::<u64>(), bytes()).prop_map(|(upload, offset, bytes)| Request::Upload {
            upload,
            part: Part::Ramdisk,
            offset,
            bytes
        }),
        upload().prop_map(|upload| Request::CreateFinish { upload }),
        upload().prop_map(|upload| Request::CreateAbort { upload }),
        (subject(), any::<u32>(), any::<u32>()).prop_map(|(domain, replay, credit)| Request::ConsoleAttach {
            domain,
            replay,
            credit,
            mode: ConsoleMode::ReadWrite
        }),
        subject().prop_map(Request::Pause),
        subject().prop_map(Request::Unpause),
        (subject(), any::<u8>(), any::<bool>()).prop_map(|(domain, reason, wait)| Request::Shutdown {
            domain,
            reason: ShutdownReason(reason),
            wait
        }),
        subject().prop_map(Request::Destroy),
        subject().prop_map(Request::Reset),
        (subject(), any::<u64>()).prop_map(|(domain, kib)| Request::SetMemory { domain, memory: Kib(kib) }),
        (subject(), any::<u64>()).prop_map(|(domain, kib)| Request::SetMemoryLimit { domain, limit: Kib(kib) }),
        Just(Request::GetHostSched),
        host_sched().prop_map(Request::SetHostSched),
        subject().prop_map(Request::GetDomainSched),
        (subject(), domain_sched()).prop_map(|(domain, sched)| Request::SetDomainSched(domain, sched)),
        (subject(), any::<Option<u32>>()).prop_map(|(domain, cpu)| Request::Pin { domain, cpu }),
        any::<u64>().prop_map(|from| Request::Log { log: Log::Control, from }),
        any::<(u32, u64)>().prop_map(|(cpu, from)| Request::Trace { cpu, from }),
        subject().prop_map(Request::Context),
        (subject(), any::<(u64, u32)>()).prop_map(|(domain, (address, len))| Request::ReadMemory {
            domain,
            space: AddressSpace::Virtual,
            address,
            len
        }),
        subject().prop_map(Request::WaitExit),
        Just(Request::HostStop),
    ]
}

fn to_control() -> impl Strategy<Value = ToControl> {
    let note = prop_oneof![
        Just(Note::Alive),
        Just(Note::Cancel),
        any::<u32>().prop_map(Note::Credit),
        bytes().prop_map(Note::Input),
    ];
    prop_oneof![
        any::<(u16, u16, u64)>()
            .prop_map(|(major, minor, nonce)| ToControl::Hello(Hello { version: Version { major, minor }, nonce })),
        (any::<(u32, u32)>(), request()).prop_map(|((id, deadline), request)| ToControl::Call(Call {
            id: CallId(id),
            deadline: Deadline(deadline),
            request
        })),
        (any::<u32>(), note).prop_map(|(id, note)| ToControl::Note(CallId(id), note)),
    ]
}

fn reply() -> impl Strategy<Value = Reply> {
    prop_oneof![
        Just(Reply::Done),
        (prop::collection::vec(info(), 0..4), any::<(u64, Option<u16>)>()).prop_map(|(domains, (at, more))| {
            Reply::Domains { at: Nanos(at), domains: List::new(domains).unwrap(), more: more.map(DomainId) }
        }),
        info().prop_map(|info| Reply::Domain(Box::new(info))),
        exit().prop_map(|exit| Reply::ConsoleEnd(ConsoleEnd::Ended(exit))),
        exit().prop_map(Reply::Exit),
        host_sched().prop_map(Reply::HostSched),
        domain_sched().prop_map(Reply::DomainSched),
        (any::<(u64, u64)>(), bytes()).prop_map(|((from, end), bytes)| Reply::Log(LogPart { from, bytes, end })),
        (prop::collection::vec(any::<(u64, u32, [u32; 5])>(), 0..20), any::<(u32, u64, u64)>()).prop_map(
            |(records, (cpu, first, next))| {
                let records = records.into_iter().map(|(cycles, event, data)| TraceRecord { cycles, event, data });
                let cpus = List::new(vec![TraceCpu { cpu, first, next }]).unwrap();
                Reply::Trace(TracePart { cpus, from: first, records: List::new(records.collect()).unwrap() })
            }
        ),
        (info(), bytes()).prop_map(|(info, raw)| Reply::Context(Box::new(Context { info, arch: Arch::X86_32, raw }))),
        bytes().prop_map(Reply::Bytes),
    ]
}

fn from_control() -> impl Strategy<Value = FromControl> {
    let id = || any::<u32>().prop_map(CallId);
    let failure = (any::<i32>(), ".*").prop_map(|(errno, text)| Failure::new(Cause::Hypervisor(errno), &text));
    let event = prop_oneof![
        any::<(u64, u64)>().prop_map(|(done, total)| Event::Progress { stage: Stage::Copy, done, total }),
        (info(), any::<(u64, u32)>()).prop_map(|(info, (from, input_credit))| {
            Event::Attached(Box::new(Attached { info, from, input_credit }))
        }),
        (any::<u64>(), bytes()).prop_map(|(from, bytes)| Event::Output { from, bytes }),
        any::<u32>().prop_map(Event::InputCredit),
        any::<u16>().prop_map(|id| Event::Restarted(DomainId(id))),
    ];
    prop_oneof![
        any::<(u16, u16, u64)>().prop_map(|(major, minor, nonce)| FromControl::Welcome(Welcome {
            version: Version { major, minor },
            nonce
        })),
        (id(), reply()).prop_map(|(id, reply)| FromControl::Reply(id, Ok(reply))),
        (id(), failure).prop_map(|(id, failure)| FromControl::Reply(id, Err(failure))),
        (id(), event).prop_map(|(id, event)| FromControl::Event(id, event)),
    ]
}

/// All that a decoder makes of a stream, fed in pieces of this length.
fn decode<T: serde::de::DeserializeOwned>(stream: &[u8], piece: usize) -> Vec<Result<T, FrameError>> {
    let mut decoder = Decoder::new();
    let mut all = Vec::new();
    for mut piece in stream.chunks(piece) {
        while let Some(result) = decoder.next(&mut piece) {
            all.push(result);
        }
        assert!(piece.is_empty());
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn requests_arrive_as_they_were_sent(messages in prop::collection::vec(to_control(), 1..5), piece in 1..600usize) {
        let stream: Vec<u8> = messages.iter().flat_map(|m| encode(m).unwrap()).collect();
        let arrived: Vec<ToControl> = decode(&stream, piece).into_iter().map(Result::unwrap).collect();
        prop_assert_eq!(arrived, messages);
    }

    #[test]
    fn answers_arrive_as_they_were_sent(messages in prop::collection::vec(from_control(), 1..5), piece in 1..600usize) {
        let stream: Vec<u8> = messages.iter().flat_map(|m| encode(m).unwrap()).collect();
        let arrived: Vec<FromControl> = decode(&stream, piece).into_iter().map(Result::unwrap).collect();
        prop_assert_eq!(arrived, messages);
    }

    #[test]
    fn any_bytes_are_no_message_and_no_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..4000), piece in 1..600usize,
    ) {
        prop_assert!(decode::<ToControl>(&bytes, piece).iter().all(Result::is_err));
        prop_assert!(decode::<FromControl>(&bytes, piece).iter().all(Result::is_err));
    }

    #[test]
    fn after_garbage_and_a_zero_all_is_well(
        garbage in prop::collection::vec(any::<u8>(), 0..2000), message in to_control(), piece in 1..600usize,
    ) {
        let stream = [&garbage[..], &[0], &encode(&message).unwrap()].concat();
        prop_assert_eq!(decode(&stream, piece).pop(), Some(Ok(message)));
    }

    #[test]
    fn a_message_that_is_cut_off_is_one_error_and_no_message(
        cut in to_control(), whole in to_control(), at in any::<prop::sample::Index>(),
    ) {
        let begun = encode(&cut).unwrap();
        let begun = &begun[..at.index(begun.len() - 1)];
        let stream = [begun, &[0], &encode(&whole).unwrap()].concat();
        let mut all = decode::<ToControl>(&stream, 7);
        prop_assert_eq!(all.pop(), Some(Ok(whole)));
        prop_assert!(all.iter().all(Result::is_err) && all.len() == usize::from(!begun.is_empty()));
    }

    #[test]
    fn a_changed_byte_is_seen(message in from_control(), at in any::<prop::sample::Index>(), flip in 1..=255u8) {
        let mut frame = encode(&message).unwrap();
        let at = at.index(frame.len() - 1);
        frame[at] ^= flip;
        prop_assert!(decode::<FromControl>(&frame, 100).iter().all(Result::is_err));
    }

    /// Valid frames around arbitrary contents: what only somebody who means it would send.
    #[test]
    fn any_contents_are_read_or_refused(mut plain in prop::collection::vec(any::<u8>(), 0..300), tag in 0..40u8) {
        if let Some(byte) = plain.get_mut(3) { *byte = tag; }
        let Checksum(sum) = Checksum::of(&plain);
        plain.extend(sum.to_le_bytes());
        let mut frame = vec![0; cobs::max_encoding_length(plain.len()) + 1];
        cobs::encode(&plain, &mut frame);
        let _ = decode::<ToControl>(&frame, 100);
        let _ = decode::<FromControl>(&frame, 100);
    }

    #[test]
    fn a_name_is_what_it_promises(name in ".{0,70}") {
        if let Ok(fine) = Name::new(&name) {
            prop_assert!(fine.as_str() == name && name.len() <= MAX_NAME && name.parse::<u64>().is_err());
        }
    }
}

fn biggest_info() -> Info {
    Info {
        id: DomainId(u16::MAX),
        name: Name::new(&"n".repeat(MAX_NAME)).unwrap(),
        arch: Arch::X86_64,
        state: State::ShutDown(ShutdownReason(u8::MAX)),
        memory: Kib(u64::MAX),
        memory_limit: Kib(u64::MAX),
        cpu: u32::MAX,
        pinned: true,
        cpu_time: Nanos(u64::MAX),
        shared_info_frame: u64::MAX,
        created_at: Nanos(u64::MAX),
        restarts: u32::MAX,
        restart: Restart::Always,
        on_crash: OnCrash::Restart,
        console_written: u64::MAX,
        console_clients: u32::MAX,
        image: Text::new(&"i".repeat(MAX_TEXT)).unwrap(),
    }
}

fn fits<T: serde::Serialize>(message: &T) {
    assert!(encode(message).unwrap().len() <= MAX_FRAME + 1);
}

#[test]
fn the_biggest_of_each_bounded_message_fits() {
    let answer = |reply| FromControl::Reply(CallId(u32::MAX), Ok(reply));
    let domains = List::new(vec![biggest_info(); MAX_LIST]).unwrap();
    fits(&answer(Reply::Domains { at: Nanos(u64::MAX), domains, more: Some(DomainId(u16::MAX)) }));
    let chunk = || Bytes::new(vec![255; MAX_CHUNK]).unwrap();
    fits(&answer(Reply::Bytes(chunk())));
    fits(&answer(Reply::Log(LogPart { from: u64::MAX, bytes: chunk(), end: u64::MAX })));
    fits(&FromControl::Event(CallId(u32::MAX), Event::Output { from: u64::MAX, bytes: chunk() }));
    let record = TraceRecord { cycles: u64::MAX, event: u32::MAX, data: [u32::MAX; 5] };
    let cpu = TraceCpu { cpu: u32::MAX, first: u64::MAX, next: u64::MAX };
    fits(&answer(Reply::Trace(TracePart {
        cpus: List::new(vec![cpu; MAX_CPUS]).unwrap(),
        from: u64::MAX,
        records: List::new(vec![record; MAX_RECORDS]).unwrap(),
    })));
    let raw = Bytes::new(vec![255; dump::MAX_CONTEXT]).unwrap();
    fits(&answer(Reply::Context(Box::new(Context { info: biggest_info(), arch: Arch::X86_32, raw }))));
    fits(&FromControl::Event(
        CallId(u32::MAX),
        Event::Attached(Box::new(Attached { info: biggest_info(), from: u64::MAX, input_credit: u32::MAX })),
    ));
    fits(&ToControl::Call(Call {
        id: CallId(u32::MAX),
        deadline: Deadline::MAX,
        request: Request::Upload { upload: UploadId(u32::MAX), part: Part::Ramdisk, offset: u64::MAX, bytes: chunk() },
    }));
    fits(&ToControl::Note(CallId(u32::MAX), Note::Input(chunk())));
}

#[test]
fn what_is_longer_than_its_bound_is_not_read() {
    #[derive(serde::Serialize)]
    struct Raw<'a>(&'a str);
    let frame = |len: usize| encode(&Raw(&"x".repeat(len))).unwrap();
    assert!(matches!(decode::<Text<8>>(&frame(8), 100)[..], [Ok(_)]));
    assert_eq!(decode::<Text<8>>(&frame(9), 100), [Err(FrameError::Unknown)]);
    assert!(matches!(decode::<Bytes<8>>(&frame(8), 100)[..], [Ok(_)]));
    assert_eq!(decode::<Bytes<8>>(&frame(9), 100), [Err(FrameError::Unknown)]);
    let list = |len: usize| encode(&vec![7u32; len]).unwrap();
    assert!(matches!(decode::<List<u32, 8>>(&list(8), 100)[..], [Ok(_)]));
    assert_eq!(decode::<List<u32, 8>>(&list(9), 100), [Err(FrameError::Unknown)]);
    assert_eq!(decode::<Name>(&encode(&Raw("1x")).unwrap(), 100), [Err(FrameError::Unknown)]);
}

#[test]
fn an_endless_frame_keeps_nothing_and_is_reported_once() {
    let mut decoder = Decoder::new();
    for _ in 0..1000 {
        assert_eq!(decoder.next::<ToControl>(&mut &[1; MAX_CHUNK][..]), None);
    }
    let hello = ToControl::Hello(Hello { version: VERSION, nonce: 1 });
    let stream = [&[0], &encode(&hello).unwrap()[..]].concat();
    let mut input = &stream[..];
    assert_eq!(decoder.next::<ToControl>(&mut input), Some(Err(FrameError::TooLong)));
    assert_eq!(decoder.next::<ToControl>(&mut input), Some(Ok(hello)));
}

/// Clients and control domains of all versions must be able to read these.
#[test]
fn hello_and_welcome_are_for_ever() {
    let version = Version { major: 1, minor: 2 };
    let hello = encode(&ToControl::Hello(Hello { version, nonce: 3 })).unwrap();
    let plain = [0, 1, 2, 3];
    let Checksum(sum) = Checksum::of(&plain);
    let mut expected = vec![0; 16];
    let len = cobs::encode(&[&plain[..], &sum.to_le_bytes()].concat(), &mut expected);
    expected.truncate(len + 1);
    assert_eq!(hello, expected);
    assert_eq!(encode(&FromControl::Welcome(Welcome { version, nonce: 3 })).unwrap(), expected);
}
