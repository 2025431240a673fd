
// What every encoder shares: the bytes that it writes, and the flags of rows that the host has to encode.
//
// The rows lie one after another, whatever their length, so that lanes meet in words: each adds its own
// bits to what was cleared before.

@group(0) @binding(3) var<storage, read_write> encoded: array<atomic<u32>>;

fn put_byte(at: u32, byte: u32) {
    if byte != 0u {
        atomicOr(&encoded[at / 4u], byte << (8u * (at % 4u)));
    }
}

fn put_word(at: u32, word: u32) {
    let shift = 8u * (at % 4u);
    atomicOr(&encoded[at / 4u], word << shift);
    if shift > 0u {
        atomicOr(&encoded[at / 4u + 1u], word >> (32u - shift));
    }
}

// Two bytes of which the upper may lie in the next word.
fn put_pair(at: u32, bits: u32) {
    put_byte(at, bits & 0xffu);
    put_byte(at + 1u, bits >> 8u);
}

// A number that f16 holds exactly.
fn put_half(at: u32, value: f32) {
    let bits = bitcast<u32>(value);
    let size = bits & 0x7fffffffu;
    var code = u32(bitcast<f32>(size) * 16777216.0);
    if size >= 0x38800000u {
        code = (size - 0x38000000u) >> 13u;
    }
    put_pair(at, code | ((bits >> 16u) & 0x8000u));
}

// After a run: flags its row where the reference has to encode it.
fn end_run(row: u32) {
    if flagged || (largest != 0u && (largest < TINY || largest >= HUGE)) {
        atomicOr(&encoded[params.flags_at + row], 1u);
    }
}
