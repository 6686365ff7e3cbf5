//! A share of all trace ids, as OpenTelemetry's consistent probability sampling takes it.

use opentelemetry::TraceId;

/// Trace ids differ in so many random bits, their last ones (W3C Trace Context level 2, random-trace-id
/// flag).
const RANDOM_BITS: u32 = 56;

const RANGE: u64 = 1 << RANDOM_BITS;

/// A share of all trace ids: those whose random part R is not below the rejection threshold T
/// (OpenTelemetry, TraceState: Probability Sampling). Of two shares the lower is part of the higher.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    probability: f64,
    threshold: u64,
}

impl Share {
    /// All trace ids.
    pub const ALL: Self = Self { probability: 1.0, threshold: 0 };

    /// So many of all, 0 to 1.
    ///
    /// T is not rounded to fewer hexadecimal digits, which would only make `ot=th` shorter: a record
    /// stands for just 1 / ratio of its kind.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    pub fn new(ratio: f64) -> Self {
        let probability = ratio.clamp(0.0, 1.0);
        // Multiplied by a power of two a ratio stays exact; 1 - ratio would lose the digits of a small one.
        let taken = (probability * RANGE as f64).round() as u64;
        // The least that a threshold can say; 0 alone takes nothing.
        let taken = if probability > 0.0 { taken.max(1) } else { 0 };
        Self { probability, threshold: RANGE - taken }
    }

    /// Whether the trace id is part of it.
    pub fn takes(self, trace_id: TraceId) -> bool {
        let [.., b7, b6, b5, b4, b3, b2, b1] = trace_id.to_bytes();
        u64::from_be_bytes([0, b7, b6, b5, b4, b3, b2, b1]) >= self.threshold
    }

    /// How probable it is that it takes a trace id.
    pub const fn probability(self) -> f64 {
        self.probability
    }

    /// T, up to 2^56 - 1; 2^56 where it takes nothing.
    pub const fn threshold(self) -> u64 {
        self.threshold
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn trace(high: u64, low: u64) -> TraceId {
        TraceId::from(u128::from(high) << 64 | u128::from(low))
    }

    /// `th` of a threshold: hexadecimal, without the zeros at the end.
    fn th(share: Share) -> String {
        let digits = format!("{:014x}", share.threshold());
        let short = digits.trim_end_matches('0');
        if short.is_empty() { "0".into() } else { short.into() }
    }

    #[test]
    fn thresholds_are_those_of_the_specification() {
        let cases = [
            // ratio; th
            (1.0, "0"),
            (0.75, "4"),
            (0.5, "8"),
            (0.25, "c"),
            (1.0 / 16.0, "f"),
            (1.0 / 256.0, "ff"),
            // f64 holds 53 bits of a third.
            (1.0 / 3.0, "aaaaaaaaaaaaac"),
            (0.1, "e6666666666666"),
            (0.01, "fd70a3d70a3d71"),
            (f64::powi(2.0, -56), "ffffffffffffff"),
            // Less cannot be said; still it is not nothing.
            (1e-300, "ffffffffffffff"),
        ];
        for (ratio, want) in cases {
            assert_eq!(th(Share::new(ratio)), want, "{ratio}");
        }
        assert_eq!(Share::new(1.0), Share::ALL);
    }

    #[test]
    fn the_extremes_take_all_and_nothing() {
        for low in [0, 1, 1 << 55, RANGE - 1, u64::MAX] {
            assert!(Share::new(1.0).takes(trace(7, low)));
            assert!(!Share::new(0.0).takes(trace(7, low)));
            assert!(!Share::new(f64::NAN).takes(trace(7, low)));
        }
    }

    #[test]
    fn only_the_last_56_bits_count_and_the_threshold_itself_is_taken() {
        let half = Share::new(0.5);
        for high in [0, u64::MAX] {
            for (low, want) in
                [(1 << 55, true), ((1 << 55) - 1, false), (0xff << 56, false), (1 << 55 | 1, true)]
            {
                assert_eq!(half.takes(trace(high, low)), want, "{high:x} {low:x}");
            }
        }
    }

    #[test]
    fn a_share_is_as_large_as_it_says() {
        const IDS: u64 = 200_000;
        for ratio in [0.001, 0.01, 0.1, 0.25, 0.5, 0.9] {
            let share = Share::new(ratio);
            // Odd multiples spread evenly enough over the range, and alike in every run.
            let ids = (0..IDS).map(|n| trace(n, n.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
            let taken = ids.filter(|id| share.takes(*id)).count() as f64;
            let want = ratio * IDS as f64;
            assert!((taken - want).abs() < 4.0 * want.sqrt(), "{ratio}: {taken}");
        }
    }

    proptest! {
        #[test]
        fn a_lower_share_is_part_of_a_higher_one(
            a in 0.0..=1.0_f64,
            b in 0.0..=1.0_f64,
            exponent in 0..60_i32,
            near in 0..3_u64,
            high: u64,
            low: u64,
        ) {
            // Small ratios, too, and ids close to a threshold.
            let scale = f64::powi(2.0, -exponent);
            let (a, b) = (a * scale, b * scale);
            let (lower, higher) = (Share::new(a.min(b)), Share::new(a.max(b)));
            let beside = |share: Share| (share.threshold() + near).saturating_sub(1);
            for low in [low, beside(lower), beside(higher)] {
                let id = trace(high, low);
                prop_assert!(!lower.takes(id) || higher.takes(id), "{a} {b} {id}");
            }
        }
    }
}
