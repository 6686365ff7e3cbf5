//! Tells systemd how flowend is (sd_notify(3)): ready once attached, reloading, stopping, and alive.
//!
//! Does nothing where no service manager asks for it (`NOTIFY_SOCKET`). Failures are not said: whoever listens
//! notices by himself, and has a timeout for it.

use std::time::Duration;

use sd_notify::NotifyState;

/// systemd, or whoever else speaks its protocol.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServiceManager;

impl ServiceManager {
    /// The programs are attached; or a reload is over, however it went.
    pub fn ready(self) {
        send(&[NotifyState::Ready]);
    }

    /// The configuration is being loaded again; [`ServiceManager::ready`] must follow. With the time, by which
    /// systemd knows which of its requests this answers.
    pub fn reloading(self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => send(&[NotifyState::Reloading, now]),
            Err(_) => send(&[NotifyState::Reloading]),
        }
    }

    /// flowend is on its way out.
    pub fn stopping(self) {
        send(&[NotifyState::Stopping]);
    }

    /// One line for whoever asks how flowend is.
    pub fn status(self, line: &str) {
        send(&[NotifyState::Status(line)]);
    }

    /// The data path is alive.
    pub fn alive(self) {
        send(&[NotifyState::Watchdog]);
    }

    /// How often [`ServiceManager::alive`] is to be said, where it is wanted: half of the time after which the
    /// service manager gives flowend up, as sd_watchdog_enabled(3) recommends.
    pub fn watchdog_interval(self) -> Option<Duration> {
        sd_notify::watchdog_enabled().map(|limit| limit / 2).filter(|half| !half.is_zero())
    }
}

fn send(state: &[NotifyState<'_>]) {
    // See above.
    let _ = sd_notify::notify(state);
}
