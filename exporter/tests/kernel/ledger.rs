//! The ledger's lines at the end of the program's messages.

use std::collections::BTreeMap;

/// What became of the ends at an output, such as "otlp.logs", and how many there were: the terms of its line
/// that are not zero.
pub(crate) fn ledger(messages: &str, output: &str) -> BTreeMap<String, u64> {
    let start = format!(" {output}: seen ");
    let mut lines = messages.lines().filter(|line| line.contains(&start));
    let (Some(line), None) = (lines.next(), lines.next()) else {
        panic!("not one line of {output}: {messages}")
    };
    let (_, identity) = line.split_once(&format!(" {output}: ")).expect("was found");
    identity
        .split([' ', '+', '='])
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .chunks(2)
        .map(|term| {
            let [name, n] = term else { panic!("a term without a count: {line}") };
            ((*name).to_owned(), n.parse().expect("a count"))
        })
        .filter(|(_, n)| *n > 0)
        .collect()
}

/// Terms as [`ledger`] gives them.
pub(crate) fn terms<const N: usize>(terms: [(&str, usize); N]) -> BTreeMap<String, u64> {
    terms.into_iter().map(|(name, n)| (name.to_owned(), n as u64)).collect()
}
