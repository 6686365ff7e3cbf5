//! Connections as fast as they can be opened and closed, each as planned (plan.rs).
//!
//! `load FOLDER NETNS server THREADS`: joins the cgroup and the network namespace, says `ok` and serves until it is killed.
//! `load FOLDER NETNS client THREADS ROUND FROM TO`: makes those of these numbers, and is done.

#[path = "plan.rs"]
mod plan;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, atomic};

use plan::{Planned, SERVER};
use socket2::{Domain, Socket, Type};

/// More than the longest of what one side sends.
const BUFFER: usize = 4096;

type Outcome = Result<(), Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Outcome {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let [folder, netns, rest @ ..] = args.as_slice() else { return Err("see load.rs".into()) };
    std::fs::write(format!("{folder}/cgroup.procs"), "0")?;
    nix::sched::setns(std::fs::File::open(netns)?, nix::sched::CloneFlags::CLONE_NEWNET)?;
    let (done, outcomes) = channel();
    let threads = match rest {
        ["server", threads] => serve(threads.parse()?, &done)?,
        ["client", threads, round, from, to] => {
            connect(threads.parse()?, round.parse()?, from.parse()?..to.parse()?, &done)
        }
        _ => return Err("see load.rs".into()),
    };
    // The first failure ends the process.
    outcomes.iter().take(threads).collect()
}

/// Threads that accept; none of them ends but by a failure.
fn serve(threads: usize, done: &Sender<Outcome>) -> std::io::Result<usize> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SERVER.into())?;
    socket.listen(1024)?;
    let listener = Arc::new(TcpListener::from(socket));
    for _ in 0..threads {
        let (listener, done) = (Arc::clone(&listener), done.clone());
        std::thread::spawn(move || {
            loop {
                let outcome =
                    listener.accept().map_err(Into::into).and_then(|(s, peer)| answer(s, peer));
                if outcome.is_err() {
                    let _ = done.send(outcome);
                    return;
                }
            }
        });
    }
    println!("ok");
    Ok(threads)
}

fn answer(mut stream: TcpStream, peer: SocketAddr) -> Outcome {
    let planned = Planned::of_client(peer).ok_or_else(|| format!("{peer} is nobody's"))?;
    let mut buffer = [0; BUFFER];
    stream.read_exact(&mut buffer[..planned.up()])?;
    stream.write_all(&buffer[..planned.down()])?;
    if planned.client_closes() { end_of_stream(stream) } else { Ok(()) }
}

/// Threads that connect, until the connections of these numbers have been made.
fn connect(threads: usize, round: u8, numbers: Range<u32>, done: &Sender<Outcome>) -> usize {
    let next = Arc::new(atomic::AtomicU32::new(numbers.start));
    for _ in 0..threads {
        let (next, done) = (Arc::clone(&next), done.clone());
        std::thread::spawn(move || {
            let mut outcome = Ok(());
            while outcome.is_ok() {
                let number = next.fetch_add(1, atomic::Ordering::Relaxed);
                if number >= numbers.end {
                    break;
                }
                outcome = ask(Planned { round, number });
            }
            let _ = done.send(outcome);
        });
    }
    threads
}

fn ask(planned: Planned) -> Outcome {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&planned.client().into())?;
    socket.connect(&SERVER.into())?;
    let mut stream = TcpStream::from(socket);
    let mut buffer = [0; BUFFER];
    stream.write_all(&buffer[..planned.up()])?;
    stream.read_exact(&mut buffer[..planned.down()])?;
    if planned.client_closes() { Ok(()) } else { end_of_stream(stream) }
}

/// Reads the peer's FIN, after which dropping the stream sends ours.
fn end_of_stream(mut stream: TcpStream) -> Outcome {
    match stream.read(&mut [0])? {
        0 => Ok(()),
        _ => Err("more bytes than planned".into()),
    }
}
