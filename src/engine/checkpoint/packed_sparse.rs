//! Weights stored as a bit mask and the values that are not zero, among a checkpoint's tensors.
//!
//! Nothing is taken on trust: the shapes of the parts must fit each other when the folder is opened, and
//! every row's place and number of values must fit its mask when it is read.

use std::ops::Range;

use serde_json::Value;

use super::packed::{Found, Layout, Lookup, Parts};
use super::{Checkpoint, TensorInfo};
use crate::error::{Error, Fault, Result, Stage};
use crate::format::Dtype;
use crate::target::sparse_bitmask::{self, FORMAT, FORMAT_24};

/// Types of values that may be left out.
const VALUES: [Dtype; 3] = [Dtype::F16, Dtype::Bf16, Dtype::F32];

/// Every weight stored so; none where the configuration does not speak of sparsity.
pub(super) fn find(lookup: &Lookup<'_>) -> Result<Option<Vec<Found>>> {
    let sparsity = lookup.config.get("sparsity_config").and_then(Value::as_object);
    let format = sparsity.and_then(|config| config.get("format")).and_then(Value::as_str).unwrap_or("dense");
    let is_24 = match format {
        "dense" => return Ok(None),
        FORMAT => false,
        FORMAT_24 => true,
        other => {
            let cause = format!("sparse weights ({other}) cannot be read");
            return Err(lookup.config_fault("sparsity_config", cause).into());
        }
    };
    let groups = lookup.config.get("config_groups").and_then(Value::as_object);
    if groups.is_some_and(|groups| !groups.is_empty()) {
        let cause = "weights that are sparse and quantized at once cannot be read";
        return Err(lookup.config_fault("config_groups", cause).into());
    }
    let masks = lookup.tensors.iter().enumerate();
    let modules = masks.filter_map(|(index, tensor)| Some((index, tensor.name.strip_suffix(".bitmask")?)));
    modules.map(|(mask, module)| weight(lookup, module, mask, is_24)).collect::<Result<Vec<Found>>>().map(Some)
}

fn weight(lookup: &Lookup<'_>, module: &str, mask: usize, is_24: bool) -> Result<Found> {
    let values = lookup.need(module, "compressed")?;
    let shape = lookup.need(module, "shape")?;
    let name = &lookup.tensors[mask].name;
    let lens: Vec<usize> = match (lookup.tensors[shape].dtype, lookup.read(shape, 16)?) {
        (Dtype::I64, bytes) => {
            let lens = bytes.as_chunks::<8>().0.iter();
            lens.map(|len| usize::try_from(i64::from_le_bytes(*len)).unwrap_or(0)).collect()
        }
        _ => Vec::new(),
    };
    let &[rows, cols] = lens.as_slice() else {
        return Err(lookup.fault(&lookup.tensors[shape].name, "the shape of a matrix is two 64-bit numbers").into());
    };
    if rows == 0 || cols == 0 || rows.checked_mul(cols).is_none() {
        return Err(lookup.fault(name, format!("the shape [{rows}, {cols}] is none of a matrix")).into());
    }
    lookup.check(mask, &[Dtype::U8], &[rows, sparse_bitmask::mask_bytes(cols)])?;
    let mut consumed = vec![values, mask, shape];
    let mut offsets = None;
    if is_24 {
        if !cols.is_multiple_of(4) {
            return Err(lookup.fault(name, format!("rows of {cols} are no whole fours")).into());
        }
        lookup.check(values, &VALUES, &[rows, cols / 2])?;
    } else {
        let count = lookup.at(values).count();
        lookup.check(values, &VALUES, &[count])?;
        let index = lookup.need(module, "row_offsets")?;
        lookup.check(index, &[Dtype::I64], &[rows])?;
        offsets = Some(lookup.at(index));
        consumed.push(index);
    }
    Ok(Found {
        module: module.to_owned(),
        dtype: lookup.tensors[values].dtype,
        rows,
        cols,
        parts: Parts { layout: Layout::Sparse, codes: lookup.at(values), scales: lookup.at(mask), zeros: offsets },
        consumed,
    })
}

impl Checkpoint {
    /// Dense rows of a weight stored by mask and values.
    pub(super) fn read_sparse(
        &self,
        tensor: &TensorInfo,
        parts: &Parts,
        rows: Range<usize>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let (cols, width) = (tensor.row_len(), tensor.dtype.block_bytes());
        let mask_bytes = sparse_bitmask::mask_bytes(cols);
        let mask = self.part(&parts.scales, rows.start * mask_bytes, rows.len() * mask_bytes)?;
        let counts: Vec<usize> = mask.chunks_exact(mask_bytes).map(|mask| sparse_bitmask::count(mask, cols)).collect();
        let fault = |row: usize| -> Error {
            let cause = format!("the values of row {row} are not where its mask says");
            let fault = Fault::new(Stage::Checkpoint, cause).at(format!("tensor {}", tensor.name));
            fault.fix("copy or download the model again").file(&self.path).into()
        };
        let first = match &parts.zeros {
            Some(at) => {
                let bytes = self.part(at, rows.start * 8, rows.len() * 8)?;
                let mut offsets = bytes.as_chunks::<8>().0.iter().map(|offset| i64::from_le_bytes(*offset));
                let first = offsets.next().and_then(|offset| usize::try_from(offset).ok());
                let first = first.ok_or_else(|| fault(rows.start))?;
                let mut next = first.checked_add(counts[0]).ok_or_else(|| fault(rows.start))?;
                for ((row, offset), count) in (rows.start + 1..).zip(offsets).zip(&counts[1..]) {
                    if usize::try_from(offset) != Ok(next) {
                        return Err(fault(row));
                    }
                    next = next.checked_add(*count).ok_or_else(|| fault(row))?;
                }
                first
            }
            None => {
                if let Some(row) = counts.iter().position(|count| *count != cols / 2) {
                    return Err(fault(rows.start + row));
                }
                rows.start * (cols / 2)
            }
        };
        let total: usize = counts.iter().sum();
        let end = first.checked_add(total).and_then(|end| end.checked_mul(width));
        if end.is_none_or(|end| end as u64 > parts.codes.byte_count) {
            return Err(fault(rows.start));
        }
        let values = self.part(&parts.codes, first * width, total * width)?;
        out.resize(rows.len() * cols * width, 0);
        let mut from = 0;
        let rows = out.chunks_exact_mut(cols * width).zip(mask.chunks_exact(mask_bytes));
        for ((out, mask), count) in rows.zip(counts) {
            sparse_bitmask::join_row(&values[from..from + count * width], mask, width, out);
            from += count * width;
        }
        Ok(())
    }
}
