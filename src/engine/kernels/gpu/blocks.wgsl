// ggml's blocks of 32 weights without a search, and the tables of bitsandbytes. KIND and RUN are
// given before, EMITS too, and for tables LEVELS, BOUNDS, ORDER and NESTED.

const Q4_0: u32 = 0u;
const Q4_1: u32 = 1u;
const Q5_0: u32 = 2u;
const Q5_1: u32 = 3u;
const Q8_0: u32 = 4u;
const MXFP4: u32 = 5u;

var<private> x: array<f32, RUN>;
// What an encoder writes: codes, and the scale and offset as they are stored.
var<private> taken: array<u32, RUN>;
var<private> head: vec2<f32>;

// The first value of largest magnitude.
fn signed_max() -> f32 {
    var most = 0.0;
    for (var i = 0u; i < RUN; i++) {
        if abs(x[i]) > abs(most) {
            most = x[i];
        }
    }
    return most;
}

// Codes around `middle`, up to 2 × middle − 1.
fn around(middle: f32) {
    let scale = divided(signed_max(), -middle);
    let inverse = inverse_or_zero(scale);
    let kept = stored_half(scale);
    for (var i = 0u; i < RUN; i++) {
        let code = min(trunc(exact(x[i] * inverse) + (middle + 0.5)), 2.0 * middle - 1.0);
        taken[i] = u32(code);
        add(x[i], (code - middle) * kept);
    }
    head = vec2(kept, 0.0);
}

// Codes from the minimum on, up to `top`.
fn above(top: f32) {
    var low = x[0];
    var high = x[0];
    for (var i = 1u; i < RUN; i++) {
        low = min(low, x[i]);
        high = max(high, x[i]);
    }
    let scale = divided(high - low, top);
    let inverse = inverse_or_zero(scale);
    let kept = stored_half(scale);
    let offset = stored_half(low);
    for (var i = 0u; i < RUN; i++) {
        let code = min(trunc(exact((x[i] - low) * inverse) + 0.5), top);
        taken[i] = u32(code);
        add(x[i], exact(code * kept) + offset);
    }
    // Of zeros the first decides the sign of the minimum.
    if EMITS && low == 0.0 {
        flagged = true;
    }
    head = vec2(kept, offset);
}

fn bytes() {
    let scale = divided(abs(signed_max()), 127.0);
    let inverse = inverse_or_zero(scale);
    let kept = stored_half(scale);
    for (var i = 0u; i < RUN; i++) {
        let place = exact(abs(x[i] * inverse));
        let whole = floor(place);
        let code = select(whole, whole + 1.0, place - whole >= 0.5);
        let signed = select(code, -code, x[i] * inverse < 0.0);
        taken[i] = u32(i32(signed)) & 0xffu;
        add(x[i], signed * kept);
    }
    head = vec2(kept, 0.0);
}

fn microscaled() {
    let most = abs(signed_max());
    let bits = bitcast<u32>(most);
    // ggml takes a rounded logarithm, which just below a power of two rounds up to it.
    if (bits & 0x007fffffu) >= 0x007fff00u {
        flagged = true;
    }
    let exponent = i32(bits >> 23u) - 2;
    var scale = 0.0;
    if exponent > 2 {
        // Half the power of two, since the levels are doubled.
        scale = bitcast<f32>(u32(exponent - 1) << 23u);
    }
    var doubled = array<f32, 8>(0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0);
    for (var i = 0u; i < RUN; i++) {
        var nearest = 0.0;
        var best = abs(x[i]);
        taken[i] = 0u;
        for (var level = 1u; level < 8u; level++) {
            let value = doubled[level] * scale;
            let error = abs(value - abs(x[i]));
            if error < best {
                best = error;
                nearest = value;
                taken[i] = level | select(0u, 8u, x[i] < 0.0);
            }
        }
        add(x[i], select(nearest, -nearest, x[i] < 0.0));
    }
    head = vec2(f32(clamp(exponent, 0, 254)), 0.0);
}
