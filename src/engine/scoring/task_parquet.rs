//! Rows of a Parquet file, read a page of every column at a time.

use std::fs::File;
use std::io::BufReader;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, FileReader, Length, SerializedFileReader};
use parquet::record::{Field, Row as ParquetRow};
use serde_json::{Map, Value};

use super::layouts::Row;
use super::task_files::fault;
use crate::error::Result;

type Outcome<T> = std::result::Result<T, ParquetError>;

/// A file of which no more is asked for at once than it has, whatever its header says.
struct Bounded {
    file: File,
    length: u64,
}

impl Length for Bounded {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for Bounded {
    type T = BufReader<File>;

    fn get_read(&self, start: u64) -> Outcome<Self::T> {
        self.file.get_read(start)
    }

    fn get_bytes(&self, start: u64, length: usize) -> Outcome<bytes::Bytes> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.length) {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} of a file of {}", self.length)));
        }
        self.file.get_bytes(start, length)
    }
}

/// Gives every row of a file to `take`.
///
/// # Errors
/// A file that is damaged or packed in a way that is not read, and what `take` answers.
pub(super) fn read_rows(file: File, path: &Path, take: &mut dyn FnMut(Row) -> Result<()>) -> Result<()> {
    let reader = survive(path, || {
        let length = file.metadata()?.len();
        SerializedFileReader::new(Bounded { file, length })
    })?;
    let mut rows = survive(path, || reader.get_row_iter(None))?;
    while let Some(row) = survive(path, || rows.next().transpose())? {
        take(object(&row, 0))?;
    }
    Ok(())
}

/// What the reader answers; what it does not survive is a fault of the file.
fn survive<T>(path: &Path, read: impl FnOnce() -> Outcome<T>) -> Result<T> {
    // Nothing that a panic may have left half done is looked at again.
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(err)) => Err(fault(path, None, format!("the Parquet file cannot be read: {err}"))
            .fix("write it with Snappy, gzip or zstd, or without compression, or as JSONL")
            .into()),
        Err(_) => Err(fault(path, None, "the Parquet file is damaged").into()),
    }
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
    use std::sync::Arc;

    use super::*;
    use crate::scoring::TaskSet;

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
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("mmlu.parquet");
        std::fs::write(&path, writer.into_inner().expect("bytes")).expect("write");
        let set = TaskSet::read(&path).expect("tasks");
        assert_eq!(set.items.len(), 2);
        let second = set.items.get(1).expect("an item");
        assert_eq!(second.kind.prompt(), "2+2?\nA. 5\nB. 4\nAnswer:");
        assert_eq!(second.kind.wanted(), " B");
        let whole = std::fs::read(&path).expect("read");
        assert_eq!(set.hash, blake3::hash(&whole).to_hex().to_string());
        for end in [0, 4, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..end]).expect("write");
            assert!(TaskSet::read(&path).is_err());
        }
    }

    #[test]
    fn no_more_is_asked_for_than_the_file_has() {
        let mut file = tempfile::tempfile().expect("file");
        std::io::Write::write_all(&mut file, b"0123456789").expect("write");
        let bounded = Bounded { file, length: 10 };
        assert_eq!(bounded.get_bytes(4, 6).expect("within").as_ref(), b"456789");
        assert!(bounded.get_bytes(4, 7).is_err() && bounded.get_bytes(11, 0).is_err());
        assert!(bounded.get_bytes(1, usize::MAX).is_err(), "an allocation of what a header says");
    }
}
