//! The audit log: who ran what when, on which inputs, with which result; one JSON object a line, only ever added to.
//!
//! Every entry holds the hash of the one before, so that a line that was changed or taken out shows. The id of
//! an entry is the hash of its line: what other documents name as their evidence.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Fault, Result, Stage};
use crate::evaluation::Evaluation;
use crate::scoring::energy::Energy;
use crate::structure::study::MaskReport;

/// Largest log that is read.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// A file with the hash of its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashedFile {
    pub name: String,
    /// BLAKE3 in hex.
    pub hash: String,
}

impl HashedFile {
    /// A file's name and the hash of what is in it, read piece by piece.
    pub fn read(path: &Path) -> Result<Self> {
        let mut file = std::fs::File::open(path).map_err(Error::io("read", path))?;
        let mut hasher = blake3::Hasher::new();
        std::io::copy(&mut file, &mut hasher).map_err(Error::io("read", path))?;
        let name = path.file_name().map_or_else(|| path.to_string_lossy(), |name| name.to_string_lossy());
        Ok(Self { name: name.into_owned(), hash: hasher.finalize().to_hex().to_string() })
    }
}

/// One thing that was done.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// UTC, RFC 3339.
    pub time: String,
    /// The user of the system that ran it.
    pub who: String,
    /// `pass`, `evaluate`, `compare`, `report` …
    pub what: String,
    /// Version of the program.
    pub version: String,
    pub inputs: Vec<HashedFile>,
    pub outputs: Vec<HashedFile>,
    pub options: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joules: Option<f64>,
    /// True where the energy is an estimate.
    #[serde(default)]
    pub joules_are_estimated: bool,
    /// Floating-point operations of the pass, counted as 2 for each weight and token (6 where weights are trained).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flop: Option<f64>,
    /// In a word: done, failed, cancelled, or a verdict.
    pub outcome: String,
    /// Hash of the line before; empty for the first.
    #[serde(default)]
    pub previous: String,
}

impl AuditEntry {
    /// An entry of now, by this user and program.
    pub fn now(what: &str) -> Self {
        Self {
            time: utc(SystemTime::now()),
            who: user(),
            what: what.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            outcome: "done".to_owned(),
            ..Self::default()
        }
    }
}

/// The user by the environment, else the owner of what this process makes.
fn user() -> String {
    let named = ["USER", "USERNAME", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
    named.filter(|name| !name.is_empty()).or_else(owner).unwrap_or_else(|| "unknown".to_owned())
}

/// The owner of a file that this process makes: a name from the system's list, else the number.
#[cfg(unix)]
fn owner() -> Option<String> {
    use std::os::unix::fs::MetadataExt as _;
    let uid = tempfile::tempfile().ok()?.metadata().ok()?.uid();
    let list = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    Some(name_of(&list, uid).unwrap_or_else(|| format!("uid {uid}")))
}

#[cfg(not(unix))]
fn owner() -> Option<String> {
    None
}

/// A user's name in `/etc/passwd`: `name:password:uid:…`.
#[cfg(unix)]
fn name_of(list: &str, uid: u32) -> Option<String> {
    let fields = list.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let found = fields.into_iter().find(|fields| fields.get(2).and_then(|text| text.parse().ok()) == Some(uid))?;
    Some(found[0].to_owned()).filter(|name| !name.is_empty())
}

/// A pass, as the log tells it.
#[derive(Clone, Copy, Debug)]
pub struct PassFacts<'a> {
    /// The checkpoint and the hash of its content; of its headers where the content was not read for it.
    pub checkpoint: (&'a str, &'a str),
    /// The hash of its headers and sizes.
    pub fingerprint: &'a str,
    /// The plan as TOML.
    pub plan: &'a str,
    /// BLAKE3 of the importance matrix, where one was used.
    pub importance: Option<&'a str>,
    /// What was masked first, where something was.
    pub mask: Option<&'a MaskReport>,
    /// What was written, and its content's hash.
    pub candidate: (&'a Path, &'a str),
    pub target: &'a str,
    pub seconds: f64,
}

/// A plan that was written, as the log tells it.
#[derive(Clone, Copy, Debug)]
pub struct PlanFacts<'a> {
    /// The checkpoint and the hash of its content.
    pub checkpoint: (&'a str, &'a str),
    /// BLAKE3 of the text that units were scored on, where they were.
    pub text: Option<&'a str>,
    /// Where it was written, and what.
    pub plan: (&'a Path, &'a str),
    /// What it was made with, by name.
    pub options: &'a [(&'a str, String)],
}

impl AuditEntry {
    /// An entry of a pass that ended now.
    pub fn of_pass(facts: &PassFacts<'_>) -> Self {
        let file = |name: &str, hash: &str| HashedFile { name: name.to_owned(), hash: hash.to_owned() };
        let mut entry = Self::now("pass");
        entry.inputs.push(file(facts.checkpoint.0, facts.checkpoint.1));
        // Other entries know the same checkpoint by one of both.
        entry.options.insert("checkpoint_header_fingerprint".to_owned(), facts.fingerprint.to_owned());
        if facts.checkpoint.1 != facts.fingerprint {
            entry.options.insert("checkpoint_content_hash".to_owned(), facts.checkpoint.1.to_owned());
        }
        entry.inputs.push(file("plan", &blake3::hash(facts.plan.as_bytes()).to_hex()));
        entry.inputs.extend(facts.importance.map(|hash| file("importance", hash)));
        if let Some(mask) = facts.mask {
            entry.inputs.extend(mask.text_hash.as_deref().map(|hash| file("text", hash)));
            entry.options.insert("mask".to_owned(), mask.name());
        }
        let name = facts.candidate.0.file_name().unwrap_or(facts.candidate.0.as_os_str()).to_string_lossy();
        entry.outputs.push(file(&name, facts.candidate.1));
        entry.options.insert("target".to_owned(), facts.target.to_owned());
        entry.seconds = Some(facts.seconds);
        entry
    }

    /// An entry of something that ended now without a result: `cancelled` by the user, or `failed` with the reason.
    pub fn unfinished(what: &str, inputs: Vec<HashedFile>, seconds: f64, error: &Error) -> Self {
        let mut entry = Self { inputs, seconds: Some(seconds), ..Self::now(what) };
        if error.is_cancelled() {
            entry.outcome = "cancelled".to_owned();
            entry.options.insert("reason".to_owned(), "stopped by the user".to_owned());
        } else {
            entry.outcome = "failed".to_owned();
            entry.options.insert("reason".to_owned(), error.to_string());
        }
        entry
    }

    /// What a pass was asked to read, known before it runs: the checkpoint by the hash of its headers, and the plan
    /// where there is one.
    pub fn inputs_of_pass(checkpoint: &Checkpoint, plan: Option<&str>) -> Vec<HashedFile> {
        let name = format!("{} (header fingerprint)", checkpoint.name);
        let plan = plan.map(|plan| (String::from("plan"), blake3::hash(plan.as_bytes()).to_hex().to_string()));
        let files = std::iter::once((name, checkpoint.fingerprint.clone())).chain(plan);
        files.map(|(name, hash)| HashedFile { name, hash }).collect()
    }

    /// An entry of a plan that was written now: `plan`, or a `prune step` on the way to one.
    pub fn of_plan(what: &str, facts: &PlanFacts<'_>) -> Self {
        let file = |name: &str, hash: &str| HashedFile { name: name.to_owned(), hash: hash.to_owned() };
        let mut entry = Self::now(what);
        entry.inputs.push(file(facts.checkpoint.0, facts.checkpoint.1));
        entry.inputs.extend(facts.text.map(|hash| file("text", hash)));
        let name = facts.plan.0.file_name().unwrap_or(facts.plan.0.as_os_str()).to_string_lossy();
        entry.outputs.push(file(&name, &blake3::hash(facts.plan.1.as_bytes()).to_hex()));
        entry.options.extend(facts.options.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        entry
    }

    /// An entry of an evaluation that ended now; `energy` is that of all of it.
    pub fn of_evaluation(evaluation: &Evaluation, seconds: f64, energy: Option<Energy>) -> Self {
        let mut entry = Self::now("evaluate");
        entry.inputs = Self::inputs_of(evaluation);
        entry.options.insert("evaluation".to_owned(), evaluation.key.clone());
        let mut named = |key: &str, id: &str| entry.options.insert(key.to_owned(), id.to_owned());
        named("model_content_hash", &evaluation.model.id);
        if let Some(baseline) = &evaluation.baseline {
            named("baseline_content_hash", &baseline.model.id);
        }
        entry.seconds = Some(seconds);
        entry.joules = energy.map(|energy| energy.joules());
        entry.joules_are_estimated = energy.is_some_and(|energy| energy.is_estimate);
        // Two operations for every weight and token that was scored or read.
        let tokens = evaluation.text.as_ref().map_or(0, |text| text.tokens)
            + evaluation.items.iter().map(|item| (item.prompt_tokens() + item.tokens()) as usize).sum::<usize>();
        entry.flop = Some(2.0 * evaluation.size.weight_count as f64 * tokens as f64);
        entry
    }

    /// Models, tasks and text of an evaluation with their hashes.
    pub fn inputs_of(evaluation: &Evaluation) -> Vec<HashedFile> {
        let file = |name: &str, hash: &str| HashedFile { name: name.to_owned(), hash: hash.to_owned() };
        let model = |evaluation: &Evaluation| file(&evaluation.model.name, &evaluation.model.id);
        let mut inputs = vec![model(evaluation)];
        inputs.extend(evaluation.baseline.as_deref().map(model));
        inputs.extend(evaluation.tasks_hash.as_deref().map(|hash| file("tasks", hash)));
        inputs.extend(evaluation.text_hash.as_deref().map(|hash| file("text", hash)));
        inputs
    }
}

/// An entry with its id.
#[derive(Clone, Debug, PartialEq)]
pub struct LoggedEntry {
    /// BLAKE3 of its line, in hex.
    pub id: String,
    pub entry: AuditEntry,
}

/// A moment as RFC 3339, to the second.
pub fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since the first of March of year 0 (Hinnant's civil_from_days).
    let shifted = days as i64 + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

fn id_of(line: &str) -> String {
    blake3::hash(line.as_bytes()).to_hex().to_string()
}

fn refuse(path: &Path, line: usize, cause: String) -> Error {
    Fault::new(Stage::Project, cause)
        .at(format!("line {line}"))
        .fix("keep the log as it was written; begin a new one beside it")
        .file(path)
        .into()
}

/// Adds an entry at the end of a log and answers its id.
///
/// # Errors
/// Where the log cannot be read or written, or where it was changed.
pub fn append(path: &Path, mut entry: AuditEntry) -> Result<String> {
    let before = if path.exists() { read(path)? } else { Vec::new() };
    entry.previous = before.last().map(|entry| entry.id.clone()).unwrap_or_default();
    let line = serde_json::to_string(&entry)
        .map_err(|err| Fault::new(Stage::Project, format!("the entry cannot be written: {err}")).file(path))?;
    let mut file =
        std::fs::OpenOptions::new().create(true).append(true).open(path).map_err(Error::io("write", path))?;
    // One write, so that another process cannot come between.
    file.write_all(format!("{line}\n").as_bytes()).map_err(Error::io("write", path))?;
    file.sync_all().map_err(Error::io("write", path))?;
    Ok(id_of(&line))
}

/// Reads a log and checks that every entry follows the one before.
pub fn read(path: &Path) -> Result<Vec<LoggedEntry>> {
    let length = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
    if length > MAX_FILE_BYTES {
        return Err(refuse(path, 1, format!("the log has {length} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let mut entries: Vec<LoggedEntry> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let entry: AuditEntry =
            serde_json::from_str(line).map_err(|err| refuse(path, index + 1, format!("not an entry: {err}")))?;
        if entry.previous != entries.last().map(|entry| entry.id.clone()).unwrap_or_default() {
            return Err(refuse(path, index + 1, "the entry does not follow the one before it".to_owned()));
        }
        entries.push(LoggedEntry { id: id_of(line), entry });
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn moments_are_written_as_rfc_3339() {
        let at = |seconds| utc(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(at(1_798_761_599), "2026-12-31T23:59:59Z");
    }

    #[test]
    fn what_failed_or_was_stopped_is_an_entry_with_its_reason() {
        let input = HashedFile { name: "m".into(), hash: "h".into() };
        let fault = Fault::new(Stage::Pass, "the disk is full").fix("free some space");
        let failed = AuditEntry::unfinished("pass", vec![input.clone()], 2.5, &fault.into());
        assert_eq!((failed.what.as_str(), failed.outcome.as_str(), failed.seconds), ("pass", "failed", Some(2.5)));
        assert_eq!(failed.options["reason"], "pass: the disk is full; free some space");
        assert_eq!((failed.inputs, failed.outputs), (vec![input], vec![]));
        let stopped = AuditEntry::unfinished("evaluate", Vec::new(), 1.0, &Error::Cancelled);
        assert_eq!(
            (stopped.outcome.as_str(), stopped.options["reason"].as_str()),
            ("cancelled", "stopped by the user")
        );
    }

    #[test]
    fn a_pass_names_both_hashes_of_its_checkpoint_where_both_are_known() {
        let entry = |hash: &str| {
            AuditEntry::of_pass(&PassFacts {
                checkpoint: ("model", hash),
                fingerprint: "headers",
                plan: "",
                importance: None,
                mask: None,
                candidate: (Path::new("out/a.gguf"), "made"),
                target: "gguf",
                seconds: 1.0,
            })
        };
        let both = entry("content");
        assert_eq!(both.options["checkpoint_header_fingerprint"], "headers");
        assert_eq!(both.options["checkpoint_content_hash"], "content");
        assert!(!entry("headers").options.contains_key("checkpoint_content_hash"));
        assert_eq!(both.outputs, [HashedFile { name: "a.gguf".into(), hash: "made".into() }]);
    }

    #[cfg(unix)]
    #[test]
    fn a_user_is_known_by_number_where_the_environment_names_none() {
        let list = "root:x:0:0:root:/root:/bin/sh\nbroken\nann:x:1000:1000::/home/ann:/bin/sh\n";
        assert_eq!((name_of(list, 1000).as_deref(), name_of(list, 0).as_deref()), (Some("ann"), Some("root")));
        assert_eq!(name_of(list, 7), None);
        assert!(owner().is_some_and(|name| !name.is_empty()));
        assert!(!user().is_empty());
    }

    #[test]
    fn a_log_is_a_chain_that_shows_a_changed_line() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("audit.jsonl");
        let first = append(&path, AuditEntry::now("pass")).expect("first");
        let second = append(&path, AuditEntry { seconds: Some(1.5), ..AuditEntry::now("evaluate") }).expect("second");
        let log = read(&path).expect("log");
        assert_eq!([log[0].id.clone(), log[1].id.clone()], [first.clone(), second]);
        assert_eq!((log[1].entry.previous.as_str(), log[1].entry.what.as_str()), (first.as_str(), "evaluate"));
        let changed = std::fs::read_to_string(&path).expect("read").replacen("pass", "paid", 1);
        std::fs::write(&path, changed).expect("write");
        let error = append(&path, AuditEntry::now("report")).expect_err("changed").to_string();
        assert!(error.contains("line 2") && error.contains("does not follow"), "{error}");
    }
}
