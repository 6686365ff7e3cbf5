//! The whole pipeline: flowend, the Collector with the shipped files, Tempo, Loki, Jaeger and Prometheus, each
//! in a network namespace of its own, and what their users would ask them.
//!
//! Needs root, Debian's `prometheus` and `dnsmasq-base`, and the programs that `collector/build` and
//! `backends/build` make, named by TEST_COLLECTOR, TEST_TEMPO, TEST_LOKI and TEST_JAEGER. Without them the tests say on
//! stderr that they are skipped; with TEST_REQUIRE=all a skip is a failure. Debian's Prometheus is older than the one in
//! deploy/compose/compose.yaml.

mod files;
mod http;
mod kubernetes_api;
mod kubernetes_names;
mod network;
mod outage;
mod panels;
mod programs;
mod sampling;
mod seen;
mod shop;
mod stack;
mod stores;
// The tests of the kernel need more of it.
#[allow(dead_code)]
#[path = "../kernel/support.rs"]
mod support;
mod tiers;
