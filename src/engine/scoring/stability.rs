//! Whether a model says the same again: the same prompts, sampled with different seeds.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::generation::{GenerateOptions, generate};
use super::tasks::{TaskKind, TaskSet};
use super::{TextCodec, TokenModel, answers, chat};
use crate::error::Result;
use crate::progress::Progress;

/// Longest text that is written to see whether it comes again.
const MAX_TOKENS: usize = 256;

/// How agreement over seeds is measured.
#[derive(Clone, Debug, PartialEq)]
pub struct SeedOptions {
    /// Texts of every item.
    pub seeds: usize,
    /// Temperature of the sampling.
    pub temperature: f32,
    /// Items that are written, evenly spread.
    pub items: usize,
}

impl Default for SeedOptions {
    fn default() -> Self {
        Self { seeds: 5, temperature: 0.7, items: 50 }
    }
}

/// How far a model agrees with itself over seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeedAgreement {
    /// Items that were written.
    pub items: usize,
    /// Texts of every item.
    pub seeds: usize,
    pub temperature: f32,
    /// Mean share of the texts of an item that arrive at its most frequent answer.
    pub agreement: f64,
    /// Share of items whose texts all arrive at the same answer.
    pub unanimous_fraction: f64,
}

/// Writes items of exact_match, generate and chain_of_thought several times; `None` where there is no such item.
pub fn seed_agreement(
    model: &dyn TokenModel,
    codec: &dyn TextCodec,
    tasks: &TaskSet,
    options: &SeedOptions,
    progress: &Progress,
) -> Result<Option<SeedAgreement>> {
    let special = chat::SpecialCodec(codec);
    let codec = if tasks.has_special_tokens { &special } else { codec };
    let written: Vec<usize> = (0..tasks.items.len()).filter(|&index| tasks.items.is_written(index)).collect();
    let count = options.items.min(written.len());
    if count == 0 || options.seeds == 0 {
        return Ok(None);
    }
    let (mut agreement, mut unanimous) = (0.0, 0_usize);
    for nth in 0..count {
        let kind = tasks.items.get(written[nth * written.len() / count])?.kind;
        let max_tokens = match &kind {
            TaskKind::ChainOfThought { max_tokens, .. } => (*max_tokens).min(MAX_TOKENS),
            other => codec.encode(other.wanted()).map_or(MAX_TOKENS, |ids| ids.len()).clamp(1, MAX_TOKENS),
        };
        let mut answers_of: HashMap<String, usize> = HashMap::new();
        for seed in 0..options.seeds {
            let generating = GenerateOptions {
                max_tokens,
                temperature: options.temperature,
                seed: seed as u64,
                alternatives: 0,
                ..GenerateOptions::default()
            };
            let text = generate(model, codec, kind.prompt(), &generating, progress, &mut |_| {})?.text;
            let answer = match &kind {
                TaskKind::ChainOfThought { stop, .. } => answers::final_answer(answers::until_stop(&text, stop)),
                _ => text.trim().to_owned(),
            };
            *answers_of.entry(answer).or_default() += 1;
        }
        let most = answers_of.values().copied().max().unwrap_or(0);
        agreement += most as f64 / options.seeds as f64;
        unanimous += usize::from(most == options.seeds);
    }
    Ok(Some(SeedAgreement {
        items: count,
        seeds: options.seeds,
        temperature: options.temperature,
        agreement: agreement / count as f64,
        unanimous_fraction: unanimous as f64 / count as f64,
    }))
}

#[cfg(test)]
mod tests {
    use super::super::fake::{FakeCodec, FakeModel};
    use super::*;
    use std::path::Path;

    #[test]
    fn greedy_texts_agree_and_hot_ones_do_not() {
        let lines: Vec<String> = (0..8)
            .map(|i| {
                format!(r#"{{"id":"{i}","task":"t","slice":"s","type":"exact_match","prompt":"p{i}","answer":"four"}}"#)
            })
            .collect();
        let tasks = TaskSet::parse(lines.join("\n").as_bytes(), Path::new("t")).expect("tasks");
        let agreement = |temperature: f32| {
            let options = SeedOptions { seeds: 4, temperature, items: 5 };
            seed_agreement(&FakeModel::default(), &FakeCodec::default(), &tasks, &options, &Progress::default())
                .expect("texts")
                .expect("items")
        };
        let greedy = agreement(0.0);
        assert_eq!((greedy.items, greedy.agreement, greedy.unanimous_fraction), (5, 1.0, 1.0));
        let hot = agreement(50.0);
        assert!(hot.agreement < 0.5 && hot.unanimous_fraction == 0.0, "{hot:?}");
    }
}
