//! Each way to fail, as plain clients see it, and as the receiver counts it.

use std::ops::Range;
use std::task::Poll;
use std::time::{Duration, Instant};

use prost::Message as _;
use tonic::Code;
use tonic::codec::CompressionEncoding;

use super::clients::{Outcome, Sender};
use super::injector::Injector;
use super::mode::{Mode, Protocol};
use super::offer::{Delivery, Totals, agree, deliver, key, logs};
use super::store::{Received, Signal, Times};

const TAKEN: Outcome = Outcome::Success { rejected: 0 };

const ACKNOWLEDGED: Times = Times { acknowledged: 1, maybe: 0, rejected: 0 };
const MAYBE: Times = Times { acknowledged: 0, maybe: 1, rejected: 0 };
const REJECTED: Times = Times { acknowledged: 0, maybe: 0, rejected: 1 };

fn sender(injector: &Injector, protocol: Protocol) -> Sender {
    Sender::new(protocol, &injector.endpoint(), None)
}

/// The records with these numbers came so, and no others of the signal.
#[track_caller]
fn assert_came(received: &Received, signal: Signal, came: &[(Range<u64>, Times)]) {
    let want =
        came.iter().flat_map(|(range, times)| range.clone().map(|n| (key(signal, n), *times)));
    let found = received.items.iter().filter(|(key, _)| key.signal == signal);
    let found: Vec<_> = found.map(|(key, times)| (key.clone(), *times)).collect();
    assert_eq!(found, want.collect::<Vec<_>>());
}

#[tokio::test]
async fn a_healthy_receiver_takes_all() {
    for protocol in Protocol::ALL {
        let injector = Injector::start(protocol);
        let sender = sender(&injector, protocol);
        let codings = [None, Some(CompressionEncoding::Gzip), Some(CompressionEncoding::Zstd)];
        for (at, coding) in (0..).step_by(10).zip(codings) {
            for signal in Signal::ALL {
                let outcome = sender.send_compressed(signal, at..at + 10, coding).await;
                assert_eq!(outcome, TAKEN, "{protocol:?} {signal:?} {coding:?}");
            }
        }
        for signal in Signal::ALL {
            assert_came(&injector.received(), signal, &[(0..30, ACKNOWLEDGED)]);
            assert_eq!(injector.received().acknowledged(signal), 30);
        }
        assert_eq!(injector.received().requests, 6);
        // What comes twice is counted twice.
        assert_eq!(sender.send(Signal::Logs, 3..4).await, TAKEN);
        let twice = Times { acknowledged: 2, ..ACKNOWLEDGED };
        let want = [(0..3, ACKNOWLEDGED), (3..4, twice), (4..30, ACKNOWLEDGED)];
        assert_came(&injector.received(), Signal::Logs, &want);
    }
}

#[tokio::test]
async fn refusals_are_answered_as_they_were_asked_for_and_take_nothing() {
    let seconds = Duration::from_secs;
    let status = |status, after: Option<u64>| {
        let mode = Mode::Status { status, retry_after: after.map(seconds) };
        let retry_after = after.map(|seconds| seconds.to_string());
        (Protocol::Http, mode, Outcome::Status { status, retry_after })
    };
    let code = |code, retry_info| {
        (Protocol::Grpc, Mode::Code { code, retry_info }, Outcome::Code { code, retry_info })
    };
    let size = logs(0..5).encode_to_vec().len();
    let too_large = Outcome::Status { status: 413, retry_after: None };
    let exhausted = Outcome::Code { code: Code::ResourceExhausted, retry_info: None };
    let html = Outcome::NotOtlp { content_type: "text/html".into() };
    for (protocol, mode, want) in [
        status(429, Some(7)),
        status(503, Some(1)),
        status(503, None),
        status(400, None),
        code(Code::Unavailable, Some(seconds(3))),
        code(Code::Unavailable, None),
        code(Code::ResourceExhausted, Some(Duration::from_millis(1500))),
        code(Code::ResourceExhausted, None),
        code(Code::InvalidArgument, None),
        (Protocol::Http, Mode::LargerThan(size - 1), too_large),
        (Protocol::Grpc, Mode::LargerThan(size - 1), exhausted),
        (Protocol::Http, Mode::LargerThan(size), TAKEN),
        (Protocol::Grpc, Mode::LargerThan(size), TAKEN),
        (Protocol::Http, Mode::Lie, html),
    ] {
        let injector = Injector::start(protocol);
        let sender = sender(&injector, protocol);
        injector.script([mode.clone()]);
        assert_eq!(sender.send(Signal::Logs, 0..5).await, want, "{mode:?}");
        let came = if want == TAKEN { 5 } else { 0 };
        assert_eq!(injector.received().acknowledged(Signal::Logs), came, "{mode:?}");
        assert_eq!(injector.received().items.len() as u64, came);
        // Only the one that was scripted.
        assert_eq!(sender.send(Signal::Traces, 0..5).await, TAKEN, "{mode:?}");
    }
}

#[tokio::test]
async fn a_page_of_html_is_no_answer_to_grpc() {
    let injector = Injector::start(Protocol::Grpc);
    injector.set(Mode::Lie).await;
    let outcome = sender(&injector, Protocol::Grpc).send(Signal::Logs, 0..5).await;
    let is_none = matches!(outcome, Outcome::Code { .. } | Outcome::Broken(_));
    assert!(is_none, "{outcome:?}");
    assert!(injector.received().items.is_empty());
}

#[tokio::test]
async fn a_partial_success_says_how_many_and_takes_the_others() {
    for protocol in Protocol::ALL {
        let injector = Injector::start(protocol);
        let sender = sender(&injector, protocol);
        for signal in Signal::ALL {
            injector.script([Mode::Rejecting(3), Mode::Rejecting(99)]);
            let rejected = |rejected| Outcome::Success { rejected };
            assert_eq!(sender.send(signal, 0..10).await, rejected(3));
            assert_eq!(sender.send(signal, 10..12).await, rejected(2));
            let want = [(0..7, ACKNOWLEDGED), (7..12, REJECTED)];
            assert_came(&injector.received(), signal, &want);
        }
    }
}

#[tokio::test]
async fn a_connection_is_cut_before_or_after_the_request_was_taken() {
    for protocol in Protocol::ALL {
        let injector = Injector::start(protocol);
        let sender = sender(&injector, protocol);
        // A client may send again by itself what was not taken.
        injector.set(Mode::CutBefore).await;
        let outcome = sender.send(Signal::Logs, 0..5).await;
        assert!(matches!(outcome, Outcome::Broken(_)), "{protocol:?}: {outcome:?}");
        assert!(injector.received().requests > 0);
        assert_came(&injector.received(), Signal::Logs, &[]);
        injector.set(Mode::Healthy).await;
        assert_eq!(sender.send(Signal::Logs, 0..2).await, TAKEN);
        injector.script([Mode::CutAfter]);
        let outcome = sender.send(Signal::Logs, 2..5).await;
        assert!(matches!(outcome, Outcome::Broken(_)), "{protocol:?}: {outcome:?}");
        let want = [(0..2, ACKNOWLEDGED), (2..5, MAYBE)];
        assert_came(&injector.received(), Signal::Logs, &want);
        assert_eq!(injector.received().acknowledged(Signal::Logs), 2);
    }
}

#[tokio::test]
async fn a_cut_takes_no_answer_back() {
    // On one connection of HTTP/2: requests that are answered, among them one that cuts it.
    let injector = Injector::start(Protocol::Grpc);
    for round in 0..20 {
        let sender = sender(&injector, Protocol::Grpc);
        let first = round * 10;
        assert_eq!(sender.send(Signal::Traces, first..first + 1).await, TAKEN);
        injector.script(std::iter::repeat_n(Mode::Healthy, 4).chain([Mode::CutAfter]));
        let sent = (first..first + 10).map(|n| sender.send(Signal::Logs, n..n + 1));
        let outcomes = futures_of(sent).await;
        let received = injector.received();
        for (n, outcome) in (first..).zip(outcomes) {
            let times = received.items.get(&key(Signal::Logs, n)).copied().unwrap_or_default();
            // Acknowledged, and only that, is what the client knows to be taken.
            assert_eq!(times.acknowledged > 0, outcome == TAKEN, "{n}: {times:?}, {outcome:?}");
        }
        assert!(received.count(Signal::Logs, |times| times.maybe > 0) > round);
    }
}

/// All at once, in one task.
async fn futures_of<T>(all: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut waiting: Vec<_> = all.map(Box::pin).collect();
    let mut done: Vec<_> = waiting.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, done) in waiting.iter_mut().zip(&mut done) {
            if done.is_none()
                && let Poll::Ready(value) = future.as_mut().poll(context)
            {
                *done = Some(value);
            }
        }
        if done.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}

#[tokio::test]
async fn a_closed_port_refuses_until_it_is_open_again() {
    for protocol in Protocol::ALL {
        let injector = Injector::start(protocol);
        let sender = sender(&injector, protocol);
        assert_eq!(sender.send(Signal::Logs, 0..1).await, TAKEN);
        for n in 1..4 {
            injector.set(Mode::Refused).await;
            let port = injector.endpoint().replace("http://", "");
            let error = tokio::net::TcpStream::connect(port).await.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
            let outcome = sender.send(Signal::Logs, n..n + 1).await;
            assert!(matches!(outcome, Outcome::Broken(_)), "{protocol:?}: {outcome:?}");
            injector.set(Mode::Healthy).await;
            assert_eq!(self::sender(&injector, protocol).send(Signal::Logs, n..n + 1).await, TAKEN);
        }
        assert_came(&injector.received(), Signal::Logs, &[(0..4, ACKNOWLEDGED)]);
    }
}

#[tokio::test]
async fn a_black_hole_never_answers_and_ends_with_its_connections() {
    for protocol in Protocol::ALL {
        let injector = Injector::start(protocol);
        injector.set(Mode::BlackHole).await;
        let sender = sender(&injector, protocol);
        let mut sending = std::pin::pin!(sender.send(Signal::Logs, 0..5));
        // It has no end to wait for: what is tried is that it does not come at once.
        let early = tokio::time::timeout(Duration::from_millis(200), sending.as_mut()).await;
        assert!(early.is_err(), "{early:?}");
        assert_eq!(injector.received().requests, 0);
        injector.set(Mode::Healthy).await;
        let outcome = sending.await;
        // The client's own matter: whether it tries again on a new connection.
        let is_plain = matches!(outcome, Outcome::Broken(_)) || outcome == TAKEN;
        assert!(is_plain, "{protocol:?}: {outcome:?}");
        assert_eq!(sender.send(Signal::Traces, 0..5).await, TAKEN);
    }
}

#[tokio::test]
async fn a_slow_receiver_acknowledges_late_and_not_to_who_is_gone() {
    for protocol in Protocol::ALL {
        let injector = Injector::start(protocol);
        let sender = sender(&injector, protocol);
        injector.set(Mode::Slow(Duration::from_millis(100))).await;
        let start = Instant::now();
        assert_eq!(sender.send(Signal::Logs, 0..2).await, TAKEN);
        assert!(start.elapsed() >= Duration::from_millis(100));
        injector.set(Mode::Slow(Duration::from_secs(3600))).await;
        let arrived = injector.wait_until(|received| received.items.len() == 5);
        tokio::select! {
            outcome = sender.send(Signal::Logs, 2..5) => panic!("{outcome:?}"),
            () = arrived => {}
        }
        // The client gave up.
        drop(sender);
        let want = [(0..2, ACKNOWLEDGED), (2..5, MAYBE)];
        assert_came(&injector.received(), Signal::Logs, &want);
    }
}

#[tokio::test]
async fn a_certificate_expires_and_is_renewed() {
    for protocol in Protocol::ALL {
        let injector = Injector::start_tls(protocol);
        let ca = Some(injector.ca_pem());
        let sender = Sender::new(protocol, &injector.endpoint(), ca);
        assert_eq!(sender.send(Signal::Logs, 0..1).await, TAKEN);
        injector.set(Mode::ExpiredCertificate).await;
        let outcome =
            Sender::new(protocol, &injector.endpoint(), ca).send(Signal::Logs, 1..2).await;
        let Outcome::Broken(why) = outcome else { panic!("{outcome:?}") };
        assert!(why.to_lowercase().contains("expired"), "{protocol:?}: {why}");
        injector.set(Mode::Healthy).await;
        let sender = Sender::new(protocol, &injector.endpoint(), ca);
        assert_eq!(sender.send(Signal::Logs, 1..2).await, TAKEN);
        assert_came(&injector.received(), Signal::Logs, &[(0..2, ACKNOWLEDGED)]);
    }
}

/// The simplest delivery: each record by itself, again and again until it is taken, or refused for good.
struct Patient<'a> {
    sender: &'a Sender,
    totals: [Totals; 2],
    waiting: Vec<(Signal, u64)>,
    /// How many records it forgets, without saying so.
    forgets: usize,
}

impl<'a> Patient<'a> {
    fn new(sender: &'a Sender) -> Self {
        Self { sender, totals: Default::default(), waiting: Vec::new(), forgets: 0 }
    }
}

impl Delivery for Patient<'_> {
    async fn offer(&mut self, numbers: Range<u64>) {
        for number in numbers {
            for signal in Signal::ALL {
                self.totals[signal as usize].seen += 1;
                self.waiting.push((signal, number));
            }
        }
    }

    fn totals(&self, signal: Signal) -> Totals {
        let in_flight = self.waiting.iter().filter(|(of, _)| *of == signal).count() as u64;
        Totals { in_flight, ..self.totals[signal as usize] }
    }

    async fn settle(&mut self) {
        self.waiting.truncate(self.waiting.len() - self.forgets);
        while let Some((signal, number)) = self.waiting.last().copied() {
            let totals = &mut self.totals[signal as usize];
            match self.sender.send(signal, number..number + 1).await {
                Outcome::Success { rejected: 0 } => totals.exported += 1,
                Outcome::Code { code: Code::InvalidArgument, .. }
                | Outcome::Status { status: 400, .. }
                | Outcome::Success { .. } => totals.dropped += 1,
                _ => continue,
            }
            self.waiting.pop();
        }
    }
}

#[tokio::test]
async fn a_delivery_that_tries_again_agrees_with_the_receiver() {
    for protocol in Protocol::ALL {
        let injector = Injector::start(protocol);
        let sender = sender(&injector, protocol);
        let mut delivery = Patient::new(&sender);
        let refused = match protocol {
            Protocol::Grpc => Mode::Code { code: Code::InvalidArgument, retry_info: None },
            Protocol::Http => Mode::Status { status: 400, retry_after: None },
        };
        injector.script([Mode::CutAfter, Mode::CutAfter, refused, Mode::Rejecting(1)]);
        deliver(&mut delivery, &injector, 0..20).await;
        let dropped = Signal::ALL.map(|signal| delivery.totals(signal).dropped);
        assert_eq!(dropped.iter().sum::<u64>(), 2, "{protocol:?}");
        assert!(injector.received().items.values().any(|times| times.maybe == 2));
    }
}

#[tokio::test]
async fn a_record_that_is_lost_on_purpose_breaks_the_identity() {
    let injector = Injector::start(Protocol::Http);
    let sender = sender(&injector, Protocol::Http);
    let mut delivery = Patient { forgets: 2, ..Patient::new(&sender) };
    delivery.offer(0..5).await;
    delivery.settle().await;
    for signal in Signal::ALL {
        let totals = delivery.totals(signal);
        let lost = Totals { seen: 5, exported: 4, ..Totals::default() };
        assert_eq!(totals, lost);
        let problem = agree(signal, totals, &injector.received()).unwrap_err();
        assert!(problem.contains("identity"), "{problem}");
        // Nor does it help to count it as exported.
        let lie = Totals { exported: 5, ..totals };
        let problem = agree(signal, lie, &injector.received()).unwrap_err();
        assert_eq!(problem, "5 exported, and 4 acknowledged");
    }
    // What the receiver took twice is seen, too.
    assert_eq!(sender.send(Signal::Logs, 0..1).await, TAKEN);
    let problem = agree(
        Signal::Logs,
        Totals { seen: 4, exported: 4, ..Totals::default() },
        &injector.received(),
    );
    assert_eq!(problem.unwrap_err(), "1 acknowledged more than once");
}
