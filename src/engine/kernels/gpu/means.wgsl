// The mean square of every row, for the weights of errors of the 32-weight blocks. Summed one by one
// in the reference's order: the searches see every bit.

const STRETCH: u32 = 1024u;

var<workgroup> squares: array<f32, STRETCH>;

@compute @workgroup_size(64)
fn find(@builtin(workgroup_id) place: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = place.x;
    var sum = 0.0;
    for (var first = 0u; first < params.row_len; first += STRETCH) {
        let count = min(STRETCH, params.row_len - first);
        for (var i = lane; i < count; i += LANES) {
            let weight = bitcast<f32>(weights[row * params.row_len + first + i]);
            squares[i] = exact(weight * weight);
        }
        workgroupBarrier();
        if lane == 0u {
            for (var i = 0u; i < count; i++) {
                sum += squares[i];
            }
        }
        workgroupBarrier();
    }
    if lane == 0u {
        scales[row] = vec2(divided(sum, f32(params.row_len)), 0.0);
    }
}
