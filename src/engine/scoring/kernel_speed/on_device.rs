//! Error scans on a device: with their uploads, as a long tensor of a file is scanned, and of rows that lie there already,
//! which shows what the device does by itself.

use std::time::Instant;

use super::{Bench, Case, ROW_LEN};
use crate::error::{Fault, Result, Stage};
use crate::format::gpu::DeviceScan;
use crate::format::{self, Dtype, Encoding, Format};
use crate::kernels::float;
use crate::kernels::gpu::Failure;

/// Weights of one go, where the device is fast enough: many pieces, so that uploads and scans overlap as they do in a
/// large tensor.
const MOST_WEIGHTS: usize = 64 << 20;

/// Rows that show how fast it is about.
const PROBES: [usize; 2] = [32, 512];

/// Bytes of a row of bf16.
const ROW_BYTES: usize = ROW_LEN * 2;

/// Most scans of the same rows in one submission.
const MOST_REPEATS: usize = 512;

/// A scan that is given the same rows round and round.
struct Feed<'a> {
    scan: DeviceScan<'a>,
    /// Rows of bf16.
    bytes: &'a [u8],
    failure: Option<Failure>,
}

impl Feed<'_> {
    fn keep(&mut self, outcome: std::result::Result<(), Failure>) {
        if let Err(failure) = outcome {
            self.failure.get_or_insert(failure);
        }
    }

    fn add(&mut self, first: usize, rows: usize) {
        let mut buffer = self.scan.buffer();
        buffer.clear();
        buffer.extend_from_slice(&self.bytes[first * ROW_BYTES..(first + rows) * ROW_BYTES]);
        let added = self.scan.add(first, Dtype::Bf16, buffer);
        self.keep(added);
    }

    fn finish(&mut self) {
        let finished = self.scan.finish().map(|sums| _ = std::hint::black_box(sums));
        self.keep(finished);
    }

    /// So many rows, up and scanned.
    fn all(&mut self, rows: usize) {
        let given = self.bytes.len() / ROW_BYTES;
        let step = self.scan.most_rows();
        let (mut first, mut left) = (0, rows);
        while left > 0 && self.failure.is_none() {
            let count = step.min(left).min(given - first);
            self.add(first, count);
            first = (first + count) % given;
            left -= count;
        }
        self.finish();
    }

    fn repeat(&mut self, times: usize) {
        let outcome = self.scan.repeat(times);
        self.keep(outcome);
    }
}

/// Seconds that something takes.
fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64().max(1e-9)
}

impl Bench<'_> {
    /// `bytes` are rows of bf16, as a checkpoint has them.
    pub(super) fn scan_device(&mut self, format: &'static dyn Format, bytes: &[u8]) -> Result<()> {
        let device = self.options.device.clone();
        let wants = ["scan_device", "scan_resident"].map(|kernel| self.wants(kernel, format.id()));
        let Some(gpu) = device.gpu().filter(|_| wants.contains(&true) && format.fits(ROW_LEN)) else { return Ok(()) };
        let how = Encoding::plain(ROW_LEN);
        let mut values = vec![0.0; bytes.len() / 2];
        float::decode_bf16(bytes, &mut values);
        let shared = [format::survey_matrix(format, &values, &how)];
        drop(values);
        let formats = [format];
        let told = |failure: Failure| {
            Fault::new(Stage::Evaluation, failure.to_string()).at(gpu.name()).fix("leave --device away")
        };
        let scan = DeviceScan::new(gpu, &formats, how, &shared).map_err(told)?;
        let mut feed = Feed { scan, bytes, failure: None };
        // The first time compiles the shader.
        feed.all(8);
        let enough = if self.options.quick { 0.05 } else { 0.25 };
        if wants[0] {
            self.uploaded(format, &mut feed, enough)?;
        }
        if wants[1] {
            self.resident(format, &mut feed, enough)?;
        }
        feed.failure.map_or(Ok(()), |failure| Err(told(failure).into()))
    }

    /// With uploads, over as many rows as `enough` seconds have room for.
    fn uploaded(&mut self, format: &'static dyn Format, feed: &mut Feed<'_>, enough: f64) -> Result<()> {
        let mut per_row = 0.0;
        for rows in PROBES {
            let secs = timed(|| feed.all(rows));
            per_row = secs / rows as f64;
            // A short probe is all latency.
            if secs > enough / 10.0 {
                break;
            }
        }
        let rows = ((enough / per_row) as usize).clamp(PROBES[0], MOST_WEIGHTS / ROW_LEN);
        let (kernel, format) = ("scan_device", format.id().to_owned());
        self.time(&Case { kernel, format, rows, cols: ROW_LEN, batch: None, bytes: 0 }, || feed.all(rows))
    }

    /// Of one piece, which lies on the device as f32.
    fn resident(&mut self, format: &'static dyn Format, feed: &mut Feed<'_>, enough: f64) -> Result<()> {
        // A software driver takes long for a whole piece.
        let probe = PROBES[0].min(feed.bytes.len() / ROW_BYTES);
        feed.add(0, probe);
        feed.repeat(1);
        let once = timed(|| feed.repeat(1));
        feed.finish();
        let whole = feed.scan.most_rows().min(feed.bytes.len() / ROW_BYTES);
        let rows = ((enough / once * probe as f64) as usize).clamp(probe, whole);
        feed.add(0, rows);
        let once = timed(|| feed.repeat(1));
        let times = ((enough / 4.0 / once) as usize).clamp(1, MOST_REPEATS);
        let (kernel, format, bytes) = ("scan_resident", format.id().to_owned(), rows * times * ROW_LEN * 4);
        let case = Case { kernel, format, rows: rows * times, cols: ROW_LEN, batch: None, bytes };
        self.time(&case, || feed.repeat(times))?;
        feed.finish();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::device::Device;
    use crate::progress::Progress;
    use crate::scoring::kernel_speed::{KernelOptions, measure};

    #[test]
    #[ignore = "needs a graphics driver"]
    fn scans_on_a_gpu_are_measured_with_uploads_and_of_what_lies_there() {
        let filter = Some("q4_0".to_owned());
        let options = KernelOptions { filter, quick: true, device: Device::any_for_test() };
        let rows = measure(&options, &Progress::default()).expect("q4_0 is a format");
        let of = |kernel: &str| rows.iter().find(|row| row.kernel == kernel).expect("measured");
        let (up, there) = (of("scan_device"), of("scan_resident"));
        assert!(up.rows >= 32 && up.gbyte_per_second.is_none() && up.weights_per_second > 1e4, "{up:?}");
        let bytes = there.gbyte_per_second.expect("what lies there is read") * 1e9;
        assert!((bytes / (there.weights_per_second * 4.0) - 1.0).abs() < 1e-9, "f32 has four bytes: {there:?}");
        assert!(there.gflop_per_second.is_none());
    }
}
