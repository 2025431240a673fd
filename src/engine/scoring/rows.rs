//! Log-probabilities at chosen rows of a batch, without logits of the others.

use rayon::prelude::*;

use super::softmax::RowSum;
use super::{TokenModel, not_finite};
use crate::error::Result;
use crate::progress::Progress;

/// Logits held at once: 64 MiB of f32.
const LOGIT_BUDGET: usize = 16 << 20;

/// Rows whose logits fit the budget together.
pub(crate) fn rows_at_once(vocab: usize) -> usize {
    (LOGIT_BUDGET / vocab.max(1)).max(1)
}

/// What is asked of one row of hidden states.
#[derive(Clone, Debug)]
pub struct RowRequest {
    /// Row within the batch.
    pub row: usize,
    /// Tokens whose log-probability is wanted.
    pub targets: Vec<u32>,
}

/// The answer to a [`RowRequest`].
#[derive(Clone, Debug)]
pub struct RowScore {
    /// Natural logs of the probabilities, in the order of the targets.
    pub log_probs: Vec<f64>,
    /// The most probable token, the lowest id among equals.
    pub top: u32,
}

/// Copies the asked rows of `hidden` next to one another.
pub(crate) fn gather(hidden: &[f32], width: usize, rows: impl Iterator<Item = usize>) -> Vec<f32> {
    let mut gathered = Vec::with_capacity(rows.size_hint().0 * width);
    for row in rows {
        gathered.extend_from_slice(&hidden[row * width..(row + 1) * width]);
    }
    gathered
}

/// Scores rows of a batch's `hidden` states (tokens × width), in the order asked.
pub fn score_rows(
    model: &dyn TokenModel,
    hidden: &[f32],
    requests: &[RowRequest],
    progress: &Progress,
) -> Result<Vec<RowScore>> {
    let (vocab, width) = (model.vocab(), model.width());
    let mut scores = Vec::with_capacity(requests.len());
    for chunk in requests.chunks(rows_at_once(vocab)) {
        progress.check()?;
        let logits = model.logits(&gather(hidden, width, chunk.iter().map(|request| request.row)))?;
        let scored: Vec<Option<RowScore>> = logits
            .par_chunks_exact(vocab)
            .zip(chunk)
            .map(|(row, request)| {
                let sum = RowSum::of(row)?;
                let log_probs = request.targets.iter().map(|&id| sum.log_prob(row[id as usize])).collect();
                Some(RowScore { log_probs, top: sum.top })
            })
            .collect();
        for score in scored {
            scores.push(score.ok_or_else(|| not_finite("a task's token"))?);
        }
    }
    Ok(scores)
}
