//! One look at all rows of a tensor, for formats whose rows share something.

use super::{Checkpoint, TensorInfo};
use crate::error::Result;
use crate::format::{Encoding, Format, Shared, Survey};
use crate::progress::Progress;

/// Weights that are decoded at a time.
const CHUNK_WEIGHTS: usize = 1 << 20;

impl Checkpoint {
    /// What the rows of `tensor` share in each of `formats`; reads nothing where none of them has a
    /// survey, and every row once otherwise.
    ///
    /// # Errors
    /// A type that cannot be decoded, an unreadable file, or cancel.
    pub fn survey(
        &self,
        tensor: &TensorInfo,
        formats: &[&'static dyn Format],
        how: &Encoding<'_>,
        progress: &Progress,
    ) -> Result<Vec<Option<Shared>>> {
        let mut surveys: Vec<Option<Box<dyn Survey>>> = formats
            .iter()
            // Rows that are already stored so are not encoded again.
            .map(|format| if format.dtype() == tensor.dtype { None } else { format.survey(how) })
            .collect();
        if surveys.iter().any(Option::is_some) {
            let (mut raw, mut values) = (Vec::new(), Vec::new());
            let rows = tensor.row_count();
            let together = tensor.permuted_heads.map_or(1, |heads| (rows / heads.max(1)).max(1));
            let step = (CHUNK_WEIGHTS / tensor.row_len().max(1)).max(1).next_multiple_of(together);
            for first in (0..rows).step_by(step) {
                progress.check()?;
                self.decode_rows(tensor, first..(first + step).min(rows), &mut raw, &mut values)?;
                surveys.iter_mut().flatten().for_each(|survey| survey.look(&values));
            }
        }
        Ok(surveys.into_iter().map(|survey| survey.map(Survey::finish)).collect())
    }
}
