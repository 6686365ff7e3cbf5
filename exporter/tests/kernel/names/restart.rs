//! The file that keeps the names over a restart (`dns.snapshot`).

use super::super::support::{Cgroup, can_run};
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
