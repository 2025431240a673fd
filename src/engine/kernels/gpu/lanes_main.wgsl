
@compute @workgroup_size(64)
fn scan(@builtin(workgroup_id) place: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    _ = code_lane(place, lane);
    close(lane, place.y * params.tiles + place.x);
}
