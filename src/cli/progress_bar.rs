//! A bar on stderr, drawn by its own thread from the counters that the engine keeps anyway.

use std::io::IsTerminal;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use indicatif::ProgressStyle;

use crate::engine::progress::{Phase, Progress, Snapshot, Unit};
use crate::engine::units;

const INTERVAL: Duration = Duration::from_millis(100);

/// Shows progress until it is dropped, then leaves a clean line.
#[derive(Debug)]
pub(super) struct ProgressBar {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ProgressBar {
    /// Starts drawing, if stderr is a terminal.
    pub fn start(progress: &Progress) -> Option<Self> {
        if !std::io::stderr().is_terminal() {
            return None;
        }
        let (stop, stopped) = bounded::<()>(0);
        let progress = progress.clone();
        let draw = move || {
            let bar = indicatif::ProgressBar::new(0);
            let style = ProgressStyle::with_template("{prefix:>22} [{bar:20}] {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
            while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                let snapshot = progress.snapshot();
                if snapshot.phase == Phase::Waiting {
                    continue;
                }
                bar.set_prefix(snapshot.phase.name());
                bar.set_message(figures(&snapshot));
                bar.set_length(snapshot.total.max(1));
                bar.set_position(snapshot.done.min(snapshot.total));
                bar.tick();
            }
            bar.finish_and_clear();
        };
        let thread = std::thread::Builder::new().name("progress".to_owned()).spawn(draw).ok()?;
        Some(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for ProgressBar {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // A bar that failed to draw is not worth a message.
            let _ = thread.join();
        }
    }
}

/// Done of total, rate and time left: `3.10 MiB of 7.76 MiB, 1.50 MiB/s, 3.1 s left`.
fn figures(snapshot: &Snapshot) -> String {
    if snapshot.is_cancelled {
        return "stopping".to_owned();
    }
    let amount = |count: u64| match snapshot.unit {
        Unit::Bytes => units::bytes(count),
        Unit::Items | Unit::Tokens => units::count(count),
    };
    let mut text = format!("{} of {}", amount(snapshot.done), amount(snapshot.total));
    match snapshot.unit {
        Unit::Items => {}
        Unit::Tokens => text.push_str(" tokens"),
        Unit::Bytes if snapshot.done == 0 => {}
        Unit::Bytes => text.push_str(&format!(", {}/s", amount(snapshot.rate() as u64))),
    }
    if let Some(left) = snapshot.seconds_left() {
        text.push_str(&format!(", {} left", units::seconds(left)));
    }
    if let Some(running) = snapshot.running {
        text.push_str(&format!(", {}", running.text()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::progress::Figure;

    #[test]
    fn figures_say_done_total_and_rate_in_the_unit_of_the_work() {
        let progress = Progress::default();
        progress.begin(Phase::Compressing, 4 << 20, Unit::Bytes);
        progress.advance(1 << 20);
        let text = figures(&progress.snapshot());
        assert!(text.starts_with("1.00 MiB of 4.00 MiB, ") && text.contains("/s") && text.ends_with(" left"), "{text}");
        progress.begin(Phase::ScoringText, 100, Unit::Tokens);
        assert_eq!(figures(&progress.snapshot()), "0 of 100 tokens");
        progress.tally(Figure::Kld, [0.25, 0.25]);
        assert_eq!(figures(&progress.snapshot()), "0 of 100 tokens, KLD 0.250 ± 0 nats");
        progress.cancel();
        assert_eq!(figures(&progress.snapshot()), "stopping");
    }
}
