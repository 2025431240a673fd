//! Statistics on a device against the CPU's counts and sums.

use super::*;

#[test]
#[ignore = "needs a graphics driver"]
fn floats_of_eight_bits_are_counted_as_the_reference_counts_them() {
    use crate::kernels::counts::{KeyRange, Order, range8};
    use crate::kernels::gpu::{Counter, Rows};
    let device = device();
    let (len, count, fold) = (1001, 77, 3);
    let mut random = Random(13);
    // A row of zeros, one of NaN, and the rest of everything; the last piece ends within a word.
    let mut bytes: Vec<u8> = (0..len * count).map(|_| (random.unit() * 256.0) as u8).collect();
    bytes[..len].fill(0);
    bytes[6 * len..9 * len].fill(0x7f);
    let mut counts = [0; 256];
    bytes.iter().for_each(|&byte| counts[usize::from(byte)] += 1);
    // The first magnitude that is not finite, in e4m3 and in e5m2.
    for special in [0x7f, 0x7c] {
        let key = |bits: u8| i16::from(Order::SignMagnitude.key8(bits));
        let finite = KeyRange { lo: key(0x80 | (special - 1)), hi: key(special - 1) };
        let mut counter = Counter::of_bytes(&device, Rows { len, count, fold }, special).expect("fits");
        for (piece, bytes) in bytes.chunks(len * 40).enumerate() {
            counter.add(piece * 40, bytes).expect("the device goes on");
        }
        let found = counter.finish().expect("the device goes on");
        assert_eq!(found.counts, counts, "{special:#x}");
        let expected: Vec<KeyRange> =
            bytes.chunks(len * fold).map(|rows| range8(rows, Order::SignMagnitude, finite)).collect();
        assert_eq!(found.ranges, expected, "{special:#x}");
        assert!(found.ranges[2].is_empty(), "NaN has no range");
    }
}

#[test]
#[ignore = "needs a graphics driver"]
fn statistics_are_the_reference_s() {
    use crate::kernels::counts::{Counts, PATTERNS};
    use crate::kernels::gpu::{Counter, Rows, Spreader, Surveyor};
    use crate::kernels::moments::{self, BINS, Scale};
    let device = device();
    let (len, count) = (1000, 77);
    let mut values = weights(Spread::Heavy, len, count, 9);
    (values[5], values[1700], values[1701]) = (0.0, f32::NAN, f32::NEG_INFINITY);
    let rows = Rows { len, count, fold: 3 };
    let halves: Vec<u8> = values.iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()).collect();
    let mut counter = Counter::new(&device, rows, 0x7f80).expect("fits");
    for (piece, bytes) in halves.chunks(len * 2 * 40).enumerate() {
        counter.add(piece * 40, bytes).expect("the device goes on");
    }
    let found = counter.finish().expect("the device goes on");
    let (mut counts, mut totals) = (Counts::default(), vec![0u64; PATTERNS]);
    counts.add(&halves);
    counts.drain_into(&mut totals);
    assert!(found.counts.iter().zip(&totals).all(|(&a, &b)| u64::from(a) == b), "counts of patterns");
    let order = crate::kernels::counts::Order::SignMagnitude;
    let finite = crate::kernels::counts::KeyRange { lo: order.key16(0xff7f), hi: order.key16(0x7f7f) };
    for (entry, bytes) in halves.chunks(len * 2 * 3).enumerate() {
        assert_eq!(found.ranges[entry], crate::kernels::counts::range16(bytes, order, finite), "entry {entry}");
    }
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut surveyor = Surveyor::new(&device, rows).expect("fits");
    bytes.chunks(len * 4 * 40).enumerate().for_each(|(at, bytes)| surveyor.add(at * 40, bytes).expect("goes on"));
    let found = surveyor.finish().expect("the device goes on");
    let all = moments::survey(&values);
    let specials = [found.nan_count, found.inf_count, found.zero_count].map(u64::from);
    assert_eq!(specials, [all.nan_count, all.inf_count, all.zero_count]);
    let least = found.ranges.iter().flatten().map(|range| range.0).fold(f32::INFINITY, f32::min);
    assert_eq!(least, all.lo);
    let finite: Vec<f32> = values.iter().copied().filter(|value| value.is_finite()).collect();
    let mean = all.sum / finite.len() as f64;
    let powers = moments::powers(&finite, mean);
    let std = (powers[0] / finite.len() as f64).sqrt();
    assert!((found.sum / finite.len() as f64 - mean).abs() < 1e-6 * std, "{} {}", found.sum, all.sum);
    let (lo, hi) = (f64::from(all.lo), f64::from(all.hi));
    let scale = Scale { lo, hi, mean, limits: [3.0, 4.0, 6.0].map(|sigmas| sigmas * std) };
    let (mut beyond, mut bins) = ([0; 3], vec![0; BINS]);
    moments::count(&finite, &scale, &mut beyond, &mut bins);
    let mut spreader = Spreader::new(&device, rows, &scale, all.hi.max(-all.lo)).expect("fits");
    bytes.chunks(len * 4 * 40).enumerate().for_each(|(at, bytes)| spreader.add(at * 40, bytes).expect("goes on"));
    let found = spreader.finish().expect("the device goes on");
    assert_eq!(found.bins.iter().map(|&count| u64::from(count)).collect::<Vec<u64>>(), bins);
    assert_eq!(found.beyond.map(u64::from), beyond);
    assert!(close(found.powers[0], powers[0], 1e-6) && close(found.powers[2], powers[2], 1e-5), "{found:?} {powers:?}");
}
