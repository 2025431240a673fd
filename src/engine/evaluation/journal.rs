//! Finished items on disk, so that an evaluation that was interrupted goes on where it was.
//!
//! One result a line in a file that is called after the evaluation's key: another model, other tasks or options
//! have another key and so another file. A last line that was cut off by a crash is left out.

use std::collections::HashSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::scoring::tasks::score_remaining;
use crate::scoring::{ItemResult, TaskSet, TextCodec, TokenModel, score_tasks};

/// Items that are scored between two writes: seconds of work, and enough to pack batches well.
const AT_ONCE: usize = 256;

fn path_of(folder: &Path, key: &str) -> PathBuf {
    folder.join(format!("{}.items.jsonl", key.get(..32).unwrap_or(key)))
}

/// What was finished before, and how many bytes of the file that is.
fn read(path: &Path) -> Result<(Vec<ItemResult>, u64)> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(err) => return Err(Error::io("read", path)(err)),
    };
    let (mut items, mut good) = (Vec::new(), 0);
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        let whole = line.ends_with(b"\n").then(|| serde_json::from_slice::<ItemResult>(line).ok()).flatten();
        let Some(item) = whole else { break };
        items.push(item);
        good += line.len() as u64;
    }
    Ok((items, good))
}

/// Items with those among them that were finished in an earlier run.
pub(super) struct Kept {
    pub items: Vec<ItemResult>,
    pub from_before: HashSet<String>,
}

/// Scores items, keeping them in `folder` as they come; without a folder nothing is kept.
pub(super) fn score(
    model: &dyn TokenModel,
    codec: &dyn TextCodec,
    tasks: &TaskSet,
    journal: Option<(&Path, &str)>,
    progress: &Progress,
) -> Result<Kept> {
    let Some((folder, key)) = journal else {
        let items = score_tasks(model, codec, tasks, progress)?;
        return Ok(Kept { items, from_before: HashSet::new() });
    };
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let path = path_of(folder, key);
    let (done, good) = read(&path)?;
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(Error::io("write", &path))?;
    file.set_len(good).map_err(Error::io("write", &path))?;
    let mut keep = |items: &[ItemResult]| -> Result<()> {
        let mut text = Vec::new();
        for item in items {
            serde_json::to_writer(&mut text, item).map_err(|err| Error::io("write", &path)(err.into()))?;
            text.push(b'\n');
        }
        let end = std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0));
        end.and_then(|_| file.write_all(&text)).and_then(|()| file.sync_data()).map_err(Error::io("write", &path))
    };
    let items = score_remaining(model, codec, tasks, &done, AT_ONCE, &mut keep, progress)?;
    Ok(Kept { items, from_before: done.into_iter().map(|item| item.id).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Batch, KvCache};
    use crate::scoring::fake::{FakeCodec, FakeModel};
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Counts its tokens and fails after some.
    struct Failing {
        inner: FakeModel,
        read: AtomicUsize,
        most: usize,
    }

    impl TokenModel for Failing {
        fn vocab(&self) -> usize {
            self.inner.vocab()
        }

        fn width(&self) -> usize {
            self.inner.width()
        }

        fn context(&self) -> usize {
            self.inner.context()
        }

        fn hidden(&self, batch: &Batch, caches: &mut [KvCache], progress: &Progress) -> Result<Vec<f32>> {
            if self.read.fetch_add(batch.ids.len(), Ordering::Relaxed) > self.most {
                return Err(Error::Cancelled);
            }
            self.inner.hidden(batch, caches, progress)
        }

        fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>> {
            self.inner.logits(hidden)
        }
    }

    fn model(most: usize) -> Failing {
        Failing { inner: FakeModel::default(), read: AtomicUsize::new(0), most }
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
        let whole = model(usize::MAX);
        let expected = score(&whole, &codec, &tasks, None, &Progress::default()).expect("scores").items;
        let all = whole.read.load(Ordering::Relaxed);
        assert!(
            score(&model(all / 2), &codec, &tasks, journal, &Progress::default()).is_err_and(|err| err.is_cancelled())
        );
        let path = path_of(folder.path(), "0123456789abcdef0123456789abcdef");
        let kept = read(&path).expect("journal").0.len();
        assert!((256..1000).contains(&kept), "{kept}");
        // A line cut off by a crash is scored again.
        let mut bytes = std::fs::read(&path).expect("read");
        bytes.truncate(bytes.len() - 5);
        std::fs::write(&path, &bytes).expect("write");
        let rest = model(usize::MAX);
        let progress = Progress::default();
        let resumed = score(&rest, &codec, &tasks, journal, &progress).expect("scores");
        assert_eq!(resumed.items, expected);
        assert_eq!(resumed.from_before.len(), kept - 1);
        assert_eq!(progress.snapshot().done, 1000);
        assert!(rest.read.load(Ordering::Relaxed) < all * (1001 - kept) / 1000 + 100);
        let nothing = model(0);
        nothing.read.store(1, Ordering::Relaxed);
        let again = score(&nothing, &codec, &tasks, journal, &Progress::default()).expect("nothing to do");
        assert_eq!((again.items, again.from_before.len()), (expected, 1000));
    }
}
