// bitsandbytes' tables of 16 values: `levels` in rising `order` of their codes and the `bounds` between them are given before, and
// NESTED where maxima come back from eight bits.

fn table_codes(row: u32, column: u32) {
    let most = abs(signed_max());
    let inverse = divided(1.0, max(most, 1e-30));
    var kept = most;
    if NESTED {
        kept = scales[row * params.groups + column / RUN].x;
    }
    for (var i = 0u; i < RUN; i++) {
        let place = clamp(x[i] * inverse, -1.0, 1.0);
        var bucket = 0u;
        for (var bound = 0u; bound < 15u; bound++) {
            bucket += select(0u, 1u, bounds[bound] < place);
        }
        taken[i] = order[bucket];
        add(x[i], levels[bucket] * kept);
    }
    head = vec2(kept, 0.0);
}
