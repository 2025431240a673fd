//! Streaming tensors through a pass, and the GGUF file that it may end in.

use std::cell::RefCell;
use std::path::Path;

use super::device::Machine;
use super::reuse::Reuse;
use super::{PassOptions, folder, rtn};
use crate::calibration::Importance;
use crate::checkpoint::{
    self, Checkpoint, Container, GgufLayout, GgufTensor, GgufValue, GgufWriter, Metadata, Role, TensorInfo,
};
use crate::error::{Fault, Result, Stage};
use crate::format::{self, Dtype, Encoding, Shared};
use crate::plan::{Decision, Method, ResolvedPlan, Search, Target};
use crate::progress::Progress;
use crate::target::{gguf_names, llama_layout};

/// Weights that one core encodes between two looks at cancel: a quarter of a second of the slowest search.
const ENCODED_AT_ONCE: usize = 256 << 10;

/// What both writers need.
pub(super) struct Job<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) plan: &'a ResolvedPlan,
    pub(super) options: &'a PassOptions,
    pub(super) reuse: &'a Reuse,
    pub(super) machine: &'a Machine<'a>,
    pub(super) progress: &'a Progress,
    /// Tensors in which weights that are NaN or infinite were met, with their number.
    pub(super) not_finite: RefCell<Vec<(String, usize)>>,
}

impl Job<'_> {
    pub(super) fn tensor(&self, decision: &Decision) -> &TensorInfo {
        &self.checkpoint.tensors[decision.tensor_index]
    }

    /// How much each column of a tensor matters; none where its format takes no heed or nothing is known.
    fn importance(&self, decision: &Decision) -> Result<Option<&[f32]>> {
        let tensor = self.tensor(decision);
        match &self.options.importance {
            Some(importance) if matches!(decision.method, Method::Imatrix | Method::RtnMse) => {
                importance.of(&tensor.name, tensor.row_len())
            }
            _ => Ok(None),
        }
    }

    /// How the values of a tensor are chosen, in one word.
    pub(super) fn method(&self, decision: &Decision) -> &'static str {
        match (self.importance(decision), decision.method) {
            _ if decision.is_copy() => "copy",
            // Without data for the tensor, rtn is what remains.
            (Ok(None) | Err(_), Method::Imatrix) if !matches!(decision.dtype, Dtype::Int(_)) => Method::Rtn.name(),
            (Ok(None) | Err(_), Method::Imatrix) => Method::RtnMse.name(),
            (_, method) => method.name(),
        }
    }

    /// True if a device would search for the codes of a tensor, if it may.
    fn is_searched(&self, decision: &Decision) -> bool {
        // Where the importance cannot be had, the pass ends with that.
        let how = Encoding {
            importance: self.importance(decision).unwrap_or_default(),
            scale_choice: decision.method.scale_choice(),
            ..Encoding::plain(self.tensor(decision).row_len())
        };
        !decision.is_copy() && self.machine.is_search(decision.dtype, &how)
    }

    /// What the rows of a tensor share in its new format, after one look at all of them.
    pub(super) fn shared(&self, decision: &Decision) -> Result<Option<Shared>> {
        let tensor = self.tensor(decision);
        if decision.is_copy() {
            return self.checkpoint.shared(tensor);
        }
        let Some(format) = format::of_dtype(decision.dtype) else { return Ok(None) };
        let how = Encoding {
            importance: self.importance(decision)?,
            scale_choice: decision.method.scale_choice(),
            ..Encoding::plain(tensor.row_len())
        };
        Ok(self.checkpoint.survey(tensor, &[format], &how, self.progress)?.pop().flatten())
    }

    /// Streams one tensor through `write`; with `permuted_heads`, rows come in GGUF's order.
    pub(super) fn stream(
        &self,
        decision: &Decision,
        permuted_heads: Option<usize>,
        shared: Option<&Shared>,
        mut write: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let tensor = self.tensor(decision);
        let (rows, row_len) = (tensor.row_count(), tensor.row_len());
        // Rows of one head stay together, since permuting moves them within their head only.
        let unit = permuted_heads.map_or(1, |heads| (rows / heads).max(1));
        let how = Encoding {
            importance: self.importance(decision)?,
            scale_choice: decision.method.scale_choice(),
            shared,
            ..Encoding::plain(row_len)
        };
        let earlier = self.reuse.rows(decision);
        let (mut raw, mut encoded, mut ordered) = (Vec::new(), Vec::new(), Vec::new());
        let row_bytes = decision.dtype.row_bytes(row_len).ok_or_else(|| {
            Fault::new(Stage::Pass, format!("rows of {row_len} do not fill {} blocks", decision.dtype)).at(&tensor.name)
        })?;
        let mut on_device = match earlier {
            None if !decision.is_copy() => self.machine.encoder(tensor, decision.dtype, how),
            _ => None,
        };
        let at_once = match (decision.is_copy(), &on_device) {
            (false, None) => self.options.chunk_weights.min(ENCODED_AT_ONCE * rayon::current_num_threads()),
            _ => self.options.chunk_weights,
        };
        let step = (at_once / row_len.max(1) / unit).max(1) * unit;
        let mut not_finite = 0;
        for first in (0..rows).step_by(step) {
            self.progress.check()?;
            let last = (first + step).min(rows);
            let bytes = if let Some(earlier) = earlier {
                earlier.read(first..last, &mut encoded)?;
                &encoded
            } else if decision.is_copy() {
                self.checkpoint.read_rows(tensor, first..last, &mut raw)?;
                not_finite += rtn::count_not_finite(tensor.dtype, row_len, &raw);
                &raw
            } else {
                self.checkpoint.read_rows(tensor, first..last, &mut raw)?;
                let how = Encoding { first_row: first, ..how };
                let machine = self.machine;
                not_finite += machine.convert(&mut on_device, tensor, decision.dtype, &how, &raw, &mut encoded)?;
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
            let reused = earlier.map_or(0, |_| tensor.byte_count / rows.max(1) as u64 * (last - first) as u64);
            self.progress.advance(raw.len() as u64 + reused);
        }
        if not_finite > 0 {
            self.not_finite.borrow_mut().push((tensor.name.clone(), not_finite));
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
        self.stream(decision, None, None, |part| {
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

/// Room for what [`imatrix_metadata`] says of a matrix that is not loaded yet: two names and two numbers.
const MOST_IMATRIX_METADATA: u64 = 1024;

/// Room for the name of the device that searches.
pub(super) const MOST_SEARCH_METADATA: u64 = 256;

/// Bytes of the file or folder that a pass would write; no weight is read. With an importance matrix
/// that is more than the file will have, by less than a kibibyte.
pub(super) fn file_bytes(checkpoint: &Checkpoint, plan: &ResolvedPlan) -> Result<u64> {
    match plan.target {
        Target::Gguf => {
            let parts = GgufParts::new(checkpoint, plan)?;
            let imatrix = if plan.has_importance { MOST_IMATRIX_METADATA } else { 0 };
            let search = if plan.search == Search::Device { MOST_SEARCH_METADATA } else { 0 };
            Ok(GgufLayout::new(&parts.metadata, &parts.tensors)?.file_bytes() + imatrix + search)
        }
        _ => folder::file_bytes(checkpoint, plan),
    }
}

/// Writes GGUF v3 and answers the file's size.
pub(super) fn gguf(job: &Job<'_>, output: &Path, warnings: &mut Vec<String>) -> Result<u64> {
    let GgufParts { mut metadata, tensors, divisors, warnings: more } = GgufParts::new(job.checkpoint, job.plan)?;
    warnings.extend(more);
    if let Some(importance) = job.options.importance.as_deref().filter(|_| job.plan.has_importance) {
        metadata.extend(imatrix_metadata(importance));
    }
    // Bytes that the CPU might not have made say so. What made them is known at the end, so there is room for it.
    let is_searched = job.plan.decisions.iter().any(|decision| job.is_searched(decision));
    let room = if is_searched { job.machine.most_searched_bytes() } else { None };
    if let Some(room) = room {
        set_search_device(&mut metadata, CPU, room);
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
            heads => job.stream(decision, heads, None, |bytes| writer.write_tensor_rows(bytes))?,
        }
    }
    if let (Some(room), Some(words)) = (room, job.machine.searched()) {
        set_search_device(&mut metadata, &words, room);
        writer.replace_metadata(&metadata, &tensors)?;
    }
    job.progress.check()?;
    writer.finish()
}

/// The key of what searched.
const SEARCH_KEY: &str = "lapidary.search_device";

/// What searched where no device did.
const CPU: &str = "cpu";

/// Says what searched, in `room` bytes: spaces fill the rest.
fn set_search_device(metadata: &mut Metadata, words: &str, room: usize) {
    metadata.retain(|(key, _)| key != SEARCH_KEY);
    let filler = " ".repeat(room.saturating_sub(words.len()));
    metadata.push((SEARCH_KEY.to_owned(), GgufValue::String(format!("{words}{filler}"))));
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
