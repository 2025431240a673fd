//! `lapidary sensitivity`: how much every tensor minds every format, and every layer or head being
//! taken away, under one metric.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use clap::builder::PossibleValuesParser;

use super::PATH_HELP;
use super::output::{self, Table};
use super::session::{Answer, Failure, Loaded, Result, Session, to_json};
use crate::engine::calibration::{Documents, Importance};
use crate::engine::checkpoint::ModelConfig;
use crate::engine::error::Error;
use crate::engine::format;
use crate::engine::model::Tokenizer;
use crate::engine::scoring::{TaskSet, TextOptions};
use crate::engine::sensitivity::fisher::{self, FisherOptions};
use crate::engine::sensitivity::kld::{self, Granularity, KldOptions};
use crate::engine::sensitivity::output::{OutputOptions, output_error};
use crate::engine::sensitivity::units::{self as unit_metrics, UnitKind, UnitMetric, UnitOptions, UnitTable};
use crate::engine::sensitivity::weight::{self, WeightOptions};
use crate::engine::sensitivity::{self, GroupedText, SensitivityTable, metric, output as output_metric};
use crate::engine::units::{self, or_dash};

/// An unfinished table is written at most this often.
const KEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Groups that are named as the most sensitive.
const NAMED_GROUPS: usize = 5;

/// Measure how much every tensor minds every format, or the loss of every layer or head
///
/// Metrics of tensors by format: weight, output and fisher are predicted, kld is measured with the changed weights in
/// memory. Metrics of layers: block_influence (predicted), layer_removal (measured). Of attention heads: head_gradient
/// (predicted), head_ablation and kv_group_ablation (measured). All but weight need a text.
#[derive(Debug, Args)]
pub(super) struct Sensitivity {
    #[arg(value_name = "PATH", help = PATH_HELP)]
    path: PathBuf,
    /// Formats to try, such as q8_0,q4_k [default: every one]
    #[arg(long, value_name = "FORMATS", value_delimiter = ',', value_parser = super::plan::format_id)]
    formats: Vec<&'static str>,
    /// What is measured; see above
    #[arg(long, default_value = weight::METRIC.id, value_parser = metric_ids())]
    metric: String,
    /// The text to measure on: plain, or JSONL with `text` and `domain` [default for `demo`: its calibration text]
    #[arg(long, visible_alias = "text", value_name = "TEXT")]
    calibration: Option<PathBuf>,
    /// Measure on the answers of these tasks instead of a text, grouped by slice (metrics that are measured)
    #[arg(long, value_name = "TASKS.jsonl", conflicts_with = "calibration")]
    tasks: Option<PathBuf>,
    /// For kld: change one tensor at a time, or all linears of one layer
    #[arg(long, default_value = "tensor", value_parser = ["tensor", "layer"])]
    granularity: String,
    /// For kld: end a cell once its standard error is this share of its value, such as 0.1
    #[arg(long, value_name = "SHARE", value_parser = share)]
    stop_at: Option<f64>,
    /// For output: write what every linear is given, channel by channel, to this file as JSON
    #[arg(long, value_name = "FILE")]
    activations: Option<PathBuf>,
    /// Show the figures of one group of the text: a domain, or `task / slice`
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Encode with this importance matrix, from `lapidary calibrate` or llama-imatrix
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// At least so many tokens of the text are scored; of tasks, so many are read
    #[arg(long, value_name = "N", default_value_t = 8192)]
    tokens: usize,
    /// Write the table to this file as JSON. Measured cells that a table there, or an interrupted one beside it
    /// (FILE.partial), has of the same text are taken over
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// A share between 0 and 1.
fn share(text: &str) -> std::result::Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "a number is needed".to_owned())?;
    if share > 0.0 && share < 1.0 { Ok(share) } else { Err("choose between 0 and 1".to_owned()) }
}

/// Every metric's name, those of tensors first.
fn metric_ids() -> PossibleValuesParser {
    let tensors = sensitivity::metrics().iter().map(|metric| metric.id).filter(|id| *id != kld::LAYER_METRIC.id);
    let units = unit_metrics::metrics().iter().map(|own| own.metric.id);
    PossibleValuesParser::new(tensors.chain(units).collect::<Vec<_>>())
}

impl Sensitivity {
    pub fn run(&self, session: &Session) -> Result<Answer> {
        if let Some(metric) = unit_metrics::metric(&self.metric) {
            let table = self.units(session, metric)?;
            self.write(&table)?;
            return session.answer(&table, || self.unit_text(&table, metric));
        }
        if self.group.is_some() && self.metric != kld::METRIC.id {
            return Err(Failure::Usage(format!("--group needs a measured metric; {} has no groups", self.metric)));
        }
        if self.activations.is_some() && self.metric != output_metric::METRIC.id {
            return Err(Failure::Usage("--activations belongs to --metric output".to_owned()));
        }
        let table = match self.metric.as_str() {
            id if id == kld::METRIC.id => self.kld(session)?,
            id if id == fisher::METRIC.id => self.fisher(session)?,
            id if id == output_metric::METRIC.id => self.output(session)?,
            _ => self.weight(session)?,
        };
        self.write(&table)?;
        let shown = match &self.group {
            Some(name) => group_of(&table, name)?,
            None => table,
        };
        session.answer(&shown, || self.text(&shown))
    }

    fn write(&self, table: &impl serde::Serialize) -> Result<()> {
        if let Some(output) = &self.output {
            output::write_file(output, &to_json(table)?)?;
            // What it holds is in the table now.
            let _ = std::fs::remove_file(partial(output));
        }
        Ok(())
    }

    fn formats(&self) -> Vec<String> {
        self.formats.iter().map(|&id| id.to_owned()).collect()
    }

    fn importance(&self) -> Result<Option<Arc<Importance>>> {
        Ok(self.imatrix.as_deref().map(Importance::read).transpose()?.map(Arc::new))
    }

    fn weight(&self, session: &Session) -> Result<SensitivityTable> {
        let checkpoint = session.open(&self.path)?;
        output::check_target(self.output.as_deref(), &[&checkpoint])?;
        let importance = self.importance()?;
        let device = session.device()?;
        let options = WeightOptions { formats: self.formats(), importance, device, ..WeightOptions::default() };
        Ok(weight::weight_error(&checkpoint, &options, &session.progress, &mut |_, _| {})?)
    }

    fn fisher(&self, session: &Session) -> Result<SensitivityTable> {
        let documents = self.documents(session)?;
        let checkpoint = session.open(&self.path)?;
        output::check_target(self.output.as_deref(), &[&checkpoint])?;
        let config = checkpoint.require_config()?;
        let text = self.cut(session, &Tokenizer::of_checkpoint(&checkpoint)?, &documents, config)?;
        let importance = self.importance()?;
        let options = FisherOptions {
            formats: self.formats(),
            importance,
            device: session.device()?,
            ..FisherOptions::default()
        };
        Ok(fisher::predicted_kld(&checkpoint, &text, &options, &session.progress, &mut |_, _| {})?)
    }

    fn output(&self, session: &Session) -> Result<SensitivityTable> {
        let (loaded, text) = self.loaded(session)?;
        let options =
            OutputOptions { formats: self.formats(), importance: self.importance()?, ..OutputOptions::default() };
        let (table, activations) =
            output_error(&loaded.checkpoint, &loaded.model, &text, &options, &session.progress, &mut |_, _| {})?;
        if let Some(path) = &self.activations {
            output::write_file(path, &to_json(&activations)?)?;
        }
        activations.warnings().iter().for_each(|warning| session.warn(warning));
        if !table.diagonal_only.is_empty() {
            session.warn(format!(
                "{} tensors are too wide for the products of all their channels in {}: these were taken as uncorrelated",
                table.diagonal_only.len(),
                units::bytes(options.activations.most_product_bytes)
            ));
        }
        Ok(table)
    }

    /// The documents that `--calibration` names, or the demo's.
    fn documents(&self, session: &Session) -> Result<Documents> {
        let path = match &self.calibration {
            Some(path) => path.clone(),
            None => session.demo_file(&[&self.path], "calibration.jsonl")?.ok_or_else(|| {
                Failure::Usage(format!("the metric {} needs a text: give one with --calibration", self.metric))
            })?,
        };
        let documents = Documents::read(&path)?;
        if documents.domains().is_empty() {
            return Ok(Documents::beside(&documents.source()));
        }
        Ok(documents)
    }

    /// The text's windows; warns of a short one.
    fn cut(
        &self,
        session: &Session,
        tokenizer: &Tokenizer,
        documents: &Documents,
        config: &ModelConfig,
    ) -> Result<GroupedText> {
        let options = TextOptions { max_tokens: Some(self.tokens), ..TextOptions::default() };
        let text = GroupedText::of_documents(tokenizer, documents, config.context, config.vocab, &options)?;
        if text.scored_tokens() < self.tokens {
            session.warn(format!(
                "the text has only {} tokens to score, fewer than {}: small figures are uncertain",
                text.scored_tokens(),
                self.tokens
            ));
        }
        Ok(text)
    }

    /// The model and what it is measured on.
    fn loaded(&self, session: &Session) -> Result<(Loaded, GroupedText)> {
        let documents = if self.tasks.is_none() { Some(self.documents(session)?) } else { None };
        let loaded = session.load(&self.path)?;
        output::check_target(self.output.as_deref(), &[&loaded.checkpoint])?;
        let config = &loaded.model.config;
        let text = match (&self.tasks, documents) {
            (None, Some(documents)) => self.cut(session, &loaded.tokenizer, &documents, config)?,
            (tasks, _) => {
                let tasks = TaskSet::read(tasks.as_deref().unwrap_or(Path::new("")))?;
                GroupedText::of_tasks(&loaded.tokenizer, &tasks, config.context, config.vocab, self.tokens)?
            }
        };
        Ok((loaded, text))
    }

    fn kld(&self, session: &Session) -> Result<SensitivityTable> {
        let (loaded, text) = self.loaded(session)?;
        let granularity = if self.granularity == "layer" { Granularity::Layer } else { Granularity::Tensor };
        let options = KldOptions {
            formats: self.formats(),
            importance: self.importance()?,
            granularity,
            stop_at: self.stop_at,
            known: self.known().map(Arc::new),
            ..KldOptions::default()
        };
        let (checkpoint, model) = (&loaded.checkpoint, &loaded.model);
        let keeper = Keeper::new(self.output.as_deref(), kld::empty_table(checkpoint, &text, &options)?);
        let mut tell = |row: usize, column: usize, cell: &sensitivity::SensitivityValue| {
            keeper.put(|table| table.rows[row].cells[column] = Some(cell.clone()));
        };
        let measured = kld::measured_kld(checkpoint, model, &text, &options, &session.progress, &mut tell);
        keeper.ended(measured)
    }

    fn units(&self, session: &Session, metric: &UnitMetric) -> Result<UnitTable> {
        let (loaded, text) = self.loaded(session)?;
        let empty = UnitTable::new(&loaded.checkpoint, metric, &text);
        let known = self.earlier().find_map(|path| UnitTable::read(&path).ok().filter(|own| own.is_comparable(&empty)));
        let keeper = Keeper::new(self.output.as_deref(), known.clone().unwrap_or(empty));
        let options = UnitOptions { known: known.map(Arc::new), device: session.device()?, ..UnitOptions::default() };
        let mut tell = |value: &sensitivity::UnitValue| keeper.put(|table| table.insert(value.clone()));
        let (checkpoint, model, progress) = (&loaded.checkpoint, &loaded.model, &session.progress);
        keeper.ended(unit_metrics::measure(checkpoint, model, &text, metric, &options, progress, &mut tell))
    }

    /// Files that may hold finished figures of an earlier run.
    fn earlier(&self) -> impl Iterator<Item = PathBuf> {
        let output = self.output.clone();
        output.into_iter().flat_map(|output| [partial(&output), output]).filter(|path| path.is_file())
    }

    fn known(&self) -> Option<SensitivityTable> {
        self.earlier().filter_map(|path| SensitivityTable::read(&path).ok()).reduce(|newer, older| newer.with(&older))
    }

    fn text(&self, table: &SensitivityTable) -> String {
        let titles: Vec<String> = table.formats.iter().map(|id| format!(">{id}")).collect();
        let columns: Vec<&str> = ["tensor"].into_iter().chain(titles.iter().map(String::as_str)).collect();
        let mut lines = Table::new(&columns);
        let mut has_fallen_back = false;
        for row in &table.rows {
            let cells = row.cells.iter().map(|cell| {
                let value = cell.as_ref().map(|cell| {
                    has_fallen_back |= cell.fell_back_to.is_some();
                    let mark = if cell.fell_back_to.is_some() { "*" } else { "" };
                    format!("{}{mark}", units::significant(cell.value))
                });
                or_dash(value)
            });
            lines.row(std::iter::once(row.name.clone()).chain(cells).collect::<Vec<_>>());
        }
        let bits = table
            .formats
            .iter()
            .map(|id| or_dash(format::find(id).map(|format| format!("{:.2}", format.bits_per_weight()))));
        lines.row(std::iter::once("bpw".to_owned()).chain(bits).collect::<Vec<_>>());
        let mut text = lines.render();
        if let Some(metric) = metric(&table.metric) {
            let unit = if metric.unit.is_empty() { String::new() } else { format!(", in {}", metric.unit) };
            text.push_str(&format!("\n{}{unit} ({}); larger is worse.\n", metric.description, metric.label.name()));
        }
        if let Some(basis) = &table.basis {
            text.push_str(&format!("Measured on {} tokens of {}.\n", basis.tokens, basis.name));
        }
        text.push_str(&most_sensitive_groups(table));
        if let Some(device) = &table.device {
            text.push_str(&format!("Computed by {device}.\n"));
        }
        if table.imatrix.is_some() {
            text.push_str("Encoded with the importance matrix where a format heeds it.\n");
        }
        if has_fallen_back {
            text.push_str("* The rows do not fill the format's blocks, so it fell back as llama.cpp does.\n");
        }
        self.add_written(&mut text);
        text
    }

    fn unit_text(&self, table: &UnitTable, metric: &UnitMetric) -> String {
        let within = if metric.kind == UnitKind::Layer { None } else { Some(format!(">{}", metric.kind.name())) };
        let titles: Vec<&str> = [">layer"].into_iter().chain(within.as_deref()).chain([">value", ">±"]).collect();
        let mut lines = Table::new(&titles);
        for value in &table.values {
            let index = value.index.map(|index| index.to_string());
            let figures = [units::significant(value.value), units::significant(value.stderr)];
            lines.row(std::iter::once(value.layer.to_string()).chain(index).chain(figures).collect::<Vec<_>>());
        }
        let own = &metric.metric;
        let unit = if own.unit.is_empty() { String::new() } else { format!(", in {}", own.unit) };
        let mut text = format!(
            "{}\n{}{unit} ({}), with its standard error; larger is missed more.\nMeasured on {} tokens of {}.\n",
            lines.render(),
            own.description,
            own.label.name(),
            table.basis.tokens,
            table.basis.name
        );
        self.add_written(&mut text);
        text
    }

    fn add_written(&self, text: &mut String) {
        if let Some(output) = &self.output {
            text.push_str(&format!("\nwritten to {}\n", output.display()));
        }
    }
}

/// The figures of the group called `name`.
fn group_of(table: &SensitivityTable, name: &str) -> Result<SensitivityTable> {
    let groups = table.basis.as_ref().map(|basis| basis.groups.as_slice()).unwrap_or_default();
    let found = groups.iter().position(|group| group.name == name).and_then(|index| table.of_group(index));
    found.ok_or_else(|| {
        let names: Vec<&str> = groups.iter().map(|group| group.name.as_str()).collect();
        let known = if names.is_empty() { "the text has none".to_owned() } else { names.join(", ") };
        Failure::Usage(format!("there is no group {name:?}: {known}"))
    })
}

/// A line that names the groups that mind most, in the format that was asked for first.
fn most_sensitive_groups(table: &SensitivityTable) -> String {
    let Some(format) = table.formats.first() else { return String::new() };
    let groups = table.groups_by_damage(format);
    if groups.is_empty() {
        return String::new();
    }
    let names = groups.iter().take(NAMED_GROUPS).map(|(name, value, whole)| {
        if *whole > 0.0 { format!("{name} ({:.1}×)", value / whole) } else { name.clone() }
    });
    format!("Most sensitive in {format}, beside all tokens: {}.\n", names.collect::<Vec<_>>().join(", "))
}

/// Where an unfinished table is kept.
fn partial(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

/// Writes a growing table beside its place, so that neither a crash nor a cancel loses finished cells.
struct Keeper<'a, T> {
    output: Option<&'a Path>,
    state: RefCell<(T, Instant, bool)>,
}

impl<'a, T: serde::Serialize> Keeper<'a, T> {
    fn new(output: Option<&'a Path>, table: T) -> Self {
        Self { output, state: RefCell::new((table, Instant::now(), false)) }
    }

    fn put(&self, change: impl FnOnce(&mut T)) {
        let mut state = self.state.borrow_mut();
        let (table, last, has_news) = &mut *state;
        change(table);
        *has_news = true;
        if last.elapsed() >= KEEP_INTERVAL {
            *last = Instant::now();
            *has_news = !self.keep(table);
        }
    }

    /// A failure to keep is none of the measurement's: the table is still in memory.
    fn keep(&self, table: &T) -> bool {
        let Some(output) = self.output else { return false };
        to_json(table).and_then(|text| output::write_file(&partial(output), &text)).is_ok()
    }

    /// Hands the result on; what an unfinished measurement has found stays in the file beside.
    fn ended<R>(&self, result: std::result::Result<R, Error>) -> Result<R> {
        let state = self.state.borrow();
        if result.is_err() && state.2 {
            self.keep(&state.0);
        }
        Ok(result?)
    }
}
