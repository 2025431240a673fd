//! The budget of `lapidary plan`: a limit, what is known of the tensors, and the plan that keeps it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::limits::Limits;
use super::session::{Result, Session};
use crate::engine::calibration::{Documents, Importance};
use crate::engine::checkpoint::Checkpoint;
use crate::engine::error::{Fault, Stage};
use crate::engine::model::Tokenizer;
use crate::engine::pass;
use crate::engine::plan::budget::{self, BudgetOptions, BudgetReport, Effort, Limit, Planner, Proposal};
use crate::engine::plan::speed::SpeedModel;
use crate::engine::plan::{Plan, Target, Ties};
use crate::engine::scoring::TextOptions;
use crate::engine::sensitivity::fisher::{self, FisherOptions};
use crate::engine::sensitivity::weight::{self, WeightOptions};
use crate::engine::sensitivity::{self, GroupedText, SensitivityTable};
use crate::engine::units;

/// Tokens over which gradients are taken where no table is given.
const FISHER_TOKENS: usize = 4096;

/// What the plan must keep within.
#[derive(Debug, Args)]
pub(super) struct Budget {
    #[command(flatten)]
    limits: Limits,
    /// Choose formats for the [constraints] that the plan of --from states
    #[arg(long, requires = "from", conflicts_with_all = ["recipe", "format"], help_heading = PLANNING)]
    fit: bool,
    /// The table that `lapidary sensitivity` wrote [default: KLD by Fisher information on --calibration; without a text
    /// relative weight error]
    #[arg(long, value_name = "TABLE.json", help_heading = PLANNING)]
    sensitivity: Option<PathBuf>,
    /// The text that gradients are taken on where no table is given, and that units to prune are scored on
    /// [default for `demo`: its calibration text]
    #[arg(long, value_name = "TEXT", help_heading = PLANNING)]
    pub(super) calibration: Option<PathBuf>,
    /// Tensors of a layer that share a format: attention (q, k, v), mlp (gate, up), all or none; kept in the plan
    /// [default: as the target's runtimes ask]
    #[arg(long, value_name = "WHICH", value_parser = ties, help_heading = PLANNING)]
    tie: Option<Ties>,
}

const PLANNING: &str = "Planning";

/// The report as a part of a document.
#[derive(Debug, Serialize)]
pub(super) struct BudgetSection {
    #[serde(flatten)]
    report: BudgetReport,
}

impl Budget {
    /// Writes what was asked for into the plan.
    pub(super) fn state(&self, plan: &mut Plan) {
        self.limits.state(plan);
        if let Some(ties) = self.tie {
            plan.set_ties(ties);
        }
    }

    /// The table that was given, if one was.
    pub(super) fn given_table(&self) -> Result<Option<SensitivityTable>> {
        Ok(self.sensitivity.as_deref().map(SensitivityTable::read).transpose()?)
    }

    /// The plan within the limits that it states, if formats are to be chosen for them; `plan` holds
    /// what is decided by hand, or by a recipe or a format, to which limits are no orders. Tensors
    /// are looked at with `importance`, where the plan has one.
    pub(super) fn propose(
        &self,
        session: &Session,
        path: &Path,
        checkpoint: &Checkpoint,
        plan: &Plan,
        speed: Option<&SpeedModel>,
        importance: Option<Arc<Importance>>,
    ) -> Result<Option<(Proposal, SensitivityTable)>> {
        let is_base_given = plan.recipe().is_some() || plan.default_format().is_some();
        if !(self.fit || self.limits.is_given() && !is_base_given) {
            return Ok(None);
        }
        // The KV cache is that of the network which the plan leaves.
        let limits = self.limits.limits(plan, plan.config_left(checkpoint)?.as_deref());
        if limits.is_empty() {
            let fault = Fault::new(Stage::Plan, "the plan states no constraint that can be planned for");
            return Err(fault.fix("give --size, --memory, --min-decode-tps or another limit").into());
        }
        let options = BudgetOptions {
            ties: plan.ties(),
            overhead_bytes: pass::overhead_bytes(checkpoint, plan)?,
            speed: speed.cloned(),
        };
        if self.sensitivity.is_none() {
            // Measuring takes longer than seeing that nothing fits.
            let sizes = budget::outline(checkpoint, plan.target());
            Planner::new(checkpoint, plan, &sizes, &options)?.refuse_impossible(&limits)?;
        }
        let table = self.table(session, path, checkpoint, plan, importance)?;
        if limits.iter().any(|limit| matches!(limit, Limit::Damage(_))) && table.unit != "nats" {
            let cause = format!("the metric {} predicts no KLD", table.metric);
            let path = self.sensitivity.as_deref().unwrap_or(&checkpoint.path);
            return Err(Fault::new(Stage::Plan, cause).fix(MEASURE_KLD).file(path).into());
        }
        let planner = Planner::new(checkpoint, plan, &table, &options)?;
        Ok(Some((planner.propose_within(checkpoint, &limits, &Effort::default())?, table)))
    }

    /// What tensors mind: the table that was given, or one made now.
    fn table(
        &self,
        session: &Session,
        path: &Path,
        checkpoint: &Checkpoint,
        plan: &Plan,
        importance: Option<Arc<Importance>>,
    ) -> Result<SensitivityTable> {
        if let Some(table) = self.given_table()? {
            return Ok(table);
        }
        let text = match &self.calibration {
            Some(text) => Some(text.clone()),
            None => session.demo_file(&[path], "calibration.txt")?,
        };
        let Some(text) = text.filter(|_| checkpoint.config.is_some()) else {
            session.warn(format!(
                "no text is given, so tensors are weighed by how far their weights move, which says little of what the model minds: give --calibration TEXT; {MEASURE_KLD}"
            ));
            let options = WeightOptions { importance, device: session.device()?, ..WeightOptions::default() };
            return Ok(weight::weight_error(checkpoint, &options, &session.progress, &mut |_, _| {})?);
        };
        let config = checkpoint.require_config()?;
        let tokenizer = Tokenizer::of_checkpoint(checkpoint)?;
        let options = TextOptions { max_tokens: Some(FISHER_TOKENS), ..TextOptions::default() };
        let documents = Documents::read(&text)?;
        let text = GroupedText::of_documents(&tokenizer, &documents, config.context, config.vocab, &options)?;
        let formats = plan.target().formats().map(str::to_owned).collect();
        let options = FisherOptions { formats, importance, device: session.device()?, ..FisherOptions::default() };
        Ok(fisher::predicted_kld(checkpoint, &text, &options, &session.progress, &mut |_, _| {})?)
    }
}

const MEASURE_KLD: &str =
    "measure it with `lapidary sensitivity PATH --metric kld -o s.json` and give --sensitivity s.json";

impl BudgetSection {
    pub(super) fn new(report: BudgetReport) -> Self {
        Self { report }
    }

    /// The report in words.
    pub(super) fn text(&self, target: Target) -> String {
        let BudgetReport { limit, limits, floor, .. } = &self.report;
        let report = &self.report;
        let is_by_damage = limits.iter().all(|limit| matches!(limit, Limit::Damage(_)));
        let within: Vec<String> = limits.iter().map(ToString::to_string).collect();
        let metric = sensitivity::metric(&report.metric).map_or(report.metric.as_str(), |metric| metric.title);
        let unit = if report.unit.is_empty() { String::new() } else { format!(" {}", report.unit) };
        let stderr =
            report.damage_stderr.map(|stderr| format!(" ± {}", units::significant(stderr))).unwrap_or_default();
        let proof = match (report.is_optimal, is_by_damage) {
            (true, _) => "no plan within the limit is better".to_owned(),
            (false, true) => format!("at most {} smaller is possible", units::bytes(report.gap.ceil() as u64)),
            (false, false) => format!("at most {} less is possible", units::significant(report.gap)),
        };
        let what = match target {
            Target::Gguf => "file",
            _ => "folder, at most",
        };
        format!(
            "Within {}: {metric} summed over all changes {}{unit}{stderr}, predicted; {proof}.\n\
             {what} {} ({} bytes), {:.2} bits per weight; {}.\n",
            within.join(", "),
            units::significant(report.damage),
            units::bytes(report.file_bytes),
            report.file_bytes,
            report.bits_per_weight,
            floor.sentence(*limit),
        )
    }
}

/// Reads which tensors are tied.
fn ties(text: &str) -> std::result::Result<Ties, String> {
    Ties::find(text).ok_or_else(|| format!("the ties are {}", Ties::NAMES.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_are_read_by_name() {
        assert_eq!(ties("mlp"), Ok(Ties { attention: false, mlp: true }));
        assert!(ties("qkv").is_err_and(|message| message.contains("attention")));
    }
}
