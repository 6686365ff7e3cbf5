//! Frames of any bytes through all of `replay` but its file.

use std::time::Duration;

use super::capture::Packet;
use super::engine::{Ended, Engine};
use super::names::NameSources;
use crate::dns::DnsSettings;

/// Connections at the same time: few, so that room runs out.
const MAX_FLOWS: usize = 8;

/// Takes in frames, each a number of a link type and its bytes, a second apart; checks that each is accounted
/// for and that each connection gives one record; and returns the names told.
pub(crate) fn frames<'a>(frames: impl Iterator<Item = (u32, &'a [u8])>) -> Vec<String> {
    let cache = DnsSettings {
        cache_bytes: 1 << 20,
        min_ttl: Duration::from_secs(5),
        max_ttl: Duration::from_secs(60),
    };
    let sources = NameSources { cache, mdns: true, llmnr: true };
    let mut engine = Engine::new(MAX_FLOWS, Some(sources), Vec::new());
    let mut ended = Vec::new();
    for (index, (link, bytes)) in (1_u64..).zip(frames) {
        let on_the_wire = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let time_ns = index * 1_000_000_000;
        // Where there is no room, replay ends; here it goes on with what is open.
        let _ = engine.packet(&Packet { index, time_ns, link, bytes, on_the_wire });
        ended.extend(std::iter::from_fn(|| engine.next_end()));
        assert!(engine.summary().holds(), "{}", engine.summary());
        let (_, streams, fragments) = engine.dns_stats().unwrap_or_default();
        assert!(streams.holds() && fragments.holds(), "{streams}; {fragments}");
    }
    while engine.finish_one() {}
    ended.extend(std::iter::from_fn(|| engine.next_end()));
    assert_eq!(engine.summary().connections, ended.len() as u64);
    let names = |end: Ended| end.local_names.into_iter().chain(end.remote_names);
    ended.into_iter().flat_map(names).map(|name| name.to_string()).collect()
}
