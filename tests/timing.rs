//! Times that want a quiet machine and a release build:
//! `cargo test --release --test timing -- --ignored --nocapture --test-threads=1`.

use std::time::Instant;

use lapidary::engine::Progress;
use lapidary::engine::checkpoint::Checkpoint;
use lapidary::engine::format::{self, Encoding, Format};
use lapidary::engine::sensitivity::weight::{WeightOptions, weight_error};
use rayon::prelude::*;

#[path = "common/synthetic.rs"]
mod synthetic;

use synthetic::Shape;

/// Rows that are encoded at a time, as a pass does.
const ROWS: usize = 16;

/// Decodes every tensor that the metric looks at and encodes it once in `format`, with every core, and keeps nothing.
fn encode_all(checkpoint: &Checkpoint, names: &[String], asked: &'static dyn Format) {
    for tensor in checkpoint.tensors.iter().filter(|tensor| names.contains(&tensor.name)) {
        let row_len = tensor.row_len();
        let stored = format::fitting(asked, row_len);
        if !stored.fits(row_len) {
            continue;
        }
        let how = Encoding::plain(row_len);
        let shared = checkpoint.survey(tensor, &[stored], &how, &Progress::default()).expect("surveyed").remove(0);
        let row_bytes = stored.dtype().row_bytes(row_len).expect("whole blocks");
        (0..tensor.row_count().div_ceil(ROWS)).into_par_iter().for_each_init(
            || (Vec::new(), Vec::new(), Vec::new()),
            |(raw, weights, bytes), chunk| {
                let rows = chunk * ROWS..((chunk + 1) * ROWS).min(tensor.row_count());
                checkpoint.decode_rows(tensor, rows.clone(), raw, weights).expect("readable");
                bytes.resize(rows.len() * row_bytes, 0);
                stored.encode_rows(weights, &Encoding { first_row: rows.start, shared: shared.as_ref(), ..how }, bytes);
                std::hint::black_box(&bytes);
            },
        );
    }
}

/// Two of the sixteen layers of the 1B shape, and a vocabulary an eighth as large: the time is that of the whole in proportion.
#[test]
#[ignore = "minutes, and only in a release build"]
fn the_weight_metric_over_all_formats_takes_what_encoding_takes() {
    let folder = tempfile::tempdir().expect("a folder");
    let shape = Shape { layers: 2, vocab: 4000, ..Shape::ONE_B };
    shape.write(folder.path(), 1).expect("written");
    let checkpoint = Checkpoint::open(folder.path()).expect("opens");
    let (mut encoding, mut metric) = (0.0, 0.0);
    println!("{:22} {:>10} {:>10} {:>6}", "format", "encode s", "metric s", "ratio");
    for &format in format::all().iter().filter(|format| format.dtype() != checkpoint.tensors[0].dtype) {
        let options = WeightOptions { formats: vec![format.id().to_owned()], ..WeightOptions::default() };
        // In turns, and the better of two, because other programs disturb either.
        let mut best = [f64::INFINITY; 2];
        for _ in 0..2 {
            let started = Instant::now();
            let table = weight_error(&checkpoint, &options, &Progress::default(), &mut |_, _| {}).expect("measured");
            best[1] = best[1].min(started.elapsed().as_secs_f64());
            let names: Vec<String> = table.rows.iter().map(|row| row.name.clone()).collect();
            let started = Instant::now();
            encode_all(&checkpoint, &names, format);
            best[0] = best[0].min(started.elapsed().as_secs_f64());
        }
        println!("{:22} {:10.3} {:10.3} {:6.2}", format.id(), best[0], best[1], best[1] / best[0]);
        encoding += best[0];
        metric += best[1];
    }
    let options = WeightOptions::default();
    let started = Instant::now();
    weight_error(&checkpoint, &options, &Progress::default(), &mut |_, _| {}).expect("measured");
    let together = started.elapsed().as_secs_f64();
    println!(
        "all formats, {} weights: encoding {encoding:.2} s, metric one by one {metric:.2} s, together {together:.2} s: {:.2}",
        shape.weight_count(),
        together / encoding
    );
    assert!(together <= 1.2 * encoding, "{together} {encoding}");
}
