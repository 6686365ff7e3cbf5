//! Ring 3 without a kernel: deliveries to a real receiver that fails as it is told to. No root.
//!
//! `injector` is the receiver, `store` what it remembers, `mode` what goes wrong. `offer` is how a delivery is
//! put before it, and `injected` tests the injector with plain clients.

mod answer;
mod certificates;
mod clients;
mod injected;
mod injector;
mod mode;
mod offer;
mod store;
