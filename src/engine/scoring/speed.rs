//! Prefill and decode speed, time to first token and time per output token.
//!
//! Several models are measured in turns (A, B, A, B …), so that a processor that slows down while
//! it gets warm slows all of them. Medians are reported with their quartiles; lengths are fixed,
//! end tokens are ignored, tokenizing is left out of them and measured by [`end_to_end`]. Speed measurements run alone.
//! Every repetition is kept in its order, so that models measured in turns are compared pair by pair.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::random::Random;
use super::rows::gather;
use super::softmax::RowSum;
use super::text_stats::quantile;
use super::{TextCodec, TokenModel};
use crate::error::{Fault, Result, Stage};
use crate::model::{Batch, KvCache};
use crate::progress::{Phase, Progress, Unit};

/// How speed is measured.
#[derive(Clone, Debug, PartialEq)]
pub struct SpeedOptions {
    /// Tokens of the prompt; fewer where the context is shorter.
    pub prefill_tokens: usize,
    /// Tokens written after it.
    pub decode_tokens: usize,
    /// Tokens that are there already when writing begins; none for those of the prompt. llama-bench's
    /// `tg` writes after nothing.
    pub decode_depth: Option<usize>,
    /// Least number of repetitions.
    pub repetitions: usize,
    /// More repetitions until this much time has passed.
    pub min_secs: f64,
    /// No further repetition after this time, once there are two.
    pub max_secs: f64,
}

impl Default for SpeedOptions {
    fn default() -> Self {
        Self {
            prefill_tokens: 128,
            decode_tokens: 32,
            decode_depth: None,
            // The fewest whose smallest and largest hold the median with 95 %.
            repetitions: 6,
            min_secs: 1.0,
            max_secs: 30.0,
        }
    }
}

/// Repetitions that a result keeps; of more, every so manieth.
const MAX_KEPT: usize = 256;
/// Tokens that are checked at once: those of drafts of 4 and 8 with the one that follows them.
const CHECKED: [usize; 2] = [5, 9];

/// What it takes to read some tokens at once with all their predictions, as a model does that checks drafts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckTime {
    pub tokens: usize,
    /// Median.
    pub secs: f64,
}

/// Speed of one model on this machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SpeedResult {
    /// Prompt tokens read a second, median.
    pub prefill_tokens_per_second: f64,
    /// Lower and upper quartile.
    pub prefill_tokens_per_second_quartiles: [f64; 2],
    /// Tokens written a second at batch 1, median.
    pub decode_tokens_per_second: f64,
    /// Lower and upper quartile.
    pub decode_tokens_per_second_quartiles: [f64; 2],
    /// Time to first token, median.
    pub ttft_secs: f64,
    /// Time per output token, median over repetitions.
    pub tpot_secs: f64,
    /// Tokens of the prompt.
    pub prefill_tokens: usize,
    /// Tokens written after the first.
    pub decode_tokens: usize,
    /// Tokens that were there when writing began.
    #[serde(default)]
    pub decode_depth: usize,
    pub repetitions: usize,
    /// Worker threads.
    pub threads: usize,
    /// True if baseline and candidate were measured in turns.
    pub in_turns: bool,
    /// Seconds of the prompt in each repetition, in their order; of very many, evenly spaced ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefill_secs: Vec<f64>,
    /// Seconds of a written token in the same repetitions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub decode_secs: Vec<f64>,
    /// Several tokens at once after the written ones; empty where the context has no room for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckTime>,
}

/// Seconds of one repetition.
#[derive(Clone, Copy)]
struct Sample {
    first_token: f64,
    per_token: f64,
    checks: Option<[f64; CHECKED.len()]>,
}

/// The next token at the end of what was just read.
fn read(model: &dyn TokenModel, ids: &[u32], caches: &mut [KvCache], progress: &Progress) -> Result<u32> {
    progress.check()?;
    let mut batch = Batch::default();
    batch.push(ids, None, Some(0));
    let hidden = model.hidden(&batch, caches, progress)?;
    let logits = model.logits(&gather(&hidden, model.width(), std::iter::once(ids.len() - 1)))?;
    // Speed of a broken model is still a speed.
    Ok(RowSum::of(&logits).map_or(0, |sum| sum.top))
}

/// Seconds of reading `count` tokens at once and predicting what follows each.
fn check(model: &dyn TokenModel, id: u32, count: usize, caches: &mut [KvCache], progress: &Progress) -> Result<f64> {
    progress.check()?;
    let start = Instant::now();
    let mut batch = Batch::default();
    batch.push(&vec![id; count], None, Some(0));
    let logits = model.logits(&model.hidden(&batch, caches, progress)?)?;
    let found = logits.chunks(model.vocab().max(1)).filter_map(RowSum::of).count();
    std::hint::black_box(found);
    Ok(start.elapsed().as_secs_f64())
}

/// Lengths of one repetition.
#[derive(Clone, Copy)]
struct Lengths {
    prefill: usize,
    decode: usize,
    depth: usize,
}

/// Reads a prompt, then writes; `prompt` is as long as the longer of prompt and depth.
fn sample(model: &dyn TokenModel, prompt: &[u32], lengths: Lengths, progress: &Progress) -> Result<Sample> {
    let mut caches = [KvCache::default()];
    let start = Instant::now();
    let mut next = read(model, &prompt[..lengths.prefill], &mut caches, progress)?;
    let first_token = start.elapsed().as_secs_f64();
    if lengths.depth != lengths.prefill {
        caches = [KvCache::default()];
        if lengths.depth > 0 {
            next = read(model, &prompt[..lengths.depth], &mut caches, progress)?;
        }
    }
    let start = Instant::now();
    for _ in 0..lengths.decode {
        next = read(model, &[next], &mut caches, progress)?;
    }
    let per_token = start.elapsed().as_secs_f64() / lengths.decode as f64;
    let has_room = lengths.depth + lengths.decode + CHECKED.iter().sum::<usize>() <= model.context();
    let checks = if has_room {
        let mut secs = [0.0; CHECKED.len()];
        for (secs, count) in secs.iter_mut().zip(CHECKED) {
            *secs = check(model, next, count, &mut caches, progress)?;
        }
        Some(secs)
    } else {
        None
    };
    Ok(Sample { first_token, per_token, checks })
}

/// Measures models in turns; results come in their order.
pub fn measure(models: &[&dyn TokenModel], options: &SpeedOptions, progress: &Progress) -> Result<Vec<SpeedResult>> {
    let Some(context) = models.iter().map(|model| model.context()).min() else {
        return Ok(Vec::new());
    };
    if context < 2 {
        return Err(Fault::new(Stage::Evaluation, format!("a context of {context} tokens is too short to write in"))
            .fix("leave speed out of this evaluation")
            .into());
    }
    // A short context is shared between reading and writing as the options share it.
    let decode_tokens = options.decode_tokens.clamp(1, (context / 4).max(1));
    let prefill_tokens = options.prefill_tokens.clamp(1, context - decode_tokens);
    let decode_depth = options.decode_depth.unwrap_or(prefill_tokens).min(context - decode_tokens);
    let lengths = Lengths { prefill: prefill_tokens, decode: decode_tokens, depth: decode_depth };
    let vocab = models.iter().map(|model| model.vocab()).min().unwrap_or(1).max(1);
    let mut random = Random::new(42, 0);
    let prompt: Vec<u32> =
        (0..prefill_tokens.max(decode_depth)).map(|_| (random.next_u64() % vocab as u64) as u32).collect();

    let least = options.repetitions.max(1);
    progress.begin(Phase::MeasuringSpeed, least as u64, Unit::Items);
    for model in models {
        sample(*model, &prompt, Lengths { decode: decode_tokens.min(2), ..lengths }, progress)?;
    }
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); models.len()];
    let start = Instant::now();
    loop {
        let (done, elapsed) = (samples[0].len(), start.elapsed().as_secs_f64());
        let is_enough = done >= least && elapsed >= options.min_secs;
        let is_too_long = done >= 2.min(least) && elapsed >= options.max_secs;
        if is_enough || is_too_long {
            break;
        }
        for (model, samples) in models.iter().zip(&mut samples) {
            samples.push(sample(*model, &prompt, lengths, progress)?);
        }
        progress.advance(1);
    }
    Ok(samples.iter().map(|samples| summary(samples, lengths, models.len() > 1)).collect())
}

/// What turning text into tokens and back adds to a request, and the whole of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndToEnd {
    /// Bytes of the prompt, which random tokens were written out as.
    pub prompt_bytes: usize,
    /// Seconds until the prompt is tokens, median.
    pub encode_secs: f64,
    /// Seconds until the written tokens are text, median.
    pub decode_secs: f64,
    /// From text to text: the prompt and all written tokens with both of the above.
    pub end_to_end_secs: f64,
}

/// Times a tokenizer at the lengths of a measurement of its model.
///
/// # Errors
/// Those of the tokenizer.
pub fn end_to_end(codec: &dyn TextCodec, vocab: usize, speed: &SpeedResult) -> Result<EndToEnd> {
    const REPETITIONS: usize = 15;
    let mut random = Random::new(43, 0);
    let mut ids =
        |count: usize| -> Vec<u32> { (0..count).map(|_| (random.next_u64() % vocab as u64) as u32).collect() };
    let (prompt, written) = (codec.decode(&ids(speed.prefill_tokens))?, ids(speed.decode_tokens));
    let median = |work: &dyn Fn() -> Result<()>| -> Result<f64> {
        let mut seconds = Vec::with_capacity(REPETITIONS);
        for _ in 0..REPETITIONS {
            let start = Instant::now();
            work()?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        seconds.sort_unstable_by(f64::total_cmp);
        Ok(quantile(&seconds, 0.5))
    };
    let encode_secs = median(&|| codec.encode(&prompt).map(drop))?;
    let decode_secs = median(&|| codec.decode(&written).map(drop))?;
    let model_secs = speed.ttft_secs + speed.tpot_secs * speed.decode_tokens as f64;
    Ok(EndToEnd {
        prompt_bytes: prompt.len(),
        encode_secs,
        decode_secs,
        end_to_end_secs: encode_secs + model_secs + decode_secs,
    })
}

fn summary(samples: &[Sample], lengths: Lengths, in_turns: bool) -> SpeedResult {
    let sorted = |value: fn(&Sample) -> f64| {
        // A clock that stands still must not give an infinite speed, which JSON cannot hold.
        let mut values: Vec<f64> = samples.iter().map(|sample| value(sample).max(1e-9)).collect();
        values.sort_unstable_by(f64::total_cmp);
        values
    };
    let (first, per) = (sorted(|sample| sample.first_token), sorted(|sample| sample.per_token));
    let prefill = |fraction| lengths.prefill as f64 / quantile(&first, fraction);
    let decode = |fraction| 1.0 / quantile(&per, fraction);
    let kept = |value: fn(&Sample) -> f64| -> Vec<f64> {
        let step = samples.len().div_ceil(MAX_KEPT).max(1);
        samples.iter().step_by(step).map(|sample| value(sample).max(1e-9)).collect()
    };
    let checks = CHECKED.iter().enumerate().filter_map(|(place, &tokens)| {
        let mut secs: Vec<f64> = samples.iter().filter_map(|sample| Some(sample.checks?[place].max(1e-9))).collect();
        secs.sort_unstable_by(f64::total_cmp);
        (!secs.is_empty()).then(|| CheckTime { tokens, secs: quantile(&secs, 0.5) })
    });
    SpeedResult {
        prefill_tokens_per_second: prefill(0.5),
        prefill_tokens_per_second_quartiles: [prefill(0.75), prefill(0.25)],
        decode_tokens_per_second: decode(0.5),
        decode_tokens_per_second_quartiles: [decode(0.75), decode(0.25)],
        ttft_secs: quantile(&first, 0.5),
        tpot_secs: quantile(&per, 0.5),
        prefill_tokens: lengths.prefill,
        decode_tokens: lengths.decode,
        decode_depth: lengths.depth,
        repetitions: samples.len(),
        threads: rayon::current_num_threads(),
        in_turns,
        prefill_secs: kept(|sample| sample.first_token),
        decode_secs: kept(|sample| sample.per_token),
        checks: checks.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeModel;
    use super::*;

    #[test]
    fn a_request_from_text_to_text_takes_longer_than_its_model() {
        let (model, codec) = (FakeModel::default(), super::super::fake::FakeCodec::default());
        let options = SpeedOptions { repetitions: 2, min_secs: 0.0, ..SpeedOptions::default() };
        let speed = measure(&[&model], &options, &Progress::default()).expect("speed").remove(0);
        let whole = end_to_end(&codec, model.vocab, &speed).expect("times");
        let alone = speed.ttft_secs + speed.tpot_secs * speed.decode_tokens as f64;
        assert!(whole.prompt_bytes > 0 && whole.encode_secs > 0.0);
        assert!((whole.end_to_end_secs - alone - whole.encode_secs - whole.decode_secs).abs() < 1e-12);
    }

    #[test]
    fn lengths_fit_a_short_context_and_both_models_are_measured() {
        let model = FakeModel { context: 20, ..FakeModel::default() };
        let options = SpeedOptions { repetitions: 3, min_secs: 0.0, ..SpeedOptions::default() };
        let progress = Progress::default();
        let results = measure(&[&model, &model], &options, &progress).expect("speed");
        assert_eq!(results.len(), 2);
        for result in &results {
            assert_eq!((result.prefill_tokens, result.decode_tokens, result.repetitions), (15, 5, 3));
            assert!(result.in_turns && result.decode_tokens_per_second > 0.0);
            let [low, high] = result.prefill_tokens_per_second_quartiles;
            assert!(low <= result.prefill_tokens_per_second && result.prefill_tokens_per_second <= high);
        }
        assert_eq!(progress.snapshot().done, 3);
    }

    #[test]
    fn writing_begins_after_the_prompt_unless_another_depth_is_asked_for() {
        let model = FakeModel { context: 200, ..FakeModel::default() };
        let depth = |decode_depth: Option<usize>| {
            let options = SpeedOptions {
                prefill_tokens: 20,
                decode_tokens: 3,
                decode_depth,
                repetitions: 1,
                min_secs: 0.0,
                ..SpeedOptions::default()
            };
            measure(&[&model], &options, &Progress::default()).expect("speed")[0].decode_depth
        };
        assert_eq!([None, Some(0), Some(50), Some(9999)].map(depth), [20, 0, 50, 197]);
    }

    #[test]
    fn the_median_ignores_one_slow_repetition() {
        let samples: Vec<Sample> = [1.0, 1.0, 9.0]
            .map(|secs| Sample { first_token: secs, per_token: secs / 10.0, checks: Some([2.0, secs]) })
            .to_vec();
        let result = summary(&samples, Lengths { prefill: 128, decode: 32, depth: 128 }, false);
        assert_eq!(result.prefill_tokens_per_second, 128.0);
        assert!((result.decode_tokens_per_second - 10.0).abs() < 1e-9);
        // Repetitions stay in their order, and checks are medians too.
        assert_eq!((result.prefill_secs, result.decode_secs), (vec![1.0, 1.0, 9.0], vec![0.1, 0.1, 0.9]));
        assert_eq!(result.checks, [CheckTime { tokens: 5, secs: 2.0 }, CheckTime { tokens: 9, secs: 1.0 }]);
    }

    #[test]
    fn tokens_are_checked_at_once_where_the_context_has_room_and_few_repetitions_are_kept_of_many() {
        let checked = |context: usize| {
            let model = FakeModel { context, ..FakeModel::default() };
            let options = SpeedOptions {
                prefill_tokens: 10,
                decode_tokens: 6,
                repetitions: 1,
                min_secs: 0.0,
                ..SpeedOptions::default()
            };
            let checks = measure(&[&model], &options, &Progress::default()).expect("speed").remove(0).checks;
            checks.iter().map(|check| check.tokens).collect::<Vec<_>>()
        };
        // Ten, six, five and nine tokens.
        assert_eq!((checked(30), checked(29)), (vec![5, 9], vec![]));
        let sample = |secs: usize| Sample { first_token: secs as f64, per_token: 1.0, checks: None };
        let samples: Vec<Sample> = (1..=600).map(sample).collect();
        let kept = summary(&samples, Lengths { prefill: 1, decode: 1, depth: 1 }, true).prefill_secs;
        assert_eq!((kept.len(), kept[0], kept[1], kept[199]), (200, 1.0, 4.0, 598.0));
    }

    #[test]
    fn a_slow_model_is_measured_twice_and_no_more() {
        let options = SpeedOptions { repetitions: 100, max_secs: 0.0, ..SpeedOptions::default() };
        let results = measure(&[&FakeModel::default()], &options, &Progress::default()).expect("speed");
        assert_eq!(results[0].repetitions, 2);
        assert!(!results[0].in_turns);
    }
}
