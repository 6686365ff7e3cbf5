//! A progress bar on a terminal, for captures that take longer than a second.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

const SHOWN_AFTER: Duration = Duration::from_secs(1);

/// Bytes read, of how many, and how fast.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    /// The only one that can take a bar off the terminal without ending it.
    screen: MultiProgress,
    start: Instant,
    /// Where to draw, until the bar is shown.
    target: Option<ProgressDrawTarget>,
    /// Records go to the same terminal: lines and bar would overwrite each other.
    shares_terminal: bool,
}

impl Progress {
    /// Not shown yet. A `size` of 0 is not known, as of a pipe.
    pub(super) fn new(size: u64, writes_to_stdout: bool) -> Self {
        let shares_terminal = writes_to_stdout && std::io::stdout().is_terminal();
        Self::on(ProgressDrawTarget::stderr(), size, shares_terminal)
    }

    fn on(target: ProgressDrawTarget, size: u64, shares_terminal: bool) -> Self {
        let size = (size > 0).then_some(size);
        let screen = MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
        let bar = screen.add(ProgressBar::no_length());
        let template = if let Some(size) = size {
            bar.set_length(size);
            "{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left"
        } else {
            "{spinner} {bytes}, {bytes_per_sec}"
        };
        // The template is fixed, and good.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar, screen, start: Instant::now(), target: Some(target), shares_terminal }
    }

    /// So much has been read; `is_all_written` says that no record is on its way to an output.
    pub(super) fn at(&mut self, bytes: u64, is_all_written: bool) {
        // indicatif itself draws only on a terminal, and not at every call.
        if self.start.elapsed() >= SHOWN_AFTER {
            self.show();
        }
        if is_all_written || !self.shares_terminal {
            self.bar.set_position(bytes);
        }
    }

    /// A record is about to be written.
    pub(super) fn make_way(&self) {
        if self.shares_terminal {
            // A terminal that takes no bar does without.
            let _ = self.screen.clear();
        }
    }

    /// Nothing more is read.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }

    fn show(&mut self) {
        if let Some(target) = self.target.take() {
            self.screen.set_draw_target(target);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Result;
    use std::sync::{Arc, Mutex};

    use indicatif::TermLike;

    /// The only line that there is.
    #[derive(Clone, Debug, Default)]
    struct Screen(Arc<Mutex<String>>);

    impl Screen {
        fn line(&self) -> String {
            self.0.lock().unwrap().trim().to_owned()
        }
    }

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            120
        }
        fn move_cursor_up(&self, _: usize) -> Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> Result<()> {
            self.write_str(text)
        }
        fn write_str(&self, text: &str) -> Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }
        fn clear_line(&self) -> Result<()> {
            self.0.lock().unwrap().clear();
            Ok(())
        }
        fn flush(&self) -> Result<()> {
            Ok(())
        }
    }

    fn shown(shares_terminal: bool) -> (Progress, Screen) {
        let screen = Screen::default();
        let target = ProgressDrawTarget::term_like(Box::new(screen.clone()));
        let mut progress = Progress::on(target, 400, shares_terminal);
        progress.show();
        (progress, screen)
    }

    #[test]
    fn the_bar_makes_way_for_records_and_comes_back() {
        let (mut progress, screen) = shown(true);
        progress.at(100, true);
        assert!(screen.line().contains("100 B of 400 B"), "{:?}", screen.line());
        for position in [200, 300] {
            progress.make_way();
            assert_eq!(screen.line(), "");
            progress.at(position - 1, false);
            assert_eq!(screen.line(), "", "the record is not written yet");
            progress.at(position, true);
            let line = screen.line();
            assert!(line.contains(&format!("{position} B of 400 B")), "{line:?}");
        }
        progress.end();
        assert_eq!(screen.line(), "");
    }

    #[test]
    fn records_that_go_elsewhere_do_not_touch_it() {
        let (mut progress, screen) = shown(false);
        progress.at(100, true);
        progress.make_way();
        progress.at(200, false);
        assert!(screen.line().contains("200 B of 400 B"), "{:?}", screen.line());
    }
}
