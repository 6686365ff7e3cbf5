//! A progress bar on a terminal, for captures that take longer than a second.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

const SHOWN_AFTER: Duration = Duration::from_secs(1);

/// Bytes read, of how many, and how fast.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    start: Instant,
    is_shown: bool,
    /// Records go to the same terminal: lines and bar would overwrite each other.
    shares_terminal: bool,
}

impl Progress {
    /// Not shown yet. A `size` of 0 is not known, as of a pipe.
    pub(super) fn new(size: u64, writes_to_stdout: bool) -> Self {
        let size = (size > 0).then_some(size);
        let bar = ProgressBar::with_draw_target(size, ProgressDrawTarget::hidden());
        let template = if size.is_some() {
            "{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left"
        } else {
            "{spinner} {bytes}, {bytes_per_sec}"
        };
        // The template is fixed, and good.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self {
            bar,
            start: Instant::now(),
            is_shown: false,
            shares_terminal: writes_to_stdout && std::io::stdout().is_terminal(),
        }
    }

    /// So much has been read.
    pub(super) fn at(&mut self, bytes: u64) {
        // indicatif itself draws only on a terminal, and not at every call.
        if !self.is_shown && self.start.elapsed() >= SHOWN_AFTER {
            self.is_shown = true;
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.set_position(bytes);
    }

    /// A record is about to be written.
    pub(super) fn make_way(&self) {
        if self.shares_terminal {
            self.bar.finish_and_clear();
        }
    }

    /// Nothing more is read.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}
