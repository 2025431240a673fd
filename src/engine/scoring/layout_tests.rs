//! Every benchmark's layout, read from CSV and from Parquet in each compression that hubs use: the same items.

use std::path::Path;
use std::sync::Arc;

use parquet::basic::{Compression, GzipLevel, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;

use super::tasks::{TaskKind, TaskSet};

/// A column of a Parquet file with its two rows.
enum Column {
    Text(&'static str, [&'static str; 2]),
    Number(&'static str, [i64; 2]),
    List(&'static str, [&'static [&'static str]; 2]),
    /// Two lists in a group, as ARC's choices.
    Group(&'static str, [(&'static str, [&'static [&'static str]; 2]); 2]),
}

const LIST: &str = "(LIST) { REPEATED GROUP list { OPTIONAL BYTE_ARRAY element (UTF8); } }";

impl Column {
    fn schema(&self) -> String {
        match self {
            Self::Text(name, _) => format!("OPTIONAL BYTE_ARRAY {name} (UTF8);"),
            Self::Number(name, _) => format!("OPTIONAL INT64 {name};"),
            Self::List(name, _) => format!("OPTIONAL GROUP {name} {LIST}"),
            Self::Group(name, lists) => {
                let lists: String = lists.iter().map(|(name, _)| format!("OPTIONAL GROUP {name} {LIST} ")).collect();
                format!("OPTIONAL GROUP {name} {{ {lists} }}")
            }
        }
    }

    /// What the cell of a row says in CSV: lists as JSON.
    fn cell(&self, row: usize) -> String {
        match self {
            Self::Text(_, values) => values[row].to_owned(),
            Self::Number(_, values) => values[row].to_string(),
            Self::List(_, rows) => serde_json::json!(rows[row]).to_string(),
            Self::Group(_, lists) => {
                let entries = lists.iter().map(|(name, rows)| ((*name).to_owned(), serde_json::json!(rows[row])));
                serde_json::Value::Object(entries.collect()).to_string()
            }
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Text(name, _) | Self::Number(name, _) | Self::List(name, _) | Self::Group(name, _) => name,
        }
    }

    /// The leaves in the schema's order: texts or numbers, with the level at which a list's entry is there.
    fn leaves(&self) -> Vec<Leaf> {
        match self {
            Self::Text(_, values) => vec![Leaf::Texts(values.map(|value| vec![value]), 1)],
            Self::Number(_, values) => vec![Leaf::Numbers(*values)],
            Self::List(_, rows) => vec![Leaf::Texts(rows.map(<[_]>::to_vec), 3)],
            Self::Group(_, lists) => lists.iter().map(|(_, rows)| Leaf::Texts(rows.map(<[_]>::to_vec), 4)).collect(),
        }
    }
}

enum Leaf {
    Texts([Vec<&'static str>; 2], i16),
    Numbers([i64; 2]),
}

fn parquet(columns: &[Column], compression: Compression) -> Vec<u8> {
    let schema: String = columns.iter().map(|column| column.schema() + "\n").collect();
    let schema = parquet::schema::parser::parse_message_type(&format!("message schema {{ {schema} }}"));
    let properties = WriterProperties::builder().set_compression(compression).build();
    let mut writer =
        SerializedFileWriter::new(Vec::new(), Arc::new(schema.expect("schema")), Arc::new(properties)).expect("writer");
    let mut group = writer.next_row_group().expect("group");
    for leaf in columns.iter().flat_map(Column::leaves) {
        let mut column = group.next_column().expect("column").expect("another leaf");
        match leaf {
            Leaf::Numbers(values) => {
                column.typed::<Int64Type>().write_batch(&values, Some(&[1, 1]), None).expect("numbers");
            }
            Leaf::Texts(rows, level) => {
                let values: Vec<ByteArray> = rows.iter().flatten().map(|&text| ByteArray::from(text)).collect();
                let levels = vec![level; values.len()];
                // The first entry of a row begins a new record.
                let repeats: Vec<i16> =
                    rows.iter().flat_map(|row| (0..row.len()).map(|place| i16::from(place > 0))).collect();
                let repeats = (level > 1).then_some(&repeats[..]);
                column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), repeats).expect("texts");
            }
        }
        column.close().expect("closes");
    }
    group.close().expect("closes");
    writer.into_inner().expect("bytes")
}

fn csv(columns: &[Column]) -> String {
    let quoted = |text: String| format!("\"{}\"", text.replace('"', "\"\""));
    let line = |cells: Vec<String>| cells.join(",") + "\n";
    let rows = (0..2).map(|row| line(columns.iter().map(|column| quoted(column.cell(row))).collect()));
    line(columns.iter().map(|column| column.name().to_owned()).collect()) + &rows.collect::<String>()
}

/// The published columns of a benchmark, with the beginning of the first prompt and what it wants.
fn benchmarks() -> Vec<(&'static str, Vec<Column>, &'static str, &'static str)> {
    const FOUR: [&[&str]; 2] = [&["one", "two", "three", "four"], &["a", "b", "c", "d"]];
    vec![
        (
            "mmlu",
            vec![
                Column::Text("question", ["1+1?", "What, \"then\"?"]),
                Column::Text("subject", ["abstract_algebra", "anatomy"]),
                Column::List("choices", FOUR),
                Column::Number("answer", [1, 3]),
            ],
            "The following are multiple choice questions (with answers) about abstract algebra.",
            " B",
        ),
        (
            "hellaswag",
            vec![
                Column::Number("ind", [24, 25]),
                Column::Text("activity_label", ["Roof shingle removal", "Cooking"]),
                Column::Text("ctx_a", ["A man is sitting on a roof.", "She stirs."]),
                Column::Text("ctx_b", ["he", "then"]),
                Column::Text("ctx", ["A man is sitting on a roof. he", "She stirs. then"]),
                Column::List("endings", FOUR),
                Column::Text("label", ["2", "0"]),
            ],
            "Roof shingle removal: A man is sitting on a roof. He",
            " three",
        ),
        (
            "arc",
            vec![
                Column::Text("id", ["Mercury_1", "Mercury_2"]),
                Column::Text("question", ["Why?", "When?"]),
                Column::Group("choices", [("text", FOUR), ("label", [&["A", "B", "C", "D"], &["1", "2", "3", "4"]])]),
                Column::Text("answerKey", ["D", "1"]),
            ],
            "Question: Why?\nAnswer:",
            " four",
        ),
        (
            "piqa",
            vec![
                Column::Text("goal", ["To dry it", "To eat"]),
                Column::Text("sol1", ["hang it up", "cook"]),
                Column::Text("sol2", ["wet it", "sleep"]),
                Column::Number("label", [0, 0]),
            ],
            "Question: To dry it\nAnswer:",
            " hang it up",
        ),
        (
            "winogrande",
            vec![
                Column::Text("sentence", ["Ann paid Bo because _ was owed.", "The _ fell."]),
                Column::Text("option1", ["Ann", "cup"]),
                Column::Text("option2", ["Bo", "sky"]),
                Column::Text("answer", ["2", "1"]),
            ],
            "Ann paid Bo because Ann",
            "Ann paid Bo because Bo",
        ),
        (
            "gsm8k",
            vec![
                Column::Text("question", ["How many?", "How far?"]),
                Column::Text("answer", ["2+3=5\n#### 5", "#### 7"]),
            ],
            "Question: How many?\nAnswer:",
            "2+3=5\n#### 5",
        ),
    ]
}

fn read(path: &Path, bytes: &[u8]) -> TaskSet {
    std::fs::write(path, bytes).expect("writes");
    TaskSet::read(path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

#[test]
fn every_benchmark_is_read_the_same_from_csv_and_from_parquet_however_it_is_compressed() {
    let folder = tempfile::tempdir().expect("folder");
    for (name, columns, prompt, wanted) in benchmarks() {
        let plain = read(&folder.path().join(format!("{name}.csv")), csv(&columns).as_bytes());
        assert_eq!(plain.items.len(), 2, "{name}");
        let plain = plain.items.to_vec().expect("items");
        let first = &plain[0].kind;
        let beginning = match first {
            TaskKind::MultipleContext { contexts, .. } => contexts[0].as_str(),
            other => other.prompt(),
        };
        assert!(beginning.starts_with(prompt), "{name}: {beginning:?}");
        assert_eq!(first.wanted(), wanted, "{name}");
        for compression in [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::GZIP(GzipLevel::default()),
            Compression::ZSTD(ZstdLevel::default()),
        ] {
            let path = folder.path().join(format!("{name}.parquet"));
            let packed = read(&path, &parquet(&columns, compression));
            for (ours, theirs) in packed.items.iter().zip(&plain) {
                let ours = ours.expect("an item");
                assert_eq!((&ours.kind, &ours.slice), (&theirs.kind, &theirs.slice), "{name} {compression:?}");
                assert_eq!((&ours.id, &ours.task), (&theirs.id, &theirs.task), "{name} {compression:?}");
            }
            assert_eq!(packed.items.len(), 2);
        }
    }
}
