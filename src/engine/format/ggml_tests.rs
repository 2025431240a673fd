//! Our block formats against ggml's own bytes and values (`tests/oracles/ggml_blocks.py`).

use safetensors::SafeTensors;
use sha2::{Digest as _, Sha256};

use super::{Dtype, Encoding, Format, all, decodable, decode_row};

/// Weights a row.
const WIDTH: usize = 512;

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// One of the two files of the script. They are part of the test, so that it runs where no file can be read.
struct Fixture {
    bytes: &'static [u8],
}

/// Blocks and values of the formats that are written.
const BLOCKS: Fixture = Fixture { bytes: include_bytes!("../../../tests/fixtures/ggml_blocks.safetensors") };

/// Weighted blocks, and values of the formats that are only read.
const MORE_BLOCKS: Fixture = Fixture { bytes: include_bytes!("../../../tests/fixtures/ggml_blocks_more.safetensors") };

impl Fixture {
    fn metadata(&self, key: &str) -> String {
        let (_, metadata) = SafeTensors::read_metadata(self.bytes).expect("header");
        metadata.metadata().as_ref().expect("metadata")[key].clone()
    }

    /// The bytes of a tensor and the bytes of one of its rows, if the file has it.
    fn tensor(&self, name: &str) -> Option<(Vec<u8>, usize)> {
        let tensors = SafeTensors::deserialize(self.bytes).expect("fixture");
        let tensor = tensors.tensor(name).ok()?;
        let rows = tensor.shape().first().copied().unwrap_or(1);
        Some((tensor.data().to_vec(), tensor.data().len() / rows.max(1)))
    }
}

/// True where only the sign of a scale that is no number differs: the processor chooses it, negative on x86, where
/// ggml's bytes were made, positive on AArch64, for ggml as for us. The formats that get there begin blocks of 18 or
/// 22 bytes with the scale, all in rows of whole blocks.
fn is_sign_of_nan(at: usize, ours: &[u8], theirs: &[u8]) -> bool {
    !cfg!(target_arch = "x86_64")
        && [18, 22].iter().any(|block| ours.len().is_multiple_of(*block) && at % block == 1)
        && ours[at] ^ theirs[at] == 0x80
        && half::f16::from_le_bytes([ours[at - 1], ours[at]]).is_nan()
}

/// Encodes every row alone and all at once, and collects what differs from ggml's bytes.
fn compare(
    format: &dyn Format,
    input: &[f32],
    importance: Option<&[f32]>,
    expected: &[u8],
    names: &[String],
) -> Vec<String> {
    let how = Encoding { importance, ..Encoding::plain(WIDTH) };
    let row_bytes = format.dtype().row_bytes(WIDTH).expect("whole blocks");
    let mut whole = vec![0; expected.len()];
    format.encode_rows(input, &how, &mut whole);
    let mut wrong = Vec::new();
    for (row, name) in names.iter().enumerate() {
        let range = row * row_bytes..(row + 1) * row_bytes;
        let mut bytes = vec![0; row_bytes];
        format.encode_rows(&input[row * WIDTH..(row + 1) * WIDTH], &how, &mut bytes);
        assert!(bytes == whole[range.clone()], "{} {name}: a row differs among others", format.id());
        let theirs = &expected[range];
        let count = (0..row_bytes).filter(|&at| bytes[at] != theirs[at] && !is_sign_of_nan(at, &bytes, theirs)).count();
        if count > 0 {
            wrong.push(format!("{} {name}: {count} of {row_bytes} bytes", format.id()));
        }
    }
    wrong
}

#[test]
fn encoders_give_ggmls_bytes_with_and_without_importance() {
    let (plain, more) = (BLOCKS, MORE_BLOCKS);
    let rows: Vec<(String, String)> = serde_json::from_str(&plain.metadata("rows")).expect("rows");
    let names: Vec<String> = rows.into_iter().map(|(name, _)| name).collect();
    let input = floats(&plain.tensor("input").expect("input").0);
    let importance = floats(&more.tensor("importance").expect("importance").0);
    let (mut wrong, mut weighted) = (Vec::new(), 0);
    for format in all().iter().copied().filter(|format| format.id() != "f32") {
        let name = format!("{}.bytes", format.id());
        let Some((expected, _)) = plain.tensor(&name).or_else(|| more.tensor(&name)) else {
            assert!(format.dtype().ggml_id().is_none(), "{} has no reference", format.id());
            continue;
        };
        wrong.extend(compare(format, &input, None, &expected, &names));
        // What ggml does not weigh stays as it is.
        let expected =
            more.tensor(&format!("{}.weighted", format.id())).inspect(|_| weighted += 1).map_or(expected, |it| it.0);
        wrong.extend(compare(format, &input, Some(&importance), &expected, &names));
    }
    assert_eq!(weighted, 11);
    assert!(wrong.is_empty(), "{} rows differ:\n{}", wrong.len(), wrong.join("\n"));
}

fn assert_decodes(dtype: Dtype, bytes: &[u8], values: &[f32]) {
    let row_bytes = dtype.row_bytes(WIDTH).expect("whole blocks");
    for (row, encoded) in bytes.chunks_exact(row_bytes).enumerate() {
        let mut decoded = vec![0.0; WIDTH];
        assert!(decode_row(dtype, encoded, &mut decoded), "{dtype}");
        for (at, (ours, theirs)) in decoded.iter().zip(&values[row * WIDTH..]).enumerate() {
            let same = ours.to_bits() == theirs.to_bits() || ours == theirs || (ours.is_nan() && theirs.is_nan());
            assert!(same, "{dtype} row {row} weight {at}: {ours} {theirs}");
        }
    }
}

#[test]
fn decoders_give_ggmls_values_also_of_extreme_rows() {
    let (plain, more) = (BLOCKS, MORE_BLOCKS);
    let find = |name: String| plain.tensor(&name).or_else(|| more.tensor(&name)).map(|(bytes, _)| bytes);
    let mut compared = 0;
    for format in decodable() {
        for (bytes, values) in [("bytes", "values"), ("read", "read_values")] {
            let Some(bytes) = find(format!("{}.{bytes}", format.id())) else { continue };
            let values = find(format!("{}.{values}", format.id())).expect("values");
            assert_decodes(format.dtype(), &bytes, &floats(&values));
            compared += 1;
        }
    }
    assert_eq!(compared, 15 + 13);
}

/// The generator of the script, splitmix64.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[test]
fn every_index_into_a_codebook_decodes_as_in_ggml() {
    let more = MORE_BLOCKS;
    let hashes: std::collections::BTreeMap<String, String> =
        serde_json::from_str(&more.metadata("noise_sha256")).expect("hashes");
    assert_eq!(hashes.len(), 13);
    for (id, expected) in hashes {
        let format = decodable().find(|format| format.id() == id).expect("known");
        let dtype = format.dtype();
        let mut noise = Noise(1000 + u64::from(dtype.ggml_id().expect("ggml's")));
        let count = 512 * dtype.row_bytes(WIDTH).expect("whole blocks");
        let mut bytes: Vec<u8> = (0..count.div_ceil(8)).flat_map(|_| noise.next().to_le_bytes()).collect();
        bytes.truncate(count);
        let high_byte = match dtype {
            Dtype::Nvfp4 => None,
            Dtype::Tq1_0 | Dtype::Tq2_0 | Dtype::Iq1M => Some(dtype.block_bytes() - 1),
            Dtype::Q8K => Some(3),
            _ => Some(1),
        };
        for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
            // Every scale is finite.
            if let Some(at) = high_byte {
                block[at] &= 0xbf;
            }
        }
        let mut values = vec![0.0f32; 512 * WIDTH];
        format.decode_row(&bytes, &mut values);
        let mut hash = Sha256::new();
        for value in values {
            hash.update(value.to_le_bytes());
        }
        let ours: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(ours, expected, "{id}");
    }
}

#[test]
fn q8_1_is_q8_0_with_a_sum_beside_its_scale() {
    let mut block = vec![0x00, 0x3c, 0x12, 0x34];
    block.extend((0..32u8).map(|code| code.wrapping_sub(16)));
    let mut values = [0.0; 32];
    assert!(decode_row(Dtype::Q8_1, &block, &mut values));
    assert_eq!((values[0], values[16], values[31]), (-16.0, 0.0, 15.0));
}
