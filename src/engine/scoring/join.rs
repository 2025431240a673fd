//! Joining a prompt and a continuation into tokens, as lm-evaluation-harness does.
//!
//! White space at the prompt's end moves to the continuation. The continuation's tokens are those
//! of the whole text after as many as the prompt alone has, so that a tokenizer may write the
//! border as it would in running text.

use super::TextCodec;
use crate::error::{Fault, Result, Stage};

/// A prompt with one or more continuations, as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Joined {
    /// BOS and the prompt, never empty.
    pub prompt: Vec<u32>,
    /// Tokens of each continuation, never empty.
    pub continuations: Vec<Vec<u32>>,
    /// True if the prompt lost its beginning.
    pub truncated: bool,
}

/// The first token of a text: BOS, or for a model without one the end of the text before.
fn first_token(codec: &dyn TextCodec) -> Option<u32> {
    codec.bos().or_else(|| codec.eos().first().copied())
}

/// BOS and the tokens of `text`; for a model without BOS an empty text starts from EOS.
pub(crate) fn encode_prompt(codec: &dyn TextCodec, text: &str) -> Result<Vec<u32>> {
    let mut ids: Vec<u32> = codec.bos().into_iter().collect();
    if !text.is_empty() {
        ids.extend(codec.encode(text)?);
    }
    if ids.is_empty() {
        let first = first_token(codec).ok_or_else(|| {
            Fault::new(Stage::Tasks, "the prompt is empty and the model has neither BOS nor EOS to start from")
                .fix("give the prompt a text")
        })?;
        ids.push(first);
    }
    Ok(ids)
}

/// Tokens of `prompt` and of each of `continuations`.
pub(crate) fn join(codec: &dyn TextCodec, prompt: &str, continuations: &[&str]) -> Result<Joined> {
    let context = prompt.trim_end();
    let space = &prompt[context.len()..];
    let prompt_ids = encode_prompt(codec, context)?;
    let context_len = if context.is_empty() { 0 } else { codec.encode(context)?.len() };
    let mut joined = Vec::with_capacity(continuations.len());
    for continuation in continuations {
        let whole = codec.encode(&format!("{context}{space}{continuation}"))?;
        let ids = if whole.len() > context_len {
            whole[context_len..].to_vec()
        } else {
            // The border merged into fewer tokens than the prompt alone has.
            codec.encode(&format!("{space}{continuation}"))?
        };
        if ids.is_empty() {
            return Err(Fault::new(Stage::Tasks, format!("the text {continuation:?} has no tokens"))
                .fix("write a text that the tokenizer knows")
                .into());
        }
        joined.push(ids);
    }
    Ok(Joined { prompt: prompt_ids, continuations: joined, truncated: false })
}

impl Joined {
    /// Cuts the prompt from the left (BOS stays) until it and `extra` more tokens fit `context`.
    pub fn fit(&mut self, codec: &dyn TextCodec, context: usize, extra: usize) -> Result<()> {
        let kept = context.saturating_sub(extra);
        if self.prompt.len() <= kept {
            return Ok(());
        }
        if kept == 0 {
            return Err(Fault::new(
                Stage::Tasks,
                format!("the answer has more tokens than the model's context of {context}"),
            )
            .fix("shorten the item or leave it out")
            .into());
        }
        cut_left(&mut self.prompt, codec.bos(), kept);
        self.truncated = true;
        Ok(())
    }

    /// Tokens of the longest continuation.
    pub fn longest(&self) -> usize {
        self.continuations.iter().map(Vec::len).max().unwrap_or(0)
    }
}

/// Keeps the last tokens of `ids`, `kept` in all with BOS still in front.
pub(crate) fn cut_left(ids: &mut Vec<u32>, bos: Option<u32>, kept: usize) {
    if ids.len() <= kept {
        return;
    }
    let has_bos = bos.is_some() && ids.first().copied() == bos && kept > 0;
    let removed = ids.len() - kept;
    if has_bos { drop(ids.drain(1..=removed)) } else { drop(ids.drain(..removed)) }
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeCodec;
    use super::*;

    #[test]
    fn white_space_at_the_prompts_end_belongs_to_the_choice() {
        let codec = FakeCodec::default();
        // The fake merges " b" into one token.
        let with_space = join(&codec, "A: ", &["b"]).expect("join");
        let without = join(&codec, "A:", &[" b"]).expect("join");
        assert_eq!(with_space, without);
        assert_eq!(with_space.continuations[0], vec![FakeCodec::SPACE_B]);
        assert_eq!(with_space.prompt, [vec![0], codec.encode("A:").expect("encode")].concat());
    }

    #[test]
    fn an_empty_prompt_starts_from_bos() {
        let joined = join(&FakeCodec::default(), "", &["b"]).expect("join");
        assert_eq!(joined.prompt, vec![0]);
        let no_bos = FakeCodec { bos: None, ..FakeCodec::default() };
        assert_eq!(join(&no_bos, "", &["b"]).expect("join").prompt, vec![1]);
        let neither = FakeCodec { bos: None, eos: Vec::new() };
        assert!(join(&neither, "", &["b"]).is_err());
        assert!(join(&neither, "a", &["b"]).is_ok());
    }

    #[test]
    fn a_border_that_merges_away_is_still_scored() {
        // "ab" is one token, so the whole has no more tokens than the prompt alone.
        let joined = join(&FakeCodec::default(), "a", &["b"]).expect("join");
        assert_eq!(joined.continuations[0], FakeCodec::default().encode("b").expect("encode"));
    }

    #[test]
    fn a_long_prompt_loses_its_beginning_but_not_bos() {
        let codec = FakeCodec::default();
        let mut joined = join(&codec, "cdefgh", &["xy"]).expect("join");
        joined.fit(&codec, 5, 1).expect("fits");
        assert!(joined.truncated);
        assert_eq!(joined.prompt, [vec![0], codec.encode("fgh").expect("encode")].concat());
        assert!(joined.fit(&codec, 5, 5).is_err());
    }
}
