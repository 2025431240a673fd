//! Speculative decoding: a draft model proposes, the target checks several tokens at once and answers as if alone.
//!
//! Leviathan, Kalman and Matias (ICML 2023): a drafted token x is accepted with probability min(1, p(x) / q(x)),
//! where both are the distributions after temperature and top-k; the first one that is refused is drawn anew
//! from the rest max(0, p − q), and where none is, the target's own next distribution gives one token more. The
//! text then has exactly the target's distribution; greedily it is the target's own text.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::generation::{GenerateOptions, Stop, largest};
use super::join::{cut_left, encode_prompt};
use super::random::Random;
use super::rows::gather;
use super::softmax::RowSum;
use super::{TextCodec, TokenModel, check_ids, not_finite};
use crate::error::{Fault, Result, Stage};
use crate::model::{Batch, KvCache};
use crate::progress::{Phase, Progress, Unit};

/// What was written with a draft.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SpeculativeGeneration {
    pub text: String,
    pub ids: Vec<u32>,
    pub stop: Stop,
    /// Times that the target was asked.
    pub cycles: usize,
    pub drafted: usize,
    pub accepted: usize,
    /// Wall time of all, the prompt included.
    pub seconds: f64,
}

impl SpeculativeGeneration {
    /// Share of drafted tokens that the target took.
    pub fn acceptance(&self) -> f64 {
        self.accepted as f64 / self.drafted.max(1) as f64
    }

    /// Tokens that one question to the target yielded.
    pub fn tokens_per_cycle(&self) -> f64 {
        self.ids.len() as f64 / self.cycles.max(1) as f64
    }
}

/// The distribution that is drawn from: all on the first of the largest logits at temperature 0, else softmax of
/// the `top_k` largest.
pub fn distribution(row: &[f32], temperature: f32, top_k: usize) -> Option<Vec<f64>> {
    let sum = RowSum::of(row)?;
    let mut probabilities = vec![0.0; row.len()];
    if temperature.is_nan() || temperature <= 0.0 {
        probabilities[sum.top as usize] = 1.0;
        return Some(probabilities);
    }
    let weight = |logit: f32| f64::from((logit - sum.max) / temperature).exp();
    if top_k == 0 || top_k >= row.len() {
        probabilities.iter_mut().zip(row).for_each(|(probability, &logit)| *probability = weight(logit));
    } else {
        for id in largest(row, top_k) {
            probabilities[id as usize] = weight(row[id as usize]);
        }
    }
    let total: f64 = probabilities.iter().sum();
    probabilities.iter_mut().for_each(|probability| *probability /= total);
    Some(probabilities)
}

/// Draws an index from weights, which need not sum to 1.
fn draw(weights: &[f64], random: &mut Random) -> u32 {
    let total: f64 = weights.iter().sum();
    let mut left = random.unit() * total;
    let mut last = 0;
    for (index, &weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
        last = index as u32;
        left -= weight;
        if left < 0.0 {
            break;
        }
    }
    last
}

/// How many of `drafted` the target takes, and the token that follows them. `target` has a distribution more than
/// there are drafts.
pub fn accept(target: &[Vec<f64>], draft: &[Vec<f64>], drafted: &[u32], random: &mut Random) -> (usize, u32) {
    for (index, &id) in drafted.iter().enumerate() {
        let (p, q) = (&target[index], &draft[index]);
        if random.unit() * q[id as usize] < p[id as usize] {
            continue;
        }
        let rest: Vec<f64> = p.iter().zip(q).map(|(p, q)| (p - q).max(0.0)).collect();
        // Rounding can leave nothing where both are the same; then p is as good.
        let next = if rest.iter().sum::<f64>() > 0.0 { draw(&rest, random) } else { draw(p, random) };
        return (index, next);
    }
    (drafted.len(), draw(&target[drafted.len()], random))
}

/// One of both models with what it has read.
struct Reader<'a> {
    model: &'a dyn TokenModel,
    caches: [KvCache; 1],
    temperature: f32,
    top_k: usize,
}

impl<'a> Reader<'a> {
    fn new(model: &'a dyn TokenModel, options: &GenerateOptions) -> Self {
        Self { model, caches: [KvCache::default()], temperature: options.temperature, top_k: options.top_k }
    }

    /// Reads what it has not read of `ids`; the distributions after each of the last `count` tokens.
    fn read(&mut self, ids: &[u32], count: usize, progress: &Progress) -> Result<Vec<Vec<f64>>> {
        progress.check()?;
        let new = &ids[self.caches[0].len()..];
        let mut batch = Batch::default();
        batch.push(new, None, Some(0));
        let hidden = self.model.hidden(&batch, &mut self.caches, progress)?;
        let logits = self.model.logits(&gather(&hidden, self.model.width(), new.len() - count..new.len()))?;
        let rows = logits.chunks_exact(self.model.vocab());
        rows.map(|row| {
            distribution(row, self.temperature, self.top_k).ok_or_else(|| not_finite("the next token").into())
        })
        .collect()
    }
}

/// A model and the one that drafts for it.
#[derive(Clone, Copy)]
pub struct Drafting<'a> {
    /// Whose text it will be.
    pub target: &'a dyn TokenModel,
    /// Who proposes.
    pub draft: &'a dyn TokenModel,
    /// Tokens proposed at once.
    pub length: usize,
}

/// Continues `prompt` as the target would, with drafts.
///
/// `on_text` is told the text so far after every cycle.
///
/// # Errors
/// Where the models have different vocabularies.
pub fn speculate(
    drafting: Drafting<'_>,
    codec: &dyn TextCodec,
    prompt: &str,
    options: &GenerateOptions,
    progress: &Progress,
    on_text: &mut dyn FnMut(&str),
) -> Result<SpeculativeGeneration> {
    let Drafting { target, draft, length: draft_len } = drafting;
    if target.vocab() != draft.vocab() {
        let cause = format!("the target has {} tokens, the draft {}", target.vocab(), draft.vocab());
        return Err(Fault::new(Stage::Model, cause).fix("draft with a model of the same tokenizer").into());
    }
    let started = Instant::now();
    let context = target.context().min(draft.context()).max(2);
    let mut ids = encode_prompt(codec, prompt)?;
    check_ids(&ids, target.vocab())?;
    let room = options.max_tokens.clamp(1, (context / 4).max(1));
    cut_left(&mut ids, codec.bos(), context - room);
    let prompt_len = ids.len();
    let most = options.max_tokens.min(context - prompt_len + 1);
    progress.begin(Phase::Generating, most as u64, Unit::Tokens);
    let (mut target, mut drafter) = (Reader::new(target, options), Reader::new(draft, options));
    let mut random = Random::new(options.seed, 1);
    let mut generation = SpeculativeGeneration {
        text: String::new(),
        ids: Vec::new(),
        stop: if most < options.max_tokens { Stop::ContextFull } else { Stop::MaxTokens },
        cycles: 0,
        drafted: 0,
        accepted: 0,
        seconds: 0.0,
    };
    while generation.ids.len() < most {
        // The token after the drafts comes for free, and every draft must fit the context with it.
        let length = draft_len.min(most - generation.ids.len() - 1);
        let known = ids.len();
        let mut proposed = ids.clone();
        let mut drafts = Vec::with_capacity(length);
        for _ in 0..length {
            let mut rows = drafter.read(&proposed, 1, progress)?;
            let row = rows.remove(0);
            proposed.push(draw(&row, &mut random));
            drafts.push(row);
        }
        let rows = target.read(&proposed, length + 1, progress)?;
        let (accepted, next) = accept(&rows, &drafts, &proposed[known..], &mut random);
        generation.cycles += 1;
        generation.drafted += length;
        generation.accepted += accepted;
        ids.extend_from_slice(&proposed[known..known + accepted]);
        ids.push(next);
        // The last token is read with the next drafts.
        target.caches[0].truncate(ids.len() - 1);
        drafter.caches[0].truncate(ids.len() - 1);
        let end = ids[known..].iter().position(|id| codec.eos().contains(id));
        if let Some(end) = end {
            ids.truncate(known + end + 1);
            generation.stop = Stop::EndOfText;
        }
        progress.advance((ids.len() - known) as u64);
        generation.ids = ids[prompt_len..].to_vec();
        generation.text = codec.decode(&generation.ids)?;
        on_text(&generation.text);
        if end.is_some() {
            break;
        }
    }
    generation.seconds = started.elapsed().as_secs_f64();
    Ok(generation)
}

#[cfg(test)]
mod tests {
    use super::super::fake::{FakeCodec, FakeModel};
    use super::super::generation::generate;
    use super::*;

    #[test]
    fn what_is_written_has_the_targets_distribution() {
        // Three tokens, a draft that is quite wrong; a million cycles of two drafts each.
        let (p, q) = (vec![0.6, 0.3, 0.1], vec![0.2, 0.3, 0.5]);
        let (target, draft) = (vec![p.clone(); 3], vec![q.clone(); 2]);
        let mut random = Random::new(4, 4);
        let (mut first, mut pairs, mut accepted) = ([0_u64; 3], [[0_u64; 3]; 3], 0_u64);
        for _ in 0..1_000_000 {
            let drafted = [draw(&q, &mut random), draw(&q, &mut random)];
            let (taken, next) = accept(&target, &draft, &drafted, &mut random);
            let written: Vec<u32> = drafted[..taken].iter().copied().chain([next]).collect();
            first[written[0] as usize] += 1;
            if let [a, b, ..] = written[..] {
                pairs[a as usize][b as usize] += 1;
            }
            accepted += u64::from(taken > 0);
        }
        let chi = |seen: &[u64], expected: &[f64]| -> f64 {
            let count = seen.iter().sum::<u64>() as f64;
            seen.iter().zip(expected).map(|(&seen, p)| (seen as f64 - p * count).powi(2) / (p * count)).sum()
        };
        // 99.9 % of χ² with two degrees of freedom is 13.8.
        assert!(chi(&first, &p) < 13.8, "{first:?}");
        for row in &pairs {
            // What follows an accepted first token.
            assert!(chi(row, &p) < 13.8, "{pairs:?}");
        }
        // Σ min(p, q) = 0.2 + 0.3 + 0.1.
        assert!((accepted as f64 / 1e6 - 0.6).abs() < 0.002, "{accepted}");
    }

    #[test]
    fn greedy_text_is_the_targets_own() {
        let codec = FakeCodec::default();
        let target = FakeModel::default();
        for (noise, length) in [(0.0, 4), (1.5, 1), (1.5, 4), (6.0, 3), (1.5, 0)] {
            let draft = FakeModel { noise, ..FakeModel::default() };
            let mut acceptances = 0.0;
            for index in 0..20 {
                let options = GenerateOptions { max_tokens: 30, ..GenerateOptions::default() };
                let prompt = format!("prompt {index}");
                let progress = Progress::default();
                let alone = generate(&target, &codec, &prompt, &options, &progress, &mut |_| {}).expect("text");
                let ours = speculate(
                    Drafting { target: &target, draft: &draft, length },
                    &codec,
                    &prompt,
                    &options,
                    &progress,
                    &mut |_| {},
                )
                .expect("text");
                let expected: Vec<u32> = alone.tokens.iter().map(|token| token.id).collect();
                assert_eq!((&ours.ids, ours.stop), (&expected, alone.stop), "noise {noise}, {length} drafts");
                acceptances += ours.acceptance() / 20.0;
            }
            if noise == 0.0 {
                assert!((acceptances - 1.0_f64).abs() < 1e-9, "{acceptances}");
            }
        }
    }

    #[test]
    fn sampled_text_is_accepted_as_often_as_both_overlap() {
        let (target, codec) = (FakeModel::default(), FakeCodec::default());
        let draft = FakeModel { noise: 3.0, ..FakeModel::default() };
        let (mut drafted, mut accepted) = (0, 0);
        for seed in 0..200 {
            let options = GenerateOptions { max_tokens: 20, temperature: 1.0, seed, ..GenerateOptions::default() };
            let ours = speculate(
                Drafting { target: &target, draft: &draft, length: 1 },
                &codec,
                "p",
                &options,
                &Progress::default(),
                &mut |_| {},
            )
            .expect("text");
            drafted += ours.drafted;
            accepted += ours.accepted;
        }
        // Σ min(p, q) over random states.
        let overlap = (0..2000_u32)
            .map(|state| {
                let row = |model: &FakeModel| distribution(&model.row(state * 31), 1.0, 0).expect("finite");
                row(&target).iter().zip(row(&draft)).map(|(p, q)| p.min(q)).sum::<f64>()
            })
            .sum::<f64>()
            / 2000.0;
        let share = f64::from(accepted as u32) / f64::from(drafted as u32);
        assert!((share - overlap).abs() < 0.04, "{share} {overlap}");
    }

    #[test]
    fn top_k_and_temperature_shape_both_distributions() {
        let row = [1.0, 3.0, 2.0, 3.0];
        assert_eq!(distribution(&row, 0.0, 0).expect("finite"), [0.0, 1.0, 0.0, 0.0]);
        let two = distribution(&row, 0.5, 2).expect("finite");
        assert_eq!(two, [0.0, 0.5, 0.0, 0.5]);
        assert!(distribution(&[f32::NAN], 1.0, 0).is_none());
        let other = FakeModel { vocab: 7, ..FakeModel::default() };
        let result = speculate(
            Drafting { target: &FakeModel::default(), draft: &other, length: 2 },
            &FakeCodec::default(),
            "p",
            &GenerateOptions::default(),
            &Progress::default(),
            &mut |_| {},
        );
        assert!(result.is_err());
    }
}
