//! `lapidary inspect`: architecture, parameters, tensors, sizes. Headers only, whatever the size.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::PATH_HELP;
use super::output::{Table, printable};
use super::session::{Answer, Result, Session};
use crate::engine::checkpoint::{Checkpoint, Container, ModelConfig, TensorInfo};
use crate::engine::units;

/// Show architecture, parameters, tensors and sizes
#[derive(Debug, Args)]
pub(super) struct Inspect {
    #[arg(value_name = "PATH", help = PATH_HELP)]
    path: PathBuf,
}

#[derive(Debug, Serialize)]
struct Document<'a> {
    version: u32,
    path: &'a Path,
    name: &'a str,
    container: &'static str,
    fingerprint: &'a str,
    file_bytes: u64,
    tensor_bytes: u64,
    weight_count: u64,
    bits_per_weight: f64,
    architecture: Option<Architecture<'a>>,
    /// Why there is no architecture.
    architecture_fault: Option<String>,
    warnings: &'a [String],
    dtypes: Vec<DtypeTotal>,
    tensors: Vec<Tensor<'a>>,
}

#[derive(Debug, Serialize)]
struct Architecture<'a> {
    family: &'a str,
    layers: Vec<Layer>,
    hidden: usize,
    head_dim: usize,
    vocab: usize,
    context_tokens: usize,
    tied_embeddings: bool,
    norm_eps: f64,
    rope_theta: f64,
    kv_bytes_per_token: u64,
    bos: Option<u32>,
    eos: &'a [u32],
}

#[derive(Debug, Serialize)]
struct Layer {
    heads: usize,
    kv_heads: usize,
    mlp_channels: usize,
}

#[derive(Debug, Serialize)]
struct DtypeTotal {
    dtype: &'static str,
    tensors: usize,
    weight_count: u64,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Tensor<'a> {
    name: &'a str,
    stored_name: &'a str,
    role: &'static str,
    layer: Option<usize>,
    dtype: &'static str,
    shape: &'a [usize],
    weight_count: u64,
    bytes: u64,
    bits_per_weight: f64,
}

impl Inspect {
    pub fn run(&self, session: &Session) -> Result<Answer> {
        let checkpoint = session.open_quietly(&self.path)?;
        let document = Document::of(&checkpoint);
        session.answer(&document, || text(&document, &checkpoint))
    }
}

impl<'a> Document<'a> {
    fn of(checkpoint: &'a Checkpoint) -> Self {
        let (tensor_bytes, weight_count) = (checkpoint.tensor_bytes(), checkpoint.weight_count());
        Self {
            version: 1,
            path: &checkpoint.path,
            name: &checkpoint.name,
            container: container_name(checkpoint.container),
            fingerprint: &checkpoint.fingerprint,
            file_bytes: checkpoint.file_bytes(),
            tensor_bytes,
            weight_count,
            bits_per_weight: units::bits_per_weight(tensor_bytes, weight_count),
            architecture: checkpoint.config.as_ref().map(architecture),
            architecture_fault: checkpoint.config_fault.as_ref().map(ToString::to_string),
            warnings: &checkpoint.warnings,
            dtypes: dtypes(&checkpoint.tensors),
            tensors: checkpoint.tensors.iter().map(tensor).collect(),
        }
    }
}

fn container_name(container: Container) -> &'static str {
    match container {
        Container::Safetensors => "safetensors",
        Container::HuggingFace => "hugging_face",
        Container::Gguf => "gguf",
    }
}

fn architecture(config: &ModelConfig) -> Architecture<'_> {
    let layer = |shape: &crate::engine::checkpoint::LayerShape| Layer {
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        mlp_channels: shape.mlp_channels,
    };
    Architecture {
        family: &config.family,
        layers: config.layers.iter().map(layer).collect(),
        hidden: config.hidden,
        head_dim: config.head_dim,
        vocab: config.vocab,
        context_tokens: config.context,
        tied_embeddings: config.tied_embeddings,
        norm_eps: config.norm_eps,
        rope_theta: config.rope.theta,
        kv_bytes_per_token: config.kv_bytes_per_token(),
        bos: config.bos,
        eos: &config.eos,
    }
}

/// Totals by stored type, in the order of names.
fn dtypes(tensors: &[TensorInfo]) -> Vec<DtypeTotal> {
    let mut totals: BTreeMap<&'static str, DtypeTotal> = BTreeMap::new();
    for tensor in tensors {
        let dtype = tensor.dtype.name();
        let total = totals.entry(dtype).or_insert(DtypeTotal { dtype, tensors: 0, weight_count: 0, bytes: 0 });
        total.tensors += 1;
        total.weight_count += tensor.weight_count();
        total.bytes += tensor.byte_count;
    }
    totals.into_values().collect()
}

fn tensor(tensor: &TensorInfo) -> Tensor<'_> {
    Tensor {
        name: &tensor.name,
        stored_name: &tensor.stored_name,
        role: tensor.role.name(),
        layer: tensor.layer,
        dtype: tensor.dtype.name(),
        shape: &tensor.shape,
        weight_count: tensor.weight_count(),
        bytes: tensor.byte_count,
        bits_per_weight: tensor.bits_per_weight(),
    }
}

fn text(document: &Document<'_>, checkpoint: &Checkpoint) -> String {
    let mut text = format!(
        "{} ({})\n{} weights, {} on disk, {:.2} bpw\n",
        printable(document.name),
        document.container,
        units::count(document.weight_count),
        units::bytes(document.file_bytes),
        document.bits_per_weight,
    );
    match (&document.architecture, &document.architecture_fault) {
        (Some(architecture), _) => text.push_str(&architecture_text(architecture)),
        (None, Some(fault)) => text.push_str(&format!("no architecture: {}\n", printable(fault))),
        (None, None) => text.push_str("no architecture: the files do not say one\n"),
    }
    for warning in &checkpoint.warnings {
        text.push_str(&format!("warning: {}\n", printable(warning)));
    }
    let mut types = Table::new(&["type", ">tensors", ">weights", ">size"]);
    for total in &document.dtypes {
        types.row([
            total.dtype.to_owned(),
            total.tensors.to_string(),
            units::count(total.weight_count),
            units::bytes(total.bytes),
        ]);
    }
    let mut tensors = Table::new(&["tensor", "role", "type", ">shape", ">size", ">bpw"]);
    for tensor in &document.tensors {
        let shape: Vec<String> = tensor.shape.iter().map(ToString::to_string).collect();
        tensors.row([
            tensor.name.to_owned(),
            tensor.role.to_owned(),
            tensor.dtype.to_owned(),
            shape.join(" × "),
            units::bytes(tensor.bytes),
            format!("{:.2}", tensor.bits_per_weight),
        ]);
    }
    format!("{text}\n{}\n{}", types.render(), tensors.render())
}

fn architecture_text(architecture: &Architecture<'_>) -> String {
    let range = |value: fn(&Layer) -> usize| {
        let values = || architecture.layers.iter().map(value);
        match (values().min(), values().max()) {
            (Some(least), Some(most)) if least != most => format!("{least} to {most}"),
            (Some(least), _) => least.to_string(),
            _ => "no".to_owned(),
        }
    };
    format!(
        "{}: {} layers of width {}, {} query and {} KV heads of {}, MLP {}\nvocabulary {}, context {} tokens, {} \
         embeddings, {} of keys and values a token in f32\n",
        printable(architecture.family),
        architecture.layers.len(),
        architecture.hidden,
        range(|layer| layer.heads),
        range(|layer| layer.kv_heads),
        architecture.head_dim,
        range(|layer| layer.mlp_channels),
        architecture.vocab,
        architecture.context_tokens,
        if architecture.tied_embeddings { "tied" } else { "untied" },
        units::bytes(architecture.kv_bytes_per_token),
    )
}
