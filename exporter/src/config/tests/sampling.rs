//! Rules of sampling, and the template of service.name.

use super::*;
use crate::config::raw::RawRule;
use crate::config::sampling::RULE;
use crate::sample::{Action, Share};

#[test]
fn the_example_of_a_rule_has_every_key() {
    let RawRule {
        reasons: Some(_),
        direction: Some(_),
        cidrs: Some(_),
        local_cidrs: Some(_),
        ports: Some(_),
        domains: Some(_),
        cgroups: Some(_),
        processes: Some(_),
        min_duration: Some(_),
        min_bytes: Some(_),
        action: Some(_),
        ratio: Some(_),
    } = toml::from_str(RULE).unwrap()
    else {
        panic!("a key is missing");
    };
    for key in RULE.lines().filter_map(|line| line.split(' ').next()).filter(|k| !k.is_empty()) {
        assert!(DEFAULT.contains(&format!("\n#   {key} ")), "{key} is not in the default file");
    }
}

#[test]
fn rules_are_taken_in_order_from_each_layer_as_a_whole() {
    let file = "[sampling]\nratio = 0.5\nkeep_errors = false\n\
        [[sampling.rules]]\nports = [\"443\", \"8000-8999\"]\nreasons = [\"reset\"]\nratio = 1\n\
        [[sampling.rules]]\naction = \"drop\"\n";
    let rules = |given: &Given<'_>| load_given(given).unwrap().settings.sampling.rules;
    let actions = |given| rules(given).iter().map(|rule| rule.action).collect::<Vec<_>>();
    assert!(rules(&Given::default()).is_empty());
    let given = Given { file: Some(file), ..Given::default() };
    assert_eq!(actions(&given), [Action::Ratio(Share::ALL), Action::Drop]);
    assert_eq!(rules(&given).iter().map(|r| r.conditions.len()).collect::<Vec<_>>(), [2, 0]);
    assert!(!load_given(&given).unwrap().settings.sampling.keep_errors);
    let env = &[("FLOWEND_SAMPLING__RULES", "[{ domains = [\"*.test\"], action = \"keep\" }]")];
    let given = Given { file: Some(file), env, set: &[] };
    assert_eq!(actions(&given), [Action::Keep]);
    let set = &["sampling.rules=[{ratio=0.25,min_bytes=0,min_duration=\"1s\"}]"];
    let given = Given { file: Some(file), env, set };
    assert_eq!(actions(&given), [Action::Ratio(Share::new(0.25))]);
    assert!(rules(&Given { set: &["sampling.rules=[]"], ..given }).is_empty());
}

#[test]
fn a_bad_rule_is_told_by_its_key() {
    let cases = [
        // the rule after a good one; words of the message
        ("prots = [\"1\"]", "unknown key `sampling.rules[1].prots`; did you mean `ports`?"),
        (
            "nonsense = 1",
            "unknown key `sampling.rules[1].nonsense`; the keys are action, cgroups, ",
        ),
        (
            "action = 1",
            "`sampling.rules[1].action` must be a string (for example: \"drop\"), not a number (1)",
        ),
        (
            "ports = 443",
            "`sampling.rules[1].ports` must be a list (for example: [\"443\", \"8000-8999\"])",
        ),
        (
            "ports = [443]",
            "`sampling.rules[1].ports` must be a list of strings, not a number (443)",
        ),
        ("ratio = \"half\"", "`sampling.rules[1].ratio` must be a number (for example: 0.1)"),
        ("min_bytes = 1.5", "`sampling.rules[1].min_bytes` must be a number"),
        ("", "`sampling.rules[1]`: does not say what to do; add action = \"keep\""),
        ("ratio = 0.1, action = \"keep\"", "`sampling.rules[1]`: has both action and ratio"),
        (
            "action = \"reject\"",
            "`sampling.rules[1].action`: \"reject\" is none of \"keep\", \"drop\"",
        ),
        ("ratio = 1.5", "`sampling.rules[1].ratio`: 1.5 is not between 0 and 1"),
        ("ratio = nan", "`sampling.rules[1].ratio`: NaN is not between 0 and 1"),
        ("ports = []", "`sampling.rules[1].ports`: empty: nothing would match"),
        ("ports = [\"http\"]", "`sampling.rules[1].ports`: \"http\" is no port"),
        ("ports = [\"9-8\"]", "`sampling.rules[1].ports`: \"9-8\" ends before it begins"),
        ("cidrs = [\"10.0.0.0/33\"]", "`sampling.rules[1].cidrs`: \"10.0.0.0/33\" is no range"),
        ("local_cidrs = [\"x\"]", "`sampling.rules[1].local_cidrs`: \"x\" is no range"),
        ("domains = [\"[\"]", "`sampling.rules[1].domains`: \"[\": unclosed character class"),
        ("processes = [\"a/b\"]", "`sampling.rules[1].processes`: \"a/b\" is a path"),
        ("cgroups = [\"a/..\"]", "`sampling.rules[1].cgroups`: \"a/..\" must not hold \"..\""),
        (
            "reasons = [\"rst\"]",
            "`sampling.rules[1].reasons`: \"rst\" is none of \"fin\", \"reset\", ",
        ),
        ("direction = \"in\"", "`sampling.rules[1].direction`: \"in\" is none of \"incoming\", "),
        (
            "min_duration = \"1 parsec\"",
            "`sampling.rules[1].min_duration`: \"1 parsec\" is no duration",
        ),
        ("min_bytes = -1", "`sampling.rules[1].min_bytes`: -1 is not between 0 and "),
    ];
    for (rule, words) in cases {
        let set = format!("sampling.rules=[{{action=\"keep\"}}, {{{rule}}}]");
        let error = load_given(&Given { set: &[&set], ..Given::default() }).unwrap_err();
        assert!(error.starts_with("--set sampling.rules: "), "{error}");
        assert!(error.contains(words), "{error}\nlacks: {words}");
    }
    let other = [
        ("sampling.rules=drop", "must be a list of tables, each with some of the keys action, "),
        ("sampling.rules=[\"drop\"]", "`sampling.rules[0]` must be a table with some of the keys"),
        ("sampling.rules=[{ratio=}]", "not a string (\"[{ratio=}]\")"),
        ("sampling.keep_errors=1", "must be true or false (default: true), not a number (1)"),
        (
            "resource.service_name=a-{unti}",
            "at character 4: `unti` is no variable; did you mean `unit`?",
        ),
        ("telemetry.max_services=0", "0 is not between 1 and 10000"),
    ];
    for (set, words) in other {
        let error = load_given(&Given { set: &[set], ..Given::default() }).unwrap_err();
        assert!(error.contains(words), "{error}\nlacks: {words}");
    }
    let file = Some("[[sampling.rules]]\nports = [\"x\"]\n");
    let error = load_given(&Given { file, ..Given::default() }).unwrap_err();
    assert!(error.starts_with("file FILE: key `sampling.rules[0].ports`: "), "{error}");
}

#[test]
fn rules_are_printed_a_line_each() {
    let set =
        &["sampling.rules=[{ports=[\"443\"],action=\"drop\"},{domains=[\"*.test\"],ratio=0.5}]"];
    let text = print(&load_given(&Given { set, ..Given::default() }).unwrap());
    let lines: Vec<_> = text.lines().skip_while(|l| !l.starts_with("sampling.rules")).collect();
    assert!(lines[0].starts_with("sampling.rules = [ "), "{}", lines[0]);
    assert!(lines[0].ends_with(" # --set sampling.rules"), "{}", lines[0]);
    let want = [
        "    { action = \"drop\", ports = [\"443\"] },",
        "    { domains = [\"*.test\"], ratio = 0.5 },",
        "]",
    ];
    assert_eq!(lines[1..4], want);
    let read: toml::Table = text.parse().unwrap();
    assert_eq!(read["sampling"]["rules"].as_array().map(Vec::len), Some(2));
    let text = print(&load_given(&Given::default()).unwrap());
    assert!(
        text.lines().any(|l| l.starts_with("sampling.rules = [] ") && l.ends_with("# default"))
    );
}
