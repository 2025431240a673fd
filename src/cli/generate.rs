//! `lapidary generate`: a prompt continued, written as it comes.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::PATH_HELP;
use super::output;
use super::session::{Answer, Failure, Result, Session};
use crate::engine::scoring::{GenerateOptions, Generation, generate};
use crate::engine::units;

/// Continue a prompt
#[derive(Debug, Args)]
pub(super) struct Generate {
    #[arg(value_name = "PATH", help = PATH_HELP)]
    path: PathBuf,
    /// The text to continue
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// Most tokens to write
    #[arg(long, value_name = "N", default_value_t = GenerateOptions::default().max_tokens)]
    max_tokens: usize,
    /// 0 takes the most probable token; 1 samples the model's own distribution
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature)]
    temperature: f32,
    /// Seed of the sampling: the same seed writes the same text
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

#[derive(Debug, Serialize)]
struct Document<'a> {
    version: u32,
    path: &'a Path,
    prompt: &'a str,
    temperature: f32,
    seed: u64,
    #[serde(flatten)]
    generation: &'a Generation,
}

pub(super) fn temperature(text: &str) -> std::result::Result<f32, String> {
    let value: f32 = text.parse().map_err(|err| format!("{err}"))?;
    if (0.0..=100.0).contains(&value) { Ok(value) } else { Err("choose 0 to 100".to_owned()) }
}

impl Generate {
    pub fn run(&self, session: &Session) -> Result<Answer> {
        let loaded = session.load(&self.path)?;
        let mut options = GenerateOptions {
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            seed: self.seed,
            ..GenerateOptions::default()
        };
        if !session.json {
            options.alternatives = 0;
            session.hide_progress();
        }
        let mut streamed_bytes = 0;
        let mut refused: Option<io::Error> = None;
        let result =
            generate(&loaded.model, &loaded.tokenizer, &self.prompt, &options, &session.progress, &mut |token| {
                if session.json || refused.is_some() {
                    return;
                }
                match output::print(&token.text) {
                    Ok(()) => streamed_bytes += token.text.len(),
                    Err(err) => {
                        refused = Some(err);
                        session.progress.cancel();
                    }
                }
            });
        if let Some(err) = refused {
            return Err(Failure::Output(err));
        }
        let generation = result?;
        if generation.truncated {
            session.warn("the prompt is longer than the context and lost its beginning");
        }
        let document = Document {
            version: 1,
            path: &loaded.checkpoint.path,
            prompt: &self.prompt,
            temperature: self.temperature,
            seed: self.seed,
            generation: &generation,
        };
        // What is left is a character that stayed incomplete, and the end of the line.
        let rest = || format!("{}\n", generation.text.get(streamed_bytes..).unwrap_or_default());
        let answer = session.answer(&document, rest)?;
        if !session.json && generation.tpot_secs > 0.0 {
            tracing::info!(
                "{} tokens, first after {}, then {:.1} tokens/s",
                generation.tokens.len(),
                units::seconds(generation.ttft_secs),
                1.0 / generation.tpot_secs
            );
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temperature_is_a_number_that_makes_sense() {
        assert_eq!(temperature("0.7"), Ok(0.7));
        for text in ["nan", "-1", "inf", "warm"] {
            assert!(temperature(text).is_err(), "{text}");
        }
    }
}
