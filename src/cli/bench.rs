//! `lapidary bench`: how fast a model reads and writes here and what memory it takes, or how fast the kernels are.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::PATH_HELP;
use super::output::{Table, or_dash};
use super::session::{Answer, Result, Session};
use crate::engine::kernels::Level;
use crate::engine::model::Model;
use crate::engine::scoring::kernel_speed::{self, KernelOptions, KernelSpeed};
use crate::engine::scoring::{SpeedOptions, SpeedResult, speed};
use crate::engine::units;

/// Measure prefill and decode speed and memory, or the kernels
///
/// Prefill and decode compare with llama-bench's pp512 and tg128 at `--prefill-tokens 512 --decode-tokens 128
/// --decode-depth 0`: one warm-up first, random tokens, logits of the last one only, no sampling.
#[derive(Debug, Args)]
pub(super) struct Bench {
    #[arg(value_name = "PATH", help = PATH_HELP, required_unless_present = "kernels")]
    path: Option<PathBuf>,
    /// Measure encoders, error scans, profiles and matrix products by themselves, with one thread and with all
    #[arg(long, conflicts_with_all = ["path", "prefill_tokens", "decode_tokens", "decode_depth", "repetitions"])]
    kernels: bool,
    /// With --kernels: only those whose kernel or format has this in its name, such as matmul or q4_k
    #[arg(long, value_name = "TEXT", requires = "kernels")]
    filter: Option<String>,
    /// With --kernels: one shape, two batch sizes and a fifth of the time
    #[arg(long, requires = "kernels")]
    quick: bool,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = SpeedOptions::default().prefill_tokens)]
    prefill_tokens: usize,
    /// Tokens written after it
    #[arg(long, value_name = "N", default_value_t = SpeedOptions::default().decode_tokens)]
    decode_tokens: usize,
    /// Tokens that are there when writing begins [default: the prompt]
    #[arg(long, value_name = "N")]
    decode_depth: Option<usize>,
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
    /// Best instruction level of the kernels.
    level: &'static str,
    /// Processes that wanted a core in the last minute, before the measurement; null where the system does not say.
    load_average: Option<f64>,
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

/// What `--kernels` answers.
#[derive(Debug, Serialize)]
struct Kernels<'a> {
    version: u32,
    device: &'static str,
    /// The GPU of the kernel `scan_device`; null where scans run on the CPU alone.
    scan_device: Option<&'a str>,
    level: &'static str,
    load_average: Option<f64>,
    kernels: &'a [KernelSpeed],
}

impl Bench {
    pub fn run(&self, session: &Session) -> Result<Answer> {
        let load_average = load_average();
        let Some(path) = &self.path else {
            return self.run_kernels(session, load_average);
        };
        let checkpoint = session.open(path)?;
        let started = Instant::now();
        let model = Model::load(&checkpoint, &session.progress)?;
        let load_secs = started.elapsed().as_secs_f64();
        let options = SpeedOptions {
            prefill_tokens: self.prefill_tokens,
            decode_tokens: self.decode_tokens,
            decode_depth: self.decode_depth,
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
            level: Level::detect().name(),
            load_average,
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

    fn run_kernels(&self, session: &Session, load_average: Option<f64>) -> Result<Answer> {
        let options = KernelOptions { filter: self.filter.clone(), quick: self.quick, device: session.device()? };
        let rows = kernel_speed::measure(&options, &session.progress)?;
        let level = Level::detect().name();
        let scan_device = options.device.name();
        let document = Kernels { version: 1, device: "cpu", scan_device, level, load_average, kernels: &rows };
        session.answer(&document, || kernels_text(&document))
    }
}

/// Linux's load average of the last minute.
fn load_average() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

/// One table a kind of kernel.
fn kernels_text(document: &Kernels<'_>) -> String {
    let mut text = String::new();
    for kernel in ["encode", "encode_imatrix", "scan", "scan_device", "profile", "matmul"] {
        let rows: Vec<&KernelSpeed> = document.kernels.iter().filter(|row| row.kernel == kernel).collect();
        if rows.is_empty() {
            continue;
        }
        let is_product = kernel == "matmul";
        let mut titles = vec![kernel, ">threads"];
        if is_product {
            titles.extend([">outputs × inputs", ">batch"]);
        }
        titles.extend([">median (ms)", ">quartiles (ms)", ">least (ms)"]);
        titles.extend(if is_product { [">GFLOP/s", ">GB/s"].as_slice() } else { &[">M weights/s"] });
        let mut table = Table::new(&titles);
        for row in rows {
            let mut cells = vec![row.format.clone(), row.threads.to_string()];
            if is_product {
                cells.extend([format!("{} × {}", row.rows, row.cols), row.batch.unwrap_or(0).to_string()]);
            }
            let [low, high] = row.quartiles_secs.map(|secs| secs * 1e3);
            cells.extend([
                format!("{:.3}", row.median_secs * 1e3),
                format!("{low:.3} to {high:.3}"),
                format!("{:.3}", row.min_secs * 1e3),
            ]);
            match (row.gflop_per_second, row.gbyte_per_second) {
                (Some(gflop), Some(gbyte)) => cells.extend([format!("{gflop:.1}"), format!("{gbyte:.1}")]),
                _ => cells.push(format!("{:.1}", row.weights_per_second / 1e6)),
            }
            table.row(cells);
        }
        text.push_str(&table.render());
        text.push('\n');
    }
    format!(
        "{text}{}{} kernels; load average {} before the measurement\n",
        document.scan_device.map_or_else(String::new, |name| format!("scan_device is {name}; ")),
        document.level,
        or_dash(document.load_average.map(|load| format!("{load:.2}"))),
    )
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
         {} prompt tokens, and of {} tokens written after {}; {} threads, {} kernels, load average {}\n",
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
        speed.decode_depth,
        speed.threads,
        document.level,
        or_dash(document.load_average.map(|load| format!("{load:.2}"))),
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
