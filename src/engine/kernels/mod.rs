//! Numeric functions and block layouts: a portable reference, and SIMD chosen at run time.
//!
//! Nothing here knows of files, models or progress. Every fast path is tested against the plain
//! reference beside it. The only modules with `unsafe` are those that call CPU instructions, write
//! disjoint parts of one buffer from several threads, or ask a driver's library for its counters.

pub mod activations;
pub mod attention;
pub mod bits;
pub mod bnb;
mod codebooks;
pub mod counts;
pub mod dense;
pub mod float;
pub mod fp8;
#[cfg(feature = "gpu")]
pub mod gpu;
pub mod ints;
pub mod iquants;
pub mod kquants;
pub mod kquants_encode;
mod lanes;
pub mod legacy;
pub mod legacy_encode;
pub mod moments;
pub mod nonlinear;
pub mod nvml;
pub mod ops;
pub mod packed;
pub mod scan;
mod search;
mod shared_out;
pub mod small_codes;

/// What encoders know of the columns of the rows that they are given.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    /// Weights a row.
    pub row_len: usize,
    /// How much each of the `row_len` columns matters, for formats with a weighted search.
    pub importance: Option<&'a [f32]>,
}

impl<'a> Columns<'a> {
    /// The importance of the columns of block `index` of whole rows in blocks of `len`.
    fn of(self, index: usize, len: usize) -> Option<&'a [f32]> {
        let first = index * len % self.row_len;
        self.importance.map(|importance| &importance[first..first + len])
    }
}

/// The instruction level that kernels run at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Plain Rust, any CPU.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL and DQ beside.
    Avx512,
    /// The same with AVX-512 VNNI.
    Avx512Vnni,
    /// AArch64 with NEON.
    Neon,
    /// AArch64 with NEON and its dot products.
    NeonDot,
}

impl Level {
    /// All levels, each architecture's from least to most.
    pub const ALL: [Self; 6] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Vnni, Self::Neon, Self::NeonDot];

    /// True if this CPU has the level; found out once by the standard library.
    #[inline]
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let has_avx2 = || {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            };
            let has_avx512 = || {
                has_avx2()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
            };
            match self {
                Self::Portable => true,
                Self::Avx2 => has_avx2(),
                Self::Avx512 => has_avx512(),
                Self::Avx512Vnni => has_avx512() && is_x86_feature_detected!("avx512vnni"),
                Self::Neon | Self::NeonDot => false,
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            match self {
                Self::Portable => true,
                Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
                Self::NeonDot => {
                    std::arch::is_aarch64_feature_detected!("neon")
                        && std::arch::is_aarch64_feature_detected!("dotprod")
                }
                _ => false,
            }
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        {
            self == Self::Portable
        }
    }

    /// The level that kernels run at: the best that this CPU has.
    pub fn detect() -> Self {
        Self::available().last().unwrap_or(Self::Portable)
    }

    /// The best level of what is compiled for the baseline and for AVX2 only; cheaper to ask than [`Level::detect`].
    #[inline]
    pub(crate) fn vectorized() -> Self {
        if Self::Avx2.is_available() { Self::Avx2 } else { Self::Portable }
    }

    /// Every level that this CPU has, the reference first, the best last.
    pub fn available() -> impl DoubleEndedIterator<Item = Self> {
        Self::ALL.into_iter().filter(|level| level.is_available())
    }

    /// Rows in a tile of packed weights at this level.
    pub(crate) fn tile_rows(self) -> usize {
        match self {
            Self::Avx512 | Self::Avx512Vnni => 16,
            _ => 8,
        }
    }

    /// The level as a word for reports of speed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "AVX2",
            Self::Avx512 => "AVX-512",
            Self::Avx512Vnni => "AVX-512 VNNI",
            Self::Neon => "NEON",
            Self::NeonDot => "NEON with dot products",
        }
    }
}

/// Compiles one always-inlined body twice: plainly, and with AVX2 and FMA switched on so that the
/// compiler vectorizes it. Makes two functions: one picks at run time, the other takes the level, which
/// the CPU must have; with `at` in front only the latter. Arithmetic and its order are the same at every level.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident, $at:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? => $body:path) => {
        $(#[$meta])*
        #[inline]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            $at($crate::kernels::Level::vectorized(), $($arg),*)
        }

        $crate::kernels::multiversion! {
            at
            #[doc = concat!("`", stringify!($name), "` at a given instruction level, which the CPU must have.")]
            $vis fn $at($($arg: $ty),*) $(-> $ret)? => $body
        }
    };
    (at $(#[$meta:meta])* $vis:vis fn $at:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? => $body:path) => {
        $(#[$meta])*
        $vis fn $at(level: $crate::kernels::Level, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn with_avx2($($arg: $ty),*) $(-> $ret)? {
                    $body($($arg),*)
                }
                if level >= $crate::kernels::Level::Avx2 {
                    // SAFETY: the level says that this CPU has AVX2, FMA and F16C.
                    return unsafe { with_avx2($($arg),*) };
                }
            }
            let _ = level;
            $body($($arg),*)
        }
    };
}
pub(crate) use multiversion;

/// Asserts that `of` gives the portable reference's result at every level that this CPU has.
#[cfg(test)]
#[track_caller]
pub(crate) fn same_at_every_level<T: PartialEq + std::fmt::Debug>(of: impl Fn(Level) -> T) {
    let reference = of(Level::Portable);
    for level in Level::available() {
        assert_eq!(of(level), reference, "{} differs from plain Rust", level.name());
    }
}

/// Bits of floats, which compare as what they are where the values are no numbers or zeros of two signs.
#[cfg(test)]
pub(crate) fn bits_of(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[cfg(test)]
mod encode_tests;

#[cfg(test)]
mod level_tests;
