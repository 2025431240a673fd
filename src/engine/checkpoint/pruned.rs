//! A checkpoint with units taken out, read as if it had been stored so.
//!
//! Nothing is copied: the tensors of [`Checkpoint::pruned`] know which rows and columns of the
//! original they are made of and read just those, so that everything that works on a checkpoint
//! works on a pruned one. Rows of any type move as they are; columns that cut through the blocks of
//! a packed type are decoded and read as f32.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::units::{Cut, KeptLayer, Structure, UnitKind, cut_of};
use super::{Checkpoint, Container, ModelConfig, Role, TensorInfo};
use crate::error::{Fault, Result, Stage};
use crate::format::Dtype;
use crate::target::gguf_names;

/// Rows that lie this near to each other are read together.
const GAP_ROWS: usize = 16;

/// Indices that stay, as runs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    /// Rising, apart from each other.
    runs: Vec<Range<usize>>,
    len: usize,
}

impl Kept {
    /// Runs of `width` elements for every unit of a rising list.
    fn new(units: &[usize], width: usize) -> Self {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for &unit in units {
            let next = unit * width..(unit + 1) * width;
            match runs.last_mut() {
                Some(last) if last.end == next.start => last.end = next.end,
                _ => runs.push(next),
            }
        }
        Self { len: units.len() * width, runs }
    }

    /// The runs that hold the elements numbered `part` of those that stay.
    fn part(&self, part: Range<usize>) -> Vec<Range<usize>> {
        let mut found = Vec::new();
        let mut before = 0;
        for run in &self.runs {
            let (from, to) = (part.start.max(before), part.end.min(before + run.len()));
            if from < to {
                found.push(run.start + from - before..run.start + to - before);
            }
            before += run.len();
        }
        found
    }

    /// True if every run is made of whole blocks.
    fn is_aligned(&self, block: usize) -> bool {
        self.runs.iter().all(|run| run.start.is_multiple_of(block) && run.end.is_multiple_of(block))
    }
}

/// The part of a tensor that stays, or values that no file has.
#[derive(Clone, Debug)]
pub(crate) enum View {
    /// Rows and columns of another tensor; none keeps all.
    Part(Box<Part>),
    /// f32 values of a vector that pruning adds.
    Values(Vec<f32>),
    /// Another tensor's rows, decoded and changed.
    Mapped(Box<TensorInfo>, Arc<dyn RowMap>),
    /// Rows of the tensor's type that are in memory.
    Rows(Vec<u8>),
}

/// A change of a matrix, row by row.
pub trait RowMap: Send + Sync + fmt::Debug {
    /// Changes the values of one row.
    fn map(&self, row: usize, values: &mut [f32]);
}

#[derive(Clone, Debug)]
pub(crate) struct Part {
    source: TensorInfo,
    rows: Option<Kept>,
    cols: Option<Kept>,
}

impl Structure {
    /// What stays of each of `tensors`, under its new name; none for the tensors of layers that go.
    pub(crate) fn tensors(&self, tensors: &[TensorInfo]) -> Vec<Option<TensorInfo>> {
        tensors.iter().map(|tensor| self.tensor(tensor)).collect()
    }

    fn tensor(&self, tensor: &TensorInfo) -> Option<TensorInfo> {
        let Some(old) = tensor.layer.filter(|&layer| layer < self.original.layers.len()) else {
            return Some(tensor.clone());
        };
        let (new, kept) = self.layer(old)?;
        let mut left = match self.part(tensor, kept) {
            Some(part) => part,
            None => tensor.clone(),
        };
        if new != old {
            left.layer = Some(new);
            left.name = renumbered(&tensor.name, old, new);
            left.stored_name = renumbered(&tensor.stored_name, old, new);
        }
        Some(left)
    }

    /// The indices of a unit kind that stay in a layer, if any went.
    fn kept_units(&self, kind: UnitKind, layer: &KeptLayer) -> Option<Kept> {
        let shape = &self.original.layers[layer.source];
        let (units, count, width) = match kind {
            UnitKind::Heads => (&layer.heads, shape.heads, self.original.head_dim),
            UnitKind::KvHeads => (&layer.kv_heads, shape.kv_heads, self.original.head_dim),
            UnitKind::Channels => (&layer.channels, shape.mlp_channels, 1),
        };
        (units.len() < count).then(|| Kept::new(units, width))
    }

    /// The tensor without its share of the units that go; none where it loses nothing.
    fn part(&self, tensor: &TensorInfo, layer: &KeptLayer) -> Option<TensorInfo> {
        let is_vector = tensor.shape.len() == 1;
        let (rows, cols) = match cut_of(&tensor.name) {
            Cut::Whole => return None,
            Cut::Outputs(kind) if is_vector => (None, Some(self.kept_units(kind, layer)?)),
            Cut::Outputs(kind) => (Some(self.kept_units(kind, layer)?), None),
            Cut::Inputs(kind) => (None, Some(self.kept_units(kind, layer)?)),
        };
        let mut shape = tensor.shape.clone();
        if let (Some(kept), Some(count)) = (&rows, shape.first_mut()) {
            *count = kept.len;
        }
        if let (Some(kept), Some(len)) = (&cols, shape.last_mut()) {
            *len = kept.len;
        }
        let block = tensor.dtype.block_len();
        let is_cut_through = cols.as_ref().is_some_and(|kept| !kept.is_aligned(block));
        // Types with parameters may share scales between rows, so that a part of them is another tensor.
        let dtype = if is_cut_through || tensor.dtype.is_scheme() { Dtype::F32 } else { tensor.dtype };
        let mut left = TensorInfo { shape, dtype, permuted_heads: None, parts: None, view: None, ..tensor.clone() };
        let row_bytes = dtype.row_bytes(left.row_len()).unwrap_or(0) as u64;
        left.byte_count = left.row_count() as u64 * row_bytes;
        left.view = Some(Arc::new(View::Part(Box::new(Part { source: tensor.clone(), rows, cols }))));
        Some(left)
    }
}

/// A tensor's name in another layer: of Hugging Face's or of GGUF's.
fn renumbered(name: &str, old: usize, new: usize) -> String {
    for prefix in ["layers.", "blk."] {
        let from = format!("{prefix}{old}.");
        if name.starts_with(&from) || name.contains(&format!(".{from}")) {
            return name.replacen(&from, &format!("{prefix}{new}."), 1);
        }
    }
    name.to_owned()
}

impl Checkpoint {
    /// This checkpoint without the units that `structure` leaves out; reads nothing.
    ///
    /// `added` are vectors by their new names, biases say, that stand in for stored ones or are new.
    pub fn pruned(&self, structure: &Structure, added: Vec<(String, Vec<f32>)>) -> Self {
        let mut tensors: Vec<TensorInfo> = structure.tensors(&self.tensors).into_iter().flatten().collect();
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.fingerprint.as_bytes());
        hasher.update(format!("{:?}", structure.layers).as_bytes());
        for (name, values) in added {
            for value in &values {
                hasher.update(&value.to_le_bytes());
            }
            let (role, layer) = Role::of_name(&name);
            let at = tensors.iter().position(|tensor| tensor.name == name);
            let vector = TensorInfo {
                stored_name: gguf_names::to_gguf(&name)
                    .filter(|_| self.container == Container::Gguf)
                    .unwrap_or_else(|| name.clone()),
                name,
                shape: vec![values.len()],
                dtype: Dtype::F32,
                role,
                layer,
                byte_count: 4 * values.len() as u64,
                file: 0,
                offset: 0,
                permuted_heads: None,
                parts: None,
                view: Some(Arc::new(View::Values(values))),
            };
            match at {
                Some(at) => tensors[at] = vector,
                None => tensors.push(vector),
            }
        }
        self.view(tensors, Some(structure.config.clone()), &hasher)
    }

    /// This checkpoint with some tensors read as f32 and changed; reads nothing. `what` tells the change
    /// from others of the same tensors.
    pub fn mapped(&self, maps: &BTreeMap<String, Arc<dyn RowMap>>, what: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.fingerprint.as_bytes());
        hasher.update(what.as_bytes());
        let tensor = |tensor: &TensorInfo| match maps.get(&tensor.name) {
            Some(map) => TensorInfo {
                dtype: Dtype::F32,
                byte_count: 4 * tensor.weight_count(),
                permuted_heads: None,
                parts: None,
                view: Some(Arc::new(View::Mapped(Box::new(tensor.clone()), Arc::clone(map)))),
                ..tensor.clone()
            },
            None => tensor.clone(),
        };
        self.view(self.tensors.iter().map(tensor).collect(), self.config.clone(), &hasher)
    }

    /// This checkpoint with some matrices replaced by rows in memory, each in a type of its own; reads nothing.
    /// `what` tells the change from others of the same tensors.
    ///
    /// # Errors
    /// Rows that do not fill the matrix whose name they have.
    pub fn with_rows(&self, rows: BTreeMap<String, (Dtype, Vec<u8>)>, what: &str) -> Result<Self> {
        let mut tensors = self.tensors.clone();
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.fingerprint.as_bytes());
        hasher.update(what.as_bytes());
        for (name, (dtype, rows)) in rows {
            let fault = |cause: &str| Fault::new(Stage::Checkpoint, cause).at(format!("tensor {name}"));
            let own = tensors.iter_mut().find(|tensor| tensor.name == name);
            let own = own.ok_or_else(|| fault("there is no tensor to replace"))?;
            let (count, len) = (own.row_count(), own.row_len());
            if dtype.row_bytes(len).and_then(|bytes| bytes.checked_mul(count)) != Some(rows.len()) {
                return Err(fault("the new rows do not fill it").into());
            }
            let stored = crate::format::of_dtype(dtype).and_then(|format| format.stored_bytes(count as u64, len));
            *own = TensorInfo {
                dtype,
                byte_count: stored.unwrap_or(rows.len() as u64),
                permuted_heads: None,
                parts: None,
                view: Some(Arc::new(View::Rows(rows))),
                ..own.clone()
            };
        }
        Ok(self.view(tensors, self.config.clone(), &hasher))
    }

    fn view(&self, tensors: Vec<TensorInfo>, config: Option<ModelConfig>, hasher: &blake3::Hasher) -> Self {
        Self {
            path: self.path.clone(),
            name: self.name.clone(),
            container: self.container,
            tensors,
            config_fault: if config.is_some() { None } else { self.config_fault.clone() },
            config,
            warnings: self.warnings.clone(),
            fingerprint: hasher.finalize().to_hex().to_string(),
            source: Arc::clone(&self.source),
        }
    }

    /// Reads rows of a view; `out` is empty.
    pub(super) fn read_view(
        &self,
        tensor: &TensorInfo,
        view: &View,
        rows: Range<usize>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let part = match view {
            View::Mapped(source, map) => {
                let (first, mut values) = (rows.start, Vec::new());
                self.decode_rows(source, rows, &mut Vec::new(), &mut values)?;
                for (offset, row) in values.chunks_exact_mut(source.row_len().max(1)).enumerate() {
                    map.map(first + offset, row);
                    out.extend(row.iter().flat_map(|value| value.to_le_bytes()));
                }
                return Ok(());
            }
            View::Values(values) => {
                let len = tensor.row_len();
                out.extend(values[rows.start * len..rows.end * len].iter().flat_map(|value| value.to_le_bytes()));
                return Ok(());
            }
            View::Rows(bytes) => {
                let row_bytes = tensor.dtype.row_bytes(tensor.row_len()).unwrap_or(0);
                out.extend_from_slice(&bytes[rows.start * row_bytes..rows.end * row_bytes]);
                return Ok(());
            }
            View::Part(part) => part,
        };
        let runs = match &part.rows {
            Some(kept) => kept.part(rows),
            None => std::iter::once(rows).filter(|rows| !rows.is_empty()).collect(),
        };
        let (mut raw, mut values) = (Vec::new(), Vec::new());
        let mut next = 0;
        while next < runs.len() {
            let mut last = next;
            while last + 1 < runs.len() && runs[last + 1].start - runs[last].end <= GAP_ROWS {
                last += 1;
            }
            let span = runs[next].start..runs[last].end;
            if tensor.dtype == part.source.dtype {
                self.read_rows(&part.source, span.clone(), &mut raw)?;
            } else {
                let mut packed = Vec::new();
                self.decode_rows(&part.source, span.clone(), &mut packed, &mut values)?;
                raw.clear();
                raw.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
            let row_bytes = raw.len() / span.len();
            for run in &runs[next..=last] {
                for row in run.clone() {
                    let stored = &raw[(row - span.start) * row_bytes..][..row_bytes];
                    part.gather(tensor.dtype, stored, out);
                }
            }
            next = last + 1;
        }
        Ok(())
    }
}

impl Part {
    /// Appends the columns of a row that stay.
    fn gather(&self, dtype: Dtype, row: &[u8], out: &mut Vec<u8>) {
        let Some(kept) = &self.cols else {
            out.extend_from_slice(row);
            return;
        };
        let (len, bytes) = (dtype.block_len(), dtype.block_bytes());
        for run in &kept.runs {
            out.extend_from_slice(&row[run.start / len * bytes..run.end / len * bytes]);
        }
    }
}

impl Structure {
    /// `values`, one a column of `tensor`, without those of columns that go.
    pub fn columns_left(&self, tensor: &TensorInfo, values: &[f32]) -> Vec<f32> {
        let kept = || {
            let (_, layer) = self.layer(tensor.layer?)?;
            match cut_of(&tensor.name) {
                Cut::Inputs(kind) => self.kept_units(kind, layer),
                _ => None,
            }
        };
        match kept() {
            Some(kept) => kept.runs.iter().flat_map(|run| values[run.clone()].iter().copied()).collect(),
            None => values.to_vec(),
        }
    }
}
