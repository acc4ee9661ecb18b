//! Domains that are built a piece a turn.

use super::*;

impl Bench {
    /// A turn, with what is sent taken.
    fn one_turn(&mut self) -> Work {
        let work = self.server.turn();
        self.take_all();
        work
    }

    /// Begins to create a domain whose image is there, and does some turns of it.
    fn begin_creation(&mut self, channel: usize, name: &str) -> CallId {
        self.create(config("first")).unwrap();
        self.ask(Request::Destroy(subject("first"))).unwrap();
        let image = Image { len: 20_000, checksum: Checksum::EMPTY, digest: Digest([7; 32]) };
        let begin = Request::CreateBegin { config: Box::new(config(name)), kernel: image, ramdisk: None };
        let begin = self.begin(channel, begin);
        let Some(Ok(Reply::Upload { upload, kernel: false, .. })) = self.answer(begin).1 else { panic!() };
        let finish = self.begin_quietly(channel, Request::CreateFinish { upload });
        (0..50).for_each(|_| assert_eq!(self.one_turn(), Work::Left));
        finish
    }

    fn count(&self) -> usize {
        self.host.0.borrow().domains.len()
    }
}

#[test]
fn progress_is_told_as_it_goes_and_others_are_served_meanwhile() {
    let mut bench = Bench::new();
    let creation = bench.begin_creation(0, "one");
    let (events, reply) = bench.answer(creation);
    assert!(reply.is_none() && !events.is_empty(), "{events:?}");
    // Somebody else asks, and sees it.
    let list = bench.begin_quietly(1, Request::List { from: DomainId(1) });
    bench.one_turn();
    bench.one_turn();
    let Some(Ok(Reply::Domains { domains, .. })) = bench.answer(list).1 else { panic!("not answered") };
    let seen: Vec<_> = domains.iter().map(|info| (info.name.as_str(), info.state)).collect();
    assert_eq!(seen, [("one", State::Building)]);
    assert_eq!(bench.cause(Request::Unpause(subject("one"))), Cause::NoSuchDomain, "it is not one yet");
    bench.run();
    let (more, reply) = bench.answer(creation);
    assert!(matches!(reply, Some(Ok(Reply::Domain(info))) if info.state == State::Ready));
    let told: Vec<u64> = events
        .iter()
        .chain(&more)
        .map(|event| if let Event::Progress { done, .. } = event { *done } else { panic!() })
        .collect();
    assert!(told.is_sorted() && told.last() == Some(&PIECES) && told.len() <= MAX_PROGRESS as usize, "{told:?}");
}

#[test]
fn who_waits_no_longer_gets_no_domain() {
    for how in 0..4 {
        let mut bench = Bench::new();
        let creation = bench.begin_creation(0, "one");
        assert_eq!(bench.count(), 2);
        match how {
            0 => bench.host.pass(1001),
            1 => bench.say(0, &ToControl::Note(creation, Note::Cancel)),
            2 => bench.say(0, &ToControl::Hello(Hello { version: VERSION, nonce: 4 })),
            // It cannot be gone on with.
            _ => bench.host.0.borrow_mut().no_build = Some(Cause::BadImage),
        }
        bench.run();
        assert_eq!(bench.count(), 1, "{how}: it is gone");
        let reply = bench.answer(creation).1.map(|reply| reply.unwrap_err().cause);
        let expected = [Some(Cause::Deadline), Some(Cause::Cancelled), None, Some(Cause::BadImage)][how];
        assert_eq!(reply, expected);
        bench.host.0.borrow_mut().no_build = None;
        assert!(bench.create(config("one")).is_ok(), "its name is free");
    }
}

#[test]
fn a_domain_can_be_kept_down_while_it_is_built_again() {
    let mut bench = Bench::new();
    bench.create(Config { restart: Restart::Always, ..config("one") }).unwrap();
    bench.end(1, DomainFlags::empty().with_shutdown_reason(0));
    bench.host.pass(1000);
    (0..20).for_each(|_| assert_eq!(bench.one_turn(), Work::Left));
    assert_eq!(bench.count(), 2, "it is being built");
    let waiting = bench.begin_quietly(1, Request::WaitExit(subject("one")));
    let Ok(Reply::Exit(exit)) = bench.ask(Request::Destroy(subject("one"))) else { panic!() };
    assert_eq!((exit.reason, exit.restarted), (ExitReason::ShutDown(ShutdownReason(0)), false));
    assert_eq!(bench.count(), 1);
    let told = bench.answer(waiting).1;
    assert!(matches!(told, Some(Ok(Reply::Exit(exit))) if !exit.restarted));
}

#[test]
fn a_domain_that_is_started_anew_is_answered_when_it_is_there() {
    let mut bench = Bench::new();
    bench.create(Config { restart: Restart::Never, ..config("one") }).unwrap();
    let console = bench.attach(1, "one", 3 * CHUNK_COST);
    let Ok(Reply::Domain(info)) = bench.ask(Request::Reset(subject("one"))) else { panic!() };
    assert_eq!((info.id, info.restarts, info.state), (DomainId(2), 1, State::Ready));
    assert!(bench.answer(console).0.contains(&Event::Restarted(DomainId(2))));
    bench.host.0.borrow_mut().no_build = Some(Cause::OutOfMemory);
    assert_eq!(bench.cause(Request::Reset(subject("one"))), Cause::OutOfMemory);
    assert_eq!(bench.count(), 1);
    assert!(matches!(bench.answer(console).1, Some(Ok(Reply::ConsoleEnd(ConsoleEnd::Ended(exit)))) if !exit.restarted));
}

#[test]
fn a_stop_ends_what_is_being_built() {
    let mut bench = Bench::new();
    let one = bench.begin_creation(0, "one");
    bench.answer(one);
    assert!(bench.ask_quietly_and_turn(1, Request::HostStop));
    assert_eq!(bench.count(), 1, "only the control domain itself");
}

impl Bench {
    fn ask_quietly_and_turn(&mut self, channel: usize, request: Request) -> bool {
        let id = self.begin_quietly(channel, request);
        self.run();
        self.answer(id).1 == Some(Ok(Reply::Done))
    }
}
