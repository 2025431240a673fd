//! Results of items as an evaluation holds them: numbers in memory, texts on disk.
//!
//! Statistics need of an item what fits 96 bytes, and 4 more for every field that it can be sliced by;
//! that is all that stays in memory, whatever the items say. Prompts' answers, predictions and tokens
//! are read back from where they lie when somebody looks: in the journal of the run, or, where none is
//! kept, in a temporary file that begins once 4 MiB are full.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufRead as _;
use std::path::Path;
use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::answers::is_refusal;
use super::spool::{Spill, Texts};
use super::{ItemResult, lists};
use crate::error::{Error, Fault, Result, Stage};

pub(crate) use super::spool::Place;

/// A field with more different values than this is a name: nothing can be sliced by it.
const MAX_VALUES: usize = 4096;
/// Most fields that items can be sliced by.
const MAX_COLUMNS: usize = 64;

/// What statistics need of one item.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    /// First bytes of the id's BLAKE3.
    id: [u8; 16],
    /// First bytes of the group's BLAKE3.
    group: u64,
    /// Where the result is written as JSON.
    offset: u64,
    score: f64,
    /// NaN where there is none; so are the next three.
    confidence: f64,
    brier: f64,
    f1: f64,
    repeated: f64,
    length: u32,
    label: u32,
    prompt_tokens: u32,
    tokens: u32,
    rarest: u32,
    flags: u16,
}

/// Bytes of memory that an item takes, fields apart.
pub const ROW_BYTES: usize = size_of::<Row>();
const _: () = assert!(ROW_BYTES <= 96, "the module's words say so");

impl Row {
    const CORRECT: u16 = 1;
    const NORM_KNOWN: u16 = 1 << 1;
    const NORM: u16 = 1 << 2;
    const BYTES_KNOWN: u16 = 1 << 3;
    const BYTES: u16 = 1 << 4;
    const ENDED_KNOWN: u16 = 1 << 5;
    const ENDED: u16 = 1 << 6;
    const TRUNCATED: u16 = 1 << 7;
    const GROUPED: u16 = 1 << 8;
    const REFUSES: u16 = 1 << 9;
    const FILLED: u16 = 1 << 10;

    fn of(item: &ItemResult, label: u32, place: Place) -> Self {
        let flag = |is_set: bool, flag: u16| if is_set { flag } else { 0 };
        let maybe = |value: Option<bool>, known: u16, set: u16| value.map_or(0, |value| known | flag(value, set));
        let number = |value: Option<f64>| value.unwrap_or(f64::NAN);
        let group = item.group.as_deref().map(hash_of);
        Self {
            id: hash_of(&item.id),
            group: group.map_or(0, |hash| (u128::from_be_bytes(hash) >> 64) as u64),
            offset: place.offset,
            score: item.score,
            confidence: number(item.confidence()),
            brier: number(item.brier),
            f1: number(item.f1),
            repeated: number(item.repeated_fraction),
            length: place.length,
            label,
            prompt_tokens: item.prompt_tokens,
            tokens: item.token_ids.len() as u32,
            rarest: item.rarest_token_count,
            flags: Self::FILLED
                | flag(item.correct, Self::CORRECT)
                | maybe(item.correct_norm, Self::NORM_KNOWN, Self::NORM)
                | maybe(item.correct_bytes, Self::BYTES_KNOWN, Self::BYTES)
                | maybe(item.ended, Self::ENDED_KNOWN, Self::ENDED)
                | flag(item.truncated, Self::TRUNCATED)
                | flag(group.is_some(), Self::GROUPED)
                | flag(is_refusal(&item.prediction), Self::REFUSES),
        }
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    fn maybe(&self, known: u16, set: u16) -> Option<bool> {
        self.has(known).then(|| self.has(set))
    }
}

/// The first bytes of a name's BLAKE3, by which items are paired and drawn together.
pub(crate) fn hash_of(name: &str) -> [u8; 16] {
    let mut first = [0; 16];
    first.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..16]);
    first
}

/// Task, slice and metric, of which there are few.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Label {
    task: String,
    slice: String,
    metric: String,
}

/// One field of all items: an index into its values plus one, 0 where an item has none.
#[derive(Clone, Debug, Default)]
struct Column {
    name: String,
    values: Vec<String>,
    known: HashMap<String, u32>,
    codes: Vec<u32>,
    is_name: bool,
}

impl Column {
    fn set(&mut self, index: usize, value: &str) {
        if self.is_name {
            return;
        }
        let code = match self.known.get(value) {
            Some(&code) => code,
            None if self.values.len() == MAX_VALUES => {
                *self = Self { name: std::mem::take(&mut self.name), is_name: true, ..Self::default() };
                return;
            }
            None => {
                self.values.push(value.to_owned());
                let code = self.values.len() as u32;
                self.known.insert(value.to_owned(), code);
                code
            }
        };
        if self.codes.len() <= index {
            self.codes.resize(index + 1, 0);
        }
        self.codes[index] = code;
    }
}

#[derive(Debug)]
struct Table {
    rows: Vec<Row>,
    labels: Vec<Label>,
    columns: Vec<Column>,
    texts: Texts,
}

/// Takes results as they come and keeps of them what [`Items`] holds.
#[derive(Debug, Default)]
pub struct ItemWriter {
    rows: Vec<Row>,
    labels: Vec<Label>,
    known: HashMap<String, u32>,
    columns: Vec<Column>,
    spill: Spill,
}

impl ItemWriter {
    /// A writer of `count` items, so that its memory need not grow.
    pub fn with_capacity(count: usize) -> Self {
        Self { rows: Vec::with_capacity(count), ..Self::default() }
    }

    /// Takes the next result in.
    ///
    /// # Errors
    /// Where the temporary file cannot be written.
    pub fn push(&mut self, item: &ItemResult) -> Result<()> {
        self.store(self.rows.len(), item)
    }

    /// Takes in the result with this index among all.
    pub(crate) fn store(&mut self, index: usize, item: &ItemResult) -> Result<()> {
        let place = self.spill.push(item)?;
        self.put(index, item, place);
        Ok(())
    }

    /// Takes in the numbers of a result that is written out elsewhere.
    pub(crate) fn put(&mut self, index: usize, item: &ItemResult, place: Place) {
        if self.rows.len() <= index {
            self.rows.resize(index + 1, Row::default());
        }
        let label = self.label_of(item);
        self.rows[index] = Row::of(item, label, place);
        for (name, value) in &item.fields {
            let column = match self.columns.iter().position(|column| column.name == *name) {
                Some(column) => column,
                None if self.columns.len() == MAX_COLUMNS => continue,
                None => {
                    self.columns.push(Column { name: name.clone(), ..Column::default() });
                    self.columns.len() - 1
                }
            };
            self.columns[column].set(index, value);
        }
    }

    fn label_of(&mut self, item: &ItemResult) -> u32 {
        let key = format!("{}\0{}\0{}", item.task, item.slice, item.metric);
        let (labels, known) = (&mut self.labels, &mut self.known);
        *known.entry(key).or_insert_with(|| {
            let (task, slice, metric) = (item.task.clone(), item.slice.clone(), item.metric.clone());
            labels.push(Label { task, slice, metric });
            labels.len() as u32 - 1
        })
    }

    /// The score of an item that was taken in.
    pub(crate) fn score(&self, index: usize) -> Option<f64> {
        self.rows.get(index).filter(|row| row.has(Row::FILLED)).map(|row| row.score)
    }

    /// Notes for every item how rare its answer is, which is known once all answers are.
    pub(crate) fn set_rarest(&mut self, counts: &[u32]) {
        for (row, &count) in self.rows.iter_mut().zip(counts) {
            row.rarest = count;
        }
    }

    /// The items, whose texts lie in what was written on the way.
    ///
    /// # Errors
    /// Where the temporary file cannot be written.
    pub fn finish(mut self) -> Result<Items> {
        let texts = std::mem::take(&mut self.spill).finish()?;
        Ok(self.with(texts))
    }

    /// The items, whose texts lie in a file at the places that were given.
    pub(crate) fn finish_in(self, path: &Path) -> Result<Items> {
        Ok(self.with(Texts::open(path)?))
    }

    fn with(mut self, texts: Texts) -> Items {
        self.columns.retain(|column| !column.is_name);
        self.columns.sort_by(|a, b| a.name.cmp(&b.name));
        for column in &mut self.columns {
            column.codes.resize(self.rows.len(), 0);
            column.known = HashMap::new();
        }
        debug_assert!(self.rows.iter().all(|row| row.has(Row::FILLED)), "an item was left out");
        Items(Arc::new(Table { rows: self.rows, labels: self.labels, columns: self.columns, texts }))
    }
}

/// Results of items; a copy of it shares them.
#[derive(Clone)]
pub struct Items(Arc<Table>);

/// One item's numbers.
#[derive(Clone, Copy)]
pub struct Item<'a> {
    table: &'a Table,
    index: usize,
}

impl Items {
    /// Results that come from somewhere else than a run.
    ///
    /// # Errors
    /// Where the temporary file cannot be written.
    pub fn of(items: impl IntoIterator<Item = ItemResult>) -> Result<Self> {
        let mut writer = ItemWriter::default();
        for item in items {
            writer.push(&item)?;
        }
        writer.finish()
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.0.rows.len()
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.0.rows.is_empty()
    }

    /// Numbers of all items, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Item<'_>> + Clone {
        let table = self.0.as_ref();
        (0..table.rows.len()).map(move |index| Item { table, index })
    }

    /// The numbers of an item.
    ///
    /// # Panics
    /// Where there is no such item.
    pub fn item(&self, index: usize) -> Item<'_> {
        assert!(index < self.len(), "item {index} of {}", self.len());
        Item { table: &self.0, index }
    }

    /// Everything about an item, read from where it is written out.
    ///
    /// # Errors
    /// Where that file cannot be read, or was changed.
    ///
    /// # Panics
    /// Where there is no such item.
    pub fn get(&self, index: usize) -> Result<ItemResult> {
        self.item(index).read()
    }

    /// All of them whole, one after the other; for few, and for tests.
    ///
    /// # Errors
    /// As for [`Self::get`].
    pub fn to_vec(&self) -> Result<Vec<ItemResult>> {
        (0..self.len()).map(|index| self.get(index)).collect()
    }

    /// Names of the fields that items can be sliced by, in alphabetical order.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.0.columns.iter().map(|column| column.name.as_str())
    }

    /// How many different labels, that is tasks, slices and metrics, there are.
    pub fn labels(&self) -> usize {
        self.0.labels.len()
    }
}

impl<'a> Item<'a> {
    fn row(&self) -> &'a Row {
        &self.table.rows[self.index]
    }

    fn names(&self) -> &'a Label {
        &self.table.labels[self.row().label as usize]
    }

    /// Its place among the items.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Number of its task, slice and metric among those of its items.
    pub fn label(&self) -> usize {
        self.row().label as usize
    }

    /// The first half of the BLAKE3 of its id.
    pub fn id_hash(&self) -> [u8; 16] {
        self.row().id
    }

    /// What it is drawn with: the hash of its group, or of itself, and which of both it is.
    pub fn cluster(&self) -> (bool, u128) {
        let row = self.row();
        if row.has(Row::GROUPED) { (false, u128::from(row.group) << 64) } else { (true, u128::from_be_bytes(row.id)) }
    }

    /// Its task, such as `facts`.
    pub fn task(&self) -> &'a str {
        &self.names().task
    }

    /// Its slice, such as `rare`.
    pub fn slice(&self) -> &'a str {
        &self.names().slice
    }

    /// `acc`, `exact_match`, `final_answer` or `rouge_l_f1`.
    pub fn metric(&self) -> &'a str {
        &self.names().metric
    }

    /// Names of the fields of all items, in alphabetical order.
    pub fn fields(&self) -> impl Iterator<Item = &'a str> {
        self.table.columns.iter().map(|column| column.name.as_str())
    }

    /// The value of a field.
    pub fn field(&self, name: &str) -> Option<&'a str> {
        let column = self.table.columns.iter().find(|column| column.name == name)?;
        let code = column.codes[self.index].checked_sub(1)?;
        Some(&column.values[code as usize])
    }

    /// True if the answer was right.
    pub fn is_correct(&self) -> bool {
        self.row().has(Row::CORRECT)
    }

    /// 1 or 0, or a share between.
    pub fn score(&self) -> f64 {
        self.row().score
    }

    /// Right with log-likelihoods divided by characters.
    pub fn is_correct_norm(&self) -> Option<bool> {
        self.row().maybe(Row::NORM_KNOWN, Row::NORM)
    }

    /// Right with log-likelihoods divided by UTF-8 bytes.
    pub fn is_correct_bytes(&self) -> Option<bool> {
        self.row().maybe(Row::BYTES_KNOWN, Row::BYTES)
    }

    /// The largest probability of a choice.
    pub fn confidence(&self) -> Option<f64> {
        known(self.row().confidence)
    }

    /// Brier's score of the choices.
    pub fn brier(&self) -> Option<f64> {
        known(self.row().brier)
    }

    /// Words in common with the reference.
    pub fn f1(&self) -> Option<f64> {
        known(self.row().f1)
    }

    /// Share of written 4-grams that were written before.
    pub fn repeated_fraction(&self) -> Option<f64> {
        known(self.row().repeated)
    }

    /// True if the model ended its text itself, where it had room to.
    pub fn ended(&self) -> Option<bool> {
        self.row().maybe(Row::ENDED_KNOWN, Row::ENDED)
    }

    /// True if its prompt lost its beginning.
    pub fn is_truncated(&self) -> bool {
        self.row().has(Row::TRUNCATED)
    }

    /// True if the answer refuses, by how it begins.
    pub fn is_refusal(&self) -> bool {
        self.row().has(Row::REFUSES)
    }

    /// Tokens of the prompt.
    pub fn prompt_tokens(&self) -> u32 {
        self.row().prompt_tokens
    }

    /// Tokens that were written.
    pub fn tokens(&self) -> u32 {
        self.row().tokens
    }

    /// How often the rarest token of the right answer occurs in the right answers of all items.
    pub fn rarest_token_count(&self) -> u32 {
        self.row().rarest
    }

    /// Everything about it, read from where it is written out.
    ///
    /// # Errors
    /// Where that file cannot be read, or was changed.
    pub fn read(&self) -> Result<ItemResult> {
        let row = self.row();
        let bytes = self.table.texts.read(Place { offset: row.offset, length: row.length })?;
        let mut item: ItemResult =
            serde_json::from_slice(&bytes).ok().filter(|item: &ItemResult| hash_of(&item.id) == row.id).ok_or_else(
                || Fault::new(Stage::Evaluation, "the results of items were changed on disk").fix("evaluate again"),
            )?;
        item.rarest_token_count = row.rarest;
        Ok(item)
    }
}

fn known(number: f64) -> Option<f64> {
    (!number.is_nan()).then_some(number)
}

/// Lines of a journal with their places, up to the first that is not whole.
pub(crate) fn read_lines(path: &Path, take: &mut dyn FnMut(ItemResult, Place)) -> Result<u64> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(err) => return Err(Error::io("read", path)(err)),
    };
    let (mut reader, mut line, mut good) = (std::io::BufReader::new(file), Vec::new(), 0);
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line).map_err(Error::io("read", path))?;
        let whole = line.strip_suffix(b"\n").and_then(|line| serde_json::from_slice::<ItemResult>(line).ok());
        let Some(item) = whole else { return Ok(good) };
        take(item, Place { offset: good, length: read as u32 - 1 });
        good += read as u64;
    }
}

impl Default for Items {
    fn default() -> Self {
        ItemWriter::default().with(Texts::default())
    }
}

impl std::fmt::Debug for Items {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Items({})", self.len())
    }
}

/// Equal where every result is, read from disk.
impl PartialEq for Items {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
            || (self.len() == other.len()
                && self.iter().zip(other.iter()).all(|(a, b)| match (a.read(), b.read()) {
                    (Ok(a), Ok(b)) => a == b,
                    _ => false,
                }))
    }
}

impl Serialize for Items {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        lists::serialize(self.len(), self.iter().map(|item| item.read()), serializer)
    }
}

impl<'de> Deserialize<'de> for Items {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let mut writer = ItemWriter::default();
        lists::deserialize("results of items", deserializer, |item: ItemResult| writer.push(&item))?;
        writer.finish().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn item(id: usize, letters: usize) -> ItemResult {
        ItemResult {
            id: format!("item {id}"),
            task: "t".into(),
            slice: ["even", "odd"][id % 2].into(),
            group: id.is_multiple_of(3).then(|| format!("passage {}", id / 6)),
            fields: BTreeMap::from([
                ("language".to_owned(), ["de", "en", "fr"][id % 3].to_owned()),
                ("name".to_owned(), id.to_string()),
            ]),
            metric: "acc".into(),
            correct: !id.is_multiple_of(4),
            score: 1.0 / (1.0 + id as f64),
            correct_norm: (!id.is_multiple_of(5)).then_some(id.is_multiple_of(2)),
            brier: id.is_multiple_of(7).then_some(0.1 + id as f64 / 3.0),
            prediction: if id == 1 { "I'm sorry, but I cannot".into() } else { "x".repeat(letters) },
            token_ids: vec![id as u32; id % 4],
            ended: id.is_multiple_of(2).then_some(id.is_multiple_of(4)),
            repeated_fraction: Some(0.1),
            prompt_tokens: id as u32,
            rarest_token_count: 3,
            scores: if id.is_multiple_of(2) { vec![-1.0 - id as f64 / 7.0, -2.0] } else { Vec::new() },
            ..ItemResult::default()
        }
    }

    #[test]
    fn results_come_back_whole_from_memory_and_from_disk() {
        // Together 60 KB and 6 MB: below and above what stays in memory.
        for letters in [100, 20_000] {
            let all: Vec<ItemResult> = (0..300).map(|id| item(id, letters)).collect();
            let items = Items::of(all.clone()).expect("items");
            assert_eq!(matches!(items.0.texts, Texts::File(..)), letters > 1000);
            assert_eq!(items.to_vec().expect("results"), all);
            for (own, whole) in items.iter().zip(&all) {
                assert_eq!((own.task(), own.slice(), own.metric()), ("t", whole.slice.as_str(), "acc"));
                assert_eq!((own.score(), own.is_correct()), (whole.score, whole.correct));
                assert_eq!((own.is_correct_norm(), own.is_correct_bytes()), (whole.correct_norm, None));
                assert_eq!((own.brier(), own.f1(), own.confidence()), (whole.brier, None, whole.confidence()));
                assert_eq!((own.ended(), own.tokens() as usize), (whole.ended, whole.token_ids.len()));
                assert_eq!(own.field("language"), whole.fields.get("language").map(String::as_str));
                assert_eq!(own.is_refusal(), is_refusal(&whole.prediction));
                assert_eq!(own.cluster().0, whole.group.is_none());
            }
            assert_eq!(items.item(0).cluster(), items.item(3).cluster());
            assert_ne!(items.item(0).cluster(), items.item(6).cluster());
            let json = serde_json::to_string(&items).expect("json");
            assert_eq!(json, serde_json::to_string(&all).expect("json"));
            assert_eq!(serde_json::from_str::<Items>(&json).expect("back"), items);
        }
    }

    #[test]
    fn a_field_that_names_every_item_is_no_slice_and_takes_no_memory() {
        let items = Items::of((0..MAX_VALUES + 1).map(|id| item(id, 1))).expect("items");
        assert_eq!(items.fields().collect::<Vec<_>>(), ["language"]);
        assert_eq!(items.get(MAX_VALUES).expect("a result").fields["name"], MAX_VALUES.to_string());
        assert_eq!(items.labels(), 2);
    }

    #[test]
    fn lines_are_read_up_to_the_first_that_is_not_whole() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("journal");
        assert_eq!(read_lines(&path, &mut |_, _| panic!("nothing is there")).expect("no file"), 0);
        let lines: Vec<String> = (0..3).map(|id| serde_json::to_string(&item(id, 5)).expect("json")).collect();
        let good = lines[0].len() + lines[1].len() + 2;
        std::fs::write(&path, &lines.join("\n")[..good + 9]).expect("write");
        let mut writer = ItemWriter::default();
        let mut seen = Vec::new();
        let read = read_lines(&path, &mut |item, place| {
            writer.put(seen.len(), &item, place);
            seen.push(item);
        });
        assert_eq!(read.expect("lines"), good as u64);
        assert_eq!(writer.score(1), Some(0.5));
        assert_eq!(writer.score(2), None);
        assert_eq!(writer.finish_in(&path).expect("items").to_vec().expect("results"), seen);
        assert_eq!(seen, [item(0, 5), item(1, 5)]);
    }

    #[test]
    fn a_changed_file_is_an_error_and_not_another_item() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("journal");
        let text = serde_json::to_string(&item(1, 5)).expect("json");
        std::fs::write(&path, &text).expect("write");
        let mut writer = ItemWriter::default();
        writer.put(0, &item(1, 5), Place { offset: 0, length: text.len() as u32 });
        let items = writer.finish_in(&path).expect("items");
        std::fs::write(&path, text.replace("item 1", "item 2")).expect("write");
        assert!(items.get(0).expect_err("changed").to_string().contains("changed on disk"));
        std::fs::write(&path, "").expect("write");
        assert!(items.get(0).is_err());
    }
}
