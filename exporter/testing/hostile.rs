//! A workload that does its worst, for tests/kernel/hostile.rs.
//!
//! `hostile FOLDER NETNS KIND N`: joins the cgroup and the network namespace, does N of what KIND says against
//! sockets of its own, and is done:
//!
//! churn    connections that are opened and closed
//! resets   the same, closed with an RST
//! hold     connections that are all open at the same time
//! scan     connects to ports nobody listens on, and to addresses nobody answers from
//! syn      forged SYNs at a listener, from addresses that do not exist
//! rst      forged RSTs and FINs at a listener and at a connection that is open, and closes well afterwards; says
//!          its two addresses
//! options  forged segments with all the room for options in use, and behind chains of IPv6 headers

#[path = "forge.rs"]
mod forge;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use forge::{ACK, FIN, Forger, Forgery, RST, SYN};
use socket2::{Domain, Socket, Type};

type Outcome = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Who connects at the same time.
const THREADS: u32 = 2;
/// Routed to the loopback device by the test, and no address of this machine.
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 0);

fn main() -> Outcome {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let [folder, netns, kind, n] = *args.as_slice() else { return Err("see hostile.rs".into()) };
    std::fs::write(format!("{folder}/cgroup.procs"), "0")?;
    nix::sched::setns(std::fs::File::open(netns)?, nix::sched::CloneFlags::CLONE_NEWNET)?;
    let n = n.parse()?;
    match kind {
        "churn" => connect_many(n, false),
        "resets" => connect_many(n, true),
        "hold" => hold(n),
        "scan" => scan(n),
        "syn" => syn_flood(n),
        "rst" => forged_ends(n),
        "options" => options(n),
        _ => Err("see hostile.rs".into()),
    }
}

/// Somebody who accepts and closes, for ever.
fn serve(address: &str) -> std::io::Result<SocketAddr> {
    let address: SocketAddr = address.parse().expect("an address");
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    let listener = TcpListener::from(socket);
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Whatever the client did, it is over.
            drop(stream);
        }
    });
    Ok(address)
}

fn connect_many(n: u32, reset: bool) -> Outcome {
    let clients: Vec<_> = (0..THREADS)
        .map(|thread| {
            // Addresses of its own: ports of closed connections wait for a minute.
            std::thread::spawn(move || -> Outcome {
                for round in 0..n.div_ceil(THREADS).div_ceil(PORTS) {
                    let [high, low] = u16::try_from(1 + round)?.to_be_bytes();
                    let server = serve(&format!("127.{}.{high}.{low}:0", 10 + thread))?;
                    let left = n / THREADS - round * PORTS;
                    for _ in 0..left.min(PORTS) {
                        let stream = TcpStream::connect(server)?;
                        if reset {
                            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                        }
                    }
                }
                Ok(())
            })
        })
        .collect();
    for client in clients {
        client.join().map_err(|_| "a client panicked")??;
    }
    Ok(())
}

fn hold(n: u32) -> Outcome {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut open = Vec::new();
    for _ in 0..n {
        let client = TcpStream::connect(listener.local_addr()?)?;
        open.push((client, listener.accept()?.0));
    }
    Ok(())
}

/// Connections to one address and port: fewer than there are ports for them.
const PORTS: u32 = 20_000;

fn scan(n: u32) -> Outcome {
    for i in 0..n {
        // A silent one in fifty: it takes as little time, since nobody waits for the answer.
        if i % 50 == 0 {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            let to = SocketAddr::from((Ipv4Addr::from_bits(NOBODY.to_bits() + i), 80));
            // "In progress".
            let _ = socket.connect(&to.into());
        } else {
            let port = u16::try_from(1 + i % 30_000)?;
            // Refused.
            let _ = TcpStream::connect((Ipv4Addr::new(127, 0, 0, 9), port));
        }
    }
    Ok(())
}

fn syn_flood(n: u32) -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let forger = Forger::new()?;
    for i in 0..n {
        forger.send(&Forgery {
            src: (Ipv4Addr::from_bits(NOBODY.to_bits() + i), u16::try_from(1024 + i % 60_000)?)
                .into(),
            dst: listener.local_addr()?,
            flags: SYN,
            seq: i.wrapping_mul(2_654_435_761),
            ..Forgery::default()
        })?;
    }
    Ok(())
}

fn forged_ends(n: u32) -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (mut server, _) = listener.accept()?;
    let (near, far) = (client.local_addr()?, server.local_addr()?);
    let forger = Forger::new()?;
    for i in 0..n {
        let flags = if i % 2 == 0 { RST } else { FIN | ACK };
        let seq = i.wrapping_mul(2_654_435_761);
        // To the connection, to the listener from its client and from a stranger, to nobody.
        let stranger = SocketAddr::from((NOBODY, 4444));
        let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        for (src, dst) in [(far, near), (near, far), (stranger, far), (stranger, nobody)] {
            forger.send(&Forgery { src, dst, flags, seq, ack: !seq, ..Forgery::default() })?;
        }
    }
    client.write_all(b"hello")?;
    let mut room = [0; 5];
    server.read_exact(&mut room)?;
    server.write_all(b"world")?;
    client.read_exact(&mut room)?;
    // The listener stays until both ends are closed.
    drop(client);
    assert_eq!(server.read(&mut room)?, 0, "FIN");
    drop(server);
    println!("{near} {far}");
    Ok(())
}

fn options(n: u32) -> Outcome {
    let v4 = TcpListener::bind("127.0.0.1:0")?;
    let v6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0))?;
    let forger = Forger::new()?;
    for i in 0..n {
        let flags = [SYN, RST, FIN | ACK, SYN | FIN | RST][(i % 4) as usize];
        let port = u16::try_from(1024 + i % 60_000)?;
        for (src, dst) in [
            ((Ipv4Addr::from_bits(NOBODY.to_bits() + i), port).into(), v4.local_addr()?),
            ((Ipv6Addr::LOCALHOST, port).into(), v6.local_addr()?),
        ] {
            let long = Forgery { src, dst, flags, seq: i, ack: i, ip_options: 40, tcp_options: 40 };
            forger.send(&long)?;
        }
    }
    Ok(())
}
