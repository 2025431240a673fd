//! llama.cpp's importance matrices: the GGUF form and the older `.dat`, read and written.
//!
//! Sources: `tools/imatrix/imatrix.cpp` and `common/imatrix-loader.cpp` (llama.cpp, MIT). A GGUF
//! holds two f32 tensors an entry, `NAME.in_sum2` (sums of squared inputs) and `NAME.counts` (rows
//! summed, one count an expert), under `general.type = "imatrix"`. A `.dat` holds, little-endian:
//! the number of entries; for each the name, the number of calls and `mean × calls`; then, in all
//! but the oldest, the number of chunks and the text's name. Every length is checked against the
//! file before anything is allocated from it.

use std::collections::BTreeMap;
use std::path::Path;

use super::files::{self, DataFile};
use super::gguf;
use super::gguf_value::{GgufArray, GgufValue, lookup};
use super::gguf_write::{GgufTensor, GgufWriter};
use crate::error::{Fault, Result, Stage};
use crate::format::Dtype;

/// Larger files are no importance matrices: that of a model of 671 B weights has about 1 GiB.
const MOST_BYTES: u64 = 4 << 30;

const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// What is known of the inputs of one matrix, or of each matrix of a stack of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct ImatrixEntry {
    /// Per expert and input column the sum of squares; in a `.dat`, the mean times the number of calls.
    pub sums: Vec<f32>,
    /// Per expert the rows that were summed; in a `.dat`, one number of calls.
    pub counts: Vec<u64>,
}

/// An importance matrix as its file holds it, under GGUF's names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImatrixFile {
    /// Entries by the matrix's name in a GGUF: `blk.0.attn_q.weight`.
    pub entries: BTreeMap<String, ImatrixEntry>,
    /// Names of the texts it was computed on.
    pub datasets: Vec<String>,
    /// Chunks of text it was computed on.
    pub chunk_count: u32,
    /// Tokens a chunk; 0 where the file does not say it.
    pub chunk_size: u32,
    /// True for the older `.dat`, whose sums and counts mean something else.
    pub is_legacy: bool,
}

impl ImatrixFile {
    /// Reads either form, by what the file begins with.
    ///
    /// # Errors
    /// A file that is neither, is cut short, or holds a sum or count that is negative or not finite.
    pub fn read(path: &Path) -> Result<Self> {
        let data = DataFile::open(path)?;
        if data.size_bytes > MOST_BYTES {
            return Err(fault(path, format!("{} bytes are too many for an importance matrix", data.size_bytes)).into());
        }
        let mut magic = [0; 4];
        if data.size_bytes >= 4 {
            data.read_at(0, &mut magic)?;
        }
        let file = if &magic == b"GGUF" { read_gguf(&data)? } else { read_dat(path)? };
        if file.entries.is_empty() {
            return Err(fault(path, "there is no entry in it").into());
        }
        for (name, entry) in &file.entries {
            check(name, entry).map_err(|found| found.file(path))?;
        }
        Ok(file)
    }

    /// Writes the GGUF form, entry after entry in the order of names, as llama-imatrix does.
    ///
    /// # Errors
    /// The disk's own, or a name too long for a GGUF.
    pub fn write(&self, path: &Path) -> Result<u64> {
        let text = |text: &str| GgufValue::String(text.to_owned());
        let metadata = [
            ("general.type".to_owned(), text("imatrix")),
            (
                "imatrix.datasets".to_owned(),
                GgufValue::Array(GgufArray::String(self.datasets.iter().map(String::as_str).collect())),
            ),
            ("imatrix.chunk_count".to_owned(), GgufValue::U32(self.chunk_count)),
            ("imatrix.chunk_size".to_owned(), GgufValue::U32(self.chunk_size)),
        ];
        let mut tensors = Vec::with_capacity(self.entries.len() * 2);
        for (name, entry) in &self.entries {
            check(name, entry).map_err(|found| found.file(path))?;
            let experts = entry.counts.len();
            let columns = entry.sums.len() / experts;
            // ggml drops dimensions of length one at the end, so that one matrix is a vector there.
            let shapes =
                if experts == 1 { [vec![columns], vec![1]] } else { [vec![experts, columns], vec![experts, 1]] };
            for (ending, shape) in [SUMS, COUNTS].into_iter().zip(shapes) {
                tensors.push(GgufTensor { name: format!("{name}{ending}"), shape, dtype: Dtype::F32 });
            }
        }
        let mut writer = GgufWriter::create(path, &metadata, &tensors)?;
        for entry in self.entries.values() {
            writer.write_tensor_rows(&bytes_of(entry.sums.iter().copied()))?;
            writer.write_tensor_rows(&bytes_of(entry.counts.iter().map(|&count| count as f32)))?;
        }
        writer.finish()
    }
}

fn bytes_of(values: impl Iterator<Item = f32>) -> Vec<u8> {
    values.flat_map(f32::to_le_bytes).collect()
}

fn fault(path: &Path, cause: impl Into<String>) -> Fault {
    Fault::new(Stage::Calibration, cause)
        .fix("choose a file that `lapidary calibrate` or llama-imatrix wrote")
        .file(path)
}

/// Refuses what no sum of squares can be.
fn check(name: &str, entry: &ImatrixEntry) -> std::result::Result<(), Fault> {
    let refuse =
        |cause: String| Fault::new(Stage::Calibration, cause).at(format!("entry {name}")).fix("compute it again");
    if entry.sums.is_empty() || entry.counts.is_empty() || !entry.sums.len().is_multiple_of(entry.counts.len()) {
        return Err(refuse(format!("{} sums do not belong to {} counts", entry.sums.len(), entry.counts.len())));
    }
    match entry.sums.iter().find(|sum| !(sum.is_finite() && **sum >= 0.0)) {
        None => Ok(()),
        Some(sum) => Err(refuse(format!("{sum} is no sum of squares"))),
    }
}

fn read_gguf(data: &DataFile) -> Result<ImatrixFile> {
    let header = gguf::read_header(data)?;
    let path = &data.path;
    let value = |key: &str| lookup(&header.metadata, key);
    let number = |key: &str| value(key).and_then(GgufValue::as_u64).and_then(|number| u32::try_from(number).ok());
    let kind = value("general.type").and_then(GgufValue::as_str).unwrap_or("model");
    if kind != "imatrix" {
        return Err(fault(path, format!("this GGUF holds a {kind}, not an importance matrix")).into());
    }
    let mut parts: BTreeMap<&str, [Option<&gguf::Entry>; 2]> = BTreeMap::new();
    for tensor in &header.entries {
        // Other statistics may stand beside these two.
        for (slot, ending) in [SUMS, COUNTS].into_iter().enumerate() {
            if let Some(name) = tensor.name.strip_suffix(ending) {
                parts.entry(name).or_default()[slot] = Some(tensor);
            }
        }
    }
    let read = |tensor: &gguf::Entry| -> Result<Vec<f32>> {
        if tensor.dtype != Dtype::F32 {
            let found = fault(path, format!("it is stored as {}, not as f32", tensor.dtype));
            return Err(found.at(format!("tensor {}", tensor.name)).into());
        }
        // The header's reader has checked that the bytes lie inside the file.
        let mut bytes = vec![0; tensor.byte_count as usize];
        data.read_at(tensor.offset, &mut bytes)?;
        let (values, _) = bytes.as_chunks::<4>();
        Ok(values.iter().map(|&value| f32::from_le_bytes(value)).collect())
    };
    let mut entries = BTreeMap::new();
    for (name, found) in parts {
        let [Some(sums), Some(counts)] = found else {
            return Err(fault(path, "it has sums or counts, but not both").at(format!("entry {name}")).into());
        };
        let counts = read(counts)?.into_iter().map(whole).collect::<Option<Vec<u64>>>();
        let counts =
            counts.ok_or_else(|| fault(path, "a count is negative or not finite").at(format!("entry {name}")))?;
        entries.insert(name.to_owned(), ImatrixEntry { sums: read(sums)?, counts });
    }
    let datasets = value("imatrix.datasets").and_then(GgufValue::as_strings);
    Ok(ImatrixFile {
        entries,
        datasets: datasets.map(|names| names.iter().map(std::borrow::Cow::into_owned).collect()).unwrap_or_default(),
        chunk_count: number("imatrix.chunk_count").unwrap_or(0),
        chunk_size: number("imatrix.chunk_size").unwrap_or(0),
        is_legacy: false,
    })
}

/// A count that was stored as a float.
fn whole(value: f32) -> Option<u64> {
    (value.is_finite() && value >= 0.0).then(|| f64::from(value).round() as u64)
}

/// Reads forward through a `.dat`.
struct Cursor<'a> {
    rest: &'a [u8],
    path: &'a Path,
    place: String,
}

impl<'a> Cursor<'a> {
    fn fault(&self, cause: impl Into<String>) -> Fault {
        fault(self.path, cause).at(self.place.clone())
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        match self.rest.split_at_checked(len) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(self.fault(format!("{len} bytes are wanted and {} are left", self.rest.len())).into()),
        }
    }

    /// A number that must not be negative.
    fn number(&mut self) -> Result<u32> {
        let bytes = self.take(4)?;
        let number = i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        u32::try_from(number).map_err(|_| self.fault(format!("{number} is no count")).into())
    }

    fn text(&mut self) -> Result<&'a [u8]> {
        let len = self.number()? as usize;
        self.take(len)
    }
}

fn read_dat(path: &Path) -> Result<ImatrixFile> {
    let bytes = files::read_small(path, MOST_BYTES)?;
    let mut cursor = Cursor { rest: &bytes, path, place: "header".to_owned() };
    let count = cursor.number()?;
    let mut file = ImatrixFile { is_legacy: true, ..ImatrixFile::default() };
    for index in 0..count {
        cursor.place = format!("entry {index}");
        let name = std::str::from_utf8(cursor.text()?).map_err(|_| cursor.fault("its name is not UTF-8"))?.to_owned();
        cursor.place = format!("entry {name}");
        let calls = u64::from(cursor.number()?);
        let len = cursor.number()? as usize;
        let bytes = len.checked_mul(4).ok_or_else(|| cursor.fault(format!("{len} values are too many")))?;
        let (values, _) = cursor.take(bytes)?.as_chunks::<4>();
        let sums = values.iter().map(|&value| f32::from_le_bytes(value)).collect();
        let entry = ImatrixEntry { sums, counts: vec![calls] };
        if file.entries.insert(name, entry).is_some() {
            return Err(cursor.fault("listed twice").into());
        }
    }
    // The oldest files end here.
    if !cursor.rest.is_empty() {
        cursor.place = "end".to_owned();
        file.chunk_count = cursor.number()?;
        if !cursor.rest.is_empty() {
            file.datasets.push(String::from_utf8_lossy(cursor.text()?).into_owned());
        }
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("tests/fixtures").join(name)
    }

    #[test]
    fn llama_imatrixs_file_is_read_and_written_again_byte_for_byte() {
        let path = fixture("llama_cpp_imatrix.gguf");
        let file = ImatrixFile::read(&path).expect("reads");
        assert_eq!((file.entries.len(), file.chunk_count, file.chunk_size), (42, 84, 256));
        assert_eq!((file.datasets.as_slice(), file.is_legacy), (["calibration.txt".to_owned()].as_slice(), false));
        let folder = tempfile::tempdir().expect("folder");
        let again = folder.path().join("again.gguf");
        file.write(&again).expect("writes");
        assert_eq!(std::fs::read(again).expect("reads"), std::fs::read(path).expect("reads"));
    }

    #[test]
    fn the_older_form_holds_the_same_means() {
        let new = ImatrixFile::read(&fixture("llama_cpp_imatrix.gguf")).expect("reads");
        let old = ImatrixFile::read(&fixture("llama_cpp_imatrix.dat")).expect("reads");
        assert!(old.is_legacy);
        assert_eq!((old.chunk_count, &old.datasets), (84, &new.datasets));
        assert_eq!(old.entries.keys().collect::<Vec<_>>(), new.entries.keys().collect::<Vec<_>>());
        for (old, new) in old.entries.values().zip(new.entries.values()) {
            for (old_sum, new_sum) in old.sums.iter().zip(&new.sums) {
                let (ours, theirs) = (old_sum / old.counts[0] as f32, new_sum / new.counts[0] as f32);
                assert!((ours / theirs - 1.0).abs() < 1e-5, "{ours} {theirs}");
            }
        }
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("cut");
        for name in ["llama_cpp_imatrix.gguf", "llama_cpp_imatrix.dat"] {
            let whole = std::fs::read(fixture(name)).expect("reads");
            for len in (0..whole.len() - 24).step_by(97).chain([3, 4, 5, 8]) {
                std::fs::write(&path, &whole[..len]).expect("writes");
                assert!(ImatrixFile::read(&path).is_err(), "{name} cut at {len}");
            }
        }
    }

    #[test]
    fn a_damaged_byte_is_an_error_or_another_number_but_never_a_panic() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("damaged");
        for name in ["llama_cpp_imatrix.gguf", "llama_cpp_imatrix.dat"] {
            let whole = std::fs::read(fixture(name)).expect("reads");
            let mut refused = 0;
            for at in (0..6_000).step_by(7) {
                let mut damaged = whole.clone();
                damaged[at] ^= 0xff;
                std::fs::write(&path, damaged).expect("writes");
                refused += usize::from(ImatrixFile::read(&path).is_err());
            }
            assert!(refused > 10, "{name}: {refused}");
        }
    }

    #[test]
    fn numbers_that_lie_are_refused_before_anything_is_allocated() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("lies.dat");
        let dat = |numbers: &[i32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
        let name = i32::from_le_bytes(*b"blk.");
        let nan = f32::NAN.to_bits() as i32;
        for (numbers, word) in [
            (vec![], "wanted"),
            (vec![0], "no entry"),
            (vec![-1], "no count"),
            (vec![i32::MAX, 4, name], "wanted"),
            (vec![1, i32::MAX], "wanted"),
            (vec![1, 4, name, 1, i32::MAX, 0], "wanted"),
            (vec![1, 4, name, -7, 1, 0], "no count"),
            (vec![1, 4, name, 1, 0], "do not belong"),
            (vec![1, 4, name, 1, 1, nan], "no sum of squares"),
            (vec![2, 4, name, 1, 1, 0, 4, name, 1, 1, 0], "twice"),
        ] {
            std::fs::write(&path, dat(&numbers)).expect("writes");
            let message = ImatrixFile::read(&path).expect_err("refused").to_string();
            assert!(message.contains(word), "{numbers:?}: {message}");
        }
        let demo = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/demo/model.safetensors"));
        assert!(ImatrixFile::read(demo).is_err(), "a model is no importance matrix");
    }

    #[test]
    fn a_stack_of_experts_keeps_one_count_each() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("experts.gguf");
        let entry = ImatrixEntry { sums: (0..12).map(|sum| sum as f32).collect(), counts: vec![5, 0, 7] };
        let mut file = ImatrixFile { chunk_count: 1, chunk_size: 12, ..ImatrixFile::default() };
        file.entries.insert("blk.0.ffn_up_exps.weight".to_owned(), entry);
        file.write(&path).expect("writes");
        assert_eq!(ImatrixFile::read(&path).expect("reads"), file);
    }
}
