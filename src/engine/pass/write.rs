//! The two containers a pass ends in: a GGUF file, a Hugging Face folder.

use std::path::Path;

use super::{PassOptions, rtn};
use crate::engine::calibration::Importance;
use crate::engine::checkpoint::{
    self, Checkpoint, Container, FolderWriter, GgufLayout, GgufTensor, GgufValue, GgufWriter, Metadata, Role,
    SafeTensor, TensorInfo,
};
use crate::engine::error::{Fault, Result, Stage};
use crate::engine::format::Dtype;
use crate::engine::plan::{Decision, Method, ResolvedPlan, Target};
use crate::engine::progress::Progress;
use crate::engine::target::{gguf_names, llama_layout};

/// Files that a Hugging Face folder takes over as they are.
const SIDECARS: [&str; 5] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// What both writers need.
pub(super) struct Job<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) plan: &'a ResolvedPlan,
    pub(super) options: &'a PassOptions,
    pub(super) progress: &'a Progress,
}

impl Job<'_> {
    fn tensor(&self, decision: &Decision) -> &TensorInfo {
        &self.checkpoint.tensors[decision.tensor_index]
    }

    /// How much each column of a tensor matters; none where its format takes no heed or nothing is known.
    fn importance(&self, decision: &Decision) -> Result<Option<&[f32]>> {
        let tensor = self.tensor(decision);
        match &self.options.importance {
            Some(importance) if decision.method == Method::Imatrix => importance.of(&tensor.name, tensor.row_len()),
            _ => Ok(None),
        }
    }

    /// How the values of a tensor are chosen, in one word.
    pub(super) fn method(&self, decision: &Decision) -> &'static str {
        match self.importance(decision) {
            _ if decision.is_copy() => "copy",
            Ok(Some(_)) => Method::Imatrix.name(),
            _ => Method::Rtn.name(),
        }
    }

    /// Streams one tensor through `write`; with `permuted_heads`, rows come in GGUF's order.
    fn stream(
        &self,
        decision: &Decision,
        permuted_heads: Option<usize>,
        mut write: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let tensor = self.tensor(decision);
        let (rows, row_len) = (tensor.row_count(), tensor.row_len());
        // Rows of one head stay together, since permuting moves them within their head only.
        let unit = permuted_heads.map_or(1, |heads| (rows / heads).max(1));
        let step = (self.options.chunk_weights / row_len.max(1) / unit).max(1) * unit;
        let importance = self.importance(decision)?;
        let (mut raw, mut encoded, mut ordered) = (Vec::new(), Vec::new(), Vec::new());
        let row_bytes = decision.dtype.row_bytes(row_len).ok_or_else(|| {
            Fault::new(Stage::Pass, format!("rows of {row_len} do not fill {} blocks", decision.dtype)).at(&tensor.name)
        })?;
        for first in (0..rows).step_by(step) {
            self.progress.check()?;
            let last = (first + step).min(rows);
            self.checkpoint.read_rows(tensor, first..last, &mut raw)?;
            let bytes = if decision.is_copy() {
                &raw
            } else {
                rtn::convert(&tensor.name, tensor.dtype, decision.dtype, row_len, importance, &raw, &mut encoded)?;
                &encoded
            };
            match permuted_heads {
                None => write(bytes)?,
                Some(heads) => {
                    ordered.clear();
                    for row in first..last {
                        let from = llama_layout::hugging_face_row(row, rows, heads) - first;
                        ordered.extend_from_slice(&bytes[from * row_bytes..(from + 1) * row_bytes]);
                    }
                    write(&ordered)?;
                }
            }
            self.progress.advance(raw.len() as u64);
        }
        Ok(())
    }

    /// Heads whose rows GGUF interleaves, for q and k weights and biases.
    fn permuted_heads(&self, tensor: &TensorInfo) -> Option<usize> {
        let shape = self.checkpoint.config.as_ref()?.layers.get(tensor.layer?)?;
        let stem = tensor.name.strip_suffix(".weight").or_else(|| tensor.name.strip_suffix(".bias"))?;
        match stem.rsplit('.').next()? {
            "q_proj" => Some(shape.heads),
            "k_proj" => Some(shape.kv_heads),
            _ => None,
        }
    }

    /// Streams a q or k bias, whose permuted "rows" are single values.
    fn stream_permuted_vector(
        &self,
        decision: &Decision,
        heads: usize,
        mut write: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut bytes = Vec::new();
        self.stream(decision, None, |part| {
            bytes.extend_from_slice(part);
            Ok(())
        })?;
        let len = self.tensor(decision).row_len();
        let size = bytes.len() / len.max(1);
        let mut ordered = Vec::with_capacity(bytes.len());
        for at in 0..len {
            let from = llama_layout::hugging_face_row(at, len, heads);
            ordered.extend_from_slice(&bytes[from * size..(from + 1) * size]);
        }
        write(&ordered)
    }
}

/// What a GGUF consists of beside the weights.
struct GgufParts {
    metadata: Metadata,
    /// In the order of the file: the rotary divisors, where there are any, then the plan's.
    tensors: Vec<GgufTensor>,
    divisors: Option<Vec<f32>>,
    warnings: Vec<String>,
}

impl GgufParts {
    fn new(checkpoint: &Checkpoint, plan: &ResolvedPlan) -> Result<Self> {
        let config = checkpoint.require_config()?;
        let (metadata, warnings) = checkpoint::gguf_metadata_of(checkpoint, config, plan.file_type)?;
        let mut tensors = Vec::with_capacity(plan.decisions.len() + 1);
        for decision in &plan.decisions {
            let tensor = &checkpoint.tensors[decision.tensor_index];
            let name = match (checkpoint.container, tensor.role) {
                // What a GGUF calls by a name that Hugging Face does not have keeps it.
                (Container::Gguf, Role::Other) => tensor.stored_name.clone(),
                _ => gguf_names::to_gguf(&tensor.name).ok_or_else(|| {
                    Fault::new(Stage::Pass, "GGUF has no name for this tensor of the Llama architecture")
                        .at(&tensor.name)
                        .fix("write a Hugging Face folder instead (target = \"hugging_face\")")
                })?,
            };
            tensors.push(GgufTensor { name, shape: tensor.shape.clone(), dtype: decision.dtype });
        }
        let divisors = checkpoint::rope_freqs(config)
            .filter(|_| !tensors.iter().any(|tensor| tensor.name == checkpoint::ROPE_FREQS));
        if let Some(divisors) = &divisors {
            let shape = vec![divisors.len()];
            tensors.insert(0, GgufTensor { name: checkpoint::ROPE_FREQS.to_owned(), shape, dtype: Dtype::F32 });
        }
        Ok(Self { metadata, tensors, divisors, warnings })
    }
}

/// Bytes of the file or folder that a pass would write; no weight is read.
pub(super) fn file_bytes(checkpoint: &Checkpoint, plan: &ResolvedPlan) -> Result<u64> {
    match plan.target {
        Target::Gguf => {
            let parts = GgufParts::new(checkpoint, plan)?;
            Ok(GgufLayout::new(&parts.metadata, &parts.tensors)?.file_bytes())
        }
        Target::HuggingFace => {
            let files = folder_files(checkpoint, plan)?;
            let small: u64 = files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
            Ok(small + checkpoint::safetensors_bytes(&safe_tensors(checkpoint, plan))?)
        }
    }
}

/// Writes GGUF v3 and answers the file's size.
pub(super) fn gguf(job: &Job<'_>, output: &Path, warnings: &mut Vec<String>) -> Result<u64> {
    let GgufParts { mut metadata, tensors, divisors, warnings: more } = GgufParts::new(job.checkpoint, job.plan)?;
    warnings.extend(more);
    if let Some(importance) = job.options.importance.as_deref().filter(|_| job.plan.has_importance) {
        metadata.extend(imatrix_metadata(importance));
    }
    let mut writer = GgufWriter::create(output, &metadata, &tensors)?;
    if let Some(divisors) = divisors {
        writer.write_tensor_rows(&divisors.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())?;
    }
    for decision in &job.plan.decisions {
        let tensor = job.tensor(decision);
        let heads = job.permuted_heads(tensor);
        match heads {
            Some(heads) if tensor.shape.len() == 1 => {
                job.stream_permuted_vector(decision, heads, |bytes| writer.write_tensor_rows(bytes))?;
            }
            heads => job.stream(decision, heads, |bytes| writer.write_tensor_rows(bytes))?,
        }
    }
    job.progress.check()?;
    writer.finish()
}

/// At most so many bytes of metadata tell of an importance matrix, alignment included.
pub(super) const MOST_IMATRIX_BYTES: u64 = 512;

/// What llama-quantize writes of the importance matrix that it used; files are named without folders.
fn imatrix_metadata(importance: &Importance) -> Metadata {
    let number = |value: usize| GgufValue::U32(u32::try_from(value).unwrap_or(u32::MAX));
    // llama-quantize cuts both names to 127 bytes.
    let short = |name: &str| GgufValue::String(name[..name.floor_char_boundary(127)].to_owned());
    let mut metadata = Metadata::new();
    let mut set = |key: &str, value: GgufValue| metadata.push((format!("quantize.imatrix.{key}"), value));
    if let Some(name) = importance.file_name() {
        set("file", short(&name));
    }
    if let Some(dataset) = importance.datasets.first() {
        set("dataset", short(dataset));
    }
    set("entries_count", number(importance.tensors.len()));
    if importance.chunk_count > 0 {
        set("chunks_count", GgufValue::U32(importance.chunk_count));
    }
    metadata
}

/// Every file of a Hugging Face folder but the weights, by name.
fn folder_files(checkpoint: &Checkpoint, plan: &ResolvedPlan) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let config = checkpoint.require_config()?;
    let json = checkpoint::hugging_face_config(config, checkpoint.config_json(), main_dtype(plan));
    let json =
        serde_json::to_vec_pretty(&json).map_err(|err| Fault::new(Stage::Pass, format!("cannot write JSON: {err}")))?;
    let mut files = vec![("config.json", json)];
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

fn safe_tensors(checkpoint: &Checkpoint, plan: &ResolvedPlan) -> Vec<SafeTensor> {
    plan.decisions
        .iter()
        .map(|decision| {
            let tensor = &checkpoint.tensors[decision.tensor_index];
            SafeTensor { name: tensor.name.clone(), shape: tensor.shape.clone(), dtype: decision.dtype }
        })
        .collect()
}

/// Writes a Hugging Face folder and answers the size of its files.
pub(super) fn hugging_face(job: &Job<'_>, output: &Path) -> Result<u64> {
    let files = folder_files(job.checkpoint, job.plan)?;
    let folder = FolderWriter::create(output)?;
    let mut total = 0;
    for (name, bytes) in &files {
        total += bytes.len() as u64;
        folder.write_file(name, bytes)?;
    }
    let tensors = safe_tensors(job.checkpoint, job.plan);
    let mut writer = folder.safetensors(&tensors)?;
    for decision in &job.plan.decisions {
        job.stream(decision, None, |bytes| writer.write_tensor_rows(bytes))?;
    }
    job.progress.check()?;
    total += writer.finish()?;
    folder.finish()?;
    Ok(total)
}

/// The type that most weights have, for `torch_dtype`.
fn main_dtype(plan: &ResolvedPlan) -> Dtype {
    [Dtype::F32, Dtype::F16, Dtype::Bf16]
        .into_iter()
        .max_by_key(|&dtype| {
            let same = plan.decisions.iter().filter(|decision| decision.dtype == dtype);
            same.map(|decision| decision.weight_count).sum::<u64>()
        })
        .unwrap_or(Dtype::F32)
}
