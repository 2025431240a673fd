//! Writing small files so that a kill or a full disk leaves the old one whole.

use std::io::Write as _;
use std::path::Path;

/// Writes beside the target, then renames over it.
pub(super) fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a.json");
        write_atomically(&path, b"one").expect("writes");
        assert!(write_atomically(&path.join("below a file"), b"two").is_err());
        assert_eq!(std::fs::read(&path).expect("reads"), b"one");
        assert_eq!(std::fs::read_dir(folder.path()).expect("lists").count(), 1);
    }
}
