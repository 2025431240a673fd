//! GPTQ and AWQ weights among a checkpoint's tensors.

use serde_json::Value;

use super::packed::{Found, Layout, Lookup, Parts};
use crate::error::Result;
use crate::format::{Dtype, Granularity, IntScheme};
use crate::kernels::ints::ScaleType;
use crate::target::compressed_tensors::words;

/// Types of a scale.
const SCALES: [Dtype; 3] = [Dtype::F16, Dtype::Bf16, Dtype::F32];

/// The scheme that the configuration and the scales' type say.
fn scheme(lookup: &Lookup<'_>, symmetric: bool, cols: usize, scale: Dtype) -> Result<IntScheme> {
    let number = |key: &str| lookup.config.get(key).and_then(Value::as_i64);
    let bits = number("bits").or_else(|| number("w_bit")).unwrap_or(0);
    let group = number("group_size").or_else(|| number("q_group_size")).unwrap_or(-1);
    let granularity = match u16::try_from(group) {
        Ok(len) if usize::from(len) < cols => Granularity::Group(len),
        _ => Granularity::Channel,
    };
    let scale = match scale {
        Dtype::F16 => ScaleType::F16,
        Dtype::Bf16 => ScaleType::Bf16,
        _ => ScaleType::F32,
    };
    let scheme = u32::try_from(bits).ok().and_then(|bits| IntScheme::new(bits, granularity, symmetric, scale));
    Ok(scheme.ok_or_else(|| {
        lookup.config_fault("bits", format!("{bits}-bit weights in groups of {group} cannot be read yet"))
    })?)
}

/// Modules that have a `qweight`, with its index.
fn modules<'a>(lookup: &'a Lookup<'_>) -> impl Iterator<Item = (usize, &'a str)> {
    let names = lookup.tensors.iter().enumerate();
    names.filter_map(|(index, tensor)| Some((index, tensor.name.strip_suffix(".qweight")?)))
}

/// Every GPTQ weight.
pub(super) fn find_gptq(lookup: &Lookup<'_>) -> Result<Vec<Found>> {
    let flag = |key: &str| lookup.config.get(key).and_then(Value::as_bool);
    let dynamic = lookup.config.get("dynamic").and_then(Value::as_object);
    if dynamic.is_some_and(|map| map.keys().any(|key| !key.starts_with("-:"))) {
        return Err(lookup.config_fault("dynamic", "modules with settings of their own cannot be read yet").into());
    }
    let is_first_version =
        lookup.config.get("checkpoint_format").and_then(Value::as_str).unwrap_or("gptq") != "gptq_v2";
    let mut found = Vec::new();
    for (codes, module) in modules(lookup) {
        let (zeros, scales) = (lookup.need(module, "qzeros")?, lookup.need(module, "scales")?);
        let name = &lookup.tensors[codes].name;
        let (&[stored_words, rows], Some(order)) =
            (lookup.tensors[codes].shape.as_slice(), lookup.index(&format!("{module}.g_idx")))
        else {
            return Err(lookup.fault(name, "a packed weight has two dimensions and a g_idx").into());
        };
        let cols = lookup.tensors[order].shape.first().copied().unwrap_or(0);
        lookup.check(order, &[Dtype::I32, Dtype::I64], &[cols])?;
        let scheme = scheme(lookup, flag("sym").unwrap_or(true), cols, lookup.tensors[scales].dtype)?;
        if !matches!(scheme.bits(), 2 | 3 | 4 | 8) || !(cols * scheme.bits() as usize).is_multiple_of(32) {
            return Err(lookup.fault(name, format!("{} bits over {cols} inputs cannot be read", scheme.bits())).into());
        }
        let parts = scheme.row_parts(cols);
        lookup.check(codes, &[Dtype::I32], &[words(cols, scheme.bits()), rows])?;
        lookup.check(zeros, &[Dtype::I32], &[parts.groups, words(rows, scheme.bits())])?;
        lookup.check(scales, &SCALES, &[parts.groups, rows])?;
        debug_assert_eq!(stored_words, words(cols, scheme.bits()));
        check_order(lookup, order, parts.group)?;
        found.push(Found {
            module: module.to_owned(),
            dtype: Dtype::Int(scheme),
            rows,
            cols,
            parts: Parts {
                layout: Layout::Gptq { is_first_version },
                codes: lookup.at(codes),
                scales: lookup.at(scales),
                zeros: Some(lookup.at(zeros)),
            },
            consumed: vec![codes, zeros, scales, order],
        });
    }
    Ok(found)
}

/// Refuses groups that are not consecutive columns.
fn check_order(lookup: &Lookup<'_>, order: usize, group: usize) -> Result<()> {
    let bytes = lookup.read(order, 1 << 26)?;
    let is_plain = match lookup.tensors[order].dtype {
        Dtype::I32 => {
            let indices = bytes.as_chunks::<4>().0.iter().map(|bytes| i64::from(i32::from_le_bytes(*bytes)));
            indices.enumerate().all(|(column, index)| index == (column / group) as i64)
        }
        _ => {
            let indices = bytes.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes));
            indices.enumerate().all(|(column, index)| index == (column / group) as i64)
        }
    };
    if is_plain {
        return Ok(());
    }
    let cause = "columns are grouped in another order (desc_act), which cannot be read yet";
    Err(lookup.fault(&lookup.tensors[order].name, cause).fix("start from the model's 16-bit checkpoint").into())
}

/// Every AWQ weight.
pub(super) fn find_awq(lookup: &Lookup<'_>) -> Result<Vec<Found>> {
    let version = lookup.config.get("version").and_then(Value::as_str).unwrap_or("gemm");
    if !version.eq_ignore_ascii_case("gemm") {
        return Err(lookup.config_fault("version", format!("the layout {version} cannot be read, only gemm")).into());
    }
    let mut found = Vec::new();
    for (codes, module) in modules(lookup) {
        let (zeros, scales) = (lookup.need(module, "qzeros")?, lookup.need(module, "scales")?);
        let name = &lookup.tensors[codes].name;
        let &[cols, eights] = lookup.tensors[codes].shape.as_slice() else {
            return Err(lookup.fault(name, "a packed weight has two dimensions").into());
        };
        let scheme = scheme(lookup, false, cols, lookup.tensors[scales].dtype)?;
        if scheme.bits() != 4 || cols == 0 {
            return Err(lookup.fault(name, "AWQ's gemm layout has 4 bits and inputs").into());
        }
        let groups = scheme.row_parts(cols).groups;
        let rows = eights.checked_mul(8).ok_or_else(|| lookup.fault(name, "the shape is too large"))?;
        lookup.check(codes, &[Dtype::I32], &[cols, eights])?;
        lookup.check(zeros, &[Dtype::I32], &[groups, eights])?;
        lookup.check(scales, &SCALES, &[groups, rows])?;
        found.push(Found {
            module: module.to_owned(),
            dtype: Dtype::Int(scheme),
            rows,
            cols,
            parts: Parts {
                layout: Layout::Awq,
                codes: lookup.at(codes),
                scales: lookup.at(scales),
                zeros: Some(lookup.at(zeros)),
            },
            consumed: vec![codes, zeros, scales],
        });
    }
    Ok(found)
}
