//! A Hugging Face model card whose every figure comes from the evaluation it names.
//!
//! The hub knows four relations to a base model: adapter, merge, quantized and finetune. There is none for
//! pruned or distilled models: those are `finetune` with a tag that says what was done.

use super::{ReportInput, Reported, figures, points, spent};
use crate::units;

/// What only the user knows, for the card's metadata; what is not given is left out or marked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CardOptions {
    /// The hub's id of the base model: `meta-llama/Llama-3.1-8B`.
    pub base_model: Option<String>,
    pub license: Option<String>,
    pub languages: Vec<String>,
    /// `transformers`, `gguf` …
    pub library: Option<String>,
    pub pipeline: Option<String>,
    pub tags: Vec<String>,
    /// True where weights were trained, masked or removed, and not only stored in fewer bits. A model with fewer weights
    /// than its original is one of these whatever stands here.
    pub is_pruned_or_trained: bool,
}

/// A text as a YAML scalar.
fn yaml(text: &str) -> String {
    // JSON's strings are YAML's.
    serde_json::Value::String(text.to_owned()).to_string()
}

fn list(out: &mut String, key: &str, values: &[String]) {
    if !values.is_empty() {
        out.push_str(&format!("{key}:\n"));
        values.iter().for_each(|value| out.push_str(&format!("- {}\n", yaml(value))));
    }
}

/// The card of one candidate, as `README.md`.
pub(super) fn model_card(input: &ReportInput, reported: &Reported) -> String {
    let (options, comparison) = (&input.card, &reported.comparison);
    let has_fewer_weights = reported.evaluation.size.weight_count < input.baseline.size.weight_count;
    let is_finetune = options.is_pruned_or_trained || has_fewer_weights;
    let mut out = "---\n".to_owned();
    match &options.base_model {
        Some(base) => {
            let relation = if is_finetune { "finetune" } else { "quantized" };
            out.push_str(&format!("base_model: {}\nbase_model_relation: {relation}\n", yaml(base)));
        }
        None => out.push_str("# base_model: the hub's id of the original\n# base_model_relation: quantized\n"),
    }
    match &options.license {
        Some(license) => out.push_str(&format!("license: {}\n", yaml(license))),
        None => out.push_str("# license: the original's licence\n"),
    }
    list(&mut out, "language", &options.languages);
    if let Some(library) = &options.library {
        out.push_str(&format!("library_name: {}\n", yaml(library)));
    }
    out.push_str(&format!("pipeline_tag: {}\n", yaml(options.pipeline.as_deref().unwrap_or("text-generation"))));
    let mut tags = vec!["lapidary".to_owned(), if is_finetune { "pruned" } else { "quantized" }.to_owned()];
    tags.extend(options.tags.iter().cloned());
    tags.dedup();
    list(&mut out, "tags", &tags);
    let metrics = [("perplexity", comparison.text.is_some()), ("accuracy", comparison.overall.is_some())];
    let metrics: Vec<String> = metrics.iter().filter(|(_, known)| *known).map(|(name, _)| (*name).to_owned()).collect();
    list(&mut out, "metrics", &metrics);
    out.push_str("---\n\n");

    let mut body = super::Document { title: comparison.candidate.name.clone(), blocks: Vec::new() };
    body.text(comparison.sentence.clone());
    body.chapter("What it was made from");
    let mut parent = super::Table::new(&["", "original", "this model"]);
    let (base, own) = (&input.baseline, &reported.evaluation);
    parent.row(["name", &base.model.name, &own.model.name]);
    parent.row(["content hash (BLAKE3)", &base.model.id, &own.model.id]);
    parent.row(["on disk", &units::bytes(base.size.file_bytes), &units::bytes(own.size.file_bytes)]);
    let bits = [base, own].map(|one| format!("{:.3}", one.size.bits_per_weight));
    parent.row(["bits per weight", &bits[0], &bits[1]]);
    let memory = [base, own].map(|one| units::bytes(one.size.resident_bytes));
    parent.row(["weights in memory", &memory[0], &memory[1]]);
    let cache = [base, own].map(|one| units::bytes(one.size.kv_bytes_per_token));
    if base.size.kv_bytes_per_token > 0 {
        parent.row(["KV cache a token (f32)", &cache[0], &cache[1]]);
    }
    body.table(parent);
    body.chapter("What changed");
    let regressions = figures::known_regressions(comparison);
    if regressions.is_empty() {
        body.text("No slice lost more than chance explains (exact McNemar, Holm over slices).");
    } else {
        body.text("Known regressions:");
        body.blocks.push(super::Block::Bullets(regressions));
    }
    if let Some(overall) = &comparison.overall {
        body.text(format!(
            "Accuracy {} % on {} items, {} points against the original ({} to {}, 95 %, paired).",
            points(overall.candidate_accuracy),
            overall.n,
            points(overall.difference),
            points(overall.difference_interval[0]),
            points(overall.difference_interval[1]),
        ));
    }
    body.table(figures::slices(&comparison.slices));
    if let Some(text) = &comparison.text {
        body.table(figures::text(text));
    }
    if !comparison.gates.is_empty() {
        body.chapter("Gates");
        body.table(figures::gates(comparison));
    }
    body.chapter("How to make it again");
    let mut data = super::Table::new(&["file", "BLAKE3"]);
    for source in &input.sources {
        data.row([source.what.clone(), source.hash.clone()]);
    }
    body.table(data);
    for source in input.sources.iter().filter(|source| source.what == "plan") {
        if let Some(plan) = &source.text {
            body.blocks.push(super::Block::Code(plan.clone()));
        }
    }
    body.text(match &own.conditions {
        Some(conditions) => format!(
            "Measured by Lapidary {} on {} ({}), {} threads. Evaluation {}.",
            own.engine, conditions.system, conditions.processor, conditions.threads, own.key
        ),
        None => format!("Measured by Lapidary {}. Evaluation {}.", own.engine, own.key),
    });
    let spent = spent::spent(&input.log);
    if !spent.is_empty() {
        body.blocks.push(super::Block::Bullets(spent));
    }
    out.push_str(&body.to_markdown());
    out
}
