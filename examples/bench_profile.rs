//! How many weights a second a profile reads from the page cache, per core.
//!
//! `cargo run --release --example bench_profile [-- PATH]`
//!
//! Without a path it writes a bf16 checkpoint of 309 million weights into the temporary folder and
//! removes it afterwards. The naive loop reads the same bytes with one thread, widens every weight
//! and keeps only minimum, maximum, moments and a histogram: less than a profile holds.

use std::error::Error;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use lapidary::engine::checkpoint::Checkpoint;
use lapidary::engine::profile::{self, ProfileOptions};
use lapidary::engine::progress::Progress;

#[path = "../tests/common/synthetic.rs"]
mod synthetic;

const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let written = tempfile::tempdir()?;
    let path = match std::env::args().nth(1) {
        Some(path) => PathBuf::from(path),
        None => {
            let shape = synthetic::Shape { layers: 4, ..synthetic::Shape::ONE_B };
            println!("writing {} bf16 weights to {}", shape.weight_count(), written.path().display());
            shape.write(written.path(), 1)?;
            written.path().to_owned()
        }
    };
    let checkpoint = Checkpoint::open(&path)?;
    let weight_count = checkpoint.weight_count() as f64;
    // Weights a second by the clock, and by the processor's time of all threads, which a busy machine does not spoil.
    let measure = |thread_count: usize| -> Result<(f64, f64), Box<dyn Error>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(thread_count).build()?;
        let mut best = f64::INFINITY;
        let cpu_begin = cpu_secs();
        for _ in 0..ROUNDS {
            let begin = Instant::now();
            pool.install(|| {
                profile::profile(&checkpoint, &ProfileOptions::default(), &Progress::default(), &mut |_, _| {})
            })?;
            best = best.min(begin.elapsed().as_secs_f64());
        }
        let cpu = (cpu_secs() - cpu_begin) / ROUNDS as f64;
        Ok((weight_count / best, weight_count / cpu))
    };
    let core_count = std::thread::available_parallelism()?.get();
    let (one, one_cpu) = measure(1)?;
    let (all, all_cpu) = measure(core_count)?;
    for (threads, rate, cpu_rate) in [(1, one, one_cpu), (core_count, all, all_cpu)] {
        println!(
            "{threads} threads: {:.3} billion weights a second, {:.3} a second of processor time",
            rate / 1e9,
            cpu_rate / 1e9
        );
    }
    let file = if path.is_dir() { path.join("model.safetensors") } else { path };
    if file.is_file() {
        let mut best = f64::INFINITY;
        for _ in 0..ROUNDS {
            best = best.min(naive(&file)?);
        }
        let rate = (std::fs::metadata(&file)?.len() / 2) as f64 / best;
        println!(
            "naive loop, 1 thread: {:.3} billion weights a second; the profile is {:.1} times as fast",
            rate / 1e9,
            one / rate
        );
    }
    Ok(())
}

/// Processor time of all threads so far: user and system ticks of `/proc/self/stat`, a hundred a second.
fn cpu_secs() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields = after_name.split_whitespace().skip(11).take(2);
    fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// Seconds that a straightforward loop over all 16-bit words of a file takes.
fn naive(path: &Path) -> Result<f64, Box<dyn Error>> {
    let file = std::fs::File::open(path)?;
    let byte_count = file.metadata()?.len();
    let begin = Instant::now();
    let mut buffer = vec![0u8; 1 << 20];
    let (mut min, mut max, mut sums, mut bins) = (f32::INFINITY, f32::NEG_INFINITY, [0f64; 4], [0u64; 256]);
    let mut at = 0;
    while at < byte_count {
        let len = ((byte_count - at) as usize).min(buffer.len());
        file.read_exact_at(&mut buffer[..len], at)?;
        for word in buffer[..len].chunks_exact(2) {
            let value = f32::from_bits(u32::from(u16::from_le_bytes([word[0], word[1]])) << 16);
            min = min.min(value);
            max = max.max(value);
            let mut power = 1.0;
            for sum in &mut sums {
                power *= f64::from(value);
                *sum += power;
            }
            bins[((value + 0.2) * 640.0).clamp(0.0, 255.0) as usize] += 1;
        }
        at += len as u64;
    }
    std::hint::black_box((min, max, sums, bins));
    Ok(begin.elapsed().as_secs_f64())
}
