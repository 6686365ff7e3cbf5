//! What is written is read; anything else is not believed.

use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

const NOW: u64 = 1_700_000_000_000_000_000;
const DAY: u64 = 86_400_000_000_000;
const HOST: u64 = 77;

fn here(kind: ScopeKind) -> Here {
    Here { boot_id: "b3d5".to_owned(), kind, host_scope: HOST }
}

fn entry(scope: u64, addr: &str, names: &[&str], until_ns: u64) -> Entry {
    Entry {
        scope,
        addr: addr.parse::<IpAddr>().unwrap().into(),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        source: "dns".to_owned(),
        from_ns: NOW - 5,
        until_ns,
    }
}

fn some() -> Vec<Entry> {
    vec![
        entry(1, "192.0.2.1", &["shop.test", "edge.test"], NOW + 60),
        entry(HOST, "2001:db8::1", &["xn--bcher-kva.test", "a\\027b"], NOW + 1),
        entry(2, "192.0.2.2", &["lapsed.test"], NOW),
    ]
}

fn bytes_of(entries: Vec<Entry>, here: &Here) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&mut bytes, &mut entries.into_iter(), here, MAX_BYTES).unwrap();
    bytes
}

/// A folder, and a path in it.
fn place() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("names");
    (folder, path)
}

fn put(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn read_here(path: &Path) -> Result<Restored, SnapshotError> {
    read(path, &here(ScopeKind::Cgroup), NOW, DAY)
}

fn refusal(path: &Path) -> String {
    let text = read_here(path).unwrap_err().to_string();
    assert!(text.contains(path.to_str().unwrap()), "{text}");
    text
}

#[test]
fn what_was_written_is_restored_without_what_has_lapsed() {
    let (folder, path) = place();
    assert_eq!(read_here(&path).unwrap(), Restored::default(), "there is none yet");
    let cgroup = here(ScopeKind::Cgroup);
    let written = write(&path, &mut some().into_iter(), &cgroup).unwrap();
    assert_eq!(written, Written { entries: 3, left_out: 0 });
    let restored = read_here(&path).unwrap();
    assert_eq!(restored.entries, some()[..2]);
    assert_eq!(restored.to_string(), "names of before: 2 restored, 1 had lapsed");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // Nothing lies beside it, and writing again replaces it.
    write(&path, &mut std::iter::empty(), &cgroup).unwrap();
    assert_eq!(read_here(&path).unwrap().entries, []);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn scopes_mean_nothing_in_another_boot_but_that_of_the_host() {
    use ScopeKind::{Cgroup, Host, Target};
    let cases = [
        (Cgroup, Cgroup, true, vec![1, HOST], None),
        (Cgroup, Cgroup, false, vec![], Some(Foreign::Boot)),
        (Target, Target, false, vec![], Some(Foreign::Boot)),
        (Host, Host, true, vec![1, HOST], None),
        (Host, Host, false, vec![HOST], Some(Foreign::Boot)),
        (Cgroup, Host, true, vec![], Some(Foreign::Kind)),
        (Host, Target, false, vec![], Some(Foreign::Kind)),
    ];
    for (theirs, ours, same_boot, scopes, why) in cases {
        let (_folder, path) = place();
        let mut writer = here(theirs);
        if !same_boot {
            writer.boot_id = "another".to_owned();
        }
        write(&path, &mut some().into_iter(), &writer).unwrap();
        let restored = read(&path, &here(ours), NOW, DAY).unwrap();
        let got: Vec<u64> = restored.entries.iter().map(|entry| entry.scope).collect();
        assert_eq!((got, restored.why_foreign), (scopes, why), "{theirs:?} {ours:?} {same_boot}");
        assert_eq!(restored.entries.len() + restored.lapsed + restored.foreign, 3);
        let text = restored.to_string();
        assert_eq!(text.contains("left out"), why.is_some(), "{text}");
    }
}

#[test]
fn a_clock_that_was_wrong_makes_no_name_hold_for_longer() {
    let (_folder, path) = place();
    let future = Entry { from_ns: NOW + DAY, ..entry(1, "192.0.2.1", &["a.test"], u64::MAX) };
    write(&path, &mut std::iter::once(future), &here(ScopeKind::Cgroup)).unwrap();
    let [entry] = read_here(&path).unwrap().entries.try_into().unwrap();
    assert_eq!((entry.from_ns, entry.until_ns), (NOW, NOW + DAY));
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = bytes_of(some(), &here(ScopeKind::Cgroup));
    assert!(decode(&bytes, 9).is_ok());
    for length in 0..bytes.len() {
        assert!(decode(&bytes[..length], 9).is_err(), "{length}");
        let longer = [&bytes[..], &bytes[..length + 1]].concat();
        assert!(decode(&longer, 9).is_err(), "{length} more");
    }
}

#[test]
fn a_byte_changed_anywhere_is_noticed() {
    let bytes = bytes_of(some(), &here(ScopeKind::Cgroup));
    for at in 0..bytes.len() {
        for change in [0x01, 0x20, 0x80, 0xff] {
            let mut changed = bytes.clone();
            changed[at] ^= change;
            assert!(decode(&changed, 9).is_err(), "{at}: {}", String::from_utf8_lossy(&changed));
        }
    }
}

/// With a right last line.
fn summed(lines: &[&str]) -> Vec<u8> {
    let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let last = last_line(lines.len() - 1, Sha256::new_with_prefix(&body));
    (body + &last).into_bytes()
}

#[test]
fn what_is_wrong_is_said() {
    let header = r#"{"flowend_names":1,"boot_id":"b3d5","scope":"cgroup"}"#;
    let with = |name: &str, source: &str| {
        format!(
            r#"{{"scope":1,"addr":"192.0.2.1","names":[{name}],"source":"{source}","from_ns":1,"until_ns":2}}"#
        )
    };
    let good = with(r#""a.test""#, "dns");
    let long = with(&format!("\"{}\"", "a".repeat(256)), "dns");
    let many = with(&vec![r#""a""#; 33].join(","), "dns");
    let cases: [(&str, Vec<u8>, &str); 13] = [
        ("nothing", Vec::new(), "is no file of names"),
        ("a folder's list", b"hello\nworld\n".to_vec(), "is no file of names"),
        ("JSON of others", b"{\"a\":1}\n{}\n".to_vec(), "is no file of names"),
        ("a newer one", b"{\"flowend_names\":2,\"what\":[]}\n".to_vec(), "version 2"),
        ("the header alone", format!("{header}\n").into_bytes(), "ends before its last line"),
        ("no number", summed(&[header, &good.replace("192.0.2.1", "here")]), "line 2 is no entry"),
        ("a long name", summed(&[header, &good, &long]), "line 3 is no entry"),
        ("many names", summed(&[header, &many]), "line 2 is no entry"),
        ("no name", summed(&[header, &with("", "dns")]), "line 2 is no entry"),
        ("an empty name", summed(&[header, &with(r#""""#, "dns")]), "line 2 is no entry"),
        ("ESC", summed(&[header, &with(r#""\u001b[31m""#, "dns")]), "line 2 is no entry"),
        ("a source with a quote", summed(&[header, &with(r#""a""#, "d'")]), "line 2 is no entry"),
        ("a field more", summed(&[header, &good.replace("{", r#"{"x":1,"#)]), "line 2 is no entry"),
    ];
    let (_folder, path) = place();
    for (what, bytes, words) in cases {
        put(&path, &bytes);
        let text = refusal(&path);
        assert!(text.contains(words), "{what}: {text}");
    }
    put(&path, &summed(&[header, &good]));
    assert_eq!(read_here(&path).unwrap().lapsed, 1, "the good one is good");
}

#[test]
fn a_file_that_others_may_have_written_is_refused() {
    let (folder, path) = place();
    write(&path, &mut some().into_iter(), &here(ScopeKind::Cgroup)).unwrap();
    for (mode, refused) in [(0o622, true), (0o620, true), (0o602, true), (0o644, false)] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(read_here(&path).is_err(), refused, "{mode:o}");
    }
    let link = folder.path().join("link");
    symlink(&path, &link).unwrap();
    assert!(refusal(&link).contains("is no regular file"));
    assert!(refusal(folder.path()).contains("is no regular file"));
    let pipe = folder.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(refusal(&pipe).contains("is no regular file"));
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&path, Some(12_345), None).unwrap();
        let text = refusal(&path);
        assert!(text.contains("belongs to user 12345") && text.contains("chown"), "{text}");
    }
}

#[test]
fn a_link_in_its_place_is_replaced_and_not_followed() {
    let (folder, path) = place();
    let victim = folder.path().join("victim");
    put(&victim, b"untouched");
    symlink(&victim, &path).unwrap();
    symlink(&victim, beside_of(&path)).unwrap();
    write(&path, &mut some().into_iter(), &here(ScopeKind::Cgroup)).unwrap();
    assert_eq!(std::fs::read(&victim).unwrap(), b"untouched");
    assert_eq!(read_here(&path).unwrap().entries.len(), 2);
}

fn beside_of(path: &Path) -> PathBuf {
    path.with_file_name(".names.new")
}

#[test]
fn where_nothing_can_be_written_the_old_one_stays() {
    let (folder, path) = place();
    let elsewhere = folder.path().join("none").join("names");
    let write_to = |path: &Path| {
        write(path, &mut some().into_iter(), &here(ScopeKind::Cgroup)).unwrap_err().to_string()
    };
    let text = write_to(&elsewhere);
    assert!(text.contains("StateDirectory") && text.contains("none/names"), "{text}");
    assert!(!elsewhere.parent().unwrap().exists(), "no folder is made");
    assert!(write_to(Path::new("/")).contains("set dns.snapshot"));
    // What fails halfway.
    write(&path, &mut some().into_iter(), &here(ScopeKind::Cgroup)).unwrap();
    let failed = crate::whole_file::replace(&path, |out| {
        out.write_all(b"half")?;
        Err::<(), _>(io::ErrorKind::StorageFull.into())
    });
    let failed = unwritten(&path, failed.unwrap_err());
    assert!(failed.to_string().contains("make room"));
    assert_eq!(read_here(&path).unwrap().entries.len(), 2);
    assert!(!beside_of(&path).exists());
    // A folder lies where the new one would.
    std::fs::create_dir(beside_of(&path)).unwrap();
    let text = write_to(&path);
    assert!(text.contains("able to write to its folder") && text.contains("is a folder"), "{text}");
}

#[test]
fn what_is_too_much_is_left_out_and_never_read() {
    let here = here(ScopeKind::Cgroup);
    let mut bytes = Vec::new();
    let many = (0..1000).map(|_| entry(1, "192.0.2.1", &["a.test"], NOW + 60));
    let written = encode(&mut bytes, &mut many.into_iter(), &here, 10_000).unwrap();
    assert!(bytes.len() <= 10_000 && written.left_out > 0 && written.entries > 0);
    assert_eq!(written.entries + written.left_out, 1000);
    assert!(decode(&bytes, written.entries).is_ok());
    let refused = decode(&bytes, written.entries - 1);
    assert!(matches!(refused, Err(Reason::TooMany)));
    // Nor is one kept that would be refused.
    let bad = entry(1, "192.0.2.1", &["a\nb"], NOW + 60);
    let written = encode(&mut Vec::new(), &mut std::iter::once(bad), &here, MAX_BYTES).unwrap();
    assert_eq!(written, Written { entries: 0, left_out: 1 });
    // A sparse file.
    let (_folder, path) = place();
    put(&path, b"{");
    std::fs::File::options().write(true).open(&path).unwrap().set_len(MAX_BYTES + 1).unwrap();
    assert!(refusal(&path).contains("is longer than"));
}
