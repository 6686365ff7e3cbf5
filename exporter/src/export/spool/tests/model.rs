//! Any sequence of operations, against a list in memory.

use proptest::prelude::*;

use super::*;

/// Segments of 512 bytes: a few frames each.
const MAX: u64 = 4096;

#[derive(Clone, Debug)]
enum Op {
    /// A frame with a body of so many bytes.
    Append(usize),
    Next,
    /// One of those that are handed out.
    Settle(prop::sample::Index),
    GiveBack(prop::sample::Index),
    DropOldest,
    Reopen,
    Kill,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0_usize..300).prop_map(Op::Append),
        8 => Just(Op::Next),
        5 => any::<prop::sample::Index>().prop_map(Op::Settle),
        2 => any::<prop::sample::Index>().prop_map(Op::GiveBack),
        1 => Just(Op::DropOldest),
        1 => Just(Op::Reopen),
        1 => Just(Op::Kill),
    ]
}

/// The spool, and what must be in it.
struct Model {
    home: Home,
    spool: Option<Spool>,
    /// Every frame that is not settled, oldest first, and whether it is handed out.
    frames: Vec<(Frame, Option<FrameId>)>,
    appended: u32,
}

impl Model {
    fn new() -> Self {
        let home = Home::new();
        let spool = Some(home.open_well(MAX));
        Self { home, spool, frames: Vec::new(), appended: 0 }
    }

    fn spool(&mut self) -> &mut Spool {
        self.spool.as_mut().unwrap()
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Append(bytes) => self.append(bytes),
            Op::Next => self.next(),
            Op::Settle(which) => {
                if let Some((at, id)) = self.handed_out(which) {
                    self.spool().settle(id).unwrap();
                    self.frames.remove(at);
                }
            }
            Op::GiveBack(which) => {
                if let Some((_, id)) = self.handed_out(which) {
                    self.spool().give_back(id);
                }
            }
            Op::DropOldest => {
                let oldest = self.frames.iter().position(|(_, id)| id.is_none());
                let dropped = self.spool().drop_oldest().map(|(counts, written)| {
                    written.unwrap();
                    counts
                });
                let want = oldest.map(|at| self.frames.remove(at).0.counts);
                assert_eq!(dropped, want);
            }
            Op::Reopen => {
                self.spool = None;
                self.reopen();
            }
            Op::Kill => {
                let left = self.home.killed();
                self.spool = None;
                self.home = left;
                self.reopen();
            }
        }
        self.check();
    }

    fn append(&mut self, bytes: usize) {
        let frame = sized(self.appended, bytes);
        self.appended += 1;
        match self.spool().append(&frame) {
            Ok(()) => self.frames.push((frame, None)),
            Err(SpoolError::Full { bytes: in_use, needed, max_bytes, .. }) => {
                assert!(in_use + needed > max_bytes);
                // No more is kept free than what may have to be written.
                let later = self.frames.len() * SETTLEMENT + FRAME_HEADER;
                assert!(in_use <= self.home.disk_bytes() + later as u64);
                let parts = FILE_HEADER + 2 * FRAME_HEADER + SETTLEMENT;
                assert!(needed <= (bytes + parts) as u64);
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn next(&mut self) {
        let next = self.spool().next().unwrap();
        let want = self.frames.iter_mut().find(|(_, id)| id.is_none());
        match (next, want) {
            (None, None) => {}
            (Some((id, frame)), Some((want, place))) => {
                assert_eq!(&frame, want);
                *place = Some(id);
            }
            (next, want) => panic!("{next:?}, not {want:?}"),
        }
    }

    fn handed_out(&mut self, which: prop::sample::Index) -> Option<(usize, FrameId)> {
        let frames = self.frames.iter_mut().enumerate();
        let mut out: Vec<_> = frames.filter(|(_, (_, id))| id.is_some()).collect();
        if out.is_empty() {
            return None;
        }
        let (at, (_, id)) = out.swap_remove(which.index(out.len()));
        Some((at, id.take()?))
    }

    /// Nobody has any frame then.
    fn reopen(&mut self) {
        self.frames.iter_mut().for_each(|(_, id)| *id = None);
        let (spool, recovered) = self.home.open(MAX);
        assert_well(&recovered);
        assert_eq!(recovered.frames, self.frames.len() as u64);
        assert_eq!(recovered.records, sum(self.frames.iter().map(|(frame, _)| frame)));
        self.spool = Some(spool);
    }

    fn check(&mut self) {
        let of = |is_out| {
            let frames = self.frames.iter().filter(move |(_, id)| id.is_some() == is_out);
            frames.map(|(frame, _)| frame)
        };
        let (waiting, out) = (of(false).count() as u64, sum(of(true)));
        let (records, disk) = (sum(of(false)), self.home.disk_bytes());
        let is_empty = self.frames.is_empty();
        let spool = self.spool();
        assert_eq!((spool.frames(), spool.waiting(), spool.handed_out()), (waiting, records, out));
        assert_eq!(spool.bytes(), disk);
        assert!(disk <= MAX, "{disk}");
        assert!(!is_empty || disk == 0 || spool.active.is_some(), "{disk} bytes of nothing");
        assert!(spool.take_warning().is_none());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_operations_keeps_what_it_must(ops in prop::collection::vec(op(), 1..120)) {
        let mut model = Model::new();
        for op in ops {
            model.apply(op);
        }
        // All that is left comes, in order.
        model.apply(Op::Kill);
        let want: Vec<_> = model.frames.drain(..).map(|(frame, _)| frame).collect();
        assert_eq!(drain(model.spool()), want);
        assert_eq!(model.home.files(), Vec::<PathBuf>::new());
    }
}
