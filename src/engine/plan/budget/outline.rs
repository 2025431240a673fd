//! A table of sizes alone, by which limits that nothing can keep are refused before anything is measured.

use super::super::Target;
use crate::checkpoint::Checkpoint;
use crate::format;
use crate::sensitivity::{self, Label, Metric, SensitivityRow, SensitivityTable, SensitivityValue};

/// No metric: what has a size only.
const SIZE: Metric = Metric {
    id: "size",
    title: "size",
    unit: "",
    description: "bytes alone, before anything is measured",
    label: Label::Predicted,
};

/// Every format of a target for every tensor that sensitivity is about, as if none did any damage.
///
/// It is good for [`super::Planner::refuse_impossible`] and nothing else.
pub fn outline(checkpoint: &Checkpoint, target: Target) -> SensitivityTable {
    let formats: Vec<_> = target.formats().filter_map(format::find).collect();
    let subjects = checkpoint.tensors.iter().filter(|tensor| sensitivity::is_default_subject(tensor));
    let rows = subjects.map(|tensor| {
        let mut row = SensitivityRow::new(tensor, formats.len());
        for (cell, &asked) in row.cells.iter_mut().zip(&formats) {
            let stored = format::fitting(asked, tensor.row_len());
            *cell = SensitivityValue::new(0.0, tensor, asked, stored).filter(|_| stored.fits(tensor.row_len()));
        }
        row
    });
    SensitivityTable { rows: rows.collect(), ..SensitivityTable::new(checkpoint, &SIZE, &formats) }
}
