//! Types of at most 16 bits: one streaming pass that counts bit patterns.
//!
//! All tensors together are one list of spans, taken by as many workers as there are cores. A
//! worker counts into tables of its own and hands them over when its next span belongs to another
//! tensor; whoever hands over a tensor's last span turns the counts into figures. Counts are
//! integers, so that the order of the hand-overs does not matter.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::figures::Moments;
use super::source::{Buffers, Narrow};
use super::{Parts, ProfileOptions, Target, TensorProfile};
use crate::error::{Error, Result};
use crate::kernels::counts::{self, Counts, KeyRange, PATTERNS};
use crate::progress::Progress;

/// Bytes read at a time: the copy out of the page cache is then counted while it lies in the
/// second-level cache. Twice as much took five times as long to read on the machine it was tuned on.
const CHUNK_BYTES: usize = 128 * 1024;

/// Bytes a worker takes at a time: small enough to share one tensor, large enough to forget the overhead.
const SPAN_BYTES: usize = 4 * 1024 * 1024;

/// Units of one tensor that one worker reads.
struct Span {
    slot: usize,
    units: Range<usize>,
}

/// What is known of a tensor so far.
pub(super) struct Gathered {
    totals: Vec<u64>,
    /// Counts of single bytes that had no partner to be counted in a pair with.
    singles: [u64; 256],
    ranges: Vec<KeyRange>,
    spans_left: usize,
}

impl Gathered {
    /// All counts of a tensor of 16-bit floats, and the ranges of its entries.
    #[cfg(feature = "gpu")]
    pub(super) fn of_counts(totals: Vec<u64>, ranges: Vec<KeyRange>) -> Self {
        Self { totals, singles: [0; 256], ranges, spans_left: 0 }
    }

    /// The same of a tensor of 8-bit floats, whose 256 counts these are.
    #[cfg(feature = "gpu")]
    pub(super) fn of_byte_counts(counts: &[u32], ranges: Vec<KeyRange>) -> Self {
        let mut singles = [0; 256];
        singles.iter_mut().zip(counts).for_each(|(single, &count)| *single = count.into());
        Self { totals: Vec::new(), singles, ranges, spans_left: 0 }
    }

    fn new(spans_left: usize) -> Self {
        Self { totals: Vec::new(), singles: [0; 256], ranges: Vec::new(), spans_left }
    }
}

/// A worker's own tables and buffers.
#[derive(Default)]
struct Worker {
    counts: Counts,
    singles: Vec<u8>,
    ranges: Vec<(usize, KeyRange)>,
    buffers: Buffers,
    /// The tensor of the spans counted so far, and how many they are.
    run: Option<(usize, usize)>,
}

/// Profiles all `targets` and hands each profile to `emit`.
pub(super) fn run(
    targets: &[(Target<'_>, Arc<Narrow>)],
    options: &ProfileOptions,
    progress: &Progress,
    emit: &(dyn Fn(usize, TensorProfile) + Sync),
) -> Result<()> {
    let mut spans = Vec::new();
    let mut gathered = Vec::new();
    for (slot, (target, _)) in targets.iter().enumerate() {
        let count = target.source.unit_count;
        let step = target.source.units_in(SPAN_BYTES);
        let first = spans.len();
        // A tensor of no weights still has one span, so that it gets its profile.
        let mut at = 0_usize;
        loop {
            let end = at.saturating_add(step).min(count);
            spans.push(Span { slot, units: at..end });
            at = end;
            if at >= count {
                break;
            }
        }
        gathered.push(Mutex::new(Gathered::new(spans.len() - first)));
    }
    let work = Work { targets, options, progress, emit, spans, gathered };
    let next = AtomicUsize::new(0);
    let failed: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    let worker_count = rayon::current_num_threads().min(work.spans.len());
    rayon::scope(|scope| {
        for _ in 0..worker_count {
            scope.spawn(|_| {
                let mut worker = Worker::default();
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let result = match work.spans.get(at) {
                        Some(span) => work.count(&mut worker, span),
                        None => {
                            work.hand_over(&mut worker);
                            return;
                        }
                    };
                    if let Err(error) = result {
                        // No further spans for anyone; of several errors the earliest in the file is told.
                        next.store(work.spans.len(), Ordering::Relaxed);
                        let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                        if failed.as_ref().is_none_or(|earlier| at < earlier.0) {
                            *failed = Some((at, error));
                        }
                        return;
                    }
                }
            });
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

/// What all workers share.
struct Work<'a> {
    targets: &'a [(Target<'a>, Arc<Narrow>)],
    options: &'a ProfileOptions,
    progress: &'a Progress,
    emit: &'a (dyn Fn(usize, TensorProfile) + Sync),
    spans: Vec<Span>,
    gathered: Vec<Mutex<Gathered>>,
}

impl Work<'_> {
    fn count(&self, worker: &mut Worker, span: &Span) -> Result<()> {
        if worker.run.is_some_and(|run| run.0 != span.slot) || worker.counts.is_full() {
            self.hand_over(worker);
        }
        let (target, narrow) = &self.targets[span.slot];
        let step = target.source.units_in(CHUNK_BYTES);
        let mut at = span.units.start;
        while at < span.units.end {
            self.progress.check()?;
            let end = at.saturating_add(step).min(span.units.end);
            target.source.read(at..end, &mut worker.buffers.raw)?;
            let raw = worker.buffers.raw.as_slice();
            worker.counts.add(raw);
            if raw.len() % 2 == 1 && narrow.is_byte {
                worker.singles.extend(raw.last());
            }
            let weight_bytes = if narrow.is_byte { 1 } else { 2 };
            let first = at * target.source.unit_len;
            for (entry, range) in target.folding.segments(first, raw.len() / weight_bytes) {
                let bytes = &raw[range.start * weight_bytes..range.end * weight_bytes];
                let keys = if narrow.is_byte {
                    counts::range8(bytes, narrow.order, narrow.finite)
                } else {
                    counts::range16(bytes, narrow.order, narrow.finite)
                };
                match worker.ranges.last_mut() {
                    Some(last) if last.0 == entry => last.1 = last.1.union(keys),
                    _ => worker.ranges.push((entry, keys)),
                }
            }
            self.progress.advance(raw.len() as u64);
            at = end;
        }
        worker.run = Some((span.slot, worker.run.map_or(0, |run| run.1) + 1));
        Ok(())
    }

    /// Adds a worker's counts to its tensor's; the last one to do so makes the profile.
    fn hand_over(&self, worker: &mut Worker) {
        let Some((slot, span_count)) = worker.run.take() else {
            return;
        };
        let (target, narrow) = &self.targets[slot];
        let done = {
            let mut gathered = self.gathered[slot].lock().unwrap_or_else(PoisonError::into_inner);
            gathered.totals.resize(PATTERNS, 0);
            worker.counts.drain_into(&mut gathered.totals);
            for byte in worker.singles.drain(..) {
                gathered.singles[usize::from(byte)] += 1;
            }
            gathered.ranges.resize(target.folding.entry_count, KeyRange::EMPTY);
            for (entry, keys) in worker.ranges.drain(..) {
                if let Some(range) = gathered.ranges.get_mut(entry) {
                    *range = range.union(keys);
                }
            }
            gathered.spans_left -= span_count;
            (gathered.spans_left == 0).then(|| std::mem::replace(&mut *gathered, Gathered::new(0)))
        };
        if let Some(gathered) = done {
            (self.emit)(target.index, figures(target, narrow, gathered, self.options));
        }
    }
}

pub(super) fn figures(
    target: &Target<'_>,
    narrow: &Narrow,
    gathered: Gathered,
    options: &ProfileOptions,
) -> TensorProfile {
    let counts = if narrow.is_byte {
        let mut bytes = counts::fold_pairs(&gathered.totals);
        for (count, more) in bytes.iter_mut().zip(gathered.singles) {
            *count += more;
        }
        bytes
    } else {
        gathered.totals
    };
    let (mut nan_count, mut inf_count, mut zero_count) = (0, 0, 0);
    let (mut min, mut max) = (f64::INFINITY, f64::NEG_INFINITY);
    let mut finite: Vec<(f64, u64)> = Vec::new();
    let mut distinct = BTreeSet::new();
    for (&value, &count) in narrow.values.iter().zip(&counts).filter(|pair| *pair.1 > 0) {
        if value.is_nan() {
            nan_count += count;
        } else if value.is_infinite() {
            inf_count += count;
        } else {
            if value == 0.0 {
                zero_count += count;
            }
            let value = f64::from(value);
            min = min.min(value);
            max = max.max(value);
            finite.push((value, count));
            // Adding zero makes both zeros one value.
            distinct.insert((value + 0.0).to_bits());
        }
    }
    let ranges = gathered
        .ranges
        .into_iter()
        .map(|keys| (!keys.is_empty()).then(|| (narrow.value_of_key(keys.lo), narrow.value_of_key(keys.hi))))
        .collect();
    let mut parts = Parts {
        nan_count,
        inf_count,
        zero_count,
        min,
        max,
        moments: Moments::of(finite.iter().copied()),
        distinct_count: Some(distinct.len() as u64),
        channels: target.folding.channels(ranges),
    };
    let mut spread = parts.spread(options);
    for (value, count) in finite {
        spread.add(value, count);
    }
    parts.finish(target.tensor, spread, options)
}
