//! Log-softmax over a row of logits, and the distance between two models' rows.
//!
//! Exponentials are f32 in lanes that a compiler vectorizes; sums go to f64 every few hundred
//! values, so that a vocabulary of 256,000 adds no error. Rows are independent of one another, so
//! results do not depend on the number of threads.

/// Values summed side by side.
const LANES: usize = 8;
/// Values summed in f32 before they go to f64.
const BLOCK: usize = LANES * 32;

/// `e^x` for `x <= 0`, to about 2 units in the last place; below −87 it stays at 1e-38.
#[inline(always)]
fn exp_not_positive(x: f32) -> f32 {
    // x = n·ln 2 + r with |r| <= ln 2 / 2; the magic number rounds to an integer in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.max(-87.0);
    let shifted = x * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut series = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series * r + coefficient;
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3F80_0000));
    series * power
}

/// Largest value of a row, and whether all values are finite.
fn maximum(row: &[f32]) -> (f32, bool) {
    let mut largest = [f32::NEG_INFINITY; LANES];
    // A finite value times zero is zero; NaN and infinity give NaN, which stays.
    let mut poison = [0.0_f32; LANES];
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for lane in 0..LANES {
            largest[lane] = if chunk[lane] > largest[lane] { chunk[lane] } else { largest[lane] };
            poison[lane] += chunk[lane] * 0.0;
        }
    }
    for (lane, &value) in rest.iter().enumerate() {
        largest[lane] = largest[lane].max(value);
        poison[lane] += value * 0.0;
    }
    let is_finite = poison.iter().all(|&value| value == 0.0);
    (largest.iter().copied().fold(f32::NEG_INFINITY, f32::max), is_finite && !row.is_empty())
}

/// Index of the first value that equals `largest`.
fn first_index(row: &[f32], largest: f32) -> u32 {
    row.iter().position(|&value| value == largest).unwrap_or(0) as u32
}

/// Normalizer of one row of logits.
#[derive(Clone, Copy, Debug)]
pub struct RowSum {
    /// Largest logit.
    pub max: f32,
    /// Sum of `e^(logit − max)`.
    pub sum: f64,
    /// First index of the largest logit.
    pub top: u32,
}

impl RowSum {
    /// Normalizes `row`; `None` if a logit is NaN or infinite.
    pub fn of(row: &[f32]) -> Option<Self> {
        let (max, is_finite) = maximum(row);
        if !is_finite {
            return None;
        }
        let mut sum = 0.0_f64;
        for block in row.chunks(BLOCK) {
            let mut lanes = [0.0_f32; LANES];
            let chunks = block.chunks_exact(LANES);
            let rest = chunks.remainder();
            for chunk in chunks {
                for lane in 0..LANES {
                    lanes[lane] += exp_not_positive(chunk[lane] - max);
                }
            }
            for (lane, &value) in rest.iter().enumerate() {
                lanes[lane] += exp_not_positive(value - max);
            }
            sum += lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>();
        }
        Some(Self { max, sum, top: first_index(row, max) })
    }

    /// Natural log of the probability of a token with this logit.
    pub fn log_prob(&self, logit: f32) -> f64 {
        f64::from(logit) - f64::from(self.max) - self.sum.ln()
    }
}

/// How two models differ at one position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenDistance {
    /// The baseline's −ln p of the true token.
    pub baseline_nll: f64,
    /// The candidate's −ln p of the true token.
    pub nll: f64,
    /// KL(baseline‖candidate) of the whole distribution, in nats.
    pub kld: f64,
    /// True if both put the same token first.
    pub same_top: bool,
    /// Candidate's minus baseline's probability of the true token.
    pub delta_p: f64,
    /// KL(candidate‖baseline), the other way round, in nats.
    pub reverse_kld: f64,
    /// Σ min(p, q): the share of both distributions that is the same, and the chance that a draft of
    /// the one is accepted by the other (Leviathan, Kalman and Matias 2023).
    pub overlap: f64,
    /// The baseline's probability of its most probable token.
    pub confidence: f64,
}

impl TokenDistance {
    /// How many numbers it is.
    pub(super) const NUMBERS: usize = 8;
    /// Which of them is the KLD.
    pub(super) const KLD: usize = 2;

    /// As numbers, in the order of the fields.
    pub(super) fn numbers(self) -> [f64; Self::NUMBERS] {
        let same_top = f64::from(u8::from(self.same_top));
        let (delta_p, reverse_kld) = (self.delta_p, self.reverse_kld);
        [self.baseline_nll, self.nll, self.kld, same_top, delta_p, reverse_kld, self.overlap, self.confidence]
    }

    /// Back from the first of some numbers.
    ///
    /// # Panics
    /// Where there are fewer than [`Self::NUMBERS`].
    pub(super) fn of_numbers(numbers: &[f64]) -> Self {
        Self {
            baseline_nll: numbers[0],
            nll: numbers[1],
            kld: numbers[2],
            same_top: numbers[3] > 0.5,
            delta_p: numbers[4],
            reverse_kld: numbers[5],
            overlap: numbers[6],
            confidence: numbers[7],
        }
    }
}

/// Compares two rows of logits; `None` if one is not finite, or the lengths or `target` do not fit.
///
/// With `a`, `b` the logits less their maxima and `A`, `B` the sums of their exponentials:
/// KLD = Σ e^a (a − b) / A − ln A + ln B. Equal rows give exactly 0.
pub fn token_distance(baseline: &[f32], candidate: &[f32], target: u32) -> Option<TokenDistance> {
    if baseline.len() != candidate.len() {
        return None;
    }
    let baseline_logit = *baseline.get(target as usize)?;
    let candidate_logit = *candidate.get(target as usize)?;
    let (max_a, finite_a) = maximum(baseline);
    let (max_b, finite_b) = maximum(candidate);
    if !finite_a || !finite_b {
        return None;
    }
    let (mut sum_a, mut sum_b, mut weighted, mut reverse) = (0.0_f64, 0.0_f64, 0.0_f64, 0.0_f64);
    for (block_a, block_b) in baseline.chunks(BLOCK).zip(candidate.chunks(BLOCK)) {
        let (mut lanes_a, mut lanes_b) = ([0.0_f32; LANES], [0.0_f32; LANES]);
        let (mut lanes_w, mut lanes_r) = ([0.0_f32; LANES], [0.0_f32; LANES]);
        let mut add = |lane: usize, value_a: f32, value_b: f32| {
            let (a, b) = (value_a - max_a, value_b - max_b);
            let (exp_a, exp_b) = (exp_not_positive(a), exp_not_positive(b));
            lanes_a[lane] += exp_a;
            lanes_b[lane] += exp_b;
            lanes_w[lane] += exp_a * (a - b);
            lanes_r[lane] += exp_b * (b - a);
        };
        let (chunks_a, chunks_b) = (block_a.chunks_exact(LANES), block_b.chunks_exact(LANES));
        let (rest_a, rest_b) = (chunks_a.remainder(), chunks_b.remainder());
        for (chunk_a, chunk_b) in chunks_a.zip(chunks_b) {
            for lane in 0..LANES {
                add(lane, chunk_a[lane], chunk_b[lane]);
            }
        }
        for (lane, (&value_a, &value_b)) in rest_a.iter().zip(rest_b).enumerate() {
            add(lane, value_a, value_b);
        }
        for lane in 0..LANES {
            sum_a += f64::from(lanes_a[lane]);
            sum_b += f64::from(lanes_b[lane]);
            weighted += f64::from(lanes_w[lane]);
            reverse += f64::from(lanes_r[lane]);
        }
    }
    let (ln_a, ln_b) = (sum_a.ln(), sum_b.ln());
    let log_p = f64::from(baseline_logit) - f64::from(max_a) - ln_a;
    let log_q = f64::from(candidate_logit) - f64::from(max_b) - ln_b;
    Some(TokenDistance {
        baseline_nll: -log_p,
        nll: -log_q,
        // Rounding can leave −1e-8 where the distributions are equal but for a shift.
        kld: (weighted / sum_a - ln_a + ln_b).max(0.0),
        same_top: first_index(baseline, max_a) == first_index(candidate, max_b),
        delta_p: log_q.exp() - log_p.exp(),
        reverse_kld: (reverse / sum_b - ln_b + ln_a).max(0.0),
        overlap: overlap((baseline, max_a + ln_a as f32), (candidate, max_b + ln_b as f32)),
        confidence: 1.0 / sum_a,
    })
}

/// Σ min(p, q) of two rows, each with the log of its normalizer.
fn overlap((a, norm_a): (&[f32], f32), (b, norm_b): (&[f32], f32)) -> f64 {
    let mut total = 0.0_f64;
    for (block_a, block_b) in a.chunks(BLOCK).zip(b.chunks(BLOCK)) {
        let mut lanes = [0.0_f32; LANES];
        let (chunks_a, chunks_b) = (block_a.chunks_exact(LANES), block_b.chunks_exact(LANES));
        let (rest_a, rest_b) = (chunks_a.remainder(), chunks_b.remainder());
        // A logit can exceed its row's normalizer by rounding only.
        let least = |a: f32, b: f32| exp_not_positive((a - norm_a).min(b - norm_b).min(0.0));
        for (chunk_a, chunk_b) in chunks_a.zip(chunks_b) {
            for lane in 0..LANES {
                lanes[lane] += least(chunk_a[lane], chunk_b[lane]);
            }
        }
        for (lane, (&a, &b)) in rest_a.iter().zip(rest_b).enumerate() {
            lanes[lane] += least(a, b);
        }
        total += lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>();
    }
    total.min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scoring::random::Random;

    fn reference(a: &[f32], b: &[f32]) -> f64 {
        let lse = |row: &[f32]| {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            f64::from(max) + row.iter().map(|&v| f64::from(v - max).exp()).sum::<f64>().ln()
        };
        let (lse_a, lse_b) = (lse(a), lse(b));
        a.iter()
            .zip(b)
            .map(|(&a, &b)| {
                let (log_p, log_q) = (f64::from(a) - lse_a, f64::from(b) - lse_b);
                log_p.exp() * (log_p - log_q)
            })
            .sum()
    }

    #[test]
    fn the_exponential_is_right_over_its_whole_range() {
        let mut x = 0.0_f32;
        while x > -86.9 {
            let exact = f64::from(x).exp();
            let error = (f64::from(exp_not_positive(x)) - exact).abs() / exact;
            assert!(error < 3e-7, "e^{x}: relative error {error}");
            x -= 0.0137;
        }
        assert_eq!(exp_not_positive(0.0), 1.0);
        assert!(exp_not_positive(-1e30) < 2e-38);
    }

    #[test]
    fn the_distance_agrees_with_f64_at_awkward_lengths() {
        let mut random = Random::new(1, 1);
        for len in [1, 2, 7, 8, 9, 255, 256, 257, 2048, 5003] {
            let a: Vec<f32> = (0..len).map(|_| (random.unit() * 30.0 - 20.0) as f32).collect();
            let b: Vec<f32> = a.iter().map(|&v| v + (random.unit() * 2.0 - 1.0) as f32).collect();
            let target = (random.next_u64() % len as u64) as u32;
            let distance = token_distance(&a, &b, target).expect("finite");
            let exact = reference(&a, &b);
            assert!((distance.kld - exact).abs() < 1e-6, "{len}: {} {exact}", distance.kld);
            assert!((distance.reverse_kld - reference(&b, &a)).abs() < 1e-6);
            let probabilities = |row: &[f32]| -> Vec<f64> {
                let sum = RowSum::of(row).expect("finite");
                row.iter().map(|&logit| sum.log_prob(logit).exp()).collect()
            };
            let (p, q) = (probabilities(&a), probabilities(&b));
            let same: f64 = p.iter().zip(&q).map(|(p, q)| p.min(*q)).sum();
            assert!((distance.overlap - same).abs() < 1e-5, "{} {same}", distance.overlap);
            assert!((distance.confidence - p.iter().copied().fold(0.0, f64::max)).abs() < 1e-6);
            let row = RowSum::of(&b).expect("finite");
            assert!((row.log_prob(b[target as usize]) + distance.nll).abs() < 1e-6);
        }
    }

    #[test]
    fn equal_rows_have_no_distance_at_all() {
        let row: Vec<f32> = (0..777).map(|i| (i as f32 * 0.37).sin() * 9.0).collect();
        let distance = token_distance(&row, &row, 5).expect("finite");
        assert_eq!((distance.kld, distance.reverse_kld), (0.0, 0.0));
        assert!(distance.overlap > 1.0 - 1e-5);
        assert_eq!(distance.delta_p, 0.0);
        assert!(distance.same_top);
    }

    #[test]
    fn a_row_that_is_not_finite_is_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 8, 16] {
                let mut row = vec![0.5_f32; 17];
                row[at] = bad;
                assert!(RowSum::of(&row).is_none(), "{bad} at {at}");
                assert!(token_distance(&[0.5; 17], &row, 0).is_none());
            }
        }
        assert!(token_distance(&[0.0; 3], &[0.0; 3], 3).is_none());
    }

    #[test]
    fn the_first_of_equal_logits_is_on_top() {
        assert_eq!(RowSum::of(&[1.0, 3.0, 3.0, 2.0]).expect("finite").top, 1);
    }
}
