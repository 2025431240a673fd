//! What a running command has: progress, warnings, opened models, and the way to answer.

use std::cell::{OnceCell, RefCell};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use super::progress_bar::ProgressBar;
use crate::engine::checkpoint::Checkpoint;
use crate::engine::device::{self, Device};
use crate::engine::error::{Error, Fault};
use crate::engine::evaluation::Subject;
use crate::engine::model::{Model, Tokenizer};
use crate::engine::progress::Progress;
use crate::engine::report::{AuditEntry, HashedFile, audit};
use crate::workbench::{self, unpack_demo};

/// Why a command has no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The engine's own.
    Engine(Error),
    /// Arguments that do not go together.
    Usage(String),
    /// Stdout refused.
    Output(io::Error),
}

impl From<Error> for Failure {
    fn from(err: Error) -> Self {
        Self::Engine(err)
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Engine(fault.into())
    }
}

/// A command's result.
pub(super) type Result<T> = std::result::Result<T, Failure>;

/// What goes to stdout, and the exit code.
#[derive(Debug)]
pub(super) struct Answer {
    pub text: String,
    pub code: u8,
}

/// A checkpoint with its model, ready to run.
pub(super) struct Loaded {
    pub checkpoint: Checkpoint,
    pub model: Model,
    pub tokenizer: Tokenizer,
}

impl Loaded {
    /// The model as evaluations see it, under the hash of its files.
    pub fn subject(&self, progress: &Progress) -> Result<Subject<'_>> {
        let id = self.checkpoint.content_hash(progress)?;
        Ok(Subject::new(&self.checkpoint, &self.model, &self.tokenizer, id))
    }
}

/// What a command works with.
pub(super) struct Session {
    pub progress: Progress,
    /// True if the answer is a JSON document.
    pub json: bool,
    /// The device that `--device` names.
    wish: String,
    /// What it means, once somebody has asked.
    device: OnceCell<Device>,
    bar: RefCell<Option<ProgressBar>>,
    warnings: RefCell<Vec<String>>,
}

impl Session {
    /// A session with a progress bar, where somebody can see it.
    pub fn new(json: bool, wish: String) -> Self {
        let progress = Progress::default();
        let bar = ProgressBar::start(&progress);
        Self { progress, json, wish, device: OnceCell::new(), bar: RefCell::new(bar), warnings: RefCell::default() }
    }

    /// Where work runs.
    pub fn device(&self) -> Result<Device> {
        if let Some(device) = self.device.get() {
            return Ok(device.clone());
        }
        let device = Device::choose(&self.wish)?;
        Ok(self.device.get_or_init(|| device).clone())
    }

    /// What `--device` says: `auto`, `cpu` or a part of a name.
    pub fn device_wish(&self) -> &str {
        &self.wish
    }

    /// Takes the progress bar away for good, before anything else is written.
    pub fn hide_progress(&self) {
        drop(self.bar.borrow_mut().take());
    }

    /// Keeps a sentence for stderr; each is said once.
    pub fn warn(&self, warning: impl Into<String>) {
        let (warning, mut warnings) = (warning.into(), self.warnings.borrow_mut());
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    /// Everything that was warned of.
    pub fn warnings(&self) -> Vec<String> {
        device::take_messages().into_iter().for_each(|message| self.warn(message));
        self.warnings.take()
    }

    /// The result as it is; where there is none, the log gets an entry that says why.
    pub fn logged<T, E: Into<Failure>>(
        &self,
        result: std::result::Result<T, E>,
        log: Option<&Path>,
        what: &str,
        started: Instant,
        inputs: impl FnOnce() -> Vec<HashedFile>,
    ) -> Result<T> {
        result.map_err(|err| {
            let failure = err.into();
            if let (Failure::Engine(err), Some(log)) = (&failure, log) {
                let entry = AuditEntry::unfinished(what, inputs(), started.elapsed().as_secs_f64(), err);
                if let Err(err) = audit::append(log, entry) {
                    self.warn(format!("the audit log has no entry of this: {err}"));
                }
            }
            failure
        })
    }

    /// Where `path` really is: `demo` is unpacked into the cache.
    pub fn locate(&self, path: &Path) -> Result<PathBuf> {
        if is_demo(path) { Ok(unpack_demo(&self.cache_dir())?) } else { Ok(path.to_owned()) }
    }

    /// A file of the bundled demo, if one of `paths` is the demo.
    pub fn demo_file(&self, paths: &[&Path], name: &str) -> Result<Option<PathBuf>> {
        match paths.iter().find(|path| is_demo(path)) {
            Some(path) => Ok(Some(self.locate(path)?.join(name))),
            None => Ok(None),
        }
    }

    /// Where things are kept that can be made again.
    pub fn cache_dir(&self) -> PathBuf {
        workbench::Options::for_user(None).cache_dir
    }

    /// Opens a checkpoint; its oddities become warnings.
    pub fn open(&self, path: &Path) -> Result<Checkpoint> {
        let checkpoint = self.open_quietly(path)?;
        checkpoint.warnings.iter().for_each(|warning| self.warn(warning));
        Ok(checkpoint)
    }

    /// Opens a checkpoint.
    pub fn open_quietly(&self, path: &Path) -> Result<Checkpoint> {
        let mut checkpoint = Checkpoint::open(&self.locate(path)?)?;
        if is_demo(path) {
            // Its folder in the cache is called by a hash.
            "demo".clone_into(&mut checkpoint.name);
        }
        Ok(checkpoint)
    }

    /// Opens a checkpoint and loads its model and tokenizer.
    pub fn load(&self, path: &Path) -> Result<Loaded> {
        let checkpoint = self.open(path)?;
        let model = Model::load_on(&checkpoint, &self.device()?, &self.progress)?;
        let tokenizer = Tokenizer::of_checkpoint(&checkpoint)?;
        Ok(Loaded { checkpoint, model, tokenizer })
    }

    /// The answer: `document` with `--json`, else `text`.
    pub fn answer(&self, document: &impl Serialize, text: impl FnOnce() -> String) -> Result<Answer> {
        let text = if self.json { to_json(document)? } else { text() };
        Ok(Answer { text, code: 0 })
    }
}

/// A document as it is written to files and to stdout.
pub(super) fn to_json(document: &impl Serialize) -> Result<String> {
    let mut text = serde_json::to_string_pretty(document).map_err(|err| Failure::Output(err.into()))?;
    text.push('\n');
    Ok(text)
}

/// True for the word that stands for the bundled model.
fn is_demo(path: &Path) -> bool {
    path.as_os_str() == "demo"
}
