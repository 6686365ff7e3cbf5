//! What must hold of any bytes in the files of a segment, for `crate::fuzzing`.

use super::format::{
    FILE_HEADER, FRAME_HEADER, Header, SETTLEMENT, Settlement, Tally, file_header,
};
use super::scan::{Scan, scan, settlements};

/// Of the segment whose files the bytes are: it only goes into checksums.
const SEGMENT: u64 = 7;

/// Reads a segment and its settlements. What is told of it is told once: when the damaged end is cut off
/// and the gaps are written down, the same frames are found, and no damage.
pub(crate) fn read(frames: &[u8], settled: &[u8]) {
    let first = read_once(frames, settled);
    let Some(kept) = first.cut.map_or(Some(frames), |cut| frames.get(..cut.offset as usize)) else {
        unreachable!("checked")
    };
    if kept.len() < FILE_HEADER {
        return;
    }
    let whole = settled.len() - settled.len() % SETTLEMENT;
    let mut settled = settled[..whole].to_vec();
    for gap in &first.gaps {
        let (offset, end) = (gap.offset as u32, gap.end as u32);
        settled.extend(Settlement { offset, end, tally: gap.tally }.encode(SEGMENT));
    }
    let again = read_once(kept, &settled);
    assert_eq!(format!("{:?}", again.frames), format!("{:?}", first.frames));
    assert!(again.gaps.is_empty() && again.cut.is_none(), "{again:?} after {first:?}");
}

/// A segment of frames with these bodies, of which some are settled, each by number; then bytes of it are
/// changed, each by its place and what it is combined with. Frames before the first change are found.
pub(crate) fn damage(bodies: &[&[u8]], settle: &[u8], changes: &[(u16, u8)]) {
    let mut frames = file_header().to_vec();
    let (mut before, mut headers) = (Tally::default(), Vec::new());
    for (n, body) in (0..).zip(bodies) {
        let header = Header::of_frame(frames.len() as u32, before, [n, 0, 1], body);
        before = header.after().unwrap_or(before);
        frames.extend(header.encode());
        frames.extend(*body);
        headers.push(header);
    }
    frames.extend(Header::end_mark(frames.len() as u32, before).encode());
    let mut settled = Vec::new();
    let mut is_settled = vec![false; headers.len()];
    for n in settle {
        let Some(header) = headers.get(usize::from(*n)) else { continue };
        is_settled[usize::from(*n)] = true;
        let (offset, end) = (header.offset, header.end() as u32);
        let settlement = Settlement { offset, end, tally: Tally::one(header.counts) };
        settled.extend(settlement.encode(SEGMENT));
    }
    let mut first = frames.len();
    for (at, with) in changes {
        let at = usize::from(*at) % frames.len();
        frames[at] ^= with;
        first = if *with == 0 { first } else { first.min(at) };
    }
    let found = read_once(&frames, &settled).frames;
    let sound = headers
        .iter()
        .zip(is_settled)
        .filter(|(header, is_settled)| !is_settled && header.end() <= first as u64);
    for (n, (header, _)) in sound.enumerate() {
        assert_eq!(found.get(n).map(|it| it.offset), Some(header.offset), "{changes:?}");
    }
    read(&frames, &settled);
}

fn read_once(frames: &[u8], settled: &[u8]) -> Scan {
    let (settled, bad) = settlements(settled, SEGMENT);
    assert!(bad.iter().all(|at| at % SETTLEMENT as u64 == 0));
    let Ok(scan) = scan(frames, &settled) else { unreachable!("memory can be read") };
    let places = scan.frames.iter().map(|frame| {
        let offset = u64::from(frame.offset);
        (offset, offset + FRAME_HEADER as u64 + u64::from(frame.length))
    });
    let gaps = scan.gaps.iter().chain(&scan.cut).map(|gap| (gap.offset, gap.end));
    let mut places: Vec<_> = places.chain(gaps).collect();
    places.sort_unstable();
    assert!(places.iter().all(|(from, to)| from <= to && *to <= frames.len() as u64));
    assert!(places.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{places:?}");
    scan
}
