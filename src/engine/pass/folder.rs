//! The folders a pass may end in: plain Hugging Face, and those with packed weights.

use std::path::Path;

use serde_json::{Map, Value};

use super::sparse::{self, Sparse};
use super::write::{Job, MOST_SEARCH_METADATA};
use crate::checkpoint::{self, Checkpoint, Container, FolderWriter, SafeTensor, SafetensorsWriter, TensorInfo};
use crate::error::{Error, Fault, Result, Stage};
use crate::format::Dtype;
use crate::plan::{Decision, ResolvedPlan, Search};
use crate::target::parts::{Matrix, Packer, Scheme, parts};
use crate::target::{bitsandbytes, compressed_tensors, gptq, sparse_bitmask};

/// Files that a Hugging Face folder takes over as they are.
const SIDECARS: [&str; 5] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// The model's configuration.
const CONFIG: &str = "config.json";

/// The key of what searched for codes in the configuration.
const SEARCH_KEY: &str = "lapidary_search_device";

/// Every file of a folder but the weights, by name.
fn folder_files(
    checkpoint: &Checkpoint,
    plan: &ResolvedPlan,
    sparse: Option<&Sparse>,
) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let config = checkpoint.require_config()?;
    let mut json = checkpoint::hugging_face_config(config, checkpoint.config_json(), plan.main_dtype());
    // Biases may come or go with pruning, and a GGUF does not say which there are.
    let has_bias = |stem: &str| checkpoint.tensors.iter().any(|tensor| tensor.name.ends_with(stem));
    for (key, stem) in [("attention_bias", ".o_proj.bias"), ("mlp_bias", ".down_proj.bias")] {
        if has_bias(stem) {
            json.insert(key.to_owned(), Value::Bool(true));
        }
    }
    let quantization = match sparse {
        Some(sparse) => Some(sparse_bitmask::config(sparse.zeros, &sparse.dense)),
        None => quantization_config(checkpoint, plan),
    };
    if let Some(quantization) = &quantization {
        json.insert("quantization_config".to_owned(), quantization.clone());
    }
    // Of the codes that were read, not of those that will be written.
    json.remove(SEARCH_KEY);
    let pretty = |value: &Map<String, Value>| {
        serde_json::to_vec_pretty(value).map_err(|err| Fault::new(Stage::Pass, format!("cannot write JSON: {err}")))
    };
    let mut files = vec![(CONFIG, pretty(&json)?)];
    if let (Some(Value::Object(map)), Some(Scheme::Gptq)) = (&quantization, plan.target.scheme()) {
        // Where GPTQ's own programs look first.
        files.push(("quantize_config.json", pretty(map)?));
    }
    for name in SIDECARS {
        if let Some(bytes) = checkpoint.read_sidecar(name)? {
            files.push((name, bytes));
        }
    }
    if checkpoint.container == Container::Gguf
        && let Some(bytes) = checkpoint.tokenizer_json()?
    {
        files.push(("tokenizer.json", bytes));
    }
    Ok(files)
}

/// The stored tensors in the order of the file: one each, or the parts of a packed weight.
fn safe_tensors(checkpoint: &Checkpoint, plan: &ResolvedPlan, sparse: Option<&Sparse>) -> Result<Vec<SafeTensor>> {
    let mut tensors = Vec::new();
    for decision in &plan.decisions {
        let tensor = &checkpoint.tensors[decision.tensor_index];
        if let Some(parts) = sparse.and_then(|sparse| sparse.tensors(checkpoint, decision)) {
            tensors.extend(parts);
            continue;
        }
        let Some((scheme, matrix)) = packing(checkpoint, plan, decision) else {
            tensors.push(SafeTensor { name: tensor.name.clone(), shape: tensor.shape.clone(), dtype: decision.dtype });
            continue;
        };
        let stem = module(&tensor.name);
        let parts = parts(scheme, &matrix).ok_or_else(|| cannot_pack(plan, tensor, decision))?;
        tensors.extend(parts.into_iter().map(|part| SafeTensor {
            name: format!("{stem}.{}", part.suffix),
            shape: part.shape,
            dtype: part.dtype,
        }));
    }
    Ok(tensors)
}

/// Bytes of the folder that a pass would write; no weight is read. Where a device may search, that is more than
/// the folder will have, by less than a kibibyte.
pub(super) fn file_bytes(checkpoint: &Checkpoint, plan: &ResolvedPlan) -> Result<u64> {
    let files = folder_files(checkpoint, plan, None)?;
    let small: u64 = files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    let search = if plan.search == Search::Device { MOST_SEARCH_METADATA } else { 0 };
    Ok(small + search + checkpoint::safetensors_bytes(&safe_tensors(checkpoint, plan, None)?)?)
}

/// Writes a folder and answers the size of its files; matrices may be stored as `sparse` says.
pub(super) fn folder(job: &Job<'_>, sparse: Option<&Sparse>, output: &Path) -> Result<u64> {
    let files = folder_files(job.checkpoint, job.plan, sparse)?;
    let folder = FolderWriter::create(output)?;
    let mut total = 0;
    let mut write_file = |name: &str, bytes: &[u8]| {
        total += bytes.len() as u64;
        folder.write_file(name, bytes)
    };
    for (name, bytes) in files.iter().filter(|(name, _)| *name != CONFIG) {
        write_file(name, bytes)?;
    }
    let mut writer = folder.safetensors(&safe_tensors(job.checkpoint, job.plan, sparse)?)?;
    for decision in &job.plan.decisions {
        if let Some(counts) = sparse.and_then(|sparse| sparse.of(decision)) {
            sparse::write(job, decision, counts, &mut writer)?;
            continue;
        }
        match packing(job.checkpoint, job.plan, decision) {
            None => job.stream(decision, None, None, |bytes| writer.write_tensor_rows(bytes))?,
            Some((scheme, matrix)) => pack(job, decision, scheme, &matrix, &mut writer)?,
        }
    }
    // What searched is known only now.
    for (name, bytes) in files.iter().filter(|(name, _)| *name == CONFIG) {
        write_file(name, &with_search_device(bytes, job.machine.searched())?)?;
    }
    job.progress.check()?;
    total += writer.finish()?;
    folder.finish()?;
    Ok(total)
}

/// The configuration, which says by which device codes were searched for, where one did.
fn with_search_device(config: &[u8], device: Option<String>) -> Result<Vec<u8>> {
    let Some(device) = device else { return Ok(config.to_vec()) };
    let fault = |err: serde_json::Error| Fault::new(Stage::Pass, format!("cannot write {CONFIG}: {err}"));
    let mut json: Map<String, Value> = serde_json::from_slice(config).map_err(fault)?;
    json.insert(SEARCH_KEY.to_owned(), Value::String(device));
    Ok(serde_json::to_vec_pretty(&json).map_err(fault)?)
}

/// The name of a weight's module.
fn module(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

fn cannot_pack(plan: &ResolvedPlan, tensor: &TensorInfo, decision: &Decision) -> Error {
    let cause = format!("the target {} cannot hold {} of this shape", plan.target, decision.dtype);
    Fault::new(Stage::Pass, cause).at(&tensor.name).fix("resolve the plan again").into()
}

/// How a tensor is packed, if it is.
fn packing(checkpoint: &Checkpoint, plan: &ResolvedPlan, decision: &Decision) -> Option<(Scheme, Matrix)> {
    let tensor = &checkpoint.tensors[decision.tensor_index];
    let scheme = plan.target.scheme().filter(|_| decision.dtype.is_scheme())?;
    let main = plan.main_dtype();
    Some((scheme, Matrix { dtype: decision.dtype, rows: tensor.row_count(), cols: tensor.row_len(), main }))
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
    let mut packer = Packer::new(scheme, matrix, shared.as_ref())
        .ok_or_else(|| cannot_pack(job.plan, job.tensor(decision), decision))?;
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
fn quantization_config(checkpoint: &Checkpoint, plan: &ResolvedPlan) -> Option<Value> {
    let scheme = plan.target.scheme()?;
    let mut modules: Vec<(String, Dtype)> = Vec::new();
    let mut kept: Vec<String> = Vec::new();
    for decision in &plan.decisions {
        let tensor = &checkpoint.tensors[decision.tensor_index];
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
        (Scheme::Bitsandbytes, Dtype::Bnb(dtype)) => Some(bitsandbytes::config(dtype, &kept, plan.main_dtype())),
        (Scheme::Gptq, Dtype::Int(dtype)) => Some(gptq::gptq_config(dtype, &kept)),
        (Scheme::Awq, Dtype::Int(dtype)) => Some(gptq::awq_config(dtype, &kept)),
        _ => None,
    }
}
