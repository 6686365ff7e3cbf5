use super::*;
use crate::record::EventSet;

#[test]
fn connections_with_and_without_a_name_are_one_line() {
    let names = NameCounts::default();
    for has_name in [true, true, false] {
        names.add(has_name);
    }
    let want = "names: 3 connections, 2 with a name of the peer, 1 without";
    assert_eq!(names.to_string(), want);
}

#[test]
fn kinds_are_counted_apart_and_each_that_is_on_has_its_line() {
    let ledger = Ledger::default();
    let lines = |events| {
        let output = OutputLedger::new("otlp", "logs", events, &Ledger::default());
        for _ in 0..2 {
            output.enqueue(RecordKind::Begin);
            output.enqueue(RecordKind::End);
        }
        output.dequeue([2, 0, 1]);
        output.settle([2, 0, 0], Ok(()));
        output.drop_new(RecordKind::End, DropCause::QueueFull);
        Line::all(&ledger, &output).map(|line| line.to_string()).collect::<Vec<_>>()
    };
    ledger.of(RecordKind::Begin).seen.add(3);
    ledger.of(RecordKind::Begin).sampled_out.add(1);
    ledger.of(RecordKind::End).seen.add(11);
    ledger.of(RecordKind::End).filtered_self.add(1);
    ledger.of(RecordKind::End).filtered_excluded.add(4);
    ledger.of(RecordKind::End).filtered_rule.add(3);
    let end = "otlp.logs: seen 11 = exported 0 + sampled_out 0 + filtered{self} 1 + \
               filtered{excluded} 4 + filtered{rule} 3 + dropped{queue_full} 1 + in_flight 2";
    let begin = "otlp.logs begin: seen 3 = exported 2 + sampled_out 1 + filtered{self} 0 + \
                 in_flight 0";
    let progress = "otlp.logs progress: seen 0 = exported 0 + sampled_out 0 + \
                    filtered{self} 0 + in_flight 0";
    assert_eq!(lines(EventSet::ENDS), [end]);
    assert_eq!(lines(EventSet { begin: true, progress: false }), [end, begin]);
    assert_eq!(lines(EventSet { begin: true, progress: true }), [end, begin, progress]);
}

#[test]
fn an_output_accounts_for_what_is_seen_while_it_is_there() {
    let ledger = Ledger::default();
    let end = ledger.of(RecordKind::End);
    end.seen.add(10);
    end.sampled_out.add(4);
    let output = OutputLedger::new("second", "traces", EventSet::ENDS, &ledger);
    output.recover([0, 0, 3], [0, 0, 2]);
    let line = || Line::all(&ledger, &output).map(|line| line.to_string()).collect::<Vec<_>>();
    assert_eq!(
        line(),
        ["second.traces: seen 0 + recovered 5 = exported 0 + sampled_out 0 + filtered{self} 0 + \
          dropped{spool_damaged} 2 + in_flight 3"]
    );
    end.seen.add(2);
    end.sampled_out.add(1);
    output.enqueue(RecordKind::End);
    output.retire(&ledger);
    end.seen.add(100);
    assert_eq!(
        line(),
        ["second.traces: seen 2 + recovered 5 = exported 0 + sampled_out 1 + filtered{self} 0 + \
          dropped{spool_damaged} 2 + in_flight 4"]
    );
}

#[test]
fn an_output_that_comes_back_goes_on_with_its_account() {
    let ledger = Ledger::default();
    let end = ledger.of(RecordKind::End);
    let output = OutputLedger::new("second", "logs", EventSet::ENDS, &ledger);
    let seen = |n: usize| {
        end.seen.add(n);
        output.share_of(&ledger)[RecordKind::End as usize].seen
    };
    assert_eq!(seen(2), 2);
    output.retire(&ledger);
    assert_eq!((seen(100), output.is_retired()), (2, true));
    output.resume(&ledger);
    assert_eq!((seen(3), output.is_retired()), (5, false));
    output.retire(&ledger);
    output.retire(&ledger);
    assert_eq!(seen(100), 5);
}

/// Records in the spool are not counted twice when it is opened again, and none is left out.
#[test]
fn what_an_output_knows_of_its_spool_is_not_recovered() {
    for ((left, lost), (recovered, dropped)) in [
        ((5, 0), (0, 0)),
        // Of an earlier run, or settled without a trace.
        ((7, 0), (2, 0)),
        ((3, 2), (0, 2)),
        ((3, 0), (0, 2)),
        ((5, 2), (2, 2)),
        ((4, 3), (2, 3)),
        ((0, 0), (0, 5)),
    ] {
        let output = OutputLedger::new("second", "logs", EventSet::ENDS, &Ledger::default());
        output.recover([0, 0, 5], [0; 3]);
        output.recover([0, 0, left], [0, 0, lost]);
        let end = output.of(RecordKind::End);
        let got = (end.recovered - 5, end.dropped(DropCause::SpoolDamaged), end.spooled);
        assert_eq!(got, (recovered, dropped, left), "{left} left, {lost} lost");
        assert_eq!(end.recovered, end.spooled + end.dropped_in_all());
    }
}

#[test]
fn records_move_from_place_to_place_and_are_in_one_at_a_time() {
    let output =
        OutputLedger::new(OutputLedger::STDOUT, "json", EventSet::ENDS, &Ledger::default());
    assert_eq!(output.to_string(), "json");
    for _ in 0..5 {
        output.enqueue(RecordKind::End);
    }
    let places = || {
        let end = output.of(RecordKind::End);
        (end.queued, end.unanswered, end.spooled, end.exported, end.dropped_in_all())
    };
    output.dequeue([0, 0, 4]);
    assert_eq!(places(), (1, 4, 0, 0, 0));
    output.requeue([0, 0, 1]);
    output.spool([0, 0, 3]);
    assert_eq!(places(), (2, 0, 3, 0, 0));
    output.unspool([0, 0, 2]);
    output.lose_spooled([0, 0, 1]);
    output.settle([0, 0, 1], Ok(()));
    output.settle([0, 0, 1], Err(DropCause::Refused));
    assert_eq!(places(), (2, 0, 0, 1, 2));
    output.dequeue([0, 0, 2]);
    output.lose([0, 0, 2]);
    assert_eq!(places(), (0, 0, 0, 1, 2), "two are nowhere");
    let ledger = Ledger::default();
    ledger.of(RecordKind::End).seen.add(5);
    let missing: Vec<_> = Line::all(&ledger, &output).map(|line| line.missing()).collect();
    assert_eq!(missing, [2]);
}

#[test]
fn each_cause_has_its_own_word_and_a_remedy() {
    for (at, cause) in DropCause::ALL.into_iter().enumerate() {
        assert_eq!(cause as usize, at);
        assert!(!cause.remedy().is_empty());
        let same = DropCause::ALL.into_iter().filter(|other| other.as_str() == cause.as_str());
        assert_eq!(same.count(), 1, "{cause:?}");
    }
}
