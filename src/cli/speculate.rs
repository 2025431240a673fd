//! `lapidary speculate`: a prompt continued by a model with a smaller one as its draft.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::PATH_HELP;
use super::output::points;
use super::session::{Answer, Result, Session};
use crate::engine::scoring::{Drafting, GenerateOptions, SpeculativeGeneration, generate, speculate};

/// Continue a prompt with a smaller model as draft: the same text, sooner where the draft is good
#[derive(Debug, Args)]
pub(super) struct Speculate {
    #[arg(value_name = "PATH", help = PATH_HELP)]
    path: PathBuf,
    /// The model that drafts: of the same tokenizer, such as a candidate of PATH
    #[arg(long, value_name = "PATH")]
    draft: PathBuf,
    /// The text to continue
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// Tokens drafted at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=32))]
    draft_tokens: u8,
    /// Most tokens to write
    #[arg(long, value_name = "N", default_value_t = GenerateOptions::default().max_tokens)]
    max_tokens: usize,
    /// 0 takes the most probable token; 1 samples the model's own distribution
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = super::generate::temperature)]
    temperature: f32,
    /// Seed of the sampling
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

#[derive(Debug, Serialize)]
struct Document<'a> {
    version: u32,
    prompt: &'a str,
    draft_tokens: u8,
    #[serde(flatten)]
    generation: &'a SpeculativeGeneration,
    acceptance: f64,
    tokens_per_cycle: f64,
    /// The model alone on the same prompt.
    alone_secs: f64,
    /// Seconds alone over seconds with the draft, a token.
    speed_up: f64,
    /// True if greedy text is the model's own; null where it is sampled.
    is_same_text: Option<bool>,
}

impl Speculate {
    pub fn run(&self, session: &Session) -> Result<Answer> {
        let (target, draft) = (session.load(&self.path)?, session.load(&self.draft)?);
        let options = GenerateOptions {
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            seed: self.seed,
            alternatives: 0,
            ..GenerateOptions::default()
        };
        let (model, codec, progress) = (&target.model, &target.tokenizer, &session.progress);
        let started = Instant::now();
        let alone = generate(model, codec, &self.prompt, &options, progress, &mut |_| {})?;
        let alone_secs = started.elapsed().as_secs_f64();
        let drafting = Drafting { target: model, draft: &draft.model, length: usize::from(self.draft_tokens) };
        let generation = speculate(drafting, codec, &self.prompt, &options, progress, &mut |_| {})?;
        let per_token = |seconds: f64, count: usize| seconds / count.max(1) as f64;
        let alone_ids: Vec<u32> = alone.tokens.iter().map(|token| token.id).collect();
        let document = Document {
            version: 1,
            prompt: &self.prompt,
            draft_tokens: self.draft_tokens,
            acceptance: generation.acceptance(),
            tokens_per_cycle: generation.tokens_per_cycle(),
            alone_secs,
            speed_up: per_token(alone_secs, alone_ids.len())
                / per_token(generation.seconds, generation.ids.len()).max(1e-12),
            is_same_text: (self.temperature <= 0.0).then(|| alone_ids == generation.ids),
            generation: &generation,
        };
        session.answer(&document, || {
            let same = match document.is_same_text {
                Some(true) => "; the model's own text",
                Some(false) => "; another text than the model's own: two tokens were as good as equal",
                None => "",
            };
            format!(
                "{}\n\n{} of {} drafted tokens accepted ({} %), {:.2} tokens a cycle, {:.2}× the speed of the model alone{same}\n",
                generation.text,
                generation.accepted,
                generation.drafted,
                points(document.acceptance),
                document.tokens_per_cycle,
                document.speed_up,
            )
        })
    }
}
