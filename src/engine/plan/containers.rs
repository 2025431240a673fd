//! What folders with packed weights may hold: compressed-tensors, bitsandbytes, GPTQ, AWQ.
//!
//! They quantize the linears of layers; embedding, norms and biases stay plain, and so does the
//! head, except in compressed-tensors where a rule asks for it. All but compressed-tensors hold one
//! format for all, and a matrix whose shape they cannot pack stays plain.

use super::resolve::{Choice, Decision, Settled, Why, settle_hugging_face};
use super::{Subject, Target};
use crate::checkpoint::{Role, TensorInfo};
use crate::error::{Fault, Result, Stage};
use crate::format::{self, Dtype, Granularity};
use crate::kernels::ints::ScaleType;
use crate::target::parts::{Matrix, Scheme, parts};

fn matrix(dtype: Dtype, rows: usize, cols: usize) -> Matrix {
    // The state's text has the longest name of a type whatever that is.
    Matrix { dtype, rows, cols, main: Dtype::F32 }
}

/// True if the container can hold a format at all: some shape fits it.
pub(super) fn holds_format(scheme: Scheme, dtype: Dtype) -> bool {
    // A multiple of every legal group: 512, 1024 and 16 times 1 to 16.
    const FITS_ALL: usize = 1024 * 45_045;
    dtype.is_scheme() && parts(scheme, &matrix(dtype, 32, FITS_ALL)).is_some()
}

/// True if the container can pack this tensor so.
pub(super) fn holds(scheme: Scheme, dtype: Dtype, tensor: &TensorInfo) -> bool {
    parts(scheme, &matrix(dtype, tensor.row_count(), tensor.row_len())).is_some()
}

/// The format that the target holds and that is nearest in bits, of equals in name.
pub(super) fn nearest_format(target: Target, id: &str) -> &'static str {
    let bits = format::find(id).map_or(16.0, |format| format.bits_per_weight());
    let distance = |other: &str| (format::find(other).map_or(16.0, |format| format.bits_per_weight()) - bits).abs();
    let nearer = |a: &&'static str, b: &&'static str| {
        let by_name = || super::nearest::distance(a, id).cmp(&super::nearest::distance(b, id));
        distance(a).total_cmp(&distance(b)).then_with(by_name)
    };
    // Of equals the last: bf16 before f16, which does not hold every value.
    let formats: Vec<&'static str> = target.formats().collect();
    formats.into_iter().rev().min_by(nearer).unwrap_or("bf16")
}

/// The nearest format that the target holds, and a target that holds what was asked for.
pub(super) fn advice(target: Target, id: &str) -> String {
    let nearest = nearest_format(target, id);
    match Target::ALL.into_iter().find(|other| other.allows(id)) {
        Some(other) => format!("the nearest it holds is \"{nearest}\"; or write target = \"{other}\""),
        None => format!("the nearest it holds is \"{nearest}\""),
    }
}

/// What a folder of packed weights makes of a request.
pub(super) fn settle(target: Target, tensor: &TensorInfo, requested: Choice, why: Why) -> Result<Settled> {
    let Some(scheme) = target.scheme() else { return settle_hugging_face(tensor, requested, why) };
    let plain = |why| settle_hugging_face(tensor, Choice::Keep, why);
    if (tensor.dtype.is_plain() && !tensor.dtype.is_float()) || !format::is_decodable(tensor.dtype) {
        return settle_hugging_face(tensor, requested, why);
    }
    let holds = |dtype: Dtype| holds(scheme, dtype, tensor);
    match requested {
        // What is packed already, and as this target packs it, stays as it is.
        Choice::Keep if tensor.dtype.is_scheme() && may_quantize(target, tensor, why) && holds(tensor.dtype) => {
            Ok(Settled::plainly(tensor.dtype, why))
        }
        Choice::Keep => plain(why),
        Choice::Format(id) => {
            let Some(asked) = format::find(id).filter(|asked| asked.dtype().is_scheme()) else {
                return settle_hugging_face(tensor, requested, why);
            };
            if !may_quantize(target, tensor, why) {
                return plain(Why::KeptByTarget(target));
            }
            // One format for all leaves no room for a narrower group here and there.
            let is_mixed = target == Target::CompressedTensors;
            let fitting = if is_mixed { format::fitting(asked, tensor.row_len()) } else { asked };
            if holds(fitting.dtype()) {
                let fell_back_from = (fitting.id() != id).then_some(id);
                return Ok(Settled { dtype: fitting.dtype(), why, fell_back_from });
            }
            Ok(Settled { fell_back_from: Some(id), ..plain(why)? })
        }
    }
}

/// True for what the target's loaders look for packed weights in.
fn may_quantize(target: Target, tensor: &TensorInfo, why: Why) -> bool {
    let is_linear = tensor.shape.len() == 2 && tensor.name.ends_with(".weight");
    let is_head = tensor.role == Role::Head
        && target == Target::CompressedTensors
        && (matches!(why, Why::Rule(_)) || tensor.dtype.is_scheme());
    is_linear && (tensor.role.is_layer_linear() || is_head)
}

/// Bytes of all parts of a matrix.
pub(super) fn byte_count(scheme: Scheme, dtype: Dtype, tensor: &TensorInfo) -> u64 {
    let parts = parts(scheme, &matrix(dtype, tensor.row_count(), tensor.row_len()));
    parts.unwrap_or_default().iter().map(crate::target::parts::Part::bytes).fold(0, u64::saturating_add)
}

/// Refuses a second format where the target holds one, and says what other programs may mind.
pub(super) fn check(
    target: Target,
    decisions: &[Decision],
    subject: Subject<'_>,
    warnings: &mut Vec<String>,
) -> Result<()> {
    if target.scheme().is_none() {
        return Ok(());
    }
    let name = |decision: &Decision| subject.tensors[decision.tensor_index].name.as_str();
    let quantized: Vec<&Decision> = decisions.iter().filter(|decision| decision.dtype.is_scheme()).collect();
    if target != Target::CompressedTensors
        && let Some(first) = quantized.first()
        && let Some(other) = quantized.iter().find(|other| other.dtype != first.dtype)
    {
        let cause = format!(
            "the target {target} holds one format for all, but {} is {} and this {}",
            name(first),
            first.dtype,
            other.dtype
        );
        return Err(Fault::new(Stage::Plan, cause)
            .at(format!("tensor {}", name(other)))
            .fix(format!("choose {} for both, or write target = \"{}\"", first.dtype, Target::CompressedTensors))
            .into());
    }
    if quantized.is_empty() {
        warnings.push(format!("No tensor is quantized: the folder will hold plain weights, no {target}."));
    }
    warn_of_fused(decisions, subject, warnings);
    warn_of_scales(target, decisions, &quantized, warnings);
    Ok(())
}

/// vLLM joins q, k and v, and gate and up, and wants one format in each.
fn warn_of_fused(decisions: &[Decision], subject: Subject<'_>, warnings: &mut Vec<String>) {
    for (roles, names) in
        [(&[Role::Q, Role::K, Role::V][..], "q, k and v"), (&[Role::Gate, Role::Up][..], "gate and up")]
    {
        let mut first: std::collections::BTreeMap<usize, Dtype> = std::collections::BTreeMap::new();
        let mut mixed = std::collections::BTreeSet::new();
        for decision in decisions {
            let tensor = &subject.tensors[decision.tensor_index];
            if let Some(layer) = tensor.layer
                && roles.contains(&tensor.role)
                && tensor.shape.len() == 2
                && *first.entry(layer).or_insert(decision.dtype) != decision.dtype
            {
                mixed.insert(layer);
            }
        }
        if let Some(layer) = mixed.first() {
            let count = mixed.len();
            let layers =
                if count == 1 { format!("layer {layer}") } else { format!("{count} layers, the first is {layer}") };
            warnings.push(format!(
                "In {layers}, {names} differ in format: transformers loads that, vLLM joins them and refuses it."
            ));
        }
    }
}

/// Loaders bring scales to the type of the model's other weights, which may hold them less exactly.
fn warn_of_scales(target: Target, decisions: &[Decision], quantized: &[&Decision], warnings: &mut Vec<String>) {
    let main = main_dtype(decisions);
    let is_exact = |scale: ScaleType| match scale {
        ScaleType::F16 => matches!(main, Dtype::F16 | Dtype::F32),
        ScaleType::Bf16 => matches!(main, Dtype::Bf16 | Dtype::F32),
        ScaleType::F32 => main == Dtype::F32,
    };
    let found = quantized.iter().find_map(|decision| match decision.dtype {
        Dtype::Int(scheme) if !is_exact(scheme.scale()) => Some(decision.dtype),
        _ => None,
    });
    if let Some(dtype) = found.filter(|_| target == Target::CompressedTensors) {
        let suffix = if main == Dtype::Bf16 { "_bf16" } else { "" };
        let usual = match dtype {
            Dtype::Int(scheme) => {
                let scale = if suffix.is_empty() { ScaleType::F16 } else { ScaleType::Bf16 };
                format::IntScheme::new(scheme.bits(), scheme.granularity(), scheme.is_symmetric(), scale)
                    .map_or_else(String::new, format::IntScheme::id)
            }
            _ => String::new(),
        };
        warnings.push(format!(
            "The scales of {dtype} are not {main}, the type of the other weights: a program that runs the model in {main} rounds them. {usual} has scales in {main}."
        ));
    }
    let has_tensor_scale = |decision: &&&Decision| matches!(decision.dtype, Dtype::Int(scheme) if scheme.granularity() == Granularity::Tensor);
    if quantized.iter().any(|decision| has_tensor_scale(&decision)) {
        warnings.push(
            "Integers with one scale per tensor load in transformers; vLLM wants a scale per channel or group."
                .to_owned(),
        );
    }
}

/// The float type that most plain weights have.
pub(super) fn main_dtype(decisions: &[Decision]) -> Dtype {
    [Dtype::F32, Dtype::F16, Dtype::Bf16]
        .into_iter()
        .max_by_key(|&dtype| {
            let same = decisions.iter().filter(|decision| decision.dtype == dtype);
            same.map(|decision| decision.new_weight_count).fold(0, u64::saturating_add)
        })
        .unwrap_or(Dtype::F32)
}
