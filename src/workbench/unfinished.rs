//! What an evaluation that was cut short has finished: its items are in a journal, and the next evaluation goes on there.
//!
//! The journal of an evaluation is called after its key, one finished item a line, see `engine::evaluation`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::Path;
use std::sync::Arc;

use super::Workbench;
use super::choices::{self, EvaluationChoices};
use super::events::Outcome;
use super::jobs::{Context, JobKind};
use super::project::output_folder;
use super::state::RunId;
use crate::engine::checkpoint::Checkpoint;
use crate::engine::error::{Error, Result};
use crate::engine::evaluation::{Evaluation, EvaluationOptions, key};
use crate::engine::scoring::{TaskSet, TextSource};

/// How far an evaluation came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unfinished {
    /// Items of both models that are scored.
    pub items: usize,
    /// Items of both models that there are to score.
    pub of: usize,
    /// Whether some of the text was read.
    pub has_text: bool,
}

/// What is looked for, and where.
struct Search {
    original: Arc<Checkpoint>,
    /// Content hash of the original, where it is known.
    original_id: Option<String>,
    known: Option<Arc<Evaluation>>,
    runs: Vec<(RunId, String)>,
    tasks: Option<Arc<TaskSet>>,
    choices: EvaluationChoices,
    text: Option<Arc<TextSource>>,
    journal: std::path::PathBuf,
    keeps_baseline: bool,
}

impl Workbench {
    /// Looks in the journals for what evaluations of the candidates have finished, where there are any.
    pub(super) fn look_for_unfinished(&mut self) {
        let Some(document) = &self.state.document else { return };
        let folder = output_folder(&document.project_path);
        let journal = choices::journal(&folder);
        let lacking = document.runs.iter().filter(|run| run.lacks_evaluation());
        let runs: Vec<(RunId, String)> = lacking.map(|run| (run.id, run.content_hash.clone())).collect();
        if runs.is_empty() || !journal.is_dir() || !document.has_data() || document.cannot_run().is_some() {
            return;
        }
        let evaluations = document.runs.iter().filter_map(|run| run.evaluation.as_ref()?.baseline.as_deref());
        let known = document.baseline.as_deref().into_iter().chain(evaluations);
        let search = Search {
            original: document.checkpoint.clone(),
            original_id: known.map(|evaluation| evaluation.model.id.clone()).next(),
            known: document.baseline.clone(),
            runs,
            tasks: document.tasks.clone(),
            choices: document.choices.clone(),
            text: document.text.clone(),
            journal,
            keeps_baseline: self.state.settings.keep_baseline,
        };
        let fingerprint = document.checkpoint.fingerprint.clone();
        self.jobs.spawn(JobKind::LookForUnfinished, "look for unfinished evaluations", move |context| {
            Ok(Outcome::Unfinished { fingerprint, found: search.found(context)? })
        });
    }
}

impl Search {
    fn found(&self, context: &Context) -> Result<BTreeMap<RunId, Unfinished>> {
        let original = match &self.original_id {
            Some(id) => id.clone(),
            None => self.original.content_hash(&context.progress)?,
        };
        let folder = self.journal.parent().unwrap_or(&self.journal);
        let options = self.choices.options(folder, self.keeps_baseline, context.device.models_in_words());
        // Why they cannot be prepared is told when somebody evaluates.
        let prepared = self.tasks.as_ref().map(|tasks| self.choices.prepared(tasks, &self.original)).transpose();
        let Ok(tasks) = prepared else { return Ok(BTreeMap::new()) };
        let mut found = BTreeMap::new();
        for (run, id) in &self.runs {
            let one = self.of_run(id, &original, tasks.as_deref(), &options)?;
            if one.items > 0 || one.has_text {
                found.insert(*run, one);
            }
        }
        Ok(found)
    }

    /// What is finished of one candidate with this content hash, and of the original where that is not known whole.
    fn of_run(
        &self,
        id: &str,
        original: &str,
        tasks: Option<&TaskSet>,
        options: &EvaluationOptions,
    ) -> Result<Unfinished> {
        let key_of = |id: &str, base: Option<&str>| key(id, base, tasks, self.text.as_deref(), options);
        let items = tasks.map_or(0, |tasks| match options.max_items_per_slice {
            Some(count) => tasks.sample(count).items.len(),
            None => tasks.items.len(),
        });
        let own = key_of(id, Some(original));
        let mut found = Unfinished {
            items: finished(&self.journal, &own)?.min(items),
            of: items,
            has_text: file_of(&self.journal, &own, "text.bin").is_file(),
        };
        let alone = key_of(original, None);
        if self.known.as_ref().is_none_or(|known| known.key != alone) {
            found.items += finished(&self.journal, &alone)?.min(items);
            found.of += items;
        }
        Ok(found)
    }
}

fn file_of(folder: &Path, key: &str, ending: &str) -> std::path::PathBuf {
    folder.join(format!("{}.{ending}", key.get(..32).unwrap_or(key)))
}

/// Whole lines of a journal; none where there is no such file.
fn finished(folder: &Path, key: &str) -> Result<usize> {
    let path = file_of(folder, key, "items.jsonl");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(err) => return Err(Error::io("read", &path)(err)),
    };
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let (mut buffer, mut lines) = (vec![0u8; 1 << 16], 0);
    loop {
        match reader.read(&mut buffer).map_err(Error::io("read", &path))? {
            0 => return Ok(lines),
            count => lines += buffer[..count].iter().filter(|byte| **byte == b'\n').count(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_whole_count_and_a_missing_journal_has_none() {
        let folder = tempfile::tempdir().expect("folder");
        let key = "0123456789abcdef0123456789abcdef and more";
        assert_eq!(finished(folder.path(), key).expect("none"), 0);
        let path = folder.path().join("0123456789abcdef0123456789abcdef.items.jsonl");
        std::fs::write(&path, "{}\n{}\n{\"cut").expect("writes");
        assert_eq!(finished(folder.path(), key).expect("reads"), 2);
    }
}
