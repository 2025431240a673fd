//! The forward pass that watches: squared inputs of every linear, summed over a text.

use std::collections::HashMap;

use rayon::prelude::*;

use super::Importance;
use crate::checkpoint::{Checkpoint, ImatrixEntry, ImatrixFile, Role, TensorInfo};
use crate::error::{Fault, Result, Stage};
use crate::model::{Batch, LinearInput, Model};
use crate::progress::{Phase, Progress, Unit};
use crate::scoring::text::windows;
use crate::scoring::{BATCH_TOKENS, Convention, TextCodec, TextSource, check_ids};
use crate::target::gguf_names;

/// llama-imatrix ignores multiplications of fewer rows.
const LEAST_CONTEXT: usize = 16;

/// How importance is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImportanceOptions {
    /// Tokens a chunk, BOS included; 512 or the model's context where that is shorter.
    pub context: Option<usize>,
    /// At most so many chunks.
    pub max_chunks: Option<usize>,
    /// Watch the head too. An embedding that serves as head has no entry, as in llama.cpp.
    pub process_output: bool,
}

/// Sums of squares of one input, and the linears that share it.
struct Shared {
    roles: Vec<Role>,
    sums: Vec<f64>,
}

/// Every input by layer and the first of the linears that share it.
#[derive(Default)]
struct Sums {
    inputs: HashMap<(Option<usize>, Role), Shared>,
}

/// Columns that one task sums: enough for whole cache lines, few enough for every core.
const TASK_COLUMNS: usize = 64;

impl Sums {
    /// Adds the squares of every row. Rows are added in their order whatever the number of threads.
    fn add(&mut self, input: &LinearInput<'_>) {
        let Some(&first) = input.roles.first() else { return };
        let fresh = || Shared { roles: input.roles.to_vec(), sums: vec![0.0; input.width] };
        let Shared { sums, .. } = self.inputs.entry((input.layer, first)).or_insert_with(fresh);
        sums.par_chunks_mut(TASK_COLUMNS).enumerate().for_each(|(task, sums)| {
            let from = task * TASK_COLUMNS;
            for row in input.values.chunks_exact(input.width) {
                for (sum, &value) in sums.iter_mut().zip(&row[from..]) {
                    *sum += f64::from(value) * f64::from(value);
                }
            }
        });
    }
}

/// Runs `model` over `text` and sums the squared inputs of every linear of `checkpoint`.
///
/// BOS stands before the text and replaces the first token of every chunk, and an incomplete last
/// chunk is dropped, as llama-imatrix does.
///
/// # Errors
/// A text too short for one chunk, a chunk longer than the model's context, a model that yields
/// no finite numbers, or cancel.
pub fn importance(
    checkpoint: &Checkpoint,
    model: &Model,
    codec: &dyn TextCodec,
    text: &TextSource,
    options: &ImportanceOptions,
    progress: &Progress,
) -> Result<Importance> {
    let most = model.config.context;
    let context = options.context.unwrap_or(most.min(512));
    if context < LEAST_CONTEXT || context > most {
        return Err(Fault::new(Stage::Calibration, format!("chunks of {context} tokens do not fit the model"))
            .fix(format!("choose {LEAST_CONTEXT} to {most} tokens"))
            .into());
    }
    let ids = codec.encode(&text.text)?;
    check_ids(&ids, model.config.vocab)?;
    let mut chunks = windows(&ids, codec.bos(), Convention::LlamaCpp, context);
    if let Some(most) = options.max_chunks {
        chunks.truncate(most.max(1));
    }
    if chunks.is_empty() {
        let cause = format!("the text has {} tokens, too few for one chunk of {context}", ids.len());
        return Err(Fault::new(Stage::Calibration, cause)
            .fix("use a longer text or shorter chunks")
            .file(&text.path)
            .into());
    }
    let tokens = (chunks.len() * context) as u64;
    progress.begin(Phase::Calibrating, tokens, Unit::Tokens);
    let mut sums = Sums::default();
    for together in chunks.chunks((BATCH_TOKENS / context).max(1)) {
        progress.check()?;
        let mut batch = Batch::default();
        for chunk in together {
            batch.push(&chunk.ids, None, None);
        }
        model.watch_linears(&batch, progress, &mut |input| {
            if input.layer.is_some() || options.process_output {
                sums.add(&input);
            }
        })?;
        progress.advance(batch.ids.len() as u64);
    }
    let dataset = text.path.file_name().map(|name| name.to_string_lossy().into_owned());
    Ok(Importance::of_file(ImatrixFile {
        entries: entries(checkpoint, sums, tokens)?,
        datasets: dataset.into_iter().collect(),
        chunk_count: u32::try_from(chunks.len()).unwrap_or(u32::MAX),
        chunk_size: u32::try_from(context).unwrap_or(u32::MAX),
        is_legacy: false,
    }))
}

/// One entry per weight of the checkpoint that was seen at work, under GGUF's names.
fn entries(
    checkpoint: &Checkpoint,
    sums: Sums,
    tokens: u64,
) -> Result<std::collections::BTreeMap<String, ImatrixEntry>> {
    let weights: HashMap<(Option<usize>, Role), &TensorInfo> = checkpoint
        .tensors
        .iter()
        .filter(|tensor| tensor.name.ends_with(".weight"))
        .map(|tensor| ((tensor.layer, tensor.role), tensor))
        .collect();
    let mut entries = std::collections::BTreeMap::new();
    for ((layer, _), Shared { roles, sums }) in sums.inputs {
        let sums: Vec<f32> = sums.into_iter().map(|sum| sum as f32).collect();
        for role in roles {
            let Some(tensor) = weights.get(&(layer, role)) else { continue };
            if sums.iter().any(|sum| !sum.is_finite()) {
                return Err(Fault::new(Stage::Calibration, "its inputs are NaN or infinite")
                    .at(&tensor.name)
                    .fix("look for NaN or infinity in the weights: `lapidary profile`")
                    .file(&checkpoint.path)
                    .into());
            }
            let name = gguf_names::to_gguf(&tensor.name).unwrap_or_else(|| tensor.name.clone());
            entries.insert(name, ImatrixEntry { sums: sums.clone(), counts: vec![tokens] });
        }
    }
    Ok(entries)
}
