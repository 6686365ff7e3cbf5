//! Every way in which a connection ends, as a table of cases, on the real kernel.
//!
//! Each case is made over IPv4, IPv6 and IPv4-mapped IPv6, and its records are compared, at both ends, with what is
//! true. `MATRIX_CASE` limits a run to the cases whose names hold its value.

mod again;
mod bench;
mod bulk;
mod case;
mod check;
mod docs;
mod forged;
mod handshakes;
mod made;
mod older;
mod orderly;
mod resets;
mod run;
mod special;
mod timeouts;
mod wire;
mod wire_check;

use super::tracefs::Tracefs;
use case::Case;

/// All cases, in the order of docs/endings.md.
const GROUPS: &[(&str, &[&[Case]])] = &[
    ("Closed", &[orderly::CASES]),
    ("Reset", &[resets::CASES]),
    ("Attempts", &[handshakes::CASES, handshakes::WITHOUT_TRACEFS, handshakes::SLOW]),
    ("Given up", &[timeouts::CASES]),
    ("The same ports or socket again", &[again::CASES]),
    ("Slow and lossy links", &[wire::CASES]),
    ("Much data", &[bulk::CASES]),
    ("Forged segments", &[forged::CASES]),
    ("Fast Open and MPTCP", &[special::CASES]),
    ("Older than flowend", &[older::CASES]),
];

/// A test for each part; they run side by side, each with a flowend of its own.
macro_rules! parts {
    ($($test:ident: $cases:expr, $tracefs:expr;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                run::run(stringify!($test), &$cases, $tracefs).await;
            }
        )*

        /// A case that is in the documentation and in no test would be a promise that nobody keeps.
        #[test]
        fn every_case_is_run_and_has_a_name_of_its_own() {
            let names = |parts: &[&'static [Case]]| -> Vec<&'static str> {
                parts.iter().flat_map(|part| part.iter()).map(|case| case.name).collect()
            };
            let mut tested = [$(names(&$cases)),*].concat();
            let mut documented: Vec<_> =
                GROUPS.iter().flat_map(|(_, parts)| names(parts)).collect();
            tested.sort_unstable();
            documented.sort_unstable();
            assert_eq!(tested, documented);
            tested.dedup();
            assert_eq!(tested, documented, "a name stands twice");
        }
    };
}

parts! {
    closed: [orderly::CASES], Tracefs::Mounted;
    reset: [resets::CASES], Tracefs::Mounted;
    attempts: [handshakes::CASES], Tracefs::Mounted;
    attempts_without_tracefs: [handshakes::WITHOUT_TRACEFS], Tracefs::Absent;
    attempts_that_take_long: [handshakes::SLOW], Tracefs::Mounted;
    given_up: [timeouts::CASES], Tracefs::Mounted;
    again: [again::CASES, special::CASES], Tracefs::Mounted;
    wire: [wire::CASES, forged::CASES], Tracefs::Mounted;
    bulk: [bulk::CASES], Tracefs::Absent;
    older_than_flowend: [older::CASES], Tracefs::Mounted;
}
