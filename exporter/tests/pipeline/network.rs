//! Hosts as containers are: each in a network namespace of its own, joined by a switch, and each finds the others by
//! name.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::support::{Netns, path};

/// The switch's own address; hosts follow.
const SWITCH: &str = "10.77.0.1";
/// Mounts these over /etc/hosts and /etc/resolv.conf, in a mount namespace that the program has for itself.
const ENTER: &str =
    r#"mount --bind "$0" /etc/hosts && mount --bind "$1" /etc/resolv.conf && shift && exec "$@""#;

/// A switch with hosts.
pub(crate) struct Network {
    hosts: Vec<Host>,
    switch: Netns,
    folder: tempfile::TempDir,
}

/// One of them.
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) netns: Netns,
}

impl Network {
    /// With these hosts. `aliases` are further names, each for all of its hosts. The host "dns", if there is one, is
    /// whom all ask for other names.
    pub(crate) fn new(names: &[&str], aliases: &[(&str, &[&str])]) -> Self {
        let switch = Netns::new();
        switch.ip(&["link", "add", "br0", "type", "bridge"]);
        switch.ip(&["addr", "add", &format!("{SWITCH}/24"), "dev", "br0"]);
        switch.ip(&["link", "set", "br0", "up"]);
        let hosts: Vec<Host> =
            names.iter().zip(2..).map(|(name, i)| Host::new(&switch, name, i)).collect();
        let network = Self { hosts, switch, folder: tempfile::tempdir().unwrap() };
        let mut text = "127.0.0.1 localhost\n".to_owned();
        for host in &network.hosts {
            let _ = writeln!(text, "{} {}", host.address, host.name);
        }
        for (alias, names) in aliases {
            for name in *names {
                let _ = writeln!(text, "{} {alias}", network.host(name).address);
            }
        }
        std::fs::write(network.hosts_file(), text).unwrap();
        let dns = network.hosts.iter().find(|host| host.name == "dns");
        let resolver = dns.map_or(String::new(), |dns| format!("nameserver {}\n", dns.address));
        std::fs::write(network.resolv_conf(), resolver).unwrap();
        network
    }

    pub(crate) fn host(&self, name: &str) -> &Host {
        self.hosts.iter().find(|host| host.name == name).unwrap_or_else(|| panic!("no host {name}"))
    }

    /// What a puppet takes for /etc/resolv.conf.
    pub(crate) fn resolv_conf(&self) -> PathBuf {
        self.folder.path().join("resolv.conf")
    }

    fn hosts_file(&self) -> PathBuf {
        self.folder.path().join("hosts")
    }

    /// A program on a host. Its pid is that of the child: each step becomes the next.
    pub(crate) fn command(&self, host: &str, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.host(host).netns.file().display()))
            .args(["unshare", "--mount", "sh", "-c", ENTER])
            .arg(self.hosts_file())
            .arg(self.resolv_conf())
            .arg(program)
            .env("PATH", path())
            .stdin(Stdio::null());
        command
    }

    /// Does something on the switch, from where all hosts are reached.
    pub(crate) fn reach<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.switch.inside(f)
    }

    /// The URL of a port of a host, from the switch.
    pub(crate) fn url(&self, host: &str, port: u16) -> String {
        format!("http://{}:{port}", self.host(host).address)
    }
}

impl Host {
    fn new(switch: &Netns, name: &str, i: u8) -> Self {
        let netns = Netns::new();
        let (link, address) = (format!("port{i}"), format!("10.77.0.{i}"));
        switch.link(&link, &netns, &format!("{address}/24"));
        switch.ip(&["link", "set", &link, "master", "br0"]);
        Self { name: name.into(), address, netns }
    }
}

/// A file of the repository.
pub(crate) fn shipped(file: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(file)
}
