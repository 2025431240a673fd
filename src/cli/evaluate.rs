//! `lapidary evaluate`: text, tasks, size and speed of a model, and its distance from a baseline.

use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::PATH_HELP;
use super::output::{self, Table, margin, or_dash, points, printable};
use super::session::{Answer, Failure, Loaded, Result, Session, to_json};
use crate::engine::comparison::stats;
use crate::engine::evaluation::{Baseline, Evaluation, EvaluationOptions, evaluate};
use crate::engine::scoring::{Convention, TaskSet, TextOptions, TextSource};
use crate::engine::units;

/// What models are measured on.
#[derive(Debug, Args)]
pub(super) struct Measure {
    /// Task items, one JSON object a line [default for `demo`: its own]
    #[arg(long, value_name = "T.jsonl")]
    pub tasks: Option<PathBuf>,
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
    /// At most N items of each slice, evenly spread
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_items: Option<u32>,
}

/// What models are measured on, read.
pub(super) struct Material {
    pub tasks: Option<TaskSet>,
    pub text: Option<TextSource>,
    pub options: EvaluationOptions,
}

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
        Ok(Material {
            tasks: tasks.map(|path| TaskSet::read(&path)).transpose()?,
            text: text.map(|path| TextSource::read(&path)).transpose()?,
            options: EvaluationOptions {
                text: TextOptions { convention: self.perplexity, context: self.context, max_tokens: self.tokens },
                max_items_per_slice: self.max_items.map(|count| count as usize),
                ..EvaluationOptions::default()
            },
        })
    }
}

impl Material {
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
}

impl Evaluate {
    pub fn run(&self, session: &Session) -> Result<Answer> {
        let paths: Vec<&Path> =
            [Some(&self.path), self.baseline.as_ref()].into_iter().flatten().map(PathBuf::as_path).collect();
        let material = self.measure.read(session, &paths)?;
        let model = session.load(&self.path)?;
        let baseline = self.baseline.as_deref().map(|path| session.load(path)).transpose()?;
        output::check_target(self.output.as_deref(), &[&model.checkpoint])?;
        if let Some(baseline) = &baseline {
            output::check_target(self.output.as_deref(), &[&baseline.checkpoint])?;
        }
        let evaluation = material.evaluate(session, &model, baseline.as_ref(), None)?;
        if let Some(output) = &self.output {
            output::write_file(output, &to_json(&evaluation)?)?;
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
    if !evaluation.slices.is_empty() {
        text.push('\n');
        text.push_str(&slices(evaluation));
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
    add("same most probable token (%)", &|one| {
        let distance = distance(one)?;
        let around = points(margin(distance.same_top_fraction_stderr));
        Some(format!("{} ± {around}", points(distance.same_top_fraction)))
    });
    add("accuracy over all items (%)", &|one| one.accuracy().map(points));
    add("prefill (tokens/s)", &|one| one.speed.as_ref().map(|speed| format!("{:.0}", speed.prefill_tokens_per_second)));
    add("decode (tokens/s)", &|one| one.speed.as_ref().map(|speed| format!("{:.1}", speed.decode_tokens_per_second)));
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
