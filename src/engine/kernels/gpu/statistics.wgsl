// Statistics of a tensor's rows: `count` the patterns of 16-bit floats, `count_bytes` those of 8-bit ones, `survey` and `spread` f32. A
// workgroup has a tile of one row. What is counted is exact; sums are of one tile each.

struct Params {
    row_len: u32,
    rows: u32,
    // Rows that share a range.
    fold: u32,
    // Index of the first row.
    first_row: u32,
    // Tiles a row.
    tiles: u32,
    // The pattern of infinity, or the first of a magnitude that is not finite.
    infinity: u32,
}

@group(0) @binding(0) var<storage, read> words: array<u32>;
// For `spread`: the first key of each bin but the first, the keys between which each of three tails
// is not, and the mean as two floats and a factor.
@group(0) @binding(1) var<storage, read> limits: array<u32>;
@group(0) @binding(2) var<storage, read_write> figures: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> counts: array<atomic<u32>>;
@group(0) @binding(4) var<uniform> params: Params;

const LANES: u32 = 64u;
const COLUMNS: u32 = 4096u;
const PATTERNS: u32 = 65536u;
const BINS: u32 = 256u;
// After the counts of NaN, infinities and zeros.
const RANGES: u32 = 4u;

var<workgroup> lows: array<u32, LANES>;
var<workgroup> highs: array<u32, LANES>;
var<workgroup> sums: array<vec4<f32>, LANES>;
var<workgroup> bins: array<atomic<u32>, BINS>;

// Folds the ranges of the lanes and widens that of the row's entry, which begins at `at`.
fn widen_range(lane: u32, row: u32, at: u32, low: u32, high: u32) {
    lows[lane] = low;
    highs[lane] = high;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            lows[lane] = min(lows[lane], lows[lane + half]);
            highs[lane] = max(highs[lane], highs[lane + half]);
        }
    }
    if lane == 0u && lows[0] <= highs[0] {
        let entry = (params.first_row + row) / params.fold;
        atomicMin(&counts[at + 2u * entry], lows[0]);
        atomicMax(&counts[at + 2u * entry + 1u], highs[0]);
    }
}

fn add_up(lane: u32, tile: u32, sum: vec4<f32>) {
    sums[lane] = sum;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            sums[lane] += sums[lane + half];
        }
    }
    if lane == 0u {
        figures[tile] = sums[0];
    }
}

@compute @workgroup_size(64)
fn count(@builtin(workgroup_id) place: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = place.y;
    let end = min(params.row_len, (place.x + 1u) * COLUMNS);
    var low = 0xffffffffu;
    var high = 0u;
    for (var column = place.x * COLUMNS + lane; column < end; column += LANES) {
        let at = row * params.row_len + column;
        let bits = (words[at / 2u] >> (16u * (at % 2u))) & 0xffffu;
        atomicAdd(&counts[bits], 1u);
        if (bits & 0x7fffu) < params.infinity {
            // Ordered as the values are.
            let key = select(bits + 0x8000u, 0xffffu - bits, bits >= 0x8000u);
            low = min(low, key);
            high = max(high, key);
        }
    }
    widen_range(lane, row, PATTERNS, low, high);
}

@compute @workgroup_size(64)
fn count_bytes(@builtin(workgroup_id) place: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    for (var bin = lane; bin < BINS; bin += LANES) {
        atomicStore(&bins[bin], 0u);
    }
    workgroupBarrier();
    let row = place.y;
    let end = min(params.row_len, (place.x + 1u) * COLUMNS);
    var low = 0xffffffffu;
    var high = 0u;
    for (var column = place.x * COLUMNS + lane; column < end; column += LANES) {
        let at = row * params.row_len + column;
        let bits = (words[at / 4u] >> (8u * (at % 4u))) & 0xffu;
        atomicAdd(&bins[bits], 1u);
        if (bits & 0x7fu) < params.infinity {
            // Ordered as the values are.
            let key = select(bits + 0x80u, 0xffu - bits, bits >= 0x80u);
            low = min(low, key);
            high = max(high, key);
        }
    }
    workgroupBarrier();
    for (var bin = lane; bin < BINS; bin += LANES) {
        let found = atomicLoad(&bins[bin]);
        if found > 0u {
            atomicAdd(&counts[bin], found);
        }
    }
    widen_range(lane, row, BINS, low, high);
}

// Ordered as the values are.
fn key_of(bits: u32) -> u32 {
    return select(bits | 0x80000000u, ~bits, bits >= 0x80000000u);
}

@compute @workgroup_size(64)
fn survey(@builtin(workgroup_id) place: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = place.y;
    let end = min(params.row_len, (place.x + 1u) * COLUMNS);
    var low = 0xffffffffu;
    var high = 0u;
    var sum = 0.0;
    for (var column = place.x * COLUMNS + lane; column < end; column += LANES) {
        let bits = words[row * params.row_len + column];
        let size = bits & 0x7fffffffu;
        if size < params.infinity {
            let key = key_of(bits);
            low = min(low, key);
            high = max(high, key);
            sum += bitcast<f32>(bits);
            if size == 0u {
                atomicAdd(&counts[2], 1u);
            }
        } else {
            atomicAdd(&counts[select(1u, 0u, size > params.infinity)], 1u);
        }
    }
    widen_range(lane, row, RANGES, low, high);
    add_up(lane, row * params.tiles + place.x, vec4(sum, 0.0, 0.0, 0.0));
}

@compute @workgroup_size(64)
fn spread(@builtin(workgroup_id) place: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    for (var bin = lane; bin < BINS; bin += LANES) {
        atomicStore(&bins[bin], 0u);
    }
    workgroupBarrier();
    let row = place.y;
    let end = min(params.row_len, (place.x + 1u) * COLUMNS);
    let tails = BINS - 1u;
    let mean = vec2(bitcast<f32>(limits[tails + 6u]), bitcast<f32>(limits[tails + 7u]));
    let factor = bitcast<f32>(limits[tails + 8u]);
    var beyond = vec3(0u);
    var powers = vec4(0.0);
    for (var column = place.x * COLUMNS + lane; column < end; column += LANES) {
        let bits = words[row * params.row_len + column];
        if (bits & 0x7fffffffu) >= params.infinity {
            continue;
        }
        let key = key_of(bits);
        var bin = 0u;
        for (var step = BINS / 2u; step > 0u; step /= 2u) {
            if key >= limits[bin + step - 1u] {
                bin += step;
            }
        }
        atomicAdd(&bins[bin], 1u);
        for (var tail = 0u; tail < 3u; tail++) {
            let is_beyond = key < limits[tails + 2u * tail] || key >= limits[tails + 2u * tail + 1u];
            beyond[tail] += select(0u, 1u, is_beyond);
        }
        let distance = ((bitcast<f32>(bits) - mean.x) - mean.y) * factor;
        let square = distance * distance;
        powers += vec4(square, square * distance, square * square, 0.0);
    }
    for (var tail = 0u; tail < 3u; tail++) {
        if beyond[tail] > 0u {
            atomicAdd(&counts[BINS + tail], beyond[tail]);
        }
    }
    workgroupBarrier();
    for (var bin = lane; bin < BINS; bin += LANES) {
        let found = atomicLoad(&bins[bin]);
        if found > 0u {
            atomicAdd(&counts[bin], found);
        }
    }
    add_up(lane, row * params.tiles + place.x, powers);
}
