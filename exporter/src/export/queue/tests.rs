use super::*;
use crate::ledger::Ledger;
use crate::record::EventSet;

/// 0 counts as a begin; each takes 10 bytes of memory, and as many bytes of a request as it says.
impl Item for u32 {
    fn kind(&self) -> RecordKind {
        if *self == 0 { RecordKind::Begin } else { RecordKind::End }
    }

    fn memory(&self) -> usize {
        10
    }

    /// From 1000 on, by thousands.
    fn holder(&self) -> Holder {
        u64::from(*self / 1000)
    }

    fn size(&self) -> usize {
        *self as usize
    }
}

const MANY: usize = 1_000_000;

fn queue(records: usize) -> Arc<Queue<u32>> {
    let all = EventSet { begin: true, progress: true };
    let ledger = OutputLedger::new("test", "logs", all, &Ledger::default());
    Queue::new(Limits { records, bytes: MANY }, ledger)
}

const fn records(n: usize) -> Limits {
    Limits { records: n, bytes: MANY }
}

/// What there is, at once.
async fn take(q: &Queue<u32>, n: usize) -> Option<Taken<u32>> {
    q.take(records(n), Duration::ZERO).await
}

/// Takes, and says that it was exported.
async fn export(q: &Queue<u32>, n: usize) -> Option<Vec<u32>> {
    let taken = take(q, n).await?;
    taken.held.settle(Ok(()));
    Some(taken.items)
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_full_or_late() {
    let q = queue(10);
    for n in 1..6 {
        q.push(n);
    }
    let linger = Duration::from_secs(1);
    let start = tokio::time::Instant::now();
    let taken = q.take(records(3), linger).await.unwrap();
    assert_eq!((taken.items, start.elapsed()), (vec![1, 2, 3], Duration::ZERO));
    taken.held.settle(Ok(()));
    let taken = q.take(records(3), linger).await.unwrap();
    assert_eq!((taken.items, start.elapsed()), (vec![4, 5], linger));
    taken.held.settle(Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_bounded_by_bytes_and_never_empty() {
    let q = queue(10);
    for n in [40, 50, 20, 500, 1] {
        q.push(n);
    }
    let batch = Limits { records: 10, bytes: 100 };
    let start = tokio::time::Instant::now();
    for want in [vec![40, 50], vec![20], vec![500], vec![1]] {
        // Enough bytes wait: nobody lingers, but for the last one.
        let taken = q.take(batch, Duration::from_secs(1)).await.unwrap();
        assert_eq!(taken.items, want);
        taken.held.settle(Ok(()));
    }
    assert_eq!(start.elapsed(), Duration::from_secs(1));
}

#[tokio::test]
async fn in_a_full_queue_whoever_has_most_waiting_gives_way() {
    for limits in [records(10), Limits { records: MANY, bytes: 100 }] {
        let q = queue(0);
        q.limit(limits);
        q.push(2000);
        (1001..1100).for_each(|n| q.push(n));
        assert_eq!(q.ledger().dropped(DropCause::QueueFull), 90);
        for n in 2001..2010 {
            assert!(!q.refuses(RecordKind::End, 2) || n > 2004, "{n}: it has half of it");
            q.push(n);
        }
        assert!(q.refuses(RecordKind::End, 1), "it has its share");
        // In the order in which they came, without those that gave way.
        let want = [2000, 1001, 1002, 1003, 1004, 1005, 2001, 2002, 2003, 2004];
        let taken = take(&q, 3).await.unwrap();
        assert_eq!(taken.items, want[..3]);
        q.put_back(taken);
        q.push(3001);
        assert_eq!(q.ledger().of(RecordKind::End).queued, 10);
        let left = export(&q, 20).await.unwrap();
        assert_eq!(left.len(), 10);
        assert!(left.contains(&3001) && left.contains(&2000), "{left:?}");
        let end = q.ledger().of(RecordKind::End);
        let lost: u64 = q.dropped().iter().map(|(_, n)| n).sum();
        assert_eq!((end.exported, end.in_flight(), end.dropped_in_all()), (10, 0, lost));
        assert!(!q.refuses(RecordKind::End, 1), "there is room again");
        assert_eq!(export_all_of(&q).await, None);
    }
}

/// As long as nobody takes anything out, what gave way must not leave its place behind.
#[tokio::test]
async fn a_full_queue_does_not_grow_by_what_gives_way() {
    for holders in [2, 3, 500] {
        let q = queue(101);
        for n in 0..50_000 {
            q.push(n % holders * 1000 + 1 + n % 7);
            let inner = q.lock();
            assert!(inner.items.len() <= 2 * 101 + PLACES, "{} places", inner.items.len());
            assert!(inner.len <= 101);
        }
        let end = q.ledger().of(RecordKind::End);
        assert_eq!((end.queued, end.dropped_in_all()), (101, 50_000 - 101), "{holders}");
        q.close();
        let mut left = 0;
        while let Some(items) = export(&q, MANY).await {
            left += items.len();
        }
        assert_eq!(left, 101, "{holders}");
    }
}

/// What is left, without a wait.
async fn export_all_of(q: &Queue<u32>) -> Option<Vec<u32>> {
    q.close();
    export(q, MANY).await
}

#[tokio::test]
async fn a_full_queue_drops_what_is_new_and_counts_it() {
    for limits in [records(2), Limits { records: MANY, bytes: 20 }] {
        let q = queue(0);
        q.limit(limits);
        for n in 1..5 {
            q.push(n);
        }
        assert_eq!(q.ledger().dropped(DropCause::QueueFull), 2);
        q.full_because(DropCause::SpoolFull);
        q.push(5);
        assert_eq!(q.ledger().dropped(DropCause::SpoolFull), 1);
        assert_eq!(export(&q, 10).await, Some(vec![1, 2]));
        q.push(6);
        assert_eq!(export(&q, 10).await, Some(vec![6]), "there is room again");
    }
}

#[tokio::test]
async fn what_was_taken_is_in_flight_until_it_is_settled() {
    let q = queue(10);
    q.push(1);
    q.push(2);
    let taken = take(&q, 10).await.unwrap();
    let counts = || {
        let end = q.ledger().of(RecordKind::End);
        (end.queued, end.unanswered, end.exported)
    };
    assert_eq!(counts(), (0, 2, 0));
    q.put_back(taken);
    q.push(3);
    assert_eq!(counts(), (3, 0, 0));
    assert_eq!(export(&q, 10).await, Some(vec![1, 2, 3]), "in the order of before");
    assert_eq!(counts(), (0, 0, 3));
}

#[tokio::test(start_paused = true)]
async fn a_producer_may_wait_for_room() {
    let q = queue(2);
    q.room().await;
    q.push(1);
    q.push(2);
    let producer = tokio::spawn({
        let q = Arc::clone(&q);
        async move {
            for n in 3..=10 {
                q.room().await;
                q.push(n);
            }
            q.close();
        }
    });
    let mut got = Vec::new();
    while let Some(batch) = export(&q, 2).await {
        got.extend(batch);
    }
    producer.await.unwrap();
    assert_eq!(got, (1..=10).collect::<Vec<_>>());
    assert_eq!(q.ledger().dropped(DropCause::QueueFull), 0);
    // Nobody takes anything any more: waiting would never end.
    let gone = queue(1);
    gone.push(1);
    gone.abandon(DropCause::Shutdown);
    gone.room().await;
}

#[tokio::test(start_paused = true)]
async fn the_spooler_is_called_past_half_of_the_queue() {
    let q = queue(4);
    let called = tokio::spawn({
        let q = Arc::clone(&q);
        async move {
            let mut spooled: Vec<u32> = Vec::new();
            while q.pressing().await.is_some() {
                let taken = q.take_now(records(1)).unwrap();
                spooled.extend(&taken.items);
                taken.held.spooled();
            }
            spooled
        }
    });
    for n in 1..=7 {
        q.push(n);
        // Lets the other task run.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    q.close();
    assert_eq!(called.await.unwrap(), [1, 2, 3, 4, 5], "the oldest");
    assert_eq!(export(&q, 10).await, Some(vec![6, 7]));
    let end = q.ledger().of(RecordKind::End);
    assert_eq!((end.spooled, end.exported), (5, 2));
}

#[tokio::test]
async fn a_closed_queue_is_emptied_first() {
    let q = queue(2);
    q.push(1);
    q.close();
    q.push(2);
    assert_eq!(export(&q, 1).await, Some(vec![1]));
    assert_eq!(export(&q, 1).await, None);
    assert_eq!(q.ledger().dropped(DropCause::OutputClosed), 1);
}

#[tokio::test]
async fn what_is_abandoned_is_counted() {
    let q = queue(5);
    for n in 1..4 {
        q.push(n);
    }
    q.abandon(DropCause::Shutdown);
    assert_eq!(q.ledger().dropped(DropCause::Shutdown), 3);
    assert_eq!(q.ledger().of(RecordKind::End).in_flight(), 0);
    assert_eq!(export(&q, 1).await, None);
}

#[tokio::test]
async fn each_kind_is_counted_by_itself_all_along() {
    let q = queue(4);
    // What became of begins and of ends: exported, refused, queue full, shutdown, in flight.
    let counts = || {
        [RecordKind::Begin, RecordKind::End].map(|kind| {
            let of = q.ledger().of(kind);
            let dropped = [DropCause::Refused, DropCause::QueueFull, DropCause::Shutdown]
                .map(|c| of.dropped(c));
            (of.exported, dropped, of.in_flight())
        })
    };
    for item in [0, 1, 0, 2, 0, 3, 4] {
        q.push(item);
    }
    assert_eq!(counts(), [(0, [0, 1, 0], 2), (0, [0, 2, 0], 2)]);
    let mut taken = take(&q, 2).await.unwrap();
    assert_eq!(taken.items, [0, 1]);
    taken.held.part([1, 0, 0]).settle(Ok(()));
    taken.held.settle(Err(DropCause::Refused));
    assert_eq!(counts(), [(1, [0, 1, 0], 1), (0, [1, 2, 0], 1)]);
    // One of the two is in a request when the output is given up.
    let taken = take(&q, 1).await.unwrap();
    assert_eq!(taken.items, [0]);
    drop(taken.held.or(DropCause::Shutdown));
    q.abandon(DropCause::Shutdown);
    assert_eq!(counts(), [(1, [0, 1, 1], 0), (0, [1, 2, 1], 0)]);
}
