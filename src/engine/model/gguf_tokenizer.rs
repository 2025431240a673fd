//! A `tokenizer.json` rebuilt from a GGUF's `tokenizer.ggml.*` metadata.
//!
//! Two kinds of vocabulary: `gpt2`, byte-level BPE with merges and a named pre-tokenizer, and
//! `llama`, SentencePiece's BPE, whose merges follow from the tokens' scores. Keys are those of
//! `gguf-py/gguf/constants.py`; the way from scores to merges is transformers'
//! `convert_slow_tokenizer.py` (Apache-2.0).

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::checkpoint::{GgufArray, GgufValue, lookup};
use crate::error::{Fault, Result, Stage};
use crate::target::pre_tokenizers;

/// `tokenizer.ggml.token_type`: what a token is.
mod kind {
    pub const NORMAL: u64 = 1;
    pub const UNKNOWN: u64 = 2;
    pub const CONTROL: u64 = 3;
    pub const USER_DEFINED: u64 = 4;
    pub const UNUSED: u64 = 5;
}

/// The bytes of a `tokenizer.json` that gives the same ids as the GGUF's own tokenizer.
///
/// # Errors
/// Where the metadata lack a key, or name a kind of tokenizer that cannot be rebuilt.
pub(super) fn tokenizer_json(metadata: &[(String, GgufValue)], path: &Path) -> Result<Vec<u8>> {
    let fault = |key: &str, cause: String| {
        Fault::new(Stage::Tokenizer, cause)
            .at(format!("metadata tokenizer.ggml.{key}"))
            .fix("convert the model again, or open its Hugging Face folder")
            .file(path)
    };
    let get = |key: &str| lookup(metadata, &format!("tokenizer.ggml.{key}"));
    let need = |key: &str| get(key).ok_or_else(|| fault(key, "the key is missing".to_owned()));
    let tokens = need("tokens")?.as_strings().ok_or_else(|| fault("tokens", "not a list of strings".to_owned()))?;
    let tokens: Vec<String> = tokens.iter().map(std::borrow::Cow::into_owned).collect();
    let kinds = match get("token_type").and_then(GgufValue::as_array) {
        Some(array) => array
            .to_unsigned()
            .filter(|kinds| kinds.len() == tokens.len())
            .ok_or_else(|| fault("token_type", format!("not one whole number for each of {} tokens", tokens.len())))?,
        None => vec![kind::NORMAL; tokens.len()],
    };
    let vocabulary = Vocabulary { tokens: &tokens, kinds: &kinds };
    let model_name = need("model")?.as_str().unwrap_or("");
    let (model, normalizer, pre_tokenizer, decoder, adds_bos) = match model_name {
        "gpt2" => {
            let name = get("pre").and_then(GgufValue::as_str).unwrap_or("default");
            let pre = pre_tokenizers::find(name).ok_or_else(|| {
                fault("pre", format!("pre-tokenizer {name} is not known, so the same ids cannot be promised"))
            })?;
            let merges =
                need("merges")?.as_strings().ok_or_else(|| fault("merges", "not a list of strings".to_owned()))?;
            let mut pairs = Vec::with_capacity(merges.len());
            for merge in merges.iter() {
                // A token may begin with a space only in theory; the split is after its first character.
                let split = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
                let at = split.ok_or_else(|| fault("merges", format!("{merge:?} is not a pair")))?;
                pairs.push(json!([&merge[..at], &merge[at + 1..]]));
            }
            let byte_level =
                json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
            (vocabulary.bpe(pairs, pre.ignores_merges, false), Value::Null, pre.json, byte_level, pre.adds_bos)
        }
        "llama" => {
            let scores = match need("scores")? {
                GgufValue::Array(GgufArray::F32(scores)) if scores.len() == tokens.len() => scores,
                _ => return Err(fault("scores", "not one number for each token".to_owned()).into()),
            };
            let prefix = get("add_space_prefix").and_then(GgufValue::as_bool).unwrap_or(true);
            let mut steps = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})];
            let mut decoders = vec![
                json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
                json!({"type": "ByteFallback"}),
                json!({"type": "Fuse"}),
            ];
            if prefix {
                steps.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
                decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
            }
            (
                vocabulary.bpe(vocabulary.merges_of_scores(scores), false, true),
                json!({"type": "Sequence", "normalizers": steps}),
                Value::Null,
                json!({"type": "Sequence", "decoders": decoders}),
                true,
            )
        }
        other => {
            return Err(fault("model", format!("tokenizer {other:?} cannot be rebuilt, only gpt2 and llama")).into());
        }
    };
    let bos = get("bos_token_id")
        .and_then(GgufValue::as_u64)
        .filter(|_| get("add_bos_token").and_then(GgufValue::as_bool).unwrap_or(adds_bos));
    let post_processor = bos
        .and_then(|id| Some((id, tokens.get(usize::try_from(id).ok()?)?)))
        .map_or(Value::Null, |(id, token)| template(id, token));
    let all = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocabulary.added(),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": decoder,
        "model": model,
    });
    serde_json::to_vec(&all).map_err(|err| fault("tokens", err.to_string()).into())
}

/// A post-processor that puts one token before every text.
fn template(id: u64, token: &str) -> Value {
    let special = json!({"SpecialToken": {"id": token, "type_id": 0}});
    let sequence = |name: &str, type_id: u32| json!({"Sequence": {"id": name, "type_id": type_id}});
    let mut tokens = Map::new();
    tokens.insert(token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}));
    json!({
        "type": "TemplateProcessing",
        "single": [special, sequence("A", 0)],
        "pair": [special, sequence("A", 0), sequence("B", 1)],
        "special_tokens": tokens,
    })
}

/// Tokens with what they are, by id.
struct Vocabulary<'a> {
    tokens: &'a [String],
    kinds: &'a [u64],
}

impl Vocabulary<'_> {
    /// Fillers that a converter added up to the embedding's rows.
    fn is_filler(&self, id: usize) -> bool {
        self.kinds[id] == kind::UNUSED && self.tokens[id] == format!("[PAD{id}]")
    }

    /// The `model` object; ids are those of the list.
    fn bpe(&self, merges: Vec<Value>, ignores_merges: bool, byte_fallback: bool) -> Value {
        let mut vocab = Map::new();
        for (id, token) in self.tokens.iter().enumerate() {
            if !self.is_filler(id) {
                vocab.entry(token.clone()).or_insert_with(|| json!(id));
            }
        }
        let unknown = self.kinds.iter().position(|&kind| kind == kind::UNKNOWN).map(|id| &self.tokens[id]);
        json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": byte_fallback,
            "byte_fallback": byte_fallback,
            "ignore_merges": ignores_merges,
            "vocab": vocab,
            "merges": merges,
        })
    }

    /// The `added_tokens`: control tokens are special, user-defined ones are found in text.
    fn added(&self) -> Vec<Value> {
        let mut added = Vec::new();
        for (id, (token, &kind)) in self.tokens.iter().zip(self.kinds).enumerate() {
            let is_special = matches!(kind, kind::CONTROL | kind::UNKNOWN);
            if is_special || kind == kind::USER_DEFINED {
                added.push(json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": is_special,
                }));
            }
        }
        added
    }

    /// Every pair of tokens that makes a token, best score first.
    fn merges_of_scores(&self, scores: &[f32]) -> Vec<Value> {
        let ids: HashMap<&str, usize> = self
            .tokens
            .iter()
            .enumerate()
            .filter(|(id, _)| self.kinds[*id] == kind::NORMAL)
            .map(|(id, token)| (token.as_str(), id))
            .collect();
        let mut merges: Vec<(usize, usize)> = Vec::new();
        for (id, token) in self.tokens.iter().enumerate() {
            // A hostile token of megabytes would cost its square.
            if self.kinds[id] != kind::NORMAL || token.len() > 512 {
                continue;
            }
            for (at, _) in token.char_indices().skip(1) {
                if ids.contains_key(&token[..at]) && ids.contains_key(&token[at..]) {
                    merges.push((id, at));
                }
            }
        }
        merges.sort_by(|&(a, a_at), &(b, b_at)| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)).then(b_at.cmp(&a_at)));
        merges.into_iter().map(|(id, at)| json!([&self.tokens[id][..at], &self.tokens[id][at..]])).collect()
    }
}
