//! What the running sidecar is asked beside its events: its counts, how it is, to take in other settings, and to
//! show that it lives. All of it is asked in the loop of the data path, so an answer means that the loop turns.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior};
use tracing::info;

use crate::config::Settings;
use crate::export::{MetricsClient, Outputs, OwnSockets};
use crate::ledger::{Count, Ledger, OutputLedger};
use crate::notify::ServiceManager;
use crate::pipeline::Pipeline;
use crate::probe::AttachState;
use crate::reload::{Reload, Reloads};
use crate::source::RingSource;
use crate::telemetry::{
    self, Counts, Metric, MetricsExport, Question, Sources, Telemetry, why_not_ready,
};

/// Who asks.
#[derive(Debug)]
pub(super) struct Control {
    telemetry: Option<Telemetry>,
    export: Option<MetricsExport>,
    pub(super) reloads: Option<Reloads>,
    /// `flowend run` has one; the demo has none.
    pub(super) manager: Option<ServiceManager>,
    watchdog: Option<Interval>,
    attach: watch::Receiver<AttachState>,
    detachments: Arc<Count>,
    ready_after: Duration,
    queue_records: usize,
}

/// What is asked.
#[derive(Debug)]
pub(super) enum Ask {
    /// An answer for the HTTP server.
    Question(Question),
    /// The counts, for the export over OTLP.
    Export,
    /// To take in other settings.
    Reload(Reload),
    /// A sign of life.
    Watchdog,
    /// To tell what is attached to now.
    Attached,
}

/// What can be told of one moment.
pub(super) struct Moment<'a> {
    pub(super) source: &'a RingSource,
    pub(super) pipeline: &'a Pipeline,
    pub(super) ledger: &'a Ledger,
}

impl Control {
    /// Listens and exports as the settings say.
    pub(super) fn start(settings: &Settings, own: &OwnSockets) -> anyhow::Result<Started> {
        Ok(Started {
            telemetry: listen(settings, own)?,
            export: export(settings, own)?,
            ready_after: settings.ready_after,
            queue_records: settings.export.queue_records,
        })
    }

    /// Tells the service manager that the sidecar is attached, and from when on it shows that it lives.
    pub(super) fn ready(&mut self) {
        let Some(manager) = self.manager else { return };
        manager.ready();
        self.watchdog = manager.watchdog_interval().map(|period| {
            let mut timer = tokio::time::interval(period);
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
            timer
        });
        // And is told what to.
        self.attach.mark_changed();
    }

    /// The next one who asks. Cancel safe.
    pub(super) async fn next(&mut self) -> Ask {
        let (telemetry, export) = (self.telemetry.as_mut(), self.export.as_mut());
        let (reloads, watchdog) = (self.reloads.as_mut(), self.watchdog.as_mut());
        tokio::select! {
            Some(question) = async { telemetry?.next().await } => Ask::Question(question),
            Some(()) = async { export?.due().await; Some(()) } => Ask::Export,
            Some(reload) = async { reloads?.next().await } => Ask::Reload(reload),
            Some(_) = async { Some(watchdog?.tick().await) } => Ask::Watchdog,
            Ok(()) = self.attach.changed() => Ask::Attached,
            else => pending().await,
        }
    }

    /// Answers all but a reload.
    pub(super) fn answer(&mut self, ask: Ask, moment: &Moment<'_>, outputs: &Outputs) {
        match ask {
            // Whoever asked may be gone.
            Ask::Question(Question::Metrics(reply)) => {
                let _ = reply.send(self.counts(moment, &outputs.ledgers()));
            }
            Ask::Question(Question::Alive(reply)) => drop(reply.send(())),
            Ask::Question(Question::Ready(reply)) => {
                let attach = self.attach.borrow();
                let _ = reply.send(why_not_ready(&attach, &outputs.health(), self.ready_after));
            }
            Ask::Export => {
                if let Some(export) = &self.export {
                    export.give(self.counts(moment, &outputs.ledgers()));
                }
            }
            Ask::Watchdog => {
                if let Some(manager) = self.manager {
                    manager.alive();
                }
            }
            Ask::Attached => {
                let attached = self.attach.borrow_and_update().attached;
                if let Some(manager) = self.manager {
                    manager.status(&format!("{attached} cgroup(s) attached"));
                }
            }
            Ask::Reload(reload) => {
                let _ = reload.done.send(Err(anyhow::anyhow!("flowend is stopping")));
            }
        }
    }

    /// Takes in what of other settings is this one's.
    pub(super) const fn apply(&mut self, settings: &Settings) {
        self.ready_after = settings.ready_after;
        self.queue_records = settings.export.queue_records;
    }

    /// The sidecar is about to stop: nothing is asked any more.
    pub(super) fn stop(&mut self) {
        if let Some(manager) = self.manager {
            manager.stopping();
        }
        if let Some(telemetry) = &mut self.telemetry {
            telemetry.stop();
        }
        if let Some(reloads) = &mut self.reloads {
            reloads.stop();
        }
    }

    /// Exports the counts as they are now, at the end; ready when that is over.
    pub(super) fn finish(
        mut self,
        moment: &Moment<'_>,
        outputs: &[Arc<OutputLedger>],
    ) -> impl Future<Output = ()> + Send + use<> {
        let last = self.export.take().map(|export| (export, self.counts(moment, outputs)));
        async move {
            if let Some((export, metrics)) = last {
                export.finish(metrics).await;
            }
        }
    }

    /// What is counted at this moment.
    fn counts(&self, moment: &Moment<'_>, outputs: &[Arc<OutputLedger>]) -> Vec<Metric> {
        let Moment { source, pipeline, ledger } = moment;
        telemetry::gather(&Counts {
            ledger,
            outputs,
            queue_records: self.queue_records,
            connections: Some(pipeline.connections()),
            names: Sources {
                dns: Some(pipeline.dns()),
                hosts: pipeline.hosts(),
                reverse: pipeline.reverse(),
            },
            lost: source.lost(),
            losses: pipeline.losses(source.losses()),
            skipped: source.skipped(),
            attached: self.attach.borrow().attached,
            programs: &self.attach.borrow().programs,
            detachments: self.detachments.get(),
            reloads: self.reloads.as_ref().map(Reloads::counts),
        })
    }
}

/// A [`Control`] before anything is attached.
#[derive(Debug)]
pub(super) struct Started {
    telemetry: Option<Telemetry>,
    export: Option<MetricsExport>,
    ready_after: Duration,
    queue_records: usize,
}

impl Started {
    /// With what is attached to.
    pub(super) fn attached(
        self,
        attach: watch::Receiver<AttachState>,
        detachments: Arc<Count>,
    ) -> Control {
        let Self { telemetry, export, ready_after, queue_records } = self;
        let (reloads, manager, watchdog) = (None, None, None);
        Control {
            telemetry,
            export,
            reloads,
            manager,
            watchdog,
            attach,
            detachments,
            ready_after,
            queue_records,
        }
    }
}

/// Listens where `telemetry.listen` says.
fn listen(settings: &Settings, own: &OwnSockets) -> anyhow::Result<Option<Telemetry>> {
    let Some(address) = settings.telemetry_listen else { return Ok(None) };
    let telemetry = Telemetry::listen(address, own.clone()).with_context(|| {
        format!("key `telemetry.listen`: {address} cannot be listened on; choose another address or port")
    })?;
    info!("metrics at http://{}/metrics", telemetry.address());
    Ok(Some(telemetry))
}

/// Exports where `telemetry.otlp` says so.
fn export(settings: &Settings, own: &OwnSockets) -> anyhow::Result<Option<MetricsExport>> {
    let Some(interval) = settings.telemetry_otlp else { return Ok(None) };
    let client = MetricsClient::new(&settings.metrics_receiver, own.clone())?;
    Ok(Some(MetricsExport::start(client, interval, resource())))
}

/// flowend itself, as a service.
fn resource() -> Resource {
    Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", "flowend"),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", random_uuid(super::random_seed())),
            KeyValue::new("host.name", super::host_name()),
        ])
        .build()
}

/// A random UUID as the conventions recommend it for `service.instance.id` (RFC 9562, version 4).
fn random_uuid(random: u128) -> String {
    let bits = random & !(0xf << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{bits:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_id_is_a_uuid_of_version_4() {
        for (random, want) in [
            (0, "00000000-0000-4000-8000-000000000000"),
            (u128::MAX, "ffffffff-ffff-4fff-bfff-ffffffffffff"),
        ] {
            assert_eq!(random_uuid(random), want);
        }
    }
}
