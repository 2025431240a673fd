//! How fast a GPU and the CPU do the same work here: what `auto` chooses by.

use std::time::{Duration, Instant};

use rayon::prelude::*;
use serde::Serialize;

use crate::format::gpu::{DeviceEncoder, DeviceScan};
use crate::format::{self, Dtype, Encoding, Format, ScanBuffers};
use crate::kernels::counts::Counts;
use crate::kernels::gpu::{Counter, Device, Failure, Rows};
use crate::kernels::scan::Errors;

/// What is done on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Error scans of formats.
    Scans,
    /// Encoding.
    Encoding,
    /// Statistics and histograms.
    Statistics,
}

/// Weights a second of one kind of work, uploads included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rate {
    /// On the device.
    pub device: f64,
    /// On all cores of the CPU.
    pub cpu: f64,
}

impl Rate {
    /// True if the device is worth its trouble.
    pub fn favours_device(self) -> bool {
        self.device > self.cpu
    }
}

/// The rates of every kind of work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    /// Of error scans, in q4_k.
    pub scans: Rate,
    /// Of encoding, to q8_0.
    pub encoding: Rate,
    /// Of statistics, of bf16.
    pub statistics: Rate,
}

impl Rates {
    /// The rate of one kind of work.
    pub fn of(&self, work: Work) -> Rate {
        match work {
            Work::Scans => self.scans,
            Work::Encoding => self.encoding,
            Work::Statistics => self.statistics,
        }
    }

    /// Measures every rate over `rows` rows of 2048 weights: 2048 of them take some tenths of a second.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn measure(device: &Device, rows: usize) -> Result<Self, Failure> {
        const LEN: usize = 2048;
        let values: Vec<f32> = (0..LEN * rows).map(|at| ((at as f32 * 0.377).sin() + 0.1) * 0.02).collect();
        let mut halves = vec![0; values.len() * 2];
        let known = |id: &str| format::find(id).ok_or_else(|| Failure::Missing(id.to_owned()));
        known("bf16")?.encode_rows(&values, &Encoding::plain(LEN), &mut halves);
        let count = values.len() as f64;
        let q4_k = known("q4_k")?;
        let q8_0 = known("q8_0")?;
        let how = Encoding::plain(LEN);
        let scans = Rate {
            device: count / timed(|| scan(device, &halves, q4_k, how))?,
            cpu: count
                / timed(|| {
                    values.par_chunks(LEN).for_each_init(ScanBuffers::default, |buffers, row| {
                        q4_k.scan(row, &how, buffers, &mut Errors::default());
                    });
                    Ok(())
                })?,
        };
        let row_bytes = q8_0.dtype().row_bytes(LEN).unwrap_or(LEN);
        let mut out = vec![0; rows * row_bytes];
        let encoding = Rate {
            device: count
                / timed(|| DeviceEncoder::new(device, Dtype::Bf16, q8_0, how)?.encode(0, &halves, &mut out).map(drop))?,
            cpu: count
                / timed(|| {
                    halves.par_chunks(LEN * 2).zip(out.par_chunks_mut(row_bytes)).for_each_init(
                        || vec![0.0; LEN],
                        |values, (row, out)| {
                            format::decode_row(Dtype::Bf16, row, values);
                            q8_0.encode_rows(values, &how, out);
                        },
                    );
                    Ok(())
                })?,
        };
        let statistics = Rate {
            device: count / timed(|| statistics(device, &halves, LEN))?,
            cpu: count
                / timed(|| {
                    halves
                        .par_chunks(halves.len().div_ceil(rayon::current_num_threads()).max(2) / 2 * 2)
                        .for_each(|part| Counts::default().add(part));
                    Ok(())
                })?,
        };
        Ok(Self { scans, encoding, statistics })
    }
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
