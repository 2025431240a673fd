//! Kernel rates of this machine: measured once, kept in the cache, and used for every prediction of speed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::engine::error::{Error, Result};
use crate::engine::scoring::kernel_rates::{KernelRates, Machine};

/// Where the rates are kept.
fn file(cache_dir: &Path) -> PathBuf {
    cache_dir.join("kernel-rates.json")
}

/// The rates kept in the cache, if they are this machine's.
pub fn known_rates(cache_dir: &Path) -> Option<Arc<KernelRates>> {
    let path = file(cache_dir);
    if !path.exists() {
        return None;
    }
    match KernelRates::read(&path) {
        Ok(rates) if rates.is_of(&Machine::here()) => Some(Arc::new(rates)),
        Ok(rates) => {
            tracing::info!("kernel rates of {:?} are not this machine's", rates.machine);
            None
        }
        Err(err) => {
            tracing::warn!("kernel rates are not readable: {err}");
            None
        }
    }
}

/// Keeps rates in the cache and answers where.
///
/// # Errors
/// A folder that cannot be written to.
pub fn keep_rates(cache_dir: &Path, rates: &KernelRates) -> Result<PathBuf> {
    let path = file(cache_dir);
    super::files::write_atomically(&path, rates.to_json().as_bytes()).map_err(Error::io("write", &path))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::progress::Progress;
    use crate::engine::scoring::kernel_rates::{self, RateOptions};

    #[test]
    fn rates_are_found_again_on_the_machine_they_are_of() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(known_rates(folder.path()).is_none());
        let options = RateOptions { formats: vec!["q8_0".to_owned()], quick: true };
        let mut rates = kernel_rates::measure(&options, &Progress::default()).expect("measures");
        keep_rates(folder.path(), &rates).expect("writes");
        assert_eq!(known_rates(folder.path()).as_deref(), Some(&rates));
        rates.machine.cpu = "another".to_owned();
        keep_rates(folder.path(), &rates).expect("writes");
        assert!(known_rates(folder.path()).is_none());
        std::fs::write(file(folder.path()), "{").expect("writes");
        assert!(known_rates(folder.path()).is_none());
    }
}
