//! llama.cpp's names for the ways in which byte-level BPE tokenizers split text first.
//!
//! A GGUF names its pre-tokenizer in `tokenizer.ggml.pre`; a `tokenizer.json` spells it out. The
//! patterns are facts of the published tokenizers; names and groups are those of llama.cpp's
//! `llama-vocab.cpp` (MIT). Names are derived from the structure, never from a hash of some text,
//! so that a tokenizer that nobody has seen before gets the right one.

use serde_json::{Value, json};

/// One way of splitting.
struct Known {
    /// What we write, then the names that llama.cpp treats alike.
    names: &'static [&'static str],
    /// The pattern of the one `Split` before the byte level; `None` for the two below.
    pattern: Option<&'static str>,
    /// True if a word that is a token as a whole is not merged from its letters.
    ignores_merges: bool,
    /// llama.cpp's answer where the file does not say if BOS is put before a text.
    adds_bos: bool,
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const KNOWN: [Known; 6] = [
    Known {
        names: &["gpt-2", "phi-2", "mpt", "olmo", "jais", "mellum", "roberta-bpe", "modern-bert"],
        pattern: None,
        ignores_merges: false,
        adds_bos: false,
    },
    Known {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell"],
        pattern: None,
        ignores_merges: false,
        adds_bos: false,
    },
    Known {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"],
        pattern: Some(LLAMA3),
        ignores_merges: true,
        adds_bos: true,
    },
    Known {
        names: &["qwen2", "stablelm2", "deepseek-r1-qwen", "megrez"],
        pattern: Some(QWEN2),
        ignores_merges: false,
        adds_bos: false,
    },
    Known { names: &["gpt-4o", "llama4"], pattern: Some(GPT4O), ignores_merges: false, adds_bos: false },
    Known { names: &["tekken"], pattern: Some(TEKKEN), ignores_merges: true, adds_bos: true },
];

/// A pre-tokenizer in the notation of `tokenizer.json`, with what else its name decides.
#[derive(Clone, Debug)]
pub struct PreTokenizer {
    /// The value of `pre_tokenizer`.
    pub json: Value,
    /// The value of `model.ignore_merges`.
    pub ignores_merges: bool,
    /// True if BOS comes first unless the file says otherwise.
    pub adds_bos: bool,
}

/// The pre-tokenizer that llama.cpp calls `name`; `None` where we cannot split as it does.
pub fn find(name: &str) -> Option<PreTokenizer> {
    let known = KNOWN.iter().find(|known| known.names.contains(&name))?;
    let byte_level = |use_regex: bool| {
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
    };
    let json = match (known.pattern, known.names[0]) {
        (Some(pattern), _) => json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            byte_level(false),
        ]}),
        (None, "smollm") => json!({"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            byte_level(true),
        ]}),
        (None, _) => byte_level(true),
    };
    Some(PreTokenizer { json, ignores_merges: known.ignores_merges, adds_bos: known.adds_bos })
}

/// llama.cpp's name for the `pre_tokenizer` of a `tokenizer.json`; `None` where none fits.
pub fn name_of(pre_tokenizer: &Value) -> Option<&'static str> {
    let mut steps = Vec::new();
    flatten(pre_tokenizer, &mut steps);
    let text = |step: &Value, key: &str| step.get(key).and_then(Value::as_str).map(str::to_owned);
    let is_byte_level = |step: &Value, use_regex: bool| {
        text(step, "type").as_deref() == Some("ByteLevel")
            // Absent means true: the key is younger than the type.
            && step.get("use_regex").and_then(Value::as_bool).unwrap_or(true) == use_regex
            && step.get("add_prefix_space").and_then(Value::as_bool) != Some(true)
    };
    let pattern = |step: &Value| -> Option<String> {
        let is_plain_split = text(step, "type").as_deref() == Some("Split")
            && text(step, "behavior").as_deref() == Some("Isolated")
            && step.get("invert").and_then(Value::as_bool) != Some(true);
        step.get("pattern").filter(|_| is_plain_split)?.get("Regex")?.as_str().map(str::to_owned)
    };
    let is_single_digits = |step: &Value| match text(step, "type").as_deref() {
        Some("Digits") => step.get("individual_digits").and_then(Value::as_bool) == Some(true),
        Some("Split") => pattern(step).is_some_and(|p| matches!(p.as_str(), r"\d" | r"\p{N}" | r"\p{Nd}" | "[0-9]")),
        _ => false,
    };
    match steps.as_slice() {
        [only] if is_byte_level(only, true) => Some("gpt-2"),
        [first, second] if is_single_digits(first) && is_byte_level(second, true) => Some("smollm"),
        [first, second] if is_byte_level(second, false) => {
            let pattern = pattern(first)?;
            KNOWN.iter().find(|known| known.pattern == Some(pattern.as_str())).map(|known| known.names[0])
        }
        _ => None,
    }
}

/// The steps of nested sequences in order.
fn flatten<'a>(value: &'a Value, steps: &mut Vec<&'a Value>) {
    match value.get("pretokenizers").and_then(Value::as_array) {
        Some(inner) => inner.iter().for_each(|step| flatten(step, steps)),
        None if !value.is_null() => steps.push(value),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_structure_finds_its_name_again() {
        for known in &KNOWN {
            for name in known.names {
                let found = find(name).expect("known");
                assert_eq!(name_of(&found.json), Some(known.names[0]), "{name}");
            }
        }
        assert!(find("default").is_none());
    }

    #[test]
    fn the_demos_digit_split_is_smollm() {
        let pre = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "\\d"}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]});
        assert_eq!(name_of(&pre), Some("smollm"));
    }

    #[test]
    fn a_structure_that_differs_in_anything_has_no_name() {
        for pre in [
            json!(null),
            json!({"type": "Whitespace"}),
            json!({"type": "ByteLevel", "add_prefix_space": true, "use_regex": true}),
            json!({"type": "Sequence", "pretokenizers": [
                {"type": "Digits", "individual_digits": false},
                {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true}]}),
            json!({"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Removed", "invert": false},
                {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]}),
        ] {
            assert_eq!(name_of(&pre), None, "{pre}");
        }
    }
}
