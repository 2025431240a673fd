//! Numeric functions and block layouts: a portable reference, and SIMD chosen at run time.
//!
//! Nothing here knows of files, models or progress. Every fast path is tested against the plain
//! reference beside it. The only modules with `unsafe` are those that call CPU instructions or
//! write disjoint parts of one buffer from several threads.

pub mod activations;
pub mod attention;
pub mod bits;
pub mod bnb;
mod codebooks;
pub mod counts;
pub mod dense;
pub mod float;
pub mod fp8;
pub mod ints;
pub mod iquants;
pub mod kquants;
pub mod kquants_encode;
pub mod legacy;
pub mod legacy_encode;
pub mod moments;
pub mod nonlinear;
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
}

impl Level {
    /// The best level this CPU has; detected once by the standard library.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            return Self::Avx2;
        }
        Self::Portable
    }

    /// The level as a word for reports of speed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "AVX2",
        }
    }
}

/// Compiles one always-inlined body twice: plainly, and with AVX2 and FMA switched on so that the
/// compiler vectorizes it; picks at run time. Arithmetic and its order are the same in both.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? => $body:path) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn with_avx2($($arg: $ty),*) $(-> $ret)? {
                    $body($($arg),*)
                }
                if $crate::engine::kernels::Level::detect() == $crate::engine::kernels::Level::Avx2 {
                    // SAFETY: the level says that this CPU has AVX2, FMA and F16C.
                    return unsafe { with_avx2($($arg),*) };
                }
            }
            $body($($arg),*)
        }
    };
}
pub(crate) use multiversion;

#[cfg(test)]
mod encode_tests;
