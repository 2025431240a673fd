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

/// A reading of the counters at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot {
    pub phase: Phase,
    pub unit: Unit,
    pub done: u64,
    pub total: u64,
    /// Time since the phase began, pauses left out.
    pub elapsed: Duration,
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
        self.done as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Seconds left at the mean rate, once some work is done.
    pub fn seconds_left(&self) -> Option<f64> {
        (self.done > 0 && self.total > self.done).then(|| (self.total - self.done) as f64 / self.rate())
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
        {
            let mut clock = self.clock();
            clock.started = Instant::now();
            clock.paused_for = Duration::ZERO;
        }
        self.wake();
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
