//! GGUF v2 and v3 headers: ordered metadata, then tensor descriptions, then aligned data.
//!
//! The format is that of ggml's `docs/gguf.md` (MIT). Every count and length is checked against
//! the bytes that are left in the file before anything is allocated for it. Types without a
//! decoder, even unknown ones, do not stop a file from opening.

use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};

use super::files::DataFile;
use super::gguf_value::{GgufArray, GgufStrings, GgufValue, lookup};
use crate::error::{Error, Fault, Result, Stage};
use crate::format::Dtype;

/// Arrays in arrays: the format allows them, nobody writes them.
const MAX_ARRAY_DEPTH: usize = 4;
/// ggml's `GGML_MAX_DIMS`.
const MAX_DIMS: u32 = 4;
/// Longest key or tensor name that we take; ggml writes at most 64 bytes.
const MAX_NAME_BYTES: u64 = 65_535;
/// `general.alignment` where the file does not say it.
const DEFAULT_ALIGNMENT: u64 = 32;

/// One tensor of a checked header.
#[derive(Debug)]
pub(super) struct Entry {
    pub name: String,
    pub dtype: Dtype,
    /// Outermost first, as PyTorch writes it; GGUF has it the other way round.
    pub shape: Vec<usize>,
    /// First byte in the file.
    pub offset: u64,
    pub byte_count: u64,
}

/// A checked header.
#[derive(Debug)]
pub(super) struct Header {
    pub metadata: Vec<(String, GgufValue)>,
    /// Tensors in the order of their descriptions.
    pub entries: Vec<Entry>,
    /// First byte of the data.
    pub data_start: u64,
    /// Oddities that do not stop the file from opening.
    pub warnings: Vec<String>,
}

/// Reads forward through a header and knows how much of the file is left.
struct Cursor<'a> {
    data: &'a DataFile,
    reader: BufReader<&'a std::fs::File>,
    position: u64,
    /// What is being read, for errors.
    place: String,
}

impl Cursor<'_> {
    fn fault(&self, cause: impl Into<String>) -> Error {
        Fault::new(Stage::Checkpoint, cause)
            .at(self.place.clone())
            .fix("copy or download the file again")
            .file(&self.data.path)
            .into()
    }

    fn left(&self) -> u64 {
        self.data.size_bytes.saturating_sub(self.position)
    }

    /// Answers an error unless `count` items of at least `each` bytes can still follow.
    fn expect(&self, count: u64, each: u64, what: &str) -> Result<usize> {
        match count.checked_mul(each) {
            Some(bytes) if bytes <= self.left() => Ok(count as usize),
            _ => Err(self.fault(format!(
                "{count} {what} cannot lie in the {} bytes that are left at byte {}",
                self.left(),
                self.position
            ))),
        }
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<()> {
        if out.len() as u64 > self.left() {
            return Err(self.fault(format!("the file ends at byte {} within its header", self.data.size_bytes)));
        }
        self.reader.read_exact(out).map_err(Error::io("read", &self.data.path))?;
        self.position += out.len() as u64;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn bytes(&mut self, cap: u64) -> Result<Vec<u8>> {
        let len = self.u64()?;
        if len > cap {
            return Err(self.fault(format!("a string of {len} bytes is longer than the {cap} allowed here")));
        }
        let len = self.expect(len, 1, "bytes of text")?;
        let mut bytes = vec![0; len];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn name(&mut self) -> Result<String> {
        let bytes = self.bytes(MAX_NAME_BYTES)?;
        String::from_utf8(bytes).map_err(|_| self.fault("a name is not UTF-8"))
    }

    /// `count` numbers of N bytes, read in one go.
    fn numbers<const N: usize, T>(&mut self, count: u64, convert: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
        let count = self.expect(count, N as u64, "numbers")?;
        let mut bytes = vec![0; count * N];
        self.fill(&mut bytes)?;
        let (chunks, _) = bytes.as_chunks::<N>();
        Ok(chunks.iter().map(|&chunk| convert(chunk)).collect())
    }

    fn strings(&mut self, count: u64) -> Result<GgufStrings> {
        let count = self.expect(count, 8, "strings")?;
        let mut strings = GgufStrings { bytes: Vec::new(), ends: Vec::with_capacity(count) };
        for _ in 0..count {
            // A tokenizer has hundreds of thousands of these: take them from the buffer while they last.
            if let Some((len, rest)) = self.reader.buffer().split_first_chunk::<8>()
                && let Ok(len) = usize::try_from(u64::from_le_bytes(*len))
                && let Some(text) = rest.get(..len)
                && (len as u64).saturating_add(8) <= self.left()
            {
                strings.push(text);
                self.reader.consume(8 + len);
                self.position += 8 + len as u64;
                continue;
            }
            let len = self.u64()?;
            let len = self.expect(len, 1, "bytes of text")?;
            let start = strings.bytes.len();
            strings.bytes.resize(start + len, 0);
            self.fill(&mut strings.bytes[start..])?;
            strings.ends.push(start + len);
        }
        Ok(strings)
    }

    fn value(&mut self, type_id: u32) -> Result<GgufValue> {
        Ok(match type_id {
            0 => GgufValue::U8(self.array::<1>()?[0]),
            1 => GgufValue::I8(i8::from_le_bytes(self.array()?)),
            2 => GgufValue::U16(u16::from_le_bytes(self.array()?)),
            3 => GgufValue::I16(i16::from_le_bytes(self.array()?)),
            4 => GgufValue::U32(self.u32()?),
            5 => GgufValue::I32(i32::from_le_bytes(self.array()?)),
            6 => GgufValue::F32(f32::from_le_bytes(self.array()?)),
            7 => GgufValue::Bool(self.array::<1>()?[0] != 0),
            8 => {
                let bytes = self.bytes(u64::MAX)?;
                GgufValue::String(String::from_utf8_lossy(&bytes).into_owned())
            }
            9 => GgufValue::Array(self.values(0)?),
            10 => GgufValue::U64(self.u64()?),
            11 => GgufValue::I64(i64::from_le_bytes(self.array()?)),
            12 => GgufValue::F64(f64::from_le_bytes(self.array()?)),
            other => return Err(self.fault(format!("value type {other} is not known"))),
        })
    }

    fn values(&mut self, depth: usize) -> Result<GgufArray> {
        let type_id = self.u32()?;
        let count = self.u64()?;
        Ok(match type_id {
            0 => GgufArray::U8(self.numbers(count, |[byte]: [u8; 1]| byte)?),
            1 => GgufArray::I8(self.numbers(count, i8::from_le_bytes)?),
            2 => GgufArray::U16(self.numbers(count, u16::from_le_bytes)?),
            3 => GgufArray::I16(self.numbers(count, i16::from_le_bytes)?),
            4 => GgufArray::U32(self.numbers(count, u32::from_le_bytes)?),
            5 => GgufArray::I32(self.numbers(count, i32::from_le_bytes)?),
            6 => GgufArray::F32(self.numbers(count, f32::from_le_bytes)?),
            7 => GgufArray::Bool(self.numbers(count, |[byte]: [u8; 1]| byte != 0)?),
            8 => GgufArray::String(self.strings(count)?),
            9 if depth < MAX_ARRAY_DEPTH => {
                let count = self.expect(count, 12, "arrays")?;
                let mut arrays = Vec::new();
                for _ in 0..count {
                    arrays.push(self.values(depth + 1)?);
                }
                GgufArray::Array(arrays)
            }
            9 => return Err(self.fault(format!("arrays are nested deeper than {MAX_ARRAY_DEPTH}"))),
            10 => GgufArray::U64(self.numbers(count, u64::from_le_bytes)?),
            11 => GgufArray::I64(self.numbers(count, i64::from_le_bytes)?),
            12 => GgufArray::F64(self.numbers(count, f64::from_le_bytes)?),
            other => return Err(self.fault(format!("array element type {other} is not known"))),
        })
    }
}

/// A tensor description as written.
struct Raw {
    name: String,
    dims: Vec<u64>,
    type_id: u32,
    offset: u64,
}

/// Reads and checks the header of `data`; no tensor data is read.
pub(super) fn read_header(data: &DataFile) -> Result<Header> {
    let mut file = &data.file;
    file.seek(SeekFrom::Start(0)).map_err(Error::io("read", &data.path))?;
    let reader = BufReader::with_capacity(1 << 20, file);
    let mut cursor = Cursor { data, reader, position: 0, place: "header".to_owned() };
    check_version(&mut cursor)?;
    let tensor_count = cursor.u64()?;
    let value_count = cursor.u64()?;
    // The smallest description: empty name, no dimensions; the smallest value: empty key, one byte.
    cursor.expect(tensor_count, 24, "tensors")?;
    cursor.expect(value_count, 13, "metadata values")?;

    let mut metadata: Vec<(String, GgufValue)> = Vec::new();
    for index in 0..value_count {
        cursor.place = format!("metadata value {index}");
        let key = cursor.name()?;
        cursor.place = format!("metadata {key}");
        let type_id = cursor.u32()?;
        let value = cursor.value(type_id)?;
        metadata.push((key, value));
    }
    cursor.place = "metadata".to_owned();
    if let Some(key) = first_double(metadata.iter().map(|(key, _)| key.as_str())) {
        cursor.place = format!("metadata {key}");
        return Err(cursor.fault("listed twice"));
    }

    let mut raw = Vec::new();
    for index in 0..tensor_count {
        cursor.place = format!("tensor {index}");
        let name = cursor.name()?;
        cursor.place = format!("tensor {name}");
        let dim_count = cursor.u32()?;
        if dim_count > MAX_DIMS {
            return Err(cursor.fault(format!("{dim_count} dimensions are more than ggml's {MAX_DIMS}")));
        }
        let mut dims = Vec::with_capacity(dim_count as usize);
        for _ in 0..dim_count {
            dims.push(cursor.u64()?);
        }
        let type_id = cursor.u32()?;
        let offset = cursor.u64()?;
        raw.push(Raw { name, dims, type_id, offset });
    }
    if let Some(name) = first_double(raw.iter().map(|tensor| tensor.name.as_str())) {
        cursor.place = format!("tensor {name}");
        return Err(cursor.fault("listed twice"));
    }

    cursor.place = "metadata general.alignment".to_owned();
    let alignment = match lookup(&metadata, "general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(value) => match value.as_u64() {
            Some(alignment) if alignment.is_power_of_two() && alignment <= 1 << 30 => alignment,
            _ => return Err(cursor.fault(format!("{value:?} is not a power of two"))),
        },
    };
    let data_start = cursor.position.next_multiple_of(alignment);
    if data_start > data.size_bytes && !raw.is_empty() {
        cursor.place = "header".to_owned();
        return Err(cursor.fault(format!("the file ends at byte {} before its data", data.size_bytes)));
    }
    let mut warnings = Vec::new();
    let entries = place_tensors(&mut cursor, raw, data_start, alignment, &mut warnings)?;
    Ok(Header { metadata, entries, data_start: data_start.min(data.size_bytes), warnings })
}

fn check_version(cursor: &mut Cursor<'_>) -> Result<()> {
    let magic: [u8; 4] = cursor.array()?;
    if &magic != b"GGUF" {
        return Err(cursor.fault("the file does not begin with GGUF"));
    }
    let unsupported = |cause: String, remedy: &str| -> Error {
        Fault::new(Stage::Checkpoint, cause).at("header").fix(remedy).file(&cursor.data.path).into()
    };
    let data = cursor.data;
    let version = {
        let mut bytes = [0; 4];
        if data.size_bytes < 24 {
            return Err(cursor.fault(format!("{} bytes are too few for a GGUF file", data.size_bytes)));
        }
        data.read_at(4, &mut bytes)?;
        u32::from_le_bytes(bytes)
    };
    match version {
        2 | 3 => {}
        1 => {
            return Err(unsupported(
                "GGUF version 1 is not supported".to_owned(),
                "convert the model again with a current llama.cpp",
            ));
        }
        // Version 3 as big-endian machines write it.
        _ if version & 0xffff == 0 && version != 0 => {
            return Err(unsupported(
                "the file is big-endian".to_owned(),
                "convert it with gguf-convert-endian of the Python package gguf",
            ));
        }
        _ => {
            return Err(unsupported(format!("GGUF version {version} is not known"), "use a file of version 2 or 3"));
        }
    }
    cursor.u32()?;
    Ok(())
}

/// The first text that occurs twice, in sorted order.
fn first_double<'a>(items: impl Iterator<Item = &'a str>) -> Option<String> {
    let mut items: Vec<&str> = items.collect();
    items.sort_unstable();
    items.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0].to_owned())
}

/// Turns descriptions into places in the file: sizes, bounds, alignment, overlaps.
fn place_tensors(
    cursor: &mut Cursor<'_>,
    raw: Vec<Raw>,
    data_start: u64,
    alignment: u64,
    warnings: &mut Vec<String>,
) -> Result<Vec<Entry>> {
    let data_len = cursor.data.size_bytes.saturating_sub(data_start);
    let mut starts: Vec<u64> = raw.iter().map(|tensor| tensor.offset).collect();
    starts.sort_unstable();
    let mut entries = Vec::with_capacity(raw.len());
    for tensor in raw {
        cursor.place = format!("tensor {}", tensor.name);
        if !tensor.offset.is_multiple_of(alignment) {
            return Err(
                cursor.fault(format!("offset {} is not a multiple of the alignment {alignment}", tensor.offset))
            );
        }
        let shape: Option<Vec<usize>> = tensor.dims.iter().rev().map(|&len| usize::try_from(len).ok()).collect();
        let shape = shape.filter(|shape| super::products_fit(shape));
        let weights = tensor.dims.iter().try_fold(1u64, |product, &len| product.checked_mul(len));
        let (Some(shape), Some(weights)) = (shape, weights) else {
            return Err(cursor.fault(format!("dimensions {:?} are too large", tensor.dims)));
        };
        let dtype = Dtype::from_ggml(tensor.type_id).unwrap_or(Dtype::Unknown(tensor.type_id));
        let byte_count = if let Dtype::Unknown(type_id) = dtype {
            let next = starts.iter().copied().find(|&start| start > tensor.offset).unwrap_or(data_len);
            warnings.push(format!(
                "tensor {} has ggml type {type_id}, which this version does not know; it is listed, not decoded",
                tensor.name
            ));
            next.min(data_len).saturating_sub(tensor.offset)
        } else {
            let row_len = tensor.dims.first().copied().unwrap_or(1);
            let block_len = dtype.block_len() as u64;
            if !row_len.is_multiple_of(block_len) {
                return Err(
                    cursor.fault(format!("rows of {row_len} weights do not fill the blocks of {block_len} of {dtype}"))
                );
            }
            (weights / block_len)
                .checked_mul(dtype.block_bytes() as u64)
                .ok_or_else(|| cursor.fault(format!("dimensions {:?} are too large", tensor.dims)))?
        };
        match tensor.offset.checked_add(byte_count) {
            Some(end) if end <= data_len => {}
            _ => {
                return Err(cursor.fault(format!(
                    "data of {byte_count} bytes at {} lie outside the {data_len} bytes that there are",
                    tensor.offset
                )));
            }
        }
        entries.push(Entry { name: tensor.name, dtype, shape, offset: data_start + tensor.offset, byte_count });
    }
    let mut order: Vec<usize> = (0..entries.len()).collect();
    order.sort_by_key(|&index| (entries[index].offset, entries[index].byte_count));
    for pair in order.windows(2) {
        let (first, second) = (&entries[pair[0]], &entries[pair[1]]);
        if first.offset + first.byte_count > second.offset {
            cursor.place = format!("tensor {}", second.name);
            return Err(cursor.fault(format!("its data overlap those of {}", first.name)));
        }
    }
    Ok(entries)
}
