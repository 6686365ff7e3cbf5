//! Two services and a database stand-in that know nothing of telemetry, each in a cgroup, and a server outside that
//! nobody watches.

use std::net::{IpAddr, SocketAddr};

use super::network::Network;
use super::programs::Program;
use super::support::{Cgroup, Puppet, Socket};

/// Who has a namespace of the shop.
pub(crate) const HOSTS: &[&str] = &["frontend", "orders", "database", "outside", "dns"];
/// What the outside server is called.
pub(crate) const API: &str = "api.payments.example";

/// The services' names are those of systemd units.
pub(crate) struct Shop {
    pub(crate) frontend: Puppet,
    pub(crate) orders: Puppet,
    database: Puppet,
    outside: Puppet,
    orders_port: Socket,
    database_port: Socket,
    outside_port: Socket,
    api: IpAddr,
    _dns: Program,
    // After those who live in them, and the slice last.
    _services: Vec<Cgroup>,
    slice: Cgroup,
}

impl Shop {
    /// `slice` is what to watch, below the cgroup2 mount.
    pub(crate) fn open(network: &Network, slice: &str) -> Self {
        let slice = Cgroup::named(slice);
        let service = |name: &str| {
            Cgroup::named(&format!("{}/{name}.service", slice.name.trim_start_matches('/')))
        };
        let services: Vec<Cgroup> =
            ["frontend", "orders", "database"].iter().map(|name| service(name)).collect();
        let dns = name_server(network);
        let puppet = |host: &str, cgroup: Option<&Cgroup>| {
            let (netns, resolver) = (network.host(host).netns.file(), network.resolv_conf());
            let mut args =
                vec!["--netns".as_ref(), netns.as_path(), "--resolv-conf".as_ref(), &resolver];
            if let Some(cgroup) = cgroup {
                args.extend(["--cgroup".as_ref(), cgroup.folder.as_path()]);
            }
            Puppet::start(&args)
        };
        let frontend = puppet("frontend", Some(&services[0]));
        let mut orders = puppet("orders", Some(&services[1]));
        let mut database = puppet("database", Some(&services[2]));
        let mut outside = puppet("outside", None);
        let listen = |puppet: &mut Puppet, host: &str, port: u16| {
            puppet.listen(&format!("{}:{port}", network.host(host).address))
        };
        let (orders_port, database_port, outside_port) = (
            listen(&mut orders, "orders", 8080),
            listen(&mut database, "database", 5432),
            listen(&mut outside, "outside", 443),
        );
        Self {
            frontend,
            orders,
            database,
            outside,
            orders_port,
            database_port,
            outside_port,
            api: network.host("outside").address.parse().unwrap(),
            _dns: dns,
            _services: services,
            slice,
        }
    }

    /// As a target is written.
    pub(crate) fn target(&self) -> &str {
        &self.slice.name
    }

    /// As applications do before they connect; flowend learns the name from the answer.
    pub(crate) fn look_up(&mut self) {
        let answer = self.orders.tell(&format!("run getent ahostsv4 {API}"));
        assert!(answer.contains(&self.api.to_string()), "{answer}");
    }

    /// An order: frontend asks orders, which asks the database, and all close. Two connections, four ends.
    pub(crate) fn order(&mut self) {
        let (asked, got) = connect(&mut self.frontend, &mut self.orders, self.orders_port);
        let (query, answered) = connect(&mut self.orders, &mut self.database, self.database_port);
        talk(&mut self.orders, query, &mut self.database, answered);
        close(&mut self.orders, query, &mut self.database, answered);
        talk(&mut self.frontend, asked, &mut self.orders, got);
        close(&mut self.frontend, asked, &mut self.orders, got);
    }

    /// orders pays outside. One connection, of which one end is watched.
    pub(crate) fn pay(&mut self) {
        let (paying, paid) = connect(&mut self.orders, &mut self.outside, self.outside_port);
        talk(&mut self.orders, paying, &mut self.outside, paid);
        close(&mut self.orders, paying, &mut self.outside, paid);
    }

    /// frontend gives up: orders has an answer that nobody reads. One connection, two ends.
    pub(crate) fn reset(&mut self) {
        let (asked, got) = connect(&mut self.frontend, &mut self.orders, self.orders_port);
        talk(&mut self.frontend, asked, &mut self.orders, got);
        self.frontend.reset(asked);
        self.orders.close(got);
    }

    /// Nobody listens there. One end.
    pub(crate) fn refusal(&mut self) {
        let address = SocketAddr::new(self.orders_port.local.ip(), 9);
        self.frontend.ask(&format!("connect {address}")).expect_err("refused");
    }

    /// frontend closes its half at once, and gets the answer after that. One connection, two ends.
    pub(crate) fn half_close(&mut self) {
        let (asked, got) = connect(&mut self.frontend, &mut self.orders, self.orders_port);
        self.frontend.send(asked, 100);
        self.orders.recv(got, 100);
        self.frontend.shutdown(asked);
        assert_eq!(self.orders.drain(got), 0);
        // Long enough to be told in milliseconds.
        super::support::step();
        self.orders.send(got, 4000);
        self.orders.close(got);
        assert_eq!(self.frontend.drain(asked), 4000);
        self.frontend.close(asked);
    }
}

fn connect(client: &mut Puppet, server: &mut Puppet, to: Socket) -> (Socket, Socket) {
    let connected = client.connect(to.local);
    (connected, server.accept(to))
}

/// 300 bytes there, 2000 back.
fn talk(client: &mut Puppet, ours: Socket, server: &mut Puppet, theirs: Socket) {
    client.send(ours, 300);
    server.recv(theirs, 300);
    server.send(theirs, 2000);
    client.recv(ours, 2000);
}

/// The client first.
fn close(client: &mut Puppet, ours: Socket, server: &mut Puppet, theirs: Socket) {
    client.close(ours);
    assert_eq!(server.drain(theirs), 0);
    server.close(theirs);
}

/// dnsmasq, which knows the server outside.
fn name_server(network: &Network) -> Program {
    let address = &network.host("outside").address;
    let mut command = network.command("dns", "dnsmasq");
    command
        .args(["--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--pid-file="])
        .args(["--no-resolv", "--no-hosts", "--log-facility=-", "--local-ttl=3600"])
        .arg(format!("--address=/{API}/{address}"));
    let mut program = Program::start("dnsmasq", command);
    program.wait_for("started, version");
    program
}
