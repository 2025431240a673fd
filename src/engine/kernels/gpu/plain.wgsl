// Formats that round each weight by itself, under a scale or none. MODE and TOP are given before, and for an encoder BITS,
// SCALE and SYMMETRIC.

const F16: u32 = 0u;
const BF16: u32 = 1u;
const F32: u32 = 2u;
const INTEGER: u32 = 3u;
const E4M3: u32 = 4u;
const E5M2: u32 = 5u;
const COLUMNS: u32 = 2048u;

fn integer_code(weight: f32, grid: vec2<f32>) -> f32 {
    return round(clamp(divided(weight, grid.x) + grid.y, 0.0, TOP));
}

// The nearest 8-bit float of a weight under its scale.
fn eight_bits(weight: f32, grid: vec2<f32>) -> f32 {
    let place = clamp(divided(weight, grid.x), -TOP, TOP);
    if MODE == E4M3 {
        return small_float(place, 20u, 0x3c800000u, 0.001953125);
    }
    return small_float(place, 21u, 0x38800000u, 0.0000152587890625);
}

fn decoded(weight: f32, grid: vec2<f32>) -> f32 {
    switch MODE {
        case F16: {
            return stored_half(weight);
        }
        case BF16: {
            return brain_float(weight);
        }
        case INTEGER: {
            return (integer_code(weight, grid) - grid.y) * grid.x;
        }
        case E4M3, E5M2: {
            return eight_bits(weight, grid) * grid.x;
        }
        default: {
            return weight;
        }
    }
}
