//! safetensors headers: an 8-byte length, a JSON object, then the data without gaps.
//!
//! The format and its limits are those of <https://github.com/huggingface/safetensors> (Apache-2.0):
//! at most 100 MB of header, offsets relative to the data, no overlaps and no holes. We read the
//! header ourselves, because its crate wants the whole file in one slice, keeps the last of two
//! tensors with one name, and cannot say which tensor is wrong.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::files::DataFile;
use crate::error::{Error, Fault, Result, Stage};
use crate::format::Dtype;

/// The format's own limit on the header.
const HEADER_CAP: u64 = 100_000_000;

/// One entry of a checked header.
#[derive(Debug)]
pub(super) struct Entry {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// First byte in the file.
    pub offset: u64,
    pub byte_count: u64,
}

/// A checked header.
#[derive(Debug)]
pub(super) struct Header {
    /// Tensors in file order.
    pub entries: Vec<Entry>,
    /// The header's bytes, length field included, for the fingerprint.
    pub bytes: Vec<u8>,
}

/// An entry as written, nothing checked yet.
#[derive(serde::Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The header's object with every key in order, doubled ones included.
struct RawHeader(Vec<(String, RawEntry)>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<RawHeader, A::Error> {
                let mut entries = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    if key == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((key, map.next_value()?));
                    }
                }
                Ok(RawHeader(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// The format's type names.
fn dtype_of(name: &str) -> Option<Dtype> {
    Some(match name {
        "F64" => Dtype::F64,
        "F32" => Dtype::F32,
        "F16" => Dtype::F16,
        "BF16" => Dtype::Bf16,
        "F8_E4M3" => Dtype::F8E4M3,
        "F8_E5M2" => Dtype::F8E5M2,
        "I64" => Dtype::I64,
        "I32" => Dtype::I32,
        "I16" => Dtype::I16,
        "I8" => Dtype::I8,
        "U64" => Dtype::U64,
        "U32" => Dtype::U32,
        "U16" => Dtype::U16,
        "U8" => Dtype::U8,
        "BOOL" => Dtype::Bool,
        _ => return None,
    })
}

/// The format's name of a plain type; `None` for types that safetensors does not have.
pub(crate) fn dtype_name(dtype: Dtype) -> Option<&'static str> {
    Some(match dtype {
        Dtype::F64 => "F64",
        Dtype::F32 => "F32",
        Dtype::F16 => "F16",
        Dtype::Bf16 => "BF16",
        Dtype::F8E4M3 => "F8_E4M3",
        Dtype::F8E5M2 => "F8_E5M2",
        Dtype::I64 => "I64",
        Dtype::I32 => "I32",
        Dtype::I16 => "I16",
        Dtype::I8 => "I8",
        Dtype::U64 => "U64",
        Dtype::U32 => "U32",
        Dtype::U16 => "U16",
        Dtype::U8 => "U8",
        Dtype::Bool => "BOOL",
        _ => return None,
    })
}

/// Reads and checks the header of `data`; no tensor data is read.
pub(super) fn read_header(data: &DataFile) -> Result<Header> {
    let fault = |cause: String, place: &str| -> Error {
        Fault::new(Stage::Checkpoint, cause)
            .at(place.to_owned())
            .fix("copy or download the file again")
            .file(&data.path)
            .into()
    };
    if data.size_bytes < 8 {
        return Err(fault(format!("{} bytes are too few for a safetensors file", data.size_bytes), "header"));
    }
    let mut prefix = [0u8; 8];
    data.read_at(0, &mut prefix)?;
    let header_len = u64::from_le_bytes(prefix);
    if header_len > HEADER_CAP {
        return Err(fault(
            format!("the header says that it has {header_len} bytes, more than the format's {HEADER_CAP}"),
            "header",
        ));
    }
    let data_start = 8 + header_len;
    if data_start > data.size_bytes {
        return Err(fault(
            format!("the header ends at byte {data_start}, but the file at {}", data.size_bytes),
            "header",
        ));
    }
    let mut bytes = vec![0u8; data_start as usize];
    data.read_at(0, &mut bytes)?;
    let RawHeader(raw) = serde_json::from_slice(&bytes[8..])
        .map_err(|err| fault(format!("the header is not a safetensors header: {err}"), "header"))?;

    let data_len = data.size_bytes - data_start;
    let mut entries = Vec::with_capacity(raw.len());
    for (name, entry) in raw {
        let place = format!("tensor {name}");
        let dtype = dtype_of(&entry.dtype).ok_or_else(|| -> Error {
            Fault::new(Stage::Checkpoint, format!("storage type {:?} is not known", entry.dtype))
                .at(place.clone())
                .fix("convert the checkpoint to a plain type such as bf16")
                .file(&data.path)
                .into()
        })?;
        let (begin, end) = entry.data_offsets;
        if begin > end || end > data_len {
            return Err(fault(
                format!("data at bytes {begin} to {end} lie outside the {data_len} bytes that there are"),
                &place,
            ));
        }
        let needed = entry.shape.iter().try_fold(dtype.block_bytes() as u64, |product, &len| product.checked_mul(len));
        if needed != Some(end - begin) {
            return Err(fault(
                format!(
                    "shape {:?} as {} does not fill the {} bytes that the header gives it",
                    entry.shape,
                    entry.dtype,
                    end - begin
                ),
                &place,
            ));
        }
        let shape: Option<Vec<usize>> = entry.shape.iter().map(|&len| usize::try_from(len).ok()).collect();
        let shape = shape.ok_or_else(|| fault("the shape is too large for this machine".to_owned(), &place))?;
        if !super::products_fit(&shape) {
            return Err(fault(format!("shape {shape:?} is too large"), &place));
        }
        entries.push(Entry { name, dtype, shape, offset: data_start + begin, byte_count: end - begin });
    }
    check_layout(&mut entries, data_start, data.size_bytes, &fault)?;
    Ok(Header { entries, bytes })
}

/// Sorts by offset; refuses overlaps, holes, a tail and two tensors of one name.
fn check_layout(
    entries: &mut [Entry],
    data_start: u64,
    size_bytes: u64,
    fault: &dyn Fn(String, &str) -> Error,
) -> Result<()> {
    entries.sort_by(|a, b| (a.offset, a.byte_count, &a.name).cmp(&(b.offset, b.byte_count, &b.name)));
    let mut names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(fault("listed twice".to_owned(), &format!("tensor {}", pair[0])));
    }
    let mut end = data_start;
    let mut last = "the header";
    for entry in entries.iter() {
        let place = format!("tensor {}", entry.name);
        if entry.offset < end {
            return Err(fault(format!("its data overlap those of {last}"), &place));
        }
        if entry.offset > end {
            let gap = entry.offset - end;
            return Err(fault(format!("{gap} bytes between it and {last} belong to no tensor"), &place));
        }
        end = entry.offset + entry.byte_count;
        last = &entry.name;
    }
    if end != size_bytes {
        return Err(fault(
            format!("{} bytes after it belong to no tensor", size_bytes - end),
            &format!("tensor {last}"),
        ));
    }
    Ok(())
}
