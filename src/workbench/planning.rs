//! What the workbench does with plans beyond single choices: budgets and constraints, legality, kept
//! plans, and the passes that run them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Workbench;
use super::events::Outcome;
use super::jobs::JobKind;
use super::project::{self, Project, SavedPlan};
use super::state::{Document, Level, NamedPlan};
use super::tasks::{self, Predecessor};
use crate::engine::error::{Error, Fault, Result, Stage};
use crate::engine::pass;
use crate::engine::plan::budget::{BudgetOptions, Effort, Limit, Planner};
use crate::engine::plan::speed::SpeedModel;
use crate::engine::plan::{Constraints, Plan, ResolvedPlan, Search, Target};
use crate::engine::scoring::kernel_rates::{self, KernelRates, RateOptions};

/// The step of history that a budget is.
const BUDGET_STEP: &str = "plan within a budget";

/// Where the frontier is run, as shares of its logarithmic length.
const FRONTIER_SHARES: [f64; 3] = [0.25, 0.5, 0.75];

impl Document {
    /// Predicts speeds of this checkpoint, once the kernels of this machine are timed; brought to the
    /// original's measured speed where there is one.
    pub fn speed_model(&self, rates: Option<&Arc<KernelRates>>) -> Option<SpeedModel> {
        let model = SpeedModel::new(rates?.clone(), &self.checkpoint);
        let measured = self.baseline.as_ref().and_then(|baseline| baseline.speed.as_ref());
        Some(match measured {
            Some(measured) => model.calibrated(&self.checkpoint, measured),
            None => model,
        })
    }

    /// Bytes of the plan's file beside its tensors, where they are known.
    pub fn overhead_bytes(&self) -> Option<u64> {
        let (target, has_importance, prune) = &self.overhead_bytes.as_ref()?.0;
        let plan = self.plan();
        let is_current =
            *target == plan.target() && *has_importance == plan.calibration().is_some() && prune == plan.prune();
        self.overhead_bytes.as_ref().filter(|_| is_current).map(|(_, bytes)| *bytes)
    }

    /// Works [`Document::overhead_bytes`] out, unless they are known.
    fn find_overhead(&mut self) -> Result<u64> {
        if let Some(bytes) = self.overhead_bytes() {
            return Ok(bytes);
        }
        let plan = self.plan();
        let bytes = pass::overhead_bytes(&self.checkpoint, plan)?;
        let key = (plan.target(), plan.calibration().is_some(), plan.prune().clone());
        self.overhead_bytes = Some((key, bytes));
        Ok(bytes)
    }
}

/// Finds out what the file holds beside tensors, where a constraint asks for its size.
pub(super) fn know_overhead(document: &mut Document) {
    if document.plan().constraints().max_file_bytes.is_some()
        && let Err(err) = document.find_overhead()
    {
        tracing::debug!("the file's size is not known: {err}");
    }
}

/// History and kept plans of a project; what cannot be read is left out.
pub(super) fn kept_plans(project: &Project) -> (Vec<(String, Plan)>, Vec<NamedPlan>) {
    let read = |saved: &SavedPlan| match Plan::parse(&saved.plan, None) {
        Ok(plan) => Some((saved.name.clone(), plan)),
        Err(err) => {
            tracing::warn!("a kept plan is left out: {err}");
            None
        }
    };
    let named = project.named.iter().filter_map(read).map(|(name, plan)| NamedPlan { name, plan });
    (project.history.iter().filter_map(read).collect(), named.collect())
}

impl Workbench {
    /// Lets the device search codes where the plan leaves it to the CPU, and the other way round.
    pub(super) fn toggle_device_search(&mut self) -> Result<()> {
        let is_on = self.state.document.as_ref().is_some_and(|document| document.plan().search() == Search::Device);
        let (name, next) =
            if is_on { ("search on the CPU", Search::Cpu) } else { ("search on the device", Search::Device) };
        self.change_plan(name.to_owned(), |_, plan| {
            plan.set_search(next);
            Ok(())
        })
    }

    /// Tensors with all that the plan ties to them.
    pub(super) fn tied(&self, tensors: &[usize]) -> Vec<usize> {
        match &self.state.document {
            Some(document) => document.plan().ties().widen(&document.checkpoint.tensors, tensors),
            None => tensors.to_vec(),
        }
    }

    /// A planner for the plan as it is, by the table of `metric` or of the metric that says most.
    fn planner(&mut self, limits: &[Limit], metric: Option<&str>) -> Result<Option<Planner>> {
        let rates = self.state.rates.clone();
        let Some(document) = &mut self.state.document else { return Ok(None) };
        let table = match metric {
            Some(id) => document.sensitivity.get(id),
            None => document.budget_table(),
        };
        let Some(table) = table.cloned() else {
            return Err(Fault::new(Stage::Plan, "a budget needs to know what each tensor minds")
                .fix("measure the sensitivity first")
                .into());
        };
        let is_of_file = limits.iter().any(|limit| matches!(limit, Limit::FileBytes(_)));
        let overhead_bytes = if is_of_file { document.find_overhead()? } else { 0 };
        let options =
            BudgetOptions { ties: document.plan().ties(), overhead_bytes, speed: document.speed_model(rates.as_ref()) };
        Planner::new(&document.checkpoint, document.plan(), &table, &options).map(Some)
    }

    /// Makes the planner's answer the plan; dragging along a limit is one step of history.
    pub(super) fn plan_within(&mut self, limits: &[Limit], metric: Option<&str>, continues: bool) -> Result<()> {
        /// What a slider may take for each of its moves, and for an answer that is asked for once.
        const EFFORTS: [u64; 2] = [300_000, 4_000_000];
        let Some(planner) = self.planner(limits, metric)? else { return Ok(()) };
        let Some(document) = &mut self.state.document else { return Ok(()) };
        let effort = Effort { most_states: EFFORTS[usize::from(!continues)] };
        let proposal = planner.propose_within(&document.checkpoint, limits, &effort)?;
        let changed = if continues {
            document.history.amend(BUDGET_STEP, proposal.plan)
        } else {
            document.history.push(BUDGET_STEP, proposal.plan)
        };
        if changed {
            document.resolved = Ok(Arc::new(proposal.resolved));
            document.is_dirty = true;
        }
        if !continues {
            for warning in proposal.report.warnings {
                self.state.notify(Level::Warning, warning);
            }
        }
        Ok(())
    }

    /// Plans for what the plan states; a KLD that cannot be had within the rest is told.
    pub(super) fn fit_constraints(&mut self) -> Result<()> {
        let Some(document) = &self.state.document else { return Ok(()) };
        // The KV cache is that of the network which the plan leaves.
        let config = document.plan().config_left(&document.checkpoint)?;
        let limits = document.plan().constraints().limits(config.as_deref());
        self.plan_within(&limits, None, false)
    }

    /// States what the result must keep to, as a step of history.
    pub(super) fn set_constraints(&mut self, constraints: Constraints) -> Result<()> {
        self.change_plan("constraints".to_owned(), |_, plan| {
            plan.set_constraints(constraints);
            Ok(())
        })
    }

    /// Turns the plan to a target, with the nearest legal choice wherever it has none.
    pub(super) fn make_legal(&mut self, target: Target) -> Result<()> {
        self.change_plan(format!("legal for {target}"), |document, plan| {
            *plan = plan.made_legal(&document.checkpoint, target)?;
            Ok(())
        })
    }

    /// Keeps the plan under a name; a kept one of that name is replaced.
    pub(super) fn name_plan(&mut self, name: &str) {
        let name = name.trim();
        if name.is_empty() {
            self.state.notify(Level::Warning, "A kept plan needs a name");
            return;
        }
        self.with_document(|document| {
            let plan = document.plan().clone();
            match document.named.iter_mut().find(|named| named.name == name) {
                Some(named) => named.plan = plan,
                None => document.named.push(NamedPlan { name: name.to_owned(), plan }),
            }
        });
    }

    /// Makes a kept plan the plan.
    pub(super) fn return_to(&mut self, name: &str) -> Result<()> {
        let Some(document) = &self.state.document else { return Ok(()) };
        let Some(kept) = document.named.iter().find(|named| named.name == name).cloned() else {
            self.state.notify(Level::Warning, format!("No plan is kept as {name}"));
            return Ok(());
        };
        self.change_plan(format!("return to {name}"), |_, plan| {
            *plan = kept.plan;
            Ok(())
        })
    }

    /// Writes the plan's constraints as gates.
    pub(super) fn export_gates(&mut self, path: &Path) -> Result<()> {
        let Some(document) = &self.state.document else { return Ok(()) };
        let config = document.plan().config_left(&document.checkpoint)?;
        let text = document.plan().constraints().to_gates(config.as_deref());
        super::files::write_atomically(path, text.as_bytes()).map_err(Error::io("write", path))?;
        self.state.notify(Level::Info, format!("Gates written to {}", path.display()));
        Ok(())
    }

    /// Times the kernels of this machine.
    pub(super) fn measure_rates(&mut self) {
        self.jobs.spawn(JobKind::Rates, "speed of the kernels", |context| {
            let rates = kernel_rates::measure(&RateOptions::default(), &context.progress)?;
            Ok(Outcome::Rates(Box::new(rates)))
        });
    }

    /// Takes rates in and keeps them for the next start.
    pub(super) fn take_rates(&mut self, rates: KernelRates) {
        if let Err(err) = super::rates::keep_rates(&self.options.cache_dir, &rates) {
            self.state.notify(Level::Warning, format!("The kernel speeds could not be kept: {err}"));
        }
        self.state.rates = Some(Arc::new(rates));
    }

    /// Runs the plan as it is.
    pub(super) fn run_plan(&mut self, name: Option<String>, output: Option<PathBuf>) -> Result<()> {
        let Some(document) = &self.state.document else { return Ok(()) };
        let resolved = match &document.resolved {
            Ok(resolved) => resolved.clone(),
            Err(err) => return Err(err.clone()),
        };
        let plan = document.plan().clone();
        let name = name.unwrap_or_else(|| name_of_plan(&plan, document));
        self.spawn_pass(plan, resolved, name, output)
    }

    fn spawn_pass(
        &mut self,
        plan: Plan,
        resolved: Arc<ResolvedPlan>,
        name: String,
        output: Option<PathBuf>,
    ) -> Result<()> {
        let Some(document) = &self.state.document else { return Ok(()) };
        let extension = (plan.target() == Target::Gguf).then_some("gguf");
        let output = match output {
            Some(output) => output,
            None => tasks::candidate_path(&project::output_folder(&document.project_path), &name, extension)?,
        };
        let checkpoint = document.checkpoint.clone();
        let folder = project::output_folder(&document.project_path);
        let importance = document.importance_in_use().cloned();
        // The latest first: it is nearest to what is asked for now.
        let predecessors: Vec<Predecessor> = document.runs.iter().rev().filter_map(Predecessor::of).collect();
        self.jobs.spawn(JobKind::Pass, format!("compress to {name}"), move |context| {
            let places = [output.as_path(), folder.as_path()];
            tasks::run_plan(&checkpoint, plan, &resolved, importance, &predecessors, name, places, context)
        });
        Ok(())
    }

    /// Runs the planner's best at three sizes, evenly over the curve; the plan stays as it is.
    pub(super) fn run_frontier(&mut self) -> Result<()> {
        let Some(planner) = self.planner(&[], None)? else { return Ok(()) };
        let sizes = frontier_sizes(&planner);
        for bytes in sizes {
            let Some(document) = &self.state.document else { return Ok(()) };
            let proposal = planner.propose(&document.checkpoint, Limit::TensorBytes(bytes), &Effort::default())?;
            let name = format!("frontier {:.2} bpw", proposal.report.bits_per_weight);
            if document.runs.iter().all(|run| run.name != name) {
                self.spawn_pass(proposal.plan, Arc::new(proposal.resolved), name, None)?;
            }
        }
        Ok(())
    }
}

/// Sizes at which the frontier is run: corners of the curve, so that each is the best of its size.
fn frontier_sizes(planner: &Planner) -> Vec<u64> {
    let curve = planner.frontier();
    let (Some(first), Some(last)) = (curve.first(), curve.last()) else { return Vec::new() };
    let (low, high) = ((first.cost.max(1) as f64).ln(), (last.cost.max(1) as f64).ln());
    let mut sizes: Vec<u64> = FRONTIER_SHARES
        .iter()
        .filter_map(|share| {
            let wanted = (low + (high - low) * share).exp();
            let distance = |bytes: u64| ((bytes.max(1) as f64).ln() - wanted.ln()).abs();
            curve.iter().map(|point| point.cost).min_by(|one, other| distance(*one).total_cmp(&distance(*other)))
        })
        .collect();
    sizes.dedup();
    sizes
}

/// A name for a run that has none: its recipe, and a number of edits on top.
fn name_of_plan(plan: &Plan, document: &Document) -> String {
    let base = plan
        .recipe()
        .map(|recipe| recipe.name().to_owned())
        .or_else(|| plan.default_format().map(str::to_owned))
        .unwrap_or_else(|| "as stored".to_owned());
    let planned = plan.rules().iter().any(|rule| rule.is_planned);
    let bits = document.resolved.as_ref().ok().map(|resolved| resolved.new_bits_per_weight()).filter(|_| planned);
    let base = if let Some(bits) = bits {
        format!("planned {bits:.2} bpw")
    } else if plan.rules().is_empty() {
        base
    } else {
        format!("{base}+{}", plan.rules().len())
    };
    document.free_name(&base)
}
