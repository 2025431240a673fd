//! The original's run over a text, kept so that a changed model need only repeat what comes after
//! the change.

use std::borrow::Cow;

use rayon::prelude::*;

use super::grouped::GroupedText;
use crate::checkpoint::Role;
use crate::error::{Fault, Result, Stage};
use crate::kernels::ops;
use crate::model::{Batch, Change, Kept, LayerInputs, Model};
use crate::progress::Progress;
use crate::scoring::mean_and_stderr;

/// Tokens that are run together.
const BATCH_TOKENS: usize = 1024;

/// Memory that the original's run may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReferenceOptions {
    /// For rows of its layers: those within every layer where they fit, else the inputs of every layer,
    /// else none, and every run starts at the tokens.
    pub state_bytes: u64,
    /// For its logits; beyond it, they are computed again from its last states.
    pub logit_bytes: u64,
}

impl Default for ReferenceOptions {
    fn default() -> Self {
        Self { state_bytes: 512 << 20, logit_bytes: 256 << 20 }
    }
}

/// A stretch of text with what the original makes of it.
pub(super) struct Reference {
    batch: Batch,
    /// Rows whose next token is scored.
    rows: Vec<usize>,
    inputs: LayerInputs,
    /// Final states of the scored rows.
    hidden: Vec<f32>,
    /// Logits of the scored rows, where they are kept.
    logits: Option<Vec<f32>>,
    /// Logarithm of the sum of their exponentials, row by row.
    log_sums: Vec<f32>,
}

/// The original's run over a whole text.
pub(super) struct References {
    list: Vec<Reference>,
    /// Scored tokens.
    tokens: u64,
}

impl References {
    /// Runs the original once over the text and counts its scored tokens.
    pub(super) fn run(
        model: &Model,
        text: &GroupedText,
        options: &ReferenceOptions,
        progress: &Progress,
    ) -> Result<Self> {
        let run_tokens: usize = text.windows.iter().map(|window| window.ids.len()).sum();
        let fits = |kept: &Kept| model.kept_bytes(run_tokens, *kept) <= options.state_bytes;
        let kept = [Kept::Everything, Kept::Layers].into_iter().find(fits).unwrap_or(Kept::Nothing);
        let logit_bytes = (text.scored_tokens() * model.config.vocab * 4) as u64;
        let keeps_logits = logit_bytes <= options.logit_bytes;
        let run = |(batch, rows): (Batch, Vec<usize>)| {
            let (hidden, inputs) = model.hidden_keeping(&batch, kept, progress)?;
            let hidden = rows_of(&hidden, model.config.hidden, &rows);
            let logits = model.logits(&hidden)?;
            let log_sums = logits.par_chunks_exact(model.config.vocab).map(ops::log_sum_exp).collect();
            progress.advance(rows.len() as u64);
            Ok(Reference { batch, rows, inputs, hidden, logits: keeps_logits.then_some(logits), log_sums })
        };
        let list = batches(text).into_iter().map(run).collect::<Result<_>>()?;
        Ok(Self { list, tokens: text.scored_tokens() as u64 })
    }

    /// KLD of every scored token under a change, in the text's order. Counts tokens. With `stop_at`,
    /// only until the mean's standard error is so small a share of the mean.
    ///
    /// # Errors
    /// A model that yields no finite numbers at `place`, a change that does not fit it, or cancel.
    pub(super) fn klds(
        &self,
        model: &Model,
        change: &Change,
        place: &str,
        stop_at: Option<f64>,
        progress: &Progress,
    ) -> Result<Vec<f64>> {
        let mut klds = Vec::with_capacity(self.tokens as usize);
        for reference in &self.list {
            progress.check()?;
            klds.extend(reference.klds(model, change, progress)?);
            progress.advance(reference.rows.len() as u64);
            if stop_at.is_some_and(|share| is_settled(&klds, share)) {
                progress.advance(self.tokens.saturating_sub(klds.len() as u64));
                break;
            }
        }
        if klds.iter().any(|kld| !kld.is_finite()) {
            return Err(Fault::new(Stage::Sensitivity, "the model gives no finite probabilities")
                .at(place)
                .fix("look for NaN or infinity in the weights: `lapidary profile`")
                .into());
        }
        Ok(klds)
    }
}

impl Reference {
    fn logits(&self, model: &Model) -> Result<Cow<'_, [f32]>> {
        Ok(match &self.logits {
            Some(logits) => logits.into(),
            None => model.logits(&self.hidden)?.into(),
        })
    }

    fn klds(&self, model: &Model, change: &Change, progress: &Progress) -> Result<Vec<f64>> {
        let vocab = model.config.vocab;
        let is_head_alone = change.removed_layers.is_empty()
            && change.head_factors.is_empty()
            && change.replacements.iter().all(|replacement| replacement.site().role == Role::Head);
        let hidden = if is_head_alone {
            None
        } else {
            let hidden = model.hidden_with(&self.batch, &self.inputs, change, progress)?;
            Some(rows_of(&hidden, model.config.hidden, &self.rows))
        };
        progress.check()?;
        let logits = model.logits_with(hidden.as_deref().unwrap_or(&self.hidden), change)?;
        let original = self.logits(model)?;
        let pairs = original.par_chunks_exact(vocab).zip(logits.par_chunks_exact(vocab)).zip(&self.log_sums);
        Ok(pairs
            .map(|((base, changed), &log_sum)| {
                let kld = ops::kl_divergence(base, log_sum, changed, ops::log_sum_exp(changed));
                // Rounding can bring the divergence of nearly equal rows a hair below zero; NaN stays.
                if kld < 0.0 { 0.0 } else { kld }
            })
            .collect())
    }
}

/// True once the mean is known to `share` of itself. The error of few tokens says little of itself.
fn is_settled(klds: &[f64], share: f64) -> bool {
    const LEAST_TOKENS: usize = 2048;
    let (mean, stderr) = mean_and_stderr(klds.iter().copied());
    klds.len() >= LEAST_TOKENS && mean > 0.0 && stderr <= share * mean
}

fn rows_of(hidden: &[f32], width: usize, rows: &[usize]) -> Vec<f32> {
    rows.iter().flat_map(|&row| &hidden[row * width..(row + 1) * width]).copied().collect()
}

/// Windows packed into batches, with the rows whose next token is scored.
pub(super) fn batches(text: &GroupedText) -> Vec<(Batch, Vec<usize>)> {
    let mut batches: Vec<(Batch, Vec<usize>)> = Vec::new();
    for window in &text.windows {
        let is_full = batches.last().is_none_or(|(batch, _)| batch.ids.len() + window.ids.len() > BATCH_TOKENS);
        if is_full {
            batches.push(Default::default());
        }
        if let Some((batch, rows)) = batches.last_mut() {
            let start = batch.ids.len();
            // The last token is predicted but never read.
            batch.push(&window.ids[..window.ids.len() - 1], None, None);
            rows.extend((window.scored_from..window.ids.len()).map(|position| start + position - 1));
        }
    }
    batches
}
