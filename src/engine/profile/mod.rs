//! Statistics and histogram of every tensor: what the weights look like before anything is done to them.
//!
//! Weights of at most 16 bits are read once: counting them by their bits
//! ([`kernels::counts`](crate::kernels::counts)) makes every figure exact. Wider weights
//! and decoded blocks are read twice, for their moments and then for what depends on them. Either
//! way a worker holds one small buffer, and the figures do not depend on the number of threads:
//! counts are integers, and sums are taken over fixed spans in file order.

mod figures;
#[cfg(feature = "gpu")]
mod gpu;
mod narrow;
mod source;
#[cfg(test)]
mod tests;
mod wide;

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::checkpoint::{Checkpoint, TensorInfo};
use super::device::Device;
use super::error::{Error, Fault, Result, Stage};
use super::format;
use super::progress::{Phase, Progress, Unit};
pub use figures::BINS;
use figures::{Moments, Spread};
use source::{Narrow, Source};

/// What a profile shall hold.
#[derive(Clone, Debug)]
pub struct ProfileOptions {
    /// Most entries of [`ChannelRanges`]; more rows than that are folded.
    pub max_channel_entries: usize,
    /// Range of the histograms instead of each tensor's own, so that two tensors can be overlaid;
    /// values outside it are counted in the first and last bin.
    pub histogram_range: Option<(f64, f64)>,
    /// Where large tensors of f32, f16 and bf16 are looked at. Counts are the same everywhere; f32's mean
    /// and deviation agree to 1e-6 of the deviation, its kurtosis to 1e-5.
    pub device: Device,
}

impl Default for ProfileOptions {
    fn default() -> Self {
        Self { max_channel_entries: 4096, histogram_range: None, device: Device::default() }
    }
}

/// Statistics of one tensor.
///
/// NaN and infinite values are counted and left out of everything else. Where no finite value is
/// left, the figures are 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorProfile {
    /// Hugging Face's name of the tensor.
    pub name: String,
    /// Number of weights.
    pub count: u64,
    /// Number of NaN values.
    pub nan_count: u64,
    /// Number of infinite values of either sign.
    pub inf_count: u64,
    /// Number of zeros of either sign.
    pub zero_count: u64,
    /// Smallest finite value.
    pub min: f64,
    /// Largest finite value.
    pub max: f64,
    /// Arithmetic mean.
    pub mean: f64,
    /// Standard deviation of the population (divided by the count).
    pub std: f64,
    /// Largest absolute value.
    pub abs_max: f64,
    /// Excess kurtosis of the population, `m4 / m2² − 3`: 0 for a normal distribution, positive
    /// for heavy tails. None where all values are equal.
    pub excess_kurtosis: Option<f64>,
    /// Zeros as a fraction of the finite values.
    pub zero_share: f64,
    /// Fraction of the finite values more than 3 standard deviations away from the mean.
    pub beyond_3_sigma_share: f64,
    /// The same for 4 standard deviations.
    pub beyond_4_sigma_share: f64,
    /// The same for 6 standard deviations.
    pub beyond_6_sigma_share: f64,
    /// Number of different finite values, known for types of at most 16 bits.
    pub distinct_count: Option<u64>,
    /// Where the finite values lie.
    pub histogram: Histogram,
    /// Range of each output channel.
    pub channels: ChannelRanges,
}

impl TensorProfile {
    /// Number of values that are neither NaN nor infinite.
    pub fn finite_count(&self) -> u64 {
        self.count - self.nan_count - self.inf_count
    }
}

/// Counts of [`BINS`] bins of equal width from `min` to `max`; the last one includes `max`.
///
/// A tensor whose values are all equal has them in the first bin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Lower edge of the first bin.
    pub min: f64,
    /// Upper edge of the last bin.
    pub max: f64,
    /// Values in each bin.
    pub counts: Vec<u64>,
}

impl Histogram {
    /// Width of one bin, in the weights' own unit.
    pub fn bin_width(&self) -> f64 {
        (self.max * 0.5 - self.min * 0.5) / self.counts.len().max(1) as f64 * 2.0
    }

    /// Lower and upper edge of a bin.
    pub fn edges(&self, bin: usize) -> (f64, f64) {
        let edge = |at: usize| {
            let part = at as f64 / self.counts.len().max(1) as f64;
            self.min * (1.0 - part) + self.max * part
        };
        (edge(bin), edge(bin + 1))
    }

    /// `log10(1 + count)` of each bin, which shows tails of a few weights beside millions.
    pub fn log_counts(&self) -> Vec<f64> {
        self.counts.iter().map(|&count| (1.0 + count as f64).log10()).collect()
    }
}

/// Smallest and largest finite weight of each output channel (row of the tensor).
///
/// A tensor with more rows than [`ProfileOptions::max_channel_entries`] has as many neighbouring
/// rows folded into one entry as it takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChannelRanges {
    /// Rows in one entry; the last entry may have fewer.
    pub rows_per_entry: usize,
    /// Minimum and maximum, rounded to f32; none where a channel has no finite weight.
    pub ranges: Vec<Option<(f32, f32)>>,
}

/// Profiles of a checkpoint's tensors.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// One per tensor, in the checkpoint's order; none where there is a fault.
    pub tensors: Vec<Option<Arc<TensorProfile>>>,
    /// Tensors that could not be profiled, and why.
    pub faults: Vec<(usize, Fault)>,
    /// The device that looked at tensors beside the CPU, with what became of it.
    pub device: Option<String>,
}

/// How rows are folded into entries of [`ChannelRanges`].
#[derive(Clone, Copy, Debug)]
struct Folding {
    rows_per_entry: usize,
    /// Weights in one entry; at least 1.
    entry_len: usize,
    entry_count: usize,
}

impl Folding {
    fn new(tensor: &TensorInfo, options: &ProfileOptions) -> Self {
        let rows = tensor.row_count();
        let rows_per_entry = rows.div_ceil(options.max_channel_entries.max(1)).max(1);
        Self {
            rows_per_entry,
            entry_len: rows_per_entry.saturating_mul(tensor.row_len()).max(1),
            entry_count: if tensor.weight_count() == 0 { 0 } else { rows.div_ceil(rows_per_entry) },
        }
    }

    /// Cuts `len` weights that begin at weight `start` where entries end: entry and range within the weights.
    fn segments(self, start: usize, len: usize) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            (at < len).then(|| {
                let entry = (start + at) / self.entry_len;
                let end = (entry + 1).saturating_mul(self.entry_len).saturating_sub(start).min(len);
                let range = at..end;
                at = end;
                (entry, range)
            })
        })
    }

    fn channels(self, ranges: Vec<Option<(f32, f32)>>) -> ChannelRanges {
        ChannelRanges { rows_per_entry: self.rows_per_entry, ranges }
    }
}

/// One tensor ready to be read.
struct Target<'a> {
    index: usize,
    tensor: &'a TensorInfo,
    source: Source<'a>,
    folding: Folding,
}

impl<'a> Target<'a> {
    fn new(checkpoint: &'a Checkpoint, index: usize, tensor: &'a TensorInfo, options: &ProfileOptions) -> Result<Self> {
        if !format::is_decodable(tensor.dtype) {
            let cause = format!("{} weights cannot be decoded by this version", tensor.dtype);
            return Err(Fault::new(Stage::Profile, cause)
                .at(&tensor.name)
                .fix("profile the checkpoint that it was made from")
                .file(&checkpoint.path)
                .into());
        }
        Ok(Self { index, tensor, source: Source::new(checkpoint, tensor)?, folding: Folding::new(tensor, options) })
    }
}

/// What both ways of reading hand over to be made into a [`TensorProfile`].
struct Parts {
    nan_count: u64,
    inf_count: u64,
    zero_count: u64,
    min: f64,
    max: f64,
    moments: Moments,
    distinct_count: Option<u64>,
    channels: ChannelRanges,
}

impl Parts {
    /// Counters for the second look; a constant's mean and deviation are exact.
    fn spread(&mut self, options: &ProfileOptions) -> Spread {
        if self.moments.count == 0 {
            (self.min, self.max) = (0.0, 0.0);
        }
        if self.min == self.max {
            self.moments = Moments::of_constant(self.min, self.moments.count);
        }
        let (lo, hi) = options.histogram_range.unwrap_or((self.min, self.max));
        Spread::new(lo, hi, self.moments.mean, self.moments.std())
    }

    fn finish(self, tensor: &TensorInfo, spread: Spread, options: &ProfileOptions) -> TensorProfile {
        let finite = self.moments.count.max(1) as f64;
        let share = |count: u64| count as f64 / finite;
        // Sums over f64 tensors near the end of its range overflow; figures stay numbers.
        let bounded = |value: f64| if value.is_finite() { value } else { f64::MAX };
        let (min, max) = options.histogram_range.unwrap_or((self.min, self.max));
        TensorProfile {
            name: tensor.name.clone(),
            count: tensor.weight_count(),
            nan_count: self.nan_count,
            inf_count: self.inf_count,
            zero_count: self.zero_count,
            min: self.min,
            max: self.max,
            mean: bounded(self.moments.mean),
            std: bounded(self.moments.std()),
            abs_max: self.min.abs().max(self.max.abs()),
            excess_kurtosis: self.moments.excess_kurtosis(),
            zero_share: share(self.zero_count),
            beyond_3_sigma_share: share(spread.beyond[0]),
            beyond_4_sigma_share: share(spread.beyond[1]),
            beyond_6_sigma_share: share(spread.beyond[2]),
            distinct_count: self.distinct_count,
            histogram: Histogram { min, max, counts: spread.bins },
            channels: self.channels,
        }
    }
}

/// Profiles one tensor, with every core.
///
/// Counts the bytes it reads as [`Phase::Profiling`]: those of the tensor once or, for types wider
/// than 16 bits, twice.
///
/// # Errors
/// A type that cannot be decoded, an unreadable file, or cancel.
pub fn profile_tensor(
    checkpoint: &Checkpoint,
    tensor: &TensorInfo,
    options: &ProfileOptions,
    progress: &Progress,
) -> Result<TensorProfile> {
    let target = Target::new(checkpoint, 0, tensor, options)?;
    let slot = Mutex::new(None);
    run(vec![target], options, progress, &|_, profile| {
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(profile);
    })?;
    let profile = slot.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(profile.expect("a run without an error has profiled its only tensor"))
}

/// Profiles every tensor, several at a time, and hands each to `on_tensor` with its index as soon
/// as it is done. `on_tensor` is called by one worker at a time, in no particular order.
///
/// A tensor of a type that cannot be decoded is named in [`Profile::faults`] and does not stop the others.
///
/// # Errors
/// An unreadable file, or cancel.
pub fn profile(
    checkpoint: &Checkpoint,
    options: &ProfileOptions,
    progress: &Progress,
    on_tensor: &mut (dyn FnMut(usize, Arc<TensorProfile>) + Send),
) -> Result<Profile> {
    let mut noun = Profile { tensors: vec![None; checkpoint.tensors.len()], faults: Vec::new(), device: None };
    let mut targets = Vec::new();
    for (index, tensor) in checkpoint.tensors.iter().enumerate() {
        match Target::new(checkpoint, index, tensor, options) {
            Ok(target) => targets.push(target),
            Err(Error::Fault(fault)) => noun.faults.push((index, *fault)),
            Err(error) => return Err(error),
        }
    }
    let sink = Mutex::new((&mut noun.tensors, on_tensor));
    let device = run(targets, options, progress, &|index, profile| {
        let profile = Arc::new(profile);
        let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
        sink.0[index] = Some(Arc::clone(&profile));
        (sink.1)(index, profile);
    })?;
    noun.device = device;
    Ok(noun)
}

/// Reads all targets: on the device what it looks at, of the rest the narrow ones as one stream of work
/// for all cores, then each wide one with all cores. Answers what the device was and became.
fn run(
    targets: Vec<Target<'_>>,
    options: &ProfileOptions,
    progress: &Progress,
    emit: &(dyn Fn(usize, TensorProfile) + Sync),
) -> Result<Option<String>> {
    let mut kinds: Vec<(format::Dtype, Arc<Narrow>)> = Vec::new();
    let (mut narrow, mut wide) = (Vec::new(), Vec::new());
    let mut total_bytes = 0;
    for target in targets {
        let dtype = target.tensor.dtype;
        let known = kinds.iter().find(|kind| kind.0 == dtype).map(|kind| Arc::clone(&kind.1));
        let kind = known.or_else(|| {
            let kind = Arc::new(Narrow::of(dtype)?);
            kinds.push((dtype, Arc::clone(&kind)));
            Some(kind)
        });
        match kind {
            Some(kind) => {
                total_bytes += target.tensor.byte_count;
                narrow.push((target, kind));
            }
            None => {
                total_bytes += 2 * target.tensor.byte_count;
                wide.push(target);
            }
        }
    }
    progress.begin(Phase::Profiling, total_bytes, Unit::Bytes);
    #[cfg(feature = "gpu")]
    let used = gpu::run(&mut narrow, &mut wide, options, progress, emit)?;
    #[cfg(not(feature = "gpu"))]
    let used = None;
    narrow::run(&narrow, options, progress, emit)?;
    for target in &wide {
        emit(target.index, wide::profile(target, options, progress)?);
    }
    progress.check()?;
    Ok(used)
}
