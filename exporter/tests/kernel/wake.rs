//! When the programs wake whoever waits for the ring: once where it sleeps, and past half of the ring; never else.
//!
//! BPF_PROG_TEST_RUN makes the events. The ring is waited for as the data path does it, by edges of epoll: what is in
//! the ring and woke nobody is no edge.

use std::time::Duration;

use flowend::probe::{Asleep, Pollable, Probe, Ring as Events, register};
use flowend::source::RingSource;
use flowend_probe_types::RST;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use super::programs::{run, tcp, v4};
use super::support::{PATIENCE, can_run, load_options};

/// A wake-up is there by then: it comes by an interrupt of the CPU that the program ran on.
const MOMENT: Duration = Duration::from_millis(100);

struct Ring {
    probe: Probe,
    asleep: Asleep,
    fd: AsyncFd<Pollable<Events>>,
}

impl Ring {
    /// Empty, and nobody was woken. Within a runtime.
    fn new() -> Self {
        let mut probe = Probe::load(load_options(false)).unwrap();
        let asleep = probe.take_asleep().unwrap();
        let fd = register(probe.take_ring().unwrap().unwrap()).unwrap();
        Self { probe, asleep, fd }
    }

    fn event(&mut self) {
        event(&mut self.probe);
    }

    /// Whether there was a wake-up since this was asked last, and waits so long for it.
    async fn wakes_within(&mut self, patience: Duration) -> bool {
        match timeout(patience, self.fd.readable()).await {
            Ok(ready) => {
                ready.unwrap().clear_ready();
                true
            }
            Err(_) => false,
        }
    }

    /// Takes out what is there; how many.
    fn drain(&mut self) -> usize {
        let ring = &mut self.fd.get_mut().0;
        std::iter::from_fn(|| ring.next().map(drop)).count()
    }
}

/// A segment that every program reports.
fn event(probe: &mut Probe) {
    assert_eq!(run(probe, "flowend_ingress", &v4(6, 0, &tcp(RST, 0))), Some(1));
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn who_sleeps_is_woken_by_the_next_event_and_by_no_further_one() {
    if !can_run("who_sleeps_is_woken_by_the_next_event_and_by_no_further_one", &[]) {
        return;
    }
    block_on(async {
        let mut ring = Ring::new();
        ring.event();
        assert!(!ring.wakes_within(MOMENT).await, "nobody sleeps");
        for round in 0..3 {
            ring.drain();
            ring.asleep.set().unwrap();
            assert!(!ring.wakes_within(MOMENT).await, "nothing has come: {round}");
            ring.event();
            assert!(ring.wakes_within(PATIENCE).await, "woken: {round}");
            for _ in 0..3 {
                ring.event();
            }
            assert!(!ring.wakes_within(MOMENT).await, "once is enough: {round}");
            assert_eq!(ring.drain(), 4);
        }
    });
}

#[test]
fn a_ring_that_fills_up_wakes_who_does_not_sleep() {
    if !can_run("a_ring_that_fills_up_wakes_who_does_not_sleep", &[]) {
        return;
    }
    block_on(async {
        let mut ring = Ring::new();
        let lost = ring.probe.take_lost().unwrap();
        let mut events = 0;
        while !ring.wakes_within(Duration::from_millis(1)).await {
            ring.event();
            events += 1;
            assert_eq!(lost.read().iter().sum::<u64>(), 0, "full, and nobody was woken");
        }
        assert_eq!(ring.drain(), events);
        assert!(events > 3, "woken by event {events} of a ring that was empty");
    });
}

/// An interval that is longer than the test waits: what is read in time is read because of a wake-up.
const NEVER: Duration = Duration::from_secs(3600);

#[test]
fn the_source_sleeps_when_nothing_has_come_for_a_while_and_is_woken() {
    if !can_run("the_source_sleeps_when_nothing_has_come_for_a_while_and_is_woken", &[]) {
        return;
    }
    block_on(async {
        let mut probe = Probe::load(load_options(false)).unwrap();
        let (ring, asleep) = (probe.take_ring().unwrap().unwrap(), probe.take_asleep().unwrap());
        let (lost, skipped) = (probe.take_lost().unwrap(), probe.take_skipped().unwrap());
        let accounts = probe.take_accounts().unwrap();
        let mut source = RingSource::new(ring, asleep, lost, accounts, skipped, NEVER).unwrap();
        // The first tick of a timer comes at once.
        timeout(PATIENCE, source.ready()).await.expect("the first turn");
        event(&mut probe);
        assert_eq!(drained(&mut source), 1);
        for round in 0..3 {
            // Something has just come: it is the timer's turn, and the event waits for that.
            event(&mut probe);
            assert!(timeout(MOMENT, source.ready()).await.is_err(), "woken: {round}");
            assert_eq!(drained(&mut source), 1);
            pass(Duration::from_secs(2)).await;
            let waking = async {
                // The source is asked first, and sleeps by now.
                event(&mut probe);
                std::future::pending::<()>().await;
            };
            tokio::select! {
                biased;
                ready = timeout(PATIENCE, source.ready()) => ready.expect("nobody woke it"),
                () = waking => {}
            }
            assert_eq!(drained(&mut source), 1, "{round}");
            // What came before it sleeps is found by the look that it takes then.
            pass(Duration::from_secs(2)).await;
            event(&mut probe);
            timeout(PATIENCE, source.ready()).await.expect("it looks before it sleeps");
            assert_eq!(drained(&mut source), 1, "{round}");
            // It had said by then that it sleeps: one event more wakes it.
            event(&mut probe);
            timeout(PATIENCE, source.ready()).await.expect("nobody woke it");
            assert_eq!(drained(&mut source), 1, "{round}");
        }
    });
}

fn drained(source: &mut RingSource) -> usize {
    let mut events = 0;
    source.drain(|_| events += 1);
    events
}

/// Lets time pass for the timers alone.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}
