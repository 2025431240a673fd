//! What the user likes, apart from any project: theme, device and recent files.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Light, dark or what the system says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThemeChoice {
    /// As the system is set.
    #[default]
    System,
    /// Dark.
    Dark,
    /// Light.
    Light,
}

/// Kept between sessions; every field has a default, so that an old file still opens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// The theme.
    pub theme: ThemeChoice,
    /// Opened last, newest first.
    pub recent: Vec<PathBuf>,
    /// Where work runs: `auto`, `cpu` or a device's name; empty for what the environment says, else `auto`.
    pub device: String,
    /// True if evaluations keep the original's predictions on the text, and take distances from those.
    pub keep_baseline: bool,
}

/// Recent files that are kept.
const MOST_RECENT: usize = 10;

impl Settings {
    fn file(folder: &Path) -> PathBuf {
        folder.join("settings.json")
    }

    /// The settings of `folder`, or the defaults where there are none or they cannot be read.
    pub(super) fn load(folder: &Path) -> Self {
        std::fs::read(Self::file(folder))
            .ok()
            .and_then(|bytes| match serde_json::from_slice(&bytes) {
                Ok(settings) => Some(settings),
                Err(err) => {
                    tracing::warn!("settings are not readable, using defaults: {err}");
                    None
                }
            })
            .unwrap_or_default()
    }

    /// Writes the settings; a failure is logged, since nothing of the user's work is lost by it.
    pub(super) fn save(&self, folder: &Path) {
        let written = serde_json::to_vec_pretty(self)
            .map_err(std::io::Error::other)
            .and_then(|bytes| super::files::write_atomically(&Self::file(folder), &bytes));
        if let Err(err) = written {
            tracing::warn!("settings were not saved: {err}");
        }
    }

    /// Puts a path on top of the recent ones.
    pub(super) fn remember(&mut self, path: &Path) {
        self.recent.retain(|known| known != path);
        self.recent.insert(0, path.to_owned());
        self.recent.truncate(MOST_RECENT);
    }
}
