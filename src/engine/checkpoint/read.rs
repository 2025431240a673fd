//! Reading tensors and small files of an open checkpoint: positioned, only what is asked for.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::files;
use super::gguf_value::GgufValue;
use super::{Checkpoint, TensorInfo};
use crate::error::{Error, Fault, Result, Stage};
use crate::format::{Dtype, decode_row};
use crate::progress::Progress;
use crate::target::llama_layout;

/// From this many wanted rows of one head on, the whole head is read at once.
const WHOLE_HEAD_FROM: usize = 4;

impl Checkpoint {
    /// Reads `rows` of `tensor` as stored bytes, in Hugging Face's row order, into `out` (cleared first).
    ///
    /// Several threads may read at once. A tensor of an unknown type can only be read whole.
    pub fn read_rows(&self, tensor: &TensorInfo, rows: Range<usize>, out: &mut Vec<u8>) -> Result<()> {
        out.clear();
        let row_count = tensor.row_count();
        if rows.start > rows.end || rows.end > row_count {
            return Err(self.tensor_fault(tensor, format!("rows {rows:?} of {row_count} were asked for")));
        }
        if let Some(view) = &tensor.view {
            return self.read_view(tensor, view, rows, out);
        }
        if let Some(parts) = &tensor.parts {
            return self.read_packed(tensor, parts, rows, out);
        }
        let row_bytes = match tensor.dtype.row_bytes(tensor.row_len()) {
            Some(bytes) => bytes,
            None if rows == (0..row_count) => {
                out.resize(tensor.byte_count as usize, 0);
                return self.read_at(tensor, 0, out);
            }
            None => {
                return Err(self.tensor_fault(tensor, format!("rows of type {} cannot be told apart", tensor.dtype)));
            }
        };
        out.resize(row_bytes * rows.len(), 0);
        if out.is_empty() {
            return Ok(());
        }
        match tensor.permuted_heads {
            None => self.read_at(tensor, rows.start as u64 * row_bytes as u64, out),
            // A bias: its elements are permuted within the one row.
            Some(heads) if tensor.shape.len() == 1 => {
                let mut stored = vec![0; row_bytes];
                self.read_at(tensor, 0, &mut stored)?;
                let (count, width) = (tensor.row_len(), tensor.dtype.block_bytes());
                for (row, element) in out.chunks_exact_mut(width).enumerate() {
                    let from = llama_layout::gguf_row(row, count, heads) * width;
                    element.copy_from_slice(&stored[from..from + width]);
                }
                Ok(())
            }
            Some(heads) => self.read_permuted(tensor, heads, rows, row_bytes, out),
        }
    }

    /// Puts interleaved rows back, head by head.
    fn read_permuted(
        &self,
        tensor: &TensorInfo,
        heads: usize,
        rows: Range<usize>,
        row_bytes: usize,
        out: &mut [u8],
    ) -> Result<()> {
        let row_count = tensor.row_count();
        let head_rows = row_count / heads;
        let mut stored = Vec::new();
        let mut next = rows.start;
        while next < rows.end {
            let head_start = next / head_rows * head_rows;
            let stop = rows.end.min(head_start + head_rows);
            let reads_head = stop - next >= WHOLE_HEAD_FROM;
            if reads_head {
                stored.resize(head_rows * row_bytes, 0);
                self.read_at(tensor, (head_start * row_bytes) as u64, &mut stored)?;
            }
            for row in next..stop {
                let to = (row - rows.start) * row_bytes;
                let target = &mut out[to..to + row_bytes];
                let from = llama_layout::gguf_row(row, row_count, heads);
                if reads_head {
                    let start = (from - head_start) * row_bytes;
                    target.copy_from_slice(&stored[start..start + row_bytes]);
                } else {
                    self.read_at(tensor, from as u64 * row_bytes as u64, target)?;
                }
            }
            next = stop;
        }
        Ok(())
    }

    /// Reads bytes from `offset` within the tensor.
    fn read_at(&self, tensor: &TensorInfo, offset: u64, out: &mut [u8]) -> Result<()> {
        let data = self
            .source
            .data
            .get(tensor.file)
            .ok_or_else(|| self.tensor_fault(tensor, "the tensor belongs to another checkpoint".to_owned()))?;
        data.read_at(tensor.offset + offset, out)
    }

    fn tensor_fault(&self, tensor: &TensorInfo, cause: String) -> Error {
        let path = self.source.data.get(tensor.file).map_or(&self.path, |data| &data.path);
        Fault::new(Stage::Checkpoint, cause).at(format!("tensor {}", tensor.name)).file(path).into()
    }

    /// Reads and decodes `rows` of `tensor`; `raw` is a buffer to reuse, `out` gets rows × row length values.
    pub fn decode_rows(
        &self,
        tensor: &TensorInfo,
        rows: Range<usize>,
        raw: &mut Vec<u8>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let row_len = tensor.row_len();
        self.read_rows(tensor, rows.clone(), raw)?;
        out.clear();
        out.resize(rows.len() * row_len, 0.0);
        if out.is_empty() {
            return Ok(());
        }
        let undecodable = || {
            let fault = Fault::new(Stage::Checkpoint, format!("type {} cannot be decoded yet", tensor.dtype));
            fault
                .at(format!("tensor {}", tensor.name))
                .fix("use a checkpoint in a type of this program's list")
                .file(self.source.data.get(tensor.file).map_or(&self.path, |data| &data.path))
        };
        let row_bytes = tensor.dtype.row_bytes(row_len).ok_or_else(undecodable)?;
        for (stored, values) in raw.chunks_exact(row_bytes).zip(out.chunks_exact_mut(row_len)) {
            if !decode_row(tensor.dtype, stored, values) {
                return Err(undecodable().into());
            }
        }
        Ok(())
    }

    /// Every file of the checkpoint: weights, then index, config and tokenizer.
    pub fn files(&self) -> Vec<PathBuf> {
        let weights = self.source.data.iter().map(|data| data.path.clone());
        let sidecars = self.source.sidecars.iter().map(|(_, path)| path.clone());
        weights.chain(self.source.index.clone()).chain(sidecars).collect()
    }

    /// Bytes of all files on disk, config and tokenizer included, since a GGUF has them inside.
    pub fn file_bytes(&self) -> u64 {
        let weights: u64 = self.source.data.iter().map(|data| data.size_bytes).sum();
        let others = self.source.index.iter().chain(self.source.sidecars.iter().map(|(_, path)| path));
        weights + others.filter_map(|path| std::fs::metadata(path).ok()).map(|meta| meta.len()).sum::<u64>()
    }

    /// BLAKE3 over the full content of all files, in hex: the identity of a candidate.
    pub fn content_hash(&self, progress: &Progress) -> Result<String> {
        files::content_hash(&self.files(), progress)
    }

    /// Path of a small file beside the weights: `tokenizer.json`, `tokenizer_config.json`.
    pub fn sidecar(&self, name: &str) -> Option<&Path> {
        let found = self.source.sidecars.iter().find(|(known, _)| *known == name);
        found.map(|(_, path)| path.as_path())
    }

    /// Content of a small file beside the weights, if there is one.
    pub fn read_sidecar(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.sidecar(name).map(|path| files::read_small(path, files::TOKENIZER_CAP)).transpose()
    }

    /// Content of `tokenizer.json`, if there is one.
    pub fn tokenizer_json(&self) -> Result<Option<Vec<u8>>> {
        self.read_sidecar("tokenizer.json")
    }

    /// `config.json` as it is, for export.
    pub fn config_json(&self) -> Option<&Map<String, Value>> {
        self.source.config.as_ref()
    }

    /// `generation_config.json` as it is, for export.
    pub fn generation_json(&self) -> Option<&Map<String, Value>> {
        self.source.generation.as_ref()
    }

    /// A GGUF's metadata in file order.
    pub fn gguf_metadata(&self) -> Option<&[(String, GgufValue)]> {
        self.source.metadata.as_deref()
    }

    /// True if every value of `tensor` can be decoded here.
    pub fn is_decodable(tensor: &TensorInfo) -> bool {
        !matches!(tensor.dtype, Dtype::Unknown(_)) && crate::format::is_decodable(tensor.dtype)
    }
}
