//! Whether flowend is ready: attached, and its destinations take what it sends.

use std::sync::Arc;
use std::time::Duration;

use crate::probe::AttachState;

/// How one destination takes one signal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationHealth {
    /// Its name.
    pub destination: Arc<str>,
    /// "logs" or "traces".
    pub signal: &'static str,
    /// Since the first failure after which nothing succeeded; `None` while it works.
    pub failing_for: Option<Duration>,
    /// What it, or the network before it, said last.
    pub last_error: Option<String>,
}

/// Why flowend is not ready, a line for each reason; none where it is.
///
/// Ready is who is attached to a cgroup at least, or waits for one as configured: a target need not exist yet. Not
/// ready is who wanted to attach and could not, and whose destination has been failing for longer than `limit`:
/// what is reported then piles up.
pub fn why_not_ready(
    attach: &AttachState,
    destinations: &[DestinationHealth],
    limit: Duration,
) -> Vec<String> {
    let mut reasons = Vec::new();
    if attach.attached == 0 {
        reasons.extend(attach.errors.iter().map(|error| format!("not attached: {error}")));
    }
    for health in destinations {
        let Some(failing_for) = health.failing_for.filter(|length| *length > limit) else {
            continue;
        };
        let mut reason = format!(
            "destination {}, {}: failing for {} s",
            health.destination,
            health.signal,
            failing_for.as_secs(),
        );
        if let Some(error) = &health.last_error {
            reason.push_str(": ");
            reason.push_str(error);
        }
        reasons.push(reason);
    }
    // A line each, whatever a receiver says.
    reasons.into_iter().map(|reason| reason.replace(['\n', '\r'], " ")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn attached(attached: usize, errors: &[&str]) -> AttachState {
        let errors = errors.iter().map(ToString::to_string).collect();
        AttachState { attached, errors, programs: Vec::new() }
    }

    fn failing(seconds: Option<u64>, error: Option<&str>) -> DestinationHealth {
        DestinationHealth {
            destination: "main".into(),
            signal: "logs",
            failing_for: seconds.map(Duration::from_secs),
            last_error: error.map(str::to_owned),
        }
    }

    #[test]
    fn ready_is_attached_or_waiting_and_not_failing_for_long() {
        type Case<'a> = (AttachState, &'a [DestinationHealth], &'a [&'a str]);
        let cases: &[Case<'_>] = &[
            (attached(1, &[]), &[], &[]),
            (attached(0, &[]), &[], &[]),
            (attached(1, &["cgroup /b: no"]), &[], &[]),
            (
                attached(0, &["cgroup /a: no", "cgroup /b: no"]),
                &[],
                &["not attached: cgroup /a: no", "not attached: cgroup /b: no"],
            ),
            (attached(1, &[]), &[failing(None, None), failing(Some(60), Some("x"))], &[]),
            (
                attached(1, &[]),
                &[failing(Some(61), Some("refused\r\nready")), failing(None, None)],
                &["destination main, logs: failing for 61 s: refused  ready"],
            ),
            (
                attached(0, &["cgroup /a: no"]),
                &[failing(Some(90), None)],
                &["not attached: cgroup /a: no", "destination main, logs: failing for 90 s"],
            ),
        ];
        for (attach, destinations, want) in cases {
            let got = why_not_ready(attach, destinations, LIMIT);
            assert_eq!(got, *want, "{attach:?} {destinations:?}");
        }
    }
}
