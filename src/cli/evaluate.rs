//! `lapidary evaluate`: text, tasks, size and speed of a model, and its distance from a baseline.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde::Serialize;

use super::PATH_HELP;
use super::output::{self, Table, margin, points, printable};
use super::session::{Answer, Failure, Loaded, Result, Session};
use crate::engine::comparison::stats;
use crate::engine::error::Result as EngineResult;
use crate::engine::evaluation::{Baseline, Evaluation, EvaluationOptions, evaluate};
use crate::engine::report::{AuditEntry, HashedFile, audit};
use crate::engine::scoring::chat::ChatTemplate;
use crate::engine::scoring::energy::EnergyMeter;
use crate::engine::scoring::{
    Convention, KeptOptions, SeedOptions, SpeedOptions, TaskSet, TextDistance, TextOptions, TextResult, TextSource,
    few_shot, top_k,
};
use crate::engine::units::{self, or_dash};

/// What models are measured on.
#[derive(Debug, Args)]
pub(super) struct Measure {
    /// Task items: JSONL, CSV or Parquet of MMLU, HellaSwag, ARC, PIQA, WinoGrande or GSM8K, or a folder [default for
    /// `demo`: its own]
    #[arg(long, value_name = "T.jsonl")]
    pub tasks: Option<PathBuf>,
    /// Put N worked examples of --examples in front of every prompt
    #[arg(long, value_name = "N", requires = "examples", value_parser = clap::value_parser!(u32).range(1..=64))]
    few_shot: Option<u32>,
    /// Where worked examples come from: other items than those that are scored
    #[arg(long, value_name = "T.jsonl", requires = "few_shot")]
    examples: Option<PathBuf>,
    /// Write every prompt as a user's turn of the model's chat template
    #[arg(long)]
    chat_template: bool,
    /// Write 50 items N times with different seeds at temperature 0.7 to see whether the model agrees with itself
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=100))]
    seeds: Option<u32>,
    /// Keep the baseline's predictions on the text in this folder, as its most probable tokens with the mass of all
    /// others, so that the next candidate need not run it; KLD is then a lower bound, shown with an upper one
    #[arg(long, value_name = "FOLDER")]
    keep_baseline: Option<PathBuf>,
    /// Most probable tokens of each position that --keep-baseline keeps; the vocabulary keeps everything
    #[arg(long, value_name = "K", requires = "keep_baseline", default_value_t = top_k::DEFAULT_K as u32, value_parser = clap::value_parser!(u32).range(1..))]
    top_k: u32,
    /// Keep finished items and windows in this folder and go on there after an interruption
    #[arg(long, value_name = "FOLDER")]
    resume: Option<PathBuf>,
    /// A text for perplexity, and KLD where there is a baseline [default for `demo`: its own]
    #[arg(long, value_name = "T.txt")]
    pub text: Option<PathBuf>,
    /// How the text is cut into windows; perplexities of different conventions cannot be compared
    #[arg(long, value_name = "CONVENTION", default_value = Convention::NonOverlapping.name(), value_parser = convention_parser())]
    perplexity: Convention,
    /// Tokens of a window [default: the model's context, at most 2048; 512 for llama.cpp]
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Score no more of the text than it takes for N tokens
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,
    /// Leave the measurement of prefill and decode speed out
    #[arg(long)]
    no_speed: bool,
    /// Power to estimate energy with, where no counter of the processor or a GPU can be read
    #[arg(long, value_name = "W", value_parser = super::bench::positive)]
    watts: Option<f64>,
    /// At most N items of each slice, evenly spread
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_items: Option<u32>,
}

/// What models are measured on, read.
pub(super) struct Material {
    pub tasks: Option<TaskSet>,
    pub text: Option<TextSource>,
    pub options: EvaluationOptions,
    with_chat_template: bool,
}

/// Draws the worked examples; the same ones for every model.
const EXAMPLE_SEED: u64 = 1234;

fn convention_parser() -> impl TypedValueParser<Value = Convention> {
    PossibleValuesParser::new(Convention::ALL.map(Convention::name))
        .try_map(|name| Convention::from_name(&name).ok_or("this convention is unknown"))
}

impl Measure {
    /// Reads tasks and text; those of the demo where it is among `paths` and nothing else was named.
    pub fn read(&self, session: &Session, paths: &[&Path]) -> Result<Material> {
        let pick = |given: &Option<PathBuf>, name: &str| match given {
            Some(path) => Ok(Some(path.clone())),
            None => session.demo_file(paths, name),
        };
        let (tasks, text) = (pick(&self.tasks, "tasks.jsonl")?, pick(&self.text, "evaluation.txt")?);
        if tasks.is_none() && text.is_none() {
            return Err(Failure::Usage("there is nothing to measure on: give --tasks, --text or both".to_owned()));
        }
        let mut tasks = tasks.map(|path| TaskSet::read(&path)).transpose()?;
        if let (Some(set), Some(count), Some(examples)) = (&tasks, self.few_shot, &self.examples) {
            tasks = Some(few_shot::with_examples(set, &TaskSet::read(examples)?, count as usize, EXAMPLE_SEED)?);
        }
        Ok(Material {
            tasks,
            with_chat_template: self.chat_template,
            text: text.map(|path| TextSource::read(&path)).transpose()?,
            options: EvaluationOptions {
                text: TextOptions { convention: self.perplexity, context: self.context, max_tokens: self.tokens },
                max_items_per_slice: self.max_items.map(|count| count as usize),
                journal: self.resume.clone(),
                kept: self.keep_baseline.clone().map(|folder| KeptOptions { folder, k: self.top_k as usize }),
                speed: (!self.no_speed).then(SpeedOptions::default),
                watts: self.watts,
                seeds: self.seeds.map(|seeds| SeedOptions { seeds: seeds as usize, ..SeedOptions::default() }),
                device: session.device()?.models_in_words(),
            },
        })
    }
}

impl Material {
    /// Turns prompts into turns of `model`'s chat template, where that was asked for; once for all models.
    pub fn apply_chat_template(&mut self, model: &Loaded) -> Result<()> {
        if !std::mem::take(&mut self.with_chat_template) {
            return Ok(());
        }
        let eos = model.tokenizer.eos.first().map(|&id| model.tokenizer.token_text(id)).unwrap_or_default();
        let Some(template) = ChatTemplate::of_checkpoint(&model.checkpoint, &eos)? else {
            return Err(Failure::Usage("the model has no chat template: leave --chat-template out".to_owned()));
        };
        self.tasks = self.tasks.as_ref().map(|tasks| template.apply(tasks)).transpose()?;
        Ok(())
    }

    /// What these items can detect, before anything runs: a row for all and for every slice.
    pub fn detectable(&self) -> Vec<Detectable> {
        let Some(tasks) = &self.tasks else { return Vec::new() };
        let sampled = self.options.max_items_per_slice.map(|count| tasks.sample(count));
        let items = &sampled.as_ref().unwrap_or(tasks).items;
        let mut counts: Vec<(String, usize)> = vec![("all".to_owned(), items.len())];
        counts.extend(items.slices().map(|slice| (slice.name(), slice.items)));
        counts.into_iter().map(|(slice, items)| Detectable::new(slice, items)).collect()
    }

    /// What an evaluation was asked to read, for the log; contents of models are hashed only on the way to a result.
    fn inputs(&self, model: &Loaded, baseline: Option<&Loaded>) -> Vec<HashedFile> {
        let file = |name: String, hash: &str| HashedFile { name, hash: hash.to_owned() };
        let models = std::iter::once(model).chain(baseline);
        let models = models
            .map(|one| file(format!("{} (header fingerprint)", one.checkpoint.name), &one.checkpoint.fingerprint));
        let tasks = self.tasks.as_ref().map(|tasks| file("tasks".to_owned(), &tasks.hash));
        let text = self.text.as_ref().map(|text| file("text".to_owned(), &text.hash));
        models.chain(tasks).chain(text).collect()
    }

    /// Measures a model, against a baseline if there is one; `known` is what was measured of that before.
    pub fn evaluate(
        &self,
        session: &Session,
        model: &Loaded,
        baseline: Option<&Loaded>,
        known: Option<&Evaluation>,
    ) -> Result<Evaluation> {
        let progress = &session.progress;
        let subject = model.subject(progress)?;
        let baseline = match baseline {
            Some(baseline) => Some(Baseline { subject: baseline.subject(progress)?, known }),
            None => None,
        };
        let (tasks, text) = (self.tasks.as_ref(), self.text.as_ref());
        Ok(evaluate(&subject, baseline.as_ref(), tasks, text, &self.options, progress)?)
    }
}

/// The smallest loss that so many items find with 80 % power, by the share of items that flip.
#[derive(Debug, Serialize)]
pub(super) struct Detectable {
    slice: String,
    items: usize,
    /// Null where even all flips one way would not be found.
    at_2_percent_flips: Option<f64>,
    at_5_percent_flips: Option<f64>,
    at_10_percent_flips: Option<f64>,
}

impl Detectable {
    fn new(slice: String, items: usize) -> Self {
        let at = |share| stats::detectable(items as f64, share);
        Self { slice, items, at_2_percent_flips: at(0.02), at_5_percent_flips: at(0.05), at_10_percent_flips: at(0.1) }
    }
}

fn detectable_text(rows: &[Detectable]) -> String {
    let mut table = Table::new(&["slice", ">items", ">2 % flip", ">5 % flip", ">10 % flip"]);
    let shown = |loss: Option<f64>| loss.map_or_else(|| "none".to_owned(), points);
    for row in rows {
        table.row([
            row.slice.clone(),
            row.items.to_string(),
            shown(row.at_2_percent_flips),
            shown(row.at_5_percent_flips),
            shown(row.at_10_percent_flips),
        ]);
    }
    format!(
        "smallest loss, in points, that these items find with 80 % power\n\n{}\nnone: not found even if every flip were a \
         loss\n",
        table.render()
    )
}

/// Measure perplexity, accuracy by slice, size and speed, and KLD against a baseline
#[derive(Debug, Args)]
pub(super) struct Evaluate {
    #[arg(value_name = "PATH", help = PATH_HELP)]
    path: PathBuf,
    #[command(flatten)]
    measure: Measure,
    /// The model that PATH was made from, measured on the same items
    #[arg(long, value_name = "PATH")]
    baseline: Option<PathBuf>,
    /// Write the evaluation to this file as JSON
    #[arg(short, long, value_name = "EVAL.json")]
    output: Option<PathBuf>,
    /// Only say what difference these items can detect, and measure nothing
    #[arg(long)]
    dry_run: bool,
    /// Add an entry to this audit log
    #[arg(long, value_name = "AUDIT.jsonl")]
    log: Option<PathBuf>,
}

impl Evaluate {
    pub fn run(&self, session: &Session) -> Result<Answer> {
        let started = Instant::now();
        let paths: Vec<&Path> =
            [Some(&self.path), self.baseline.as_ref()].into_iter().flatten().map(PathBuf::as_path).collect();
        let mut material = self.measure.read(session, &paths)?;
        if self.dry_run {
            let rows = material.detectable();
            return session.answer(&rows, || detectable_text(&rows));
        }
        let model = session.load(&self.path)?;
        let baseline = self.baseline.as_deref().map(|path| session.load(path)).transpose()?;
        output::check_target(self.output.as_deref(), &[&model.checkpoint])?;
        if let Some(baseline) = &baseline {
            output::check_target(self.output.as_deref(), &[&baseline.checkpoint])?;
        }
        material.apply_chat_template(&model)?;
        let meter = EnergyMeter::start(material.options.watts);
        let evaluation = material.evaluate(session, &model, baseline.as_ref(), None);
        let inputs = || material.inputs(&model, baseline.as_ref());
        let evaluation = session.logged(evaluation, self.log.as_deref(), "evaluate", started, inputs)?;
        let energy = meter.stop();
        if let Some(output) = &self.output {
            output::write_json(output, &evaluation)?;
        }
        if let Some(log) = &self.log {
            let mut entry = AuditEntry::of_evaluation(&evaluation, started.elapsed().as_secs_f64(), energy);
            entry.outputs = self.output.iter().map(|output| HashedFile::read(output)).collect::<EngineResult<_>>()?;
            entry.options.insert("convention".to_owned(), material.options.text.convention.name().to_owned());
            audit::append(log, entry)?;
        }
        session.answer(&evaluation, || {
            let mut text = text(&evaluation);
            if let Some(output) = &self.output {
                text.push_str(&format!("\nwritten to {}\n", output.display()));
            }
            text
        })
    }
}

fn text(evaluation: &Evaluation) -> String {
    let mut text = format!("{} ({} on {})\n\n", printable(&evaluation.model.name), evaluation.label, evaluation.device);
    text.push_str(&summary(evaluation));
    if let Some(own) = &evaluation.text
        && let Some(distance) = &own.distance
    {
        text.push_str("\nagainst the baseline, under llama.cpp's names\n");
        text.push_str(&distances(own, distance));
    }
    if !evaluation.slices.is_empty() {
        text.push('\n');
        text.push_str(&slices(evaluation));
    }
    if let Some(energy) = &evaluation.energy {
        text.push_str(&format!("\nenergy: {}\n", energy.energy.source.text()));
    }
    if let Some(conditions) = evaluation.conditions.as_ref().filter(|_| evaluation.speed.is_some()) {
        let (processor, level, threads) = (printable(&conditions.processor), &conditions.level, conditions.threads);
        text.push_str(&format!("\nmeasured on {processor}, {level} kernels, {threads} threads"));
        if let Some(cores) = conditions.other_cores {
            text.push_str(&format!("; other programs kept {cores:.1} cores busy while speed was measured"));
        }
        text.push('\n');
    }
    text.push_str("\n± and [ ] are 95 % intervals.");
    if evaluation.baseline.is_some() {
        text.push_str(" `lapidary compare` says which differences are more than chance.");
    }
    text.push('\n');
    text
}

/// Figures of the model as rows, those of its baseline beside them.
fn summary(evaluation: &Evaluation) -> String {
    let baseline = evaluation.baseline.as_deref();
    let mut table =
        if baseline.is_some() { Table::new(&["", ">model", ">baseline"]) } else { Table::new(&["", ">model"]) };
    let mut add = |name: &str, value: &dyn Fn(&Evaluation) -> Option<String>| {
        if let Some(own) = value(evaluation) {
            let other = baseline.map(|baseline| or_dash(value(baseline)));
            table.row([Some(name.to_owned()), Some(own), other].into_iter().flatten());
        }
    };
    add("on disk", &|one| Some(units::bytes(one.size.file_bytes)));
    add("weights in memory", &|one| Some(units::bytes(one.size.resident_bytes)));
    add("bits per weight", &|one| Some(format!("{:.2}", one.size.bits_per_weight)));
    if let Some(text) = &evaluation.text {
        let name = format!("perplexity ({}, window {}, {} tokens)", text.convention.name(), text.context, text.tokens);
        add(&name, &|one| {
            one.text.as_ref().map(|text| format!("{:.4} ± {:.4}", text.perplexity, margin(text.perplexity_stderr)))
        });
    }
    let distance = |one: &Evaluation| one.text.as_ref().and_then(|text| text.distance.clone());
    add("KLD from the baseline (nats)", &|one| {
        let distance = distance(one)?;
        let around = units::significant(margin(distance.kld_mean_stderr));
        Some(format!("{} ± {around}", units::significant(distance.kld_mean)))
    });
    add("KLD at most (kept predictions)", &|one| {
        distance(one)?.kept.map(|kept| {
            let tail = points(kept.tail_mass_mean);
            format!("{} (top {}, tail {tail} %)", units::significant(kept.kld_mean_at_most), kept.k)
        })
    });
    add("same most probable token (%)", &|one| {
        let distance = distance(one)?;
        let around = points(margin(distance.same_top_fraction_stderr));
        Some(format!("{} ± {around}", points(distance.same_top_fraction)))
    });
    add("text read (tokens/s)", &|one| one.text_tokens_per_second.map(|rate| format!("{rate:.0}")));
    add("energy a token (J)", &|one| one.energy.map(|energy| units::significant(energy.joules_per_token)));
    add("energy a correct answer (J)", &|one| {
        one.energy.and_then(|energy| energy.joules_per_correct_answer).map(units::significant)
    });
    add("bits per byte", &|one| one.text.as_ref().map(|text| format!("{:.4}", text.bits_per_byte)));
    add("reverse KLD (nats)", &|one| distance(one).map(|distance| units::significant(distance.reverse_kld_mean)));
    add("predicted acceptance as a draft (%)", &|one| distance(one).map(|distance| points(distance.acceptance_mean)));
    add("expected calibration error (points)", &|one| one.reliability.as_ref().map(|one| points(one.ece)));
    add("texts that do not end (%)", &|one| {
        one.written.as_ref().map(|written| points(written.end_of_text_failure_fraction))
    });
    add("repeated 4-grams (%)", &|one| one.written.as_ref().map(|written| points(written.repeated_fraction)));
    add("agreement over seeds (%)", &|one| one.seeds.as_ref().map(|seeds| points(seeds.agreement)));
    add("KV cache a token", &|one| Some(one.size.kv_bytes_per_token).filter(|&bytes| bytes > 0).map(units::bytes));
    add("accuracy over all items (%)", &|one| one.accuracy().map(points));
    add("prefill (tokens/s)", &|one| one.speed.as_ref().map(|speed| format!("{:.0}", speed.prefill_tokens_per_second)));
    add("decode (tokens/s)", &|one| one.speed.as_ref().map(|speed| format!("{:.1}", speed.decode_tokens_per_second)));
    table.render()
}

/// Every figure of `llama-perplexity --kl-divergence` under its name.
fn distances(text: &TextResult, distance: &TextDistance) -> String {
    let mut table = Table::new(&["", ">value", ">± standard error"]);
    for (name, value, error) in distance.llama_cpp_figures((text.perplexity, text.perplexity_stderr)) {
        table.row([
            name,
            units::minus(&format!("{value:.6}")),
            error.map_or_else(String::new, |error| format!("{error:.6}")),
        ]);
    }
    table.render()
}

fn slices(evaluation: &Evaluation) -> String {
    let baseline = evaluation.baseline.as_deref();
    let mut titles = vec!["task", "slice", "metric", ">items", ">accuracy %", ">[95 %]"];
    titles.extend(baseline.map(|_| ">baseline %"));
    let mut table = Table::new(&titles);
    for slice in &evaluation.slices {
        let (low, high) = stats::wilson(slice.accuracy * slice.n as f64, slice.n);
        let mut row = vec![
            slice.task.clone(),
            slice.slice.clone(),
            slice.metric.clone(),
            slice.n.to_string(),
            points(slice.accuracy),
            format!("[{}, {}]", points(low), points(high)),
        ];
        row.extend(baseline.map(|baseline| {
            let key = (&slice.task, &slice.slice, &slice.metric);
            let same = baseline.slices.iter().find(|other| (&other.task, &other.slice, &other.metric) == key);
            or_dash(same.map(|other| points(other.accuracy)))
        }));
        table.row(row);
    }
    table.render()
}
