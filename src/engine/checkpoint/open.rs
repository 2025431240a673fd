//! From a path to a [`Checkpoint`]: which files there are, their headers, and the config.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::files::{self, DataFile};
use super::gguf_config::LlamaKeys;
use super::gguf_value::{GgufValue, lookup};
use super::role::Role;
use super::{Checkpoint, Container, ModelConfig, TensorInfo, config, gguf, gguf_config, packed, safetensors};
use crate::error::{Error, Fault, Result, Stage};
use crate::format::Dtype;
use crate::target::{gguf_names, llama_layout};

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// Small files that belong to a Hugging Face checkpoint, in the order in which they are hashed.
const SIDECARS: [&str; 5] =
    ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];

/// What a checkpoint reads from besides its tensor data.
#[derive(Debug, Default)]
pub(super) struct Source {
    /// Files with tensors; [`TensorInfo::file`] counts them.
    pub data: Vec<DataFile>,
    /// The index of shards, if there is one.
    pub index: Option<PathBuf>,
    /// Small files beside them: name and path.
    pub sidecars: Vec<(&'static str, PathBuf)>,
    /// `config.json`, if it could be read.
    pub config: Option<Map<String, Value>>,
    /// `generation_config.json`, if it could be read.
    pub generation: Option<Map<String, Value>>,
    /// A GGUF's metadata in file order.
    pub metadata: Option<Vec<(String, GgufValue)>>,
}

/// Opens whatever `path` is.
pub(super) fn open(path: &Path) -> Result<Checkpoint> {
    let kind = std::fs::metadata(path).map_err(Error::io("open", path))?;
    if kind.is_dir() {
        return open_folder(path);
    }
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    if name.ends_with(".gguf") {
        open_gguf(path)
    } else if name.ends_with(".index.json") {
        open_index(path)
    } else if name.ends_with(".safetensors") {
        open_single(path, Container::Safetensors)
    } else {
        Err(Fault::new(Stage::Checkpoint, "not a kind of model file that this program reads")
            .fix("name a folder, a .safetensors, an .index.json or a .gguf")
            .file(path)
            .into())
    }
}

/// The folder of a file; `.` for a bare name.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A title: the folder's or the file's name without its ending.
fn title(path: &Path) -> String {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = real.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    for ending in [".safetensors.index.json", ".index.json", ".safetensors", ".gguf"] {
        if let Some(stem) = name.strip_suffix(ending) {
            // `model.safetensors` is everyone's name; the folder's says more.
            if stem == "model" {
                return title(folder_of(&real));
            }
            return stem.to_owned();
        }
    }
    name
}

fn open_folder(path: &Path) -> Result<Checkpoint> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(Error::io("open", path))? {
        let entry = entry.map_err(Error::io("open", path))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let with_ending =
        |ending: &str| -> Vec<&String> { names.iter().filter(|name| name.to_lowercase().ends_with(ending)).collect() };
    let shards = with_ending(".safetensors");
    let ggufs = with_ending(".gguf");
    let mut checkpoint = if names.iter().any(|name| name == SINGLE) {
        open_single(&files::inside(path, SINGLE, path)?, Container::HuggingFace)
    } else if names.iter().any(|name| name == INDEX) {
        open_index(&files::inside(path, INDEX, path)?)
    } else {
        match (shards.as_slice(), ggufs.as_slice()) {
            ([only], _) => open_single(&files::inside(path, only, path)?, Container::HuggingFace),
            ([], [only]) => open_gguf(&files::inside(path, only, path)?),
            ([], []) => {
                let has_pickle =
                    names.iter().any(|name| name.ends_with(".bin") || name.ends_with(".pt") || name.ends_with(".pth"));
                let remedy = if has_pickle {
                    "PyTorch's pickled weights are not read: save the model with safe_serialization=True"
                } else {
                    "name a folder that holds model.safetensors or a .gguf"
                };
                Err(Fault::new(Stage::Checkpoint, "no model file in the folder").fix(remedy).file(path).into())
            }
            ([], many) => Err(Fault::new(Stage::Checkpoint, format!("{} GGUF files in the folder", many.len()))
                .fix("name one of them")
                .file(path)
                .into()),
            (many, _) => Err(Fault::new(Stage::Checkpoint, format!("{} safetensors files and no {INDEX}", many.len()))
                .fix("add the index or name one file")
                .file(path)
                .into()),
        }
    }?;
    checkpoint.path = path.to_owned();
    checkpoint.name = title(path);
    Ok(checkpoint)
}

fn open_single(path: &Path, container: Container) -> Result<Checkpoint> {
    let data = DataFile::open(path)?;
    let header = safetensors::read_header(&data)?;
    let mut hasher = blake3::Hasher::new();
    hash_part(&mut hasher, &header.bytes, data.size_bytes);
    let tensors = header.entries.into_iter().map(|entry| safetensors_tensor(entry, 0)).collect();
    let source = Source { data: vec![data], ..Source::default() };
    finish_safetensors(path, container, source, tensors, hasher)
}

fn safetensors_tensor(entry: safetensors::Entry, file: usize) -> TensorInfo {
    let (role, layer) = Role::of_name(&entry.name);
    TensorInfo {
        stored_name: entry.name.clone(),
        name: entry.name,
        shape: entry.shape,
        dtype: entry.dtype,
        role,
        layer,
        byte_count: entry.byte_count,
        file,
        offset: entry.offset,
        permuted_heads: None,
        parts: None,
        view: None,
    }
}

/// `weight_map` of an index, doubled keys included.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: std::collections::BTreeMap<String, String>,
}

fn open_index(path: &Path) -> Result<Checkpoint> {
    let bytes = files::read_small(path, files::TOKENIZER_CAP)?;
    let fault =
        |cause: String| Fault::new(Stage::Checkpoint, cause).fix("copy or download the checkpoint again").file(path);
    let index: Index = serde_json::from_slice(&bytes).map_err(|err| fault(format!("not an index of shards: {err}")))?;
    if index.weight_map.is_empty() {
        return Err(fault("the index names no tensor".to_owned()).into());
    }
    let folder = folder_of(path);
    let mut shard_names: Vec<&String> = index.weight_map.values().collect();
    shard_names.sort();
    shard_names.dedup();
    let mut hasher = blake3::Hasher::new();
    hash_part(&mut hasher, &bytes, bytes.len() as u64);
    let mut source = Source { index: Some(path.to_owned()), ..Source::default() };
    let mut tensors = Vec::new();
    let mut warnings = Vec::new();
    let mut seen: HashMap<String, usize> = HashMap::new();
    for (file, shard_name) in shard_names.iter().enumerate() {
        let shard = files::inside(folder, shard_name, path)?;
        if !shard.exists() {
            return Err(fault("a shard is missing".to_owned()).at(format!("shard {shard_name}")).into());
        }
        let data = DataFile::open(&shard)?;
        let header = safetensors::read_header(&data)?;
        hash_part(&mut hasher, &header.bytes, data.size_bytes);
        for entry in header.entries {
            if let Some(first) = seen.insert(entry.name.clone(), file) {
                return Err(fault(format!("it lies in two shards, {} and {shard_name}", shard_names[first]))
                    .at(format!("tensor {}", entry.name))
                    .into());
            }
            if !index.weight_map.contains_key(&entry.name) {
                warnings.push(format!("tensor {} of {shard_name} is not in the index", entry.name));
            }
            tensors.push(safetensors_tensor(entry, file));
        }
        source.data.push(data);
    }
    for (tensor, shard_name) in &index.weight_map {
        let lies_in = seen.get(tensor).map(|&file| shard_names[file]);
        if lies_in != Some(shard_name) {
            return Err(fault(format!("the index puts it in {shard_name}, which does not have it"))
                .at(format!("tensor {tensor}"))
                .into());
        }
    }
    let mut checkpoint = finish_safetensors(path, Container::HuggingFace, source, tensors, hasher)?;
    checkpoint.warnings.splice(0..0, warnings);
    Ok(checkpoint)
}

/// Adds one file's header and size to a fingerprint.
fn hash_part(hasher: &mut blake3::Hasher, header: &[u8], size_bytes: u64) {
    hasher.update(&(header.len() as u64).to_le_bytes());
    hasher.update(header);
    hasher.update(&size_bytes.to_le_bytes());
}

/// Finds config and tokenizer beside the weights and puts everything together.
fn finish_safetensors(
    path: &Path,
    container: Container,
    mut source: Source,
    mut tensors: Vec<TensorInfo>,
    mut hasher: blake3::Hasher,
) -> Result<Checkpoint> {
    let folder = folder_of(path);
    for name in SIDECARS {
        let sidecar = files::inside(folder, name, path)?;
        if sidecar.is_file() {
            source.sidecars.push((name, sidecar));
        }
    }
    let mut warnings = Vec::new();
    let mut config_fault = None;
    let mut model_config = None;
    let config_path = folder.join("config.json");
    if source.has_sidecar("config.json") {
        match files::read_json(&config_path) {
            Ok(map) => source.config = Some(map),
            Err(Error::Fault(fault)) => config_fault = Some(*fault),
            Err(other) => return Err(other),
        }
        if source.has_sidecar("generation_config.json") {
            match files::read_json(&folder.join("generation_config.json")) {
                Ok(map) => source.generation = Some(map),
                Err(err) => warnings.push(format!("generation_config.json is not used: {err}")),
            }
        }
    } else {
        config_fault = Some(
            Fault::new(Stage::Checkpoint, "there is no config.json beside the weights")
                .fix("its tensors can be listed and profiled; add the model's config.json to run it")
                .file(folder),
        );
    }
    // Older checkpoints of LlamaModel, without the head, leave the prefix out.
    if tensors.iter().any(|tensor| tensor.name == "embed_tokens.weight") {
        for tensor in &mut tensors {
            if tensor.name != "lm_head.weight" {
                tensor.name = format!("model.{}", tensor.name);
            }
        }
    }
    if let Some(map) = &source.config {
        let text = serde_json::to_vec(map).unwrap_or_default();
        hash_part(&mut hasher, &text, text.len() as u64);
        let quantization = map.get("quantization_config").or_else(|| map.get("compression_config"));
        if let Some(quantization) = quantization.and_then(Value::as_object) {
            match packed::assemble(&tensors, quantization, &source.data) {
                Ok(assembled) => {
                    tensors = assembled.tensors;
                    warnings.extend(assembled.warnings);
                }
                // The parts stay listed; the network cannot be put together.
                Err(Error::Fault(fault)) => config_fault = Some(fault.file(&config_path)),
                Err(other) => return Err(other),
            }
        }
    }
    if let Some(map) = source.config.as_ref().filter(|_| config_fault.is_none()) {
        match config::from_json(map, source.generation.as_ref(), &config_path, &tensors) {
            Ok(parsed) => model_config = Some(parsed),
            Err(fault) => config_fault = Some(fault),
        }
    }
    Ok(Checkpoint {
        path: path.to_owned(),
        name: title(path),
        container,
        tensors,
        config: model_config,
        config_fault,
        warnings,
        fingerprint: hasher.finalize().to_hex().to_string(),
        source: source.into(),
    })
}

impl Source {
    fn has_sidecar(&self, name: &str) -> bool {
        self.sidecars.iter().any(|(known, _)| *known == name)
    }
}

fn open_gguf(path: &Path) -> Result<Checkpoint> {
    let data = DataFile::open(path)?;
    let header = gguf::read_header(&data)?;
    let mut hasher = blake3::Hasher::new();
    hash_header(&mut hasher, &data, header.data_start)?;
    let metadata = header.metadata;
    let mut warnings = header.warnings;
    let architecture = lookup(&metadata, "general.architecture").and_then(GgufValue::as_str);
    let is_llama = architecture.is_some_and(gguf_config::is_llama);
    let mut tensors: Vec<TensorInfo> = header
        .entries
        .into_iter()
        .map(|entry| {
            let theirs = gguf_names::to_hugging_face(&entry.name);
            // Another architecture's names stay as they are, but its roles can still be read off.
            let (role, layer) = Role::of_name(theirs.as_deref().unwrap_or(&entry.name));
            let name = theirs.filter(|_| is_llama).unwrap_or_else(|| entry.name.clone());
            TensorInfo {
                stored_name: entry.name,
                name,
                shape: entry.shape,
                dtype: entry.dtype,
                role,
                layer,
                byte_count: entry.byte_count,
                file: 0,
                offset: entry.offset,
                permuted_heads: None,
                parts: None,
                view: None,
            }
        })
        .collect();
    let mut names = HashSet::new();
    if let Some(double) = tensors.iter().find(|tensor| !names.insert(tensor.name.as_str())) {
        return Err(Fault::new(Stage::Checkpoint, "two tensors have this name once mapped to Hugging Face's")
            .at(format!("tensor {}", double.name))
            .fix("convert the model again")
            .file(path)
            .into());
    }
    if is_llama {
        mark_permuted(&mut tensors, &metadata, path, &mut warnings);
    }
    let freq_factors = read_freq_factors(&data, &tensors)?;
    let (config, config_fault) = match gguf_config::from_metadata(&metadata, path, &tensors, freq_factors) {
        Ok(config) => (Some(config), None),
        Err(fault) => (None, Some(fault)),
    };
    Ok(Checkpoint {
        path: path.to_owned(),
        name: title(path),
        container: Container::Gguf,
        tensors,
        config,
        config_fault,
        warnings,
        fingerprint: hasher.finalize().to_hex().to_string(),
        source: Source { data: vec![data], metadata: Some(metadata), ..Source::default() }.into(),
    })
}

/// Hashes the header in pieces, so that its size does not matter.
fn hash_header(hasher: &mut blake3::Hasher, data: &DataFile, header_bytes: u64) -> Result<()> {
    let mut buffer = vec![0u8; (header_bytes as usize).min(1 << 20)];
    let mut offset = 0;
    while offset < header_bytes {
        let count = buffer.len().min((header_bytes - offset) as usize);
        data.read_at(offset, &mut buffer[..count])?;
        hasher.update(&buffer[..count]);
        offset += count as u64;
    }
    hasher.update(&data.size_bytes.to_le_bytes());
    Ok(())
}

/// Notes with every q and k tensor how many heads its rows are interleaved in.
fn mark_permuted(
    tensors: &mut [TensorInfo],
    metadata: &[(String, GgufValue)],
    path: &Path,
    warnings: &mut Vec<String>,
) {
    let keys = LlamaKeys { metadata, path };
    // What is wrong with these keys is told by the config's own fault.
    let Ok(layer_count) = keys.layer_count(tensors.len()) else {
        return;
    };
    let heads = keys.per_layer("llama.attention.head_count", layer_count).ok().flatten();
    let kv_heads =
        keys.per_layer("llama.attention.head_count_kv", layer_count).ok().flatten().or_else(|| heads.clone());
    for tensor in tensors {
        let numbers = match tensor.stored_name.split('.').nth(2) {
            Some("attn_q") => &heads,
            Some("attn_k") => &kv_heads,
            _ => continue,
        };
        let Some(&heads) = tensor.layer.and_then(|layer| numbers.as_ref()?.get(layer)) else {
            continue;
        };
        let rows = if tensor.shape.len() == 1 { tensor.row_len() } else { tensor.row_count() };
        let can_move = tensor.shape.len() == 2 || (tensor.shape.len() == 1 && tensor.dtype.is_plain());
        if can_move && !matches!(tensor.dtype, Dtype::Unknown(_)) && llama_layout::can_permute(rows, heads) {
            tensor.permuted_heads = Some(heads);
        } else {
            warnings.push(format!(
                "tensor {}: rows stay in GGUF's order, {rows} rows do not fit {heads} heads",
                tensor.name
            ));
        }
    }
}

/// The values of `rope_freqs.weight`, a tensor as small as half a head.
fn read_freq_factors(data: &DataFile, tensors: &[TensorInfo]) -> Result<Option<Vec<f32>>> {
    let found = tensors.iter().find(|tensor| tensor.stored_name == "rope_freqs.weight");
    let Some(tensor) = found.filter(|tensor| tensor.dtype == Dtype::F32 && tensor.byte_count <= 1 << 16) else {
        return Ok(None);
    };
    let mut bytes = vec![0u8; tensor.byte_count as usize];
    data.read_at(tensor.offset, &mut bytes)?;
    let (chunks, _) = bytes.as_chunks::<4>();
    Ok(Some(chunks.iter().map(|&chunk| f32::from_le_bytes(chunk)).collect()))
}

impl Checkpoint {
    /// The config, or why there is none.
    pub fn require_config(&self) -> Result<&ModelConfig> {
        match (&self.config, &self.config_fault) {
            (Some(config), _) => Ok(config),
            (None, Some(fault)) => Err(fault.clone().into()),
            (None, None) => Err(Fault::new(Stage::Checkpoint, "the model's shape is not known")
                .fix("add its config.json")
                .file(&self.path)
                .into()),
        }
    }
}
