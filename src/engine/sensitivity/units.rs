//! How much a layer, a head or a KV group matters: one value each, what structural pruning asks.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::grouped::GroupedText;
use super::kld::coarse_to_fine;
use super::reference::{ReferenceOptions, References};
use super::{Basis, GroupValue, Label, Metric, heads, layers};
use crate::checkpoint::{Checkpoint, ModelConfig};
use crate::device::Device;
use crate::error::{Error, Fault, Result, Stage};
use crate::model::{Change, Model};
use crate::progress::{Phase, Progress, Unit};

/// What has a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnitKind {
    /// A whole layer.
    Layer,
    /// One query head.
    Head,
    /// One KV head with the query heads that share it.
    KvGroup,
}

impl UnitKind {
    /// The word for one of them.
    pub fn name(self) -> &'static str {
        match self {
            Self::Layer => "layer",
            Self::Head => "head",
            Self::KvGroup => "KV group",
        }
    }

    /// Units of a model: layer, and the head or group within it.
    pub fn of(self, config: &ModelConfig) -> Vec<(usize, Option<usize>)> {
        let layers = config.layers.iter().enumerate();
        let within = |(layer, count): (usize, usize)| (0..count).map(move |index| (layer, Some(index)));
        match self {
            Self::Layer => layers.map(|(layer, _)| (layer, None)).collect(),
            Self::Head => layers.map(|(layer, shape)| (layer, shape.heads)).flat_map(within).collect(),
            Self::KvGroup => layers.map(|(layer, shape)| (layer, shape.kv_heads)).flat_map(within).collect(),
        }
    }
}

/// A metric of units. Larger means that the model would miss the unit more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UnitMetric {
    /// What it is.
    pub metric: Metric,
    /// Of what.
    pub kind: UnitKind,
}

/// Every metric of units, cheapest first.
pub fn metrics() -> &'static [&'static UnitMetric] {
    const ALL: [&UnitMetric; 5] =
        [&layers::INFLUENCE, &layers::REMOVAL, &heads::GRADIENT, &heads::ABLATION, &heads::GROUP_ABLATION];
    &ALL
}

/// The metric of units called `id`.
pub fn metric(id: &str) -> Option<&'static UnitMetric> {
    metrics().iter().copied().find(|own| own.metric.id == id)
}

/// The noun of these metrics: one value per unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnitTable {
    /// Version of this document.
    pub version: u32,
    /// Fingerprint of the checkpoint it belongs to.
    pub checkpoint: String,
    /// [`Metric::id`].
    pub metric: String,
    /// [`Metric::unit`].
    pub unit: String,
    /// What has values.
    pub kind: UnitKind,
    /// How its figures came about.
    pub label: Label,
    /// The text it was measured on.
    pub basis: Basis,
    /// Layer by layer; units that are not measured yet are missing.
    pub values: Vec<UnitValue>,
}

/// The value of one layer, head or KV group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnitValue {
    /// The layer, from 0.
    pub layer: usize,
    /// The head or group within it, from 0; none for the layer itself.
    pub index: Option<usize>,
    /// The metric's value.
    pub value: f64,
    /// Its standard error.
    pub stderr: f64,
    /// The value of each group of the text, where it has groups and the metric is measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupValue>,
}

impl UnitTable {
    /// Version that this program writes.
    pub const VERSION: u32 = 1;

    /// A table without values.
    pub fn new(checkpoint: &Checkpoint, metric: &UnitMetric, text: &GroupedText) -> Self {
        let is_measured = metric.metric.label != Label::Predicted;
        Self {
            version: Self::VERSION,
            checkpoint: checkpoint.fingerprint.clone(),
            metric: metric.metric.id.to_owned(),
            unit: metric.metric.unit.to_owned(),
            kind: metric.kind,
            label: metric.metric.label,
            basis: if is_measured { text.basis() } else { text.basis_without_groups() },
            values: Vec::new(),
        }
    }

    /// Reads a table that `lapidary sensitivity` wrote.
    ///
    /// # Errors
    /// A file that cannot be read, is too long, or holds something else or another version.
    pub fn read(path: &Path) -> Result<Self> {
        /// Longer files are no tables.
        const MOST_BYTES: u64 = 64 << 20;
        let fault = |cause: String| Fault::new(Stage::Sensitivity, cause).file(path);
        if std::fs::metadata(path).map_err(Error::io("read", path))?.len() > MOST_BYTES {
            return Err(fault("the file is too long to be a table of layers or heads".to_owned()).into());
        }
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        let table: Self = serde_json::from_str(&text).map_err(|err| {
            fault(format!("no table of layers or heads: {err}")).fix("write one with `lapidary sensitivity … -o FILE`")
        })?;
        if table.version != Self::VERSION {
            let cause = format!("the table has version {}; this program reads {}", table.version, Self::VERSION);
            return Err(fault(cause).fix("measure it again").into());
        }
        Ok(table)
    }

    /// The value of a unit.
    pub fn value(&self, layer: usize, index: Option<usize>) -> Option<&UnitValue> {
        self.values.iter().find(|value| value.layer == layer && value.index == index)
    }

    /// Puts a value in its place.
    pub fn insert(&mut self, value: UnitValue) {
        let key = |value: &UnitValue| (value.layer, value.index);
        match self.values.binary_search_by_key(&key(&value), key) {
            Ok(at) => self.values[at] = value,
            Err(at) => self.values.insert(at, value),
        }
    }

    /// True if values of both can stand in one table.
    pub fn is_comparable(&self, other: &Self) -> bool {
        self.checkpoint == other.checkpoint && self.metric == other.metric && self.basis.hash == other.basis.hash
    }
}

/// How units are measured.
#[derive(Clone, Debug)]
pub struct UnitOptions {
    /// Memory for the original's run.
    pub reference: ReferenceOptions,
    /// Memory for weights and gradients in f32; a larger model is refused by what needs them.
    pub most_gradient_bytes: u64,
    /// An earlier table, whose values of the same text are taken over.
    pub known: Option<Arc<UnitTable>>,
    /// Where gradients are taken.
    pub device: Device,
}

impl Default for UnitOptions {
    fn default() -> Self {
        Self {
            reference: ReferenceOptions::default(),
            most_gradient_bytes: 16 << 30,
            known: None,
            device: Device::default(),
        }
    }
}

/// Fills a table of `metric`; each value is handed to `on_value` as it comes.
///
/// # Errors
/// A model that cannot be run or gives no finite numbers, one too large for gradients, or cancel.
pub fn measure(
    checkpoint: &Checkpoint,
    model: &Model,
    text: &GroupedText,
    metric: &UnitMetric,
    options: &UnitOptions,
    progress: &Progress,
    on_value: &mut dyn FnMut(&UnitValue),
) -> Result<UnitTable> {
    let mut table = UnitTable::new(checkpoint, metric, text);
    if let Some(known) = options.known.as_ref().filter(|known| known.is_comparable(&table)) {
        table.values.clone_from(&known.values);
    }
    let missing: Vec<(usize, Option<usize>)> = (metric.kind.of(&model.config).into_iter())
        .filter(|(layer, index)| table.value(*layer, *index).is_none())
        .collect();
    let mut found = |value: UnitValue| {
        on_value(&value);
        table.insert(value);
    };
    match metric.metric.id {
        _ if missing.is_empty() => {}
        id if id == layers::INFLUENCE.metric.id => layers::block_influence(model, text, progress, &mut found)?,
        id if id == heads::GRADIENT.metric.id => {
            heads::gradients(checkpoint, text, options, progress, &mut found)?;
        }
        _ => ablation(model, text, metric.kind, &missing, &options.reference, progress, &mut found)?,
    }
    Ok(table)
}

/// KLD without each of the `missing` units, layers coarse to fine: a layer is left out, the output of a head
/// or of a KV group's heads is zero.
fn ablation(
    model: &Model,
    text: &GroupedText,
    kind: UnitKind,
    missing: &[(usize, Option<usize>)],
    options: &ReferenceOptions,
    progress: &Progress,
    found: &mut dyn FnMut(UnitValue),
) -> Result<()> {
    progress.begin(Phase::MeasuringKld, text.scored_tokens() as u64 * (missing.len() as u64 + 1), Unit::Tokens);
    let references = References::run(model, text, options, progress)?;
    let places = coarse_to_fine(model.config.layers.len());
    let mut units = missing.to_vec();
    units.sort_by_key(|&(layer, index)| (places[layer], index));
    for (layer, index) in units {
        let place = match index {
            Some(index) => format!("{} {index} of layer {layer}", kind.name()),
            None => format!("layer {layer}"),
        };
        let klds = references.klds(model, &without(model, kind, layer, index), &place, None, progress)?;
        let (value, stderr, groups) = text.summary(&klds);
        found(UnitValue { layer, index, value, stderr, groups });
    }
    Ok(())
}

/// The model without one unit.
fn without(model: &Model, kind: UnitKind, layer: usize, index: Option<usize>) -> Change {
    let Some(own) = index else { return Change { removed_layers: vec![layer], ..Change::default() } };
    let shape = model.config.layers[layer];
    let group = (shape.heads / shape.kv_heads.max(1)).max(1);
    let silenced = |head: usize| if kind == UnitKind::KvGroup { head / group == own } else { head == own };
    let factors = (0..shape.heads).map(|head| if silenced(head) { 0.0 } else { 1.0 }).collect();
    Change { head_factors: vec![(layer, factors)], ..Change::default() }
}

#[cfg(test)]
mod tests;
