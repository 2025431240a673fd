//! Products of every layout at every level against decoded rows, and rows against the decoders.

use super::*;
use crate::format;

fn noise(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state as f32 / u32::MAX as f32 - 0.5) * 2.0
        })
        .collect()
}

const LAYOUTS: [(Layout, &str); 13] = [
    (Layout::Q4_0, "q4_0"),
    (Layout::Q4_1, "q4_1"),
    (Layout::Q5_0, "q5_0"),
    (Layout::Q5_1, "q5_1"),
    (Layout::Q8_0, "q8_0"),
    (Layout::Q2K, "q2_k"),
    (Layout::Q3K, "q3_k"),
    (Layout::Q4K, "q4_k"),
    (Layout::Q5K, "q5_k"),
    (Layout::Q6K, "q6_k"),
    (Layout::Iq4Nl, "iq4_nl"),
    (Layout::Iq4Xs, "iq4_xs"),
    (Layout::Mxfp4, "mxfp4"),
];

/// Weights of a layout: the file's bytes and what they decode to.
struct Case {
    layout: Layout,
    name: String,
    bytes: Vec<u8>,
    decoded: Vec<f32>,
}

fn registered_cases(rows: usize, cols: usize) -> Vec<Case> {
    let integers = format::all().iter().filter_map(|format| Some((format.layout()?, format.id())));
    let integers = integers.filter(|(layout, id)| {
        matches!(layout, Layout::Int(_)) && format::find(id).is_some_and(|format| format.fits(cols))
    });
    LAYOUTS
        .iter()
        .filter(|(layout, _)| cols.is_multiple_of(layout.block_len()))
        .copied()
        .chain(integers)
        .map(|(layout, id)| {
            let format = format::find(id).expect("registered");
            let values = noise(rows * cols, 7 + rows as u32);
            let mut bytes = vec![0; rows * format.dtype().row_bytes(cols).expect("fits")];
            format.encode_rows(&values, &format::Encoding::plain(cols), &mut bytes);
            let mut decoded = vec![0.0; rows * cols];
            assert!(format::decode_rows(format.dtype(), cols, &bytes, &mut decoded));
            Case { layout, name: id.to_owned(), bytes, decoded }
        })
        .collect()
}

/// Integer rows with codes and scales drawn at random, and what the definition makes of them.
fn int_cases(rows: usize, cols: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for bits in 2..=8u8 {
        for (group, has_zeros, scale) in [
            (32, false, IntScale::F16),
            (64, true, IntScale::F32),
            (128, true, IntScale::F16),
            (128, false, IntScale::Bf16),
            (0, true, IntScale::Bf16),
        ] {
            let int = IntLayout { bits, group, has_zeros, scale };
            let (mut bytes, mut decoded) = (Vec::new(), Vec::new());
            let mut random = noise(rows * cols * 3, u32::from(bits) * 31 + group).into_iter();
            let mut next = || (random.next().expect("enough") + 1.0) / 2.0;
            let groups = if group == 0 { 1 } else { cols.div_ceil(group as usize) };
            for _ in 0..rows {
                let codes: Vec<u8> =
                    (0..cols).map(|_| ((next() * f32::from(bits).exp2()) as u32).min((1 << bits) - 1) as u8).collect();
                let mut stream = vec![0u8; cols * usize::from(bits) / 8];
                for (at, code) in codes.iter().enumerate() {
                    for bit in 0..usize::from(bits) {
                        let place = at * usize::from(bits) + bit;
                        stream[place / 8] |= (code >> bit & 1) << (place % 8);
                    }
                }
                bytes.extend(stream);
                let scales: Vec<f32> = (0..groups)
                    .map(|_| half::bf16::from_f32(next() * 0.01 + 0.001).to_f32())
                    .map(|v| half::f16::from_f32(v).to_f32())
                    .map(|v| half::bf16::from_f32(v).to_f32())
                    .collect();
                for scale in &scales {
                    match int.scale {
                        IntScale::F16 => bytes.extend(half::f16::from_f32(*scale).to_le_bytes()),
                        IntScale::Bf16 => bytes.extend(half::bf16::from_f32(*scale).to_le_bytes()),
                        IntScale::F32 => bytes.extend(scale.to_le_bytes()),
                    }
                }
                let zeros: Vec<u8> =
                    (0..groups)
                        .map(|_| {
                            if has_zeros { (next() * f32::from(bits).exp2()).min(255.0) as u8 } else { 1 << (bits - 1) }
                        })
                        .collect();
                if has_zeros {
                    bytes.extend(&zeros);
                }
                let len = if group == 0 { cols } else { group as usize };
                decoded.extend(
                    codes
                        .iter()
                        .enumerate()
                        .map(|(at, &code)| scales[at / len] * (f32::from(code) - f32::from(zeros[at / len]))),
                );
            }
            cases.push(Case { layout: Layout::Int(int), name: format!("{int:?}"), bytes, decoded });
        }
    }
    cases
}

fn cases(rows: usize, cols: usize) -> impl Iterator<Item = Case> {
    registered_cases(rows, cols).into_iter().chain(int_cases(rows, cols))
}

#[test]
fn every_level_runs_here_or_is_named_as_left_out() {
    let here: Vec<Level> = Level::available().collect();
    assert_eq!(here.first(), Some(&Level::Portable));
    assert_eq!(here.last(), Some(&Level::detect()));
    for level in Level::ALL {
        if !here.contains(&level) {
            println!("left out on this CPU: {} (see tests/oracles/avx512_bochs.sh and neon_qemu.sh)", level.name());
        }
    }
}

#[test]
fn rows_decode_to_the_bits_of_the_formats_decoder() {
    for (rows, cols) in [(1, 256), (11, 768), (17, 288)] {
        for case in cases(rows, cols) {
            for level in Level::available() {
                let packed = Packed::new_at(level, case.layout, &case.bytes, rows, cols);
                let mut row = vec![0.0; cols];
                for index in 0..rows {
                    packed.row(index, &mut row);
                    let expected = &case.decoded[index * cols..(index + 1) * cols];
                    for (at, (got, expected)) in row.iter().zip(expected).enumerate() {
                        assert_eq!(got.to_bits(), expected.to_bits(), "{} {level:?} row {index} at {at}", case.name);
                    }
                }
            }
        }
    }
}

#[test]
fn products_equal_those_of_decoded_rows_at_every_level() {
    for (rows, cols, tokens) in [(1, 256, 1), (5, 512, 2), (8, 32, 3), (19, 288, 7), (33, 768, 4), (70, 256, 13)] {
        for case in cases(rows, cols) {
            let values = noise(cols * tokens, 3);
            let activations = Activations::quantize(&values, cols, case.layout.activation_block());
            let restored: Vec<Vec<f32>> = (0..tokens).map(|token| activations.restore(token)).collect();
            let mut fused: Option<Vec<u32>> = None;
            for level in Level::available() {
                let packed = Packed::new_at(level, case.layout, &case.bytes, rows, cols);
                let mut out = vec![f32::NAN; tokens * rows];
                packed.matmul(&activations, &mut out);
                if level != Level::Portable {
                    // A row has a lane of its own, so that levels that fuse products and sums give the same bits.
                    let bits: Vec<u32> = out.iter().map(|value| value.to_bits()).collect();
                    assert!(
                        *fused.get_or_insert_with(|| bits.clone()) == bits,
                        "{} {level:?} {rows}×{cols}",
                        case.name
                    );
                }
                for token in 0..tokens {
                    for row in 0..rows {
                        let weights = &case.decoded[row * cols..(row + 1) * cols];
                        let products =
                            || weights.iter().zip(&restored[token]).map(|(w, x)| f64::from(*w) * f64::from(*x));
                        let (expected, size) = (products().sum::<f64>(), products().map(f64::abs).sum::<f64>());
                        let got = f64::from(out[token * rows + row]);
                        assert!(
                            (got - expected).abs() <= size * 2e-6 + 1e-6,
                            "{} {level:?} {rows}×{cols} token {token} row {row}: {got} {expected}",
                            case.name
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn extreme_codes_do_not_overflow_at_any_level() {
    let cols = 512;
    for case in cases(9, cols) {
        // All bits of all codes set, scales of one.
        let mut bytes = case.bytes.clone();
        for (at, byte) in bytes.iter_mut().enumerate() {
            if at % 3 != 2 {
                *byte = 0xff;
            }
        }
        let row_bytes = case.layout.row_bytes(cols).expect("fits");
        for row in bytes.chunks_exact_mut(row_bytes) {
            calm_scales(case.layout, cols, row);
        }
        let values = vec![1.0f32; cols * 5];
        let activations = Activations::quantize(&values, cols, case.layout.activation_block());
        for level in Level::available() {
            let packed = Packed::new_at(level, case.layout, &bytes, 9, cols);
            let mut out = vec![0.0; 5 * 9];
            packed.matmul(&activations, &mut out);
            let mut row = vec![0.0; cols];
            for index in 0..9 {
                packed.row(index, &mut row);
                let restored = activations.restore(0);
                let products = || row.iter().zip(&restored).map(|(w, x)| f64::from(*w) * f64::from(*x));
                let (expected, size) = (products().sum::<f64>(), products().map(f64::abs).sum::<f64>());
                for token in 0..5 {
                    let got = f64::from(out[token * 9 + index]);
                    assert!((got - expected).abs() <= size * 2e-6 + 1e-3, "{} {level:?}: {got} {expected}", case.name);
                }
            }
        }
    }
}

/// Sets every f16 or f32 scale of a row to one and keeps all else.
fn calm_scales(layout: Layout, cols: usize, row: &mut [u8]) {
    let one = half::f16::ONE.to_le_bytes();
    let (block_bytes, places): (usize, &[usize]) = match layout {
        Layout::Q4_0 => (18, &[0]),
        Layout::Q4_1 => (20, &[0, 2]),
        Layout::Q5_0 => (22, &[0]),
        Layout::Q5_1 => (24, &[0, 2]),
        Layout::Q8_0 => (34, &[0]),
        Layout::Q2K => (84, &[80, 82]),
        Layout::Q3K => (110, &[108]),
        Layout::Q4K => (144, &[0, 2]),
        Layout::Q5K => (176, &[0, 2]),
        Layout::Q6K => (210, &[208]),
        Layout::Iq4Nl => (18, &[0]),
        Layout::Iq4Xs => (136, &[0]),
        Layout::Mxfp4 => {
            row.iter_mut().step_by(17).for_each(|exponent| *exponent = 128);
            return;
        }
        Layout::Int(int) => {
            let groups = if int.group == 0 { 1 } else { cols.div_ceil(int.group as usize) };
            let scale: Vec<u8> = match int.scale {
                IntScale::F16 => one.to_vec(),
                IntScale::Bf16 => half::bf16::ONE.to_le_bytes().to_vec(),
                IntScale::F32 => 1f32.to_le_bytes().to_vec(),
            };
            let at = cols * usize::from(int.bits) / 8;
            for group in row[at..at + groups * scale.len()].chunks_exact_mut(scale.len()) {
                group.copy_from_slice(&scale);
            }
            return;
        }
    };
    for block in row.chunks_exact_mut(block_bytes) {
        for &at in places {
            block[at..at + 2].copy_from_slice(&one);
        }
    }
}

#[test]
fn a_token_has_the_same_product_in_every_batch() {
    let (rows, cols, tokens) = (21, 768, 7);
    let values = noise(cols * tokens, 11);
    for case in cases(rows, cols) {
        for level in Level::available() {
            let packed = Packed::new_at(level, case.layout, &case.bytes, rows, cols);
            let product = |values: &[f32]| {
                let mut out = vec![0.0f32; values.len() / cols * rows];
                packed.matmul(&Activations::quantize(values, cols, case.layout.activation_block()), &mut out);
                out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let whole = product(&values);
            for part in [1, 2, 3] {
                let parts: Vec<u32> = values.chunks(part * cols).flat_map(&product).collect();
                assert!(parts == whole, "{} {level:?} in parts of {part}", case.name);
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let (rows, cols, tokens) = (200, 512, 9);
    let activations = noise(cols * tokens, 5);
    for case in registered_cases(rows, cols) {
        let quantized = Activations::quantize(&activations, cols, case.layout.activation_block());
        let packed = Packed::new(case.layout, &case.bytes, rows, cols);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            let mut out = vec![0.0f32; tokens * rows];
            pool.install(|| packed.matmul(&quantized, &mut out));
            out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(3), "{}", case.name);
    }
}

#[test]
fn resident_bytes_are_close_to_the_files() {
    let (rows, cols) = (64, 4096);
    for case in cases(rows, cols) {
        let packed = Packed::new(case.layout, &case.bytes, rows, cols);
        let ratio = packed.resident_bytes() as f64 / case.bytes.len() as f64;
        let most = match case.layout {
            Layout::Int(int) if int.bits == 7 => 1.2,
            Layout::Q2K => 1.2,
            _ => 1.07,
        };
        assert!(ratio <= most, "{}: {ratio}", case.name);
    }
}
