//! Progress, cancel and pause of long work, as atomics that a window samples.
//!
//! The engine writes a few counters and looks at two flags; it never sends a message per item and
//! never knows who watches. [`Progress::check`] is called between operations, often enough that a
//! job stops within 200 ms.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::error::{Error, Result};
use super::units;

/// What a job is doing at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    Waiting,
    Opening,
    Hashing,
    Profiling,
    Loading,
    Calibrating,
    MeasuringWeights,
    MeasuringGradients,
    MeasuringKld,
    Compressing,
    ScoringText,
    ScoringTasks,
    MeasuringSpeed,
    Generating,
}

impl Phase {
    const ALL: [Self; 14] = [
        Self::Waiting,
        Self::Opening,
        Self::Hashing,
        Self::Profiling,
        Self::Loading,
        Self::Calibrating,
        Self::MeasuringWeights,
        Self::MeasuringGradients,
        Self::MeasuringKld,
        Self::Compressing,
        Self::ScoringText,
        Self::ScoringTasks,
        Self::MeasuringSpeed,
        Self::Generating,
    ];

    /// The phase as words for a progress strip.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Opening => "opening",
            Self::Hashing => "hashing",
            Self::Profiling => "profiling weights",
            Self::Loading => "loading weights",
            Self::Calibrating => "calibrating",
            Self::MeasuringWeights => "measuring weight error",
            Self::MeasuringGradients => "measuring gradients",
            Self::MeasuringKld => "measuring KLD",
            Self::Compressing => "compressing",
            Self::ScoringText => "scoring text",
            Self::ScoringTasks => "scoring tasks",
            Self::MeasuringSpeed => "measuring speed",
            Self::Generating => "generating",
        }
    }
}

/// What the counters count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Unit {
    Items,
    Bytes,
    Tokens,
}

/// What a running figure is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Share of the items that are right.
    Accuracy,
    /// KL divergence of a token, in nats.
    Kld,
    /// e to the mean of −ln p of a token.
    Perplexity,
}

/// The figure of what is done so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Running {
    /// What it is of.
    pub figure: Figure,
    /// Values it is of.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    squares: f64,
}

impl Running {
    fn push(&mut self, value: f64) {
        // Welford 1962.
        self.count += 1;
        let before = value - self.mean;
        self.mean += before / self.count as f64;
        self.squares += before * (value - self.mean);
    }

    /// Half of the 95 % interval of the mean, from the spread of the values; of one value it is not known.
    pub fn margin(&self) -> Option<f64> {
        let variance = (self.count > 1).then(|| (self.squares / (self.count - 1) as f64).max(0.0))?;
        Some(1.96 * (variance / self.count as f64).sqrt())
    }

    /// The figure as people read it, with its interval: `accuracy 93.1 ± 0.8 %`.
    pub fn text(&self) -> String {
        let (name, value, scale, unit) = match self.figure {
            Figure::Accuracy => ("accuracy", self.mean * 100.0, 100.0, " %"),
            Figure::Kld => ("KLD", self.mean, 1.0, " nats"),
            // The spread of a logarithm is a share of the value.
            Figure::Perplexity => ("perplexity", self.mean.exp(), self.mean.exp(), ""),
        };
        let number = |value: f64| match self.figure {
            Figure::Accuracy => format!("{value:.1}"),
            Figure::Kld => units::significant(value),
            Figure::Perplexity => format!("{value:.3}"),
        };
        match self.margin() {
            Some(margin) => format!("{name} {} ± {}{unit}", number(value), number(margin * scale)),
            None => format!("{name} {}{unit}", number(value)),
        }
    }
}

/// A reading of the counters at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot {
    pub phase: Phase,
    pub unit: Unit,
    pub done: u64,
    pub total: u64,
    /// Time since the phase began, pauses left out.
    pub elapsed: Duration,
    /// Units that were there when the phase began, from an earlier time, and took no time now.
    pub resumed: u64,
    /// The figure of what is done so far, where there is one.
    pub running: Option<Running>,
    pub is_paused: bool,
    pub is_cancelled: bool,
}

impl Snapshot {
    /// Done over total, in `0..=1`; 0 where the total is unknown.
    pub fn fraction(&self) -> f64 {
        if self.total == 0 { 0.0 } else { (self.done as f64 / self.total as f64).min(1.0) }
    }

    /// Units a second since the phase began.
    pub fn rate(&self) -> f64 {
        self.done.saturating_sub(self.resumed) as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Seconds left at the mean rate, once some work is done.
    pub fn seconds_left(&self) -> Option<f64> {
        (self.done > self.resumed && self.total > self.done).then(|| (self.total - self.done) as f64 / self.rate())
    }
}

#[derive(Debug)]
struct Clock {
    started: Instant,
    paused_at: Option<Instant>,
    paused_for: Duration,
    last_wake: Instant,
}

#[derive(Debug)]
struct Inner {
    phase: AtomicU8,
    unit: AtomicU8,
    done: AtomicU64,
    total: AtomicU64,
    resumed: AtomicU64,
    running: Mutex<Option<Running>>,
    cancel: AtomicBool,
    pause: AtomicBool,
    clock: Mutex<Clock>,
    waker: Option<Waker>,
}

/// A handle shared between the worker that advances it and whoever watches or cancels it.
#[derive(Clone, Debug)]
pub struct Progress {
    inner: Arc<Inner>,
}

impl Default for Progress {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Progress {
    /// At most this often is the watcher woken by [`Progress::advance`].
    const WAKE_INTERVAL: Duration = Duration::from_millis(50);

    /// A fresh handle; `waker` is told when there is something new to show.
    pub fn new(waker: Option<Waker>) -> Self {
        let now = Instant::now();
        Self {
            inner: Arc::new(Inner {
                phase: AtomicU8::new(Phase::Waiting as u8),
                unit: AtomicU8::new(Unit::Items as u8),
                done: AtomicU64::new(0),
                total: AtomicU64::new(0),
                resumed: AtomicU64::new(0),
                running: Mutex::new(None),
                cancel: AtomicBool::new(false),
                pause: AtomicBool::new(false),
                clock: Mutex::new(Clock { started: now, paused_at: None, paused_for: Duration::ZERO, last_wake: now }),
                waker,
            }),
        }
    }

    fn clock(&self) -> std::sync::MutexGuard<'_, Clock> {
        // A poisoned clock is still a clock: the panic that poisoned it is reported by its job.
        self.inner.clock.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Starts a phase of `total` units and sets the counter to zero.
    pub fn begin(&self, phase: Phase, total: u64, unit: Unit) {
        self.inner.phase.store(phase as u8, Ordering::Relaxed);
        self.inner.unit.store(unit as u8, Ordering::Relaxed);
        self.inner.total.store(total, Ordering::Relaxed);
        self.inner.done.store(0, Ordering::Relaxed);
        self.inner.resumed.store(0, Ordering::Relaxed);
        *self.running() = None;
        {
            let mut clock = self.clock();
            clock.started = Instant::now();
            clock.paused_for = Duration::ZERO;
        }
        self.wake();
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Option<Running>> {
        self.inner.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Counts `count` units that were done in an earlier run: they are no part of the rate.
    pub fn resume(&self, count: u64) {
        self.inner.resumed.fetch_add(count, Ordering::Relaxed);
        self.advance(count);
    }

    /// Takes values of this phase into its running figure; called once a batch, not once a value.
    pub fn tally(&self, figure: Figure, values: impl IntoIterator<Item = f64>) {
        let mut running = self.running();
        let known = running.filter(|known| known.figure == figure);
        let mut next = known.unwrap_or(Running { figure, count: 0, mean: 0.0, squares: 0.0 });
        values.into_iter().for_each(|value| next.push(value));
        *running = (next.count > 0).then_some(next);
    }

    /// Counts `count` more units done.
    pub fn advance(&self, count: u64) {
        self.inner.done.fetch_add(count, Ordering::Relaxed);
        if self.inner.waker.is_some() {
            let mut clock = self.clock();
            if clock.last_wake.elapsed() < Self::WAKE_INTERVAL {
                return;
            }
            clock.last_wake = Instant::now();
            drop(clock);
            self.wake();
        }
    }

    /// Tells the watcher to look.
    pub fn wake(&self) {
        if let Some(waker) = &self.inner.waker {
            waker.wake_by_ref();
        }
    }

    /// Waits while paused, then answers [`Error::Cancelled`] if the job shall stop.
    pub fn check(&self) -> Result<()> {
        loop {
            if self.inner.cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            if !self.inner.pause.load(Ordering::Relaxed) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks the job to stop.
    pub fn cancel(&self) {
        self.inner.cancel.store(true, Ordering::Relaxed);
    }

    /// True once [`Progress::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.inner.cancel.load(Ordering::Relaxed)
    }

    /// Holds the job at its next check, or lets it go on.
    pub fn set_paused(&self, paused: bool) {
        let was_paused = self.inner.pause.swap(paused, Ordering::Relaxed);
        let mut clock = self.clock();
        if paused && !was_paused {
            clock.paused_at = Some(Instant::now());
        } else if !paused && let Some(since) = clock.paused_at.take() {
            clock.paused_for += since.elapsed();
        }
    }

    /// Reads the counters.
    pub fn snapshot(&self) -> Snapshot {
        let elapsed = {
            let clock = self.clock();
            let paused_now = clock.paused_at.map_or(Duration::ZERO, |since| since.elapsed());
            clock.started.elapsed().saturating_sub(clock.paused_for + paused_now)
        };
        let phase = usize::from(self.inner.phase.load(Ordering::Relaxed));
        let unit = match self.inner.unit.load(Ordering::Relaxed) {
            unit if unit == Unit::Bytes as u8 => Unit::Bytes,
            unit if unit == Unit::Tokens as u8 => Unit::Tokens,
            _ => Unit::Items,
        };
        Snapshot {
            phase: Phase::ALL.get(phase).copied().unwrap_or(Phase::Waiting),
            unit,
            done: self.inner.done.load(Ordering::Relaxed),
            total: self.inner.total.load(Ordering::Relaxed),
            resumed: self.inner.resumed.load(Ordering::Relaxed),
            running: *self.running(),
            elapsed,
            is_paused: self.inner.pause.load(Ordering::Relaxed),
            is_cancelled: self.is_cancelled(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancelled_job_is_told_at_its_next_check() {
        let progress = Progress::default();
        assert!(progress.check().is_ok());
        progress.clone().cancel();
        assert!(progress.check().is_err_and(|err| err.is_cancelled()));
    }

    #[test]
    fn a_paused_job_waits_and_can_still_be_cancelled() {
        let progress = Progress::default();
        progress.set_paused(true);
        let worker = progress.clone();
        let thread =
            std::thread::Builder::new().name("paused".to_owned()).spawn(move || worker.check()).expect("spawn");
        std::thread::sleep(Duration::from_millis(50));
        assert!(!thread.is_finished());
        progress.cancel();
        assert!(thread.join().expect("join").is_err());
    }

    #[test]
    fn the_running_figure_has_its_interval_and_ends_with_its_phase() {
        let progress = Progress::default();
        progress.begin(Phase::ScoringTasks, 400, Unit::Items);
        assert!(progress.snapshot().running.is_none());
        progress.tally(Figure::Accuracy, [1.0]);
        assert_eq!(progress.snapshot().running.expect("a figure").text(), "accuracy 100.0 %");
        progress.tally(Figure::Accuracy, (1..300).map(|index| f64::from(u8::from(index % 4 != 0))));
        let running = progress.snapshot().running.expect("a figure");
        // √(p (1 − p) / (n − 1)) is the standard error of a share.
        let expected = 1.96 * (running.mean * (1.0 - running.mean) / 299.0).sqrt();
        assert!((running.margin().expect("a margin") - expected).abs() < 1e-12);
        assert_eq!(running.text(), "accuracy 75.3 ± 4.9 %");
        progress.begin(Phase::ScoringText, 10, Unit::Tokens);
        assert!(progress.snapshot().running.is_none());
        progress.tally(Figure::Perplexity, [1.0, 1.0, 1.0]);
        assert_eq!(progress.snapshot().running.expect("a figure").text(), "perplexity 2.718 ± 0.000");
    }

    #[test]
    fn what_was_done_before_is_no_part_of_the_rate() {
        let progress = Progress::default();
        progress.begin(Phase::ScoringTasks, 100, Unit::Items);
        progress.resume(60);
        let snapshot = progress.snapshot();
        assert_eq!((snapshot.done, snapshot.rate(), snapshot.seconds_left()), (60, 0.0, None));
        progress.advance(10);
        assert!(progress.snapshot().rate() > 0.0 && progress.snapshot().seconds_left().is_some());
    }

    #[test]
    fn a_snapshot_estimates_the_time_left() {
        let progress = Progress::default();
        progress.begin(Phase::Compressing, 100, Unit::Bytes);
        progress.advance(50);
        let snapshot = progress.snapshot();
        assert_eq!(snapshot.fraction(), 0.5);
        assert!(snapshot.seconds_left().is_some());
        assert_eq!(snapshot.phase, Phase::Compressing);
    }
}
