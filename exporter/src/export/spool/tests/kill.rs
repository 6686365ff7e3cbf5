//! A process that is killed in the middle of its work.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use super::*;

/// Set for the process that is to be killed: its folder, and a seed.
const FOLDER: &str = "FLOWEND_TEST_SPOOL";
const SEED: &str = "FLOWEND_TEST_SEED";

const MAX: u64 = 1 << 20;

fn numbered(n: u32) -> Frame {
    let mut body = n.to_le_bytes().to_vec();
    body.resize(4 + n as usize * 977 % 30_000, n as u8);
    Frame { counts: [0, 0, n % 100], body: body.into() }
}

fn number(frame: &Frame) -> u32 {
    let n = u32::from_le_bytes(frame.body[..4].try_into().unwrap());
    assert_eq!(frame, &numbered(n));
    n
}

/// Steps of a generator of Numerical Recipes: any order of the operations will do.
fn random(state: &mut u64) -> u32 {
    *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    (*state >> 16) as u32
}

/// Appends and settles, and says so after each, until it is killed. A test by itself only in the process
/// that the test below starts.
#[test]
fn the_process_to_be_killed() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let mut seed = std::env::var(SEED).unwrap().parse().unwrap();
    let (mut spool, _) = Spool::open(Path::new(&folder), MAX).unwrap();
    let mut out: Vec<(FrameId, u32)> = Vec::new();
    // Not println: the harness would keep it to itself.
    let mut say = std::io::stdout();
    for n in 0.. {
        match spool.append(&numbered(n)) {
            Ok(()) => writeln!(say, "appended {n}").unwrap(),
            Err(SpoolError::Full { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        // More or less settling than appending, by turns.
        for _ in 0..random(&mut seed) % if n / 64 % 2 == 0 { 2 } else { 4 } {
            if let Some((id, frame)) = spool.next().unwrap() {
                out.push((id, number(&frame)));
            }
            if out.len() > 6 {
                let (id, n) = out.swap_remove(random(&mut seed) as usize % out.len());
                spool.settle(id).unwrap();
                writeln!(say, "settled {n}").unwrap();
            }
        }
    }
}

#[test]
fn a_kill_loses_nothing_and_brings_nothing_back() {
    let mut brought_back = 0;
    for seed in 0..50_u64 {
        let home = Home::new();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &of_this_module("the_process_to_be_killed"), "--nocapture"])
            .env(FOLDER, home.folder())
            .env(SEED, seed.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (mut appended, mut settled) = (BTreeSet::new(), BTreeSet::new());
        let mut state = seed;
        let moment = 1 + random(&mut state) % 2000;
        let mut said = 0;
        for line in lines {
            let line = line.unwrap();
            let mut words = line.split(' ');
            match (words.next(), words.next().and_then(|n| n.parse::<u32>().ok())) {
                (Some("appended"), Some(n)) => assert!(appended.insert(n)),
                (Some("settled"), Some(n)) => assert!(settled.insert(n)),
                _ => continue,
            }
            said += 1;
            if said == moment {
                child.kill().unwrap();
            }
        }
        assert!(!child.wait().unwrap().success());
        assert!(said >= moment, "seed {seed}: ended by itself after {said} operations");
        let (mut spool, recovered) = home.open(MAX);
        // A frame may be half written, but nothing that was appended is touched.
        assert!(recovered.lost.is_empty() && recovered.unsettled.is_empty(), "{recovered:?}");
        let found: Vec<_> = drain(&mut spool).iter().map(number).collect();
        assert!(found.is_sorted(), "seed {seed}: {found:?}");
        let found: BTreeSet<_> = found.into_iter().collect();
        assert!(found.is_disjoint(&settled), "seed {seed}");
        // One operation may have been done and not said.
        let unsaid: Vec<_> = found.difference(&appended).collect();
        let missing = appended.difference(&found).filter(|n| !settled.contains(n)).count();
        assert!(unsaid.len() + missing <= 1, "seed {seed}: {unsaid:?}, {missing} missing");
        brought_back += found.len();
    }
    assert!(brought_back > 100, "{brought_back}");
}

fn of_this_module(test: &str) -> String {
    let path = module_path!();
    let (_, inside) = path.split_once("::").unwrap();
    format!("{inside}::{test}")
}
