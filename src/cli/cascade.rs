//! `lapidary cascade`: the candidate first and the original where it is unsure, from stored evaluations.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::output::{Table, points};
use super::session::{Answer, Failure, Result, Session};
use crate::engine::comparison::cascade::read_answers;
use crate::engine::comparison::{Cascade, CascadeOptions, ThirdRole, cascade};
use crate::engine::evaluation::Evaluation;

/// Points of the curve that a terminal shows.
const SHOWN_POINTS: usize = 11;

/// Plan a cascade: what escalating unsure answers to the original costs and keeps
///
/// The threshold is chosen on one half of the items and reported on the other.
#[derive(Debug, Args)]
pub(super) struct PlanCascade {
    /// The original's evaluation (.json)
    #[arg(value_name = "BASE.json")]
    base: PathBuf,
    /// The candidate's
    #[arg(value_name = "CANDIDATE.json")]
    candidate: PathBuf,
    /// Answers of a model that cannot run here, in the place of one of both: JSONL of id, answer or correct,
    /// confidence, price, latency_secs
    #[arg(long, value_name = "ANSWERS.jsonl")]
    answers: Option<PathBuf>,
    /// Where these answers stand: last, instead of the original's, or first, instead of the candidate's, where their
    /// confidences decide what goes on to the original
    #[arg(long, value_name = "WHERE", requires = "answers", default_value = "last", value_parser = role_parser())]
    answers_as: ThirdRole,
    /// Cost of an item by the candidate [default: from the measured speeds]
    #[arg(long, value_name = "X", value_parser = positive)]
    candidate_cost: Option<f64>,
    /// Cost of an item by the original, in the same unit
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = positive)]
    baseline_cost: f64,
    /// Share of the original's accuracy that must be kept
    #[arg(long, value_name = "SHARE", default_value_t = CascadeOptions::default().keep_quality, value_parser = share)]
    keep: f64,
}

fn role_parser() -> impl TypedValueParser<Value = ThirdRole> {
    PossibleValuesParser::new(["last", "first"])
        .map(|name| if name == "first" { ThirdRole::First } else { ThirdRole::Last })
}

fn positive(text: &str) -> std::result::Result<f64, String> {
    let value: f64 = text.parse().map_err(|err| format!("{err}"))?;
    if value.is_finite() && value >= 0.0 { Ok(value) } else { Err("give a number that is not negative".to_owned()) }
}

fn share(text: &str) -> std::result::Result<f64, String> {
    positive(text).and_then(|value| if value <= 1.0 { Ok(value) } else { Err("give a share from 0 to 1".to_owned()) })
}

impl PlanCascade {
    pub fn run(&self, session: &Session) -> Result<Answer> {
        let (baseline, candidate) = (Evaluation::read(&self.base)?, Evaluation::read(&self.candidate)?);
        let mut options = options(&baseline, &candidate, self.candidate_cost, self.baseline_cost, self.keep)?;
        options.third = self.answers_as;
        let answers = self.answers.as_deref().map(read_answers).transpose()?;
        let cascade = cascade(&baseline, &candidate, answers.as_deref(), &options)?;
        session.answer(&cascade, || text(&cascade))
    }
}

/// Costs and times: those that were named, else what the measured speeds say.
pub(super) fn options(
    baseline: &Evaluation,
    candidate: &Evaluation,
    candidate_cost: Option<f64>,
    baseline_cost: f64,
    keep_quality: f64,
) -> Result<CascadeOptions> {
    CascadeOptions::priced(baseline, candidate, candidate_cost, baseline_cost, keep_quality)
        .ok_or_else(|| Failure::Usage("no speed was measured: give --candidate-cost".to_owned()))
}

fn text(cascade: &Cascade) -> String {
    let mut curve = Table::new(&[">escalated %", ">accuracy %", ">cost %", ">ms an item", ">no help %", ">threshold"]);
    let step = cascade.curve.len().div_ceil(SHOWN_POINTS).max(1);
    let last = cascade.curve.len().saturating_sub(1);
    for (_, point) in cascade.curve.iter().enumerate().filter(|(index, _)| index % step == 0 || *index == last) {
        curve.row([
            points(point.escalated_fraction),
            points(point.accuracy),
            points(point.cost_ratio),
            format!("{:.1}", point.mean_secs * 1e3),
            points(point.useless_escalation_fraction),
            format!("{:.4}", point.threshold),
        ]);
    }
    format!(
        "threshold {:.4}, chosen on {} items; on the other {}: accuracy {} % (original {} %, candidate {} %, oracle {} %), {} % \
         escalated, {} % of the cost saved\n\n{}\nconfidence: {}\n{}",
        cascade.chosen.threshold,
        cascade.chosen_on,
        cascade.reported_on,
        points(cascade.reported.accuracy),
        points(cascade.baseline_accuracy),
        points(cascade.candidate_accuracy),
        points(cascade.oracle_accuracy),
        points(cascade.reported.escalated_fraction),
        points(cascade.saving),
        curve.render(),
        cascade.signal,
        cascade.note.as_ref().map_or_else(String::new, |note| format!("note: {note}\n")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_costs_make_sense() {
        assert_eq!(share("0.99"), Ok(0.99));
        for text in ["1.5", "-1", "nan", "x"] {
            assert!(share(text).is_err(), "{text}");
        }
        assert_eq!(positive("3"), Ok(3.0));
    }
}
