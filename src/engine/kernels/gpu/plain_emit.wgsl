
// Writes integer groups and 8-bit floats, 32 weights a lane: a stream of codes, then scales, then zeros.

const PER_LANE: u32 = 32u;

fn code_of(weight: f32, grid: vec2<f32>) -> u32 {
    if MODE == INTEGER {
        return u32(integer_code(weight, grid));
    }
    let size = bitcast<u32>(eight_bits(weight, grid)) & 0x7fffffffu;
    let sign = (bitcast<u32>(weight) >> 24u) & 0x80u;
    if MODE == E4M3 {
        return sign | select(u32(bitcast<f32>(size) * 512.0), (size - 0x3c000000u) >> 20u, size >= 0x3c800000u);
    }
    return sign | select(u32(bitcast<f32>(size) * 65536.0), (size - 0x38000000u) >> 21u, size >= 0x38800000u);
}

// Scale number `index` of the row whose scales begin at `at`.
fn put_scale(at: u32, index: u32, scale: f32) {
    switch SCALE {
        case F16: {
            put_half(at + 2u * index, scale);
        }
        case BF16: {
            put_pair(at + 2u * index, bitcast<u32>(scale) >> 16u);
        }
        default: {
            put_word(at + 4u * index, bitcast<u32>(scale));
        }
    }
}

@compute @workgroup_size(64)
fn encode(@builtin(workgroup_id) place: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = place.y;
    let first = (place.x * LANES + lane) * PER_LANE;
    if first >= params.row_len {
        return;
    }
    let end = min(first + PER_LANE, params.row_len);
    let begin = row * params.row_bytes;
    var words: array<u32, 9>;
    for (var column = first; column < end; column++) {
        let group = column / params.group;
        let grid = scales[row * params.groups + group];
        let code = code_of(load(row * params.row_len + column), grid);
        let bit = (column - first) * BITS;
        words[bit / 32u] |= code << (bit % 32u);
        if bit % 32u + BITS > 32u {
            words[bit / 32u + 1u] |= code >> (32u - bit % 32u);
        }
        if column % params.group == 0u {
            put_scale(begin + params.scales_at, group, grid.x);
            if !SYMMETRIC {
                put_byte(begin + params.zeros_at + group, u32(grid.y));
            }
        }
    }
    // Words beyond the end of the row are zero and change nothing.
    for (var i = 0u; i < BITS; i++) {
        put_word(begin + first / 8u * BITS + 4u * i, words[i]);
    }
    end_run(row);
}
