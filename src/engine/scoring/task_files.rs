//! Tasks from the files that people have: the JSONL of the design, folders of files, CSV and Parquet.
//!
//! A line of JSONL with a `type` is an item of our own; other rows, and those of CSV and Parquet, are rows of a
//! benchmark ([`super::layouts`]). A folder is all files below it in the order of their names; the name of a
//! file is its task.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row as ParquetRow};
use serde_json::{Map, Value};

use super::layouts::{Row, item_of_row};
use super::tasks::{MAX_FILE_BYTES, MAX_ITEMS, TaskItem, TaskSet};
use crate::error::{Error, Fault, Result, Stage};

/// Most files of a folder.
const MAX_FILES: usize = 4096;
/// Folders below the one that was named.
const MAX_DEPTH: usize = 4;
/// Files that are read.
const EXTENSIONS: [&str; 3] = ["jsonl", "csv", "parquet"];

fn fault(path: &Path, place: impl Into<Option<String>>, cause: impl Into<String>) -> Fault {
    let fault =
        Fault::new(Stage::Tasks, cause).fix("give JSONL, CSV or Parquet with the columns of a benchmark").file(path);
    match place.into() {
        Some(place) => fault.at(place),
        None => fault,
    }
}

/// Reads a file, or all files of a folder.
pub(super) fn read(path: &Path) -> Result<TaskSet> {
    if !path.is_dir() {
        return read_file(path);
    }
    let mut files = Vec::new();
    find_files(path, 0, &mut files)?;
    files.sort();
    let mut ids = HashSet::new();
    let mut hasher = blake3::Hasher::new();
    let mut items: Vec<TaskItem> = Vec::new();
    for file in &files {
        let set = read_file(file)?;
        hasher.update(set.hash.as_bytes());
        for item in set.items {
            if !ids.insert(item.id.clone()) {
                return Err(fault(file, None, format!("the id {:?} was used before", item.id))
                    .fix("give every item its own id: ids pair items between models")
                    .into());
            }
            items.push(item);
        }
        if items.len() > MAX_ITEMS {
            return Err(fault(path, None, format!("the folder has more than {MAX_ITEMS} items")).into());
        }
    }
    if items.is_empty() {
        return Err(fault(path, None, "the folder has no tasks").into());
    }
    Ok(TaskSet {
        path: path.to_owned(),
        hash: hasher.finalize().to_hex().to_string(),
        items,
        has_special_tokens: false,
    })
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

fn read_file(path: &Path) -> Result<TaskSet> {
    let length = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
    if length > MAX_FILE_BYTES {
        return Err(Fault::new(Stage::Tasks, format!("the file has {length} bytes, more than {MAX_FILE_BYTES}"))
            .fix("split it, or score a sample of its items")
            .file(path)
            .into());
    }
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let kind = extension(path);
    if kind != "csv" && kind != "parquet" && !is_rows(&bytes) {
        return TaskSet::parse(&bytes, path);
    }
    let rows = match kind.as_str() {
        "csv" => csv_rows(&bytes, path)?,
        "parquet" => parquet_rows(&bytes, path)?,
        _ => json_rows(&bytes, path)?,
    };
    let task = task_name(path);
    let items = rows.into_iter().enumerate().map(|(number, row)| {
        item_of_row(row, &task, number).map_err(|err| Error::from(err.at(format!("row {}", number + 1)).file(path)))
    });
    let items = items.collect::<Result<Vec<TaskItem>>>()?;
    if items.is_empty() {
        return Err(fault(path, None, "the file has no rows").into());
    }
    let hash = blake3::hash(&bytes).to_hex().to_string();
    Ok(TaskSet { path: path.to_owned(), hash, items, has_special_tokens: false })
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

/// True for JSONL whose first object is no item of our own.
fn is_rows(bytes: &[u8]) -> bool {
    let first = bytes.split(|&byte| byte == b'\n').find(|line| !line.trim_ascii().is_empty());
    let row = first.and_then(|line| serde_json::from_slice::<Row>(line.trim_ascii()).ok());
    row.is_some_and(|row| !["type", "task", "slice"].iter().any(|key| row.contains_key(*key)))
}

fn json_rows(bytes: &[u8], path: &Path) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        check_count(rows.len(), path)?;
        rows.push(
            serde_json::from_slice(line)
                .map_err(|err| fault(path, format!("line {}", index + 1), format!("not a JSON object: {err}")))?,
        );
    }
    Ok(rows)
}

fn check_count(count: usize, path: &Path) -> Result<()> {
    if count < MAX_ITEMS {
        Ok(())
    } else {
        Err(fault(path, None, format!("the file has more than {MAX_ITEMS} rows")).fix("split it").into())
    }
}

fn csv_rows(bytes: &[u8], path: &Path) -> Result<Vec<Row>> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(bytes);
    let mut header: Option<Vec<String>> = None;
    let mut subject = None;
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|err| {
            let line = err.position().map(|position| format!("line {}", position.line()));
            fault(path, line, format!("not CSV: {err}"))
        })?;
        if header.is_none() {
            // MMLU's own files have no header: question, four choices, the right letter.
            let bare =
                record.len() == 6 && record.get(5).is_some_and(|cell| ["A", "B", "C", "D"].contains(&cell.trim()));
            if bare {
                header = Some(["question", "A", "B", "C", "D", "answer"].map(str::to_owned).to_vec());
                subject = Some(task_name(path));
            } else {
                header =
                    Some(record.iter().map(|cell| cell.trim().trim_start_matches('\u{feff}').to_owned()).collect());
                continue;
            }
        }
        check_count(rows.len(), path)?;
        let columns = header.iter().flatten().cloned();
        let mut row: Row =
            columns.zip(&record).map(|(column, cell)| (column, Value::String(cell.to_owned()))).collect();
        if let Some(subject) = &subject {
            row.insert("subject".to_owned(), Value::String(subject.clone()));
        }
        rows.push(row);
    }
    Ok(rows)
}

/// Rows of a Parquet file; what its reader does not survive is a fault of the file.
fn parquet_rows(bytes: &[u8], path: &Path) -> Result<Vec<Row>> {
    std::panic::catch_unwind(|| read_parquet(bytes, path))
        .unwrap_or_else(|_| Err(fault(path, None, "the Parquet file is damaged").into()))
}

fn read_parquet(bytes: &[u8], path: &Path) -> Result<Vec<Row>> {
    let refuse = |err: parquet::errors::ParquetError| {
        let cause = format!("the Parquet file cannot be read: {err}");
        fault(path, None, cause).fix("write it with Snappy, gzip or zstd, or without compression, or as JSONL")
    };
    let reader = SerializedFileReader::new(bytes::Bytes::copy_from_slice(bytes)).map_err(refuse)?;
    let mut rows = Vec::new();
    for row in reader.get_row_iter(None).map_err(refuse)? {
        check_count(rows.len(), path)?;
        rows.push(object(&row.map_err(refuse)?, 0));
    }
    Ok(rows)
}

/// Levels of nesting that are followed; benchmarks have two.
const MAX_NESTING: usize = 8;

fn object(row: &ParquetRow, depth: usize) -> Row {
    row.get_column_iter().map(|(name, field)| (name.clone(), value(field, depth))).collect()
}

fn value(field: &Field, depth: usize) -> Value {
    match field {
        _ if depth > MAX_NESTING => Value::Null,
        Field::Bool(truth) => Value::Bool(*truth),
        Field::Byte(number) => Value::from(*number),
        Field::Short(number) => Value::from(*number),
        Field::Int(number) => Value::from(*number),
        Field::Long(number) => Value::from(*number),
        Field::UByte(number) => Value::from(*number),
        Field::UShort(number) => Value::from(*number),
        Field::UInt(number) => Value::from(*number),
        Field::ULong(number) => Value::from(*number),
        Field::Float(number) => Value::from(*number),
        Field::Double(number) => Value::from(*number),
        Field::Str(text) => Value::String(text.clone()),
        Field::Bytes(bytes) => Value::String(String::from_utf8_lossy(bytes.data()).into_owned()),
        Field::Group(row) => Value::Object(object(row, depth + 1)),
        Field::ListInternal(list) => {
            Value::Array(list.elements().iter().map(|field| value(field, depth + 1)).collect())
        }
        Field::MapInternal(map) => {
            let entries = map.entries().iter().map(|(key, field)| {
                let key = value(key, depth + 1);
                (key.as_str().map_or_else(|| key.to_string(), str::to_owned), value(field, depth + 1))
            });
            Value::Object(entries.collect::<Map<String, Value>>())
        }
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scoring::TaskKind;
    use std::sync::Arc;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("folder")
    }

    #[test]
    fn csv_comes_with_a_header_or_as_mmlu_without_one() {
        let folder = folder();
        let path = folder.path().join("abstract_algebra_test.csv");
        std::fs::write(&path, "\"What, then?\",1,2,3,4,C\nWhy?,a,b,c,d,A\n").expect("write");
        let set = TaskSet::read(&path).expect("tasks");
        assert_eq!((set.items.len(), set.items[0].task.as_str()), (2, "abstract_algebra"));
        assert!(set.items[0].kind.prompt().contains("about abstract algebra.\n\nWhat, then?\nA. 1"));
        assert_eq!(set.items[0].kind.wanted(), " C");
        let path = folder.path().join("piqa.csv");
        std::fs::write(&path, "\u{feff}goal,sol1,sol2,label\nDry,sun,rain,1\n").expect("write");
        assert_eq!(TaskSet::read(&path).expect("tasks").items[0].kind.wanted(), " rain");
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
        let ids: Vec<&str> = set.items.iter().map(|item| item.id.as_str()).collect();
        assert_eq!(ids, ["a", "gsm8k-0", "gsm8k-1"]);
        assert_eq!(set.items[0].fields["language"], "de");
        assert!(matches!(set.items[1].kind, TaskKind::ChainOfThought { .. }));
        std::fs::write(folder.path().join("c.jsonl"), own).expect("write");
        assert!(TaskSet::read(folder.path()).expect_err("twice").to_string().contains("was used before"));
    }

    #[test]
    fn parquet_of_the_hub_is_read_with_its_lists_and_groups() {
        use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
        use parquet::file::properties::WriterProperties;
        use parquet::file::writer::SerializedFileWriter;
        let schema = "message schema {
            OPTIONAL BYTE_ARRAY question (UTF8);
            OPTIONAL GROUP choices (LIST) { REPEATED GROUP list { OPTIONAL BYTE_ARRAY element (UTF8); } }
            OPTIONAL INT64 answer;
        }";
        let schema = Arc::new(parquet::schema::parser::parse_message_type(schema).expect("schema"));
        let properties = WriterProperties::builder().set_compression(parquet::basic::Compression::SNAPPY).build();
        let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties)).expect("writer");
        let mut group = writer.next_row_group().expect("group");
        let bytes = |text: &str| ByteArray::from(text);
        let mut column = group.next_column().expect("column").expect("question");
        column
            .typed::<ByteArrayType>()
            .write_batch(&[bytes("1+1?"), bytes("2+2?")], Some(&[1, 1]), None)
            .expect("write");
        column.close().expect("close");
        let mut column = group.next_column().expect("column").expect("choices");
        let choices: Vec<ByteArray> = ["2", "3", "5", "4"].map(bytes).to_vec();
        column.typed::<ByteArrayType>().write_batch(&choices, Some(&[3, 3, 3, 3]), Some(&[0, 1, 0, 1])).expect("write");
        column.close().expect("close");
        let mut column = group.next_column().expect("column").expect("answer");
        column.typed::<Int64Type>().write_batch(&[0, 1], Some(&[1, 1]), None).expect("write");
        column.close().expect("close");
        group.close().expect("close");
        let folder = folder();
        let path = folder.path().join("mmlu.parquet");
        std::fs::write(&path, writer.into_inner().expect("bytes")).expect("write");
        let set = TaskSet::read(&path).expect("tasks");
        assert_eq!(set.items.len(), 2);
        assert_eq!(set.items[1].kind.prompt(), "2+2?\nA. 5\nB. 4\nAnswer:");
        assert_eq!(set.items[1].kind.wanted(), " B");
        let whole = std::fs::read(&path).expect("read");
        for end in [0, 4, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..end]).expect("write");
            assert!(TaskSet::read(&path).is_err());
        }
    }
}
