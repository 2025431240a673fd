//! Task items as a set holds them: some numbers in memory, what they ask on disk.
//!
//! 24 bytes of each item stay in memory, whatever it asks: where it is written out, its task and slice, how long
//! its prompt is and whether it is answered by writing. The rest lies in a temporary file once 4 MiB are full,
//! and is read when the item is scored. Parts of a set share what is written out.

use std::collections::HashMap;
use std::sync::Arc;

use super::spool::{Place, Reader, Spill, Texts};
use super::tasks::{TaskItem, TaskKind};
use crate::error::{Fault, Result, Stage};

/// What is held of one item.
#[derive(Clone, Copy, Debug)]
struct Row {
    /// Where the item is written as JSON.
    offset: u64,
    length: u32,
    /// Its task and slice.
    label: u32,
    /// Bytes of its prompt.
    prompt: u32,
    /// True where the answer is written and not chosen.
    is_written: bool,
}

/// Bytes of memory that an item takes.
pub const ROW_BYTES: usize = size_of::<Row>();
const _: () = assert!(ROW_BYTES <= 24, "the module's words say so");

impl Row {
    fn read(&self, reader: &mut Reader<'_>) -> Result<TaskItem> {
        decode(reader.read(self.place())?)
    }

    fn place(&self) -> Place {
        Place { offset: self.offset, length: self.length }
    }
}

fn decode(json: &[u8]) -> Result<TaskItem> {
    let unreadable = |err: serde_json::Error| {
        Fault::new(Stage::Tasks, format!("an item cannot be read back: {err}")).fix("load the tasks again")
    };
    Ok(serde_json::from_slice(json).map_err(unreadable)?)
}

/// Task and slice, of which there are few.
#[derive(Debug)]
struct Label {
    task: String,
    slice: String,
}

/// What all parts of a set share.
#[derive(Debug, Default)]
struct Store {
    texts: Texts,
    labels: Vec<Label>,
}

/// Task items in their order; a copy of it shares them.
#[derive(Clone, Default)]
pub struct TaskItems {
    store: Arc<Store>,
    rows: Arc<Vec<Row>>,
    /// Items of every label.
    counts: Arc<Vec<usize>>,
}

/// A slice of a task, with how many items it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskSlice<'a> {
    /// The task, such as `facts`.
    pub task: &'a str,
    /// The slice of the task, such as `rare`.
    pub slice: &'a str,
    /// Number of items.
    pub items: usize,
}

impl TaskSlice<'_> {
    /// As `task/slice`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.task, self.slice)
    }
}

impl TaskItems {
    /// Items that come from somewhere else than a file.
    ///
    /// # Errors
    /// Where the temporary file cannot be written.
    pub fn of(items: impl IntoIterator<Item = TaskItem>) -> Result<Self> {
        let mut writer = TaskItemWriter::default();
        for item in items {
            writer.push(&item)?;
        }
        writer.finish()
    }

    fn with(store: Arc<Store>, rows: Vec<Row>) -> Self {
        let mut counts = vec![0; store.labels.len()];
        for row in &rows {
            counts[row.label as usize] += 1;
        }
        Self { store, rows: Arc::new(rows), counts: Arc::new(counts) }
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// An item, read from where it is written out.
    ///
    /// # Errors
    /// Where that cannot be read.
    ///
    /// # Panics
    /// Where there is no such item.
    pub fn get(&self, index: usize) -> Result<TaskItem> {
        decode(&self.store.texts.read(self.rows[index].place())?)
    }

    /// Some items, such as those of a lot.
    ///
    /// # Errors
    /// Where they cannot be read.
    ///
    /// # Panics
    /// Where there is no item with one of the indices.
    pub fn read(&self, indices: &[usize]) -> Result<Vec<TaskItem>> {
        let mut reader = self.store.texts.reader();
        indices.iter().map(|&index| self.rows[index].read(&mut reader)).collect()
    }

    /// All items in their order, read some 64 KiB at once; each may fail where it cannot be read.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Result<TaskItem>> {
        let mut reader = self.store.texts.reader();
        self.rows.iter().map(move |row| row.read(&mut reader))
    }

    /// All items whole; for few, and for tests.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn to_vec(&self) -> Result<Vec<TaskItem>> {
        self.iter().collect()
    }

    /// The task and slice of an item, with how many items share them; from memory.
    ///
    /// # Panics
    /// Where there is no such item.
    pub fn slice_of(&self, index: usize) -> TaskSlice<'_> {
        self.slice(self.label(index))
    }

    /// The number of an item's task and slice, below [`Self::labels`].
    ///
    /// # Panics
    /// Where there is no such item.
    pub fn label(&self, index: usize) -> usize {
        self.rows[index].label as usize
    }

    /// How many labels, that is tasks with a slice, there are in the set that these items are of.
    pub fn labels(&self) -> usize {
        self.counts.len()
    }

    /// The task and slice with a label.
    ///
    /// # Panics
    /// Where there is no such label.
    pub fn slice(&self, label: usize) -> TaskSlice<'_> {
        let Label { task, slice } = &self.store.labels[label];
        TaskSlice { task, slice, items: self.counts[label] }
    }

    /// The slices that items are of, in the order in which the file names them.
    pub fn slices(&self) -> impl Iterator<Item = TaskSlice<'_>> + Clone {
        (0..self.labels()).map(|label| self.slice(label)).filter(|slice| slice.items > 0)
    }

    /// Bytes of an item's prompt; of several beginnings the right one.
    ///
    /// # Panics
    /// Where there is no such item.
    pub fn prompt_bytes(&self, index: usize) -> usize {
        self.rows[index].prompt as usize
    }

    /// True where an item is answered by writing, false where by choosing.
    ///
    /// # Panics
    /// Where there is no such item.
    pub fn is_written(&self, index: usize) -> bool {
        self.rows[index].is_written
    }

    /// The items with these indices, in their order.
    ///
    /// # Panics
    /// Where there is no item with one of them.
    pub fn pick(&self, indices: impl IntoIterator<Item = usize>) -> Self {
        let rows = indices.into_iter().map(|index| self.rows[index]).collect();
        Self::with(self.store.clone(), rows)
    }

    /// The items of the slices that `keep` wants.
    pub fn of_slices(&self, mut keep: impl FnMut(&TaskSlice<'_>) -> bool) -> Self {
        let is_kept: Vec<bool> = (0..self.labels()).map(|label| keep(&self.slice(label))).collect();
        self.pick((0..self.len()).filter(|&index| is_kept[self.label(index)]))
    }

    /// At most `count` items of every slice, evenly spread.
    pub(super) fn sample(&self, count: usize) -> Self {
        // Of n items the kth is taken for k = ⌊taken · n / count⌋.
        let (mut seen, mut taken) = (vec![0; self.labels()], vec![0; self.labels()]);
        let is_taken = |index: &usize| {
            let label = self.label(*index);
            let n = self.counts[label];
            let wanted = count.min(n);
            let is_next = taken[label] < wanted && seen[label] == taken[label] * n / wanted;
            seen[label] += 1;
            taken[label] += usize::from(is_next);
            is_next
        };
        self.pick((0..self.len()).filter(is_taken))
    }

    /// The items with something changed of each, written out anew one by one.
    ///
    /// # Errors
    /// What `change` answers, and where items cannot be read or written.
    pub(super) fn map(&self, mut change: impl FnMut(&mut TaskItem) -> Result<()>) -> Result<Self> {
        let mut writer = TaskItemWriter::with_capacity(self.len());
        for item in self.iter() {
            let mut item = item?;
            change(&mut item)?;
            writer.push(&item)?;
        }
        writer.finish()
    }
}

impl std::fmt::Debug for TaskItems {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TaskItems({})", self.len())
    }
}

/// Takes items as they come and keeps of them what [`TaskItems`] holds.
#[derive(Debug, Default)]
pub struct TaskItemWriter {
    rows: Vec<Row>,
    labels: Vec<Label>,
    known: HashMap<String, u32>,
    spill: Spill,
}

impl TaskItemWriter {
    /// A writer of `count` items, so that its memory need not grow.
    pub fn with_capacity(count: usize) -> Self {
        Self { rows: Vec::with_capacity(count), ..Self::default() }
    }

    /// Number of items that were taken in.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// True where none was.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Takes the next item in.
    ///
    /// # Errors
    /// Where the temporary file cannot be written.
    pub fn push(&mut self, item: &TaskItem) -> Result<()> {
        let Place { offset, length } = self.spill.push(item)?;
        let label = self.label_of(item);
        let prompt = u32::try_from(item.kind.prompt().len()).unwrap_or(u32::MAX);
        let is_written = !matches!(item.kind, TaskKind::MultipleChoice { .. } | TaskKind::MultipleContext { .. });
        self.rows.push(Row { offset, length, label, prompt, is_written });
        Ok(())
    }

    fn label_of(&mut self, item: &TaskItem) -> u32 {
        let labels = &mut self.labels;
        *self.known.entry(format!("{}\0{}", item.task, item.slice)).or_insert_with(|| {
            labels.push(Label { task: item.task.clone(), slice: item.slice.clone() });
            labels.len() as u32 - 1
        })
    }

    /// The items.
    ///
    /// # Errors
    /// Where the temporary file cannot be written.
    pub fn finish(self) -> Result<TaskItems> {
        let Self { mut rows, labels, spill, .. } = self;
        rows.shrink_to_fit();
        Ok(TaskItems::with(Arc::new(Store { texts: spill.finish()?, labels }), rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn item(id: usize, letters: usize) -> TaskItem {
        let prompt = format!("{id} \u{e9}\n{}", "p".repeat(letters));
        TaskItem {
            id: format!("item {id}"),
            task: ["facts", "sums"][id / 7 % 2].into(),
            slice: ["a", "b", "c"][id % 3].into(),
            group: id.is_multiple_of(4).then(|| "passage \"1\"".to_owned()),
            fields: BTreeMap::from([("language".to_owned(), "de".to_owned())]),
            kind: match id % 5 {
                0 => TaskKind::MultipleChoice { prompt, choices: vec!["x".into(), "y".into()], answer: id % 2 },
                1 => TaskKind::MultipleContext {
                    contexts: vec!["z".into(), prompt],
                    continuation: "e".into(),
                    answer: 1,
                },
                2 => TaskKind::ExactMatch { prompt, answer: "x".into() },
                3 => TaskKind::Generate { prompt, reference: "x y".into() },
                _ => TaskKind::ChainOfThought { prompt, answer: "7".into(), max_tokens: id, stop: vec!["\n".into()] },
            },
        }
    }

    #[test]
    fn items_come_back_whole_from_memory_and_from_disk() {
        // Together some 60 KB and 6 MB: below and above what stays in memory.
        for letters in [100, 20_000] {
            let all: Vec<TaskItem> = (0..300).map(|id| item(id, letters)).collect();
            let items = TaskItems::of(all.clone()).expect("items");
            assert_eq!(matches!(items.store.texts, Texts::File(..)), letters > 1000);
            assert_eq!(items.to_vec().expect("items"), all);
            assert_eq!(items.read(&[299, 0, 7]).expect("items"), [all[299].clone(), all[0].clone(), all[7].clone()]);
            for (index, whole) in all.iter().enumerate() {
                assert_eq!(&items.get(index).expect("an item"), whole);
                let slice = items.slice_of(index);
                assert_eq!((slice.task, slice.slice), (whole.task.as_str(), whole.slice.as_str()));
                assert_eq!(items.prompt_bytes(index), whole.kind.prompt().len());
                assert_eq!(items.is_written(index), index % 5 > 1);
            }
        }
    }

    #[test]
    fn slices_are_counted_in_the_order_of_the_file() {
        let items = TaskItems::of((0..42).map(|id| item(id, 1))).expect("items");
        let slices: Vec<(String, usize)> = items.slices().map(|slice| (slice.name(), slice.items)).collect();
        // Runs of seven items take turns between the tasks; 42 items are seven of every task and slice.
        let expected = ["facts/a", "facts/b", "facts/c", "sums/b", "sums/c", "sums/a"];
        assert_eq!(slices, expected.map(|name| (name.to_owned(), 7)));
        let own = items.of_slices(|slice| slice.task == "sums" && slice.slice != "c");
        assert_eq!((own.len(), own.slices().count()), (14, 2));
        assert!(own.iter().all(|item| item.is_ok_and(|item| item.task == "sums" && item.slice != "c")));
        assert!(items.of_slices(|_| false).is_empty());
    }

    #[test]
    fn a_sample_is_evenly_spread_over_every_slice() {
        let items = TaskItems::of((0..42).map(|id| item(id, 1))).expect("items");
        let all = items.to_vec().expect("items");
        for count in [0, 1, 2, 3, 5, 7, 100] {
            let mut expected = Vec::new();
            for slice in items.slices() {
                let own: Vec<&TaskItem> = all
                    .iter()
                    .filter(|item| (item.task.as_str(), item.slice.as_str()) == (slice.task, slice.slice))
                    .collect();
                let wanted = count.min(own.len());
                expected.extend((0..wanted).map(|nth| own[nth * own.len() / wanted].id.clone()));
            }
            let mut ids: Vec<String> = items.sample(count).iter().map(|item| item.expect("an item").id).collect();
            let place = |id: &String| all.iter().position(|item| item.id == *id);
            assert!(ids.is_sorted_by_key(place), "{count}: in the order of the file");
            ids.sort();
            expected.sort();
            assert_eq!(ids, expected, "{count}");
        }
    }

    #[test]
    fn parts_share_what_is_written_out_and_changes_are_written_anew() {
        let items = TaskItems::of((0..30).map(|id| item(id, 1))).expect("items");
        let part = items.pick([3, 29]);
        assert!(Arc::ptr_eq(&part.store, &items.store));
        assert_eq!(part.to_vec().expect("items"), [item(3, 1), item(29, 1)]);
        let longer = items.map(|item| item.kind.map_prompts(&mut |prompt| Ok(format!("before {prompt}"))));
        let longer = longer.expect("changed");
        assert_eq!(longer.prompt_bytes(0), items.prompt_bytes(0) + 7);
        assert!(longer.get(29).expect("an item").kind.prompt().starts_with("before 29 "));
        assert_eq!(items.get(29).expect("an item"), item(29, 1));
        let failed = items.map(|_| Err(Fault::new(Stage::Tasks, "no more").into()));
        assert!(failed.expect_err("refused").to_string().contains("no more"));
    }
}
