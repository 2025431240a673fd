//! Copying what one layer gets to others.

use super::resolve::{Choice, Why, requests_of};
use super::{Plan, Subject, Treatment};
use crate::checkpoint::{Checkpoint, Role, TensorInfo};
use crate::error::{Fault, Result, Stage};

impl Plan {
    /// Treats every linear of the layers `to` as the same linear of the layer `from` is treated:
    /// one rule a role, on all of them. What `to` names and the checkpoint has not is refused.
    ///
    /// # Errors
    /// A layer that the checkpoint does not have, or a plan whose rules match nothing; the plan is unchanged.
    pub fn copy_layer(&mut self, checkpoint: &Checkpoint, from: usize, to: &[usize]) -> Result<()> {
        self.copy_layer_for(Subject::of(checkpoint), from, to)
    }

    fn copy_layer_for(&mut self, subject: Subject<'_>, from: usize, to: &[usize]) -> Result<()> {
        let count = subject.layer_count();
        if let Some(missing) = std::iter::once(&from).chain(to).find(|layer| **layer >= count) {
            let fault = Fault::new(Stage::Plan, format!("there is no layer {missing}"));
            return Err(match count {
                0 => fault.fix("no tensor of this checkpoint belongs to a layer"),
                count => fault.fix(format!("the checkpoint has layers 0-{}", count - 1)),
            }
            .into());
        }
        let asked = requests_of(self, subject)?;
        let linears = |layer: usize| {
            let tensors = subject.tensors.iter().enumerate();
            tensors.filter(move |(_, tensor)| tensor.layer == Some(layer) && is_linear(tensor))
        };
        let mut next = self.clone();
        for role in Role::ALL.into_iter().filter(|role| role.is_layer_linear()) {
            let Some((source, _)) = linears(from).find(|(_, tensor)| tensor.role == role) else { continue };
            let wanted = asked[source];
            let differs = |layer: &usize| {
                let own = linears(*layer).find(|(_, tensor)| tensor.role == role).map(|(index, _)| asked[index]);
                own.is_some_and(|own| !is_same(own, wanted))
            };
            let others: Vec<usize> = to.iter().copied().filter(|&layer| layer != from).filter(differs).collect();
            if !others.is_empty() {
                let treatment = match wanted.0 {
                    Choice::Keep => Treatment::Protect,
                    Choice::Format(format) => Treatment::Format { format, method: self.method_of(subject, source) },
                };
                next.set_role_for(subject, role, Some(&others), treatment)?;
            }
        }
        *self = next;
        Ok(())
    }

    /// The method that the rule which decides a tensor asks for by name.
    fn method_of(&self, subject: Subject<'_>, tensor: usize) -> Option<super::Method> {
        let matching = |rule: &&super::Rule| rule.matcher.matched(subject).binary_search(&tensor).is_ok();
        let treatment = self.rules.iter().rev().find(matching).map(|rule| rule.treatment).or(self.default);
        match treatment {
            Some(Treatment::Format { method, .. }) => method,
            _ => None,
        }
    }
}

fn is_linear(tensor: &TensorInfo) -> bool {
    tensor.role.is_layer_linear() && tensor.shape.len() == 2
}

/// True if two tensors are asked for alike, whoever says so; what is protected stays so.
fn is_same(one: (Choice, Why), other: (Choice, Why)) -> bool {
    let is_protected = |why: Why| matches!(why, Why::Protected(_));
    one.0 == other.0 && is_protected(one.1) == is_protected(other.1)
}

#[cfg(test)]
mod tests {
    use crate::plan::resolve::resolve_for;
    use crate::plan::tests::{fault, llama, parse, subject};

    const TEXT: &str = r#"version = 1
recipe = "Q4_K_M"

# The first layer is done by hand.
[[rule]]
match = "model.layers.0.*"
format = "q6_k"

[[rule]]
role = "down"
layers = "0"
protect = true
"#;

    #[test]
    fn layers_get_what_the_first_one_has_in_one_rule_a_role() {
        let tensors = llama(4);
        let mut plan = parse(TEXT);
        plan.copy_layer_for(subject(&tensors), 0, &[1, 2]).expect("layers that are there");
        let resolved = resolve_for(&plan, subject(&tensors)).expect("resolves");
        let of = |layer: usize, part: &str| {
            let name = format!("model.layers.{layer}.{part}.weight");
            let index = tensors.iter().position(|tensor| tensor.name == name).expect("there");
            resolved.decisions[index]
        };
        for part in ["self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj"] {
            for layer in [1, 2] {
                assert_eq!(of(layer, part).dtype, of(0, part).dtype, "{part} {layer}");
            }
        }
        assert_eq!(of(1, "mlp.down_proj").dtype.name(), "bf16");
        assert_ne!(of(3, "mlp.up_proj").dtype, of(0, "mlp.up_proj").dtype);
        assert_eq!(plan.rules().len(), 2 + 7);
        assert!(plan.to_toml().contains("# The first layer is done by hand."));
        let again = plan.clone();
        plan.copy_layer_for(subject(&tensors), 0, &[1, 2]).expect("layers that are there");
        assert_eq!(plan, again, "nothing is left to copy");
    }

    #[test]
    fn a_layer_that_is_not_there_is_refused() {
        let tensors = llama(2);
        let mut plan = parse(TEXT);
        let before = plan.clone();
        let message = fault(plan.copy_layer_for(subject(&tensors), 0, &[7])).to_string();
        assert!(message.contains("no layer 7") && message.contains("0-1"), "{message}");
        assert_eq!(plan, before);
    }
}
