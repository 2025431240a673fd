//! Types wider than 16 bits and decoded blocks: one pass for the moments, one for what needs them.
//!
//! Sums are taken over spans of a fixed number of weights and merged in file order, so that they
//! do not depend on the number of threads.

use std::ops::Range;

use rayon::prelude::*;

use super::figures::Moments;
use super::source::Buffers;
use super::{Parts, ProfileOptions, Target, TensorProfile};
use crate::error::{Error, Result};
use crate::kernels::moments;
use crate::progress::Progress;

/// Weights read at a time; in double precision they fit the second-level cache.
const CHUNK_WEIGHTS: usize = 32 * 1024;

/// Weights of one piece of parallel work.
const SPAN_WEIGHTS: usize = 8 * CHUNK_WEIGHTS;

/// What the first pass learns of one span.
struct First {
    moments: Moments,
    nan_count: u64,
    inf_count: u64,
    zero_count: u64,
    ranges: Vec<(usize, f64, f64)>,
}

/// Profiles one tensor with every core.
pub(super) fn profile(target: &Target<'_>, options: &ProfileOptions, progress: &Progress) -> Result<TensorProfile> {
    let step = target.source.units_of(SPAN_WEIGHTS);
    let unit_count = target.source.unit_count;
    let spans =
        (0..unit_count.div_ceil(step)).into_par_iter().map(|span| span * step..((span + 1) * step).min(unit_count));

    let firsts: Vec<First> = spans
        .clone()
        .map_init(Buffers::default, |buffers, units| first_pass(target, units, buffers, progress))
        .collect::<Result<_>>()?;
    let mut ranges: Vec<Option<(f64, f64)>> = vec![None; target.folding.entry_count];
    let mut parts = Parts {
        nan_count: 0,
        inf_count: 0,
        zero_count: 0,
        min: f64::INFINITY,
        max: f64::NEG_INFINITY,
        moments: Moments::default(),
        distinct_count: None,
        channels: target.folding.channels(Vec::new()),
    };
    for first in &firsts {
        parts.moments = parts.moments.merge(&first.moments);
        parts.nan_count += first.nan_count;
        parts.inf_count += first.inf_count;
        parts.zero_count += first.zero_count;
        for &(entry, lo, hi) in &first.ranges {
            parts.min = parts.min.min(lo);
            parts.max = parts.max.max(hi);
            if let Some(range) = ranges.get_mut(entry) {
                let (min, max) = range.unwrap_or((lo, hi));
                *range = Some((min.min(lo), max.max(hi)));
            }
        }
    }
    drop(firsts);
    // A cast from f64 would turn values beyond f32 into infinities.
    let narrowed = |value: f64| value.clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32;
    parts.channels.ranges =
        ranges.into_iter().map(|range| range.map(|(lo, hi)| (narrowed(lo), narrowed(hi)))).collect();

    let empty = parts.spread(options);
    let spread = spans
        .try_fold(
            || (Buffers::default(), empty.clone()),
            |(mut buffers, mut spread), units| -> Result<_> {
                in_chunks(target, units, &mut buffers, progress, |_, weights| match weights {
                    Weights::Single(values) => {
                        if !values.iter().all(|value| value.is_finite()) {
                            values.retain(|value| value.is_finite());
                        }
                        spread.add_singles(values);
                    }
                    Weights::Double(values) => {
                        for &value in values.iter().filter(|value| value.is_finite()) {
                            spread.add(value, 1);
                        }
                    }
                })?;
                Ok((buffers, spread))
            },
        )
        .map(|folded| folded.map(|(_, spread)| spread))
        .try_reduce(
            || empty.clone(),
            |mut all, more| {
                all.merge(&more);
                Ok::<_, Error>(all)
            },
        )?;
    Ok(parts.finish(target.tensor, spread, options))
}

/// Weights of one chunk.
enum Weights<'a> {
    /// In single precision, which has vector kernels.
    Single(&'a mut Vec<f32>),
    /// In double precision: types that have values beyond f32's.
    Double(&'a mut Vec<f64>),
}

/// Reads `units` chunk by chunk; `visit` gets the first weight's index and the weights.
fn in_chunks(
    target: &Target<'_>,
    units: Range<usize>,
    buffers: &mut Buffers,
    progress: &Progress,
    mut visit: impl FnMut(usize, Weights<'_>),
) -> Result<()> {
    let source = &target.source;
    let step = source.units_of(CHUNK_WEIGHTS);
    let mut at = units.start;
    while at < units.end {
        progress.check()?;
        let end = at.saturating_add(step).min(units.end);
        if source.is_single() {
            source.read_singles(at..end, buffers)?;
            visit(at * source.unit_len, Weights::Single(&mut buffers.singles));
        } else {
            source.read_values(at..end, buffers)?;
            visit(at * source.unit_len, Weights::Double(&mut buffers.values));
        }
        progress.advance(((end - at) * source.unit_bytes) as u64);
        at = end;
    }
    Ok(())
}

fn first_pass(target: &Target<'_>, units: Range<usize>, buffers: &mut Buffers, progress: &Progress) -> Result<First> {
    let mut first =
        First { moments: Moments::default(), nan_count: 0, inf_count: 0, zero_count: 0, ranges: Vec::new() };
    in_chunks(target, units, buffers, progress, |start, weights| match weights {
        Weights::Single(values) => first.add_singles(target, start, values),
        Weights::Double(values) => first.add_doubles(target, start, values),
    })?;
    Ok(first)
}

impl First {
    /// Widens the range of an entry; an empty one changes nothing.
    fn widen(&mut self, entry: usize, lo: f64, hi: f64) {
        if lo > hi {
            return;
        }
        match self.ranges.last_mut() {
            Some(last) if last.0 == entry => *last = (entry, last.1.min(lo), last.2.max(hi)),
            _ => self.ranges.push((entry, lo, hi)),
        }
    }

    fn add_singles(&mut self, target: &Target<'_>, start: usize, values: &mut Vec<f32>) {
        // One look a segment, whose figures together are those of the chunk.
        let mut all = moments::survey(&[]);
        for (entry, range) in target.folding.segments(start, values.len()) {
            let found = moments::survey(&values[range]);
            self.widen(entry, f64::from(found.lo), f64::from(found.hi));
            all.nan_count += found.nan_count;
            all.inf_count += found.inf_count;
            all.zero_count += found.zero_count;
            all.sum += found.sum;
        }
        if all.nan_count + all.inf_count > 0 {
            values.retain(|value| value.is_finite());
        }
        self.nan_count += all.nan_count;
        self.inf_count += all.inf_count;
        self.zero_count += all.zero_count;
        self.moments = self.moments.merge(&Moments::of_singles(values, &all));
    }

    fn add_doubles(&mut self, target: &Target<'_>, start: usize, values: &mut Vec<f64>) {
        for (entry, range) in target.folding.segments(start, values.len()) {
            let (mut lo, mut hi) = (f64::INFINITY, f64::NEG_INFINITY);
            for &value in &values[range] {
                if value.is_finite() {
                    lo = lo.min(value);
                    hi = hi.max(value);
                } else {
                    self.nan_count += u64::from(value.is_nan());
                    self.inf_count += u64::from(value.is_infinite());
                }
            }
            self.widen(entry, lo, hi);
        }
        values.retain(|value| value.is_finite());
        self.zero_count += values.iter().filter(|&&value| value == 0.0).count() as u64;
        self.moments = self.moments.merge(&Moments::of(values.iter().map(|&value| (value, 1))));
    }
}
