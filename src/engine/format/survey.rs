//! What rows of a tensor share, found by one look at all of them before the first is encoded.
//!
//! A scale per tensor, a scale per 128 rows and 128 columns, and maxima that are coded together
//! need more than a row. A format that has such things gives a [`Survey`]; it sees the rows in order
//! and chunks, keeps at most one f32 per 61 weights, and its [`Shared`] goes into
//! [`Encoding::shared`] when rows are encoded.

use super::{Encoding, Format};
use crate::kernels::bnb::Nested;
use crate::kernels::ints::Grid;

/// What a survey found.
#[derive(Clone, Debug, PartialEq)]
pub enum Shared {
    /// Scale and zero of the whole tensor.
    Grid(Grid),
    /// The scale of the whole tensor.
    Scale(f32),
    /// Scales of blocks of rows and columns, row of blocks by row of blocks.
    Blocks {
        /// The scales.
        scales: Vec<f32>,
        /// Blocks side by side.
        per_row: usize,
    },
    /// Maxima coded in 8 bits, one per 64 weights of the whole tensor.
    Nested(Nested),
}

/// Looks at all rows of a tensor in their order.
pub trait Survey: Send {
    /// Takes the next rows, whole ones, as many as there are.
    fn look(&mut self, rows: &[f32]);

    /// What was found.
    fn finish(self: Box<Self>) -> Shared;
}

/// Surveys a matrix that lies in memory; `None` for formats whose rows share nothing.
pub fn survey_matrix(format: &dyn Format, values: &[f32], how: &Encoding<'_>) -> Option<Shared> {
    let mut survey = format.survey(how)?;
    survey.look(values);
    Some(survey.finish())
}
