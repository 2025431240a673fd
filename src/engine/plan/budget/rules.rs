//! Choices for single tensors as few rules that a person can read.

use std::collections::BTreeMap;

use super::super::{LayerSet, Matcher, Rule, Treatment};
use crate::checkpoint::{Role, TensorInfo};

/// A planned rule for one tensor.
pub(super) fn exact(tensor: &TensorInfo, format: &'static str) -> Rule {
    planned(Matcher::exact(&tensor.name), format)
}

fn planned(matcher: Matcher, format: &'static str) -> Rule {
    Rule { matcher, treatment: Treatment::Format { format, method: None }, is_planned: true }
}

/// The format of most tensors as the default; for every role that differs a rule of its own; for
/// layers that differ from their role a rule each format; names only where nothing else tells
/// tensors apart.
///
/// `choices` are indices among `tensors` with their formats, each at most once.
pub(super) fn readable(tensors: &[TensorInfo], choices: &[(usize, &'static str)]) -> (&'static str, Vec<Rule>) {
    let default = most_frequent(choices.iter().map(|choice| choice.1), None).unwrap_or("f16");
    let (mut rules, mut exceptions) = (Vec::new(), Vec::new());
    for role in Role::ALL {
        let own: Vec<(usize, &'static str)> =
            choices.iter().copied().filter(|&(index, _)| tensors[index].role == role).collect();
        if role == Role::Other {
            let named = own.iter().filter(|(_, format)| *format != default);
            exceptions.extend(named.map(|&(index, format)| exact(&tensors[index], format)));
            continue;
        }
        let Some(base) = most_frequent(own.iter().map(|choice| choice.1), Some(default)) else { continue };
        if base != default {
            rules.push(planned(Matcher::of_role(role, None), base));
        }
        let mut by_layer: BTreeMap<Option<usize>, Vec<(usize, &'static str)>> = BTreeMap::new();
        for choice in own {
            by_layer.entry(tensors[choice.0].layer).or_default().push(choice);
        }
        let mut layers: Vec<(&'static str, Vec<usize>)> = Vec::new();
        for (layer, own) in by_layer {
            let first = own[0].1;
            match layer {
                Some(layer) if own.iter().all(|choice| choice.1 == first) => {
                    if first != base {
                        match layers.iter_mut().find(|(format, _)| *format == first) {
                            Some((_, layers)) => layers.push(layer),
                            None => layers.push((first, vec![layer])),
                        }
                    }
                }
                _ => {
                    let named = own.iter().filter(|(_, format)| *format != base);
                    exceptions.extend(named.map(|&(index, format)| exact(&tensors[index], format)));
                }
            }
        }
        rules.extend(
            layers.into_iter().map(|(format, layers)| planned(Matcher::of_role(role, LayerSet::of(&layers)), format)),
        );
    }
    rules.append(&mut exceptions);
    (default, rules)
}

/// The format that occurs most often; of equals `preferred`, else the first to occur.
fn most_frequent(formats: impl Iterator<Item = &'static str>, preferred: Option<&'static str>) -> Option<&'static str> {
    let mut counts: Vec<(&'static str, usize)> = Vec::new();
    for format in formats {
        match counts.iter_mut().find(|(known, _)| *known == format) {
            Some((_, count)) => *count += 1,
            None => counts.push((format, 1)),
        }
    }
    let most = counts.iter().map(|(_, count)| *count).max()?;
    let mut best = counts.iter().filter(|(_, count)| *count == most).map(|(format, _)| *format);
    let first = best.next();
    if first == preferred { first } else { best.find(|format| Some(*format) == preferred).or(first) }
}
