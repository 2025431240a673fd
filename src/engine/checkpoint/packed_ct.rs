//! compressed-tensors weights among a checkpoint's tensors.

use serde_json::{Map, Value};

use super::packed::{Found, Layout, Lookup, Parts};
use crate::error::Result;
use crate::format::{Dtype, FP8_BLOCK, Fp8Scales, Fp8Scheme, Granularity, IntScheme};
use crate::kernels::fp8::Fp8;
use crate::kernels::ints::ScaleType;
use crate::target::compressed_tensors::words;

/// Types of a scale.
const SCALES: [Dtype; 3] = [Dtype::F16, Dtype::Bf16, Dtype::F32];

/// What a config group says of weights.
struct Group {
    names: Vec<String>,
    patterns: Vec<regex::Regex>,
    /// True for `Linear` and other classes: matches what names and patterns leave.
    has_class: bool,
    bits: u32,
    is_float: bool,
    symmetric: bool,
    strategy: String,
    group_size: u16,
}

/// Every packed weight.
pub(super) fn find(lookup: &Lookup<'_>, warnings: &mut Vec<String>) -> Result<Vec<Found>> {
    let groups = groups(lookup, warnings)?;
    let mut found = Vec::new();
    for (index, tensor) in lookup.tensors.iter().enumerate() {
        let (module, is_packed) = if let Some(module) = tensor.name.strip_suffix(".weight_packed") {
            (module, true)
        } else {
            match tensor.name.strip_suffix(".weight") {
                Some(module) if lookup.index(&format!("{module}.weight_scale")).is_some() => (module, false),
                _ => continue,
            }
        };
        let group = group_of(&groups, module)
            .ok_or_else(|| lookup.config_fault("config_groups", format!("no group speaks of {module}")))?;
        if lookup.index(&format!("{module}.weight_g_idx")).is_some() {
            let cause = "columns are grouped in another order, which cannot be read yet";
            return Err(lookup.fault(&tensor.name, cause).fix("start from the model's 16-bit checkpoint").into());
        }
        let mut weight = match (is_packed, group.is_float) {
            (true, false) => packed(lookup, group, module, index)?,
            (false, false) => bytes(lookup, group, module, index)?,
            (false, true) => floats(lookup, group, module, index)?,
            (true, true) => {
                let cause = "packed floats (nvfp4, mxfp4) cannot be read yet";
                return Err(lookup.fault(&tensor.name, cause).fix("start from the model's 16-bit checkpoint").into());
            }
        };
        for suffix in ["input_scale", "input_zero_point", "output_scale", "output_zero_point"] {
            weight.consumed.extend(lookup.index(&format!("{module}.{suffix}")));
        }
        found.push(weight);
    }
    Ok(found)
}

fn groups(lookup: &Lookup<'_>, warnings: &mut Vec<String>) -> Result<Vec<Group>> {
    let fault = |key: &str, cause: String| lookup.config_fault(key, cause);
    let transforms = lookup.config.get("transform_config").and_then(Value::as_object);
    if transforms
        .and_then(|config| config.get("config_groups"))
        .and_then(Value::as_object)
        .is_some_and(|map| !map.is_empty())
    {
        return Err(fault("transform_config", "transformed (rotated) weights cannot be read".to_owned()).into());
    }
    let Some(map) = lookup.config.get("config_groups").and_then(Value::as_object) else {
        return Err(fault("config_groups", "the key is missing".to_owned()).into());
    };
    let mut groups = Vec::new();
    let mut quantizes_inputs = false;
    for (name, group) in map {
        let Some(weights) = group.get("weights").and_then(Value::as_object) else { continue };
        quantizes_inputs |= group.get("input_activations").is_some_and(|value| !value.is_null());
        groups.push(parse(lookup, name, group, weights)?);
    }
    if quantizes_inputs {
        warnings.push(
            "Other programs quantize the inputs of these weights while they run; here inputs stay as they are."
                .to_owned(),
        );
    }
    Ok(groups)
}

fn parse(lookup: &Lookup<'_>, name: &str, group: &Value, weights: &Map<String, Value>) -> Result<Group> {
    let key = format!("config_groups.{name}");
    let fault = |cause: String| lookup.config_fault(&key, cause);
    let text = |key: &str| weights.get(key).and_then(Value::as_str);
    let bits = weights.get("num_bits").and_then(Value::as_u64).and_then(|bits| u32::try_from(bits).ok());
    let bits = bits.filter(|bits| (2..=8).contains(bits));
    let bits = bits.ok_or_else(|| fault("num_bits is not a number from 2 to 8".to_owned()))?;
    let is_float = match text("type").unwrap_or("int") {
        "int" => false,
        "float" if bits == 8 => true,
        other => return Err(fault(format!("{bits}-bit {other} weights cannot be read yet")).into()),
    };
    if text("actorder").is_some_and(|order| order == "group") {
        return Err(fault("columns grouped in another order (actorder) cannot be read yet".to_owned()).into());
    }
    let group_size = weights.get("group_size").and_then(Value::as_u64).unwrap_or(0);
    let (mut names, mut patterns, mut has_class) = (Vec::new(), Vec::new(), false);
    for target in group.get("targets").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        match target.strip_prefix("re:") {
            Some(pattern) => {
                // Python's match: from the start, not to the end.
                let anchored = format!("^(?:{pattern})");
                let regex = regex::RegexBuilder::new(&anchored).size_limit(1 << 20).build();
                patterns.push(regex.map_err(|_| fault(format!("the pattern {pattern:?} cannot be read")))?);
            }
            None if target.contains('.') || target == "lm_head" => names.push(target.to_owned()),
            None => has_class = true,
        }
    }
    Ok(Group {
        names,
        patterns,
        has_class,
        bits,
        is_float,
        symmetric: weights.get("symmetric").and_then(Value::as_bool).unwrap_or(true),
        strategy: text("strategy").unwrap_or(if group_size > 0 { "group" } else { "tensor" }).to_owned(),
        group_size: u16::try_from(group_size).unwrap_or(0),
    })
}

/// The group of a module: by name, then by pattern, then by class, as compressed-tensors looks.
fn group_of<'a>(groups: &'a [Group], module: &str) -> Option<&'a Group> {
    let by = |test: &dyn Fn(&Group) -> bool| groups.iter().find(|group| test(group));
    by(&|group| group.names.iter().any(|name| name == module))
        .or_else(|| by(&|group| group.patterns.iter().any(|pattern| pattern.is_match(module))))
        .or_else(|| by(&|group| group.has_class))
}

/// The scheme of integers under scales of a type.
fn int_scheme(lookup: &Lookup<'_>, group: &Group, scale: Dtype) -> Result<IntScheme> {
    let granularity = match group.strategy.as_str() {
        "tensor" => Some(Granularity::Tensor),
        "channel" => Some(Granularity::Channel),
        "group" => Some(Granularity::Group(group.group_size)),
        _ => None,
    };
    let scale = match scale {
        Dtype::F16 => ScaleType::F16,
        Dtype::Bf16 => ScaleType::Bf16,
        _ => ScaleType::F32,
    };
    let scheme = granularity.and_then(|granularity| IntScheme::new(group.bits, granularity, group.symmetric, scale));
    Ok(scheme.ok_or_else(|| {
        let cause = format!("{} weights by {} of {} cannot be read yet", group.bits, group.strategy, group.group_size);
        lookup.config_fault("config_groups", cause)
    })?)
}

/// Integers in words.
fn packed(lookup: &Lookup<'_>, group: &Group, module: &str, codes: usize) -> Result<Found> {
    let scales = lookup.need(module, "weight_scale")?;
    let shape = lookup.need(module, "weight_shape")?;
    lookup.check(shape, &[Dtype::I64, Dtype::I32], &[2])?;
    let bytes = lookup.read(shape, 16)?;
    let lens: Vec<usize> = match bytes.as_chunks::<8>().0 {
        [rows, cols] => [rows, cols].map(|len| usize::try_from(i64::from_le_bytes(*len)).unwrap_or(0)).to_vec(),
        _ => {
            bytes.as_chunks::<4>().0.iter().map(|len| usize::try_from(i32::from_le_bytes(*len)).unwrap_or(0)).collect()
        }
    };
    let scheme = int_scheme(lookup, group, lookup.tensors[scales].dtype)?;
    let name = &lookup.tensors[codes].name;
    let &[rows, stored_words] = lookup.tensors[codes].shape.as_slice() else {
        return Err(lookup.fault(name, "a packed weight has two dimensions").into());
    };
    let per_word = (32 / scheme.bits()) as usize;
    let cols = lens[1];
    // 32 codes a word at most: a hostile length is refused before anything is computed from it.
    if lens[0] != rows || cols == 0 || cols.div_ceil(32) > stored_words {
        return Err(lookup.fault(name, format!("weight_shape says {lens:?}, which its codes do not fill")).into());
    }
    let is_dense = words(cols, scheme.bits()) == stored_words;
    lookup.check(codes, &[Dtype::I32], &[rows, if is_dense { stored_words } else { cols.div_ceil(per_word) }])?;
    let is_tensor = scheme.granularity() == Granularity::Tensor;
    let groups = groups_of(scheme, cols);
    check_grouped(lookup, scheme, scales, &SCALES, [rows, cols])?;
    let mut consumed = vec![codes, scales, shape];
    let (mut zeros, mut are_zeros_dense) = (None, true);
    if !scheme.is_symmetric() {
        let index = lookup.need(module, "weight_zero_point")?;
        if is_tensor {
            check_grouped(lookup, scheme, index, &[Dtype::I8], [rows, cols])?;
        } else {
            let dense = words(rows, scheme.bits());
            are_zeros_dense = lookup.tensors[index].shape.first() == Some(&dense);
            lookup.check(
                index,
                &[Dtype::I32],
                &[if are_zeros_dense { dense } else { rows.div_ceil(per_word) }, groups],
            )?;
        }
        zeros = Some(index);
        consumed.push(index);
    } else {
        consumed.extend(lookup.index(&format!("{module}.weight_zero_point")));
    }
    Ok(Found {
        module: module.to_owned(),
        dtype: Dtype::Int(scheme),
        rows,
        cols,
        parts: Parts {
            layout: Layout::Packed { is_dense, are_zeros_dense },
            codes: lookup.at(codes),
            scales: lookup.at(scales),
            zeros: zeros.map(|index| lookup.at(index)),
        },
        consumed,
    })
}

/// Groups side by side in a row.
fn groups_of(scheme: IntScheme, cols: usize) -> usize {
    match scheme.granularity() {
        Granularity::Group(len) => cols / usize::from(len),
        _ => 1,
    }
}

/// Refuses scales or zeros of integers that are not one a row and group.
fn check_grouped(
    lookup: &Lookup<'_>,
    scheme: IntScheme,
    index: usize,
    dtypes: &[Dtype],
    [rows, cols]: [usize; 2],
) -> Result<()> {
    match scheme.granularity() {
        Granularity::Tensor => check_single(lookup, index, dtypes),
        _ => lookup.check(index, dtypes, &[rows, groups_of(scheme, cols)]),
    }
}

/// Refuses what is not the one number of a tensor, of any rank.
fn check_single(lookup: &Lookup<'_>, index: usize, dtypes: &[Dtype]) -> Result<()> {
    lookup.check(index, dtypes, &lookup.tensors[index].shape)?;
    if lookup.at(index).count() != 1 {
        return Err(lookup.fault(&lookup.tensors[index].name, "a scale per tensor is one number").into());
    }
    Ok(())
}

/// Rows and columns of codes that are stored one a byte.
fn matrix(lookup: &Lookup<'_>, index: usize) -> Result<(usize, usize)> {
    match lookup.tensors[index].shape.as_slice() {
        &[rows, cols] if rows > 0 && cols > 0 => Ok((rows, cols)),
        _ => Err(lookup.fault(&lookup.tensors[index].name, "a quantized weight has two dimensions").into()),
    }
}

/// Integers one a byte.
fn bytes(lookup: &Lookup<'_>, group: &Group, module: &str, codes: usize) -> Result<Found> {
    let scales = lookup.need(module, "weight_scale")?;
    let (rows, cols) = matrix(lookup, codes)?;
    lookup.check(codes, &[Dtype::I8], &[rows, cols])?;
    let scheme = int_scheme(lookup, group, lookup.tensors[scales].dtype)?;
    check_grouped(lookup, scheme, scales, &SCALES, [rows, cols])?;
    let zeros = if scheme.is_symmetric() { None } else { Some(lookup.need(module, "weight_zero_point")?) };
    if let Some(zeros) = zeros {
        check_grouped(lookup, scheme, zeros, &[Dtype::I8], [rows, cols])?;
    }
    let mut consumed = vec![codes, scales];
    consumed.extend(lookup.index(&format!("{module}.weight_zero_point")));
    Ok(Found {
        module: module.to_owned(),
        dtype: Dtype::Int(scheme),
        rows,
        cols,
        parts: Parts {
            layout: Layout::Bytes,
            codes: lookup.at(codes),
            scales: lookup.at(scales),
            zeros: zeros.map(|index| lookup.at(index)),
        },
        consumed,
    })
}

/// 8-bit floats.
fn floats(lookup: &Lookup<'_>, group: &Group, module: &str, codes: usize) -> Result<Found> {
    let index = lookup.need(module, "weight_scale")?;
    let (rows, cols) = matrix(lookup, codes)?;
    lookup.check(codes, &[Dtype::F8E4M3], &[rows, cols])?;
    let scales = match group.strategy.as_str() {
        "tensor" => Fp8Scales::Tensor,
        "channel" => Fp8Scales::Channel,
        "block" => Fp8Scales::Block128,
        other => return Err(lookup.config_fault("config_groups", format!("fp8 by {other} cannot be read yet")).into()),
    };
    match scales {
        Fp8Scales::Tensor => check_single(lookup, index, &SCALES)?,
        Fp8Scales::Channel => lookup.check(index, &SCALES, &[rows, 1])?,
        Fp8Scales::Block128 => {
            lookup.check(index, &SCALES, &[rows.div_ceil(FP8_BLOCK), cols.div_ceil(FP8_BLOCK)])?;
        }
    }
    let mut consumed = vec![codes, index];
    consumed.extend(lookup.index(&format!("{module}.weight_zero_point")));
    Ok(Found {
        module: module.to_owned(),
        dtype: Dtype::Fp8(Fp8Scheme { kind: Fp8::E4M3, scales }),
        rows,
        cols,
        parts: Parts { layout: Layout::Bytes, codes: lookup.at(codes), scales: lookup.at(index), zeros: None },
        consumed,
    })
}
