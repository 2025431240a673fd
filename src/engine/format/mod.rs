//! How a tensor is stored: one file per format behind one trait and one registry.
//!
//! A format knows its shape rules, its exact bits, its fall-back where a row does not fill whole
//! blocks, and how rows are encoded and decoded. Adding one is a file, a line in [`all`] and its
//! reference vectors. Formats that are only read are in `decode_only.rs`: [`of_dtype`] knows them,
//! [`all`] and [`find`] do not offer them.

mod bf16;
mod bnb;
mod decode_only;
mod dtype;
mod f16;
mod f32;
mod fp8;
#[cfg(feature = "gpu")]
pub mod gpu;
mod ints;
mod iq4_nl;
mod iq4_xs;
mod mxfp4;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod scheme;
mod survey;

use std::collections::HashMap;
use std::sync::OnceLock;

pub use dtype::Dtype;
pub use scheme::{BnbScheme, FP8_BLOCK, Fp8Scales, Fp8Scheme, Granularity, IntScheme};
pub use survey::{Shared, Survey, survey_matrix};

use super::kernels::ints::ScaleChoice;
use super::kernels::packed::Layout;
use super::kernels::scan::Errors;
use super::kernels::{Columns, float};

/// What an encoder is told beside the values.
#[derive(Clone, Copy, Debug)]
pub struct Encoding<'a> {
    /// Weights a row.
    pub row_len: usize,
    /// Index in its tensor of the first row given.
    pub first_row: usize,
    /// How much each of the `row_len` columns matters: the mean square of what it is multiplied
    /// with. Formats without a weighted search ignore it.
    pub importance: Option<&'a [f32]>,
    /// How scales of integer groups are found; other formats have one way of their own.
    pub scale_choice: ScaleChoice,
    /// What a survey of the whole tensor found. Without it, the rows given count as all there are.
    pub shared: Option<&'a Shared>,
}

impl Encoding<'_> {
    /// Rows of `row_len` weights, all columns alike.
    pub fn plain(row_len: usize) -> Self {
        Self { row_len, first_row: 0, importance: None, scale_choice: ScaleChoice::AbsMax, shared: None }
    }

    /// What the kernels need of it.
    fn columns(&self) -> Columns<'_> {
        Columns { row_len: self.row_len, importance: self.importance }
    }
}

/// What a scan that has to encode and decode writes to; reused from scan to scan.
#[derive(Debug, Default)]
pub struct ScanBuffers {
    encoded: Vec<u8>,
    coded: Vec<f32>,
}

/// A storage format of rows of weights.
pub trait Format: Sync + std::fmt::Debug {
    /// The field's name in lower case: `q4_k`.
    fn id(&self) -> &'static str;

    /// How the encoded bytes are laid out.
    fn dtype(&self) -> Dtype;

    /// The format to take where a row does not fill whole blocks, as llama.cpp does.
    fn fallback(&self) -> Option<&'static str> {
        None
    }

    /// The layout that the packed kernels multiply; `None` for plain numbers.
    fn layout(&self) -> Option<Layout> {
        None
    }

    /// True if rows can be encoded to it; every format of [`all`] can. The others are read only.
    fn is_encodable(&self) -> bool {
        true
    }

    /// Encodes one or more whole rows of `how.row_len` weights; `out` has [`Dtype::row_bytes`]
    /// bytes for each.
    ///
    /// Several rows at once let an encoder put one block into each SIMD lane. Only for formats that
    /// [`Format::is_encodable`].
    fn encode_rows(&self, source: &[f32], how: &Encoding<'_>, out: &mut [u8]);

    /// Decodes a whole row; of formats without parameters, one or more.
    fn decode_row(&self, source: &[u8], out: &mut [f32]);

    /// What has to look at all rows before the first is encoded; `None` where each row stands for itself.
    fn survey(&self, how: &Encoding<'_>) -> Option<Box<dyn Survey>> {
        let _ = how;
        None
    }

    /// Exact bytes of a tensor of `rows` rows of `len` weights in the container that the format is
    /// made for: what rows share counts once. `None` if such a row does not fill whole blocks.
    fn stored_bytes(&self, rows: u64, len: usize) -> Option<u64> {
        rows.checked_mul(self.dtype().row_bytes(len)? as u64)
    }

    /// Adds up how far the format moves whole rows, as [`Format::encode_rows`] and
    /// [`Format::decode_row`] would; the rows must fill blocks.
    ///
    /// Encodes and decodes, unless the format has a kernel that need not
    /// ([`kernels::scan`](crate::kernels::scan)).
    fn scan(&self, source: &[f32], how: &Encoding<'_>, buffers: &mut ScanBuffers, errors: &mut Errors) {
        scan_by_coding(self, source, how, buffers, errors);
    }

    /// Exact bits per weight, scales included; without those that a whole row or tensor shares.
    fn bits_per_weight(&self) -> f64 {
        self.dtype().bits_per_weight()
    }

    /// True if a row of `len` weights fills whole blocks.
    fn fits(&self, len: usize) -> bool {
        self.dtype().row_bytes(len).is_some()
    }
}

/// [`Format::scan`] by way of the encoded bytes, for formats and searches without a kernel of their own.
fn scan_by_coding<F: Format + ?Sized>(
    format: &F,
    source: &[f32],
    how: &Encoding<'_>,
    buffers: &mut ScanBuffers,
    errors: &mut Errors,
) {
    let row_bytes = format.dtype().row_bytes(how.row_len).unwrap_or(0);
    buffers.encoded.resize(source.len() / how.row_len.max(1) * row_bytes, 0);
    buffers.coded.resize(source.len(), 0.0);
    format.encode_rows(source, how, &mut buffers.encoded);
    let rows = buffers.encoded.chunks_exact(row_bytes.max(1)).zip(buffers.coded.chunks_exact_mut(how.row_len.max(1)));
    rows.for_each(|(row, coded)| format.decode_row(row, coded));
    errors.add(source, &buffers.coded);
}

/// Formats without parameters, from most bits to fewest.
const BLOCKS: [&dyn Format; 16] = [
    &f32::F32,
    &f16::F16,
    &bf16::Bf16,
    &q8_0::Q80,
    &q6_k::Q6K,
    &q5_k::Q5K,
    &q5_1::Q51,
    &q5_0::Q50,
    &q4_k::Q4K,
    &q4_1::Q41,
    &q4_0::Q40,
    &iq4_nl::Iq4Nl,
    &iq4_xs::Iq4Xs,
    &mxfp4::Mxfp4,
    &q3_k::Q3K,
    &q2_k::Q2K,
];

/// The usual ones among the formats with parameters, from most bits to fewest.
const USUAL: [&str; 13] = [
    "int8_g128",
    "int8_channel",
    "fp8_e4m3_block128",
    "fp8_e4m3_channel",
    "fp8_e5m2_channel",
    "int4_g32",
    "nf4",
    "fp4",
    "int4_g128_asym",
    "nf4_dq",
    "int4_g128",
    "int3_g128_asym",
    "int2_g64_asym",
];

/// Every format that can be encoded and is offered: those without parameters, then the usual ones with them, each from
/// most bits to fewest.
pub fn all() -> &'static [&'static dyn Format] {
    static ALL: OnceLock<Vec<&'static dyn Format>> = OnceLock::new();
    ALL.get_or_init(|| BLOCKS.into_iter().chain(USUAL.iter().filter_map(|id| find(id))).collect())
}

/// Every format with parameters, by name and by type: built once, about 800.
#[derive(Debug)]
struct Schemes {
    formats: Vec<Box<dyn Format + Send>>,
    by_id: HashMap<&'static str, usize>,
    by_dtype: HashMap<Dtype, usize>,
}

fn schemes() -> &'static Schemes {
    static SCHEMES: OnceLock<Schemes> = OnceLock::new();
    SCHEMES.get_or_init(|| {
        let mut formats: Vec<Box<dyn Format + Send>> = Vec::new();
        formats.extend(IntScheme::all().map(|scheme| Box::new(ints::Ints::new(scheme)) as Box<dyn Format + Send>));
        formats.extend(Fp8Scheme::all().map(|scheme| Box::new(fp8::ScaledFp8::new(scheme)) as Box<dyn Format + Send>));
        formats.extend(BnbScheme::all().map(|scheme| Box::new(bnb::Bnb::new(scheme)) as Box<dyn Format + Send>));
        let by_id = formats.iter().enumerate().map(|(at, format)| (format.id(), at)).collect();
        let by_dtype = formats.iter().enumerate().map(|(at, format)| (format.dtype(), at)).collect();
        Schemes { formats, by_id, by_dtype }
    })
}

/// Every format with parameters: all legal widths, groups, symmetries and types of scale.
///
/// [`all`] lists the usual ones among them; [`find`] knows each.
pub fn parameterized() -> impl Iterator<Item = &'static dyn Format> {
    schemes().formats.iter().map(|format| &**format as &'static dyn Format)
}

/// Every format without parameters or among the usual ones that can be decoded: [`all`], then those
/// that are only read.
pub fn decodable() -> impl Iterator<Item = &'static dyn Format> {
    all().iter().copied().chain(decode_only::ALL)
}

/// The format called `id`, in any case (`Q4_K` is `q4_k`), one of [`all`] or of [`parameterized`].
pub fn find(id: &str) -> Option<&'static dyn Format> {
    let plain = BLOCKS.iter().copied().find(|format| format.id().eq_ignore_ascii_case(id));
    plain.or_else(|| {
        let schemes = schemes();
        schemes.by_id.get(id.to_ascii_lowercase().as_str()).map(|&at| &*schemes.formats[at] as &'static dyn Format)
    })
}

/// The format whose bytes are laid out as `dtype`; it may be one that is only read
/// ([`Format::is_encodable`]).
pub fn of_dtype(dtype: Dtype) -> Option<&'static dyn Format> {
    if dtype.is_scheme() {
        let schemes = schemes();
        return schemes.by_dtype.get(&dtype).map(|&at| &*schemes.formats[at] as &'static dyn Format);
    }
    BLOCKS.into_iter().chain(decode_only::ALL).find(|format| format.dtype() == dtype)
}

/// True if rows of `dtype` can be decoded to f32.
pub fn is_decodable(dtype: Dtype) -> bool {
    dtype.is_plain() || of_dtype(dtype).is_some()
}

/// True if rows of `dtype` are encoded with [`Encoding::importance`] in mind; the others ignore it.
pub fn heeds_importance(dtype: Dtype) -> bool {
    use Dtype as D;
    matches!(
        dtype,
        D::Int(_)
            | D::Q4_0
            | D::Q4_1
            | D::Q5_0
            | D::Q5_1
            | D::Q2K
            | D::Q3K
            | D::Q4K
            | D::Q5K
            | D::Q6K
            | D::Iq4Nl
            | D::Iq4Xs
    )
}

/// The formats that make a checkpoint smaller than 16 bits a weight.
pub fn quantized() -> impl Iterator<Item = &'static dyn Format> {
    all().iter().copied().filter(|format| !format.dtype().is_plain())
}

/// The format that a row of `row_len` weights really gets when `format` is asked for: itself, or
/// the first of its fall-backs that the row fills.
pub fn fitting(format: &'static dyn Format, row_len: usize) -> &'static dyn Format {
    let mut chosen = format;
    while !chosen.fits(row_len) {
        match chosen.fallback().and_then(find) {
            Some(next) => chosen = next,
            None => break,
        }
    }
    chosen
}

/// Decodes rows of `row_len` weights of any decodable type; false if the type has no decoder here.
pub fn decode_rows(dtype: Dtype, row_len: usize, source: &[u8], out: &mut [f32]) -> bool {
    let Some(row_bytes) = dtype.row_bytes(row_len) else { return false };
    if row_len == 0 || row_bytes == 0 {
        return is_decodable(dtype);
    }
    source.chunks_exact(row_bytes).zip(out.chunks_exact_mut(row_len)).all(|(row, out)| decode_row(dtype, row, out))
}

/// What rows `format` can hold and what becomes of others, as one sentence.
pub fn rule(format: &dyn Format) -> String {
    let block_len = format.dtype().block_len();
    match (block_len, format.fallback()) {
        (1, _) => "Rows of any length".to_owned(),
        (_, Some(next)) => format!("Rows of whole blocks of {block_len} weights; others become {next}"),
        (_, None) => format!("Rows of whole blocks of {block_len} weights only"),
    }
}

/// Decodes a row of any decodable type; false if the type has no decoder here.
pub fn decode_row(dtype: Dtype, source: &[u8], out: &mut [f32]) -> bool {
    match dtype {
        Dtype::F64 => float::decode_with(source, out, |bytes| f64::from_le_bytes(bytes) as f32),
        Dtype::F8E4M3 => float::decode_with(source, out, |[byte]| float::f8_e4m3_to_f32(byte)),
        Dtype::F8E5M2 => float::decode_with(source, out, |[byte]| float::f8_e5m2_to_f32(byte)),
        Dtype::I64 => float::decode_with(source, out, |bytes| i64::from_le_bytes(bytes) as f32),
        Dtype::I32 => float::decode_with(source, out, |bytes| i32::from_le_bytes(bytes) as f32),
        Dtype::I16 => float::decode_with(source, out, |bytes| f32::from(i16::from_le_bytes(bytes))),
        Dtype::I8 => float::decode_with(source, out, |[byte]| f32::from(byte as i8)),
        Dtype::U64 => float::decode_with(source, out, |bytes| u64::from_le_bytes(bytes) as f32),
        Dtype::U32 => float::decode_with(source, out, |bytes| u32::from_le_bytes(bytes) as f32),
        Dtype::U16 => float::decode_with(source, out, |bytes| f32::from(u16::from_le_bytes(bytes))),
        Dtype::U8 => float::decode_with(source, out, |[byte]| f32::from(byte)),
        Dtype::Bool => float::decode_with(source, out, |[byte]| f32::from(u8::from(byte != 0))),
        other => match of_dtype(other) {
            Some(format) => format.decode_row(source, out),
            None => return false,
        },
    }
    true
}

#[cfg(test)]
mod ggml_tests;
#[cfg(test)]
mod scheme_tests;
#[cfg(test)]
mod tests;
