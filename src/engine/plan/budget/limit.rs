//! What a proposal must stay within.

use std::fmt;

use serde::Serialize;

use super::super::speed::Secs;
use crate::units;

/// What a proposal must stay within.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// The whole file, metadata and tokenizer included.
    FileBytes(u64),
    /// All tensors with the padding between them.
    TensorBytes(u64),
    /// All tensors over all weights, scales included.
    BitsPerWeight(f64),
    /// All tensors together with a KV cache of so many bytes.
    Memory {
        /// Both together.
        bytes: u64,
        /// The cache.
        cache_bytes: u64,
    },
    /// The predicted damage, in the unit of the sensitivity table.
    Damage(f64),
    /// Tokens written a second, at least; predicted.
    DecodeSpeed(f64),
    /// Tokens of a prompt read a second, at least; predicted.
    PrefillSpeed(f64),
    /// One request from its first token read to its last one written; predicted.
    Request {
        /// At most so long.
        seconds: f64,
        /// Tokens read.
        prompt_tokens: usize,
        /// Tokens written.
        output_tokens: usize,
    },
}

impl fmt::Display for Limit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FileBytes(count) => write!(out, "a file of {}", units::bytes(*count)),
            Self::TensorBytes(count) => write!(out, "tensors of {}", units::bytes(*count)),
            Self::BitsPerWeight(bits) => write!(out, "{bits:.2} bits per weight"),
            Self::Memory { bytes, cache_bytes } => {
                write!(out, "{} of memory with a KV cache of {}", units::bytes(*bytes), units::bytes(*cache_bytes))
            }
            Self::Damage(damage) => write!(out, "a predicted damage of {}", units::significant(*damage)),
            Self::DecodeSpeed(speed) => write!(out, "{} tok/s written", units::significant(*speed)),
            Self::PrefillSpeed(speed) => write!(out, "{} tok/s read", units::significant(*speed)),
            Self::Request { seconds, prompt_tokens, output_tokens } => {
                let time = units::duration(*seconds);
                write!(out, "{time} for {prompt_tokens} tokens read and {output_tokens} written")
            }
        }
    }
}

/// A limit of time: so long for so many tokens of each kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimeLimit {
    pub(super) secs: f64,
    decode_tokens: f64,
    prefill_tokens: f64,
}

impl TimeLimit {
    /// The limit's time, if it is one of time.
    pub(super) fn of(limit: Limit) -> Option<Self> {
        Some(match limit {
            Limit::DecodeSpeed(speed) => Self { secs: 1.0 / speed, decode_tokens: 1.0, prefill_tokens: 0.0 },
            Limit::PrefillSpeed(speed) => Self { secs: 1.0 / speed, decode_tokens: 0.0, prefill_tokens: 1.0 },
            Limit::Request { seconds, prompt_tokens, output_tokens } => {
                Self { secs: seconds, decode_tokens: output_tokens as f64, prefill_tokens: prompt_tokens as f64 }
            }
            _ => return None,
        })
    }

    /// What something takes of it.
    pub(super) fn part(&self, secs: Secs) -> f64 {
        self.decode_tokens * secs.decode + self.prefill_tokens * secs.prefill
    }

    /// A time in the words of the limit.
    pub(super) fn in_words(&self, secs: f64) -> String {
        if self.decode_tokens + self.prefill_tokens == 1.0 {
            format!("the most is {} tok/s", units::significant(1.0 / secs))
        } else {
            format!("the least is {}", units::duration(secs))
        }
    }
}
