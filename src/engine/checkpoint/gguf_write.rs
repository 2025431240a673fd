//! Writing GGUF v3, tensor by tensor, with the header known before the first weight.
//!
//! The format is that of ggml's `docs/gguf.md` (MIT).

use std::path::Path;

use super::gguf_value::{GgufArray, GgufStrings, GgufValue, lookup};
use super::output::OutputFile;
use crate::error::{Fault, Result, Stage};
use crate::format::Dtype;

/// ggml's `GGML_MAX_NAME`, its closing zero included.
const MAX_NAME_BYTES: usize = 64;
/// Where the metadata do not say `general.alignment`.
const DEFAULT_ALIGNMENT: u64 = 32;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// GGUF's name: `blk.0.attn_q.weight`.
    pub name: String,
    /// Outermost dimension first, as PyTorch writes it.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub dtype: Dtype,
}

impl GgufTensor {
    /// Bytes of the data; `None` where rows do not fill whole blocks.
    pub fn byte_count(&self) -> Option<u64> {
        let (&row_len, outer) = self.shape.split_last()?;
        let row = self.dtype.row_bytes(row_len)? as u64;
        outer.iter().try_fold(row, |bytes, &len| bytes.checked_mul(len as u64))
    }
}

/// The header's bytes and every tensor's place: what the file will be, before it is written.
#[derive(Clone, Debug)]
pub struct GgufLayout {
    header: Vec<u8>,
    /// Bytes of each tensor and of the padding after it.
    sizes: Vec<(u64, usize)>,
    names: Vec<String>,
}

impl GgufLayout {
    /// Lays out a file of `metadata` and `tensors` in the given order.
    ///
    /// # Errors
    /// A name that is too long or doubled, a shape that its type cannot hold.
    pub fn new(metadata: &[(String, GgufValue)], tensors: &[GgufTensor]) -> Result<Self> {
        let fault = |name: &str, cause: String| Fault::new(Stage::Pass, cause).at(format!("tensor {name}"));
        let alignment = match lookup(metadata, "general.alignment").map(GgufValue::as_u64) {
            None => DEFAULT_ALIGNMENT,
            Some(Some(alignment)) if alignment.is_power_of_two() && alignment <= 1 << 30 => alignment,
            Some(_) => {
                return Err(Fault::new(Stage::Pass, "not a power of two").at("metadata general.alignment").into());
            }
        };
        let mut header = Vec::new();
        header.extend_from_slice(b"GGUF");
        header.extend_from_slice(&3u32.to_le_bytes());
        header.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
        header.extend_from_slice(&(metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            put_string(&mut header, key.as_bytes());
            header.extend_from_slice(&value.type_id().to_le_bytes());
            put_value(&mut header, value);
        }
        let mut offset = 0u64;
        let mut sizes = Vec::with_capacity(tensors.len());
        let mut names = std::collections::HashSet::new();
        for tensor in tensors {
            if tensor.name.len() >= MAX_NAME_BYTES {
                return Err(
                    fault(&tensor.name, format!("the name has more than ggml's {} bytes", MAX_NAME_BYTES - 1)).into()
                );
            }
            if !names.insert(tensor.name.as_str()) {
                return Err(fault(&tensor.name, "listed twice".to_owned()).into());
            }
            let (Some(bytes), Some(type_id)) = (tensor.byte_count(), tensor.dtype.ggml_id()) else {
                return Err(fault(
                    &tensor.name,
                    format!("shape {:?} cannot be stored as {} in a GGUF", tensor.shape, tensor.dtype),
                )
                .fix("choose another format for it")
                .into());
            };
            put_string(&mut header, tensor.name.as_bytes());
            header.extend_from_slice(&(tensor.shape.len() as u32).to_le_bytes());
            for &len in tensor.shape.iter().rev() {
                header.extend_from_slice(&(len as u64).to_le_bytes());
            }
            header.extend_from_slice(&type_id.to_le_bytes());
            header.extend_from_slice(&offset.to_le_bytes());
            let next = (offset + bytes).next_multiple_of(alignment);
            sizes.push((bytes, (next - offset - bytes) as usize));
            offset = next;
        }
        header.resize(header.len().next_multiple_of(alignment as usize), 0);
        let names = tensors.iter().map(|tensor| tensor.name.clone()).collect();
        Ok(Self { header, sizes, names })
    }

    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> u64 {
        let data: u64 = self.sizes.iter().map(|&(bytes, padding)| bytes + padding as u64).sum();
        self.header.len() as u64 + data
    }
}

fn put_string(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text);
}

fn put_value(out: &mut Vec<u8>, value: &GgufValue) {
    match value {
        GgufValue::U8(value) => out.push(*value),
        GgufValue::I8(value) => out.extend_from_slice(&value.to_le_bytes()),
        GgufValue::U16(value) => out.extend_from_slice(&value.to_le_bytes()),
        GgufValue::I16(value) => out.extend_from_slice(&value.to_le_bytes()),
        GgufValue::U32(value) => out.extend_from_slice(&value.to_le_bytes()),
        GgufValue::I32(value) => out.extend_from_slice(&value.to_le_bytes()),
        GgufValue::F32(value) => out.extend_from_slice(&value.to_le_bytes()),
        GgufValue::Bool(value) => out.push(u8::from(*value)),
        GgufValue::String(text) => put_string(out, text.as_bytes()),
        GgufValue::Array(array) => put_array(out, array),
        GgufValue::U64(value) => out.extend_from_slice(&value.to_le_bytes()),
        GgufValue::I64(value) => out.extend_from_slice(&value.to_le_bytes()),
        GgufValue::F64(value) => out.extend_from_slice(&value.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &GgufArray) {
    fn all<T: Copy, const N: usize>(out: &mut Vec<u8>, items: &[T], bytes: impl Fn(T) -> [u8; N]) {
        items.iter().for_each(|&item| out.extend_from_slice(&bytes(item)));
    }
    out.extend_from_slice(&array.type_id().to_le_bytes());
    out.extend_from_slice(&(array.len() as u64).to_le_bytes());
    match array {
        GgufArray::U8(items) => out.extend_from_slice(items),
        GgufArray::I8(items) => all(out, items, i8::to_le_bytes),
        GgufArray::U16(items) => all(out, items, u16::to_le_bytes),
        GgufArray::I16(items) => all(out, items, i16::to_le_bytes),
        GgufArray::U32(items) => all(out, items, u32::to_le_bytes),
        GgufArray::I32(items) => all(out, items, i32::to_le_bytes),
        GgufArray::F32(items) => all(out, items, f32::to_le_bytes),
        GgufArray::Bool(items) => all(out, items, |item| [u8::from(item)]),
        GgufArray::String(strings) => put_strings(out, strings),
        GgufArray::Array(arrays) => arrays.iter().for_each(|inner| put_array(out, inner)),
        GgufArray::U64(items) => all(out, items, u64::to_le_bytes),
        GgufArray::I64(items) => all(out, items, i64::to_le_bytes),
        GgufArray::F64(items) => all(out, items, f64::to_le_bytes),
    }
}

fn put_strings(out: &mut Vec<u8>, strings: &GgufStrings) {
    strings.iter_bytes().for_each(|text| put_string(out, text));
}

/// A GGUF in the making: rows are appended in the order of the tensors.
#[derive(Debug)]
pub struct GgufWriter {
    output: OutputFile,
    layout: GgufLayout,
    /// The tensor being written and its bytes so far.
    current: usize,
    done_bytes: u64,
}

impl GgufWriter {
    /// Starts the file; it appears under `path` only when it is whole.
    pub fn create(path: &Path, metadata: &[(String, GgufValue)], tensors: &[GgufTensor]) -> Result<Self> {
        let layout = GgufLayout::new(metadata, tensors)?;
        let mut output = OutputFile::create(path)?;
        output.write(&layout.header)?;
        let mut writer = Self { output, layout, current: 0, done_bytes: 0 };
        writer.step_over_full()?;
        Ok(writer)
    }

    /// Appends stored bytes of the current tensor, in GGUF's row order.
    ///
    /// # Errors
    /// The disk's own, or bytes beyond the current tensor's end.
    pub fn write_tensor_rows(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(&(size_bytes, _)) = self.layout.sizes.get(self.current) else {
            return if bytes.is_empty() { Ok(()) } else { Err(self.fault("data after the last tensor")) };
        };
        if self.done_bytes + bytes.len() as u64 > size_bytes {
            return Err(self.fault("more data than its shape holds"));
        }
        self.output.write(bytes)?;
        self.done_bytes += bytes.len() as u64;
        self.step_over_full()
    }

    /// Pads what is complete and goes on to the next tensor.
    fn step_over_full(&mut self) -> Result<()> {
        while let Some(&(size_bytes, padding)) = self.layout.sizes.get(self.current)
            && self.done_bytes == size_bytes
        {
            self.output.write(&vec![0; padding])?;
            self.current += 1;
            self.done_bytes = 0;
        }
        Ok(())
    }

    fn fault(&self, cause: &str) -> crate::error::Error {
        let name = self.layout.names.get(self.current).map_or("(none)", String::as_str);
        Fault::new(Stage::Pass, cause).at(format!("tensor {name}")).file(self.output.target()).into()
    }

    /// Replaces the header by one of other metadata, which must take as many bytes: for what is known only when the
    /// last weight is.
    ///
    /// # Errors
    /// The disk's own, or a header of another length.
    pub fn replace_metadata(&mut self, metadata: &[(String, GgufValue)], tensors: &[GgufTensor]) -> Result<()> {
        let layout = GgufLayout::new(metadata, tensors)?;
        if layout.header.len() != self.layout.header.len() || layout.sizes != self.layout.sizes {
            return Err(self.fault("the header has another length than before"));
        }
        self.output.rewrite(0, &layout.header)?;
        self.layout = layout;
        Ok(())
    }

    /// Bytes written so far.
    pub fn written_bytes(&self) -> u64 {
        self.output.written_bytes()
    }

    /// Flushes, renames and answers the file's size.
    ///
    /// # Errors
    /// The disk's own, or a tensor whose data are not complete.
    pub fn finish(self) -> Result<u64> {
        if self.current < self.layout.sizes.len() {
            return Err(self.fault("its data are not complete"));
        }
        self.output.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_are_replaced_in_place_by_others_of_their_length_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let tensors = [GgufTensor { name: "one".to_owned(), shape: vec![40], dtype: Dtype::F32 }];
        let metadata = |text: &str| [("key".to_owned(), GgufValue::String(text.to_owned()))];
        let weights: Vec<u8> = (0..160).collect();
        let written = |name: &str, first: &str, then: Option<&str>| {
            let path = folder.path().join(name);
            let mut writer = GgufWriter::create(&path, &metadata(first), &tensors).expect("creates");
            writer.write_tensor_rows(&weights[..100]).expect("writes");
            if let Some(then) = then {
                writer.replace_metadata(&metadata(then), &tensors).expect("replaces");
            }
            writer.write_tensor_rows(&weights[100..]).expect("goes on at the end");
            let size = writer.finish().expect("finishes");
            let bytes = std::fs::read(&path).expect("reads");
            assert_eq!(size, bytes.len() as u64);
            bytes
        };
        assert!(written("replaced", "cpu ", Some("card")) == written("plain", "card", None));
        let mut writer =
            GgufWriter::create(&folder.path().join("refused"), &metadata("cpu"), &tensors).expect("creates");
        let longer = "c".repeat(100);
        let error = writer.replace_metadata(&metadata(&longer), &tensors).expect_err("it would not fit");
        assert!(error.to_string().contains("another length"), "{error}");
    }
}
