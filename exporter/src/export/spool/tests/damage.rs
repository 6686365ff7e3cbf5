//! Damaged files: what is whole survives, and what is not is told.

use super::*;

/// One segment of these, of which those are settled; closed in peace or not.
fn segment(frames: &[Frame], settle: &[usize], is_closed: bool) -> Home {
    let home = Home::new();
    let mut spool = home.open_well(16 * ROOM);
    append_all(&mut spool, frames);
    let mut out: Vec<_> = frames.iter().map(|_| spool.next().unwrap()).collect();
    for &n in settle {
        spool.settle(out[n].take().unwrap().0).unwrap();
    }
    if is_closed {
        drop(spool);
        assert_eq!(home.of_kind("frames").len(), 1);
        return home;
    }
    home.killed()
}

fn frames(n: u32) -> Vec<Frame> {
    (0..n).map(frame).collect()
}

/// Where each frame ends.
fn ends(frames: &[Frame]) -> Vec<usize> {
    let lengths = frames.iter().map(|frame| FRAME_HEADER + frame.body.len());
    lengths
        .scan(FILE_HEADER, |at, length| {
            *at += length;
            Some(*at)
        })
        .collect()
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

fn records(damages: &[Damage]) -> [u64; 3] {
    damages
        .iter()
        .fold([0; 3], |[a, b, c], Damage { records: [x, y, z], .. }| [a + x, b + y, c + z])
}

#[test]
fn a_segment_cut_at_any_byte_keeps_its_whole_frames() {
    let all = frames(4);
    let ends = ends(&all);
    for is_closed in [false, true] {
        let home = segment(&all, &[], is_closed);
        let length = home.disk_bytes() as usize;
        assert_eq!(length, ends[3] + if is_closed { FRAME_HEADER } else { 0 });
        for cut in 0..length {
            let home = home.killed();
            change(&home.of_kind("frames")[0], |bytes| bytes.truncate(cut));
            let whole = ends.iter().filter(|end| **end <= cut).count();
            let (mut spool, recovered) = home.open(ROOM);
            let good_end = if whole == 0 { FILE_HEADER } else { ends[whole - 1] };
            // Nothing is wrong where the cut lies between frames, or nothing was begun.
            let is_clean = cut == good_end || cut == 0;
            assert_eq!(recovered.cut.len(), usize::from(!is_clean), "{cut}: {recovered:?}");
            for damage in &recovered.cut {
                let start = if cut < FILE_HEADER { 0 } else { good_end };
                assert_eq!((damage.offset, damage.bytes), (start as u64, (cut - start) as u64));
                // The header said what it would have been.
                let is_told = cut - start >= FRAME_HEADER && whole < 4;
                assert_eq!(damage.records, if is_told { sum([&all[whole]]) } else { [0; 3] });
            }
            assert!(recovered.lost.is_empty(), "{cut}: {recovered:?}");
            assert_eq!(recovered.bytes, home.disk_bytes());
            // It works on, and tells nothing twice.
            spool.append(&frame(9)).unwrap();
            drop(spool);
            let mut spool = home.open_well(ROOM);
            let want: Vec<_> = all[..whole].iter().cloned().chain([frame(9)]).collect();
            assert_eq!(drain(&mut spool), want, "{cut}");
        }
    }
}

#[test]
fn any_flipped_bit_costs_one_frame_at_most_and_is_told() {
    // Three segments, of which the second is damaged.
    let home = Home::new();
    let mut spool = home.open_well(4096);
    let all = frames(12);
    append_all(&mut spool, &all);
    drop(spool);
    let segments = home.of_kind("frames");
    assert_eq!(segments.len(), 3);
    let first = all.iter().scan(FILE_HEADER + FRAME_HEADER, |at, frame| {
        *at += FRAME_HEADER + frame.body.len();
        Some(*at as u64)
    });
    let in_first = first.take_while(|at| *at <= segments[0].metadata().unwrap().len()).count();
    let length = segments[1].metadata().unwrap().len() as usize;
    let in_second = {
        let ends = ends(&all[in_first..]);
        ends.into_iter().take_while(|end| *end + FRAME_HEADER <= length).collect::<Vec<_>>()
    };
    assert!(in_first > 1 && in_second.len() > 2 && in_first + in_second.len() < all.len());
    for at in 0..length {
        let home = home.killed();
        change(&home.of_kind("frames")[1], |bytes| bytes[at] ^= 1 << (at % 8));
        let (mut spool, recovered) = home.open(4096);
        let mut want = all.clone();
        let hit = in_second.iter().position(|end| at < *end).filter(|_| at >= FILE_HEADER);
        let told = match hit {
            Some(hit) => sum([&want.remove(in_first + hit)]),
            None => [0; 3],
        };
        let is_end_mark = at >= *in_second.last().unwrap();
        assert_eq!(recovered.cut.len(), usize::from(is_end_mark && hit.is_none()), "{at}");
        assert_eq!(recovered.lost.len(), usize::from(hit.is_some() || at < FILE_HEADER), "{at}");
        assert_eq!(records(&recovered.lost), told, "{at}: {recovered:?}");
        for damage in recovered.lost.iter().chain(&recovered.cut) {
            assert!((damage.offset..damage.offset + damage.bytes).contains(&(at as u64)));
            assert!(damage.file.ends_with(home.files()[1].file_name().unwrap()));
            assert_eq!(damage.frames, u64::from(hit.is_some()));
        }
        assert_eq!(recovered.records, sum(&want));
        spool.append(&frame(99)).unwrap();
        want.push(frame(99));
        drop(spool);
        // Told once.
        assert_eq!(drain(&mut home.open_well(4096)), want, "{at}");
    }
}

#[test]
fn a_gap_tells_what_was_not_settled_in_it() {
    let all = frames(5);
    let ends = ends(&all);
    // The headers of 1 and 2 are gone; the search goes on behind them.
    for (settle, lost) in
        [(&[][..], vec![1, 2]), (&[1], vec![2]), (&[2], vec![1]), (&[1, 2], vec![])]
    {
        let home = segment(&all, settle, false);
        change(&home.of_kind("frames")[0], |bytes| bytes[ends[0]..ends[2]].fill(0));
        let (spool, recovered) = home.open(ROOM);
        assert_eq!(recovered.lost.len(), usize::from(!lost.is_empty()), "{recovered:?}");
        assert_eq!(records(&recovered.lost), sum(lost.iter().map(|n| &all[*n])), "{settle:?}");
        for damage in &recovered.lost {
            let place = (damage.offset, damage.bytes, damage.frames);
            assert_eq!(place, (ends[0] as u64, (ends[2] - ends[0]) as u64, lost.len() as u64));
            let text = damage.to_string();
            assert!(text.contains(".frames: ") && text.contains("are damaged"), "{text}");
        }
        drop(spool);
        let want = [&all[0], &all[3], &all[4]].map(Clone::clone);
        assert_eq!(drain(&mut home.open_well(ROOM)), want);
    }
}

#[test]
fn a_header_is_found_wherever_it_stands_behind_much_damage() {
    // The search reads 64 KiB at once: the next header stands before, on and behind the edge.
    let edge = (64 << 10) - FRAME_HEADER;
    for length in edge - FRAME_HEADER - 4..edge + 4 {
        let all = [sized(1, length), frame(2)];
        let home = segment(&all, &[], false);
        change(&home.of_kind("frames")[0], |bytes| bytes[FILE_HEADER] ^= 1);
        let (mut spool, recovered) = home.open(ROOM);
        assert_eq!(records(&recovered.lost), sum(&all[..1]), "{length}");
        assert_eq!(drain(&mut spool), all[1..], "{length}");
    }
}

#[test]
fn settlements_cut_at_any_byte_send_again_what_they_lost() {
    let all = frames(4);
    let home = segment(&all, &[2, 0, 3], false);
    for cut in 0..=3 * SETTLEMENT {
        let home = home.killed();
        change(&home.of_kind("settled")[0], |bytes| bytes.truncate(cut));
        let mut spool = home.open_well(ROOM);
        let settled = &[2, 0, 3][..cut / SETTLEMENT];
        let left: Vec<_> = (0..4).filter(|n| !settled.contains(n)).collect();
        // More settlements go over what was written in part.
        let (id, first) = spool.next().unwrap().unwrap();
        assert_eq!(first, frame(left[0]));
        spool.settle(id).unwrap();
        drop(spool);
        let want: Vec<_> = left[1..].iter().map(|n| frame(*n)).collect();
        assert_eq!(drain(&mut home.open_well(ROOM)), want, "{cut}");
    }
}

#[test]
fn a_settlement_with_any_flipped_bit_is_told_and_its_frame_sent_again() {
    let all = frames(4);
    let home = segment(&all, &[2, 0, 3], false);
    for at in 0..3 * SETTLEMENT {
        let home = home.killed();
        change(&home.of_kind("settled")[0], |bytes| bytes[at] ^= 1 << (at % 8));
        let (mut spool, recovered) = home.open(ROOM);
        assert_eq!(recovered.unsettled.len(), 1, "{recovered:?}");
        let again = [2, 0, 3][at / SETTLEMENT];
        let mut want = vec![1, again];
        want.sort_unstable();
        assert_eq!(drain(&mut spool), want.into_iter().map(frame).collect::<Vec<_>>(), "{at}");
    }
}

#[test]
fn settlements_of_another_segment_settle_nothing() {
    let all = frames(3);
    let home = segment(&all, &[0, 1], false);
    fs::rename(&home.of_kind("frames")[0], home.folder().join(folder::frames_name(5))).unwrap();
    fs::rename(&home.of_kind("settled")[0], home.folder().join(folder::settled_name(5))).unwrap();
    let (mut spool, recovered) = home.open(ROOM);
    assert_eq!(recovered.unsettled.len(), 2);
    assert_eq!(drain(&mut spool), all);
}

#[test]
fn a_frame_that_turns_bad_is_told_by_next_and_passed_over() {
    let all = frames(4);
    let ends = ends(&all);
    for (at, what) in [(ends[0], "header"), (ends[1] - 1, "body")] {
        let home = segment(&all, &[], false);
        let mut spool = home.open_well(ROOM);
        change(&home.of_kind("frames")[0], |bytes| bytes[at] ^= 1);
        let (id, first) = spool.next().unwrap().unwrap();
        assert_eq!(first, all[0]);
        spool.give_back(id);
        let (id, _) = spool.next().unwrap().unwrap();
        match spool.next() {
            Err(SpoolError::Damaged { offset, counts, file }) => {
                assert_eq!((offset, counts), (ends[0] as u64, all[1].counts), "{what}");
                assert_eq!(file, home.of_kind("frames")[0]);
            }
            other => panic!("{what}: {other:?}"),
        }
        assert_eq!(spool.waiting(), sum(&all[2..]));
        spool.settle(id).unwrap();
        assert_eq!(spool.next().unwrap().unwrap().1, all[2]);
        drop(spool);
        // Told once.
        assert_eq!(drain(&mut home.open_well(ROOM)), all[2..]);
    }
}

#[test]
fn a_segment_that_vanishes_is_lost_and_told() {
    let home = segment(&frames(2), &[], false);
    let mut spool = home.open_well(ROOM);
    fs::remove_file(&home.of_kind("frames")[0]).unwrap();
    for n in 0..2 {
        let error = spool.next().unwrap_err();
        assert!(matches!(error, SpoolError::Damaged { counts, .. } if counts == frame(n).counts));
    }
    assert!(spool.next().unwrap().is_none());
    append_all(&mut spool, &[frame(3)]);
    assert_eq!(drain(&mut spool), [frame(3)]);
    assert_eq!(spool.bytes(), 0);
}

#[test]
fn settlements_whose_segment_is_gone_are_removed_and_their_number_not_used_again() {
    let home = segment(&frames(2), &[0], false);
    fs::remove_file(&home.of_kind("frames")[0]).unwrap();
    let stray = home.of_kind("settled")[0].clone();
    let mut spool = home.open_well(ROOM);
    assert!(!stray.exists());
    append_all(&mut spool, &[frame(5)]);
    assert!(home.folder().join(folder::frames_name(2)).exists(), "{:?}", home.files());
}

#[test]
fn garbage_is_cut_and_told() {
    let home = Home::new();
    drop(home.open_well(ROOM));
    let path = home.folder().join(folder::frames_name(4));
    fs::write(&path, vec![0; 200_000]).unwrap();
    let (_, recovered) = home.open(ROOM);
    assert_eq!((recovered.cut.len(), recovered.lost.len(), recovered.bytes), (1, 1, 0));
    let told = recovered.cut[0].bytes + recovered.lost[0].bytes;
    assert_eq!((told, path.exists()), (200_000, false));
}
