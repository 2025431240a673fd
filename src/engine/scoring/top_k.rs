//! A baseline's predictions on a text, kept as the most probable tokens and the mass of the others, so that a
//! second candidate can be measured without running the baseline again.
//!
//! Of every scored token the file has the baseline's `k` most probable tokens with their log-probabilities, the
//! true token's −ln p, the probability of all other tokens together (the tail) and their Σ p ln p: 8 k + 24 bytes.
//! With the default of 64 that is 536 bytes, under a four-hundredth of a vocabulary of 128,256 in 16 bits, and
//! the tail of a language model's usual prediction is some hundredths.
//!
//! What follows from it is exact for perplexity, Δp, the most probable token and the confidence. Distances take
//! the tail for one token: by the log-sum inequality the KLD is then never larger than the exact one,
//! and so is the reverse KLD, while the overlap is never smaller. How much is missing is bounded, and shown, by what
//! the candidate's least probable token of the tail would make of it:
//! KLD ≤ Σ_top p ln(p/q) + Σ_tail p ln p − t ln(min_tail q). With k = vocabulary there is no tail and nothing missing.
//!
//! A file is called after the hash of what it is of: the model, the text, the convention, the windows and k.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::softmax::{RowSum, TokenDistance};
use super::text::{Convention, Scored, ScoredText};
use super::{TokenModel, not_finite};
use crate::error::{Error, Fault, Result, Stage};
use crate::progress::Progress;

/// Tokens that are kept where nobody says how many; the module says why.
pub const DEFAULT_K: usize = 64;

const MAGIC: [u8; 8] = *b"LAPTOPK1";
/// Longest description at the file's beginning.
const MAX_HEADER: usize = 64 << 10;
/// Bytes of the hash at the file's end.
const HASH: u64 = 32;
/// Numbers of a token besides its most probable ones.
const OTHERS: usize = 3;
/// A tail that rounding took away has this much.
const LEAST: f64 = 1e-38;

/// Where predictions of baselines are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptOptions {
    /// Folder of the files.
    pub folder: PathBuf,
    /// Most probable tokens of every position; no more than the vocabulary.
    pub k: usize,
}

/// What a file is of; its hash is the file's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    engine: String,
    model: String,
    text: String,
    convention: Convention,
    context: usize,
    /// BLAKE3 of the tokens of all windows, and of which are scored.
    windows: String,
    tokens: usize,
    vocab: usize,
    k: usize,
    device: String,
}

impl Header {
    fn of(text: &ScoredText, model: &dyn TokenModel, model_id: &str, text_hash: &str, k: usize) -> Self {
        let mut hasher = blake3::Hasher::new();
        for window in &text.windows {
            hasher.update(&(window.ids.len() as u64).to_le_bytes());
            hasher.update(&(window.scored_from as u64).to_le_bytes());
            window.ids.iter().for_each(|id| {
                hasher.update(&id.to_le_bytes());
            });
        }
        let vocab = model.vocab();
        Self {
            engine: env!("CARGO_PKG_VERSION").to_owned(),
            model: model_id.to_owned(),
            text: text_hash.to_owned(),
            convention: text.convention,
            context: text.context,
            windows: hasher.finalize().to_hex().to_string(),
            tokens: text.scored_tokens(),
            vocab,
            k: k.clamp(1, vocab.max(1)),
            device: model.device(),
        }
    }

    fn json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self)
            .map_err(|err| Fault::new(Stage::Evaluation, format!("the kept predictions have no name: {err}")).into())
    }

    fn token_bytes(&self) -> usize {
        8 * self.k + 8 * OTHERS
    }
}

/// What is kept of one position.
#[derive(Clone, Debug, PartialEq)]
struct Kept {
    /// Tokens, the most probable first, the lowest id among equals.
    ids: Vec<u32>,
    log_probs: Vec<f32>,
    /// −ln p of the true token.
    nll: f64,
    tail_mass: f64,
    /// Σ p ln p of the tail.
    tail_p_ln_p: f64,
}

impl Kept {
    fn of(row: &[f32], target: u32, k: usize) -> Option<Self> {
        let sum = RowSum::of(row)?;
        let order = |&a: &u32, &b: &u32| {
            let (left, right) = (row[a as usize], row[b as usize]);
            right.partial_cmp(&left).unwrap_or(std::cmp::Ordering::Equal).then(a.cmp(&b))
        };
        let mut ids: Vec<u32> = (0..row.len() as u32).collect();
        let (mut tail_mass, mut tail_p_ln_p) = (0.0, 0.0);
        if k < ids.len() {
            ids.select_nth_unstable_by(k - 1, order);
            for &id in &ids[k..] {
                let log_p = sum.log_prob(row[id as usize]);
                tail_mass += log_p.exp();
                tail_p_ln_p += log_p.exp() * log_p;
            }
            ids.truncate(k);
        }
        ids.sort_unstable_by(order);
        let log_probs = ids.iter().map(|&id| sum.log_prob(row[id as usize]) as f32).collect();
        let nll = -sum.log_prob(*row.get(target as usize)?);
        Some(Self { ids, log_probs, nll, tail_mass, tail_p_ln_p })
    }

    fn write(&self, out: &mut Vec<u8>) {
        self.ids.iter().for_each(|id| out.extend_from_slice(&id.to_le_bytes()));
        self.log_probs.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
        for number in [self.nll, self.tail_mass, self.tail_p_ln_p] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }

    fn read(bytes: &[u8], k: usize) -> Self {
        let four = |index: usize| {
            let mut four = [0; 4];
            four.copy_from_slice(&bytes[4 * index..4 * index + 4]);
            four
        };
        let number = |index: usize| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&bytes[8 * k + 8 * index..8 * k + 8 * index + 8]);
            f64::from_le_bytes(eight)
        };
        Self {
            ids: (0..k).map(|index| u32::from_le_bytes(four(index))).collect(),
            log_probs: (k..2 * k).map(|index| f32::from_le_bytes(four(index))).collect(),
            nll: number(0),
            tail_mass: number(1),
            tail_p_ln_p: number(2),
        }
    }

    /// The candidate's distance from what is kept, and what the tail may hide of the KLD.
    fn distance(&self, row: &[f32], target: u32) -> Option<KeptDistance> {
        let sum = RowSum::of(row)?;
        let log_q = sum.log_prob(*row.get(target as usize)?);
        let (mut kld, mut reverse_kld, mut overlap) = (0.0, 0.0, 0.0);
        for (&id, &log_p) in self.ids.iter().zip(&self.log_probs) {
            let (log_p, log_q) = (f64::from(log_p), sum.log_prob(*row.get(id as usize)?));
            let (p, q) = (log_p.exp(), log_q.exp());
            kld += p * (log_p - log_q);
            reverse_kld += q * (log_q - log_p);
            overlap += p.min(q);
        }
        let mut hidden = 0.0;
        if self.ids.len() < row.len() {
            let mut others = row.to_vec();
            self.ids.iter().for_each(|&id| others[id as usize] = f32::INFINITY);
            let (mut mass, mut least) = (0.0_f64, f32::INFINITY);
            for &logit in others.iter().filter(|logit| logit.is_finite()) {
                mass += f64::from((logit - sum.max).exp());
                least = least.min(logit);
            }
            let (p, q) = (self.tail_mass.max(LEAST), (mass / sum.sum).max(LEAST));
            let as_one = p * (p.ln() - q.ln());
            hidden = (self.tail_p_ln_p - p * sum.log_prob(least) - as_one).max(0.0);
            kld += as_one;
            reverse_kld += q * (q.ln() - p.ln());
            overlap += p.min(q);
        }
        let distance = TokenDistance {
            baseline_nll: self.nll,
            nll: -log_q,
            kld: kld.max(0.0),
            same_top: self.ids.first() == Some(&sum.top),
            delta_p: log_q.exp() - (-self.nll).exp(),
            reverse_kld: reverse_kld.max(0.0),
            overlap: overlap.min(1.0),
            confidence: f64::from(*self.log_probs.first()?).exp(),
        };
        Some(KeptDistance { distance, tail_mass: self.tail_mass, hidden })
    }
}

/// A distance from kept predictions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct KeptDistance {
    pub distance: TokenDistance,
    pub tail_mass: f64,
    /// The exact KLD is larger by no more than this.
    pub hidden: f64,
}

/// What a KLD from kept predictions says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeptFrom {
    /// Most probable tokens that were kept of every position.
    pub k: usize,
    /// Mean probability of all others.
    pub tail_mass_mean: f64,
    /// The exact mean KLD is at least the one that is given, and at most this.
    pub kld_mean_at_most: f64,
}

/// Kept predictions of a baseline on a text.
#[derive(Debug)]
pub struct KeptBaseline {
    header: Header,
    file: File,
    path: PathBuf,
    /// Where the first token begins.
    start: u64,
}

impl KeptBaseline {
    /// Opens the predictions of a model on a text, or makes them with one reading of it by the model.
    ///
    /// # Errors
    /// Where the folder cannot be written or the model's logits are not finite. A file that was cut off or changed is
    /// made anew.
    pub fn open_or_make(
        text: &ScoredText,
        model: &dyn TokenModel,
        model_id: &str,
        text_hash: &str,
        options: &KeptOptions,
        progress: &Progress,
    ) -> Result<Self> {
        let header = Header::of(text, model, model_id, text_hash, options.k);
        let json = header.json()?;
        let name = blake3::hash(&json).to_hex();
        let path = options.folder.join(format!("{}.topk", &name[..32]));
        if let Some(kept) = Self::open(&path, &header, progress)? {
            return Ok(kept);
        }
        std::fs::create_dir_all(&options.folder).map_err(Error::io("create", &options.folder))?;
        write(&path, &json, header.k, text, model, progress)?;
        Self::open(&path, &header, progress)?
            .ok_or_else(|| Fault::new(Stage::Evaluation, "what was written was not read back").file(&path).into())
    }

    /// Opens a file; `None` where there is none, or not this one whole.
    fn open(path: &Path, header: &Header, progress: &Progress) -> Result<Option<Self>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(err) => return Err(Error::io("read", path)(err)),
        };
        let failed = || Error::io("read", path);
        let length = file.metadata().map_err(failed())?.len();
        let json = header.json()?;
        let start = (MAGIC.len() + 4 + json.len()) as u64;
        let expected = start + header.tokens as u64 * header.token_bytes() as u64 + HASH;
        if length != expected || json.len() > MAX_HEADER {
            return Ok(None);
        }
        let (mut reader, mut hasher) = (BufReader::with_capacity(1 << 20, &file), blake3::Hasher::new());
        let mut begins = vec![0; start as usize];
        reader.read_exact(&mut begins).map_err(failed())?;
        if begins != beginning(&json) {
            return Ok(None);
        }
        hasher.update(&begins);
        let (mut left, mut bytes) = (expected - HASH - start, vec![0; 1 << 20]);
        while left > 0 {
            progress.check()?;
            let count = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            reader.read_exact(&mut bytes[..count]).map_err(failed())?;
            hasher.update(&bytes[..count]);
            left -= count as u64;
        }
        let mut hash = [0; HASH as usize];
        reader.read_exact(&mut hash).map_err(failed())?;
        drop(reader);
        let is_whole = hasher.finalize() == hash;
        Ok(is_whole.then(|| Self { header: header.clone(), file, path: path.to_owned(), start }))
    }

    /// Most probable tokens of every position.
    pub fn k(&self) -> usize {
        self.header.k
    }

    /// Token ids of the model.
    pub fn vocab(&self) -> usize {
        self.header.vocab
    }

    /// The candidate's distances at some scored rows, whose logits come first among `rows`.
    pub(super) fn distances(&mut self, rows: &Scored<'_>) -> Result<Vec<Option<KeptDistance>>> {
        let size = self.header.token_bytes();
        let mut bytes = vec![0; rows.targets.len() * size];
        let at = self.start + rows.first as u64 * size as u64;
        let read = self.file.seek(SeekFrom::Start(at)).and_then(|_| self.file.read_exact(&mut bytes));
        read.map_err(Error::io("read", &self.path))?;
        let k = self.header.k;
        let of_row = |((bytes, row), &target): ((&[u8], &[f32]), &u32)| Kept::read(bytes, k).distance(row, target);
        let logits = rows.logits[0].par_chunks_exact(rows.vocab);
        Ok(bytes.par_chunks_exact(size).zip(logits).zip(rows.targets).map(of_row).collect())
    }
}

fn beginning(json: &[u8]) -> Vec<u8> {
    [&MAGIC[..], &(json.len() as u32).to_le_bytes(), json].concat()
}

/// Reads the text once with the model; the file is there whole or not at all.
fn write(
    path: &Path,
    json: &[u8],
    k: usize,
    text: &ScoredText,
    model: &dyn TokenModel,
    progress: &Progress,
) -> Result<()> {
    let failed = || Error::io("write", path);
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = BufWriter::new(tempfile::NamedTempFile::new_in(folder).map_err(failed())?);
    let mut hasher = blake3::Hasher::new();
    let begins = beginning(json);
    hasher.update(&begins);
    file.write_all(&begins).map_err(failed())?;
    let mut keep = |rows: &Scored<'_>| -> Result<()> {
        let kept: Vec<Option<Kept>> = rows.logits[0]
            .par_chunks_exact(rows.vocab)
            .zip(rows.targets)
            .map(|(row, &target)| Kept::of(row, target, k))
            .collect();
        let mut bytes = Vec::new();
        for kept in kept {
            kept.ok_or_else(|| not_finite("a token of the text"))?.write(&mut bytes);
        }
        hasher.update(&bytes);
        file.write_all(&bytes).map_err(failed())
    };
    text.for_each_chunk(&[model], 0, progress, &mut keep, &mut |_| Ok(()))?;
    file.write_all(hasher.finalize().as_bytes()).map_err(failed())?;
    let file = file.into_inner().map_err(|err| failed()(err.into_error()))?;
    file.as_file().sync_all().map_err(failed())?;
    file.persist(path).map_err(|err| failed()(err.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::fake::{FakeCodec, FakeModel, Hooked};
    use super::super::text::{TextOptions, TextSource};
    use super::*;

    fn text() -> ScoredText {
        let source = TextSource::new("text", "the quick brown fox jumps over the lazy dog ".repeat(40));
        ScoredText::new(&FakeCodec::default(), &source, 64, FakeCodec::VOCAB, &TextOptions::default()).expect("windows")
    }

    fn make(folder: &Path, k: usize, model: &dyn TokenModel) -> Result<KeptBaseline> {
        let options = KeptOptions { folder: folder.to_owned(), k };
        KeptBaseline::open_or_make(&text(), model, "base", "hash", &options, &Progress::default())
    }

    #[test]
    fn what_is_kept_of_a_position_comes_back() {
        let row: Vec<f32> = (0..100_u16).map(|i| f32::from(i * 37 % 100) / 9.0).collect();
        let kept = Kept::of(&row, 5, 7).expect("finite");
        let mut bytes = Vec::new();
        kept.write(&mut bytes);
        assert_eq!(bytes.len(), 8 * 7 + 24);
        assert_eq!(Kept::read(&bytes, 7), kept);
        // The seven largest of 0 to 99: 99 stands where 37 i = 99 modulo 100, which is 27.
        assert_eq!(kept.ids[0], 27);
        let top: f64 = kept.log_probs.iter().map(|&log_p| f64::from(log_p).exp()).sum();
        assert!((top + kept.tail_mass - 1.0).abs() < 1e-6, "{top} {}", kept.tail_mass);
        assert!(Kept::of(&[0.0, f32::NAN], 0, 1).is_none());
    }

    #[test]
    fn the_whole_vocabulary_gives_the_exact_distances() {
        let folder = tempfile::tempdir().expect("folder");
        let (base, candidate) = (FakeModel::default(), FakeModel { noise: 1.0, ..FakeModel::default() });
        let (text, progress) = (text(), Progress::default());
        let (exact_base, exact) = text.score_pair(&base, &candidate, &progress).expect("pair");
        let mut kept = make(folder.path(), usize::MAX, &base).expect("kept");
        assert_eq!(kept.k(), FakeCodec::VOCAB);
        let (own_base, own) = text.score_kept(&mut kept, &candidate, None, &progress).expect("scores");
        assert!((own_base.nll_mean - exact_base.nll_mean).abs() < 1e-6);
        assert!((own.nll_mean - exact.nll_mean).abs() < 1e-6);
        let (own, exact) = (own.distance.expect("distance"), exact.distance.expect("distance"));
        assert!(exact.kld_mean > 0.01 && exact.kept.is_none());
        for (own, exact) in [
            (own.kld_mean, exact.kld_mean),
            (own.kld_max, exact.kld_max),
            (own.kld_p99, exact.kld_p99),
            (own.reverse_kld_mean, exact.reverse_kld_mean),
            (own.delta_p_rms, exact.delta_p_rms),
        ] {
            assert!((own - exact).abs() < 2e-6, "{own} {exact}");
        }
        assert!((own.acceptance_mean - exact.acceptance_mean).abs() < 1e-5);
        assert_eq!(own.same_top_fraction, exact.same_top_fraction);
        let from = own.kept.expect("kept");
        assert_eq!((from.k, from.tail_mass_mean, from.kld_mean_at_most), (FakeCodec::VOCAB, 0.0, own.kld_mean));
    }

    #[test]
    fn a_few_tokens_bound_the_distance_from_both_sides() {
        let folder = tempfile::tempdir().expect("folder");
        let (base, candidate) = (FakeModel::default(), FakeModel { noise: 1.0, ..FakeModel::default() });
        let (text, progress) = (text(), Progress::default());
        let exact = text.score_pair(&base, &candidate, &progress).expect("pair").1.distance.expect("distance");
        let mut before = 0.0;
        for k in [1, 16, 64] {
            let mut kept = make(folder.path(), k, &base).expect("kept");
            let own = text.score_kept(&mut kept, &candidate, None, &progress).expect("scores").1;
            let own = own.distance.expect("distance");
            let from = own.kept.expect("kept");
            assert!(own.kld_mean > before && own.kld_mean < exact.kld_mean, "{k}: {} {}", own.kld_mean, exact.kld_mean);
            assert!(from.kld_mean_at_most > exact.kld_mean && from.tail_mass_mean > 0.0, "{from:?}");
            assert!(own.reverse_kld_mean < exact.reverse_kld_mean && own.acceptance_mean > exact.acceptance_mean);
            // These need no tail.
            assert_eq!(own.same_top_fraction, exact.same_top_fraction);
            assert!((own.delta_p_mean - exact.delta_p_mean).abs() < 1e-6);
            assert!((own.perplexity_ratio - exact.perplexity_ratio).abs() < 1e-5);
            before = own.kld_mean;
        }
    }

    #[test]
    fn a_second_candidate_does_not_run_the_baseline_and_a_spoiled_file_is_made_anew() {
        let folder = tempfile::tempdir().expect("folder");
        let base = FakeModel::default();
        // A model that is there and must not be run.
        let unwilling = Hooked::new(base.clone(), |_| Err(Error::Cancelled));
        assert!(make(folder.path(), 8, &unwilling).is_err());
        drop(make(folder.path(), 8, &base).expect("made"));
        assert!(make(folder.path(), 8, &unwilling).is_ok());
        assert!(make(folder.path(), 9, &unwilling).is_err(), "another k is another file");
        let files = || std::fs::read_dir(folder.path()).expect("folder").flatten().collect::<Vec<_>>();
        assert_eq!(files().len(), 1);
        let path = files()[0].path();
        let whole = std::fs::read(&path).expect("bytes");
        let mut spoiled = whole.clone();
        spoiled[whole.len() / 2] ^= 1;
        for bytes in [&spoiled[..], &whole[..whole.len() - 1], &whole[..5]] {
            std::fs::write(&path, bytes).expect("write");
            assert!(make(folder.path(), 8, &unwilling).is_err());
        }
        drop(make(folder.path(), 8, &base).expect("made anew"));
        assert_eq!(std::fs::read(&path).expect("bytes"), whole);
    }
}
