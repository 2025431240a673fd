//! `lapidary bench`: how fast a model reads and writes here and what memory it takes, or how fast the kernels are.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::PATH_HELP;
use super::output::Table;
use super::session::{Answer, Result, Session};
use crate::engine::kernels::Level;
use crate::engine::model::{Model, Tokenizer};
use crate::engine::scoring::conditions::load_average;
use crate::engine::scoring::energy::{Energy, EnergyMeter};
use crate::engine::scoring::kernel_rates::{self, KernelRates, RateOptions};
use crate::engine::scoring::kernel_speed::{self, KernelOptions, KernelSpeed};
use crate::engine::scoring::speed::EndToEnd;
use crate::engine::scoring::{SpeedCell, SpeedGridOptions, SpeedOptions, SpeedResult, TokenModel, speed, speed_grid};
use crate::engine::units::{self, or_dash};
use crate::workbench::keep_rates;

/// Measure prefill and decode speed and memory, or the kernels
///
/// Prefill and decode compare with llama-bench's pp512 and tg128 at `--prefill-tokens 512 --decode-tokens 128
/// --decode-depth 0`: one warm-up first, random tokens, logits of the last one only, no sampling.
#[derive(Debug, Args)]
pub(super) struct Bench {
    #[arg(value_name = "PATH", help = PATH_HELP, required_unless_present_any = ["kernels", "rates"])]
    path: Option<PathBuf>,
    /// Measure encoders, error scans, profiles and matrix products by themselves, with one thread and with all
    ///
    /// Without --filter, and without --quick, the rates of --rates are measured and kept as well.
    #[arg(long, conflicts_with_all = ["path", "prefill_tokens", "decode_tokens", "decode_depth", "repetitions"])]
    kernels: bool,
    /// Measure what predictions of a plan's speed need, a time for every format, and keep it for `lapidary plan` and the window
    #[arg(long, conflicts_with_all = ["path", "kernels", "prefill_tokens", "decode_tokens", "decode_depth", "repetitions"])]
    rates: bool,
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
    /// Measure other models in turns with PATH (A, B, A, B …); may be given several times
    #[arg(long, value_name = "PATH", conflicts_with = "kernels")]
    against: Vec<PathBuf>,
    /// Measure these prompt lengths too, with intervals: 32,128,512
    #[arg(long, value_name = "N,N", value_delimiter = ',', conflicts_with = "kernels")]
    prompts: Vec<usize>,
    /// With --prompts or --against: sequences read and written together
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [1])]
    batches: Vec<usize>,
    /// Power to estimate energy with, where no counter of the processor or a GPU can be read
    #[arg(long, value_name = "W", value_parser = positive)]
    watts: Option<f64>,
    /// Price of this machine an hour, for the price of a million tokens
    #[arg(long, value_name = "PRICE", value_parser = positive)]
    price_per_hour: Option<f64>,
}

pub(super) fn positive(text: &str) -> std::result::Result<f64, String> {
    let value: f64 = text.parse().map_err(|err| format!("{err}"))?;
    if value.is_finite() && value > 0.0 { Ok(value) } else { Err("give a number above 0".to_owned()) }
}

/// Energy of the speed measurement.
#[derive(Debug, Serialize)]
struct EnergyFigures {
    #[serde(flatten)]
    energy: Energy,
    /// Over all tokens that were read or written.
    joules_per_token: f64,
}

/// Price of tokens on this machine.
#[derive(Debug, Serialize)]
struct Cost {
    price_per_hour: f64,
    price_per_million_prompt_tokens: f64,
    price_per_million_written_tokens: f64,
}

impl Cost {
    fn new(price_per_hour: f64, speed: &SpeedResult) -> Self {
        let million = |tokens_per_second: f64| price_per_hour / 3600.0 / tokens_per_second.max(1e-12) * 1e6;
        Self {
            price_per_hour,
            price_per_million_prompt_tokens: million(speed.prefill_tokens_per_second),
            price_per_million_written_tokens: million(speed.decode_tokens_per_second),
        }
    }
}

#[derive(Debug, Serialize)]
struct Document<'a> {
    version: u32,
    path: &'a Path,
    name: &'a str,
    device: String,
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
    /// What the cache of keys and values grows by with every token, in f32 as it is held here.
    kv_bytes_per_token: u64,
    /// What all threads together read from memory; null where the model runs on a device, which has a memory of its own.
    memory_bytes_per_second: Option<f64>,
    /// Decoding speed over what that bandwidth allows for reading all weights and the cache once a token; above 1
    /// where the processor's cache holds the model. Null with it.
    share_of_bandwidth_bound: Option<f64>,
    /// Counters are the whole machine's; null where they cannot be read and no power was named.
    energy: Option<EnergyFigures>,
    /// Why counters are missing; empty where all were read.
    energy_missing: String,
    cost: Option<Cost>,
    /// Names of the models in `grid`, PATH first.
    models: Vec<String>,
    /// Prompt lengths and batch sizes, where they were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    grid: Vec<SpeedCell>,
    /// With tokenizing; null where the checkpoint has no tokenizer.
    end_to_end: Option<EndToEnd>,
    #[serde(flatten)]
    speed: SpeedResult,
}

/// What `--kernels` answers.
#[derive(Debug, Serialize)]
struct Kernels<'a> {
    version: u32,
    device: &'static str,
    /// The GPU of the kernels `scan_device` and `scan_resident`; null where scans run on the CPU alone.
    scan_device: Option<&'a str>,
    level: &'static str,
    load_average: Option<f64>,
    kernels: &'a [KernelSpeed],
}

impl Bench {
    pub fn run(&self, session: &Session) -> Result<Answer> {
        let load_average = load_average();
        if self.rates {
            return run_rates(session);
        }
        let Some(path) = &self.path else {
            return self.run_kernels(session, load_average);
        };
        let checkpoint = session.open(path)?;
        let started = Instant::now();
        let model = Model::load_on(&checkpoint, &session.device()?, &session.progress)?;
        let load_secs = started.elapsed().as_secs_f64();
        let options = SpeedOptions {
            prefill_tokens: self.prefill_tokens,
            decode_tokens: self.decode_tokens,
            decode_depth: self.decode_depth,
            repetitions: self.repetitions,
            ..SpeedOptions::default()
        };
        let meter = EnergyMeter::start(self.watts);
        let mut results = speed::measure(&[&model], &options, &session.progress)?;
        let Some(speed) = results.pop() else {
            return Ok(Answer { text: String::new(), code: 1 });
        };
        let energy = meter.stop();
        let depth = if speed.decode_depth == speed.prefill_tokens { 0 } else { speed.decode_depth };
        let tokens = speed.repetitions * (speed.prefill_tokens + depth + speed.decode_tokens);
        let energy =
            energy.map(|energy| EnergyFigures { joules_per_token: energy.joules() / tokens.max(1) as f64, energy });
        let kv_bytes_per_token = checkpoint.config.as_ref().map_or(0, |config| config.kv_bytes_per_token());
        let device = model.device();
        let memory_bytes_per_second = (device == "cpu").then(speed_grid::memory_bandwidth);
        let read = model.resident_bytes() as f64 + kv_bytes_per_token as f64 * speed.decode_depth as f64;
        let bound = |bytes_per_second: f64| bytes_per_second / read.max(1.0);
        let end_to_end = Tokenizer::of_checkpoint(&checkpoint)
            .and_then(|tokenizer| speed::end_to_end(&tokenizer, model.config.vocab, &speed))
            .ok();
        let (models, grid) = self.grid(session, &checkpoint.name, &model)?;
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let document = Document {
            version: 1,
            path: &checkpoint.path,
            name: &checkpoint.name,
            device,
            level: Level::detect().name(),
            load_average,
            file_bytes: checkpoint.file_bytes(),
            bits_per_weight: units::bits_per_weight(checkpoint.tensor_bytes(), checkpoint.weight_count()),
            resident_bytes: model.resident_bytes(),
            rss_bytes: status_bytes(&status, "VmRSS:"),
            peak_rss_bytes: status_bytes(&status, "VmHWM:"),
            load_secs,
            kv_bytes_per_token,
            memory_bytes_per_second,
            share_of_bandwidth_bound: memory_bytes_per_second
                .map(|rate| speed.decode_tokens_per_second / bound(rate).max(1e-12)),
            energy,
            energy_missing: meter.missing(),
            cost: self.price_per_hour.map(|price| Cost::new(price, &speed)),
            models,
            grid,
            end_to_end,
            speed,
        };
        session.answer(&document, || text(&document))
    }

    /// Every prompt length and batch size, in turns with other models; nothing where none was asked for.
    fn grid(&self, session: &Session, name: &str, model: &Model) -> Result<(Vec<String>, Vec<SpeedCell>)> {
        if self.prompts.is_empty() && self.against.is_empty() {
            return Ok((vec![name.to_owned()], Vec::new()));
        }
        let mut names = vec![name.to_owned()];
        let mut others = Vec::with_capacity(self.against.len());
        for path in &self.against {
            let checkpoint = session.open(path)?;
            others.push(Model::load_on(&checkpoint, &session.device()?, &session.progress)?);
            names.push(checkpoint.name);
        }
        let mut models: Vec<&dyn TokenModel> = vec![model];
        models.extend(others.iter().map(|other| other as &dyn TokenModel));
        let prompts = if self.prompts.is_empty() { vec![self.prefill_tokens] } else { self.prompts.clone() };
        let options = SpeedGridOptions {
            prompts,
            batches: self.batches.clone(),
            decode_tokens: self.decode_tokens,
            repetitions: self.repetitions,
        };
        Ok((names, speed_grid::measure(&models, &options, &session.progress)?))
    }

    fn run_kernels(&self, session: &Session, load_average: Option<f64>) -> Result<Answer> {
        let options = KernelOptions { filter: self.filter.clone(), quick: self.quick, device: session.device()? };
        let rows = kernel_speed::measure(&options, &session.progress)?;
        if self.filter.is_none() && !self.quick {
            let rates = kernel_rates::measure(&RateOptions::default(), &session.progress)?;
            keep_rates(&session.cache_dir(), &rates)?;
        }
        let level = Level::detect().name();
        let scan_device = options.device.kernels_name();
        let document = Kernels { version: 1, device: "cpu", scan_device, level, load_average, kernels: &rows };
        session.answer(&document, || kernels_text(&document))
    }
}

/// What `--rates` answers.
#[derive(Debug, Serialize)]
struct Rates<'a> {
    /// Where they are kept.
    kept_in: &'a Path,
    #[serde(flatten)]
    rates: &'a KernelRates,
}

fn run_rates(session: &Session) -> Result<Answer> {
    let rates = kernel_rates::measure(&RateOptions::default(), &session.progress)?;
    let path = keep_rates(&session.cache_dir(), &rates)?;
    session.answer(&Rates { kept_in: &path, rates: &rates }, || rates_text(&rates, &path))
}

fn rates_text(rates: &KernelRates, path: &Path) -> String {
    let mut table = Table::new(&["format", ">bytes a weight", ">decode (M weights/s)", ">prefill (M weights/s)"]);
    for (id, rate) in &rates.formats {
        table.row([
            id.clone(),
            format!("{:.3}", rate.bytes_per_weight),
            format!("{:.0}", 1e-6 / rate.decode_secs_per_weight),
            format!("{:.0}", 1e-6 / rate.prefill_secs_per_weight),
        ]);
    }
    format!(
        "{}\n{}, {} kernels, {} threads; {:.1} GB/s read from memory, {} a product at least\nkept in {}\n",
        table.render(),
        rates.machine.cpu,
        rates.machine.level,
        rates.machine.threads,
        rates.memory_bytes_per_second / 1e9,
        units::duration(rates.product_secs),
        path.display()
    )
}

/// One table a kind of kernel.
fn kernels_text(document: &Kernels<'_>) -> String {
    let mut text = String::new();
    for kernel in ["encode", "encode_imatrix", "scan", "scan_device", "scan_resident", "profile", "matmul"] {
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
        document.scan_device.map_or_else(String::new, |name| format!("scan_device and scan_resident run on {name}; ")),
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
    let more = more(document);
    format!(
        "{}: {} on disk, {:.2} bpw, loaded in {}\n\n{}\n{} weights in memory, {} resident, {} at most\n{} repetitions of \
         {} prompt tokens, and of {} tokens written after {}; {} threads, {} kernels, load average {}\n{more}",
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

/// Memory, energy, price and the grid.
fn more(document: &Document<'_>) -> String {
    let cache = units::bytes(document.kv_bytes_per_token);
    let mut text = match (document.memory_bytes_per_second, document.share_of_bandwidth_bound) {
        (Some(rate), Some(share)) => format!(
            "{cache} of KV cache a token; {:.1} GB/s from memory, of which decoding uses {:.0} %\n",
            rate / 1e9,
            share * 100.0
        ),
        _ => format!("{cache} of KV cache a token; run by {}\n", super::output::printable(&document.device)),
    };
    if let Some(whole) = &document.end_to_end {
        text.push_str(&format!(
            "{} from text to text, of which tokenizing {} and back {}\n",
            units::seconds(whole.end_to_end_secs),
            units::seconds(whole.encode_secs),
            units::seconds(whole.decode_secs),
        ));
    }
    if let Some(figures) = &document.energy {
        let label = figures.energy.source.text();
        text.push_str(&format!("{:.4} joules a token ({label})\n", figures.joules_per_token));
    } else {
        text.push_str(&format!("no energy: {}; --watts estimates it\n", document.energy_missing));
    }
    if let Some(cost) = &document.cost {
        text.push_str(&format!(
            "a million prompt tokens cost {:.4}, a million written ones {:.4}\n",
            cost.price_per_million_prompt_tokens, cost.price_per_million_written_tokens
        ));
    }
    if document.grid.is_empty() {
        return text;
    }
    let titles = [
        "model",
        ">prompt",
        ">batch",
        ">prefill t/s",
        ">decode t/s",
        ">[95 %]",
        ">TTFT ms",
        ">ITL p50 ms",
        ">p99 ms",
        ">decode ratio",
        ">[95 %]",
    ];
    let mut table = Table::new(&titles);
    for cell in &document.grid {
        let range = |[low, high]: [f64; 2], digits: usize| format!("{low:.digits$} to {high:.digits$}");
        table.row([
            document.models.get(cell.model).cloned().unwrap_or_default(),
            cell.prompt_tokens.to_string(),
            cell.batch.to_string(),
            format!("{:.0}", cell.prefill_tokens_per_second.median),
            format!("{:.1}", cell.decode_tokens_per_second.median),
            range(cell.decode_tokens_per_second.interval, 1),
            format!("{:.2}", cell.ttft_secs.median * 1e3),
            format!("{:.2}", cell.itl_secs[0] * 1e3),
            format!("{:.2}", cell.itl_secs[2] * 1e3),
            format!("{:.3}", cell.decode_ratio.median),
            range(cell.decode_ratio.interval, 3),
        ]);
    }
    format!("{text}\n{}", table.render())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_tokens_cost_the_time_that_they_take() {
        assert_eq!(positive("0.5"), Ok(0.5));
        assert!(positive("0").is_err() && positive("inf").is_err());
    }

    #[test]
    fn memory_is_read_in_bytes_and_absent_where_the_system_does_not_say() {
        let status = "Name:\tlapidary\nVmHWM:\t   12 kB\nVmRSS:\t    8 kB\n";
        assert_eq!(status_bytes(status, "VmHWM:"), Some(12 * 1024));
        assert_eq!(status_bytes(status, "VmRSS:"), Some(8 * 1024));
        assert_eq!(status_bytes("", "VmRSS:"), None);
    }
}
