//! Matrices with many zeros, stored by a mask and the values that are not zero.
//!
//! How many values a matrix keeps is known only once it was looked at, and the header of a safetensors file
//! comes first: so such a pass streams every linear twice, once to count.

use std::collections::BTreeMap;

use super::write::Job;
use crate::checkpoint::{Checkpoint, SafeTensor, SafetensorsWriter, TensorInfo};
use crate::error::Result;
use crate::plan::Decision;
use crate::progress::{Phase, Unit};
use crate::target::parts::Part;
use crate::target::sparse_bitmask;

/// What is stored by mask and values.
pub(super) struct Sparse {
    /// Values that are not zero in each row, by the tensor's index.
    counts: BTreeMap<usize, Vec<u32>>,
    /// Share of zeros among the weights of `counts`.
    pub(super) zeros: f64,
    /// Modules of linears that are stored as they are.
    pub(super) dense: Vec<String>,
}

impl Sparse {
    /// Counts what every linear keeps; none where the pass is not asked to, or nothing gets smaller by it.
    pub(super) fn count(job: &Job<'_>) -> Result<Option<Self>> {
        if !job.options.compact_zeros || job.plan.target.scheme().is_some() {
            return Ok(None);
        }
        let mut found = Self { counts: BTreeMap::new(), zeros: 0.0, dense: vec!["lm_head".to_owned()] };
        let (mut weights, mut nonzero) = (0u64, 0u64);
        job.progress.begin(Phase::MeasuringWeights, job.plan.old_bytes, Unit::Bytes);
        for decision in &job.plan.decisions {
            let tensor = job.tensor(decision);
            if !tensor.role.is_layer_linear() || tensor.shape.len() != 2 {
                continue;
            }
            let counts =
                if sparse_bitmask::is_plain_float(decision.dtype) { count_rows(job, decision)? } else { vec![] };
            let kept: u64 = counts.iter().map(|&count| u64::from(count)).sum();
            let dense = decision.dtype.row_bytes(tensor.row_len()).unwrap_or(0) * tensor.row_count();
            if !counts.is_empty() && bytes(&parts_of(tensor, decision, &counts)) < dense as u64 {
                weights += tensor.weight_count();
                nonzero += kept;
                found.counts.insert(decision.tensor_index, counts);
            } else {
                found.dense.push(tensor.name.trim_end_matches(".weight").to_owned());
            }
        }
        // What was met while counting will be met again.
        job.not_finite.borrow_mut().clear();
        job.progress.begin(Phase::Compressing, job.plan.old_bytes, Unit::Bytes);
        found.zeros = 1.0 - nonzero as f64 / weights.max(1) as f64;
        Ok((!found.counts.is_empty()).then_some(found))
    }

    /// What each row of a tensor keeps, where it is stored so.
    pub(super) fn of(&self, decision: &Decision) -> Option<&[u32]> {
        self.counts.get(&decision.tensor_index).map(Vec::as_slice)
    }

    /// The stored tensors of one, where it is stored so.
    pub(super) fn tensors(&self, checkpoint: &Checkpoint, decision: &Decision) -> Option<Vec<SafeTensor>> {
        let tensor = &checkpoint.tensors[decision.tensor_index];
        let module = tensor.name.trim_end_matches(".weight");
        let parts = parts_of(tensor, decision, self.of(decision)?).into_iter();
        let named =
            |part: Part| SafeTensor { name: format!("{module}.{}", part.suffix), shape: part.shape, dtype: part.dtype };
        Some(parts.map(named).collect())
    }

    /// Bytes of a tensor that is stored so.
    pub(super) fn bytes(&self, tensor: &TensorInfo, decision: &Decision) -> Option<u64> {
        Some(bytes(&parts_of(tensor, decision, self.of(decision)?)))
    }
}

fn parts_of(tensor: &TensorInfo, decision: &Decision, counts: &[u32]) -> [Part; 4] {
    let nonzero = counts.iter().map(|&count| count as usize).sum();
    sparse_bitmask::parts(decision.dtype, counts.len(), tensor.row_len(), nonzero)
}

fn bytes(parts: &[Part]) -> u64 {
    parts.iter().map(Part::bytes).sum()
}

fn count_rows(job: &Job<'_>, decision: &Decision) -> Result<Vec<u32>> {
    let tensor = job.tensor(decision);
    let width = decision.dtype.block_bytes();
    let mut counts = Vec::with_capacity(tensor.row_count());
    job.stream(decision, None, None, |rows| {
        let rows = rows.chunks_exact((tensor.row_len() * width).max(1));
        counts.extend(rows.map(|row| sparse_bitmask::count_nonzero(row, width) as u32));
        Ok(())
    })?;
    Ok(counts)
}

/// Streams one matrix into its parts; only its mask is held back.
pub(super) fn write(job: &Job<'_>, decision: &Decision, counts: &[u32], writer: &mut SafetensorsWriter) -> Result<()> {
    let cols = job.tensor(decision).row_len();
    let width = decision.dtype.block_bytes();
    let (mut values, mut mask) = (Vec::new(), Vec::new());
    job.stream(decision, None, None, |rows| {
        values.clear();
        for row in rows.chunks_exact((cols * width).max(1)) {
            sparse_bitmask::split_row(row, width, &mut values, &mut mask);
        }
        writer.write_tensor_rows(&values)
    })?;
    writer.write_tensor_rows(&mask)?;
    writer.write_tensor_rows(&sparse_bitmask::offsets_and_shape(counts, cols))
}
