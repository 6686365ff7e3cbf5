//! Records of the ends in a capture.

use std::sync::Arc;

use ipnet::IpNet;
use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;

use super::engine::Ended;
use crate::community_id::CommunityId;
use crate::config::Settings;
use crate::enrich::{Known, Workload};
use crate::ids::Ids;
use crate::ledger::Ledger;
use crate::record::{Record, RecordKind};
use crate::sample::{Decision, Facts, Sampler};

/// `service.name` of the records, unless the user says otherwise.
const SERVICE_NAME: &str = "replay";

/// Of the ids of connections whose ISNs were not seen: hashed from their place in the file, they are
/// the same each time.
const SEED: u128 = 0;

/// Makes records of ends.
#[derive(Debug)]
pub(super) struct Recorder {
    ids: Ids,
    sampler: Sampler,
    peer_cidrs: Vec<IpNet>,
    community_id: Option<CommunityId>,
    workload: Arc<Workload>,
    pub(super) ledger: Arc<Ledger>,
}

impl Recorder {
    /// As the settings say.
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            ids: Ids::new(&settings.ids_key, SEED),
            sampler: Sampler::new(settings.sampling.clone()),
            peer_cidrs: settings.peer_cidrs.clone(),
            community_id: settings.community_id,
            workload: Arc::new(workload(settings)),
            ledger: Arc::default(),
        }
    }

    /// The record; `None` where sampling or a rule leaves it out.
    pub(super) fn record(&self, ended: Ended) -> Option<Arc<Record>> {
        let Ended { end, local_names, remote_names } = ended;
        let ledger = self.ledger.of(RecordKind::End);
        ledger.seen.add(1);
        let ids = self.ids.of(&end);
        // A capture tells neither cgroup nor process.
        let sampling = match self.sampler.decide(&Facts {
            trace_id: ids.trace_id,
            kind: RecordKind::End,
            end: &end,
            remote_names: &remote_names,
            cgroup_path: None,
            executable: None,
        }) {
            Decision::Keep(kept) => kept,
            Decision::SampledOut => {
                ledger.sampled_out.add(1);
                return None;
            }
            Decision::Filtered => {
                ledger.filtered_rule.add(1);
                return None;
            }
        };
        Some(Arc::new(Record {
            kind: RecordKind::End,
            community_id: self.community_id.map(|id| id.of(end.local, end.remote)),
            ids,
            parent_span_id: ids.parent(&end, &self.peer_cidrs),
            workload: Arc::clone(&self.workload),
            process: None,
            local_names,
            remote_names,
            // A capture may be of another network and another time.
            local_ptr: None,
            remote_ptr: None,
            sampling,
            start_unix_ns: end.start_ns,
            end_unix_ns: end.end_ns,
            end,
        }))
    }
}

/// The resource: nothing of this host, on which the capture need not have been made.
fn workload(settings: &Settings) -> Workload {
    let mut attributes = settings.resource_attributes.clone();
    // A template asks for what no capture tells; its plain text is known.
    let name = settings.service_name.as_ref().and_then(|t| t.render(&Known::default()));
    if let Some(name) = name {
        attributes.insert("service.name".into(), name);
    }
    let service_name =
        attributes.entry("service.name".into()).or_insert_with(|| SERVICE_NAME.into()).clone();
    let resource = Resource::builder_empty()
        .with_attributes(attributes.into_iter().map(|(k, v)| KeyValue::new(k, v)))
        .build();
    Workload::with_resource(service_name, None, resource)
}
