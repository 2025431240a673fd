//! Profiles against plain arithmetic over all values in memory.

use std::path::Path;

use half::{bf16, f16};

use super::*;

/// Writes a safetensors file of these tensors: name, type as the file says it, shape, bytes.
fn write(folder: &Path, tensors: &[(&str, &str, &[usize], Vec<u8>)]) -> Checkpoint {
    let mut entries = Vec::new();
    let mut data: Vec<u8> = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let start = data.len();
        data.extend(bytes);
        entries.push(format!(
            r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{}]}}"#,
            data.len()
        ));
    }
    let mut header = format!("{{{}}}", entries.join(","));
    while header.len() % 8 != 0 {
        header.push(' ');
    }
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.extend(data);
    let path = folder.join("model.safetensors");
    std::fs::write(&path, file).expect("a temporary folder can be written");
    Checkpoint::open(&path).expect("a well-formed file")
}

fn all(checkpoint: &Checkpoint, options: &ProfileOptions) -> Vec<Arc<TensorProfile>> {
    let profile = profile(checkpoint, options, &Progress::default(), &mut |_, _| {}).expect("readable");
    assert!(profile.faults.is_empty());
    profile.tensors.into_iter().map(|tensor| tensor.expect("no fault")).collect()
}

/// Roughly normal numbers that are the same every time.
fn numbers(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..count).map(|_| (0..12).map(|_| uniform()).sum::<f64>() - 6.0).collect()
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * (1.0 + b.abs())
}

/// Checks every figure of `profile` against `values`, row by row.
fn check(profile: &TensorProfile, values: &[f64], row_len: usize) {
    let name = &profile.name;
    let finite: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    let n = finite.len() as f64;
    let mean = finite.iter().sum::<f64>() / n;
    let power = |exponent: i32| finite.iter().map(|value| (value - mean).powi(exponent)).sum::<f64>() / n;
    let std = power(2).sqrt();
    assert_eq!(profile.count, values.len() as u64, "{name}");
    assert_eq!(profile.finite_count(), finite.len() as u64, "{name}");
    assert_eq!(profile.nan_count, values.iter().filter(|value| value.is_nan()).count() as u64, "{name}");
    assert!(close(profile.mean, mean), "{name}: mean {} is {mean}", profile.mean);
    assert!(close(profile.std, std), "{name}: std {} is {std}", profile.std);
    let kurtosis = power(4) / power(2).powi(2) - 3.0;
    assert!(close(profile.excess_kurtosis.expect("not constant"), kurtosis), "{name}: kurtosis");
    let min = finite.iter().copied().fold(f64::INFINITY, f64::min);
    let max = finite.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    assert_eq!((profile.min, profile.max), (min, max), "{name}");
    assert_eq!(profile.abs_max, min.abs().max(max.abs()), "{name}");
    assert!(close(profile.zero_share, finite.iter().filter(|&&value| value == 0.0).count() as f64 / n));
    for (share, sigmas) in
        [(profile.beyond_3_sigma_share, 3.0), (profile.beyond_4_sigma_share, 4.0), (profile.beyond_6_sigma_share, 6.0)]
    {
        let count = finite.iter().filter(|&value| (value - mean).abs() > sigmas * std).count();
        assert!(close(share, count as f64 / n), "{name}: beyond {sigmas} sigma");
    }
    assert_eq!(profile.histogram.counts.len(), BINS);
    assert_eq!(profile.histogram.counts.iter().sum::<u64>(), finite.len() as u64, "{name}");
    let (lo, hi) = profile.histogram.edges(77);
    let slack = (hi - lo) * 1e-9;
    let inside = |lo: f64, hi: f64| finite.iter().filter(|&&value| value >= lo && value < hi).count() as u64;
    let count = profile.histogram.counts[77];
    assert!(inside(lo + slack, hi - slack) <= count && count <= inside(lo - slack, hi + slack), "{name}: bin 77");
    let rows = profile.channels.rows_per_entry * row_len;
    assert_eq!(profile.channels.ranges.len(), values.len().div_ceil(rows), "{name}");
    for (entry, row) in profile.channels.ranges.iter().zip(values.chunks(rows)) {
        let row = || row.iter().copied().filter(|value| value.is_finite());
        let expected =
            (row().count() > 0).then(|| (row().fold(f64::INFINITY, f64::min), row().fold(f64::NEG_INFINITY, f64::max)));
        assert_eq!(*entry, expected.map(|(lo, hi)| (lo as f32, hi as f32)), "{name}: row range");
    }
}

#[test]
fn every_figure_equals_plain_arithmetic_for_every_type() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (rows, row_len) = (37, 301);
    let shape = [rows, row_len];
    let mut floats = numbers(rows * row_len, 5);
    floats[3] = 0.0;
    floats[4] = -0.0;
    floats[700] = 40.0;
    floats[9] = f64::NAN;
    floats[10] = f64::INFINITY;
    floats[11] = f64::NEG_INFINITY;
    floats[5 * row_len..6 * row_len].fill(f64::NAN);
    let bytes = |each: &dyn Fn(f64) -> Vec<u8>| floats.iter().flat_map(|&value| each(value)).collect::<Vec<u8>>();
    let tensors: Vec<(&str, &str, &[usize], Vec<u8>)> = vec![
        ("f64", "F64", &shape, bytes(&|v| v.to_le_bytes().to_vec())),
        ("f32", "F32", &shape, bytes(&|v| (v as f32).to_le_bytes().to_vec())),
        ("f16", "F16", &shape, bytes(&|v| f16::from_f64(v).to_le_bytes().to_vec())),
        ("bf16", "BF16", &shape, bytes(&|v| bf16::from_f64(v).to_le_bytes().to_vec())),
        ("i64", "I64", &shape, bytes(&|v| ((v * 1e6) as i64).to_le_bytes().to_vec())),
        ("i32", "I32", &shape, bytes(&|v| ((v * 1e6) as i32).to_le_bytes().to_vec())),
        ("i16", "I16", &shape, bytes(&|v| ((v * 3e3) as i16).to_le_bytes().to_vec())),
        ("u16", "U16", &shape, bytes(&|v| ((v * 3e3 + 3e4) as u16).to_le_bytes().to_vec())),
        ("i8", "I8", &shape, bytes(&|v| ((v * 40.0) as i8).to_le_bytes().to_vec())),
        ("u8", "U8", &shape, bytes(&|v| vec![(v * 40.0 + 128.0) as u8])),
        ("bool", "BOOL", &shape, bytes(&|v| vec![u8::from(v > 0.5)])),
    ];
    let checkpoint = write(folder.path(), &tensors);
    for profile in all(&checkpoint, &ProfileOptions { max_channel_entries: 20, ..ProfileOptions::default() }) {
        let values: Vec<f64> = floats
            .iter()
            .map(|&v| match profile.name.as_str() {
                "f64" => v,
                "f32" => f64::from(v as f32),
                "f16" => f16::from_f64(v).to_f64(),
                "bf16" => bf16::from_f64(v).to_f64(),
                "i64" => ((v * 1e6) as i64) as f64,
                "i32" => f64::from((v * 1e6) as i32),
                "i16" => f64::from((v * 3e3) as i16),
                "u16" => f64::from((v * 3e3 + 3e4) as u16),
                "i8" => f64::from((v * 40.0) as i8),
                "u8" => f64::from((v * 40.0 + 128.0) as u8),
                _ => f64::from(u8::from(v > 0.5)),
            })
            .collect();
        check(&profile, &values, row_len);
        assert_eq!(profile.channels.rows_per_entry, 2, "37 rows fold into at most 20 entries");
        let mut distinct: Vec<u64> =
            values.iter().filter(|value| value.is_finite()).map(|value| (value + 0.0).to_bits()).collect();
        distinct.sort_unstable();
        distinct.dedup();
        if let Some(count) = profile.distinct_count {
            assert_eq!(count, distinct.len() as u64, "{}", profile.name);
        }
    }
}

#[test]
fn eight_bit_floats_keep_their_infinities_out() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let patterns: Vec<u8> = (0..=255).collect();
    let checkpoint =
        write(folder.path(), &[("e4m3", "F8_E4M3", &[256], patterns.clone()), ("e5m2", "F8_E5M2", &[256], patterns)]);
    let profiles = all(&checkpoint, &ProfileOptions::default());
    assert_eq!((profiles[0].nan_count, profiles[0].inf_count, profiles[0].max), (2, 0, 448.0));
    assert_eq!((profiles[1].nan_count, profiles[1].inf_count, profiles[1].max), (6, 2, 57344.0));
    for profile in profiles {
        assert_eq!(profile.zero_count, 2);
        assert_eq!(profile.channels.ranges, [Some((profile.min as f32, profile.max as f32))]);
    }
}

#[cfg(feature = "gpu")]
#[test]
#[ignore = "needs a graphics driver"]
fn eight_bit_floats_have_the_same_profile_on_a_gpu() {
    let folder = tempfile::tempdir().expect("temporary folder");
    // Rows of an odd length, of several tiles, and of one value; every pattern among them, infinity and NaN too.
    let bytes = |count: usize, seed: u64| -> Vec<u8> {
        numbers(count, seed).iter().map(|value| ((value * 60.0).abs() as u64 % 256) as u8).collect()
    };
    let every: Vec<u8> = (0..=255).cycle().take(129 * 131).collect();
    let tensors: [(&str, &str, &[usize], Vec<u8>); 6] = [
        ("every.e4m3", "F8_E4M3", &[129, 131], every.clone()),
        ("every.e5m2", "F8_E5M2", &[129, 131], every),
        ("wide.e4m3", "F8_E4M3", &[3, 9001], bytes(27_003, 5)),
        ("wide.e5m2", "F8_E5M2", &[3, 9001], bytes(27_003, 6)),
        ("flat.e4m3", "F8_E4M3", &[64, 512], vec![0x38; 64 * 512]),
        ("nothing.e5m2", "F8_E5M2", &[64, 512], vec![0x7f; 64 * 512]),
    ];
    let checkpoint = write(folder.path(), &tensors);
    let of = |device: crate::device::Device| {
        let options = ProfileOptions { device, max_channel_entries: 50, ..ProfileOptions::default() };
        profile(&checkpoint, &options, &Progress::default(), &mut |_, _| {}).expect("readable")
    };
    let (ours, expected) = (of(crate::device::Device::any_for_test()), of(crate::device::Device::default()));
    assert!(ours.device.is_some_and(|device| !device.contains("then")) && expected.device.is_none());
    assert_eq!(ours.tensors.len(), 6);
    for (ours, expected) in ours.tensors.iter().flatten().zip(expected.tensors.iter().flatten()) {
        // Compared as text: NaN, which a tensor of nothing finite has, is not equal to itself.
        assert_eq!(format!("{ours:?}"), format!("{expected:?}"));
    }
}

#[test]
fn tensors_of_many_spans_come_out_the_same_whatever_the_number_of_threads() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let values = numbers(900_000, 11);
    let wide: Vec<u8> = values.iter().flat_map(|&value| (value as f32).to_le_bytes()).collect();
    let narrow: Vec<u8> =
        values.iter().cycle().take(5_000_000).flat_map(|&v| bf16::from_f64(v).to_le_bytes()).collect();
    let checkpoint = write(
        folder.path(),
        &[
            ("wide", "F32", &[900_000], wide),
            ("narrow", "BF16", &[1000, 5000], narrow),
            ("last", "I8", &[3], vec![1, 2, 255]),
        ],
    );
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| all(&checkpoint, &ProfileOptions::default()))
    };
    let one = with(1);
    assert_eq!(one, with(3));
    let exact: Vec<f64> = values.iter().map(|&value| f64::from(value as f32)).collect();
    check(&one[0], &exact, 900_000);
    assert_eq!((one[2].min, one[2].max, one[2].distinct_count), (-1.0, 2.0, Some(3)));
    let single = profile_tensor(&checkpoint, &checkpoint.tensors[1], &ProfileOptions::default(), &Progress::default());
    assert_eq!(single.expect("readable"), *one[1]);
}

#[test]
fn constant_empty_and_all_nan_tensors_have_plain_figures() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let tenth: Vec<u8> = (0..1000).flat_map(|_| 0.1f32.to_le_bytes()).collect();
    let nan: Vec<u8> = (0..8).flat_map(|_| bf16::NAN.to_le_bytes()).collect();
    let checkpoint = write(
        folder.path(),
        &[
            ("constant", "F32", &[10, 100], tenth),
            ("empty", "BF16", &[0, 4], Vec::new()),
            ("nan", "BF16", &[2, 4], nan),
        ],
    );
    let profiles = all(&checkpoint, &ProfileOptions::default());
    let constant = &profiles[0];
    assert_eq!((constant.mean, constant.std, constant.excess_kurtosis), (f64::from(0.1f32), 0.0, None));
    assert_eq!((constant.histogram.counts[0], constant.beyond_3_sigma_share), (1000, 0.0));
    assert_eq!((profiles[1].count, profiles[1].max, profiles[1].channels.ranges.len()), (0, 0.0, 0));
    assert_eq!((profiles[2].nan_count, profiles[2].mean, profiles[2].abs_max), (8, 0.0, 0.0));
    assert_eq!(profiles[2].channels.ranges, [None, None]);
    for profile in profiles {
        let text = serde_json::to_string(&*profile).expect("numbers only");
        assert!(!text.contains("null,\"zero_share\"") || profile.excess_kurtosis.is_none(), "{text}");
        assert_eq!(serde_json::from_str::<TensorProfile>(&text).expect("the same"), *profile);
    }
}

#[test]
fn a_chosen_range_moves_the_histogram_only() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let bytes = [-3.0f32, -1.0, 0.0, 1.0, 3.0].map(f32::to_le_bytes).concat();
    let checkpoint = write(folder.path(), &[("w", "F32", &[5], bytes)]);
    let options = ProfileOptions { histogram_range: Some((-1.0, 1.0)), ..ProfileOptions::default() };
    let profile =
        profile_tensor(&checkpoint, &checkpoint.tensors[0], &options, &Progress::default()).expect("readable");
    assert_eq!((profile.min, profile.max), (-3.0, 3.0));
    assert_eq!((profile.histogram.min, profile.histogram.max), (-1.0, 1.0));
    assert_eq!((profile.histogram.counts[0], profile.histogram.counts[128], profile.histogram.counts[255]), (2, 1, 2));
    assert!((profile.histogram.log_counts()[0] - 3f64.log10()).abs() < 1e-12);
}

#[test]
fn a_cancelled_profile_says_so() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let checkpoint = write(folder.path(), &[("w", "BF16", &[4], vec![0; 8])]);
    let progress = Progress::default();
    progress.cancel();
    let result = profile(&checkpoint, &ProfileOptions::default(), &progress, &mut |_, _| {});
    assert!(result.expect_err("cancelled").is_cancelled());
}

#[test]
fn progress_ends_at_its_total() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let checkpoint = write(folder.path(), &[("a", "BF16", &[300], vec![0; 600]), ("b", "F32", &[300], vec![0; 1200])]);
    let progress = Progress::default();
    let mut seen = Vec::new();
    profile(&checkpoint, &ProfileOptions::default(), &progress, &mut |index, _| seen.push(index)).expect("readable");
    let snapshot = progress.snapshot();
    assert_eq!((snapshot.done, snapshot.total), (600 + 2 * 1200, 600 + 2 * 1200));
    seen.sort_unstable();
    assert_eq!(seen, [0, 1]);
}

#[test]
fn blocks_are_profiled_by_their_decoded_values() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (rows, row_len) = (12, 96);
    let values: Vec<f32> = numbers(rows * row_len, 3).iter().map(|&value| value as f32).collect();
    let format = format::find("q8_0").expect("a known format");
    let row_bytes = format.dtype().row_bytes(row_len).expect("whole blocks");
    let (mut bytes, mut decoded) = (vec![0; rows * row_bytes], vec![0.0; rows * row_len]);
    for row in 0..rows {
        let coded = &mut bytes[row * row_bytes..(row + 1) * row_bytes];
        format.encode_rows(
            &values[row * row_len..(row + 1) * row_len],
            &crate::format::Encoding::plain(row_len),
            coded,
        );
        format.decode_row(coded, &mut decoded[row * row_len..(row + 1) * row_len]);
    }
    let checkpoint = write(folder.path(), &[("w", "U8", &[bytes.len()], bytes.clone())]);
    let stored = TensorInfo { shape: vec![rows, row_len], dtype: format.dtype(), ..checkpoint.tensors[0].clone() };
    let profiled = |tensor: &TensorInfo| {
        profile_tensor(&checkpoint, tensor, &ProfileOptions::default(), &Progress::default()).expect("readable")
    };
    let exact: Vec<f64> = decoded.iter().map(|&value| f64::from(value)).collect();
    let plain = profiled(&stored);
    check(&plain, &exact, row_len);
    assert_eq!(plain.distinct_count, None);

    let permuted = profiled(&TensorInfo { permuted_heads: Some(3), ..stored.clone() });
    assert_eq!(permuted.histogram, plain.histogram);
    assert_ne!(permuted.channels, plain.channels, "rows are put back in order");

    let long = TensorInfo { shape: vec![1, rows * row_len], ..stored.clone() };
    check(&profiled(&long), &exact, rows * row_len);

    let unknown = TensorInfo { dtype: format::Dtype::Unknown(77), ..stored };
    let fault = profile_tensor(&checkpoint, &unknown, &ProfileOptions::default(), &Progress::default())
        .expect_err("no decoder");
    assert!(fault.to_string().contains("ggml type 77"), "{fault}");
}

#[test]
fn a_file_cut_off_while_it_is_open_is_an_error() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let checkpoint = write(folder.path(), &[("w", "BF16", &[2000], vec![1; 4000])]);
    let file = std::fs::OpenOptions::new().write(true).open(&checkpoint.path).expect("the file");
    file.set_len(2000).expect("can be cut");
    let result = profile(&checkpoint, &ProfileOptions::default(), &Progress::default(), &mut |_, _| {});
    assert!(!result.expect_err("half of it is gone").is_cancelled());
}
