//! Error scans: how far a format moves weights, without writing the encoded bytes.
//!
//! A scan finds the scale of each block, rounds every weight to the value that the format would
//! decode to, and adds up [`Errors`], all within registers. The plain reference is the format itself:
//! encode, decode, [`Errors::add_exactly`]. The decoded values of a scan are bit for bit the
//! format's, so that the two differ in how sums are taken only: a scan sums runs of at most
//! 512 weights in sixteen f32 lanes, in one order for every instruction level, and adds the
//! runs in f64 in the order of the weights. Runs that f32 cannot sum (NaN, infinities, squares that
//! over- or underflow) go through the reference.

mod blocks;
mod groups;
mod lanes;
mod plain;

use super::Level;
use lanes::{Lanes, WIDE, greater};

/// Weights that are summed in f32 before they enter the sums in f64.
const CHUNK: usize = 512;

/// Defines a scan from a body that is generic over [`Lanes`]: at the best level of this processor,
/// and at a given level, which the processor must have.
macro_rules! scans {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident, $at:ident($($arg:ident: $ty:ty),* $(,)?) => $body:ident)*) => {$(
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) {
            $at($crate::kernels::Level::detect(), $($arg),*);
        }

        #[doc = concat!("`", stringify!($name), "` at a given instruction level, which the CPU must have.")]
        $vis fn $at(level: $crate::kernels::Level, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn with_avx2($($arg: $ty),*) {
                    $body::<$crate::kernels::scan::lanes::Avx2>($($arg),*);
                }
                if level >= $crate::kernels::Level::Avx2 {
                    // SAFETY: the level says that this CPU has AVX2, FMA and F16C.
                    return unsafe { with_avx2($($arg),*) };
                }
            }
            #[cfg(target_arch = "aarch64")]
            {
                #[target_feature(enable = "neon")]
                fn with_neon($($arg: $ty),*) {
                    $body::<$crate::kernels::scan::lanes::Neon>($($arg),*);
                }
                if level >= $crate::kernels::Level::Neon {
                    // SAFETY: the level says that this CPU has NEON.
                    return unsafe { with_neon($($arg),*) };
                }
            }
            let _ = level;
            $body::<$crate::kernels::scan::lanes::Portable>($($arg),*);
        }
    )*};
}
use scans;

pub use blocks::{q4_0, q4_0_at, q4_1, q4_1_at, q5_0, q5_0_at, q5_1, q5_1_at, q8_0, q8_0_at};
pub use groups::{Groups, grid, grid_at, groups, groups_at};
pub use plain::{bf16, bf16_at, f16, f16_at, fp8, fp8_at};

/// Below this, an f32 sum of a run of squares has lost terms to underflow.
const TINY: f64 = 1e-28;

/// Sums over weights `w` and what a format decodes them to, `ŵ`.
///
/// Weights that are not finite have no error to speak of and are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Errors {
    /// Σ w².
    pub signal: f64,
    /// Σ ŵ².
    pub coded: f64,
    /// Σ w·ŵ.
    pub product: f64,
    /// Σ (w − ŵ)².
    pub noise: f64,
    /// Largest |w − ŵ|.
    pub max_abs_error: f64,
}

impl Errors {
    /// Adds weights and their decoded values, one after another in f64.
    pub fn add_exactly(&mut self, weights: &[f32], coded: &[f32]) {
        for (&weight, &coded) in weights.iter().zip(coded) {
            if !weight.is_finite() {
                continue;
            }
            let (weight, coded) = (f64::from(weight), f64::from(coded));
            let error = weight - coded;
            self.signal += weight * weight;
            self.coded += coded * coded;
            self.product += weight * coded;
            self.noise += error * error;
            self.max_abs_error = self.max_abs_error.max(error.abs());
        }
    }

    /// [`Errors::add_exactly`] with a scan's sums and nearly a scan's speed.
    pub fn add(&mut self, weights: &[f32], coded: &[f32]) {
        add_sums(weights, coded, self);
    }

    /// [`Errors::add`] at a given instruction level, which the CPU must have.
    pub fn add_at(&mut self, level: Level, weights: &[f32], coded: &[f32]) {
        add_sums_at(level, weights, coded, self);
    }

    /// Adds the sums of other weights.
    pub fn merge(&mut self, other: &Self) {
        self.signal += other.signal;
        self.coded += other.coded;
        self.product += other.product;
        self.noise += other.noise;
        self.max_abs_error = self.max_abs_error.max(other.max_abs_error);
    }
}

/// f32 sums of one run, or of one pass over it.
struct Tally<V> {
    signal: V,
    coded: V,
    noise: V,
    worst: V,
}

impl<V: Lanes> Tally<V> {
    #[inline(always)]
    fn new() -> Self {
        let zero = V::splat(0.0);
        Self { signal: zero, coded: zero, noise: zero, worst: zero }
    }

    #[inline(always)]
    fn add(&mut self, weights: V, coded: V) {
        let error = weights.sub(coded);
        self.signal = self.signal.add(weights.mul(weights));
        self.coded = self.coded.add(coded.mul(coded));
        self.noise = self.noise.add(error.mul(error));
        self.worst = error.abs().max(self.worst);
    }
}

/// The lanes of all passes over a run.
#[derive(Default)]
struct Lines {
    signal: [f32; WIDE],
    coded: [f32; WIDE],
    noise: [f32; WIDE],
    worst: [f32; WIDE],
}

impl Lines {
    /// Takes over the pass whose lanes begin at `lane`.
    #[inline(always)]
    fn put<V: Lanes>(&mut self, lane: usize, tally: Tally<V>) {
        tally.signal.store(&mut self.signal[lane..]);
        tally.coded.store(&mut self.coded[lane..]);
        tally.noise.store(&mut self.noise[lane..]);
        tally.worst.store(&mut self.worst[lane..]);
    }

    /// Moves the sums over to `errors`; false, with nothing moved, where f32 could not hold them.
    #[inline(always)]
    fn close(&self, errors: &mut Errors) -> bool {
        let (signal, coded, noise) = (total(&self.signal), total(&self.coded), total(&self.noise));
        let worst = f64::from(self.worst.iter().fold(0.0, |most, &value| greater(value, most)));
        // Comparisons with NaN are false.
        let is_finite = signal + coded + noise < f64::from(f32::MAX);
        let is_held = is_finite && signal >= TINY && (noise >= TINY || worst == 0.0);
        if is_held {
            errors.signal += signal;
            errors.coded += coded;
            errors.noise += noise;
            // (w − ŵ)² = w² − 2wŵ + ŵ²
            errors.product += 0.5 * (signal + coded - noise);
            errors.max_abs_error = errors.max_abs_error.max(worst);
        }
        is_held
    }
}

/// The sum of all lanes in f64, halves first.
#[inline(always)]
fn total(lanes: &[f32; WIDE]) -> f64 {
    let mut sums = [0.0; WIDE / 2];
    for lane in 0..WIDE / 2 {
        sums[lane] = f64::from(lanes[lane]) + f64::from(lanes[lane + WIDE / 2]);
    }
    for lane in 0..WIDE / 4 {
        sums[lane] += sums[lane + WIDE / 4];
    }
    (sums[0] + sums[2]) + (sums[1] + sums[3])
}

/// What weights become one by one. A trait and not a closure, which could not be forced to inline.
trait Rule {
    /// The decoded values of weights; zeros stay zeros.
    fn decoded<V: Lanes>(&self, weights: V) -> V;
}

/// Scans weights by one rule.
#[inline(always)]
fn scan_runs<V: Lanes>(source: &[f32], errors: &mut Errors, rule: &impl Rule) {
    for weights in source.chunks(CHUNK) {
        let (vectors, rest) = weights.as_chunks::<WIDE>();
        // Zeros that stay zeros change no sum.
        let mut last = [0.0; WIDE];
        last[..rest.len()].copy_from_slice(rest);
        let vectors = || vectors.iter().chain((!rest.is_empty()).then_some(&last));
        let mut lines = Lines::default();
        for lane in (0..WIDE).step_by(V::WIDTH) {
            let mut tally = Tally::new();
            for weights in vectors() {
                let weights = V::load(&weights[lane..]);
                tally.add(weights, rule.decoded(weights));
            }
            lines.put(lane, tally);
        }
        if lines.close(errors) {
            continue;
        }
        for (weights, from) in vectors().zip(weights.chunks(WIDE)) {
            let mut coded = [0.0; WIDE];
            for lane in (0..WIDE).step_by(V::WIDTH) {
                rule.decoded(V::load(&weights[lane..])).store(&mut coded[lane..]);
            }
            errors.add_exactly(from, &coded);
        }
    }
}

/// Sums of weights and values decoded before.
#[inline(always)]
fn add_body<V: Lanes>(weights: &[f32], coded: &[f32], errors: &mut Errors) {
    for (weights, coded) in weights.chunks(CHUNK).zip(coded.chunks(CHUNK)) {
        let (weight_vectors, weight_rest) = weights.as_chunks::<WIDE>();
        let (coded_vectors, coded_rest) = coded.as_chunks::<WIDE>();
        let mut last = [[0.0; WIDE]; 2];
        last[0][..weight_rest.len()].copy_from_slice(weight_rest);
        last[1][..coded_rest.len()].copy_from_slice(coded_rest);
        let mut lines = Lines::default();
        for lane in (0..WIDE).step_by(V::WIDTH) {
            let mut tally = Tally::new();
            for (weights, coded) in weight_vectors.iter().zip(coded_vectors) {
                tally.add(V::load(&weights[lane..]), V::load(&coded[lane..]));
            }
            tally.add(V::load(&last[0][lane..]), V::load(&last[1][lane..]));
            lines.put(lane, tally);
        }
        if !lines.close(errors) {
            errors.add_exactly(weights, coded);
        }
    }
}

scans! {
    fn add_sums, add_sums_at(weights: &[f32], coded: &[f32], errors: &mut Errors) => add_body
}

#[cfg(test)]
mod tests;
