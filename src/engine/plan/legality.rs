//! What an export target cannot hold of a plan, why, and the nearest that it can.
//!
//! Every request of the plan is looked at under the rules of one target, the plan's own or another:
//! types that the container has no name for, shapes that its blocks and words do not fit, one format
//! for all where the container has room for one, and linears that runtimes fuse and want alike.
//! [`legality`] lists the issues; [`Plan::made_legal`] is the plan with the nearest legal choices.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::resolve::{Choice, Why, fit, requests_of, shape_of};
use super::{Plan, Subject, Target, Ties, Treatment, containers};
use crate::checkpoint::{Checkpoint, Role, TensorInfo};
use crate::error::Result;
use crate::format::{self, Dtype, Format};

/// One thing that a target does not load as the plan asks for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Issue {
    /// The tensors that it is about, by index in the checkpoint.
    pub tensors: Vec<usize>,
    /// Name of the first of them.
    pub first: String,
    /// What the plan asks for.
    pub asked: String,
    /// Why the target does not take it, in a clause.
    pub why: String,
    /// What it takes instead: the nearest format, or `stored values`.
    pub nearest: String,
}

impl Issue {
    /// The issue in a sentence with its remedy.
    pub fn sentence(&self) -> String {
        let tensors = match self.tensors.len() {
            1 => self.first.clone(),
            count => format!("{count} tensors, the first is {}", self.first),
        };
        format!("{tensors}: {} is asked for, but {}; the nearest is {}.", self.asked, self.why, self.nearest)
    }
}

/// The targets that a plan is checked against, with their runtimes.
pub const RUNTIMES: [(Target, &str); 5] = [
    (Target::Gguf, "llama.cpp"),
    (Target::CompressedTensors, "vLLM, compressed-tensors"),
    (Target::Gptq, "GPTQ"),
    (Target::Awq, "AWQ"),
    (Target::Bitsandbytes, "bitsandbytes"),
];

/// What `target` cannot hold of the plan; nothing where all of it is legal.
///
/// # Errors
/// A rule that matches nothing.
pub fn legality(plan: &Plan, checkpoint: &Checkpoint, target: Target) -> Result<Vec<Issue>> {
    legality_for(plan, Subject::of(checkpoint), target)
}

impl Plan {
    /// The plan for `target` with the nearest legal choice wherever this one's is none: rules keep
    /// their places and comments, a recipe that the target does not know becomes a default format.
    ///
    /// # Errors
    /// A rule that matches nothing.
    pub fn made_legal(&self, checkpoint: &Checkpoint, target: Target) -> Result<Self> {
        self.made_legal_for(Subject::of(checkpoint), target)
    }

    fn made_legal_for(&self, subject: Subject<'_>, target: Target) -> Result<Self> {
        let asked = requests_of(self, subject)?;
        let mut plan = self.clone();
        plan.set_target(target);
        let mut legals = Legals::new(target, subject, &asked);
        let mut legal = |id: &'static str| legals.of(id).nearest;
        if let Some(recipe) = self.recipe.filter(|recipe| !target.allows(recipe.base_format())) {
            plan.set_default_format(Some(legal(recipe.base_format())))?;
        } else if let Some(id) = self.default_format() {
            let next = legal(id);
            if next != id {
                plan.set_default_format(Some(next))?;
            }
        }
        for index in 0..plan.rules.len() {
            if let Treatment::Format { format, method } = plan.rules[index].treatment {
                plan.change_rule(index, Treatment::Format { format: legal(format), method });
            }
        }
        plan.untangle(subject)?;
        Ok(plan)
    }

    /// Replaces what a rule does and keeps its place.
    fn change_rule(&mut self, index: usize, treatment: Treatment) {
        if self.rules[index].treatment != treatment {
            self.rules[index].treatment = treatment;
            if let Some(table) = self.rule_tables().get_mut(index) {
                super::edit::write_treatment(table, treatment);
            }
        }
    }

    /// Gives tied tensors one format: the one with most bits among them, stored values before all.
    fn untangle(&mut self, subject: Subject<'_>) -> Result<()> {
        let asked = requests_of(self, subject)?;
        for tied in tangled(self.ties(), self.target, subject, &asked) {
            let (choice, members) = tied;
            let differing: Vec<&str> = members
                .iter()
                .filter(|&&index| asked[index].0 != choice)
                .map(|&index| subject.tensors[index].name.as_str())
                .collect();
            let treatment = match choice {
                Choice::Keep => Treatment::Protect,
                Choice::Format(format) => Treatment::Format { format, method: None },
            };
            self.set_exact(subject, &differing, treatment)?;
        }
        Ok(())
    }
}

fn legality_for(plan: &Plan, subject: Subject<'_>, target: Target) -> Result<Vec<Issue>> {
    let asked = requests_of(plan, subject)?;
    let mut legals = Legals::new(target, subject, &asked);
    // By what is asked and why not, so that a thousand tensors are one line.
    let mut issues: Vec<Issue> = Vec::new();
    let mut tell = |index: usize, asked: &str, why: String, nearest: &str| {
        let known = issues.iter_mut().find(|one| (&*one.asked, &one.why, &*one.nearest) == (asked, &why, nearest));
        match known {
            Some(issue) => issue.tensors.push(index),
            None => issues.push(Issue {
                tensors: vec![index],
                first: subject.tensors[index].name.clone(),
                asked: asked.to_owned(),
                why,
                nearest: nearest.to_owned(),
            }),
        }
    };
    for (index, (tensor, &(choice, why))) in subject.tensors.iter().zip(&asked).enumerate() {
        let Choice::Format(id) = choice else { continue };
        let is_by_rule = matches!(why, Why::Rule(_));
        let Some(asked) = format::find(id).filter(|_| is_choosable(target, tensor, is_by_rule)) else { continue };
        let Legal { is_held, nearest } = legals.of(id);
        if !is_held {
            tell(index, id, format!("{target} has no such type"), nearest);
        } else if nearest != id {
            tell(index, id, format!("{target} holds one format for all"), nearest);
        } else if let Some((stored, why)) = misfit(target, tensor, asked) {
            tell(index, id, why, stored);
        }
    }
    // A plan without any conflict of types may still tear apart what runtimes fuse.
    let ties = if plan.target() == target { plan.ties() } else { Ties::of(target) };
    let legal: Vec<(Choice, Why)> = asked
        .iter()
        .map(|&(choice, why)| match choice {
            Choice::Format(id) => (Choice::Format(legals.of(id).nearest), why),
            Choice::Keep => (choice, why),
        })
        .collect();
    for (choice, members) in tangled(ties, target, subject, &legal) {
        let text = |choice: Choice| match choice {
            Choice::Keep => "stored values",
            Choice::Format(id) => id,
        };
        let mut found: Vec<&str> = members.iter().map(|&index| text(legal[index].0)).collect();
        found.dedup();
        let roles = if subject.tensors[members[0]].role == Role::Gate { "gate and up" } else { "q, k and v" };
        let asked = found.join(", ");
        for &index in members.iter().filter(|&&index| legal[index].0 != choice) {
            tell(index, &asked, format!("runtimes fuse {roles} and want them alike"), text(choice));
        }
    }
    Ok(issues)
}

/// What a target makes of a format.
#[derive(Clone, Copy)]
struct Legal {
    /// True if it can hold the format at all.
    is_held: bool,
    /// The format that it holds instead; the same where that is held.
    nearest: &'static str,
}

/// What a target makes of formats, looked up once each.
struct Legals {
    target: Target,
    /// The one quantized format, where there is room for one.
    common: Option<&'static str>,
    known: HashMap<&'static str, Legal>,
}

impl Legals {
    fn new(target: Target, subject: Subject<'_>, asked: &[(Choice, Why)]) -> Self {
        Self { target, common: common_format(target, subject, asked), known: HashMap::new() }
    }

    fn of(&mut self, id: &'static str) -> Legal {
        let (target, common) = (self.target, self.common);
        *self.known.entry(id).or_insert_with(|| {
            let is_held = target.allows(id);
            let nearest = match common {
                Some(common) if !is_plain(id) => common,
                _ if is_held => id,
                _ => containers::nearest_format(target, id),
            };
            Legal { is_held, nearest }
        })
    }
}

fn is_plain(id: &str) -> bool {
    format::find(id).is_some_and(|format| format.dtype().is_plain())
}

/// True if the target lets a format be chosen for the tensor at all; what it keeps plain is no issue.
fn is_choosable(target: Target, tensor: &TensorInfo, is_by_rule: bool) -> bool {
    let is_matrix = tensor.shape.len() == 2 && (tensor.dtype.is_float() || !tensor.dtype.is_plain());
    match target {
        Target::Gguf => is_matrix && shape_of(tensor).may_quantize(),
        Target::HuggingFace => is_matrix,
        Target::CompressedTensors => {
            is_matrix && (tensor.role.is_layer_linear() || tensor.role == Role::Head && is_by_rule)
        }
        _ => is_matrix && tensor.role.is_layer_linear(),
    }
}

/// What becomes of a tensor whose shape a legal format does not fit.
fn misfit(target: Target, tensor: &TensorInfo, asked: &'static dyn Format) -> Option<(&'static str, String)> {
    match target.scheme() {
        None if target == Target::Gguf => {
            let stored = fit(asked.id(), tensor.row_len());
            let why = || format!("rows of {} do not fill its blocks", tensor.row_len());
            (stored != asked.id()).then(|| (stored, why()))
        }
        Some(scheme) if asked.dtype().is_scheme() => {
            let is_mixed = target == Target::CompressedTensors;
            let fitting = if is_mixed { format::fitting(asked, tensor.row_len()) } else { asked };
            let why = || format!("its shape {:?} does not fit", tensor.shape);
            if !containers::holds(scheme, fitting.dtype(), tensor) {
                return Some(("stored values", why()));
            }
            (fitting.id() != asked.id()).then(|| (fitting.id(), why()))
        }
        _ => None,
    }
}

/// The one quantized format of a container that holds one: what is nearest to most weights' bits.
fn common_format(target: Target, subject: Subject<'_>, asked: &[(Choice, Why)]) -> Option<&'static str> {
    if !target.holds_one_format() {
        return None;
    }
    let mut wanted: BTreeMap<&'static str, u64> = BTreeMap::new();
    for (tensor, (choice, _)) in subject.tensors.iter().zip(asked) {
        if let Choice::Format(id) = *choice
            && is_choosable(target, tensor, false)
            && !is_plain(id)
        {
            *wanted.entry(id).or_default() += tensor.weight_count();
        }
    }
    let bits = |id: &str| format::find(id).map_or(16.0, |format| format.bits_per_weight());
    let most = wanted.iter().max_by_key(|(id, weights)| (**weights, std::cmp::Reverse(**id)))?;
    if target.allows(most.0) {
        return Some(most.0);
    }
    let distance = |candidate: &str| {
        let all = wanted.iter().map(|(id, weights)| (bits(candidate) - bits(id)).abs() * *weights as f64);
        all.sum::<f64>()
    };
    let quantized = target.formats().filter(|id| !is_plain(id));
    quantized.min_by(|one, other| distance(one).total_cmp(&distance(other)))
}

/// Tied tensors that are asked for differently, each set with the choice that has most bits.
fn tangled(ties: Ties, target: Target, subject: Subject<'_>, asked: &[(Choice, Why)]) -> Vec<(Choice, Vec<usize>)> {
    let mut sets: BTreeMap<(usize, Role), Vec<usize>> = BTreeMap::new();
    for (index, tensor) in subject.tensors.iter().enumerate() {
        if let Some(key) = ties.key(tensor).filter(|_| is_choosable(target, tensor, false)) {
            sets.entry(key).or_default().push(index);
        }
    }
    let bits = |index: usize| match asked[index].0 {
        Choice::Keep => Dtype::bits_per_weight(subject.tensors[index].dtype).max(16.0),
        Choice::Format(id) => format::find(id).map_or(16.0, |format| format.bits_per_weight()),
    };
    let differ = |members: &Vec<usize>| members.iter().any(|&index| asked[index].0 != asked[members[0]].0);
    let most = |members: Vec<usize>| {
        let first = members.iter().copied().max_by(|&one, &other| bits(one).total_cmp(&bits(other)))?;
        Some((asked[first].0, members))
    };
    sets.into_values().filter(differ).filter_map(most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::resolve::resolve_for;
    use crate::plan::tests::{llama, parse, subject};

    #[test]
    fn a_recipe_of_llama_cpp_becomes_the_nearest_format_elsewhere() {
        let tensors = llama(3);
        let plan = parse("version = 1\nrecipe = \"Q4_K_M\"\n\n# mine\n[[rule]]\nrole = \"down\"\nformat = \"q8_0\"\n");
        assert_eq!(legality_for(&plan, subject(&tensors), Target::Gguf).expect("looks"), []);
        for target in [Target::CompressedTensors, Target::Gptq, Target::Awq, Target::Bitsandbytes, Target::HuggingFace]
        {
            let issues = legality_for(&plan, subject(&tensors), target).expect("looks");
            assert!(!issues.is_empty(), "{target}");
            assert!(issues.iter().all(|issue| issue.sentence().contains("the nearest is")), "{issues:?}");
            let legal = plan.made_legal_for(subject(&tensors), target).expect("maps");
            assert_eq!(legal.target(), target);
            let resolved = resolve_for(&legal, subject(&tensors)).expect("the target takes it");
            assert_eq!(legality_for(&legal, subject(&tensors), target).expect("looks"), [], "{}", legal.to_toml());
            assert!(legal.to_toml().contains("# mine"));
            let has_scheme = resolved.decisions.iter().any(|one| one.dtype.is_scheme());
            assert_eq!(has_scheme, target != Target::HuggingFace, "{target}");
        }
        // Back again: integers become llama.cpp's nearest.
        let legal = plan.made_legal_for(subject(&tensors), Target::Gptq).expect("maps");
        let back = legal.made_legal_for(subject(&tensors), Target::Gguf).expect("maps");
        resolve_for(&back, subject(&tensors)).expect("resolves");
    }

    #[test]
    fn fused_linears_that_differ_are_told_and_brought_together() {
        let tensors = llama(2);
        let text = "version = 1\ntarget = \"compressed-tensors\"\n[default]\nformat = \"int4_g128\"\n\
                    [[rule]]\nrole = \"v\"\nlayers = \"1\"\nformat = \"int8_channel\"\n\
                    [[rule]]\nmatch = \"*.0.*gate_proj*\"\nprotect = true\n";
        let mut plan = parse(text);
        let issues = legality_for(&plan, subject(&tensors), Target::CompressedTensors).expect("looks");
        let of = |word: &str| issues.iter().find(|issue| issue.why.contains(word)).expect("an issue");
        assert_eq!((of("q, k").tensors.len(), of("q, k").nearest.as_str()), (2, "int8_channel"));
        assert_eq!((of("gate").tensors.len(), of("gate").nearest.as_str()), (1, "stored values"));
        let legal = plan.made_legal_for(subject(&tensors), Target::CompressedTensors).expect("maps");
        assert_eq!(legality_for(&legal, subject(&tensors), Target::CompressedTensors).expect("looks"), []);
        let resolved = resolve_for(&legal, subject(&tensors)).expect("resolves");
        assert!(resolved.warnings.iter().all(|warning| !warning.contains("vLLM joins")), "{:?}", resolved.warnings);
        // Untied, they may differ.
        plan.set_ties(Ties::default());
        assert_eq!(legality_for(&plan, subject(&tensors), Target::CompressedTensors).expect("looks"), []);
    }

    #[test]
    fn shapes_that_blocks_do_not_fit_are_told() {
        let mut tensors = llama(1);
        let down = tensors.iter().position(|tensor| tensor.role == Role::Down).expect("there");
        tensors[down].shape = vec![256, 480];
        let plan = parse("version = 1\n[default]\nformat = \"q4_k\"\n");
        let issues = legality_for(&plan, subject(&tensors), Target::Gguf).expect("looks");
        assert_eq!(issues.len(), 1);
        assert!(issues[0].why.contains("480") && issues[0].nearest == "q5_0", "{issues:?}");
    }
}
