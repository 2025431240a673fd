//! A `tokenizer.json` as a GGUF's `tokenizer.ggml.*` metadata.
//!
//! Byte-level BPE becomes `gpt2` with its pre-tokenizer's name, SentencePiece's BPE with byte
//! fall-back becomes `llama` with scores. Keys and token types are those of
//! `convert_hf_to_gguf.py` and `gguf-py` (llama.cpp, MIT).

use std::collections::HashMap;

use serde_json::Value;

use super::config::ModelConfig;
use super::gguf_value::{GgufArray, GgufStrings, GgufValue};
use super::{Checkpoint, files};
use crate::error::{Fault, Result, Stage};
use crate::target::pre_tokenizers;

/// `tokenizer.ggml.token_type`.
mod kind {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
    pub const BYTE: i32 = 6;
}

/// The tokenizer's keys; oddities go to `warnings`.
pub(super) fn tokenizer_metadata(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    warnings: &mut Vec<String>,
) -> Result<Vec<(String, GgufValue)>> {
    let Some(bytes) = checkpoint.tokenizer_json()? else {
        warnings.push("there is no tokenizer.json, so the GGUF has no tokenizer and takes token ids only".to_owned());
        let mut metadata = vec![("tokenizer.ggml.model".to_owned(), GgufValue::String("none".to_owned()))];
        for (key, id) in [("bos", config.bos), ("eos", config.eos.first().copied())] {
            let key = format!("tokenizer.ggml.{key}_token_id");
            metadata.extend(id.map(|id| (key, GgufValue::U32(id))));
        }
        return Ok(metadata);
    };
    let path = checkpoint.sidecar("tokenizer.json").unwrap_or(&checkpoint.path);
    let fault = |cause: String| {
        Fault::new(Stage::Tokenizer, cause).fix("use the tokenizer that belongs to the model").file(path)
    };
    let json: Value = serde_json::from_slice(&bytes).map_err(|err| fault(format!("not a tokenizer.json: {err}")))?;
    let settings: Value = match checkpoint.read_sidecar("tokenizer_config.json")? {
        Some(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
        None => Value::Null,
    };
    let model = json.get("model").unwrap_or(&Value::Null);
    let model_kind = model.get("type").and_then(Value::as_str).unwrap_or("BPE");
    let vocab = model
        .get("vocab")
        .and_then(Value::as_object)
        .filter(|_| model_kind == "BPE")
        .ok_or_else(|| fault(format!("a tokenizer of kind {model_kind} cannot be written to a GGUF, only BPE")))?;
    let merges = merges_of(model).ok_or_else(|| fault("the merges are not pairs of tokens".to_owned()))?;

    let has_bytes = model.get("byte_fallback").and_then(Value::as_bool) == Some(true);
    let unknown = model.get("unk_token").and_then(Value::as_str);
    let mut tokens: Vec<Option<(String, i32)>> = vec![None; config.vocab];
    let mut ids: HashMap<String, usize> = HashMap::new();
    let mut place = |text: &str, id: Option<u64>, kind: i32| -> Result<()> {
        let slot = id.and_then(|id| usize::try_from(id).ok()).filter(|&id| id < config.vocab);
        let Some(id) = slot else {
            return Err(fault(format!(
                "the tokenizer does not match the model: token {text:?} lies beyond the embedding's {} rows",
                config.vocab
            ))
            .into());
        };
        tokens[id] = Some((text.to_owned(), kind));
        ids.insert(text.to_owned(), id);
        Ok(())
    };
    for (text, id) in vocab {
        let kind = if has_bytes && is_byte_token(text) {
            kind::BYTE
        } else if has_bytes && unknown == Some(text) {
            kind::UNKNOWN
        } else {
            kind::NORMAL
        };
        place(text, id.as_u64(), kind)?;
    }
    for added in json.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
        let text = added.get("content").and_then(Value::as_str).unwrap_or_default();
        let is_special = added.get("special").and_then(Value::as_bool) == Some(true);
        let kind = match (is_special, has_bytes && unknown == Some(text)) {
            (_, true) => kind::UNKNOWN,
            (true, false) => kind::CONTROL,
            (false, false) => kind::USER_DEFINED,
        };
        place(text, added.get("id").and_then(Value::as_u64), kind)?;
    }
    let tokens: Vec<(String, i32)> = tokens
        .into_iter()
        .enumerate()
        .map(|(id, token)| token.unwrap_or_else(|| (format!("[PAD{id}]"), kind::UNUSED)))
        .collect();

    let mut metadata = Vec::new();
    let mut set = |key: &str, value: GgufValue| metadata.push((format!("tokenizer.ggml.{key}"), value));
    let text = |value: &str| GgufValue::String(value.to_owned());
    set("model", text(if has_bytes { "llama" } else { "gpt2" }));
    set("pre", text(pre_name(&json, has_bytes, warnings)));
    set("tokens", GgufValue::Array(GgufArray::String(tokens.iter().map(|(text, _)| text).collect::<GgufStrings>())));
    if has_bytes {
        // llama.cpp joins the pair whose token scores best; ids rise in the order of the merges.
        let scores = tokens.iter().enumerate().map(|(id, &(_, kind))| match kind {
            kind::NORMAL => -(id as f32),
            kind::USER_DEFINED => -1000.0,
            _ => 0.0,
        });
        set("scores", GgufValue::Array(GgufArray::F32(scores.collect())));
        let order: Vec<usize> = merges.iter().filter_map(|(a, b)| ids.get(&format!("{a}{b}")).copied()).collect();
        if !order.is_sorted() {
            warnings.push(
                "the order of the merges differs from that of the token ids: llama.cpp may split some words otherwise"
                    .to_owned(),
            );
        }
    }
    set("token_type", GgufValue::Array(GgufArray::I32(tokens.iter().map(|&(_, kind)| kind).collect())));
    if has_bytes {
        if !adds_space(&json) {
            set("add_space_prefix", GgufValue::Bool(false));
        }
    } else {
        let strings: GgufStrings = merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
        set("merges", GgufValue::Array(GgufArray::String(strings)));
    }
    let names = SpecialTokens { ids: &ids, settings: &settings, config: checkpoint.config_json() };
    let mut id = |key: &str, id: Option<u32>| {
        if let Some(id) = id.filter(|&id| (id as usize) < config.vocab) {
            set(&format!("{key}_token_id"), GgufValue::U32(id));
        }
    };
    let (first, last) = template_ends(json.get("post_processor").unwrap_or(&Value::Null));
    // What is really put before a text outranks what the settings call BOS.
    let first_id = first.and_then(|token| ids.get(token)).map(|&id| id as u32);
    let bos = first_id.or_else(|| names.find("bos")).or(config.bos);
    let eos = names.find("eos").or(config.eos.first().copied());
    id("bos", bos);
    id("eos", eos);
    // More tokens that end a text: of a turn, of a message.
    let mut others = config.eos.iter().copied().filter(|&id| Some(id) != eos);
    id("eot", others.next());
    id("eom", others.next());
    id("unknown", unknown.and_then(|token| ids.get(token)).map(|&id| id as u32));
    id("padding", names.find("pad"));
    set("add_bos_token", GgufValue::Bool(adds_bos(&settings, first.is_some())));
    if last {
        set("add_eos_token", GgufValue::Bool(true));
    }
    if let Some(template) = chat_template(checkpoint, &settings)? {
        metadata.push(("tokenizer.chat_template".to_owned(), GgufValue::String(template)));
    }
    Ok(metadata)
}

/// Merges as pairs; a `tokenizer.json` holds them as `"a b"` or, newer, as `["a", "b"]`.
fn merges_of(model: &Value) -> Option<Vec<(String, String)>> {
    let Some(list) = model.get("merges") else {
        return Some(Vec::new());
    };
    list.as_array()?
        .iter()
        .map(|merge| match merge {
            Value::String(text) => text.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())),
            Value::Array(pair) => match pair.as_slice() {
                [Value::String(a), Value::String(b)] => Some((a.clone(), b.clone())),
                _ => None,
            },
            _ => None,
        })
        .collect()
}

/// `<0x0A>`
fn is_byte_token(text: &str) -> bool {
    text.strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'))
        .is_some_and(|hex| hex.len() == 2 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// `tokenizer.ggml.pre`, with a warning where llama.cpp would split text otherwise.
fn pre_name(json: &Value, has_bytes: bool, warnings: &mut Vec<String>) -> &'static str {
    if has_bytes {
        return "default";
    }
    if json.get("normalizer").is_some_and(|normalizer| !normalizer.is_null()) {
        warnings.push(
            "the tokenizer normalizes text first, which llama.cpp does not: unusual characters may get other ids there"
                .to_owned(),
        );
    }
    pre_tokenizers::name_of(json.get("pre_tokenizer").unwrap_or(&Value::Null)).unwrap_or_else(|| {
        warnings.push("none of llama.cpp's pre-tokenizers fits this tokenizer; \"default\" is written, and llama.cpp may give other ids".to_owned());
        "default"
    })
}

/// True if a space is put before a text, by a normalizer or by `Metaspace`.
fn adds_space(json: &Value) -> bool {
    fn has(value: &Value, test: &dyn Fn(&Value) -> bool) -> bool {
        test(value)
            || ["normalizers", "pretokenizers"]
                .iter()
                .filter_map(|key| value.get(key)?.as_array())
                .flatten()
                .any(|inner| has(inner, test))
    }
    let kind = |value: &Value| value.get("type").and_then(Value::as_str).map(str::to_owned);
    let prepends = |value: &Value| kind(value).as_deref() == Some("Prepend");
    let metaspace = |value: &Value| {
        kind(value).as_deref() == Some("Metaspace")
            && value.get("prepend_scheme").and_then(Value::as_str) != Some("never")
            && value.get("add_prefix_space").and_then(Value::as_bool) != Some(false)
    };
    json.get("normalizer").is_some_and(|value| has(value, &prepends))
        || json.get("pre_tokenizer").is_some_and(|value| has(value, &metaspace))
}

/// Ids of special tokens by their role.
struct SpecialTokens<'a> {
    ids: &'a HashMap<String, usize>,
    settings: &'a Value,
    config: Option<&'a serde_json::Map<String, Value>>,
}

impl SpecialTokens<'_> {
    /// `tokenizer_config.json` names tokens, `config.json` gives ids; the former knows better.
    fn find(&self, role: &str) -> Option<u32> {
        let token = self.settings.get(format!("{role}_token"));
        let text = token.and_then(|token| token.as_str().or_else(|| token.get("content")?.as_str()));
        let by_name = text.and_then(|text| self.ids.get(text)).map(|&id| id as u32);
        by_name.or_else(|| {
            let value = self.config?.get(&format!("{role}_token_id"))?;
            let first = value.as_u64().or_else(|| value.get(0)?.as_u64())?;
            u32::try_from(first).ok()
        })
    }
}

/// The special token that the post-processor puts first, and whether it puts one last.
fn template_ends(post: &Value) -> (Option<&str>, bool) {
    if let Some(inner) = post.get("processors").and_then(Value::as_array) {
        return inner.iter().map(template_ends).fold((None, false), |a, b| (a.0.or(b.0), a.1 || b.1));
    }
    let special = |item: Option<&'_ Value>| item.and_then(|item| item.get("SpecialToken")).is_some();
    match post.get("single").and_then(Value::as_array) {
        Some(single) => {
            let first = single.first().and_then(|item| item.get("SpecialToken")?.get("id")?.as_str());
            (first, special(single.last()))
        }
        None => (None, false),
    }
}

/// True if BOS comes before a text; transformers' Llama tokenizer follows its settings, others their template.
fn adds_bos(settings: &Value, template: bool) -> bool {
    let class = settings.get("tokenizer_class").and_then(Value::as_str).unwrap_or("");
    let is_llama = class.starts_with("LlamaTokenizer");
    match settings.get("add_bos_token").and_then(Value::as_bool) {
        Some(true) => true,
        Some(false) if is_llama => false,
        None if is_llama => true,
        _ => template,
    }
}

/// The chat template: a file of its own, a string, or the default of several.
fn chat_template(checkpoint: &Checkpoint, settings: &Value) -> Result<Option<String>> {
    if let Some(path) = checkpoint.sidecar("chat_template.jinja") {
        let bytes = files::read_small(path, files::CONFIG_CAP)?;
        return Ok(Some(String::from_utf8_lossy(&bytes).into_owned()));
    }
    Ok(match settings.get("chat_template") {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(list)) => list
            .iter()
            .find(|item| item.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|item| item.get("template")?.as_str().map(str::to_owned)),
        _ => None,
    })
}
