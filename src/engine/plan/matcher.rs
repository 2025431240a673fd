//! Which tensors a rule is about: a glob on Hugging Face names, a role, a set of layers.
//!
//! Rules are matched on every click, so a matcher remembers what it matched in the last checkpoint
//! it was shown; clones share that memory.

use std::fmt;
use std::sync::{Arc, OnceLock};

use globset::{GlobBuilder, GlobMatcher};

use super::Subject;
use crate::checkpoint::{Role, TensorInfo};

/// A set of layers, written as `3-5` or `0,2,4-6`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerSet {
    /// Inclusive ranges, sorted, neither overlapping nor adjacent.
    ranges: Vec<(usize, usize)>,
}

impl LayerSet {
    /// Reads `3-5` or `0,2,4-6`; the answer to anything else is what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let number =
            |part: &str| part.trim().parse::<usize>().map_err(|_| format!("\"{}\" is not a layer number", part.trim()));
        let mut ranges = Vec::new();
        for part in text.split(',') {
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(part)?, number(part)?),
            };
            if first > last {
                return Err(format!("the range {first}-{last} runs backwards"));
            }
            ranges.push((first, last));
        }
        Ok(Self::normal(ranges))
    }

    /// The set of some layers, in any order; `None` if there are none.
    pub fn of(layers: &[usize]) -> Option<Self> {
        (!layers.is_empty()).then(|| Self::normal(layers.iter().map(|&layer| (layer, layer)).collect()))
    }

    fn normal(mut ranges: Vec<(usize, usize)>) -> Self {
        ranges.sort_unstable();
        let mut merged: Vec<(usize, usize)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(open) if first <= open.1.saturating_add(1) => open.1 = open.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Self { ranges: merged }
    }

    /// True if `layer` is in the set.
    pub fn contains(&self, layer: usize) -> bool {
        self.ranges.iter().any(|&(first, last)| (first..=last).contains(&layer))
    }

    /// The layers of the set, rising.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.ranges.iter().flat_map(|&(first, last)| first..=last)
    }

    /// The highest layer of the set.
    pub fn last(&self) -> usize {
        self.ranges.last().map_or(0, |range| range.1)
    }
}

impl fmt::Display for LayerSet {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, &(first, last)) in self.ranges.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            if first == last {
                write!(out, "{comma}{first}")?;
            } else {
                write!(out, "{comma}{first}-{last}")?;
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
enum Pattern {
    /// A name without any of a glob's special characters.
    Exact,
    Glob(GlobMatcher),
}

/// Tensor indices that matched, with the fingerprint of the checkpoint they are of.
type Memory = OnceLock<(String, Arc<[usize]>)>;

/// Which tensors a rule is about. All given conditions must hold.
#[derive(Clone, Debug)]
pub struct Matcher {
    glob: Option<String>,
    role: Option<Role>,
    layers: Option<LayerSet>,
    pattern: Option<Arc<Pattern>>,
    memory: Arc<Memory>,
}

impl PartialEq for Matcher {
    fn eq(&self, other: &Self) -> bool {
        self.glob == other.glob && self.role == other.role && self.layers == other.layers
    }
}

const SPECIAL: [char; 7] = ['*', '?', '[', ']', '{', '}', '\\'];

impl Matcher {
    /// A matcher of all conditions given; the answer to a glob that cannot be read is why.
    pub fn new(glob: Option<&str>, role: Option<Role>, layers: Option<LayerSet>) -> Result<Self, String> {
        let pattern = match glob {
            None => None,
            Some(text) if !text.contains(SPECIAL) => Some(Arc::new(Pattern::Exact)),
            Some(text) => {
                let glob =
                    GlobBuilder::new(text).backslash_escape(true).build().map_err(|err| err.kind().to_string())?;
                Some(Arc::new(Pattern::Glob(glob.compile_matcher())))
            }
        };
        Ok(Self { glob: glob.map(str::to_owned), role, layers, pattern, memory: Arc::default() })
    }

    /// A matcher of exactly one name.
    pub fn exact(name: &str) -> Self {
        let escaped = if name.contains(SPECIAL) { globset::escape(name) } else { name.to_owned() };
        Self::new(Some(&escaped), None, None).unwrap_or_else(|_| Self {
            // An escaped name is a legal glob; should globset disagree, equality still is right.
            glob: Some(name.to_owned()),
            role: None,
            layers: None,
            pattern: Some(Arc::new(Pattern::Exact)),
            memory: Arc::default(),
        })
    }

    /// A matcher of a role, in all layers or in some.
    pub fn of_role(role: Role, layers: Option<LayerSet>) -> Self {
        Self { glob: None, role: Some(role), layers, pattern: None, memory: Arc::default() }
    }

    /// The glob on names.
    pub fn glob(&self) -> Option<&str> {
        self.glob.as_deref()
    }

    /// The role.
    pub fn role(&self) -> Option<Role> {
        self.role
    }

    /// The layers.
    pub fn layers(&self) -> Option<&LayerSet> {
        self.layers.as_ref()
    }

    /// True if every condition holds for `tensor`.
    pub fn matches(&self, tensor: &TensorInfo) -> bool {
        self.role.is_none_or(|role| role == tensor.role)
            && self.layers.as_ref().is_none_or(|layers| tensor.layer.is_some_and(|layer| layers.contains(layer)))
            && match (self.pattern.as_deref(), &self.glob) {
                (Some(Pattern::Exact), Some(name)) => *name == tensor.name,
                (Some(Pattern::Glob(glob)), _) => glob.is_match(&tensor.name),
                _ => true,
            }
    }

    /// Indices of all tensors that match, in rising order.
    pub(super) fn matched(&self, subject: Subject<'_>) -> Arc<[usize]> {
        if let Some((fingerprint, found)) = self.memory.get()
            && fingerprint == subject.fingerprint
        {
            return found.clone();
        }
        let indices = subject.tensors.iter().enumerate().filter(|(_, tensor)| self.matches(tensor));
        let found: Arc<[usize]> = indices.map(|(index, _)| index).collect();
        self.remember(subject, &found);
        found
    }

    /// Tells the matcher what it matches, where the caller knows already.
    pub(super) fn remember(&self, subject: Subject<'_>, found: &Arc<[usize]>) {
        if !subject.fingerprint.is_empty() {
            // Another checkpoint may be remembered already: then this one is matched anew each time.
            let _ = self.memory.set((subject.fingerprint.to_owned(), found.clone()));
        }
    }
}

impl fmt::Display for Matcher {
    /// The conditions in words: `role down, layers 0-3`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if let Some(glob) = &self.glob {
            parts.push(glob.clone());
        }
        if let Some(role) = self.role {
            parts.push(format!("role {role}"));
        }
        if let Some(layers) = &self.layers {
            parts.push(format!("layers {layers}"));
        }
        out.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn layer_sets_are_read_and_written() {
        let set = LayerSet::parse("4-6, 0,2").expect("legal");
        assert_eq!(set.to_string(), "0,2,4-6");
        assert_eq!((0..8).filter(|&layer| set.contains(layer)).collect::<Vec<_>>(), [0, 2, 4, 5, 6]);
        assert_eq!(LayerSet::of(&[3, 1, 2]).expect("some").to_string(), "1-3");
        assert_eq!(LayerSet::of(&[]), None);
        for bad in ["", "a", "5-3", "1,,2", "-1", "1-2-3", "99999999999999999999999"] {
            assert!(LayerSet::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_largest_layer_number_does_not_overflow() {
        let text = format!("0-{max},{max}", max = usize::MAX);
        assert_eq!(LayerSet::parse(&text).expect("legal").last(), usize::MAX);
    }

    proptest! {
        #[test]
        fn a_layer_set_survives_being_written(layers in prop::collection::vec(0_usize..40, 1..20)) {
            let set = LayerSet::of(&layers).expect("some");
            prop_assert_eq!(&LayerSet::parse(&set.to_string()).expect("legal"), &set);
            for layer in 0..40 {
                prop_assert_eq!(set.contains(layer), layers.contains(&layer));
            }
        }
    }
}
