//! Reload of where records go, while connections end.

use flowend::demo::Receiver;
use flowend::export::spool::Spool;

use super::connections::Role::Client;
use super::ledger::{ledger, terms};
use super::receiver::{Answers, HttpReceiver, ids, ids_of_json, refusing, sorted};
use super::reload::Site;
use super::support::{Cgroup, Puppet, can_run, wait_until};
use super::ways::{Pair, Way};

const SIGNALS: [&str; 2] = ["logs", "traces"];

/// A client and a server in a cgroup, and how many connections they have made.
struct Traffic {
    pair: Pair,
    made: usize,
}

impl Traffic {
    fn new(cgroup: &Cgroup) -> Self {
        let puppet = || Puppet::in_cgroup(cgroup);
        Self { pair: Pair::new(puppet(), puppet(), "127.0.0.1:0"), made: 0 }
    }

    fn connect(&mut self, n: usize) {
        for _ in 0..n {
            let mut conn = self.pair.open(Way::Closed(Client));
            self.pair.end(&mut conn);
            self.made += 1;
        }
    }

    /// Of the connections made.
    const fn ends(&self) -> usize {
        2 * self.made
    }

    /// Waits until each end is reported: then it was handed to the other outputs, too.
    fn wait_until_reported(&self, site: &Site) {
        wait_until(|| site.flowend.json().len() >= self.ends(), || site.flowend.stderr());
    }
}

fn config(cgroup: &Cgroup, otlp: &str, more: &str) -> String {
    format!(
        "targets = [\"{}\"]\n[export]\ninterval = \"10ms\"\n[shutdown]\ntimeout = \"500ms\"\n\
         [otlp]\n{otlp}\n{more}",
        cgroup.name
    )
}

fn grpc(receiver: &Receiver) -> String {
    format!("endpoint = \"{}\"", receiver.endpoint())
}

fn http(endpoint: &str) -> String {
    format!("endpoint = \"{endpoint}\"\nprotocol = \"http/protobuf\"")
}

#[tokio::test(flavor = "multi_thread")]
async fn no_end_is_lost_when_the_endpoint_changes() {
    if !can_run("no_end_is_lost_when_the_endpoint_changes", &[]) {
        return;
    }
    let cgroup = Cgroup::new();
    let before = Receiver::start().await.unwrap();
    let after = HttpReceiver::start(Answers::Taken).await;
    tokio::task::block_in_place(|| {
        let site = Site::start_with(&config(&cgroup, &grpc(&before), ""), &["--output=otlp"]);
        let mut traffic = Traffic::new(&cgroup);
        traffic.connect(3);
        let has_begun = || ids(&before.received()).iter().all(|ids| !ids.is_empty());
        wait_until(has_begun, || site.flowend.stderr());
        site.replace(&config(&cgroup, &http(&after.endpoint()), ""));
        wait_until(
            || {
                traffic.connect(1);
                site.flowend.stderr().contains("configuration reloaded")
            },
            || site.flowend.stderr(),
        );
        site.wait_for("configuration reloaded: otlp.endpoint, otlp.protocol", 1);
        traffic.connect(3);
        traffic.wait_until_reported(&site);
        let made = sorted(ids_of_json(&site.flowend.json()));
        let (status, messages) = site.flowend.stop();
        assert_eq!(status, Some(0), "{messages}");

        let ends = traffic.ends();
        assert_eq!(made.len(), ends);
        for ((signal, before), after) in
            SIGNALS.into_iter().zip(ids(&before.received())).zip(after.ids())
        {
            assert!(after.len() >= 6, "{signal}: {} after the reload", after.len());
            assert_eq!(sorted([before, after].concat()), made, "{signal}: each end, and once");
            let want = terms([("seen", ends), ("exported", ends)]);
            assert_eq!(ledger(&messages, &format!("otlp.{signal}")), want, "{messages}");
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_counts_what_is_seen_while_it_is_configured() {
    if !can_run("a_destination_counts_what_is_seen_while_it_is_configured", &[]) {
        return;
    }
    let cgroup = Cgroup::new();
    let always = Receiver::start().await.unwrap();
    let passing = HttpReceiver::start(Answers::Taken).await;
    let (_bound, closed) = refusing();
    tokio::task::block_in_place(|| {
        let alone = config(&cgroup, &grpc(&always), "");
        let more = format!(
            "[destinations.passing]\n{}\n[destinations.absent]\n{}\n",
            http(&passing.endpoint()),
            http(&format!("http://127.0.0.1:{closed}"))
        );
        let site = Site::start_with(&alone, &["--output=otlp"]);
        let mut traffic = Traffic::new(&cgroup);
        traffic.connect(2);
        traffic.wait_until_reported(&site);
        let earlier = sorted(ids_of_json(&site.flowend.json()));
        site.replace(&config(&cgroup, &grpc(&always), &more));
        site.wait_for("configuration reloaded: destinations.", 1);
        traffic.connect(3);
        traffic.wait_until_reported(&site);
        let until = ids_of_json(&site.flowend.json());
        site.replace(&alone);
        site.wait_for("configuration reloaded: destinations.", 2);
        traffic.connect(4);
        traffic.wait_until_reported(&site);
        let between = ids_of_json(&site.flowend.json());
        // And they come back: each has one account, of both times.
        site.replace(&config(&cgroup, &grpc(&always), &more));
        site.wait_for("configuration reloaded: destinations.", 3);
        traffic.connect(5);
        traffic.wait_until_reported(&site);
        let all = ids_of_json(&site.flowend.json());
        let (status, messages) = site.flowend.stop();
        assert_eq!(status, Some(0), "{messages}");

        let during = until.iter().filter(|id| !earlier.contains(id));
        let during = during.chain(all.iter().filter(|id| !between.contains(id)));
        let during: Vec<_> = during.cloned().collect();
        assert_eq!(passing.ids().map(sorted), [sorted(during.clone()), sorted(during)]);
        for signal in SIGNALS {
            let of = |destination: &str| ledger(&messages, &format!("{destination}.{signal}"));
            assert_eq!(of("otlp"), terms([("seen", 28), ("exported", 28)]), "{messages}");
            assert_eq!(of("passing"), terms([("seen", 16), ("exported", 16)]), "{messages}");
            let want = terms([("seen", 16), ("dropped{removed}", 6), ("dropped{shutdown}", 10)]);
            assert_eq!(of("absent"), want, "{messages}");
            let words = format!("absent.{signal}: 6 records dropped{{removed}}: ");
            assert!(messages.contains(&words), "{messages}");
        }
    });
}

/// What it left in its spool when it was taken away is what it begins with when it comes back, and is counted
/// once.
#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_comes_back_finds_its_spool() {
    if !can_run("a_destination_that_comes_back_finds_its_spool", &[]) {
        return;
    }
    let cgroup = Cgroup::new();
    let always = Receiver::start().await.unwrap();
    let back = HttpReceiver::start(Answers::Taken).await;
    let (_bound, closed) = refusing();
    let folder = tempfile::tempdir().unwrap();
    tokio::task::block_in_place(|| {
        let with = |endpoint: &str| {
            let second = format!("[destinations.second]\n{}\n", http(endpoint));
            config(&cgroup, &grpc(&always), &second)
        };
        let absent = with(&format!("http://127.0.0.1:{closed}"));
        let spool = format!("--set=spool.directory={}", folder.path().join("spool").display());
        let site = Site::start_with(&absent, &["--output=otlp", &spool]);
        let mut traffic = Traffic::new(&cgroup);
        traffic.connect(3);
        traffic.wait_until_reported(&site);
        site.replace(&config(&cgroup, &grpc(&always), ""));
        site.wait_for("configuration reloaded: destinations.", 1);
        traffic.connect(2);
        traffic.wait_until_reported(&site);
        // It may still be closing.
        wait_until(
            || {
                SIGNALS.iter().all(|signal| {
                    Spool::open(&folder.path().join("spool/second").join(signal), 1 << 30)
                        .is_ok_and(|(_, recovered)| recovered.records == [0, 0, 6])
                })
            },
            || site.flowend.stderr(),
        );
        site.replace(&with(&back.endpoint()));
        site.wait_for("configuration reloaded: destinations.", 2);
        traffic.connect(1);
        traffic.wait_until_reported(&site);
        let has_all = || back.ids().iter().all(|ids| ids.len() >= 8);
        wait_until(has_all, || site.flowend.stderr());
        let (status, messages) = site.flowend.stop();
        assert_eq!(status, Some(0), "{messages}");
        for (signal, ids) in SIGNALS.into_iter().zip(back.ids()) {
            assert_eq!(ids.len(), 8, "each once");
            let want = terms([("seen", 8), ("exported", 8)]);
            assert_eq!(ledger(&messages, &format!("second.{signal}")), want, "{messages}");
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_cannot_be_leaves_the_old_one_in_force() {
    if !can_run("a_destination_that_cannot_be_leaves_the_old_one_in_force", &[]) {
        return;
    }
    let cgroup = Cgroup::new();
    let receiver = Receiver::start().await.unwrap();
    tokio::task::block_in_place(|| {
        let good = config(&cgroup, &grpc(&receiver), "");
        let site = Site::start_with(&good, &["--output=otlp"]);
        let mut traffic = Traffic::new(&cgroup);
        // Not PEM.
        let no_certificate = "/proc/self/status";
        for (n, (otlp, words)) in [
            ("endpoint = \"ftp://collector\"".to_owned(), vec!["otlp.endpoint", "ftp"]),
            (
                "endpoint = \"https://127.0.0.1:1\"\nca_file = \"/nowhere/ca.pem\"".to_owned(),
                vec!["otlp.ca_file", "/nowhere/ca.pem", "No such file or directory"],
            ),
            (
                format!("endpoint = \"https://127.0.0.1:1\"\nca_file = \"{no_certificate}\""),
                vec!["otlp.ca_file", no_certificate, "certificate"],
            ),
        ]
        .into_iter()
        .enumerate()
        {
            site.replace(&config(&cgroup, &otlp, "[log]\nlevel = \"error\"\n"));
            site.wait_for("the configuration is not reloaded: ", n + 1);
            let messages = site.flowend.stderr();
            let why = messages.lines().rfind(|line| line.contains("is not reloaded")).unwrap();
            assert!(words.iter().all(|word| why.contains(word)), "{words:?}: {why}");
            // Nothing of the file is in force, and what was is.
            traffic.connect(1);
            let has_all =
                || ids(&receiver.received()).iter().all(|ids| ids.len() == traffic.ends());
            wait_until(has_all, || site.flowend.stderr());
        }
        site.replace(&format!("{good}\n# As before."));
        site.wait_for("configuration reloaded: nothing has changed", 1);
        let (status, messages) = site.flowend.stop();
        assert_eq!(status, Some(0), "{messages}");
        let ends = traffic.ends();
        for signal in SIGNALS {
            let want = terms([("seen", ends), ("exported", ends)]);
            assert_eq!(ledger(&messages, &format!("otlp.{signal}")), want, "{messages}");
        }
    });
}
