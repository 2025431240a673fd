// ggml's searches of a scale for one run of RUN weights, step by step as the reference does them
// (`kernels/search`, after `ggml-quants.c`). RUN is given before.

var<private> x: array<f32, RUN>;
// What an encoder writes: codes, and the scale and offset as they are stored.
var<private> taken: array<u32, RUN>;
var<private> head: vec2<f32>;
// Weights of errors.
var<private> w: array<f32, RUN>;
// Scales of a block as values of a search of their own, with their weights and codes.
var<private> sx: array<f32, 16>;
var<private> sw: array<f32, 16>;
var<private> codes: array<i32, 16>;

const NOTHING: f32 = 1e-15;
// Beyond this the reference's rounding wraps.
const SAFE: f32 = 1e6;

// The weights of errors by importance, where the values have this mean square.
fn weigh_by_importance(column: u32, mean: f32) {
    for (var i = 0u; i < RUN; i++) {
        w[i] = importance[column + i] * root(mean + exact(x[i] * x[i]));
    }
}

fn weigh_by_squares() {
    for (var i = 0u; i < RUN; i++) {
        w[i] = x[i] * x[i];
    }
}

fn sum_of_squares() -> f32 {
    var sum = 0.0;
    for (var i = 0u; i < RUN; i++) {
        sum += exact(x[i] * x[i]);
    }
    return sum;
}

fn signed_max() -> f32 {
    var most = 0.0;
    for (var i = 0u; i < RUN; i++) {
        if abs(x[i]) > abs(most) {
            most = x[i];
        }
    }
    return most;
}

// Flags runs whose sums would lose to over- or underflow.
fn guard_run() {
    var sum = 0.0;
    var sum_x = 0.0;
    for (var i = 0u; i < RUN; i++) {
        sum += w[i];
        sum_x += w[i] * abs(x[i]);
    }
    guard(sum * sum);
    guard(sum_x * sum_x);
    guard(sum * sum_x);
}

struct Symmetric {
    scale: f32,
    inverse: f32,
}

fn symmetric_sums(inverse: f32, max_code: f32) -> vec2<f32> {
    var sum_lx = 0.0;
    var sum_l2 = 0.0;
    for (var i = 0u; i < RUN; i++) {
        let l = clamp(round(inverse * x[i]), -max_code, max_code - 1.0);
        sum_lx += exact(w[i] * x[i] * l);
        sum_l2 += exact(w[i] * l * l);
    }
    return vec2(sum_lx, sum_l2);
}

// The best scale for codes from −max_code to max_code − 1; both zero for a run of zeros.
fn symmetric(max_code: f32) -> Symmetric {
    let most = signed_max();
    if abs(most) < NOTHING {
        return Symmetric(0.0, 0.0);
    }
    guard_run();
    var found: Symmetric;
    found.inverse = divided(-max_code, most);
    var sums = symmetric_sums(found.inverse, max_code);
    if sums.y != 0.0 {
        found.scale = divided(sums.x, sums.y);
    }
    var best = found.scale * sums.x;
    for (var step = -9; step <= 9; step++) {
        if step == 0 {
            continue;
        }
        let inverse = divided(-(max_code + exact(0.1 * f32(step))), most);
        sums = symmetric_sums(inverse, max_code);
        if sums.y > 0.0 && sums.x * sums.x > best * sums.y {
            found.scale = divided(sums.x, sums.y);
            found.inverse = inverse;
            best = found.scale * sums.x;
        }
    }
    return found;
}

// A scale weighted by squares that improves one code at a time, for q3_k.
fn symmetric_greedy(max_code: f32) -> f32 {
    let most = signed_max();
    if abs(most) < NOTHING {
        return 0.0;
    }
    if abs(most) < 3e-5 || abs(most) > 1e4 {
        flagged = true;
    }
    let inverse = divided(-max_code, most);
    var l: array<f32, RUN>;
    var sum_lx = 0.0;
    var sum_l2 = 0.0;
    for (var i = 0u; i < RUN; i++) {
        let code = clamp(round(inverse * x[i]), -max_code, max_code - 1.0);
        l[i] = code;
        let weight = x[i] * x[i];
        sum_lx += exact(weight * x[i] * code);
        sum_l2 += exact(weight * code * code);
    }
    for (var turn = 0; turn < 5; turn++) {
        var changed = false;
        for (var i = 0u; i < RUN; i++) {
            let weight = x[i] * x[i];
            let old = l[i];
            var slx = sum_lx - exact(weight * x[i] * old);
            if slx > 0.0 {
                var sl2 = sum_l2 - exact(weight * old * old);
                let place = divided(x[i] * sl2, slx);
                if abs(place) > SAFE {
                    flagged = true;
                }
                let next = clamp(round(place), -max_code, max_code - 1.0);
                if next != old {
                    slx += exact(weight * x[i] * next);
                    sl2 += exact(weight * next * next);
                    if sl2 > 0.0 && slx * slx * sum_l2 > sum_lx * sum_lx * sl2 {
                        l[i] = next;
                        sum_lx = slx;
                        sum_l2 = sl2;
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    if sum_l2 > 0.0 {
        return divided(sum_lx, sum_l2);
    }
    return 0.0;
}

// Which inverse scales are tried, and how errors are weighed.
struct Steps {
    first: f32,
    step: f32,
    count: i32,
    absolute: bool,
}

struct Affine {
    scale: f32,
    minimum: f32,
    inverse: f32,
    shift: f32,
}

fn affine_error(inverse: f32, shift: f32, scale: f32, low: f32, max_code: f32, absolute: bool) -> f32 {
    var sum = 0.0;
    for (var i = 0u; i < RUN; i++) {
        let l = clamp(round(inverse * (x[i] - shift)), 0.0, max_code);
        let difference = exact(scale * l) + low - x[i];
        sum += exact(w[i] * select(difference * difference, abs(difference), absolute));
    }
    return sum;
}

// The best scale and minimum for codes from 0 to max_code.
fn with_minimum(max_code: f32, steps: Steps) -> Affine {
    var low = x[0];
    var high = x[0];
    var sum_w = w[0];
    var sum_x = sum_w * x[0];
    var magnitudes = abs(x[0]);
    for (var i = 1u; i < RUN; i++) {
        low = min(low, x[i]);
        high = max(high, x[i]);
        sum_w += w[i];
        sum_x += exact(w[i] * x[i]);
        magnitudes += abs(x[i]);
    }
    if low == high {
        // The trials of equal values differ by rounding alone: the reference decides.
        if low != 0.0 {
            flagged = true;
        }
        return Affine(0.0, 0.0, 0.0, 0.0);
    }
    low = min(low, 0.0);
    let top = steps.first + exact(steps.step * f32(steps.count)) + max_code;
    guard_run();
    if top / (high - low) * (magnitudes + abs(low)) > SAFE {
        flagged = true;
    }
    var found = Affine(0.0, 0.0, divided(max_code, high - low), low);
    found.scale = divided(1.0, found.inverse);
    var best = affine_error(found.inverse, low, found.scale, low, max_code, steps.absolute);
    for (var step = 0; step <= steps.count; step++) {
        // Later steps start from the best minimum so far, as ggml's do.
        let inverse = divided(steps.first + exact(steps.step * f32(step)) + max_code, high - low);
        var sum_l = 0.0;
        var sum_l2 = 0.0;
        var sum_xl = 0.0;
        for (var i = 0u; i < RUN; i++) {
            let l = clamp(round(inverse * (x[i] - low)), 0.0, max_code);
            let weighted = w[i] * l;
            sum_l += exact(weighted);
            sum_l2 += exact(weighted * l);
            sum_xl += exact(weighted * x[i]);
        }
        let determinant = exact(sum_w * sum_l2) - exact(sum_l * sum_l);
        if determinant > 0.0 {
            var scale = divided(exact(sum_w * sum_xl) - exact(sum_x * sum_l), determinant);
            var minimum = divided(exact(sum_l2 * sum_x) - exact(sum_l * sum_xl), determinant);
            if minimum > 0.0 {
                minimum = 0.0;
                scale = divided(sum_xl, sum_l2);
            }
            let current = affine_error(inverse, low, scale, minimum, max_code, steps.absolute);
            if current < best {
                best = current;
                found.scale = scale;
                found.inverse = inverse;
                found.shift = low;
                low = minimum;
            }
        }
    }
    found.minimum = -low;
    if found.scale < 0.0 {
        flagged = true;
    }
    return found;
}

// What `search::positive` does with `sx` and `sw`: a scale for values that are not negative, and `codes`.
fn positive(count: u32, max_code: i32) -> f32 {
    var most = 0.0;
    var sum = 0.0;
    for (var i = 0u; i < count; i++) {
        codes[i] = 0;
        most = max(most, sx[i]);
        sum += sw[i];
    }
    if most < NOTHING {
        return 0.0;
    }
    guard_scales(most, sum);
    var inverse = divided(f32(max_code), most);
    let scale = divided(1.0, inverse);
    var best = 0.0;
    for (var i = 0u; i < count; i++) {
        let difference = sx[i] - exact(scale * round(inverse * sx[i]));
        best += exact(sw[i] * difference * difference);
    }
    for (var step = -4; step <= 4; step++) {
        if step == 0 {
            continue;
        }
        let trial = divided(exact(0.1 * f32(step)) + f32(max_code), most);
        let trial_scale = divided(1.0, trial);
        var current = 0.0;
        for (var i = 0u; i < count; i++) {
            let l = min(round(trial * sx[i]), f32(max_code));
            let difference = sx[i] - exact(trial_scale * l);
            current += exact(sw[i] * difference * difference);
        }
        if current < best {
            best = current;
            inverse = trial;
        }
    }
    var sum_lx = 0.0;
    var sum_l2 = 0.0;
    for (var i = 0u; i < count; i++) {
        let l = min(i32(round(inverse * sx[i])), max_code);
        codes[i] = l;
        sum_lx += exact(sw[i] * sx[i] * f32(l));
        sum_l2 += exact(sw[i] * f32(l) * f32(l));
    }
    for (var turn = 0; turn < 5; turn++) {
        var changed = false;
        for (var i = 0u; i < count; i++) {
            let old = f32(codes[i]);
            var slx = sum_lx - exact(sw[i] * sx[i] * old);
            var sl2 = sum_l2 - exact(sw[i] * old * old);
            if slx > 0.0 && sl2 > 0.0 {
                let place = divided(sx[i] * sl2, slx);
                if abs(place) > SAFE {
                    flagged = true;
                }
                let next = min(i32(round(clamp(place, -SAFE, SAFE))), max_code);
                if next != codes[i] {
                    slx += exact(sw[i] * sx[i] * f32(next));
                    sl2 += exact(sw[i] * f32(next) * f32(next));
                    if slx * slx * sum_l2 > sum_lx * sum_lx * sl2 {
                        codes[i] = next;
                        sum_lx = slx;
                        sum_l2 = sl2;
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    if sum_l2 > 0.0 {
        return divided(sum_lx, sum_l2);
    }
    return 0.0;
}

// The cube of the weights of scales and the square of the scales meet in one product.
fn guard_scales(most: f32, sum: f32) {
    let product = most * sum;
    if !(product > 1e-12 && product < 1e11 && sum > 1e-12 && sum < 1e11) {
        flagged = true;
    }
}

// `symmetric` of the sixteen scales of a block, with `codes`.
fn symmetric_scales(max_code: f32) -> f32 {
    var most = 0.0;
    var sum = 0.0;
    for (var i = 0u; i < 16u; i++) {
        codes[i] = 0;
        sum += sw[i];
        if abs(sx[i]) > abs(most) {
            most = sx[i];
        }
    }
    if abs(most) < NOTHING {
        return 0.0;
    }
    guard_scales(abs(most), sum);
    var scale = 0.0;
    var kept = divided(-max_code, most);
    var best = 0.0;
    for (var step = 0; step <= 19; step++) {
        // The plain inverse first, then −9 to 9 tenths of a code beside it.
        let tenths = select(step - 10, 0, step == 0);
        if step != 0 && tenths == 0 {
            continue;
        }
        let inverse = divided(-(max_code + exact(0.1 * f32(tenths))), most);
        var sum_lx = 0.0;
        var sum_l2 = 0.0;
        for (var i = 0u; i < 16u; i++) {
            let l = clamp(round(inverse * sx[i]), -max_code, max_code - 1.0);
            sum_lx += exact(sw[i] * sx[i] * l);
            sum_l2 += exact(sw[i] * l * l);
        }
        if sum_l2 > 0.0 && (step == 0 || sum_lx * sum_lx > best * sum_l2) {
            scale = divided(sum_lx, sum_l2);
            best = scale * sum_lx;
            kept = inverse;
        }
    }
    for (var i = 0u; i < 16u; i++) {
        codes[i] = i32(clamp(round(kept * sx[i]), -max_code, max_code - 1.0));
    }
    return scale;
}

// The nearest value of iq4_nl's table; between two the upper one.
var<private> iq4_values: array<f32, 16> = array<f32, 16>(
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0);

fn iq4_code(place: f32) -> u32 {
    var code = 0u;
    for (var i = 0u; i < 15u; i++) {
        code += select(0u, 1u, (iq4_values[i] + iq4_values[i + 1u]) * 0.5 <= place);
    }
    return code;
}

fn iq4_value(place: f32) -> f32 {
    return iq4_values[iq4_code(place)];
}

fn iq4_sums(inverse: f32) -> vec2<f32> {
    var sums = vec2(0.0);
    for (var i = 0u; i < RUN; i++) {
        let q = iq4_value(inverse * x[i]);
        let product = w[i] * q;
        sums += vec2(exact(product * x[i]), exact(product * q));
    }
    return sums;
}

// The best scale for codes of that table.
fn iq4_scale() -> f32 {
    let most = signed_max();
    if abs(most) < NOTHING {
        return 0.0;
    }
    guard_run();
    var sums = iq4_sums(divided(1.0, divided(-most, -127.0)));
    var scale = 0.0;
    if sums.y > 0.0 {
        scale = divided(sums.x, sums.y);
    }
    var best = scale * sums.x;
    for (var step = -7; step <= 7; step++) {
        sums = iq4_sums(divided(f32(step) - 127.0, most));
        if sums.y > 0.0 && sums.x * sums.x > best * sums.y {
            scale = divided(sums.x, sums.y);
            best = scale * sums.x;
        }
    }
    return scale;
}
