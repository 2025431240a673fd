//! How much each tensor minds each treatment: a table of tensors by formats under one metric.
//!
//! One file per metric. A metric is a description ([`Metric`]) in [`metrics`] and an entry
//! function that fills a [`SensitivityTable`] row by row, so that the picture grows while it works.
//! Metrics of layers and heads ([`units`]) have one value each and fill a [`UnitTable`] the same way.

mod coded;
pub mod fisher;
pub mod grouped;
pub mod heads;
pub mod kld;
pub mod layers;
pub mod output;
mod place;
#[cfg(test)]
mod proofs;
pub mod ranks;
mod reference;
pub mod units;
pub mod weight;

pub use grouped::GroupedText;
pub use reference::ReferenceOptions;
pub use units::{UnitTable, UnitValue};

use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::calibration::Importance;
use super::checkpoint::{Checkpoint, Role, TensorInfo};
use super::error::{Error, Fault, Result, Stage};
use super::format::{self, Format};
use super::kernels::ints::ScaleChoice;

/// How far a figure is from the file that a user runs. The three are never mixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Label {
    /// No forward pass with the change.
    Predicted,
    /// A forward pass with the changed weights dequantized in memory.
    MeasuredWeightsOnly,
    /// The shipped file with the kernels a user runs.
    Measured,
}

impl Label {
    /// The label as people read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Predicted => "predicted",
            Self::MeasuredWeightsOnly => "measured, weights only",
            Self::Measured => "measured",
        }
    }
}

/// What a sensitivity metric is and what its numbers mean. Larger is always worse.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    /// The name on the command line and in files: `weight`, `kld`.
    pub id: &'static str,
    /// The name in the window.
    pub title: &'static str,
    /// Unit of the values; empty for a ratio.
    pub unit: &'static str,
    /// What it is, in one sentence.
    pub description: &'static str,
    /// How its figures are to be labelled.
    pub label: Label,
}

/// Every metric, cheapest first.
pub fn metrics() -> &'static [&'static Metric] {
    const ALL: [&Metric; 5] = [&weight::METRIC, &output::METRIC, &fisher::METRIC, &kld::LAYER_METRIC, &kld::METRIC];
    &ALL
}

/// The metric called `id`.
pub fn metric(id: &str) -> Option<&'static Metric> {
    metrics().iter().copied().find(|metric| metric.id == id)
}

/// The tokens that figures are of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Basis {
    /// The text's name.
    pub name: String,
    /// BLAKE3 of the tokens, of which are scored and of their groups, in hex: figures of equal hashes
    /// can stand in one table.
    pub hash: String,
    /// Scored tokens.
    pub tokens: usize,
    /// Groups that the tokens are split into, where they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
}

/// A part of a text: a domain, or a slice of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Scored tokens of it.
    pub tokens: usize,
}

/// A figure of one group.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupValue {
    /// Mean over the group's tokens.
    pub value: f64,
    /// Its standard error.
    pub stderr: f64,
}

/// The noun of this stage: one value per tensor and format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SensitivityTable {
    /// Version of this document.
    pub version: u32,
    /// Fingerprint of the checkpoint it belongs to.
    pub checkpoint: String,
    /// [`Metric::id`].
    pub metric: String,
    /// [`Metric::unit`].
    pub unit: String,
    /// The device that made it, where that was not the CPU alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// How its figures came about.
    pub label: Label,
    /// [`Importance::hash`] of the matrix that tensors were encoded with, where there was one.
    #[serde(default)]
    pub imatrix: Option<String>,
    /// The text it was measured on, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basis: Option<Basis>,
    /// Tensors of metric `output` whose channels were taken as uncorrelated, for want of memory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diagonal_only: Vec<String>,
    /// Ids of the formats: the columns.
    pub formats: Vec<String>,
    /// One per tensor, in the checkpoint's order.
    pub rows: Vec<SensitivityRow>,
}

/// Sensitivities of one tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SensitivityRow {
    /// Hugging Face's name of the tensor.
    pub name: String,
    /// What it is in the network.
    #[serde(serialize_with = "write_role", deserialize_with = "read_role")]
    pub role: Role,
    /// The layer it belongs to, from 0.
    pub layer: Option<usize>,
    /// Number of weights.
    pub weight_count: u64,
    /// One per format; none where the format does not apply or there is no value.
    pub cells: Vec<Option<SensitivityValue>>,
}

/// What one format does to one tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SensitivityValue {
    /// The metric's value; larger is worse.
    pub value: f64,
    /// Standard error of the value, where it is an estimate.
    pub stderr: Option<f64>,
    /// Tokens that it is of, where measuring stopped before the text's end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_after: Option<usize>,
    /// Exact bits per weight of the tensor so stored.
    pub bits_per_weight: f64,
    /// Exact bytes of the tensor so stored.
    pub bytes: u64,
    /// The format really taken where rows do not fill the asked one's blocks.
    pub fell_back_to: Option<String>,
    /// The value of each group of [`SensitivityTable::basis`], in its order; empty where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupValue>,
    /// Further figures of the `weight` metric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_error: Option<weight::WeightError>,
}

impl SensitivityTable {
    /// Version that this program writes.
    pub const VERSION: u32 = 1;

    /// A table without rows.
    pub fn new(checkpoint: &Checkpoint, metric: &Metric, formats: &[&'static dyn Format]) -> Self {
        Self {
            version: Self::VERSION,
            checkpoint: checkpoint.fingerprint.clone(),
            metric: metric.id.to_owned(),
            unit: metric.unit.to_owned(),
            device: None,
            label: metric.label,
            imatrix: None,
            basis: None,
            diagonal_only: Vec::new(),
            formats: formats.iter().map(|format| format.id().to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    /// Reads a table that `lapidary sensitivity` wrote.
    ///
    /// # Errors
    /// A file that cannot be read, is too long, or holds something else or another version.
    pub fn read(path: &Path) -> Result<Self> {
        /// Longer files are no tables.
        const MOST_BYTES: u64 = 256 << 20;
        let fault = |cause: String| Fault::new(Stage::Sensitivity, cause).file(path);
        let length = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
        if length > MOST_BYTES {
            return Err(fault("the file is too long to be a sensitivity table".to_owned()).into());
        }
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        let table: Self = serde_json::from_str(&text).map_err(|err| {
            fault(format!("not a sensitivity table: {err}")).fix("write one with `lapidary sensitivity … -o FILE`")
        })?;
        if table.version != Self::VERSION {
            let cause =
                format!("the table has version {}; this program reads version {}", table.version, Self::VERSION);
            return Err(fault(cause).fix("measure it again").into());
        }
        Ok(table)
    }

    /// The row of a tensor.
    pub fn row(&self, tensor: &str) -> Option<&SensitivityRow> {
        self.rows.iter().find(|row| row.name == tensor)
    }

    /// Index of a format among the columns.
    pub fn column(&self, format: &str) -> Option<usize> {
        self.formats.iter().position(|id| id.eq_ignore_ascii_case(format))
    }

    /// What a format does to a tensor.
    pub fn cell(&self, tensor: &str, format: &str) -> Option<&SensitivityValue> {
        self.row(tensor)?.cells.get(self.column(format)?)?.as_ref()
    }

    /// True if cells of both can stand in one table: the same model, text and importance.
    pub fn is_comparable(&self, other: &Self) -> bool {
        let hash = |table: &Self| table.basis.as_ref().map(|basis| basis.hash.clone());
        self.checkpoint == other.checkpoint
            && self.metric == other.metric
            && self.imatrix == other.imatrix
            && hash(self) == hash(other)
    }

    /// A table with the columns and rows of both; where both have a cell, this one's counts. Tables
    /// that are not comparable are not mixed: this one is the answer.
    #[must_use]
    pub fn with(&self, older: &Self) -> Self {
        if !self.is_comparable(older) {
            return self.clone();
        }
        let mut formats: Vec<String> = older.formats.clone();
        formats.extend(self.formats.iter().filter(|format| !older.formats.contains(format)).cloned());
        // The registry's order, from most bits to fewest, whatever was measured first.
        formats.sort_by_key(|id| format::all().iter().position(|format| format.id() == id));
        let mut names: Vec<&str> = self.rows.iter().map(|row| row.name.as_str()).collect();
        names.extend(older.rows.iter().map(|row| row.name.as_str()).filter(|name| self.row(name).is_none()));
        let rows = names.into_iter().filter_map(|name| {
            let mut row = self.row(name).or_else(|| older.row(name))?.clone();
            row.cells = formats
                .iter()
                .map(|format| self.cell(name, format).or_else(|| older.cell(name, format)).cloned())
                .collect();
            Some(row)
        });
        Self { rows: rows.collect(), formats: formats.clone(), ..self.clone() }
    }

    /// The table of one group of the text alone; none where there is no such group.
    pub fn of_group(&self, index: usize) -> Option<Self> {
        self.basis.as_ref()?.groups.get(index)?;
        let mut table = self.clone();
        for cell in table.rows.iter_mut().flat_map(|row| &mut row.cells) {
            *cell = cell.take().and_then(|cell| {
                let group = *cell.groups.get(index)?;
                Some(SensitivityValue { value: group.value, stderr: Some(group.stderr), groups: Vec::new(), ..cell })
            });
        }
        Some(table)
    }

    /// Groups by the mean of their values in a format, the most sensitive first: name, mean, and the
    /// mean over all tokens in the same cells. Groups without tokens are left out.
    pub fn groups_by_damage(&self, format: &str) -> Vec<(String, f64, f64)> {
        let (Some(basis), Some(column)) = (&self.basis, self.column(format)) else { return Vec::new() };
        let cells: Vec<&SensitivityValue> =
            self.rows.iter().filter_map(|row| row.cells.get(column)?.as_ref()).collect();
        let count = cells.len().max(1) as f64;
        let whole = cells.iter().map(|cell| cell.value).sum::<f64>() / count;
        let groups = basis.groups.iter().enumerate().filter(|(_, group)| group.tokens > 0);
        let mut found: Vec<(String, f64, f64)> = groups
            .map(|(index, group)| {
                let values = cells.iter().filter_map(|cell| cell.groups.get(index)).map(|group| group.value);
                (group.name.clone(), values.sum::<f64>() / count, whole)
            })
            .collect();
        found.sort_by(|one, other| other.1.total_cmp(&one.1).then(one.0.cmp(&other.0)));
        found
    }

    /// Smallest positive and largest value of a column, or of all columns: the ends of a colour scale.
    pub fn value_range(&self, column: Option<usize>) -> Option<(f64, f64)> {
        let cells = self.rows.iter().flat_map(|row| {
            let (from, to) = column.map_or((0, row.cells.len()), |at| (at, at + 1));
            row.cells.get(from..to).unwrap_or_default()
        });
        let values = cells.flatten().map(|cell| cell.value).filter(|&value| value > 0.0);
        values.fold(None, |range, value| {
            let (lo, hi): (f64, f64) = range.unwrap_or((value, value));
            Some((lo.min(value), hi.max(value)))
        })
    }
}

impl SensitivityRow {
    /// A row of `tensor` with `column_count` empty cells.
    pub fn new(tensor: &TensorInfo, column_count: usize) -> Self {
        Self {
            name: tensor.name.clone(),
            role: tensor.role,
            layer: tensor.layer,
            weight_count: tensor.weight_count(),
            cells: vec![None; column_count],
        }
    }
}

impl SensitivityValue {
    /// A value together with what `tensor` costs in `stored`, which stands for `asked`.
    pub fn new(value: f64, tensor: &TensorInfo, asked: &dyn Format, stored: &dyn Format) -> Option<Self> {
        let bytes = stored.stored_bytes(tensor.row_count() as u64, tensor.row_len())?;
        Some(Self {
            value,
            stderr: None,
            stopped_after: None,
            bits_per_weight: super::units::bits_per_weight(bytes, tensor.weight_count()),
            bytes,
            fell_back_to: (stored.id() != asked.id()).then(|| stored.id().to_owned()),
            groups: Vec::new(),
            weight_error: None,
        })
    }
}

/// How scales of integer groups are found unless a plan says otherwise: weighted, where there is
/// something to weigh with.
fn scale_choice(importance: Option<&[f32]>) -> ScaleChoice {
    if importance.is_some() { ScaleChoice::LeastSquares } else { ScaleChoice::AbsMax }
}

/// True for what sensitivity is measured of unless told otherwise: matrices of layers, embedding and head.
pub fn is_default_subject(tensor: &TensorInfo) -> bool {
    tensor.shape.len() == 2
        && tensor.weight_count() > 0
        && (tensor.role.is_layer_linear() || matches!(tensor.role, Role::Embedding | Role::Head))
}

/// Indices of the tensors called `names`, or of the default subjects; in the checkpoint's order.
///
/// # Errors
/// A name that the checkpoint does not have.
pub fn select_tensors(checkpoint: &Checkpoint, names: Option<&[String]>) -> Result<Vec<usize>> {
    let tensors = || checkpoint.tensors.iter().enumerate();
    let Some(names) = names else {
        return Ok(tensors().filter(|(_, tensor)| is_default_subject(tensor)).map(|(index, _)| index).collect());
    };
    if let Some(missing) = names.iter().find(|name| checkpoint.tensor(name).is_none()) {
        return Err(Fault::new(Stage::Sensitivity, "there is no tensor of this name")
            .at(missing)
            .fix("list the names with `lapidary inspect`")
            .file(&checkpoint.path)
            .into());
    }
    Ok(tensors().filter(|(_, tensor)| names.contains(&tensor.name)).map(|(index, _)| index).collect())
}

/// The formats called `ids`, or every one where none is named.
///
/// # Errors
/// An id that no format has.
pub fn select_formats(ids: &[String]) -> Result<Vec<&'static dyn Format>> {
    if ids.is_empty() {
        return Ok(format::all().to_vec());
    }
    ids.iter()
        .map(|id| {
            format::find(id).ok_or_else(|| {
                let known: Vec<_> = format::all().iter().map(|format| format.id()).collect();
                Fault::new(Stage::Sensitivity, format!("there is no format {id:?}"))
                    .fix(format!("choose among {}", known.join(", ")))
                    .into()
            })
        })
        .collect()
}

/// How much each column of a tensor matters to the encoders, where that is known.
///
/// # Errors
/// An importance matrix of another model.
fn columns<'a>(importance: Option<&'a Importance>, tensor: &TensorInfo) -> Result<Option<&'a [f32]>> {
    importance.map_or(Ok(None), |importance| importance.of(&tensor.name, tensor.row_len()))
}

fn write_role<S: Serializer>(role: &Role, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(role.name())
}

fn read_role<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Role, D::Error> {
    let name = String::deserialize(deserializer)?;
    Role::find(&name).ok_or_else(|| serde::de::Error::custom(format!("there is no role {name:?}")))
}
