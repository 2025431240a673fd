//! Writing so that nothing is lost: beside the target, then renamed; the original never touched.
//!
//! A file that is dropped before [`OutputFile::finish`], after an error, a cancel or a panic,
//! leaves nothing behind, and what lay at the target stays whole.

use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::Checkpoint;
use crate::error::{Error, Fault, Result, Stage};

/// A file in the making.
#[derive(Debug)]
pub(super) struct OutputFile {
    target: PathBuf,
    writer: BufWriter<NamedTempFile>,
    written_bytes: u64,
}

/// The folder that holds `target`.
pub(super) fn parent_of(target: &Path) -> &Path {
    target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A hidden name that tells what it was going to be.
pub(super) fn temporary_prefix(target: &Path) -> String {
    let name = target.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let short: String = name.chars().take(40).collect();
    format!(".{short}.")
}

impl OutputFile {
    /// Starts a file that will be called `target`; its folder must exist.
    pub fn create(target: &Path) -> Result<Self> {
        if target.is_dir() {
            return Err(Fault::new(Stage::Pass, "the output is a folder, but a file will be written")
                .fix("choose another name")
                .file(target)
                .into());
        }
        let prefix = temporary_prefix(target);
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".part");
        #[cfg(unix)]
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        // Temporary files are private by default; this one becomes an ordinary file (umask applies).
        #[cfg(unix)]
        builder.permissions(permissions);
        let file = builder.tempfile_in(parent_of(target)).map_err(Error::io("create", target))?;
        Ok(Self { target: target.to_owned(), writer: BufWriter::with_capacity(1 << 20, file), written_bytes: 0 })
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write_all(bytes).map_err(Error::io("write", &self.target))?;
        self.written_bytes += bytes.len() as u64;
        Ok(())
    }

    /// Replaces bytes that were written, the first of which is at `offset`; what is appended later goes to the end.
    pub fn rewrite(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        debug_assert!(offset + bytes.len() as u64 <= self.written_bytes, "nothing there to replace");
        let replaced = self.writer.seek(SeekFrom::Start(offset)).and_then(|_| {
            self.writer.write_all(bytes)?;
            self.writer.seek(SeekFrom::End(0))
        });
        replaced.map(|_| ()).map_err(Error::io("write", &self.target))
    }

    /// Bytes so far.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// What the file will be called.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Flushes to the disk and renames; answers the file's size.
    pub fn finish(self) -> Result<u64> {
        let target = self.target;
        let file = self.writer.into_inner().map_err(|err| Error::io("write", &target)(err.into_error()))?;
        file.as_file().sync_all().map_err(Error::io("write", &target))?;
        file.persist(&target).map_err(|err| Error::io("write", &target)(err.error))?;
        sync_folder(parent_of(&target));
        Ok(self.written_bytes)
    }
}

/// Makes a rename last through a power cut, where the system can.
pub(super) fn sync_folder(folder: &Path) {
    // Not every file system can do it, and the content itself is already safe.
    if let Ok(folder) = std::fs::File::open(folder) {
        let _ = folder.sync_all();
    }
}

/// Refuses a target that is one of the checkpoint's own files, or a folder that holds one.
///
/// # Errors
/// A [`Fault`] that names the file which would have been lost.
pub fn ensure_not_source(checkpoint: &Checkpoint, target: &Path) -> Result<()> {
    let Ok(real_target) = target.canonicalize() else {
        // What does not exist cannot be a source.
        return Ok(());
    };
    for path in checkpoint.files() {
        let Ok(real) = path.canonicalize() else { continue };
        let is_same = real == real_target || (real_target.is_dir() && real.starts_with(&real_target));
        if is_same || is_same_file(&real, &real_target) {
            return Err(Fault::new(Stage::Pass, "the output would replace the original checkpoint")
                .at(format!("file {}", path.display()))
                .fix("choose another name or folder")
                .file(target)
                .into());
        }
    }
    Ok(())
}

/// True for two names of one file.
#[cfg(unix)]
fn is_same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (std::fs::metadata(a), std::fs::metadata(b)) {
        (Ok(a), Ok(b)) => a.dev() == b.dev() && a.ino() == b.ino(),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_same_file(_: &Path, _: &Path) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .expect("folder")
            .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn an_unfinished_file_leaves_nothing_and_keeps_the_old_one() {
        let folder = tempfile::tempdir().expect("tempdir");
        let target = folder.path().join("out.gguf");
        std::fs::write(&target, b"old").expect("write");
        let mut file = OutputFile::create(&target).expect("creates");
        file.write(&[1; 3 << 20]).expect("writes");
        assert_eq!(names(folder.path()).len(), 2);
        drop(file);
        assert_eq!(names(folder.path()), ["out.gguf"]);
        assert_eq!(std::fs::read(&target).expect("read"), b"old");
    }

    #[test]
    fn a_finished_file_replaces_the_old_one_and_is_an_ordinary_file() {
        let folder = tempfile::tempdir().expect("tempdir");
        let target = folder.path().join("out.gguf");
        std::fs::write(&target, b"old").expect("write");
        let mut file = OutputFile::create(&target).expect("creates");
        file.write(b"new one").expect("writes");
        assert_eq!(file.finish().expect("finishes"), 7);
        assert_eq!(names(folder.path()), ["out.gguf"]);
        assert_eq!(std::fs::read(&target).expect("read"), b"new one");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(&target).expect("metadata").permissions().mode();
            assert_ne!(mode & 0o044, 0, "others may read it as the umask allows");
        }
    }

    #[cfg(unix)]
    #[test]
    fn the_original_is_refused_under_every_name() {
        let folder = tempfile::tempdir().expect("tempdir");
        let demo = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/demo"));
        let source = folder.path().join("source");
        std::fs::create_dir(&source).expect("dir");
        for name in ["config.json", "model.safetensors", "tokenizer.json"] {
            std::fs::copy(demo.join(name), source.join(name)).expect("copy");
        }
        let checkpoint = Checkpoint::open(&source).expect("opens");
        let hard = folder.path().join("hard");
        std::fs::hard_link(source.join("model.safetensors"), &hard).expect("link");
        let soft = folder.path().join("soft");
        std::os::unix::fs::symlink(&source, &soft).expect("link");
        for target in [source.join("model.safetensors"), source.join("tokenizer.json"), source.clone(), hard, soft] {
            assert!(ensure_not_source(&checkpoint, &target).is_err(), "{}", target.display());
        }
        assert!(ensure_not_source(&checkpoint, &source.join("new.gguf")).is_ok());
        assert!(ensure_not_source(&checkpoint, &folder.path().join("new")).is_ok());
    }
}
