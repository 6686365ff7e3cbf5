//! flowend: an OpenTelemetry exporter sidecar. When a TCP connection ends anywhere in a watched cgroup,
//! it says when, how and by whom.
//!
//! `pipeline` is the data path; ARCHITECTURE.md is the map.

pub mod cgroup;
pub mod check;
pub mod cli;
pub mod clock;
pub mod community_id;
pub mod config;
pub mod confine;
pub mod demo;
pub mod diag;
pub mod dns;
#[cfg(test)]
mod docs;
pub mod encode;
pub mod enrich;
mod errors;
pub mod exclude;
pub mod export;
pub mod fair;
pub mod flow;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod ids;
pub mod kernel;
pub mod ledger;
pub mod look;
pub mod notify;
pub mod pipeline;
pub mod probe;
pub mod record;
pub mod reload;
pub mod replay;
pub mod restart;
pub mod run;
pub mod sample;
pub mod source;
pub mod targets;
pub mod telemetry;
pub mod trim;
mod whole_file;
