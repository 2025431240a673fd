//! Copying a candidate to a place of the user's, with the care of a pass.

use std::io::{Read as _, Write as _};
use std::path::Path;

use crate::checkpoint::{self, Checkpoint};
use crate::error::{Error, Result};
use crate::progress::{Phase, Progress, Unit};

/// Copies a candidate's file, or its whole folder, to `output`; answers the bytes copied.
///
/// # Errors
/// A target that is the candidate itself or cannot be written, or cancel; nothing half-copied remains.
pub fn copy_candidate(candidate: &Checkpoint, output: &Path, progress: &Progress) -> Result<u64> {
    checkpoint::ensure_not_source(candidate, output)?;
    progress.begin(Phase::Compressing, candidate.file_bytes(), Unit::Bytes);
    if let Some(parent) = output.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    if !candidate.path.is_dir() {
        return copy_file(&candidate.path, output, progress);
    }
    let folder = output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let staging =
        tempfile::Builder::new().prefix(".lapidary.").tempdir_in(folder).map_err(Error::io("create", output))?;
    let mut total = 0;
    let entries = std::fs::read_dir(&candidate.path).map_err(Error::io("read", &candidate.path))?;
    for entry in entries {
        let entry = entry.map_err(Error::io("read", &candidate.path))?;
        if entry.path().is_file() {
            total += copy_file(&entry.path(), &staging.path().join(entry.file_name()), progress)?;
        }
    }
    // Renaming fails on a folder that has something in it: nobody's files are replaced.
    std::fs::rename(staging.path(), output).map_err(Error::io("write", output))?;
    let moved = staging.keep();
    tracing::debug!("copied by way of {}", moved.display());
    Ok(total)
}

fn copy_file(from: &Path, to: &Path, progress: &Progress) -> Result<u64> {
    let folder = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut source = std::fs::File::open(from).map_err(Error::io("read", from))?;
    let mut target = tempfile::NamedTempFile::new_in(folder).map_err(Error::io("create", to))?;
    let mut buffer = vec![0; 4 << 20];
    let mut total = 0;
    loop {
        progress.check()?;
        let count = source.read(&mut buffer).map_err(Error::io("read", from))?;
        if count == 0 {
            break;
        }
        target.write_all(&buffer[..count]).map_err(Error::io("write", to))?;
        total += count as u64;
        progress.advance(count as u64);
    }
    target.as_file().sync_all().map_err(Error::io("write", to))?;
    target.persist(to).map_err(|err| Error::io("write", to)(err.error))?;
    Ok(total)
}
