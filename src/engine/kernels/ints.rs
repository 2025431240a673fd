//! Integer groups: unsigned codes of 2 to 8 bits that share a scale and, if asymmetric, a zero.
//!
//! A weight is `scale × (code − zero)`; a symmetric group's zero is `2^(bits−1)`. The plain choice of
//! scale is compressed-tensors' (`quantization/utils/helpers.py`, `calculate_qparams`, Apache-2.0):
//! the range is widened to include 0; symmetric `max|w| / ((2^bits − 1) / 2)`, asymmetric
//! `(max − min) / (2^bits − 1)` with the zero rounded from the scale before that is rounded to its
//! own type. GPTQ's and AWQ's own quantizers choose `max|w| / (2^(bits−1) − 1)` or search; their
//! files hold any scale.
//!
//! NaN gets the code of zero; infinities do not stretch the range and get the outermost code.

use half::{bf16, f16};

use super::{bits, multiversion};

/// How scales are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ScaleType {
    /// IEEE half.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// Single precision.
    F32,
}

impl ScaleType {
    /// Every type of scale.
    pub const ALL: [Self; 3] = [Self::F16, Self::Bf16, Self::F32];

    /// Bytes of one scale.
    pub fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    /// The nearest value of this type, at most its largest finite one; a scale that becomes zero
    /// is the type's epsilon instead, as in compressed-tensors, so that nothing divides by it.
    pub fn round(self, scale: f32) -> f32 {
        let (rounded, most, epsilon) = match self {
            Self::F16 => (f16::from_f32(scale).to_f32(), f16::MAX.to_f32(), f16::EPSILON.to_f32()),
            Self::Bf16 => (bf16::from_f32(scale).to_f32(), bf16::MAX.to_f32(), bf16::EPSILON.to_f32()),
            Self::F32 => (scale, f32::MAX, f32::EPSILON),
        };
        if rounded == 0.0 || rounded.is_nan() { epsilon } else { rounded.min(most) }
    }

    /// Writes a scale that has this type's value.
    pub fn write(self, scale: f32, out: &mut [u8]) {
        match self {
            Self::F16 => out.copy_from_slice(&f16::from_f32(scale).to_le_bytes()),
            Self::Bf16 => out.copy_from_slice(&bf16::from_f32(scale).to_le_bytes()),
            Self::F32 => out.copy_from_slice(&scale.to_le_bytes()),
        }
    }

    /// Reads scale number `index` of a list.
    #[inline(always)]
    pub fn read(self, list: &[u8], index: usize) -> f32 {
        match self {
            Self::F16 => f16::from_le_bytes([list[index * 2], list[index * 2 + 1]]).to_f32(),
            Self::Bf16 => bf16::from_le_bytes([list[index * 2], list[index * 2 + 1]]).to_f32(),
            Self::F32 => {
                let at = index * 4;
                f32::from_le_bytes([list[at], list[at + 1], list[at + 2], list[at + 3]])
            }
        }
    }
}

/// How the scale of a group is found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum ScaleChoice {
    /// From the largest magnitude, or from minimum and maximum: nothing is clipped.
    #[default]
    AbsMax,
    /// From the magnitude that this share of the group (in percent, 0 to 100) does not exceed;
    /// the rest is clipped.
    Percentile(f32),
    /// The range that, shrunk in steps of 1 % down to a fifth, gives the least squared error,
    /// weighted by importance where it is known.
    LeastSquares,
}

/// Width and symmetry of the codes, and the type of the scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codes {
    /// Bits of a code, 2 to 8.
    pub bits: u32,
    /// True if zero is fixed in the middle.
    pub symmetric: bool,
    /// How scales are stored.
    pub scale: ScaleType,
}

/// Scale and zero of one group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    /// Width of a step, positive, a value of the scale's type.
    pub scale: f32,
    /// The code of 0.
    pub zero: u8,
}

/// Smallest and largest finite value, 0 among them.
#[inline(always)]
fn range_body(values: &[f32]) -> (f32, f32) {
    let (mut low, mut high) = ([0.0f32; 8], [0.0f32; 8]);
    let (chunks, rest) = values.as_chunks::<8>();
    for chunk in chunks {
        for lane in 0..8 {
            let value = if chunk[lane].is_finite() { chunk[lane] } else { 0.0 };
            low[lane] = if value < low[lane] { value } else { low[lane] };
            high[lane] = if value > high[lane] { value } else { high[lane] };
        }
    }
    for &value in rest.iter().filter(|value| value.is_finite()) {
        low[0] = low[0].min(value);
        high[0] = high[0].max(value);
    }
    (low.into_iter().fold(0.0, f32::min), high.into_iter().fold(0.0, f32::max))
}

multiversion! {
    /// Smallest and largest finite value, 0 among them.
    pub fn range, range_at(values: &[f32]) -> (f32, f32) => range_body
}

/// Added to a small number, it leaves the nearest whole number in the lowest bits (ties to even).
const ROUNDER: f32 = 12_582_912.0;

/// The code of a value, as [`ROUNDER`] plus the code.
#[inline(always)]
fn rounded(value: f32, scale: f32, zero: f32, top: f32) -> f32 {
    let moved = value / scale + zero;
    let moved = if moved.is_nan() { zero } else { moved };
    moved.clamp(0.0, top) + ROUNDER
}

#[inline(always)]
fn quantize_body(values: &[f32], grid: Grid, top: f32, out: &mut [u8]) {
    let zero = f32::from(grid.zero);
    for (code, &value) in out.iter_mut().zip(values) {
        *code = rounded(value, grid.scale, zero, top).to_bits() as u8;
    }
}

multiversion! {
    /// Codes of `values` on a grid, at most `top`.
    pub(super) fn quantize, quantize_at(values: &[f32], grid: Grid, top: f32, out: &mut [u8]) => quantize_body
}

/// Squared error of a group on a grid, each weighted; sums in eight lanes, so that the order is fixed.
#[inline(always)]
fn error_body(values: &[f32], weights: &[f32], grid: Grid, top: f32) -> f32 {
    let zero = f32::from(grid.zero);
    let mut lanes = [0.0f32; 8];
    let mut add = |lane: usize, value: f32, weight: f32| {
        let back = grid.scale * (rounded(value, grid.scale, zero, top) - ROUNDER - zero);
        let error = value - back;
        lanes[lane] += if value.is_finite() { weight * error * error } else { 0.0 };
    };
    let (chunks, rest) = values.as_chunks::<8>();
    if weights.is_empty() {
        for chunk in chunks {
            for (lane, &value) in chunk.iter().enumerate() {
                add(lane, value, 1.0);
            }
        }
        for &value in rest {
            add(0, value, 1.0);
        }
    } else {
        let (weight_chunks, weight_rest) = weights.as_chunks::<8>();
        for (chunk, weights) in chunks.iter().zip(weight_chunks) {
            for lane in 0..8 {
                add(lane, chunk[lane], weights[lane]);
            }
        }
        for (&value, &weight) in rest.iter().zip(weight_rest) {
            add(0, value, weight);
        }
    }
    lanes.iter().sum()
}

multiversion! {
    pub(super) fn error, error_at(values: &[f32], weights: &[f32], grid: Grid, top: f32) -> f32 => error_body
}

impl Codes {
    /// The largest code.
    pub fn top(self) -> u8 {
        (0xffu32 >> (8 - self.bits)) as u8
    }

    /// The code of zero in a symmetric group.
    pub fn middle(self) -> u8 {
        1 << (self.bits - 1)
    }

    /// The grid that spans `low ..= high` (with 0 inside) without clipping.
    pub fn grid(self, low: f32, high: f32) -> Grid {
        let steps = f32::from(self.top());
        let most = high.max(-low);
        if self.symmetric {
            return Grid { scale: self.scale.round(most / (steps / 2.0)), zero: self.middle() };
        }
        // Halved first: the distance of two huge values is not finite.
        let scale = (high / 2.0 - low / 2.0) / steps * 2.0;
        let zero = if scale > 0.0 {
            (-low / scale - f32::from(self.middle())).round_ties_even() + f32::from(self.middle())
        } else {
            f32::from(self.middle())
        };
        Grid { scale: self.scale.round(scale), zero: zero.clamp(0.0, steps) as u8 }
    }

    /// The grid of one group under a choice of scale; `weights` is empty or one per value.
    pub fn choose(self, values: &[f32], weights: &[f32], choice: ScaleChoice) -> Grid {
        let (low, high) = range(values);
        let plain = self.grid(low, high);
        match choice {
            ScaleChoice::AbsMax => plain,
            ScaleChoice::Percentile(percent) => {
                let most = percentile(values, percent);
                self.grid(low.max(-most), high.min(most))
            }
            ScaleChoice::LeastSquares => {
                let top = f32::from(self.top());
                let (mut best, mut least) = (plain, error(values, weights, plain, top));
                let mut at = 100;
                let mut attempt = |percent: i32, at: &mut i32| {
                    let share = percent as f32 / 100.0;
                    let grid = self.grid(low * share, high * share);
                    let sum = error(values, weights, grid, top);
                    if sum < least {
                        (best, least, *at) = (grid, sum, percent);
                    }
                };
                // Every third step first, then the neighbours of the best.
                for step in 1..=26 {
                    attempt(100 - 3 * step, &mut at);
                }
                let centre = at;
                for percent in [centre - 2, centre - 1, centre + 1, centre + 2] {
                    if (20..100).contains(&percent) {
                        attempt(percent, &mut at);
                    }
                }
                best
            }
        }
    }

    /// The value of the grid that is nearest to `value`, as [`Codes::quantize`] chooses it.
    pub fn nearest(self, value: f32, grid: Grid) -> f32 {
        let zero = f32::from(grid.zero);
        grid.scale * (rounded(value, grid.scale, zero, f32::from(self.top())) - ROUNDER - zero)
    }

    /// Codes of `values` on `grid`, one a byte.
    pub fn quantize(self, values: &[f32], grid: Grid, out: &mut [u8]) {
        quantize(values, grid, f32::from(self.top()), out);
    }
}

/// Where a percentile lies among `count` values in order of size: the index below, and how far it is to the next.
pub fn percentile_place(count: usize, percent: f32) -> (usize, f64) {
    let place = f64::from(percent.clamp(0.0, 100.0)) / 100.0 * count.saturating_sub(1) as f64;
    (place.floor() as usize, place - place.floor())
}

/// The magnitude that `percent` of the finite values do not exceed, between two of them linearly.
fn percentile(values: &[f32], percent: f32) -> f32 {
    let mut sizes: Vec<f32> = values.iter().filter(|value| value.is_finite()).map(|value| value.abs()).collect();
    if sizes.is_empty() {
        return 0.0;
    }
    let (below, part) = percentile_place(sizes.len(), percent);
    let (_, &mut lower, above) = sizes.select_nth_unstable_by(below, f32::total_cmp);
    let upper = above.iter().copied().fold(f32::INFINITY, f32::min);
    if upper.is_finite() { lower + (part * f64::from(upper - lower)) as f32 } else { lower }
}

#[inline(always)]
fn dequantize_body(codes: &[u8], scale: f32, zero: u8, out: &mut [f32]) {
    let zero = i32::from(zero);
    for (value, &code) in out.iter_mut().zip(codes) {
        *value = scale * (i32::from(code) - zero) as f32;
    }
}

multiversion! {
    /// Values of one group's codes.
    pub fn dequantize, dequantize_at(codes: &[u8], scale: f32, zero: u8, out: &mut [f32]) => dequantize_body
}

/// Where the parts of a canonical row begin: a dense stream of codes, a scale per group, and, if
/// asymmetric, one byte per group with its zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowParts {
    /// Weights of a group; the last may have fewer.
    pub group: usize,
    /// Number of groups.
    pub groups: usize,
    /// First byte of the scales.
    pub scales_at: usize,
    /// First byte of the zeros.
    pub zeros_at: usize,
    /// Bytes of the row.
    pub bytes: usize,
}

impl Codes {
    /// The parts of a row of `len` weights in groups of `group`.
    pub fn row_parts(self, len: usize, group: usize) -> RowParts {
        let group = group.clamp(1, len.max(1));
        let groups = len.div_ceil(group);
        let scales_at = bits::stream_bytes(len, self.bits);
        let zeros_at = scales_at + groups * self.scale.bytes();
        let bytes = zeros_at + if self.symmetric { 0 } else { groups };
        RowParts { group, groups, scales_at, zeros_at, bytes }
    }

    /// Scale and zero of group `index` of a canonical row.
    #[inline(always)]
    pub fn grid_at(self, row: &[u8], parts: &RowParts, index: usize) -> Grid {
        Grid {
            scale: self.scale.read(&row[parts.scales_at..], index),
            zero: if self.symmetric { self.middle() } else { row[parts.zeros_at + index] },
        }
    }

    /// Encodes one row; `grid` gives the grid of each group by its index and values.
    pub fn encode_row(
        self,
        values: &[f32],
        group: usize,
        mut grid: impl FnMut(usize, &[f32]) -> Grid,
        codes: &mut Vec<u8>,
        out: &mut [u8],
    ) {
        let parts = self.row_parts(values.len(), group);
        codes.clear();
        codes.resize(values.len(), 0);
        let size = self.scale.bytes();
        for (index, (values, codes)) in values.chunks(parts.group).zip(codes.chunks_mut(parts.group)).enumerate() {
            let grid = grid(index, values);
            self.quantize(values, grid, codes);
            self.scale.write(grid.scale, &mut out[parts.scales_at + index * size..][..size]);
            if !self.symmetric {
                out[parts.zeros_at + index] = grid.zero;
            }
        }
        bits::pack(codes, self.bits, &mut out[..parts.scales_at]);
    }

    /// Decodes one canonical row.
    pub fn decode_row(self, row: &[u8], group: usize, codes: &mut Vec<u8>, out: &mut [f32]) {
        let parts = self.row_parts(out.len(), group);
        codes.clear();
        codes.resize(out.len(), 0);
        bits::unpack(&row[..parts.scales_at], self.bits, codes);
        for (index, (codes, values)) in codes.chunks(parts.group).zip(out.chunks_mut(parts.group)).enumerate() {
            let grid = self.grid_at(row, &parts, index);
            dequantize(codes, grid.scale, grid.zero, values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn codes(bits: u32, symmetric: bool) -> Codes {
        Codes { bits, symmetric, scale: ScaleType::F32 }
    }

    #[test]
    fn scales_are_those_of_compressed_tensors() {
        let symmetric = codes(4, true).choose(&[-3.0, 1.5], &[], ScaleChoice::AbsMax);
        assert_eq!(symmetric, Grid { scale: 3.0 / 7.5, zero: 8 });
        let asymmetric = codes(4, false).choose(&[1.0, 3.0], &[], ScaleChoice::AbsMax);
        assert_eq!(asymmetric, Grid { scale: 3.0 / 15.0, zero: 0 }, "the range is widened to include 0");
        let zeros = Codes { scale: ScaleType::F16, ..codes(4, true) }.choose(&[0.0; 4], &[], ScaleChoice::AbsMax);
        assert_eq!(zeros.scale, f16::EPSILON.to_f32());
    }

    #[test]
    fn least_squares_clips_an_outlier_that_importance_does_not_mind() {
        let mut values: Vec<f32> = (0..64).map(|at| ((at * 37 % 64) as f32 - 32.0) / 64.0).collect();
        values[5] = 4.0;
        let codes = codes(3, true);
        let mut weights = vec![1.0; 64];
        let plain = codes.choose(&values, &[], ScaleChoice::AbsMax);
        let searched = codes.choose(&values, &[], ScaleChoice::LeastSquares);
        assert!(error(&values, &[], searched, 7.0) <= error(&values, &[], plain, 7.0));
        weights[5] = 0.0;
        let weighted = codes.choose(&values, &weights, ScaleChoice::LeastSquares);
        assert!(weighted.scale < 0.3 * plain.scale, "{weighted:?} {plain:?}");
        assert!(error(&values, &weights, weighted, 7.0) < error(&values, &weights, searched, 7.0));
    }

    #[test]
    fn a_percentile_clips_the_rest() {
        let values: Vec<f32> = (0..=100).map(|at| at as f32).collect();
        assert_eq!(percentile(&values, 99.0), 99.0);
        assert_eq!(percentile(&values, 99.5), 99.5);
        assert_eq!(percentile(&values, 100.0), 100.0);
        assert_eq!(percentile(&[f32::NAN], 50.0), 0.0);
        assert_eq!(codes(8, true).choose(&values, &[], ScaleChoice::Percentile(50.0)).scale, 50.0 / 127.5);
    }

    proptest! {
        #[test]
        fn every_weight_lands_within_one_step(
            bits in 2u32..=8,
            symmetric: bool,
            group in prop::sample::select(vec![1usize, 7, 16, 64, usize::MAX]),
            values in prop::collection::vec(-2.0f32..2.0, 1..90),
        ) {
            let codes = codes(bits, symmetric);
            let parts = codes.row_parts(values.len(), group);
            let mut row = vec![0; parts.bytes];
            let mut buffer = Vec::new();
            codes.encode_row(&values, group, |_, v| codes.choose(v, &[], ScaleChoice::AbsMax), &mut buffer, &mut row);
            let mut back = vec![0.0; values.len()];
            codes.decode_row(&row, group, &mut buffer, &mut back);
            for (index, (values, back)) in values.chunks(parts.group).zip(back.chunks(parts.group)).enumerate() {
                let step = codes.grid_at(&row, &parts, index).scale;
                let grid = codes.grid_at(&row, &parts, index);
                for (value, back) in values.iter().zip(back) {
                    prop_assert_eq!(codes.nearest(*value, grid), *back);
                    // Half a step by rounding, and half a step where the outermost code is missing or the zero rounded.
                    prop_assert!((value - back).abs() <= step * 1.001, "{} {} {}", value, back, step);
                }
            }
        }
    }
}
