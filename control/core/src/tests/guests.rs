//! What goes between guests and clients: consoles, and what guests are asked for.

use super::*;

#[test]
fn a_console_shows_everything_within_its_credit() {
    let mut bench = Bench::new();
    bench.create(config("one")).unwrap();
    bench.write(1, b"before. ");
    let console = bench.attach(1, "one", 3 * CHUNK_COST + 30);
    let (events, reply) = bench.answer(console);
    assert!(matches!(&events[0], Event::Attached(attached) if attached.from == 0 && attached.input_credit > 0));
    assert_eq!((output(&events).as_str(), reply), ("before. ", None));
    bench.write(1, b"after. ");
    assert_eq!(output(&bench.answer(console).0), "after. ");
    bench.write(1, b"far more than there is credit for");
    let shown = output(&bench.answer(console).0);
    assert_eq!(shown, "far more than t", "15 bytes were left");
    bench.write(1, &[b'x'; 100_000]);
    assert_eq!(output(&bench.answer(console).0), "");
    bench.say(1, &ToControl::Note(console, Note::Credit(u32::MAX)));
    let (events, _) = bench.answer(console);
    let shown = output(&events);
    assert!(shown.len() == 32 << 10 && shown.starts_with('x'), "what is left of it: {} bytes", shown.len());
    let Some(Event::Output { from, .. }) = events.first() else { panic!() };
    assert!(*from > 30, "and where that begins");
}

#[test]
fn input_goes_on_within_its_credit() {
    let mut bench = Bench::new();
    bench.create(config("one")).unwrap();
    let console = bench.attach(0, "one", 0);
    let (events, _) = bench.answer(console);
    let Event::Attached(attached) = &events[0] else { panic!() };
    let credit = attached.input_credit as usize;
    let page = bench.host.page(1);
    let input = vec![b'i'; credit + 100];
    bench.say(0, &ToControl::Note(console, Note::Input(Bytes::new(input).unwrap())));
    let mut taken = 0;
    while let Some(message) = page.take() {
        assert_eq!((message.msg_type, message.subtype), (MessageType::Console.raw(), 0));
        taken += message.bytes().len();
        bench.server.rang(DomId(1));
        bench.run();
    }
    assert_eq!(taken, credit, "what was beyond the credit is dropped");
    let events = bench.answer(console).0;
    let given: u32 = events.iter().map(|event| if let Event::InputCredit(more) = event { *more } else { 0 }).sum();
    assert_eq!(given as usize, credit, "it is given back");
}

#[test]
fn the_end_of_a_domain_ends_its_console_when_all_is_shown() {
    let mut bench = Bench::new();
    bench.create(config("one")).unwrap();
    let console = bench.attach(0, "one", 2 * CHUNK_COST);
    // Its last words are in the ring when it ends.
    let page = bench.host.page(1);
    page.put(MessageType::Console.raw(), 0, b"goodbye");
    bench.end(1, DomainFlags::empty().with_shutdown_reason(0));
    let (events, reply) = bench.answer(console);
    assert_eq!(output(&events), "goodbye");
    let Some(Ok(Reply::ConsoleEnd(ConsoleEnd::Ended(exit)))) = reply else { panic!("{reply:?}") };
    assert_eq!((exit.reason, exit.restarted), (ExitReason::ShutDown(ShutdownReason(0)), false));
    assert!(!bench.host.0.borrow().domains.contains_key(&1), "its memory is free");
    // Who comes late finds it as well.
    let late = bench.attach(0, "one", 2 * CHUNK_COST);
    let (events, reply) = bench.answer(late);
    assert_eq!(output(&events), "goodbye");
    assert!(matches!(reply, Some(Ok(Reply::ConsoleEnd(_)))));
}

#[test]
fn guests_are_asked_and_their_answers_are_told() {
    let mut bench = Bench::new();
    bench.create(config("one")).unwrap();
    let page = bench.host.page(1);
    let shutdown = |wait| Request::Shutdown { domain: subject("one"), reason: ShutdownReason::REBOOT, wait };
    let (quick, patient) = (bench.begin(0, shutdown(false)), bench.begin(1, shutdown(true)));
    let asked = page.take().unwrap();
    assert_eq!((asked.msg_type, asked.subtype), (6, 1));
    bench.server.rang(DomId(1));
    bench.run();
    assert_eq!(bench.answer(quick).1, Some(Ok(Reply::Done)));
    assert_eq!(bench.answer(patient).1, None);

    let memory = bench.begin(0, Request::SetMemory { domain: subject("one"), memory: Kib(4096) });
    while let Some(message) = page.take() {
        bench.server.rang(DomId(1));
        if message.msg_type == 7 {
            assert_eq!(message.msg.0[..4], 1024u32.to_le_bytes());
        }
        bench.run();
    }
    assert_eq!(bench.answer(memory).1, Some(Ok(Reply::Memory(Kib(8192)))));
    let too_much = Request::SetMemory { domain: subject("one"), memory: Kib(8196) };
    assert_eq!(bench.cause(too_much), Cause::Invalid);
    // One that answers nothing: the call ends with its deadline.
    let silent = bench.begin(0, shutdown(false));
    bench.host.pass(4999);
    bench.run();
    assert_eq!(bench.answer(silent).1, None);
    bench.host.pass(1);
    bench.run();
    assert_eq!(bench.answer(silent).1.unwrap().unwrap_err().cause, Cause::Deadline);
}

#[test]
fn device_drivers_are_told_that_there_are_no_devices() {
    let mut bench = Bench::new();
    bench.create(config("one")).unwrap();
    let page = bench.host.page(1);
    for (index, kind) in [(0, MessageType::BlkifFe), (1, MessageType::NetifFe), (2, MessageType::BlkifBe)] {
        page.put(kind.raw(), 32, &[1, 0, 0, 0, 9, 9, 9, 9]);
        bench.server.rang(DomId(1));
        bench.run();
        let mut answer = [0; 12];
        page.read(64 * index, &mut answer);
        if kind == MessageType::BlkifBe {
            assert_eq!(answer[..4], [kind.raw(), 32, 7, 0], "answered with nothing");
        } else {
            assert_eq!(answer, [kind.raw(), 32, 7, 8, 1, 0, 0, 0, 0, 0, 0, 0]);
        }
    }
}

#[test]
fn a_guest_that_floods_delays_nobody() {
    let mut bench = Bench::new();
    bench.create(config("flood")).unwrap();
    bench.create(config("quiet")).unwrap();
    let flood = bench.host.page(1);
    let quiet = bench.host.page(2);
    (0..8).for_each(|_| flood.put(0, 0, b"x"));
    quiet.put(0, 0, b"one line");
    bench.server.rang(DomId(1));
    bench.server.rang(DomId(2));
    // It rings again before each turn, and its ring is always full.
    for _ in 0..3 {
        assert_eq!(bench.server.turn(), Work::Left);
        while flood.load(1024).wrapping_sub(flood.load(1028)) < 8 {
            flood.put(0, 0, b"x");
        }
        bench.server.rang(DomId(1));
    }
    assert_eq!(quiet.load(1028), 1, "the other was heard in the first turn");
    assert_eq!(flood.load(1028), 12, "and it itself as often as it may be");
}
