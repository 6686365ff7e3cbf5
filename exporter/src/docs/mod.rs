//! The pages of docs/ and ARCHITECTURE.md, compared with the code that they describe.

mod attributes;
mod causes;
mod links;
mod policy;

use std::path::PathBuf;

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

/// A table cell: what a reader sees, and the parts of it that are code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) text: String,
    pub(crate) codes: Vec<String>,
}

/// A table of a page. The rows are without the heading.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<Vec<Cell>>,
}

impl Table {
    /// The cell of a row below that heading.
    pub(crate) fn cell<'a>(&self, row: &'a [Cell], column: &str) -> &'a Cell {
        let index = self.columns.iter().position(|name| name == column);
        &row[index.unwrap_or_else(|| panic!("no column {column} in {:?}", self.columns))]
    }
}

/// The top folder of the repository.
pub(crate) fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The text of docs/`name`.
pub(crate) fn page(name: &str) -> String {
    let path = repository().join("docs").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The tables below the heading `title`, up to the next heading of any level.
pub(crate) fn tables_below(text: &str, title: &str) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    let mut heading: Option<String> = None;
    let (mut is_below, mut row) = (false, Vec::<Cell>::new());
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => is_below = heading.take().as_deref() == Some(title),
            Event::Text(part) | Event::Code(part) if heading.is_some() => {
                heading.as_mut().expect("just seen").push_str(&part);
            }
            _ if !is_below => {}
            Event::Start(Tag::Table(_)) => tables.push(Table::default()),
            Event::Start(Tag::TableCell) => row.push(Cell::default()),
            Event::Text(part) => row.iter_mut().last().into_iter().for_each(|c| c.text += &part),
            Event::Code(part) => {
                if let Some(cell) = row.last_mut() {
                    cell.text += &part;
                    cell.codes.push(part.into_string());
                }
            }
            Event::End(TagEnd::TableHead) => {
                let columns = std::mem::take(&mut row).into_iter().map(|cell| cell.text);
                tables.last_mut().expect("a table").columns = columns.collect();
            }
            Event::End(TagEnd::TableRow) => {
                tables.last_mut().expect("a table").rows.push(std::mem::take(&mut row));
            }
            // Text between two tables is in no cell.
            Event::End(TagEnd::Table) => row.clear(),
            _ => {}
        }
    }
    assert!(!tables.is_empty(), "no table below \"{title}\"");
    tables
}

#[test]
fn tables_are_found_by_their_heading() {
    let text = "# a\n\n| x |\n|---|\n| no |\n\n## `b` c\n\nwords\n\n| name | is |\n|---|---|\n\
                | `k`, `l` | one `m` |\n| n | |\n\n### d\n\n| y |\n|---|\n| no |\n";
    let [table] = tables_below(text, "b c").try_into().unwrap();
    assert_eq!(table.columns, ["name", "is"]);
    let [first, second] = table.rows.as_slice() else { panic!("{:?}", table.rows) };
    assert_eq!(table.cell(first, "name").codes, ["k", "l"]);
    assert_eq!(table.cell(first, "is").text, "one m");
    assert_eq!(table.cell(second, "is"), &Cell::default());
}
