//! Names over a restart: the file that keeps them (`dns.snapshot`), and pins (`pin`).

use super::super::pinned;
use super::super::support::{Cgroup, can_run, wait_until};
use super::{Site, TOOLS, names, read, watch};

const ASK: &str = "run dig +short @127.0.0.1 www.names.test A";

#[test]
fn names_outlast_a_restart() {
    if !can_run("names_outlast_a_restart", TOOLS) {
        return;
    }
    let mut site = Site::new();
    let cgroup = Cgroup::new();
    let file = site.folder.path().join("names");
    let setting = format!("dns.snapshot={}", file.display());
    let mut puppet = site.puppet(&cgroup);

    let flowend = watch(&[&cgroup], &[&setting]);
    puppet.tell(ASK);
    let before = site.visit(&mut puppet, "127.0.1.2");
    let chain = names(&flowend, &before);
    assert_eq!(chain.len(), 6, "{chain:?}");
    let (code, messages) = flowend.stop();
    assert_eq!(code, Some(0), "{messages}");

    // Only an answer that was seen before can name this one.
    let flowend = watch(&[&cgroup], &[&setting]);
    let after = site.visit(&mut puppet, "127.0.1.1");
    assert_eq!(names(&flowend, &after), chain);
    flowend.stop();

    let whole = read(&file);
    let damaged = {
        let mut damaged = whole.clone();
        damaged[whole.len() / 2] ^= 1;
        damaged
    };
    for (content, what) in [
        (damaged, "a flipped bit"),
        (whole[..whole.len() / 2].to_vec(), "half of it"),
        (b"\x1b[2J\n".to_vec(), "another file"),
    ] {
        std::fs::write(&file, content).unwrap();
        let flowend = watch(&[&cgroup], &[&setting]);
        flowend.wait_for_message(&file.display().to_string());
        let visit = site.visit(&mut puppet, "127.0.1.1");
        assert_eq!(names(&flowend, &visit), [""; 0], "{what}");
        let (code, messages) = flowend.stop();
        assert_eq!(code, Some(0), "{what}: {messages}");
        assert!(!messages.contains('\x1b'), "{what}: {messages:?}");
    }
}

#[test]
fn with_pins_a_connection_keeps_its_name_and_what_is_looked_up_meanwhile_is_learnt() {
    let test = "with_pins_a_connection_keeps_its_name_and_what_is_looked_up_meanwhile_is_learnt";
    if !can_run(test, TOOLS) {
        return;
    }
    let mut site = Site::new();
    let pinned = pinned::Site::new();
    let mut puppet = site.puppet(&pinned.cgroup);
    let flowend = pinned.run_with(true, &["--set=events=[\"begin\",\"end\"]"]);
    puppet.tell(ASK);
    let open = site.open(&mut puppet, "127.0.1.2".parse().unwrap());
    // What it has not read yet would be read by the next one.
    wait_until(|| !flowend.json().is_empty(), || flowend.stderr());
    let (code, messages) = flowend.stop();
    assert_eq!(code, Some(0), "{messages}");
    // Without the cache of names: what is known of this connection was kept with it.
    std::fs::remove_file(pinned.state().with_file_name("state-names")).unwrap();

    puppet.tell("run dig +short @127.0.0.1 web.names.test A");
    let meanwhile = site.visit(&mut puppet, "127.0.2.1");
    let flowend = pinned.run();
    let unknown = site.visit(&mut puppet, "127.0.1.2");
    site.end(&mut puppet, &open);
    assert_eq!(names(&flowend, &open).len(), 6);
    assert_eq!(names(&flowend, &meanwhile), ["web.names.test"]);
    assert_eq!(names(&flowend, &unknown), [""; 0], "nobody knows the lookup any more");
    flowend.stop();
}
