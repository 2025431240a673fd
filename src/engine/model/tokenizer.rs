//! Text to token ids and back, through the `tokenizers` crate.

use crate::engine::checkpoint::Checkpoint;
use crate::engine::error::Result;

/// A tokenizer with its special tokens.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    /// Put before every text, if the model has one.
    pub bos: Option<u32>,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
}

impl Tokenizer {
    /// The checkpoint's tokenizer: `tokenizer.json` beside it, or rebuilt from GGUF metadata.
    pub fn of_checkpoint(checkpoint: &Checkpoint) -> Result<Self> {
        let _ = checkpoint;
        todo!()
    }

    /// Token ids of `text`; special tokens are neither added nor recognized in it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let _ = text;
        todo!()
    }

    /// Text of `ids`, special tokens left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let _ = ids;
        todo!()
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> usize {
        todo!()
    }
}
