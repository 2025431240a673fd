//! Large tensors of f32, f16, bf16 and fp8 on a device.
//!
//! What fails, or what f32 sums cannot hold, is left for the CPU: nothing is handed out before a tensor is
//! done.

use std::sync::Arc;

use super::figures::Moments;
use super::narrow::{self, Gathered};
use super::source::Narrow;
use super::{Parts, ProfileOptions, Target, TensorProfile};
use crate::device::rates::Work;
use crate::device::{Used, tell};
use crate::error::Result;
use crate::format::Dtype;
use crate::kernels::gpu::{Counter, Device, Failure, Rows, Spreader, Surveyor};
use crate::progress::Progress;

/// Fewer weights are looked at before they are up.
const LEAST_WEIGHTS: u64 = 1 << 14;

/// The outcome of a device: of the engine's errors only cancel and an unreadable file end the profile.
enum Trouble {
    Engine(crate::error::Error),
    Device(Failure),
}

impl From<crate::error::Error> for Trouble {
    fn from(error: crate::error::Error) -> Self {
        Self::Engine(error)
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Device(failure)
    }
}

/// Looks at what the device can, takes that out of the lists, and answers what the device was and became; none
/// where it looked at nothing.
pub(super) fn run(
    narrow: &mut Vec<(Target<'_>, Arc<Narrow>)>,
    wide: &mut Vec<Target<'_>>,
    options: &ProfileOptions,
    progress: &Progress,
    emit: &(dyn Fn(usize, TensorProfile) + Sync),
) -> Result<Option<String>> {
    let is_worth = |target: &Target<'_>| {
        let known = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::F8E4M3, Dtype::F8E5M2];
        known.contains(&target.tensor.dtype) && target.tensor.weight_count() >= LEAST_WEIGHTS
    };
    if !narrow.iter().map(|(target, _)| target).chain(wide.iter()).any(is_worth) {
        return Ok(None);
    }
    let Some(device) = options.device.gpu_for(Work::Statistics) else { return Ok(None) };
    let mut used = Used::default();
    let mut outcome = Ok(());
    let mut look = |target: &Target<'_>, kind: Option<&Narrow>| {
        if used.failure().is_some() || outcome.is_err() || !is_worth(target) {
            return false;
        }
        let profile = match kind {
            Some(kind) => counted(device, target, kind, options, progress),
            None => surveyed(device, target, options, progress),
        };
        match profile {
            Ok(Some(profile)) => {
                let looks = if kind.is_some() { 1 } else { 2 };
                used.worked(device.name());
                progress.advance(target.tensor.byte_count * looks);
                emit(target.index, profile);
                true
            }
            // f32 cannot hold it, or its rows are too long: no fault of the device.
            Ok(None) | Err(Trouble::Device(Failure::TooLarge(_) | Failure::Missing(_))) => false,
            Err(Trouble::Device(other)) => {
                tell(format!("{}: {other}; the CPU goes on, and nothing is lost.", device.name()));
                used.failed(&other);
                false
            }
            Err(Trouble::Engine(error)) => {
                outcome = Err(error);
                false
            }
        }
    };
    narrow.retain(|(target, kind)| !look(target, Some(kind)));
    wide.retain(|target| !look(target, None));
    outcome?;
    Ok(used.in_words())
}

fn rows(target: &Target<'_>) -> Rows {
    Rows { len: target.tensor.row_len(), count: target.tensor.row_count(), fold: target.folding.rows_per_entry }
}

/// Reads a tensor piece by piece.
fn stream(
    target: &Target<'_>,
    most_rows: usize,
    progress: &Progress,
    mut add: impl FnMut(usize, &[u8]) -> std::result::Result<(), Failure>,
) -> std::result::Result<(), Trouble> {
    let tensor = target.tensor;
    let rows = tensor.row_count();
    // Rows of one head that have to be put back in order are read together.
    let together = tensor.permuted_heads.map_or(1, |heads| (rows / heads.max(1)).max(1));
    let step = most_rows / together * together;
    if step == 0 {
        return Err(Failure::TooLarge(format!("{together} rows at a time")).into());
    }
    let mut raw = Vec::new();
    for first in (0..rows).step_by(step) {
        progress.check()?;
        target.source.read_rows(first..(first + step).min(rows), tensor, &mut raw)?;
        add(first, &raw)?;
    }
    Ok(())
}

/// A tensor of f16, bf16 or fp8, by the counts of its patterns.
fn counted(
    device: &Device,
    target: &Target<'_>,
    kind: &Narrow,
    options: &ProfileOptions,
    progress: &Progress,
) -> std::result::Result<Option<TensorProfile>, Trouble> {
    let rows = rows(target);
    let mut counter = match target.tensor.dtype {
        Dtype::F16 => Counter::new(device, rows, 0x7c00)?,
        // It has no infinity; the largest pattern is NaN.
        Dtype::F8E4M3 => Counter::of_bytes(device, rows, 0x7f)?,
        Dtype::F8E5M2 => Counter::of_bytes(device, rows, 0x7c)?,
        _ => Counter::new(device, rows, 0x7f80)?,
    };
    stream(target, counter.most_rows(), progress, |first, bytes| counter.add(first, bytes))?;
    let found = counter.finish()?;
    let gathered = if kind.is_byte {
        Gathered::of_byte_counts(&found.counts, found.ranges)
    } else {
        Gathered::of_counts(found.counts.into_iter().map(u64::from).collect(), found.ranges)
    };
    Ok(Some(narrow::figures(target, kind, gathered, options)))
}

/// A tensor of f32, in two looks; none where f32 sums cannot hold it.
fn surveyed(
    device: &Device,
    target: &Target<'_>,
    options: &ProfileOptions,
    progress: &Progress,
) -> std::result::Result<Option<TensorProfile>, Trouble> {
    let mut surveyor = Surveyor::new(device, rows(target))?;
    stream(target, surveyor.most_rows(), progress, |first, bytes| surveyor.add(first, bytes))?;
    let first = surveyor.finish()?;
    let special = u64::from(first.nan_count) + u64::from(first.inf_count);
    let count = target.tensor.weight_count() - special;
    let (mut min, mut max) = (f64::INFINITY, f64::NEG_INFINITY);
    for &(lo, hi) in first.ranges.iter().flatten() {
        (min, max) = (min.min(lo.into()), max.max(hi.into()));
    }
    // Squares of smaller and of larger values do not sum in f32.
    let most = max.max(-min);
    if count == 0 || !first.sum.is_finite() || !(1e-12..1e12).contains(&most) {
        return Ok(None);
    }
    let mean = first.sum / count as f64;
    let mut parts = Parts {
        nan_count: first.nan_count.into(),
        inf_count: first.inf_count.into(),
        zero_count: first.zero_count.into(),
        min,
        max,
        moments: Moments::of_constant(mean, count),
        distinct_count: None,
        channels: target.folding.channels(first.ranges),
    };
    if min == max {
        return Ok(None);
    }
    // The tails need the deviation, so that its sums come first: a look of their own.
    let sums = spread(device, target, &parts.spread(options), most as f32, progress)?;
    if sums.powers.iter().any(|power| !power.is_finite()) {
        return Ok(None);
    }
    parts.moments = Moments::of_sums(count, mean, sums.powers);
    let mut counted = parts.spread(options);
    let found = spread(device, target, &counted, most as f32, progress)?;
    counted.beyond = found.beyond.map(u64::from);
    counted.bins = found.bins.into_iter().map(u64::from).collect();
    Ok(Some(parts.finish(target.tensor, counted, options)))
}

/// A look at a tensor of f32 for what is counted against a scale.
fn spread(
    device: &Device,
    target: &Target<'_>,
    scale: &super::figures::Spread,
    most: f32,
    progress: &Progress,
) -> std::result::Result<crate::kernels::gpu::Spread, Trouble> {
    let mut spreader = Spreader::new(device, rows(target), scale.scale(), most)?;
    stream(target, spreader.most_rows(), progress, |first, bytes| spreader.add(first, bytes))?;
    Ok(spreader.finish()?)
}

#[cfg(test)]
mod tests {
    use super::super::{ProfileOptions, profile};
    use crate::checkpoint::Checkpoint;
    use crate::device::Device;
    use crate::progress::Progress;

    /// The demo, stored as f32, f16 and bf16.
    #[test]
    #[ignore = "needs a graphics driver"]
    fn profiles_on_a_gpu_have_the_counts_of_the_cpu_and_its_moments_to_a_millionth() {
        let folder = tempfile::tempdir().expect("a folder");
        let progress = Progress::default();
        let demo = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("assets/demo");
        let demo = Checkpoint::open(&demo).expect("the demo opens");
        for format in ["f32", "f16", "bf16"] {
            let text = format!("version = 1\ntarget = \"hugging_face\"\n[default]\nformat = \"{format}\"\n");
            let plan = crate::plan::Plan::parse(&text, None).expect("a plan");
            let resolved = crate::plan::resolve(&plan, &demo).expect("resolves");
            let output = folder.path().join(format);
            crate::pass::run(&demo, &resolved, &output, &Default::default(), &progress).expect("writes");
            let checkpoint = Checkpoint::open(&output).expect("opens");
            let of = |device: Device| {
                let options = ProfileOptions { device, max_channel_entries: 100, ..ProfileOptions::default() };
                profile(&checkpoint, &options, &progress, &mut |_, _| {}).expect("profiles")
            };
            let (ours, expected) = (of(Device::any_for_test()), of(Device::default()));
            assert!(ours.device.is_some() && expected.device.is_none());
            for (ours, expected) in ours.tensors.iter().flatten().zip(expected.tensors.iter().flatten()) {
                let close = |a: f64, b: f64, most: f64| (a - b).abs() <= most;
                assert!(close(ours.mean, expected.mean, 1e-6 * expected.std), "{format} {}: mean", ours.name);
                assert!(close(ours.std, expected.std, 1e-6 * expected.std), "{format} {}: std", ours.name);
                let kurtosis = |of: Option<f64>| of.unwrap_or_default() + 3.0;
                let (one, other) = (kurtosis(ours.excess_kurtosis), kurtosis(expected.excess_kurtosis));
                assert!(close(one, other, 1e-5 * other), "{format} {}: kurtosis {one} {other}", ours.name);
                assert_eq!((ours.min, ours.max, ours.zero_count), (expected.min, expected.max, expected.zero_count));
                assert_eq!(ours.channels, expected.channels, "{format} {}", ours.name);
                if format != "f32" {
                    assert_eq!(ours, expected, "16 bits are counted, so that everything is equal");
                }
                // f32's edges and limits come from a mean and a deviation that differ in their last digits.
                let moved: u64 =
                    (ours.histogram.counts.iter().zip(&expected.histogram.counts)).map(|(a, b)| a.abs_diff(*b)).sum();
                assert_eq!(moved, 0, "{format} {}", ours.name);
                let tails = |of: &super::TensorProfile| of.beyond_3_sigma_share * of.count as f64;
                assert!(close(tails(ours), tails(expected), 1.5), "{format} {}", ours.name);
            }
        }
    }

    /// The demo is stored in 16 bits, whose figures are the same wherever they are counted.
    #[test]
    #[ignore = "needs a graphics driver"]
    fn a_gpu_that_fails_anywhere_in_a_profile_leaves_the_figures_of_the_cpu() {
        let demo = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("assets/demo");
        let demo = Checkpoint::open(&demo).expect("the demo opens");
        let of = |device: Device| {
            let options = ProfileOptions { device, ..ProfileOptions::default() };
            profile(&demo, &options, &Progress::default(), &mut |_, _| {}).expect("profiles")
        };
        let expected = of(Device::default());
        crate::device::fail_everywhere_for_test(|device| {
            let found = of(device);
            assert!(found.tensors == expected.tensors, "{:?}", found.device);
            found.device
        });
    }
}
