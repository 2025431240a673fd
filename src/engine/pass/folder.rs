//! The folders a pass may end in: plain Hugging Face, and those with packed weights.

use std::path::Path;

use serde_json::{Map, Value};

use super::write::Job;
use crate::engine::checkpoint::{self, Container, FolderWriter, SafeTensor, SafetensorsWriter};
use crate::engine::error::{Error, Fault, Result, Stage};
use crate::engine::format::Dtype;
use crate::engine::plan::Decision;
use crate::engine::target::parts::{Matrix, Packer, Scheme, parts};
use crate::engine::target::{bitsandbytes, compressed_tensors, gptq};

/// Files that a Hugging Face folder takes over as they are.
const SIDECARS: [&str; 5] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// Writes a folder and answers the size of its files.
pub(super) fn folder(job: &Job<'_>, output: &Path) -> Result<u64> {
    let config = job.checkpoint.require_config()?;
    let folder = FolderWriter::create(output)?;
    let mut json = checkpoint::hugging_face_config(config, job.checkpoint.config_json(), job.plan.main_dtype());
    let quantization = quantization_config(job);
    if let Some(quantization) = &quantization {
        json.insert("quantization_config".to_owned(), quantization.clone());
    }
    let pretty = |value: &Map<String, Value>| {
        serde_json::to_vec_pretty(value).map_err(|err| Fault::new(Stage::Pass, format!("cannot write JSON: {err}")))
    };
    let mut total = 0;
    let mut put = |name: &str, bytes: &[u8]| {
        total += bytes.len() as u64;
        folder.write_file(name, bytes)
    };
    put("config.json", &pretty(&json)?)?;
    if let (Some(Value::Object(map)), Some(Scheme::Gptq)) = (&quantization, job.plan.target.scheme()) {
        // Where GPTQ's own programs look first.
        put("quantize_config.json", &pretty(map)?)?;
    }
    for name in SIDECARS {
        if let Some(bytes) = job.checkpoint.read_sidecar(name)? {
            put(name, &bytes)?;
        }
    }
    if job.checkpoint.container == Container::Gguf
        && let Some(bytes) = job.checkpoint.tokenizer_json()?
    {
        put("tokenizer.json", &bytes)?;
    }
    let mut tensors: Vec<SafeTensor> = Vec::new();
    for decision in &job.plan.decisions {
        let tensor = job.tensor(decision);
        match packing(job, decision) {
            None => {
                tensors.push(SafeTensor {
                    name: tensor.name.clone(),
                    shape: tensor.shape.clone(),
                    dtype: decision.dtype,
                });
            }
            Some((scheme, matrix)) => {
                let stem = module(&tensor.name);
                let parts = parts(scheme, &matrix).ok_or_else(|| cannot_pack(job, decision))?;
                tensors.extend(parts.into_iter().map(|part| SafeTensor {
                    name: format!("{stem}.{}", part.suffix),
                    shape: part.shape,
                    dtype: part.dtype,
                }));
            }
        }
    }
    let mut writer = folder.safetensors(&tensors)?;
    for decision in &job.plan.decisions {
        match packing(job, decision) {
            None => job.stream(decision, None, None, |bytes| writer.write_tensor_rows(bytes))?,
            Some((scheme, matrix)) => pack(job, decision, scheme, &matrix, &mut writer)?,
        }
    }
    job.progress.check()?;
    total += writer.finish()?;
    folder.finish()?;
    Ok(total)
}

/// The name of a weight's module.
fn module(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

fn cannot_pack(job: &Job<'_>, decision: &Decision) -> Error {
    let cause = format!("the target {} cannot hold {} of this shape", job.plan.target, decision.dtype);
    Fault::new(Stage::Pass, cause).at(&job.tensor(decision).name).fix("resolve the plan again").into()
}

/// How a tensor is packed, if it is.
fn packing(job: &Job<'_>, decision: &Decision) -> Option<(Scheme, Matrix)> {
    let tensor = job.tensor(decision);
    let scheme = job.plan.target.scheme().filter(|_| decision.dtype.is_scheme())?;
    let matrix =
        Matrix { dtype: decision.dtype, rows: tensor.row_count(), cols: tensor.row_len(), main: job.plan.main_dtype() };
    Some((scheme, matrix))
}

/// Streams one matrix through its packer.
fn pack(
    job: &Job<'_>,
    decision: &Decision,
    scheme: Scheme,
    matrix: &Matrix,
    writer: &mut SafetensorsWriter,
) -> Result<()> {
    let shared = job.shared(decision)?;
    let mut packer = Packer::new(scheme, matrix, shared.as_ref()).ok_or_else(|| cannot_pack(job, decision))?;
    let mut bytes = Vec::new();
    job.stream(decision, None, shared.as_ref(), |rows| {
        bytes.clear();
        packer.rows(rows, &mut bytes);
        writer.write_tensor_rows(&bytes)
    })?;
    bytes.clear();
    packer.finish(&mut bytes);
    writer.write_tensor_rows(&bytes)
}

/// `quantization_config` of the folder; none where nothing is packed.
fn quantization_config(job: &Job<'_>) -> Option<Value> {
    let scheme = job.plan.target.scheme()?;
    let mut modules: Vec<(String, Dtype)> = Vec::new();
    let mut kept: Vec<String> = Vec::new();
    for decision in &job.plan.decisions {
        let tensor = job.tensor(decision);
        let name = module(&tensor.name).to_owned();
        if decision.dtype.is_scheme() {
            modules.push((name, decision.dtype));
        } else if tensor.shape.len() == 2 && tensor.role.is_layer_linear() {
            kept.push(name);
        }
    }
    if !modules.iter().any(|module| module.0 == "lm_head") {
        kept.push("lm_head".to_owned());
    }
    match (scheme, modules.first()?.1) {
        (Scheme::CompressedTensors, _) => Some(compressed_tensors::config(&modules, &kept)),
        (Scheme::Bitsandbytes, Dtype::Bnb(dtype)) => Some(bitsandbytes::config(dtype, &kept, job.plan.main_dtype())),
        (Scheme::Gptq, Dtype::Int(dtype)) => Some(gptq::gptq_config(dtype, &kept)),
        (Scheme::Awq, Dtype::Int(dtype)) => Some(gptq::awq_config(dtype, &kept)),
        _ => None,
    }
}
