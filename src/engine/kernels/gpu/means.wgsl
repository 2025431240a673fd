// The mean square of every row, for the weights of errors of the 32-weight blocks.

@compute @workgroup_size(64)
fn find(@builtin(workgroup_id) place: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = place.x;
    var sum = 0.0;
    for (var column = lane; column < params.row_len; column += LANES) {
        let weight = bitcast<f32>(weights[row * params.row_len + column]);
        sum += weight * weight;
    }
    tallies[lane] = vec4(sum, 0.0, 0.0, 0.0);
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            tallies[lane] += tallies[lane + half];
        }
    }
    if lane == 0u {
        scales[row] = vec2(tallies[0].x / f32(params.row_len), 0.0);
    }
}
