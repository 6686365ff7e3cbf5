//! A puppet's UDP sockets: DNS messages to the byte, which no resolver would send.

use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

use super::message::{hex, query};
use super::{Failure, PATIENCE};

/// The longest datagram.
const LONGEST: usize = 65_535;
/// The type of an address record (RFC 1035, section 3.2.2).
const A: u16 = 1;

/// A UDP socket at `address`, with options.
pub(crate) fn open(address: SocketAddr, options: &[&str]) -> Result<Socket, Failure> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    match options {
        [] => {}
        ["to", peer] => {
            let peer: SocketAddr = peer.parse()?;
            socket.connect(&peer.into())?;
        }
        ["join", group] => match (group.parse()?, address.ip()) {
            (IpAddr::V4(group), IpAddr::V4(_)) => {
                socket.join_multicast_v4(&group, &std::net::Ipv4Addr::LOCALHOST)?;
            }
            _ => return Err("groups of IPv4 only".into()),
        },
        _ => return Err(format!("unknown option {options:?}").into()),
    }
    Ok(socket)
}

/// Sends one datagram.
pub(crate) fn send(socket: &Socket, to: &str, hex: &str) -> Result<(), Failure> {
    let to: SocketAddr = to.parse()?;
    let bytes = unhex(hex)?;
    let sent = match socket.peer_addr() {
        Ok(_) => socket.send(&bytes)?,
        Err(_) => socket.send_to(&bytes, &to.into())?,
    };
    if sent == bytes.len() { Ok(()) } else { Err(format!("{sent} bytes were sent").into()) }
}

/// Waits for one datagram.
pub(crate) fn receive(socket: &Socket) -> Result<String, Failure> {
    Ok(hex(&take(socket)?))
}

/// Looks up `n` names that differ, one after the other.
pub(crate) fn look_up_many(socket: &Socket, server: &str, n: u32) -> Result<(), Failure> {
    let server: SocketAddr = server.parse()?;
    for i in 0..n {
        let id = u16::try_from(i & 0xffff)?;
        socket.send_to(&query(id, &format!("n{i:08}.flood.test"), A), &server.into())?;
        let answer = take(socket)?;
        if answer.get(..2) != Some(&id.to_be_bytes()) {
            return Err(format!("another answer than that to query {i}").into());
        }
    }
    Ok(())
}

/// The bytes that `hex` says.
pub(crate) fn unhex(hex: &str) -> Result<Vec<u8>, Failure> {
    let byte = |pair: &[u8]| -> Result<u8, Failure> {
        Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?)
    };
    hex.as_bytes().chunks(2).map(byte).collect()
}

fn take(socket: &Socket) -> Result<Vec<u8>, Failure> {
    let mut room = vec![MaybeUninit::uninit(); LONGEST];
    let n = socket.recv(&mut room)?;
    // SAFETY: the kernel has written the first `n` bytes.
    Ok(room[..n].iter().map(|byte| unsafe { byte.assume_init() }).collect())
}
