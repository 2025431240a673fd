//! `[constraints]` of a plan: what the result must keep to, stated once.
//!
//! They are the planner's limits ([`Constraints::limits`]), become gates for the finished candidate
//! ([`Constraints::to_gates`]), and stand in the window as met, missed or unknown
//! ([`super::standing`]).
//!
//! ```toml
//! [constraints]
//! max_file_size = "2.5MiB"             # metadata and tokenizer included
//! max_memory = "8GiB"                  # weights, and the KV cache of
//! context = 4096                       # so many tokens,
//! kv_cache = "f16"                     # stored so
//! min_decode_tokens_per_second = 20    # on the machine that measures
//! min_prefill_tokens_per_second = 300
//! max_request_seconds = 2.5            # for
//! prompt_tokens = 512                  # so many tokens read
//! output_tokens = 128                  # and so many written
//! max_kld = 0.02                       # nats a token
//!
//! [[constraints.slice]]                # accuracy that may not get worse by more than a margin
//! match = "facts/*"
//! max_loss = 0.02
//! ```

use std::fmt::Write as _;
use std::ops::Range;

use serde::Serialize;
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, TableLike};

use super::Plan;
use super::budget::Limit;
use super::edit::set_value;
use crate::checkpoint::ModelConfig;
use crate::format;
use crate::units;

/// Keys of the section.
pub(super) const KEYS: [&str; 11] = [
    "max_file_size",
    "max_memory",
    "context",
    "kv_cache",
    "min_decode_tokens_per_second",
    "min_prefill_tokens_per_second",
    "max_request_seconds",
    "prompt_tokens",
    "output_tokens",
    "max_kld",
    "slice",
];

/// Types that runtimes keep keys and values in.
pub const CACHE_TYPES: [&str; 5] = ["f32", "f16", "bf16", "q8_0", "q4_0"];

/// Weights and KV cache together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryLimit {
    /// At most so much.
    pub bytes: u64,
    /// Tokens in the cache.
    pub context: usize,
    /// How keys and values are stored, one of [`CACHE_TYPES`].
    pub cache: &'static str,
}

impl MemoryLimit {
    /// A limit at a context of 4,096 tokens with a cache in f16, as most runtimes have it.
    pub fn new(bytes: u64) -> Self {
        Self { bytes, context: 4096, cache: "f16" }
    }

    /// Bytes of keys and values at the full context, where a token has so many of them.
    pub fn cache_bytes(&self, values_per_token: u64) -> u64 {
        let bits = format::find(self.cache).map_or(16.0, |format| format.bits_per_weight());
        (values_per_token as f64 * self.context as f64 * bits / 8.0).ceil() as u64
    }
}

/// One request from its first token read to its last one written.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RequestLimit {
    /// At most so long.
    pub seconds: f64,
    /// Tokens that are read.
    pub prompt_tokens: usize,
    /// Tokens that are written.
    pub output_tokens: usize,
}

impl RequestLimit {
    /// A limit for 512 tokens read and 128 written, as llama-bench measures them.
    pub fn new(seconds: f64) -> Self {
        Self { seconds, prompt_tokens: 512, output_tokens: 128 }
    }
}

/// Accuracy that may not get worse by more than a margin.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SliceMargin {
    /// A glob on slices, as in gates: `slice`, `task/slice`, `*`.
    pub slice: String,
    /// The margin on the paired difference, as a fraction.
    pub max_loss: f64,
}

impl SliceMargin {
    /// A margin for the slices that a glob matches; the answer to what is none is why.
    pub fn new(slice: &str, max_loss: f64) -> Result<Self, String> {
        globset::Glob::new(slice).map_err(|err| format!("the glob cannot be read: {}", err.kind()))?;
        if !(0.0..=1.0).contains(&max_loss) {
            return Err("a loss is a fraction from 0 to 1: 0.02 is two points".to_owned());
        }
        Ok(Self { slice: slice.to_owned(), max_loss })
    }
}

/// What the result must keep to.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Constraints {
    /// Bytes of the whole file, metadata and tokenizer included.
    pub max_file_bytes: Option<u64>,
    /// Weights and KV cache together.
    pub max_memory: Option<MemoryLimit>,
    /// Tokens written a second at batch 1, on the machine that measures.
    pub min_decode_tokens_per_second: Option<f64>,
    /// Tokens of a prompt read a second.
    pub min_prefill_tokens_per_second: Option<f64>,
    /// Time of one request.
    pub max_request: Option<RequestLimit>,
    /// Mean KLD to the original, in nats a token.
    pub max_kld: Option<f64>,
    /// Slices that may not get worse by more than a margin.
    pub slices: Vec<SliceMargin>,
}

/// What is wrong with a section, and where.
pub(super) struct Complaint {
    pub(super) span: Option<Range<usize>>,
    pub(super) cause: String,
    pub(super) remedy: String,
}

type Read<T> = std::result::Result<T, Complaint>;

/// Reads one section.
struct Reader<'a>(&'a dyn TableLike);

impl Reader<'_> {
    fn complain(&self, key: &str, cause: String, remedy: &str) -> Complaint {
        let span = self.0.get(key).and_then(Item::span);
        Complaint { span, cause, remedy: remedy.to_owned() }
    }

    /// A number above zero.
    fn number(&self, key: &str) -> Read<Option<f64>> {
        let Some(item) = self.0.get(key) else { return Ok(None) };
        let number = item.as_float().or_else(|| item.as_integer().map(|number| number as f64));
        match number.filter(|number| *number > 0.0 && number.is_finite()) {
            Some(number) => Ok(Some(number)),
            None => {
                Err(self.complain(key, format!("\"{key}\" is no number above zero"), &format!("write {key} = 1.5")))
            }
        }
    }

    fn count(&self, key: &str) -> Read<Option<usize>> {
        let Some(item) = self.0.get(key) else { return Ok(None) };
        match item.as_integer().and_then(|count| usize::try_from(count).ok()).filter(|count| *count > 0) {
            Some(count) => Ok(Some(count)),
            None => {
                let cause = format!("\"{key}\" is no whole number above zero");
                Err(self.complain(key, cause, &format!("write {key} = 512")))
            }
        }
    }

    /// Bytes, as a number or as text with a unit.
    fn size(&self, key: &str) -> Read<Option<u64>> {
        let Some(item) = self.0.get(key) else { return Ok(None) };
        let plain = item.as_integer().and_then(|count| u64::try_from(count).ok());
        match plain.or_else(|| units::parse_bytes(item.as_str()?)).filter(|bytes| *bytes > 0) {
            Some(bytes) => Ok(Some(bytes)),
            None => {
                let cause = format!("\"{key}\" is no size");
                Err(self.complain(key, cause, &format!("write {key} = \"3.2GiB\", or plain bytes")))
            }
        }
    }

    fn cache(&self) -> Read<Option<&'static str>> {
        let Some(item) = self.0.get("kv_cache") else { return Ok(None) };
        let known = CACHE_TYPES.into_iter().find(|id| item.as_str().is_some_and(|text| text.eq_ignore_ascii_case(id)));
        let remedy = format!("write one of {}", CACHE_TYPES.join(", "));
        known.map(Some).ok_or_else(|| self.complain("kv_cache", "no runtime keeps its cache so".to_owned(), &remedy))
    }

    /// Keys that say nothing without another one.
    fn needs(&self, keys: &[&str], other: &str) -> Read<()> {
        match keys.iter().find(|key| self.0.contains_key(key)) {
            Some(key) if !self.0.contains_key(other) => {
                Err(self.complain(key, format!("\"{key}\" says nothing without \"{other}\""), &format!("add {other}")))
            }
            _ => Ok(()),
        }
    }

    fn slices(&self) -> Read<Vec<SliceMargin>> {
        let Some(item) = self.0.get("slice") else { return Ok(Vec::new()) };
        let usage = "write [[constraints.slice]] and below it match = \"…\" and max_loss = 0.02";
        let tables = item
            .as_array_of_tables()
            .ok_or_else(|| self.complain("slice", "slices are a list of tables".to_owned(), usage))?;
        tables.iter().map(|table| slice(table, usage)).collect()
    }
}

fn slice(table: &Table, usage: &str) -> Read<SliceMargin> {
    let complain = |span: Option<Range<usize>>, cause: &str| Complaint {
        span: span.or_else(|| table.span()),
        cause: cause.to_owned(),
        remedy: usage.to_owned(),
    };
    if let Some((key, item)) = table.iter().find(|(key, _)| !["match", "max_loss"].contains(key)) {
        return Err(complain(item.span(), &format!("there is no key \"{key}\" in a slice")));
    }
    let text = table.get("match").and_then(Item::as_str);
    let text = text.ok_or_else(|| complain(table.get("match").and_then(Item::span), "the slice has no \"match\""))?;
    let loss = table.get("max_loss");
    let max_loss = loss.and_then(|item| item.as_float().or_else(|| item.as_integer().map(|number| number as f64)));
    let max_loss =
        max_loss.ok_or_else(|| complain(loss.and_then(Item::span), "\"max_loss\" is no fraction from 0 to 1"))?;
    SliceMargin::new(text, max_loss).map_err(|why| complain(loss.and_then(Item::span), &why))
}

impl Constraints {
    /// True if nothing is asked.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Reads the section.
    pub(super) fn read(table: &dyn TableLike) -> Read<Self> {
        let reader = Reader(table);
        reader.needs(&["context", "kv_cache"], "max_memory")?;
        reader.needs(&["prompt_tokens", "output_tokens"], "max_request_seconds")?;
        let memory = |bytes: u64| -> Read<MemoryLimit> {
            let usual = MemoryLimit::new(bytes);
            let context = reader.count("context")?.unwrap_or(usual.context);
            Ok(MemoryLimit { context, cache: reader.cache()?.unwrap_or(usual.cache), ..usual })
        };
        let request = |seconds: f64| -> Read<RequestLimit> {
            let usual = RequestLimit::new(seconds);
            Ok(RequestLimit {
                seconds,
                prompt_tokens: reader.count("prompt_tokens")?.unwrap_or(usual.prompt_tokens),
                output_tokens: reader.count("output_tokens")?.unwrap_or(usual.output_tokens),
            })
        };
        Ok(Self {
            max_file_bytes: reader.size("max_file_size")?,
            max_memory: reader.size("max_memory")?.map(memory).transpose()?,
            min_decode_tokens_per_second: reader.number("min_decode_tokens_per_second")?,
            min_prefill_tokens_per_second: reader.number("min_prefill_tokens_per_second")?,
            max_request: reader.number("max_request_seconds")?.map(request).transpose()?,
            max_kld: reader.number("max_kld")?,
            slices: reader.slices()?,
        })
    }

    /// What a planner must keep within: sizes and times. KLD is what it makes small, so it is a
    /// limit of its own only where nothing else is; what slices lose cannot be predicted.
    pub fn limits(&self, config: Option<&ModelConfig>) -> Vec<Limit> {
        let memory = self.max_memory.map(|memory| Limit::Memory {
            bytes: memory.bytes,
            cache_bytes: memory.cache_bytes(config.map_or(0, cache_values)),
        });
        let request = self.max_request.map(|request| Limit::Request {
            seconds: request.seconds,
            prompt_tokens: request.prompt_tokens,
            output_tokens: request.output_tokens,
        });
        let mut limits: Vec<Limit> = self.max_file_bytes.map(Limit::FileBytes).into_iter().chain(memory).collect();
        limits.extend(self.min_decode_tokens_per_second.map(Limit::DecodeSpeed));
        limits.extend(self.min_prefill_tokens_per_second.map(Limit::PrefillSpeed));
        limits.extend(request);
        if limits.is_empty() {
            limits.extend(self.max_kld.map(Limit::Damage));
        }
        limits
    }

    /// The same as `gates.toml` for the finished candidate.
    pub fn to_gates(&self, config: Option<&ModelConfig>) -> String {
        let mut text = "# What the plan was made for; written from its [constraints].\n".to_owned();
        let mut gate = |metric: &str, lines: &str| {
            // Writing to a string cannot fail.
            let _ = write!(text, "\n[[gate]]\nmetric = \"{metric}\"\n{lines}");
        };
        if let Some(bytes) = self.max_file_bytes {
            gate("file_bytes", &format!("max = {bytes}             # {}\n", units::bytes(bytes)));
        }
        if let Some(memory) = self.max_memory {
            let cache = memory.cache_bytes(config.map_or(0, cache_values));
            let left = memory.bytes.saturating_sub(cache);
            let why = format!(
                "{} less a KV cache of {} for {} tokens in {}",
                units::bytes(memory.bytes),
                units::bytes(cache),
                memory.context,
                memory.cache
            );
            gate("weight_bytes", &format!("max = {left}             # {why}\n"));
        }
        if let Some(speed) = self.min_decode_tokens_per_second {
            gate("decode_tokens_per_second", &format!("min = {speed}\n"));
        }
        if let Some(speed) = self.min_prefill_tokens_per_second {
            gate("prefill_tokens_per_second", &format!("min = {speed}\n"));
        }
        if let Some(RequestLimit { seconds, prompt_tokens, output_tokens }) = self.max_request {
            let lines = format!("prompt_tokens = {prompt_tokens}\noutput_tokens = {output_tokens}\nmax = {seconds}\n");
            gate("request_seconds", &lines);
        }
        if let Some(kld) = self.max_kld {
            gate("kld_mean", &format!("max = {kld}\n"));
        }
        for SliceMargin { slice, max_loss } in &self.slices {
            gate("accuracy", &format!("slice = {}\nmax_loss = {max_loss}\n", toml_edit::Value::from(slice.as_str())));
        }
        text
    }

    /// Brings the section of a document to this; comments beside what stays are kept.
    fn write(&self, document: &mut DocumentMut) {
        if self.is_empty() {
            document.remove("constraints");
            return;
        }
        let item = document.entry("constraints").or_insert_with(|| Item::Table(Table::new()));
        let Some(table) = item.as_table_like_mut() else { return };
        let was = Self::read(table).unwrap_or_default();
        let mut put = |key: &str, is_same: bool, value: Option<toml_edit::Value>| match value {
            Some(_) if is_same && table.contains_key(key) => {}
            Some(value) => set_value(table, key, value),
            None => drop(table.remove(key)),
        };
        let whole = |count: usize| toml_edit::Value::from(i64::try_from(count).unwrap_or(i64::MAX));
        let (file, memory, request) = (self.max_file_bytes, self.max_memory, self.max_request);
        put("max_file_size", was.max_file_bytes == file, file.map(size_value));
        let old = was.max_memory;
        put("max_memory", old.map(|m| m.bytes) == memory.map(|m| m.bytes), memory.map(|m| size_value(m.bytes)));
        put("context", old.map(|m| m.context) == memory.map(|m| m.context), memory.map(|m| whole(m.context)));
        put("kv_cache", old.map(|m| m.cache) == memory.map(|m| m.cache), memory.map(|m| m.cache.into()));
        let (decode, prefill) = (self.min_decode_tokens_per_second, self.min_prefill_tokens_per_second);
        put("min_decode_tokens_per_second", was.min_decode_tokens_per_second == decode, decode.map(Into::into));
        put("min_prefill_tokens_per_second", was.min_prefill_tokens_per_second == prefill, prefill.map(Into::into));
        let old = was.max_request;
        put(
            "max_request_seconds",
            old.map(|r| r.seconds) == request.map(|r| r.seconds),
            request.map(|r| r.seconds.into()),
        );
        let (prompt, output) = (request.map(|r| r.prompt_tokens), request.map(|r| r.output_tokens));
        put("prompt_tokens", old.map(|r| r.prompt_tokens) == prompt, prompt.map(whole));
        put("output_tokens", old.map(|r| r.output_tokens) == output, output.map(whole));
        put("max_kld", was.max_kld == self.max_kld, self.max_kld.map(Into::into));
        self.write_slices(table);
    }

    fn write_slices(&self, table: &mut dyn TableLike) {
        if self.slices.is_empty() {
            table.remove("slice");
            return;
        }
        let item = table.entry("slice").or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()));
        let Some(tables) = item.as_array_of_tables_mut() else { return };
        while tables.len() > self.slices.len() {
            tables.remove(tables.len() - 1);
        }
        while tables.len() < self.slices.len() {
            tables.push(Table::new());
        }
        for (table, slice) in tables.iter_mut().zip(&self.slices) {
            if table.get("match").and_then(Item::as_str) != Some(&slice.slice) {
                set_value(table, "match", slice.slice.as_str());
            }
            if table.get("max_loss").and_then(Item::as_float) != Some(slice.max_loss) {
                set_value(table, "max_loss", slice.max_loss);
            }
        }
    }
}

impl Plan {
    /// What the result must keep to.
    pub fn constraints(&self) -> &Constraints {
        &self.constraints
    }

    /// Sets what the result must keep to; tensors are decided as before.
    pub fn set_constraints(&mut self, constraints: Constraints) {
        constraints.write(&mut self.document);
        self.constraints = constraints;
    }
}

/// Keys and values of one token over all layers.
pub fn cache_values(config: &ModelConfig) -> u64 {
    config.kv_bytes_per_token() / 4
}

/// A size as people write it, where a whole number of units says it exactly.
fn size_value(bytes: u64) -> toml_edit::Value {
    let unit = [(30, "GiB"), (20, "MiB"), (10, "KiB")].into_iter().find(|(shift, _)| bytes.is_multiple_of(1 << shift));
    match unit {
        Some((shift, name)) => format!("{}{name}", bytes >> shift).into(),
        None => i64::try_from(bytes).unwrap_or(i64::MAX).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::{fault, parse};

    const TEXT: &str = r#"version = 1
target = "gguf"

[constraints] # agreed on Monday
max_file_size = "2.5MiB" # fits the device
max_memory = "1GiB"
context = 2048
min_decode_tokens_per_second = 20
max_request_seconds = 2.5
prompt_tokens = 64
max_kld = 0.02

# Facts are what we sell.
[[constraints.slice]]
match = "facts/*"
max_loss = 0.02
"#;

    #[test]
    fn a_section_is_read_with_its_defaults() {
        let found = parse(TEXT).constraints().clone();
        assert_eq!(found.max_file_bytes, Some(5 << 19));
        assert_eq!(found.max_memory, Some(MemoryLimit { bytes: 1 << 30, context: 2048, cache: "f16" }));
        assert_eq!(found.min_decode_tokens_per_second, Some(20.0));
        let request = RequestLimit { seconds: 2.5, prompt_tokens: 64, output_tokens: 128 };
        assert_eq!(found.max_request, Some(request));
        assert_eq!(found.slices, [SliceMargin { slice: "facts/*".to_owned(), max_loss: 0.02 }]);
        assert!(parse("version = 1\n").constraints().is_empty());
    }

    #[test]
    fn an_edit_keeps_comments_and_the_words_of_what_it_does_not_change() {
        let mut plan = parse(TEXT);
        let mut next = plan.constraints().clone();
        next.max_kld = Some(0.05);
        next.max_request = None;
        next.min_prefill_tokens_per_second = Some(100.0);
        next.slices.push(SliceMargin { slice: "math/*".to_owned(), max_loss: 0.1 });
        plan.set_constraints(next.clone());
        let text = plan.to_toml();
        for kept in ["# agreed on Monday", "\"2.5MiB\" # fits the device", "# Facts are what we sell."] {
            assert!(text.contains(kept), "{kept}:\n{text}");
        }
        assert!(!text.contains("prompt_tokens") && !text.contains("max_request_seconds"), "{text}");
        assert_eq!(parse(&text).constraints(), &next, "{text}");
        plan.set_constraints(Constraints::default());
        assert!(!plan.to_toml().contains("constraints"), "{}", plan.to_toml());
    }

    #[test]
    fn sizes_are_written_so_that_they_are_read_alike() {
        for bytes in [1, 1023, 1024, 5 << 19, 3 << 30, (3 << 30) + 1] {
            let mut plan = parse("version = 1\n");
            plan.set_constraints(Constraints { max_file_bytes: Some(bytes), ..Constraints::default() });
            assert_eq!(parse(&plan.to_toml()).constraints().max_file_bytes, Some(bytes), "{}", plan.to_toml());
        }
    }

    #[test]
    fn nonsense_is_refused_with_its_line() {
        for (line, word) in [
            ("max_file_size = \"big\"", "no size"),
            ("max_kld = -1.0", "above zero"),
            ("context = 512", "without \"max_memory\""),
            ("prompt_tokens = 5", "max_request_seconds"),
            ("max_memory = \"1GiB\"\nkv_cache = \"q9\"", "one of f32"),
            ("speed = 3", "there is no key"),
            ("[[constraints.slice]]\nmatch = \"a\"\nmax_loss = 3.0", "fraction"),
            ("[[constraints.slice]]\nmax_loss = 0.1", "no \"match\""),
        ] {
            let text = format!("version = 1\n[constraints]\n{line}\n");
            let message = fault(Plan::parse(&text, None)).to_string();
            assert!(message.contains(word) && message.contains("line "), "{line}: {message}");
        }
    }

    #[test]
    fn memory_counts_keys_and_values_in_their_type() {
        let limit = MemoryLimit { bytes: 1 << 30, context: 100, cache: "q8_0" };
        assert_eq!(limit.cache_bytes(64), 64 * 100 * 34 / 32);
        assert_eq!(MemoryLimit { cache: "f32", ..limit }.cache_bytes(64), 64 * 100 * 4);
    }
}
