// Blocks of 256 weights, a lane to each run: q2_k, q3_k, q4_k, q5_k, q6_k and iq4_xs. The lanes of a
// block tell each other what their run's search found, then each codes its run by the rounded scales.
// KIND, RUN and WEIGHTED are given before; the entry points are in files of their own.

const Q2_K: u32 = 0u;
const Q3_K: u32 = 1u;
const Q4_K: u32 = 2u;
const Q5_K: u32 = 3u;
const Q6_K: u32 = 4u;
const IQ4_XS: u32 = 5u;
const RUNS: u32 = 256u / RUN;

var<workgroup> told: array<vec4<f32>, LANES>;
// The codes of a run's scale and minimum, for an encoder.
var<private> parts: vec2<u32>;

// The sum of squares of a whole block, in the reference's order.
fn block_squares(first: u32) -> f32 {
    var sum = 0.0;
    for (var i = 0u; i < 256u; i++) {
        let weight = bitcast<f32>(weights[first + i]);
        sum += exact(weight * weight);
    }
    return sum;
}

fn weigh(at: u32, column: u32) {
    if WEIGHTED {
        let squares = block_squares(at - column % 256u);
        switch KIND {
            case Q6_K: {
                // Taken as it is here, unlike in the other formats.
                for (var i = 0u; i < RUN; i++) {
                    w[i] = importance[column + i];
                }
            }
            case Q2_K: {
                weigh_by_importance(column, squares / 256.0);
            }
            default: {
                weigh_by_importance(column, 2.0 * squares / 256.0);
            }
        }
        return;
    }
    switch KIND {
        case Q2_K: {
            for (var i = 0u; i < RUN; i++) {
                w[i] = abs(x[i]);
            }
        }
        case Q4_K, Q5_K: {
            let mean = root(sum_of_squares() / 32.0);
            for (var i = 0u; i < RUN; i++) {
                w[i] = mean + abs(x[i]);
            }
        }
        default: {
            weigh_by_squares();
        }
    }
}

// Scale and minimum of this lane's run, and the sum of its weights.
fn search_run() -> vec4<f32> {
    var sum = 0.0;
    for (var i = 0u; i < RUN; i++) {
        sum += w[i];
    }
    switch KIND {
        case Q2_K, Q4_K, Q5_K: {
            var steps = Steps(-0.9, 0.05, 36, false);
            var top = 15.0;
            if KIND == Q2_K {
                top = 3.0;
                if !WEIGHTED {
                    steps = Steps(-0.5, 0.1, 15, true);
                }
            } else if KIND == Q5_K {
                top = 31.0;
                if !WEIGHTED {
                    steps = Steps(-0.5, 0.1, 15, false);
                }
            } else if !WEIGHTED {
                steps = Steps(-1.0, 0.1, 20, false);
            }
            let found = with_minimum(top, steps);
            return vec4(found.scale, found.minimum, sum, 0.0);
        }
        case Q3_K: {
            if WEIGHTED {
                return vec4(symmetric(4.0).scale, 0.0, sum, 0.0);
            }
            return vec4(symmetric_greedy(4.0), 0.0, sum, 0.0);
        }
        case Q6_K: {
            return vec4(symmetric(32.0).scale, 0.0, sum, 0.0);
        }
        default: {
            return vec4(iq4_scale(), 0.0, sum, 0.0);
        }
    }
}

// Codes a run with scale and minimum of its own, as multiples of those of its block.
fn code_affine(lane: u32, first: u32, top: f32, scale_top: i32) {
    let own = told[lane];
    let run = lane - first;
    var scale = 0.0;
    var minimum = 0.0;
    if WEIGHTED {
        for (var i = 0u; i < RUNS; i++) {
            sx[i] = told[first + i].x;
            sw[i] = told[first + i].z;
        }
        let block_scale = stored_half(positive(RUNS, scale_top));
        scale = block_scale * f32(codes[run]);
        parts.x = u32(codes[run]);
        for (var i = 0u; i < RUNS; i++) {
            sx[i] = told[first + i].y;
        }
        let block_minimum = stored_half(positive(RUNS, scale_top));
        minimum = block_minimum * f32(codes[run]);
        parts.y = u32(codes[run]);
        head = vec2(block_scale, block_minimum);
    } else {
        var most = vec2(0.0);
        for (var i = 0u; i < RUNS; i++) {
            most = max(most, told[first + i].xy);
        }
        let steps = f32(scale_top);
        if most.x > 0.0 {
            head.x = stored_half(divided(most.x, steps));
            let code = round(divided(steps, most.x) * own.x);
            parts.x = u32(code);
            scale = head.x * code;
        }
        if most.y > 0.0 {
            head.y = stored_half(divided(most.y, steps));
            let code = round(divided(steps, most.y) * own.y);
            parts.y = u32(code);
            minimum = head.y * code;
        }
    }
    for (var i = 0u; i < RUN; i++) {
        var code = 0.0;
        if scale != 0.0 {
            code = clamp(round(divided(x[i] + minimum, scale)), 0.0, top);
        }
        taken[i] = u32(code);
        add(x[i], exact(scale * code) - minimum);
    }
}

// Notes what an encoder writes of a block's scale and of this run's.
fn emit_scale(block_scale: f32, code: i32) {
    head = vec2(block_scale, 0.0);
    parts = vec2(u32(code) & 0xffu, 0u);
}

// Codes a run around zero by a rounded scale.
fn code_symmetric(scale: f32, max_code: f32) {
    for (var i = 0u; i < RUN; i++) {
        var code = 0.0;
        if scale != 0.0 {
            code = clamp(round(divided(x[i], scale)), -max_code, max_code - 1.0);
        }
        taken[i] = u32(code + max_code);
        add(x[i], scale * code);
    }
}

fn code_run(lane: u32) {
    let first = lane - lane % RUNS;
    var most = 0.0;
    for (var i = 0u; i < RUNS; i++) {
        if abs(told[first + i].x) > abs(most) {
            most = told[first + i].x;
        }
    }
    let own = told[lane].x;
    switch KIND {
        case Q2_K: {
            code_affine(lane, first, 3.0, 15);
        }
        case Q4_K: {
            code_affine(lane, first, 15.0, 63);
        }
        case Q5_K: {
            code_affine(lane, first, 31.0, 63);
        }
        case Q3_K: {
            if WEIGHTED {
                for (var i = 0u; i < 16u; i++) {
                    sx[i] = told[first + i].x;
                    sw[i] = told[first + i].z;
                }
                let block_scale = stored_half(symmetric_scales(32.0));
                let code = codes[lane - first];
                emit_scale(block_scale, code + 32);
                code_symmetric(block_scale * f32(code), 4.0);
            } else if most == 0.0 {
                emit_scale(0.0, 32);
                code_symmetric(0.0, 4.0);
            } else {
                let inverse = divided(-32.0, most);
                let code = clamp(round(inverse * own), -32.0, 31.0);
                let kept = stored_half(divided(1.0, inverse));
                emit_scale(kept, i32(code) + 32);
                code_symmetric(kept * code, 4.0);
            }
        }
        case Q6_K: {
            if abs(most) < NOTHING {
                emit_scale(0.0, 0);
                code_symmetric(0.0, 32.0);
            } else {
                let inverse = divided(-128.0, most);
                let code = min(round(inverse * own), 127.0);
                let kept = stored_half(divided(1.0, inverse));
                emit_scale(kept, i32(code));
                code_symmetric(kept * code, 32.0);
            }
        }
        default: {
            let scale = -most / 32.0;
            let code = clamp(round(inverse_or_zero(scale) * own), -32.0, 31.0);
            let inverse = inverse_or_zero(scale * code);
            let block_scale = stored_half(scale);
            let kept = block_scale * code;
            emit_scale(block_scale, i32(code) + 32);
            for (var i = 0u; i < RUN; i++) {
                taken[i] = iq4_code(inverse * x[i]);
                add(x[i], iq4_values[taken[i]] * kept);
            }
        }
    }
}

// Loads, searches and codes the run of this lane; false where the row has ended.
fn code_lane(place: vec3<u32>, lane: u32) -> bool {
    let row = place.y;
    let column = (place.x * LANES + lane) * RUN;
    let is_real = column < params.row_len;
    if is_real {
        for (var i = 0u; i < RUN; i++) {
            x[i] = load(row * params.row_len + column + i);
        }
        weigh(row * params.row_len + column, column);
        told[lane] = search_run();
    }
    workgroupBarrier();
    if is_real {
        code_run(lane);
    }
    return is_real;
}
