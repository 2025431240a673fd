//! What one slice of users loses by a unit and another does not: scores of the same metric on two slices.
//!
//! With Fisher information a score is the loss that a unit's absence costs, to second order, so the scores on
//! two slices are in one unit and their difference says whom pruning hits (Wu et al., "FairPrune", 2022).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Metric, Sample, SampleOptions, ScoreOptions, UnitScores, scores};
use crate::calibration::Documents;
use crate::checkpoint::Checkpoint;
use crate::device::Device;
use crate::error::{Fault, Result, Stage};
use crate::model::Tokenizer;
use crate::progress::Progress;
use crate::scoring::TaskSet;
use crate::sensitivity::GroupedText;

/// Tokens a window: slices are short, and a document should fill one.
const CONTEXT: usize = 128;

/// Windows of a domain that say enough of it.
const WINDOWS: usize = 24;

/// Part of what a model is used for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Slice {
    /// Documents of a domain of the calibration text.
    Domain(String),
    /// Items of a slice of tasks, as `task/slice`: prompts with their right answers.
    Tasks(String),
}

impl fmt::Display for Slice {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Domain(name) => write!(out, "domain {name}"),
            Self::Tasks(name) => out.write_str(name),
        }
    }
}

/// Where slices come from.
#[derive(Clone, Copy, Debug, Default)]
pub struct SliceSources<'a> {
    /// The calibration text by documents, for domains.
    pub documents: Option<&'a Documents>,
    /// For slices of tasks.
    pub tasks: Option<&'a TaskSet>,
}

impl SliceSources<'_> {
    /// Windows of a slice.
    ///
    /// # Errors
    /// A slice that the sources do not have, or too little text for one window.
    pub fn sample(&self, slice: &Slice, checkpoint: &Checkpoint, codec: &Tokenizer) -> Result<Sample> {
        let config = checkpoint.require_config()?;
        let missing = || {
            let fault = Fault::new(Stage::Sensitivity, format!("there is nothing of the slice {slice}"));
            fault.fix("choose a calibration text that names its domains, or tasks, and a slice that they have")
        };
        match slice {
            Slice::Domain(name) => {
                let mut own = self.documents.cloned().ok_or_else(missing)?;
                own.list.retain(|document| document.domain.as_deref() == Some(name));
                if own.list.is_empty() {
                    return Err(missing().into());
                }
                let source = own.source();
                // A small domain is one short window.
                let tokens = codec.encode(&source.text)?.len().max(2);
                let context = Some(CONTEXT.min(config.context).min(tokens));
                let options = SampleOptions { context, max_windows: Some(WINDOWS) };
                Sample::new(&source, codec, config, &options)
            }
            Slice::Tasks(name) => {
                let mut own = self.tasks.cloned().ok_or_else(missing)?;
                own.items = own.items.of_slices(|slice| slice.name() == *name);
                if own.items.is_empty() {
                    return Err(missing().into());
                }
                let text = GroupedText::of_tasks(codec, &own, config.context, config.vocab, WINDOWS * CONTEXT)?;
                let text_hash = text.basis().hash;
                Ok(Sample { windows: text.windows.into_iter().map(|window| window.ids).collect(), text_hash })
            }
        }
    }

    /// Fisher scores of every unit on a slice.
    ///
    /// # Errors
    /// As [`SliceSources::sample`] and [`scores`].
    pub fn score(
        &self,
        slice: &Slice,
        checkpoint: &Checkpoint,
        codec: &Tokenizer,
        device: &Device,
        progress: &Progress,
    ) -> Result<UnitScores> {
        let sample = self.sample(slice, checkpoint, codec)?;
        let options = ScoreOptions { sample: Some(&sample), seed: 0, device: Some(device) };
        Ok(scores(checkpoint, Metric::Fisher, &options, progress)?.0)
    }
}

/// What is compared between two slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// A KV head with its query heads.
    KvGroup {
        /// Its layer.
        layer: usize,
        /// Its index within the layer.
        index: usize,
    },
    /// One query head.
    Head {
        /// Its layer.
        layer: usize,
        /// Its index within the layer.
        index: usize,
    },
    /// All MLP channels of a layer together.
    Channels {
        /// Their layer.
        layer: usize,
    },
}

impl fmt::Display for Compared {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KvGroup { layer, index } => write!(out, "layer {layer} KV group {index}"),
            Self::Head { layer, index } => write!(out, "layer {layer} head {index}"),
            Self::Channels { layer } => write!(out, "layer {layer} MLP channels"),
        }
    }
}

/// What two slices lose without one unit, in the scores' unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OneSided {
    /// The unit.
    pub unit: Compared,
    /// What the first slice loses.
    pub first: f64,
    /// What the second slice loses.
    pub second: f64,
}

impl OneSided {
    /// What the first slice loses beyond the second.
    pub fn difference(&self) -> f64 {
        self.first - self.second
    }
}

/// KV groups, query heads and each layer's channels, those first that cost the first slice most beyond what they
/// cost the second; equals in the order of the network.
pub fn one_sided(first: &UnitScores, second: &UnitScores) -> Vec<OneSided> {
    let mut found = Vec::new();
    for (layer, (own, other)) in first.layers.iter().zip(&second.layers).enumerate() {
        let mut add = |unit: Compared, first: f64, second: f64| found.push(OneSided { unit, first, second });
        for (index, (own, other)) in own.kv_groups.iter().zip(&other.kv_groups).enumerate() {
            add(Compared::KvGroup { layer, index }, *own, *other);
        }
        for (index, (own, other)) in own.heads.iter().zip(&other.heads).enumerate() {
            add(Compared::Head { layer, index }, *own, *other);
        }
        add(Compared::Channels { layer }, own.channels.iter().sum(), other.channels.iter().sum());
    }
    found.sort_by(|a, b| b.difference().total_cmp(&a.difference()));
    found
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::sensitivity::Label;
    use crate::structure::LayerScores;

    fn made(groups: [f64; 2], channels: [f64; 2]) -> UnitScores {
        let layer = LayerScores {
            heads: vec![groups[0] / 2.0, groups[0] / 2.0, groups[1] / 2.0, groups[1] / 2.0],
            kv_groups: groups.to_vec(),
            channels: channels.to_vec(),
            layer: None,
            head_stderr: Vec::new(),
        };
        UnitScores {
            version: 1,
            checkpoint: "f".to_owned(),
            metric: "fisher".to_owned(),
            label: Label::Predicted,
            text_hash: None,
            tokens: 0,
            device: None,
            layers: vec![layer],
        }
    }

    #[test]
    fn units_that_one_slice_alone_needs_come_first() {
        let found = one_sided(&made([8.0, 1.0], [1.0, 2.0]), &made([1.0, 1.0], [4.0, 4.0]));
        let names: Vec<String> = found.iter().map(|one| one.unit.to_string()).collect();
        let expected = [
            "layer 0 KV group 0",
            "layer 0 head 0",
            "layer 0 head 1",
            "layer 0 KV group 1",
            "layer 0 head 2",
            "layer 0 head 3",
            "layer 0 MLP channels",
        ];
        assert_eq!(names, expected);
        assert_eq!((found[0].first, found[0].second, found[0].difference()), (8.0, 1.0, 7.0));
        assert_eq!(found[6].difference(), -5.0);
    }

    #[test]
    fn slices_are_cut_from_domains_and_tasks_and_others_refused() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo");
        let demo = Checkpoint::open(&path).expect("opens");
        let codec = Tokenizer::of_checkpoint(&demo).expect("tokenizer");
        let documents = Documents::read(&path.join("calibration.jsonl")).expect("reads");
        let tasks = TaskSet::read(&path.join("tasks.jsonl")).expect("reads");
        let sources = SliceSources { documents: Some(&documents), tasks: Some(&tasks) };
        let domain = Slice::Domain(documents.domains()[0].to_owned());
        let of_domain = sources.sample(&domain, &demo, &codec).expect("cuts");
        assert!(of_domain.windows.iter().all(|window| window.len() == CONTEXT) && of_domain.windows.len() <= WINDOWS);
        let small = sources.sample(&Slice::Domain("compare".to_owned()), &demo, &codec).expect("cuts");
        assert_eq!(small.windows.len(), 1, "351 characters are one window");
        let of_tasks = sources.sample(&Slice::Tasks("recall/long context".to_owned()), &demo, &codec).expect("cuts");
        assert!(!of_tasks.windows.is_empty() && of_tasks.text_hash != of_domain.text_hash);
        for slice in [Slice::Domain("no such".to_owned()), Slice::Tasks("no/such".to_owned())] {
            let text = sources.sample(&slice, &demo, &codec).expect_err("refused").to_string();
            assert!(text.contains(&slice.to_string()) && text.contains("choose"), "{text}");
        }
        let none = SliceSources::default();
        assert!(none.sample(&domain, &demo, &codec).is_err());
    }
}
