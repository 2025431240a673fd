//! What a sensitivity table says of a plan's decisions.

use std::collections::HashMap;

use super::super::{Decision, ResolvedPlan};
use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::format;
use crate::sensitivity::{self, SensitivityTable};

/// A table with its rows by name.
#[derive(Debug)]
pub(crate) struct Damages<'a> {
    table: &'a SensitivityTable,
    rows: HashMap<&'a str, usize>,
}

impl<'a> Damages<'a> {
    pub(crate) fn new(table: &'a SensitivityTable) -> Self {
        Self { table, rows: table.rows.iter().enumerate().map(|(index, row)| (row.name.as_str(), index)).collect() }
    }

    /// What one decision does, with its standard error; nothing where the stored values stay or the
    /// tensor is none that sensitivity is about.
    pub(crate) fn of(&self, tensor: &TensorInfo, decision: &Decision) -> Option<(f64, Option<f64>)> {
        if decision.is_copy() || decision.is_removed() || !sensitivity::is_default_subject(tensor) {
            return Some((0.0, None));
        }
        let format = format::of_dtype(decision.dtype)?;
        let column = self.table.column(format.id());
        if format.dtype().is_plain() && column.is_none() {
            return Some((0.0, None));
        }
        let row = self.rows.get(tensor.name.as_str())?;
        let cell = self.table.rows.get(*row)?.cells.get(column?)?.as_ref()?;
        Some((cell.value, cell.stderr))
    }
}

/// Sum of the damages of a plan's choices; none where one of them is not in the table.
pub fn predicted_damage(table: &SensitivityTable, checkpoint: &Checkpoint, resolved: &ResolvedPlan) -> Option<f64> {
    let damages = Damages::new(table);
    resolved.decisions.iter().try_fold(0.0, |sum, decision| {
        let tensor = checkpoint.tensors.get(decision.tensor_index)?;
        Some(sum + damages.of(tensor, decision)?.0)
    })
}
