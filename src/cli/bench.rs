//! `lapidary bench`: how fast a model reads and writes here, and what memory it takes.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::PATH_HELP;
use super::output::{Table, or_dash};
use super::session::{Answer, Result, Session};
use crate::engine::model::Model;
use crate::engine::scoring::{SpeedOptions, SpeedResult, speed};
use crate::engine::units;

/// Measure prefill and decode speed and memory
#[derive(Debug, Args)]
pub(super) struct Bench {
    #[arg(value_name = "PATH", help = PATH_HELP)]
    path: PathBuf,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = SpeedOptions::default().prefill_tokens)]
    prefill_tokens: usize,
    /// Tokens written after it
    #[arg(long, value_name = "N", default_value_t = SpeedOptions::default().decode_tokens)]
    decode_tokens: usize,
    /// Least number of repetitions; medians are reported
    #[arg(long, value_name = "N", default_value_t = SpeedOptions::default().repetitions)]
    repetitions: usize,
}

#[derive(Debug, Serialize)]
struct Document<'a> {
    version: u32,
    path: &'a Path,
    name: &'a str,
    device: &'static str,
    file_bytes: u64,
    bits_per_weight: f64,
    /// Weights in memory when ready to run.
    resident_bytes: u64,
    /// The process at its end, mapped pages of files included; null where the system does not say.
    rss_bytes: Option<u64>,
    /// The process at its largest.
    peak_rss_bytes: Option<u64>,
    load_secs: f64,
    #[serde(flatten)]
    speed: SpeedResult,
}

impl Bench {
    pub fn run(&self, session: &Session) -> Result<Answer> {
        let checkpoint = session.open(&self.path)?;
        let started = Instant::now();
        let model = Model::load(&checkpoint, &session.progress)?;
        let load_secs = started.elapsed().as_secs_f64();
        let options = SpeedOptions {
            prefill_tokens: self.prefill_tokens,
            decode_tokens: self.decode_tokens,
            repetitions: self.repetitions,
            ..SpeedOptions::default()
        };
        let mut results = speed::measure(&[&model], &options, &session.progress)?;
        let Some(speed) = results.pop() else {
            return Ok(Answer { text: String::new(), code: 1 });
        };
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let document = Document {
            version: 1,
            path: &checkpoint.path,
            name: &checkpoint.name,
            device: "cpu",
            file_bytes: checkpoint.file_bytes(),
            bits_per_weight: units::bits_per_weight(checkpoint.tensor_bytes(), checkpoint.weight_count()),
            resident_bytes: model.resident_bytes(),
            rss_bytes: status_bytes(&status, "VmRSS:"),
            peak_rss_bytes: status_bytes(&status, "VmHWM:"),
            load_secs,
            speed,
        };
        session.answer(&document, || text(&document))
    }
}

/// A line such as `VmHWM:     1234 kB` of Linux's `/proc/self/status`, in bytes.
fn status_bytes(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

fn text(document: &Document<'_>) -> String {
    let speed = &document.speed;
    let mut table = Table::new(&["", ">median", ">quartiles"]);
    let quartiles = |[low, high]: [f64; 2]| format!("{low:.1} to {high:.1}");
    table.row([
        "prefill (tokens/s)".to_owned(),
        format!("{:.1}", speed.prefill_tokens_per_second),
        quartiles(speed.prefill_tokens_per_second_quartiles),
    ]);
    table.row([
        "decode (tokens/s)".to_owned(),
        format!("{:.1}", speed.decode_tokens_per_second),
        quartiles(speed.decode_tokens_per_second_quartiles),
    ]);
    table.row(["time to first token (ms)".to_owned(), format!("{:.2}", speed.ttft_secs * 1e3), String::new()]);
    table.row(["time per output token (ms)".to_owned(), format!("{:.2}", speed.tpot_secs * 1e3), String::new()]);
    format!(
        "{}: {} on disk, {:.2} bpw, loaded in {}\n\n{}\n{} weights in memory, {} resident, {} at most\n{} repetitions of \
         {} prompt and {} written tokens on {} threads\n",
        super::output::printable(document.name),
        units::bytes(document.file_bytes),
        document.bits_per_weight,
        units::seconds(document.load_secs),
        table.render(),
        units::bytes(document.resident_bytes),
        or_dash(document.rss_bytes.map(units::bytes)),
        or_dash(document.peak_rss_bytes.map(units::bytes)),
        speed.repetitions,
        speed.prefill_tokens,
        speed.decode_tokens,
        speed.threads,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes_and_absent_where_the_system_does_not_say() {
        let status = "Name:\tlapidary\nVmHWM:\t   12 kB\nVmRSS:\t    8 kB\n";
        assert_eq!(status_bytes(status, "VmHWM:"), Some(12 * 1024));
        assert_eq!(status_bytes(status, "VmRSS:"), Some(8 * 1024));
        assert_eq!(status_bytes("", "VmRSS:"), None);
    }
}
