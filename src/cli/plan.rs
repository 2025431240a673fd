//! `lapidary plan`: one choice per tensor, worked out and shown before anything is done.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::PATH_HELP;
use super::budget::{Budget, BudgetSection};
use super::output::{self, Table};
use super::prune::{PruneArgs, PruneSection};
use super::session::{Answer, Result, Session};
use crate::engine::calibration::Importance;
use crate::engine::checkpoint::Checkpoint;
use crate::engine::format;
use crate::engine::plan::{
    Calibration, Plan, Recipe, ResolvedPlan, Target, Treatment, check_importance, resolve, tensor_types,
};
use crate::engine::units;

/// Choose a format for every tensor
///
/// Without a recipe, format or budget, stored types stay. Later --set wins over earlier, and --protect over all;
/// a budget decides the rest.
#[derive(Debug, Args)]
pub(super) struct MakePlan {
    #[arg(value_name = "PATH", help = PATH_HELP)]
    path: PathBuf,
    /// Write the plan to this file
    #[arg(short, long, value_name = "PLAN.toml")]
    output: Option<PathBuf>,
    /// A mixture by llama.cpp's name, such as Q4_K_M, or F32, F16, BF16
    #[arg(long, value_name = "RECIPE", value_parser = recipe, conflicts_with = "format")]
    recipe: Option<Recipe>,
    /// One format for all that may have it, such as q4_k
    #[arg(long, value_name = "FORMAT", value_parser = format_id)]
    format: Option<&'static str>,
    /// Store tensors whose Hugging Face names match in a format, such as '*.down_proj.*=q6_k'; may be repeated
    #[arg(long, value_name = "GLOB=FORMAT", value_parser = setting)]
    set: Vec<(String, &'static str)>,
    /// Keep the stored values of tensors whose names match; may be repeated
    #[arg(long, value_name = "GLOB")]
    protect: Vec<String>,
    /// An importance matrix, from `lapidary calibrate` or llama-imatrix: columns weighted by what they are multiplied with
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Types by llama.cpp's --tensor-type-file: words PATTERN=TYPE, the first that is found wins; --set goes over it
    #[arg(long, value_name = "FILE")]
    tensor_type_file: Option<PathBuf>,
    /// Write the plan's types to this file, for llama-quantize --tensor-type-file
    #[arg(long, value_name = "FILE")]
    write_tensor_types: Option<PathBuf>,
    /// What the result is written for: gguf; hugging_face (float types only); compressed-tensors, bitsandbytes, gptq or awq;
    /// lapidary, a folder of our own for layers that differ in shape
    #[arg(long, value_name = "TARGET", value_parser = target, default_value = "gguf")]
    target: Target,
    #[command(flatten)]
    budget: Budget,
    #[command(flatten)]
    prune: PruneArgs,
}

/// What happens to one tensor, of a plan or of a pass.
#[derive(Debug, Serialize)]
pub(super) struct TensorRow {
    pub name: String,
    pub from: &'static str,
    pub to: &'static str,
    /// How values are chosen: copy, rtn or imatrix.
    pub method: &'static str,
    pub reason: String,
    pub weight_count: u64,
    /// Fewer where the plan prunes.
    pub new_weight_count: u64,
    pub old_bytes: u64,
    pub new_bytes: u64,
    pub old_bits_per_weight: f64,
    pub new_bits_per_weight: f64,
}

#[derive(Debug, Serialize)]
struct Document<'a> {
    version: u32,
    path: &'a Path,
    /// Fingerprint.
    checkpoint: &'a str,
    target: &'static str,
    recipe: Option<&'static str>,
    /// The file written, if any.
    output: Option<&'a Path>,
    /// The file that the importance matrix was read from, if any.
    imatrix: Option<&'a Path>,
    /// The plan's text.
    toml: String,
    weight_count: u64,
    /// Fewer where the plan prunes.
    new_weight_count: u64,
    old_bytes: u64,
    new_bytes: u64,
    /// With the padding between tensors; metadata and tokenizer come on top.
    padded_bytes: u64,
    old_bits_per_weight: f64,
    new_bits_per_weight: f64,
    warnings: &'a [String],
    /// What is taken away, where the plan prunes by score.
    prune: Option<PruneSection>,
    /// How good the plan is, where it was made for a limit.
    budget: Option<BudgetSection>,
    tensors: Vec<TensorRow>,
}

impl MakePlan {
    pub fn run(&self, session: &Session) -> Result<Answer> {
        let checkpoint = session.open(&self.path)?;
        output::check_target(self.output.as_deref(), &[&checkpoint])?;
        output::check_target(self.write_tensor_types.as_deref(), &[&checkpoint])?;
        let importance = self.imatrix.as_deref().map(Importance::read).transpose()?.map(Arc::new);
        let mut by_hand = self.plan(&checkpoint, importance.as_deref())?;
        let prune = self.prune.apply(session, &self.path, &checkpoint, &mut by_hand, self.output.as_deref())?;
        let (plan, mut resolved, budget) =
            match self.budget.propose(session, &checkpoint, &by_hand, importance.clone())? {
                None => {
                    let resolved = resolve(&by_hand, &checkpoint)?;
                    (by_hand, resolved, None)
                }
                Some(proposal) => {
                    proposal.report.warnings.iter().for_each(|warning| session.warn(warning));
                    (proposal.plan, proposal.resolved, Some(BudgetSection::new(proposal.report)))
                }
            };
        if let Some(importance) = &importance {
            let more = check_importance(&resolved, &checkpoint, importance)?;
            resolved.warnings.extend(more);
        }
        if let Some(output) = &self.output {
            output::write_file(output, &plan.to_toml())?;
        }
        if let Some(output) = &self.write_tensor_types {
            output::write_file(output, &tensor_types::write(&resolved, &checkpoint))?;
        }
        resolved.warnings.iter().for_each(|warning| session.warn(warning));
        let document = Document {
            version: 1,
            path: &checkpoint.path,
            checkpoint: &checkpoint.fingerprint,
            target: resolved.target.name(),
            recipe: resolved.recipe.map(Recipe::name),
            output: self.output.as_deref(),
            imatrix: self.imatrix.as_deref(),
            toml: plan.to_toml(),
            weight_count: resolved.weight_count,
            new_weight_count: resolved.new_weight_count,
            old_bytes: resolved.old_bytes,
            new_bytes: resolved.new_bytes,
            padded_bytes: resolved.padded_bytes,
            old_bits_per_weight: resolved.old_bits_per_weight(),
            new_bits_per_weight: resolved.new_bits_per_weight(),
            warnings: &resolved.warnings,
            prune,
            budget,
            tensors: rows(&resolved, &checkpoint),
        };
        session.answer(&document, || {
            let mut text = table(&document.tensors);
            if let Some(prune) = &document.prune {
                text.push_str(&format!("\n{}", prune.text()));
            }
            match &document.budget {
                Some(budget) => text.push_str(&format!("\n{}", budget.text(resolved.target))),
                None => text.push_str("\nTensors only: a file's metadata and tokenizer come on top.\n"),
            }
            if let Some(output) = &self.output {
                text.push_str(&format!("written to {}\n", output.display()));
            }
            if let Some(output) = &self.write_tensor_types {
                text.push_str(&format!("types written to {}\n", output.display()));
            }
            text
        })
    }

    fn plan(&self, checkpoint: &Checkpoint, importance: Option<&Importance>) -> Result<Plan> {
        let mut plan = Plan::new(self.target, Some(&checkpoint.fingerprint));
        plan.set_recipe(self.recipe);
        plan.set_calibration(importance.and_then(Calibration::of));
        if let Some(format) = self.format {
            plan.set_default_format(Some(format))?;
        }
        if let Some(path) = &self.tensor_type_file {
            tensor_types::read(&mut plan, checkpoint, path)?;
        }
        for (glob, format) in &self.set {
            plan.set_glob(checkpoint, glob, Treatment::format(format)?)?;
        }
        for glob in &self.protect {
            plan.set_glob(checkpoint, glob, Treatment::Protect)?;
        }
        Ok(plan)
    }
}

/// One row per tensor of a plan that was worked out.
pub(super) fn rows(resolved: &ResolvedPlan, checkpoint: &Checkpoint) -> Vec<TensorRow> {
    resolved
        .decisions
        .iter()
        .map(|decision| TensorRow {
            name: checkpoint.tensors[decision.tensor_index].name.clone(),
            from: decision.old_dtype.name(),
            to: if decision.is_removed() { "removed" } else { decision.dtype.name() },
            method: match decision.is_copy() {
                _ if decision.is_removed() => "removed",
                true => "copy",
                false => decision.method.name(),
            },
            reason: decision.sentence(),
            weight_count: decision.weight_count,
            new_weight_count: decision.new_weight_count,
            old_bytes: decision.old_bytes,
            new_bytes: decision.new_bytes,
            old_bits_per_weight: units::bits_per_weight(decision.old_bytes, decision.weight_count),
            new_bits_per_weight: decision.bits_per_weight(),
        })
        .collect()
}

/// Rows for people, with their total.
pub(super) fn table(rows: &[TensorRow]) -> String {
    let mut table = Table::new(&["tensor", "from", "to", ">old size", ">new size", ">old bpw", ">new bpw", "reason"]);
    for row in rows {
        table.row([
            row.name.clone(),
            row.from.to_owned(),
            row.to.to_owned(),
            units::bytes(row.old_bytes),
            units::bytes(row.new_bytes),
            format!("{:.2}", row.old_bits_per_weight),
            format!("{:.2}", row.new_bits_per_weight),
            row.reason.clone(),
        ]);
    }
    let sum = |value: fn(&TensorRow) -> u64| rows.iter().map(value).fold(0, u64::saturating_add);
    let (old, new) = (sum(|row| row.old_bytes), sum(|row| row.new_bytes));
    let (weights, new_weights) = (sum(|row| row.weight_count), sum(|row| row.new_weight_count));
    table.row([
        "all".to_owned(),
        String::new(),
        String::new(),
        units::bytes(old),
        units::bytes(new),
        format!("{:.2}", units::bits_per_weight(old, weights)),
        format!("{:.2}", units::bits_per_weight(new, new_weights)),
        String::new(),
    ]);
    table.render()
}

/// Reads a recipe's name.
pub(super) fn recipe(name: &str) -> std::result::Result<Recipe, String> {
    Recipe::find(name).ok_or_else(|| {
        let known: Vec<&str> = Recipe::all().map(Recipe::name).collect();
        format!("the recipes are {}", known.join(", "))
    })
}

/// Reads a format's id.
pub(super) fn format_id(id: &str) -> std::result::Result<&'static str, String> {
    format::find(id).map(|format| format.id()).ok_or_else(|| {
        let known: Vec<&str> = format::all().iter().map(|format| format.id()).collect();
        format!("the formats are {}", known.join(", "))
    })
}

/// Reads a target's name.
pub(super) fn target(name: &str) -> std::result::Result<Target, String> {
    Target::find(name).ok_or_else(|| format!("the targets are {}", Target::ALL.map(Target::name).join(", ")))
}

/// Reads `GLOB=FORMAT`.
fn setting(text: &str) -> std::result::Result<(String, &'static str), String> {
    let (glob, id) = text.rsplit_once('=').ok_or_else(|| "write it as GLOB=FORMAT".to_owned())?;
    Ok((glob.to_owned(), format_id(id)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_any_case_and_mistakes_are_answered_with_what_there_is() {
        assert_eq!(recipe("q4_k_m").map(Recipe::name), Ok("Q4_K_M"));
        assert!(recipe("Q4_X").is_err_and(|message| message.contains("Q4_K_M")));
        assert_eq!(format_id("Q4_K"), Ok("q4_k"));
        assert!(target("onnx").is_err_and(|message| message.contains("hugging_face")));
        assert_eq!(setting("*.a=b.*=q6_k"), Ok(("*.a=b.*".to_owned(), "q6_k")));
        assert!(setting("*.down_proj.*").is_err());
    }
}
