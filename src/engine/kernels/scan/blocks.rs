//! Scans of ggml's 32-weight blocks, with the arithmetic of [`legacy`]'s encoders.

use super::lanes::{Grain, Lanes, WIDE};
use super::{CHUNK, Errors, Lines, Tally, scans};
use crate::kernels::{Columns, Level, legacy, legacy_encode};

const LEN: usize = 32;

/// Blocks of one run.
const BLOCKS: usize = CHUNK / LEN;

/// A block format: what is looked for in a block, the four figures that follow from it, and what
/// a weight becomes.
trait Block {
    /// Bytes of an encoded block.
    const BYTES: usize;
    /// Smallest and largest value, or the value of largest magnitude twice.
    fn survey<V: Lanes>(block: &[f32; LEN]) -> [f32; 2];
    /// Follows from the surveys of as many blocks as there are lanes.
    fn parameters<V: Lanes>(first: V, second: V) -> [V; 4];
    /// The decoded values of weights.
    fn decoded<V: Lanes>(parameters: [V; 4], weights: V) -> V;
    /// The reference's encoder.
    fn encode(source: &[f32], out: &mut [u8]);
    /// The reference's decoder.
    fn decode(source: &[u8], out: &mut [f32]);
}

#[inline(always)]
fn scan<B: Block, V: Lanes>(source: &[f32], errors: &mut Errors) {
    debug_assert!(source.len().is_multiple_of(LEN), "formats pass whole blocks");
    for run in source.chunks(CHUNK) {
        let blocks = run.as_chunks::<LEN>().0;
        let (mut firsts, mut seconds) = ([0.0; BLOCKS], [0.0; BLOCKS]);
        for ((block, first), second) in blocks.iter().zip(&mut firsts).zip(&mut seconds) {
            [*first, *second] = B::survey::<V>(block);
        }
        let mut figures = [[0.0; BLOCKS]; 4];
        for at in (0..BLOCKS).step_by(V::WIDTH) {
            let parameters = B::parameters(V::load(&firsts[at..]), V::load(&seconds[at..]));
            for (figures, parameter) in figures.iter_mut().zip(parameters) {
                parameter.store(&mut figures[at..]);
            }
        }
        let mut lines = Lines::default();
        for lane in (0..WIDE).step_by(V::WIDTH) {
            let mut tally = Tally::new();
            for (at, block) in blocks.iter().enumerate().take(BLOCKS) {
                let parameters = [0, 1, 2, 3].map(|figure: usize| V::splat(figures[figure][at]));
                for half in [lane, WIDE + lane] {
                    let weights = V::load(&block[half..]);
                    tally.add(weights, B::decoded(parameters, weights));
                }
            }
            lines.put(lane, tally);
        }
        if !lines.close(errors) {
            exactly::<B>(run, errors);
        }
    }
}

/// A run by the reference.
#[cold]
#[inline(never)]
fn exactly<B: Block>(run: &[f32], errors: &mut Errors) {
    let mut bytes = [0; 34 * BLOCKS];
    let mut coded = [0.0; CHUNK];
    let bytes = &mut bytes[..run.len() / LEN * B::BYTES];
    B::encode(run, bytes);
    B::decode(bytes, &mut coded[..run.len()]);
    errors.add_exactly(run, &coded);
}

/// Scale for encoding and scale for decoding, of the exact scales.
#[inline(always)]
fn scales<V: Lanes>(exact: V) -> [V; 2] {
    [V::splat(1.0).div(exact).where_not_zero(exact), exact.round_to(Grain::F16)]
}

/// Smallest and largest value of a block.
#[inline(always)]
fn extremes<V: Lanes>(block: &[f32; LEN]) -> [f32; 2] {
    let mut lo = V::load(block);
    let mut hi = lo;
    for at in (V::WIDTH..LEN).step_by(V::WIDTH) {
        let weights = V::load(&block[at..]);
        lo = weights.min(lo);
        hi = weights.max(hi);
    }
    [lo.smallest(), hi.greatest()]
}

/// The first value of largest magnitude, with its sign.
#[inline(always)]
fn signed_max<V: Lanes>(block: &[f32; LEN]) -> f32 {
    let [lo, hi] = extremes::<V>(block);
    if hi > -lo {
        hi
    } else if hi < -lo {
        lo
    } else {
        // Both signs have it: the first in the block wins.
        block.iter().copied().find(|&value| value == hi || value == lo).unwrap_or(hi)
    }
}

struct Q80;

impl Block for Q80 {
    const BYTES: usize = 34;

    #[inline(always)]
    fn survey<V: Lanes>(block: &[f32; LEN]) -> [f32; 2] {
        let mut most = V::splat(0.0);
        for at in (0..LEN).step_by(V::WIDTH) {
            most = V::load(&block[at..]).abs().max(most);
        }
        [most.greatest(); 2]
    }

    #[inline(always)]
    fn parameters<V: Lanes>(most: V, _: V) -> [V; 4] {
        let [encoding, decoding] = scales(most.div(V::splat(127.0)));
        [encoding, decoding, decoding, decoding]
    }

    #[inline(always)]
    fn decoded<V: Lanes>([encoding, decoding, ..]: [V; 4], weights: V) -> V {
        weights.mul(encoding).round_away().mul(decoding)
    }

    fn encode(source: &[f32], out: &mut [u8]) {
        legacy_encode::encode_q8_0(Level::detect(), source, out);
    }

    fn decode(source: &[u8], out: &mut [f32]) {
        legacy::decode_q8_0(source, out);
    }
}

/// Blocks without importance may be taken for one row.
fn whole(source: &[f32]) -> Columns<'static> {
    Columns { row_len: source.len(), importance: None }
}

struct Q40;

impl Block for Q40 {
    const BYTES: usize = 18;

    #[inline(always)]
    fn survey<V: Lanes>(block: &[f32; LEN]) -> [f32; 2] {
        [signed_max::<V>(block); 2]
    }

    #[inline(always)]
    fn parameters<V: Lanes>(most: V, _: V) -> [V; 4] {
        let [encoding, decoding] = scales(most.div(V::splat(-8.0)));
        [encoding, decoding, decoding, decoding]
    }

    #[inline(always)]
    fn decoded<V: Lanes>([encoding, decoding, ..]: [V; 4], weights: V) -> V {
        let codes = weights.mul(encoding).add(V::splat(8.5)).trunc().min(V::splat(15.0));
        codes.sub(V::splat(8.0)).mul(decoding)
    }

    fn encode(source: &[f32], out: &mut [u8]) {
        legacy_encode::encode_q4_0(Level::detect(), source, whole(source), out);
    }

    fn decode(source: &[u8], out: &mut [f32]) {
        legacy::decode_q4_0(source, out);
    }
}

struct Q41;

impl Block for Q41 {
    const BYTES: usize = 20;

    #[inline(always)]
    fn survey<V: Lanes>(block: &[f32; LEN]) -> [f32; 2] {
        extremes::<V>(block)
    }

    #[inline(always)]
    fn parameters<V: Lanes>(lo: V, hi: V) -> [V; 4] {
        let [encoding, decoding] = scales(hi.sub(lo).div(V::splat(15.0)));
        // The encoder subtracts the minimum as it is, the decoder adds it as it was stored.
        [encoding, decoding, lo, lo.round_to(Grain::F16)]
    }

    #[inline(always)]
    fn decoded<V: Lanes>([encoding, decoding, lo, stored_lo]: [V; 4], weights: V) -> V {
        let codes = weights.sub(lo).mul(encoding).add(V::splat(0.5)).trunc().min(V::splat(15.0));
        codes.mul(decoding).add(stored_lo)
    }

    fn encode(source: &[f32], out: &mut [u8]) {
        legacy_encode::encode_q4_1(Level::detect(), source, whole(source), out);
    }

    fn decode(source: &[u8], out: &mut [f32]) {
        legacy::decode_q4_1(source, out);
    }
}

struct Q50;

impl Block for Q50 {
    const BYTES: usize = 22;

    #[inline(always)]
    fn survey<V: Lanes>(block: &[f32; LEN]) -> [f32; 2] {
        [signed_max::<V>(block); 2]
    }

    #[inline(always)]
    fn parameters<V: Lanes>(most: V, _: V) -> [V; 4] {
        let [encoding, decoding] = scales(most.div(V::splat(-16.0)));
        [encoding, decoding, decoding, decoding]
    }

    #[inline(always)]
    fn decoded<V: Lanes>([encoding, decoding, ..]: [V; 4], weights: V) -> V {
        let codes = weights.mul(encoding).add(V::splat(16.5)).trunc().min(V::splat(31.0));
        codes.sub(V::splat(16.0)).mul(decoding)
    }

    fn encode(source: &[f32], out: &mut [u8]) {
        legacy_encode::encode_q5_0(Level::detect(), source, whole(source), out);
    }

    fn decode(source: &[u8], out: &mut [f32]) {
        legacy::decode_q5_0(source, out);
    }
}

struct Q51;

impl Block for Q51 {
    const BYTES: usize = 24;

    #[inline(always)]
    fn survey<V: Lanes>(block: &[f32; LEN]) -> [f32; 2] {
        extremes::<V>(block)
    }

    #[inline(always)]
    fn parameters<V: Lanes>(lo: V, hi: V) -> [V; 4] {
        let [encoding, decoding] = scales(hi.sub(lo).div(V::splat(31.0)));
        // The encoder subtracts the minimum as it is, the decoder adds it as it was stored.
        [encoding, decoding, lo, lo.round_to(Grain::F16)]
    }

    #[inline(always)]
    fn decoded<V: Lanes>([encoding, decoding, lo, stored_lo]: [V; 4], weights: V) -> V {
        let codes = weights.sub(lo).mul(encoding).add(V::splat(0.5)).trunc().min(V::splat(31.0));
        codes.mul(decoding).add(stored_lo)
    }

    fn encode(source: &[f32], out: &mut [u8]) {
        legacy_encode::encode_q5_1(Level::detect(), source, whole(source), out);
    }

    fn decode(source: &[u8], out: &mut [f32]) {
        legacy::decode_q5_1(source, out);
    }
}

#[inline(always)]
fn q8_0_body<V: Lanes>(source: &[f32], errors: &mut Errors) {
    scan::<Q80, V>(source, errors);
}

#[inline(always)]
fn q4_0_body<V: Lanes>(source: &[f32], errors: &mut Errors) {
    scan::<Q40, V>(source, errors);
}

#[inline(always)]
fn q4_1_body<V: Lanes>(source: &[f32], errors: &mut Errors) {
    scan::<Q41, V>(source, errors);
}

#[inline(always)]
fn q5_0_body<V: Lanes>(source: &[f32], errors: &mut Errors) {
    scan::<Q50, V>(source, errors);
}

#[inline(always)]
fn q5_1_body<V: Lanes>(source: &[f32], errors: &mut Errors) {
    scan::<Q51, V>(source, errors);
}

scans! {
    /// What q8_0 makes of whole blocks.
    pub fn q8_0, q8_0_at(source: &[f32], errors: &mut Errors) => q8_0_body

    /// What q4_0 makes of whole blocks.
    pub fn q4_0, q4_0_at(source: &[f32], errors: &mut Errors) => q4_0_body

    /// What q4_1 makes of whole blocks.
    pub fn q4_1, q4_1_at(source: &[f32], errors: &mut Errors) => q4_1_body

    /// What q5_0 makes of whole blocks.
    pub fn q5_0, q5_0_at(source: &[f32], errors: &mut Errors) => q5_0_body

    /// What q5_1 makes of whole blocks.
    pub fn q5_1, q5_1_at(source: &[f32], errors: &mut Errors) => q5_1_body
}
