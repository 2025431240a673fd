//! Speed over prompt lengths and batch sizes, several models in turns, with intervals.
//!
//! Every cell is measured as A, B, A, B … after a short warm-up, at fixed lengths with end tokens ignored. TTFT is
//! the time from the prompt to the first token, TPOT the mean of the times between the others, ITL each of them:
//! only the last shows jitter. Medians have percentile intervals of a bootstrap over repetitions, and the ratio to
//! the first model is that of repetitions measured next to each other.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::TokenModel;
use super::random::Random;
use super::rows::gather;
use super::softmax::RowSum;
use super::text_stats::quantile;
use crate::error::{Fault, Result, Stage};
use crate::model::{Batch, KvCache};
use crate::progress::{Phase, Progress, Unit};

/// Resamples of an interval of a median.
const RESAMPLES: usize = 2000;

/// Which cells are measured.
#[derive(Clone, Debug, PartialEq)]
pub struct SpeedGridOptions {
    /// Tokens of a prompt.
    pub prompts: Vec<usize>,
    /// Sequences read and written together.
    pub batches: Vec<usize>,
    /// Tokens written after the prompt.
    pub decode_tokens: usize,
    /// Repetitions of every cell.
    pub repetitions: usize,
}

impl Default for SpeedGridOptions {
    fn default() -> Self {
        Self { prompts: vec![32, 128], batches: vec![1, 4], decode_tokens: 16, repetitions: 10 }
    }
}

/// A median with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Median {
    pub median: f64,
    pub interval: [f64; 2],
}

impl Median {
    /// The median of some values; zero of none.
    fn of(values: &[f64]) -> Self {
        let sorted = |mut values: Vec<f64>| {
            values.sort_unstable_by(f64::total_cmp);
            values
        };
        let mut random = Random::new(42, values.len() as u64);
        let medians = (0..RESAMPLES)
            .map(|_| {
                let drawn = (0..values.len()).map(|_| values[(random.unit() * values.len() as f64) as usize]).collect();
                quantile(&sorted(drawn), 0.5)
            })
            .collect();
        let medians = sorted(medians);
        Self {
            median: quantile(&sorted(values.to_vec()), 0.5),
            interval: [quantile(&medians, 0.025), quantile(&medians, 0.975)],
        }
    }
}

/// One model at one prompt length and batch size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SpeedCell {
    /// Place of the model among those measured.
    pub model: usize,
    pub prompt_tokens: usize,
    pub batch: usize,
    /// Prompt tokens read a second, over the whole batch.
    pub prefill_tokens_per_second: Median,
    /// Tokens written a second, over the whole batch.
    pub decode_tokens_per_second: Median,
    pub ttft_secs: Median,
    pub tpot_secs: Median,
    /// Gaps between tokens: median, 90th and 99th percentile.
    pub itl_secs: [f64; 3],
    /// Prompt and all written tokens, in seconds.
    pub end_to_end_secs: Median,
    /// Decoding speed over the first model's, repetition by repetition; 1 for the first itself.
    pub decode_ratio: Median,
    pub repetitions: usize,
    pub threads: usize,
}

/// Seconds of one repetition.
struct Sample {
    first: f64,
    gaps: Vec<f64>,
}

impl Sample {
    fn per_token(&self) -> f64 {
        (self.gaps.iter().sum::<f64>() / self.gaps.len().max(1) as f64).max(1e-9)
    }
}

/// Reads one run of tokens per sequence; the most probable next tokens.
fn step(model: &dyn TokenModel, runs: &[Vec<u32>], caches: &mut [KvCache], progress: &Progress) -> Result<Vec<u32>> {
    progress.check()?;
    let mut batch = Batch::default();
    let mut rows = Vec::with_capacity(runs.len());
    for (index, run) in runs.iter().enumerate() {
        batch.push(run, None, Some(index));
        rows.push(batch.ids.len() - 1);
    }
    let hidden = model.hidden(&batch, caches, progress)?;
    let logits = model.logits(&gather(&hidden, model.width(), rows.into_iter()))?;
    // Speed of a broken model is still a speed.
    Ok(logits.chunks_exact(model.vocab()).map(|row| RowSum::of(row).map_or(0, |sum| sum.top)).collect())
}

fn sample(model: &dyn TokenModel, prompts: &[Vec<u32>], decode: usize, progress: &Progress) -> Result<Sample> {
    let mut caches = vec![KvCache::default(); prompts.len()];
    let mut start = Instant::now();
    let mut next = step(model, prompts, &mut caches, progress)?;
    let first = start.elapsed().as_secs_f64().max(1e-9);
    let mut gaps = Vec::with_capacity(decode);
    for _ in 0..decode {
        start = Instant::now();
        let runs: Vec<Vec<u32>> = next.iter().map(|&id| vec![id]).collect();
        next = step(model, &runs, &mut caches, progress)?;
        gaps.push(start.elapsed().as_secs_f64().max(1e-9));
    }
    Ok(Sample { first, gaps })
}

/// Measures models at every length and batch size, in turns; cells come length by length, batch by batch, model by
/// model. Lengths that do not fit the shortest context are left out.
pub fn measure(models: &[&dyn TokenModel], options: &SpeedGridOptions, progress: &Progress) -> Result<Vec<SpeedCell>> {
    let Some(context) = models.iter().map(|model| model.context()).min() else {
        return Ok(Vec::new());
    };
    let (decode, repetitions) = (options.decode_tokens.max(1), options.repetitions.max(2));
    let fits = |prompt: usize| prompt > 0 && prompt + decode <= context;
    let cells: Vec<(usize, usize)> = options
        .prompts
        .iter()
        .filter(|&&prompt| fits(prompt))
        .flat_map(|&prompt| options.batches.iter().filter(|&&batch| batch > 0).map(move |&batch| (prompt, batch)))
        .collect();
    if cells.is_empty() {
        return Err(Fault::new(Stage::Evaluation, format!("no prompt with {decode} written tokens fits {context}"))
            .fix("choose shorter prompts or fewer written tokens")
            .into());
    }
    let vocab = models.iter().map(|model| model.vocab()).min().unwrap_or(1).max(1) as u64;
    progress.begin(Phase::MeasuringSpeed, (cells.len() * repetitions) as u64, Unit::Items);
    let mut results = Vec::with_capacity(cells.len() * models.len());
    for (prompt, batch) in cells {
        let mut random = Random::new(42, prompt as u64);
        let prompts: Vec<Vec<u32>> =
            (0..batch).map(|_| (0..prompt).map(|_| (random.next_u64() % vocab) as u32).collect()).collect();
        for model in models {
            sample(*model, &prompts, decode.min(2), progress)?;
        }
        let mut samples: Vec<Vec<Sample>> = models.iter().map(|_| Vec::with_capacity(repetitions)).collect();
        for _ in 0..repetitions {
            for (model, samples) in models.iter().zip(&mut samples) {
                samples.push(sample(*model, &prompts, decode, progress)?);
            }
            progress.advance(1);
        }
        for (model, own) in samples.iter().enumerate() {
            results.push(cell(model, own, &samples[0], (prompt, batch)));
        }
    }
    Ok(results)
}

fn cell(model: usize, own: &[Sample], first: &[Sample], (prompt, batch): (usize, usize)) -> SpeedCell {
    let median = |value: &dyn Fn(&Sample) -> f64| Median::of(&own.iter().map(value).collect::<Vec<f64>>());
    let mut gaps: Vec<f64> = own.iter().flat_map(|sample| sample.gaps.iter().copied()).collect();
    gaps.sort_unstable_by(f64::total_cmp);
    let ratios: Vec<f64> = own.iter().zip(first).map(|(own, first)| first.per_token() / own.per_token()).collect();
    SpeedCell {
        model,
        prompt_tokens: prompt,
        batch,
        prefill_tokens_per_second: median(&|sample| (prompt * batch) as f64 / sample.first),
        decode_tokens_per_second: median(&|sample| batch as f64 / sample.per_token()),
        ttft_secs: median(&|sample| sample.first),
        tpot_secs: median(&Sample::per_token),
        itl_secs: [0.5, 0.9, 0.99].map(|fraction| quantile(&gaps, fraction)),
        end_to_end_secs: median(&|sample| sample.first + sample.gaps.iter().sum::<f64>()),
        decode_ratio: Median::of(&ratios),
        repetitions: own.len(),
        threads: rayon::current_num_threads(),
    }
}

/// Bytes a second that this machine reads from memory with all worker threads: the best of five sums over a
/// quarter of a gibibyte.
pub fn memory_bandwidth() -> f64 {
    use rayon::prelude::*;
    let values = vec![1_u64; 32 << 20];
    let mut best = 0.0_f64;
    for _ in 0..5 {
        let start = Instant::now();
        let sum: u64 = values.par_chunks(1 << 16).map(|chunk| chunk.iter().copied().fold(0, u64::wrapping_add)).sum();
        let seconds = start.elapsed().as_secs_f64().max(1e-9);
        // The sum is looked at, so that the reading is not left out.
        if std::hint::black_box(sum) == values.len() as u64 {
            best = best.max(std::mem::size_of_val(values.as_slice()) as f64 / seconds);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeModel;
    use super::*;

    #[test]
    fn every_cell_that_fits_is_measured_for_every_model() {
        let model = FakeModel { context: 40, ..FakeModel::default() };
        let options =
            SpeedGridOptions { prompts: vec![5, 20, 300], batches: vec![1, 3], decode_tokens: 4, repetitions: 3 };
        let progress = Progress::default();
        let cells = measure(&[&model, &model], &options, &progress).expect("cells");
        assert_eq!(cells.len(), 2 * 2 * 2);
        assert_eq!(progress.snapshot().done, progress.snapshot().total);
        for cell in &cells {
            let [low, high] = cell.decode_tokens_per_second.interval;
            assert!(low <= cell.decode_tokens_per_second.median && cell.decode_tokens_per_second.median <= high);
            assert!(cell.itl_secs[0] <= cell.itl_secs[2] && cell.prompt_tokens < 40);
            if cell.model == 0 {
                assert_eq!(cell.decode_ratio, Median { median: 1.0, interval: [1.0, 1.0] });
            }
        }
        let none = SpeedGridOptions { prompts: vec![300], ..options };
        assert!(measure(&[&model], &none, &Progress::default()).is_err());
    }

    #[test]
    fn figures_of_a_cell_by_hand() {
        let sample = |first: f64, gap: f64| Sample { first, gaps: vec![gap; 4] };
        let own = [sample(0.5, 0.1), sample(0.5, 0.1), sample(2.0, 0.4)];
        let base = [sample(1.0, 0.2), sample(1.0, 0.2), sample(1.0, 0.2)];
        let cell = cell(1, &own, &base, (10, 2));
        assert_eq!(cell.prefill_tokens_per_second.median, 40.0);
        assert!((cell.decode_tokens_per_second.median - 20.0).abs() < 1e-9);
        assert!((cell.decode_ratio.median - 2.0).abs() < 1e-9);
        assert!((cell.end_to_end_secs.median - 0.9).abs() < 1e-9);
    }

    #[test]
    fn memory_can_be_read() {
        assert!(memory_bandwidth() > 1e6);
    }
}
