//! `lapidary sensitivity`: how much every tensor minds every format, under one metric.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::PATH_HELP;
use super::output::{self, Table, or_dash};
use super::session::{Answer, Failure, Result, Session, to_json};
use crate::engine::calibration::Importance;
use crate::engine::checkpoint::ModelConfig;
use crate::engine::format;
use crate::engine::model::Tokenizer;
use crate::engine::scoring::{ScoredText, TextOptions, TextSource};
use crate::engine::sensitivity::fisher::{self, FisherOptions};
use crate::engine::sensitivity::kld::{self, KldOptions};
use crate::engine::sensitivity::weight::{self, WeightOptions};
use crate::engine::sensitivity::{SensitivityTable, metric};
use crate::engine::units;

/// Measure how much every tensor minds every format
#[derive(Debug, Args)]
pub(super) struct Sensitivity {
    #[arg(value_name = "PATH", help = PATH_HELP)]
    path: PathBuf,
    /// Formats to try, such as q8_0,q4_k [default: every one]
    #[arg(long, value_name = "FORMATS", value_delimiter = ',', value_parser = super::plan::format_id)]
    formats: Vec<&'static str>,
    /// weight: relative error of the weights, predicted; fisher: KLD on a text, predicted from gradients;
    /// kld: KLD on a text, measured with weights only
    #[arg(long, default_value = weight::METRIC.id,
        value_parser = [weight::METRIC.id, fisher::METRIC.id, kld::METRIC.id])]
    metric: String,
    /// The text for fisher and kld [default for `demo`: its calibration text]
    #[arg(long, visible_alias = "text", value_name = "TEXT")]
    calibration: Option<PathBuf>,
    /// Encode with this importance matrix, from `lapidary calibrate` or llama-imatrix
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// At least so many tokens of the text are scored for fisher and kld
    #[arg(long, value_name = "N", default_value_t = 8192)]
    tokens: usize,
    /// Write the table to this file as JSON
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Sensitivity {
    pub fn run(&self, session: &Session) -> Result<Answer> {
        let table = match self.metric.as_str() {
            id if id == kld::METRIC.id => self.kld(session)?,
            id if id == fisher::METRIC.id => self.fisher(session)?,
            _ => self.weight(session)?,
        };
        if let Some(output) = &self.output {
            output::write_file(output, &to_json(&table)?)?;
        }
        session.answer(&table, || self.text(&table))
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
        let text = self.source(session)?;
        let checkpoint = session.open(&self.path)?;
        output::check_target(self.output.as_deref(), &[&checkpoint])?;
        let config = checkpoint.require_config()?;
        let scored = self.scored(session, &Tokenizer::of_checkpoint(&checkpoint)?, &text, config)?;
        let importance = self.importance()?;
        let options = FisherOptions { formats: self.formats(), importance, ..FisherOptions::default() };
        Ok(fisher::predicted_kld(&checkpoint, &scored, &options, &session.progress, &mut |_, _| {})?)
    }

    /// The text that `--calibration` names, or the demo's.
    fn source(&self, session: &Session) -> Result<TextSource> {
        let text = match &self.calibration {
            Some(text) => text.clone(),
            None => session.demo_file(&[&self.path], "calibration.txt")?.ok_or_else(|| {
                Failure::Usage(format!("the metric {} needs a text: give one with --calibration", self.metric))
            })?,
        };
        Ok(TextSource::read(&text)?)
    }

    /// The text's windows; warns of a short one.
    fn scored(
        &self,
        session: &Session,
        tokenizer: &Tokenizer,
        text: &TextSource,
        config: &ModelConfig,
    ) -> Result<ScoredText> {
        let options = TextOptions { max_tokens: Some(self.tokens), ..TextOptions::default() };
        let scored = ScoredText::new(tokenizer, text, config.context, config.vocab, &options)?;
        if scored.scored_tokens() < self.tokens {
            session.warn(format!(
                "the text has only {} tokens to score, fewer than {}: small figures are uncertain",
                scored.scored_tokens(),
                self.tokens
            ));
        }
        Ok(scored)
    }

    fn kld(&self, session: &Session) -> Result<SensitivityTable> {
        let text = self.source(session)?;
        let loaded = session.load(&self.path)?;
        output::check_target(self.output.as_deref(), &[&loaded.checkpoint])?;
        let scored = self.scored(session, &loaded.tokenizer, &text, &loaded.model.config)?;
        let importance = self.importance()?;
        let options = KldOptions { formats: self.formats(), importance, ..KldOptions::default() };
        Ok(kld::measured_kld(
            &loaded.checkpoint,
            &loaded.model,
            &scored,
            &options,
            &session.progress,
            &mut |_, _, _| {},
        )?)
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
        if let Some(device) = &table.device {
            text.push_str(&format!("Scanned by {device}.\n"));
        }
        if table.imatrix.is_some() {
            text.push_str("Encoded with the importance matrix where a format heeds it.\n");
        }
        if has_fallen_back {
            text.push_str("* The rows do not fill the format's blocks, so it fell back as llama.cpp does.\n");
        }
        if let Some(output) = &self.output {
            text.push_str(&format!("\nwritten to {}\n", output.display()));
        }
        text
    }
}
