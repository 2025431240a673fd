//! nf4 and fp4: 64 weights share an absolute maximum, codes index a table of 16 values.
//!
//! Tables and rounding are those of bitsandbytes (`bitsandbytes/functional.py` and
//! `backends/default/ops.py`, MIT): a weight is divided by its block's maximum and takes the table's
//! nearest value, the lower one at the middle between two. Of two codes that share a byte the first
//! is in the high nibble. With double quantization the maxima, less their mean, are themselves 8-bit
//! codes of a table of 256 values, 256 maxima sharing one more maximum. Source: Dettmers et al.,
//! "QLoRA", 2023, and "8-bit optimizers via block-wise quantization", 2021.

use super::multiversion;

/// Weights that share a maximum.
pub const BLOCK: usize = 64;

/// Maxima that share a maximum under double quantization.
pub const NESTED_BLOCK: usize = 256;

/// Which table of 16 values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// Quantiles of the normal distribution.
    Nf4,
    /// A 4-bit float: sign, two bits of exponent, one of fraction.
    Fp4,
}

const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

const FP4: [f32; 16] = [
    0.0,
    0.0625 / 12.0,
    8.0 / 12.0,
    1.0,
    4.0 / 12.0,
    6.0 / 12.0,
    2.0 / 12.0,
    3.0 / 12.0,
    // bitsandbytes' second zero has no sign.
    0.0,
    -0.0625 / 12.0,
    -8.0 / 12.0,
    -1.0,
    -4.0 / 12.0,
    -6.0 / 12.0,
    -2.0 / 12.0,
    -3.0 / 12.0,
];

impl Table {
    /// The values by their codes.
    pub fn values(self) -> &'static [f32; 16] {
        match self {
            Self::Nf4 => &NF4,
            Self::Fp4 => &FP4,
        }
    }

    /// Codes by rising value; of fp4's two zeros the positive first, so that 0 is code 8's upper neighbour.
    pub(crate) fn order(self) -> [u8; 16] {
        match self {
            Self::Nf4 => std::array::from_fn(|at| at as u8),
            Self::Fp4 => [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3],
        }
    }

    /// The middles between neighbours of [`Table::order`].
    pub(crate) fn bounds(self) -> [f32; 15] {
        let (values, order) = (self.values(), self.order());
        std::array::from_fn(|at| (values[usize::from(order[at])] + values[usize::from(order[at + 1])]) / 2.0)
    }
}

/// Counts the bounds below each weight of a block.
#[inline(always)]
fn buckets_body(values: &[f32], inverse: f32, bounds: &[f32; 15], out: &mut [u8; BLOCK]) {
    for (bucket, &value) in out.iter_mut().zip(values) {
        let scaled = value * inverse;
        let scaled = if scaled.is_nan() { 0.0 } else { scaled };
        let scaled = scaled.clamp(-1.0, 1.0);
        *bucket = bounds.iter().fold(0, |count, &bound| count + u8::from(bound < scaled));
    }
}

multiversion! {
    pub(super) fn buckets, buckets_at(values: &[f32], inverse: f32, bounds: &[f32; 15], out: &mut [u8; BLOCK]) => buckets_body
}

/// Encodes whole blocks of 64 weights: 32 bytes of codes for each, and its maximum.
///
/// NaN takes the code of 0; infinities do not stretch the block.
pub fn encode(table: Table, values: &[f32], codes: &mut [u8], maxima: &mut [f32]) {
    let (order, bounds) = (table.order(), table.bounds());
    let mut found = [0u8; BLOCK];
    for ((values, bytes), most) in values.chunks(BLOCK).zip(codes.chunks_mut(BLOCK / 2)).zip(maxima) {
        *most = super::fp8::most(values);
        buckets(values, 1.0 / most.max(1e-38), &bounds, &mut found);
        for (byte, pair) in bytes.iter_mut().zip(found.as_chunks::<2>().0) {
            *byte = order[usize::from(pair[0])] << 4 | order[usize::from(pair[1])];
        }
    }
}

/// Decodes whole blocks of 64 weights.
pub fn decode(table: Table, codes: &[u8], maxima: impl Iterator<Item = f32>, out: &mut [f32]) {
    let values = table.values();
    for ((values_out, bytes), most) in out.chunks_mut(BLOCK).zip(codes.chunks(BLOCK / 2)).zip(maxima) {
        for (pair, &byte) in values_out.chunks_mut(2).zip(bytes) {
            pair[0] = values[usize::from(byte >> 4)] * most;
            if let Some(second) = pair.get_mut(1) {
                *second = values[usize::from(byte & 15)] * most;
            }
        }
    }
}

/// Maxima stored in 8 bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Nested {
    /// One code a block of weights.
    pub codes: Vec<u8>,
    /// One maximum for 256 codes.
    pub maxima: Vec<f32>,
    /// The mean of the maxima, taken off before they are coded.
    pub offset: f32,
    /// The values of the codes, rising.
    pub table: Vec<f32>,
}

/// The 256 values of bitsandbytes' signed dynamic map, rising (`create_dynamic_map`): seven decades,
/// each cut evenly into more values than the one below.
pub fn dynamic_map() -> Vec<f32> {
    let mut values = vec![0.0, 1.0];
    for (decade, power) in [1e-6f32, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0].into_iter().enumerate() {
        let count = 1usize << decade;
        // torch.linspace(0.1, 1, count + 1): from both ends, multiplied and added in one rounding.
        let step = (1.0f32 - 0.1) / count as f32;
        let edge = |at: usize| match at < count.div_ceil(2) {
            true => step.mul_add(at as f32, 0.1),
            false => (-step).mul_add((count - at) as f32, 1.0),
        };
        for at in 0..count {
            let mean = (edge(at) + edge(at + 1)) / 2.0;
            values.extend([power * mean, -(power * mean)]);
        }
    }
    values.sort_by(f32::total_cmp);
    values
}

impl Nested {
    /// Codes all maxima of a tensor, in their order.
    pub fn of(maxima: &[f32]) -> Self {
        let sum: f64 = maxima.iter().map(|&most| f64::from(most)).sum();
        let offset = (sum / maxima.len().max(1) as f64) as f32;
        let table = dynamic_map();
        let bounds: Vec<f32> = table.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0).collect();
        let mut nested = Self { codes: Vec::with_capacity(maxima.len()), maxima: Vec::new(), offset, table };
        for block in maxima.chunks(NESTED_BLOCK) {
            let most = block.iter().fold(0.0f32, |most, value| most.max((value - offset).abs()));
            let inverse = 1.0 / most.max(1e-38);
            nested.maxima.push(most);
            nested.codes.extend(block.iter().map(|value| {
                let scaled = ((value - offset) * inverse).clamp(-1.0, 1.0);
                bounds.partition_point(|&bound| bound < scaled) as u8
            }));
        }
        nested
    }

    /// The maximum of block `index` as it comes back; 0 beyond the last.
    pub fn value(&self, index: usize) -> f32 {
        let code = self.codes.get(index).copied().unwrap_or(0);
        let value = self.table.get(usize::from(code)).copied().unwrap_or(0.0);
        let most = self.maxima.get(index / NESTED_BLOCK).copied().unwrap_or(0.0);
        value * most + self.offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_tables_are_in_order_and_find_their_own_values() {
        for table in [Table::Nf4, Table::Fp4] {
            let order = table.order();
            let sorted: Vec<f32> = order.iter().map(|&code| table.values()[usize::from(code)]).collect();
            assert!(sorted.is_sorted(), "{sorted:?}");
            let mut values = [0.0; BLOCK];
            values[..16].copy_from_slice(table.values());
            let (mut codes, mut maxima) = ([0; 32], [0.0]);
            encode(table, &values, &mut codes, &mut maxima);
            let mut back = [0.0; BLOCK];
            decode(table, &codes, maxima.into_iter(), &mut back);
            assert_eq!((back, maxima), (values, [1.0]));
        }
    }

    #[test]
    fn the_dynamic_map_has_256_values_between_minus_one_and_one() {
        let map = dynamic_map();
        assert_eq!(map.len(), 256);
        assert!(map.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!((map[127], map[255]), (0.0, 1.0));
        assert!((map[0] + 0.992_968_74).abs() < 1e-6, "{}", map[0]);
    }

    #[test]
    fn hostile_blocks_encode_to_numbers() {
        let mut values = [0.5; BLOCK];
        values[..4].copy_from_slice(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-44]);
        let (mut codes, mut maxima) = ([0; 32], [0.0]);
        encode(Table::Nf4, &values, &mut codes, &mut maxima);
        let mut back = [0.0; BLOCK];
        decode(Table::Nf4, &codes, maxima.into_iter(), &mut back);
        assert_eq!(back[..5], [0.0, 0.5, -0.5, 0.0, 0.5]);
        encode(Table::Fp4, &[0.0; BLOCK], &mut codes, &mut maxima);
        decode(Table::Fp4, &codes, maxima.into_iter(), &mut back);
        assert!(back.iter().all(|value| *value == 0.0));
    }

    proptest! {
        #[test]
        fn nested_maxima_come_back_within_a_hundredth_of_the_spread(
            maxima in prop::collection::vec(0.0f32..3.0, 1..600),
        ) {
            let nested = Nested::of(&maxima);
            for (index, most) in maxima.iter().enumerate() {
                prop_assert!((nested.value(index) - most).abs() <= 0.03 * 3.0 * 0.5, "{} {}", nested.value(index), most);
            }
        }
    }
}
