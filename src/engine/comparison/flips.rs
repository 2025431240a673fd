//! Items whose correctness changed: which ones is held, what both models said is read when somebody looks.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::paired::Pair;
use crate::error::Result;
use crate::scoring::{ItemResult, ItemWriter, Items, lists};

/// An item whose correctness changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flip {
    pub id: String,
    pub task: String,
    pub slice: String,
    /// True if the candidate is right where the baseline was wrong.
    pub gained: bool,
    /// What would have been right.
    #[serde(default)]
    pub wanted: String,
    pub baseline_prediction: String,
    pub candidate_prediction: String,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    baseline: u32,
    candidate: u32,
    gained: bool,
}

/// All flips of a comparison, in the order of the items: 12 bytes each, and the items that they are of.
#[derive(Clone, Debug, Default)]
pub struct Flips {
    places: Vec<Place>,
    baseline: Items,
    candidate: Items,
}

impl Flips {
    /// The pairs of these items that flipped.
    pub(super) fn among(pairs: &[Pair<'_>], baseline: &Items, candidate: &Items) -> Self {
        let flipped = pairs.iter().filter(|(a, b)| a.is_correct() != b.is_correct());
        let places = flipped.map(|(a, b)| Place {
            baseline: a.index() as u32,
            candidate: b.index() as u32,
            gained: b.is_correct(),
        });
        Self { places: places.collect(), baseline: baseline.clone(), candidate: candidate.clone() }
    }

    /// Flips that come from somewhere else than a comparison, such as its document.
    ///
    /// # Errors
    /// Where the temporary file cannot be written.
    pub fn of(flips: impl IntoIterator<Item = Flip>) -> Result<Self> {
        let mut writer = FlipWriter::default();
        for flip in flips {
            writer.push(flip)?;
        }
        writer.finish()
    }

    /// Number of flips.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// True where nothing changed.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Whether a flip is a gain.
    pub fn is_gain(&self, index: usize) -> bool {
        self.places[index].gained
    }

    /// Indices of all losses.
    pub fn losses(&self) -> impl Iterator<Item = usize> {
        (0..self.places.len()).filter(|&index| !self.places[index].gained)
    }

    /// `task/slice` of a flip.
    pub fn slice_name(&self, index: usize) -> String {
        let item = self.baseline.item(self.places[index].baseline as usize);
        format!("{}/{}", item.task(), item.slice())
    }

    /// A flip with both models' texts, read from where they lie.
    ///
    /// # Errors
    /// Where that file cannot be read, or was changed.
    pub fn get(&self, index: usize) -> Result<Flip> {
        let place = self.places[index];
        let before = self.baseline.get(place.baseline as usize)?;
        let after = self.candidate.get(place.candidate as usize)?;
        Ok(Flip {
            id: before.id,
            task: before.task,
            slice: before.slice,
            gained: place.gained,
            wanted: after.wanted,
            baseline_prediction: before.prediction,
            candidate_prediction: after.prediction,
        })
    }

    /// All flips, each read as it comes.
    pub fn iter(&self) -> impl Iterator<Item = Result<Flip>> {
        (0..self.len()).map(|index| self.get(index))
    }
}

/// Takes flips one by one, so that a long list is never held.
#[derive(Default)]
struct FlipWriter {
    places: Vec<Place>,
    baseline: ItemWriter,
    candidate: ItemWriter,
}

impl FlipWriter {
    fn push(&mut self, flip: Flip) -> Result<()> {
        let index = self.places.len() as u32;
        self.places.push(Place { baseline: index, candidate: index, gained: flip.gained });
        let before = ItemResult {
            id: flip.id,
            task: flip.task,
            slice: flip.slice,
            correct: !flip.gained,
            wanted: flip.wanted,
            prediction: flip.baseline_prediction,
            ..ItemResult::default()
        };
        self.baseline.push(&before)?;
        self.candidate.push(&ItemResult { correct: flip.gained, prediction: flip.candidate_prediction, ..before })
    }

    fn finish(self) -> Result<Flips> {
        Ok(Flips { places: self.places, baseline: self.baseline.finish()?, candidate: self.candidate.finish()? })
    }
}

/// Equal where every flip is, read from disk.
impl PartialEq for Flips {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().zip(other.iter()).all(|pair| matches!(pair, (Ok(a), Ok(b)) if a == b))
    }
}

impl Serialize for Flips {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        lists::serialize(self.len(), self.iter(), serializer)
    }
}

impl<'de> Deserialize<'de> for Flips {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let mut writer = FlipWriter::default();
        lists::deserialize("flips", deserializer, |flip: Flip| writer.push(flip))?;
        writer.finish().map_err(D::Error::custom)
    }
}
