//! Writing one safetensors file tensor by tensor, and whole Hugging Face folders.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::output::{self, OutputFile};
use super::safetensors::dtype_name;
use crate::error::{Error, Fault, Result, Stage};
use crate::format::Dtype;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SafeTensor {
    /// Hugging Face's name.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// A plain type that safetensors has.
    pub dtype: Dtype,
}

/// A `.safetensors` in the making: rows are appended in the order of the tensors.
#[derive(Debug)]
pub struct SafetensorsWriter {
    output: OutputFile,
    expected_bytes: u64,
}

impl SafetensorsWriter {
    /// Starts the file; it appears under `path` only when it is whole.
    pub fn create(path: &Path, tensors: &[SafeTensor]) -> Result<Self> {
        let (header, data_bytes) = header_of(tensors)?;
        let mut output = OutputFile::create(path)?;
        output.write(&header)?;
        Ok(Self { expected_bytes: header.len() as u64 + data_bytes, output })
    }

    /// Appends bytes of the next rows.
    pub fn write_tensor_rows(&mut self, bytes: &[u8]) -> Result<()> {
        if self.output.written_bytes() + bytes.len() as u64 > self.expected_bytes {
            return Err(self.fault("more data than the shapes hold"));
        }
        self.output.write(bytes)
    }

    fn fault(&self, cause: &str) -> Error {
        Fault::new(Stage::Pass, cause).file(self.output.target()).into()
    }

    /// Flushes, renames and answers the file's size.
    pub fn finish(self) -> Result<u64> {
        if self.output.written_bytes() != self.expected_bytes {
            return Err(self.fault("the tensors' data are not complete"));
        }
        self.output.finish()
    }
}

/// Bytes of the file that will hold `tensors`.
///
/// # Errors
/// A type that safetensors does not have, a name listed twice, a shape that is too large.
pub fn safetensors_bytes(tensors: &[SafeTensor]) -> Result<u64> {
    let (header, data_bytes) = header_of(tensors)?;
    Ok(header.len() as u64 + data_bytes)
}

/// The header with its length field, padded to 8 bytes as the format asks, and the data's size.
fn header_of(tensors: &[SafeTensor]) -> Result<(Vec<u8>, u64)> {
    let mut json = String::from(r#"{"__metadata__":{"format":"pt"}"#);
    let mut offset = 0u64;
    let mut names = std::collections::HashSet::new();
    for tensor in tensors {
        let fault = |cause: String| Fault::new(Stage::Pass, cause).at(format!("tensor {}", tensor.name));
        if !names.insert(tensor.name.as_str()) {
            return Err(fault("listed twice".to_owned()).into());
        }
        let dtype = dtype_name(tensor.dtype).ok_or_else(|| {
            fault(format!("safetensors has no type {}", tensor.dtype)).fix("choose f32, f16 or bf16 for it")
        })?;
        let bytes = tensor
            .shape
            .iter()
            .try_fold(tensor.dtype.block_bytes() as u64, |bytes, &len| bytes.checked_mul(len as u64))
            .and_then(|bytes| offset.checked_add(bytes).map(|_| bytes))
            .ok_or_else(|| fault(format!("shape {:?} is too large", tensor.shape)))?;
        let name = serde_json::Value::String(tensor.name.clone());
        json.push_str(&format!(
            r#",{name}:{{"dtype":"{dtype}","shape":{},"data_offsets":[{offset},{}]}}"#,
            serde_json::json!(tensor.shape),
            offset + bytes
        ));
        offset += bytes;
    }
    json.push('}');
    let padded = json.len().next_multiple_of(8);
    json.extend(std::iter::repeat_n(' ', padded - json.len()));
    let mut header = (padded as u64).to_le_bytes().to_vec();
    header.extend_from_slice(json.as_bytes());
    Ok((header, offset))
}

/// A folder in the making, beside its target; it takes the target's place when it is whole.
#[derive(Debug)]
pub struct FolderWriter {
    target: PathBuf,
    temporary: TempDir,
}

impl FolderWriter {
    /// Starts a folder that will be called `target`.
    ///
    /// # Errors
    /// Where `target` is a file, or a folder with anything in it that is not a model's file:
    /// finishing would delete that.
    pub fn create(target: &Path) -> Result<Self> {
        let fault = |cause: String| Fault::new(Stage::Pass, cause).fix("choose an empty or new folder").file(target);
        if target.is_file() {
            return Err(fault("the output is a file, but a folder will be written".to_owned()).into());
        }
        if target.is_dir()
            && let Some(name) = foreign_entry(target)?
        {
            return Err(fault(format!("the folder holds {name}, which is no part of a model")).into());
        }
        let prefix = output::temporary_prefix(target);
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".part");
        #[cfg(unix)]
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        #[cfg(unix)]
        builder.permissions(permissions);
        let temporary = builder.tempdir_in(output::parent_of(target)).map_err(Error::io("create", target))?;
        Ok(Self { target: target.to_owned(), temporary })
    }

    /// Writes one small file of the folder.
    pub fn write_file(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut file = OutputFile::create(&self.temporary.path().join(name)).map_err(|err| self.renamed(err, name))?;
        file.write(bytes).and_then(|()| file.finish()).map(|_| ()).map_err(|err| self.renamed(err, name))
    }

    /// Starts `model.safetensors` in the folder.
    pub fn safetensors(&self, tensors: &[SafeTensor]) -> Result<SafetensorsWriter> {
        let name = "model.safetensors";
        SafetensorsWriter::create(&self.temporary.path().join(name), tensors).map_err(|err| self.renamed(err, name))
    }

    /// An error on a temporary name, told with the name that the user chose.
    fn renamed(&self, err: Error, name: &str) -> Error {
        match err {
            Error::Io { action, source, .. } => Error::Io { action, path: self.target.join(name), source },
            other => other,
        }
    }

    /// Puts the folder in its place.
    ///
    /// An older model there is moved aside first and deleted last, so that at every moment one of
    /// the two is whole.
    pub fn finish(self) -> Result<()> {
        let failed = Error::io("write", &self.target);
        output::sync_folder(self.temporary.path());
        let is_free = match std::fs::read_dir(&self.target) {
            Ok(mut entries) => entries.next().is_none(),
            Err(_) => true,
        };
        if is_free {
            std::fs::rename(self.temporary.path(), &self.target).map_err(failed)?;
            // The folder has another name now; there is nothing left to delete.
            let _ = self.temporary.keep();
        } else {
            if let Some(name) = foreign_entry(&self.target)? {
                return Err(Fault::new(
                    Stage::Pass,
                    format!("the folder now holds {name}, which is no part of a model"),
                )
                .fix("choose an empty or new folder")
                .file(&self.target)
                .into());
            }
            let prefix = output::temporary_prefix(&self.target);
            let aside = tempfile::Builder::new()
                .prefix(&prefix)
                .suffix(".old")
                .tempdir_in(output::parent_of(&self.target))
                .map_err(Error::io("write", &self.target))?;
            let old = aside.path().join("old");
            std::fs::rename(&self.target, &old).map_err(Error::io("write", &self.target))?;
            if let Err(err) = std::fs::rename(self.temporary.path(), &self.target) {
                // Put the old one back; if that fails too, keep it where it is.
                if std::fs::rename(&old, &self.target).is_err() {
                    let _ = aside.keep();
                }
                return Err(failed(err));
            }
            let _ = self.temporary.keep();
        }
        output::sync_folder(output::parent_of(&self.target));
        Ok(())
    }
}

/// The first entry of a folder that is not a file of a model, in sorted order.
fn foreign_entry(folder: &Path) -> Result<Option<String>> {
    const ENDINGS: [&str; 7] = [".json", ".safetensors", ".gguf", ".txt", ".md", ".model", ".jinja"];
    let mut foreign = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io("open", folder))? {
        let entry = entry.map_err(Error::io("open", folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if !is_file || !ENDINGS.iter().any(|ending| name.ends_with(ending)) {
            foreign.push(name);
        }
    }
    foreign.sort();
    // Notes and texts alone are no model either.
    if foreign.is_empty()
        && std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())
        && !folder.join("config.json").exists()
    {
        return Ok(Some("files without a config.json".to_owned()));
    }
    Ok(foreign.into_iter().next())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;

    fn folder_with_one_tensor(target: &Path, value: f32) -> Result<()> {
        let folder = FolderWriter::create(target)?;
        folder.write_file("config.json", b"{}")?;
        let tensor = SafeTensor { name: "a \"b\"".to_owned(), shape: vec![1, 2], dtype: Dtype::F32 };
        let mut writer = folder.safetensors(&[tensor])?;
        for _ in 0..2 {
            writer.write_tensor_rows(&value.to_le_bytes())?;
        }
        writer.finish()?;
        folder.finish()
    }

    fn first_value(target: &Path) -> f32 {
        let checkpoint = Checkpoint::open(target).expect("opens");
        let mut bytes = Vec::new();
        checkpoint.read_rows(&checkpoint.tensors[0], 0..1, &mut bytes).expect("reads");
        assert_eq!(checkpoint.tensors[0].name, "a \"b\"");
        f32::from_le_bytes(bytes[..4].try_into().expect("four bytes"))
    }

    #[test]
    fn a_folder_appears_whole_and_replaces_an_older_one() {
        let root = tempfile::tempdir().expect("tempdir");
        let target = root.path().join("model");
        folder_with_one_tensor(&target, 1.5).expect("writes");
        assert_eq!(first_value(&target), 1.5);
        folder_with_one_tensor(&target, 2.5).expect("writes");
        assert_eq!(first_value(&target), 2.5);
        assert_eq!(std::fs::read_dir(root.path()).expect("dir").count(), 1, "nothing else is left");
    }

    #[test]
    fn a_folder_of_someone_elses_files_is_refused() {
        let root = tempfile::tempdir().expect("tempdir");
        for name in ["thesis.tex", "notes.txt"] {
            let target = root.path().join(name.replace('.', "-"));
            std::fs::create_dir(&target).expect("dir");
            std::fs::write(target.join(name), b"mine").expect("write");
            assert!(folder_with_one_tensor(&target, 1.0).is_err());
            assert_eq!(std::fs::read(target.join(name)).expect("read"), b"mine");
        }
        assert_eq!(std::fs::read_dir(root.path()).expect("dir").count(), 2);
    }

    #[test]
    fn an_incomplete_file_is_refused_and_leaves_nothing() {
        let root = tempfile::tempdir().expect("tempdir");
        let path = root.path().join("model.safetensors");
        let tensor = SafeTensor { name: "a".to_owned(), shape: vec![4], dtype: Dtype::F16 };
        let mut writer = SafetensorsWriter::create(&path, std::slice::from_ref(&tensor)).expect("creates");
        assert!(writer.write_tensor_rows(&[0; 9]).is_err());
        writer.write_tensor_rows(&[0; 7]).expect("writes");
        assert!(writer.finish().is_err());
        assert_eq!(std::fs::read_dir(root.path()).expect("dir").count(), 0);
    }
}
