//! Scored tokens of a text on disk, so that a text whose scoring was interrupted goes on where it was.
//!
//! Windows are read in runs, the same ones every time; when a run is finished, a few numbers of each of its
//! tokens are appended. Taken in again in their order they give the same figures to the last bit, percentiles
//! among them, which sums alone would not. A run is one record: its number, its tokens, their numbers and the
//! BLAKE3 of all that; what a crash cut off or a disk spoiled is read once more from the models.

use std::fs::File;
use std::io::{BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// What the file begins with, before the numbers of a token.
const MAGIC: [u8; 8] = *b"LAPTEXT1";
/// Bytes of the hash behind a record.
const HASH: usize = 32;

/// Finished runs of a text, `N` numbers a token.
pub(super) struct TextJournal<const N: usize> {
    file: File,
    path: PathBuf,
    /// Runs that are finished.
    runs: usize,
}

impl<const N: usize> TextJournal<N> {
    /// Opens a journal of runs with so many `tokens` each and gives all that is finished to `take`, in order.
    pub fn open(path: &Path, tokens: &[usize], take: &mut dyn FnMut(&[f64; N])) -> Result<Self> {
        let failed = || Error::io("write", path);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        }
        let file = std::fs::OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
        let mut file = file.map_err(failed())?;
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&(N as u64).to_le_bytes());
        let (mut runs, mut good) = (0, 0);
        {
            let mut reader = BufReader::new(&mut file);
            let mut begins = vec![0; header.len()];
            if reader.read_exact(&mut begins).is_ok() && begins == header {
                good = header.len() as u64;
                while let Some(payload) = tokens.get(runs).and_then(|&count| read_run::<N>(&mut reader, runs, count)) {
                    payload.chunks_exact(8 * N).for_each(|token| take(&numbers(token)));
                    runs += 1;
                    good += (16 + payload.len() + HASH) as u64;
                }
            }
        }
        file.set_len(good).map_err(failed())?;
        file.seek(SeekFrom::Start(good)).map_err(failed())?;
        if good == 0 {
            file.write_all(&header).map_err(failed())?;
        }
        Ok(Self { file, path: path.to_owned(), runs })
    }

    /// Runs that are finished.
    pub fn runs(&self) -> usize {
        self.runs
    }

    /// Appends a finished run, down to the disk.
    pub fn keep(&mut self, tokens: &[[f64; N]]) -> Result<()> {
        let mut record = Vec::with_capacity(16 + tokens.len() * 8 * N + HASH);
        record.extend_from_slice(&(self.runs as u64).to_le_bytes());
        record.extend_from_slice(&(tokens.len() as u64).to_le_bytes());
        tokens.iter().flatten().for_each(|number| record.extend_from_slice(&number.to_le_bytes()));
        let hash = blake3::hash(&record);
        record.extend_from_slice(hash.as_bytes());
        let written = self.file.write_all(&record).and_then(|()| self.file.sync_data());
        written.map_err(Error::io("write", &self.path))?;
        self.runs += 1;
        Ok(())
    }
}

/// The numbers of the tokens of a run as bytes; `None` where it is not there whole.
fn read_run<const N: usize>(reader: &mut impl std::io::Read, run: usize, count: usize) -> Option<Vec<u8>> {
    let mut record = vec![0; 16];
    reader.read_exact(&mut record).ok()?;
    let expected = [(run as u64).to_le_bytes(), (count as u64).to_le_bytes()].concat();
    if record != expected {
        return None;
    }
    record.resize(16 + count * 8 * N, 0);
    reader.read_exact(&mut record[16..]).ok()?;
    let mut hash = [0; HASH];
    reader.read_exact(&mut hash).ok()?;
    (blake3::hash(&record) == hash).then(|| record.split_off(16))
}

fn numbers<const N: usize>(bytes: &[u8]) -> [f64; N] {
    let mut numbers = [0.0; N];
    for (number, bytes) in numbers.iter_mut().zip(bytes.chunks_exact(8)) {
        let mut eight = [0; 8];
        eight.copy_from_slice(bytes);
        *number = f64::from_le_bytes(eight);
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Asked, FakeCodec, FakeModel, Hooked};
    use super::super::text::{ScoredText, TextOptions, TextSource};
    use super::super::top_k::{KeptBaseline, KeptOptions};
    use super::super::{BATCH_TOKENS, TextResult, TokenModel};
    use super::*;
    use crate::progress::Progress;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A model that counts its batches in `read` and stops after `most`.
    fn stopping(read: &AtomicUsize, most: usize) -> Hooked<impl Fn(Asked<'_>) -> Result<()> + Sync> {
        Hooked::new(FakeModel { noise: 1.0, ..FakeModel::default() }, move |asked| match asked {
            Asked::Hidden(_) if read.fetch_add(1, Ordering::Relaxed) >= most => Err(Error::Cancelled),
            _ => Ok(()),
        })
    }

    /// Scores a text with a model, keeping finished runs in a file where one is named.
    type Scoring<'a> = dyn Fn(&dyn TokenModel, Option<&Path>, &Progress) -> Result<TextResult> + 'a;

    /// Stops a scoring after two runs, goes on, and asks a third time for what is all there.
    fn interrupted(score: &Scoring<'_>, path: &Path) {
        let read = AtomicUsize::new(0);
        let expected = score(&stopping(&read, usize::MAX), None, &Progress::default()).expect("scores");
        let runs = read.swap(0, Ordering::Relaxed);
        assert!(runs >= 4, "{runs}");
        let stopped = score(&stopping(&read, 2), Some(path), &Progress::default());
        assert!(stopped.is_err_and(|err| err.is_cancelled()));
        read.store(0, Ordering::Relaxed);
        let progress = Progress::default();
        assert_eq!(score(&stopping(&read, usize::MAX), Some(path), &progress).expect("the rest"), expected);
        assert_eq!(read.swap(0, Ordering::Relaxed), runs - 2);
        let snapshot = progress.snapshot();
        assert!(snapshot.resumed > 0 && snapshot.done == snapshot.total && snapshot.running.is_some());
        let again = score(&stopping(&read, 0), Some(path), &Progress::default()).expect("nothing to do");
        assert_eq!(again, expected);
    }

    #[test]
    fn an_interrupted_text_goes_on_and_has_the_same_figures_to_the_last_bit() {
        let folder = tempfile::tempdir().expect("folder");
        let letters: String = (0..5 * BATCH_TOKENS).map(|i| char::from(b'c' + (i * i % 23) as u8)).collect();
        let source = TextSource::new("text", letters);
        let codec = FakeCodec::default();
        let text = ScoredText::new(&codec, &source, 64, FakeCodec::VOCAB, &TextOptions::default()).expect("windows");
        let base = FakeModel::default();
        interrupted(
            &|model, path, progress| text.score_on(model, path, progress).map(|(result, _)| result),
            &folder.path().join("alone"),
        );
        interrupted(
            &|model, path, progress| text.score_pair_on(&base, model, path, progress).map(|(_, own)| own),
            &folder.path().join("pair"),
        );
        let options = KeptOptions { folder: folder.path().to_owned(), k: 8 };
        let kept = || KeptBaseline::open_or_make(&text, &base, "base", "hash", &options, &Progress::default());
        interrupted(
            &|model, path, progress| text.score_kept(&mut kept()?, model, path, progress).map(|(_, own)| own),
            &folder.path().join("kept"),
        );
    }

    fn open(path: &Path) -> (TextJournal<2>, Vec<[f64; 2]>) {
        let mut seen = Vec::new();
        let journal = TextJournal::open(path, &[2, 1, 3], &mut |token| seen.push(*token)).expect("journal");
        (journal, seen)
    }

    #[test]
    fn finished_runs_come_back_and_spoiled_ones_do_not() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("inner").join("text");
        let (first, second) = ([[0.1, -2.0], [f64::MIN_POSITIVE, 3.0]], [[0.5, 0.25]]);
        let (mut journal, seen) = open(&path);
        assert_eq!((journal.runs(), seen.len()), (0, 0));
        journal.keep(&first).expect("kept");
        journal.keep(&second).expect("kept");
        drop(journal);
        let (journal, seen) = open(&path);
        assert_eq!((journal.runs(), seen), (2, [&first[..], &second[..]].concat()));
        drop(journal);
        // A flipped bit in the last run, then a cut: each time the first one stays.
        let whole = std::fs::read(&path).expect("bytes");
        let mut spoiled = whole.clone();
        let last = spoiled.len() - 40;
        spoiled[last] ^= 1;
        for bytes in [&spoiled[..], &whole[..whole.len() - 1]] {
            std::fs::write(&path, bytes).expect("write");
            let (mut journal, seen) = open(&path);
            assert_eq!((journal.runs(), seen), (1, first.to_vec()));
            journal.keep(&second).expect("kept");
            drop(journal);
            assert_eq!(std::fs::read(&path).expect("bytes"), whole);
        }
        // Numbers of another kind are none of ours.
        let other = TextJournal::<1>::open(&path, &[2, 1, 3], &mut |_| panic!("nothing fits")).expect("journal");
        assert_eq!(other.runs(), 0);
    }
}
