//! Which of two models an evaluation is reading, so that a running figure is told as whose it is.
//!
//! The engine scores the original first and then the candidate, and its progress knows counters only. A model is
//! wrapped so that it notes itself whenever it is asked; the window samples the note.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::engine::error::Result;
use crate::engine::model::{Batch, KvCache};
use crate::engine::progress::Progress;
use crate::engine::scoring::TokenModel;

/// One of the two models of an evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The checkpoint that candidates are measured against.
    Original,
    /// The candidate.
    Candidate,
}

/// The model that was asked last, shared between a job and the window.
#[derive(Clone, Debug, Default)]
pub(super) struct Whose {
    last: Arc<AtomicU8>,
}

impl Whose {
    /// The model that was asked last; none before the first.
    pub(super) fn get(&self) -> Option<Side> {
        match self.last.load(Ordering::Relaxed) {
            1 => Some(Side::Original),
            2 => Some(Side::Candidate),
            _ => None,
        }
    }

    fn note(&self, side: Side) {
        let number = match side {
            Side::Original => 1,
            Side::Candidate => 2,
        };
        self.last.store(number, Ordering::Relaxed);
    }

    /// `model`, which notes that it was asked as `side`.
    pub(super) fn watch<'a>(&self, model: &'a dyn TokenModel, side: Side) -> Watched<'a> {
        Watched { model, side, whose: self.clone() }
    }
}

/// A model that notes when it is asked.
pub(super) struct Watched<'a> {
    model: &'a dyn TokenModel,
    side: Side,
    whose: Whose,
}

impl TokenModel for Watched<'_> {
    fn vocab(&self) -> usize {
        self.model.vocab()
    }

    fn width(&self) -> usize {
        self.model.width()
    }

    fn context(&self) -> usize {
        self.model.context()
    }

    fn hidden(&self, batch: &Batch, caches: &mut [KvCache], progress: &Progress) -> Result<Vec<f32>> {
        self.whose.note(self.side);
        self.model.hidden(batch, caches, progress)
    }

    fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>> {
        self.model.logits(hidden)
    }

    fn device(&self) -> String {
        self.model.device()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Knows nothing and answers everything.
    struct Mute;

    impl TokenModel for Mute {
        fn vocab(&self) -> usize {
            3
        }

        fn width(&self) -> usize {
            1
        }

        fn context(&self) -> usize {
            8
        }

        fn hidden(&self, batch: &Batch, _: &mut [KvCache], _: &Progress) -> Result<Vec<f32>> {
            Ok(vec![0.0; batch.ids.len()])
        }

        fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>> {
            Ok(vec![0.0; hidden.len() * 3])
        }
    }

    #[test]
    fn the_model_that_was_asked_last_is_known_and_answers_as_before() {
        let whose = Whose::default();
        let (original, candidate) = (whose.watch(&Mute, Side::Original), whose.watch(&Mute, Side::Candidate));
        assert_eq!(whose.get(), None);
        let ask = |model: &Watched<'_>| {
            let batch = Batch { ids: vec![1, 2], ..Batch::default() };
            model.hidden(&batch, &mut [], &Progress::default()).expect("answers").len()
        };
        assert_eq!((ask(&original), whose.get()), (2, Some(Side::Original)));
        assert_eq!((ask(&candidate), whose.get()), (2, Some(Side::Candidate)));
        assert_eq!((candidate.vocab(), candidate.context(), candidate.device()), (3, 8, "cpu".to_owned()));
    }
}
