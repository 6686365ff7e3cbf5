//! Ring 3 without a kernel: deliveries to a real receiver that fails as it is told to. Root only for the disks.
//!
//! `injector` is the receiver, `store` what it remembers, `mode` what goes wrong. `offer` is how a delivery is
//! put before it, and `injected` tests the injector with plain clients. `site` is flowend's delivery, from its
//! sinks on, which `faults`, `disks`, `causes` and `stop` try; `program` is the same as a process, for `kills` and
//! `overload`.

mod answer;
mod causes;
mod certificates;
mod clients;
#[path = "../../testing/deaf.rs"]
mod deaf;
mod disks;
mod faults;
mod injected;
mod injector;
mod kills;
mod mode;
mod offer;
mod overload;
mod program;
mod site;
mod stop;
mod store;
#[path = "../../testing/synthetic.rs"]
mod synthetic;
