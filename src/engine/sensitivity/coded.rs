//! Weights of one tensor, decoded once, and what every format makes of them.

use rayon::prelude::*;

use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::error::{Fault, Result, Stage};
use crate::format::{self, Dtype, Encoding, Format};
use crate::progress::Progress;

/// What a metric makes of weights and of what they come back as.
type Value<'a> = dyn FnMut(&[f32], &[f32]) -> Option<f64> + 'a;

/// A tensor's weights in f32.
pub(super) struct Decoded<'a> {
    tensor: &'a TensorInfo,
    importance: Option<&'a [f32]>,
    pub(super) values: Vec<f32>,
}

impl<'a> Decoded<'a> {
    /// Reads a tensor; formats heed `importance` of its columns.
    pub(super) fn read(
        checkpoint: &Checkpoint,
        tensor: &'a TensorInfo,
        importance: Option<&'a [f32]>,
        progress: &Progress,
    ) -> Result<Self> {
        progress.check()?;
        let mut values = Vec::new();
        checkpoint.decode_rows(tensor, 0..tensor.row_count(), &mut Vec::new(), &mut values)?;
        Ok(Self { tensor, importance, values })
    }

    /// The weights as they come back from `format`; none where nothing changes.
    pub(super) fn coded(&self, format: &dyn Format, progress: &Progress) -> Result<Option<Vec<f32>>> {
        if format.dtype() == self.tensor.dtype || format.dtype() == Dtype::F32 {
            return Ok(None);
        }
        let cols = self.tensor.row_len();
        let row_bytes = format.dtype().row_bytes(cols).ok_or_else(|| {
            let cause = format!("rows of {cols} do not fill {} blocks", format.id());
            Fault::new(Stage::Sensitivity, cause).at(&self.tensor.name)
        })?;
        let scale_choice = super::scale_choice(self.importance);
        let how = Encoding { importance: self.importance, scale_choice, ..Encoding::plain(cols) };
        progress.check()?;
        let mut values = self.values.clone();
        let shared = format::survey_matrix(format, &values, &how);
        values.par_chunks_exact_mut(cols).enumerate().for_each_init(
            || vec![0; row_bytes],
            |bytes, (first_row, row)| {
                format.encode_rows(row, &Encoding { first_row, shared: shared.as_ref(), ..how }, bytes);
                format.decode_row(bytes, row);
            },
        );
        progress.check()?;
        Ok(Some(values))
    }

    /// One cell per asked format by `value` of the coded weights, which is asked once per format that
    /// is really stored; an unchanged tensor has value 0.
    pub(super) fn cells(
        &self,
        formats: &[&'static dyn Format],
        progress: &Progress,
        value: &mut Value<'_>,
    ) -> Result<Vec<Option<super::SensitivityValue>>> {
        let mut known: Vec<(&str, Option<f64>)> = Vec::new();
        let mut cells = Vec::with_capacity(formats.len());
        for &asked in formats {
            let stored = format::fitting(asked, self.tensor.row_len());
            if !stored.fits(self.tensor.row_len()) {
                cells.push(None);
                continue;
            }
            let found = match known.iter().find(|(id, _)| *id == stored.id()) {
                Some((_, found)) => *found,
                None => {
                    let found = match self.coded(stored, progress)? {
                        None => Some(0.0),
                        Some(coded) => value(&self.values, &coded).filter(|value| value.is_finite()),
                    };
                    known.push((stored.id(), found));
                    found
                }
            };
            cells.push(found.and_then(|value| super::SensitivityValue::new(value, self.tensor, asked, stored)));
        }
        Ok(cells)
    }
}
