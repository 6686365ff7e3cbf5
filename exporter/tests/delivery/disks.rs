//! A spool on a disk that is full, or read-only. Root only: the disk is a small tmpfs, in a mount namespace
//! of the test's own thread.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use flowend::ledger::DropCause;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::injector::Injector;
use super::mode::{Mode, Protocol};
use super::offer::{Delivery as _, agree};
use super::site::{MAIN, Site, settings};
use super::store::Signal;

const QUEUE: u64 = 50;

/// Says whether the test can run; where CI demands that it does, a lack of root fails it.
fn can_run(test: &str) -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    let required = std::env::var("TEST_REQUIRE").is_ok_and(|v| v == "all");
    assert!(!required, "TEST_REQUIRE=all, and {test} needs root");
    // Not eprintln: the harness would keep it to itself.
    let _ = writeln!(std::io::stderr(), "\n*** SKIPPED {test}: needs root ***");
    false
}

/// Runs a test with a disk of a MiB, which nobody else sees, and which goes with the thread.
fn with_disk<T: Future<Output = ()>>(test: impl FnOnce(std::path::PathBuf) -> T + Send + 'static) {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().to_owned();
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .unwrap();
        mount(Some("tmpfs"), &disk, Some("tmpfs"), MsFlags::empty(), Some("size=1m")).unwrap();
        // Its blocking threads are begun by this one, and so see what it sees.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(test(disk));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn remount(disk: &Path, more: MsFlags) {
    let flags = MsFlags::MS_REMOUNT | more;
    mount(None::<&str>, disk, None::<&str>, flags, Some("size=1m")).unwrap();
}

fn start(injector: &Injector, protocol: Protocol, disk: &Path) -> Site {
    let directory = format!("spool.directory={}", disk.join("spool").display());
    let queue = format!("export.queue_records={QUEUE}");
    Site::start(settings(injector, protocol, &[&directory, &queue]))
}

/// Offers ends from `next` on, a few at a time, until something is so.
async fn offer_until(site: &mut Site, next: &mut u64, is_so: impl Fn(&Site) -> bool) {
    let most = *next + 1_000_000;
    while !is_so(site) {
        assert!(*next < most, "never so");
        site.push(*next..*next + 10);
        *next += 10;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn spooled(site: &Site) -> [u64; 2] {
    Signal::ALL.map(|signal| site.counted(MAIN, signal).spooled)
}

/// Nothing is in flight; the identity holds; the receiver agrees.
#[track_caller]
fn assert_agrees(site: &Site, injector: &Injector) {
    for signal in Signal::ALL {
        let totals = site.totals(signal);
        assert_eq!(totals.in_flight, 0, "{signal:?}");
        agree(signal, totals, &injector.received()).unwrap();
    }
}

#[test]
fn a_disk_that_is_full_costs_what_does_not_fit_into_the_queue() {
    if !can_run("a_disk_that_is_full_costs_what_does_not_fit_into_the_queue") {
        return;
    }
    for protocol in Protocol::ALL {
        with_disk(async move |disk| {
            let injector = Injector::start(protocol);
            injector.set(Mode::Refused).await;
            let mut site = start(&injector, protocol, &disk);
            let mut next = 0;
            // Of each signal: they share the disk, and the one may have filled it for the other.
            offer_until(&mut site, &mut next, |site| {
                let dropped = |signal| site.counted(MAIN, signal).dropped(DropCause::SpoolFailed);
                Signal::ALL.iter().all(|signal| dropped(*signal) > 0)
            })
            .await;
            // It held what it could: of a MiB, two signals of about a kB.
            assert!(spooled(&site).iter().sum::<u64>() > 500, "{:?}", spooled(&site));
            for signal in Signal::ALL {
                let totals = site.totals(signal);
                assert_eq!((totals.seen, totals.exported), (next, 0));
                totals.add_up().unwrap();
            }
            injector.set(Mode::Healthy).await;
            site.settle().await;
            assert_agrees(&site, &injector);
            // All that had been spooled is gone from the disk, though no word of it could be written there.
            drop(site.finish(std::future::pending()).await);
            let site = start(&injector, protocol, &disk);
            assert_eq!(Signal::ALL.map(|signal| site.totals(signal).recovered), [0; 2]);
        });
    }
}

#[test]
fn a_disk_that_turns_read_only_is_read_and_written_again_when_it_can_be() {
    if !can_run("a_disk_that_turns_read_only_is_read_and_written_again_when_it_can_be") {
        return;
    }
    for protocol in Protocol::ALL {
        with_disk(async move |disk| {
            let injector = Injector::start(protocol);
            injector.set(Mode::Refused).await;
            let mut site = start(&injector, protocol, &disk);
            let mut next = 0;
            offer_until(&mut site, &mut next, |site| spooled(site).iter().all(|n| *n > 100)).await;
            let before = site.finish(std::future::pending()).await;
            // The spool keeps what is unsent.
            let kept: Vec<_> = before.iter().map(|(_, totals)| totals.in_flight).collect();
            let mut site = start(&injector, protocol, &disk);
            assert_eq!(Signal::ALL.map(|signal| site.totals(signal).recovered).to_vec(), kept);
            remount(&disk, MsFlags::MS_RDONLY);
            offer_until(&mut site, &mut next, |site| {
                let dropped = |signal| site.counted(MAIN, signal).dropped(DropCause::SpoolFailed);
                Signal::ALL.iter().all(|signal| dropped(*signal) > 0)
            })
            .await;
            injector.set(Mode::Healthy).await;
            site.settle().await;
            // Of the earlier life what it did not drop.
            for signal in Signal::ALL {
                let counted = site.counted(MAIN, signal);
                assert_eq!(counted.exported, injector.received().acknowledged(signal));
                assert!(counted.exported > counted.recovered && counted.spooled == 0);
                site.totals(signal).add_up().unwrap();
            }
            remount(&disk, MsFlags::empty());
            injector.set(Mode::Refused).await;
            offer_until(&mut site, &mut next, |site| spooled(site).iter().all(|n| *n > 0)).await;
            injector.set(Mode::Healthy).await;
            site.settle().await;
            assert_agrees(&site, &injector);
            // What was answered for while it could not be written down has been written down since.
            drop(site.finish(std::future::pending()).await);
            let site = start(&injector, protocol, &disk);
            assert_eq!(Signal::ALL.map(|signal| site.totals(signal).recovered), [0; 2]);
        });
    }
}
