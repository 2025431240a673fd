//! How candidates of a project are evaluated: what the command line's options of `lapidary evaluate` say.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::state::{Document, Run};
use crate::engine::checkpoint::Checkpoint;
use crate::engine::error::{Fault, Result, Stage};
use crate::engine::evaluation::EvaluationOptions;
use crate::engine::model::Tokenizer;
use crate::engine::scoring::chat::ChatTemplate;
use crate::engine::scoring::{Convention, KeptOptions, SeedOptions, TaskSet, TextOptions, few_shot, top_k};

/// Draws the worked examples; the same ones as on the command line.
const EXAMPLE_SEED: u64 = 1234;

/// Kept in the project; every field has a default, so that an old project still opens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EvaluationChoices {
    /// How the text is cut into windows.
    pub convention: Convention,
    /// Tokens of a window; none for what the model and the convention ask for.
    pub context: Option<usize>,
    /// At most so many items of every slice.
    pub items_per_slice: Option<usize>,
    /// Whether prompts are written as a user's turn of the original's chat template.
    pub chat_template: bool,
    /// Where worked examples come from.
    pub examples: Option<PathBuf>,
    /// Worked examples in front of every prompt, where there is such a file.
    pub few_shot: usize,
    /// Writes items with so many seeds to see whether a model agrees with itself; less than two for not at all.
    pub seeds: usize,
    /// Power to estimate energy with, in watts, where no counter can be read.
    pub watts: Option<f64>,
}

impl EvaluationChoices {
    /// True if both measure the same, whatever the power that energy is estimated with.
    fn measures_as(&self, other: &Self) -> bool {
        Self { watts: None, ..self.clone() } == Self { watts: None, ..other.clone() }
    }

    /// The engine's options, with what is finished kept in the project's `folder`.
    pub(super) fn options(&self, folder: &Path, keeps_baseline: bool, device: String) -> EvaluationOptions {
        EvaluationOptions {
            text: TextOptions { convention: self.convention, context: self.context, ..TextOptions::default() },
            max_items_per_slice: self.items_per_slice,
            journal: Some(journal(folder)),
            kept: keeps_baseline.then(|| KeptOptions { folder: folder.join("predictions"), k: top_k::DEFAULT_K }),
            watts: self.watts,
            seeds: (self.seeds > 1).then(|| SeedOptions { seeds: self.seeds, ..SeedOptions::default() }),
            device,
            ..EvaluationOptions::default()
        }
    }

    /// The tasks as both models are asked them: with worked examples in front, and as turns of a chat.
    ///
    /// # Errors
    /// Where the examples cannot be read or are among the items, and where the original has no chat template.
    pub(super) fn prepared(&self, tasks: &Arc<TaskSet>, original: &Checkpoint) -> Result<Arc<TaskSet>> {
        let mut tasks = tasks.clone();
        if let Some(examples) = self.examples.as_deref().filter(|_| self.few_shot > 0) {
            let examples = TaskSet::read(examples)?;
            tasks = Arc::new(few_shot::with_examples(&tasks, &examples, self.few_shot, EXAMPLE_SEED)?);
        }
        if self.chat_template {
            let tokenizer = Tokenizer::of_checkpoint(original)?;
            let eos = tokenizer.eos.first().map(|&id| tokenizer.token_text(id)).unwrap_or_default();
            let template = ChatTemplate::of_checkpoint(original, &eos)?.ok_or_else(|| {
                Fault::new(Stage::Evaluation, "the original has no chat template")
                    .fix("switch the chat template off in the evaluation's settings")
                    .file(&original.path)
            })?;
            tasks = Arc::new(template.apply(&tasks)?);
        }
        Ok(tasks)
    }
}

/// Where finished items of evaluations are kept in a project's folder.
pub(super) fn journal(folder: &Path) -> PathBuf {
    folder.join("items")
}

/// What an evaluation was made with: the files as they are on disk, and how they were used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MeasuredWith {
    pub(super) tasks_hash: Option<String>,
    pub(super) text_hash: Option<String>,
    pub(super) choices: EvaluationChoices,
}

impl MeasuredWith {
    /// What an evaluation that starts now is made with.
    pub(super) fn now(document: &Document) -> Self {
        Self {
            tasks_hash: document.tasks.as_ref().map(|tasks| tasks.hash.clone()),
            text_hash: document.text.as_ref().map(|text| text.hash.clone()),
            choices: document.choices.clone(),
        }
    }

    /// What a run's evaluation was made with; projects of versions without choices tell the files only.
    fn of_run(run: &Run) -> Option<Self> {
        let evaluation = run.evaluation.as_deref()?;
        Some(run.measured_with.clone().unwrap_or_else(|| Self {
            tasks_hash: evaluation.tasks_hash.clone(),
            text_hash: evaluation.text_hash.clone(),
            choices: EvaluationChoices::default(),
        }))
    }

    /// True if a run was evaluated with anything else than this.
    pub(super) fn is_other_than(&self, run: &Run) -> bool {
        Self::of_run(run).is_some_and(|other| {
            let files = (&self.tasks_hash, &self.text_hash) != (&other.tasks_hash, &other.text_hash);
            files || !self.choices.measures_as(&other.choices)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_become_the_engines_options_and_the_power_is_no_part_of_what_is_measured() {
        let choices = EvaluationChoices {
            convention: Convention::LlamaCpp,
            context: Some(128),
            items_per_slice: Some(20),
            seeds: 3,
            watts: Some(15.0),
            ..EvaluationChoices::default()
        };
        let options = choices.options(Path::new("p.d"), true, "cpu".to_owned());
        assert_eq!((options.text.convention, options.text.context), (Convention::LlamaCpp, Some(128)));
        assert_eq!((options.max_items_per_slice, options.watts), (Some(20), Some(15.0)));
        assert_eq!(options.seeds.map(|seeds| seeds.seeds), Some(3));
        assert_eq!(options.journal.as_deref(), Some(Path::new("p.d/items")));
        assert_eq!(options.kept.map(|kept| kept.folder), Some(PathBuf::from("p.d/predictions")));
        let plain = EvaluationChoices::default().options(Path::new("p.d"), false, "cpu".to_owned());
        assert!(plain.seeds.is_none() && plain.kept.is_none());
        assert!(choices.measures_as(&EvaluationChoices { watts: None, ..choices.clone() }));
        assert!(!choices.measures_as(&EvaluationChoices { context: None, ..choices.clone() }));
    }

    #[test]
    fn worked_examples_stand_in_front_of_every_prompt() {
        let folder = tempfile::tempdir().expect("folder");
        let line = |id: &str, prompt: &str| {
            format!(
                r#"{{"id":"{id}","task":"t","slice":"s","type":"exact_match","prompt":"{prompt}","answer":" yes"}}"#
            )
        };
        let examples = folder.path().join("examples.jsonl");
        std::fs::write(&examples, line("e", "Is one one?")).expect("writes");
        let tasks = Arc::new(TaskSet::parse(line("i", "Is two two?").as_bytes(), Path::new("t")).expect("tasks"));
        let demo = crate::workbench::unpack_demo(folder.path()).expect("demo");
        let original = Checkpoint::open(&demo).expect("opens");
        let with = |few_shot| {
            let choices =
                EvaluationChoices { examples: Some(examples.clone()), few_shot, ..EvaluationChoices::default() };
            choices.prepared(&tasks, &original).expect("prepares")
        };
        assert_eq!(with(0).hash, tasks.hash);
        let item = with(1).items.get(0).expect("an item");
        let prompt = item.kind.prompt();
        assert!(prompt.starts_with("Is one one?") && prompt.ends_with("Is two two?"), "{prompt}");
        assert_ne!(with(1).hash, tasks.hash);
    }
}
