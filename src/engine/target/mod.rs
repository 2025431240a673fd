//! What results are written for: names, row layouts and rules of the containers.
//!
//! Pure functions that know nothing of open files, so that reading and writing use the same tables.

pub mod gguf_names;
pub mod llama_layout;
pub mod pre_tokenizers;
