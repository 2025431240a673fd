//! From a plan and a checkpoint to one decision per tensor, with bytes and reasons.
//!
//! Runs on every click: headers only, no file is read. What a GGUF may hold follows llama.cpp:
//! vectors, norms and biases are f32, some matrices are never quantized, and rows that do not fill
//! a format's blocks fall back (`tensor_type_fallback` in `src/llama-quant.cpp`, MIT licence).
//!
//! Rules speak of the checkpoint's names and layers; recipes, blocks and bytes are those of the network
//! that is left where the plan prunes.

use std::sync::Arc;

use super::prune::{Left, added_biases};
use super::recipe::{ModelShape, Recipe, TensorShape, choose};
use super::{AddedBias, Method, Plan, Subject, Target, Treatment, containers};
use crate::checkpoint::{Checkpoint, Role, Structure, TensorInfo};
use crate::error::{Fault, Result, Stage};
use crate::format::{self, Dtype};
use crate::units;

/// Tensor data in a GGUF starts at multiples of this many bytes (`general.alignment`'s default).
const GGUF_ALIGNMENT: u64 = 32;

/// What was asked for a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The stored values.
    Keep,
    /// A format of the registry, by its id.
    Format(&'static str),
}

/// Why a tensor is stored as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Neither a rule nor a recipe or default speaks of it.
    Untouched,
    /// The plan's default format.
    Default,
    /// The plan's recipe.
    Recipe(Recipe),
    /// The rule with this index.
    Rule(usize),
    /// The rule with this index protects it.
    Protected(usize),
    /// Vectors, norms and biases are f32 in a GGUF.
    OneDimensional,
    /// A matrix that llama.cpp never quantizes.
    NeverQuantized,
    /// Integers and truth values are no weights.
    NotFloat,
    /// The stored type has no decoder, so that it can only be copied.
    Undecodable,
    /// What the target quantizes are the linears of layers.
    KeptByTarget(Target),
    /// Its layer is taken away.
    Removed,
}

/// What happens to one tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// Index among the checkpoint's tensors.
    pub tensor_index: usize,
    /// What the plan asks for.
    pub requested: Choice,
    /// How the tensor is stored now.
    pub old_dtype: Dtype,
    /// How it will be stored; where equal to `source_dtype`, its bytes are copied.
    pub dtype: Dtype,
    /// How a pass reads it: as it is stored, or as f32 where pruning cuts through its blocks.
    pub source_dtype: Dtype,
    /// Who decided.
    pub why: Why,
    /// How the values of `dtype` are to be chosen; without data for the tensor, rtn is what remains.
    pub method: Method,
    /// The format that rows of this length cannot be stored in, where the tensor fell back.
    pub fell_back_from: Option<&'static str>,
    /// Number of weights in the checkpoint.
    pub weight_count: u64,
    /// Number of weights in the result, fewer where the plan prunes.
    pub new_weight_count: u64,
    /// Bytes in the checkpoint.
    pub old_bytes: u64,
    /// Bytes in the result, padding not counted.
    pub new_bytes: u64,
}

impl Decision {
    /// A tensor that goes with its layer.
    fn removed(tensor_index: usize, tensor: &TensorInfo) -> Self {
        Self {
            tensor_index,
            requested: Choice::Keep,
            old_dtype: tensor.dtype,
            dtype: tensor.dtype,
            source_dtype: tensor.dtype,
            why: Why::Removed,
            method: Method::Rtn,
            fell_back_from: None,
            weight_count: weight_count(tensor),
            new_weight_count: 0,
            old_bytes: tensor.byte_count,
            new_bytes: 0,
        }
    }

    /// True if the tensor is not in the result.
    pub fn is_removed(&self) -> bool {
        self.why == Why::Removed
    }

    /// True if what stays of it is copied byte for byte.
    pub fn is_copy(&self) -> bool {
        self.dtype == self.source_dtype && !self.is_removed()
    }

    /// Bits per weight in the result, scales included.
    pub fn bits_per_weight(&self) -> f64 {
        units::bits_per_weight(self.new_bytes, self.new_weight_count)
    }

    /// Who decided and why, as one sentence.
    pub fn sentence(&self) -> String {
        let dtype = self.dtype;
        let asked = match self.requested {
            Choice::Keep => "its stored values",
            Choice::Format(id) => id,
        };
        let mut text = match self.why {
            Why::Untouched => "No choice was made, so it keeps its stored values".to_owned(),
            Why::Default => format!("The default asks for {asked}"),
            Why::Recipe(recipe) => format!("{recipe} asks for {asked}"),
            Why::Rule(index) => format!("Rule {} asks for {asked}", index + 1),
            Why::Protected(index) => {
                format!("Rule {} protects it: its stored values stay", index + 1)
            }
            Why::OneDimensional => format!("Vectors, norms and biases are {dtype} in GGUF"),
            Why::NeverQuantized => "llama.cpp never quantizes this kind of tensor, so it stays".to_owned(),
            Why::NotFloat => "It holds no floating-point weights, so it stays".to_owned(),
            Why::KeptByTarget(target) => format!("{target} quantizes the linears of layers, so this stays plain"),
            Why::Undecodable => format!("{dtype} can only be copied, not converted"),
            Why::Removed => "Its layer is taken away".to_owned(),
        };
        if let Some(from) = self.fell_back_from {
            let from = format::find(from).map(|format| format.dtype());
            let block_len = from.map_or(1, Dtype::block_len);
            text += &match from {
                Some(Dtype::Int(_) | Dtype::Fp8(_) | Dtype::Bnb(_)) => {
                    format!("; its shape does not fit the format or the target, so it becomes {dtype}")
                }
                _ => format!("; its rows do not fill blocks of {block_len}, so it becomes {dtype} as in llama.cpp"),
            };
        } else if self.requested == Choice::Keep && !self.is_copy() && self.why != Why::OneDimensional {
            text += &format!("; the target holds them as {dtype}");
        }
        if self.method == Method::Imatrix && !self.is_copy() {
            text += "; imatrix-weighted";
        } else if self.method.is_for_integers() && !self.is_copy() {
            text += &format!("; scales by {}", self.method.name());
        }
        if !self.is_removed() && self.new_weight_count < self.weight_count {
            let left = 100.0 * self.new_weight_count as f64 / self.weight_count as f64;
            text += &format!("; {left:.1} % of its weights stay");
        }
        text.push('.');
        text
    }
}

/// A plan worked out for one checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedPlan {
    /// What the result is written for.
    pub target: Target,
    /// The recipe it builds on.
    pub recipe: Option<Recipe>,
    /// True if the plan has an importance matrix, which its pass needs.
    pub has_importance: bool,
    /// Where searches run.
    pub search: super::Search,
    /// One decision per tensor, in the checkpoint's order.
    pub decisions: Vec<Decision>,
    /// The network that the plan leaves, where it takes something away.
    pub structure: Option<Arc<Structure>>,
    /// Biases that the result has and the checkpoint does not.
    pub added: Vec<AddedBias>,
    /// Weights of all tensors of the checkpoint.
    pub weight_count: u64,
    /// Weights of the result.
    pub new_weight_count: u64,
    /// Tensor bytes in the checkpoint.
    pub old_bytes: u64,
    /// Tensor bytes in the result, neither padding nor metadata counted.
    pub new_bytes: u64,
    /// As `new_bytes`, with the padding between a GGUF's tensors; metadata and tokenizer come on top.
    pub padded_bytes: u64,
    /// What the user should know before the run, one sentence each.
    pub warnings: Vec<String>,
    /// llama.cpp's `general.file_type`: the recipe's, or that of the type that holds most weights.
    pub file_type: u32,
}

impl ResolvedPlan {
    /// Bits per weight in the checkpoint.
    pub fn old_bits_per_weight(&self) -> f64 {
        units::bits_per_weight(self.old_bytes, self.weight_count)
    }

    /// Bits per weight in the result, scales included, padding and metadata not.
    pub fn new_bits_per_weight(&self) -> f64 {
        units::bits_per_weight(self.new_bytes, self.new_weight_count)
    }

    /// The float type that most plain weights of the result have.
    pub fn main_dtype(&self) -> Dtype {
        containers::main_dtype(&self.decisions)
    }

    /// True if any tensor of the result is quantized, which GGUF metadata must say.
    pub fn is_quantized(&self) -> bool {
        self.decisions.iter().any(|decision| !decision.dtype.is_plain() && !decision.is_removed())
    }
}

/// The format in which rows of `row_len` weights can be stored when `id` is asked for: itself, its
/// fall-back, or f16.
pub fn fit(id: &'static str, row_len: usize) -> &'static str {
    format::find(id).map_or("f16", |format| format::fitting(format, row_len).id())
}

/// Works a plan out for a checkpoint.
///
/// # Errors
/// A rule that matches no tensor or names layers beyond the last, a format that the target cannot
/// hold, a stored type that the target cannot hold: with the line and the nearest legal choice.
pub fn resolve(plan: &Plan, checkpoint: &Checkpoint) -> Result<ResolvedPlan> {
    resolve_for(plan, Subject::of(checkpoint))
}

/// As [`resolve()`].
pub(crate) fn resolve_for(plan: &Plan, subject: Subject<'_>) -> Result<ResolvedPlan> {
    check_target(plan)?;
    check_importance(plan)?;
    let (winners, mut warnings) = winners(plan, subject)?;
    let left = plan.left_for(subject, &mut warnings)?;
    let result = left.as_ref().map_or(subject, |left| Subject {
        tensors: &left.tensors,
        config: Some(&left.structure.config),
        fingerprint: subject.fingerprint,
    });

    let shapes: Vec<TensorShape<'_>> = result.tensors.iter().map(shape_of).collect();
    let has_importance = plan.calibration.is_some();
    let asked = requests(plan, result, &winners_of_left(&winners, left.as_ref()), &shapes);

    let mut decisions = Vec::with_capacity(subject.tensors.len());
    for (index, stored) in subject.tensors.iter().enumerate() {
        let Some(place) = left.as_ref().map_or(Some(index), |left| left.places[index]) else {
            decisions.push(Decision::removed(index, stored));
            continue;
        };
        let tensor = &result.tensors[place];
        let (requested, why) = asked[place];
        let settled = match plan.target {
            Target::Gguf => settle_gguf(tensor, &shapes[place], requested, why)?,
            Target::HuggingFace | Target::Lapidary => settle_hugging_face(tensor, requested, why)?,
            target => containers::settle(target, tensor, requested, why)?,
        };
        decisions.push(Decision {
            tensor_index: index,
            requested,
            old_dtype: stored.dtype,
            dtype: settled.dtype,
            source_dtype: tensor.dtype,
            why: settled.why,
            method: match asked_method(plan, winners[index]) {
                Some(Method::Rtn) => Method::Rtn,
                Some(method) if method.is_for_integers() && matches!(settled.dtype, Dtype::Int(_)) => method,
                _ if has_importance && format::heeds_importance(settled.dtype) => Method::Imatrix,
                _ => Method::Rtn,
            },
            fell_back_from: settled.fell_back_from,
            weight_count: weight_count(stored),
            new_weight_count: weight_count(tensor),
            old_bytes: stored.byte_count,
            new_bytes: stored_bytes(plan.target, settled.dtype, tensor),
        });
    }
    let staying: Vec<Decision> = decisions.iter().filter(|decision| !decision.is_removed()).copied().collect();
    warn_of_tensors(&staying, subject, &mut warnings);
    warn_of_losses(&staying, &mut warnings);
    containers::check(plan.target, &staying, subject, &mut warnings)?;

    // In a GGUF vectors are f32; elsewhere a bias is as its neighbours.
    let bias_dtype = if plan.target == Target::Gguf { Dtype::F32 } else { containers::main_dtype(&staying) };
    let added = left.as_ref().map_or_else(Vec::new, |left| added_biases(plan, left, bias_dtype));
    let more = |value: fn(&AddedBias) -> u64| added.iter().map(value).fold(0, u64::saturating_add);
    let sum = |value: fn(&Decision) -> u64| decisions.iter().map(value).fold(0, u64::saturating_add);
    let bytes = decisions.iter().map(|decision| decision.new_bytes).chain(added.iter().map(AddedBias::bytes));
    let padded_bytes = bytes.fold(0_u64, |sum, bytes| sum.saturating_add(padded(plan.target, bytes)));
    Ok(ResolvedPlan {
        target: plan.target,
        recipe: plan.recipe,
        has_importance,
        search: plan.search,
        weight_count: sum(|decision| decision.weight_count),
        new_weight_count: sum(|decision| decision.new_weight_count) + more(|bias| bias.len as u64),
        old_bytes: sum(|decision| decision.old_bytes),
        new_bytes: sum(|decision| decision.new_bytes).saturating_add(more(AddedBias::bytes)),
        padded_bytes,
        warnings,
        file_type: file_type(plan.recipe, &staying),
        added,
        structure: left.map(|left| Arc::new(left.structure)),
        decisions,
    })
}

/// The rules that win, by tensor of what is left where the plan prunes.
fn winners_of_left(winners: &[Option<usize>], left: Option<&Left>) -> Vec<Option<usize>> {
    let Some(left) = left else { return winners.to_vec() };
    let mut of_left = vec![None; left.tensors.len()];
    for (winner, place) in winners.iter().zip(&left.places) {
        if let Some(place) = *place {
            of_left[place] = *winner;
        }
    }
    of_left
}

/// What a plan asks for every tensor and who says so, whatever its target makes of it.
fn requests(
    plan: &Plan,
    subject: Subject<'_>,
    winners: &[Option<usize>],
    shapes: &[TensorShape<'_>],
) -> Vec<(Choice, Why)> {
    let mut asked: Vec<(Choice, Why)> = match (plan.recipe, plan.default_format()) {
        (Some(recipe), _) => choose(recipe, ModelShape::of(subject), plan.calibration.is_some(), shapes)
            .into_iter()
            // What llama.cpp leaves alone is sorted out later, by the same rules.
            .map(|format| (Choice::Format(format.unwrap_or(recipe.base_format())), Why::Recipe(recipe)))
            .collect(),
        (None, Some(id)) => vec![(Choice::Format(id), Why::Default); subject.tensors.len()],
        (None, None) => vec![(Choice::Keep, Why::Untouched); subject.tensors.len()],
    };
    for (asked, winner) in asked.iter_mut().zip(winners) {
        match winner.map(|rule| (rule, plan.rules[rule].treatment)) {
            None => {}
            Some((rule, Treatment::Protect)) => *asked = (Choice::Keep, Why::Protected(rule)),
            Some((rule, Treatment::Format { format, .. })) => *asked = (Choice::Format(format), Why::Rule(rule)),
        }
    }
    asked
}

/// As [`requests`], with the rules looked up.
pub(super) fn requests_of(plan: &Plan, subject: Subject<'_>) -> Result<Vec<(Choice, Why)>> {
    let (winners, _) = winners(plan, subject)?;
    let shapes: Vec<TensorShape<'_>> = subject.tensors.iter().map(shape_of).collect();
    Ok(requests(plan, subject, &winners, &shapes))
}

/// The method that a rule or the default asks for by name.
fn asked_method(plan: &Plan, rule: Option<usize>) -> Option<Method> {
    let treatment = rule.map(|rule| plan.rules[rule].treatment).or(plan.default);
    match treatment {
        Some(Treatment::Format { method, .. }) => method,
        _ => None,
    }
}

/// Refuses what needs an importance matrix in a plan without one, with the line that asks for it.
fn check_importance(plan: &Plan) -> Result<()> {
    if plan.calibration.is_some() {
        return Ok(());
    }
    let remedy = "add imatrix = \"…\" under [calibration]";
    if let Some(recipe) = plan.recipe.filter(|recipe| recipe.needs_importance()) {
        let fault = plan.base_fault(format!("{recipe} needs an importance matrix"));
        return Err(fault.fix(format!("{remedy}, or choose \"Q2_K\"")).into());
    }
    let asks = |treatment| matches!(treatment, Treatment::Format { method: Some(Method::Imatrix), .. });
    let fault = match plan.rules.iter().position(|rule| asks(rule.treatment)) {
        Some(rule) => plan.rule_fault(rule, "method", "the method imatrix needs an importance matrix"),
        None if plan.default.is_some_and(asks) => plan.base_fault("the method imatrix needs an importance matrix"),
        None => return Ok(()),
    };
    Err(fault.fix(remedy).into())
}

/// Refuses formats that the target cannot hold, with the line that names them.
fn check_target(plan: &Plan) -> Result<()> {
    let target = plan.target;
    let refuse = |fault: Fault, id: &str| Err(fault.fix(containers::advice(target, id)).into());
    if let Some(recipe) = plan.recipe
        && !target.allows(recipe.base_format())
    {
        return refuse(
            plan.base_fault(format!("the target {target} cannot hold the types of {recipe}")),
            recipe.base_format(),
        );
    }
    if let Some(id) = plan.default_format()
        && !target.allows(id)
    {
        return refuse(plan.base_fault(format!("the target {target} cannot hold {id}")), id);
    }
    for (index, rule) in plan.rules.iter().enumerate() {
        if let Treatment::Format { format: id, .. } = rule.treatment
            && !target.allows(id)
        {
            return refuse(plan.rule_fault(index, "format", format!("the target {target} cannot hold {id}")), id);
        }
    }
    Ok(())
}

/// For every tensor the last rule that matches it, and warnings about the plan as a whole.
fn winners(plan: &Plan, subject: Subject<'_>) -> Result<(Vec<Option<usize>>, Vec<String>)> {
    let mut winners = vec![None; subject.tensors.len()];
    let layer_count = subject.layer_count();
    for (index, rule) in plan.rules.iter().enumerate() {
        if let Some(layers) = rule.matcher.layers()
            && layers.last() >= layer_count
        {
            let cause = format!("layers {layers}: there is no layer {}", layers.last());
            let fault = plan.rule_fault(index, "layers", cause);
            return Err(match layer_count {
                0 => fault.fix("no tensor of this checkpoint belongs to a layer"),
                count => fault.fix(format!("the checkpoint has layers 0-{}", count - 1)),
            }
            .into());
        }
        let matched = rule.matcher.matched(subject);
        if matched.is_empty() {
            return Err(unmatched(plan, index, subject).into());
        }
        for &tensor in matched.iter() {
            winners[tensor] = Some(index);
        }
    }

    let mut warnings = Vec::new();
    if let Some(fingerprint) = &plan.checkpoint
        && fingerprint != subject.fingerprint
    {
        warnings.push("The plan was made for another checkpoint.".to_owned());
    }
    let mut wins = vec![false; plan.rules.len()];
    for &winner in winners.iter().flatten() {
        wins[winner] = true;
    }
    for (index, _) in wins.iter().enumerate().filter(|(_, wins)| !**wins) {
        let matcher = &plan.rules[index].matcher;
        warnings.push(format!("Rule {} ({matcher}) has no effect: later rules decide all that it matches.", index + 1));
    }
    Ok((winners, warnings))
}

/// The fault for a rule that matches nothing.
fn unmatched(plan: &Plan, index: usize, subject: Subject<'_>) -> Fault {
    let matcher = &plan.rules[index].matcher;
    let fault = |key| plan.rule_fault(index, key, format!("no tensor matches {matcher}"));
    match (matcher.glob(), matcher.role()) {
        (Some(glob), _) => {
            // Enough names for a good guess, few enough for an answer at once.
            let names: Vec<&str> = subject.tensors.iter().take(3000).map(|tensor| tensor.name.as_str()).collect();
            match super::nearest::nearest(glob, &names) {
                Some(name) => fault("match").fix(format!("the nearest tensor is {name}")),
                None => fault("match").fix("the checkpoint has no tensors"),
            }
        }
        (None, Some(Role::Head)) => fault("role").fix("the embedding serves as the head; write role = \"embedding\""),
        (None, Some(_)) => {
            let here = |role: &Role| subject.tensors.iter().any(|tensor| tensor.role == *role);
            let roles: Vec<&str> = Role::ALL.iter().filter(|role| here(role)).map(|role| role.name()).collect();
            fault("role").fix(format!("the checkpoint has {}", roles.join(", ")))
        }
        (None, None) => fault("layers").fix("remove the rule"),
    }
}

/// How a tensor will be stored, and who says so.
pub(super) struct Settled {
    pub(super) dtype: Dtype,
    pub(super) why: Why,
    pub(super) fell_back_from: Option<&'static str>,
}

impl Settled {
    pub(super) fn plainly(dtype: Dtype, why: Why) -> Self {
        Self { dtype, why, fell_back_from: None }
    }
}

/// What a GGUF makes of a request.
fn settle_gguf(tensor: &TensorInfo, shape: &TensorShape<'_>, requested: Choice, why: Why) -> Result<Settled> {
    let stored = tensor.dtype;
    if stored.is_plain() && !stored.is_float() {
        return match stored.ggml_id() {
            Some(_) => Ok(Settled::plainly(stored, Why::NotFloat)),
            None => Err(cannot_hold(tensor, Target::Gguf)
                .fix(format!("write target = \"{}\", which holds it", Target::HuggingFace))
                .into()),
        };
    }
    if !format::is_decodable(stored) {
        let why = if requested == Choice::Keep { why } else { Why::Undecodable };
        return Ok(Settled::plainly(stored, why));
    }
    if shape.is_vector() || tensor.role == Role::Norm || tensor.name.ends_with(".bias") {
        return Ok(Settled::plainly(Dtype::F32, Why::OneDimensional));
    }
    let kept = match stored {
        // llama.cpp computes with no f64.
        Dtype::F64 => Dtype::F32,
        // Every value of both 8-bit floats is an f16 exactly.
        Dtype::F8E4M3 | Dtype::F8E5M2 => Dtype::F16,
        // A code times a scale is an f32 exactly, and seldom less.
        other if other.is_scheme() => Dtype::F32,
        other => other,
    };
    match requested {
        Choice::Keep => Ok(Settled::plainly(kept, why)),
        // A rule may still ask for another float type, the recipe and the default may not.
        Choice::Format(id) if !(shape.may_quantize() || matches!(why, Why::Rule(_)) && is_plain(id)) => {
            Ok(Settled::plainly(kept, Why::NeverQuantized))
        }
        Choice::Format(id) => {
            let fitting = fit(id, tensor.row_len());
            let dtype = format::find(fitting).map_or(Dtype::F16, |format| format.dtype());
            Ok(Settled { dtype, why, fell_back_from: (fitting != id).then_some(id) })
        }
    }
}

/// What a Hugging Face folder makes of a request.
pub(super) fn settle_hugging_face(tensor: &TensorInfo, requested: Choice, why: Why) -> Result<Settled> {
    let stored = tensor.dtype;
    if stored.is_plain() && !stored.is_float() {
        return Ok(Settled::plainly(stored, Why::NotFloat));
    }
    if !format::is_decodable(stored) {
        let fault = cannot_hold(tensor, Target::HuggingFace);
        return Err(fault.fix(format!("write target = \"{}\", which copies it", Target::Gguf)).into());
    }
    Ok(match requested {
        Choice::Format(id) => {
            let dtype = format::find(id).map_or(Dtype::F32, |format| format.dtype());
            Settled::plainly(dtype, why)
        }
        Choice::Keep if stored.is_plain() => Settled::plainly(stored, why),
        // Decoding gives f32 exactly.
        Choice::Keep => Settled::plainly(Dtype::F32, why),
    })
}

/// Bytes that a tensor takes in the target's file, up to where the next one starts.
pub(super) fn padded(target: Target, bytes: u64) -> u64 {
    let pads = target == Target::Gguf;
    if pads { bytes.checked_next_multiple_of(GGUF_ALIGNMENT).unwrap_or(bytes) } else { bytes }
}

fn is_plain(id: &str) -> bool {
    format::find(id).is_some_and(|format| format.dtype().is_plain())
}

fn cannot_hold(tensor: &TensorInfo, target: Target) -> Fault {
    let cause = format!("the target {target} cannot hold {} tensors", tensor.dtype);
    Fault::new(Stage::Plan, cause).at(format!("tensor {}", tensor.name))
}

pub(super) fn shape_of(tensor: &TensorInfo) -> TensorShape<'_> {
    TensorShape { name: &tensor.name, shape: &tensor.shape, role: tensor.role, layer: tensor.layer }
}

fn product(shape: &[usize]) -> u64 {
    // With a zero among them the others may be anything: nothing must overflow on the way to it.
    if shape.contains(&0) {
        return 0;
    }
    shape.iter().fold(1, |product: u64, &len| product.saturating_mul(len as u64))
}

fn weight_count(tensor: &TensorInfo) -> u64 {
    product(&tensor.shape)
}

/// Bytes of a tensor stored as `dtype`; rows fill whole blocks.
fn byte_count(dtype: Dtype, tensor: &TensorInfo) -> u64 {
    let rows = product(tensor.shape.split_last().map_or(&[], |(_, outer)| outer));
    let blocks = (tensor.row_len() as u64).div_ceil(dtype.block_len() as u64);
    rows.saturating_mul(blocks).saturating_mul(dtype.block_bytes() as u64)
}

/// Bytes of a tensor stored as `dtype` in the target's file, padding not counted.
pub(super) fn stored_bytes(target: Target, dtype: Dtype, tensor: &TensorInfo) -> u64 {
    match target.scheme() {
        // Parts that another program wrote may lie in other words than ours.
        Some(scheme) if dtype.is_scheme() => containers::byte_count(scheme, dtype, tensor),
        // A plain matrix may lie in fewer bytes than it is written in: by mask and values.
        _ if dtype == tensor.dtype && !dtype.is_plain() => tensor.byte_count,
        _ => byte_count(dtype, tensor),
    }
}

/// Says once what concerns many tensors.
fn warn_of_tensors(decisions: &[Decision], subject: Subject<'_>, warnings: &mut Vec<String>) {
    let mut warn = |test: &dyn Fn(&Decision) -> bool, one: &str, many: &str| {
        let mut found = decisions.iter().filter(|decision| test(decision));
        let Some(first) = found.next() else { return };
        let name = &subject.tensors[first.tensor_index].name;
        let from = first.fell_back_from.unwrap_or_else(|| first.old_dtype.name());
        let change = if from == first.dtype.name() { from.to_owned() } else { format!("{from} → {}", first.dtype) };
        warnings.push(match found.count() {
            0 => format!("1 tensor {one}: {name} ({change})."),
            others => format!("{} tensors {many}, the first is {name} ({change}).", others + 1),
        });
    };
    warn(
        &|decision| decision.fell_back_from.is_some(),
        "falls back to another format, because its rows do not fill the blocks",
        "fall back to another format, because their rows do not fill the blocks",
    );
    warn(
        &|decision| decision.why == Why::Undecodable,
        "is copied although another format was asked for, because its type cannot be decoded",
        "are copied although another format was asked for, because their types cannot be decoded",
    );
    warn(
        &|decision| decision.requested == Choice::Keep && decision.old_dtype == Dtype::F64 && !decision.is_copy(),
        "is rounded from f64, which GGUF models do not use",
        "are rounded from f64, which GGUF models do not use",
    );
    warn(
        &|decision| decision.requested == Choice::Keep && decision.source_dtype != decision.old_dtype,
        "is read as f32, because what is pruned cuts through its blocks; choose a format for it",
        "are read as f32, because what is pruned cuts through their blocks; choose a format for them",
    );
}

/// Says for every pair of types what quantizing a quantized tensor again costs.
fn warn_of_losses(decisions: &[Decision], warnings: &mut Vec<String>) {
    let mut pairs: Vec<(Dtype, Dtype, usize, u64)> = Vec::new();
    for decision in decisions {
        let (old, new) = (decision.old_dtype, decision.dtype);
        // Decoding to plain numbers loses nothing more.
        if old.is_plain() || new.is_plain() || decision.is_copy() {
            continue;
        }
        match pairs.iter_mut().find(|pair| (pair.0, pair.1) == (old, new)) {
            Some(pair) => {
                pair.2 += 1;
                pair.3 = pair.3.saturating_add(decision.weight_count);
            }
            None => pairs.push((old, new, 1, decision.weight_count)),
        }
    }
    for (old, new, count, weights) in pairs {
        let tensors = if count == 1 { "1 tensor is".to_owned() } else { format!("{count} tensors are") };
        let loss = if new.bits_per_weight() > old.bits_per_weight() {
            format!("{new} takes more room and cannot bring back what {old} lost")
        } else {
            format!("what {old} lost stays lost and {new} adds its own error")
        };
        warnings.push(format!(
            "{tensors} already quantized ({old} → {new}, {} weights): {loss}. The error against the original is unknown here; \
             start from the unquantized checkpoint where you can.",
            units::count(weights)
        ));
    }
}

/// `general.file_type`: the recipe's, as llama-quantize writes even where single tensors were
/// overridden; else llama.cpp's guess for the type that holds most weights.
fn file_type(recipe: Option<Recipe>, decisions: &[Decision]) -> u32 {
    if let Some(recipe) = recipe {
        return recipe.file_type();
    }
    let mut most: (u64, u32) = (0, 0);
    for dtype in Dtype::all() {
        let Some(file_type) = file_type_of(dtype) else {
            continue;
        };
        let weights = decisions
            .iter()
            .filter(|decision| decision.dtype == dtype)
            .map(|decision| decision.new_weight_count)
            .fold(0, u64::saturating_add);
        if weights > most.0 {
            most = (weights, file_type);
        }
    }
    most.1
}

/// llama.cpp's file type for files mostly of one type (`llama-model-loader.cpp`).
fn file_type_of(dtype: Dtype) -> Option<u32> {
    Some(match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::Q4_0 => 2,
        Dtype::Q4_1 => 3,
        Dtype::Q8_0 => 7,
        Dtype::Q5_0 => 8,
        Dtype::Q5_1 => 9,
        Dtype::Q2K => 10,
        Dtype::Q3K => 12,
        Dtype::Q4K => 15,
        Dtype::Q5K => 17,
        Dtype::Q6K => 18,
        Dtype::Iq2Xxs => 19,
        Dtype::Iq2Xs => 20,
        Dtype::Iq3Xxs => 23,
        Dtype::Iq1S => 24,
        Dtype::Iq4Nl => 25,
        Dtype::Iq3S => 26,
        Dtype::Iq2S => 28,
        Dtype::Iq4Xs => 30,
        Dtype::Iq1M => 31,
        Dtype::Bf16 => 32,
        Dtype::Tq1_0 => 36,
        Dtype::Tq2_0 => 37,
        Dtype::Mxfp4 => 38,
        Dtype::Nvfp4 => 39,
        Dtype::Q1_0 => 40,
        Dtype::Q2_0 => 41,
        _ => return None,
    })
}
