//! Plans within a budget: least predicted damage in so many bytes, or fewest bytes at so much damage.
//!
//! A [`Planner`] is made once from a checkpoint, a plan and a sensitivity table: every tensor that the
//! table has a row of, and that no rule made by hand decides, is a group whose alternatives are the
//! formats measured for it and the stored type. [`Planner::propose`] then solves the knapsack for a
//! [`Limit`] and writes the answer as few rules, marked `planned = true`, behind which all rules made
//! by hand stay. It is fast enough to be asked on every move of a slider.
//!
//! The damage is predicted: a sum of what each change does alone, however those were measured.

mod choices;
mod damages;
mod floor;
mod limit;
mod outline;
mod rules;
mod several;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::Serialize;

pub(crate) use damages::Damages;
pub use damages::predicted_damage;
pub use floor::{Floor, FloorPart};
pub use limit::Limit;
pub use outline::outline;

pub use super::knapsack::Effort;
use super::knapsack::{Alternative, Goal, Point, Problem, Solution};
use super::resolve::{padded, resolve_for};
use super::speed::{Secs, SpeedModel, SpeedPrediction};
use super::{Decision, Plan, ResolvedPlan, Subject, Ties, Why};
use crate::checkpoint::{Checkpoint, Role};
use crate::error::{Fault, Result, Stage};
use crate::format::{self, Dtype};
use crate::sensitivity::{Label, SensitivityTable};
use crate::units;
use choices::Choices;
use limit::TimeLimit;
use several::Cap;

/// Bytes that may be used, and the limit that says so.
type Room = (u64, Limit);

/// What a planner needs to know beside the plan.
#[derive(Clone, Debug, Default)]
pub struct BudgetOptions {
    /// Tensors that must be alike.
    pub ties: Ties,
    /// Bytes of the target's file beside tensors and their padding.
    pub overhead_bytes: u64,
    /// What limits of speed need.
    pub speed: Option<SpeedModel>,
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
    /// What it had to stay within; the first where there were several.
    pub limit: Limit,
    /// All that it had to stay within.
    pub limits: Vec<Limit>,
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
    /// How fast it will be here, where kernel rates are known; predicted.
    pub speed: Option<SpeedPrediction>,
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
    /// Time of its products, where it is known.
    secs: Option<Secs>,
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
    /// Time of what is not decided here and of all beside products, where it is known.
    fixed_secs: Option<Secs>,
    weight_count: u64,
    floor: Floor,
    warnings: Vec<String>,
    metric: String,
    unit: String,
    label: Label,
    /// The same for other formats, where the target holds one for all and this planner knows one.
    others: Vec<Planner>,
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
        if !plan.target().holds_one_format() {
            return Self::new_with(subject, plan, table, options, None);
        }
        // One planner for each format that could be the one for all.
        let held = table.formats.iter().filter_map(|id| format::find(id)).map(|format| format.id());
        let held =
            held.filter(|id| plan.target().allows(id) && format::find(id).is_some_and(|one| one.dtype().is_scheme()));
        let mut planners: Vec<Self> = Vec::new();
        let mut fault = None;
        for id in held {
            match Self::new_with(subject, plan, table, options, Some(id)) {
                Ok(planner) => planners.push(planner),
                Err(err) => fault = Some(err),
            }
        }
        if planners.is_empty() {
            return match fault {
                Some(fault) => Err(fault),
                None => Self::new_with(subject, plan, table, options, Some("")),
            };
        }
        let mut first = planners.remove(0);
        first.others = planners;
        Ok(first)
    }

    /// A planner that quantizes with `only` one format, where that is given.
    fn new_with(
        subject: Subject<'_>,
        plan: &Plan,
        table: &SensitivityTable,
        options: &BudgetOptions,
        only: Option<&'static str>,
    ) -> Result<Self> {
        // What the planner chose before, and a base in another format, must not stand in the way of this one.
        let freed = only.map(|id| plan.freed_for(id)).transpose()?;
        let plan = freed.as_ref().unwrap_or(plan);
        let resolved = resolve_for(plan, subject)?;
        let left = plan.left_for(subject, &mut Vec::new())?;
        let mut choices = Choices::new(subject, plan, table, options.speed.as_ref(), left.as_ref());
        choices.only = only;
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
        let structure = resolved.structure.as_deref();
        let mut fixed_secs = options.speed.as_ref().map(|speed| speed.base(structure));
        for &index in fixed.keys() {
            let decision = &resolved.decisions[index];
            let own = if decision.is_removed() {
                Some(Secs::default())
            } else {
                choices.secs(index, decision.dtype, decision.new_weight_count)
            };
            fixed_secs = fixed_secs.zip(own).map(|(sum, own)| sum + own);
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
            options: options.clone(),
            groups,
            problem,
            fixed,
            fixed_point,
            fixed_variance,
            fixed_secs,
            weight_count: resolved.new_weight_count,
            floor,
            metric: table.metric.clone(),
            unit: table.unit.clone(),
            label: table.label,
            others: Vec::new(),
        })
    }

    /// The least that any plan takes, and what sets it.
    pub fn floor(&self) -> &Floor {
        let all = std::iter::once(self).chain(&self.others);
        all.map(|planner| &planner.floor).min_by_key(|floor| floor.tensor_bytes).unwrap_or(&self.floor)
    }

    /// The best that is to be had over all budgets: tensor bytes with padding, and predicted damage,
    /// by rising bytes.
    pub fn frontier(&self) -> Vec<Point> {
        let add = |point: &Point| Point {
            cost: point.cost + self.fixed_point.cost,
            damage: point.damage + self.fixed_point.damage,
        };
        let mut points: Vec<Point> = self.problem.frontier().iter().map(add).collect();
        for other in &self.others {
            points.extend(other.frontier());
        }
        points.sort_by(|one, other| one.cost.cmp(&other.cost).then(one.damage.total_cmp(&other.damage)));
        let mut least = f64::INFINITY;
        points.retain(|point| {
            let is_better = point.damage < least || least == f64::INFINITY;
            least = least.min(point.damage);
            is_better
        });
        points
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
        self.propose_within(checkpoint, &[limit], effort)
    }

    /// The best plan found that keeps every limit: least damage, or fewest bytes where nothing but
    /// the damage is limited.
    ///
    /// # Errors
    /// No limit at all, one that no plan can keep, or limits that no plan was found to keep together:
    /// with the floor and what sets it; a limit of speed without kernel rates.
    pub fn propose_within(&self, checkpoint: &Checkpoint, limits: &[Limit], effort: &Effort) -> Result<Proposal> {
        self.propose_for(Subject::of(checkpoint), limits, effort)
    }

    fn propose_for(&self, subject: Subject<'_>, limits: &[Limit], effort: &Effort) -> Result<Proposal> {
        let Some(&limit) = limits.first() else {
            let fault = Fault::new(Stage::Plan, "there is no limit to plan for");
            return Err(fault.fix("state a size, a speed or a damage").into());
        };
        if !self.others.is_empty() {
            return self.propose_best(subject, limits, effort);
        }
        let fixed = self.fixed_point;
        let solution = self.solve(limits, effort)?;
        let chosen: Vec<Offer> =
            self.groups.iter().zip(&solution.picks).map(|(group, &pick)| group.offers[pick]).collect();
        let damage = solution.point.damage + fixed.damage;
        let most = limits.iter().filter_map(|limit| match limit {
            Limit::Damage(most) => Some(*most),
            _ => None,
        });
        if let Some(most) = most.min_by(f64::total_cmp).filter(|most| damage > most * (1.0 + 1e-9)) {
            let others = limits.iter().filter(|limit| !matches!(limit, Limit::Damage(_))).map(ToString::to_string);
            let others: Vec<String> = others.collect();
            let cause = format!(
                "no plan was found that keeps within {} and {}: the least damage there is {}",
                others.join(", "),
                Limit::Damage(most),
                units::significant(damage)
            );
            return Err(Fault::new(Stage::Plan, cause).fix("allow more of one of them").into());
        }
        let (plan, resolved) = self.plan_of(subject, &chosen)?;

        let variance = self.fixed_variance + chosen.iter().map(|offer| offer.variance).sum::<f64>();
        let is_by_damage = limits.iter().all(|limit| matches!(limit, Limit::Damage(_)));
        let base = if is_by_damage { fixed.cost as f64 } else { fixed.damage };
        let report = BudgetReport {
            limit,
            limits: limits.to_vec(),
            metric: self.metric.clone(),
            unit: self.unit.clone(),
            measured_how: self.label,
            damage,
            damage_stderr: (variance > 0.0).then(|| variance.sqrt()),
            tensor_bytes: resolved.new_bytes,
            file_bytes: resolved.padded_bytes.saturating_add(self.options.overhead_bytes),
            bits_per_weight: resolved.new_bits_per_weight(),
            speed: self.options.speed.as_ref().and_then(|speed| speed.predict_for(subject.tensors, &resolved)),
            bound: base + solution.bound,
            gap: solution.gap(),
            is_optimal: solution.is_optimal,
            floor: self.floor.clone(),
            warnings: self.warnings.clone(),
        };
        Ok(Proposal { plan, resolved, report })
    }

    /// The best answer of all planners, each of which knows one format.
    fn propose_best(&self, subject: Subject<'_>, limits: &[Limit], effort: &Effort) -> Result<Proposal> {
        let alone = Self { others: Vec::new(), ..self.clone() };
        let is_by_damage = limits.iter().all(|limit| matches!(limit, Limit::Damage(_)));
        let rank = |report: &BudgetReport| if is_by_damage { report.tensor_bytes as f64 } else { report.damage };
        let mut answers: Vec<Result<Proposal>> = Vec::new();
        for planner in std::iter::once(&alone).chain(&self.others) {
            answers.push(planner.propose_for(subject, limits, effort));
        }
        let bound = answers.iter().flatten().map(|answer| answer.report.bound).fold(f64::INFINITY, f64::min);
        let best = answers.iter().position(|answer| {
            let own = answer.as_ref().map_or(f64::INFINITY, |answer| rank(&answer.report));
            own.is_finite() && answers.iter().flatten().all(|other| own <= rank(&other.report))
        });
        let mut best = answers.swap_remove(best.unwrap_or(0))?;
        best.report.bound = bound.min(best.report.bound);
        best.report.gap = (rank(&best.report) - best.report.bound).max(0.0);
        Ok(best)
    }

    /// Refuses a size or a time that no plan keeps, without looking for one that does; damages do not matter.
    ///
    /// # Errors
    /// As [`Planner::propose_within`], for one limit at a time.
    pub fn refuse_impossible(&self, limits: &[Limit]) -> Result<()> {
        let mut answers = std::iter::once(self).chain(&self.others).map(|planner| planner.rooms(limits).map(|_| ()));
        let first = answers.next().unwrap_or(Ok(()));
        if first.is_ok() || answers.any(|answer| answer.is_ok()) { Ok(()) } else { first }
    }

    /// What each limit leaves for what is decided here: the tightest of bytes, and times.
    fn rooms(&self, limits: &[Limit]) -> Result<(Option<Room>, Vec<Cap>)> {
        let mut room: Option<Room> = None;
        let mut caps: Vec<Cap> = Vec::new();
        for &limit in limits {
            if let Some(time) = TimeLimit::of(limit) {
                caps.push(self.time_cap(limit, &time)?);
            } else if let Some(own) = self.byte_room(limit) {
                let own = own.ok_or_else(|| self.impossible(limit))?;
                if own < self.problem.floor().cost {
                    return Err(self.impossible(limit).into());
                }
                room = Some(room.filter(|known| known.0 <= own).unwrap_or((own, limit)));
            }
        }
        Ok((room, caps))
    }

    /// One offer a group that keeps every limit but that of the damage, which is looked at afterwards
    /// where it is not alone.
    fn solve(&self, limits: &[Limit], effort: &Effort) -> Result<Solution> {
        let (room, mut caps) = self.rooms(limits)?;
        let damages = || -> Vec<Vec<f64>> {
            let of = |group: &Group| group.offers.iter().map(|offer| offer.damage).collect();
            self.groups.iter().map(of).collect()
        };
        match (room, caps.as_slice()) {
            (None, []) => {
                let least = |limit: &Limit| match limit {
                    Limit::Damage(damage) => *damage,
                    _ => f64::INFINITY,
                };
                let most = limits.iter().map(least).fold(f64::INFINITY, f64::min);
                let goal = Goal::DamageAtMost(most - self.fixed_point.damage);
                let solution = self.problem.solve_exactly(goal, effort);
                Ok(solution.ok_or_else(|| self.impossible(Limit::Damage(most)))?)
            }
            (Some((room, limit)), []) => {
                let solution = self.problem.solve_exactly(Goal::CostAtMost(room), effort);
                Ok(solution.ok_or_else(|| self.impossible(limit))?)
            }
            (None, [cap]) => {
                let solution = several::solve_one(&damages(), cap, effort);
                Ok(solution.ok_or_else(|| self.not_together(limits))?)
            }
            (room, _) => {
                let bytes = |group: &Group| group.offers.iter().map(|offer| Some(offer.bytes as f64)).collect();
                caps.extend(room.map(|(room, _)| Cap {
                    costs: self.groups.iter().map(bytes).collect(),
                    room: (room as f64).max(1.0),
                }));
                let solution = several::solve(&damages(), &caps, effort);
                Ok(solution.ok_or_else(|| self.not_together(limits))?)
            }
        }
    }

    /// Bytes left for what is decided here, of a limit of bytes; none of them where not even the rest fits.
    fn byte_room(&self, limit: Limit) -> Option<Option<u64>> {
        let bytes = match limit {
            Limit::FileBytes(bytes) => bytes.checked_sub(self.options.overhead_bytes),
            Limit::TensorBytes(bytes) => Some(bytes),
            // A cast of a float saturates; NaN becomes 0.
            Limit::BitsPerWeight(bits) => Some((bits * self.weight_count as f64 / 8.0) as u64),
            Limit::Memory { bytes, cache_bytes } => bytes.checked_sub(cache_bytes),
            _ => return None,
        };
        Some(bytes.and_then(|bytes| bytes.checked_sub(self.fixed_point.cost)))
    }

    /// Time left for what is decided here.
    fn time_cap(&self, limit: Limit, time: &TimeLimit) -> Result<Cap> {
        let unknown = |cause: &str| -> Fault {
            let remedy = "measure the kernels of this machine first, with `lapidary bench --rates`";
            Fault::new(Stage::Plan, format!("{limit} cannot be planned for: {cause}")).fix(remedy)
        };
        if self.options.speed.is_none() {
            return Err(unknown("how fast this machine multiplies was not measured").into());
        }
        let fixed = self.fixed_secs.ok_or_else(|| unknown("a format of the plan was not timed here"))?;
        let part = |offer: &Offer| offer.secs.map(|secs| time.part(secs));
        let costs: Vec<Vec<Option<f64>>> =
            self.groups.iter().map(|group| group.offers.iter().map(part).collect()).collect();
        let cap = Cap { costs, room: time.secs - time.part(fixed) };
        let least = cap.least();
        if !least.is_finite() {
            return Err(unknown("no format that was measured for some tensor was timed here").into());
        }
        // Not a number is no time either.
        if !(cap.room > 0.0 && least <= cap.room) {
            let rest = time.part(fixed);
            let cause = format!(
                "no plan keeps within {limit}: {}, with {} for {} tensors in the fastest format measured for each \
                 and {} for the rest",
                time.in_words(least + rest),
                units::duration(least),
                self.groups.iter().map(|group| group.tensors.len()).sum::<usize>(),
                units::duration(rest)
            );
            let remedy = "ask for less, or let the planner decide tensors that rules made by hand decide";
            return Err(Fault::new(Stage::Plan, cause).fix(remedy).into());
        }
        Ok(cap)
    }

    fn not_together(&self, limits: &[Limit]) -> Fault {
        let all: Vec<String> = limits.iter().map(ToString::to_string).collect();
        let cause = format!("each limit can be kept, but no plan was found that keeps all: {}", all.join(", "));
        Fault::new(Stage::Plan, cause).fix("allow more of one of them")
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
            Limit::Memory { .. } => {
                fault.fix("allow more, a shorter context or a smaller type of KV cache, or protect less")
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
