//! Which frames there are, in memory: where each stands and what became of it. No files.

use std::collections::{BTreeMap, BTreeSet};

use super::format::{FRAME_HEADER, Settlement, Tally};
use crate::ledger::KindCounts;

/// A frame that was handed out. It is settled or given back once; it cannot be copied, so that no frame
/// is settled twice.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameId(pub(super) Place);

/// Older frames come first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    pub(super) segment: u64,
    /// Among those that the index was told of.
    nth: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    HandedOut,
    Settled,
}

/// Where a frame stands in its segment, and what it holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub(super) offset: u32,
    /// Of the body, bytes.
    pub(super) length: u32,
    pub(super) counts: KindCounts,
}

impl Extent {
    pub(super) fn settlement(self) -> Settlement {
        let Self { offset, length, counts } = self;
        // The end fits in 32 bits: see `Header::end` and who appends.
        let end = offset + FRAME_HEADER as u32 + length;
        Settlement { offset, end, tally: Tally::one(counts) }
    }
}

#[derive(Debug, Default)]
struct Frames {
    entries: Vec<(Extent, State)>,
    /// Those that are not settled.
    left: usize,
}

/// Of all segments that hold frames.
#[derive(Debug, Default)]
pub(super) struct Index {
    segments: BTreeMap<u64, Frames>,
    /// The oldest frame that was never handed out stands here, or later.
    next: Place,
    /// Handed out once, and waiting again: all older than `next`.
    given_back: BTreeSet<Place>,
    /// Frames that wait to be handed out.
    pub(super) frames: u64,
    /// Frames that are not settled.
    pub(super) unsettled: u64,
    pub(super) waiting: [u64; 3],
    pub(super) handed_out: [u64; 3],
}

impl Index {
    /// Adds the newest frame, to the newest segment.
    pub(super) fn add(&mut self, segment: u64, extent: Extent) {
        let frames = self.segments.entry(segment).or_default();
        frames.entries.push((extent, State::Waiting));
        frames.left += 1;
        self.frames += 1;
        self.unsettled += 1;
        add(&mut self.waiting, extent.counts);
    }

    /// Hands the oldest waiting frame out.
    pub(super) fn take(&mut self) -> Option<(Place, Extent)> {
        let place = self.given_back.pop_first().or_else(|| self.pass_next())?;
        let (extent, state) = self.entry(place)?;
        *state = State::HandedOut;
        let extent = *extent;
        self.frames -= 1;
        subtract(&mut self.waiting, extent.counts);
        add(&mut self.handed_out, extent.counts);
        Some((place, extent))
    }

    fn pass_next(&mut self) -> Option<Place> {
        let place = self.segments.range(self.next.segment..).find_map(|(segment, frames)| {
            let nth = if *segment == self.next.segment { self.next.nth } else { 0 };
            (nth < frames.entries.len()).then_some(Place { segment: *segment, nth })
        })?;
        self.next = Place { nth: place.nth + 1, ..place };
        Some(place)
    }

    /// Makes a frame wait that was handed out.
    pub(super) fn give_back(&mut self, place: Place) {
        let Some((extent, state @ State::HandedOut)) = self.entry(place) else { return };
        *state = State::Waiting;
        let counts = extent.counts;
        self.frames += 1;
        subtract(&mut self.handed_out, counts);
        add(&mut self.waiting, counts);
        self.given_back.insert(place);
    }

    /// Settles a frame that was handed out.
    pub(super) fn settle(&mut self, place: Place) -> Option<Extent> {
        let (extent, state @ State::HandedOut) = self.entry(place)? else { return None };
        *state = State::Settled;
        let extent = *extent;
        if let Some(frames) = self.segments.get_mut(&place.segment) {
            frames.left -= 1;
        }
        self.unsettled -= 1;
        subtract(&mut self.handed_out, extent.counts);
        Some(extent)
    }

    /// Whether no frame of the segment is left to be settled.
    pub(super) fn is_done(&self, segment: u64) -> bool {
        self.segments.get(&segment).is_none_or(|frames| frames.left == 0)
    }

    /// Forgets a segment that is done.
    pub(super) fn forget(&mut self, segment: u64) {
        self.segments.remove(&segment);
    }

    fn entry(&mut self, place: Place) -> Option<(&Extent, &mut State)> {
        let frames = self.segments.get_mut(&place.segment)?;
        frames.entries.get_mut(place.nth).map(|(extent, state)| (&*extent, state))
    }
}

fn add(sums: &mut [u64; 3], counts: KindCounts) {
    sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += u64::from(count));
}

fn subtract(sums: &mut [u64; 3], counts: KindCounts) {
    sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum -= u64::from(count));
}
