//! Reading tq1_0, tq2_0, q1_0, q2_0, nvfp4, and the two formats that ggml makes of activations, q8_1
//! and q8_k.
//!
//! Layouts and the order of operations are ggml's `dequantize_row_*` (`ggml-quants.c`,
//! `ggml-impl.h`, MIT).

use super::legacy::{half_at, word_at};
use super::nonlinear::FP4_DOUBLED;

/// The trit that byte `byte` holds at place `place` of five, less one.
fn trit(byte: u8, place: usize) -> f32 {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    let shifted = byte.wrapping_mul(POWERS[place]);
    f32::from((u16::from(shifted) * 3) >> 8) - 1.0
}

/// Decodes whole tq1_0 blocks: 54 bytes for 256 weights, five to a byte.
pub fn decode_tq1_0(source: &[u8], out: &mut [f32]) {
    for (block, values) in source.as_chunks::<54>().0.iter().zip(out.as_chunks_mut::<256>().0) {
        let d = half_at(block, 52);
        for (at, value) in values.iter_mut().enumerate() {
            // 32 bytes hold 160 weights, 16 hold 80, and four hold the last 16, four each.
            let (byte, place) = match at {
                0..160 => (at % 32, at / 32),
                160..240 => (32 + at % 16, (at - 160) / 16),
                _ => (48 + at % 4, (at - 240) / 4),
            };
            *value = trit(block[byte], place) * d;
        }
    }
}

/// Decodes whole tq2_0 blocks: 66 bytes for 256 weights.
pub fn decode_tq2_0(source: &[u8], out: &mut [f32]) {
    for (block, values) in source.as_chunks::<66>().0.iter().zip(out.as_chunks_mut::<256>().0) {
        let d = half_at(block, 64);
        for (at, value) in values.iter_mut().enumerate() {
            let code = block[at / 128 * 32 + at % 32] >> (2 * (at / 32 % 4)) & 3;
            *value = (f32::from(code) - 1.0) * d;
        }
    }
}

/// Decodes whole q1_0 blocks: 18 bytes for 128 weights, a sign each.
pub fn decode_q1_0(source: &[u8], out: &mut [f32]) {
    for (block, values) in source.as_chunks::<18>().0.iter().zip(out.as_chunks_mut::<128>().0) {
        let d = half_at(block, 0);
        for (at, value) in values.iter_mut().enumerate() {
            *value = if block[2 + at / 8] >> (at % 8) & 1 == 1 { d } else { -d };
        }
    }
}

/// Decodes whole q2_0 blocks: 18 bytes for 64 weights of −1, 0, 1 or 2 scales.
pub fn decode_q2_0(source: &[u8], out: &mut [f32]) {
    for (block, values) in source.as_chunks::<18>().0.iter().zip(out.as_chunks_mut::<64>().0) {
        let d = half_at(block, 0);
        for (at, value) in values.iter_mut().enumerate() {
            let code = block[2 + at / 4] >> (2 * (at % 4)) & 3;
            *value = (f32::from(code) - 1.0) * d;
        }
    }
}

/// Half the value of an unsigned e4m3 byte, so that it goes with [`FP4_DOUBLED`]; the sign bit is ignored.
fn ue4m3_half(byte: u8) -> f32 {
    if byte == 0 || byte == 0x7f {
        return 0.0;
    }
    let (exponent, mantissa) = (i32::from(byte >> 3 & 0x0f), f32::from(byte & 7));
    if exponent == 0 { mantissa * 2f32.powi(-10) } else { (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 8) }
}

/// Decodes whole nvfp4 blocks: 36 bytes for 64 weights in four runs of 16.
pub fn decode_nvfp4(source: &[u8], out: &mut [f32]) {
    for (block, values) in source.as_chunks::<36>().0.iter().zip(out.as_chunks_mut::<64>().0) {
        for (run, values) in values.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let d = ue4m3_half(block[run]);
            for (at, value) in values.iter_mut().enumerate() {
                let code = block[4 + run * 8 + at % 8] >> (4 * (at / 8)) & 0x0f;
                *value = f32::from(FP4_DOUBLED[usize::from(code)]) * d;
            }
        }
    }
}

/// Decodes whole q8_1 blocks: 36 bytes for 32 weights; the stored sum is not needed.
pub fn decode_q8_1(source: &[u8], out: &mut [f32]) {
    for (block, values) in source.as_chunks::<36>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        let d = half_at(block, 0);
        for (value, &code) in values.iter_mut().zip(&block[4..]) {
            *value = f32::from(code as i8) * d;
        }
    }
}

/// Decodes whole q8_k blocks: 292 bytes for 256 weights under one f32; the stored sums are not needed.
pub fn decode_q8_k(source: &[u8], out: &mut [f32]) {
    for (block, values) in source.as_chunks::<292>().0.iter().zip(out.as_chunks_mut::<256>().0) {
        let d = f32::from_bits(word_at(block, 0));
        for (value, &code) in values.iter_mut().zip(&block[4..260]) {
            *value = d * f32::from(code as i8);
        }
    }
}
