//! A process on strings: makes and ends TCP connections as it is told, line by line on stdin.
//!
//! `puppet [--cgroup FOLDER] [--netns FILE]` joins both before it makes a socket. Each command answers
//! with one line: `ok ...` or `err WHAT`.
//!
//! listen ADDR            ok ID LOCAL
//! connect ADDR           ok ID LOCAL PEER
//! accept ID              ok ID LOCAL PEER
//! send ID N, recv ID N   ok
//! fill ID                ok      (sends until no more is taken)
//! drain ID               ok      (receives until the peer's FIN)
//! shutdown ID            ok      (FIN, and goes on reading)
//! linger0 ID             ok      (close will send an RST)
//! close ID               ok
//! run PROGRAM ARG...     ok OUTPUT, with its lines joined by spaces

use std::collections::HashMap;
use std::io::{BufRead as _, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

enum Socket {
    Listener(TcpListener),
    Stream(TcpStream),
}

type Answer = Result<String, Box<dyn std::error::Error>>;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    for option in args.chunks(2) {
        match option {
            [name, folder] if name == "--cgroup" => {
                std::fs::write(format!("{folder}/cgroup.procs"), "0").expect("join the cgroup");
            }
            [name, file] if name == "--netns" => {
                let file = std::fs::File::open(file).expect("open the network namespace");
                nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("setns");
            }
            other => panic!("unknown option {other:?}"),
        }
    }
    let mut sockets = HashMap::new();
    println!("ok ready");
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("stdin");
        let words: Vec<&str> = line.split_whitespace().collect();
        match obey(&words, &mut sockets) {
            Ok(answer) => println!("ok {answer}"),
            Err(error) => println!("err {error}"),
        }
        std::io::stdout().flush().expect("stdout");
    }
}

fn obey(words: &[&str], sockets: &mut HashMap<u32, Socket>) -> Answer {
    match words {
        ["listen", address] => {
            let listener = TcpListener::bind(address.parse::<SocketAddr>()?)?;
            let local = listener.local_addr()?;
            Ok(format!("{} {local}", add(sockets, Socket::Listener(listener))))
        }
        ["connect", address] => {
            stream(TcpStream::connect(address.parse::<SocketAddr>()?)?, sockets)
        }
        ["accept", id] => match sockets.get(&id.parse()?) {
            Some(Socket::Listener(listener)) => {
                let (accepted, _) = listener.accept()?;
                stream(accepted, sockets)
            }
            _ => Err("no listener".into()),
        },
        ["run", program, args @ ..] => {
            let output = std::process::Command::new(program).args(args).output()?;
            if !output.status.success() {
                return Err(format!("{}", output.status).into());
            }
            let text = String::from_utf8_lossy(&output.stdout);
            Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
        }
        ["close", id] => {
            sockets.remove(&id.parse()?).ok_or("no socket")?;
            Ok(String::new())
        }
        [verb, id, rest @ ..] => {
            let Some(Socket::Stream(stream)) = sockets.get_mut(&id.parse()?) else {
                return Err("no connection".into());
            };
            match (*verb, rest) {
                ("send", [n]) => stream.write_all(&vec![b's'; n.parse()?])?,
                ("recv", [n]) => stream.read_exact(&mut vec![0; n.parse()?])?,
                ("fill", []) => {
                    stream.set_nonblocking(true)?;
                    while stream.write(&[b'f'; 65536]).is_ok() {}
                    stream.set_nonblocking(false)?;
                }
                ("drain", []) => {
                    std::io::copy(stream, &mut std::io::sink())?;
                }
                ("shutdown", []) => stream.shutdown(Shutdown::Write)?,
                ("linger0", []) => {
                    socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO))?
                }
                _ => return Err("unknown command".into()),
            }
            Ok(String::new())
        }
        _ => Err("unknown command".into()),
    }
}

fn stream(stream: TcpStream, sockets: &mut HashMap<u32, Socket>) -> Answer {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
    Ok(format!("{} {local} {peer}", add(sockets, Socket::Stream(stream))))
}

fn add(sockets: &mut HashMap<u32, Socket>, socket: Socket) -> u32 {
    let id = (1..).find(|id| !sockets.contains_key(id)).expect("a free number");
    sockets.insert(id, socket);
    id
}
