//! docs/endings.md has the table of cases, which is written from them.

use std::fmt::Write as _;
use std::path::Path;

use super::GROUPS;
use super::case::{Case, Row};

const BEGIN: &str = "<!-- The cases of exporter/tests/kernel/matrix; UPDATE_DOCS=1 cargo test --test kernel endings_md writes them. -->\n";
const END: &str = "<!-- End of the cases. -->\n";

#[test]
fn endings_md_has_the_table_of_cases() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/endings.md");
    let text = std::fs::read_to_string(&file).expect("docs/endings.md");
    let (before, rest) = text.split_once(BEGIN).expect("the marker before the cases");
    let (_, after) = rest.split_once(END).expect("the marker after the cases");
    let expected = format!("{before}{BEGIN}\n{}{END}{after}", table());
    if std::env::var("UPDATE_DOCS").is_ok_and(|v| v == "1") {
        std::fs::write(&file, expected).expect("docs/endings.md");
        return;
    }
    assert_eq!(
        text, expected,
        "docs/endings.md is not what the cases say: run this test with UPDATE_DOCS=1"
    );
}

fn table() -> String {
    let mut text = String::new();
    for (title, parts) in GROUPS {
        let _ = writeln!(
            text,
            "### {title}\n\n| case | the client's record | the server's record |\n|---|---|---|"
        );
        for case in parts.iter().flat_map(|part| part.iter()) {
            lines_of(case, &mut text);
        }
        text.push('\n');
    }
    text
}

/// A line for each connection of a case.
fn lines_of(case: &Case, text: &mut String) {
    for (n, ends) in case.ends.iter().enumerate() {
        let name = match (n, case.what) {
            (0, "") => format!("**{}**", case.name),
            (0, what) => format!("**{}**: {what}", case.name),
            (n, _) => format!("... connection {} of it", n + 1),
        };
        let [client, server] =
            [ends.client, ends.server].map(|row| row.map_or("none".into(), cell));
        let _ = writeln!(text, "| {name} | {client} | {server} |");
    }
}

fn cell(row: Row) -> String {
    let mut text = format!("`{}`, by {}", row.reason.replace(" or ", "` or `"), row.by);
    if let Some(side) = row.reset_by {
        let _ = write!(text, ", reset by {side}");
    }
    let _ = write!(text, "; `{}`", row.conn_state);
    if row.start_known {
        let _ = write!(text, " `{}`", row.history);
    }
    if row.established {
        let _ = write!(text, "; {} B sent, {} B received", row.sent, row.received);
    }
    if row.retransmits {
        text.push_str("; retransmits");
    }
    if row.half_close {
        text.push_str("; half-close time");
    }
    text
}
