//! The files behind a checkpoint: positioned reads, capped small files, and paths kept inside a folder.

use std::fs::File;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Fault, Result, Stage};
use crate::progress::{Phase, Progress, Unit};

/// An open file with its size when it was opened.
#[derive(Debug)]
pub(crate) struct DataFile {
    pub path: PathBuf,
    pub file: File,
    pub size_bytes: u64,
}

impl DataFile {
    /// Opens a regular file; a folder, pipe or device is refused, since reading it may never end.
    pub fn open(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(Error::io("open", path))?;
        if !metadata.is_file() {
            return Err(Fault::new(Stage::Checkpoint, "not a regular file")
                .fix("name a .safetensors, .index.json or .gguf file, or a folder that holds one")
                .file(path)
                .into());
        }
        let file = File::open(path).map_err(Error::io("open", path))?;
        Ok(Self { path: path.to_owned(), file, size_bytes: metadata.len() })
    }

    /// Fills `out` from `offset`; several threads may read at once.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        read_exact_at(&self.file, offset, out).map_err(Error::io("read", &self.path))
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut offset: u64, mut out: &mut [u8]) -> std::io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !out.is_empty() {
        match file.seek_read(out, offset) {
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                offset += count as u64;
                out = &mut out[count..];
            }
            Err(err) if err.kind() == std::io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    Ok(())
}

/// Reads a whole small file, but never more than `cap_bytes`.
pub(crate) fn read_small(path: &Path, cap_bytes: u64) -> Result<Vec<u8>> {
    use std::io::Read;
    let data = DataFile::open(path)?;
    if data.size_bytes > cap_bytes {
        return Err(Fault::new(
            Stage::Checkpoint,
            format!("{} bytes are more than such a file can have ({cap_bytes})", data.size_bytes),
        )
        .fix("check that this is the right file")
        .file(path)
        .into());
    }
    let mut bytes = Vec::with_capacity(data.size_bytes as usize);
    (&data.file).take(cap_bytes).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    Ok(bytes)
}

/// Most bytes of `config.json` and its like.
pub(crate) const CONFIG_CAP: u64 = 16 << 20;
/// Most bytes of a tokenizer or an index.
pub(crate) const TOKENIZER_CAP: u64 = 256 << 20;

/// Reads a JSON object with its path and byte position in the error.
pub(crate) fn read_json(path: &Path) -> Result<serde_json::Map<String, serde_json::Value>> {
    let bytes = read_small(path, CONFIG_CAP)?;
    serde_json::from_slice(&bytes).map_err(|err| {
        Fault::new(Stage::Checkpoint, format!("not a JSON object: {err}"))
            .fix("download or write the file again")
            .file(path)
            .into()
    })
}

/// The path of `name` inside `folder`, proved to stay there.
///
/// Absolute names and `..` are refused, and so are links that lead out; except to the blobs of the
/// Hugging Face cache, whose snapshot folders hold nothing but such links
/// (`models--x/snapshots/REVISION/file -> ../../blobs/HASH`).
pub(crate) fn inside(folder: &Path, name: &str, index: &Path) -> Result<PathBuf> {
    let outside = || -> Error {
        Fault::new(Stage::Checkpoint, "path outside the folder")
            .at(format!("file name {name:?}"))
            .fix("do not use this checkpoint unless you trust its source")
            .file(index)
            .into()
    };
    let relative = Path::new(name);
    let stays = relative.components().all(|part| matches!(part, Component::Normal(_)));
    if name.is_empty() || !stays || name.contains('\\') || name.contains('\0') {
        return Err(outside());
    }
    let path = folder.join(relative);
    let real = match path.canonicalize() {
        Ok(real) => real,
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(path),
        Err(err) => return Err(Error::io("open", &path)(err)),
    };
    let root = folder.canonicalize().map_err(Error::io("open", folder))?;
    let cache = root
        .parent()
        .filter(|parent| parent.file_name().is_some_and(|name| name == "snapshots"))
        .and_then(Path::parent)
        .map(|repository| repository.join("blobs"));
    if real.starts_with(&root) || cache.is_some_and(|blobs| real.starts_with(blobs)) {
        Ok(path)
    } else {
        Err(outside())
    }
}

/// BLAKE3 of whole files, in hex: of one file its own hash, of several the hash of their hashes
/// and names in order. `names` are what the hash covers besides the content.
pub(crate) fn content_hash(files: &[PathBuf], progress: &Progress) -> Result<String> {
    let mut total = 0u64;
    for path in files {
        total += std::fs::metadata(path).map_err(Error::io("read", path))?.len();
    }
    progress.begin(Phase::Hashing, total, Unit::Bytes);
    let mut hashes = Vec::with_capacity(files.len());
    let mut buffer = vec![0u8; 4 << 20];
    for path in files {
        use std::io::Read;
        let mut file = File::open(path).map_err(Error::io("open", path))?;
        let mut hasher = blake3::Hasher::new();
        loop {
            progress.check()?;
            let count = match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(err) if err.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(err) => return Err(Error::io("read", path)(err)),
            };
            hasher.update(&buffer[..count]);
            progress.advance(count as u64);
        }
        hashes.push(hasher.finalize());
    }
    if let [only] = hashes.as_slice() {
        return Ok(only.to_hex().to_string());
    }
    let mut all = blake3::Hasher::new();
    for (path, hash) in files.iter().zip(&hashes) {
        let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        all.update(&(name.len() as u64).to_le_bytes());
        all.update(name.as_bytes());
        all.update(hash.as_bytes());
    }
    Ok(all.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        let folder = tempfile::tempdir().expect("tempdir");
        for name in ["../x", "a/../../x", "/etc/passwd", "", "..\\x", "./../x"] {
            let text = inside(folder.path(), name, Path::new("index")).expect_err(name).to_string();
            assert!(text.contains("path outside the folder"), "{name}: {text}");
        }
        assert!(inside(folder.path(), "model-00001.safetensors", Path::new("index")).is_ok());
    }

    #[cfg(unix)]
    #[test]
    fn links_may_lead_to_the_cache_and_nowhere_else() {
        let root = tempfile::tempdir().expect("tempdir");
        let snapshot = root.path().join("snapshots/abc");
        std::fs::create_dir_all(&snapshot).expect("dirs");
        std::fs::create_dir_all(root.path().join("blobs")).expect("dirs");
        std::fs::write(root.path().join("blobs/1"), b"x").expect("write");
        std::fs::write(root.path().join("secret"), b"x").expect("write");
        std::os::unix::fs::symlink("../../blobs/1", snapshot.join("good")).expect("link");
        std::os::unix::fs::symlink("../../secret", snapshot.join("bad")).expect("link");
        assert!(inside(&snapshot, "good", Path::new("index")).is_ok());
        assert!(inside(&snapshot, "bad", Path::new("index")).is_err());
    }

    #[test]
    fn one_files_hash_is_its_own() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("a");
        std::fs::write(&path, b"abc").expect("write");
        let hash = content_hash(&[path], &Progress::default()).expect("hash");
        assert_eq!(hash, blake3::hash(b"abc").to_hex().to_string());
    }
}
