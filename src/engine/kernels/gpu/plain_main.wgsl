
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
