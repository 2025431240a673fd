//! Named limits on a comparison, from `gates.toml`, with a verdict each: pass, fail or undecided.
//!
//! ```toml
//! [[gate]]
//! metric = "accuracy"
//! slice = "facts/*"     # a glob on slice or task/slice; "*" judges each; none judges all items together
//! max_loss = 0.02       # a margin on the paired difference, as a fraction
//!
//! [[gate]]
//! metric = "kld_mean"
//! max = 0.05            # a limit in the metric's own unit
//!
//! [[gate]]
//! metric = "request_seconds"   # at the speeds that were measured
//! prompt_tokens = 512
//! output_tokens = 128
//! max = 2.5
//! ```
//!
//! `max_loss` is a test of non-inferiority: it passes where the whole interval lies above the
//! margin and fails where the whole interval lies below it. In between, more items are needed, and
//! undecided is not pass. `min` and `max` judge the whole interval too, of figures that have one, and
//! otherwise the measured value.
//!
//! A gate on `"*"` is not corrected for the number of slices. It passes as a whole only if every slice
//! does: an intersection-union test, whose chance to pass wrongly is at most that of its worst slice
//! (Berger 1982), so that Holm's correction would only make it more lenient.

use std::ops::Range;
use std::path::{Path, PathBuf};

use globset::{Glob, GlobMatcher};
use serde::{Deserialize, Serialize};
use toml_edit::{Document, Item, Table};

use super::gate_loss::Loss;
use super::gate_value::Value;
use super::stats::items_to_narrow;
use super::{Comparison, Paired};
use crate::error::{Error, Fault, Result, Stage};
use crate::units;

/// Largest gates file.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Metrics that a gate may name, those by slice first.
pub const METRICS: [&str; 38] = [
    "accuracy",
    "accuracy_norm",
    "accuracy_bytes",
    "flip_fraction",
    "right_to_wrong_fraction",
    "refusal_fraction",
    "end_of_text_failure_fraction",
    "kld_mean",
    "kld_median",
    "kld_p99",
    "kld_p999",
    "kld_max",
    "reverse_kld_mean",
    "same_top_fraction",
    "acceptance_mean",
    "delta_p_rms",
    "perplexity",
    "perplexity_ratio",
    "ece",
    "brier",
    "repeated_fraction",
    "looping_fraction",
    "identical_text_fraction",
    "bits_per_weight",
    "file_bytes",
    "weight_bytes",
    "resident_bytes",
    "size_ratio",
    "decode_speed_ratio",
    "prefill_speed_ratio",
    "decode_tokens_per_second",
    "prefill_tokens_per_second",
    "request_seconds",
    "ttft_secs",
    "tpot_secs",
    "kld_p90",
    "kld_p95",
    "worst_slice_difference",
];

/// The first of [`METRICS`] are known for every slice.
const SLICED: usize = 7;
/// Metrics of written texts.
const OF_TEXTS: [&str; 3] = ["end_of_text_failure_fraction", "looping_fraction", "identical_text_fraction"];
/// Metrics whose paired difference has an interval.
const WITH_LOSS: [&str; 4] = ["accuracy", "accuracy_norm", "accuracy_bytes", "perplexity"];

/// The answer of a gate; in the order of severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Pass,
    Undecided,
    Fail,
}

/// One limit.
#[derive(Clone, Debug)]
pub struct Gate {
    /// Line in the file, from 1.
    pub line: usize,
    /// One of [`METRICS`].
    pub metric: String,
    /// A glob on slices, each of which is judged by itself; `None` for all items together.
    pub slice: Option<String>,
    /// Largest loss on the paired difference, as a fraction.
    pub max_loss: Option<f64>,
    pub min: Option<f64>,
    pub max: Option<f64>,
    /// Tokens read and tokens written, of `request_seconds`.
    pub request_tokens: [usize; 2],
    matcher: Option<GlobMatcher>,
}

/// Tokens of a request unless the gate says otherwise: llama-bench's pp512 and tg128.
const REQUEST_TOKENS: [usize; 2] = [512, 128];

/// The verdict of one gate on one slice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GateResult {
    pub metric: String,
    /// `task/slice`, or the glob where nothing matched it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slice: Option<String>,
    /// The limit as it stands in the file: `max_loss = 0.02`.
    pub limit: String,
    /// Line of the gate in its file.
    pub line: usize,
    /// The measured value, or the paired difference for `max_loss`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<f64>,
    /// 95 % interval of the estimate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<[f64; 2]>,
    /// Items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<usize>,
    /// How far what is judged lies within the limit, as a share of the limit; negative beyond it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slack: Option<f64>,
    /// True for the gate that leaves least room: the first that a smaller model would fail.
    #[serde(default)]
    pub is_binding: bool,
    pub verdict: Verdict,
    /// Why, in words.
    pub reason: String,
}

/// All gates of a file.
#[derive(Clone, Debug, Default)]
pub struct GateSet {
    pub path: PathBuf,
    pub gates: Vec<Gate>,
}

impl GateSet {
    /// Reads and checks a gates file.
    pub fn read(path: &Path) -> Result<Self> {
        let length = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
        if length > MAX_FILE_BYTES {
            return Err(Fault::new(Stage::Comparison, format!("the gates file has {length} bytes"))
                .fix("give a TOML file with [[gate]] tables")
                .file(path)
                .into());
        }
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let text = String::from_utf8(bytes).map_err(|_| {
            Fault::new(Stage::Comparison, "the gates file is not UTF-8").fix("save it as UTF-8").file(path)
        })?;
        Self::parse(&text, path)
    }

    /// Checks a gates file's text; `path` is for messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let line_of = |span: Option<Range<usize>>| {
            span.map_or(1, |span| 1 + text.bytes().take(span.start).filter(|&byte| byte == b'\n').count())
        };
        let located = |line: usize, fault: Fault| Error::from(fault.at(format!("line {line}")).file(path));
        let document = Document::parse(text).map_err(|err| {
            let cause = err.message().lines().next().unwrap_or("not TOML").to_owned();
            located(line_of(err.span()), Fault::new(Stage::Comparison, cause).fix("write TOML with [[gate]] tables"))
        })?;
        let mut gates = Vec::new();
        for (key, item) in document.as_table() {
            let line = line_of(document.as_table().key(key).and_then(toml_edit::Key::span));
            let tables = match (key, item) {
                ("gate", Item::ArrayOfTables(tables)) => tables,
                _ => {
                    return Err(located(
                        line,
                        Fault::new(Stage::Comparison, format!("`{key}` is not known here"))
                            .fix("the file holds [[gate]] tables only"),
                    ));
                }
            };
            for table in tables {
                gates.push(
                    gate_of(table, line_of(table.span()), &line_of).map_err(|(line, fault)| located(line, fault))?,
                );
            }
        }
        if gates.is_empty() {
            return Err(Fault::new(Stage::Comparison, "the file has no gates")
                .fix("add a [[gate]] with metric and max_loss, min or max")
                .file(path)
                .into());
        }
        Ok(Self { path: path.to_owned(), gates })
    }

    /// Judges a comparison; a gate on slices gives a result for every slice that it names.
    pub fn judge(&self, comparison: &Comparison) -> Vec<GateResult> {
        let mut results: Vec<GateResult> = self.gates.iter().flat_map(|gate| gate.judge(comparison)).collect();
        let slack = |result: &GateResult| result.slack.unwrap_or(f64::INFINITY);
        let least = results.iter().map(slack).fold(f64::INFINITY, f64::min);
        if least.is_finite() {
            results.iter_mut().for_each(|result| result.is_binding = slack(result) == least);
        }
        results
    }
}

/// Reads one `[[gate]]`; errors carry their line.
fn gate_of(
    table: &Table,
    table_line: usize,
    line_of: &dyn Fn(Option<Range<usize>>) -> usize,
) -> std::result::Result<Gate, (usize, Fault)> {
    let mut gate = Gate {
        line: table_line,
        metric: String::new(),
        slice: None,
        max_loss: None,
        min: None,
        max: None,
        request_tokens: REQUEST_TOKENS,
        matcher: None,
    };
    let mut has_tokens = false;
    for (key, item) in table {
        let line = line_of(table.key(key).and_then(toml_edit::Key::span));
        let fail = |cause: String, remedy: String| (line, Fault::new(Stage::Comparison, cause).fix(remedy));
        let text = || {
            item.as_str()
                .map(str::to_owned)
                .ok_or_else(|| fail(format!("`{key}` is not a string"), "put it in quotes".to_owned()))
        };
        let number = || {
            item.as_float()
                .or_else(|| item.as_integer().map(|value| value as f64))
                .filter(|value| value.is_finite())
                .ok_or_else(|| fail(format!("`{key}` is not a number"), "write a number without quotes".to_owned()))
        };
        match key {
            "metric" => {
                gate.metric = text()?;
                if !METRICS.contains(&gate.metric.as_str()) {
                    return Err(fail(
                        format!("the metric {:?} is unknown", gate.metric),
                        format!("use one of {}", METRICS.join(", ")),
                    ));
                }
            }
            "slice" => {
                let pattern = text()?;
                let glob = Glob::new(&pattern).map_err(|err| {
                    fail(format!("{pattern:?} is not a glob: {}", err.kind()), "use * and ?".to_owned())
                })?;
                gate.matcher = Some(glob.compile_matcher());
                gate.slice = Some(pattern);
            }
            "max_loss" => {
                let value = number()?;
                if !(0.0..=1.0).contains(&value) {
                    return Err(fail(
                        format!("`max_loss` is {value}"),
                        "write a fraction from 0 to 1: 0.02 is two points".to_owned(),
                    ));
                }
                gate.max_loss = Some(value);
            }
            "min" => gate.min = Some(number()?),
            "max" => gate.max = Some(number()?),
            "prompt_tokens" | "output_tokens" => {
                let count = item.as_integer().and_then(|count| usize::try_from(count).ok());
                let count = count.ok_or_else(|| {
                    fail(format!("`{key}` is no number of tokens"), "write a whole number".to_owned())
                })?;
                gate.request_tokens[usize::from(key == "output_tokens")] = count;
                has_tokens = true;
            }
            _ => {
                return Err(fail(
                    format!("`{key}` is not a key of a gate"),
                    "use metric, slice, max_loss, min, max, prompt_tokens and output_tokens".to_owned(),
                ));
            }
        }
    }
    let fail = |cause: &str, remedy: String| Err((table_line, Fault::new(Stage::Comparison, cause).fix(remedy)));
    if gate.metric.is_empty() {
        return fail("the gate has no metric", format!("add metric = \"…\", one of {}", METRICS.join(", ")));
    }
    if has_tokens && gate.metric != "request_seconds" {
        return fail("this metric counts no tokens", "leave prompt_tokens and output_tokens out".to_owned());
    }
    if gate.max_loss.is_some() && (gate.min.is_some() || gate.max.is_some()) {
        return fail("max_loss stands beside min or max", "write two gates".to_owned());
    }
    if gate.max_loss.is_none() && gate.min.is_none() && gate.max.is_none() {
        return fail("the gate has no limit", "add max_loss, min or max".to_owned());
    }
    if gate.max_loss.is_some() && !WITH_LOSS.contains(&gate.metric.as_str()) {
        return fail(
            "max_loss needs a paired difference, which this metric does not have",
            format!("use it with {}, or write min or max", WITH_LOSS.join(" or ")),
        );
    }
    if gate.slice.is_some() && !METRICS[..SLICED].contains(&gate.metric.as_str()) {
        return fail(
            "this metric is not known by slice",
            format!("leave slice out, or use {}", METRICS[..SLICED].join(" or ")),
        );
    }
    Ok(gate)
}

impl Gate {
    /// The limit as it stands in the file.
    fn limit(&self) -> String {
        let limits = [("max_loss", self.max_loss), ("min", self.min), ("max", self.max)];
        let parts: Vec<String> =
            limits.iter().filter_map(|(key, value)| value.map(|value| format!("{key} = {value}"))).collect();
        parts.join(", ")
    }

    fn judge(&self, comparison: &Comparison) -> Vec<GateResult> {
        let Some(matcher) = &self.matcher else {
            return vec![self.judge_one(None, comparison.overall.as_ref(), comparison)];
        };
        let mut results: Vec<GateResult> = comparison
            .slices
            .iter()
            .filter(|slice| matcher.is_match(&slice.slice) || matcher.is_match(slice.name()))
            .map(|slice| self.judge_one(Some(slice.name()), Some(&slice.paired), comparison))
            .collect();
        if results.is_empty() {
            let reason = "no slice has this name".to_owned();
            results.push(self.result(self.slice.clone(), None, None, None, Verdict::Undecided, reason));
        }
        results
    }

    fn result(
        &self,
        slice: Option<String>,
        estimate: Option<f64>,
        interval: Option<[f64; 2]>,
        n: Option<usize>,
        verdict: Verdict,
        reason: String,
    ) -> GateResult {
        GateResult {
            metric: self.metric.clone(),
            slice,
            limit: self.limit(),
            line: self.line,
            estimate,
            interval,
            n,
            slack: self.slack(estimate, interval),
            is_binding: false,
            verdict,
            reason,
        }
    }

    /// Room between what is judged and the nearest limit, as a share of that limit.
    fn slack(&self, estimate: Option<f64>, interval: Option<[f64; 2]>) -> Option<f64> {
        let share = |room: f64, limit: f64| room / limit.abs().max(1e-9);
        if let Some(margin) = self.max_loss {
            return interval.map(|[low, _]| share(low + margin, margin.max(1e-3)));
        }
        let [low, high] = interval.or(estimate.map(|value| [value, value]))?;
        let rooms = [self.min.map(|min| share(low - min, min)), self.max.map(|max| share(max - high, max))];
        rooms.into_iter().flatten().min_by(f64::total_cmp)
    }

    fn judge_one(&self, slice: Option<String>, paired: Option<&Paired>, comparison: &Comparison) -> GateResult {
        match self.max_loss {
            Some(margin) => self.judge_loss(slice, paired, comparison, margin),
            None => self.judge_value(slice, paired, comparison),
        }
    }

    /// Non-inferiority: the interval of the difference against a margin.
    fn judge_loss(
        &self,
        slice: Option<String>,
        paired: Option<&Paired>,
        comparison: &Comparison,
        margin: f64,
    ) -> GateResult {
        let Some(loss) = Loss::of(&self.metric, paired, comparison) else {
            return self.unmeasured(slice);
        };
        let Loss { difference, low, high, n, .. } = loss;
        let points = |value: f64| units::minus(&format!("{:.2} points", value * 100.0));
        let (verdict, reason) = if low >= -margin {
            (Verdict::Pass, format!("the loss is at most {} with 95 % confidence", points((-low).max(0.0))))
        } else if high < -margin {
            (Verdict::Fail, format!("the loss is at least {} with 95 % confidence", points(-high)))
        } else {
            let reason = format!(
                "the difference lies between {} and {}, the margin at {}: {}",
                points(low),
                points(high),
                points(-margin),
                loss.advice(margin)
            );
            (Verdict::Undecided, reason)
        };
        self.result(slice, Some(difference), Some([low, high]), Some(n), verdict, reason)
    }

    /// The measured value, or all of its interval, against hard limits.
    fn judge_value(&self, slice: Option<String>, paired: Option<&Paired>, comparison: &Comparison) -> GateResult {
        let Some(Value { estimate, interval, n, bounds }) = Value::of(self, slice.is_some(), paired, comparison) else {
            return self.unmeasured(slice);
        };
        let [low, high] = interval.unwrap_or([estimate; 2]);
        let (low, high) = (low.min(bounds[0]), high.max(bounds[1]));
        let around = || interval.map_or_else(String::new, |[low, high]| format!(" ({low:.6} to {high:.6})"));
        let (verdict, reason) = match (self.min, self.max) {
            (Some(min), _) if high < min => (Verdict::Fail, format!("{estimate:.6}{} is less than {min}", around())),
            (_, Some(max)) if low > max => (Verdict::Fail, format!("{estimate:.6}{} is more than {max}", around())),
            (min, max) if min.is_some_and(|min| low < min) || max.is_some_and(|max| high > max) => {
                let reason = if bounds[0] < bounds[1] {
                    format!(
                        "{estimate:.6} comes from kept predictions of the baseline, the exact value lies between                          {low:.6} and {high:.6}: evaluate without kept predictions, or keep more"
                    )
                } else {
                    let advice = self.more(estimate, [low, high], n);
                    format!("the limit lies within the interval, {low:.6} to {high:.6}: {advice}")
                };
                (Verdict::Undecided, reason)
            }
            _ => (Verdict::Pass, format!("{estimate:.6}{} is within the limit", around())),
        };
        self.result(slice, Some(estimate), interval, n, verdict, reason)
    }

    /// What would decide between a limit and an interval that holds it.
    fn more(&self, estimate: f64, [low, high]: [f64; 2], n: Option<usize>) -> String {
        let reach = |limit: f64| {
            let half = if limit < estimate { estimate - low } else { high - estimate };
            items_to_narrow(n? as f64, half, (estimate - limit).abs())
        };
        let within = |limit: &f64| low <= *limit && *limit <= high;
        let needed = [self.min, self.max].into_iter().flatten().filter(within).filter_map(reach).max();
        match (needed, n) {
            (Some(needed), _) if OF_TEXTS.contains(&self.metric.as_str()) => {
                format!("about {needed} texts are needed")
            }
            (Some(needed), _) => format!("about {needed} items are needed"),
            (None, Some(_)) => "the value is as good as the limit, which no number of items tells apart".to_owned(),
            (None, None) => "more of the same measurement would narrow it".to_owned(),
        }
    }

    fn unmeasured(&self, slice: Option<String>) -> GateResult {
        let reason = format!("{} was not measured", self.metric);
        self.result(slice, None, None, None, Verdict::Undecided, reason)
    }
}
