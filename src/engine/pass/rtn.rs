//! Round to nearest: every row encoded by itself, its columns alike or weighted by importance.

use rayon::prelude::*;

use crate::error::{Fault, Result, Stage};
use crate::format::{self, Dtype, Encoding};

/// Brings whole rows of `from` bytes to `to` bytes, on every core; `how` tells of the first of them.
/// Answers how many of their weights are NaN or infinite.
///
/// # Errors
/// A type that cannot be decoded or encoded, or rows that do not fill whole blocks.
pub(super) fn convert(
    name: &str,
    from: Dtype,
    to: Dtype,
    how: &Encoding<'_>,
    source: &[u8],
    out: &mut Vec<u8>,
) -> Result<usize> {
    let row_len = how.row_len;
    let fault = |cause: String| Fault::new(Stage::Pass, cause).at(name.to_owned());
    let format = format::of_dtype(to)
        .filter(|format| format.is_encodable())
        .ok_or_else(|| fault(format!("{to} cannot be written by this version")))?;
    let in_bytes =
        from.row_bytes(row_len).ok_or_else(|| fault(format!("rows of {row_len} do not fill {from} blocks")))?;
    let out_bytes = to.row_bytes(row_len).ok_or_else(|| fault(format!("rows of {row_len} do not fill {to} blocks")))?;
    if in_bytes == 0 || out_bytes == 0 {
        out.clear();
        return Ok(0);
    }
    let rows = source.len() / in_bytes;
    out.clear();
    out.resize(rows * out_bytes, 0);
    let not_finite = source
        .par_chunks_exact(in_bytes)
        .zip(out.par_chunks_exact_mut(out_bytes))
        .enumerate()
        .map_init(
            || vec![0.0f32; row_len],
            |values, (row, (source, out))| {
                if !format::decode_row(from, source, values) {
                    return None;
                }
                format.encode_rows(values, &Encoding { first_row: how.first_row + row, ..*how }, out);
                Some(values.iter().filter(|value| !value.is_finite()).count())
            },
        )
        .try_reduce(|| 0, |a, b| Some(a + b));
    not_finite.ok_or_else(|| {
        fault(format!("{from} weights cannot be decoded by this version")).fix("keep this tensor as it is").into()
    })
}

/// How many of the weights in whole rows of a type are NaN or infinite; none of a type that cannot be decoded.
pub(super) fn count_not_finite(dtype: Dtype, row_len: usize, source: &[u8]) -> usize {
    let Some(row_bytes) = dtype.row_bytes(row_len).filter(|&bytes| bytes > 0) else { return 0 };
    let count = |values: &mut Vec<f32>, row: &[u8]| match dtype {
        // Beyond the range of f32 they are numbers all the same.
        Dtype::F64 => row.as_chunks::<8>().0.iter().filter(|&&bytes| !f64::from_le_bytes(bytes).is_finite()).count(),
        _ if format::decode_row(dtype, row, values) => values.iter().filter(|value| !value.is_finite()).count(),
        _ => 0,
    };
    source.par_chunks_exact(row_bytes).map_init(|| vec![0.0; row_len], count).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_do_not_depend_on_the_number_of_threads() {
        let values: Vec<u8> = (0..64 * 512u32).flat_map(|i| ((i % 977) as f32 - 400.0).to_le_bytes()).collect();
        let encode = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
            let mut out = Vec::new();
            pool.install(|| convert("t", Dtype::F32, Dtype::Q4K, &Encoding::plain(512), &values, &mut out))
                .expect("converts");
            out
        };
        assert_eq!(encode(1), encode(5));
    }

    #[test]
    fn weights_that_are_no_numbers_are_counted() {
        let mut values = vec![0.5f32; 4 * 256];
        values[3] = f32::NAN;
        values[700] = f32::NEG_INFINITY;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let mut out = Vec::new();
        let count = convert("t", Dtype::F32, Dtype::Q4K, &Encoding::plain(256), &bytes, &mut out).expect("converts");
        assert_eq!(count, 2);
    }

    #[test]
    fn weights_of_a_copy_are_counted_in_their_own_type() {
        let f64s: Vec<u8> =
            [1e300, f64::NAN, f64::INFINITY, -2.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(count_not_finite(Dtype::F64, 2, &f64s), 2);
        // f16: infinity, NaN, the largest number, −∞.
        let f16s: Vec<u8> = [0x7c00u16, 0x7e01, 0x7bff, 0xfc00].iter().flat_map(|bits| bits.to_le_bytes()).collect();
        assert_eq!(count_not_finite(Dtype::F16, 4, &f16s), 3);
        assert_eq!(count_not_finite(Dtype::I8, 4, &[0x7f, 0x80, 0, 1]), 0);
        // q8_0: a block with the scale NaN, and one of zeros.
        let mut block = [0u8; 68];
        block[..2].copy_from_slice(&0x7e00u16.to_le_bytes());
        assert_eq!(count_not_finite(Dtype::Q8_0, 64, &block), 32);
    }

    #[test]
    fn what_can_only_be_read_is_not_written() {
        let mut out = Vec::new();
        convert("t", Dtype::Iq2S, Dtype::F16, &Encoding::plain(256), &[0; 82], &mut out).expect("decodes");
        assert!(out == [0; 512]);
        let err =
            convert("t", Dtype::F16, Dtype::Iq2S, &Encoding::plain(256), &[0; 512], &mut out).expect_err("refused");
        assert!(err.to_string().contains("iq2_s cannot be written"), "{err}");
    }
}
