//! Finished items on disk, so that an evaluation that was interrupted goes on where it was.
//!
//! One result a line in a file that is called after the evaluation's key: another model, other tasks or options
//! have another key and so another file. A last line that was cut off by a crash is left out. The same file is
//! where the texts of finished items are read from ([`Items`]); without a folder they are in a temporary one.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::scoring::items::{Place, hash_of, read_lines};
use crate::scoring::lots::{Lot, rarest_counts, score_remaining};
use crate::scoring::{ItemResult, ItemWriter, Items, TaskSet, TextCodec, TokenModel};

/// A file of a folder that is called after a key.
pub(super) fn path_of(folder: &Path, key: &str, ending: &str) -> PathBuf {
    folder.join(format!("{}.{ending}", key.get(..32).unwrap_or(key)))
}

/// Items with what scoring those that were not finished before took.
#[derive(Debug)]
pub(super) struct Scored {
    pub items: Items,
    /// Tokens read and written for them.
    pub tokens: u64,
    /// Right answers among them.
    pub correct: u64,
}

/// The journal's file while items are added to it.
struct Journal {
    path: PathBuf,
    file: File,
    end: u64,
}

impl Journal {
    /// Opens a journal, takes in what was finished before and cuts off what is not whole.
    fn open(path: PathBuf, tasks: &TaskSet, writer: &mut ItemWriter) -> Result<Self> {
        let places =
            if std::fs::metadata(&path).is_ok_and(|file| file.len() > 0) { places(tasks)? } else { HashMap::new() };
        let end = read_lines(&path, &mut |item, place| {
            if let Some(&index) = places.get(&hash_of(&item.id)) {
                writer.put(index as usize, &item, place);
            }
        })?;
        let failed = || Error::io("write", &path);
        let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(failed())?;
        file.set_len(end).map_err(failed())?;
        Ok(Self { path, file, end })
    }

    /// Writes a lot's lines, as a whole and down to the disk.
    fn keep(&mut self, indices: &[usize], scored: &[ItemResult], writer: &mut ItemWriter) -> Result<()> {
        let failed = || Error::io("write", &self.path);
        let mut text = Vec::new();
        for (&index, item) in indices.iter().zip(scored) {
            let start = text.len();
            serde_json::to_writer(&mut text, item).map_err(|err| failed()(err.into()))?;
            let place = Place { offset: self.end + start as u64, length: (text.len() - start) as u32 };
            writer.put(index, item, place);
            text.push(b'\n');
        }
        let at_end = self.file.seek(SeekFrom::Start(self.end));
        at_end.and_then(|_| self.file.write_all(&text)).and_then(|()| self.file.sync_data()).map_err(failed())?;
        self.end += text.len() as u64;
        Ok(())
    }
}

/// The items' places by the hashes of their ids.
fn places(tasks: &TaskSet) -> Result<HashMap<[u8; 16], u32>> {
    let mut places = HashMap::with_capacity(tasks.items.len());
    for (item, index) in tasks.items.iter().zip(0..) {
        places.insert(hash_of(&item?.id), index);
    }
    Ok(places)
}

/// Scores items, keeping them in `folder` as they come; without a folder nothing is kept for another run.
///
/// Memory holds a few numbers of each item and the texts of one lot.
pub(super) fn score(
    model: &dyn TokenModel,
    codec: &dyn TextCodec,
    tasks: &TaskSet,
    journal: Option<(&Path, &str)>,
    progress: &Progress,
) -> Result<Scored> {
    let count = tasks.items.len();
    let mut writer = ItemWriter::with_capacity(count);
    let mut journal = match journal {
        Some((folder, key)) => {
            std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
            Some(Journal::open(path_of(folder, key, "items.jsonl"), tasks, &mut writer)?)
        }
        None => None,
    };
    let lot = if journal.is_some() { Lot::KEPT } else { Lot::HELD };
    let done: Vec<Option<f64>> = (0..count).map(|index| writer.score(index)).collect();
    let (mut tokens, mut correct) = (0, 0);
    let mut keep = |indices: &[usize], scored: Vec<ItemResult>| -> Result<()> {
        for item in &scored {
            tokens += u64::from(item.prompt_tokens) + item.token_ids.len() as u64;
            correct += u64::from(item.correct);
        }
        match &mut journal {
            Some(journal) => journal.keep(indices, &scored, &mut writer),
            None => indices.iter().zip(&scored).try_for_each(|(&index, item)| writer.store(index, item)),
        }
    };
    score_remaining(model, codec, tasks, &done, lot, &mut keep, progress)?;
    writer.set_rarest(&rarest_counts(model, codec, tasks, progress)?);
    let items = match &journal {
        Some(journal) => writer.finish_in(&journal.path)?,
        None => writer.finish()?,
    };
    Ok(Scored { items, tokens, correct })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scoring::fake::{Asked, FakeCodec, FakeModel, Hooked};
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A model that counts its tokens in `read` and fails after `most`.
    fn failing(read: &AtomicUsize, most: usize) -> Hooked<impl Fn(Asked<'_>) -> Result<()> + Sync> {
        Hooked::new(FakeModel::default(), move |asked| match asked {
            Asked::Hidden(batch) if read.fetch_add(batch.ids.len(), Ordering::Relaxed) > most => Err(Error::Cancelled),
            _ => Ok(()),
        })
    }

    #[test]
    fn an_interrupted_evaluation_goes_on_and_repeats_nothing() {
        let lines: Vec<String> = (0..1000)
            .map(|i| format!(r#"{{"id":"{i}","task":"t","slice":"s","type":"multiple_choice","prompt":"prompt {i}","choices":["x","y"],"answer":0}}"#))
            .collect();
        let tasks = TaskSet::parse(lines.join("\n").as_bytes(), Path::new("t")).expect("tasks");
        let codec = FakeCodec::default();
        let folder = tempfile::tempdir().expect("folder");
        let journal = Some((folder.path(), "0123456789abcdef0123456789abcdef"));
        let read = AtomicUsize::new(0);
        let whole = failing(&read, usize::MAX);
        let expected = score(&whole, &codec, &tasks, None, &Progress::default()).expect("scores").items;
        let all = read.swap(0, Ordering::Relaxed);
        let stopped = score(&failing(&read, all / 2), &codec, &tasks, journal, &Progress::default());
        assert!(stopped.is_err_and(|err| err.is_cancelled()));
        let path = path_of(folder.path(), "0123456789abcdef0123456789abcdef", "items.jsonl");
        let lines = || std::fs::read_to_string(&path).expect("journal").lines().count();
        let kept = lines();
        assert!((256..1000).contains(&kept), "{kept}");
        // A line cut off by a crash is scored again.
        let mut bytes = std::fs::read(&path).expect("read");
        bytes.truncate(bytes.len() - 5);
        std::fs::write(&path, &bytes).expect("write");
        read.store(0, Ordering::Relaxed);
        let progress = Progress::default();
        let resumed = score(&whole, &codec, &tasks, journal, &progress).expect("scores");
        assert_eq!(resumed.items, expected);
        assert_eq!(lines(), 1000);
        assert_eq!(progress.snapshot().done, 1000);
        assert!(read.swap(1, Ordering::Relaxed) < all * (1001 - kept) / 1000 + 100);
        let again = score(&failing(&read, 0), &codec, &tasks, journal, &Progress::default()).expect("nothing to do");
        assert_eq!((lines(), again.tokens, again.correct), (1000, 0, 0));
        assert_eq!(again.items, expected);
    }
}
