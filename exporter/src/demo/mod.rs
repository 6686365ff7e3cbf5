//! `flowend demo`: ends real connections in a cgroup of its own, and shows what a real OTLP receiver
//! got of them.

mod nameserver;
mod receiver;
mod traffic;
mod verdict;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::sync::oneshot;

use crate::cgroup;
use crate::config::{
    self, Destination, NameSettings, Output, Profile, Protocol, ScopeKind, Settings, TlsFiles,
};
use crate::encode::Mapping;
use crate::run::Sidecar;
use crate::sample::SamplingSettings;
use crate::targets::{Pattern, Watched};

use nameserver::NameServer;
pub use receiver::{Item, Received, Receiver};
use traffic::Ending;
pub use traffic::traffic;

/// Records are waited for at most this long.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the demo.
///
/// # Errors
/// When something is missing to run it, or when a record is not what happened; says why.
pub async fn demo(settings: Settings) -> anyhow::Result<()> {
    let mount = cgroup::mount(settings.cgroup_mount.as_deref())?.point;
    let cgroup = DemoCgroup::make(&mount)?;
    let receiver = Receiver::start().await.context("the demo's own OTLP receiver")?;
    let nameserver = NameServer::start().await;

    let settings = for_demo(settings, &cgroup, &receiver)?;
    let sidecar = Sidecar::start(&settings)?;
    let detachments = sidecar.detachments();
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(sidecar.run(async {
        let _ = stopped.await;
    }));

    println!("cgroup {}: making connections and ending them", cgroup.name);
    println!("{}", names_line(&nameserver));
    let server = nameserver.as_ref().ok().map(NameServer::address);
    let endings = make_traffic(&cgroup.folder, server).await?;
    let expected = endings.iter().map(Ending::records).sum();
    receiver.wait_for(expected, PATIENCE).await;
    // Before the stop: the programs are detached then in any case.
    let detached = detachments.get() > 0 || !crate::probe::detached_links().is_empty();
    let _ = stop.send(());
    running.await??;
    receiver.wait_for(usize::MAX, Duration::from_millis(100)).await;

    let wrong = verdict::compare(&endings, &receiver.received());
    drop(cgroup);
    if wrong.is_empty() {
        println!(
            "all true: {} endings, {} of them by name, {expected} log records and {expected} spans, each as it \
             happened",
            endings.len(),
            endings.iter().filter(|ending| !ending.server_names.is_empty()).count(),
        );
        return Ok(());
    }
    for line in &wrong {
        println!("wrong: {line}");
    }
    if detached {
        bail!(
            "{} record(s) missing or wrong: flowend's programs were detached from the cgroup by somebody else while the demo ran",
            wrong.len()
        );
    }
    bail!("{} record(s) missing or wrong, as listed above", wrong.len());
}

/// The user's settings with what the demo needs: its cgroup, its receiver, and nothing left out.
fn for_demo(
    mut settings: Settings,
    cgroup: &DemoCgroup,
    receiver: &Receiver,
) -> anyhow::Result<Settings> {
    let target = Pattern::parse(&cgroup.name).map_err(anyhow::Error::msg)?;
    settings.watched = Watched { targets: vec![target], exclude: Vec::new() };
    settings.outputs = vec![Output::Otlp];
    settings.mapping = Arc::new(Mapping::new(Profile::Semconv));
    settings.sampling = SamplingSettings::default();
    settings.names = NameSettings {
        enabled: true,
        scope: ScopeKind::Cgroup,
        resolvers: Vec::new(),
        hosts: false,
        snapshot: None,
        reverse: None,
        ..settings.names
    };
    (settings.dns.min_ttl, settings.dns.max_ttl) =
        (Duration::from_secs(5), Duration::from_secs(3600));
    settings.peer_cidrs =
        ["127.0.0.0/8", "::1/128"].map(str::parse).into_iter().collect::<Result<_, _>>()?;
    settings.export.interval = Duration::from_millis(50);
    settings.export.queue_records = 1024;
    settings.shutdown_timeout = PATIENCE;
    let demo = config::Receiver {
        endpoint: receiver.endpoint().parse()?,
        protocol: Protocol::Grpc,
        compression: None,
        timeout: PATIENCE,
        headers: Vec::new(),
        headers_file: None,
        tls: TlsFiles::default(),
    };
    settings.destinations =
        vec![Destination { name: "otlp".into(), logs: Some(demo.clone()), traces: Some(demo) }];
    Ok(settings)
}

/// What of the demo is about names, in words.
fn names_line(nameserver: &anyhow::Result<NameServer>) -> String {
    match nameserver {
        Ok(server) => format!(
            "names: {} is looked up at {}, a DNS server of the demo's own that answers {} by way of {}; \
             flowend reads that answer as it reads any",
            nameserver::ASKED,
            server.address(),
            nameserver::ADDRESS,
            nameserver::NAMES[1],
        ),
        Err(error) => format!("names: left out, no DNS server for the demo: {error:#}"),
    }
}

/// Runs the traffic in a process of its own, which joins the cgroup before it makes a socket.
async fn make_traffic(
    cgroup: &Path,
    nameserver: Option<SocketAddr>,
) -> anyhow::Result<Vec<Ending>> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("demo-traffic")
        .arg(cgroup)
        .args(nameserver.map(|address| address.to_string()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdout = child.stdout.take().context("no pipe")?;
    let mut lines = BufReader::new(stdout).lines();
    let mut endings = Vec::new();
    while let Some(line) = lines.next_line().await? {
        endings.push(serde_json::from_str(&line).with_context(|| line.clone())?);
    }
    let status = child.wait().await?;
    anyhow::ensure!(status.success(), "the demo's traffic failed: {status}");
    Ok(endings)
}

/// A cgroup that is removed when dropped.
struct DemoCgroup {
    name: String,
    folder: PathBuf,
}

impl DemoCgroup {
    fn make(mount: &Path) -> anyhow::Result<Self> {
        let name = format!("/flowend-demo-{}", std::process::id());
        let folder = mount.join(&name[1..]);
        std::fs::create_dir(&folder).with_context(|| {
            format!("cannot make the cgroup {}; run as root, with the cgroup file system mounted for writing", folder.display())
        })?;
        Ok(Self { name, folder })
    }
}

impl Drop for DemoCgroup {
    fn drop(&mut self) {
        // A process that has just ended may still be counted for a moment.
        for _ in 0..100 {
            match std::fs::remove_dir(&self.folder) {
                Ok(()) => return,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        eprintln!(
            "flowend: cannot remove the cgroup {}; remove it with rmdir",
            self.folder.display()
        );
    }
}
