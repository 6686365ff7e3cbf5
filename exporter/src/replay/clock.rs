//! The clock of a pcapng interface: how its ticks become ns since 1970.

use pcap_parser::{OptionCode, PcapNGOption};

const NS_PER_SECOND: u128 = 1_000_000_000;

/// Ticks of a length, counted from a beginning of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Clock {
    ticks_per_second: u128,
    offset_seconds: i64,
}

impl Clock {
    /// From the options of an interface description; `None` for a resolution that cannot be
    /// calculated with. Without options: us since 1970.
    ///
    /// pcap-parser reads `if_tsoffset` in one byte order only, so the options are read here.
    pub(super) fn of(options: &[PcapNGOption<'_>], big_endian: bool) -> Option<Self> {
        let value = |code| options.iter().find(|o| o.code == code).and_then(|o| o.as_bytes().ok());
        let resolution = value(OptionCode::IfTsresol).and_then(<[u8]>::first).copied().unwrap_or(6);
        let exponent = u32::from(resolution & 0x7f);
        let base: u128 = if resolution & 0x80 == 0 { 10 } else { 2 };
        let offset = value(OptionCode::IfTsoffset).and_then(<[u8]>::first_chunk::<8>);
        Some(Self {
            ticks_per_second: base.checked_pow(exponent)?,
            offset_seconds: offset.map_or(0, |bytes| {
                if big_endian { i64::from_be_bytes(*bytes) } else { i64::from_le_bytes(*bytes) }
            }),
        })
    }

    /// ns since 1970; what lies outside of 1970 to 2554 is moved to the nearest end.
    pub(super) fn unix_ns(self, ticks: u64) -> u64 {
        // Below 2^94, and so is the other term.
        let ns = u128::from(ticks) * NS_PER_SECOND / self.ticks_per_second;
        let offset = i128::from(self.offset_seconds) * NS_PER_SECOND.cast_signed();
        let sum = ns.cast_signed() + offset;
        u64::try_from(sum.max(0)).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::borrow::Cow;

    fn option(code: OptionCode, value: &[u8]) -> PcapNGOption<'_> {
        PcapNGOption { code, len: u16::try_from(value.len()).unwrap(), value: Cow::Borrowed(value) }
    }

    #[test]
    fn ticks_become_time() {
        let resolution = |value: &'static [u8]| vec![option(OptionCode::IfTsresol, value)];
        let offset = |value: &'static [u8]| {
            vec![option(OptionCode::IfTsresol, &[9]), option(OptionCode::IfTsoffset, value)]
        };
        for (name, options, big_endian, ticks, want) in [
            ("us by default", vec![], false, 1_500_000, Some(1_500_000_000)),
            ("ns", resolution(&[9]), false, 7, Some(7)),
            ("ps", resolution(&[12]), false, 7_999, Some(7)),
            ("seconds", resolution(&[0]), false, 3, Some(3_000_000_000)),
            ("2^-10 s", resolution(&[0x8a]), false, 512, Some(500_000_000)),
            ("10^-39 s", resolution(&[39]), false, 0, None),
            ("offset", offset(&[2, 0, 0, 0, 0, 0, 0, 0]), false, 5, Some(2_000_000_005)),
            ("offset, big endian", offset(&[0, 0, 0, 0, 0, 0, 0, 2]), true, 5, Some(2_000_000_005)),
            ("before 1970", offset(&[0xff; 8]), true, 5, Some(0)),
            ("after 2554", resolution(&[0]), false, u64::MAX, Some(u64::MAX)),
        ] {
            let got = Clock::of(&options, big_endian).map(|clock| clock.unix_ns(ticks));
            assert_eq!(got, want, "{name}");
        }
    }
}
