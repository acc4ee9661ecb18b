//! Clients of other versions, clients that fill what they can, and guests that never let go.

use super::*;
use proxenos_abi::io::domain_controller::ControlIf;

/// A call of a request that only a later version knows.
fn later_call(id: u32) -> Vec<u8> {
    encode(&(1u32, CallId(id), Deadline(1000), 200u32, 7u8)).unwrap()
}

#[test]
fn a_call_that_cannot_be_read_is_refused_as_not_supported() {
    let mut bench = Bench::new();
    bench.feed(0, &later_call(40));
    assert_eq!(bench.answer(CallId(40)).1.unwrap().unwrap_err().cause, Cause::NotSupported);
    // A call that is known with something behind it is a later version's too.
    bench.feed(0, &encode(&(1u32, CallId(41), Deadline(1000), 0u32, 0u8)).unwrap());
    assert_eq!(bench.answer(CallId(41)).1.unwrap().unwrap_err().cause, Cause::NotSupported);
    // A note of a kind that is not known is no call, and what does not even hold a number cannot be answered.
    bench.feed(0, &encode(&(2u32, CallId(42), 99u32)).unwrap());
    bench.feed(0, &encode(&1u32).unwrap());
    assert!(bench.arrived.is_empty());
    // One whose number is open has its own answer yet to come.
    bench.create(config("one")).unwrap();
    let open = bench.begin(0, Request::WaitExit(subject("one")));
    bench.feed(0, &later_call(open.0));
    assert_eq!(bench.answer(open).1, None);
    assert!(bench.ask(Request::HostInfo).is_ok(), "and it goes on");
}

#[test]
fn a_client_of_another_version_is_told_so() {
    let mut bench = Bench::new();
    bench.say(0, &ToControl::Hello(Hello { version: Version { major: VERSION.major + 1, minor: 0 }, nonce: 8 }));
    assert_eq!(bench.arrived.pop_front(), Some((0, FromControl::Welcome(Welcome { version: VERSION, nonce: 8 }))));
    for frame in [later_call(1), encode(&ToControl::Call(call(1, Request::HostStop))).unwrap()] {
        bench.feed(0, &frame);
        let failure = bench.answer(CallId(1)).1.unwrap().unwrap_err();
        assert_eq!(failure.cause, Cause::NotSupported);
        assert!(failure.message.contains("version 1") && failure.message.contains("not 2"), "{failure}");
    }
    assert!(!bench.server.stops());
    // Who has said no hello at all gets no answer.
    let mut server = Server::new(Played::default(), 1, IMAGES);
    server.receive(0, &later_call(1));
    server.turn();
    assert!(server.channel(0).unsent().is_empty());
    bench.hello(0, 9);
    assert!(bench.ask(Request::HostInfo).is_ok());
}

fn call(id: u32, request: Request) -> Call {
    Call { id: CallId(id), deadline: Deadline(1000), request }
}

#[test]
fn a_suspended_domain_stays_as_it_is() {
    let mut bench = Bench::new();
    bench.create(Config { restart: Restart::Always, ..config("one") }).unwrap();
    let domain = subject("one");
    let suspend = Request::Shutdown { domain, reason: ShutdownReason::SUSPEND, wait: true };
    let (waiting, console) = (bench.begin(1, suspend), bench.attach(2, "one", 0));
    bench.end(1, DomainFlags::empty().with_shutdown_reason(2));
    let Some(Ok(Reply::Exit(exit))) = bench.answer(waiting).1 else { panic!() };
    assert_eq!((exit.reason, exit.restarted), (ExitReason::ShutDown(ShutdownReason::SUSPEND), false));
    assert!(matches!(bench.answer(console).1, Some(Ok(Reply::ConsoleEnd(_)))), "nothing will come of it");
    bench.host.pass(5000);
    bench.server.domains_changed();
    bench.run();
    let Ok(Reply::Domain(info)) = bench.ask(Request::Describe(subject("one"))) else { panic!() };
    assert_eq!((info.state, info.restarts), (State::ShutDown(ShutdownReason::SUSPEND), 0));
    assert!(bench.ask(Request::Context(subject("one"))).is_ok(), "it can be looked into");
    assert_eq!(bench.create(config("one")).unwrap_err().cause, Cause::NameTaken);
    let Ok(Reply::Exit(exit)) = bench.ask(Request::Destroy(subject("one"))) else { panic!() };
    assert_eq!(exit.reason, ExitReason::Destroyed);
    assert_eq!(bench.host.0.borrow().domains.len(), 1);
}

/// It writes as fast as it is read, on a CPU of its own.
#[test]
fn a_guest_that_writes_while_it_is_destroyed_is_destroyed() {
    let mut bench = Bench::new();
    bench.create(config("one")).unwrap();
    let page = bench.host.page(1);
    page.writes_on.set(true);
    (0..8).for_each(|_| page.put(0, 0, b"x"));
    assert!(bench.ask(Request::Destroy(subject("one"))).is_ok());
    assert_eq!(page.load(ControlIf::TX_RESP_PROD), 8, "its last words are what fits its ring");
}

#[test]
fn input_of_clients_that_come_and_go_is_bounded() {
    let mut bench = Bench::new();
    bench.create(config("one")).unwrap();
    // Each types as much as it may, and comes again. The guest reads nothing.
    for _ in 0..100 {
        let console = bench.attach(0, "one", 0);
        bench.say(0, &ToControl::Note(console, Note::Input(Bytes::new(vec![b'i'; 512]).unwrap())));
        bench.say(0, &ToControl::Note(console, Note::Cancel));
    }
    let page = bench.host.page(1);
    let mut typed = 0;
    while let Some(message) = page.take() {
        typed += message.bytes().len();
        bench.server.rang(DomId(1));
        bench.run();
    }
    assert!((8 << 10..=(8 << 10) + 8 * 60 + 512).contains(&typed), "{typed}");
    // What was lost came back as credit, so that nobody waits for ever.
    let console = bench.attach(0, "one", 0);
    bench.answer(console);
    bench.say(0, &ToControl::Note(console, Note::Input(Bytes::new(vec![b'i'; 9]).unwrap())));
    assert_eq!(page.take().unwrap().bytes(), [b'i'; 9]);
    assert_eq!(bench.answer(console).0, [Event::InputCredit(9)]);
}

#[test]
fn images_take_no_more_than_their_part() {
    let mut bench = Bench::new();
    let begin = |bench: &mut Bench, number: u8, len: usize| {
        let image = Image { len: len as u64, checksum: Checksum::of(&vec![number; len]), digest: Digest([number; 32]) };
        let name = std::format!("g{number}");
        let request = Request::CreateBegin { config: Box::new(config(&name)), kernel: image, ramdisk: None };
        match bench.ask(request)? {
            Reply::Upload { upload, .. } => Ok::<_, Failure>(upload),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(begin(&mut bench, 1, IMAGES + 1).unwrap_err().cause, Cause::OutOfMemory);
    let upload = begin(&mut bench, 2, IMAGES / 2).unwrap();
    let failure = begin(&mut bench, 3, IMAGES / 2 + 1).unwrap_err();
    assert!(failure.cause == Cause::OutOfMemory && failure.message.contains("512 KiB"), "{failure}");
    // It arrives and is used; then nothing needs it, and it goes when its room is wanted.
    for offset in (0..IMAGES / 2).step_by(MAX_CHUNK) {
        let bytes = Bytes::new(vec![2; MAX_CHUNK]).unwrap();
        bench.ask(Request::Upload { upload, part: Part::Kernel, offset: offset as u64, bytes }).unwrap();
    }
    bench.ask(Request::CreateFinish { upload }).unwrap();
    assert_eq!(begin(&mut bench, 4, IMAGES).unwrap_err().cause, Cause::OutOfMemory, "a domain is made from it");
    bench.ask(Request::Destroy(subject("g2"))).unwrap();
    for number in 5..14 {
        // Ended domains are remembered for a while, with their images.
        bench.create(config(&std::format!("short{number}"))).unwrap();
        bench.ask(Request::Destroy(subject(&std::format!("short{number}")))).unwrap();
    }
    assert!(begin(&mut bench, 4, IMAGES / 4 * 3).is_ok());
}

#[test]
fn a_packed_kernel_counts_with_what_it_unpacks_to() {
    let mut bench = Bench::new();
    // Deflate's stored block of nothing, which says that it has 2 MiB.
    let mut file = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1, 0, 0, 0xff, 0xff];
    file.extend(0u32.to_le_bytes());
    file.extend((2 * IMAGES as u32).to_le_bytes());
    let image = Image { len: file.len() as u64, checksum: Checksum::of(&file), digest: Digest([1; 32]) };
    let begin = Request::CreateBegin { config: Box::new(config("one")), kernel: image, ramdisk: None };
    let Ok(Reply::Upload { upload, .. }) = bench.ask(begin) else { panic!() };
    let bytes = Bytes::new(file).unwrap();
    assert_eq!(bench.cause(Request::Upload { upload, part: Part::Kernel, offset: 0, bytes }), Cause::OutOfMemory);
}

#[test]
fn what_cannot_be_let_run_leaves_nothing() {
    let mut bench = Bench::new();
    bench.host.0.borrow_mut().no_unpause = true;
    assert_eq!(bench.create(config("one")).unwrap_err().cause, Cause::WrongState);
    assert_eq!(bench.host.0.borrow().domains.len(), 1);
    bench.host.0.borrow_mut().no_unpause = false;
    bench.create(Config { restart: Restart::Always, ..config("one") }).unwrap();
    bench.host.0.borrow_mut().no_unpause = true;
    bench.end(2, DomainFlags::empty().with_shutdown_reason(0));
    bench.host.pass(1000);
    bench.run();
    assert_eq!(bench.host.0.borrow().domains.len(), 1, "it is not started again, and gone");
    let Ok(Reply::Exit(exit)) = bench.ask(Request::WaitExit(subject("one"))) else { panic!() };
    assert!(!exit.restarted);
}

/// A domain whose end is no longer remembered is started again, or is over, all the same.
#[test]
fn a_restart_outlives_the_memory_of_ends() {
    let mut bench = Bench::new();
    bench.create(Config { restart: Restart::Always, ..config("one") }).unwrap();
    bench.end(1, DomainFlags::empty().with_shutdown_reason(0));
    for number in 0..70 {
        let name = std::format!("other{number}");
        bench.create(config(&name)).unwrap();
        bench.ask(Request::Destroy(subject(&name))).unwrap();
    }
    bench.host.0.borrow_mut().no_build = Some(Cause::OutOfMemory);
    bench.host.pass(1000);
    bench.run();
    assert_eq!(bench.server.next_deadline(), None, "it is not tried for ever");
    bench.host.0.borrow_mut().no_build = None;
    assert!(bench.create(config("one")).is_ok(), "its name is free");
}
