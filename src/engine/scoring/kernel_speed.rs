//! Speed of the kernels by themselves: encoders, error scans, profiles and matrix products.
//!
//! Everything is generic over the registry of formats, so that a new one is measured as soon as it
//! is registered. Weights are normal with outlier columns, as the synthetic checkpoints are; times
//! are of warm memory, and leave out what is done once per matrix. Measurements run alone.

#[cfg(feature = "gpu")]
mod on_device;

use std::time::Instant;

use rayon::prelude::*;
use serde::Serialize;

use super::random::Random;
use super::text_stats::quantile;
use crate::device::Device;
use crate::error::{Fault, Result, Stage};
use crate::format::{self, Dtype, Encoding, Format, ScanBuffers};
use crate::kernels::activations::Activations;
use crate::kernels::counts::{Counts, KeyRange, Order, range8, range16};
use crate::kernels::dense::{Dense, Panels, Plain};
use crate::kernels::float;
use crate::kernels::moments::{self, BINS, Scale};
use crate::kernels::packed::Packed;
use crate::kernels::scan::Errors;
use crate::progress::{Phase, Progress, Unit};

/// Shapes of the products, outputs × inputs.
const SHAPES: [(usize, usize); 2] = [(2048, 4096), (4096, 11_008)];

/// Activation rows of the products.
const BATCHES: [usize; 4] = [1, 8, 128, 512];

/// Weights a row where the shape does not matter.
const ROW_LEN: usize = 4096;

/// Most rows that an encoder or a scan is given.
const MOST_ROWS: usize = 512;

/// Different rows of a matrix whose products are timed: the slowest encoders need not encode millions of weights for it.
const DISTINCT_ROWS: usize = 32;

/// Bytes that a profile reads at a time.
const CHUNK_BYTES: usize = 128 * 1024;

/// What is measured.
#[derive(Clone, Debug, Default)]
pub struct KernelOptions {
    /// Only rows whose kernel or format has this in its name, such as `matmul` or `q4_k`.
    pub filter: Option<String>,
    /// One shape, two batch sizes and a fifth of the time.
    pub quick: bool,
    /// Also scans on this device, if it is a GPU.
    pub device: Device,
}

/// Speed of one kernel.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KernelSpeed {
    /// `encode`, `encode_imatrix`, `scan`, `scan_device` (uploads included), `scan_resident` (of rows that lie on the
    /// device), `profile` or `matmul`.
    pub kernel: &'static str,
    /// Id of a format, or name of a stored type.
    pub format: String,
    /// Outputs of a product; rows given to the others.
    pub rows: usize,
    /// Weights a row.
    pub cols: usize,
    /// Activation rows of a product.
    pub batch: Option<usize>,
    /// Worker threads.
    pub threads: usize,
    /// How often it was timed.
    pub repetitions: usize,
    /// Shortest time.
    pub min_secs: f64,
    /// Median time.
    pub median_secs: f64,
    /// Lower and upper quartile of the times.
    pub quartiles_secs: [f64; 2],
    /// Weights a second, from the median.
    pub weights_per_second: f64,
    /// Multiplications and additions a second in billions, from the median; of a product.
    pub gflop_per_second: Option<f64>,
    /// Bytes of weights read a second in billions, from the median; of a product, and of what lies on a device.
    pub gbyte_per_second: Option<f64>,
}

/// One line to be measured.
struct Case {
    kernel: &'static str,
    format: String,
    rows: usize,
    cols: usize,
    batch: Option<usize>,
    /// Bytes of the weights of a product, or of those that lie on a device; else 0.
    bytes: usize,
}

/// Measures with one thread and with as many as the current pool has.
///
/// # Errors
/// Cancel, or a filter that matches nothing.
pub fn measure(options: &KernelOptions, progress: &Progress) -> Result<Vec<KernelSpeed>> {
    let mut bench = Bench { options, progress, rows: Vec::new() };
    progress.begin(Phase::MeasuringSpeed, bench.case_count() as u64, Unit::Items);
    let values = weights(MOST_ROWS, ROW_LEN);
    for &format in format::all() {
        bench.encode(format, &values)?;
    }
    let mut bytes = vec![0; values.len() * 2];
    float::encode_bf16(&values, &mut bytes);
    for &format in format::all() {
        bench.scan(format, &bytes)?;
        #[cfg(feature = "gpu")]
        bench.scan_device(format, &bytes)?;
    }
    bench.profile_singles(&values)?;
    for dtype in [Dtype::F16, Dtype::Bf16, Dtype::F8E4M3] {
        bench.profile(dtype, &bytes)?;
    }
    for &format in format::all() {
        bench.matmul(format, &values)?;
    }
    if bench.rows.is_empty() {
        return Err(Fault::new(Stage::Evaluation, "no kernel or format has that in its name")
            .at(options.filter.clone().unwrap_or_default())
            .fix("leave --filter away to see all of them")
            .into());
    }
    Ok(bench.rows)
}

/// Rows of normal weights, four columns of them six times larger.
pub(super) fn weights(rows: usize, cols: usize) -> Vec<f32> {
    let mut random = Random::new(7, 0);
    // Twelve uniform numbers less six: variance 1.
    let table: Vec<f32> =
        (0..1 << 12).map(|_| ((0..12).map(|_| random.unit()).sum::<f64>() - 6.0) as f32 * 0.02).collect();
    let outliers: Vec<usize> = (0..4).map(|_| random.next_u64() as usize % cols).collect();
    let mut values: Vec<f32> = (0..rows * cols).map(|_| table[random.next_u64() as usize % table.len()]).collect();
    for row in values.chunks_exact_mut(cols) {
        outliers.iter().for_each(|&column| row[column] *= 6.0);
    }
    values
}

struct Bench<'a> {
    options: &'a KernelOptions,
    progress: &'a Progress,
    rows: Vec<KernelSpeed>,
}

impl Bench<'_> {
    fn wants(&self, kernel: &str, format: &str) -> bool {
        self.options.filter.as_ref().is_none_or(|filter| {
            let filter = filter.to_lowercase();
            kernel.contains(&filter) || format.contains(&filter)
        })
    }

    fn shapes(&self) -> &'static [(usize, usize)] {
        if self.options.quick { &SHAPES[..1] } else { &SHAPES }
    }

    fn batches(&self) -> &'static [usize] {
        if self.options.quick { &[1, 128] } else { &BATCHES }
    }

    /// An upper bound, for the progress bar.
    fn case_count(&self) -> usize {
        let products = self.shapes().len() * self.batches().len();
        let of = |kernel: &str, format: &dyn Format| usize::from(self.wants(kernel, format.id()));
        let formats = format::all().iter().copied();
        formats
            .map(|format| {
                2 * (of("encode", format) + of("scan", format))
                    + of("scan_device", format)
                    + of("scan_resident", format)
                    + 2 * products * of("matmul", format)
            })
            .sum()
    }

    /// One thread, then all.
    fn pools(&self) -> Result<Vec<rayon::ThreadPool>> {
        let mut counts = vec![1, rayon::current_num_threads()];
        counts.dedup();
        let pool = |threads: usize| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .map_err(|err| Fault::new(Stage::Evaluation, format!("cannot start {threads} threads: {err}")).into())
        };
        counts.into_iter().map(pool).collect()
    }

    /// Times `work` until there is enough, within the current pool.
    fn time(&mut self, case: &Case, mut work: impl FnMut()) -> Result<()> {
        let enough = if self.options.quick { 0.1 } else { 0.5 };
        work();
        let (mut samples, start) = (Vec::new(), Instant::now());
        while samples.len() < 3 || (start.elapsed().as_secs_f64() < enough && samples.len() < 2000) {
            self.progress.check()?;
            let start = Instant::now();
            work();
            // A clock that stands still must not give an infinite speed, which JSON cannot hold.
            samples.push(start.elapsed().as_secs_f64().max(1e-9));
        }
        samples.sort_unstable_by(f64::total_cmp);
        let median_secs = quantile(&samples, 0.5);
        let weights = (case.rows * case.cols) as f64;
        let row = KernelSpeed {
            kernel: case.kernel,
            format: case.format.clone(),
            rows: case.rows,
            cols: case.cols,
            batch: case.batch,
            threads: rayon::current_num_threads(),
            repetitions: samples.len(),
            min_secs: samples[0],
            median_secs,
            quartiles_secs: [quantile(&samples, 0.25), quantile(&samples, 0.75)],
            weights_per_second: weights / median_secs,
            gflop_per_second: case.batch.map(|batch| 2e-9 * weights * batch as f64 / median_secs),
            gbyte_per_second: (case.bytes > 0).then(|| 1e-9 * case.bytes as f64 / median_secs),
        };
        self.rows.push(row);
        self.progress.advance(1);
        Ok(())
    }

    fn encode(&mut self, format: &'static dyn Format, values: &[f32]) -> Result<()> {
        let importance: Vec<f32> = (0..ROW_LEN).map(|column| 0.1 + (column * 37 % 101) as f32).collect();
        let row_bytes = format.dtype().row_bytes(ROW_LEN).unwrap_or(0);
        for (kernel, importance) in [("encode", None), ("encode_imatrix", Some(importance.as_slice()))] {
            if !self.wants(kernel, format.id()) || !format.fits(ROW_LEN) {
                continue;
            }
            let encode = |values: &[f32], importance: Option<&[f32]>, out: &mut [u8]| {
                format.encode_rows(values, &Encoding { importance, ..Encoding::plain(ROW_LEN) }, out);
            };
            let mut out = vec![0; MOST_ROWS * row_bytes];
            if importance.is_some() {
                // Only where it makes a difference.
                let (plain, weighted) = out.split_at_mut(16 * row_bytes);
                encode(&values[..16 * ROW_LEN], None, plain);
                encode(&values[..16 * ROW_LEN], importance, &mut weighted[..16 * row_bytes]);
                if *plain == weighted[..16 * row_bytes] {
                    continue;
                }
            }
            // As many rows as take about 20 ms with one thread, in whole tasks.
            let start = Instant::now();
            encode(&values[..16 * ROW_LEN], importance, &mut out[..16 * row_bytes]);
            let per_row = start.elapsed().as_secs_f64() / 16.0;
            let rows = ((0.02 / per_row.max(1e-9)) as usize).clamp(32, MOST_ROWS) / 16 * 16;
            let case = Case { kernel, format: format.id().to_owned(), rows, cols: ROW_LEN, batch: None, bytes: 0 };
            for pool in self.pools()? {
                pool.install(|| {
                    self.time(&case, || {
                        let tasks = values[..rows * ROW_LEN].par_chunks(16 * ROW_LEN);
                        let outs = out[..rows * row_bytes].par_chunks_mut(16 * row_bytes);
                        tasks.zip(outs).for_each(|(values, out)| encode(values, importance, out));
                    })
                })?;
            }
        }
        Ok(())
    }

    /// From bf16 bytes, as a checkpoint has them.
    fn scan(&mut self, format: &'static dyn Format, bytes: &[u8]) -> Result<()> {
        /// Rows decoded at a time: they stay in the second-level cache.
        const PIECE: usize = 8;
        if !self.wants("scan", format.id()) || !format.fits(ROW_LEN) {
            return Ok(());
        }
        let scan = |bytes: &[u8], values: &mut Vec<f32>, buffers: &mut ScanBuffers| {
            values.resize(bytes.len() / 2, 0.0);
            float::decode_bf16(bytes, values);
            let mut errors = Errors::default();
            for row in values.chunks_exact(ROW_LEN) {
                format.scan(row, &Encoding::plain(ROW_LEN), buffers, &mut errors);
            }
            std::hint::black_box(errors);
        };
        let piece_bytes = PIECE * ROW_LEN * 2;
        let start = Instant::now();
        scan(&bytes[..piece_bytes], &mut Vec::new(), &mut ScanBuffers::default());
        let per_row = start.elapsed().as_secs_f64() / PIECE as f64;
        let rows = ((0.02 / per_row.max(1e-9)) as usize).clamp(4 * PIECE, MOST_ROWS) / PIECE * PIECE;
        let case = Case { kernel: "scan", format: format.id().to_owned(), rows, cols: ROW_LEN, batch: None, bytes: 0 };
        for pool in self.pools()? {
            pool.install(|| {
                self.time(&case, || {
                    let pieces = bytes[..rows * ROW_LEN * 2].par_chunks(piece_bytes);
                    pieces.for_each_init(<(Vec<f32>, ScanBuffers)>::default, |(values, buffers), piece| {
                        scan(piece, values, buffers);
                    });
                })
            })?;
        }
        Ok(())
    }

    /// Both looks at f32 values, one thread: what a profile does to them.
    fn profile_singles(&mut self, values: &[f32]) -> Result<()> {
        if !self.wants("profile", "f32") {
            return Ok(());
        }
        let rows = values.len() / ROW_LEN;
        let case = Case { kernel: "profile", format: "f32".to_owned(), rows, cols: ROW_LEN, batch: None, bytes: 0 };
        let scale = Scale { lo: -0.3, hi: 0.3, mean: 0.0, limits: [0.06, 0.08, 0.12] };
        let (mut beyond, mut bins) = ([0; 3], vec![0; BINS]);
        self.pools()?[0].install(|| {
            self.time(&case, || {
                for chunk in values.chunks(8 * ROW_LEN) {
                    let sums = chunk.chunks(ROW_LEN).map(|row| moments::survey(row).sum);
                    let mean = sums.sum::<f64>() / chunk.len() as f64;
                    std::hint::black_box(moments::powers(chunk, mean));
                }
                for chunk in values.chunks(8 * ROW_LEN) {
                    moments::count(chunk, &scale, &mut beyond, &mut bins);
                }
            })
        })
    }

    /// Counting and ranges of a small type, one thread: what a profile does to every byte.
    fn profile(&mut self, dtype: Dtype, bytes: &[u8]) -> Result<()> {
        const ALL: KeyRange = KeyRange { lo: i16::MIN, hi: i16::MAX };
        if !self.wants("profile", dtype.name()) {
            return Ok(());
        }
        let is_byte = dtype.block_bytes() == 1;
        let rows = bytes.len() / (ROW_LEN * dtype.block_bytes());
        let case =
            Case { kernel: "profile", format: dtype.name().to_owned(), rows, cols: ROW_LEN, batch: None, bytes: 0 };
        let mut counts = Counts::default();
        let mut totals = vec![0; 1 << 16];
        self.pools()?[0].install(|| {
            self.time(&case, || {
                for chunk in bytes.chunks(CHUNK_BYTES) {
                    counts.add(chunk);
                    for row in chunk.chunks(ROW_LEN * dtype.block_bytes()) {
                        std::hint::black_box(if is_byte {
                            range8(row, Order::SignMagnitude, ALL)
                        } else {
                            range16(row, Order::SignMagnitude, ALL)
                        });
                    }
                }
                counts.drain_into(&mut totals);
            })
        })
    }

    fn matmul(&mut self, format: &'static dyn Format, values: &[f32]) -> Result<()> {
        for &(rows, cols) in self.shapes() {
            if !self.wants("matmul", format.id()) || !format.fits(cols) {
                continue;
            }
            let row_bytes = format.dtype().row_bytes(cols).unwrap_or(0);
            let mut bytes = vec![0; DISTINCT_ROWS * row_bytes];
            format.encode_rows(&values[..DISTINCT_ROWS * cols], &Encoding::plain(cols), &mut bytes);
            let bytes: Vec<u8> = bytes.iter().copied().cycle().take(rows * row_bytes).collect();
            let Some(product) = Product::new(format, &bytes, rows, cols) else { continue };
            drop(bytes);
            let byte_count = product.resident_bytes();
            for pool in self.pools()? {
                for &batch in self.batches() {
                    let x: Vec<f32> = values.iter().map(|value| value * 50.0).cycle().take(batch * cols).collect();
                    let mut out = vec![0.0; batch * rows];
                    let case = Case {
                        kernel: "matmul",
                        format: format.id().to_owned(),
                        rows,
                        cols,
                        batch: Some(batch),
                        bytes: byte_count,
                    };
                    pool.install(|| self.time(&case, || product.multiply(&x, &mut out)))?;
                }
            }
        }
        Ok(())
    }
}

/// A matrix as the native backend holds it.
enum Product {
    Packed(Packed),
    Dense(Dense),
}

impl Product {
    /// None where no kernel multiplies the format as it is stored.
    fn new(format: &dyn Format, bytes: &[u8], rows: usize, cols: usize) -> Option<Self> {
        let layout = format.layout().filter(|layout| layout.row_bytes(cols).is_some());
        let dense = |plain| Some(Self::Dense(Dense::new(plain, bytes, rows, cols)));
        match (layout, format.dtype()) {
            (Some(layout), _) => Some(Self::Packed(Packed::new(layout, bytes, rows, cols))),
            (None, Dtype::F32) => dense(Plain::F32),
            (None, Dtype::F16) => dense(Plain::F16),
            (None, Dtype::Bf16) => dense(Plain::Bf16),
            _ => None,
        }
    }

    /// Bytes that one product reads of the weights.
    fn resident_bytes(&self) -> usize {
        match self {
            Self::Packed(weights) => weights.resident_bytes(),
            Self::Dense(weights) => weights.resident_bytes(),
        }
    }

    /// The product with activations, which are brought here into the form that the kernel wants.
    fn multiply(&self, x: &[f32], out: &mut [f32]) {
        match self {
            Self::Packed(weights) => {
                let block = weights.layout().activation_block();
                weights.matmul(&Activations::quantize(x, weights.cols(), block), out);
            }
            Self::Dense(weights) => weights.matmul(&Panels::new(x, weights.cols()), out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_format_is_measured_by_every_kernel_it_has() {
        let options = KernelOptions { filter: Some("Q4_0".to_owned()), quick: true, ..KernelOptions::default() };
        let mut seen = 0;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("a pool");
        let rows = pool.install(|| measure(&options, &Progress::default())).expect("q4_0 is a format");
        for row in &rows {
            seen += 1;
            assert!(row.format == "q4_0" && row.min_secs > 0.0 && row.min_secs <= row.median_secs, "{row:?}");
            assert!(row.weights_per_second.is_finite() && row.repetitions >= 3, "{row:?}");
            assert_eq!(row.batch.is_some(), row.gflop_per_second.is_some());
        }
        for (kernel, threads, batch) in [
            ("encode", 1, None),
            ("encode", 2, None),
            ("scan", 2, None),
            ("matmul", 1, Some(1)),
            ("matmul", 2, Some(128)),
        ] {
            let found = rows.iter().any(|row| row.kernel == kernel && row.threads == threads && row.batch == batch);
            assert!(found, "{kernel} {threads} {batch:?} of {seen}");
        }
    }

    #[test]
    fn a_filter_that_nothing_matches_and_cancel_are_told() {
        let options = KernelOptions { filter: Some("q9_z".to_owned()), quick: true, ..KernelOptions::default() };
        let error = measure(&options, &Progress::default()).expect_err("nothing to measure");
        assert!(error.to_string().contains("q9_z"), "{error}");
        let progress = Progress::default();
        progress.cancel();
        let stopped = measure(&KernelOptions::default(), &progress).expect_err("cancelled");
        assert!(stopped.is_cancelled());
    }
}
