//! Answers that are wrong inside, from the very server asked: they name nothing, are counted, and harm
//! nobody. Over UDP, and over TCP up to the longest message.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use super::super::support::{Cgroup, Puppet, can_run};
use super::attacks::{A, SERVER, address_record, answer, naming, server, udp};
use super::message::{hex, name_bytes, query};
use super::{Site, counted, names, watch};

/// The address that each of them tells.
const LIE: [u8; 4] = [127, 66, 0, 9];
const QUESTION: &str = "asked.test";
/// Where the records of an answer to it begin.
const RECORDS: usize = 12 + 12 + 4;

/// An alias (RFC 1035, section 3.3.1).
fn alias(owner: &[u8], target: &[u8]) -> Vec<u8> {
    let mut record = owner.to_vec();
    record.extend([0, 5, 0, 1, 0, 0, 0, 60]);
    record.extend(u16::try_from(target.len()).expect("a name").to_be_bytes());
    record.extend(target);
    record
}

/// What is wrong, and the message.
fn broken(question: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let here = u8::try_from(RECORDS).expect("a small number");
    let good = naming(question, LIE);
    let mut lying = good.clone();
    lying[6..8].copy_from_slice(&[0xff, 0xff]);
    let [x, y] = [name_bytes("x.test"), name_bytes("y.test")];
    let tell = |owner: &[u8]| address_record(owner, LIE, 60);
    let pointer = &[0xc0, 12][..];
    let mut endless = vec![alias(pointer, &name_bytes("h0.test"))];
    for i in 0..40 {
        let [from, to] = [i, i + 1].map(|i| name_bytes(&format!("h{i}.test")));
        endless.push(alias(&from, &to));
    }
    endless.push(tell(&name_bytes("h40.test")));
    // 20 labels of 15 bytes: 320 bytes, and 255 are allowed (RFC 1035, section 2.3.4).
    let too_long = name_bytes(&["fifteen-letters"; 20].join("."));
    let mut no_question = good.clone();
    no_question.drain(12..RECORDS);
    no_question[5] = 0;
    vec![
        ("a pointer to itself", answer(question, &[tell(&[0xc0, here])])),
        ("a label and a pointer back to it", answer(question, &[tell(&[1, b'a', 0xc0, here])])),
        ("a pointer forward", answer(question, &[tell(&[0xc0, here + 2, 0])])),
        ("a pointer past the end", answer(question, &[tell(&[0xff, 0xff])])),
        ("counts that lie", lying),
        ("cut within a record", good[..good.len() - 3].to_vec()),
        ("a name too long", answer(question, &[alias(pointer, &too_long), tell(&too_long)])),
        (
            "aliases in a circle",
            answer(question, &[alias(pointer, &x), alias(&x, pointer), tell(&y)]),
        ),
        ("a chain of 41 aliases", answer(question, &endless)),
        ("no question", no_question),
        ("a header alone", good[..12].to_vec()),
        ("less than a header", good[..7].to_vec()),
    ]
}

fn check_nameless(site: &mut Site, asker: &mut Puppet, flowend: &super::Flowend, what: &str) {
    let visit = site.visit(asker, "127.66.0.9");
    assert_eq!(names(flowend, &visit), [""; 0], "{what}");
}

#[test]
fn broken_answers_name_nothing_and_are_counted() {
    if !can_run("broken_answers_name_nothing_and_are_counted", &["ip"]) {
        return;
    }
    let mut site = Site::without_server();
    let cgroup = Cgroup::new();
    let flowend = watch(&[&cgroup], &[]);
    let mut asker = site.puppet(&cgroup);
    let server = server(&site);
    let (id, from) = udp(&mut asker, "");
    let mut sent = 0;
    for (at, (what, _)) in (1_u16..).zip(broken(&query(0, QUESTION, A))) {
        let question = query(at, QUESTION, A);
        asker.tell(&format!("udp-send {id} {SERVER} {}", hex(&question)));
        server.recv_from(&mut [0; 512]).unwrap();
        let message = broken(&question).swap_remove(usize::from(at) - 1).1;
        server.send_to(&message, from).unwrap();
        check_nameless(&mut site, &mut asker, &flowend, what);
        // One more after each: nothing that came before disturbs it.
        let question = query(0x4000 + at, "good.test", A);
        asker.tell(&format!("udp-send {id} {SERVER} {}", hex(&question)));
        server.recv_from(&mut [0; 512]).unwrap();
        server.send_to(&naming(&question, [127, 0, 8, u8::try_from(at).unwrap()]), from).unwrap();
        let visit = site.visit(&mut asker, &format!("127.0.8.{at}"));
        assert_eq!(names(&flowend, &visit), ["good.test"], "after {what}");
        sent += 1;
    }
    let (_, messages) = flowend.stop();
    // What is less than a header is no message: the probe leaves it alone.
    assert_eq!(counted(&messages, "dns messages", "seen"), 4 * sent - 1, "{messages}");
    assert_eq!(counted(&messages, "dns messages", "learnt"), sent, "{messages}");
}

/// Takes a query over TCP, sends this as the answer's bytes, and the client reads them all.
fn over_tcp(asker: &mut Puppet, listener: &TcpListener, question: &[u8], messages: &[Vec<u8>]) {
    let framed = |message: &[u8]| {
        let length = u16::try_from(message.len()).expect("at most 65,535 bytes");
        [&length.to_be_bytes()[..], message].concat()
    };
    let socket = asker.connect(SERVER.parse().unwrap());
    let (mut stream, _) = listener.accept().unwrap();
    asker.tell(&format!("send-hex {} {}", socket.id, hex(&framed(question))));
    let mut room = vec![0; question.len() + 2];
    stream.read_exact(&mut room).unwrap();
    assert_eq!(room, framed(question));
    for message in messages {
        let bytes = framed(message);
        stream.write_all(&bytes).unwrap();
        asker.recv(socket, bytes.len());
    }
    drop(stream);
    assert_eq!(asker.drain(socket), 0);
    asker.close(socket);
}

#[test]
fn the_longest_message_over_tcp_is_bounded_and_the_next_one_names() {
    if !can_run("the_longest_message_over_tcp_is_bounded_and_the_next_one_names", &["ip"]) {
        return;
    }
    let mut site = Site::without_server();
    let cgroup = Cgroup::new();
    let flowend = watch(&[&cgroup], &[]);
    let mut asker = site.puppet(&cgroup);
    let listener = site.netns.inside(|| TcpListener::bind(SERVER)).unwrap();

    // Labels to the last byte: a name without end, in a message of 65,535 bytes.
    let question = query(7, QUESTION, A);
    let mut labels = answer(&question, &[Vec::new()]);
    while labels.len() < usize::from(u16::MAX) {
        let room = usize::from(u16::MAX) - labels.len() - 1;
        let label = room.min(63);
        labels.push(u8::try_from(label).unwrap());
        labels.extend(std::iter::repeat_n(b'l', label));
    }
    // Right behind it, on the same connection, the answer.
    over_tcp(&mut asker, &listener, &question, &[labels, naming(&question, [127, 0, 8, 100])]);
    let visit = site.visit(&mut asker, "127.0.8.100");
    assert_eq!(names(&flowend, &visit), [QUESTION], "a broken answer took its query away");

    let question = query(8, "next.test", A);
    over_tcp(&mut asker, &listener, &question, &[naming(&question, [127, 0, 8, 101])]);
    let visit = site.visit(&mut asker, "127.0.8.101");
    assert_eq!(names(&flowend, &visit), ["next.test"]);
    let (_, messages) = flowend.stop();
    assert_eq!(counted(&messages, "dns messages", "learnt"), 2, "{messages}");
    assert_eq!(counted(&messages, "dns messages", "malformed"), 1, "{messages}");
    assert_eq!(counted(&messages, "dns messages", "seen"), 5, "{messages}");
}
