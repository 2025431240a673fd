//! Errors of every stage: what went wrong, where, and what to do about it.
//!
//! One [`Fault`] carries all four parts, so that no message can leave one out by accident. The
//! cause comes first and the path last, so that a person can paste the first half.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The stage of the data flow in which something failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Checkpoint,
    Tokenizer,
    Model,
    Device,
    Profile,
    Calibration,
    Sensitivity,
    Plan,
    Pass,
    Tasks,
    Evaluation,
    Comparison,
    Project,
}

impl Stage {
    /// The stage as a word for a message.
    pub fn name(self) -> &'static str {
        match self {
            Self::Checkpoint => "checkpoint",
            Self::Tokenizer => "tokenizer",
            Self::Model => "model",
            Self::Device => "device",
            Self::Profile => "profile",
            Self::Calibration => "calibration",
            Self::Sensitivity => "sensitivity",
            Self::Plan => "plan",
            Self::Pass => "pass",
            Self::Tasks => "tasks",
            Self::Evaluation => "evaluation",
            Self::Comparison => "comparison",
            Self::Project => "project",
        }
    }
}

/// One failure in words: cause, place, remedy and file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The stage that failed.
    pub stage: Stage,
    /// What is wrong, in lower case without a full stop.
    pub cause: String,
    /// Where in the file or model: a tensor, a line, a key, a byte offset.
    pub place: Option<String>,
    /// What the user can do.
    pub remedy: Option<String>,
    /// The file or folder concerned.
    pub path: Option<PathBuf>,
}

impl Fault {
    /// A failure of `stage` with its `cause`.
    #[must_use]
    pub fn new(stage: Stage, cause: impl Into<String>) -> Self {
        Self { stage, cause: cause.into(), place: None, remedy: None, path: None }
    }

    /// Names the tensor, line, key or offset.
    #[must_use]
    pub fn at(mut self, place: impl Into<String>) -> Self {
        self.place = Some(place.into());
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn fix(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Names the file or folder.
    #[must_use]
    pub fn file(mut self, path: impl AsRef<Path>) -> Self {
        self.path = Some(path.as_ref().to_owned());
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: ", self.stage.name())?;
        if let Some(place) = &self.place {
            write!(out, "{place}: ")?;
        }
        write!(out, "{}", self.cause)?;
        if let Some(remedy) = &self.remedy {
            write!(out, "; {remedy}")?;
        }
        if let Some(path) = &self.path {
            write!(out, "\n  {}", path.display())?;
        }
        Ok(())
    }
}

/// What any stage of the engine can answer instead of its noun.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The user asked the job to stop. Neither success nor failure.
    #[error("cancelled")]
    Cancelled,
    /// Something is wrong with the input or with what was asked for.
    #[error("{0}")]
    Fault(Box<Fault>),
    /// The operating system refused.
    #[error("cannot {action}: {source}{}\n  {}", advice(.source), path.display())]
    Io {
        /// What was tried, as a verb: `read`, `write`, `create`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's own answer.
        source: Arc<std::io::Error>,
    },
}

/// The remedy for the system errors that users meet.
fn advice(source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind as Kind;
    match source.kind() {
        Kind::NotFound => "; check the path",
        Kind::PermissionDenied | Kind::ReadOnlyFilesystem => "; choose another folder or change its permissions",
        Kind::StorageFull | Kind::QuotaExceeded => "; free some space or choose another disk",
        Kind::UnexpectedEof => "; the file is shorter than its header says: copy or download it again",
        _ => "",
    }
}

impl Error {
    /// Wraps a system error with what was tried on which path.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { action, path, source: Arc::new(source) }
    }

    /// True if a device failed at what the CPU can do instead.
    pub fn is_of_device(&self) -> bool {
        matches!(self, Self::Fault(fault) if fault.stage == Stage::Device)
    }

    /// True if the user stopped the job.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled)
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        Self::Fault(Box::new(fault))
    }
}

/// The engine's result.
pub type Result<T> = std::result::Result<T, Error>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_reads_cause_remedy_and_path_in_that_order() {
        let fault = Fault::new(Stage::Checkpoint, "data ends at byte 10, needs 20")
            .at("tensor w")
            .fix("download the file again")
            .file("/tmp/m.safetensors");
        assert_eq!(
            Error::from(fault).to_string(),
            "checkpoint: tensor w: data ends at byte 10, needs 20; download the file again\n  /tmp/m.safetensors"
        );
    }

    #[test]
    fn a_full_disk_says_what_to_do() {
        let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let text = Error::io("write", "/tmp/x")(source).to_string();
        assert!(text.contains("free some space"), "{text}");
    }
}
