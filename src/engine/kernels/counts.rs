//! Counting weights by their bits, and the range of their values by integer comparison.
//!
//! A 16-bit weight has at most 65,536 values, so that one table of counts holds everything that a
//! profile wants to know: moments, tails, the histogram and the number of distinct values follow
//! from it exactly, and the pass over the file does one increment per weight. Bytes are counted in
//! pairs by the same table; [`fold_pairs`] takes the pairs apart again.
//!
//! Ranges of rows need the order of the weights, which a table of counts has lost. Every type of
//! at most 16 bits has a cheap integer transform that keeps the order ([`Order`]), so that the
//! range of a row is a minimum and a maximum of integers: one body, compiled for the baseline and
//! for AVX2.

use super::multiversion;

/// Number of different 16-bit patterns.
pub const PATTERNS: usize = 1 << 16;

/// Words that may be counted before [`Counts::drain_into`] has to be called: no entry overflows by then.
const DRAIN_AT: u64 = 1 << 31;

/// Counts of 16-bit patterns.
///
/// Two tables, used in turn, so that equal neighbours (a pruned tensor is full of zeros) do not
/// wait for each other's increment to leave the store buffer. Normal weights touch about 12 KiB of
/// each, which stays in the first-level cache.
pub struct Counts {
    even: Box<[u32; PATTERNS]>,
    odd: Box<[u32; PATTERNS]>,
    words: u64,
}

impl Default for Counts {
    fn default() -> Self {
        Self { even: zeroed(), odd: zeroed(), words: 0 }
    }
}

impl std::fmt::Debug for Counts {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Counts").field("words", &self.words).finish_non_exhaustive()
    }
}

fn zeroed() -> Box<[u32; PATTERNS]> {
    vec![0; PATTERNS].into_boxed_slice().try_into().expect("a slice of that length")
}

impl Counts {
    /// Counts the little-endian 16-bit words of `bytes`; an odd last byte is left to the caller.
    pub fn add(&mut self, bytes: &[u8]) {
        let (even, odd) = (&mut *self.even, &mut *self.odd);
        let (blocks, rest) = bytes.as_chunks::<16>();
        for block in blocks {
            let [a, b] = bytemuck::cast::<[u8; 16], [[u8; 8]; 2]>(*block).map(u64::from_le_bytes);
            even[(a & 0xffff) as usize] += 1;
            odd[(b & 0xffff) as usize] += 1;
            even[(a >> 16 & 0xffff) as usize] += 1;
            odd[(b >> 16 & 0xffff) as usize] += 1;
            even[(a >> 32 & 0xffff) as usize] += 1;
            odd[(b >> 32 & 0xffff) as usize] += 1;
            even[(a >> 48) as usize] += 1;
            odd[(b >> 48) as usize] += 1;
        }
        for &word in rest.as_chunks::<2>().0 {
            even[usize::from(u16::from_le_bytes(word))] += 1;
        }
        self.words += bytes.len() as u64 / 2;
        debug_assert!(self.words <= u64::from(u32::MAX), "drain before the tables overflow");
    }

    /// True if the counts must be drained before much more is added.
    pub fn is_full(&self) -> bool {
        self.words >= DRAIN_AT
    }

    /// Adds the counts to `totals`, which has [`PATTERNS`] entries, and starts again from zero.
    pub fn drain_into(&mut self, totals: &mut [u64]) {
        if self.words == 0 {
            return;
        }
        for ((total, even), odd) in totals.iter_mut().zip(self.even.iter_mut()).zip(self.odd.iter_mut()) {
            *total += u64::from(*even) + u64::from(*odd);
            *even = 0;
            *odd = 0;
        }
        self.words = 0;
    }
}

/// Counts of single bytes from the counts of pairs of bytes.
pub fn fold_pairs(pairs: &[u64]) -> Vec<u64> {
    let mut bytes = vec![0; 256];
    for (pattern, &count) in pairs.iter().enumerate() {
        bytes[pattern & 0xff] += count;
        bytes[pattern >> 8] += count;
    }
    bytes
}

/// How the bits of a type relate to the order of its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// A sign bit over a magnitude: floating-point numbers.
    SignMagnitude,
    /// Two's complement.
    Signed,
    /// Plain binary.
    Unsigned,
}

impl Order {
    /// Magnitude bits to flip where the sign is set, and bits to flip always.
    fn masks16(self) -> (i16, i16) {
        match self {
            Self::SignMagnitude => (i16::MAX, 0),
            Self::Signed => (0, 0),
            Self::Unsigned => (0, i16::MIN),
        }
    }

    fn masks8(self) -> (i8, i8) {
        match self {
            Self::SignMagnitude => (i8::MAX, 0),
            Self::Signed => (0, 0),
            Self::Unsigned => (0, i8::MIN),
        }
    }

    /// An integer that is ordered as the value of these 16 bits. The transform is its own inverse.
    pub fn key16(self, bits: u16) -> i16 {
        let (magnitude, always) = self.masks16();
        key16(bits as i16, magnitude, always)
    }

    /// An integer that is ordered as the value of these 8 bits. The transform is its own inverse.
    pub fn key8(self, bits: u8) -> i8 {
        let (magnitude, always) = self.masks8();
        key8(bits as i8, magnitude, always)
    }
}

#[inline(always)]
fn key16(bits: i16, magnitude: i16, always: i16) -> i16 {
    bits ^ (bits >> 15 & magnitude) ^ always
}

#[inline(always)]
fn key8(bits: i8, magnitude: i8, always: i8) -> i8 {
    bits ^ (bits >> 7 & magnitude) ^ always
}

/// Smallest and largest key; `lo > hi` where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// Smallest key.
    pub lo: i16,
    /// Largest key.
    pub hi: i16,
}

impl KeyRange {
    /// The range of nothing.
    pub const EMPTY: Self = Self { lo: i16::MAX, hi: i16::MIN };

    /// True if it holds no key.
    pub fn is_empty(self) -> bool {
        self.lo > self.hi
    }

    /// The range of both.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self { lo: self.lo.min(other.lo), hi: self.hi.max(other.hi) }
    }
}

/// Range of the keys of 16-bit words that lie within `finite`.
pub fn range16(bytes: &[u8], order: Order, finite: KeyRange) -> KeyRange {
    let (magnitude, always) = order.masks16();
    let all = extremes16(bytes, magnitude, always);
    if all.lo >= finite.lo && all.hi <= finite.hi {
        return all;
    }
    // NaN or infinity among them: rare enough for a plain loop.
    let keys = bytes.as_chunks::<2>().0.iter();
    within(keys.map(|&word| key16(i16::from_le_bytes(word), magnitude, always)), finite)
}

/// Range of the keys of bytes that lie within `finite`; the keys are [`Order::key8`]'s, widened.
pub fn range8(bytes: &[u8], order: Order, finite: KeyRange) -> KeyRange {
    let (magnitude, always) = order.masks8();
    let all = extremes8(bytes, magnitude, always);
    if all.lo >= finite.lo && all.hi <= finite.hi {
        return all;
    }
    within(bytes.iter().map(|&byte| i16::from(key8(byte as i8, magnitude, always))), finite)
}

fn within(keys: impl Iterator<Item = i16>, finite: KeyRange) -> KeyRange {
    keys.filter(|&key| key >= finite.lo && key <= finite.hi)
        .fold(KeyRange::EMPTY, |range, key| range.union(KeyRange { lo: key, hi: key }))
}

/// The body of both builds: 32 lanes wide, so that the compiler turns it into vector minima and maxima.
#[inline(always)]
fn extremes16_body(bytes: &[u8], magnitude: i16, always: i16) -> KeyRange {
    let mut lo = [i16::MAX; 32];
    let mut hi = [i16::MIN; 32];
    let (blocks, rest) = bytes.as_chunks::<64>();
    for block in blocks {
        let words: &[[u8; 2]; 32] = bytemuck::cast_ref(block);
        for lane in 0..32 {
            let key = key16(i16::from_le_bytes(words[lane]), magnitude, always);
            lo[lane] = lo[lane].min(key);
            hi[lane] = hi[lane].max(key);
        }
    }
    let mut range = KeyRange::EMPTY;
    for lane in 0..32 {
        range = range.union(KeyRange { lo: lo[lane], hi: hi[lane] });
    }
    for &word in rest.as_chunks::<2>().0 {
        let key = key16(i16::from_le_bytes(word), magnitude, always);
        range = range.union(KeyRange { lo: key, hi: key });
    }
    range
}

#[inline(always)]
fn extremes8_body(bytes: &[u8], magnitude: i8, always: i8) -> KeyRange {
    let mut lo = [i8::MAX; 64];
    let mut hi = [i8::MIN; 64];
    let (blocks, rest) = bytes.as_chunks::<64>();
    for block in blocks {
        for lane in 0..64 {
            let key = key8(block[lane] as i8, magnitude, always);
            lo[lane] = lo[lane].min(key);
            hi[lane] = hi[lane].max(key);
        }
    }
    let mut range = KeyRange::EMPTY;
    if !blocks.is_empty() {
        for lane in 0..64 {
            range = range.union(KeyRange { lo: i16::from(lo[lane]), hi: i16::from(hi[lane]) });
        }
    }
    for &byte in rest {
        let key = i16::from(key8(byte as i8, magnitude, always));
        range = range.union(KeyRange { lo: key, hi: key });
    }
    range
}

multiversion! {
    /// Range of all keys of 16-bit words.
    pub(super) fn extremes16, extremes16_at(bytes: &[u8], magnitude: i16, always: i16) -> KeyRange => extremes16_body
}

multiversion! {
    /// Range of all keys of bytes.
    pub(super) fn extremes8, extremes8_at(bytes: &[u8], magnitude: i8, always: i8) -> KeyRange => extremes8_body
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: KeyRange = KeyRange { lo: i16::MIN, hi: i16::MAX };

    #[test]
    fn keys_are_ordered_as_the_values_and_undo_themselves() {
        let mut finite: Vec<u16> = (0..=u16::MAX).filter(|&bits| half::bf16::from_bits(bits).is_finite()).collect();
        finite.sort_by_key(|&bits| Order::SignMagnitude.key16(bits));
        for pair in finite.windows(2) {
            let [a, b] = [pair[0], pair[1]].map(|bits| half::bf16::from_bits(bits).to_f32());
            assert!(a < b || (a == 0.0 && b == 0.0), "{a} before {b}");
        }
        for order in [Order::SignMagnitude, Order::Signed, Order::Unsigned] {
            for bits in 0..=u16::MAX {
                assert_eq!(order.key16(order.key16(bits) as u16) as u16, bits);
            }
            for bits in 0..=u8::MAX {
                assert_eq!(order.key8(order.key8(bits) as u8) as u8, bits);
            }
        }
    }

    #[test]
    fn an_empty_row_has_an_empty_range() {
        assert!(range16(&[], Order::Signed, ALL).is_empty());
        assert!(range8(&[], Order::Signed, ALL).is_empty());
    }

    #[test]
    fn infinity_and_nan_do_not_enter_a_range() {
        let finite = KeyRange {
            lo: Order::SignMagnitude.key16(half::bf16::MIN.to_bits()),
            hi: Order::SignMagnitude.key16(half::bf16::MAX.to_bits()),
        };
        let values = [1.5f32, f32::NAN, f32::NEG_INFINITY, -2.0, f32::INFINITY];
        let bytes: Vec<u8> =
            values.iter().flat_map(|&value| half::bf16::from_f32(value).to_bits().to_le_bytes()).collect();
        let range = range16(&bytes, Order::SignMagnitude, finite);
        let value = |key: i16| half::bf16::from_bits(Order::SignMagnitude.key16(key as u16) as u16).to_f32();
        assert_eq!((value(range.lo), value(range.hi)), (-2.0, 1.5));
        assert!(range16(&bytes[2..6], Order::SignMagnitude, finite).is_empty());
    }

    proptest! {
        #[test]
        fn every_word_is_counted_once(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut counts = Counts::default();
            counts.add(&bytes);
            counts.add(&bytes);
            let mut totals = vec![0; PATTERNS];
            counts.drain_into(&mut totals);
            counts.drain_into(&mut totals);
            let mut expected = vec![0; PATTERNS];
            for word in bytes.chunks_exact(2) {
                expected[usize::from(word[0]) | usize::from(word[1]) << 8] += 2;
            }
            prop_assert_eq!(totals, expected);
        }

        #[test]
        fn pairs_fold_to_single_bytes(bytes in prop::collection::vec(0u8..4, 0..100)) {
            let mut counts = Counts::default();
            counts.add(&bytes);
            let mut pairs = vec![0; PATTERNS];
            counts.drain_into(&mut pairs);
            let mut expected = vec![0u64; 256];
            for &byte in &bytes[..bytes.len() / 2 * 2] {
                expected[usize::from(byte)] += 1;
            }
            prop_assert_eq!(fold_pairs(&pairs), expected);
        }

        #[test]
        fn every_build_finds_the_same_range(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            for order in [Order::SignMagnitude, Order::Signed, Order::Unsigned] {
                let plain16 = within(bytes.chunks_exact(2).map(|word| order.key16(u16::from_le_bytes([word[0], word[1]]))), ALL);
                let plain8 = within(bytes.iter().map(|&byte| i16::from(order.key8(byte))), ALL);
                let (magnitude, always) = order.masks16();
                prop_assert_eq!(extremes16_body(&bytes, magnitude, always), plain16);
                prop_assert_eq!(range16(&bytes, order, ALL), plain16);
                let (magnitude, always) = order.masks8();
                prop_assert_eq!(extremes8_body(&bytes, magnitude, always), plain8);
                prop_assert_eq!(range8(&bytes, order, ALL), plain8);
            }
        }
    }
}
