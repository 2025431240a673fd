//! Tasks from the files that people have: the JSONL of the design, folders of files, CSV and Parquet.
//!
//! A line of JSONL with a `type` is an item of our own; other rows, and those of CSV and Parquet, are rows of a
//! benchmark ([`super::layouts`]). A folder is all files below it in the order of their names; the name of a
//! file is its task. Files are read line by line or row by row, and what they say goes where [`TaskItems`] keeps
//! it, so that memory holds no file.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::items::hash_of;
use super::layouts::{Row, item_of_row};
use super::line_reader::{Hashing, Lines, MAX_LINE_BYTES};
use super::task_lines::item_of_line;
use super::tasks::{TaskItem, TaskSet};
use super::{TaskItemWriter, TaskItems, task_parquet};
use crate::error::{Error, Fault, Result, Stage};

/// Largest tasks file: seconds to read, and as much may go into a temporary file. A folder may have many.
const MAX_FILE_BYTES: u64 = 2 << 30;
/// Most items.
const MAX_ITEMS: usize = 1_000_000;
/// Most files of a folder.
const MAX_FILES: usize = 4096;
/// Folders below the one that was named.
const MAX_DEPTH: usize = 4;
/// Files that are read.
const EXTENSIONS: [&str; 3] = ["jsonl", "csv", "parquet"];

pub(super) fn fault(path: &Path, place: impl Into<Option<String>>, cause: impl Into<String>) -> Fault {
    let fault =
        Fault::new(Stage::Tasks, cause).fix("give JSONL, CSV or Parquet with the columns of a benchmark").file(path);
    match place.into() {
        Some(place) => fault.at(place),
        None => fault,
    }
}

/// Items as they are read from one file or many, with the ids that were used.
#[derive(Default)]
struct Intake {
    writer: TaskItemWriter,
    ids: HashSet<[u8; 16]>,
}

impl Intake {
    /// Takes the next item in; `located` adds its place to a fault.
    fn take(&mut self, item: &TaskItem, located: impl FnOnce(Fault) -> Fault) -> Result<()> {
        if self.writer.len() == MAX_ITEMS {
            let many = Fault::new(Stage::Tasks, format!("there are more than {MAX_ITEMS} items"));
            return Err(located(many.fix("split the file")).into());
        }
        if !self.ids.insert(hash_of(&item.id)) {
            let twice = Fault::new(Stage::Tasks, format!("the id {:?} was used before", item.id));
            return Err(located(twice.fix("give every item its own id: ids pair items between models")).into());
        }
        self.writer.push(item)
    }

    fn finish(self) -> Result<TaskItems> {
        // The ids go before the list of items is made as long as it is.
        drop(self.ids);
        self.writer.finish()
    }
}

/// Takes the rows of one file in as items.
struct Rows<'a> {
    path: &'a Path,
    task: String,
    count: usize,
    intake: &'a mut Intake,
}

impl<'a> Rows<'a> {
    fn new(path: &'a Path, intake: &'a mut Intake) -> Self {
        Self { path, task: task_name(path), count: 0, intake }
    }

    fn take(&mut self, row: Row) -> Result<()> {
        let located = |fault: Fault| fault.at(format!("row {}", self.count + 1)).file(self.path);
        let item = item_of_row(row, &self.task, self.count).map_err(located)?;
        self.intake.take(&item, located)?;
        self.count += 1;
        Ok(())
    }
}

/// Reads a file, or all files of a folder.
pub(super) fn read(path: &Path) -> Result<TaskSet> {
    let mut intake = Intake::default();
    let hash = if path.is_dir() { read_folder(path, &mut intake)? } else { read_file(path, &mut intake)? };
    Ok(TaskSet { path: path.to_owned(), hash, items: intake.finish()?, has_special_tokens: false })
}

/// Checks items of our own in the bytes of a file.
pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<TaskSet> {
    let mut intake = Intake::default();
    let hash = read_jsonl(bytes, Some(false), &mut Rows::new(path, &mut intake))?;
    if intake.writer.is_empty() {
        return Err(no_items(path).into());
    }
    Ok(TaskSet { path: path.to_owned(), hash, items: intake.finish()?, has_special_tokens: false })
}

fn no_items(path: &Path) -> Fault {
    Fault::new(Stage::Tasks, "the file has no items")
        .fix("write one JSON object a line with id, task, slice, type and prompt")
        .file(path)
}

/// Takes the items of all files below a folder; the hash of their hashes.
fn read_folder(path: &Path, intake: &mut Intake) -> Result<String> {
    let mut files = Vec::new();
    find_files(path, 0, &mut files)?;
    files.sort();
    let mut hasher = blake3::Hasher::new();
    for file in &files {
        hasher.update(read_file(file, intake)?.as_bytes());
    }
    if files.is_empty() {
        return Err(fault(path, None, "the folder has no tasks").into());
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn extension(path: &Path) -> String {
    path.extension().map(|extension| extension.to_string_lossy().to_lowercase()).unwrap_or_default()
}

fn find_files(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let entry = entry.map_err(Error::io("read", folder))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(Error::io("read", &path))?;
        if kind.is_dir() && depth < MAX_DEPTH {
            find_files(&path, depth + 1, files)?;
        } else if kind.is_file() && EXTENSIONS.contains(&extension(&path).as_str()) {
            if files.len() == MAX_FILES {
                return Err(fault(folder, None, format!("there are more than {MAX_FILES} files")).into());
            }
            files.push(path);
        }
    }
    Ok(())
}

/// Takes the items of a file, of which there is one at least; the BLAKE3 of its bytes in hex.
fn read_file(path: &Path, intake: &mut Intake) -> Result<String> {
    let failed = || Error::io("read", path);
    let mut file = File::open(path).map_err(failed())?;
    let length = file.metadata().map_err(failed())?.len();
    if length > MAX_FILE_BYTES {
        return Err(Fault::new(Stage::Tasks, format!("the file has {length} bytes, more than {MAX_FILE_BYTES}"))
            .fix("split it, or score a sample of its items")
            .file(path)
            .into());
    }
    let before = intake.writer.len();
    let mut rows = Rows::new(path, intake);
    let (hash, none) = match extension(path).as_str() {
        "csv" => (read_csv(file, &mut rows)?, fault(path, None, "the file has no rows")),
        "parquet" => {
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader(&mut file).map_err(failed())?;
            task_parquet::read_rows(file, path, &mut |row| rows.take(row))?;
            (hasher.finalize().to_hex().to_string(), fault(path, None, "the file has no rows"))
        }
        _ => (read_jsonl(file, None, &mut rows)?, no_items(path)),
    };
    if intake.writer.len() == before {
        return Err(none.into());
    }
    Ok(hash)
}

/// A task's name from its file: `abstract_algebra_test.csv` is `abstract_algebra`.
fn task_name(path: &Path) -> String {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    // Shards of the hub are called `validation-00000-of-00001`; their folder says what they are.
    let shard = ["test-", "validation-", "train-", "dev-"].iter().any(|split| stem.starts_with(split));
    let folder = path.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    let name = if shard { folder.unwrap_or(stem) } else { stem };
    let bare = ["_test", "_val", "_dev", "_validation"].iter().find_map(|end| name.strip_suffix(end));
    bare.unwrap_or(&name).to_owned()
}

/// Takes the lines of a file; where nobody knows whether they are rows of a benchmark, the first one says it.
fn read_jsonl(file: impl Read, mut are_rows: Option<bool>, rows: &mut Rows<'_>) -> Result<String> {
    let path = rows.path;
    let mut lines = Lines::new(file);
    while lines.advance().map_err(Error::io("read", path))? {
        let located = |fault: Fault| fault.at(format!("line {}", lines.number())).file(path);
        let line = lines.text().map_err(located)?;
        if line.trim().is_empty() {
            continue;
        }
        if *are_rows.get_or_insert_with(|| is_row(line)) {
            let row = serde_json::from_str(line);
            rows.take(row.map_err(|err| located(fault(path, None, format!("not a JSON object: {err}"))))?)?;
        } else {
            let item = item_of_line(line).map_err(located)?;
            rows.intake.take(&item, located)?;
        }
    }
    Ok(lines.hash())
}

/// True for an object that is no item of our own.
fn is_row(line: &str) -> bool {
    let row = serde_json::from_str::<Row>(line);
    row.is_ok_and(|row| !["type", "task", "slice"].iter().any(|key| row.contains_key(*key)))
}

/// What the cells of a CSV file are.
struct Header {
    columns: Vec<String>,
    /// For MMLU's own files, which say their subject in their name alone.
    subject: Option<String>,
}

impl Header {
    /// The header that the first row is, or that of MMLU's own files, which have none: question, four choices, the
    /// right letter.
    fn of(first: &csv::StringRecord, path: &Path) -> Self {
        let is_letter = |cell: &str| ["A", "B", "C", "D"].contains(&cell.trim());
        if first.len() == 6 && first.get(5).is_some_and(is_letter) {
            let columns = ["question", "A", "B", "C", "D", "answer"].map(str::to_owned).to_vec();
            return Self { columns, subject: Some(task_name(path)) };
        }
        let name = |cell: &str| cell.trim().trim_start_matches('\u{feff}').to_owned();
        Self { columns: first.iter().map(name).collect(), subject: None }
    }

    fn row(&self, record: &csv::StringRecord) -> Row {
        let columns = self.columns.iter().cloned();
        let mut row: Row = columns.zip(record).map(|(column, cell)| (column, Value::String(cell.to_owned()))).collect();
        if let Some(subject) = &self.subject {
            row.insert("subject".to_owned(), Value::String(subject.clone()));
        }
        row
    }
}

fn read_csv(file: impl Read, rows: &mut Rows<'_>) -> Result<String> {
    let path = rows.path;
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(Hashing::new(file, MAX_LINE_BYTES));
    let mut record = csv::StringRecord::new();
    let mut header: Option<Header> = None;
    loop {
        let line = reader.position().line();
        let is_there = reader.read_record(&mut record).map_err(|err| {
            let line = err.position().map_or(line, csv::Position::line);
            fault(path, format!("line {line}"), format!("not CSV: {err}"))
        })?;
        if !is_there {
            return Ok(reader.get_ref().hash());
        }
        reader.get_mut().renew();
        match &header {
            Some(header) => rows.take(header.row(&record))?,
            None => {
                let first = header.insert(Header::of(&record, path));
                if first.subject.is_some() {
                    rows.take(first.row(&record))?;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scoring::TaskKind;

    const CHOICE: &str =
        r#"{"id":"a","task":"t","slice":"s","type":"multiple_choice","prompt":"p","choices":["x","y"],"answer":1}"#;

    fn parse_text(text: &str) -> Result<TaskSet> {
        TaskSet::parse(text.as_bytes(), Path::new("tasks.jsonl"))
    }

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("folder")
    }

    #[test]
    fn csv_comes_with_a_header_or_as_mmlu_without_one() {
        let folder = folder();
        let path = folder.path().join("abstract_algebra_test.csv");
        std::fs::write(&path, "\"What, then?\",1,2,3,4,C\nWhy?,a,b,c,d,A\n").expect("write");
        let set = TaskSet::read(&path).expect("tasks");
        let first = set.items.get(0).expect("an item");
        assert_eq!((set.items.len(), first.task.as_str()), (2, "abstract_algebra"));
        assert!(first.kind.prompt().contains("about abstract algebra.\n\nWhat, then?\nA. 1"));
        assert_eq!(first.kind.wanted(), " C");
        let path = folder.path().join("piqa.csv");
        std::fs::write(&path, "\u{feff}goal,sol1,sol2,label\nDry,sun,rain,1\n").expect("write");
        let set = TaskSet::read(&path).expect("tasks");
        assert_eq!(set.items.get(0).expect("an item").kind.wanted(), " rain");
        assert_eq!(set.hash, blake3::hash(&std::fs::read(&path).expect("read")).to_hex().to_string());
        std::fs::write(&path, "goal,sol1,sol2,label\nDry,sun\n").expect("write");
        let error = TaskSet::read(&path).expect_err("short").to_string();
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn a_folder_is_all_its_files_by_name() {
        let folder = folder();
        let own = r#"{"id":"a","task":"t","slice":"s","language":"de","type":"exact_match","prompt":"p","answer":"x"}"#;
        std::fs::write(folder.path().join("b.jsonl"), own).expect("write");
        std::fs::create_dir(folder.path().join("more")).expect("folder");
        let gsm = r#"{"question":"2?","answer":"1+1\n#### 2"}"#;
        std::fs::write(folder.path().join("more/gsm8k_test.jsonl"), format!("{gsm}\n\n{gsm}\n")).expect("write");
        std::fs::write(folder.path().join("readme.txt"), "not tasks").expect("write");
        let set = TaskSet::read(folder.path()).expect("tasks");
        let items = set.items.to_vec().expect("items");
        let ids: Vec<&str> = items.iter().map(|item| item.id.as_str()).collect();
        assert_eq!(ids, ["a", "gsm8k-0", "gsm8k-1"]);
        assert_eq!(items[0].fields["language"], "de");
        assert!(matches!(items[1].kind, TaskKind::ChainOfThought { .. }));
        // Of a folder the hash is that of its files' hashes.
        let hash_of = |text: &str| blake3::hash(text.as_bytes()).to_hex().to_string();
        let both = format!("{}{}", hash_of(own), hash_of(&format!("{gsm}\n\n{gsm}\n")));
        assert_eq!(set.hash, hash_of(&both));
        std::fs::write(folder.path().join("c.jsonl"), own).expect("write");
        assert!(TaskSet::read(folder.path()).expect_err("twice").to_string().contains("was used before"));
    }

    #[test]
    fn blank_lines_and_extra_keys_are_allowed() {
        let text = format!("\u{feff}{CHOICE}\n\n{}\n", CHOICE.replace("\"a\"", "\"b\",\"note\":[1]"));
        assert_eq!(parse_text(&text).expect("two items").items.len(), 2);
    }

    #[test]
    fn every_error_names_its_line_and_what_to_do() {
        let bad = [
            (CHOICE.to_owned(), "was used before"),
            ("{".to_owned(), "column"),
            ("[]".to_owned(), "column"),
            (CHOICE.replace("\"a\"", "\"b\"").replace("\"answer\":1", "\"answer\":2"), "there are 2 choices"),
            (CHOICE.replace("\"a\"", "\"b\"").replace("\"answer\":1", "\"answer\":-1"), "there are 2 choices"),
            (CHOICE.replace("\"a\"", "\"b\"").replace(",\"y\"", ""), "1 entries"),
            (CHOICE.replace("\"a\"", "\"b\"").replace("multiple_choice", "essay"), "unknown"),
            (CHOICE.replace("\"a\"", "\"b\"").replace("\"prompt\":\"p\",", ""), "`prompt` is missing"),
            (CHOICE.replace("\"a\"", "\"\""), "`id` has 0 bytes"),
            (r#"{"id":"b","task":"t","slice":"s","type":"exact_match","prompt":"","answer":7}"#.into(), "not a string"),
            (r#"{"id":"b","task":"t","slice":"s","type":"exact_match","prompt":"","answer":" "}"#.into(), "not blank"),
            (r#"{"id":"b","task":"t","slice":"s","type":"generate","prompt":""}"#.into(), "`reference` is missing"),
        ];
        for (line, expected) in bad {
            let text = parse_text(&format!("{CHOICE}\n\n{line}\n")).expect_err(&line).to_string();
            assert!(text.contains("line 3") && text.contains(expected), "{line}: {text}");
        }
    }

    #[test]
    fn text_that_is_not_utf8_is_located() {
        let fault = TaskSet::parse(b"\n\xff", Path::new("t")).expect_err("not UTF-8").to_string();
        assert!(fault.contains("line 2"), "{fault}");
        assert!(parse_text("\n").is_err());
    }

    #[test]
    fn rows_of_jsonl_may_begin_with_a_mark_and_say_where_they_are_wrong() {
        let folder = folder();
        let path = folder.path().join("piqa.jsonl");
        let row = r#"{"goal":"Dry","sol1":"sun","sol2":"rain","label":1}"#;
        std::fs::write(&path, format!("\u{feff}\n{row}\r\n\n{row}")).expect("write");
        let set = TaskSet::read(&path).expect("tasks");
        let ids: Vec<String> = set.items.iter().map(|item| item.expect("an item").id).collect();
        assert_eq!(ids, ["piqa-0", "piqa-1"]);
        assert_eq!(set.hash, blake3::hash(&std::fs::read(&path).expect("read")).to_hex().to_string());
        std::fs::write(&path, format!("{row}\n\n{{")).expect("write");
        let error = TaskSet::read(&path).expect_err("cut").to_string();
        assert!(error.contains("line 3") && error.contains("not a JSON object"), "{error}");
        std::fs::write(&path, format!("{row}\n\n{}", row.replace(":1}", ":2}"))).expect("write");
        let error = TaskSet::read(&path).expect_err("no third choice").to_string();
        assert!(error.contains("row 2") && error.contains("2 choices"), "{error}");
    }

    #[test]
    fn what_is_too_long_is_refused_before_it_is_read() {
        let folder = folder();
        let long = "p".repeat(MAX_LINE_BYTES);
        let error = parse_text(&format!("{CHOICE}\n{}", CHOICE.replace("\"p\"", &format!("\"{long}\""))));
        let error = error.expect_err("long").to_string();
        let bytes = CHOICE.len() - 1 + MAX_LINE_BYTES;
        assert!(error.contains("line 2") && error.contains(&format!("{bytes} bytes, more than")), "{error}");
        // A quotation mark that is never closed makes one row of all that follows.
        let path = folder.path().join("piqa.csv");
        std::fs::write(&path, format!("goal,sol1,sol2,label\nDry,sun,rain,1\nDry,\"{long}{long}")).expect("write");
        let error = TaskSet::read(&path).expect_err("open").to_string();
        assert!(error.contains("line 3") && error.contains("quotation mark"), "{error}");
    }
}
