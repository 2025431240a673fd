//! Scans of small floats: f16, bf16, and fp8 under a scale.

use super::lanes::{Grain, Lanes};
use super::{Errors, Rule, scan_runs, scans};
use crate::kernels::fp8::Fp8;

/// How a type rounds.
fn grain(kind: Fp8) -> Grain {
    match kind {
        Fp8::E4M3 => Grain::E4M3,
        Fp8::E5M2 => Grain::E5M2,
    }
}

impl Rule for Grain {
    #[inline(always)]
    fn decoded<V: Lanes>(&self, weights: V) -> V {
        weights.round_to(*self)
    }
}

/// An fp8 type under a scale.
struct Scaled {
    grain: Grain,
    most: f32,
    scale: f32,
}

impl Rule for Scaled {
    #[inline(always)]
    fn decoded<V: Lanes>(&self, weights: V) -> V {
        let scale = V::splat(self.scale);
        weights.div(scale).max(V::splat(-self.most)).min(V::splat(self.most)).round_to(self.grain).mul(scale)
    }
}

#[inline(always)]
fn fp8_body<V: Lanes>(source: &[f32], kind: Fp8, scale: f32, errors: &mut Errors) {
    scan_runs::<V>(source, errors, &Scaled { grain: grain(kind), most: kind.max(), scale });
}

#[inline(always)]
fn f16_body<V: Lanes>(source: &[f32], errors: &mut Errors) {
    scan_runs::<V>(source, errors, &Grain::F16);
}

#[inline(always)]
fn bf16_body<V: Lanes>(source: &[f32], errors: &mut Errors) {
    scan_runs::<V>(source, errors, &Grain::BF16);
}

scans! {
    /// What fp8 makes of weights that share `scale`: `scale × fp8(weight / scale)`, saturating.
    pub fn fp8, fp8_at(source: &[f32], kind: Fp8, scale: f32, errors: &mut Errors) => fp8_body

    /// What f16 makes of weights.
    pub fn f16, f16_at(source: &[f32], errors: &mut Errors) => f16_body

    /// What bf16 makes of weights.
    pub fn bf16, bf16_at(source: &[f32], errors: &mut Errors) => bf16_body
}
