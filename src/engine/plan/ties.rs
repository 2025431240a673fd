//! Tensors of a layer that share a format, because a runtime fuses them: q with k and v, gate with up.
//!
//! What runtimes of a target ask for holds unless the plan says otherwise under `[ties]`.

use serde::Serialize;
use toml_edit::{Item, Table};

use super::edit::set_value;
use super::{Plan, Target};
use crate::checkpoint::{Role, TensorInfo};

/// Which tensors of a layer get the same format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ties {
    /// Query, key and value.
    pub attention: bool,
    /// Gate and up.
    pub mlp: bool,
}

impl Ties {
    /// The names of all there are.
    pub const NAMES: [&str; 4] = ["all", "attention", "mlp", "none"];

    /// What runtimes of the target ask for: llama.cpp nothing, those that fuse linears both.
    pub fn of(target: Target) -> Self {
        let is_fused = target != Target::Gguf;
        Self { attention: is_fused, mlp: is_fused }
    }

    /// The ties as plans write them.
    pub fn name(self) -> &'static str {
        match (self.attention, self.mlp) {
            (true, true) => "all",
            (true, false) => "attention",
            (false, true) => "mlp",
            (false, false) => "none",
        }
    }

    /// The ties called `name`.
    pub fn find(name: &str) -> Option<Self> {
        let all = [(true, true), (true, false), (false, true), (false, false)];
        all.map(|(attention, mlp)| Self { attention, mlp }).into_iter().find(|ties| ties.name() == name)
    }

    /// What a tensor is tied by, if it is.
    pub(super) fn key(self, tensor: &TensorInfo) -> Option<(usize, Role)> {
        let first = match tensor.role {
            Role::Q | Role::K | Role::V if self.attention => Role::Q,
            Role::Gate | Role::Up if self.mlp => Role::Gate,
            _ => return None,
        };
        // A bias is no part of the product.
        (tensor.shape.len() == 2).then_some((tensor.layer?, first))
    }

    /// Indices of `chosen` and of all that is tied to them, rising.
    pub fn widen(self, tensors: &[TensorInfo], chosen: &[usize]) -> Vec<usize> {
        let keys: Vec<(usize, Role)> =
            chosen.iter().filter_map(|&index| tensors.get(index).and_then(|tensor| self.key(tensor))).collect();
        let is_tied = |tensor: &TensorInfo| self.key(tensor).is_some_and(|key| keys.contains(&key));
        (0..tensors.len()).filter(|index| chosen.contains(index) || is_tied(&tensors[*index])).collect()
    }
}

impl Plan {
    /// Which tensors share a format: what the plan says of its target, else what its runtimes ask for.
    pub fn ties(&self) -> Ties {
        let own = self.ties.iter().find(|(target, _)| *target == self.target);
        own.map_or_else(|| Ties::of(self.target), |(_, ties)| *ties)
    }

    /// Sets the ties of the plan's target; what its runtimes ask for needs no words.
    pub fn set_ties(&mut self, ties: Ties) {
        let target = self.target;
        self.ties.retain(|(known, _)| *known != target);
        if ties == Ties::of(target) {
            let table = self.document.get_mut("ties").and_then(Item::as_table_like_mut);
            let is_empty = table.is_some_and(|table| {
                table.remove(target.name());
                table.is_empty()
            });
            if is_empty {
                self.document.remove("ties");
            }
            return;
        }
        self.ties.push((target, ties));
        self.ties.sort_by_key(|(target, _)| Target::ALL.iter().position(|known| known == target));
        let item = self.document.entry("ties").or_insert_with(|| Item::Table(Table::new()));
        if let Some(table) = item.as_table_like_mut() {
            set_value(table, target.name(), ties.name());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::{fault, llama, parse};

    #[test]
    fn ties_are_the_targets_until_the_plan_says_otherwise() {
        let mut plan = parse("version = 1\ntarget = \"compressed-tensors\"\n");
        assert_eq!(plan.ties().name(), "all");
        plan.set_ties(Ties { attention: true, mlp: false });
        plan.set_target(Target::Gguf);
        assert_eq!(plan.ties().name(), "none");
        plan.set_ties(Ties { attention: true, mlp: true });
        let read = parse(&plan.to_toml());
        assert_eq!(read, plan, "{}", plan.to_toml());
        assert_eq!(read.ties().name(), "all");
        plan.set_target(Target::CompressedTensors);
        assert_eq!(plan.ties().name(), "attention");
        plan.set_ties(Ties::of(Target::CompressedTensors));
        plan.set_target(Target::Gguf);
        plan.set_ties(Ties::default());
        assert!(!plan.to_toml().contains("ties"), "{}", plan.to_toml());
        let message = fault(Plan::parse("version = 1\n[ties]\ngguf = \"some\"\n", None)).to_string();
        assert!(message.contains("line 3") && message.contains("attention"), "{message}");
    }

    #[test]
    fn a_choice_widens_to_what_is_fused_with_it() {
        let tensors = llama(2);
        let name = |index: usize| tensors[index].name.as_str();
        let at = |wanted: &str| tensors.iter().position(|tensor| tensor.name.contains(wanted)).expect("there");
        let ties = Ties { attention: true, mlp: true };
        let wide = ties.widen(&tensors, &[at("layers.1.self_attn.k_proj"), at("layers.0.mlp.down")]);
        let names: Vec<&str> = wide.iter().map(|&index| name(index)).collect();
        assert_eq!(names.len(), 4, "{names:?}");
        assert!(names.iter().filter(|name| name.contains("layers.1.self_attn")).count() == 3, "{names:?}");
        assert_eq!(Ties::default().widen(&tensors, &[3]), [3]);
    }
}
