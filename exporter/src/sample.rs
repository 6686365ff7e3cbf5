//! Sampling: which records are kept.
//!
//! The choice is a function of the trace id, so both ends of a connection choose alike at the same
//! ratio, and the sample of a lower ratio is part of that of a higher one. The randomness is the
//! trace id's last 56 bits (W3C Trace Context level 2, random-trace-id flag).

use opentelemetry::TraceId;

use crate::flow::Reason;

const RANDOM_BITS: u32 = 56;

/// With which chance a record was kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kept {
    /// Below 1 where sampling kept this record and dropped others.
    pub probability: f64,
    /// The rejection threshold of OpenTelemetry's consistent probability sampling, 56 bits: a trace whose
    /// random part is below it is dropped. `None` where sampling is not in force.
    pub threshold: Option<u64>,
}

/// Decides by trace id.
#[derive(Clone, Copy, Debug)]
pub struct Sampler {
    ratio: f64,
    /// Trace ids whose random part is below it are dropped.
    threshold: u64,
}

impl Sampler {
    /// Keeps this share, 0 to 1.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    pub fn new(ratio: f64) -> Self {
        let ratio = ratio.clamp(0.0, 1.0);
        let range = (1_u64 << RANDOM_BITS) as f64;
        Self { ratio, threshold: ((1.0 - ratio) * range).round() as u64 }
    }

    /// The chance with which this record was kept, or `None` where it is dropped. Endings with an error
    /// are always kept.
    pub fn keep(&self, trace_id: TraceId, reason: Reason) -> Option<Kept> {
        let in_force = self.threshold > 0;
        if reason.error_type().is_some() {
            return Some(Kept { probability: 1.0, threshold: in_force.then_some(0) });
        }
        let bytes = trace_id.to_bytes();
        let mut low = [0; 8];
        low.copy_from_slice(&bytes[8..]);
        let random = u64::from_be_bytes(low) & ((1 << RANDOM_BITS) - 1);
        let threshold = in_force.then_some(self.threshold);
        (random >= self.threshold).then_some(Kept { probability: self.ratio, threshold })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(n: u64) -> TraceId {
        let mut bytes = [7; 16];
        bytes[8..].copy_from_slice(&n.to_be_bytes());
        TraceId::from_bytes(bytes)
    }

    #[test]
    fn the_extremes_keep_all_and_nothing() {
        for n in [0, 1, 1 << 55, (1 << 56) - 1, u64::MAX] {
            let all = Kept { probability: 1.0, threshold: None };
            assert_eq!(Sampler::new(1.0).keep(trace(n), Reason::Fin), Some(all));
            assert_eq!(Sampler::new(0.0).keep(trace(n), Reason::Fin), None);
        }
    }

    #[test]
    fn errors_are_always_kept() {
        for reason in [Reason::Reset, Reason::Refused, Reason::Timeout, Reason::ConnectTimeout] {
            let kept = Kept { probability: 1.0, threshold: Some(0) };
            assert_eq!(Sampler::new(0.0).keep(trace(0), reason), Some(kept), "{reason:?}");
        }
    }

    #[test]
    fn what_is_kept_says_with_which_threshold() {
        let kept = Sampler::new(0.25).keep(trace(u64::MAX), Reason::Fin);
        assert_eq!(kept, Some(Kept { probability: 0.25, threshold: Some(3 << 54) }));
    }

    #[test]
    fn a_lower_ratio_keeps_a_part_of_what_a_higher_one_keeps() {
        let (low, high) = (Sampler::new(0.1), Sampler::new(0.5));
        let ids = (0..10_000_u64).map(|n| trace(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let (mut kept_low, mut kept_high) = (0, 0);
        for id in ids {
            let (a, b) = (low.keep(id, Reason::Fin), high.keep(id, Reason::Fin));
            assert!(a.is_none() || b.is_some(), "{id}");
            kept_low += i32::from(a.is_some());
            kept_high += i32::from(b.is_some());
        }
        assert!((900..1100).contains(&kept_low), "{kept_low}");
        assert!((4800..5200).contains(&kept_high), "{kept_high}");
    }
}
