// The scale (and zero) of every group of every row, for `plain.wgsl`. MODE, TOP, MIDDLE, SYMMETRIC,
// SCALE, SEARCH and SIDE (lanes a group, a power of two, eight for a search) are given before; for a
// percentile CLIPS and the place of the magnitude in a whole and in the last group, BELOW, PART and REST.

const F16: u32 = 0u;
const BF16: u32 = 1u;
const INTEGER: u32 = 3u;

var<workgroup> sums: array<f32, LANES>;
var<workgroup> lows: array<f32, LANES>;
var<workgroup> highs: array<f32, LANES>;

// The scale as it is stored: at most the type's largest, and its epsilon instead of zero.
fn stored(scale: f32) -> f32 {
    var rounded = scale;
    var most = 3.4028234663852886e38;
    var epsilon = 1.1920928955078125e-7;
    if SCALE == F16 {
        rounded = half_float(scale);
        most = 65504.0;
        epsilon = 0.0009765625;
    } else if SCALE == BF16 {
        rounded = brain_float(scale);
        epsilon = 0.0078125;
    }
    if rounded == 0.0 {
        return epsilon;
    }
    return min(rounded, most);
}

fn grid_of(low: f32, high: f32) -> vec2<f32> {
    if SYMMETRIC {
        return vec2(stored(divided(max(high, -low), TOP * 0.5)), MIDDLE);
    }
    let scale = divided(high * 0.5 - low * 0.5, TOP) * 2.0;
    var zero = MIDDLE;
    if scale > 0.0 {
        zero = clamp(round(divided(-low, scale) - MIDDLE) + MIDDLE, 0.0, TOP);
    }
    return vec2(stored(scale), zero);
}

// The sum over the eight lanes of a group, one after another, in each of them.
fn total(value: f32, lane: u32) -> f32 {
    workgroupBarrier();
    sums[lane] = value;
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < SIDE; i++) {
        sum += sums[lane - lane % SIDE + i];
    }
    return sum;
}

fn finite(at: u32) -> f32 {
    let bits = weights[at];
    if (bits & 0x7fffffffu) >= 0x7f800000u {
        return 0.0;
    }
    return bitcast<f32>(bits);
}

// How many magnitudes of a group are less than one with these bits.
fn count_below(bits: u32, at: u32, first: u32, end: u32, lane: u32) -> u32 {
    var count = 0u;
    for (var column = first + lane % SIDE; column < end; column += SIDE) {
        count += select(0u, 1u, (weights[at + column] & 0x7fffffffu) < bits);
    }
    // Counts of a group are exact in f32.
    return u32(total(f32(count), lane));
}

// The magnitude that the given share of a group does not exceed, between two of them linearly.
fn magnitude(at: u32, first: u32, end: u32, lane: u32) -> f32 {
    let is_whole = end - first == params.group;
    let below = select(LAST_BELOW, WHOLE_BELOW, is_whole);
    let part = select(LAST_PART, WHOLE_PART, is_whole);
    let rest = select(LAST_REST, WHOLE_REST, is_whole);
    var found = 0u;
    for (var bit = 31u; bit > 0u; bit--) {
        let trial = found | (1u << (bit - 1u));
        if count_below(trial, at, first, end, lane) <= below {
            found = trial;
        }
    }
    let lower = bitcast<f32>(found);
    // Several of the same size?
    let up_to = count_below(found + 1u, at, first, end, lane);
    var next = 0x7f800000u;
    for (var column = first + lane % SIDE; column < end; column += SIDE) {
        let size = weights[at + column] & 0x7fffffffu;
        if size > found {
            next = min(next, size);
        }
    }
    workgroupBarrier();
    sums[lane] = bitcast<f32>(next);
    workgroupBarrier();
    var upper = sums[lane - lane % SIDE];
    for (var i = 1u; i < SIDE; i++) {
        upper = min(upper, sums[lane - lane % SIDE + i]);
    }
    if up_to > below + 1u || bitcast<u32>(upper) >= 0x7f800000u {
        return lower;
    }
    // The share is kept in two floats, so that the product is the reference's, which is taken in f64.
    let distance = upper - lower;
    let product = exact(part * distance);
    return lower + exact(product + (exact(rest * distance) - remainder(product, part, distance)));
}

fn weighted_error(grid: vec2<f32>, at: u32, column: u32) -> f32 {
    let weight = finite(at + column);
    let code = round(clamp(divided(weight, grid.x) + grid.y, 0.0, TOP));
    let error = weight - exact(grid.x * (code - grid.y));
    return exact(importance[column] * error * error);
}

// Squared error of a group on a grid, weighted by importance, in the reference's eight lanes: those
// that fill no whole eight go to the first.
fn error_of(grid: vec2<f32>, at: u32, first: u32, end: u32, lane: u32) -> f32 {
    let whole = end - (end - first) % SIDE;
    var sum = 0.0;
    for (var column = first + lane % SIDE; column < whole; column += SIDE) {
        sum += weighted_error(grid, at, column);
    }
    if lane % SIDE == 0u {
        for (var column = whole; column < end; column++) {
            sum += weighted_error(grid, at, column);
        }
    }
    return total(sum, lane);
}

@compute @workgroup_size(64)
fn find(@builtin(workgroup_id) place: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = (place.y * params.width + place.x) * (LANES / SIDE) + lane / SIDE;
    let is_real = index < params.rows * params.groups;
    let row = select(0u, index / params.groups, is_real);
    let first = select(0u, index % params.groups * params.group, is_real);
    let end = min(first + params.group, params.row_len);
    let at = row * params.row_len;
    var low = 0.0;
    var high = 0.0;
    for (var column = first + lane % SIDE; column < end; column += SIDE) {
        let weight = finite(at + column);
        low = min(low, weight);
        high = max(high, weight);
    }
    lows[lane] = low;
    highs[lane] = high;
    for (var half = SIDE / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane % SIDE < half {
            lows[lane] = min(lows[lane], lows[lane + half]);
            highs[lane] = max(highs[lane], highs[lane + half]);
        }
    }
    workgroupBarrier();
    low = lows[lane - lane % SIDE];
    high = highs[lane - lane % SIDE];
    if CLIPS {
        let most = magnitude(at, first, end, lane);
        low = max(low, -most);
        high = min(high, most);
    }
    var best: vec2<f32>;
    if MODE == INTEGER {
        best = grid_of(low, high);
    } else {
        let scale = divided(max(high, -low), TOP);
        best = vec2(select(scale, 1.1920928955078125e-7, scale == 0.0), 0.0);
    }
    if SEARCH {
        var least = error_of(best, at, first, end, lane);
        var chosen = 100;
        // Every third step first, then the neighbours of the best.
        for (var step = 1; step <= 26; step++) {
            let share = divided(f32(100 - 3 * step), 100.0);
            let grid = grid_of(exact(low * share), exact(high * share));
            let sum = error_of(grid, at, first, end, lane);
            if sum < least {
                best = grid;
                least = sum;
                chosen = 100 - 3 * step;
            }
        }
        let centre = chosen;
        for (var step = 0; step < 4; step++) {
            let percent = centre + select(step - 2, step - 1, step >= 2);
            let share = divided(f32(percent), 100.0);
            let grid = grid_of(exact(low * share), exact(high * share));
            let sum = error_of(grid, at, first, end, lane);
            if percent >= 20 && percent < 100 && sum < least {
                best = grid;
                least = sum;
            }
        }
    }
    if is_real && lane % SIDE == 0u {
        scales[index] = best;
    }
}
