//! One short readable line: the body of the log record.

use std::fmt::{self, Write};

use super::text::{bytes, write_duration};
use crate::flow::{ConnectionEnd, Direction};
use crate::record::{Record, RecordKind};

/// The body of a record.
pub fn body(record: &Record) -> String {
    let mut text = String::with_capacity(96);
    // Writing into a String cannot fail.
    let _ = write_body(record, &mut text, |text| write!(text, "{}", record.end.remote));
    text
}

/// Writes the body. `write_peer` writes the remote endpoint: the caller may have it as text already.
pub(super) fn write_body<W: Write>(
    record: &Record,
    out: &mut W,
    write_peer: impl FnOnce(&mut W) -> fmt::Result,
) -> fmt::Result {
    let end = &record.end;
    out.write_str(match end.direction {
        Direction::Outgoing => "tcp connection to ",
        Direction::Incoming => "tcp connection from ",
        Direction::Unknown => "tcp connection with ",
    })?;
    write_peer(out)?;
    match record.kind {
        RecordKind::Begin => out.write_str(" began"),
        RecordKind::Progress => still_open(end, out),
        RecordKind::End => ended(end, out),
    }
}

fn still_open(end: &ConnectionEnd, out: &mut impl Write) -> fmt::Result {
    out.write_str(" is open")?;
    if let Some(ns) = end.duration_ns() {
        out.write_str(", since ")?;
        write_duration(ns, out)?;
    }
    for (count, verb) in
        [(end.counters.bytes_sent, ", sent "), (end.counters.bytes_received, ", received ")]
    {
        if let Some(count) = count {
            out.write_str(verb)?;
            out.write_str(&bytes(count))?;
        }
    }
    Ok(())
}

fn ended(end: &ConnectionEnd, out: &mut impl Write) -> fmt::Result {
    out.write_str(" ended: ")?;
    out.write_str(end.reason.as_str())?;
    if let Some(side) = end.by {
        out.write_str(", by ")?;
        out.write_str(side.as_str())?;
    }
    if let Some(ns) = end.duration_ns() {
        out.write_str(", after ")?;
        write_duration(ns, out)?;
    }
    Ok(())
}
