// What every scan and every encoder shares: inputs, the rounding of small floats, and the sums of a tile.
//
// A workgroup has one tile: neighbouring columns of one row. A tile whose figures f32 cannot hold, or
// whose search left the range in which the reference's f32 neither over- nor underflows, is flagged
// with a negative largest error; the host does such rows with the reference.

struct Params {
    // Weights a row.
    row_len: u32,
    // Rows of this piece.
    rows: u32,
    // Weights that share a scale.
    group: u32,
    // Scales a row.
    groups: u32,
    // Tiles a row.
    tiles: u32,
    // Workgroups side by side, where there are more than one dimension holds.
    width: u32,
    // Always zero, which no compiler knows.
    zero: u32,
    // Bytes of an encoded row, and where its scales and its zeros begin.
    row_bytes: u32,
    scales_at: u32,
    zeros_at: u32,
    // First word of the rows' flags, after the encoded rows.
    flags_at: u32,
    spare: u32,
}

@group(0) @binding(0) var<storage, read> weights: array<u32>;
@group(0) @binding(1) var<storage, read> importance: array<f32>;
// Scale and zero of every group of every row; or the mean square of every row.
@group(0) @binding(2) var<storage, read_write> scales: array<vec2<f32>>;
// Signal, coded, noise and largest error of every tile.
@group(0) @binding(3) var<storage, read_write> figures: array<vec4<f32>>;
@group(0) @binding(4) var<uniform> params: Params;

const LANES: u32 = 64u;
// 1e15 and 1e-12 as bits: squares of larger and of smaller weights do not sum in f32.
const HUGE: u32 = 0x58635fa9u;
const TINY: u32 = 0x2b8cbcccu;
const FLAG: u32 = 0xffffffffu;

var<private> flagged: bool;
var<private> largest: u32;
var<private> tally: vec4<f32>;
var<workgroup> tallies: array<vec4<f32>, LANES>;
var<workgroup> states: array<u32, LANES>;

// The value as it is: a product that passes through here is rounded before it is added to something.
// WGSL has no other way to forbid a fused multiplication and addition, and searches compare sums that
// differ in their last bits.
fn exact(value: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(value) ^ params.zero);
}

// The upper half of a mantissa.
fn upper(value: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(value) & 0xfffff000u);
}

// value − a × b, where that is small beside value.
fn remainder(value: f32, a: f32, b: f32) -> f32 {
    let product = exact(a * b);
    let a_high = upper(a);
    let b_high = upper(b);
    let a_low = a - a_high;
    let b_low = b - b_high;
    // Products of halves are exact; drivers that take sums of products apart must not see them.
    let lost = ((exact(a_high * b_high) - product) + exact(a_high * b_low) + exact(a_low * b_high)) + a_low * b_low;
    return exact(value - product) - lost;
}

// The quotient and the root to nearest: WGSL's own may be off by some last bits.
fn divided(value: f32, by: f32) -> f32 {
    let quotient = value / by;
    return exact(quotient + remainder(value, quotient, by) / by);
}
fn root(value: f32) -> f32 {
    let near = sqrt(value);
    if near == 0.0 {
        return 0.0;
    }
    return near + remainder(value, near, near) / (2.0 * near);
}

fn load(at: u32) -> f32 {
    let bits = weights[at];
    largest = max(largest, bits & 0x7fffffffu);
    return bitcast<f32>(bits);
}

fn add(weight: f32, coded: f32) {
    let error = weight - coded;
    tally += vec4(weight * weight, coded * coded, error * error, 0.0);
    tally.w = max(tally.w, abs(error));
}

// Flags what the reference's sums would lose to over- or underflow here.
fn guard(value: f32) {
    if !(value > 1e-32 && value < 1e32) {
        flagged = true;
    }
}

// Adds up the lanes of a workgroup and writes the figures of its tile.
fn close(lane: u32, tile: u32) {
    tallies[lane] = tally;
    states[lane] = select(largest, FLAG, flagged);
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            let other = tallies[lane + half];
            let most = max(tallies[lane].w, other.w);
            tallies[lane] = vec4(tallies[lane].xyz + other.xyz, most);
            states[lane] = max(states[lane], states[lane + half]);
        }
    }
    if lane == 0u {
        var all = tallies[0];
        let state = states[0];
        if state == 0u {
            all = vec4(0.0);
        } else if state < TINY || state >= HUGE {
            all = vec4(0.0, 0.0, 0.0, -1.0);
        }
        figures[tile] = all;
    }
}

// The bits of a magnitude without its lowest ones, to nearest, ties to even.
fn shortened(size: u32, dropped: u32) -> u32 {
    let half = (1u << (dropped - 1u)) - 1u;
    return (size + half + ((size >> dropped) & 1u)) & ~((1u << dropped) - 1u);
}

// The nearest number of a small float: `dropped` bits of mantissa fewer, normal from the number with
// the bits `normal` on, below it in steps of `step`.
fn small_float(value: f32, dropped: u32, normal: u32, step: f32) -> f32 {
    let bits = bitcast<u32>(value);
    let size = bits & 0x7fffffffu;
    var rounded = shortened(size, dropped);
    if size < normal {
        rounded = bitcast<u32>(round(bitcast<f32>(size) * (1.0 / step)) * step);
    }
    return bitcast<f32>(rounded | (bits & 0x80000000u));
}

// f16 and bf16, infinite beyond their largest.
fn half_float(value: f32) -> f32 {
    return small_float(value, 13u, 0x38800000u, 5.9604644775390625e-8);
}
fn brain_float(value: f32) -> f32 {
    return small_float(value, 16u, 0u, 1.0);
}

// An f16 that has to be finite.
fn stored_half(value: f32) -> f32 {
    let rounded = half_float(value);
    if (bitcast<u32>(rounded) & 0x7fffffffu) >= 0x47800000u {
        flagged = true;
    }
    return rounded;
}

fn inverse_or_zero(scale: f32) -> f32 {
    if scale == 0.0 {
        return 0.0;
    }
    return divided(1.0, scale);
}
