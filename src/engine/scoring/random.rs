//! A small seeded generator, the same on every machine: SplitMix64 (Steele, Lea and Flood 2014).

/// Pseudo-random numbers for sampling and resampling; not for secrets.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// A generator for one `stream` of a `seed`; different streams are independent for our purposes.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut random = Self { state: seed ^ stream.wrapping_mul(0xD1B5_4A32_D192_ED03) };
        // Neighbouring streams start far apart only after mixing.
        random.state = random.next_u64();
        random
    }

    /// 64 random bits.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Uniform in `0..1`.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_number_of_splitmix64_from_zero_is_the_published_one() {
        let mut random = Random { state: 0 };
        assert_eq!(random.next_u64(), 0xE220_A839_7B1D_CDAF);
    }

    #[test]
    fn unit_numbers_fill_the_unit_interval_evenly() {
        let mut random = Random::new(7, 3);
        let mut counts = [0_u32; 10];
        for _ in 0..10_000 {
            counts[(random.unit() * 10.0) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }
}
