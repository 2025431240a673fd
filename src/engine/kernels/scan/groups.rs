//! Scans of integers that share a scale by group, channel or tensor.

use super::lanes::{Grain, Lanes, WIDE, greater, smaller};
use super::{CHUNK, Errors, Lines, Rule, Tally, scan_runs, scans};

/// The type that a scale is rounded to before weights are divided by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounded {
    /// Half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// As it is.
    F32,
}

impl Rounded {
    /// The scale as it is stored: at most the type's largest, and its epsilon instead of zero.
    #[inline(always)]
    fn of(self, scale: f32) -> f32 {
        let (rounded, most, epsilon) = match self {
            Self::F16 => (Grain::F16.round(scale), half::f16::MAX.to_f32_const(), half::f16::EPSILON.to_f32_const()),
            Self::Bf16 => {
                (Grain::BF16.round(scale), half::bf16::MAX.to_f32_const(), half::bf16::EPSILON.to_f32_const())
            }
            Self::F32 => (scale, f32::MAX, f32::EPSILON),
        };
        if rounded == 0.0 || rounded.is_nan() { epsilon } else { smaller(rounded, most) }
    }
}

/// An integer scheme: `value = scale × (code − zero)`, codes from 0 to 2^bits − 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Bits of a code, 2 to 8.
    pub bits: u8,
    /// Weights that share a scale; the last group of a row may have fewer. At least 1.
    pub len: usize,
    /// True if the zero is 2^(bits − 1) and only the scale follows from the weights.
    pub symmetric: bool,
    /// How the scale is stored.
    pub scale: Rounded,
}

/// Smallest and largest of the finite weights, and 0.
#[inline(always)]
fn range_with_zero<V: Lanes>(weights: &[f32]) -> (f32, f32) {
    let (mut lo, mut hi) = (V::splat(0.0), V::splat(0.0));
    let vectors = weights.chunks_exact(V::WIDTH);
    let rest = vectors.remainder();
    for weights in vectors {
        let weights = V::load(weights);
        lo = weights.min(lo);
        hi = weights.max(hi);
    }
    let least = rest.iter().fold(lo.smallest(), |least, &weight| smaller(weight, least));
    let most = rest.iter().fold(hi.greatest(), |most, &weight| greater(weight, most));
    if most < f32::INFINITY && least > f32::NEG_INFINITY {
        return (least, most);
    }
    let finite = || weights.iter().copied().filter(|weight| weight.is_finite());
    (finite().fold(0.0, smaller), finite().fold(0.0, greater))
}

/// Added to a small number it leaves the nearest whole one, ties to even.
const ROUNDER: f32 = 12_582_912.0;

/// Codes from 0 to `top`, `zero` steps of `scale` below nothing.
#[derive(Clone, Copy, Default)]
struct Grid {
    scale: f32,
    zero: f32,
    top: f32,
}

impl Rule for Grid {
    #[inline(always)]
    fn decoded<V: Lanes>(&self, weights: V) -> V {
        let (scale, zero, rounder) = (V::splat(self.scale), V::splat(self.zero), V::splat(ROUNDER));
        let places = weights.div(scale).add(zero).max(V::splat(0.0)).min(V::splat(self.top));
        places.add(rounder).sub(rounder).sub(zero).mul(scale)
    }
}

impl Groups {
    /// The grid of one group.
    #[inline(always)]
    fn grid<V: Lanes>(self, group: &[f32]) -> Grid {
        let top = ((1u32 << self.bits) - 1) as f32;
        let middle = (1u32 << (self.bits - 1)) as f32;
        let (lo, hi) = range_with_zero::<V>(group);
        if self.symmetric {
            return Grid { scale: self.scale.of(greater(hi, -lo) / (top * 0.5)), zero: middle, top };
        }
        // Halved first: the distance of two huge values is not finite.
        let scale = (hi * 0.5 - lo * 0.5) / top * 2.0;
        let zero = (-lo / scale - middle + ROUNDER) - ROUNDER + middle;
        let zero = if scale > 0.0 { smaller(greater(zero, 0.0), top) } else { middle };
        Grid { scale: self.scale.of(scale), zero, top }
    }
}

/// Most groups of one run.
const MOST: usize = CHUNK / WIDE;

/// Several groups in one run: what [`scan_runs`] does for one rule.
#[inline(always)]
fn scan_short<V: Lanes>(source: &[f32], how: Groups, errors: &mut Errors) {
    let mut grids = [Grid::default(); MOST];
    for (grid, group) in grids.iter_mut().zip(source.chunks(how.len)) {
        *grid = how.grid::<V>(group);
    }
    let mut lines = Lines::default();
    for lane in (0..WIDE).step_by(V::WIDTH) {
        let mut tally = Tally::new();
        for (grid, group) in grids.iter().zip(source.chunks(how.len)) {
            for weights in group.as_chunks::<WIDE>().0 {
                let weights = V::load(&weights[lane..]);
                tally.add(weights, grid.decoded(weights));
            }
        }
        lines.put(lane, tally);
    }
    if !lines.close(errors) {
        for (grid, group) in grids.iter().zip(source.chunks(how.len)) {
            scan_runs::<V>(group, errors, grid);
        }
    }
}

#[inline(always)]
fn groups_body<V: Lanes>(source: &[f32], row_len: usize, how: Groups, errors: &mut Errors) {
    let how = Groups { len: how.len.max(1), ..how };
    for row in source.chunks(row_len.max(1)) {
        let is_short = how.len <= CHUNK && how.len.is_multiple_of(WIDE) && row.len().is_multiple_of(WIDE);
        if is_short {
            for run in row.chunks(CHUNK / how.len * how.len) {
                scan_short::<V>(run, how, errors);
            }
        } else {
            for group in row.chunks(how.len) {
                scan_runs::<V>(group, errors, &how.grid::<V>(group));
            }
        }
    }
}

#[inline(always)]
fn grid_body<V: Lanes>(source: &[f32], scale: f32, zero: f32, top: f32, errors: &mut Errors) {
    scan_runs::<V>(source, errors, &Grid { scale, zero, top });
}

scans! {
    /// What the grid of `scale` and `zero` with codes up to `top` makes of weights.
    pub fn grid, grid_at(source: &[f32], scale: f32, zero: f32, top: f32, errors: &mut Errors) => grid_body

    /// What an integer scheme makes of whole rows of `row_len` weights, scales by absolute maximum
    /// or range as compressed-tensors takes them.
    pub fn groups, groups_at(source: &[f32], row_len: usize, how: Groups, errors: &mut Errors) => groups_body
}
