//! What units give, over a sample: one forward pass for all layers together.
//!
//! Inputs of `o` and `down`, column by column: mean and centred second moment (Welford, "Note on a method
//! for calculating corrected sums of squares and products", 1962), sum of squares, and the square of each
//! sequence's mean magnitude. Rows are added in their order whatever the number of threads.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::{InputMeans, Sample};
use crate::checkpoint::Role;
use crate::error::Result;
use crate::model::{Batch, LinearInput, Model};
use crate::progress::{Phase, Progress, Unit};
use crate::scoring::BATCH_TOKENS;

/// Columns that one task adds up: enough for whole cache lines, few enough for every core.
const TASK_COLUMNS: usize = 64;

/// Moments of one column.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Column {
    count: u64,
    mean: f64,
    /// Sum of squared distances from the mean.
    centred: f64,
    squares: f64,
    /// Sum over sequences of the squared mean magnitude.
    sequence_squares: f64,
}

impl Column {
    fn add(&mut self, value: f32) {
        let value = f64::from(value);
        self.count += 1;
        let off = value - self.mean;
        self.mean += off / self.count as f64;
        self.centred += off * (value - self.mean);
        self.squares += value * value;
    }
}

/// Moments of the inputs of one linear.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InputStatistics {
    columns: Vec<Column>,
}

impl InputStatistics {
    /// Adds the rows of one batch, `values` tokens × width; sequences are runs of `lengths` rows.
    fn add(&mut self, values: &[f32], width: usize, lengths: &[usize]) {
        self.columns.resize(width, Column::default());
        self.columns.par_chunks_mut(TASK_COLUMNS).enumerate().for_each(|(task, columns)| {
            let from = task * TASK_COLUMNS;
            let mut row = 0;
            let mut magnitudes = vec![0.0; columns.len()];
            for &length in lengths {
                magnitudes.fill(0.0);
                for values in values[row * width..(row + length) * width].chunks_exact(width) {
                    for ((column, magnitude), &value) in columns.iter_mut().zip(&mut magnitudes).zip(&values[from..]) {
                        column.add(value);
                        *magnitude += f64::from(value.abs());
                    }
                }
                for (column, magnitude) in columns.iter_mut().zip(&magnitudes) {
                    column.sequence_squares += (magnitude / length.max(1) as f64).powi(2);
                }
                row += length;
            }
        });
    }

    /// Mean of every column.
    pub fn means(&self) -> impl Iterator<Item = f64> {
        self.columns.iter().map(|column| column.mean)
    }

    /// Variance of every column over the tokens seen.
    pub fn variances(&self) -> impl Iterator<Item = f64> {
        self.columns.iter().map(|column| column.centred / column.count.max(1) as f64)
    }

    /// Mean square of every column.
    pub fn mean_squares(&self) -> impl Iterator<Item = f64> {
        self.columns.iter().map(|column| column.squares / column.count.max(1) as f64)
    }

    /// L2 norm over sequences of every column's mean magnitude.
    pub fn sequence_norms(&self) -> Vec<f64> {
        self.columns.iter().map(|column| column.sequence_squares.sqrt()).collect()
    }
}

/// Inputs of the linears of every layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Activations {
    linears: BTreeMap<(usize, Role), InputStatistics>,
}

impl Activations {
    /// Runs the model once over the sample and looks at what `o` and `down` multiply, which is what units give.
    ///
    /// # Errors
    /// A token beyond the vocabulary, or cancel.
    pub fn watch(model: &Model, sample: &Sample, progress: &Progress) -> Result<Self> {
        Self::watch_roles(model, sample, &[Role::O, Role::Down], progress)
    }

    /// The same for the linears of these roles.
    ///
    /// # Errors
    /// As [`Activations::watch`].
    pub fn watch_roles(model: &Model, sample: &Sample, roles: &[Role], progress: &Progress) -> Result<Self> {
        let mut found = Self::default();
        run(model, sample, progress, &mut |input, lengths| found.add(&input, roles, lengths))?;
        Ok(found)
    }

    fn add(&mut self, input: &LinearInput<'_>, roles: &[Role], lengths: &[usize]) {
        let (Some(layer), Some(&first)) = (input.layer, input.roles.first()) else { return };
        if input.roles.iter().any(|role| roles.contains(role)) {
            self.linears.entry((layer, first)).or_default().add(input.values, input.width, lengths);
        }
    }

    /// What was seen of one linear, whose input may be shared; nothing where it was not seen.
    pub fn of(&self, layer: usize, role: Role) -> InputStatistics {
        self.linears.get(&(layer, shared_input(role))).cloned().unwrap_or_default()
    }

    /// The means of what units give, for [`InputMeans::biases`].
    pub fn means(&self) -> InputMeans {
        let means = |own: &InputStatistics| own.means().map(|mean| mean as f32).collect();
        let units = self.linears.iter().filter(|((_, role), _)| matches!(role, Role::O | Role::Down));
        InputMeans { linears: units.map(|(&key, own)| (key, means(own))).collect() }
    }
}

/// The first of the linears that share `role`'s input.
pub(super) fn shared_input(role: Role) -> Role {
    match role {
        Role::K | Role::V => Role::Q,
        Role::Up => Role::Gate,
        other => other,
    }
}

/// The sample in the batches that a model is run on, each with the lengths of its sequences.
pub(super) fn batches(sample: &Sample) -> impl Iterator<Item = (Batch, Vec<usize>)> {
    let longest = sample.windows.iter().map(Vec::len).max().unwrap_or(1).max(1);
    sample.windows.chunks((BATCH_TOKENS / longest).max(1)).map(|windows| {
        let mut batch = Batch::default();
        for ids in windows {
            batch.push(ids, None, None);
        }
        (batch, windows.iter().map(Vec::len).collect())
    })
}

/// Runs the model once over the sample; `see` gets every input with the lengths of its sequences.
pub(super) fn run(
    model: &Model,
    sample: &Sample,
    progress: &Progress,
    see: &mut dyn FnMut(LinearInput<'_>, &[usize]),
) -> Result<()> {
    progress.begin(Phase::Calibrating, sample.tokens(), Unit::Tokens);
    for (batch, lengths) in batches(sample) {
        progress.check()?;
        model.watch_linears(&batch, progress, &mut |input| see(input, &lengths))?;
        progress.advance(batch.ids.len() as u64);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_the_values_and_constants_have_none() {
        let (first, second) = ([1.0f32, 0.3, 3.0, 0.3, -2.0, 0.3], [4.0f32, 0.3]);
        let mut own = InputStatistics::default();
        own.add(&first, 2, &[1, 2]);
        own.add(&second, 2, &[1]);
        assert_eq!(own.means().collect::<Vec<_>>(), [1.5, f64::from(0.3f32)]);
        let variances: Vec<f64> = own.variances().collect();
        assert!((variances[0] - 5.25).abs() < 1e-12 && variances[1] == 0.0, "{variances:?}");
        assert!((own.mean_squares().next().expect("first") - 7.5).abs() < 1e-12);
        // Sequences of 1, 3 and -2, and 4: mean magnitudes 1, 2.5, 4.
        assert!((own.sequence_norms()[0] - (1.0f64 + 6.25 + 16.0).sqrt()).abs() < 1e-12);
    }
}
