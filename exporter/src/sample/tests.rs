//! What each condition asks, which rule decides, and what becomes of errors.

use flowend_probe_types::Addr;
use proptest::prelude::*;

use super::*;
use crate::flow::{Counters, Direction, Endpoint, Reason, Rtt};
use crate::targets::Pattern;

const REASONS: [Reason; 10] = Reason::ALL;

fn v4(a: u8, b: u8, c: u8, d: u8) -> Addr {
    Addr::v4(u32::from_ne_bytes([a, b, c, d]))
}

/// 10.0.0.1:40000 connected to 192.0.2.7:443, and closed after 5 s and 300 bytes.
fn end() -> ConnectionEnd {
    ConnectionEnd {
        cookie: 1,
        listener: None,
        cgroup_id: None,
        direction: Direction::Outgoing,
        local: Endpoint { addr: v4(10, 0, 0, 1), port: 40_000 },
        remote: Endpoint { addr: v4(192, 0, 2, 7), port: 443 },
        start_ns: 1_000_000_000,
        start_known: true,
        end_ns: 6_000_000_000,
        end_known: true,
        by: None,
        reason: Reason::Fin,
        reset_by: None,
        conn_state: "SF",
        history: String::new(),
        half_close_ns: None,
        counters: Counters {
            bytes_sent: Some(100),
            bytes_received: Some(200),
            ..Counters::default()
        },
        rtt: Rtt::default(),
        isns: None,
    }
}

/// A connection and what is known beside it.
struct Case {
    kind: RecordKind,
    end: ConnectionEnd,
    names: Vec<Arc<str>>,
    cgroup: Option<&'static str>,
    executable: Option<&'static str>,
    trace_id: TraceId,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            kind: RecordKind::End,
            end: end(),
            names: vec!["www.Example.com".into(), "edge.cdn.test".into()],
            cgroup: Some("/system.slice/nginx.service/worker"),
            executable: Some("curl"),
            trace_id: TraceId::from(1 << 40),
        }
    }
}

impl Case {
    fn facts(&self) -> Facts<'_> {
        Facts {
            trace_id: self.trace_id,
            kind: self.kind,
            end: &self.end,
            remote_names: &self.names,
            cgroup_path: self.cgroup,
            executable: self.executable,
        }
    }
}

fn ended(change: impl FnOnce(&mut ConnectionEnd)) -> Case {
    let mut case = Case::default();
    change(&mut case.end);
    case
}

fn sampler(ratio: f64, keep_errors: bool, rules: Vec<Rule>) -> Sampler {
    Sampler::new(SamplingSettings { ratio, keep_errors, rules })
}

fn rule<const N: usize>(conditions: [Condition; N], action: Action) -> Rule {
    Rule { conditions: conditions.into(), action }
}

fn certain() -> Decision {
    Decision::Keep(Kept { probability: 1.0, threshold: Some(0) })
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

fn ports(given: &[&str]) -> Condition {
    Condition::Ports(given.iter().map(|text| PortRange::parse(text).unwrap()).collect())
}

fn ranges(given: &[&str]) -> Vec<ipnet::IpNet> {
    given.iter().map(|text| text.parse().unwrap()).collect()
}

fn domains(given: &[&str]) -> Condition {
    Condition::Domains(Globs::of_domains(&texts(given)).unwrap())
}

fn processes(given: &[&str]) -> Condition {
    Condition::Processes(Globs::of_processes(&texts(given)).unwrap())
}

fn cgroups(given: &[&str]) -> Condition {
    Condition::Cgroups(given.iter().map(|text| Pattern::parse(text).unwrap()).collect())
}

/// Whether a rule of this condition alone matches.
fn holds(condition: &Condition, case: &Case) -> bool {
    let sampler = sampler(1.0, true, vec![rule([condition.clone()], Action::Drop)]);
    sampler.decide(&case.facts()) == Decision::Filtered
}

#[test]
fn conditions_of_a_connection_and_its_end() {
    use Condition::{Direction as Dir, MinBytes, MinDuration, Reasons};
    const S: u64 = 1_000_000_000;
    let of_kind = |kind| Case { kind, ..Case::default() };
    let incoming = || {
        ended(|e| {
            e.direction = Direction::Incoming;
            (e.local.port, e.remote.port) = (443, 40_000);
        })
    };
    let unknown = || ended(|e| e.direction = Direction::Unknown);
    let cases: Vec<(Condition, Case, bool)> = vec![
        (Reasons(vec![Reason::Reset, Reason::Fin]), Case::default(), true),
        (Reasons(vec![Reason::Reset]), Case::default(), false),
        (Reasons(vec![Reason::Open]), ended(|e| e.reason = Reason::Open), true),
        // A begin or progress has no reason, although it says that it is open.
        (Reasons(REASONS.to_vec()), of_kind(RecordKind::Begin), false),
        (Reasons(REASONS.to_vec()), of_kind(RecordKind::Progress), false),
        (Dir(Direction::Outgoing), Case::default(), true),
        (Dir(Direction::Incoming), Case::default(), false),
        (Dir(Direction::Unknown), unknown(), true),
        (Dir(Direction::Outgoing), of_kind(RecordKind::Begin), true),
        // The server's port, and either's where that is not known.
        (ports(&["443"]), Case::default(), true),
        (ports(&["443"]), incoming(), true),
        (ports(&["40000"]), Case::default(), false),
        (ports(&["40000"]), incoming(), false),
        (ports(&["443"]), unknown(), true),
        (ports(&["40000"]), unknown(), true),
        (ports(&["80", "440-443"]), Case::default(), true),
        (ports(&["443-444"]), Case::default(), true),
        (ports(&["0-442", "444-65535"]), Case::default(), false),
        (MinDuration(5 * S), Case::default(), true),
        (MinDuration(5 * S + 1), Case::default(), false),
        (MinDuration(5 * S), of_kind(RecordKind::Progress), false),
        // As long as it was seen, an old one lived at least; until when is not known without an end.
        (MinDuration(5 * S), ended(|e| e.start_known = false), true),
        (MinDuration(S), ended(|e| e.end_known = false), false),
        (MinBytes(300), Case::default(), true),
        (MinBytes(301), Case::default(), false),
        (MinBytes(300), of_kind(RecordKind::Progress), false),
        (MinBytes(200), ended(|e| e.counters.bytes_sent = None), true),
        (MinBytes(201), ended(|e| e.counters.bytes_sent = None), false),
        (MinBytes(u64::MAX), ended(|e| e.counters.bytes_sent = Some(u64::MAX)), true),
        (Condition::Cidrs(ranges(&["192.0.2.0/24"])), Case::default(), true),
        (Condition::Cidrs(ranges(&["10.0.0.0/8", "::/0"])), Case::default(), false),
        (Condition::LocalCidrs(ranges(&["10.0.0.0/8"])), Case::default(), true),
        (Condition::LocalCidrs(ranges(&["192.0.2.0/24"])), Case::default(), false),
    ];
    for (condition, case, want) in cases {
        assert_eq!(holds(&condition, &case), want, "{condition:?} {:?} {:?}", case.kind, case.end);
    }
}

#[test]
fn conditions_of_names() {
    let cases = [
        (domains(&["www.example.com"]), true),
        (domains(&["WWW.example.COM."]), true),
        (domains(&["*.example.com"]), true),
        (domains(&["example.com"]), false),
        // Any name of the peer, at any depth.
        (domains(&["*.test"]), true),
        (domains(&["x", "edge.*"]), true),
        (domains(&["*.cdn.tes?"]), true),
        (domains(&["*.cdn.test.*"]), false),
        (domains(&["{api,www}.example.[a-c]om"]), true),
        (processes(&["curl"]), true),
        (processes(&["Curl"]), false),
        (processes(&["wget", "cu*"]), true),
        (processes(&["cur"]), false),
        (cgroups(&["nginx.service"]), true),
        (cgroups(&["system.slice"]), true),
        (cgroups(&["system.slice/*.service/worker"]), true),
        (cgroups(&["/"]), true),
        (cgroups(&["worker"]), false),
    ];
    for (condition, want) in cases {
        let holds = |case: Case| holds(&condition, &case);
        assert_eq!(holds(Case::default()), want, "{condition:?}");
        let nothing_known =
            || Case { names: Vec::new(), cgroup: None, executable: None, ..Case::default() };
        assert!(!holds(nothing_known()), "{condition:?}");
    }
}

#[test]
fn all_conditions_of_a_rule_must_hold() {
    let both = |port| {
        let conditions = [ports(&[port]), processes(&["curl"])];
        sampler(1.0, true, vec![rule(conditions, Action::Drop)])
    };
    assert_eq!(both("443").decide(&Case::default().facts()), Decision::Filtered);
    assert_eq!(both("80").decide(&Case::default().facts()), certain());
}

#[test]
fn the_first_rule_that_matches_decides() {
    let nothing = Action::Ratio(Share::new(0.0));
    let cases: Vec<(Vec<Rule>, Decision)> = vec![
        (vec![rule([], Action::Keep), rule([], Action::Drop)], certain()),
        (vec![rule([], Action::Drop), rule([], Action::Keep)], Decision::Filtered),
        (vec![rule([ports(&["80"])], Action::Drop), rule([], Action::Keep)], certain()),
        (vec![rule([ports(&["443"])], nothing), rule([], Action::Keep)], Decision::SampledOut),
        // None matches: the default ratio, of nothing here.
        (vec![rule([ports(&["80"])], Action::Keep)], Decision::SampledOut),
    ];
    for (rules, want) in cases {
        let sampler = sampler(0.0, true, rules.clone());
        assert_eq!(sampler.decide(&Case::default().facts()), want, "{rules:?}");
    }
}

#[test]
fn errors_are_kept_unless_somebody_says_so() {
    let nothing = Action::Ratio(Share::new(0.0));
    let named = || Condition::Reasons(vec![Reason::Reset, Reason::Fin]);
    let kept = certain();
    let cases: Vec<(bool, Vec<Rule>, Decision)> = vec![
        // keep_errors; rules; a reset at the default ratio 0
        (true, vec![], kept),
        (false, vec![], Decision::SampledOut),
        (true, vec![rule([], nothing)], kept),
        (true, vec![rule([ports(&["443"])], nothing)], kept),
        (false, vec![rule([ports(&["443"])], nothing)], Decision::SampledOut),
        (true, vec![rule([named()], nothing)], Decision::SampledOut),
        (true, vec![rule([ports(&["443"]), named()], nothing)], Decision::SampledOut),
        (true, vec![rule([], Action::Drop)], Decision::Filtered),
        (false, vec![rule([], Action::Keep)], kept),
    ];
    for (keep_errors, rules, want) in cases {
        let sampler = sampler(0.0, keep_errors, rules.clone());
        let reset = ended(|e| e.reason = Reason::Reset);
        assert_eq!(sampler.decide(&reset.facts()), want, "{keep_errors} {rules:?}");
    }
    for reason in REASONS {
        let sampler = sampler(0.0, true, Vec::new());
        let want = if reason.error_type().is_some() { kept } else { Decision::SampledOut };
        assert_eq!(sampler.decide(&ended(|e| e.reason = reason).facts()), want, "{reason:?}");
    }
}

#[test]
fn what_is_kept_says_how() {
    let last = TraceId::from(u128::MAX);
    let kept = |ratio, rules| {
        let case = Case { trace_id: last, ..Case::default() };
        match sampler(ratio, true, rules).decide(&case.facts()) {
            Decision::Keep(kept) => kept,
            other => panic!("{other:?}"),
        }
    };
    let half = Action::Ratio(Share::new(0.5));
    let never = || rule([ports(&["80"])], Action::Drop);
    // Nothing can be left out: nothing is said.
    assert_eq!(kept(1.0, vec![]), Kept::UNSAMPLED);
    assert_eq!(kept(1.0, vec![never()]), Kept { probability: 1.0, threshold: Some(0) });
    assert_eq!(kept(0.25, vec![]), Kept { probability: 0.25, threshold: Some(3 << 54) });
    assert_eq!(
        kept(0.25, vec![rule([], half)]),
        Kept { probability: 0.5, threshold: Some(1 << 55) }
    );
    let keep = rule([], Action::Keep);
    assert_eq!(kept(0.25, vec![keep]), Kept { probability: 1.0, threshold: Some(0) });
}

#[test]
fn names_are_asked_for_where_a_rule_needs_them() {
    assert!(!sampler(0.5, true, vec![rule([ports(&["1"])], Action::Keep)]).looks_at_names());
    let named = rule([ports(&["1"]), domains(&["*"])], Action::Keep);
    assert!(sampler(0.5, true, vec![named]).looks_at_names());
}

#[test]
fn what_cannot_be_meant_is_refused_with_a_remedy() {
    let port = |text| PortRange::parse(text).unwrap_err();
    let domain = |text: &str| Globs::of_domains(&texts(&["a", text])).unwrap_err();
    let process = |text: &str| Globs::of_processes(&texts(&["a", text])).unwrap_err();
    let cases = [
        (port(""), "like \"443\""),
        (port("https"), "\"https\" is no port"),
        (port("65536"), "from 0 to 65535"),
        (port("1-2-3"), "\"1-2-3\""),
        (port("-5"), "no range of ports"),
        (port("90-80"), "write \"80-90\""),
        (domain("["), "\"[\": unclosed character class"),
        (domain(" "), "use \"*\" for any"),
        (domain("https://x.test"), "like \"*.example.com\""),
        (domain("x.test:443"), "a port in `ports`"),
        (process("/usr/bin/curl"), "like \"curl\""),
        (process("{a"), "unclosed alternate group"),
    ];
    for (error, words) in cases {
        assert!(error.contains(words), "{error}\nlacks: {words}");
    }
}

proptest! {
    #[test]
    fn both_ends_choose_alike(ratio in 0.0..=1.0, id: u128, reasons in (0..10_usize, 0..10_usize)) {
        let sampler = sampler(ratio, false, Vec::new());
        let client = Case { trace_id: TraceId::from(id), ..ended(|e| e.reason = REASONS[reasons.0]) };
        let mut server = ended(|e| {
            e.direction = Direction::Incoming;
            std::mem::swap(&mut e.local, &mut e.remote);
            e.reason = REASONS[reasons.1];
        });
        server.trace_id = client.trace_id;
        prop_assert_eq!(sampler.decide(&client.facts()), sampler.decide(&server.facts()));
    }

    #[test]
    fn a_rule_of_a_lower_ratio_keeps_part_of_what_a_higher_one_keeps(
        a in 0.0..=1.0_f64, b in 0.0..=1.0_f64, id: u128,
    ) {
        let decide = |ratio| {
            let rules = vec![rule([ports(&["443"])], Action::Ratio(Share::new(ratio)))];
            let case = Case { trace_id: TraceId::from(id), ..Case::default() };
            sampler(1.0, true, rules).decide(&case.facts())
        };
        let (low, high) = (decide(a.min(b)), decide(a.max(b)));
        prop_assert!(low == Decision::SampledOut || matches!(high, Decision::Keep(_)));
    }
}
