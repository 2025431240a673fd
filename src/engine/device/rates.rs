//! How fast a GPU and the CPU do the same work here: what `auto` chooses by.

use std::time::{Duration, Instant};

use rayon::prelude::*;
use serde::Serialize;

pub use super::model_rates::Rate;
use crate::format::gpu::{DeviceEncoder, DeviceScan};
use crate::format::{self, Dtype, Encoding, Format, ScanBuffers};
use crate::kernels::counts::Counts;
use crate::kernels::gpu::{Counter, Device, Failure, Rows};
use crate::kernels::scan::Errors;

/// What is done on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Error scans of formats whose codes follow from one rounding.
    Scans,
    /// Error scans of formats with a search.
    ScanSearches,
    /// Encoding by one rounding.
    Encoding,
    /// Encoding by a search.
    Searches,
    /// Statistics and histograms.
    Statistics,
}

impl Work {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Scans, Self::ScanSearches, Self::Encoding, Self::Searches, Self::Statistics];

    /// Scans of a format, with or without a search.
    pub fn of_scan(is_search: bool) -> Self {
        if is_search { Self::ScanSearches } else { Self::Scans }
    }

    /// Encoding to a format, with or without a search.
    pub fn of_encoding(is_search: bool) -> Self {
        if is_search { Self::Searches } else { Self::Encoding }
    }
}

/// The rates of every kind of work, in weights a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    /// Of error scans without a search, in q8_0.
    pub scans: Rate,
    /// Of error scans with one, in q4_k.
    pub scan_searches: Rate,
    /// Of encoding without a search, to q8_0.
    pub encoding: Rate,
    /// Of encoding by one, to q4_k.
    pub searches: Rate,
    /// Of statistics, of bf16.
    pub statistics: Rate,
}

/// Weights of a row of what is measured.
const LEN: usize = 2048;

impl Rates {
    /// The rate of one kind of work.
    pub fn of(&self, work: Work) -> Rate {
        match work {
            Work::Scans => self.scans,
            Work::ScanSearches => self.scan_searches,
            Work::Encoding => self.encoding,
            Work::Searches => self.searches,
            Work::Statistics => self.statistics,
        }
    }

    /// Seconds that the device takes for as many weights of every kind of work.
    pub(super) fn device_seconds(&self) -> f64 {
        Work::ALL.into_iter().map(|work| 1.0 / self.of(work).device).sum()
    }

    /// Measures every rate over `rows` rows of 2048 weights, those of searches over a quarter of them: 2048 take
    /// about a second.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn measure(device: &Device, rows: usize) -> Result<Self, Failure> {
        let values: Vec<f32> = (0..LEN * rows).map(|at| ((at as f32 * 0.377).sin() + 0.1) * 0.02).collect();
        let mut halves = vec![0; values.len() * 2];
        let known = |id: &str| format::find(id).ok_or_else(|| Failure::Missing(id.to_owned()));
        known("bf16")?.encode_rows(&values, &Encoding::plain(LEN), &mut halves);
        let (q8_0, q4_k) = (known("q8_0")?, known("q4_k")?);
        let few = rows.div_ceil(4) * LEN;
        let (few_values, few_halves) = (&values[..few], &halves[..few * 2]);
        Ok(Self {
            scans: scans(device, &values, &halves, q8_0)?,
            scan_searches: scans(device, few_values, few_halves, q4_k)?,
            encoding: encoding(device, &halves, q8_0)?,
            searches: encoding(device, few_halves, q4_k)?,
            statistics: of_statistics(device, &halves)?,
        })
    }
}

/// The rate of scans of one format; `halves` are the values in bf16.
fn scans(device: &Device, values: &[f32], halves: &[u8], format: &'static dyn Format) -> Result<Rate, Failure> {
    let how = Encoding::plain(LEN);
    let on_cpu = || {
        values.par_chunks(LEN).for_each_init(ScanBuffers::default, |buffers, row| {
            format.scan(row, &how, buffers, &mut Errors::default());
        });
        Ok(())
    };
    let count = values.len() as f64;
    Ok(Rate { device: count / timed(|| scan(device, halves, format, how))?, cpu: count / timed(on_cpu)? })
}

/// The rate of encoding bf16 to one format.
fn encoding(device: &Device, halves: &[u8], format: &'static dyn Format) -> Result<Rate, Failure> {
    let how = Encoding::plain(LEN);
    let row_bytes = format.dtype().row_bytes(LEN).unwrap_or(LEN);
    let mut out = vec![0; halves.len() / 2 / LEN * row_bytes];
    let on_device =
        timed(|| DeviceEncoder::new(device, Dtype::Bf16, format, how)?.encode(0, halves, &mut out).map(drop))?;
    let on_cpu = timed(|| {
        halves.par_chunks(LEN * 2).zip(out.par_chunks_mut(row_bytes)).for_each_init(
            || vec![0.0; LEN],
            |values, (row, out)| {
                format::decode_row(Dtype::Bf16, row, values);
                format.encode_rows(values, &how, out);
            },
        );
        Ok(())
    })?;
    let count = (halves.len() / 2) as f64;
    Ok(Rate { device: count / on_device, cpu: count / on_cpu })
}

/// The rate of statistics of bf16.
fn of_statistics(device: &Device, halves: &[u8]) -> Result<Rate, Failure> {
    let part = halves.len().div_ceil(rayon::current_num_threads()).max(2) / 2 * 2;
    let on_cpu = || {
        halves.par_chunks(part).for_each(|part| Counts::default().add(part));
        Ok(())
    };
    let count = (halves.len() / 2) as f64;
    Ok(Rate { device: count / timed(|| statistics(device, halves, LEN))?, cpu: count / timed(on_cpu)? })
}

fn scan(device: &Device, halves: &[u8], format: &'static dyn Format, how: Encoding<'_>) -> Result<(), Failure> {
    let formats = [format];
    let mut scan = DeviceScan::new(device, &formats, how, &[None])?;
    let step = scan.most_rows() * how.row_len;
    for (piece, halves) in halves.chunks(step * 2).enumerate() {
        let mut raw = scan.buffer();
        raw.clear();
        raw.extend_from_slice(halves);
        scan.add(piece * step / how.row_len, Dtype::Bf16, raw)?;
    }
    scan.finish().map(drop)
}

fn statistics(device: &Device, halves: &[u8], len: usize) -> Result<(), Failure> {
    let rows = Rows { len, count: halves.len() / 2 / len, fold: 1 };
    let mut counter = Counter::new(device, rows, 0x7f80)?;
    let step = counter.most_rows() * len * 2;
    for (piece, bytes) in halves.chunks(step).enumerate() {
        counter.add(piece * step / 2 / len, bytes)?;
    }
    counter.finish().map(drop)
}

/// Seconds of the faster of two goes; the first also compiles shaders and wakes the device.
fn timed(mut work: impl FnMut() -> Result<(), Failure>) -> Result<f64, Failure> {
    let mut least = Duration::MAX;
    for _ in 0..2 {
        let start = Instant::now();
        work()?;
        least = least.min(start.elapsed());
    }
    Ok(least.as_secs_f64().max(1e-9))
}
