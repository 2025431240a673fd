//! A text to measure on whose tokens know their group: the domain of a document, or the slice of a
//! task. Groups split the same tokens, so that one measurement gives the whole and every group.

use std::collections::BTreeMap;

use super::{Basis, Group, GroupValue};
use crate::calibration::Documents;
use crate::error::{Fault, Result, Stage};
use crate::scoring::text::{Window, windows};
use crate::scoring::{ScoredText, TaskKind, TaskSet, TextCodec, TextOptions, check_ids, mean_and_stderr};

/// Scored windows with a group for each scored token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupedText {
    /// The text's name.
    pub name: String,
    /// What is run and scored.
    pub windows: Vec<Window>,
    /// Group of every scored token in order; empty where there are no groups.
    labels: Vec<u16>,
    /// Names of the groups.
    groups: Vec<String>,
}

impl GroupedText {
    /// A text without groups.
    pub fn plain(name: &str, text: &ScoredText) -> Self {
        Self { name: name.to_owned(), windows: text.windows.clone(), labels: Vec::new(), groups: Vec::new() }
    }

    /// Documents one after another, cut as a text is; groups are their domains. Without domains it is
    /// the plain text.
    ///
    /// # Errors
    /// As [`ScoredText::new`].
    pub fn of_documents(
        codec: &dyn TextCodec,
        documents: &Documents,
        model_context: usize,
        vocab: usize,
        options: &TextOptions,
    ) -> Result<Self> {
        let name = documents.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let source = documents.source();
        let scored = ScoredText::new(codec, &source, model_context, vocab, options)?;
        let domains = documents.domains();
        if domains.is_empty() {
            return Ok(Self::plain(&name, &scored));
        }
        let of_token = domains_of_tokens(codec, documents, &codec.encode(&source.text)?, &domains)?;
        // Places cut the same way tell which token each scored one is.
        let places: Vec<u32> = (0..of_token.len() as u32).collect();
        let mut cut = windows(&places, codec.bos().map(|_| u32::MAX), scored.convention, scored.context);
        cut.retain(|window| window.scored_from < window.ids.len());
        let scored_places = cut.iter().take(scored.windows.len()).flat_map(|window| &window.ids[window.scored_from..]);
        let labels = scored_places.map(|&place| of_token.get(place as usize).copied().unwrap_or_default()).collect();
        let mut groups: Vec<String> = domains.into_iter().map(str::to_owned).collect();
        if of_token.contains(&(groups.len() as u16)) {
            groups.push("no domain".to_owned());
        }
        Ok(Self { labels, groups, ..Self::plain(&name, &scored) })
    }

    /// Right answers of task items after their prompts: every item is a window of which the answer is
    /// scored; groups are `task / slice`. Slices take turns until `most_tokens` are run.
    ///
    /// # Errors
    /// Items of which none fits the model's context, or what the tokenizer refuses.
    pub fn of_tasks(
        codec: &dyn TextCodec,
        tasks: &TaskSet,
        model_context: usize,
        vocab: usize,
        most_tokens: usize,
    ) -> Result<Self> {
        let mut slices: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for index in 0..tasks.items.len() {
            let slice = tasks.items.slice_of(index);
            slices.entry(format!("{} / {}", slice.task, slice.slice)).or_default().push(index);
        }
        let groups: Vec<String> = slices.keys().cloned().collect();
        let (mut windows, mut labels, mut run) = (Vec::new(), Vec::new(), 0);
        let longest = slices.values().map(Vec::len).max().unwrap_or(0);
        'items: for turn in 0..longest {
            for (group, items) in slices.values().enumerate() {
                let Some(&index) = items.get(turn) else { continue };
                if run >= most_tokens {
                    break 'items;
                }
                let kind = tasks.items.get(index)?.kind;
                let Some(window) = item_window(codec, kind.prompt(), scored_text(&kind), model_context)? else {
                    continue;
                };
                check_ids(&window.ids, vocab)?;
                run += window.ids.len();
                labels.extend(std::iter::repeat_n(group as u16, window.ids.len() - window.scored_from));
                windows.push(window);
            }
        }
        if windows.is_empty() {
            return Err(Fault::new(Stage::Sensitivity, "no task item fits the model's context")
                .fix("choose other tasks")
                .file(&tasks.path)
                .into());
        }
        let name = tasks.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        Ok(Self { name, windows, labels, groups })
    }

    /// Tokens that are scored.
    pub fn scored_tokens(&self) -> usize {
        self.windows.iter().map(|window| window.ids.len() - window.scored_from).sum()
    }

    /// What figures of this text are about.
    pub fn basis(&self) -> Basis {
        let groups = self.groups.iter().enumerate().map(|(index, name)| Group {
            name: name.clone(),
            tokens: self.labels.iter().filter(|label| usize::from(**label) == index).count(),
        });
        Basis { groups: groups.collect(), ..self.basis_without_groups() }
    }

    /// [`GroupedText::basis`] for figures that are of the whole alone.
    pub fn basis_without_groups(&self) -> Basis {
        let mut hasher = blake3::Hasher::new();
        for window in &self.windows {
            hasher.update(&(window.ids.len() as u64).to_le_bytes());
            hasher.update(&(window.scored_from as u64).to_le_bytes());
            for id in &window.ids {
                hasher.update(&id.to_le_bytes());
            }
        }
        for (label, name) in self.groups.iter().enumerate() {
            hasher.update(&(label as u64).to_le_bytes());
            hasher.update(name.as_bytes());
        }
        for label in &self.labels {
            hasher.update(&label.to_le_bytes());
        }
        Basis {
            name: self.name.clone(),
            hash: hasher.finalize().to_hex().to_string(),
            tokens: self.scored_tokens(),
            groups: Vec::new(),
        }
    }

    /// Mean and standard error of figures of the scored tokens, in all and by group. A group without
    /// tokens has zeros.
    pub(super) fn summary(&self, values: &[f64]) -> (f64, f64, Vec<GroupValue>) {
        let (mean, stderr) = mean_and_stderr(values.iter().copied());
        let groups = (0..self.groups.len()).map(|index| {
            let own = values.iter().zip(&self.labels).filter(move |(_, label)| usize::from(**label) == index);
            let (value, stderr) = mean_and_stderr(own.map(|(value, _)| *value));
            GroupValue { value, stderr }
        });
        (mean, stderr, groups.collect())
    }
}

/// The domain of every token of all documents as one text; one past the last for those without.
///
/// Tokens may join what parts two documents with what is beside it, so the text is encoded as a whole
/// and each document's end is found by the length of what its tokens say.
fn domains_of_tokens(codec: &dyn TextCodec, documents: &Documents, ids: &[u32], domains: &[&str]) -> Result<Vec<u16>> {
    let mut labels = Vec::with_capacity(ids.len());
    for (document, alone) in documents.list.iter().zip(documents.encode(codec)?) {
        let rest = &ids[labels.len()..];
        // What parts it from the next document belongs to it.
        let length = document.text.len() + 2;
        let reaches = |count: usize| Ok::<bool, crate::error::Error>(codec.decode(&rest[..count])?.len() >= length);
        let mut count = alone.len().min(rest.len());
        while count > 0 && reaches(count - 1)? {
            count -= 1;
        }
        while count < rest.len() && !reaches(count)? {
            count += 1;
        }
        let domain = document.domain.as_deref().and_then(|own| domains.iter().position(|name| *name == own));
        labels.resize(labels.len() + count, domain.unwrap_or(domains.len()) as u16);
    }
    let last = labels.last().copied().unwrap_or_default();
    labels.resize(ids.len(), last);
    Ok(labels)
}

/// What follows the prompt of an item in a text where it is answered rightly.
fn scored_text(kind: &TaskKind) -> &str {
    match kind {
        TaskKind::MultipleContext { continuation, .. } => continuation,
        other => other.wanted(),
    }
}

/// BOS, prompt and answer, of which the answer is scored; none where they do not fit.
fn item_window(codec: &dyn TextCodec, prompt: &str, answer: &str, most: usize) -> Result<Option<Window>> {
    // White space at the prompt's end belongs to the answer.
    let own = prompt.trim_end();
    let before = codec.encode(own)?;
    let after = codec.encode(&format!("{}{answer}", &prompt[own.len()..]))?;
    let mut ids: Vec<u32> = codec.bos().into_iter().chain(before).collect();
    let scored_from = ids.len();
    ids.extend(after);
    let fits = scored_from > 0 && scored_from < ids.len() && ids.len() <= most;
    Ok(fits.then_some(Window { ids, scored_from }))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::model::Tokenizer;

    fn demo() -> (std::path::PathBuf, Tokenizer) {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("assets/demo");
        let checkpoint = Checkpoint::open(&path).expect("opens");
        (path, Tokenizer::of_checkpoint(&checkpoint).expect("tokenizer"))
    }

    #[test]
    fn domains_split_the_same_tokens_that_the_plain_text_has() {
        let (path, tokenizer) = demo();
        let documents = Documents::read(&path.join("calibration.jsonl")).expect("reads");
        let options = TextOptions { max_tokens: Some(3000), ..TextOptions::default() };
        let grouped = GroupedText::of_documents(&tokenizer, &documents, 256, 2048, &options).expect("cut");
        let plain = ScoredText::new(&tokenizer, &documents.source(), 256, 2048, &options).expect("cut");
        assert_eq!(grouped.windows, plain.windows);
        let basis = grouped.basis();
        assert!(basis.groups.len() == 17 && basis.tokens >= 3000);
        assert_eq!(basis.groups.iter().map(|group| group.tokens).sum::<usize>(), basis.tokens);
        assert_ne!(basis.hash, GroupedText::plain("t", &plain).basis().hash, "groups count");
        let text: String = documents.list[0].text.clone();
        let alone = tokenizer.encode(&text).expect("tokens").len();
        let own = grouped.labels.iter().take_while(|label| **label == grouped.labels[0]).count();
        assert!(own.abs_diff(alone) <= 2, "the first document has {alone} tokens, {own} are labelled");
        // A value that is the group's own number comes back for the group.
        let values: Vec<f64> = grouped.labels.iter().map(|&label| f64::from(label)).collect();
        for (index, group) in grouped.summary(&values).2.iter().enumerate() {
            let is_empty = basis.groups[index].tokens == 0;
            assert!(is_empty || (group.value == index as f64 && group.stderr == 0.0));
        }
    }

    #[test]
    fn slices_of_tasks_take_turns_and_only_answers_are_scored() {
        let (path, tokenizer) = demo();
        let tasks = TaskSet::read(&path.join("tasks.jsonl")).expect("reads");
        let grouped = GroupedText::of_tasks(&tokenizer, &tasks, 256, 2048, 4000).expect("cut");
        let basis = grouped.basis();
        assert_eq!(basis.groups.len(), 22);
        assert!(basis.groups.iter().all(|group| group.tokens > 0), "{:?}", basis.groups);
        let run: usize = grouped.windows.iter().map(|window| window.ids.len()).sum();
        assert!((4000..4300).contains(&run) && basis.tokens < run / 2, "{run} {}", basis.tokens);
        let answers: Vec<String> = grouped.windows[..22]
            .iter()
            .map(|window| tokenizer.decode(&window.ids[window.scored_from..]).expect("text"))
            .collect();
        assert!(answers.iter().all(|answer| answer.len() < 200), "{answers:?}");
    }
}
