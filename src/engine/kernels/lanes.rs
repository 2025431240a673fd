//! What the packed products ask of an instruction set: one trait, one file for each set.
//!
//! A tile of weights has [`Lanes::ROWS`] rows. Its codes lie in *steps*: four neighbouring weights
//! of every row, row after row, so that one vector holds a step and four activations repeated over
//! the vector meet it. No sum ever crosses lanes: each row has a lane of its own from the first
//! product to the last.

/// Weights of one row in a step.
pub(super) const STEP: usize = 4;

/// Vectors of one instruction set.
///
/// Every method reads or writes as many elements as its vector holds.
///
/// # Safety
/// Callers of any method promise that the CPU has the instructions, and that pointers are good for
/// a vector: `ROWS` floats, `ROWS × 4` codes, four activations.
pub(super) trait Lanes: 'static {
    /// Rows a tile.
    const ROWS: usize;
    /// One `f32` a row.
    type Floats: Copy;
    /// One `i32` a row.
    type Ints: Copy;
    /// A step of codes without sign, at most 63.
    type Codes: Copy;
    /// Running sums of products with [`Lanes::Codes`].
    type Narrow: Copy;
    /// A step of signed codes, prepared to meet several tokens.
    type Signed: Copy;
    /// What codes of four bits stand for.
    type Table: Copy;

    unsafe fn splat(value: f32) -> Self::Floats;
    unsafe fn load(from: *const f32) -> Self::Floats;
    unsafe fn store(to: *mut f32, value: Self::Floats);
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a × b + c`.
    unsafe fn mul_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// `c − a × b`.
    unsafe fn mul_sub(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// Little-endian f16 values.
    unsafe fn load_halves(from: *const u8) -> Self::Floats;
    /// Bytes without sign as floats.
    unsafe fn load_bytes(from: *const u8) -> Self::Floats;
    /// Two vectors of bf16 values that alternate: `first[0] second[0] first[1] second[1] …`.
    unsafe fn load_bf16_pairs(from: *const u8) -> (Self::Floats, Self::Floats);
    unsafe fn to_floats(ints: Self::Ints) -> Self::Floats;
    unsafe fn zero_ints() -> Self::Ints;
    unsafe fn add_ints(a: Self::Ints, b: Self::Ints) -> Self::Ints;

    /// Asks for the cache line at an address, which need not be valid.
    unsafe fn prefetch(from: *const u8);
    unsafe fn codes(from: *const u8) -> Self::Codes;
    unsafe fn store_codes(to: *mut u8, codes: Self::Codes);
    unsafe fn table(values: &[i8; 16]) -> Self::Table;
    /// The values of codes below sixteen, as signed bytes.
    unsafe fn lookup(table: Self::Table, codes: Self::Codes) -> Self::Codes;
    /// Each code shifted, then masked: bits that come over from a neighbour must be masked away.
    unsafe fn shift_left(codes: Self::Codes, by: u32, mask: u8) -> Self::Codes;
    /// As [`Lanes::shift_left`], to the right.
    unsafe fn shift_right(codes: Self::Codes, by: u32, mask: u8) -> Self::Codes;
    unsafe fn or(a: Self::Codes, b: Self::Codes) -> Self::Codes;
    unsafe fn narrow_zero() -> Self::Narrow;
    /// Adds the products of a step. What one sum may take is the caller's to bound: pairs of
    /// products, each added up over the steps, fit an `i16`.
    unsafe fn narrow_add(sum: Self::Narrow, codes: Self::Codes, x: *const i8) -> Self::Narrow;
    /// The sums as whole integers.
    unsafe fn narrow_ints(sum: Self::Narrow) -> Self::Ints;

    /// What the sum of a run of signed codes starts from, given the sum of the activations it meets.
    unsafe fn signed_zero(x_sum: i32) -> Self::Ints;
    /// Codes whose bytes are signed.
    unsafe fn signed(codes: Self::Codes) -> Self::Signed;
    /// Adds the products of a step of signed codes; activations are at least −127.
    unsafe fn signed_add(sum: Self::Ints, codes: Self::Signed, x: *const i8) -> Self::Ints;
}

mod portable;
pub(super) use portable::Portable;

#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512, Avx512Vnni};

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
pub(super) use neon::{Neon, NeonDot};

/// Calls a macro with every level that this architecture may have: the [`Level`](super::Level), its
/// [`Lanes`], and the CPU features to compile for.
macro_rules! for_every_level {
    ($action:ident) => {
        $action!(Portable, $crate::kernels::lanes::Portable,);
        #[cfg(target_arch = "x86_64")]
        $action!(Avx2, $crate::kernels::lanes::Avx2, #[target_feature(enable = "avx2,fma,f16c")]);
        #[cfg(target_arch = "x86_64")]
        $action!(
            Avx512,
            $crate::kernels::lanes::Avx512,
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
        );
        #[cfg(target_arch = "x86_64")]
        $action!(
            Avx512Vnni,
            $crate::kernels::lanes::Avx512Vnni,
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
        );
        #[cfg(target_arch = "aarch64")]
        $action!(Neon, $crate::kernels::lanes::Neon, #[target_feature(enable = "neon")]);
        #[cfg(target_arch = "aarch64")]
        $action!(NeonDot, $crate::kernels::lanes::NeonDot, #[target_feature(enable = "neon,dotprod")]);
    };
}
pub(super) use for_every_level;

/// Runs an expression with the type `$lanes` bound to the lanes of a level.
macro_rules! with_lanes {
    ($level:expr, $lanes:ident => $body:expr) => {
        match $level {
            $crate::kernels::Level::Portable => {
                type $lanes = $crate::kernels::lanes::Portable;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            $crate::kernels::Level::Avx2 => {
                type $lanes = $crate::kernels::lanes::Avx2;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            $crate::kernels::Level::Avx512 => {
                type $lanes = $crate::kernels::lanes::Avx512;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            $crate::kernels::Level::Avx512Vnni => {
                type $lanes = $crate::kernels::lanes::Avx512Vnni;
                $body
            }
            #[cfg(target_arch = "aarch64")]
            $crate::kernels::Level::Neon => {
                type $lanes = $crate::kernels::lanes::Neon;
                $body
            }
            #[cfg(target_arch = "aarch64")]
            $crate::kernels::Level::NeonDot => {
                type $lanes = $crate::kernels::lanes::NeonDot;
                $body
            }
            #[allow(unreachable_patterns, reason = "levels of another architecture")]
            other => unreachable!("{other:?} is not a level of this architecture"),
        }
    };
}
pub(super) use with_lanes;
