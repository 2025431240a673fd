//! Every function that is compiled both plainly and with AVX2: the same bits at every level of this CPU.
//!
//! On a CPU with AVX2 the plain build runs here and nowhere else. Lengths leave a rest behind whole vectors.

use super::activations::Activations;
use super::ints::Grid;
use super::moments::{BINS, Scale};
use super::{Level, bits_of, bnb, counts, float, ints, kquants, legacy, moments, nonlinear, ops, same_at_every_level};

/// Numbers without end between 0 and 2³², the same in every run (xorshift, Marsaglia 2003).
fn random(seed: u32) -> impl Iterator<Item = u32> {
    std::iter::successors(Some(seed | 1), |&state| {
        let state = state ^ state << 13;
        let state = state ^ state >> 17;
        Some(state ^ state << 5)
    })
}

/// Values between −4 and 4, some of them zero.
fn values(len: usize, seed: u32) -> Vec<f32> {
    let value =
        |state: u32| if state.is_multiple_of(11) { 0.0 } else { (f64::from(state) / 536_870_912.0 - 4.0) as f32 };
    random(seed).skip(3).take(len).map(value).collect()
}

fn bytes(len: usize, seed: u32) -> Vec<u8> {
    random(seed).skip(3).take(len).map(|state| (state >> 11) as u8).collect()
}

/// What `fill` leaves in `len` values.
fn filled(len: usize, fill: impl FnOnce(&mut [f32])) -> Vec<u32> {
    let mut out = vec![7.0; len];
    fill(&mut out);
    bits_of(&out)
}

#[test]
fn moments_and_histograms() {
    for len in [0, 5, 16, 1003] {
        let mut source = values(len, 1);
        let scale = Scale { lo: -3.0, hi: 3.5, mean: 0.25, limits: [0.5, 1.0, 3.0] };
        same_at_every_level(|level| moments::powers_at(level, &source, 0.25).map(f64::to_bits));
        same_at_every_level(|level| {
            let (mut beyond, mut bins) = ([1; 3], vec![2; BINS]);
            moments::count_at(level, &source, &scale, &mut beyond, &mut bins);
            (beyond, bins)
        });
        for special in [0.0, f32::NAN, f32::INFINITY] {
            if let Some(value) = source.get_mut(2) {
                *value = special;
            }
            same_at_every_level(|level| {
                let found = moments::survey_at(level, &source);
                (found.sum.to_bits(), found)
            });
        }
    }
}

#[test]
fn ranges_of_integer_keys() {
    for len in [0, 1, 62, 64, 333] {
        let source = bytes(len, 2);
        for (magnitude, always) in [(i16::MAX, 0), (0, 0), (0, i16::MIN)] {
            same_at_every_level(|level| counts::extremes16_at(level, &source, magnitude, always));
        }
        for (magnitude, always) in [(i8::MAX, 0), (0, 0), (0, i8::MIN)] {
            same_at_every_level(|level| counts::extremes8_at(level, &source, magnitude, always));
        }
    }
}

#[test]
fn operations_on_rows() {
    for width in [1, 16, 37, 128] {
        let (x, y) = (values(3 * width, 3), values(3 * width, 4));
        same_at_every_level(|level| filled(3 * width, |out| ops::rms_norm_rows_at(level, &x, &y[..width], 1e-5, out)));
        same_at_every_level(|level| {
            filled(3 * width, |out| {
                out.copy_from_slice(&x);
                ops::silu_mul_run_at(level, out, &y);
            })
        });
        same_at_every_level(|level| {
            filled(3 * width, |out| {
                out.copy_from_slice(&x);
                ops::add_run_at(level, out, &y);
            })
        });
        let half = width / 2;
        let head = (2 * half).max(2);
        let (cos, sin): (Vec<f32>, Vec<f32>) = y.iter().map(|angle| (angle.cos(), angle.sin())).unzip();
        same_at_every_level(|level| {
            filled(3 * width, |out| {
                out.copy_from_slice(&x);
                ops::rope_token_at(level, out, head, &cos[..head / 2], &sin[..head / 2]);
            })
        });
    }
}

#[test]
fn logits() {
    for len in [1, 255, 256, 777] {
        let (base, other) = (values(len, 5), values(len, 6));
        same_at_every_level(|level| ops::log_sum_exp_at(level, &base).to_bits());
        let (base_lse, other_lse) = (ops::log_sum_exp(&base), ops::log_sum_exp(&other));
        same_at_every_level(|level| ops::kl_divergence_at(level, &base, base_lse, &other, other_lse).to_bits());
    }
}

#[test]
fn integer_groups() {
    for len in [1, 8, 61, 128] {
        let (mut source, weights) = (values(len, 7), values(len, 8));
        let grid = Grid { scale: 0.37, zero: 6 };
        for special in [0.0, f32::NAN, f32::NEG_INFINITY] {
            source[0] = special;
            same_at_every_level(|level| {
                let (low, high) = ints::range_at(level, &source);
                bits_of(&[low, high])
            });
            same_at_every_level(|level| {
                let mut codes = vec![99; len];
                ints::quantize_at(level, &source, grid, 15.0, &mut codes);
                codes
            });
            for weights in [&[][..], &weights] {
                same_at_every_level(|level| ints::error_at(level, &source, weights, grid, 15.0).to_bits());
            }
        }
        let codes = bytes(len, 9);
        same_at_every_level(|level| filled(len, |out| ints::dequantize_at(level, &codes, 0.37, 6, out)));
    }
}

type Unpack = fn(Level, &[u8], &mut [u8]);

#[test]
fn codes_of_ggml_blocks() {
    let kinds: [(usize, usize, Unpack); 10] = [
        (32, 18, legacy::codes_q4_0_at),
        (32, 20, legacy::codes_q4_1_at),
        (32, 22, legacy::codes_q5_0_at),
        (32, 24, legacy::codes_q5_1_at),
        (32, 34, legacy::codes_q8_0_at),
        (256, 84, kquants::codes_q2_k_at),
        (256, 110, kquants::codes_q3_k_at),
        (256, 144, kquants::codes_q4_k_at),
        (256, 176, kquants::codes_q5_k_at),
        (256, 210, kquants::codes_q6_k_at),
    ];
    for (len, size, unpack) in kinds {
        let source = bytes(3 * size, 10);
        same_at_every_level(|level| {
            let mut codes = vec![255; 3 * len];
            unpack(level, &source, &mut codes);
            codes
        });
    }
}

type Decode = fn(Level, &[u8], &mut [f32]);

#[test]
fn values_of_tables_and_of_bf16() {
    let kinds: [(usize, usize, Decode); 4] = [
        (32, 18, nonlinear::decode_iq4_nl_at),
        (256, 136, nonlinear::decode_iq4_xs_at),
        (32, 17, nonlinear::decode_mxfp4_at),
        (1, 2, float::decode_bf16_at),
    ];
    for (len, size, decode) in kinds {
        // Bytes below 0x70 keep every scale finite: the bits of a product with no number are nobody's promise.
        let source: Vec<u8> = bytes(37 * size, 11).into_iter().map(|byte| byte % 0x70).collect();
        same_at_every_level(|level| filled(37 * len, |out| decode(level, &source, out)));
    }
}

#[test]
fn buckets_of_a_table() {
    for table in [bnb::Table::Nf4, bnb::Table::Fp4] {
        let mut source = values(bnb::BLOCK, 12);
        source[..3].copy_from_slice(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
        same_at_every_level(|level| {
            let mut found = [99; bnb::BLOCK];
            bnb::buckets_at(level, &source, 0.25, &table.bounds(), &mut found);
            found
        });
    }
}

#[test]
fn codes_of_activations() {
    for (width, block) in [(512, 32), (288, 32), (512, 256)] {
        for rows in [1, 3, 7] {
            let source = values(rows * width, 13);
            same_at_every_level(|level| Activations::quantize_at(level, &source, width, block));
        }
    }
}
