//! Writing text token by token: streaming for one prompt, packed and greedy for many.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::join::{cut_left, encode_prompt};
use super::multiple_choice::runs;
use super::random::Random;
use super::rows::{RowRequest, gather, score_rows};
use super::softmax::RowSum;
use super::{TextCodec, TokenModel, check_ids, not_finite};
use crate::error::Result;
use crate::model::{Batch, KvCache};
use crate::progress::{Phase, Progress, Unit};

/// How text is written.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// Most tokens to write.
    pub max_tokens: usize,
    /// 0 takes the most probable token; 1 samples the model's own distribution.
    pub temperature: f32,
    /// Samples among this many most probable tokens; 0 for all.
    pub top_k: usize,
    /// Seed of the sampling.
    pub seed: u64,
    /// How many of the most probable tokens are reported at each position.
    pub alternatives: usize,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self { max_tokens: 128, temperature: 0.0, top_k: 0, seed: 0, alternatives: 5 }
    }
}

/// A token that could have been written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alternative {
    pub id: u32,
    pub text: String,
    /// Probability at temperature 1.
    pub probability: f64,
}

/// A token that was written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GeneratedToken {
    pub id: u32,
    /// What it adds to the text; empty while a character is incomplete, and for the end token.
    pub text: String,
    /// Probability at temperature 1.
    pub probability: f64,
    /// The most probable tokens, the most probable first.
    pub alternatives: Vec<Alternative>,
}

/// Why writing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// The model ended the text.
    EndOfText,
    /// As many tokens as were asked for.
    MaxTokens,
    /// The model's context is full.
    ContextFull,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// The text after the prompt.
    pub text: String,
    pub tokens: Vec<GeneratedToken>,
    pub prompt_tokens: usize,
    pub stop: Stop,
    /// True if the prompt was too long and lost its beginning.
    pub truncated: bool,
    /// Time to first token.
    pub ttft_secs: f64,
    /// Time per further token, 0 where there is none.
    pub tpot_secs: f64,
}

/// Turns ids into text piece by piece, holding incomplete characters back.
struct Detokenizer {
    ids: Vec<u32>,
    /// Tokens from here give the context that decoders need (some drop a leading space).
    prefix: usize,
    /// Tokens from here are not written yet.
    read: usize,
}

impl Detokenizer {
    /// Tokens of the prompt that the first pieces are decoded with.
    const CONTEXT: usize = 5;

    fn new(prompt: &[u32]) -> Self {
        let ids = prompt[prompt.len().saturating_sub(Self::CONTEXT)..].to_vec();
        Self { prefix: 0, read: ids.len(), ids }
    }

    fn push(&mut self, codec: &dyn TextCodec, id: u32) -> Result<String> {
        self.ids.push(id);
        self.piece(codec, false)
    }

    /// What is new; with `all` also a character that stays incomplete.
    fn piece(&mut self, codec: &dyn TextCodec, all: bool) -> Result<String> {
        let before = codec.decode(&self.ids[self.prefix..self.read])?;
        let after = codec.decode(&self.ids[self.prefix..])?;
        let Some(piece) = after.strip_prefix(before.as_str()) else {
            return Ok(String::new());
        };
        if piece.is_empty() || (piece.ends_with('\u{fffd}') && !all) {
            return Ok(String::new());
        }
        self.prefix = self.read;
        self.read = self.ids.len();
        Ok(piece.to_owned())
    }
}

/// Ids of the `count` largest logits, the largest first, lower ids first among equals.
pub(super) fn largest(row: &[f32], count: usize) -> Vec<u32> {
    let order = |a: &u32, b: &u32| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b));
    let mut ids: Vec<u32> = (0..row.len() as u32).collect();
    if count < ids.len() {
        ids.select_nth_unstable_by(count, order);
        ids.truncate(count);
    }
    ids.sort_unstable_by(order);
    ids
}

/// Draws a token: greedy at temperature 0, else from the `top_k` most probable.
fn draw(row: &[f32], sum: &RowSum, options: &GenerateOptions, random: &mut Random) -> u32 {
    if options.temperature.is_nan() || options.temperature <= 0.0 {
        return sum.top;
    }
    let kept = if options.top_k == 0 { row.len() } else { options.top_k.min(row.len()) };
    let ids = largest(row, kept);
    let weight = |id: u32| f64::from((row[id as usize] - sum.max) / options.temperature).exp();
    let total: f64 = ids.iter().map(|&id| weight(id)).sum();
    let mut left = random.unit() * total;
    for &id in &ids {
        left -= weight(id);
        if left < 0.0 {
            return id;
        }
    }
    ids.last().copied().unwrap_or(sum.top)
}

/// Continues `prompt`, telling `on_token` of each token as it is written.
///
/// The same prompt, options and model give the same text. A cancel answers
/// [`crate::Error::Cancelled`]; what was written until then went to `on_token`.
pub fn generate(
    model: &dyn TokenModel,
    codec: &dyn TextCodec,
    prompt: &str,
    options: &GenerateOptions,
    progress: &Progress,
    on_token: &mut dyn FnMut(&GeneratedToken),
) -> Result<Generation> {
    let started = Instant::now();
    let (context, vocab, width) = (model.context().max(2), model.vocab(), model.width());
    let mut ids = encode_prompt(codec, prompt)?;
    check_ids(&ids, vocab)?;
    // A prompt that fills the context leaves room for a quarter of it to be written.
    let room = options.max_tokens.clamp(1, (context / 4).max(1));
    let truncated = ids.len() > context - room;
    cut_left(&mut ids, codec.bos(), context - room);
    let most = options.max_tokens.min(context - ids.len() + 1);
    progress.begin(Phase::Generating, most as u64, Unit::Tokens);

    let mut caches = [KvCache::default()];
    let mut random = Random::new(options.seed, 0);
    let mut detokenizer = Detokenizer::new(&ids);
    let mut generation = Generation {
        text: String::new(),
        tokens: Vec::new(),
        prompt_tokens: ids.len(),
        stop: if most < options.max_tokens { Stop::ContextFull } else { Stop::MaxTokens },
        truncated,
        ttft_secs: 0.0,
        tpot_secs: 0.0,
    };
    let mut next = ids;
    while generation.tokens.len() < most {
        progress.check()?;
        let mut batch = Batch::default();
        batch.push(&next, None, Some(0));
        let hidden = model.hidden(&batch, &mut caches, progress)?;
        let logits = model.logits(&gather(&hidden, width, std::iter::once(next.len() - 1)))?;
        let sum = RowSum::of(&logits).ok_or_else(|| not_finite("the next token"))?;
        let id = draw(&logits, &sum, options, &mut random);
        let probability = |id: u32| sum.log_prob(logits[id as usize]).exp();
        let mut alternatives = Vec::with_capacity(options.alternatives);
        if options.alternatives > 0 {
            for id in largest(&logits, options.alternatives) {
                alternatives.push(Alternative { id, text: codec.decode(&[id])?, probability: probability(id) });
            }
        }
        let is_end = codec.eos().contains(&id);
        let text = if is_end { detokenizer.piece(codec, true)? } else { detokenizer.push(codec, id)? };
        let token = GeneratedToken { id, text, probability: probability(id), alternatives };
        if generation.tokens.is_empty() {
            generation.ttft_secs = started.elapsed().as_secs_f64();
        }
        on_token(&token);
        progress.advance(1);
        generation.text.push_str(&token.text);
        generation.tokens.push(token);
        if is_end {
            generation.stop = Stop::EndOfText;
            break;
        }
        next = vec![id];
    }
    generation.text.push_str(&detokenizer.piece(codec, true)?);
    if generation.tokens.len() > 1 {
        let rest = started.elapsed().as_secs_f64() - generation.ttft_secs;
        generation.tpot_secs = rest / (generation.tokens.len() - 1) as f64;
    }
    Ok(generation)
}

/// A sequence to be continued greedily.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    /// What was read so far, not empty.
    pub ids: Vec<u32>,
    /// Most tokens to write.
    pub max_new: usize,
}

/// Continues many sequences at once, greedily; each ends before its end token or the context's end.
///
/// `on_done` is told how many sequences a finished batch had.
pub(crate) fn greedy(
    model: &dyn TokenModel,
    eos: &[u32],
    starts: &[Start],
    progress: &Progress,
    on_done: &mut dyn FnMut(usize),
) -> Result<Vec<Vec<u32>>> {
    let costs: Vec<usize> = starts.iter().map(|start| start.ids.len() + start.max_new).collect();
    let mut written: Vec<Vec<u32>> = vec![Vec::new(); starts.len()];
    for run in runs(&costs) {
        let offset = run.start;
        let mut caches = vec![KvCache::default(); run.len()];
        let limits: Vec<usize> = starts[run.clone()]
            .iter()
            .map(|start| start.max_new.min((model.context() + 1).saturating_sub(start.ids.len())))
            .collect();
        let mut active: Vec<usize> = (0..run.len()).filter(|&index| limits[index] > 0).collect();
        while !active.is_empty() {
            progress.check()?;
            let mut batch = Batch::default();
            let mut requests = Vec::with_capacity(active.len());
            for &index in &active {
                match written[offset + index].last() {
                    Some(&last) => batch.push(&[last], None, Some(index)),
                    None => batch.push(&starts[offset + index].ids, None, Some(index)),
                };
                requests.push(RowRequest { row: batch.ids.len() - 1, targets: Vec::new() });
            }
            let hidden = model.hidden(&batch, &mut caches, progress)?;
            let scores = score_rows(model, &hidden, &requests, progress)?;
            let mut still_active = Vec::with_capacity(active.len());
            for (&index, score) in active.iter().zip(&scores) {
                if eos.contains(&score.top) {
                    continue;
                }
                written[offset + index].push(score.top);
                if written[offset + index].len() < limits[index] {
                    still_active.push(index);
                }
            }
            active = still_active;
        }
        on_done(run.len());
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::super::fake::{FakeCodec, FakeModel};
    use super::*;

    fn plain(model: &FakeModel, ids: &[u32], count: usize) -> Vec<u32> {
        let mut all = ids.to_vec();
        while all.len() < ids.len() + count && all.len() <= model.context {
            let top = model.top(&all);
            if top == 1 {
                break;
            }
            all.push(top);
        }
        all[ids.len()..].to_vec()
    }

    #[test]
    fn many_sequences_at_once_are_written_as_each_alone() {
        let model = FakeModel { context: 30, ..FakeModel::default() };
        let starts: Vec<Start> = (0..300)
            .map(|i| Start { ids: (0..1 + i % 28).map(|j| 2 + (i * 7 + j) % 120).collect(), max_new: (i % 9) as usize })
            .collect();
        let mut done = 0;
        let written = greedy(&model, &[1], &starts, &Progress::default(), &mut |count| done += count).expect("written");
        assert_eq!(done, starts.len());
        for (start, ids) in starts.iter().zip(&written) {
            assert_eq!(*ids, plain(&model, &start.ids, start.max_new));
        }
    }

    #[test]
    fn streaming_writes_the_greedy_text_with_its_probabilities() {
        let (model, codec) = (FakeModel::default(), FakeCodec::default());
        let mut streamed = String::new();
        let options = GenerateOptions { max_tokens: 12, ..GenerateOptions::default() };
        let result = generate(&model, &codec, "hello", &options, &Progress::default(), &mut |token| {
            streamed.push_str(&token.text);
            assert_eq!(token.alternatives.len(), 5);
            assert_eq!(token.alternatives[0].id, token.id);
            assert!(token.alternatives[0].probability >= token.alternatives[1].probability);
        })
        .expect("text");
        let mut prompt = vec![0];
        prompt.extend(codec.encode("hello").expect("encode"));
        let ids: Vec<u32> = result.tokens.iter().map(|token| token.id).filter(|&id| id != 1).collect();
        assert_eq!(ids, plain(&model, &prompt, 12));
        assert_eq!(streamed, result.text);
        let expected = model.log_prob(&prompt, result.tokens[0].id).exp();
        assert!((result.tokens[0].probability - expected).abs() < 1e-6);
    }

    #[test]
    fn sampling_repeats_with_its_seed_and_stays_within_top_k() {
        let (model, codec) = (FakeModel::default(), FakeCodec::default());
        let write = |seed, top_k| {
            let options = GenerateOptions { max_tokens: 30, temperature: 1.0, top_k, seed, alternatives: 3 };
            generate(&model, &codec, "x", &options, &Progress::default(), &mut |_| {}).expect("text")
        };
        assert_eq!(write(1, 0).text, write(1, 0).text);
        assert_ne!(write(1, 0).text, write(2, 0).text);
        let few = write(3, 3);
        assert!(few.tokens.iter().all(|token| token.alternatives.iter().any(|other| other.id == token.id)));
    }

    #[test]
    fn writing_stops_where_the_context_ends() {
        let model = FakeModel { context: 16, ..FakeModel::default() };
        let codec = FakeCodec { bos: Some(0), eos: Vec::new() };
        let options = GenerateOptions { max_tokens: 100, ..GenerateOptions::default() };
        let result = generate(&model, &codec, "cdefgh", &options, &Progress::default(), &mut |_| {}).expect("text");
        assert_eq!(result.stop, Stop::ContextFull);
        assert_eq!(result.prompt_tokens + result.tokens.len(), 17);
        let long = "z".repeat(50);
        let cut = generate(&model, &codec, &long, &options, &Progress::default(), &mut |_| {}).expect("text");
        assert!(cut.truncated);
        assert_eq!(cut.prompt_tokens, 12);
    }

    #[test]
    fn a_cancel_stops_between_tokens() {
        let progress = Progress::default();
        let watcher = progress.clone();
        let mut count = 0;
        let result = generate(
            &FakeModel::default(),
            &FakeCodec { bos: Some(0), eos: Vec::new() },
            "x",
            &GenerateOptions::default(),
            &progress,
            &mut |_| {
                count += 1;
                watcher.cancel();
            },
        );
        assert!(result.is_err_and(|err| err.is_cancelled()));
        assert_eq!(count, 1);
    }

    #[test]
    fn a_character_of_several_tokens_is_written_once_it_is_complete() {
        struct Bytes;
        impl TextCodec for Bytes {
            fn encode(&self, text: &str) -> Result<Vec<u32>> {
                Ok(text.bytes().map(u32::from).collect())
            }
            fn decode(&self, ids: &[u32]) -> Result<String> {
                let bytes: Vec<u8> = ids.iter().map(|&id| id as u8).collect();
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            fn bos(&self) -> Option<u32> {
                None
            }
            fn eos(&self) -> &[u32] {
                &[]
            }
        }
        let mut detokenizer = Detokenizer::new(&[b'a'.into()]);
        let pieces: Vec<String> =
            "é€b".bytes().map(|byte| detokenizer.push(&Bytes, byte.into()).expect("piece")).collect();
        assert_eq!(pieces, ["", "é", "", "", "€", "b"]);
        assert_eq!(detokenizer.push(&Bytes, 0xC3).expect("piece"), "");
        assert_eq!(detokenizer.piece(&Bytes, true).expect("rest"), "\u{fffd}");
    }
}
