//! What results are written for: names, row layouts, parts and rules of the containers.
//!
//! Pure functions that know nothing of open files, so that reading and writing use the same tables.

pub mod bitsandbytes;
pub mod compressed_tensors;
pub mod gguf_names;
pub mod gptq;
pub mod llama_layout;
pub mod parts;
pub mod pre_tokenizers;
pub mod sparse_bitmask;
