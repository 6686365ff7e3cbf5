//! Files that come, change and go, by a clock that the tests set.

use std::net::IpAddr;

use super::super::Hosts;
use super::*;

const SECOND: u64 = 1_000_000_000;

/// Wall time when the clock of the kernel was 0: the files of these tests are older than all of it.
const BOOT_UNIX_NS: u64 = 4_000_000_000 * SECOND;

/// Each cgroup's root is a folder of its number; what cannot be known, is.
#[derive(Debug)]
struct Folders(tempfile::TempDir);

impl Files for Folders {
    fn open(&mut self, cgroup_id: u64) -> Opening {
        match File::open(self.root(cgroup_id)) {
            Ok(root) => file::open_below(root),
            Err(_) => Opening::Gone,
        }
    }

    fn read(&mut self, _: u64, file: File) -> Result<Content, Option<String>> {
        file::read(&file).map_err(|error| Some(error.to_string()))
    }

    fn name(&self, cgroup_id: u64) -> String {
        format!("/{cgroup_id}")
    }
}

impl Folders {
    fn root(&self, cgroup_id: u64) -> PathBuf {
        self.0.path().join(cgroup_id.to_string())
    }

    fn hosts(&self, cgroup_id: u64) -> PathBuf {
        self.root(cgroup_id).join("etc/hosts")
    }

    /// Writes a file under another name and moves it into place: as most programs do it.
    fn write(&self, cgroup_id: u64, text: &str) {
        let hosts = self.hosts(cgroup_id);
        std::fs::create_dir_all(hosts.parent().unwrap()).unwrap();
        let new = hosts.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, hosts).unwrap();
    }
}

struct World {
    hosts: Hosts,
    keeper: Keeper<Folders>,
    told: std::sync::mpsc::Receiver<(u64, u64)>,
}

impl World {
    fn new() -> Self {
        let (hosts, told) = Hosts::new();
        let folders = Folders(tempfile::tempdir().unwrap());
        let keeper = Keeper::new(Arc::clone(&hosts.state), folders);
        Self { hosts, keeper, told }
    }

    fn write(&self, cgroup_id: u64, text: &str) {
        self.keeper.files.write(cgroup_id, text);
    }

    /// An event of a cgroup, and what the thread does about it.
    fn see(&mut self, cgroup_id: u64, at_ns: u64) {
        self.hosts.observe(cgroup_id, at_ns);
        while let Ok((id, seen_ns)) = self.told.try_recv() {
            self.keeper.learn(id, seen_ns, now(at_ns));
        }
    }

    fn look(&mut self, at_ns: u64) {
        self.keeper.look(|| now(at_ns));
    }

    fn names(&self, cgroup_id: u64, ip: &str, at_ns: u64) -> Vec<String> {
        let addr: IpAddr = ip.parse().unwrap();
        let names = self.hosts.names(cgroup_id, addr.into(), at_ns);
        names.iter().flat_map(|names| names.iter()).map(ToString::to_string).collect()
    }
}

fn now(boot_ns: u64) -> Now {
    Now { boot_ns, boot_to_unix_ns: BOOT_UNIX_NS }
}

#[test]
fn a_connection_older_than_the_first_look_has_its_name() {
    let mut world = World::new();
    world.write(7, "192.0.2.1 db.test db\n");
    assert_eq!(world.names(7, "192.0.2.1", SECOND), Vec::<String>::new());
    world.see(7, 5 * SECOND);
    assert_eq!(world.names(7, "192.0.2.1", SECOND), ["db.test", "db"]);
    assert_eq!(world.names(8, "192.0.2.1", SECOND), Vec::<String>::new(), "another workload");
    assert_eq!(world.names(7, "192.0.2.2", SECOND), Vec::<String>::new());
    let stats = world.hosts.stats();
    assert_eq!((stats.named, stats.unnamed), (1, 3));
    assert_eq!((stats.cgroups, stats.tables, stats.reads), (1, 1, 1));
}

#[test]
fn names_are_those_of_the_moment() {
    let mut world = World::new();
    world.write(7, "192.0.2.1 first\n");
    world.see(7, 10 * SECOND);
    world.write(7, "192.0.2.1 second\n");
    // Seen by nobody: not looked at.
    world.look(20 * SECOND);
    assert_eq!(world.names(7, "192.0.2.1", 20 * SECOND), ["first"]);
    world.see(7, 25 * SECOND);
    world.look(30 * SECOND);
    world.see(7, 35 * SECOND);
    world.look(40 * SECOND);
    std::fs::remove_file(world.keeper.files.hosts(7)).unwrap();
    world.see(7, 45 * SECOND);
    world.look(50 * SECOND);
    for (at, want) in [(29, "first"), (30, "second"), (49, "second"), (50, "")] {
        let names = world.names(7, "192.0.2.1", at * SECOND);
        assert_eq!(names.join(" "), want, "at {at} s");
    }
    assert_eq!(world.hosts.stats().changes, 2);
    // Written anew with the same text: nothing has changed.
    world.write(7, "192.0.2.1 third\n");
    world.see(7, 55 * SECOND);
    world.look(60 * SECOND);
    world.write(7, "192.0.2.1 third\n");
    world.see(7, 65 * SECOND);
    world.look(70 * SECOND);
    assert_eq!(world.hosts.stats().changes, 3);
    assert_eq!(world.names(7, "192.0.2.1", 61 * SECOND), ["third"]);
}

#[test]
fn a_change_counts_from_when_it_was_made() {
    let unix = |seconds: u64| BOOT_UNIX_NS + seconds * SECOND;
    let stamp = |mtime, ctime| {
        let (mtime_ns, ctime_ns) = (unix(mtime), unix(ctime));
        Some(Stamp { device: 1, inode: 2, size: 3, mtime_ns, ctime_ns })
    };
    for (mtime, ctime, verified, want, why) in [
        (15, 15, None, 15, "read first"),
        (15, 15, Some(10), 15, "written in place"),
        (5, 15, Some(10), 15, "written earlier, then moved into place"),
        (5, 5, Some(10), 20, "another mount: nobody knows when"),
        (99, 99, Some(10), 20, "a wall clock that was set back"),
    ] {
        let since = since(stamp(mtime, ctime), verified.map(|s| s * SECOND), now(20 * SECOND));
        assert_eq!(since, want * SECOND, "{why}");
    }
    assert_eq!(since(None, Some(10 * SECOND), now(20 * SECOND)), 20 * SECOND);
}

#[test]
fn a_file_of_just_now_is_read_again() {
    let mut world = World::new();
    world.write(7, "192.0.2.1 first\n");
    let hosts = world.keeper.files.hosts(7);
    // By the clock of the wall, so that the file is of just now.
    let at = std::fs::metadata(&hosts).unwrap().modified().unwrap();
    let unix = at.duration_since(std::time::UNIX_EPOCH).unwrap();
    let boot_ns = 100 * SECOND;
    let boot_to_unix_ns = u64::try_from(unix.as_nanos()).unwrap() - boot_ns;
    let moment = |ns: u64| Now { boot_ns: ns, boot_to_unix_ns };
    world.keeper.learn(7, boot_ns, moment(boot_ns));
    let reads = |world: &World| world.hosts.stats().reads;
    assert_eq!(reads(&world), 1);
    // Nothing was seen of it since, and it is read all the same: until its time lies back.
    world.keeper.look(|| moment(boot_ns + SECOND / 2));
    assert_eq!(reads(&world), 2);
    world.keeper.look(|| moment(boot_ns + 10 * SECOND));
    assert_eq!(reads(&world), 3);
    world.keeper.look(|| moment(boot_ns + 20 * SECOND));
    assert_eq!(reads(&world), 3);
    assert_eq!((world.hosts.stats().changes, world.hosts.stats().tables), (0, 1));
}

#[test]
fn one_file_of_several_cgroups_is_read_once() {
    let mut world = World::new();
    world.write(7, "192.0.2.1 shared\n");
    for id in [8, 9] {
        std::fs::create_dir_all(world.keeper.files.hosts(id).parent().unwrap()).unwrap();
        std::fs::hard_link(world.keeper.files.hosts(7), world.keeper.files.hosts(id)).unwrap();
    }
    for id in [7, 8, 9] {
        world.see(id, SECOND);
        assert_eq!(world.names(id, "192.0.2.1", SECOND), ["shared"]);
    }
    world.look(10 * SECOND);
    let stats = world.hosts.stats();
    assert_eq!((stats.cgroups, stats.tables, stats.reads), (3, 1, 1));
}

#[test]
fn a_cgroup_is_forgotten_when_it_is_gone_or_silent_for_long() {
    let mut world = World::new();
    for id in [7, 8] {
        world.write(id, &format!("192.0.2.1 of{id}\n"));
        world.see(id, SECOND);
    }
    world.see(8, 10 * SECOND);
    std::fs::remove_dir_all(world.keeper.files.root(8)).unwrap();
    world.look(11 * SECOND);
    assert_eq!(world.names(8, "192.0.2.1", SECOND), ["of8"], "its connections end later");
    world.look(70 * SECOND);
    assert_eq!(world.names(8, "192.0.2.1", SECOND), Vec::<String>::new());
    assert_eq!(world.names(7, "192.0.2.1", SECOND), ["of7"]);
    world.look(601 * SECOND);
    let stats = world.hosts.stats();
    assert_eq!((stats.cgroups, stats.tables, stats.bytes, stats.forgotten), (0, 0, 0, 2));
    // Seen again, it is read again.
    world.see(7, 602 * SECOND);
    assert_eq!(world.names(7, "192.0.2.1", SECOND), ["of7"]);
}

#[test]
fn what_cannot_be_read_is_asked_for_again_after_the_next_look() {
    let mut world = World::new();
    for second in 1..5 {
        world.see(7, second * SECOND);
    }
    world.write(7, "192.0.2.1 late\n");
    world.see(7, 5 * SECOND);
    assert_eq!(world.names(7, "192.0.2.1", 5 * SECOND), Vec::<String>::new());
    world.look(10 * SECOND);
    world.see(7, 11 * SECOND);
    assert_eq!(world.names(7, "192.0.2.1", 11 * SECOND), ["late"]);
}

#[test]
fn too_many_cgroups_at_once_are_refused_and_counted() {
    let world = World::new();
    let some = super::super::MAX_ASKED as u64;
    for id in 1..=some + 10 {
        world.hosts.observe(id, SECOND);
    }
    assert_eq!(world.hosts.stats().refused, 10);
    assert_eq!(world.told.try_iter().count() as u64, some);
    world.hosts.observe(0, SECOND);
    assert_eq!(world.told.try_iter().count(), 0, "no cgroup");
}

#[test]
fn memory_is_bounded_and_those_in_use_stay() {
    use std::fmt::Write as _;
    let mut world = World::new();
    // About 600 kB in memory each.
    let large = |id: u64| {
        let mut text = String::new();
        for n in 0..3000 {
            let _ = writeln!(text, "10.{id}.{}.{} host{n}", n / 256, n % 256);
        }
        text
    };
    let count = 60;
    for id in 1..=count {
        world.write(id, &large(id));
        world.see(id, SECOND);
    }
    let stats = world.hosts.stats();
    assert!(stats.bytes <= MAX_BYTES as u64 && stats.bytes > MAX_BYTES as u64 / 2, "{stats:?}");
    assert_eq!((stats.evicted, stats.no_room + stats.cgroups), (0, count), "{stats:?}");
    assert!(stats.no_room > 0, "{stats:?}");
    assert_eq!(world.names(1, "10.1.0.0", SECOND), ["host0"]);
    // A minute later those that nothing was seen of make room.
    world.look(10 * SECOND);
    world.see(2, 70 * SECOND);
    world.see(count, 71 * SECOND);
    assert_eq!(world.names(count, &format!("10.{count}.0.0"), SECOND), ["host0"]);
    assert_eq!(world.names(2, "10.2.0.0", SECOND), ["host0"]);
    let stats = world.hosts.stats();
    assert_eq!(stats.evicted, 1, "{stats:?}");
    assert!(stats.bytes <= MAX_BYTES as u64, "{stats:?}");
}

#[test]
fn what_is_ignored_is_said_once() {
    let mut world = World::new();
    std::fs::create_dir_all(world.keeper.files.hosts(7)).unwrap();
    for second in [1, 11, 21] {
        world.see(7, second * SECOND);
        world.look((second + 5) * SECOND);
    }
    let words = "/etc/hosts of /7: it is a folder, not a regular file";
    assert_eq!(world.keeper.said.iter().collect::<Vec<_>>(), [words]);
}
