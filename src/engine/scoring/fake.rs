//! A deterministic stand-in for a model and its tokenizer, for tests of packing and statistics.
//!
//! The hidden state is a hash of everything read so far, so that a wrong parent, cache, order or
//! truncation changes the logits.

use super::random::Random;
use super::{TextCodec, TokenModel};
use crate::error::{Error, Result};
use crate::model::{Batch, KvCache};
use crate::progress::Progress;

/// Asserts that two JSON documents are equal but for the last digit of numbers, which serde_json may lose.
pub(crate) fn assert_same_json(a: &serde_json::Value, b: &serde_json::Value) {
    use serde_json::Value;
    match (a, b) {
        (Value::Object(left), Value::Object(right)) => {
            assert!(left.keys().eq(right.keys()), "{left:?} {right:?}");
            left.iter().for_each(|(key, value)| assert_same_json(value, &right[key]));
        }
        (Value::Array(left), Value::Array(right)) => {
            assert_eq!(left.len(), right.len());
            left.iter().zip(right).for_each(|(left, right)| assert_same_json(left, right));
        }
        (Value::Number(left), Value::Number(right)) => {
            let (left, right) = (left.as_f64().unwrap_or(0.0), right.as_f64().unwrap_or(1.0));
            assert!((left - right).abs() <= 1e-12 * left.abs(), "{left} {right}");
        }
        _ => assert_eq!(a, b),
    }
}

/// Bytes as tokens after BOS 0 and EOS 1, with two merges.
#[derive(Clone, Debug)]
pub(crate) struct FakeCodec {
    pub bos: Option<u32>,
    pub eos: Vec<u32>,
}

impl Default for FakeCodec {
    fn default() -> Self {
        Self { bos: Some(0), eos: vec![1] }
    }
}

impl FakeCodec {
    pub const SPACE_B: u32 = 130;
    pub const A_B: u32 = 131;
    pub const VOCAB: usize = 132;
}

impl TextCodec for FakeCodec {
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let bytes = text.as_bytes();
        let mut ids = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let (id, len) = match &bytes[at..] {
                [b' ', b'b', ..] => (Self::SPACE_B, 2),
                [b'a', b'b', ..] => (Self::A_B, 2),
                [byte, ..] => (2 + u32::from(byte & 127), 1),
                [] => break,
            };
            ids.push(id);
            at += len;
        }
        Ok(ids)
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        Ok(ids
            .iter()
            .map(|&id| match id {
                0 | 1 => String::new(),
                Self::SPACE_B => " b".to_owned(),
                Self::A_B => "ab".to_owned(),
                id => char::from(u8::try_from(id - 2).unwrap_or(b'?')).to_string(),
            })
            .collect())
    }

    fn bos(&self) -> Option<u32> {
        self.bos
    }

    fn eos(&self) -> &[u32] {
        &self.eos
    }
}

/// Logits that depend on the whole history; `noise` moves them a little, as compression does.
#[derive(Clone, Debug)]
pub(crate) struct FakeModel {
    pub vocab: usize,
    pub context: usize,
    pub seed: u64,
    pub noise: f32,
    /// Makes the logits of this state NaN.
    pub poison: Option<u32>,
}

impl Default for FakeModel {
    fn default() -> Self {
        Self { vocab: FakeCodec::VOCAB, context: 64, seed: 1, noise: 0.0, poison: None }
    }
}

const STATES: u32 = 65_521;

impl FakeModel {
    pub fn step(state: u32, id: u32) -> u32 {
        (state * 31 + id * 7 + 1) % STATES
    }

    /// The state after a whole sequence.
    pub fn state(ids: &[u32]) -> u32 {
        ids.iter().fold(0, |state, &id| Self::step(state, id))
    }

    pub fn row(&self, state: u32) -> Vec<f32> {
        let mut random = Random::new(self.seed, u64::from(state));
        let mut noise = Random::new(self.seed + 99, u64::from(state));
        (0..self.vocab)
            .map(|_| (random.unit() * 8.0) as f32 + self.noise * (noise.unit() as f32 - 0.5))
            .map(|logit| if self.poison == Some(state) { f32::NAN } else { logit })
            .collect()
    }

    /// ln p of `next` after `ids`, the plain way.
    pub fn log_prob(&self, ids: &[u32], next: u32) -> f64 {
        let row = self.row(Self::state(ids));
        let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
        f64::from(row[next as usize]) - sum.ln()
    }

    /// The most probable token after `ids`.
    pub fn top(&self, ids: &[u32]) -> u32 {
        let row = self.row(Self::state(ids));
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        row.iter().position(|&logit| logit == max).unwrap_or(0) as u32
    }
}

impl TokenModel for FakeModel {
    fn vocab(&self) -> usize {
        self.vocab
    }

    fn width(&self) -> usize {
        2
    }

    fn context(&self) -> usize {
        self.context
    }

    fn hidden(&self, batch: &Batch, caches: &mut [KvCache], progress: &Progress) -> Result<Vec<f32>> {
        if progress.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let mut ends = Vec::new();
        let mut hidden = Vec::new();
        for segment in &batch.segments {
            assert!(segment.len > 0, "an empty segment");
            let (mut state, mut position) = match (segment.parent, segment.cache) {
                (Some(parent), _) => ends[parent],
                (None, Some(cache)) if !caches[cache].is_empty() => {
                    // One number a token, as a real cache has so many numbers a token: the state after it.
                    let len = caches[cache].len;
                    (caches[cache].layers[0].0[len - 1] as u32, len)
                }
                _ => (0, 0),
            };
            let mut states = Vec::with_capacity(segment.len);
            for &id in &batch.ids[segment.start..segment.start + segment.len] {
                state = Self::step(state, id);
                states.push(state as f32);
                position += 1;
                assert!(position <= self.context, "longer than the context");
                hidden.extend([state as f32, position as f32]);
            }
            if let Some(cache) = segment.cache {
                if caches[cache].layers.is_empty() {
                    caches[cache].layers = vec![Default::default()];
                }
                caches[cache].layers[0].0.extend(&states);
                caches[cache].layers[0].1.extend(&states);
                caches[cache].len = position;
            }
            ends.push((state, position));
        }
        Ok(hidden)
    }

    fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>> {
        Ok(hidden.chunks_exact(2).flat_map(|row| self.row(row[0] as u32)).collect())
    }
}

/// What a [`Hooked`] model is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asked<'a> {
    /// Hidden states of a batch, which is not run yet.
    Hidden(&'a Batch),
    /// So many logits, rows × vocabulary, which are not made yet.
    Logits(usize),
}

/// A [`FakeModel`] that tells a closure of what it is asked for, and answers with the closure's error if there
/// is one.
pub(crate) struct Hooked<F> {
    inner: FakeModel,
    hook: F,
}

impl<F: Fn(Asked<'_>) -> Result<()> + Sync> Hooked<F> {
    pub fn new(inner: FakeModel, hook: F) -> Self {
        Self { inner, hook }
    }
}

impl<F: Fn(Asked<'_>) -> Result<()> + Sync> TokenModel for Hooked<F> {
    fn vocab(&self) -> usize {
        self.inner.vocab()
    }

    fn width(&self) -> usize {
        self.inner.width()
    }

    fn context(&self) -> usize {
        self.inner.context()
    }

    fn hidden(&self, batch: &Batch, caches: &mut [KvCache], progress: &Progress) -> Result<Vec<f32>> {
        (self.hook)(Asked::Hidden(batch))?;
        self.inner.hidden(batch, caches, progress)
    }

    fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>> {
        (self.hook)(Asked::Logits(hidden.len() / self.width() * self.vocab()))?;
        self.inner.logits(hidden)
    }
}
