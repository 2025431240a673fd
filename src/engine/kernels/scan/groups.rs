//! Scans of integers that share a scale by group, channel or tensor.

use super::lanes::{Grain, Lanes, WIDE, greater, smaller};
use super::{CHUNK, Errors, Lines, Rule, Tally, scan_runs, scans};
use crate::kernels::ints::ScaleType;

/// An integer scheme: `value = scale × (code − zero)`, codes from 0 to 2^bits − 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Bits of a code, 2 to 8.
    pub bits: u8,
    /// Weights that share a scale; the last group of a row may have fewer. At least 1.
    pub len: usize,
    /// True if the zero is 2^(bits − 1) and only the scale follows from the weights.
    pub symmetric: bool,
    /// How the scale is stored, and rounded before weights are divided by it.
    pub scale: ScaleType,
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
    if most < f32::INFINITY && least > f32::NEG_INFINITY { (least, most) } else { finite_range(weights) }
}

/// 0 and the largest magnitude of the finite weights.
#[inline(always)]
fn magnitude<V: Lanes>(weights: &[f32]) -> (f32, f32) {
    let mut most = V::splat(0.0);
    let vectors = weights.chunks_exact(V::WIDTH);
    let rest = vectors.remainder();
    for weights in vectors {
        most = V::load(weights).abs().max(most);
    }
    let most = rest.iter().fold(most.greatest(), |most, &weight| greater(weight.abs(), most));
    if most < f32::INFINITY {
        return (0.0, most);
    }
    let (least, most) = finite_range(weights);
    (0.0, greater(most, -least))
}

#[cold]
fn finite_range(weights: &[f32]) -> (f32, f32) {
    let finite = || weights.iter().copied().filter(|weight| weight.is_finite());
    (finite().fold(0.0, smaller), finite().fold(0.0, greater))
}

/// Added to a small number it leaves the nearest whole one, ties to even.
const ROUNDER: f32 = 12_582_912.0;

/// Codes from 0 to `top`, `zero` (a whole number) steps of `scale` below nothing.
#[derive(Clone, Copy)]
struct Grid {
    scale: f32,
    zero: f32,
    top: f32,
}

impl Rule for Grid {
    #[inline(always)]
    fn decoded<V: Lanes>(&self, weights: V) -> V {
        let (scale, zero) = (V::splat(self.scale), V::splat(self.zero));
        let places = weights.div(scale).add(zero).max(V::splat(0.0)).min(V::splat(self.top));
        // Whole numbers of this size add up exactly, so that the rounder and the zero go at once.
        places.add(V::splat(ROUNDER)).sub(V::splat(ROUNDER + self.zero)).mul(scale)
    }
}

/// Scales as they are stored: at most the type's largest, and its epsilon instead of zero.
/// The same as [`ScaleType::round`], for numbers that are not negative.
#[inline(always)]
fn stored<V: Lanes>(kind: ScaleType, scale: V) -> V {
    let (rounded, most, epsilon) = match kind {
        ScaleType::F16 => {
            (scale.round_to(Grain::F16), half::f16::MAX.to_f32_const(), half::f16::EPSILON.to_f32_const())
        }
        ScaleType::Bf16 => {
            (scale.round_to(Grain::BF16), half::bf16::MAX.to_f32_const(), half::bf16::EPSILON.to_f32_const())
        }
        ScaleType::F32 => (scale, f32::MAX, f32::EPSILON),
    };
    rounded.min(V::splat(most)).or_where_zero(rounded, V::splat(epsilon))
}

impl Groups {
    fn top(self) -> f32 {
        ((1u32 << self.bits) - 1) as f32
    }

    /// What the grid of a group follows from: the ends of its range, or 0 and its largest magnitude.
    #[inline(always)]
    fn survey<V: Lanes>(self, group: &[f32]) -> (f32, f32) {
        if self.symmetric { magnitude::<V>(group) } else { range_with_zero::<V>(group) }
    }

    /// Scales and zeros of as many groups as there are lanes, from their surveys.
    #[inline(always)]
    fn grids<V: Lanes>(self, lo: V, hi: V) -> (V, V) {
        let (top, middle) = (V::splat(self.top()), V::splat((1u32 << (self.bits - 1)) as f32));
        if self.symmetric {
            return (stored(self.scale, hi.div(V::splat(self.top() * 0.5))), middle);
        }
        // Halved first: the distance of two huge values is not finite.
        let half = V::splat(0.5);
        let scale = hi.mul(half).sub(lo.mul(half)).div(top).mul(V::splat(2.0));
        let rounder = V::splat(ROUNDER);
        let zero = V::splat(-0.0).sub(lo).div(scale).sub(middle).add(rounder).sub(rounder).add(middle);
        let zero = zero.max(V::splat(0.0)).min(top).or_where_zero(scale, middle);
        (stored(self.scale, scale), zero)
    }

    /// The grid of one group.
    #[inline(always)]
    fn grid<V: Lanes>(self, group: &[f32]) -> Grid {
        let (lo, hi) = self.survey::<V>(group);
        let (scale, zero) = self.grids(V::splat(lo), V::splat(hi));
        Grid { scale: scale.greatest(), zero: zero.greatest(), top: self.top() }
    }
}

/// Most groups of one run.
const MOST: usize = CHUNK / WIDE;

/// Groups of a length known beforehand, at most a run of them: what [`scan_runs`] does for one rule.
#[inline(always)]
fn scan_short<V: Lanes, const LEN: usize>(groups: &[[f32; LEN]], how: Groups, errors: &mut Errors) {
    let (mut los, mut his) = ([0.0; MOST], [0.0; MOST]);
    for ((group, lo), hi) in groups.iter().zip(&mut los).zip(&mut his) {
        (*lo, *hi) = how.survey::<V>(group);
    }
    let (mut scales, mut zeros) = ([0.0; MOST], [0.0; MOST]);
    for at in (0..groups.len()).step_by(V::WIDTH) {
        let (scale, zero) = how.grids(V::load(&los[at..]), V::load(&his[at..]));
        scale.store(&mut scales[at..]);
        zero.store(&mut zeros[at..]);
    }
    let grids = || scales.iter().zip(&zeros).map(|(&scale, &zero)| Grid { scale, zero, top: how.top() });
    let mut lines = Lines::default();
    for lane in (0..WIDE).step_by(V::WIDTH) {
        let mut tally = Tally::new();
        for (group, grid) in groups.iter().zip(grids()) {
            for weights in group.as_chunks::<WIDE>().0 {
                let weights = V::load(&weights[lane..]);
                tally.add(weights, grid.decoded(weights));
            }
        }
        lines.put(lane, tally);
    }
    if !lines.close(errors) {
        for (group, grid) in groups.iter().zip(grids()) {
            scan_runs::<V>(group, errors, &grid);
        }
    }
}

/// A row in groups of a length known beforehand.
#[inline(always)]
fn short_groups<V: Lanes, const LEN: usize>(row: &[f32], how: Groups, errors: &mut Errors) {
    let (groups, rest) = row.as_chunks::<LEN>();
    for run in groups.chunks(CHUNK / LEN) {
        scan_short::<V, LEN>(run, how, errors);
    }
    long_groups::<V>(rest, how, errors);
}

#[inline(always)]
fn long_groups<V: Lanes>(row: &[f32], how: Groups, errors: &mut Errors) {
    for group in row.chunks(how.len) {
        scan_runs::<V>(group, errors, &how.grid::<V>(group));
    }
}

#[inline(always)]
fn groups_body<V: Lanes>(source: &[f32], row_len: usize, how: Groups, errors: &mut Errors) {
    let how = Groups { len: how.len.max(1), ..how };
    for row in source.chunks(row_len.max(1)) {
        match how.len {
            16 => short_groups::<V, 16>(row, how, errors),
            32 => short_groups::<V, 32>(row, how, errors),
            64 => short_groups::<V, 64>(row, how, errors),
            128 => short_groups::<V, 128>(row, how, errors),
            256 => short_groups::<V, 256>(row, how, errors),
            _ => long_groups::<V>(row, how, errors),
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
