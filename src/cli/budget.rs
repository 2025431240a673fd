//! The budget of `lapidary plan`: a limit, what is known of the tensors, and the plan that keeps it.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::session::{Result, Session};
use crate::engine::calibration::Importance;
use crate::engine::checkpoint::Checkpoint;
use crate::engine::error::{Fault, Stage};
use crate::engine::pass;
use crate::engine::plan::budget::{BudgetOptions, BudgetReport, Effort, Limit, Planner, Proposal, Ties};
use crate::engine::plan::{Plan, Target};
use crate::engine::sensitivity::weight::{self, WeightOptions};
use crate::engine::sensitivity::{self, SensitivityTable};
use crate::engine::units;

/// What the plan must keep within.
#[derive(Debug, Args)]
pub(super) struct Budget {
    /// Least damage in a file of this size, metadata and tokenizer included, such as 3.2GiB or plain bytes
    #[arg(long, value_name = "SIZE", value_parser = size, group = "limit", conflicts_with_all = ["recipe", "format"])]
    size: Option<u64>,
    /// Least damage in so many bits per weight, scales included
    #[arg(long, value_name = "BPW", value_parser = positive, group = "limit", conflicts_with_all = ["recipe", "format"])]
    bits: Option<f64>,
    /// Fewest bytes at this predicted KLD in nats; needs a table in nats
    #[arg(long, value_name = "NATS", value_parser = positive, group = "limit", conflicts_with_all = ["recipe", "format"])]
    max_kld: Option<f64>,
    /// The table that `lapidary sensitivity` wrote [default: relative weight error, measured now]
    #[arg(long, value_name = "TABLE.json", requires = "limit")]
    sensitivity: Option<PathBuf>,
    /// Tensors of a layer that get the same format: attention (q, k, v), mlp (gate, up), all or none [default: as the target's runtimes ask]
    #[arg(long, value_name = "WHICH", value_parser = ties, requires = "limit")]
    tie: Option<Ties>,
}

/// The report as a part of a document.
#[derive(Debug, Serialize)]
pub(super) struct BudgetSection {
    #[serde(flatten)]
    report: BudgetReport,
}

impl Budget {
    fn limit(&self) -> Option<Limit> {
        let size = self.size.map(Limit::FileBytes);
        size.or(self.bits.map(Limit::BitsPerWeight)).or(self.max_kld.map(Limit::Damage))
    }

    /// The plan within the limit that was given, if one was; `plan` holds what is decided by hand.
    /// Weights are looked at with `importance`, where the plan has one.
    pub(super) fn propose(
        &self,
        session: &Session,
        checkpoint: &Checkpoint,
        plan: &Plan,
        importance: Option<Arc<Importance>>,
    ) -> Result<Option<Proposal>> {
        let Some(limit) = self.limit() else { return Ok(None) };
        let table = match &self.sensitivity {
            Some(path) => SensitivityTable::read(path)?,
            None if matches!(limit, Limit::Damage(_)) => {
                let fault = Fault::new(Stage::Plan, "a limit of KLD needs a sensitivity in nats");
                return Err(fault.fix(MEASURE_KLD).into());
            }
            None => {
                session.warn(format!(
                    "no --sensitivity is given, so tensors are weighed by how far their weights move, which says little of what the model minds; {MEASURE_KLD}"
                ));
                let options = WeightOptions { importance, device: session.device()?, ..WeightOptions::default() };
                weight::weight_error(checkpoint, &options, &session.progress, &mut |_, _| {})?
            }
        };
        if matches!(limit, Limit::Damage(_)) && table.unit != "nats" {
            let cause = format!("the metric {} predicts no KLD", table.metric);
            let path = self.sensitivity.as_deref().unwrap_or(&checkpoint.path);
            return Err(Fault::new(Stage::Plan, cause).fix(MEASURE_KLD).file(path).into());
        }
        let options = BudgetOptions {
            ties: self.tie.unwrap_or_else(|| Ties::of(plan.target())),
            overhead_bytes: pass::overhead_bytes(checkpoint, plan)?,
        };
        let planner = Planner::new(checkpoint, plan, &table, &options)?;
        Ok(Some(planner.propose(checkpoint, limit, &Effort::default())?))
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
        let BudgetReport { limit, floor, .. } = &self.report;
        let report = &self.report;
        let metric = sensitivity::metric(&report.metric).map_or(report.metric.as_str(), |metric| metric.title);
        let unit = if report.unit.is_empty() { String::new() } else { format!(" {}", report.unit) };
        let stderr =
            report.damage_stderr.map(|stderr| format!(" ± {}", units::significant(stderr))).unwrap_or_default();
        let proof = match (report.is_optimal, limit) {
            (true, _) => "no plan within the limit is better".to_owned(),
            (false, Limit::Damage(_)) => {
                format!("at most {} smaller is possible", units::bytes(report.gap.ceil() as u64))
            }
            (false, _) => format!("at most {} less is possible", units::significant(report.gap)),
        };
        let what = match target {
            Target::Gguf => "file",
            _ => "folder, at most",
        };
        format!(
            "Within {limit}: {metric} summed over all changes {}{unit}{stderr}, predicted; {proof}.\n\
             {what} {} ({} bytes), {:.2} bits per weight; {}.\n",
            units::significant(report.damage),
            units::bytes(report.file_bytes),
            report.file_bytes,
            report.bits_per_weight,
            floor.sentence(*limit),
        )
    }
}

/// Reads a size.
fn size(text: &str) -> std::result::Result<u64, String> {
    units::parse_bytes(text).ok_or_else(|| "write a size such as 3.2GiB, 800MB or 1234567".to_owned())
}

/// Reads a number above zero.
fn positive(text: &str) -> std::result::Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| *number > 0.0 && number.is_finite());
    number.ok_or_else(|| "write a number above zero".to_owned())
}

/// Reads which tensors are tied.
fn ties(text: &str) -> std::result::Result<Ties, String> {
    let ties = |attention, mlp| Ok(Ties { attention, mlp });
    match text {
        "all" => ties(true, true),
        "attention" => ties(true, false),
        "mlp" => ties(false, true),
        "none" => ties(false, false),
        _ => Err("the ties are attention, mlp, all, none".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_and_nonsense_is_answered_with_an_example() {
        assert_eq!(size("3.2GiB"), Ok(3_435_973_836));
        assert!(size("big").is_err_and(|message| message.contains("3.2GiB")));
        assert_eq!(positive("4.5"), Ok(4.5));
        for bad in ["0", "-1", "nan", "inf", "x"] {
            assert!(positive(bad).is_err(), "{bad}");
        }
        assert_eq!(ties("mlp"), Ok(Ties { attention: false, mlp: true }));
        assert!(ties("qkv").is_err());
    }
}
