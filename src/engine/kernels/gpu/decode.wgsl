// 16-bit floats, two in a word, to the f32 that the scans read. HALF says which; `params.rows` words.

struct Params {
    row_len: u32,
    rows: u32,
    group: u32,
    groups: u32,
    tiles: u32,
    width: u32,
}

@group(0) @binding(0) var<storage, read> words: array<u32>;
@group(0) @binding(2) var<storage, read_write> weights: array<u32>;
@group(0) @binding(4) var<uniform> params: Params;

// The bits of the f32 that has the value of an f16.
fn widened(bits: u32) -> u32 {
    let sign = (bits & 0x8000u) << 16u;
    let exponent = (bits >> 10u) & 31u;
    let fraction = bits & 0x3ffu;
    if exponent == 31u {
        return sign | 0x7f800000u | (fraction << 13u);
    }
    if exponent == 0u {
        return sign | bitcast<u32>(f32(fraction) * 5.9604644775390625e-8);
    }
    return sign | ((exponent + 112u) << 23u) | (fraction << 13u);
}

@compute @workgroup_size(64)
fn widen(@builtin(global_invocation_id) place: vec3<u32>) {
    let at = place.y * params.width + place.x;
    if at >= params.rows {
        return;
    }
    let word = words[at];
    if HALF {
        weights[2u * at] = widened(word & 0xffffu);
        weights[2u * at + 1u] = widened(word >> 16u);
    } else {
        weights[2u * at] = word << 16u;
        weights[2u * at + 1u] = word & 0xffff0000u;
    }
}
