//! What changed between two plans for the same checkpoint: tensor by tensor, in bytes and damage.

use serde::Serialize;

use super::{Decision, ResolvedPlan, budget};
use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::sensitivity::SensitivityTable;

/// One tensor that two plans treat differently.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Index among the checkpoint's tensors.
    pub tensor_index: usize,
    /// Hugging Face's name.
    pub name: String,
    /// Type and method under the first plan: `q4_k`, `int4_g128 by rtn_mse`.
    pub before: String,
    /// The same under the second plan.
    pub after: String,
    /// Bytes under the first plan.
    pub before_bytes: u64,
    /// Bytes under the second plan.
    pub after_bytes: u64,
    /// Predicted damage under the first plan, where the table has it.
    pub before_damage: Option<f64>,
    /// Predicted damage under the second plan.
    pub after_damage: Option<f64>,
}

impl Change {
    /// Bytes more or, below zero, fewer than before.
    pub fn byte_difference(&self) -> i64 {
        self.after_bytes.cast_signed().saturating_sub(self.before_bytes.cast_signed())
    }

    /// Damage more or, below zero, less than before.
    pub fn damage_difference(&self) -> Option<f64> {
        Some(self.after_damage? - self.before_damage?)
    }
}

/// Two plans side by side.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Changes {
    /// Only what differs, in the checkpoint's order.
    pub tensors: Vec<Change>,
    /// Tensors that both treat alike.
    pub unchanged: usize,
    /// Bytes of all tensors under the first plan.
    pub before_bytes: u64,
    /// Bytes of all tensors under the second plan.
    pub after_bytes: u64,
    /// Predicted damage of all changes under the first plan, where the table knows each of them.
    pub before_damage: Option<f64>,
    /// The same under the second plan.
    pub after_damage: Option<f64>,
}

impl Changes {
    /// Bytes more or, below zero, fewer than before.
    pub fn byte_difference(&self) -> i64 {
        self.after_bytes.cast_signed().saturating_sub(self.before_bytes.cast_signed())
    }

    /// Damage more or, below zero, less than before.
    pub fn damage_difference(&self) -> Option<f64> {
        Some(self.after_damage? - self.before_damage?)
    }
}

/// What the second of two plans for `checkpoint` does otherwise than the first; damages by `table`.
pub fn changes(
    checkpoint: &Checkpoint,
    before: &ResolvedPlan,
    after: &ResolvedPlan,
    table: Option<&SensitivityTable>,
) -> Changes {
    changes_for(&checkpoint.tensors, before, after, table)
}

fn changes_for(
    tensors: &[TensorInfo],
    before: &ResolvedPlan,
    after: &ResolvedPlan,
    table: Option<&SensitivityTable>,
) -> Changes {
    let damages = table.map(budget::Damages::new);
    let damage = |decision: &Decision| Some(damages.as_ref()?.of(tensors.get(decision.tensor_index)?, decision)?.0);
    let all = |plan: &ResolvedPlan| plan.decisions.iter().try_fold(0.0, |sum, decision| Some(sum + damage(decision)?));
    let pairs = before.decisions.iter().zip(&after.decisions);
    let differing = pairs.filter(|(one, other)| !is_alike(one, other)).map(|(one, other)| Change {
        tensor_index: one.tensor_index,
        name: tensors.get(one.tensor_index).map_or_else(String::new, |tensor| tensor.name.clone()),
        before: in_words(one, other),
        after: in_words(other, one),
        before_bytes: one.new_bytes,
        after_bytes: other.new_bytes,
        before_damage: damage(one),
        after_damage: damage(other),
    });
    let found: Vec<Change> = differing.collect();
    Changes {
        unchanged: before.decisions.len() - found.len(),
        tensors: found,
        before_bytes: before.new_bytes,
        after_bytes: after.new_bytes,
        before_damage: all(before),
        after_damage: all(after),
    }
}

/// True if both decisions lead to the same bytes.
pub(crate) fn is_alike(one: &Decision, other: &Decision) -> bool {
    let same = (one.dtype, one.new_bytes, one.weight_count) == (other.dtype, other.new_bytes, other.weight_count);
    same && (one.is_copy() || one.method == other.method)
}

/// The type, and the method where that is what differs.
fn in_words(decision: &Decision, other: &Decision) -> String {
    if decision.dtype == other.dtype && decision.method != other.method {
        return format!("{} by {}", decision.dtype, decision.method.name());
    }
    decision.dtype.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::resolve::resolve_for;
    use crate::plan::tests::{llama, parse, subject};

    #[test]
    fn only_what_differs_is_listed_with_its_bytes() {
        let tensors = llama(2);
        let before = resolve_for(&parse("version = 1\n"), subject(&tensors)).expect("resolves");
        let plan = parse("version = 1\n[[rule]]\nmatch = \"*.1.*down_proj*\"\nformat = \"q4_0\"\n");
        let after = resolve_for(&plan, subject(&tensors)).expect("resolves");
        let found = changes_for(&tensors, &before, &after, None);
        assert_eq!((found.tensors.len(), found.unchanged), (1, tensors.len() - 1));
        let one = &found.tensors[0];
        assert_eq!((one.name.as_str(), one.before.as_str()), ("model.layers.1.mlp.down_proj.weight", "bf16"));
        assert_eq!(one.after, "q4_0");
        assert_eq!(one.byte_difference(), 256 * 512 / 2 + 256 * 512 / 16 - 256 * 512 * 2);
        assert_eq!(found.byte_difference(), one.byte_difference());
        assert_eq!(found.damage_difference(), None);
        let same = changes_for(&tensors, &after, &after, None);
        assert_eq!((same.tensors.len(), same.byte_difference()), (0, 0));
    }

    #[test]
    fn another_method_of_the_same_type_is_a_change() {
        let tensors = llama(1);
        let text = "version = 1\ntarget = \"compressed-tensors\"\n[default]\nformat = \"int4_g128\"\n";
        let before = resolve_for(&parse(text), subject(&tensors)).expect("resolves");
        let other = format!("{text}method = \"rtn_mse\"\n");
        let after = resolve_for(&parse(&other), subject(&tensors)).expect("resolves");
        let found = changes_for(&tensors, &before, &after, None);
        assert_eq!(found.tensors.len(), 7);
        assert_eq!((found.byte_difference(), found.tensors[0].after.as_str()), (0, "int4_g128 by rtn_mse"));
    }
}
