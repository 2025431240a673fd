//! Plans within a budget: least predicted damage in so many bytes, or fewest bytes at so much damage.
//!
//! A [`Planner`] is made once from a checkpoint, a plan and a sensitivity table: every tensor that the
//! table has a row of, and that no rule made by hand decides, is a group whose alternatives are the
//! formats measured for it and the stored type. [`Planner::propose`] then solves the knapsack for a
//! [`Limit`] and writes the answer as few rules, marked `planned = true`, behind which all rules made
//! by hand stay. It is fast enough to be asked on every move of a slider.
//!
//! The damage is predicted: a sum of what each change does alone, however those were measured.

mod floor;
mod rules;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::Serialize;

pub use super::knapsack::Effort;
pub use floor::{Floor, FloorPart};

use super::knapsack::{Alternative, Goal, Point, Problem};
use super::prune::Left;
use super::resolve::{padded, resolve_for, shape_of, stored_bytes};
use super::{Decision, Plan, ResolvedPlan, Subject, Target, Why};
use crate::checkpoint::{Checkpoint, Role, TensorInfo};
use crate::error::{Fault, Result, Stage};
use crate::format::{self, Dtype};
use crate::sensitivity::{self, Label, SensitivityTable};
use crate::units;

/// What a proposal must stay within.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// The whole file, metadata and tokenizer included.
    FileBytes(u64),
    /// All tensors with the padding between them.
    TensorBytes(u64),
    /// All tensors over all weights, scales included.
    BitsPerWeight(f64),
    /// The predicted damage, in the unit of the sensitivity table.
    Damage(f64),
}

impl fmt::Display for Limit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FileBytes(count) => write!(out, "a file of {}", units::bytes(*count)),
            Self::TensorBytes(count) => write!(out, "tensors of {}", units::bytes(*count)),
            Self::BitsPerWeight(bits) => write!(out, "{bits:.2} bits per weight"),
            Self::Damage(damage) => write!(out, "a predicted damage of {}", units::significant(*damage)),
        }
    }
}

/// Which tensors of a layer get the same format, because a runtime fuses them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ties {
    /// Query, key and value.
    pub attention: bool,
    /// Gate and up.
    pub mlp: bool,
}

impl Ties {
    /// What runtimes of the target ask for: llama.cpp nothing, those that fuse linears both.
    pub fn of(target: Target) -> Self {
        let is_fused = target != Target::Gguf;
        Self { attention: is_fused, mlp: is_fused }
    }

    /// What a tensor is tied by, if it is.
    fn key(self, tensor: &TensorInfo) -> Option<(usize, Role)> {
        let first = match tensor.role {
            Role::Q | Role::K | Role::V if self.attention => Role::Q,
            Role::Gate | Role::Up if self.mlp => Role::Gate,
            _ => return None,
        };
        Some((tensor.layer?, first))
    }
}

/// What a planner needs to know beside the plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BudgetOptions {
    /// Tensors that must be alike.
    pub ties: Ties,
    /// Bytes of the target's file beside tensors and their padding.
    pub overhead_bytes: u64,
}

/// A plan for a limit.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// The plan: the rules made by hand, and planned ones before them.
    pub plan: Plan,
    /// The plan worked out.
    pub resolved: ResolvedPlan,
    /// How good it is.
    pub report: BudgetReport,
}

/// What a proposal comes to and how it compares with the best there could be.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BudgetReport {
    /// What it had to stay within.
    pub limit: Limit,
    /// Id of the sensitivity metric.
    pub metric: String,
    /// Unit of the damage; empty for a ratio.
    pub unit: String,
    /// How the single changes were looked at; their sum is a prediction in any case.
    pub measured_how: Label,
    /// Sum of the damages of all changes, predicted.
    pub damage: f64,
    /// Standard error of that sum, where the single ones are estimates.
    pub damage_stderr: Option<f64>,
    /// Bytes of all tensors, padding not counted.
    pub tensor_bytes: u64,
    /// Bytes of the whole file.
    pub file_bytes: u64,
    /// Bits per weight, scales included.
    pub bits_per_weight: f64,
    /// No plan within the limit has less than this of what was made small: damage, or, where the
    /// damage was limited, tensor bytes.
    pub bound: f64,
    /// How far the proposal is from that bound.
    pub gap: f64,
    /// True if no plan within the limit is better.
    pub is_optimal: bool,
    /// The least that any plan takes.
    pub floor: Floor,
    /// What the user should know, one sentence each.
    pub warnings: Vec<String>,
}

/// One format for the tensors of a group.
#[derive(Clone, Copy, Debug)]
struct Offer {
    format: &'static str,
    bytes: u64,
    damage: f64,
    variance: f64,
}

/// Tensors that are decided together.
#[derive(Clone, Debug)]
struct Group {
    tensors: Vec<usize>,
    offers: Vec<Offer>,
}

/// Everything about a checkpoint, a plan and a table that any limit needs.
#[derive(Clone, Debug)]
pub struct Planner {
    plan: Plan,
    options: BudgetOptions,
    groups: Vec<Group>,
    problem: Problem,
    /// Types of the tensors that are not decided here.
    fixed: BTreeMap<usize, Dtype>,
    fixed_point: Point,
    fixed_variance: f64,
    weight_count: u64,
    floor: Floor,
    warnings: Vec<String>,
    metric: String,
    unit: String,
    label: Label,
}

impl Planner {
    /// Prepares the choices of `plan` for any number of limits.
    ///
    /// # Errors
    /// A plan that cannot be resolved, a table without any tensor of the checkpoint, tied tensors
    /// without a format in common.
    pub fn new(
        checkpoint: &Checkpoint,
        plan: &Plan,
        table: &SensitivityTable,
        options: &BudgetOptions,
    ) -> Result<Self> {
        Self::new_for(Subject::of(checkpoint), plan, table, options)
    }

    fn new_for(subject: Subject<'_>, plan: &Plan, table: &SensitivityTable, options: &BudgetOptions) -> Result<Self> {
        let resolved = resolve_for(plan, subject)?;
        let left = plan.left_for(subject, &mut Vec::new())?;
        let mut choices = Choices::new(subject, plan, table, left.as_ref());
        /// A tie, or none and the tensor's own index.
        type Key = (Option<(usize, Role)>, usize);
        let mut sets: BTreeMap<Key, Vec<usize>> = BTreeMap::new();
        for (index, tensor) in subject.tensors.iter().enumerate() {
            let key = options.ties.key(tensor);
            sets.entry((key, if key.is_some() { 0 } else { index })).or_default().push(index);
        }
        let mut sets: Vec<Vec<usize>> = sets.into_values().collect();
        // In the checkpoint's order, whatever is tied.
        sets.sort();
        let (mut groups, mut fixed) = (Vec::new(), BTreeMap::new());
        let mut decided_by_hand = Vec::new();
        for set in sets {
            let (free, settled): (Vec<usize>, Vec<usize>) = set.into_iter().partition(|&index| {
                let by_hand = is_by_hand(plan, &resolved.decisions[index]);
                if by_hand {
                    decided_by_hand.push(index);
                }
                !by_hand && choices.is_free(index)
            });
            for &index in &settled {
                fixed.insert(index, resolved.decisions[index].dtype);
            }
            if !free.is_empty() {
                groups.push(choices.group(free, &settled, &resolved)?);
            }
        }
        if groups.is_empty() {
            let remedy = "measure the sensitivity of this checkpoint, or lift protections";
            return Err(Fault::new(Stage::Plan, "there is no tensor to choose a format for").fix(remedy).into());
        }
        let alternatives = |group: &Group| -> Vec<Alternative> {
            group.offers.iter().map(|offer| Alternative { cost: offer.bytes, damage: offer.damage }).collect()
        };
        let problem = Problem::new(&groups.iter().map(alternatives).collect::<Vec<_>>())
            .map_err(|err| Fault::new(Stage::Plan, err.to_string()).fix("measure the sensitivity again"))?;

        let added = resolved.added.iter().map(|bias| padded(plan.target(), bias.bytes()));
        let mut fixed_point = Point { cost: added.fold(0, u64::saturating_add), damage: 0.0 };
        let mut fixed_variance = 0.0;
        for &index in fixed.keys() {
            let decision = &resolved.decisions[index];
            fixed_point.cost = fixed_point.cost.saturating_add(padded(plan.target(), decision.new_bytes));
            match choices.predicted(&subject.tensors[index], decision) {
                Some((damage, stderr)) => {
                    fixed_point.damage += damage;
                    fixed_variance += stderr.unwrap_or(0.0).powi(2);
                }
                None => choices.unknown.push(index),
            }
        }
        let floor = Floor::new(&floor::Inputs {
            subject,
            target: plan.target(),
            groups: &groups,
            problem: &problem,
            fixed: &fixed,
            by_hand: &decided_by_hand,
            decisions: &resolved.decisions,
            overhead_bytes: options.overhead_bytes,
        });
        Ok(Self {
            warnings: choices.warnings(plan),
            plan: plan.clone(),
            options: *options,
            groups,
            problem,
            fixed,
            fixed_point,
            fixed_variance,
            weight_count: resolved.new_weight_count,
            floor,
            metric: table.metric.clone(),
            unit: table.unit.clone(),
            label: table.label,
        })
    }

    /// The least that any plan takes, and what sets it.
    pub fn floor(&self) -> &Floor {
        &self.floor
    }

    /// The best that is to be had over all budgets: tensor bytes with padding, and predicted damage,
    /// by rising bytes.
    pub fn frontier(&self) -> Vec<Point> {
        let add = |point: &Point| Point {
            cost: point.cost + self.fixed_point.cost,
            damage: point.damage + self.fixed_point.damage,
        };
        self.problem.frontier().iter().map(add).collect()
    }

    /// Number of choices that are made: tensors, or ties of them.
    pub fn group_count(&self) -> usize {
        self.groups.len()
    }

    /// The best plan within `limit`, or the best found within `effort`.
    ///
    /// # Errors
    /// A limit that no plan can keep: with the floor and what sets it.
    pub fn propose(&self, checkpoint: &Checkpoint, limit: Limit, effort: &Effort) -> Result<Proposal> {
        self.propose_for(Subject::of(checkpoint), limit, effort)
    }

    fn propose_for(&self, subject: Subject<'_>, limit: Limit, effort: &Effort) -> Result<Proposal> {
        let fixed = self.fixed_point;
        let within = |bytes: u64| bytes.checked_sub(fixed.cost).map(Goal::CostAtMost);
        let goal = match limit {
            Limit::FileBytes(bytes) => bytes.checked_sub(self.options.overhead_bytes).and_then(within),
            Limit::TensorBytes(bytes) => within(bytes),
            // A cast of a float saturates; NaN becomes 0.
            Limit::BitsPerWeight(bits) => within((bits * self.weight_count as f64 / 8.0) as u64),
            Limit::Damage(damage) => Some(Goal::DamageAtMost(damage - fixed.damage)),
        };
        let solution =
            goal.and_then(|goal| self.problem.solve_exactly(goal, effort)).ok_or_else(|| self.impossible(limit))?;
        let chosen: Vec<Offer> =
            self.groups.iter().zip(&solution.picks).map(|(group, &pick)| group.offers[pick]).collect();
        let (plan, resolved) = self.plan_of(subject, &chosen)?;

        let variance = self.fixed_variance + chosen.iter().map(|offer| offer.variance).sum::<f64>();
        let base = match limit {
            Limit::Damage(_) => fixed.cost as f64,
            _ => fixed.damage,
        };
        let report = BudgetReport {
            limit,
            metric: self.metric.clone(),
            unit: self.unit.clone(),
            measured_how: self.label,
            damage: solution.point.damage + fixed.damage,
            damage_stderr: (variance > 0.0).then(|| variance.sqrt()),
            tensor_bytes: resolved.new_bytes,
            file_bytes: resolved.padded_bytes.saturating_add(self.options.overhead_bytes),
            bits_per_weight: resolved.new_bits_per_weight(),
            bound: base + solution.bound,
            gap: solution.gap(),
            is_optimal: solution.is_optimal,
            floor: self.floor.clone(),
            warnings: self.warnings.clone(),
        };
        Ok(Proposal { plan, resolved, report })
    }

    /// The fault for a limit that no plan keeps.
    fn impossible(&self, limit: Limit) -> Fault {
        let fault = Fault::new(Stage::Plan, format!("no plan keeps within {limit}: {}", self.floor.sentence(limit)));
        match limit {
            Limit::Damage(_) => {
                let least = self.problem.best().damage + self.fixed_point.damage;
                let cause = format!("no plan keeps within {limit}: the least is {}", units::significant(least));
                let remedy = "allow more, or let the planner decide tensors that rules made by hand decide";
                Fault::new(Stage::Plan, cause).fix(remedy)
            }
            _ => fault.fix("allow more, protect less, or measure the sensitivity of smaller formats"),
        }
    }

    /// The plan that stores every group as chosen and everything else as it was.
    fn plan_of(&self, subject: Subject<'_>, chosen: &[Offer]) -> Result<(Plan, ResolvedPlan)> {
        let mut wanted = self.fixed.clone();
        let mut choices: Vec<(usize, &'static str)> = Vec::new();
        for (group, offer) in self.groups.iter().zip(chosen) {
            choices.extend(group.tensors.iter().map(|&index| (index, offer.format)));
        }
        for &(index, id) in &choices {
            wanted.extend(format::find(id).map(|format| (index, format.dtype())));
        }
        let mut exact = Vec::new();
        // What the new default or a rule for a whole role would change by the way is held: first by
        // rules as wide as the others, then by name.
        for attempt in 0..3 {
            let (default, mut planned) = rules::readable(subject.tensors, &choices);
            planned.append(&mut exact);
            let mut plan = self.plan.clone();
            plan.set_planned(default, planned)?;
            let resolved = resolve_for(&plan, subject)?;
            let strays = resolved.decisions.iter().filter(|one| wanted.get(&one.tensor_index) != Some(&one.dtype));
            let strays: Vec<(usize, &'static str)> = strays
                .filter_map(|one| {
                    let held = format::of_dtype(*wanted.get(&one.tensor_index)?)?;
                    Some((one.tensor_index, held.id()))
                })
                .collect();
            if strays.is_empty() {
                return Ok((plan, resolved));
            }
            match attempt {
                0 => {
                    choices.retain(|(index, _)| strays.iter().all(|stray| stray.0 != *index));
                    choices.extend(strays);
                }
                _ => exact = strays.iter().map(|&(index, id)| rules::exact(&subject.tensors[index], id)).collect(),
            }
        }
        Err(Fault::new(Stage::Plan, "the rules made by hand leave no room for the proposal")
            .fix("remove the rule that was added last and try again")
            .into())
    }
}

/// True if a rule that the planner did not make decides.
fn is_by_hand(plan: &Plan, decision: &Decision) -> bool {
    match decision.why {
        Why::Protected(_) => true,
        Why::Rule(rule) => plan.rules().get(rule).is_some_and(|rule| !rule.is_planned),
        _ => false,
    }
}

/// What may be chosen for tensors, and what is not known of them.
struct Choices<'a> {
    subject: Subject<'a>,
    target: Target,
    table: &'a SensitivityTable,
    rows: HashMap<&'a str, usize>,
    /// The network that is left, where the plan prunes.
    left: Option<&'a Left>,
    /// Tensors and formats without a value.
    missing: Vec<(usize, &'static str)>,
    /// Decided elsewhere, with a damage that is not known.
    unknown: Vec<usize>,
}

impl<'a> Choices<'a> {
    fn new(subject: Subject<'a>, plan: &Plan, table: &'a SensitivityTable, left: Option<&'a Left>) -> Self {
        let rows = table.rows.iter().enumerate().map(|(index, row)| (row.name.as_str(), index)).collect();
        Self { subject, target: plan.target(), table, rows, left, missing: Vec::new(), unknown: Vec::new() }
    }

    /// What stays of a tensor where the plan prunes, if anything does.
    fn part(&self, index: usize) -> Option<&'a TensorInfo> {
        match self.left {
            None => self.subject.tensors.get(index),
            Some(left) => Some(&left.tensors[left.places[index]?]),
        }
    }

    /// True if the target lets a format be chosen for the tensor and the table knows of it.
    fn is_free(&self, index: usize) -> bool {
        let tensor = &self.subject.tensors[index];
        self.part(index).is_some()
            && (tensor.dtype.is_float() || !tensor.dtype.is_plain())
            && format::is_decodable(tensor.dtype)
            && tensor.shape.len() > 1
            && (self.target != Target::Gguf || shape_of(tensor).may_quantize())
            && self.rows.contains_key(tensor.name.as_str())
    }

    /// All that a tensor may become, the stored type first. Of a tensor that pruning makes smaller, bytes are
    /// those of what stays, and the damage counts by its share of the weights.
    fn offers(&mut self, index: usize) -> Vec<Offer> {
        let tensor = &self.subject.tensors[index];
        let Some(part) = self.part(index) else { return Vec::new() };
        let is_whole = part.shape == tensor.shape;
        let share = part.weight_count() as f64 / tensor.weight_count().max(1) as f64;
        let mut offers: Vec<Offer> = Vec::new();
        if let Some(stored) = format::of_dtype(part.dtype).filter(|stored| self.target.allows(stored.id())) {
            let bytes = padded(self.target, part.byte_count);
            offers.push(Offer { format: stored.id(), bytes, damage: 0.0, variance: 0.0 });
        }
        let Some(row) = self.rows.get(tensor.name.as_str()).map(|&row| &self.table.rows[row]) else { return offers };
        for (id, cell) in self.table.formats.iter().zip(&row.cells) {
            let Some(asked) = format::find(id) else { continue };
            let Some(cell) = cell else {
                if self.target.allows(asked.id()) {
                    self.missing.push((index, asked.id()));
                }
                continue;
            };
            let measured = cell.fell_back_to.as_deref().and_then(format::find).unwrap_or(asked);
            let fitting = if is_whole { measured } else { format::fitting(measured, part.row_len()) };
            let format = fitting.id();
            if self.target.allows(format) && offers.iter().all(|offer| offer.format != format) {
                let variance = (cell.stderr.unwrap_or(0.0) * share).powi(2);
                let bytes = if is_whole { cell.bytes } else { stored_bytes(self.target, fitting.dtype(), part) };
                let bytes = padded(self.target, bytes);
                offers.push(Offer { format, bytes, damage: cell.value.max(0.0) * share, variance });
            }
        }
        offers
    }

    /// Tensors that are decided together; `settled` are tied to them and decided already.
    fn group(&mut self, tensors: Vec<usize>, settled: &[usize], resolved: &ResolvedPlan) -> Result<Group> {
        let mut offers: Option<Vec<Offer>> = None;
        for &index in &tensors {
            let own = self.offers(index);
            offers = Some(match offers {
                None => own,
                Some(common) => common
                    .into_iter()
                    .filter_map(|offer| {
                        let other = own.iter().find(|other| other.format == offer.format)?;
                        Some(Offer {
                            bytes: offer.bytes.saturating_add(other.bytes),
                            damage: offer.damage + other.damage,
                            variance: offer.variance + other.variance,
                            ..offer
                        })
                    })
                    .collect(),
            });
        }
        let mut offers = offers.unwrap_or_default();
        offers.retain(|offer| {
            let dtype = format::find(offer.format).map(|format| format.dtype());
            settled.iter().all(|&index| dtype == Some(resolved.decisions[index].dtype))
        });
        if offers.is_empty() {
            let name = |index: &usize| self.subject.tensors[*index].name.clone();
            let names: Vec<String> = tensors.iter().chain(settled).map(name).collect();
            return Err(Fault::new(Stage::Plan, "tied tensors have no format in common")
                .at(names.join(", "))
                .fix("measure the same formats for all of them, decide all of them by hand, or untie them")
                .into());
        }
        Ok(Group { tensors, offers })
    }

    /// Damage of a tensor that is decided elsewhere, with its standard error.
    fn predicted(&self, tensor: &TensorInfo, decision: &Decision) -> Option<(f64, Option<f64>)> {
        cell_damage(self.table, |name| self.rows.get(name).copied(), tensor, decision)
    }

    fn warnings(&self, plan: &Plan) -> Vec<String> {
        let mut warnings = Vec::new();
        match (self.table.imatrix.is_some(), plan.calibration().is_some()) {
            (true, false) => warnings.push(
                "The sensitivity was measured with an importance matrix, which the plan does not have.".to_owned(),
            ),
            (false, true) => warnings.push(
                "The sensitivity was measured without the plan's importance matrix, with which the damage is less."
                    .to_owned(),
            ),
            _ => {}
        }
        if self.table.checkpoint != self.subject.fingerprint {
            warnings.push("The sensitivity was measured on another checkpoint.".to_owned());
        }
        let name = |index: usize| &self.subject.tensors[index].name;
        match self.missing.as_slice() {
            [] => {}
            [(index, id)] => {
                warnings.push(format!("{} in {id} was not measured, so it was not considered.", name(*index)));
            }
            [(index, id), ..] => warnings.push(format!(
                "{} choices were not measured, so they were not considered: the first is {} in {id}.",
                self.missing.len(),
                name(*index)
            )),
        }
        match self.unknown.as_slice() {
            [] => {}
            [index] => warnings.push(format!(
                "{} is decided by hand in a format that was not measured, so its damage is not in the prediction.",
                name(*index)
            )),
            [index, ..] => warnings.push(format!(
                "{} tensors stay in formats that were not measured, so their damage is not in the prediction: the first is {}.",
                self.unknown.len(),
                name(*index)
            )),
        }
        warnings
    }
}

/// Sum of the damages of a plan's choices; none where one of them is not in the table.
pub fn predicted_damage(table: &SensitivityTable, checkpoint: &Checkpoint, resolved: &ResolvedPlan) -> Option<f64> {
    let rows: HashMap<&str, usize> =
        table.rows.iter().enumerate().map(|(index, row)| (row.name.as_str(), index)).collect();
    resolved.decisions.iter().try_fold(0.0, |sum, decision| {
        let tensor = checkpoint.tensors.get(decision.tensor_index)?;
        Some(sum + cell_damage(table, |name| rows.get(name).copied(), tensor, decision)?.0)
    })
}

/// What one decision does by the table, with its standard error; nothing where the stored values
/// stay or the tensor is none that sensitivity is about.
fn cell_damage<'a>(
    table: &SensitivityTable,
    row_of: impl Fn(&'a str) -> Option<usize>,
    tensor: &'a TensorInfo,
    decision: &Decision,
) -> Option<(f64, Option<f64>)> {
    if decision.is_copy() || decision.is_removed() || !sensitivity::is_default_subject(tensor) {
        return Some((0.0, None));
    }
    let format = format::of_dtype(decision.dtype)?;
    let column = table.column(format.id());
    if format.dtype().is_plain() && column.is_none() {
        return Some((0.0, None));
    }
    let cell = table.rows.get(row_of(&tensor.name)?)?.cells.get(column?)?.as_ref()?;
    Some((cell.value, cell.stderr))
}
