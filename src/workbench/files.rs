//! Writing small files so that a kill or a full disk leaves the old one whole.

use std::io::{self, Write as _};
use std::path::Path;

/// A file beside `target` that takes its place with `persist`. Temporary files are private by default; this one is an
/// ordinary file, which others may read as far as the user's umask lets them.
pub(crate) fn beside(target: &Path) -> io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".lapidary.").suffix(".part");
    #[cfg(unix)]
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    #[cfg(unix)]
    builder.permissions(permissions);
    builder.tempfile_in(folder_of(target))
}

fn folder_of(target: &Path) -> &Path {
    target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes beside the target, then renames over it.
pub(crate) fn replace(target: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = beside(target)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(target)?;
    Ok(())
}

/// The same, with the folder made where it is missing.
pub(super) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    std::fs::create_dir_all(folder_of(path))?;
    replace(path, bytes)
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

    #[cfg(unix)]
    #[test]
    fn others_may_read_it_as_they_may_any_file_of_the_user() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("folder");
        let mode = |name: &str| {
            let metadata = std::fs::metadata(folder.path().join(name)).expect("a file");
            metadata.permissions().mode() & 0o777
        };
        std::fs::write(folder.path().join("plain"), b"x").expect("writes");
        write_atomically(&folder.path().join("ours"), b"x").expect("writes");
        assert_eq!(mode("ours"), mode("plain"));
    }
}
