//! Reload: by signal and by each way a file changes; what is good takes effect, what is bad does not.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::connections::{Role, make};
use super::support::{Cgroup, Flowend, Puppet, can_run, wait_until};
use super::telemetry::{port, scrape, sum};

/// A folder with a configuration file, and the program that runs by it.
pub(crate) struct Site {
    folder: tempfile::TempDir,
    pub(crate) flowend: Flowend,
}

impl Site {
    fn start(text: &str) -> Self {
        Self::start_with(text, &[])
    }

    pub(crate) fn start_with(text: &str, args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("flowend.toml");
        std::fs::write(&file, text).unwrap();
        let fixed = ["--config", file.to_str().unwrap(), "--output=json"];
        let flowend = Flowend::run(&[&fixed, args].concat());
        Self { folder, flowend }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("flowend.toml")
    }

    /// As an editor does.
    pub(crate) fn replace(&self, text: &str) {
        let new = self.folder.path().join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.file()).unwrap();
    }

    fn hang_up(&self) {
        kill(Pid::from_raw(self.flowend.pid().cast_signed()), Signal::SIGHUP).unwrap();
    }

    /// How often it was said, at least.
    pub(crate) fn wait_for(&self, words: &str, times: usize) {
        wait_until(
            || self.flowend.stderr().matches(words).count() >= times,
            || format!("not {times} times \"{words}\": {}", self.flowend.stderr()),
        );
    }

    /// The service.name of the next connection's records.
    fn service(&self, cgroup: &Cgroup) -> String {
        let before = self.flowend.json().len();
        connect(cgroup);
        wait_until(|| self.flowend.json().len() >= before + 2, || self.flowend.stderr());
        self.flowend.json()[before]["resource"]["service.name"].as_str().unwrap().to_owned()
    }
}

fn connect(cgroup: &Cgroup) {
    let (mut client, mut server) = (Puppet::in_cgroup(cgroup), Puppet::in_cgroup(cgroup));
    make(&mut client, &mut server, "127.0.0.1:0", Role::Client, false);
}

fn config(cgroup: &Cgroup, service: &str) -> String {
    format!("targets = [\"{}\"]\n[resource]\nservice_name = \"{service}\"\n", cgroup.name)
}

#[test]
fn a_bad_file_leaves_the_old_one_in_force_and_says_why() {
    if !can_run("a_bad_file_leaves_the_old_one_in_force_and_says_why", &[]) {
        return;
    }
    let cgroup = Cgroup::new();
    let site = Site::start(&config(&cgroup, "first"));
    assert_eq!(site.service(&cgroup), "first");
    let file = site.file().display().to_string();
    for (text, words) in [
        (
            format!("{}[sampling]\nratio = 2.0\n", config(&cgroup, "bad")),
            "key `sampling.ratio`: 2 is",
        ),
        (format!("{}[oops\n", config(&cgroup, "bad")), "not valid TOML"),
        (format!("service = 1\n{}", config(&cgroup, "bad")), "unknown key `service`"),
    ] {
        site.replace(&text);
        site.wait_for(&format!("the configuration is not reloaded: file {file}: {words}"), 1);
        assert_eq!(site.service(&cgroup), "first", "{words}");
    }
    std::fs::remove_file(site.file()).unwrap();
    site.wait_for("No such file or directory", 1);
    assert_eq!(site.service(&cgroup), "first", "no file");
    site.wait_for("the one from before stays in force", 4);
    // And a good one is taken after them.
    site.replace(&config(&cgroup, "second"));
    site.wait_for("configuration reloaded: resource.service_name", 1);
    assert_eq!(site.service(&cgroup), "second");
    site.flowend.stop();
}

#[test]
fn what_is_excluded_changes_while_flowend_runs() {
    if !can_run("what_is_excluded_changes_while_flowend_runs", &[]) {
        return;
    }
    let cgroup = Cgroup::new();
    let inner = Cgroup::named(&format!("{}/inner", cgroup.name.trim_start_matches('/')));
    let text = |exclude: &str| format!("targets = [\"{}\"]\nexclude = [{exclude}]\n", cgroup.name);
    let quoted = |cgroup: &Cgroup| format!("\"{}\"", cgroup.name);
    let site = Site::start(&text(&quoted(&inner)));
    // Two more records, each of this cgroup: what came before them made none.
    let mut known = 0;
    let mut two_of = |cgroup: &Cgroup| {
        connect(cgroup);
        wait_until(|| site.flowend.json().len() >= known + 2, || site.flowend.stderr());
        for record in &site.flowend.json()[known..] {
            assert_eq!(record["resource"]["process.linux.cgroup"], cgroup.name, "{record}");
        }
        known += 2;
    };
    connect(&inner);
    two_of(&cgroup);
    site.replace(&text(""));
    site.wait_for("configuration reloaded: exclude", 1);
    two_of(&inner);
    // All of the target: there is nothing to attach to.
    site.replace(&text(&quoted(&cgroup)));
    site.wait_for(&format!("cgroup {}: excluded; no longer attached itself", cgroup.name), 1);
    site.wait_for(&format!("target {}: `exclude` covers all of it", cgroup.name), 1);
    connect(&cgroup);
    site.replace(&text(""));
    site.wait_for(&format!("cgroup {}: attached", cgroup.name), 2);
    two_of(&cgroup);
    let (status, messages) = site.flowend.stop();
    assert_eq!(status, Some(0), "{messages}");
    let want =
        "json: seen 8 = exported 6 + sampled_out 0 + filtered{self} 0 + filtered{excluded} 2 +";
    assert!(messages.contains(want), "{messages}");
    drop(inner);
}

#[test]
fn a_signal_a_write_a_replacement_and_a_turned_link_each_reload() {
    if !can_run("a_signal_a_write_a_replacement_and_a_turned_link_each_reload", &[]) {
        return;
    }
    let cgroup = Cgroup::new();
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().to_owned();
    // As kubelet leaves the volume of a ConfigMap.
    let version = |service: &str| {
        std::fs::create_dir(root.join(format!("..{service}"))).unwrap();
        let file = root.join(format!("..{service}/flowend.toml"));
        std::fs::write(&file, config(&cgroup, service)).unwrap();
        symlink(format!("..{service}"), root.join("..data_tmp")).unwrap();
        std::fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
        file
    };
    let behind = version("v0");
    let file = root.join("flowend.toml");
    symlink("..data/flowend.toml", &file).unwrap();
    let flowend = Flowend::run(&["--config", file.to_str().unwrap(), "--output=json"]);
    let site = Site { folder, flowend };
    let words = "configuration reloaded: resource.service_name";

    std::fs::write(&behind, config(&cgroup, "written")).unwrap();
    site.wait_for(words, 1);
    assert_eq!(site.service(&cgroup), "written");
    version("turned");
    site.wait_for(words, 2);
    assert_eq!(site.service(&cgroup), "turned");
    site.replace(&config(&cgroup, "replaced"));
    site.wait_for(words, 3);
    assert_eq!(site.service(&cgroup), "replaced");
    site.hang_up();
    site.wait_for("configuration reloaded: nothing has changed", 1);
    assert_eq!(site.service(&cgroup), "replaced");
    site.flowend.stop();
}

/// Without a file there is nothing to watch; the signal is taken all the same, and does not end the program.
#[test]
fn a_signal_without_a_file_changes_nothing() {
    if !can_run("a_signal_without_a_file_changes_nothing", &[]) {
        return;
    }
    let cgroup = Cgroup::new();
    let flowend = Flowend::run(&["--output=json", &format!("--set=targets={}", cgroup.name)]);
    let site = Site { folder: tempfile::tempdir().unwrap(), flowend };
    site.hang_up();
    site.wait_for("configuration reloaded: nothing has changed", 1);
    assert_eq!(site.flowend.stop().0, Some(0));
}

#[test]
fn what_needs_a_restart_is_named_and_the_rest_takes_effect() {
    if !can_run("what_needs_a_restart_is_named_and_the_rest_takes_effect", &[]) {
        return;
    }
    let cgroup = Cgroup::new();
    let site = Site::start_with(&config(&cgroup, "first"), &["--set=telemetry.listen=127.0.0.1:0"]);
    let text = format!("{}[flows]\nmax = 1000\n[ids]\nkey = \"hush\"\n", config(&cgroup, "second"));
    site.replace(&text);
    site.wait_for("configuration reloaded: resource.service_name", 1);
    site.wait_for(
        "configuration reloaded, but without flows.max, ids.key: changed since the start",
        1,
    );
    assert_eq!(site.service(&cgroup), "second");
    assert!(!site.flowend.stderr().contains("hush"), "a secret: {}", site.flowend.stderr());

    // The level of the messages is among what takes effect.
    let port = port(&site.flowend);
    let reloads = |outcome: &str| {
        sum(&scrape(port), "flowend_config_reloads_total", &format!("outcome=\"{outcome}\""))
    };
    site.replace(&format!("{text}[log]\nlevel = \"error\"\n"));
    wait_until(|| reloads("applied") == 2, || site.flowend.stderr());
    let before = site.flowend.stderr();
    site.hang_up();
    // A restart is still to come.
    wait_until(|| reloads("applied") == 3, || site.flowend.stderr());
    assert_eq!(site.flowend.stderr(), before, "not even a warning");
    assert_eq!(sum(&scrape(port), "flowend_config_last_reload_success", ""), 1);
    site.replace("oops");
    wait_until(|| reloads("refused") == 1, || site.flowend.stderr());
    assert_eq!(sum(&scrape(port), "flowend_config_last_reload_success", ""), 0);
    site.wait_for("the configuration is not reloaded", 1);
    site.replace(&text);
    site.wait_for("configuration reloaded: log.level", 1);
    site.flowend.stop();
}

#[test]
fn an_added_target_is_attached_and_a_removed_one_is_detached() {
    if !can_run("an_added_target_is_attached_and_a_removed_one_is_detached", &[]) {
        return;
    }
    let (first, second) = (Cgroup::new(), Cgroup::new());
    let site = Site::start(&config(&first, "a"));
    let cgroups_of = |records: &[serde_json::Value]| {
        let mut names: Vec<_> = records
            .iter()
            .map(|r| r["resource"]["process.linux.cgroup"].as_str().unwrap().to_owned())
            .collect();
        names.sort();
        names.dedup();
        names
    };
    for (targets, want) in [
        (vec![&second], vec![second.name.clone()]),
        (vec![&first, &second], {
            let mut names = vec![first.name.clone(), second.name.clone()];
            names.sort();
            names
        }),
        (vec![&first], vec![first.name.clone()]),
    ] {
        let names: Vec<_> = targets.iter().map(|cgroup| format!("\"{}\"", cgroup.name)).collect();
        site.replace(&format!("targets = [{}]\n", names.join(",")));
        for cgroup in [&first, &second] {
            let is_wanted = want.contains(&cgroup.name);
            wait_until(
                || {
                    site.messages_of(&cgroup.name).last().is_some_and(|m| m.ends_with(": attached"))
                        == is_wanted
                },
                || site.flowend.stderr(),
            );
        }
        let before = site.flowend.json().len();
        connect(&first);
        connect(&second);
        wait_until(
            || site.flowend.json().len() >= before + 2 * want.len(),
            || site.flowend.stderr(),
        );
        // Longer than a verdict takes: what else there is would be here by then.
        std::thread::sleep(std::time::Duration::from_millis(200));
        let records = site.flowend.json();
        assert_eq!(cgroups_of(&records[before..]), want);
        assert_eq!(records.len(), before + 2 * want.len());
    }
    site.flowend.stop();
}

impl Site {
    /// What was said of a cgroup's attachment, in order.
    fn messages_of(&self, cgroup: &str) -> Vec<String> {
        let start = format!("cgroup {cgroup}: ");
        let messages = self.flowend.stderr();
        messages.lines().filter(|line| line.contains(&start)).map(str::to_owned).collect()
    }
}
