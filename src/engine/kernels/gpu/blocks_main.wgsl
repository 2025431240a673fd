
@compute @workgroup_size(64)
fn scan(@builtin(workgroup_id) place: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = place.y;
    let column = (place.x * LANES + lane) * RUN;
    if column < params.row_len {
        for (var i = 0u; i < RUN; i++) {
            x[i] = load(row * params.row_len + column + i);
        }
        code_block(row, column);
    }
    close(lane, row * params.tiles + place.x);
}
