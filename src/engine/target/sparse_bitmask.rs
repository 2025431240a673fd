//! compressed-tensors' `sparse-bitmask`: the weights that are not zero, and one bit a weight for where they stand.
//!
//! A matrix `M.weight` is stored as `M.compressed`, its values that are not zero, row by row; `M.bitmask`, a
//! row of `⌈columns/8⌉` bytes for each of its rows, lowest bit first; `M.row_offsets`, where each row's
//! values begin; and `M.shape`. `sparse-24-bitmask` has two values of every four columns, so that it needs no
//! offsets; it is read and not written. A file gets smaller by it and nothing else does: programs decompress it
//! when they load it, and no kernel multiplies it.
//!
//! Layouts: compressed-tensors 0.10 (Apache-2.0), whose own code made the reference of the tests. Later
//! versions dropped both.

use serde_json::{Value, json};

use super::parts::Part;
use crate::format::Dtype;

/// The name in `sparsity_config`.
pub const FORMAT: &str = "sparse-bitmask";

/// The name of the layout with two values of four.
pub const FORMAT_24: &str = "sparse-24-bitmask";

/// The version of compressed-tensors that files say they have.
const VERSION: &str = "0.10.2";

/// Bytes of one row of the mask.
pub fn mask_bytes(cols: usize) -> usize {
    cols.div_ceil(8)
}

/// True for types whose values can be left out: plain floats.
pub fn is_plain_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F16 | Dtype::Bf16 | Dtype::F32)
}

/// True if a little-endian float is not zero; minus zero is zero.
fn is_nonzero(value: &[u8]) -> bool {
    value.split_last().is_some_and(|(last, rest)| last & 0x7f != 0 || rest.iter().any(|byte| *byte != 0))
}

/// Values of a row of floats of `width` bytes that are not zero.
pub fn count_nonzero(row: &[u8], width: usize) -> usize {
    row.chunks_exact(width).filter(|value| is_nonzero(value)).count()
}

/// Appends the values of a row that are not zero, and its mask.
pub fn split_row(row: &[u8], width: usize, values: &mut Vec<u8>, mask: &mut Vec<u8>) {
    for eight in row.chunks(8 * width) {
        let mut bits = 0u8;
        for (bit, value) in eight.chunks_exact(width).enumerate() {
            if is_nonzero(value) {
                bits |= 1 << bit;
                values.extend_from_slice(value);
            }
        }
        mask.push(bits);
    }
}

/// Columns of `cols` that a row of the mask has values for.
pub fn count(mask: &[u8], cols: usize) -> usize {
    let (whole, rest) = (cols / 8, cols % 8);
    let bits: u32 = mask[..whole].iter().map(|byte| byte.count_ones()).sum();
    let last = if rest > 0 { (mask[whole] & ((1u16 << rest) - 1) as u8).count_ones() } else { 0 };
    (bits + last) as usize
}

/// Puts a row together; `values` are as many as [`count`] says, `out` is zero.
pub fn join_row(values: &[u8], mask: &[u8], width: usize, out: &mut [u8]) {
    let mut values = values.chunks_exact(width);
    for (column, out) in out.chunks_exact_mut(width).enumerate() {
        if mask[column / 8] >> (column % 8) & 1 == 1
            && let Some(value) = values.next()
        {
            out.copy_from_slice(value);
        }
    }
}

/// The parts of a matrix with `nonzero` values, in the order in which they are written.
pub fn parts(dtype: Dtype, rows: usize, cols: usize, nonzero: usize) -> [Part; 4] {
    [
        Part::new("compressed", dtype, &[nonzero]),
        Part::new("bitmask", Dtype::U8, &[rows, mask_bytes(cols)]),
        Part::new("row_offsets", Dtype::I64, &[rows]),
        Part::new("shape", Dtype::I64, &[2]),
    ]
}

/// Where the values of each row begin, and the shape: the last two of [`parts`].
pub fn offsets_and_shape(counts: &[u32], cols: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(counts.len() * 8 + 16);
    let mut offset = 0i64;
    for &count in counts {
        bytes.extend(offset.to_le_bytes());
        offset += i64::from(count);
    }
    for len in [counts.len(), cols] {
        bytes.extend((len as i64).to_le_bytes());
    }
    bytes
}

/// `quantization_config` of a folder whose linears, but for those `dense`, are stored so; `zeros` is their
/// share of zeros.
pub fn config(zeros: f64, dense: &[String]) -> Value {
    json!({
        "quant_method": "compressed-tensors",
        "version": VERSION,
        "sparsity_config": {
            "format": FORMAT,
            "global_sparsity": zeros,
            "ignore": dense,
            "sparsity_structure": "unstructured",
            "targets": ["Linear"],
        },
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_row_comes_back_from_its_mask_and_values(
            row in proptest::collection::vec(prop_oneof![Just(0.0f32), Just(-0.0f32), -2.0f32..2.0], 1..70),
        ) {
            let bytes: Vec<u8> = row.iter().flat_map(|value| value.to_le_bytes()).collect();
            let (mut values, mut mask) = (Vec::new(), Vec::new());
            split_row(&bytes, 4, &mut values, &mut mask);
            let nonzero = row.iter().filter(|value| **value != 0.0).count();
            prop_assert_eq!((mask.len(), values.len()), (mask_bytes(row.len()), 4 * nonzero));
            prop_assert_eq!((count(&mask, row.len()), count_nonzero(&bytes, 4)), (nonzero, nonzero));
            let mut back = vec![0; bytes.len()];
            join_row(&values, &mask, 4, &mut back);
            let back: Vec<f32> = back.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            prop_assert_eq!(back, row);
        }
    }

    #[test]
    fn bits_beyond_the_last_column_are_not_counted() {
        assert_eq!(count(&[0xff, 0xff], 11), 11);
        assert_eq!(count(&[0xff], 8), 8);
    }
}
