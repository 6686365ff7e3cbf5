//! All of it together: what the compose file starts, and a shop to watch.

use std::path::{Path, PathBuf};

use super::network::Network;
use super::programs::{Built, Program, start_collector, start_stores};
use super::shop::{HOSTS, Shop};
use super::stores::Stores;
use super::support::Flowend;

pub(crate) struct Stack {
    // In the order in which they are to go.
    pub(crate) shop: Shop,
    collector: Option<Program>,
    _stores: Vec<Program>,
    pub(crate) network: Network,
    built: Built,
    folder: tempfile::TempDir,
}

impl Stack {
    /// Starts it; `slice` is the shop's.
    pub(crate) fn start(built: Built, slice: &str) -> Self {
        let names =
            [&["flowend", "collector", "tempo", "loki", "jaeger", "prometheus"], HOSTS].concat();
        let network = Network::new(&names, &[]);
        let folder = tempfile::tempdir().unwrap();
        let stores = start_stores(&network, &built, folder.path());
        let shop = Shop::open(&network, slice);
        let mut stack = Self { shop, collector: None, _stores: stores, network, built, folder };
        stack.start_collector();
        stack
    }

    pub(crate) fn stores(&self) -> Stores {
        let url = |host: &str, port: u16| self.network.url(host, port);
        Stores {
            prometheus: url("prometheus", 9090),
            loki: url("loki", 3100),
            tempo: url("tempo", 3200),
            jaeger: url("jaeger", 16686),
        }
    }

    pub(crate) fn start_collector(&mut self) {
        let storage = self.storage();
        self.collector = Some(start_collector(
            &self.network,
            "collector",
            &self.built.collector,
            &["otel-collector.yaml"],
            &storage,
            &[],
        ));
    }

    /// SIGTERM, and waits for the end.
    pub(crate) fn stop_collector(&mut self) -> String {
        self.collector.take().expect("a collector").stop()
    }

    fn storage(&self) -> PathBuf {
        self.folder.path().join("collector")
    }

    /// flowend, which watches the shop and sends to the Collector.
    pub(crate) fn flowend(&self, settings: &[&str]) -> Flowend {
        watch(&self.network, "flowend", "http://collector:4317", self.shop.target(), settings)
    }
}

/// `flowend run` on a host; attached when this returns.
pub(crate) fn watch(
    network: &Network,
    host: &str,
    endpoint: &str,
    target: &str,
    settings: &[&str],
) -> Flowend {
    let inner = Flowend::command(&[]);
    let mut command = network.command(host, Path::new(inner.get_program()));
    command
        .args(["run", "--output=otlp"])
        .arg(format!("--set=targets={target}"))
        .args(["--set=telemetry.otlp=true", "--set=telemetry.otlp_interval=5s"])
        .args(settings.iter().map(|setting| format!("--set={setting}")));
    for (name, value) in inner.get_envs() {
        if value.is_none() {
            command.env_remove(name);
        }
    }
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
    Flowend::spawn(command)
}
