
// Codes the block of this lane; false beyond the end of the row.
fn code_lane(place: vec3<u32>, lane: u32) -> bool {
    let row = place.y;
    let column = (place.x * LANES + lane) * RUN;
    if column >= params.row_len {
        return false;
    }
    for (var i = 0u; i < RUN; i++) {
        x[i] = load(row * params.row_len + column + i);
    }
    code_block(row, column);
    return true;
}
