//! What may be chosen for each tensor: the stored type and every format that was measured and fits.

use std::collections::HashMap;

use super::super::prune::Left;
use super::super::resolve::{self, padded, shape_of};
use super::super::speed::{Secs, SpeedModel};
use super::super::{Decision, Plan, ResolvedPlan, Subject, Target, containers};
use super::{Damages, Group, Offer};
use crate::checkpoint::TensorInfo;
use crate::error::{Fault, Result, Stage};
use crate::format::{self, Dtype};
use crate::sensitivity::SensitivityTable;

/// What may be chosen for tensors, and what is not known of them.
pub(super) struct Choices<'a> {
    subject: Subject<'a>,
    target: Target,
    table: &'a SensitivityTable,
    speed: Option<&'a SpeedModel>,
    damages: Damages<'a>,
    rows: HashMap<&'a str, usize>,
    /// The one format to quantize with, where the target holds one.
    pub(super) only: Option<&'static str>,
    /// The network that is left, where the plan prunes.
    left: Option<&'a Left>,
    /// Tensors and formats without a value.
    missing: Vec<(usize, &'static str)>,
    /// Decided elsewhere, with a damage that is not known.
    pub(super) unknown: Vec<usize>,
}

impl<'a> Choices<'a> {
    pub(super) fn new(
        subject: Subject<'a>,
        plan: &Plan,
        table: &'a SensitivityTable,
        speed: Option<&'a SpeedModel>,
        left: Option<&'a Left>,
    ) -> Self {
        let rows = table.rows.iter().enumerate().map(|(index, row)| (row.name.as_str(), index)).collect();
        let damages = Damages::new(table);
        let target = plan.target();
        let (missing, unknown) = (Vec::new(), Vec::new());
        Self { subject, target, table, speed, damages, rows, only: None, left, missing, unknown }
    }

    /// Time of a tensor stored as `dtype`, where it is known.
    pub(super) fn secs(&self, index: usize, dtype: Dtype, weight_count: u64) -> Option<Secs> {
        self.speed?.tensor(&self.subject.tensors[index], dtype, weight_count)
    }

    /// What stays of a tensor where the plan prunes, if anything does.
    fn part(&self, index: usize) -> Option<&'a TensorInfo> {
        match self.left {
            None => self.subject.tensors.get(index),
            Some(left) => Some(&left.tensors[left.places[index]?]),
        }
    }

    /// True if the target lets a format be chosen for the tensor and the table knows of it.
    pub(super) fn is_free(&self, index: usize) -> bool {
        let tensor = &self.subject.tensors[index];
        self.part(index).is_some()
            && (tensor.dtype.is_float() || !tensor.dtype.is_plain())
            && format::is_decodable(tensor.dtype)
            && tensor.shape.len() > 1
            && self.may_quantize(tensor)
            && self.rows.contains_key(tensor.name.as_str())
    }

    /// True for what the target quantizes at all; packed folders leave embedding and head plain unless asked.
    fn may_quantize(&self, tensor: &TensorInfo) -> bool {
        match (self.target, self.target.scheme()) {
            (Target::Gguf, _) => shape_of(tensor).may_quantize(),
            (_, Some(_)) => tensor.role.is_layer_linear(),
            _ => true,
        }
    }

    /// Bytes of a tensor in the target's file, of a format that it holds; none where its shape does not fit.
    fn stored_bytes(&self, tensor: &TensorInfo, dtype: Dtype, plainly: u64) -> Option<u64> {
        let Some(scheme) = self.target.scheme().filter(|_| dtype.is_scheme()) else {
            return Some(padded(self.target, plainly));
        };
        containers::holds(scheme, dtype, tensor).then(|| containers::byte_count(scheme, dtype, tensor))
    }

    /// All that a tensor may become, the stored type first. Of a tensor that pruning makes smaller, bytes are
    /// those of what stays, and the damage counts by its share of the weights.
    fn offers(&mut self, index: usize) -> Vec<Offer> {
        let tensor = &self.subject.tensors[index];
        let Some(part) = self.part(index) else { return Vec::new() };
        let is_whole = part.shape == tensor.shape;
        let share = part.weight_count() as f64 / tensor.weight_count().max(1) as f64;
        let mut offers: Vec<Offer> = Vec::new();
        if let Some(stored) = format::of_dtype(part.dtype).filter(|stored| self.target.allows(stored.id())) {
            let bytes = padded(self.target, part.byte_count);
            let secs = self.secs(index, part.dtype, part.weight_count());
            offers.push(Offer { format: stored.id(), bytes, damage: 0.0, variance: 0.0, secs });
        }
        let Some(row) = self.rows.get(tensor.name.as_str()).map(|&row| &self.table.rows[row]) else { return offers };
        for (id, cell) in self.table.formats.iter().zip(&row.cells) {
            let Some(asked) = format::find(id) else { continue };
            let Some(cell) = cell else {
                if self.target.allows(asked.id()) {
                    self.missing.push((index, asked.id()));
                }
                continue;
            };
            let measured = cell.fell_back_to.as_deref().and_then(format::find).unwrap_or(asked);
            let stored = if is_whole { measured } else { format::fitting(measured, part.row_len()) };
            let format = stored.id();
            let is_wanted = stored.dtype().is_plain() || self.only.is_none_or(|only| only == format);
            if is_wanted && self.target.allows(format) && offers.iter().all(|offer| offer.format != format) {
                let variance = (cell.stderr.unwrap_or(0.0) * share).powi(2);
                let plainly = match is_whole {
                    true => cell.bytes,
                    false => resolve::stored_bytes(self.target, stored.dtype(), part),
                };
                let Some(bytes) = self.stored_bytes(part, stored.dtype(), plainly) else { continue };
                let secs = self.secs(index, stored.dtype(), part.weight_count());
                offers.push(Offer { format, bytes, damage: cell.value.max(0.0) * share, variance, secs });
            }
        }
        offers
    }

    /// Tensors that are decided together; `settled` are tied to them and decided already.
    pub(super) fn group(&mut self, tensors: Vec<usize>, settled: &[usize], resolved: &ResolvedPlan) -> Result<Group> {
        let mut offers: Option<Vec<Offer>> = None;
        for &index in &tensors {
            let own = self.offers(index);
            offers = Some(match offers {
                None => own,
                Some(common) => common
                    .into_iter()
                    .filter_map(|offer| {
                        let other = own.iter().find(|other| other.format == offer.format)?;
                        Some(Offer {
                            bytes: offer.bytes.saturating_add(other.bytes),
                            damage: offer.damage + other.damage,
                            variance: offer.variance + other.variance,
                            secs: offer.secs.zip(other.secs).map(|(own, other)| own + other),
                            ..offer
                        })
                    })
                    .collect(),
            });
        }
        let mut offers = offers.unwrap_or_default();
        offers.retain(|offer| {
            let dtype = format::find(offer.format).map(|format| format.dtype());
            settled.iter().all(|&index| dtype == Some(resolved.decisions[index].dtype))
        });
        if offers.is_empty() {
            let name = |index: &usize| self.subject.tensors[*index].name.clone();
            let names: Vec<String> = tensors.iter().chain(settled).map(name).collect();
            return Err(Fault::new(Stage::Plan, "tied tensors have no format in common")
                .at(names.join(", "))
                .fix("measure the same formats for all of them, decide all of them by hand, or untie them")
                .into());
        }
        Ok(Group { tensors, offers })
    }

    /// Damage of a tensor that is decided elsewhere, with its standard error.
    pub(super) fn predicted(&self, tensor: &TensorInfo, decision: &Decision) -> Option<(f64, Option<f64>)> {
        self.damages.of(tensor, decision)
    }

    pub(super) fn warnings(&self, plan: &Plan) -> Vec<String> {
        let mut warnings = Vec::new();
        match (self.table.imatrix.is_some(), plan.calibration().is_some()) {
            (true, false) => warnings.push(
                "The sensitivity was measured with an importance matrix, which the plan does not have.".to_owned(),
            ),
            (false, true) => warnings.push(
                "The sensitivity was measured without the plan's importance matrix, with which the damage is less."
                    .to_owned(),
            ),
            _ => {}
        }
        if self.table.checkpoint != self.subject.fingerprint {
            warnings.push("The sensitivity was measured on another checkpoint.".to_owned());
        }
        let name = |index: usize| &self.subject.tensors[index].name;
        match self.missing.as_slice() {
            [] => {}
            [(index, id)] => {
                warnings.push(format!("{} in {id} was not measured, so it was not considered.", name(*index)));
            }
            [(index, id), ..] => warnings.push(format!(
                "{} choices were not measured, so they were not considered: the first is {} in {id}.",
                self.missing.len(),
                name(*index)
            )),
        }
        match self.unknown.as_slice() {
            [] => {}
            [index] => warnings.push(format!(
                "{} is decided by hand in a format that was not measured, so its damage is not in the prediction.",
                name(*index)
            )),
            [index, ..] => warnings.push(format!(
                "{} tensors stay in formats that were not measured, so their damage is not in the prediction: the first is {}.",
                self.unknown.len(),
                name(*index)
            )),
        }
        warnings
    }
}
