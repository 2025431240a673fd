//! Perplexity of a text under a named convention, and the distance to a baseline on the same tokens.
//!
//! A figure of perplexity means nothing without its convention (the same model has four), so the
//! result carries it. Both models read the same batch one after the other, and of their logits
//! only a few numbers per token stay.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::distance::DistanceStats;
use super::multiple_choice::runs;
use super::rows::{gather, rows_at_once};
use super::sketch::Moments;
use super::softmax::{RowSum, TokenDistance, token_distance};
use super::text_journal::TextJournal;
use super::text_stats::TextResult;
use super::top_k::{KeptBaseline, KeptDistance, KeptFrom};
use super::{TextCodec, TokenModel, check_ids, not_finite};
use crate::error::{Error, Fault, Result, Stage};
use crate::model::Batch;
use crate::progress::{Figure, Phase, Progress, Unit};

/// Some scored rows of a text.
pub(super) struct Scored<'a> {
    /// Each model's logits, rows × vocabulary.
    pub logits: &'a [Vec<f32>],
    /// The rows' true tokens.
    pub targets: &'a [u32],
    /// Number of the first of them among all scored tokens.
    pub first: usize,
    pub vocab: usize,
}

/// Takes scored rows as they come, in the order of the text.
type Visit<'a> = dyn FnMut(&Scored<'_>) -> Result<()> + 'a;

/// Is told of every run whose rows are all scored, by its number.
type OnRun<'a> = dyn FnMut(usize) -> Result<()> + 'a;

/// Makes numbers of scored rows; `None` where logits are not finite.
type Compute<'a, const N: usize> = dyn FnMut(&Scored<'_>) -> Result<Vec<Option<[f64; N]>>> + 'a;

/// How tokens are scored, whatever the numbers of a token are.
struct Scoring<'a> {
    models: &'a [&'a dyn TokenModel],
    /// Where finished runs are kept.
    journal: Option<&'a Path>,
    /// The running figure and which of a token's numbers it is the mean of.
    figure: (Figure, usize),
}

/// Largest text file.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// How a text is cut into windows and which tokens count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Convention {
    /// Windows of `context` tokens that do not overlap, BOS in front of each; every token after BOS
    /// is scored. The incomplete window at the end is dropped unless it is the only one.
    #[default]
    #[serde(rename = "non_overlapping")]
    NonOverlapping,
    /// `llama-perplexity`: BOS in front of the text, windows that do not overlap, the first token of
    /// each replaced by BOS, only the second half of each scored (255 of 512), the rest dropped.
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
    /// Hugging Face's strided windows: BOS in front of the text, each window half a context further,
    /// its new tokens scored with at least half a context before them; nothing is dropped.
    #[serde(rename = "strided")]
    Strided,
}

impl Convention {
    /// Every convention, in the order of menus.
    pub const ALL: [Self; 3] = [Self::NonOverlapping, Self::LlamaCpp, Self::Strided];

    /// The name in files, on the command line and beside figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::NonOverlapping => "non_overlapping",
            Self::LlamaCpp => "llama.cpp",
            Self::Strided => "strided",
        }
    }

    /// The convention of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|convention| convention.name() == name)
    }

    /// The usual window for a model of this context: 512 for llama.cpp, else 2,048, never more than the model's.
    pub fn default_context(self, model_context: usize) -> usize {
        model_context.min(if self == Self::LlamaCpp { 512 } else { 2048 })
    }
}

/// A text to score.
#[derive(Clone, Debug)]
pub struct TextSource {
    /// Where it came from, or a name for it.
    pub path: PathBuf,
    /// BLAKE3 of the bytes, in hex.
    pub hash: String,
    /// The text.
    pub text: Arc<str>,
}

impl TextSource {
    /// A text from memory.
    pub fn new(path: impl Into<PathBuf>, text: impl Into<Arc<str>>) -> Self {
        let text = text.into();
        Self { path: path.into(), hash: blake3::hash(text.as_bytes()).to_hex().to_string(), text }
    }

    /// Reads a UTF-8 file.
    pub fn read(path: &Path) -> Result<Self> {
        let length = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
        if length > MAX_FILE_BYTES {
            return Err(Fault::new(
                Stage::Evaluation,
                format!("the text has {length} bytes, more than {MAX_FILE_BYTES}"),
            )
            .fix("use a part of it")
            .file(path)
            .into());
        }
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let text = String::from_utf8(bytes).map_err(|err| {
            let at = err.utf8_error().valid_up_to();
            Fault::new(Stage::Evaluation, "the text is not UTF-8")
                .at(format!("byte {at}"))
                .fix("save the file as UTF-8")
                .file(path)
        })?;
        Ok(Self::new(path, text))
    }
}

/// How a text is scored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextOptions {
    /// Windows and scored tokens.
    pub convention: Convention,
    /// Tokens of a window, BOS included; the convention's default if `None`.
    pub context: Option<usize>,
    /// Stops after the window that reaches this many scored tokens.
    pub max_tokens: Option<usize>,
}

/// One window: `ids[scored_from..]` are scored, each from the position before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    pub ids: Vec<u32>,
    pub scored_from: usize,
}

/// A text as tokens in windows, ready to be scored by any model with the same tokenizer.
#[derive(Clone, Debug)]
pub struct ScoredText {
    pub convention: Convention,
    /// Tokens of a window.
    pub context: usize,
    pub windows: Vec<Window>,
    /// Tokens of the whole text, BOS not counted.
    pub text_tokens: usize,
    /// Bytes of the whole text.
    pub text_bytes: usize,
}

/// Cuts the tokens of a text (without BOS) into windows.
pub fn windows(ids: &[u32], bos: Option<u32>, convention: Convention, context: usize) -> Vec<Window> {
    let with_bos = |ids: &[u32]| -> Vec<u32> { bos.into_iter().chain(ids.iter().copied()).collect() };
    match convention {
        Convention::NonOverlapping => {
            let step = context - usize::from(bos.is_some());
            if ids.len() < step {
                return vec![Window { ids: with_bos(ids), scored_from: 1 }];
            }
            ids.chunks_exact(step).map(|chunk| Window { ids: with_bos(chunk), scored_from: 1 }).collect()
        }
        Convention::LlamaCpp => with_bos(ids)
            .chunks_exact(context)
            .map(|chunk| {
                let mut ids = chunk.to_vec();
                if let Some(bos) = bos {
                    ids[0] = bos;
                }
                Window { ids, scored_from: context / 2 + 1 }
            })
            .collect(),
        Convention::Strided => {
            let all = with_bos(ids);
            let mut windows = Vec::new();
            let (mut begin, mut scored) = (0, 1);
            loop {
                let end = (begin + context).min(all.len());
                if scored < end {
                    windows.push(Window { ids: all[begin..end].to_vec(), scored_from: scored - begin });
                }
                if end == all.len() {
                    return windows;
                }
                scored = end;
                begin += context / 2;
            }
        }
    }
}

impl ScoredText {
    /// Encodes a text and cuts it for a model of `model_context` tokens and `vocab` token ids.
    pub fn new(
        codec: &dyn TextCodec,
        source: &TextSource,
        model_context: usize,
        vocab: usize,
        options: &TextOptions,
    ) -> Result<Self> {
        let convention = options.convention;
        let context = options.context.unwrap_or_else(|| convention.default_context(model_context));
        let least = if convention == Convention::LlamaCpp { 4 } else { 2 };
        if context < least || context > model_context {
            return Err(Fault::new(Stage::Evaluation, format!("a window of {context} tokens does not fit the model"))
                .fix(format!("choose {least} to {model_context} tokens"))
                .into());
        }
        let ids = codec.encode(&source.text)?;
        check_ids(&ids, vocab)?;
        let mut windows = windows(&ids, codec.bos(), convention, context);
        windows.retain(|window| window.scored_from < window.ids.len());
        if windows.is_empty() {
            return Err(Fault::new(
                Stage::Evaluation,
                format!("the text has {} tokens, too few for one window of {context}", ids.len()),
            )
            .fix("use a longer text or a shorter window")
            .file(&source.path)
            .into());
        }
        if let Some(most) = options.max_tokens {
            let mut scored = 0;
            let kept = windows
                .iter()
                .take_while(|window| {
                    let goes_on = scored < most;
                    scored += window.ids.len() - window.scored_from;
                    goes_on
                })
                .count();
            windows.truncate(kept.max(1));
        }
        Ok(Self { convention, context, windows, text_tokens: ids.len(), text_bytes: source.text.len() })
    }

    /// Tokens that are scored.
    pub fn scored_tokens(&self) -> usize {
        self.windows.iter().map(|window| window.ids.len() - window.scored_from).sum()
    }

    /// Perplexity of one model.
    pub fn score(&self, model: &dyn TokenModel, progress: &Progress) -> Result<TextResult> {
        self.score_on(model, None, progress).map(|(result, _)| result)
    }

    /// The same, going on where a `journal` ends; with the tokens that were read for it now.
    pub fn score_on(
        &self,
        model: &dyn TokenModel,
        journal: Option<&Path>,
        progress: &Progress,
    ) -> Result<(TextResult, usize)> {
        let mut nlls = Moments::default();
        let scoring = Scoring { models: &[model], journal, figure: (Figure::Perplexity, 0) };
        let mut compute = |rows: &Scored<'_>| -> Result<Vec<Option<[f64; 1]>>> {
            let rows = rows.logits[0].par_chunks_exact(rows.vocab).zip(rows.targets);
            Ok(rows.map(|(row, &target)| Some([-RowSum::of(row)?.log_prob(row[target as usize])])).collect())
        };
        let mut take = |[nll]: &[f64; 1], _: u32, _: u32| nlls.push(*nll);
        let read = self.score_tokens(&scoring, &mut compute, &mut take, progress)?;
        Ok((TextResult::new(self, &nlls, None), read))
    }

    /// How often each token occurs among those that are scored.
    fn token_counts(&self, vocab: usize) -> Vec<u32> {
        let mut counts = vec![0_u32; vocab];
        for window in &self.windows {
            for &id in &window.ids[window.scored_from..] {
                counts[id as usize] += 1;
            }
        }
        counts
    }

    /// Perplexity of both models, and the candidate's distance from the baseline.
    pub fn score_pair(
        &self,
        baseline: &dyn TokenModel,
        candidate: &dyn TokenModel,
        progress: &Progress,
    ) -> Result<(TextResult, TextResult)> {
        self.score_pair_on(baseline, candidate, None, progress)
    }

    /// The same, going on where a `journal` ends.
    pub fn score_pair_on(
        &self,
        baseline: &dyn TokenModel,
        candidate: &dyn TokenModel,
        journal: Option<&Path>,
        progress: &Progress,
    ) -> Result<(TextResult, TextResult)> {
        check_vocabularies(baseline.vocab(), candidate.vocab())?;
        let counts = self.token_counts(baseline.vocab());
        let mut distances = DistanceStats::new(self.context);
        let scoring = Scoring { models: &[baseline, candidate], journal, figure: (Figure::Kld, TokenDistance::KLD) };
        let mut compute = |rows: &Scored<'_>| -> Result<Vec<Option<[f64; TokenDistance::NUMBERS]>>> {
            let baseline = rows.logits[0].par_chunks_exact(rows.vocab);
            let rows = baseline.zip(rows.logits[1].par_chunks_exact(rows.vocab)).zip(rows.targets);
            let distance = |((baseline, candidate), &target): ((&[f32], &[f32]), &u32)| {
                token_distance(baseline, candidate, target).map(TokenDistance::numbers)
            };
            Ok(rows.map(distance).collect())
        };
        let mut take = |numbers: &[f64; TokenDistance::NUMBERS], target: u32, position: u32| {
            distances.push(&TokenDistance::of_numbers(numbers), position, counts[target as usize]);
        };
        self.score_tokens(&scoring, &mut compute, &mut take, progress)?;
        let nlls = distances.nlls();
        Ok((TextResult::new(self, &nlls.a, None), TextResult::new(self, &nlls.b, Some(distances.finish()))))
    }

    /// The same from kept predictions of the baseline, which is not run; [`super::top_k`] says what that changes.
    pub fn score_kept(
        &self,
        baseline: &mut KeptBaseline,
        candidate: &dyn TokenModel,
        journal: Option<&Path>,
        progress: &Progress,
    ) -> Result<(TextResult, TextResult)> {
        const ALL: usize = TokenDistance::NUMBERS + 2;
        check_vocabularies(baseline.vocab(), candidate.vocab())?;
        let (counts, k) = (self.token_counts(candidate.vocab()), baseline.k());
        let mut distances = DistanceStats::new(self.context);
        let (mut tail, mut hidden) = (Moments::default(), Moments::default());
        let scoring = Scoring { models: &[candidate], journal, figure: (Figure::Kld, TokenDistance::KLD) };
        let mut compute = |rows: &Scored<'_>| -> Result<Vec<Option<[f64; ALL]>>> {
            let numbers = |kept: KeptDistance| {
                let mut all = [0.0; ALL];
                all[..TokenDistance::NUMBERS].copy_from_slice(&kept.distance.numbers());
                all[TokenDistance::NUMBERS..].copy_from_slice(&[kept.tail_mass, kept.hidden]);
                all
            };
            Ok(baseline.distances(rows)?.into_iter().map(|kept| kept.map(numbers)).collect())
        };
        let mut take = |numbers: &[f64; ALL], target: u32, position: u32| {
            distances.push(&TokenDistance::of_numbers(numbers), position, counts[target as usize]);
            tail.push(numbers[TokenDistance::NUMBERS]);
            hidden.push(numbers[TokenDistance::NUMBERS + 1]);
        };
        self.score_tokens(&scoring, &mut compute, &mut take, progress)?;
        let nlls = distances.nlls();
        let mut distance = distances.finish();
        let kld_mean_at_most = distance.kld_mean + hidden.mean();
        distance.kept = Some(KeptFrom { k, tail_mass_mean: tail.mean(), kld_mean_at_most });
        Ok((TextResult::new(self, &nlls.a, None), TextResult::new(self, &nlls.b, Some(distance))))
    }

    /// Gives every scored token's numbers to `take` once, with the token and its position in the window: those of
    /// finished runs from the journal, the others as the models make them. Tells how many tokens were read now.
    fn score_tokens<const N: usize>(
        &self,
        scoring: &Scoring<'_>,
        compute: &mut Compute<'_, N>,
        take: &mut dyn FnMut(&[f64; N], u32, u32),
        progress: &Progress,
    ) -> Result<usize> {
        let (figure, number) = scoring.figure;
        let scored = |window: &Window| window.ids.len() - window.scored_from;
        let tokens: Vec<usize> =
            self.runs().into_iter().map(|run| self.windows[run].iter().map(scored).sum()).collect();
        let mut places = self.windows.iter().flat_map(|window| {
            (window.scored_from..window.ids.len()).map(|position| (window.ids[position], position as u32))
        });
        let mut take = |numbers: &[f64; N]| {
            if let Some((target, position)) = places.next() {
                take(numbers, target, position);
            }
        };
        let mut before = Vec::new();
        let mut journal = match scoring.journal {
            Some(path) => Some(TextJournal::open(path, &tokens, &mut |numbers| {
                before.push(numbers[number]);
                take(numbers);
            })?),
            None => None,
        };
        let finished = journal.as_ref().map_or(0, TextJournal::runs);
        let pending: RefCell<Vec<[f64; N]>> = RefCell::default();
        let mut visit = |rows: &Scored<'_>| -> Result<()> {
            progress.tally(figure, before.drain(..));
            let computed = compute(rows)?;
            progress.tally(figure, computed.iter().flatten().map(|numbers| numbers[number]));
            for numbers in computed {
                let numbers = numbers.ok_or_else(|| not_finite("a token of the text"))?;
                take(&numbers);
                pending.borrow_mut().push(numbers);
            }
            Ok(())
        };
        let mut on_run = |_: usize| -> Result<()> {
            let numbers = pending.take();
            journal.as_mut().map_or(Ok(()), |journal| journal.keep(&numbers))
        };
        self.for_each_chunk(scoring.models, finished, progress, &mut visit, &mut on_run)
    }

    /// Windows that are read together, the same ones every time.
    fn runs(&self) -> Vec<std::ops::Range<usize>> {
        let costs: Vec<usize> = self.windows.iter().map(|window| window.ids.len()).collect();
        runs(&costs)
    }

    /// Runs models over the windows, the first `finished` runs left out, and hands out logits of the scored rows, a
    /// bounded number at a time. Tells how many tokens were read.
    pub(super) fn for_each_chunk(
        &self,
        models: &[&dyn TokenModel],
        finished: usize,
        progress: &Progress,
        visit: &mut Visit<'_>,
        on_run: &mut OnRun<'_>,
    ) -> Result<usize> {
        let tokens_of = |run: &std::ops::Range<usize>| -> usize {
            self.windows[run.clone()].iter().map(|window| window.ids.len()).sum()
        };
        let all = self.runs();
        let done: usize = all[..finished].iter().map(tokens_of).sum();
        let total: usize = all.iter().map(tokens_of).sum();
        progress.begin(Phase::ScoringText, total as u64, Unit::Tokens);
        progress.resume(done as u64);
        let mut first = self.windows[..all.get(finished).map_or(self.windows.len(), |run| run.start)]
            .iter()
            .map(|window| window.ids.len() - window.scored_from)
            .sum();
        for (number, run) in all.into_iter().enumerate().skip(finished) {
            let mut batch = Batch::default();
            let mut rows = Vec::new();
            let mut targets = Vec::new();
            for window in &self.windows[run] {
                let start = batch.ids.len();
                // The last token is predicted but never read.
                batch.push(&window.ids[..window.ids.len() - 1], None, None);
                rows.extend((window.scored_from..window.ids.len()).map(|position| start + position - 1));
                targets.extend_from_slice(&window.ids[window.scored_from..]);
            }
            let mut hidden = Vec::with_capacity(models.len());
            for model in models {
                progress.check()?;
                hidden.push(model.hidden(&batch, &mut [], progress)?);
            }
            let vocab = models[0].vocab();
            let at_once = rows_at_once(vocab * models.len());
            for (rows, targets) in rows.chunks(at_once).zip(targets.chunks(at_once)) {
                let mut logits = Vec::with_capacity(models.len());
                for (model, hidden) in models.iter().zip(&hidden) {
                    progress.check()?;
                    logits.push(model.logits(&gather(hidden, model.width(), rows.iter().copied()))?);
                }
                visit(&Scored { logits: &logits, targets, first, vocab })?;
                first += targets.len();
            }
            on_run(number)?;
            progress.advance(batch.ids.len() as u64 + batch.segments.len() as u64);
        }
        Ok(total - done)
    }
}

fn check_vocabularies(baseline: usize, candidate: usize) -> Result<()> {
    if baseline == candidate {
        return Ok(());
    }
    Err(Fault::new(Stage::Evaluation, format!("the baseline has {baseline} tokens, the candidate {candidate}"))
        .fix("evaluate them one by one and compare bits per byte")
        .into())
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Asked, FakeCodec, FakeModel, Hooked};
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn source(len: usize) -> TextSource {
        let text: String = (0..len).map(|i| char::from(b'c' + (i * i % 23) as u8)).collect();
        TextSource::new("text", text)
    }

    fn options(convention: Convention, context: usize) -> TextOptions {
        TextOptions { convention, context: Some(context), max_tokens: None }
    }

    /// A model of a million tokens that notes how many logits were asked for at once.
    fn watched(noise: f32, most: &AtomicUsize) -> Hooked<impl Fn(Asked<'_>) -> Result<()> + Sync> {
        Hooked::new(FakeModel { vocab: 1 << 20, noise, ..FakeModel::default() }, move |asked| {
            if let Asked::Logits(count) = asked {
                most.fetch_max(count, Ordering::Relaxed);
            }
            Ok(())
        })
    }

    #[test]
    fn logits_of_a_large_vocabulary_are_streamed_and_never_all_held() {
        let most = [AtomicUsize::new(0), AtomicUsize::new(0)];
        let (base, candidate) = (watched(0.0, &most[0]), watched(1.0, &most[1]));
        let options = options(Convention::NonOverlapping, 32);
        let text = ScoredText::new(&FakeCodec::default(), &source(70), 32, 1 << 20, &options).expect("windows");
        let (_, own) = text.score_pair(&base, &candidate, &Progress::default()).expect("scores");
        assert!(own.tokens >= 60 && own.distance.is_some());
        // 60 tokens of a million logits would be 240 MiB a model; both together hold at most 64 MiB.
        let held: usize = most.iter().map(|most| most.load(Ordering::Relaxed)).sum();
        assert!(held * 4 <= 64 << 20, "{held}");
    }

    /// ln p of every scored token, one by one.
    fn plain(model: &FakeModel, windows: &[Window]) -> Vec<f64> {
        windows
            .iter()
            .flat_map(|window| {
                (window.scored_from..window.ids.len()).map(|at| -model.log_prob(&window.ids[..at], window.ids[at]))
            })
            .collect()
    }

    #[test]
    fn non_overlapping_windows_start_with_bos_and_score_all_the_rest() {
        let ids: Vec<u32> = (10..20).collect();
        let cut = windows(&ids, Some(0), Convention::NonOverlapping, 5);
        assert_eq!(cut.len(), 2);
        assert_eq!(cut[1], Window { ids: vec![0, 14, 15, 16, 17], scored_from: 1 });
        let only = windows(&ids[..3], Some(0), Convention::NonOverlapping, 5);
        assert_eq!(only, vec![Window { ids: vec![0, 10, 11, 12], scored_from: 1 }]);
        let no_bos = windows(&ids, None, Convention::NonOverlapping, 5);
        assert_eq!(no_bos[1].ids, [15, 16, 17, 18, 19]);
    }

    #[test]
    fn llama_cpp_windows_score_255_of_512_after_a_bos_that_replaces_their_first_token() {
        let ids: Vec<u32> = (1..1500).collect();
        let cut = windows(&ids, Some(0), Convention::LlamaCpp, 512);
        assert_eq!(cut.len(), 2);
        assert_eq!(cut[0].ids[..3], [0, 1, 2]);
        assert_eq!(cut[1].ids[..3], [0, 513, 514]);
        assert_eq!(cut[0].ids.len() - cut[0].scored_from, 255);
    }

    proptest! {
        #[test]
        fn strided_windows_score_every_token_once(len in 1_usize..200, context in 2_usize..40) {
            let ids: Vec<u32> = (1..=len as u32).collect();
            let cut = windows(&ids, Some(0), Convention::Strided, context);
            let scored: Vec<u32> = cut.iter().flat_map(|window| window.ids[window.scored_from..].to_vec()).collect();
            prop_assert_eq!(scored, ids);
            for window in &cut[1..] {
                prop_assert!(window.scored_from >= context / 2 && window.ids.len() <= context);
            }
        }
    }

    #[test]
    fn packed_windows_score_as_each_token_alone() {
        let (model, codec) = (FakeModel::default(), FakeCodec::default());
        for convention in Convention::ALL {
            let text = ScoredText::new(&codec, &source(4000), 64, 132, &options(convention, 60)).expect("windows");
            let expected = plain(&model, &text.windows);
            let result = text.score(&model, &Progress::default()).expect("scores");
            let mean = expected.iter().sum::<f64>() / expected.len() as f64;
            assert_eq!(result.tokens, expected.len());
            assert!((result.nll_mean - mean).abs() < 1e-6, "{} {mean}", result.nll_mean);
            assert!((result.perplexity - mean.exp()).abs() < 1e-3);
        }
    }

    #[test]
    fn a_pair_gives_the_same_perplexities_as_each_alone_and_a_distance_between() {
        let (baseline, codec) = (FakeModel::default(), FakeCodec::default());
        let candidate = FakeModel { noise: 1.0, ..FakeModel::default() };
        let text = ScoredText::new(&codec, &source(3000), 64, 132, &TextOptions::default()).expect("windows");
        let progress = Progress::default();
        let (base, other) = text.score_pair(&baseline, &candidate, &progress).expect("pair");
        let snapshot = progress.snapshot();
        assert_eq!(snapshot.done, snapshot.total);
        let alone = text.score(&candidate, &progress).expect("alone");
        assert!((alone.nll_mean - other.nll_mean).abs() < 1e-7);
        assert!((text.score(&baseline, &progress).expect("alone").nll_mean - base.nll_mean).abs() < 1e-7);
        let distance = other.distance.expect("distance");
        assert!(distance.kld_mean > 0.01 && distance.kld_mean < 0.2, "{}", distance.kld_mean);
        assert!((distance.perplexity_ratio - other.perplexity / base.perplexity).abs() < 1e-9);
        assert_eq!(distance.kld_histogram.counts.iter().sum::<u64>(), other.tokens as u64);
        let counted: u64 = distance.kld_by_token_count.iter().map(|bin| bin.tokens).sum();
        assert_eq!(counted, other.tokens as u64);
        assert!((distance.baseline_perplexity - base.perplexity).abs() < 1e-9);
        let (_, same) = text.score_pair(&baseline, &baseline, &progress).expect("pair");
        let none = same.distance.expect("distance");
        assert_eq!((none.kld_mean, none.kld_max, none.same_top_fraction), (0.0, 0.0, 1.0));
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        let (baseline, codec) = (FakeModel::default(), FakeCodec::default());
        let candidate = FakeModel { noise: 0.3, ..FakeModel::default() };
        let text = ScoredText::new(&codec, &source(3000), 64, 132, &TextOptions::default()).expect("windows");
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
            pool.install(|| text.score_pair(&baseline, &candidate, &Progress::default()).expect("pair").1)
        };
        assert_eq!(run(1), run(5));
    }

    #[test]
    fn fewer_tokens_can_be_asked_for_and_impossible_windows_are_refused() {
        let codec = FakeCodec::default();
        let mut asked = options(Convention::NonOverlapping, 11);
        asked.max_tokens = Some(25);
        let text = ScoredText::new(&codec, &source(1000), 64, 132, &asked).expect("windows");
        assert_eq!(text.scored_tokens(), 30);
        for (len, convention, context) in [
            (100, Convention::NonOverlapping, 65),
            (100, Convention::Strided, 1),
            (10, Convention::LlamaCpp, 60),
            (0, Convention::NonOverlapping, 20),
        ] {
            assert!(ScoredText::new(&codec, &source(len), 64, 132, &options(convention, context)).is_err());
        }
        assert!(ScoredText::new(&codec, &source(100), 64, 50, &TextOptions::default()).is_err());
    }

    #[test]
    fn a_cancelled_scoring_is_neither_success_nor_failure() {
        let text =
            ScoredText::new(&FakeCodec::default(), &source(100), 64, 132, &TextOptions::default()).expect("windows");
        let progress = Progress::default();
        progress.cancel();
        assert!(text.score(&FakeModel::default(), &progress).is_err_and(|err| err.is_cancelled()));
    }

    #[test]
    fn convention_names_are_those_of_the_command_line() {
        for convention in Convention::ALL {
            assert_eq!(Convention::from_name(convention.name()), Some(convention));
            assert_eq!(serde_json::to_value(convention).expect("json"), convention.name());
        }
    }
}
