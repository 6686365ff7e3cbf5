//! A process on strings: makes and ends TCP connections as it is told, line by line on stdin.
//!
//! `puppet [--cgroup FOLDER] [--netns FILE] [--resolv-conf FILE]` joins both before it makes a socket; the file
//! stands in for /etc/resolv.conf, for it and the programs it runs alone. Each command answers with one
//! line: `ok ...` or `err WHAT`.
//!
//! listen ADDR [OPTION...]         ok ID LOCAL        (options: backlog N, mptcp)
//! accept ID                       ok ID LOCAL PEER
//! connect ADDR [OPTION...]        ok ID LOCAL PEER   (options: from ADDR, mptcp)
//! connect-start ADDR [OPTION...]  ok ID LOCAL        (sends the SYN and does not wait)
//! connect-wait ID                 ok                 (waits for the answer; `err` says which)
//! fast-open ADDR N                ok ID LOCAL PEER   (connects with N bytes in the SYN)
//! reconnect ID ADDR               ok ID LOCAL PEER   (the same socket once more)
//! disconnect ID                   ok                 (connect(AF_UNSPEC))
//! send ID N, recv ID N            ok
//! exchange ID N M                 ok                 (sends N bytes while it receives M)
//! fill ID                         ok N               (sends until no more is taken)
//! drain ID                        ok N               (receives until the peer's FIN)
//! shutdown ID                     ok                 (FIN, and goes on reading)
//! linger0 ID                      ok                 (close will send an RST)
//! cork ID, uncork ID              ok                 (holds back segments that are not full)
//! user-timeout ID MS              ok
//! keepalive ID IDLE INTERVAL N    ok                 (seconds, seconds, probes)
//! info ID                         ok RTT MIN_RTT RETRANSMITS SENT RECEIVED (us, us, segments)
//! counts ID                       ok ACKNOWLEDGED RECEIVED UNACKNOWLEDGED (bytes, bytes, segments)
//! close ID                        ok
//! send-hex ID BYTES               ok                 (these bytes, in hexadecimal)
//! udp ADDR [OPTION...]            ok ID LOCAL        (options: to ADDR, which connects it; join GROUP)
//! udp-send ID ADDR BYTES          ok                 (one datagram)
//! udp-receive ID                  ok BYTES           (one datagram)
//! udp-look-up ID ADDR N           ok                 (asks ADDR for N names that differ, one by one)
//! udp-serve ADDR                  ok LOCAL           (answers each datagram by itself, with its bit QR set, from now on)
//! udp-ask ADDR N                  ok LOCAL           (one datagram of N bytes by sendto(), and its answer)
//! udp-ask-connected ADDR N        ok LOCAL           (the same by connect() and send())
//! run PROGRAM ARG...              ok OUTPUT, with its lines joined by spaces

mod datagram;
mod message;

use std::collections::HashMap;
use std::ffi::CString;
use std::io::{BufRead as _, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::libc;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, TcpKeepalive, Type};

/// The longest a command waits for the peer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes for one call of send or receive.
const CHUNK: usize = 1 << 20;

type Failure = Box<dyn std::error::Error>;
type Answer = Result<String, Failure>;
type Sockets = HashMap<u32, Socket>;

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
            [name, file] if name == "--resolv-conf" => {
                stand_in(file, "/etc/resolv.conf").expect("mount over /etc/resolv.conf");
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

/// Shows `file` where `path` is, to this process and those it starts: in a mount namespace of their own.
fn stand_in(file: &str, path: &str) -> Result<(), Failure> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    // Else it would be seen in the namespace that this one was copied from.
    mount(None, "/", libc::MS_REC | libc::MS_PRIVATE)?;
    mount(Some(file), path, libc::MS_BIND)
}

fn mount(source: Option<&str>, target: &str, flags: libc::c_ulong) -> Result<(), Failure> {
    let source = source.map(CString::new).transpose()?;
    let target = CString::new(target)?;
    let source = source.as_ref().map_or(std::ptr::null(), |s| s.as_ptr());
    // SAFETY: both are strings or null, and a mount of these kinds has neither a type nor data.
    let failed =
        unsafe { libc::mount(source, target.as_ptr(), std::ptr::null(), flags, std::ptr::null()) };
    if failed == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().into()) }
}

fn obey(words: &[&str], sockets: &mut Sockets) -> Answer {
    match words {
        ["listen", address, options @ ..] => {
            let options = Options::parse(options)?;
            let address = address.parse()?;
            let listener = options.socket(address)?;
            listener.set_reuse_address(true)?;
            listener.set_read_timeout(Some(PATIENCE))?;
            listener.bind(&address.into())?;
            listener.listen(options.backlog.unwrap_or(128))?;
            introduce(listener, sockets)
        }
        ["accept", id] => {
            let (accepted, _) = find(sockets, id)?.accept()?;
            introduce_connection(accepted, sockets)
        }
        ["connect", address, options @ ..] => {
            let address = address.parse()?;
            let socket = Options::parse(options)?.client(address)?;
            socket.connect(&address.into())?;
            introduce_connection(socket, sockets)
        }
        ["connect-start", address, options @ ..] => {
            let address = address.parse()?;
            let socket = Options::parse(options)?.client(address)?;
            start_to_connect(&socket, address)?;
            introduce(socket, sockets)
        }
        ["fast-open", address, n] => {
            let address: SocketAddr = address.parse()?;
            let socket = Options::default().client(address)?;
            let data = vec![b'o'; n.parse()?];
            let sent = socket.send_to_with_flags(&data, &address.into(), libc::MSG_FASTOPEN)?;
            if sent != data.len() {
                return Err(format!("the SYN took {sent} bytes").into());
            }
            introduce_connection(socket, sockets)
        }
        ["udp", address, options @ ..] => {
            introduce(datagram::open(address.parse()?, options)?, sockets)
        }
        ["close", id] => {
            sockets.remove(&id.parse()?).ok_or("no socket")?;
            Ok(String::new())
        }
        ["udp-serve", address] => {
            let socket = UdpSocket::bind(address)?;
            let local = socket.local_addr()?;
            std::thread::spawn(move || serve_datagrams(&socket));
            Ok(local.to_string())
        }
        ["udp-ask", address, n] => ask_by_datagram(address.parse()?, n.parse()?, false),
        ["udp-ask-connected", address, n] => ask_by_datagram(address.parse()?, n.parse()?, true),
        ["run", program, args @ ..] => {
            let output = std::process::Command::new(program).args(args).output()?;
            if !output.status.success() {
                return Err(format!("{}", output.status).into());
            }
            let text = String::from_utf8_lossy(&output.stdout);
            Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
        }
        [verb, id, rest @ ..] => obey_on(find(sockets, id)?, id, verb, rest),
        _ => Err("unknown command".into()),
    }
}

/// Where the bit QR of a DNS message lies (RFC 1035, section 4.1.1).
const QR_AT: usize = 2;
const QR: u8 = 0x80;
/// More than a datagram holds.
const DATAGRAM: usize = 1 << 16;

fn serve_datagrams(socket: &UdpSocket) {
    let mut data = vec![0; DATAGRAM];
    while let Ok((n, from)) = socket.recv_from(&mut data) {
        if let Some(flags) = data[..n].get_mut(QR_AT) {
            *flags |= QR;
        }
        // A client that is gone already.
        let _ = socket.send_to(&data[..n], from);
    }
}

/// A datagram of `n` bytes, each the low bits of its place, QR not set; and its answer.
fn ask_by_datagram(server: SocketAddr, n: usize, is_connected: bool) -> Answer {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let message: Vec<u8> = (0..n).map(|i| i as u8).collect();
    let mut answer = vec![0; DATAGRAM];
    let got = if is_connected {
        socket.connect(server)?;
        socket.send(&message)?;
        socket.recv(&mut answer)?
    } else {
        socket.send_to(&message, server)?;
        let (got, from) = socket.recv_from(&mut answer)?;
        if from != server {
            return Err(format!("{from} answers, and not {server}").into());
        }
        got
    };
    if got != n {
        return Err(format!("{n} bytes sent, {got} back").into());
    }
    Ok(socket.local_addr()?.to_string())
}

/// A command on a socket that is there.
fn obey_on(mut socket: &Socket, id: &str, verb: &str, rest: &[&str]) -> Answer {
    match (verb, rest) {
        ("connect-wait", []) => wait_until_connected(socket)?,
        ("reconnect", [address]) => {
            let address = address.parse()?;
            start_to_connect(socket, address).or_else(|error| match error.raw_os_error() {
                // An attempt that failed in the background is reported once more, and then forgotten.
                Some(libc::ECONNABORTED) => start_to_connect(socket, address),
                _ => Err(error),
            })?;
            wait_until_connected(socket)?;
            return Ok(format!(
                "{id} {} {}",
                show(socket.local_addr()?)?,
                show(socket.peer_addr()?)?
            ));
        }
        ("disconnect", []) => disconnect(socket)?,
        ("send", [n]) => send(socket, n.parse()?)?,
        ("send-hex", [bytes]) => socket.write_all(&datagram::unhex(bytes)?)?,
        ("udp-send", [to, bytes]) => datagram::send(socket, to, bytes)?,
        ("udp-receive", []) => return datagram::receive(socket),
        ("udp-look-up", [server, n]) => datagram::look_up_many(socket, server, n.parse()?)?,
        ("recv", [n]) => receive(socket, n.parse()?)?,
        ("exchange", [n, m]) => exchange(socket, n.parse()?, m.parse()?)?,
        ("fill", []) => {
            socket.set_nonblocking(true)?;
            let mut sum = 0;
            while let Ok(n) = socket.write(&[b'f'; 65536]) {
                sum += n;
            }
            socket.set_nonblocking(false)?;
            return Ok(sum.to_string());
        }
        ("drain", []) => return Ok(std::io::copy(&mut socket, &mut std::io::sink())?.to_string()),
        ("shutdown", []) => socket.shutdown(Shutdown::Write)?,
        ("linger0", []) => socket.set_linger(Some(Duration::ZERO))?,
        ("cork", []) => socket.set_tcp_cork(true)?,
        ("uncork", []) => socket.set_tcp_cork(false)?,
        ("user-timeout", [ms]) => {
            socket.set_tcp_user_timeout(Some(Duration::from_millis(ms.parse()?)))?;
        }
        ("keepalive", [idle, interval, n]) => {
            let seconds = |word: &str| word.parse().map(Duration::from_secs);
            let keepalive = TcpKeepalive::new()
                .with_time(seconds(idle)?)
                .with_interval(seconds(interval)?)
                .with_retries(n.parse()?);
            socket.set_tcp_keepalive(&keepalive)?;
        }
        ("info", []) => {
            let info = tcp_info(socket)?;
            return Ok(format!(
                "{} {} {} {} {}",
                info.tcpi_rtt,
                info.tcpi_min_rtt,
                info.tcpi_total_retrans,
                info.tcpi_segs_out,
                info.tcpi_segs_in
            ));
        }
        ("counts", []) => {
            let info = tcp_info(socket)?;
            let (acked, received) = (info.tcpi_bytes_acked, info.tcpi_bytes_received);
            return Ok(format!("{acked} {received} {}", info.tcpi_unacked));
        }
        _ => return Err("unknown command".into()),
    }
    Ok(String::new())
}

/// What follows an address.
#[derive(Default)]
struct Options {
    from: Option<SocketAddr>,
    backlog: Option<i32>,
    mptcp: bool,
}

impl Options {
    fn parse(mut words: &[&str]) -> Result<Self, Failure> {
        let mut options = Self::default();
        loop {
            match words {
                [] => return Ok(options),
                ["from", address, rest @ ..] => {
                    options.from = Some(address.parse()?);
                    words = rest;
                }
                ["backlog", n, rest @ ..] => {
                    options.backlog = Some(n.parse()?);
                    words = rest;
                }
                ["mptcp", rest @ ..] => {
                    options.mptcp = true;
                    words = rest;
                }
                _ => return Err(format!("unknown option {words:?}").into()),
            }
        }
    }

    fn socket(&self, address: SocketAddr) -> std::io::Result<Socket> {
        let protocol = if self.mptcp { Protocol::MPTCP } else { Protocol::TCP };
        Socket::new(Domain::for_address(address), Type::STREAM, Some(protocol))
    }

    fn client(&self, to: SocketAddr) -> std::io::Result<Socket> {
        let socket = self.socket(to)?;
        if let Some(from) = self.from {
            socket.set_reuse_address(true)?;
            socket.bind(&from.into())?;
        }
        Ok(socket)
    }
}

fn find<'a>(sockets: &'a Sockets, id: &str) -> Result<&'a Socket, Failure> {
    Ok(sockets.get(&id.parse()?).ok_or("no socket")?)
}

/// Gives a socket its number.
fn introduce(socket: Socket, sockets: &mut Sockets) -> Answer {
    let local = show(socket.local_addr()?)?;
    Ok(format!("{} {local}", add(socket, sockets)))
}

fn introduce_connection(socket: Socket, sockets: &mut Sockets) -> Answer {
    get_ready(&socket)?;
    let (local, peer) = (show(socket.local_addr()?)?, show(socket.peer_addr()?)?);
    Ok(format!("{} {local} {peer}", add(socket, sockets)))
}

fn get_ready(socket: &Socket) -> std::io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))
}

fn add(socket: Socket, sockets: &mut Sockets) -> u32 {
    let id = (1..).find(|id| !sockets.contains_key(id)).expect("a free number");
    sockets.insert(id, socket);
    id
}

fn show(address: SockAddr) -> Answer {
    Ok(address.as_socket().ok_or("no IP address")?.to_string())
}

fn start_to_connect(socket: &Socket, to: SocketAddr) -> std::io::Result<()> {
    socket.set_nonblocking(true)?;
    let started = socket.connect(&to.into());
    socket.set_nonblocking(false)?;
    match started {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(()),
    }
}

/// Until the SYN is answered, or will not be.
fn wait_until_connected(socket: &Socket) -> Result<(), Failure> {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    let patience = i32::try_from(PATIENCE.as_millis())?;
    // SAFETY: one pollfd, and it outlives the call.
    let ready = unsafe { libc::poll(&raw mut poll, 1, patience) };
    if ready != 1 {
        return Err("no answer".into());
    }
    match socket.take_error()? {
        Some(error) => Err(error.into()),
        None => Ok(get_ready(socket)?),
    }
}

/// connect(AF_UNSPEC): ends the connection and leaves the socket for another one.
fn disconnect(socket: &Socket) -> std::io::Result<()> {
    let nowhere = SockAddrStorage::zeroed();
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr>()).expect("a small number");
    // SAFETY: the family 0, AF_UNSPEC, is valid with any content, and the storage is longer.
    let nowhere = unsafe { SockAddr::new(nowhere, length) };
    socket.connect(&nowhere)
}

fn send(mut socket: &Socket, mut n: usize) -> std::io::Result<()> {
    let data = vec![b's'; n.min(CHUNK)];
    while n > 0 {
        let sent = socket.write(&data[..n.min(CHUNK)])?;
        n -= sent;
    }
    Ok(())
}

fn receive(mut socket: &Socket, mut n: usize) -> std::io::Result<()> {
    let mut data = vec![0; n.min(CHUNK)];
    while n > 0 {
        let wanted = n.min(CHUNK);
        match socket.read(&mut data[..wanted])? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            got => n -= got,
        }
    }
    Ok(())
}

/// Both ways at the same time.
fn exchange(socket: &Socket, to_send: usize, to_receive: usize) -> std::io::Result<()> {
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| send(socket, to_send));
        receive(socket, to_receive)?;
        sending.join().expect("the sending thread")
    })
}

/// What the kernel tells an application of its connection.
fn tcp_info(socket: &Socket) -> Result<libc::tcp_info, Failure> {
    // SAFETY: all zeros is a valid tcp_info.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>())?;
    // SAFETY: the kernel writes at most `length` bytes.
    let error = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if error != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(info)
}
