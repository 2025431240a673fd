//! Mean inputs of the linears that units feed, and what their loss takes from the outputs.
//!
//! Where channels that hardly vary are taken away, their mean contribution can stay as a bias:
//! `b = Σ μ_j · W[:, j]` over the columns that go, added to what the linear has. Exact for inputs
//! that are constant. Source: An et al., "Fluctuation-based Adaptive Structured Pruning" (FLAP), 2023.

use std::collections::BTreeMap;
use std::path::Path;

use crate::checkpoint::{Checkpoint, Role, SafeTensor, SafetensorsWriter, Structure, TensorInfo};
use crate::error::{Fault, Result, Stage};
use crate::format::Dtype;
use crate::progress::Progress;

/// Values decoded at a time.
const CHUNK_WEIGHTS: usize = 1 << 20;

/// The mean of every input column of `o` and `down`, by layer of the checkpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InputMeans {
    /// By layer and role.
    pub linears: BTreeMap<(usize, Role), Vec<f32>>,
}

fn name_of(layer: usize, role: Role) -> String {
    let stem = if role == Role::O { "self_attn.o_proj" } else { "mlp.down_proj" };
    format!("model.layers.{layer}.{stem}.input_mean")
}

impl InputMeans {
    /// Writes a safetensors file with one vector a linear; answers its bytes.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, path: &Path) -> Result<u64> {
        let tensors: Vec<SafeTensor> = self
            .linears
            .iter()
            .map(|(&(layer, role), values)| SafeTensor {
                name: name_of(layer, role),
                shape: vec![values.len()],
                dtype: Dtype::F32,
            })
            .collect();
        let mut writer = SafetensorsWriter::create(path, &tensors)?;
        for values in self.linears.values() {
            writer.write_tensor_rows(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())?;
        }
        writer.finish()
    }

    /// Reads what [`InputMeans::write`] wrote.
    ///
    /// # Errors
    /// A file that cannot be read or holds something else.
    pub fn read(path: &Path) -> Result<Self> {
        let file = Checkpoint::open(path)?;
        let mut linears = BTreeMap::new();
        for tensor in &file.tensors {
            let role = match tensor.name.rsplit('.').nth(1) {
                Some("o_proj") => Role::O,
                Some("down_proj") => Role::Down,
                _ => continue,
            };
            let (Some(layer), true) = (tensor.layer, tensor.name.ends_with(".input_mean")) else { continue };
            let mut values = Vec::new();
            file.decode_rows(tensor, 0..1, &mut Vec::new(), &mut values)?;
            linears.insert((layer, role), values);
        }
        if linears.is_empty() {
            return Err(Fault::new(Stage::Plan, "the file holds no mean inputs")
                .fix("give the file that was written with the scores")
                .file(path)
                .into());
        }
        Ok(Self { linears })
    }

    /// The biases of all linears that lose columns, by their names in the pruned network, added to
    /// those that the checkpoint has.
    ///
    /// # Errors
    /// Means that are missing or another model's, weights that cannot be decoded, or cancel.
    pub fn biases(
        &self,
        checkpoint: &Checkpoint,
        structure: &Structure,
        progress: &Progress,
    ) -> Result<Vec<(String, Vec<f32>)>> {
        let mut biases = Vec::new();
        for (new, kept) in structure.layers.iter().enumerate() {
            let old = &structure.original.layers[kept.source];
            let losses = [
                (Role::O, "self_attn.o_proj", kept.heads.len() < old.heads),
                (Role::Down, "mlp.down_proj", kept.channels.len() < old.mlp_channels),
            ];
            for (role, stem, _) in losses.into_iter().filter(|loss| loss.2) {
                let find = |kind: &str| checkpoint.tensor(&format!("model.layers.{}.{stem}.{kind}", kept.source));
                let Some(weight) = find("weight") else { continue };
                let means = self.linears.get(&(kept.source, role)).filter(|means| means.len() == weight.row_len());
                let means = means.ok_or_else(|| {
                    Fault::new(Stage::Plan, "the mean inputs are missing or of another model")
                        .at(&weight.name)
                        .fix("score the units of this checkpoint again")
                })?;
                let mut bias = lost_output(checkpoint, weight, &lost_means(structure, weight, means), progress)?;
                if let Some(stored) = find("bias") {
                    let mut values = Vec::new();
                    checkpoint.decode_rows(stored, 0..1, &mut Vec::new(), &mut values)?;
                    bias.iter_mut().zip(&values).for_each(|(bias, value)| *bias += value);
                }
                biases.push((format!("model.layers.{new}.{stem}.bias"), bias));
            }
        }
        Ok(biases)
    }
}

/// The means of columns that go; zero for those that stay.
fn lost_means(structure: &Structure, weight: &TensorInfo, means: &[f32]) -> Vec<f32> {
    let indices: Vec<f32> = (0..means.len()).map(|index| index as f32).collect();
    let mut lost = means.to_vec();
    // Indices of columns are exact in f32: no layer has 2^24 inputs.
    for index in structure.columns_left(weight, &indices) {
        lost[index as usize] = 0.0;
    }
    lost
}

/// `W · x`, a few rows at a time.
fn lost_output(checkpoint: &Checkpoint, weight: &TensorInfo, x: &[f32], progress: &Progress) -> Result<Vec<f32>> {
    let (rows, cols) = (weight.row_count(), weight.row_len());
    let step = (CHUNK_WEIGHTS / cols.max(1)).max(1);
    let (mut raw, mut values, mut out) = (Vec::new(), Vec::new(), Vec::with_capacity(rows));
    for first in (0..rows).step_by(step) {
        progress.check()?;
        checkpoint.decode_rows(weight, first..(first + step).min(rows), &mut raw, &mut values)?;
        let product = |row: &[f32]| row.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum::<f64>() as f32;
        out.extend(values.chunks_exact(cols).map(product));
    }
    Ok(out)
}
