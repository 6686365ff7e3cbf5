//! Readable lines, one for each record.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::flow::{Direction, Endpoint, Side};
use crate::record::{Record, RecordKind};

/// What the columns are.
pub const HEADER: &str = "TIME         DIR LOCAL                    PEER                     END             BY     DURATION       SENT   RECEIVED PROCESS";

/// The record as one line, without the newline. Times are those of `zone`.
pub fn text_line(record: &Record, zone: &TimeZone) -> String {
    let end = &record.end;
    let mut line = String::with_capacity(160);
    let time = Timestamp::from_nanosecond(i128::from(record.end_unix_ns))
        .map(|t| t.to_zoned(zone.clone()).strftime("%H:%M:%S%.3f").to_string())
        .unwrap_or_default();
    let direction = match end.direction {
        Direction::Incoming => "in",
        Direction::Outgoing => "out",
        Direction::Unknown => "?",
    };
    // END says how it ended, or what a connection that has not ended does.
    let what = match record.kind {
        RecordKind::Begin => "begin",
        RecordKind::Progress | RecordKind::End => end.reason.as_str(),
    };
    let by = match record.kind {
        RecordKind::Begin | RecordKind::Progress => "-",
        RecordKind::End => end.by.map_or("none", Side::as_str),
    };
    let counted = |count: Option<u64>, show: fn(u64) -> String| {
        count.filter(|_| record.kind != RecordKind::Begin).map_or_else(|| "-".into(), show)
    };
    let _ = write!(
        line,
        "{time:12} {direction:3} {:24} {:24} {:15} {:6} {:>8} {:>10} {:>10} ",
        named(record.names(Side::Local), end.local),
        named(record.names(Side::Remote), end.remote),
        what,
        by,
        counted(end.duration_ns(), duration),
        counted(end.counters.bytes_sent, bytes),
        counted(end.counters.bytes_received, bytes),
    );
    match &record.process {
        Some(process) => {
            let name = process.executable.as_deref().unwrap_or("?");
            // A file name may hold control characters: they must not reach the terminal.
            let _ = write!(line, "{}[{}]", name.escape_default(), process.pid);
        }
        None => line.push('-'),
    }
    if let Some(id) = &record.community_id {
        let _ = write!(line, " {id}");
    }
    line
}

/// An endpoint with the first name of its address: `example.com(192.0.2.1):443`.
fn named(names: &[Arc<str>], endpoint: Endpoint) -> String {
    match names.first() {
        Some(name) => format!("{name}({}):{}", endpoint.ip(), endpoint.port),
        None => endpoint.to_string(),
    }
}

/// Three or four significant digits with a unit: 12us, 3.4ms, 1.25s, 12m03s.
pub(super) fn duration(ns: u64) -> String {
    let mut text = String::new();
    let _ = write_duration(ns, &mut text);
    text
}

/// Writes a duration as [`duration`] does. In whole numbers: formatting a float takes longer than the rest
/// of a record's body.
pub(super) fn write_duration(ns: u64, out: &mut impl fmt::Write) -> fmt::Result {
    let mut digits = itoa::Buffer::new();
    let mut number = |n: u64, out: &mut _| fmt::Write::write_str(out, digits.format(n));
    let rounded = |unit: u64| (ns + unit / 2) / unit;
    let seconds = ns / 1_000_000_000;
    match ns {
        0..1_000_000 => {
            number(rounded(1_000), out)?;
            out.write_str("us")
        }
        1_000_000..1_000_000_000 => {
            let tenths = rounded(100_000);
            number(tenths / 10, out)?;
            out.write_char('.')?;
            number(tenths % 10, out)?;
            out.write_str("ms")
        }
        1_000_000_000..60_000_000_000 => {
            let hundredths = rounded(10_000_000);
            number(hundredths / 100, out)?;
            out.write_char('.')?;
            two_digits(hundredths % 100, out)?;
            out.write_char('s')
        }
        60_000_000_000..3_600_000_000_000 => {
            number(seconds / 60, out)?;
            out.write_char('m')?;
            two_digits(seconds % 60, out)?;
            out.write_char('s')
        }
        _ => {
            number(seconds / 3600, out)?;
            out.write_char('h')?;
            two_digits(seconds / 60 % 60, out)?;
            out.write_char('m')
        }
    }
}

fn two_digits(n: u64, out: &mut impl fmt::Write) -> fmt::Result {
    if n < 10 {
        out.write_char('0')?;
    }
    out.write_str(itoa::Buffer::new().format(n))
}

/// Bytes with a decimal unit from 10,000 on, so that small counts are exact.
#[allow(clippy::cast_precision_loss)]
pub(super) fn bytes(n: u64) -> String {
    if n < 10_000 {
        return format!("{n}B");
    }
    let mut value = n as f64;
    for unit in ["kB", "MB", "GB", "TB"] {
        value /= 1000.0;
        if value < 1000.0 {
            return format!("{value:.1}{unit}");
        }
    }
    format!("{value:.0}TB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_readable() {
        for (ns, want) in [
            (0, "0us"),
            (999_000, "999us"),
            (999_499, "999us"),
            (999_500, "1000us"),
            (1_000_000, "1.0ms"),
            (1_500_000, "1.5ms"),
            (1_549_999, "1.5ms"),
            (1_550_000, "1.6ms"),
            (999_960_000, "1000.0ms"),
            (1_000_000_000, "1.00s"),
            (1_250_000_000, "1.25s"),
            (7_045_000_000, "7.05s"),
            (59_999_000_000, "60.00s"),
            (60_000_000_000, "1m00s"),
            (723_000_000_000, "12m03s"),
            (3_600_000_000_000, "1h00m"),
            (7_380_000_000_000, "2h03m"),
            (u64::MAX, "5124095h34m"),
        ] {
            assert_eq!(duration(ns), want);
        }
        for (n, want) in [
            (0, "0B"),
            (9_999, "9999B"),
            (10_000, "10.0kB"),
            (1_073_741_824, "1.1GB"),
            (5_000_000_000_000_000, "5000TB"),
        ] {
            assert_eq!(bytes(n), want);
        }
    }
}
