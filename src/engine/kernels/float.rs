//! Plain number types to f32 and back: f16, bf16, f64, fp8, integers, bool.

use half::slice::{HalfBitsSliceExt as _, HalfFloatSliceExt as _};
use half::{bf16, f16};

use super::multiversion;

/// The value of an fp8 e4m3 byte ("fn": no infinities, `0x7f` and `0xff` are NaN).
///
/// Source: Micikevicius et al., "FP8 formats for deep learning", 2022.
pub fn f8_e4m3_to_f32(byte: u8) -> f32 {
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    let exponent = i32::from(byte >> 3 & 0x0f);
    let mantissa = f32::from(byte & 0x07);
    if exponent == 15 && byte & 0x07 == 0x07 {
        f32::NAN
    } else if exponent == 0 {
        sign * mantissa * 2f32.powi(-9)
    } else {
        sign * (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7)
    }
}

/// The value of an fp8 e5m2 byte: the upper half of an f16.
pub fn f8_e5m2_to_f32(byte: u8) -> f32 {
    f16::from_bits(u16::from(byte) << 8).to_f32()
}

/// Reads little-endian f16 bytes; `source` is twice as long as `out`.
pub fn decode_f16(source: &[u8], out: &mut [f32]) {
    match bytemuck::try_cast_slice::<u8, u16>(source) {
        Ok(bits) if cfg!(target_endian = "little") => {
            bits.reinterpret_cast::<f16>().convert_to_f32_slice(out);
        }
        _ => {
            for (value, bytes) in out.iter_mut().zip(source.as_chunks::<2>().0) {
                *value = f16::from_le_bytes(*bytes).to_f32();
            }
        }
    }
}

#[inline(always)]
fn decode_bf16_body(source: &[u8], out: &mut [f32]) {
    for (value, bytes) in out.iter_mut().zip(source.as_chunks::<2>().0) {
        *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
    }
}

multiversion! {
    /// Reads little-endian bf16 bytes; `source` is twice as long as `out`.
    pub fn decode_bf16, decode_bf16_at(source: &[u8], out: &mut [f32]) => decode_bf16_body
}

/// Reads little-endian f32 bytes.
pub fn decode_f32(source: &[u8], out: &mut [f32]) {
    for (value, bytes) in out.iter_mut().zip(source.as_chunks::<4>().0) {
        *value = f32::from_le_bytes(*bytes);
    }
}

/// Writes f32 as little-endian bytes.
pub fn encode_f32(source: &[f32], out: &mut [u8]) {
    for (bytes, value) in out.as_chunks_mut::<4>().0.iter_mut().zip(source) {
        *bytes = value.to_le_bytes();
    }
}

/// Writes f16, rounded to nearest even; values beyond 65,504 become infinite.
pub fn encode_f16(source: &[f32], out: &mut [u8]) {
    let mut buffer = [f16::ZERO; 256];
    for (values, bytes) in source.chunks(256).zip(out.chunks_mut(512)) {
        let halves = &mut buffer[..values.len()];
        halves.convert_from_f32_slice(values);
        for (pair, half) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(halves) {
            *pair = half.to_le_bytes();
        }
    }
}

/// Writes bf16, rounded to nearest even.
pub fn encode_bf16(source: &[f32], out: &mut [u8]) {
    for (bytes, value) in out.as_chunks_mut::<2>().0.iter_mut().zip(source) {
        *bytes = bf16::from_f32(*value).to_le_bytes();
    }
}

/// Reads fixed-size little-endian elements through `convert`.
pub fn decode_with<const N: usize>(source: &[u8], out: &mut [f32], convert: impl Fn([u8; N]) -> f32) {
    for (value, bytes) in out.iter_mut().zip(source.as_chunks::<N>().0) {
        *value = convert(*bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fp8_has_the_values_of_the_paper() {
        assert_eq!(f8_e4m3_to_f32(0x7e), 448.0);
        assert_eq!(f8_e4m3_to_f32(0x01), 2f32.powi(-9));
        assert_eq!(f8_e4m3_to_f32(0xb8), -1.0);
        assert!(f8_e4m3_to_f32(0x7f).is_nan());
        assert_eq!(f8_e5m2_to_f32(0x7b), 57344.0);
        assert_eq!(f8_e5m2_to_f32(0x7c), f32::INFINITY);
        assert_eq!(f8_e5m2_to_f32(0x01), 2f32.powi(-16));
    }

    #[test]
    fn halves_round_trip_for_every_bit_pattern() {
        for bits in 0..=u16::MAX {
            let bytes = bits.to_le_bytes();
            let mut value = [0.0];
            let mut back = [0; 2];
            decode_f16(&bytes, &mut value);
            encode_f16(&value, &mut back);
            assert!(back == bytes || value[0].is_nan());
            decode_bf16(&bytes, &mut value);
            encode_bf16(&value, &mut back);
            assert!(back == bytes || value[0].is_nan());
        }
    }

    #[test]
    fn odd_addresses_decode_as_even_ones() {
        let bytes: Vec<u8> = (0..65).collect();
        let mut shifted = vec![0.0; 32];
        let mut aligned = vec![0.0; 32];
        decode_f16(&bytes[1..], &mut shifted);
        let copy: Vec<u8> = (1..65).collect();
        decode_f16(&copy, &mut aligned);
        assert_eq!(
            shifted.iter().map(|v| v.to_bits()).collect::<Vec<_>>(),
            aligned.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        );
    }
}
