// The searches of one run of 32 weights to a block: q4_0, q4_1, q5_0, q5_1 by importance, and iq4_nl.
// WEIGHTED is given before.

fn weigh_by_row(row: u32, column: u32) {
    weigh_by_importance(column, scales[row].x);
}

fn weighted_around(row: u32, column: u32, max_code: f32) {
    weigh_by_row(row, column);
    let found = symmetric(max_code);
    let kept = stored_half(found.scale);
    for (var i = 0u; i < RUN; i++) {
        let code = clamp(round(found.inverse * x[i]), -max_code, max_code - 1.0);
        taken[i] = u32(code + max_code);
        add(x[i], code * kept);
    }
    head = vec2(kept, 0.0);
}

fn weighted_above(row: u32, column: u32, top: f32) {
    weigh_by_row(row, column);
    let found = with_minimum(top, Steps(-0.9, 0.05, 36, false));
    let kept = stored_half(found.scale);
    let offset = stored_half(-found.minimum);
    for (var i = 0u; i < RUN; i++) {
        let code = clamp(round(found.inverse * (x[i] - found.shift)), 0.0, top);
        taken[i] = u32(code);
        add(x[i], exact(code * kept) + offset);
    }
    head = vec2(kept, offset);
}

fn nonlinear(row: u32, column: u32) {
    if WEIGHTED {
        weigh_by_importance(column, sum_of_squares() * (2.0 / 32.0));
    } else {
        weigh_by_squares();
    }
    let scale = iq4_scale();
    let inverse = inverse_or_zero(scale);
    let kept = stored_half(scale);
    for (var i = 0u; i < RUN; i++) {
        taken[i] = iq4_code(inverse * x[i]);
        add(x[i], iq4_values[taken[i]] * kept);
    }
    head = vec2(kept, 0.0);
}
