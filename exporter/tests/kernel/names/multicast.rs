//! Names over multicast DNS (RFC 6762): only where they were asked for in the configuration.

use std::net::{Ipv4Addr, UdpSocket};

use super::super::support::{Cgroup, can_run};
use super::attacks::{A, address_record, answer};
use super::message::{hex, name_bytes, query};
use super::{Site, counted, names, watch};

const GROUP: &str = "224.0.0.251:5353";
/// The class IN, and that the sender owns the record (RFC 6762, section 10.2).
const CACHE_FLUSH: u8 = 0x80;

/// A responder's socket, in the group.
fn responder(site: &Site) -> UdpSocket {
    site.netns.ip(&["link", "set", "lo", "multicast", "on"]);
    site.netns.ip(&["route", "add", "224.0.0.0/4", "dev", "lo"]);
    let socket = site.netns.inside(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&std::net::SocketAddr::from(([0, 0, 0, 0], 5353)).into())?;
        socket.join_multicast_v4(&[224, 0, 0, 251].into(), &Ipv4Addr::LOCALHOST)?;
        socket.set_read_timeout(Some(super::super::support::PATIENCE))?;
        Ok::<UdpSocket, std::io::Error>(socket.into())
    });
    socket.expect("a multicast socket")
}

#[test]
fn names_of_the_link_are_learnt_where_that_is_switched_on() {
    if !can_run("names_of_the_link_are_learnt_where_that_is_switched_on", &["ip"]) {
        return;
    }
    let mut site = Site::without_server();
    let responder = responder(&site);
    let cgroup = Cgroup::new();
    let on = watch(&[&cgroup], &["dns.mdns=true"]);
    let off = watch(&[&cgroup], &[]);
    let mut puppet = site.puppet(&cgroup);
    let mut room = [0; 512];

    // One-shot, as `dig @224.0.0.251 -p 5353` asks: answered to the asker alone (section 6.7).
    let id = puppet.tell("udp 127.0.0.1:0").split(' ').next().unwrap().to_owned();
    puppet.tell(&format!("udp-send {id} {GROUP} {}", hex(&query(0x77, "printer.local", A))));
    let (n, asker) = responder.recv_from(&mut room).unwrap();
    let owner = name_bytes("printer.local");
    let legacy = answer(&room[..n], &[address_record(&owner, [127, 0, 6, 1], 60)]);
    responder.send_to(&legacy, asker).unwrap();
    assert_eq!(puppet.tell(&format!("udp-receive {id}")), hex(&legacy));

    // A full querier: from port 5353, with id 0, and the answer goes to the group, without the question.
    let id = puppet.tell("udp 0.0.0.0:5353 join 224.0.0.251");
    let id = id.split(' ').next().unwrap().to_owned();
    puppet.tell(&format!("udp-send {id} {GROUP} {}", hex(&query(0, "scanner.local", A))));
    let (n, _) = responder.recv_from(&mut room).unwrap();
    assert_eq!(room[..n], query(0, "scanner.local", A)[..]);
    for (name, ip) in [("scanner.local", [127, 0, 6, 2]), ("unasked.local", [127, 0, 6, 3])] {
        let mut record = address_record(&name_bytes(name), ip, 60);
        record[name_bytes(name).len() + 2] |= CACHE_FLUSH;
        let mut message = vec![0, 0, 0x84, 0, 0, 0, 0, 1, 0, 0, 0, 0];
        message.extend(record);
        responder.send_to(&message, GROUP).unwrap();
    }

    let expected: [(&str, &[&str]); 3] =
        [("127.0.6.1", &["printer.local"]), ("127.0.6.2", &["scanner.local"]), ("127.0.6.3", &[])];
    for (ip, expected) in expected {
        let visit = site.visit(&mut puppet, ip);
        assert_eq!(names(&on, &visit), expected, "{ip}");
        assert_eq!(names(&off, &visit), [""; 0], "{ip}");
    }
    let (_, messages) = on.stop();
    assert_eq!(counted(&messages, "dns messages", "learnt"), 2, "{messages}");
    let (_, messages) = off.stop();
    assert_eq!(counted(&messages, "dns messages", "seen"), 0, "nothing is copied: {messages}");
}
