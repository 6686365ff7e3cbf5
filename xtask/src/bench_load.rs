//! The process that makes the connections of `bench-connection`, in a network namespace of its own.
//!
//! A line on stdin is `FOLDER THREADS CONNECTIONS`: it joins that cgroup, makes the connections one after the
//! other, both ends in one thread or a client's and a server's, and says the nanoseconds of CPU that they took.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::unistd::Pid;

use crate::bench::own_cpu;

/// The name of this command of xtask.
pub(crate) const COMMAND: &str = "bench-load";

const REQUEST: usize = 100;
const RESPONSE: usize = 1000;

/// The process, as the bench has it.
pub(crate) struct Load {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Load {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe().context("own path")?)
            .arg(COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take().context("no stdin")?;
        let stdout = BufReader::new(child.stdout.take().context("no stdout")?);
        Ok(Self { child, stdin, stdout })
    }

    /// Makes so many connections in this cgroup; nanoseconds of CPU for each.
    pub(crate) fn connect(
        &mut self,
        folder: &std::path::Path,
        threads: usize,
        connections: usize,
    ) -> anyhow::Result<f64> {
        writeln!(self.stdin, "{} {threads} {connections}", folder.display())?;
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        let ns: f64 = line.trim().parse().context("the load has failed; see above")?;
        Ok(ns / connections as f64)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// This process and those that it starts from now on run on this core alone.
pub(crate) fn pin(core: usize) -> anyhow::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &cores)
        .with_context(|| format!("core {core}: this bench needs two cores"))
}

/// The process itself.
pub(crate) fn run() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("ip")?;
    ensure!(up.success(), "ip link set lo up: {up}");
    // Past this many the kernel would end connections in another way.
    std::fs::write("/proc/sys/net/ipv4/tcp_max_tw_buckets", "1000000")?;
    for line in std::io::stdin().lines() {
        let line = line?;
        let [folder, threads, connections] = line.split(' ').collect::<Vec<_>>()[..] else {
            bail!("\"{line}\" is not FOLDER THREADS CONNECTIONS");
        };
        std::fs::write(format!("{folder}/cgroup.procs"), "0")?;
        // A port of its own for each batch, so that none is in TIME-WAIT.
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (address, connections) = (listener.local_addr()?, connections.parse()?);
        let before = own_cpu()?;
        match threads {
            "1" => in_one_thread(&listener, address, connections)?,
            _ => in_two_threads(listener, address, connections)?,
        }
        println!("{}", (own_cpu()? - before).as_nanos());
    }
    Ok(())
}

/// Nobody waits for anybody: what the kernel's TCP takes, and little else.
fn in_one_thread(
    listener: &TcpListener,
    address: SocketAddr,
    connections: usize,
) -> anyhow::Result<()> {
    for _ in 0..connections {
        let mut client = TcpStream::connect(address)?;
        let (mut server, _) = listener.accept()?;
        client.write_all(&[0; REQUEST])?;
        server.read_exact(&mut [0; REQUEST])?;
        server.write_all(&[0; RESPONSE])?;
        client.read_exact(&mut [0; RESPONSE])?;
        drop(client);
        ensure!(server.read(&mut [0])? == 0, "more than was sent");
    }
    Ok(())
}

/// As it is in life: each end sleeps until the other one has done something.
fn in_two_threads(
    listener: TcpListener,
    address: SocketAddr,
    connections: usize,
) -> anyhow::Result<()> {
    let server = std::thread::spawn(move || -> std::io::Result<()> {
        for _ in 0..connections {
            let (mut server, _) = listener.accept()?;
            server.read_exact(&mut [0; REQUEST])?;
            server.write_all(&[0; RESPONSE])?;
            let _ = server.read(&mut [0])?;
        }
        Ok(())
    });
    for _ in 0..connections {
        let mut client = TcpStream::connect(address)?;
        client.write_all(&[0; REQUEST])?;
        client.read_exact(&mut [0; RESPONSE])?;
    }
    Ok(server.join().map_err(|_| anyhow::anyhow!("the server panicked"))??)
}
