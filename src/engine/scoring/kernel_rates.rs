//! What a prediction of speed needs to know of this machine: the time of a product per weight in
//! every format, for one token and for each of many, and how fast memory is read.
//!
//! Products run as the decoder runs them, input brought into the kernel's form included, so that
//! formats without a kernel of their own are rated as well. The rates belong to one processor,
//! instruction level and number of threads: [`KernelRates::is_of`] tells whether they still hold.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::kernel_speed::weights;
use super::text_stats::quantile;
use crate::error::{Error, Fault, Result, Stage};
use crate::format::{self, Encoding, Format};
use crate::kernels::Level;
use crate::model::Native;
use crate::model::backend::{Backend as _, StoredMatrix};
use crate::progress::{Phase, Progress, Unit};

/// Outputs and inputs of the product that rates are taken from: larger than a second-level cache in every format.
const SIDE: usize = 2048;

/// Tokens of the product that stands for reading a prompt.
const PROMPT: usize = 128;

/// Rows that are encoded; the others repeat them, since a product's time does not depend on values.
const DISTINCT_ROWS: usize = 32;

/// What computed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor as the system calls it.
    pub cpu: String,
    /// Instruction level of the kernels.
    pub level: String,
    /// Worker threads.
    pub threads: usize,
    /// Version of the program, whose kernels were timed.
    pub engine: String,
}

impl Machine {
    /// This one, with as many threads as the current pool has.
    pub fn here() -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let unnamed = || format!("{} with {cores} cores", std::env::consts::ARCH);
        Self {
            cpu: cpu_name(&info).unwrap_or_else(unnamed),
            level: Level::detect().name().to_owned(),
            threads: rayon::current_num_threads(),
            engine: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// The processor's name in Linux's `/proc/cpuinfo`.
fn cpu_name(info: &str) -> Option<String> {
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned()).filter(|name| !name.is_empty())
}

/// How fast one format is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FormatRate {
    /// Bytes that the product holds in memory for a weight.
    pub bytes_per_weight: f64,
    /// Time for a weight and one token, in seconds.
    pub decode_secs_per_weight: f64,
    /// Time for a weight and each token of a long prompt, in seconds.
    pub prefill_secs_per_weight: f64,
}

/// Rates of this machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelRates {
    /// Version of this document.
    pub version: u32,
    /// What they were measured on.
    pub machine: Machine,
    /// When, in seconds since 1970.
    pub measured_unix_secs: u64,
    /// Bytes that all threads read a second from memory.
    pub memory_bytes_per_second: f64,
    /// Time of a product too small for its weights to matter, in seconds.
    pub product_secs: f64,
    /// By id of the format.
    pub formats: BTreeMap<String, FormatRate>,
}

/// What is measured.
#[derive(Clone, Debug, Default)]
pub struct RateOptions {
    /// Formats by id; every one where none is named.
    pub formats: Vec<String>,
    /// A small matrix, little memory and a tenth of the time, for tests.
    pub quick: bool,
}

impl KernelRates {
    /// Version that this program writes.
    pub const VERSION: u32 = 1;

    /// True if they were measured on `machine`.
    pub fn is_of(&self, machine: &Machine) -> bool {
        self.version == Self::VERSION && self.machine == *machine
    }

    /// The rate of a format.
    pub fn of(&self, format: &str) -> Option<&FormatRate> {
        self.formats.get(format)
    }

    /// Reads rates that [`KernelRates::to_json`] wrote.
    ///
    /// # Errors
    /// A file that cannot be read or holds something else.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        let rates: Self = serde_json::from_str(&text).map_err(|err| {
            Fault::new(Stage::Evaluation, format!("not a document of kernel rates: {err}"))
                .fix("measure them again with `lapidary bench --rates`")
                .file(path)
        })?;
        let is_usable = |value: f64| value.is_finite() && value > 0.0;
        let all = rates.formats.values().flat_map(|rate| [rate.decode_secs_per_weight, rate.prefill_secs_per_weight]);
        if !is_usable(rates.memory_bytes_per_second) || !all.into_iter().all(is_usable) {
            let fault = Fault::new(Stage::Evaluation, "kernel rates that are no speeds").file(path);
            return Err(fault.fix("measure them again with `lapidary bench --rates`").into());
        }
        Ok(rates)
    }

    /// The document.
    pub fn to_json(&self) -> String {
        // A struct of numbers and names has a form in JSON.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

/// Measures with as many threads as the current pool has; runs alone.
///
/// # Errors
/// An unknown format, or cancel.
pub fn measure(options: &RateOptions, progress: &Progress) -> Result<KernelRates> {
    let formats = select(&options.formats)?;
    progress.begin(Phase::MeasuringSpeed, formats.len() as u64 + 2, Unit::Items);
    let side = if options.quick { 512 } else { SIDE };
    let enough = if options.quick { 0.005 } else { 0.06 };
    let values = weights(DISTINCT_ROWS, side);
    let bench = Bench { side, enough, progress, values: &values };
    let memory_bytes_per_second = memory_speed(if options.quick { 8 << 20 } else { 256 << 20 }, progress)?;
    progress.advance(1);
    let product_secs = bench.product_secs()?;
    progress.advance(1);
    let mut rates = BTreeMap::new();
    for format in formats {
        if let Some(rate) = bench.rate(format, product_secs)? {
            rates.insert(format.id().to_owned(), rate);
        }
        progress.advance(1);
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Ok(KernelRates {
        version: KernelRates::VERSION,
        machine: Machine::here(),
        measured_unix_secs: now.map_or(0, |since| since.as_secs()),
        memory_bytes_per_second,
        product_secs,
        formats: rates,
    })
}

fn select(ids: &[String]) -> Result<Vec<&'static dyn Format>> {
    if ids.is_empty() {
        return Ok(format::all().to_vec());
    }
    let find = |id: &String| {
        format::find(id).ok_or_else(|| {
            Fault::new(Stage::Evaluation, format!("there is no format {id:?}"))
                .fix("name one of `lapidary plan`")
                .into()
        })
    };
    ids.iter().map(find).collect()
}

/// Sums a buffer on every core, and takes the best of a few times.
fn memory_speed(byte_count: usize, progress: &Progress) -> Result<f64> {
    let words: Vec<u64> = (0..byte_count as u64 / 8).collect();
    let mut best = f64::INFINITY;
    for _ in 0..4 {
        progress.check()?;
        let start = Instant::now();
        let sum: u64 = words
            .par_chunks(1 << 15)
            .map(|part| part.iter().fold(0, |sum: u64, word| sum.wrapping_add(*word)))
            .reduce(|| 0, u64::wrapping_add);
        std::hint::black_box(sum);
        best = best.min(start.elapsed().as_secs_f64().max(1e-9));
    }
    Ok((words.len() * 8) as f64 / best)
}

struct Bench<'a> {
    side: usize,
    /// Seconds of repetitions.
    enough: f64,
    progress: &'a Progress,
    /// [`DISTINCT_ROWS`] rows of `side` weights.
    values: &'a [f32],
}

impl Bench<'_> {
    /// Median time of a product of a matrix with `tokens` rows, and the bytes that the matrix holds.
    fn product(&self, format: &dyn Format, rows: usize, cols: usize, tokens: usize) -> Result<Option<(f64, u64)>> {
        let Some(row_bytes) = format.dtype().row_bytes(cols).filter(|_| format.fits(cols)) else { return Ok(None) };
        let mut bytes = vec![0; DISTINCT_ROWS * row_bytes];
        format.encode_rows(&self.values[..DISTINCT_ROWS * cols], &Encoding::plain(cols), &mut bytes);
        let bytes: Vec<u8> = bytes.iter().copied().cycle().take(rows * row_bytes).collect();
        let matrix = Native.matrix(StoredMatrix { dtype: format.dtype(), rows, cols, bytes })?;
        let x: Vec<f32> = self.values.iter().map(|value| value * 50.0).cycle().take(tokens * cols).collect();
        let x = Native.rows_from(x, cols)?;
        let (mut samples, start) = (Vec::new(), Instant::now());
        std::hint::black_box(Native.linears(&[(&matrix, None)], &x)?);
        while samples.len() < 3 || (start.elapsed().as_secs_f64() < self.enough && samples.len() < 1000) {
            self.progress.check()?;
            let start = Instant::now();
            std::hint::black_box(Native.linears(&[(&matrix, None)], &x)?);
            samples.push(start.elapsed().as_secs_f64().max(1e-9));
        }
        samples.sort_unstable_by(f64::total_cmp);
        Ok(Some((quantile(&samples, 0.5), Native.matrix_bytes(&matrix))))
    }

    /// Time of a product of next to nothing.
    fn product_secs(&self) -> Result<f64> {
        let Some(smallest) = format::find("f32") else { return Ok(0.0) };
        Ok(self.product(smallest, 32, 64, 1)?.map_or(0.0, |(secs, _)| secs))
    }

    fn rate(&self, format: &dyn Format, product_secs: f64) -> Result<Option<FormatRate>> {
        let count = (self.side * self.side) as f64;
        let Some((decode, bytes)) = self.product(format, self.side, self.side, 1)? else { return Ok(None) };
        let Some((prefill, _)) = self.product(format, self.side, self.side, PROMPT)? else { return Ok(None) };
        let net = |secs: f64| (secs - product_secs).max(secs * 0.1);
        Ok(Some(FormatRate {
            bytes_per_weight: bytes as f64 / count,
            decode_secs_per_weight: net(decode) / count,
            prefill_secs_per_weight: net(prefill) / count / PROMPT as f64,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_weight_is_rated_and_read_again() {
        // Dense, packed, and one that is decoded row by row.
        let ids = ["bf16", "q4_k", "int4_g128"];
        let options = RateOptions { formats: ids.map(str::to_owned).to_vec(), quick: true };
        let rates = measure(&options, &Progress::default()).expect("measures");
        assert_eq!(rates.formats.len(), 3);
        for (id, rate) in &rates.formats {
            assert!(rate.decode_secs_per_weight > 0.0 && rate.prefill_secs_per_weight > 0.0, "{id} {rate:?}");
        }
        assert!(rates.of("q4_k").expect("rated").bytes_per_weight < rates.of("bf16").expect("rated").bytes_per_weight);
        assert!(rates.memory_bytes_per_second > 1e6 && rates.product_secs > 0.0);
        assert!(rates.is_of(&Machine::here()));
        let other = Machine { threads: 9999, ..Machine::here() };
        assert!(!rates.is_of(&other));
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("rates.json");
        std::fs::write(&path, rates.to_json()).expect("writes");
        assert_eq!(KernelRates::read(&path).expect("reads"), rates);
        std::fs::write(&path, rates.to_json().replace("memory_bytes_per_second\": ", "memory_bytes_per_second\": -"))
            .expect("writes");
        assert!(KernelRates::read(&path).expect_err("refused").to_string().contains("bench --rates"));
    }

    #[test]
    fn the_processors_name_is_found() {
        let info = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n";
        assert_eq!(cpu_name(info).as_deref(), Some("Some CPU @ 2 GHz"));
        assert_eq!(cpu_name("processor: 0\n"), None);
    }
}
