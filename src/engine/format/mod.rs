//! How a tensor is stored: one file per format behind one trait and one registry.
//!
//! A format knows its shape rules, its exact bits, its fall-back where a row does not fill whole
//! blocks, and how rows are encoded and decoded. Adding one is a file, a line in [`all`] and its
//! reference vectors.

mod dtype;

pub use dtype::Dtype;

/// A storage format that rows of weights can be encoded to.
pub trait Format: Sync + std::fmt::Debug {
    /// The field's name in lower case: `q4_k`.
    fn id(&self) -> &'static str;

    /// How the encoded bytes are laid out.
    fn dtype(&self) -> Dtype;

    /// The format to take where a row does not fill whole blocks, as llama.cpp does.
    fn fallback(&self) -> Option<&'static str> {
        None
    }

    /// Encodes one row of whole blocks; `out` has exactly [`Dtype::row_bytes`] bytes.
    fn encode_row(&self, source: &[f32], out: &mut [u8]);

    /// Decodes one row of whole blocks.
    fn decode_row(&self, source: &[u8], out: &mut [f32]);

    /// Exact bits per weight, scales included.
    fn bits_per_weight(&self) -> f64 {
        self.dtype().bits_per_weight()
    }

    /// True if a row of `len` weights fills whole blocks.
    fn fits(&self, len: usize) -> bool {
        self.dtype().row_bytes(len).is_some()
    }
}

/// Every format, from most bits to fewest.
pub fn all() -> &'static [&'static dyn Format] {
    todo!()
}

/// The format called `id`, in any case (`Q4_K` is `q4_k`).
pub fn find(id: &str) -> Option<&'static dyn Format> {
    all().iter().copied().find(|format| format.id().eq_ignore_ascii_case(id))
}

/// The format whose bytes are laid out as `dtype`.
pub fn of_dtype(dtype: Dtype) -> Option<&'static dyn Format> {
    all().iter().copied().find(|format| format.dtype() == dtype)
}

/// True if rows of `dtype` can be decoded to f32.
pub fn is_decodable(dtype: Dtype) -> bool {
    dtype.is_plain() || of_dtype(dtype).is_some()
}

/// Decodes a row of any decodable type; false if the type has no decoder here.
pub fn decode_row(dtype: Dtype, source: &[u8], out: &mut [f32]) -> bool {
    let _ = (dtype, source, out);
    todo!()
}
