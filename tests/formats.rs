//! Our block formats against ggml's own bytes and values (`tests/oracles/ggml_blocks.py`).

use lapidary::engine::format::{self, Encoding};
use safetensors::SafeTensors;

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn fixture() -> Vec<u8> {
    std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/ggml_blocks.safetensors"))
        .expect("the fixture is in the repository")
}

#[test]
fn encoders_give_ggmls_bytes() {
    let file = fixture();
    let (_, metadata) = SafeTensors::read_metadata(&file).expect("header");
    let rows = metadata.metadata().as_ref().expect("metadata")["rows"].clone();
    let rows: Vec<(String, String)> = serde_json::from_str(&rows).expect("rows");
    let tensors = SafeTensors::deserialize(&file).expect("fixture");
    let input = floats(tensors.tensor("input").expect("input").data());
    let mut wrong = Vec::new();
    let mut compared = 0;
    for format in format::all().iter().filter(|format| format.id() != "f32" && format.dtype().ggml_id().is_some()) {
        let expected = tensors.tensor(&format!("{}.bytes", format.id())).expect("bytes");
        let row_bytes = expected.shape()[1];
        for (row, (name, kind)) in rows.iter().enumerate() {
            let mut bytes = vec![0; row_bytes];
            format.encode_rows(&input[row * 512..(row + 1) * 512], &Encoding::plain(512), &mut bytes);
            let theirs = &expected.data()[row * row_bytes..(row + 1) * row_bytes];
            compared += 1;
            if bytes != theirs && kind == "ordinary" {
                let count = bytes.iter().zip(theirs).filter(|(a, b)| a != b).count();
                wrong.push(format!("{} {name}: {count} of {row_bytes} bytes", format.id()));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {compared} rows differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn decoders_give_ggmls_values_also_of_extreme_rows() {
    let file = fixture();
    let tensors = SafeTensors::deserialize(&file).expect("fixture");
    for format in format::all().iter().filter(|format| format.id() != "f32" && format.dtype().ggml_id().is_some()) {
        let bytes = tensors.tensor(&format!("{}.bytes", format.id())).expect("bytes");
        let values = floats(tensors.tensor(&format!("{}.values", format.id())).expect("values").data());
        let row_bytes = bytes.shape()[1];
        for (row, encoded) in bytes.data().chunks_exact(row_bytes).enumerate() {
            let mut decoded = vec![0.0; 512];
            format.decode_row(encoded, &mut decoded);
            for (at, (ours, theirs)) in decoded.iter().zip(&values[row * 512..]).enumerate() {
                let same = ours.to_bits() == theirs.to_bits() || ours == theirs || (ours.is_nan() && theirs.is_nan());
                assert!(same, "{} row {row} weight {at}: {ours} {theirs}", format.id());
            }
        }
    }
}
