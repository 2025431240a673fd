//! Text to token ids and back, through the `tokenizers` crate.
//!
//! **Special tokens in text.** `<eos>` written in a text is five characters of text, not the end
//! of it: texts and tasks are data, and data must not be able to end a sequence. This is what
//! llama.cpp's tools do (`parse_special = false`) and transformers with `split_special_tokens=True`.
//! [`Tokenizer::encode_with_special`] recognizes them, for prompts that a chat template wrote.

use std::sync::Arc;

use tokenizers::Tokenizer as Inner;

use super::gguf_tokenizer;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Fault, Result, Stage};

/// A tokenizer with its special tokens. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Arc<Inner>,
    /// Number of ids: the largest one and one.
    id_count: usize,
    /// Put before every text, if the model has one.
    pub bos: Option<u32>,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
}

impl Tokenizer {
    /// The checkpoint's tokenizer: `tokenizer.json` beside it, or rebuilt from GGUF metadata.
    ///
    /// # Errors
    /// Without either, where it cannot be rebuilt, and where it has ids that the model's
    /// embedding does not have.
    pub fn of_checkpoint(checkpoint: &Checkpoint) -> Result<Self> {
        let (json, path) = match (checkpoint.tokenizer_json()?, checkpoint.gguf_metadata()) {
            (Some(json), _) => (json, checkpoint.sidecar("tokenizer.json").unwrap_or(&checkpoint.path).to_owned()),
            (None, Some(metadata)) => {
                (gguf_tokenizer::tokenizer_json(metadata, &checkpoint.path)?, checkpoint.path.clone())
            }
            (None, None) => {
                return Err(Fault::new(Stage::Tokenizer, "there is no tokenizer.json beside the weights")
                    .fix("add the model's tokenizer.json")
                    .file(&checkpoint.path)
                    .into());
            }
        };
        let fault = |cause: String| -> Error {
            Fault::new(Stage::Tokenizer, cause).fix("use the tokenizer that belongs to the model").file(&path).into()
        };
        let mut inner =
            Inner::from_bytes(&json).map_err(|err| fault(format!("the tokenizer cannot be read: {err}")))?;
        inner
            .with_truncation(None)
            .map_err(|err| fault(format!("the tokenizer cannot be read: {err}")))?
            .with_padding(None);
        inner.set_encode_special_tokens(true);
        let id_count = inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        let config = checkpoint.config.as_ref();
        let rows = config.map(|config| config.vocab);
        if let Some(rows) = rows.filter(|&rows| rows < id_count) {
            return Err(fault(format!(
                "the tokenizer does not match the model: it has {id_count} tokens, the embedding {rows} rows"
            )));
        }
        if id_count == 0 {
            return Err(fault("the tokenizer has no token".to_owned()));
        }
        let bos = template_bos(&inner).map_err(|err| fault(format!("the tokenizer cannot be used: {err}")))?;
        let mut tokenizer = Self { inner: Arc::new(inner), id_count, bos, eos: Vec::new() };
        tokenizer.bos = settings_bos(checkpoint, bos)?;
        if let Some(config) = config {
            tokenizer.eos = config.eos.clone();
        }
        if let Some(id) =
            tokenizer.bos.iter().chain(&tokenizer.eos).find(|&&id| rows.is_some_and(|rows| id as usize >= rows))
        {
            return Err(fault(format!("special token {id} lies beyond the embedding's rows")));
        }
        Ok(tokenizer)
    }

    /// Token ids of `text`; special tokens are neither added nor recognized in it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|err| self.fault("encode", &err.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of `text` with special tokens recognized where they are written out, none added.
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        let mut inner = Inner::clone(&self.inner);
        inner.set_encode_special_tokens(false);
        let encoding = inner.encode_fast(text, false).map_err(|err| self.fault("encode", &err.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of `ids`, special tokens left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(|err| self.fault("decode", &err.to_string()))
    }

    /// Text of one token for display, special tokens by name; part of a character is U+FFFD.
    pub fn token_text(&self, id: u32) -> String {
        match self.inner.decode(&[id], false) {
            Ok(text) if !text.is_empty() => text,
            _ => self.inner.id_to_token(id).unwrap_or_else(|| format!("[{id}]")),
        }
    }

    /// The id of the token written exactly so in the vocabulary: `<eos>`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Number of token ids; the embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.id_count
    }

    /// True if `id` ends a text.
    pub fn is_eos(&self, id: u32) -> bool {
        self.eos.contains(&id)
    }

    /// Decodes token by token; text appears once its characters are whole.
    pub fn stream(&self) -> TextStream {
        TextStream { tokenizer: self.clone(), ids: Vec::new(), prefix: 0, shown: 0 }
    }

    /// The tokenizer as a `tokenizer.json`, also where it came from a GGUF.
    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(true).map_err(|err| self.fault("write", &err.to_string()))
    }

    fn fault(&self, action: &str, cause: &str) -> Error {
        Fault::new(Stage::Tokenizer, format!("cannot {action} the text: {cause}"))
            .fix("check that the tokenizer belongs to the model")
            .into()
    }
}

/// The token that the post-processor puts before a text, if it puts exactly one there.
fn template_bos(inner: &Inner) -> tokenizers::Result<Option<u32>> {
    let plain = inner.encode_fast("a", false)?;
    let full = inner.encode_fast("a", true)?;
    let (plain, full) = (plain.get_ids(), full.get_ids());
    Ok(match full {
        [first, rest @ ..] if rest.starts_with(plain) && full.len() > plain.len() => Some(*first),
        _ => None,
    })
}

/// What `tokenizer_config.json` says of BOS, as transformers' Llama tokenizer follows it.
fn settings_bos(checkpoint: &Checkpoint, template: Option<u32>) -> Result<Option<u32>> {
    let Some(bytes) = checkpoint.read_sidecar("tokenizer_config.json")? else {
        return Ok(template);
    };
    // A broken settings file only loses its hints.
    let settings: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let adds = settings.get("add_bos_token").and_then(serde_json::Value::as_bool);
    let class = settings.get("tokenizer_class").and_then(serde_json::Value::as_str).unwrap_or("");
    let is_llama = class.starts_with("LlamaTokenizer");
    let bos = checkpoint.config.as_ref().and_then(|config| config.bos);
    Ok(match adds {
        Some(true) => template.or(bos),
        Some(false) if is_llama => None,
        None if is_llama => template.or(bos),
        _ => template,
    })
}

/// Tokens in, whole characters out.
#[derive(Clone, Debug)]
pub struct TextStream {
    tokenizer: Tokenizer,
    ids: Vec<u32>,
    /// Decoding starts here: one step before `shown`, so that spaces between tokens are kept.
    prefix: usize,
    /// Tokens whose text was given out.
    shown: usize,
}

impl TextStream {
    /// Takes one token and answers the text that became complete, often empty within a character.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        self.advance(false)
    }

    /// Answers what is left, broken characters as U+FFFD.
    pub fn finish(&mut self) -> Result<String> {
        self.advance(true)
    }

    fn advance(&mut self, is_last: bool) -> Result<String> {
        let before = self.tokenizer.decode(&self.ids[self.prefix..self.shown])?;
        let after = self.tokenizer.decode(&self.ids[self.prefix..])?;
        if after.ends_with('\u{fffd}') && !is_last {
            return Ok(String::new());
        }
        let text = after.strip_prefix(before.as_str()).unwrap_or_default().to_owned();
        if !text.is_empty() {
            self.prefix = self.shown;
            self.shown = self.ids.len();
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn demo() -> Tokenizer {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/demo"));
        Tokenizer::of_checkpoint(&Checkpoint::open(folder).expect("opens")).expect("tokenizer")
    }

    #[test]
    fn the_demo_has_its_special_tokens() {
        let tokenizer = demo();
        assert_eq!((tokenizer.bos, tokenizer.eos.as_slice()), (Some(0), [1].as_slice()));
        assert_eq!(tokenizer.vocab_size(), 2048);
        assert_eq!(tokenizer.token_text(1), "<eos>");
        assert_eq!(tokenizer.token_id("<pad>"), Some(2));
    }

    #[test]
    fn special_tokens_in_text_are_text() {
        let tokenizer = demo();
        let ids = tokenizer.encode("a<eos>b").expect("encodes");
        assert!(!ids.contains(&1), "{ids:?}");
        assert_eq!(tokenizer.decode(&ids).expect("decodes"), "a<eos>b");
        assert!(tokenizer.encode_with_special("a<eos>b").expect("encodes").contains(&1));
    }

    #[test]
    fn a_stream_gives_the_same_text_in_whole_characters() {
        let tokenizer = demo();
        let text = "Größe, élève, ¿qué?, ağaç 😀 12345 done";
        let ids = tokenizer.encode(text).expect("encodes");
        let mut stream = tokenizer.stream();
        let mut out = String::new();
        for &id in &ids {
            let piece = stream.push(id).expect("decodes");
            assert!(!piece.contains('\u{fffd}'));
            out.push_str(&piece);
        }
        out.push_str(&stream.finish().expect("decodes"));
        assert_eq!(out, text);
        assert_eq!(tokenizer.decode(&ids).expect("decodes"), text);
    }
}
