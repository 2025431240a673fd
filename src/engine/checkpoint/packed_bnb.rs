//! bitsandbytes' 4-bit weights among a checkpoint's tensors.

use serde_json::Value;

use super::packed::{Found, Layout, Lookup, Parts};
use crate::error::Result;
use crate::format::{BnbScheme, Dtype};
use crate::kernels::bnb::{BLOCK, NESTED_BLOCK, Table};
use crate::target::bitsandbytes::table_name;

/// A state is some hundred bytes of JSON.
const MOST_STATE_BYTES: u64 = 1 << 16;

/// Every packed weight.
pub(super) fn find(lookup: &Lookup<'_>) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for tensor in lookup.tensors {
        if tensor.name.ends_with(".SCB") {
            let fault = lookup.fault(&tensor.name, "LLM.int8 weights cannot be read yet");
            return Err(fault.fix("start from the model's 16-bit checkpoint").into());
        }
        for table in [Table::Nf4, Table::Fp4] {
            let suffix = format!(".weight.quant_state.bitsandbytes__{}", table_name(table));
            if let Some(module) = tensor.name.strip_suffix(&suffix)
                && let Some(state) = lookup.index(&tensor.name)
            {
                found.push(weight(lookup, module, table, state)?);
            }
        }
    }
    Ok(found)
}

fn weight(lookup: &Lookup<'_>, module: &str, table: Table, state: usize) -> Result<Found> {
    let name = &lookup.tensors[state].name;
    let fault = |cause: &str| lookup.fault(name, cause);
    let json: Value = serde_json::from_slice(&lookup.read(state, MOST_STATE_BYTES)?)
        .map_err(|err| fault(&format!("the state is no JSON: {err}")))?;
    let number = |key: &str| json.get(key).and_then(Value::as_u64);
    let shape: Vec<usize> = json
        .get("shape")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|len| usize::try_from(len.as_u64()?).ok())
        .collect();
    let &[rows, cols] = shape.as_slice() else { return Err(fault("the state's shape is no matrix").into()) };
    let offset = json.get("nested_offset").and_then(Value::as_f64);
    if number("blocksize") != Some(BLOCK as u64)
        || (offset.is_some() && number("nested_blocksize") != Some(NESTED_BLOCK as u64))
        || cols == 0
        || !cols.is_multiple_of(BLOCK)
    {
        let fault = fault("only blocks of 64 that fill whole rows, 256 maxima together, can be read");
        return Err(fault.fix("start from the model's 16-bit checkpoint").into());
    }
    let codes = lookup.need(module, "weight")?;
    let maxima = lookup.need(module, "weight.absmax")?;
    let map = lookup.need(module, "weight.quant_map")?;
    let bytes = rows.checked_mul(cols / 2).ok_or_else(|| fault("the shape is too large"))?;
    let blocks = bytes / (BLOCK / 2);
    lookup.check(codes, &[Dtype::U8], &[bytes, 1])?;
    lookup.check(maxima, &[if offset.is_some() { Dtype::U8 } else { Dtype::F32 }], &[blocks])?;
    lookup.check(map, &[Dtype::F32], &[16])?;
    let values = lookup.read(map, 64)?;
    let values = values.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
    if values.zip(table.values()).any(|(theirs, ours)| (theirs - ours).abs() > 1e-4 || theirs.is_nan()) {
        return Err(lookup.fault(&lookup.tensors[map].name, "the table of values is another one").into());
    }
    let mut consumed = vec![codes, maxima, map, state];
    let nested = match offset {
        None => None,
        Some(offset) => {
            let outer = lookup.need(module, "weight.nested_absmax")?;
            let table = lookup.need(module, "weight.nested_quant_map")?;
            lookup.check(outer, &[Dtype::F32], &[blocks.div_ceil(NESTED_BLOCK)])?;
            lookup.check(table, &[Dtype::F32], &[256])?;
            consumed.extend([outer, table]);
            Some((lookup.at(outer), lookup.at(table), offset as f32))
        }
    };
    Ok(Found {
        module: module.to_owned(),
        dtype: Dtype::Bnb(BnbScheme { table, double_quantized: nested.is_some() }),
        rows,
        cols,
        parts: Parts {
            layout: Layout::Bnb { nested },
            codes: lookup.at(codes),
            scales: lookup.at(maxima),
            zeros: None,
        },
        consumed,
    })
}
