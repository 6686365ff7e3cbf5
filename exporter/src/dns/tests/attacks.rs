//! Messages made to hurt. Those that answer a query are parsed; what is wrong with them is counted.

use super::*;

/// Header of an answer to [`query`] of `a.test`, with its question and these counts of records.
fn head(answers: u16) -> Vec<u8> {
    let mut bytes = Made::answer("a.test", RecordType::A).bytes();
    bytes[6..8].copy_from_slice(&answers.to_be_bytes());
    bytes
}

/// A record behind its owner's name.
fn tail(kind: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1, 0, 0, 0, 60]);
    bytes.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes
}

/// Where a name that follows the question lies.
const RECORD: u8 = 12 + 8 + 4;
/// A pointer to the question's name.
const ASKED: [u8; 2] = [0xc0, 12];
const A: u16 = 1;
const CNAME: u16 = 5;
const SRV: u16 = 33;
const HTTPS: u16 = 65;

/// The answer is refused for this cause, and its query goes on waiting for the real one.
#[track_caller]
fn check_refused(what: &str, bytes: &[u8], fate: AnswerFate) {
    let mut dns = dns();
    dns.observe(EventKind::DnsQuery, &facts(0), &query("a.test"), SCOPE);
    dns.observe(EventKind::DnsAnswer, &facts(1), bytes, SCOPE);
    assert_eq!(dns.stats().answers(fate), 1, "{what}: {}", dns.stats());
    assert!(dns.entries().next().is_none(), "{what}");
    dns.observe(EventKind::DnsAnswer, &facts(2), &answer("a.test", "192.0.2.1"), SCOPE);
    assert_eq!(known(&dns, "192.0.2.1", SECOND), ["a.test"], "{what}");
    check_answers(&dns.stats(), &[(fate, 1), (AnswerFate::Learnt, 1)]);
}

#[test]
fn names_that_do_not_end() {
    let ip = tail(A, &[192, 0, 2, 9]);
    let with = |owner: &[u8]| [&head(1), owner, &ip].concat();
    let here = [0xc0, RECORD];
    let behind = [0xc0, RECORD + 2];
    let label_then_here = [&b"\x01x"[..], &here].concat();
    let two_rings = [&behind[..], &here].concat();
    let labels = b"\x3f".iter().chain(&[b'x'; 63]).copied().cycle().take(64 * 1000);
    let long: Vec<u8> = labels.chain([0]).collect();
    let many: Vec<u8> = [1, b'x'].into_iter().cycle().take(2 * 128).chain([0]).collect();
    // Each pointer leads to the one before it.
    let mut ladder = head(2);
    ladder.extend(ASKED);
    let data = ladder.len() + 10;
    let mut steps = ASKED.to_vec();
    for n in 0..300 {
        let to = u16::try_from(data + 2 * n).unwrap() | 0xc000;
        steps.extend(to.to_be_bytes());
    }
    ladder.extend(tail(16, &steps));
    ladder.extend((u16::try_from(data + steps.len() - 2).unwrap() | 0xc000).to_be_bytes());
    ladder.extend(&ip);
    let cases = [
        ("a pointer to itself", with(&here)),
        ("a pointer to its own label", with(&label_then_here)),
        ("two pointers to each other", with(&two_rings)),
        ("a pointer forward", [&head(1)[..], &behind, &ip, b"\x01x\0"].concat()),
        ("a pointer out of the message", with(&[0xff, 0xff])),
        ("a pointer into the header", with(&[0xc0, 2])),
        ("64 KiB of labels", with(&long)),
        ("128 labels", with(&many)),
        ("300 pointers", ladder),
        ("no such label", with(&[0x40, 0])),
        ("the end amid a label", [&head(1)[..], b"\x3fxxxxxxxxxxxxx"].concat()),
        ("an alias to itself", [&head(1)[..], &ASKED, &tail(CNAME, &[0xc0, RECORD + 12])].concat()),
        (
            "a service in a ring",
            [&head(1)[..], &ASKED, &tail(HTTPS, &[0, 1, 0xc0, RECORD + 14])].concat(),
        ),
    ];
    for (what, bytes) in cases {
        assert!(bytes.len() <= 65_535, "{what}");
        check_refused(what, &bytes, AnswerFate::Malformed);
    }
}

#[test]
fn counts_and_lengths_that_lie() {
    let record = |kind, data: &[u8]| [&head(1)[..], &ASKED, &tail(kind, data)].concat();
    let mut short = record(A, &[192, 0, 2, 9]);
    short.pop();
    let mut questions = answer("a.test", "192.0.2.9");
    questions[4..6].copy_from_slice(&[0xff, 0xff]);
    let mut two_questions = answer("a.test", "192.0.2.9");
    two_questions[5] = 2;
    let all = [&head(0xffff)[..], &ASKED, &tail(A, &[192, 0, 2, 9])].concat();
    let mut authority = answer("a.test", "192.0.2.9");
    authority[8..10].copy_from_slice(&[0xff, 0xff]);
    let mut additional = answer("a.test", "192.0.2.9");
    additional[11] = 1;
    let cases = [
        ("a record too short", short),
        ("65,535 questions", questions),
        ("two questions where one is", two_questions),
        ("65,535 records", all),
        ("65,535 authority records", authority),
        ("a record that is not there", additional),
        ("A of five bytes", record(A, &[192, 0, 2, 9, 1])),
        ("A of three bytes", record(A, &[192, 0, 2])),
        ("AAAA of four bytes", record(28, &[192, 0, 2, 9])),
        ("an alias with something behind it", record(CNAME, &[0xc0, 12, 0])),
        ("an alias longer than its record", record(CNAME, b"\x09x")),
        ("SRV without a target", record(SRV, &[0, 1, 0, 2, 0, 80])),
        ("HTTPS without a target", record(HTTPS, &[0, 1])),
        ("hints of three bytes", record(HTTPS, &[0, 1, 0, 0, 4, 0, 3, 1, 2, 3])),
        ("hints longer than their record", record(HTTPS, &[0, 1, 0, 0, 4, 0xff, 0xff, 1, 2, 3, 4])),
        ("the header alone", head(0)[..12].to_vec()),
        ("half a header", head(0)[..6].to_vec()),
        ("nothing", Vec::new()),
    ];
    for (what, bytes) in cases {
        check_refused(what, &bytes, AnswerFate::Malformed);
    }
}

#[test]
fn more_records_than_are_looked_at() {
    let record = [&ASKED[..], &tail(A, &[192, 0, 2, 9])].concat();
    let records = (65_535 - head(0).len()) / record.len();
    let bytes = [head(u16::try_from(records).unwrap()), record.repeat(records)].concat();
    check_refused("64 KiB of addresses", &bytes, AnswerFate::TooManyRecords);
    let hints: Vec<u8> = [0, 1, 0, 0, 4, 0x80, 0].into_iter().chain([7; 0x8000]).collect();
    let bytes = [&head(1)[..], &ASKED, &tail(HTTPS, &hints)].concat();
    check_refused("32 KiB of hints", &bytes, AnswerFate::TooManyRecords);
    // Of types that say nothing of addresses they are passed over.
    let record = [&ASKED[..], &tail(16, &[0])].concat();
    let bytes = [&head(4001)[..], &record.repeat(4000), &ASKED, &tail(A, &[192, 0, 2, 9])].concat();
    let mut dns = dns();
    dns.observe(EventKind::DnsQuery, &facts(0), &query("a.test"), SCOPE);
    dns.observe(EventKind::DnsAnswer, &facts(1), &bytes, SCOPE);
    assert_eq!(known(&dns, "192.0.2.9", SECOND), ["a.test"]);
}

#[test]
fn cut_and_unwanted_messages_are_not_parsed() {
    let mut dns = dns();
    dns.observe(EventKind::DnsAnswer, &facts(1), &answer("a.test", "192.0.2.9"), SCOPE);
    // Header of an answer, then rubbish: nobody asked, so nobody looks.
    dns.observe(
        EventKind::DnsAnswer,
        &facts(1),
        &[0, 7, 0x80, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0],
        SCOPE,
    );
    check_answers(&dns.stats(), &[(AnswerFate::Unmatched, 2)]);
    dns.observe(EventKind::DnsQuery, &facts(2), &query("a.test"), SCOPE);
    let cut = DnsEvent { cut: 1, ..facts(3) };
    dns.observe(EventKind::DnsAnswer, &cut, &answer("a.test", "192.0.2.9"), SCOPE);
    check_answers(&dns.stats(), &[(AnswerFate::Unmatched, 2), (AnswerFate::Cut, 1)]);
    assert!(dns.entries().next().is_none());
}

#[test]
fn names_that_could_hurt_are_attached_as_text_that_cannot() {
    let hostile: [(&[u8], &str); 5] = [
        (b"\x1b]0;x\x07", "\\027]0;x\\007.a.test"),
        (b"a\r\nb: c", "a\\013\\010b:\\032c.a.test"),
        (b"\"},{\"", "\\034},{\\034.a.test"),
        (b"\xff\xfe\x00", "\\255\\254\\000.a.test"),
        (b"a.b\\", "a\\046b\\092.a.test"),
    ];
    for (label, want) in hostile {
        let asked = Name::from_labels([label, b"a", b"test"]).unwrap();
        let mut made = Made::answer("x", RecordType::A);
        made.0.queries[0].set_name(asked.clone());
        made.0.add_answer(Record::from_rdata(asked, 60, a("192.0.2.1")));
        let mut dns = dns();
        ask_and_answer(&mut dns, 0, &made);
        assert_eq!(known(&dns, "192.0.2.1", SECOND), [want]);
    }
}

#[test]
fn a_name_whose_text_is_too_long_names_nothing() {
    let asked = Name::from_labels([&[1; 63][..], b"test"]).unwrap();
    let mut made = Made::answer("x", RecordType::A);
    made.0.queries[0].set_name(asked.clone());
    made.0.add_answer(Record::from_rdata(asked, 60, a("192.0.2.1")));
    let mut dns = dns();
    ask_and_answer(&mut dns, 0, &made);
    check_answers(&dns.stats(), &[(AnswerFate::Unprintable, 1)]);
    assert!(dns.entries().next().is_none());
}

#[test]
fn a_ring_of_aliases_ends() {
    let mut dns = dns();
    let made = Made::answer("a.test", RecordType::A)
        .with("a.test", 60, cname("b.test"))
        .with("b.test", 60, cname("a.test"))
        .with("b.test", 60, cname("b.test"));
    ask_and_answer(&mut dns, 0, &made);
    check_answers(&dns.stats(), &[(AnswerFate::Negative, 1)]);
}
