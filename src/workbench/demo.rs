//! The model that comes with the program: embedded in the binary, unpacked by hash into the cache.

use std::path::{Path, PathBuf};

use crate::engine::error::{Error, Result};

/// Name and content of every file of the demo.
pub const DEMO_FILES: [(&str, &[u8]); 11] = [
    ("README.md", include_bytes!("../../assets/demo/README.md")),
    ("config.json", include_bytes!("../../assets/demo/config.json")),
    ("generation_config.json", include_bytes!("../../assets/demo/generation_config.json")),
    ("model.safetensors", include_bytes!("../../assets/demo/model.safetensors")),
    ("tokenizer.json", include_bytes!("../../assets/demo/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../assets/demo/tokenizer_config.json")),
    ("tasks.jsonl", include_bytes!("../../assets/demo/tasks.jsonl")),
    ("calibration.jsonl", include_bytes!("../../assets/demo/calibration.jsonl")),
    ("calibration.txt", include_bytes!("../../assets/demo/calibration.txt")),
    ("evaluation.jsonl", include_bytes!("../../assets/demo/evaluation.jsonl")),
    ("evaluation.txt", include_bytes!("../../assets/demo/evaluation.txt")),
];

/// Writes the demo's files into `folder`, which is made if it is not there.
///
/// # Errors
/// A folder that cannot be written to; files of the same name that differ are not overwritten.
pub fn write_demo(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    for (name, content) in DEMO_FILES {
        let path = folder.join(name);
        match std::fs::read(&path) {
            Ok(existing) if existing == content => {}
            Ok(_) => {
                let exists = std::io::Error::new(
                    std::io::ErrorKind::AlreadyExists,
                    "a different file of this name is there; choose an empty folder",
                );
                return Err(Error::io("write", &path)(exists));
            }
            Err(_) => super::files::write_atomically(&path, content).map_err(Error::io("write", &path))?,
        }
    }
    Ok(())
}

/// The demo's folder in the cache, unpacked if it is not there whole.
pub fn unpack_demo(cache_dir: &Path) -> Result<PathBuf> {
    let mut hasher = blake3::Hasher::new();
    for (name, content) in DEMO_FILES {
        hasher.update(name.as_bytes());
        hasher.update(content);
    }
    let folder = cache_dir.join(format!("demo-{}", &hasher.finalize().to_hex()[..16]));
    for (name, content) in DEMO_FILES {
        let path = folder.join(name);
        // The folder is named by content: a file of the right length is the right one unless somebody edited it.
        if std::fs::metadata(&path).map(|found| found.len()).ok() != Some(content.len() as u64) {
            super::files::write_atomically(&path, content).map_err(Error::io("write", &path))?;
        }
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_cache_is_mended() {
        let cache = tempfile::tempdir().expect("folder");
        let folder = unpack_demo(cache.path()).expect("unpacks");
        std::fs::write(folder.join("config.json"), "{}").expect("damages");
        assert_eq!(unpack_demo(cache.path()).expect("unpacks"), folder);
        assert!(std::fs::read_to_string(folder.join("config.json")).expect("reads").contains("llama"));
    }

    #[test]
    fn writing_the_demo_never_overwrites_what_differs() {
        let folder = tempfile::tempdir().expect("folder");
        write_demo(folder.path()).expect("writes");
        write_demo(folder.path()).expect("the same again is fine");
        std::fs::write(folder.path().join("tasks.jsonl"), "mine").expect("edits");
        let err = write_demo(folder.path()).expect_err("refused").to_string();
        assert!(err.contains("tasks.jsonl"), "{err}");
        assert_eq!(std::fs::read_to_string(folder.path().join("tasks.jsonl")).expect("reads"), "mine");
    }
}
