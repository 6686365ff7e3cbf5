//! The trace state of a span: with which threshold its trace was sampled (OpenTelemetry specification,
//! "TraceState: Probability Sampling").

use std::fmt::{self, Write};

use crate::sample::Kept;

/// Hexadecimal digits of a threshold's 56 bits.
const DIGITS: u32 = 14;

/// The header's value, `ot=th:8`; `None` where sampling is not in force.
pub(super) fn trace_state(kept: Kept) -> Option<String> {
    let mut text = String::new();
    write_trace_state(kept.threshold?, &mut text).ok().map(|()| text)
}

/// Writes the header's value. Zeros at the end are left out, as the specification says; the threshold 0 is
/// one "0".
pub(super) fn write_trace_state(threshold: u64, out: &mut impl Write) -> fmt::Result {
    out.write_str("ot=th:")?;
    let significant = DIGITS - (threshold.trailing_zeros() / 4).min(DIGITS - 1);
    for place in (DIGITS - significant..DIGITS).rev() {
        let digit = (threshold >> (4 * place) & 0xf) as u32;
        out.write_char(char::from_digit(digit, 16).unwrap_or('0'))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_is_up_to_14_digits_without_zeros_at_the_end() {
        for (threshold, want) in [
            (0, "ot=th:0"),
            (1 << 55, "ot=th:8"),
            (3 << 54, "ot=th:c"),
            (0x00ff_ffff_ffff_ff00, "ot=th:ffffffffffff"),
            (0x00e6_6666_6666_6680, "ot=th:e666666666668"),
            (0x0000_0000_0000_0001, "ot=th:00000000000001"),
            (0x0010_0000_0000_0000, "ot=th:1"),
            (0x0001_0000_0000_0000, "ot=th:01"),
            ((1 << 56) - 1, "ot=th:ffffffffffffff"),
        ] {
            let kept = Kept { probability: 0.5, threshold: Some(threshold) };
            assert_eq!(trace_state(kept).as_deref(), Some(want), "{threshold:x}");
        }
        assert_eq!(trace_state(Kept { probability: 1.0, threshold: None }), None);
    }
}
