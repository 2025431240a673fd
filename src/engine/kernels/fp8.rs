//! 8-bit floats with a scale: e4m3 ("fn": no infinity, largest 448) and e5m2 (largest 57,344).
//!
//! Rounding is to nearest even, values beyond the largest become it, as compressed-tensors clamps
//! before it casts. Source: Micikevicius et al., "FP8 formats for deep learning", 2022.

use super::float;

/// Which 8-bit float.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fp8 {
    /// 4 bits of exponent, 3 of fraction.
    E4M3,
    /// 5 bits of exponent, 2 of fraction.
    E5M2,
}

impl Fp8 {
    /// The largest finite value.
    pub fn max(self) -> f32 {
        match self {
            Self::E4M3 => 448.0,
            Self::E5M2 => 57_344.0,
        }
    }

    /// The value of a byte.
    pub fn value(self, byte: u8) -> f32 {
        match self {
            Self::E4M3 => float::f8_e4m3_to_f32(byte),
            Self::E5M2 => float::f8_e5m2_to_f32(byte),
        }
    }

    /// The nearest byte; the largest for what lies beyond, NaN for NaN.
    pub fn encode(self, value: f32) -> u8 {
        let sign = (value.to_bits() >> 24) as u8 & 0x80;
        if value.is_nan() {
            return sign | 0x7f;
        }
        let size = value.abs().min(self.max());
        let (bias, fraction_bits) = match self {
            Self::E4M3 => (7, 3),
            Self::E5M2 => (15, 2),
        };
        // Below the smallest normal number steps are as wide as there.
        let exponent = ((size.to_bits() >> 23) as i32 - 127).max(1 - bias);
        let step = f32::from_bits(((exponent - fraction_bits + 127) as u32) << 23);
        let steps = (size / step).round_ties_even() as i32;
        // A fraction that rounds up to the next power of two carries into the exponent by itself.
        let code = ((exponent + bias - 1) << fraction_bits) + steps;
        sign | code as u8
    }

    /// The 256 values.
    pub fn table(self) -> [f32; 256] {
        std::array::from_fn(|byte| self.value(byte as u8))
    }

    /// The scale that brings the largest magnitude `most` to the largest value; where all is zero,
    /// f32's epsilon as in compressed-tensors.
    pub fn scale(self, most: f32) -> f32 {
        let scale = most / self.max();
        if scale == 0.0 { f32::EPSILON } else { scale }
    }
}

/// The largest finite magnitude.
pub fn most(values: &[f32]) -> f32 {
    let (low, high) = super::ints::range(values);
    high.max(-low)
}

/// Encodes values divided by `scale`.
pub fn encode(kind: Fp8, values: &[f32], scale: f32, out: &mut [u8]) {
    for (byte, &value) in out.iter_mut().zip(values) {
        *byte = kind.encode(value / scale);
    }
}

/// Decodes bytes through a table of [`Fp8::table`], times `scale`.
pub fn decode(table: &[f32; 256], bytes: &[u8], scale: f32, out: &mut [f32]) {
    for (value, &byte) in out.iter_mut().zip(bytes) {
        *value = table[usize::from(byte)] * scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    /// The byte of e5m2 by way of f16: the same number with its fraction cut to two bits.
    fn e5m2_of_half(value: f16) -> u8 {
        let bits = value.to_bits();
        let (kept, rest) = (bits >> 8, bits & 0xff);
        let up = rest > 0x80 || rest == 0x80 && kept & 1 == 1;
        (kept + u16::from(up)) as u8
    }

    #[test]
    fn every_value_is_its_own_nearest() {
        for kind in [Fp8::E4M3, Fp8::E5M2] {
            for byte in 0..=255u8 {
                let value = kind.value(byte);
                if value.is_finite() {
                    assert_eq!(kind.encode(value), byte, "{kind:?} {value}");
                }
            }
        }
    }

    #[test]
    fn between_two_values_the_even_one_wins_a_tie() {
        for kind in [Fp8::E4M3, Fp8::E5M2] {
            for byte in 0..0x7e {
                let (low, high) = (kind.value(byte), kind.value(byte + 1));
                if !high.is_finite() {
                    break;
                }
                let even = if byte % 2 == 0 { byte } else { byte + 1 };
                let middle = (low + high) / 2.0;
                assert_eq!(kind.encode(middle), even, "{kind:?} {middle}");
                assert_eq!(kind.encode(-middle), even | 0x80);
                assert_eq!(kind.encode(f32::from_bits(middle.to_bits() - 1)), byte);
                assert_eq!(kind.encode(f32::from_bits(middle.to_bits() + 1)), byte + 1);
            }
        }
    }

    #[test]
    fn what_is_too_large_becomes_the_largest() {
        assert_eq!(Fp8::E4M3.encode(1e30), 0x7e);
        assert_eq!(Fp8::E4M3.encode(f32::NEG_INFINITY), 0xfe);
        assert_eq!(Fp8::E5M2.encode(f32::INFINITY), 0x7b);
        assert!(Fp8::E4M3.value(Fp8::E4M3.encode(f32::NAN)).is_nan());
        assert!(Fp8::E5M2.value(Fp8::E5M2.encode(f32::NAN)).is_nan());
    }

    /// `tests/oracles/fp8_values.py`.
    #[test]
    fn values_and_rounding_are_those_of_ml_dtypes() {
        let fixture: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/fixtures/ml_dtypes_fp8.json")).expect("json");
        let numbers = |list: &serde_json::Value| -> Vec<u32> {
            let number = |value: &serde_json::Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
            list.as_array().expect("a list").iter().map(|value| number(value).expect("a number")).collect()
        };
        let inputs: Vec<f32> = numbers(&fixture["inputs"]).into_iter().map(f32::from_bits).collect();
        assert!(inputs.len() > 2000);
        for (kind, name) in [(Fp8::E4M3, "e4m3"), (Fp8::E5M2, "e5m2")] {
            let theirs = &fixture["types"][name];
            let values: Vec<f32> = numbers(&theirs["values"]).into_iter().map(f32::from_bits).collect();
            assert_eq!(values.len(), 256);
            for (byte, (ours, theirs)) in kind.table().into_iter().zip(values).enumerate() {
                assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{name} {byte:#x}");
            }
            let bytes = numbers(&theirs["bytes"]);
            assert_eq!(bytes.len(), inputs.len());
            for (&value, byte) in inputs.iter().zip(bytes) {
                assert_eq!(u32::from(kind.encode(value)), byte, "{name} {value:e}");
            }
        }
    }

    #[test]
    fn e5m2_rounds_as_an_f16_cut_in_half() {
        for bits in 0..0x7b80u16 {
            let value = f16::from_bits(bits);
            assert_eq!(Fp8::E5M2.encode(value.to_f32()), e5m2_of_half(value), "{value}");
        }
    }
}
