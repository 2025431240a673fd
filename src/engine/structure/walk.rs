//! A sample taken through a model layer by layer, so that what is gathered of one layer is in memory at a time.
//!
//! The states between two layers are kept for as many batches as there is room for. The others begin at the
//! tokens for every layer, which gives the same values and takes longer.

use super::{Sample, activations};
use crate::error::Result;
use crate::model::{Batch, LinearInput, Model};
use crate::progress::{Phase, Progress, Unit};

/// A batch on its way.
struct Traveller {
    batch: Batch,
    /// Its sequences.
    windows: u64,
    is_kept: bool,
    /// What the next layer is given, tokens × hidden, where it is kept and not the first.
    states: Vec<f32>,
}

/// Where a sample stands in a model.
pub(super) struct Walk<'a> {
    model: &'a Model,
    travellers: Vec<Traveller>,
    layer: usize,
    tokens: u64,
}

impl<'a> Walk<'a> {
    /// Stands before the first layer; states of all batches together take at most `most_bytes`.
    pub(super) fn new(model: &'a Model, sample: &Sample, most_bytes: u64, progress: &Progress) -> Self {
        let layers = model.config.layers.len() as u64;
        progress.begin(Phase::Calibrating, layers * sample.windows.len() as u64, Unit::Items);
        let mut room = most_bytes;
        let travellers = activations::batches(sample)
            .map(|(batch, lengths)| {
                let bytes = batch.ids.len() as u64 * model.config.hidden as u64 * 4;
                let is_kept = bytes <= room;
                room -= if is_kept { bytes } else { 0 };
                Traveller { batch, windows: lengths.len() as u64, is_kept, states: Vec::new() }
            })
            .collect();
        Self { model, travellers, layer: 0, tokens: sample.tokens() }
    }

    /// Tokens of the sample.
    pub(super) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The layer that [`Walk::step`] runs; none after the last.
    pub(super) fn next_layer(&self) -> Option<usize> {
        (self.layer < self.model.config.layers.len()).then_some(self.layer)
    }

    /// Runs the next layer over the whole sample and shows `see` what its linears multiply, batch after batch.
    ///
    /// # Errors
    /// No layer left, a token beyond the vocabulary, cancel, or a device that failed half way.
    pub(super) fn step(&mut self, progress: &Progress, see: &mut dyn FnMut(LinearInput<'_>)) -> Result<()> {
        let layer = self.layer;
        for own in &mut self.travellers {
            progress.check()?;
            let from = (own.is_kept && layer > 0).then_some((layer, own.states.as_slice()));
            let mut show = |input: LinearInput<'_>| {
                if input.layer == Some(layer) {
                    see(input);
                }
            };
            let states = self.model.watch_layers(&own.batch, from, layer + 1, progress, &mut show)?;
            if own.is_kept {
                own.states = states;
            }
            progress.advance(own.windows);
        }
        self.layer += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::checkpoint::{Checkpoint, Role};
    use crate::scoring::BATCH_TOKENS;

    /// By layer and first role, the bits of all inputs in the order in which they were shown.
    type Seen = Vec<(usize, Role, Vec<u32>)>;

    fn note(seen: &mut Seen, input: LinearInput<'_>) {
        let Some(layer) = input.layer else { return };
        seen.push((layer, input.roles[0], input.values.iter().map(|value| value.to_bits()).collect()));
    }

    #[test]
    fn a_walk_shows_the_inputs_of_a_whole_run_to_the_last_bit_whatever_is_kept() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("tests/fixtures/tiny_llama_biases");
        let progress = Progress::default();
        let model = Model::load(&Checkpoint::open(&folder).expect("opens"), &progress).expect("loads");
        // Three batches, the last one short, of windows of two lengths.
        let count = 2 * BATCH_TOKENS / 8 + 3;
        let window = |at: usize| {
            (0..if at.is_multiple_of(2) { 8 } else { 5 }).map(|i| ((at * 7 + i * 13) % 90) as u32).collect()
        };
        let sample = Sample { windows: (0..count).map(window).collect(), text_hash: String::new() };
        let mut expected = Seen::new();
        for (batch, _) in activations::batches(&sample) {
            model.watch_linears(&batch, &progress, &mut |input| note(&mut expected, input)).expect("runs");
        }
        // A walk goes layer by layer and not batch by batch; within a layer and batch the order is the same.
        expected.sort_by_key(|(layer, ..)| *layer);
        let batches = activations::batches(&sample).count();
        assert_eq!((batches, expected.len()), (3, 3 * 4 * model.config.layers.len()));
        let bytes_of_first = activations::batches(&sample).next().map_or(0, |(batch, _)| batch.ids.len() * 4);
        let some = (bytes_of_first * model.config.hidden) as u64;
        for (room, kept) in [(0, 0), (some, 1), (u64::MAX, 3)] {
            let mut walk = Walk::new(&model, &sample, room, &progress);
            assert_eq!(walk.travellers.iter().filter(|own| own.is_kept).count(), kept);
            let mut seen = Seen::new();
            while walk.next_layer().is_some() {
                walk.step(&progress, &mut |input| note(&mut seen, input)).expect("runs");
            }
            assert!(seen == expected, "with room for {room} bytes");
            assert!(walk.step(&progress, &mut |_| ()).is_err(), "there is no layer left");
            let snapshot = progress.snapshot();
            assert_eq!((snapshot.done, snapshot.total), (snapshot.total, (count * model.config.layers.len()) as u64));
        }
    }

    #[test]
    fn states_of_another_batch_or_a_layer_out_of_order_are_refused() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("tests/fixtures/tiny_llama_biases");
        let progress = Progress::default();
        let model = Model::load(&Checkpoint::open(&folder).expect("opens"), &progress).expect("loads");
        let mut batch = Batch::default();
        batch.push(&[5, 17, 2], None, None);
        let states = vec![0.0; 3 * model.config.hidden];
        let run = |from, end| model.watch_layers(&batch, from, end, &progress, &mut |_| ());
        assert_eq!(run(Some((1, &states[..])), 1).expect("nothing to run"), states);
        assert!(run(Some((1, &states[1..])), 2).is_err());
        assert!(run(Some((1, &states[..])), 0).is_err());
        assert!(run(None, model.config.layers.len() + 1).is_err());
    }
}
