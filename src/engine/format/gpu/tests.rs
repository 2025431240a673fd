//! Every format on a device against the CPU. They need a driver, a software one will do:
//! `cargo test -p lapidary-kernels --lib -- --ignored gpu`.

mod choices;
mod statistics;

use super::*;
use crate::format;
use crate::kernels::gpu::adapters;

/// The device to test: the one that `LAPIDARY_DEVICE` names, else any.
fn device() -> Device {
    let adapters = adapters();
    assert!(!adapters.is_empty(), "no Vulkan, Metal or DX12 driver: install Debian's mesa-vulkan-drivers");
    let part = std::env::var("LAPIDARY_DEVICE").unwrap_or_default().to_ascii_lowercase();
    let named = adapters.iter().find(|adapter| adapter.name.to_ascii_lowercase().contains(&part));
    let adapter = named.expect("a device of that name");
    Device::open(adapter).expect("it opens")
}

/// Numbers from 0 to 1 that look random.
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 40) as f32 + 0.5) / (1u64 << 24) as f32
    }

    fn normal(&mut self) -> f32 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f32::consts::TAU * self.unit()).cos()
    }
}

/// How the weights of a test are spread.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Spread {
    Normal,
    /// Now and then a hundred times as large.
    Heavy,
    /// As 16-bit checkpoints have them.
    Bf16,
    Zero,
    Constant,
    Subnormal,
    Huge,
    /// Rows of all of these, and rows with NaN and infinity.
    Mixed,
}

const SPREADS: [Spread; 8] = [
    Spread::Normal,
    Spread::Heavy,
    Spread::Bf16,
    Spread::Zero,
    Spread::Constant,
    Spread::Subnormal,
    Spread::Huge,
    Spread::Mixed,
];

fn weights(spread: Spread, row_len: usize, rows: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    let mut all = Vec::with_capacity(row_len * rows);
    for row in 0..rows {
        let own = if spread == Spread::Mixed { SPREADS[row % 7] } else { spread };
        for _ in 0..row_len {
            let normal = random.normal();
            all.push(match own {
                Spread::Normal | Spread::Mixed => 0.02 * normal,
                Spread::Heavy => 0.01 * normal / (random.unit() + 0.01),
                Spread::Bf16 => half::bf16::from_f32(0.02 * normal).to_f32(),
                Spread::Zero => 0.0,
                Spread::Constant => -0.0371,
                Spread::Subnormal => 1e-40 * normal,
                Spread::Huge => 1e30 * normal,
            });
        }
        if spread == Spread::Mixed && row % 9 == 8 {
            let at = row * row_len;
            (all[at], all[at + row_len / 2]) = (f32::NAN, f32::INFINITY);
        }
    }
    all
}

/// As a file of f32 has them.
fn stored(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Sums of each row by the format itself.
fn by_rows(format: &dyn Format, values: &[f32], how: &Encoding<'_>, shared: Option<&Shared>) -> Vec<Errors> {
    let mut buffers = ScanBuffers::default();
    let rows = values.chunks(how.row_len).enumerate();
    rows.map(|(row, weights)| {
        let mut errors = Errors::default();
        format.scan(weights, &Encoding { first_row: row, shared, ..*how }, &mut buffers, &mut errors);
        errors
    })
    .collect()
}

fn close(a: f64, b: f64, share: f64) -> bool {
    a == b || (a - b).abs() <= share * a.abs().max(b.abs()) || a.is_nan() && b.is_nan()
}

/// What a format's comparison has found.
#[derive(Debug, Default)]
struct Tally {
    rows: u64,
    on_device: u64,
    others: u64,
    troubles: Vec<String>,
}

/// Compares one tensor, all of it and row by row.
fn compare(
    device: &Device,
    format: &'static dyn Format,
    spread: Spread,
    shape: [usize; 2],
    is_weighted: bool,
    tally: &mut Tally,
) {
    let [row_len, rows] = shape;
    let values = weights(spread, row_len, rows, 7 + row_len as u64);
    let mut random = Random(3);
    let importance: Vec<f32> = (0..row_len).map(|_| 0.05 + random.unit() * random.unit()).collect();
    let mut how = Encoding::plain(row_len);
    if is_weighted {
        how = Encoding { importance: Some(&importance), scale_choice: ScaleChoice::LeastSquares, ..how };
    }
    let shared = [format::survey_matrix(format, &values, &how)];
    let formats = [format];
    let mut scan = DeviceScan::new(device, &formats, how, &shared).expect("every format has a recipe");
    let case = format!("{} {spread:?} {row_len}×{rows} weighted {is_weighted}", format.id());
    let expected = by_rows(format, &values, &how, shared[0].as_ref());
    // Row by row first: each a piece of its own would be slow, so take the scanner's own answer.
    let given = [shared[0].as_ref().map(|shared| given(shared, 0, rows, row_len))];
    scan.scanner.submit(Source::F32(&values), &given).unwrap_or_else(|error| panic!("{case}: {error}"));
    let found = scan.scanner.collect().unwrap_or_else(|error| panic!("{case}: {error}"));
    for (found, expected) in found[0].iter().zip(&expected) {
        tally.rows += 1;
        if let Some(found) = found {
            tally.on_device += 1;
            tally.others += u64::from(!close(found.noise, expected.noise, 1e-4));
        }
    }
    // In two pieces, so that a first row other than 0 is met.
    let middle = rows / 2;
    for (first, end) in [(0, middle), (middle, rows)] {
        if end > first {
            let bytes = stored(&values[first * row_len..end * row_len]);
            scan.add(first, Dtype::F32, bytes).expect("the device goes on");
        }
    }
    let found = scan.finish().unwrap_or_else(|error| panic!("{case}: {error}"))[0];
    let mut total = Errors::default();
    expected.iter().for_each(|errors| total.merge(errors));
    let figures = [
        ("signal", found.signal, total.signal),
        ("coded", found.coded, total.coded),
        ("noise", found.noise, total.noise),
        ("product", found.product, total.product),
        ("largest", found.max_abs_error, total.max_abs_error),
    ];
    for (name, found, expected) in figures {
        if !close(found, expected, 1e-5) {
            tally.troubles.push(format!("{case}: {name} {found} instead of {expected}"));
        }
    }
}

/// At most one row of a thousand has another noise; `choices` counts blocks.
fn check(id: &str, tally: Tally, troubles: &mut Vec<String>) {
    troubles.extend(tally.troubles);
    if tally.others * 1000 > tally.rows {
        troubles.push(format!("{id}: {} rows of {} have other choices", tally.others, tally.rows));
    }
}

/// Rows of one block of 256, of several tiles with a ragged end, and too short for large blocks.
const SHAPES: [[usize; 2]; 4] = [[256, 300], [2304, 11], [4416, 3], [96, 20]];

#[test]
#[ignore = "needs a graphics driver"]
fn every_format_has_the_reference_s_errors() {
    let device = device();
    let mut troubles = Vec::new();
    for &format in format::all() {
        for is_weighted in [false, true] {
            let mut tally = Tally::default();
            for spread in SPREADS {
                for shape in SHAPES.into_iter().filter(|shape| format.fits(shape[0])) {
                    let mut own = Tally::default();
                    compare(&device, format, spread, shape, is_weighted, &mut own);
                    if spread == Spread::Normal || spread == Spread::Bf16 {
                        let share = own.on_device as f64 / own.rows as f64;
                        if share < 0.95 {
                            own.troubles.push(format!("{} {shape:?}: the device did {share} of the rows", format.id()));
                        }
                    }
                    tally.rows += own.rows;
                    tally.on_device += own.on_device;
                    tally.others += own.others;
                    tally.troubles.extend(own.troubles);
                }
            }
            println!(
                "{} weighted {is_weighted}: {} rows, {} by the device, {} with other choices",
                format.id(),
                tally.rows,
                tally.on_device,
                tally.others
            );
            check(format.id(), tally, &mut troubles);
        }
    }
    assert!(troubles.is_empty(), "{}", troubles.join("\n"));
}

#[test]
#[ignore = "needs a graphics driver"]
fn schemes_of_every_width_group_and_scale_have_the_reference_s_errors() {
    let device = device();
    let mut troubles = Vec::new();
    // A prime, so that no parameter always stands still; the usual ones are in the other test.
    for format in format::parameterized().step_by(17).filter(|format| format.fits(768)) {
        for is_weighted in [false, true] {
            let mut tally = Tally::default();
            compare(&device, format, Spread::Normal, [768, 6], is_weighted, &mut tally);
            assert_eq!(tally.on_device, tally.rows, "{}", format.id());
            check(format.id(), tally, &mut troubles);
        }
    }
    assert!(troubles.is_empty(), "{}", troubles.join("\n"));
}

#[test]
#[ignore = "needs a graphics driver"]
fn sixteen_bit_floats_go_up_as_they_are() {
    let device = device();
    let format = format::find("q4_k").expect("a known format");
    let formats = [format];
    // An odd number of weights in all cannot be: rows are whole blocks. 33 rows make an odd number of pairs.
    let values = weights(Spread::Normal, 256, 33, 5);
    for dtype in [Dtype::F16, Dtype::Bf16] {
        let mut raw = vec![0; values.len() * 2];
        let plain = format::of_dtype(dtype).expect("a known type");
        plain.encode_rows(&values, &Encoding::plain(256), &mut raw);
        let mut widened = vec![0.0; values.len()];
        plain.decode_row(&raw, &mut widened);
        let sums = |dtype: Dtype, bytes: Vec<u8>| {
            let mut scan = DeviceScan::new(&device, &formats, Encoding::plain(256), &[None]).expect("a recipe");
            scan.add(0, dtype, bytes).expect("the device goes on");
            scan.finish().expect("the device goes on")
        };
        assert_eq!(sums(dtype, raw), sums(Dtype::F32, stored(&widened)), "{dtype}");
    }
}

#[test]
#[ignore = "needs a graphics driver"]
fn stored_types_that_the_device_does_not_widen_are_decoded_before() {
    let device = device();
    let formats = [format::find("q4_0").expect("a known format")];
    let sums = |dtype: Dtype, bytes: Vec<u8>| {
        let mut scan = DeviceScan::new(&device, &formats, Encoding::plain(256), &[None]).expect("a recipe");
        scan.add(0, dtype, bytes).map(|()| scan.finish().expect("the device goes on"))
    };
    let bytes: Vec<u8> = (0..256 * 5).map(|at| (at * 37 % 120) as u8).collect();
    let mut decoded = vec![0.0; bytes.len()];
    assert!(format::decode_row(Dtype::F8E4M3, &bytes, &mut decoded));
    assert_eq!(sums(Dtype::F8E4M3, bytes).expect("decodes"), sums(Dtype::F32, stored(&decoded)).expect("decodes"));
    let failure = sums(Dtype::Unknown(99), vec![0; 256]).expect_err("nobody knows its rows");
    assert!(matches!(failure, Failure::TooLarge(_)), "{failure}");
}

#[test]
#[ignore = "needs a graphics driver"]
fn rows_that_are_scanned_again_where_they_lie_count_once() {
    let device = device();
    let formats = [format::find("q4_k").expect("a known format"), format::find("int4_g128").expect("a known format")];
    let values = weights(Spread::Normal, 256, 12, 5);
    let sums = |times: usize| {
        let mut scan = DeviceScan::new(&device, &formats, Encoding::plain(256), &[None, None]).expect("recipes");
        scan.repeat(times).expect("nothing is there yet");
        for first in [0, 6] {
            scan.add(first, Dtype::F32, stored(&values[first * 256..(first + 6) * 256])).expect("the device goes on");
            scan.repeat(times).expect("the device goes on");
        }
        (scan.finish().expect("the device goes on"), scan.rows())
    };
    assert_eq!(sums(3), sums(0));
}

#[test]
#[ignore = "needs a graphics driver"]
fn a_shader_that_does_not_compile_is_a_failure_that_stays() {
    let device = device();
    assert!(device.check().is_ok());
    device.break_for_test();
    assert!(matches!(device.check(), Err(Failure::Driver(_))));
    let formats = [format::find("bf16").expect("a known format")];
    assert!(DeviceScan::new(&device, &formats, Encoding::plain(64), &[None]).is_err());
}

/// Rows from a device and from the format itself, and the rows that the device encoded and handed back.
type Encoded = (Vec<u8>, Vec<u8>, [u64; 2]);

/// Rows of a tensor through the device, and by the format itself.
fn encoded(
    device: &Device,
    format: &'static dyn Format,
    values: &[f32],
    how: Encoding<'_>,
) -> Result<Encoded, Failure> {
    let shared = format::survey_matrix(format, values, &how);
    let how = Encoding { shared: shared.as_ref(), ..how };
    let row_bytes = format.dtype().row_bytes(how.row_len).expect("whole blocks");
    let rows = values.len() / how.row_len;
    let (mut ours, mut reference) = (vec![0; rows * row_bytes], vec![0; rows * row_bytes]);
    format.encode_rows(values, &how, &mut reference);
    let bytes = stored(values);
    let mut encoder = DeviceEncoder::new(device, Dtype::F32, format, how)?;
    // In two pieces, so that a first row other than 0 is met.
    let middle = rows / 2;
    encoder.encode(0, &bytes[..middle * how.row_len * 4], &mut ours[..middle * row_bytes])?;
    encoder.encode(middle, &bytes[middle * how.row_len * 4..], &mut ours[middle * row_bytes..])?;
    Ok((ours, reference, encoder.rows()))
}

/// Every choice of scale that a format knows.
fn choices(format: &dyn Format) -> Vec<ScaleChoice> {
    match format.dtype() {
        Dtype::Int(_) => vec![ScaleChoice::AbsMax, ScaleChoice::Percentile(99.0), ScaleChoice::LeastSquares],
        _ => vec![ScaleChoice::AbsMax],
    }
}

#[test]
#[ignore = "needs a graphics driver"]
fn encoded_bytes_are_the_reference_s_wherever_no_search_decides() {
    let device = device();
    let mut troubles = Vec::new();
    // Of the schemes, some by a prime, so that no parameter always stands still.
    let schemes = format::parameterized().step_by(37).map(|format| (format, &SPREADS[2..3]));
    for (format, spreads) in format::all().iter().map(|&format| (format, &SPREADS[..])).chain(schemes) {
        for scale_choice in choices(format) {
            let (mut rows, mut on_device) = (0, 0);
            for &spread in spreads {
                for shape in SHAPES.into_iter().filter(|shape| format.fits(shape[0])) {
                    let how = Encoding { scale_choice, ..Encoding::plain(shape[0]) };
                    if !can_encode(format, &how, false) {
                        continue;
                    }
                    let values = weights(spread, shape[0], shape[1], 11 + shape[0] as u64);
                    let case = format!("{} {scale_choice:?} {spread:?} {shape:?}", format.id());
                    match encoded(&device, format, &values, how) {
                        Err(failure) => troubles.push(format!("{case}: {failure}")),
                        Ok((ours, reference, counts)) => {
                            rows += counts[0] + counts[1];
                            on_device += counts[0];
                            let differing = ours.iter().zip(&reference).filter(|(a, b)| a != b).count();
                            if differing > 0 {
                                troubles.push(format!("{case}: {differing} bytes of {} differ", ours.len()));
                            }
                            if spread == Spread::Bf16 && counts[1] > 0 {
                                troubles.push(format!("{case}: {} rows were handed back", counts[1]));
                            }
                        }
                    }
                }
            }
            if rows > 0 {
                println!("{} {scale_choice:?}: {rows} rows, {on_device} by the device, equal bytes", format.id());
            }
        }
    }
    let shown = troubles.len().min(20);
    assert!(troubles.is_empty(), "{} troubles:\n{}", troubles.len(), troubles[..shown].join("\n"));
}

#[test]
#[ignore = "needs a graphics driver"]
fn searches_on_the_device_are_as_good_as_the_reference_s() {
    let device = device();
    let mut random = Random(5);
    let importance: Vec<f32> = (0..2304).map(|_| 0.05 + random.unit() * random.unit()).collect();
    for &format in format::all() {
        for columns in [None, Some(importance.as_slice())] {
            let plain = Encoding { importance: columns, ..Encoding::plain(2304) };
            let how = match format.dtype() {
                Dtype::Int(_) => Encoding { scale_choice: ScaleChoice::LeastSquares, ..plain },
                _ => plain,
            };
            if !can_encode(format, &how, true) || can_encode(format, &how, false) || !format.fits(2304) {
                continue;
            }
            let values = weights(Spread::Heavy, 2304, 37, 3);
            let (ours, reference, rows) = encoded(&device, format, &values, how).expect("the device goes on");
            let row_bytes = ours.len() / 37;
            let error = |bytes: &[u8]| {
                let mut coded = vec![0.0; values.len()];
                bytes.chunks(row_bytes).zip(coded.chunks_mut(2304)).for_each(|(row, out)| format.decode_row(row, out));
                let weight = |at: usize| columns.map_or(1.0, |columns| f64::from(columns[at % 2304]));
                let pairs = values.iter().zip(&coded).enumerate();
                pairs.map(|(at, (a, b))| weight(at) * f64::from(a - b).powi(2)).sum::<f64>()
            };
            let share = error(&ours) / error(&reference);
            println!("{} weighted {}: error {share:.6}", format.id(), columns.is_some());
            assert!((share - 1.0).abs() < 1e-3, "{}: {share}", format.id());
            assert!(rows[0] > 0, "{}: the device did nothing", format.id());
        }
    }
}

#[test]
#[ignore = "needs a graphics driver"]
fn a_device_that_writes_other_bytes_is_found_out() {
    let device = device();
    let format = format::find("q8_0").expect("a known format");
    let other = format::find("q4_0").expect("a known format");
    let values = weights(Spread::Normal, 256, 8, 3);
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut out = vec![0; 8 * 272];
    let mut encoder = DeviceEncoder::new(&device, Dtype::F32, format, Encoding::plain(256)).expect("an encoder");
    encoder.encode(0, &bytes, &mut out).expect("equal bytes");
    // The same bytes held against another format's reference.
    let mut encoder = DeviceEncoder::new(&device, Dtype::F32, other, Encoding::plain(256)).expect("an encoder");
    let importance = vec![0.5; 256];
    encoder.pretend(Encoding { importance: Some(&importance), ..Encoding::plain(256) });
    let failure = encoder.encode(0, &bytes, &mut out[..8 * 144]).expect_err("found out");
    assert!(matches!(&failure, Failure::Wrong(why) if why.contains("q4_0")), "{failure}");
}
