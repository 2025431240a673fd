
// Writes what this lane has of its block: BYTES of ggml's layout.
fn write_run(at: u32, run: u32) {
    switch KIND {
        case Q4_K, Q5_K: {
            if run == 0u {
                put_half(at, head.x);
                put_half(at + 2u, head.y);
            }
            // Six bits each of scale and minimum; the upper two bits of the later runs lie with the earlier ones.
            if run < 4u {
                put_byte(at + 4u + run, parts.x);
                put_byte(at + 8u + run, parts.y);
            } else {
                put_byte(at + 8u + run, (parts.x & 15u) | ((parts.y & 15u) << 4u));
                put_byte(at + run, (parts.x >> 4u) << 6u);
                put_byte(at + 4u + run, (parts.y >> 4u) << 6u);
            }
            let nibbles = at + select(16u, 48u, KIND == Q5_K) + run / 2u * 32u;
            for (var i = 0u; i < RUN; i++) {
                put_byte(nibbles + i, (taken[i] & 15u) << (4u * (run % 2u)));
                if KIND == Q5_K {
                    put_byte(at + 16u + i, (taken[i] >> 4u) << run);
                }
            }
        }
        case Q2_K: {
            if run == 0u {
                put_half(at + 80u, head.x);
                put_half(at + 82u, head.y);
            }
            put_byte(at + run, parts.x | (parts.y << 4u));
            put_pairs(at + 16u, run);
        }
        case Q3_K: {
            if run == 0u {
                put_half(at + 108u, head.x);
            }
            put_pairs(at + 32u, run);
            for (var i = 0u; i < RUN; i++) {
                let weight = run * RUN + i;
                put_byte(at + weight % 32u, (taken[i] >> 2u) << (weight / 32u));
            }
            put_byte(at + 96u + run % 8u, (parts.x & 15u) << (4u * (run / 8u)));
            put_byte(at + 104u + run % 4u, (parts.x >> 4u) << (2u * (run / 4u)));
        }
        case Q6_K: {
            if run == 0u {
                put_half(at + 208u, head.x);
            }
            put_byte(at + 192u + run, parts.x);
            for (var i = 0u; i < RUN; i++) {
                let weight = run * RUN + i;
                let half = weight / 128u;
                let quarter = weight % 128u / 32u;
                let low = at + half * 64u + quarter % 2u * 32u + weight % 32u;
                put_byte(low, (taken[i] & 15u) << (4u * (quarter / 2u)));
                put_byte(at + 128u + half * 32u + weight % 32u, (taken[i] >> 4u) << (2u * quarter));
            }
        }
        default: {
            if run == 0u {
                put_half(at, head.x);
            }
            put_byte(at + 2u + run / 4u, (parts.x >> 4u) << (2u * (run % 4u)));
            put_byte(at + 4u + run / 2u, (parts.x & 15u) << (4u * (run % 2u)));
            for (var i = 0u; i < 16u; i++) {
                put_byte(at + 8u + run * 16u + i, taken[i] | (taken[i + RUN / 2u] << 4u));
            }
        }
    }
}

// Two bits a weight, four weights to a byte, 32 weights apart.
fn put_pairs(at: u32, run: u32) {
    for (var i = 0u; i < RUN; i++) {
        let weight = run * RUN + i;
        put_byte(at + weight / 128u * 32u + weight % 32u, (taken[i] & 3u) << (2u * (weight % 128u / 32u)));
    }
}

@compute @workgroup_size(64)
fn encode(@builtin(workgroup_id) place: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    if code_lane(place, lane) {
        let column = (place.x * LANES + lane) * RUN;
        write_run(place.y * params.row_bytes + column / 256u * BYTES, lane % RUNS);
        end_run(place.y);
    }
}
