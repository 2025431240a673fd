//! The least that any plan takes, and what sets it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::knapsack::Problem;
use super::super::resolve::padded;
use super::super::{Decision, Subject, Target};
use super::{Group, Limit};
use crate::checkpoint::Role;
use crate::format::Dtype;
use crate::units;

/// One reason for the floor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FloorPart {
    /// What it is, as words that follow a size: `of 3 tensors decided by hand, the largest is …`.
    pub what: String,
    /// What it takes.
    pub bytes: u64,
}

/// The cheapest plan there is, under the rules made by hand and the formats that were measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Floor {
    /// Bytes of all tensors with the padding between them.
    pub tensor_bytes: u64,
    /// Bytes of the whole file.
    pub file_bytes: u64,
    /// Bits per weight.
    pub bits_per_weight: f64,
    /// What it consists of, the largest first.
    pub parts: Vec<FloorPart>,
}

/// What a floor is found from.
pub(super) struct Inputs<'a> {
    pub(super) subject: Subject<'a>,
    pub(super) target: Target,
    pub(super) groups: &'a [Group],
    pub(super) problem: &'a Problem,
    pub(super) fixed: &'a BTreeMap<usize, Dtype>,
    pub(super) by_hand: &'a [usize],
    pub(super) decisions: &'a [Decision],
    pub(super) overhead_bytes: u64,
}

impl Inputs<'_> {
    /// Tensors that are not decided here, for one reason.
    fn fixed_part(&self, tensors: &[usize], why: &str) -> Option<FloorPart> {
        let bytes_of = |index: usize| padded(self.target, self.decisions[index].new_bytes);
        let largest = tensors.iter().copied().max_by_key(|&index| (bytes_of(index), std::cmp::Reverse(index)))?;
        let name = &self.subject.tensors[largest].name;
        let bytes = tensors.iter().map(|&index| bytes_of(index)).fold(0, u64::saturating_add);
        let what = match tensors.len() {
            1 => format!("of {name}, {why}"),
            count => format!("of {count} tensors {why}, the largest is {name}"),
        };
        Some(FloorPart { what, bytes })
    }

    /// Groups with more than one alternative, or with only one.
    fn group_part(&self, is_free: bool) -> Option<FloorPart> {
        let groups = self.groups.iter().enumerate();
        let own: Vec<(usize, &Group)> = groups.filter(|(_, group)| (group.offers.len() > 1) == is_free).collect();
        let bytes = own.iter().filter_map(|(index, _)| self.problem.floor_of(*index)).fold(0, u64::saturating_add);
        let tensors: usize = own.iter().map(|(_, group)| group.tensors.len()).sum();
        let noun = if tensors == 1 { "tensor" } else { "tensors" };
        let what = if is_free {
            format!("of {tensors} {noun} in the smallest format measured for each")
        } else {
            format!("of {tensors} {noun} with one possible format")
        };
        (tensors > 0).then_some(FloorPart { what, bytes })
    }
}

impl Floor {
    pub(super) fn new(inputs: &Inputs<'_>) -> Self {
        let is_measurable = |index: &usize| {
            let tensor = &inputs.subject.tensors[*index];
            tensor.role.is_layer_linear() || matches!(tensor.role, Role::Embedding | Role::Head)
        };
        let left = inputs.fixed.keys().copied().filter(|index| !inputs.by_hand.contains(index));
        let (unmeasured, never): (Vec<usize>, Vec<usize>) = left.partition(is_measurable);
        let mut parts: Vec<FloorPart> = [
            inputs.group_part(true),
            inputs.group_part(false),
            inputs.fixed_part(inputs.by_hand, "decided by hand"),
            inputs.fixed_part(&unmeasured, "whose sensitivity was not measured"),
            inputs.fixed_part(&never, "that are never quantized"),
        ]
        .into_iter()
        .flatten()
        .collect();
        let tensor_bytes = parts.iter().map(|part| part.bytes).fold(0, u64::saturating_add);
        if inputs.overhead_bytes > 0 {
            let what = "of metadata and tokenizer".to_owned();
            parts.push(FloorPart { what, bytes: inputs.overhead_bytes });
        }
        parts.sort_by_key(|part| std::cmp::Reverse(part.bytes));
        let weights = inputs.decisions.iter().map(|decision| decision.new_weight_count).fold(0, u64::saturating_add);
        Self {
            tensor_bytes,
            file_bytes: tensor_bytes.saturating_add(inputs.overhead_bytes),
            bits_per_weight: units::bits_per_weight(tensor_bytes, weights),
            parts,
        }
    }

    /// The floor in the terms of a limit, and what sets it.
    pub fn sentence(&self, limit: Limit) -> String {
        let least = match limit {
            Limit::BitsPerWeight(_) => format!("{:.2} bits per weight", self.bits_per_weight),
            Limit::FileBytes(_) => format!("{} ({} bytes)", units::bytes(self.file_bytes), self.file_bytes),
            _ => format!("{} ({} bytes)", units::bytes(self.tensor_bytes), self.tensor_bytes),
        };
        let parts = self.parts.iter().map(|part| format!("{} {}", units::bytes(part.bytes), part.what));
        format!("the least is {least}: {}", parts.collect::<Vec<_>>().join(", "))
    }
}
