//! Background work: one named thread a job, progress as atomics, one event when it ends.
//!
//! Jobs that keep every core busy hold a process-wide permit while they work, so that two of them
//! never share the cores and speed measurements run alone. A panic in a job is that job's failure.
//! Partial results are offered to a bounded channel and dropped where it is full, since the final
//! event holds all of them.

use std::panic::AssertUnwindSafe;
use std::sync::{Condvar, Mutex, PoisonError};
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError};

use super::events::{Event, Outcome};
use super::whose::{Side, Whose};
use crate::engine::device::Device;
use crate::engine::error::{Error, Fault, Result, Stage};
use crate::engine::progress::{Progress, Snapshot};

/// Tells jobs apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(u64);

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum JobKind {
    Open,
    ReadInput,
    Profile,
    WeightError,
    OutputError,
    Fisher,
    Kld,
    Units,
    LookAtText,
    Calibrate,
    LoadImportance,
    ScoreUnits,
    PruneSteps,
    Pass,
    Evaluate,
    Compare,
    Generate,
    Export,
    Rates,
    Devices,
    LookForUnfinished,
}

impl JobKind {
    /// True for work that wants every core.
    fn is_heavy(self) -> bool {
        matches!(
            self,
            Self::Profile
                | Self::WeightError
                | Self::OutputError
                | Self::Fisher
                | Self::Kld
                | Self::Units
                | Self::Calibrate
                | Self::ScoreUnits
                | Self::PruneSteps
                | Self::Pass
                | Self::Evaluate
                | Self::Rates
        )
    }
}

/// How jobs are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Executor {
    /// Each on a thread of its own.
    Threads,
    /// Inside the call that starts them, for tests.
    Inline,
}

/// A job as the window shows it.
#[derive(Clone, Debug)]
pub struct JobView<'a> {
    /// To cancel or pause it by.
    pub id: JobId,
    /// What it does.
    pub kind: JobKind,
    /// In words, with the name of what it works on.
    pub title: &'a str,
    /// Its counters now.
    pub progress: Snapshot,
    /// Which model an evaluation asked last.
    pub side: Option<Side>,
}

/// What a job's body is given.
pub(super) struct Context {
    pub(super) progress: Progress,
    /// Where its work runs.
    pub(super) device: Device,
    /// Where an evaluation notes which model it asks.
    pub(super) whose: Whose,
    sender: Sender<Event>,
}

impl Context {
    /// Offers a partial result; it is dropped where the window is far behind.
    pub(super) fn offer(&self, event: Event) {
        if let Err(TrySendError::Disconnected(_)) = self.sender.try_send(event) {
            self.progress.cancel();
        }
        self.progress.wake();
    }
}

#[derive(Debug)]
struct Job {
    id: JobId,
    kind: JobKind,
    title: String,
    progress: Progress,
    whose: Whose,
    thread: Option<JoinHandle<()>>,
}

/// Running and waiting jobs.
#[derive(Debug)]
pub(super) struct Jobs {
    list: Vec<Job>,
    next: u64,
    sender: Sender<Event>,
    receiver: Receiver<Event>,
    waker: Option<Waker>,
    executor: Executor,
    /// Where the work of new jobs runs.
    pub(super) device: Device,
}

/// Events that may wait for a frame.
const QUEUE: usize = 4096;

/// The process-wide permit for work on every core.
static HEAVY: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

/// Held by the one job that uses every core.
struct Permit;

impl Permit {
    fn acquire(progress: &Progress) -> Result<Self> {
        let mut taken = HEAVY.0.lock().unwrap_or_else(PoisonError::into_inner);
        while *taken {
            progress.check()?;
            taken = HEAVY.1.wait_timeout(taken, Duration::from_millis(50)).unwrap_or_else(PoisonError::into_inner).0;
        }
        *taken = true;
        Ok(Self)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *HEAVY.0.lock().unwrap_or_else(PoisonError::into_inner) = false;
        HEAVY.1.notify_all();
    }
}

/// Lowers the priority of the calling thread, so that the window stays ahead of passes.
fn lower_priority() {
    #[cfg(target_os = "linux")]
    if let Err(err) = rustix::process::setpriority_process(None, 10) {
        tracing::debug!("priority stays: {err}");
    }
}

/// The pool that heavy jobs compute on; every core, at lowered priority.
fn heavy_pool() -> Option<&'static rayon::ThreadPool> {
    static POOL: std::sync::OnceLock<Option<rayon::ThreadPool>> = std::sync::OnceLock::new();
    POOL.get_or_init(|| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(rayon::current_num_threads())
            .thread_name(|index| format!("compute {index}"))
            .start_handler(|_| lower_priority())
            .build()
            .map_err(|err| tracing::warn!("no pool of its own for heavy work: {err}"))
            .ok()
    })
    .as_ref()
}

impl Jobs {
    pub(super) fn new(waker: Option<Waker>, executor: Executor, device: Device) -> Self {
        let (sender, receiver) = crossbeam_channel::bounded(QUEUE);
        Self { list: Vec::new(), next: 0, sender, receiver, waker, executor, device }
    }

    /// Starts `body`; its result comes as one event.
    pub(super) fn spawn(
        &mut self,
        kind: JobKind,
        title: impl Into<String>,
        body: impl FnOnce(&Context) -> Result<Outcome> + Send + 'static,
    ) -> JobId {
        self.next += 1;
        let id = JobId(self.next);
        let title = title.into();
        let progress = Progress::new(self.waker.clone());
        let whose = Whose::default();
        let context = Context {
            progress: progress.clone(),
            device: self.device.clone(),
            whose: whose.clone(),
            sender: self.sender.clone(),
        };
        let work = move || {
            let result = run_body(kind, &context, body);
            // Blocking is right here: an end must not be lost, and the window drains the queue.
            if context.sender.send(Event::Ended { job: id, kind, result }).is_err() {
                tracing::debug!("the window is gone, the end of a job has no reader");
            }
            context.progress.wake();
        };
        let thread = match self.executor {
            Executor::Inline => {
                // The queue cannot fill: offers are dropped when it is full, and there is one end.
                if self.receiver.is_full() {
                    tracing::warn!("events wait for a poll");
                }
                work();
                None
            }
            Executor::Threads => match std::thread::Builder::new().name(format!("job: {title}")).spawn(work) {
                Ok(thread) => Some(thread),
                Err(err) => {
                    let fault = Fault::new(Stage::Project, format!("no thread for this work: {err}"))
                        .fix("close other programs");
                    let event = Event::Ended { job: id, kind, result: Err(fault.into()) };
                    if self.sender.try_send(event).is_err() {
                        tracing::error!("no thread and no room for the message");
                    }
                    None
                }
            },
        };
        self.list.push(Job { id, kind, title, progress, whose, thread });
        id
    }

    /// Takes the next event and forgets a job that has ended.
    pub(super) fn next_event(&mut self) -> Option<Event> {
        let event = self.receiver.try_recv().ok()?;
        if let Event::Ended { job, .. } = &event
            && let Some(index) = self.list.iter().position(|known| known.id == *job)
        {
            let ended = self.list.remove(index);
            if let Some(thread) = ended.thread
                && thread.join().is_err()
            {
                tracing::error!("a job's thread panicked outside its body");
            }
        }
        Some(event)
    }

    pub(super) fn views(&self) -> impl Iterator<Item = JobView<'_>> {
        self.list.iter().map(|job| JobView {
            id: job.id,
            kind: job.kind,
            title: &job.title,
            progress: job.progress.snapshot(),
            side: job.whose.get(),
        })
    }

    pub(super) fn is_running(&self, kind: JobKind) -> bool {
        self.list.iter().any(|job| job.kind == kind)
    }

    pub(super) fn cancel(&self, id: JobId) {
        if let Some(job) = self.list.iter().find(|job| job.id == id) {
            job.progress.cancel();
        }
    }

    pub(super) fn cancel_all(&self) {
        self.list.iter().for_each(|job| job.progress.cancel());
    }

    pub(super) fn set_paused(&self, id: JobId, paused: bool) {
        if let Some(job) = self.list.iter().find(|job| job.id == id) {
            job.progress.set_paused(paused);
        }
    }

    /// Waits for every job; their ends stay in the queue.
    pub(super) fn join_all(&mut self) {
        for job in &mut self.list {
            if let Some(thread) = job.thread.take()
                && thread.join().is_err()
            {
                tracing::error!("a job's thread panicked outside its body");
            }
        }
    }
}

fn run_body(
    kind: JobKind,
    context: &Context,
    body: impl FnOnce(&Context) -> Result<Outcome> + Send,
) -> Result<Outcome> {
    let guarded = AssertUnwindSafe(|| {
        if !kind.is_heavy() {
            return body(context);
        }
        let _permit = Permit::acquire(&context.progress)?;
        match heavy_pool() {
            Some(pool) => pool.install(|| body(context)),
            None => body(context),
        }
    });
    std::panic::catch_unwind(guarded).unwrap_or_else(|payload| {
        let message = payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".to_owned());
        Err(Error::from(
            Fault::new(Stage::Project, format!("this work failed inside the program: {message}"))
                .fix("nothing else is affected; please report it with this text"),
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait_for_end(jobs: &mut Jobs) -> Result<Outcome> {
        for _ in 0..500 {
            if let Some(Event::Ended { result, .. }) = jobs.next_event() {
                return result;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the job did not end");
    }

    #[test]
    fn a_panic_in_a_job_is_that_jobs_failure() {
        let mut jobs = Jobs::new(None, Executor::Threads, Device::default());
        jobs.spawn(JobKind::Profile, "panics", |_| panic!("on purpose"));
        let err = wait_for_end(&mut jobs).expect_err("failed").to_string();
        assert!(err.contains("on purpose"), "{err}");
        jobs.spawn(JobKind::Profile, "works", |_| Ok(Outcome::Nothing));
        assert!(wait_for_end(&mut jobs).is_ok(), "the permit was given back");
        assert_eq!(jobs.views().count(), 0);
    }

    #[test]
    fn a_waiting_job_can_be_cancelled() {
        let mut jobs = Jobs::new(None, Executor::Threads, Device::default());
        let first = jobs.spawn(JobKind::Pass, "long", |context| {
            loop {
                context.progress.check()?;
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        std::thread::sleep(Duration::from_millis(50));
        let second = jobs.spawn(JobKind::Evaluate, "waits", |_| Ok(Outcome::Nothing));
        jobs.cancel(second);
        assert!(wait_for_end(&mut jobs).is_err_and(|err| err.is_cancelled()));
        jobs.cancel(first);
        assert!(wait_for_end(&mut jobs).is_err_and(|err| err.is_cancelled()));
    }

    #[test]
    fn inline_jobs_end_inside_the_call() {
        let mut jobs = Jobs::new(None, Executor::Inline, Device::default());
        jobs.spawn(JobKind::Open, "inline", |_| Ok(Outcome::Nothing));
        assert!(matches!(jobs.next_event(), Some(Event::Ended { .. })));
    }
}
