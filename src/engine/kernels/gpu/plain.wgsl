// Formats that round each weight by itself, under a scale or none. MODE, TOP are given before.

const F16: u32 = 0u;
const BF16: u32 = 1u;
const F32: u32 = 2u;
const INTEGER: u32 = 3u;
const E4M3: u32 = 4u;
const E5M2: u32 = 5u;
const COLUMNS: u32 = 2048u;

fn decoded(weight: f32, grid: vec2<f32>) -> f32 {
    switch MODE {
        case F16: {
            return stored_half(weight);
        }
        case BF16: {
            return brain_float(weight);
        }
        case INTEGER: {
            return (round(clamp(divided(weight, grid.x) + grid.y, 0.0, TOP)) - grid.y) * grid.x;
        }
        case E4M3: {
            return small_float(clamp(divided(weight, grid.x), -TOP, TOP), 20u, 0x3c800000u, 0.001953125) * grid.x;
        }
        case E5M2: {
            return small_float(clamp(divided(weight, grid.x), -TOP, TOP), 21u, 0x38800000u, 0.0000152587890625) * grid.x;
        }
        default: {
            return weight;
        }
    }
}

@compute @workgroup_size(64)
fn scan(@builtin(workgroup_id) place: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = place.y;
    let end = min(params.row_len, (place.x + 1u) * COLUMNS);
    for (var column = place.x * COLUMNS + lane; column < end; column += LANES) {
        let weight = load(row * params.row_len + column);
        var grid = vec2(1.0, 0.0);
        if MODE >= INTEGER {
            grid = scales[row * params.groups + column / params.group];
        }
        add(weight, decoded(weight, grid));
    }
    close(lane, row * params.tiles + place.x);
}
