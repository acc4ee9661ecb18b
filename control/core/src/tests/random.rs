//! Clients and guests that do anything, in any order.

use super::*;
use proptest::prelude::*;

fn any_request() -> impl Strategy<Value = Request> {
    let name = prop::sample::select(vec!["one", "two", "Domain-0"]).prop_map(subject);
    let id = (0u16..5).prop_map(|id| Subject::Id(DomainId(id)));
    let whom = prop_oneof![name, id].boxed();
    let (a, b, c, d) = (whom.clone(), whom.clone(), whom.clone(), whom.clone());
    prop_oneof![
        Just(Request::HostInfo),
        Just(Request::List { from: DomainId(0) }),
        whom.clone().prop_map(Request::Describe),
        whom.clone().prop_map(Request::Pause),
        whom.clone().prop_map(Request::Unpause),
        whom.clone().prop_map(Request::Destroy),
        whom.clone().prop_map(Request::Reset),
        whom.clone().prop_map(Request::WaitExit),
        whom.prop_map(Request::Context),
        (a, any::<u32>(), any::<u32>()).prop_map(|(domain, replay, credit)| Request::ConsoleAttach {
            domain,
            replay,
            credit,
            mode: ConsoleMode::ReadWrite
        }),
        (b, 0u8..4, any::<bool>()).prop_map(|(domain, reason, wait)| Request::Shutdown {
            domain,
            reason: ShutdownReason(reason),
            wait
        }),
        (c, 0u64..10_000).prop_map(|(domain, kib)| Request::SetMemory { domain, memory: Kib(kib) }),
        (d, any::<Option<u32>>()).prop_map(|(domain, cpu)| Request::Pin { domain, cpu }),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Call(usize, Request),
    Note(usize, u32, u32),
    Junk(usize, Vec<u8>),
    Hello(usize),
    Create(bool),
    Guest(u16, usize, u8),
    Rang(u16),
    End(u16, u32),
    Time(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..CHANNELS, any_request()).prop_map(|(channel, request)| Step::Call(channel, request)),
        2 => (0..CHANNELS, 0u32..40, any::<u32>()).prop_map(|(channel, id, what)| Step::Note(channel, id, what)),
        1 => (0..CHANNELS, prop::collection::vec(any::<u8>(), 0..50)).prop_map(|(c, bytes)| Step::Junk(c, bytes)),
        1 => (0..CHANNELS).prop_map(Step::Hello),
        2 => any::<bool>().prop_map(Step::Create),
        4 => (1u16..5, 0usize..1040, any::<u8>()).prop_map(|(id, at, byte)| Step::Guest(id, at, byte)),
        4 => (0u16..5).prop_map(Step::Rang),
        2 => (1u16..5, any::<u32>()).prop_map(|(id, flags)| Step::End(id, flags)),
        2 => (0u64..3000).prop_map(Step::Time),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever clients and guests do, every call is answered once, by its deadline, and the server comes to rest.
    #[test]
    fn any_clients_and_guests(steps in prop::collection::vec(step(), 1..80)) {
        let mut bench = Bench::new();
        let mut open: BTreeMap<(usize, CallId), ()> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Call(channel, request) => {
                    let id = bench.begin(channel, request);
                    open.insert((channel, id), ());
                }
                Step::Note(channel, id, what) => {
                    let note = match what % 4 {
                        0 => Note::Alive,
                        1 => Note::Cancel,
                        2 => Note::Credit(what),
                        _ => Note::Input(Bytes::new(vec![1; (what % 700) as usize]).unwrap()),
                    };
                    bench.say(channel, &ToControl::Note(CallId(id), note));
                }
                Step::Junk(channel, mut bytes) => {
                    bytes.push(0);
                    bench.feed(channel, &bytes);
                }
                Step::Hello(channel) => {
                    bench.say(channel, &ToControl::Hello(Hello { version: VERSION, nonce: 3 }));
                    open.retain(|(of, _), ()| *of != channel);
                }
                Step::Create(first) => drop(bench.create(config(if first { "one" } else { "two" }))),
                Step::Guest(id, at, byte) => {
                    let _ = bench.host.with(DomId(id), |fake| fake.page.write(at, &[byte]));
                }
                Step::Rang(id) => bench.server.rang(DomId(id)),
                Step::End(id, flags) => {
                    let flags = DomainFlags::from_bits_retain(flags);
                    let _ = bench.host.with(DomId(id), |fake| fake.flags = flags);
                    bench.server.domains_changed();
                }
                Step::Time(ms) => bench.host.pass(ms),
            }
            bench.run();
            for (channel, message) in core::mem::take(&mut bench.arrived) {
                if let FromControl::Reply(id, _) = message {
                    // Creations are made by the bench itself, and are not counted here.
                    open.remove(&(channel, id));
                }
            }
        }
        bench.host.pass(600_001);
        bench.run();
        for (channel, message) in core::mem::take(&mut bench.arrived) {
            if let FromControl::Reply(id, _) = message {
                prop_assert!(open.remove(&(channel, id)).is_some(), "{id:?} was answered twice");
            }
        }
        prop_assert!(open.is_empty(), "not answered: {open:?}");
    }
}
