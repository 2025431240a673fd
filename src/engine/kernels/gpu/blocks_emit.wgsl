
// Writes a block of 32 or 64 weights. LAYOUT and BYTES are given before.

const WRITES_Q4_0: u32 = 0u;
const WRITES_Q4_1: u32 = 1u;
const WRITES_Q5_0: u32 = 2u;
const WRITES_Q5_1: u32 = 3u;
const WRITES_Q8_0: u32 = 4u;
const WRITES_MXFP4: u32 = 5u;
const WRITES_IQ4_NL: u32 = 6u;

// Nibbles of the first and the second half of a block.
fn put_nibbles(at: u32) {
    for (var i = 0u; i < 16u; i += 4u) {
        var word = 0u;
        for (var k = 0u; k < 4u; k++) {
            word |= ((taken[i + k] & 15u) | ((taken[i + k + 16u] & 15u) << 4u)) << (8u * k);
        }
        put_word(at + i, word);
    }
}

fn put_fifth_bits(at: u32) {
    var word = 0u;
    for (var i = 0u; i < 32u; i++) {
        word |= (taken[i] >> 4u) << i;
    }
    put_word(at, word);
}

fn put_scale_around(at: u32) {
    if largest == 0u {
        // Zero divided by a negative number.
        put_pair(at, 0x8000u);
    } else {
        put_half(at, head.x);
    }
}

fn write_block(at: u32, row: u32, column: u32) {
    switch LAYOUT {
        case WRITES_Q4_0: {
            put_scale_around(at);
            put_nibbles(at + 2u);
        }
        case WRITES_Q4_1: {
            put_half(at, head.x);
            put_half(at + 2u, head.y);
            put_nibbles(at + 4u);
        }
        case WRITES_Q5_0: {
            put_scale_around(at);
            put_fifth_bits(at + 2u);
            put_nibbles(at + 6u);
        }
        case WRITES_Q5_1: {
            put_half(at, head.x);
            put_half(at + 2u, head.y);
            put_fifth_bits(at + 4u);
            put_nibbles(at + 8u);
        }
        case WRITES_Q8_0: {
            put_half(at, head.x);
            for (var i = 0u; i < 32u; i += 4u) {
                put_word(at + 2u + i, taken[i] | (taken[i + 1u] << 8u) | (taken[i + 2u] << 16u) | (taken[i + 3u] << 24u));
            }
        }
        case WRITES_MXFP4: {
            put_byte(at, u32(head.x));
            put_nibbles(at + 1u);
        }
        case WRITES_IQ4_NL: {
            put_half(at, head.x);
            put_nibbles(at + 2u);
        }
        default: {
            // A table: the first code of two in the upper half, all codes before all maxima.
            for (var i = 0u; i < RUN; i += 2u) {
                put_byte(at + i / 2u, (taken[i] << 4u) | taken[i + 1u]);
            }
            put_word(row * params.row_bytes + params.row_len / 2u + column / RUN * 4u, bitcast<u32>(head.x));
        }
    }
}

@compute @workgroup_size(64)
fn encode(@builtin(workgroup_id) place: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    if code_lane(place, lane) {
        let row = place.y;
        let column = (place.x * LANES + lane) * RUN;
        write_block(row * params.row_bytes + column / RUN * BYTES, row, column);
        end_run(row);
    }
}
