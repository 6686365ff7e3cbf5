//! Rings 2 and 3: the built programs in this kernel, real sockets in real cgroups, real receivers.
//!
//! They need root, and some of them a Debian tool. Without it they say on stderr that they are
//! skipped; with TEST_REQUIRE=all a skip is a failure.

mod alike;
mod bad_input;
mod check;
mod collector;
mod confine;
mod connections;
mod container;
mod degraded;
mod delivery;
mod demo;
mod diag;
mod dns_nat;
mod dns_probe;
mod dns_rewrite;
mod exclusive;
mod hostile;
mod hosts;
mod http;
mod json;
mod killed;
mod ledger;
mod limits;
mod link;
mod losses;
mod matrix;
mod names;
mod nat;
mod netem;
mod notify;
mod outage;
mod own;
mod packet;
mod pinned;
mod processes;
mod programs;
mod progress;
mod receiver;
mod recheck;
mod reload;
mod reload_outputs;
mod reverse;
mod shape;
mod stress;
mod support;
mod targets;
mod telemetry;
mod tracefs;
mod wake;
mod ways;
mod workloads;
