//! `resource.service_name`: text with what is known of a workload in it.

use std::collections::BTreeMap;
use std::fmt;

/// Text, and `{a|b|c}` for the first of the variables that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    First(Vec<Variable>),
}

/// What can be known of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Variable {
    Container,
    ContainerId,
    Unit,
    Executable,
    Folder,
    Cgroup,
    PodUid,
    Host,
    Label(String),
}

/// The variables by name, beside `label:KEY`.
const VARIABLES: [(&str, Variable); 8] = [
    ("container", Variable::Container),
    ("container_id", Variable::ContainerId),
    ("unit", Variable::Unit),
    ("executable", Variable::Executable),
    ("folder", Variable::Folder),
    ("cgroup", Variable::Cgroup),
    ("pod_uid", Variable::PodUid),
    ("host", Variable::Host),
];

/// What is known of a workload. Empty text is as good as none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known<'a> {
    /// The id of its container.
    pub container_id: Option<&'a str>,
    /// The systemd unit, without its suffix.
    pub unit: Option<&'a str>,
    /// The base name of its executable.
    pub executable: Option<&'a str>,
    /// The last folder of its cgroup.
    pub folder: Option<&'a str>,
    /// Its cgroup.
    pub cgroup: Option<&'a str>,
    /// The uid of its pod.
    pub pod_uid: Option<&'a str>,
    /// The host's name.
    pub host: Option<&'a str>,
    /// The pod's labels.
    pub labels: Option<&'a BTreeMap<String, String>>,
}

impl<'a> Known<'a> {
    fn get(&self, variable: &Variable) -> Option<&'a str> {
        let value = match variable {
            // The short form, as container tools print it.
            Variable::Container => self.container_id.map(|id| id.get(..12).unwrap_or(id)),
            Variable::ContainerId => self.container_id,
            Variable::Unit => self.unit,
            Variable::Executable => self.executable,
            Variable::Folder => self.folder,
            Variable::Cgroup => self.cgroup,
            Variable::PodUid => self.pod_uid,
            Variable::Host => self.host,
            Variable::Label(key) => self.labels.and_then(|l| l.get(key)).map(String::as_str),
        };
        value.filter(|text| !text.is_empty())
    }
}

impl Default for Template {
    /// `{container|unit|executable|folder|host}`.
    fn default() -> Self {
        use Variable::{Container, Executable, Folder, Host, Unit};
        Self {
            text: "{container|unit|executable|folder|host}".into(),
            parts: vec![Part::First(vec![Container, Unit, Executable, Folder, Host])],
        }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Template {
    /// Parses one. `{{` and `}}` are a brace each.
    ///
    /// # Errors
    /// What is wrong with it and where, as text for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            literal.push_str(&rest[..at]);
            let here = text.len() - rest.len() + at;
            rest = &rest[at..];
            if let Some(behind) = rest.strip_prefix("{{").or_else(|| rest.strip_prefix("}}")) {
                literal.push_str(&rest[..1]);
                rest = behind;
            } else if rest.starts_with('}') {
                return Err(wrong(text, here, "`}` closes nothing; write `}}` for a brace itself"));
            } else {
                let Some(end) = rest.find('}') else {
                    let problem = "`{` is not closed; add `}`, or write `{{` for a brace itself";
                    return Err(wrong(text, here, problem));
                };
                if !literal.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut literal)));
                }
                parts.push(Part::First(alternatives(text, here + 1, &rest[1..end])?));
                rest = &rest[end + 1..];
            }
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        Ok(Self { text: text.to_owned(), parts })
    }

    /// The text, with nothing for what is not known; `None` where it asks for something and nothing of it
    /// is known.
    pub fn render(&self, known: &Known<'_>) -> Option<String> {
        let mut text = String::new();
        let (mut asks, mut is_any_known) = (false, false);
        for part in &self.parts {
            match part {
                Part::Text(literal) => text.push_str(literal),
                Part::First(variables) => {
                    asks = true;
                    if let Some(value) = variables.iter().find_map(|v| known.get(v)) {
                        is_any_known = true;
                        text.push_str(value);
                    }
                }
            }
        }
        (is_any_known || !asks).then_some(text)
    }

    /// Whether the text depends on the executable, whatever that is, where the rest is known.
    pub fn wants_executable(&self, known: &Known<'_>) -> bool {
        self.parts.iter().any(|part| match part {
            Part::Text(_) => false,
            Part::First(variables) => {
                let first = variables
                    .iter()
                    .find(|v| matches!(v, Variable::Executable) || known.get(v).is_some());
                matches!(first, Some(Variable::Executable))
            }
        })
    }
}

/// What stands between braces, which begins at byte `at` of the template.
fn alternatives(template: &str, at: usize, inside: &str) -> Result<Vec<Variable>, String> {
    let mut variables = Vec::new();
    let mut here = at;
    for text in inside.split('|') {
        let name = text.trim();
        let variable = match name.strip_prefix("label:") {
            Some("") => {
                return Err(wrong(
                    template,
                    here,
                    "`label:` names no label; write `label:app`, for example",
                ));
            }
            Some(key) => Some(Variable::Label(key.to_owned())),
            None => VARIABLES.into_iter().find(|(known, _)| *known == name).map(|(_, v)| v),
        };
        variables.push(variable.ok_or_else(|| unknown(template, here, name))?);
        here += text.len() + 1;
    }
    Ok(variables)
}

fn unknown(template: &str, at: usize, name: &str) -> String {
    let names = VARIABLES.map(|(known, _)| known);
    let nearest =
        names.into_iter().map(|known| (strsim::damerau_levenshtein(name, known), known)).min();
    let remedy = match nearest {
        Some((distance, known)) if distance <= 2 && !name.is_empty() => {
            format!("did you mean `{known}`?")
        }
        _ => format!("there are {} and label:KEY", names.join(", ")),
    };
    wrong(template, at, &format!("`{name}` is no variable; {remedy}"))
}

/// A problem at byte `at`, told in characters, the first of which is 1.
fn wrong(template: &str, at: usize, problem: &str) -> String {
    let place = template[..at].chars().count() + 1;
    format!("\"{template}\", at character {place}: {problem}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn labels() -> BTreeMap<String, String> {
        BTreeMap::from([
            ("app".into(), "shop".into()),
            ("app.kubernetes.io/name".into(), "web".into()),
            ("empty".into(), String::new()),
        ])
    }

    #[test]
    fn the_first_variable_that_is_known_is_taken() {
        let labels = labels();
        let known = Known {
            container_id: Some(ID),
            unit: Some("nginx"),
            executable: None,
            folder: Some("last"),
            cgroup: Some("/a/last"),
            pod_uid: Some("uid"),
            host: Some("h"),
            labels: Some(&labels),
        };
        let cases = [
            // template; text
            ("", Some("")),
            ("plain", Some("plain")),
            ("ünï-{unit}", Some("ünï-nginx")),
            ("{container}", Some("0123456789ab")),
            ("{container_id}", Some(ID)),
            ("{ executable | folder }", Some("last")),
            ("{cgroup}@{host}/{pod_uid}", Some("/a/last@h/uid")),
            ("{label:app}-{label:app.kubernetes.io/name}", Some("shop-web")),
            ("{label:empty|label:none|unit}", Some("nginx")),
            ("a-{executable}-{unit}", Some("a--nginx")),
            ("a-{executable|label:none}", None),
            ("{{{unit}}}", Some("{nginx}")),
            ("{{unit}}", Some("{unit}")),
        ];
        for (template, want) in cases {
            let parsed = Template::parse(template).unwrap();
            assert_eq!(parsed.render(&known).as_deref(), want, "{template}");
            assert_eq!(parsed.to_string(), template);
        }
        assert_eq!(Template::parse("{unit|label:a}").unwrap().render(&Known::default()), None);
    }

    #[test]
    fn the_default_is_what_it_says() {
        let default = Template::default();
        assert_eq!(Template::parse(&default.to_string()), Ok(default));
    }

    #[test]
    fn the_executable_matters_where_nothing_before_it_is_known() {
        let unit = Known { unit: Some("nginx"), host: Some("h"), ..Known::default() };
        let host = Known { unit: None, ..unit };
        let cases = [
            // template; with a unit; without
            ("plain", false, false),
            ("{unit|host}", false, false),
            ("{unit|executable}", false, true),
            ("{executable|unit}", true, true),
            ("{unit}-{executable}", true, true),
            ("{host|executable}", false, false),
            ("{container|unit|executable|folder|host}", false, true),
        ];
        for (template, with_unit, without) in cases {
            let template = Template::parse(template).unwrap();
            let wants = [&unit, &host].map(|known| template.wants_executable(known));
            assert_eq!(wants, [with_unit, without], "{template}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let cases = [
            ("a{unit", "at character 2: `{` is not closed"),
            ("a}b", "at character 2: `}` closes nothing"),
            ("ü{unti}", "at character 3: `unti` is no variable; did you mean `unit`?"),
            ("{unit|nonsense}", "at character 7: `nonsense` is no variable; there are container, "),
            ("{}", "at character 2: `` is no variable; there are"),
            ("{unit|label:}", "at character 7: `label:` names no label"),
            ("{unit}}", "at character 7: `}` closes nothing"),
        ];
        for (template, words) in cases {
            let error = Template::parse(template).unwrap_err();
            assert!(error.contains(words) && error.contains(template), "{error}\nlacks: {words}");
        }
    }
}
