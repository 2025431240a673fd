//! `lapidary plan`: one choice per tensor, worked out and shown before anything is done.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::PATH_HELP;
use super::budget::{Budget, BudgetSection};
use super::devices::model_place;
use super::output::{self, Table};
use super::plan_diff;
use super::prune::{PruneArgs, PruneSection};
use super::run::read_plan;
use super::session::{Answer, Result, Session};
use crate::engine::calibration::Importance;
use crate::engine::checkpoint::{Checkpoint, Role};
use crate::engine::error::{Fault, Stage};
use crate::engine::format;
use crate::engine::model::fit::Fit;
use crate::engine::pass;
use crate::engine::plan::budget::predicted_damage;
use crate::engine::plan::legality::{self, Issue, legality};
use crate::engine::plan::room::fit_on;
use crate::engine::plan::speed::{SpeedModel, SpeedPrediction};
use crate::engine::plan::standing::{self, Check, Facts};
use crate::engine::plan::{
    Calibration, Constraints, LayerSet, Plan, Recipe, ResolvedPlan, Target, Treatment, check_importance, resolve,
    tensor_types,
};
use crate::engine::sensitivity::SensitivityTable;
use crate::engine::units;
use crate::workbench::known_rates;

/// Choose a format for every tensor
///
/// Without a recipe, format or limit, stored types stay. Later --set wins over earlier, --set-role over --set, copied
/// layers over both and --protect over all; limits decide the rest, unless --recipe or --format does: then they are
/// only checked.
#[derive(Debug, Args)]
pub(super) struct MakePlan {
    #[arg(value_name = "PATH", help = PATH_HELP)]
    path: PathBuf,
    /// Write the plan to this file
    #[arg(short, long, value_name = "PLAN.toml")]
    output: Option<PathBuf>,
    /// Start from this plan; what is given here goes over it
    #[arg(long, value_name = "PLAN.toml")]
    from: Option<PathBuf>,
    /// Show what the second of two plans does otherwise than the first, and make none; damages by --sensitivity
    #[arg(long, num_args = 2, value_names = ["BEFORE.toml", "AFTER.toml"], conflicts_with_all = ["from", "recipe", "format", "output", "fit"])]
    diff: Vec<PathBuf>,
    /// A mixture by llama.cpp's name, such as Q4_K_M, or F32, F16, BF16
    #[arg(long, value_name = "RECIPE", value_parser = recipe, conflicts_with = "format")]
    recipe: Option<Recipe>,
    /// One format for all that may have it, such as q4_k
    #[arg(long, value_name = "FORMAT", value_parser = format_id)]
    format: Option<&'static str>,
    /// Store tensors whose Hugging Face names match in a format, such as '*.down_proj.*=q6_k'; may be repeated
    #[arg(long, value_name = "GLOB=FORMAT", value_parser = setting)]
    set: Vec<(String, &'static str)>,
    /// Store a role in a format, in all layers or in some, such as down=q6_k or v@0-2,5=q8_0; may be repeated
    #[arg(long, value_name = "ROLE[@LAYERS]=FORMAT", value_parser = role_setting)]
    set_role: Vec<RoleSetting>,
    /// Treat the linears of layers as those of another one, such as 0=1-3; may be repeated
    #[arg(long, value_name = "FROM=LAYERS", value_parser = layer_copy)]
    copy_layer: Vec<(usize, LayerSet)>,
    /// Keep the stored values of tensors whose names match; may be repeated
    #[arg(long, value_name = "GLOB")]
    protect: Vec<String>,
    /// Replace what the target cannot hold, or its runtimes do not load, by the nearest that they do
    #[arg(long)]
    make_legal: bool,
    /// Write the limits to this file as gates for `lapidary compare`
    #[arg(long, value_name = "GATES.toml")]
    write_gates: Option<PathBuf>,
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
    /// lapidary, a folder of our own for layers that differ in shape [default: gguf, or what --from says]
    #[arg(long, value_name = "TARGET", value_parser = target)]
    target: Option<Target>,
    #[command(flatten)]
    budget: Budget,
    #[command(flatten)]
    prune: PruneArgs,
}

/// A role in some layers or in all, with its format.
#[derive(Clone, Debug, PartialEq)]
struct RoleSetting {
    role: Role,
    layers: Option<LayerSet>,
    format: &'static str,
}

/// What one target makes of the plan.
#[derive(Debug, Serialize)]
struct TargetSection {
    target: &'static str,
    runtime: &'static str,
    /// What it does not take as asked, each with the nearest that it does.
    issues: Vec<Issue>,
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
    /// How good the plan is, where it was made for limits.
    budget: Option<BudgetSection>,
    /// What the result must keep to.
    constraints: &'a Constraints,
    /// Where the plan stands to each of them.
    checks: Vec<Check>,
    /// How fast the file will be here; null until `lapidary bench --rates` has run once.
    predicted_speed: Option<SpeedPrediction>,
    /// How the result fits where models run; null where it is no network that runs here.
    fit: Option<Fit>,
    /// The same as a sentence.
    fit_sentence: Option<String>,
    /// What each export target would not take.
    targets: Vec<TargetSection>,
    tensors: Vec<TensorRow>,
}

impl MakePlan {
    pub fn run(&self, session: &Session) -> Result<Answer> {
        let checkpoint = session.open(&self.path)?;
        if let [before, after] = self.diff.as_slice() {
            return plan_diff::run(session, &checkpoint, before, after, self.budget.given_table()?.as_ref());
        }
        for output in [&self.output, &self.write_tensor_types, &self.write_gates] {
            output::check_target(output.as_deref(), &[&checkpoint])?;
        }
        let importance = self.imatrix.as_deref().map(Importance::read).transpose()?.map(Arc::new);
        let mut by_hand = self.plan(&checkpoint, importance.as_deref())?;
        let calibration = self.budget.calibration.as_deref();
        let prune =
            self.prune.apply(session, &self.path, &checkpoint, &mut by_hand, calibration, self.output.as_deref())?;
        let speed = known_rates(&session.cache_dir()).map(|rates| SpeedModel::new(rates, &checkpoint));
        let proposal =
            self.budget.propose(session, &self.path, &checkpoint, &by_hand, speed.as_ref(), importance.clone())?;
        let (plan, mut resolved, budget, table) = match proposal {
            None => {
                let resolved = resolve(&by_hand, &checkpoint)?;
                (by_hand, resolved, None, self.budget.given_table()?)
            }
            Some((proposal, table)) => {
                proposal.report.warnings.iter().for_each(|warning| session.warn(warning));
                (proposal.plan, proposal.resolved, Some(BudgetSection::new(proposal.report)), Some(table))
            }
        };
        if let Some(importance) = &importance {
            let more = check_importance(&resolved, &checkpoint, importance)?;
            resolved.warnings.extend(more);
        }
        self.write(&checkpoint, &plan, &resolved)?;
        if let Some(output) = &self.output {
            self.prune.log_plan(session, &checkpoint, prune.as_ref(), (output, &plan.to_toml()))?;
        }
        resolved.warnings.iter().for_each(|warning| session.warn(warning));
        let predicted_speed = speed.as_ref().and_then(|speed| speed.predict(&checkpoint, &resolved));
        let fit = fit_on(&checkpoint, &plan, &resolved, &model_place(&session.device()?));
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
            checks: checks(&checkpoint, &plan, &resolved, predicted_speed, table.as_ref()),
            constraints: plan.constraints(),
            predicted_speed,
            fit_sentence: fit.as_ref().map(Fit::sentence),
            fit,
            targets: targets(&plan, &checkpoint)?,
            prune,
            budget,
            tensors: rows(&resolved, &checkpoint),
        };
        session.answer(&document, || self.text(&document, resolved.target))
    }

    /// Writes the files that were asked for.
    fn write(&self, checkpoint: &Checkpoint, plan: &Plan, resolved: &ResolvedPlan) -> Result<()> {
        if let Some(output) = &self.output {
            output::write_file(output, &plan.to_toml())?;
        }
        if let Some(output) = &self.write_tensor_types {
            output::write_file(output, &tensor_types::write(resolved, checkpoint))?;
        }
        if let Some(output) = &self.write_gates {
            if plan.constraints().is_empty() {
                let fault = Fault::new(Stage::Plan, "the plan states no constraints, so there are no gates to write");
                return Err(fault.fix("give --size, --max-kld, --max-slice-loss or another limit").into());
            }
            output::write_file(output, &plan.constraints().to_gates(plan.config_left(checkpoint)?.as_deref()))?;
        }
        Ok(())
    }

    fn text(&self, document: &Document<'_>, target: Target) -> String {
        let mut text = table(&document.tensors);
        if let Some(prune) = &document.prune {
            text.push_str(&format!("\n{}", prune.text()));
        }
        match &document.budget {
            Some(budget) => text.push_str(&format!("\n{}", budget.text(target))),
            None => text.push_str("\nTensors only: a file's metadata and tokenizer come on top.\n"),
        }
        if let Some(speed) = &document.predicted_speed {
            text.push_str(&format!(
                "Predicted here: {} tokens/s written, {} tokens/s read.\n",
                units::significant(speed.decode_tokens_per_second),
                units::significant(speed.prefill_tokens_per_second)
            ));
        }
        if let Some(fit) = &document.fit_sentence {
            text.push_str(&format!("{fit}\n"));
        }
        for check in &document.checks {
            text.push_str(&format!("{}: {} ({})\n", check.what, check.standing.name(), check.sentence()));
        }
        // Another target's objections concern only who wants to export there; those of the plan's own come as warnings too.
        for section in document.targets.iter().filter(|section| section.target == target.name()) {
            for issue in &section.issues {
                text.push_str(&format!("{}: {}\n", section.runtime, issue.sentence()));
            }
        }
        let written = [
            ("written to", &self.output),
            ("types written to", &self.write_tensor_types),
            ("gates written to", &self.write_gates),
        ];
        for (what, path) in written {
            if let Some(path) = path {
                text.push_str(&format!("{what} {}\n", path.display()));
            }
        }
        text
    }

    fn plan(&self, checkpoint: &Checkpoint, importance: Option<&Importance>) -> Result<Plan> {
        let mut plan = match &self.from {
            Some(path) => read_plan(path)?,
            None => Plan::new(self.target.unwrap_or(Target::Gguf), Some(&checkpoint.fingerprint)),
        };
        if let Some(target) = self.target.filter(|target| *target != plan.target()) {
            plan.set_target(target);
        }
        if self.recipe.is_some() {
            plan.set_recipe(self.recipe);
        }
        if let Some(calibration) = importance.and_then(Calibration::of) {
            plan.set_calibration(Some(calibration));
        }
        if let Some(format) = self.format {
            plan.set_default_format(Some(format))?;
        }
        self.budget.state(&mut plan);
        if let Some(path) = &self.tensor_type_file {
            tensor_types::read(&mut plan, checkpoint, path)?;
        }
        for (glob, format) in &self.set {
            plan.set_glob(checkpoint, glob, Treatment::format(format)?)?;
        }
        for RoleSetting { role, layers, format } in &self.set_role {
            let layers = layers.as_ref().map(some);
            plan.set_role_layers(checkpoint, *role, layers.as_deref(), Treatment::format(format)?)?;
        }
        for (from, to) in &self.copy_layer {
            plan.copy_layer(checkpoint, *from, &some(to))?;
        }
        for glob in &self.protect {
            plan.set_glob(checkpoint, glob, Treatment::Protect)?;
        }
        if self.make_legal {
            plan = plan.made_legal(checkpoint, plan.target())?;
        }
        Ok(plan)
    }
}

/// The layers of a set; enough of an absurd one to be refused.
fn some(layers: &LayerSet) -> Vec<usize> {
    layers.iter().take(1 << 16).collect()
}

/// Where a plan stands to its constraints before it is run.
fn checks(
    checkpoint: &Checkpoint,
    plan: &Plan,
    resolved: &ResolvedPlan,
    speed: Option<SpeedPrediction>,
    table: Option<&SensitivityTable>,
) -> Vec<Check> {
    let nats = table.filter(|table| table.unit == "nats");
    let facts = Facts {
        file_bytes: pass::file_bytes(checkpoint, resolved).ok(),
        weight_bytes: resolved.new_bytes,
        config: resolved.structure.as_ref().map(|left| &left.config).or(checkpoint.config.as_ref()),
        speed,
        kld: nats.and_then(|table| predicted_damage(table, checkpoint, resolved)),
        ..Facts::default()
    };
    standing::checks(plan.constraints(), &facts)
}

/// What each export target makes of the plan.
fn targets(plan: &Plan, checkpoint: &Checkpoint) -> Result<Vec<TargetSection>> {
    let section = |(target, runtime): (Target, &'static str)| {
        Ok(TargetSection { target: target.name(), runtime, issues: legality(plan, checkpoint, target)? })
    };
    legality::RUNTIMES.into_iter().map(section).collect()
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

/// Reads `ROLE=FORMAT` or `ROLE@LAYERS=FORMAT`.
fn role_setting(text: &str) -> std::result::Result<RoleSetting, String> {
    let (place, id) = text.rsplit_once('=').ok_or_else(|| "write it as ROLE@LAYERS=FORMAT".to_owned())?;
    let (role, layers) = match place.split_once('@') {
        Some((role, layers)) => (role, Some(LayerSet::parse(layers)?)),
        None => (place, None),
    };
    let role = Role::find(role).ok_or_else(|| {
        let known: Vec<&str> = Role::ALL.iter().map(|role| role.name()).collect();
        format!("the roles are {}", known.join(", "))
    })?;
    Ok(RoleSetting { role, layers, format: format_id(id)? })
}

/// Reads `FROM=LAYERS`.
fn layer_copy(text: &str) -> std::result::Result<(usize, LayerSet), String> {
    let usage = || "write it as FROM=LAYERS, such as 0=1-3".to_owned();
    let (from, to) = text.split_once('=').ok_or_else(usage)?;
    Ok((from.trim().parse().map_err(|_| usage())?, LayerSet::parse(to)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_and_layers_are_read() {
        let found = role_setting("down@0-2,5=Q6_K").expect("reads");
        assert_eq!((found.role, found.format), (Role::Down, "q6_k"));
        assert_eq!(found.layers.map(|layers| layers.iter().collect()), Some(vec![0, 1, 2, 5]));
        assert_eq!(role_setting("v=q8_0").expect("reads").layers, None);
        assert!(role_setting("vv=q8_0").is_err_and(|message| message.contains("embedding")));
        let (from, to) = layer_copy("0=1-2").expect("reads");
        assert_eq!((from, to.iter().collect::<Vec<_>>()), (0, vec![1, 2]));
        assert!(layer_copy("x=1").is_err() && layer_copy("1").is_err());
    }

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
