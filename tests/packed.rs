//! Packed weights against the peers' own bytes and values (`tests/oracles/packed_formats.py`).

use std::path::Path;

use lapidary::engine::checkpoint::{Checkpoint, FolderWriter, SafeTensor};
use lapidary::engine::format::{self, Dtype, Encoding, survey_matrix};
use lapidary::engine::target::parts::{Matrix, Packer, Scheme, parts};
use lapidary::engine::target::{bitsandbytes, compressed_tensors, gptq};
use safetensors::SafeTensors;
use serde_json::{Value, json};

const ROWS: usize = 32;
const COLS: usize = 256;
const MODULE: &str = "model.layers.0.mlp.up_proj";
/// The rows whose values the fixture holds.
const VALUE_ROWS: std::ops::Range<usize> = 4..12;

/// One case of the fixture.
#[derive(serde::Deserialize)]
struct Case {
    name: String,
    id: String,
    kind: String,
}

impl Case {
    fn scheme(&self) -> Scheme {
        match self.kind.as_str() {
            "compressed-tensors" => Scheme::CompressedTensors,
            "bitsandbytes" => Scheme::Bitsandbytes,
            "awq" => Scheme::Awq,
            _ => Scheme::Gptq,
        }
    }

    fn dtype(&self) -> Dtype {
        format::find(&self.id).unwrap_or_else(|| panic!("there is no format {}", self.id)).dtype()
    }

    fn matrix(&self) -> Matrix {
        Matrix { dtype: self.dtype(), rows: ROWS, cols: COLS, main: Dtype::F32 }
    }

    fn config(&self) -> Value {
        match (self.scheme(), self.dtype()) {
            (Scheme::CompressedTensors, dtype) => compressed_tensors::config(&[(MODULE.to_owned(), dtype)], &[]),
            (Scheme::Bitsandbytes, Dtype::Bnb(scheme)) => bitsandbytes::config(scheme, &[], Dtype::F32),
            (Scheme::Awq, Dtype::Int(scheme)) => gptq::awq_config(scheme, &[]),
            (_, Dtype::Int(scheme)) => {
                let mut config = gptq::gptq_config(scheme, &[]);
                config["checkpoint_format"] = json!(self.kind);
                config
            }
            _ => panic!("{} has no config", self.name),
        }
    }

    /// Stored parts by what follows the module's name.
    fn parts<'a>(&self, file: &'a SafeTensors<'_>) -> Vec<(String, Vec<usize>, Dtype, &'a [u8])> {
        let prefix = format!("{}/", self.name);
        let mut names: Vec<String> =
            file.names().into_iter().filter_map(|name| name.strip_prefix(&prefix)).map(str::to_owned).collect();
        names.sort();
        names
            .into_iter()
            .filter(|name| name != "values")
            .map(|name| {
                let view = file.tensor(&format!("{prefix}{name}")).expect("listed");
                let dtype = match view.dtype() {
                    safetensors::Dtype::I32 => Dtype::I32,
                    safetensors::Dtype::I64 => Dtype::I64,
                    safetensors::Dtype::I8 => Dtype::I8,
                    safetensors::Dtype::U8 => Dtype::U8,
                    safetensors::Dtype::F16 => Dtype::F16,
                    safetensors::Dtype::BF16 => Dtype::Bf16,
                    safetensors::Dtype::F32 => Dtype::F32,
                    safetensors::Dtype::F8_E4M3 => Dtype::F8E4M3,
                    other => panic!("{name} has type {other:?}"),
                };
                let bytes: &'a [u8] = file.tensor(&format!("{prefix}{name}")).expect("listed").data();
                (name, view.shape().to_vec(), dtype, bytes)
            })
            .collect()
    }
}

fn fixture() -> Vec<u8> {
    std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/packed_formats.safetensors")).expect("fixture")
}

fn cases(file: &[u8]) -> Vec<Case> {
    let (_, metadata) = SafeTensors::read_metadata(file).expect("header");
    let cases = metadata.metadata().as_ref().expect("metadata")["cases"].clone();
    serde_json::from_str(&cases).expect("cases")
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// A folder with nothing but one packed weight.
fn folder(target: &Path, config: &Value, parts: &[(String, Vec<usize>, Dtype, &[u8])]) -> Checkpoint {
    let folder = FolderWriter::create(target).expect("folder");
    let text = json!({"architectures": ["LlamaForCausalLM"], "quantization_config": config}).to_string();
    folder.write_file("config.json", text.as_bytes()).expect("written");
    let tensors: Vec<SafeTensor> = parts
        .iter()
        .map(|(name, shape, dtype, _)| SafeTensor {
            name: format!("{MODULE}.{name}"),
            shape: shape.clone(),
            dtype: *dtype,
        })
        .collect();
    let mut writer = folder.safetensors(&tensors).expect("header");
    for part in parts {
        writer.write_tensor_rows(part.3).expect("written");
    }
    writer.finish().expect("whole");
    folder.finish().expect("moved");
    Checkpoint::open(target).expect("opens")
}

/// Every case's canonical rows as our reader puts them together.
fn canonical(case: &Case, file: &SafeTensors<'_>) -> Vec<u8> {
    let place = tempfile::tempdir().expect("temporary folder");
    let checkpoint = folder(&place.path().join("m"), &case.config(), &case.parts(file));
    let name = format!("{MODULE}.weight");
    let tensor = checkpoint.tensor(&name).unwrap_or_else(|| panic!("{}: {:?}", case.name, checkpoint.config_fault));
    assert_eq!((tensor.dtype, tensor.shape.as_slice()), (case.dtype(), &[ROWS, COLS][..]), "{}", case.name);
    assert_eq!(checkpoint.tensors.len(), 1, "{}: every part is used", case.name);
    let mut whole = Vec::new();
    checkpoint.read_rows(tensor, 0..ROWS, &mut whole).expect("readable");
    // Any stretch of rows is the same stretch of the whole.
    let row_bytes = whole.len() / ROWS;
    for rows in [0..1, 3..4, 7..9, 5..32, 31..32, 11..11] {
        let mut some = Vec::new();
        checkpoint.read_rows(tensor, rows.clone(), &mut some).expect("readable");
        assert_eq!(some, whole[rows.start * row_bytes..rows.end * row_bytes], "{} rows {rows:?}", case.name);
    }
    whole
}

#[test]
fn the_peers_files_decode_to_the_peers_values() {
    let bytes = fixture();
    let file = SafeTensors::deserialize(&bytes).expect("fixture");
    for case in cases(&bytes) {
        let rows = canonical(&case, &file);
        let mut values = vec![0.0; ROWS * COLS];
        assert!(format::decode_rows(case.dtype(), COLS, &rows, &mut values));
        let theirs = floats(file.tensor(&format!("{}/values", case.name)).expect("values").data());
        let ours = &values[VALUE_ROWS.start * COLS..VALUE_ROWS.end * COLS];
        for (at, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            // Nested maxima are a product and a sum, which some builds round once and some twice.
            let slack = if case.id.ends_with("_dq") { 1e-6 * theirs.abs() } else { 0.0 };
            assert!((ours - theirs).abs() <= slack, "{} value {at}: {ours} {theirs}", case.name);
        }
    }
}

#[test]
fn packing_what_was_read_gives_the_peers_bytes_again() {
    let bytes = fixture();
    let file = SafeTensors::deserialize(&bytes).expect("fixture");
    for case in cases(&bytes) {
        // A second version of a symmetric matrix is read; we write the first.
        if case.name.starts_with("gptq_v2") && !case.name.ends_with("asym") || case.id.ends_with("_dq") {
            continue;
        }
        compare(&case, &file, &canonical(&case, &file), None);
    }
}

#[test]
fn our_encoders_give_the_bytes_of_compressed_tensors_and_bitsandbytes() {
    let bytes = fixture();
    let file = SafeTensors::deserialize(&bytes).expect("fixture");
    let weight = floats(file.tensor("weight").expect("weight").data());
    for case in cases(&bytes) {
        if matches!(case.scheme(), Scheme::Gptq | Scheme::Awq) {
            continue;
        }
        let format = format::find(&case.id).expect("checked");
        let how = Encoding::plain(COLS);
        let shared = survey_matrix(format, &weight, &how);
        let mut rows = vec![0; format.dtype().row_bytes(COLS).expect("fits") * ROWS];
        format.encode_rows(&weight, &Encoding { shared: shared.as_ref(), ..how }, &mut rows);
        compare(&case, &file, &rows, shared.as_ref());
    }
}

/// Packs canonical rows and compares each part with the peer's.
fn compare(case: &Case, file: &SafeTensors<'_>, rows: &[u8], shared: Option<&format::Shared>) {
    let listed = parts(case.scheme(), &case.matrix()).unwrap_or_else(|| panic!("{} has parts", case.name));
    let mut packer = Packer::new(case.scheme(), &case.matrix(), shared).expect("it can be packed");
    let mut out = Vec::new();
    let row_bytes = rows.len() / ROWS;
    for some in rows.chunks(row_bytes * 5) {
        packer.rows(some, &mut out);
    }
    packer.finish(&mut out);
    let total: u64 = listed.iter().map(|part| part.bytes()).sum();
    assert_eq!(out.len() as u64, total, "{}: the bytes that the parts say", case.name);
    if !matches!(case.scheme(), Scheme::Gptq | Scheme::Awq) {
        // The state of a bitsandbytes weight holds no weights and is not counted.
        let state: u64 =
            listed.iter().filter(|part| part.suffix.contains("quant_state")).map(|part| part.bytes()).sum();
        let stored = format::find(&case.id).expect("known").stored_bytes(ROWS as u64, COLS).expect("fits");
        assert_eq!(stored, total - state, "{}", case.name);
    }
    let mut from = 0;
    let theirs = case.parts(file);
    for part in &listed {
        let ours = &out[from..from + part.bytes() as usize];
        from += ours.len();
        let (_, shape, dtype, bytes) = theirs
            .iter()
            .find(|theirs| theirs.0 == part.suffix)
            .unwrap_or_else(|| panic!("{} has no part {}", case.name, part.suffix));
        if part.suffix.contains("quant_state") {
            let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).expect("JSON");
            let (mut ours, mut theirs) = (parse(ours), parse(bytes));
            let offset = |state: &mut Value| state["nested_offset"].take().as_f64().unwrap_or(0.0);
            assert!((offset(&mut ours) - offset(&mut theirs)).abs() < 1e-6, "{}", case.name);
            assert_eq!(ours, theirs, "{}", case.name);
            continue;
        }
        assert_eq!((&part.shape, part.dtype), (shape, *dtype), "{} {}", case.name, part.suffix);
        let differing = ours.iter().zip(*bytes).filter(|(a, b)| a != b).count();
        if part.suffix == "weight.nested_absmax" {
            // The mean of the maxima depends on the order of a sum.
            let near = floats(ours).iter().zip(floats(bytes)).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs());
            assert!(near, "{} {}: {:?} {:?}", case.name, part.suffix, floats(ours), floats(bytes));
            continue;
        }
        assert_eq!(differing, 0, "{} {}: bytes that differ of {}", case.name, part.suffix, ours.len());
    }
}

#[test]
fn parts_that_do_not_fit_each_other_are_named_and_stay_listed() {
    let bytes = fixture();
    let file = SafeTensors::deserialize(&bytes).expect("fixture");
    let all = cases(&bytes);
    for name in ["ct_int4_g128_asym_f32", "bnb_nf4_dq", "gptq_int4_g128", "awq_int4_g64_asym", "ct_fp8_block"] {
        let case = all.iter().find(|case| case.name == name).unwrap_or_else(|| panic!("{name}"));
        let good = case.parts(&file);
        for index in 0..good.len() {
            if good[index].0 == "weight_zero_point" && !case.id.contains("asym") {
                continue;
            }
            // Without a part, and with one value of it missing.
            let mut without = good.clone();
            without.remove(index);
            let mut shorter = good.clone();
            let last = shorter[index].1.len() - 1;
            let cut = shorter[index].3.len() / shorter[index].1[last];
            shorter[index].1[last] -= 1;
            shorter[index].3 = &shorter[index].3[..shorter[index].3.len() - cut];
            // A narrower matrix of bytes may have the same scales and be whole.
            let is_whole = case.name == "ct_fp8_block" && good[index].0 == "weight";
            for broken in if is_whole { vec![without] } else { vec![without, shorter] } {
                let place = tempfile::tempdir().expect("temporary folder");
                let checkpoint = folder(&place.path().join("m"), &case.config(), &broken);
                let fault = checkpoint.config_fault.as_ref().map(ToString::to_string);
                let weight = checkpoint.tensor(&format!("{MODULE}.weight"));
                let is_packed = weight.is_some_and(|tensor| tensor.dtype == case.dtype());
                assert!(!is_packed, "{name} with a broken {} was taken: {fault:?}", good[index].0);
            }
        }
    }
}

#[test]
fn a_hostile_configuration_is_one_error() {
    let bytes = fixture();
    let file = SafeTensors::deserialize(&bytes).expect("fixture");
    let all = cases(&bytes);
    let case = all.iter().find(|case| case.name == "ct_int4_g128_asym_f32").expect("case");
    let good = case.config();
    let with = |pointer: &str, value: Value| {
        let mut config = good.clone();
        *config.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value;
        config
    };
    for (config, word) in [
        (with("/quant_method", json!("aqlm")), "aqlm"),
        (with("/config_groups", json!({})), "no group"),
        (with("/config_groups/group_0/targets", json!(["re:("])), "pattern"),
        (with("/config_groups/group_0/weights/num_bits", json!(1e9)), "num_bits"),
        (with("/config_groups/group_0/weights/group_size", json!(-1)), "cannot be read"),
        (with("/config_groups/group_0/weights/group_size", json!(96)), "do not fill"),
        (with("/config_groups/group_0/weights/type", json!("float")), "cannot be read"),
    ] {
        let place = tempfile::tempdir().expect("temporary folder");
        let checkpoint = folder(&place.path().join("m"), &config, &case.parts(&file));
        let fault = checkpoint.config_fault.as_ref().expect("a fault").to_string();
        assert!(fault.contains(word), "{word}: {fault}");
        assert!(checkpoint.tensor(&format!("{MODULE}.weight_packed")).is_some(), "parts stay listed");
    }
}
