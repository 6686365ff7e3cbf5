//! The direct encoding and the way through the SDK must decode to equal messages.

mod batches;
mod records;

use std::sync::Arc;

use opentelemetry_proto::tonic::logs::v1::{LogRecord, ScopeLogs};
use opentelemetry_proto::tonic::trace::v1::{ScopeSpans, Span};
use proptest::prelude::*;
use prost::Message as _;

use super::RecordEncoder;
use crate::config::Profile;
use crate::encode::{LogEncoder, Mapping, scope, span};
use crate::export::Signal;
use crate::record::{Record, RecordKind};
use crate::sample::Kept;

/// Both encodings of one record, compared.
fn check(mapping: &Arc<Mapping>, encoder: &mut RecordEncoder, record: &Record) {
    let encoded = encoder.encode(record);
    assert_eq!(encoded.kind, record.kind);
    assert!(Arc::ptr_eq(&encoded.workload, &record.workload));
    assert_eq!(
        (encoded.log(), encoded.span()),
        (encoded.of(Signal::Logs), encoded.of(Signal::Traces))
    );
    assert!(encoded.size() > encoded.log().len() + encoded.span().len());

    let log = LogRecord::from(&LogEncoder::new(Arc::clone(mapping)).encode(record));
    let logs = ScopeLogs { log_records: vec![log], ..ScopeLogs::default() };
    assert_eq!(ScopeLogs::decode(encoded.log()).unwrap(), logs);

    if record.kind == RecordKind::End {
        let spans = vec![Span::from(span(record, mapping, &scope()))];
        let spans = ScopeSpans { spans, ..ScopeSpans::default() };
        assert_eq!(ScopeSpans::decode(encoded.span()).unwrap(), spans);
    } else {
        assert!(encoded.span().is_empty(), "a span is sent at the end");
    }
}

proptest! {
    #[test]
    fn any_record_is_as_by_the_sdk(
        mapping in records::mapping(),
        // With one encoder: nothing of a record may be left in the next.
        several in proptest::collection::vec(records::record(vec![records::workload(&[])]), 1..4),
    ) {
        let mut encoder = RecordEncoder::new(Arc::clone(&mapping));
        for record in &several {
            check(&mapping, &mut encoder, record);
        }
    }
}

/// A record whose fields a test then sets.
fn plain() -> Record {
    use proptest::strategy::ValueTree as _;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let any = records::record(vec![records::workload(&[("service.name", "a")])]);
    any.new_tree(&mut runner).unwrap().current()
}

#[test]
fn each_kind_reason_and_direction_is_as_by_the_sdk() {
    for profile in Profile::ALL {
        let mapping = Arc::new(Mapping::new(profile));
        let mut encoder = RecordEncoder::new(Arc::clone(&mapping));
        for kind in RecordKind::ALL {
            for reason in records::REASONS {
                for direction in records::DIRECTIONS {
                    let mut record = Record { kind, ..plain() };
                    (record.end.reason, record.end.direction) = (reason, direction);
                    check(&mapping, &mut encoder, &record);
                }
            }
        }
    }
}

#[test]
fn a_sampled_span_says_its_threshold_and_that_its_trace_id_is_random() {
    let mut encoder = RecordEncoder::new(Arc::new(Mapping::new(Profile::Semconv)));
    for (threshold, want) in [(None, ""), (Some(0), "ot=th:0"), (Some(1 << 55), "ot=th:8")] {
        let kept = Kept { probability: 0.5, threshold };
        let record = Record { kind: RecordKind::End, sampling: kept, ..plain() };
        let encoded = encoder.encode(&record);
        let span = ScopeSpans::decode(encoded.span()).unwrap().spans.remove(0);
        assert_eq!(span.trace_state, want);
        assert_eq!(span.flags & 0xff, 3);
        let log = ScopeLogs::decode(encoded.log()).unwrap().log_records.remove(0);
        assert_eq!(log.flags, 3);
    }
}

#[test]
fn the_bytes_of_a_record_stay_as_they_are() {
    // No decoder is asked here: tags and lengths as the specification of protobuf has them.
    let mapping = Mapping::new(Profile::Semconv);
    let encoded =
        RecordEncoder::new(Arc::new(mapping)).encode(&Record { kind: RecordKind::End, ..plain() });
    let (log, span) = (encoded.log(), encoded.span());
    assert_eq!((log[0], span[0]), (0x12, 0x12), "field 2 of ScopeLogs and ScopeSpans");
    let direction = b"\x0a\x1cflowend.connection.direction\x12";
    let tags = |bytes: &[u8]| {
        let at = bytes.windows(direction.len()).position(|w| w == direction).unwrap();
        bytes[at - 2]
    };
    assert_eq!((tags(log), tags(span)), (6 << 3 | 2, 9 << 3 | 2));
}
