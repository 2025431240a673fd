//! Masked folders that leave their zeros out: smaller on disk, the same when read.

use std::path::Path;

use super::*;
use crate::checkpoint::{FolderWriter, SafeTensor};
use crate::format::Dtype;
use crate::profile::{ProfileOptions, profile_tensor};
use crate::structure::masks::Pattern;
use crate::structure::study::{MaskMethod, MaskOptions, masked};

/// Tensors of a file with their bytes.
type Parts = Vec<(SafeTensor, Vec<u8>)>;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn rows(checkpoint: &Checkpoint, name: &str, rows: std::ops::Range<usize>) -> Vec<f32> {
    let tensor = checkpoint.tensor(name).expect("there");
    let mut values = Vec::new();
    checkpoint.decode_rows(tensor, rows, &mut Vec::new(), &mut values).expect("decodes");
    values
}

fn write(view: &Checkpoint, output: &Path, compact_zeros: bool) -> PassReport {
    let plan = Plan::new(Target::HuggingFace, None);
    let resolved = plan::resolve(&plan, view).expect("resolves");
    let options = PassOptions { compact_zeros, ..PassOptions::default() };
    run(view, &resolved, output, &options, &Progress::default()).expect("passes")
}

#[test]
fn zeros_are_left_out_of_the_file_and_are_there_when_it_is_read() {
    let demo = Checkpoint::open(&root().join("assets/demo")).expect("opens");
    let folder = tempfile::tempdir().expect("tempdir");
    let progress = Progress::default();
    for (name, pattern, bits) in [("24", Pattern::TWO_OF_FOUR, 9.0), ("share", Pattern::Share(0.7), 5.8)] {
        let method = MaskMethod::Magnitude;
        let options = MaskOptions { method, pattern, sample: None, most_bytes: 0, format: None, device: None };
        let (view, _) = masked(&demo, &options, &progress).expect("masks");
        // Read through a mask it is f32; the bf16 that the weights came from holds every value.
        let mut plan = Plan::new(Target::HuggingFace, None);
        plan.set_default_format(Some("bf16")).expect("legal");
        let resolved = plan::resolve(&plan, &view).expect("resolves");
        let options = PassOptions { compact_zeros: true, ..PassOptions::default() };
        let output = folder.path().join(name);
        let report = run(&view, &resolved, &output, &options, &progress).expect("passes");
        let written = Checkpoint::open(&output).expect("opens");
        assert!(written.config.is_some(), "{:?}", written.config_fault);
        assert_eq!(written.tensors.len(), demo.tensors.len());
        for tensor in &demo.tensors {
            let count = tensor.row_count();
            assert_eq!(rows(&written, &tensor.name, 0..count), rows(&view, &tensor.name, 0..count), "{}", tensor.name);
            if count > 7 {
                assert_eq!(rows(&written, &tensor.name, 3..7), rows(&view, &tensor.name, 3..7), "from the middle");
            }
        }
        let linears = || written.tensors.iter().filter(|tensor| tensor.role.is_layer_linear());
        let (bytes, weights) = (
            linears().map(|tensor| tensor.byte_count).sum::<u64>(),
            linears().map(|tensor| tensor.weight_count()).sum::<u64>(),
        );
        // A bit for the mask, 16 for what stays, and 64 a row for where it begins.
        let found = 8.0 * bytes as f64 / weights as f64;
        assert!((found - bits).abs() < 0.3, "{found} bits a weight");
        assert_eq!(report.new_bytes, written.tensor_bytes());
        assert!(report.file_bytes < file_bytes(&view, &resolved).expect("sizes"));
        // As any other checkpoint, it can be written densely again.
        let dense = folder.path().join(format!("{name}-dense"));
        assert_eq!(write(&written, &dense, false).new_bytes, resolved.new_bytes);
        let dense = Checkpoint::open(&dense).expect("opens");
        let up = "model.layers.4.mlp.up_proj.weight";
        assert_eq!(rows(&dense, up, 0..512), rows(&view, up, 0..512));
        // And profiled: what is left out of the file is counted as the zeros that it is.
        for name in [up, "model.layers.0.self_attn.k_proj.weight"] {
            let [dense, compact] = [&dense, &written].map(|checkpoint| {
                let tensor = checkpoint.tensor(name).expect("a linear");
                profile_tensor(checkpoint, tensor, &ProfileOptions::default(), &progress).expect("profiles")
            });
            assert_eq!((&dense.histogram, dense.zero_count), (&compact.histogram, compact.zero_count), "{name}");
            assert_eq!(
                (dense.min, dense.max, &dense.channels),
                (compact.min, compact.max, &compact.channels),
                "{name}"
            );
        }
    }
    // Weights without zeros are stored as they are.
    let plain = folder.path().join("plain");
    let report = write(&demo, &plain, true);
    assert_eq!(report.new_bytes, demo.tensor_bytes());
    assert!(!std::fs::read_to_string(plain.join("config.json")).expect("reads").contains("sparsity"));
}

#[test]
fn what_the_target_cannot_hold_is_refused_before_the_sweep() {
    let demo = Checkpoint::open(&root().join("assets/demo")).expect("opens");
    let folder = tempfile::tempdir().expect("tempdir");
    let output = folder.path().join("out");
    let offered: Vec<&str> = mask_formats().collect();
    assert!(offered.contains(&"int4_g128"), "{offered:?}");
    for (id, target) in [("int4_g128", Target::Gguf), ("q4_k", Target::CompressedTensors)] {
        assert!(target != Target::CompressedTensors || !offered.contains(&id));
        let dtype = crate::format::find(id).map(|format| format.dtype());
        // Without a text, so that a sweep would be refused with other words.
        let mask = MaskOptions {
            method: MaskMethod::SparseGpt,
            pattern: Pattern::TWO_OF_FOUR,
            sample: None,
            most_bytes: 1 << 30,
            format: dtype,
            device: None,
        };
        let options = MaskPass { mask, recipe: None, target: Some(target), compact_zeros: true };
        let refused = super::masked(&demo, &options, &output, &Progress::default()).expect_err("refused").to_string();
        assert!(refused.contains("does not hold") && refused.contains("int4_g128"), "{refused}");
        assert!(!output.exists());
    }
}

/// A folder of one matrix in parts; `change` spoils it.
fn parts(path: &Path, format: &str, change: impl Fn(&mut Vec<(SafeTensor, Vec<u8>)>)) -> Checkpoint {
    let values: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    let numbers = |list: &[i64]| list.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    let tensor = |suffix: &str, dtype: Dtype, shape: &[usize]| SafeTensor {
        name: format!("model.layers.0.mlp.down_proj.{suffix}"),
        shape: shape.to_vec(),
        dtype,
    };
    let is_24 = format.contains("24");
    let mut tensors = vec![
        (tensor("compressed", Dtype::F32, if is_24 { &[2, 2] } else { &[4] }), values),
        (tensor("bitmask", Dtype::U8, &[2, 1]), vec![0b0101, 0b1010]),
        (tensor("shape", Dtype::I64, if is_24 { &[2, 1] } else { &[2] }), numbers(&[2, 4])),
    ];
    if !is_24 {
        tensors.push((tensor("row_offsets", Dtype::I64, &[2]), numbers(&[0, 2])));
    }
    change(&mut tensors);
    let folder = FolderWriter::create(path).expect("folder");
    let config = serde_json::json!({ "model_type": "llama", "quantization_config":
        { "quant_method": "compressed-tensors", "sparsity_config": { "format": format } } });
    folder.write_file("config.json", config.to_string().as_bytes()).expect("config");
    let list: Vec<SafeTensor> = tensors.iter().map(|(tensor, _)| tensor.clone()).collect();
    let mut writer = folder.safetensors(&list).expect("weights");
    for (_, bytes) in &tensors {
        writer.write_tensor_rows(bytes).expect("rows");
    }
    writer.finish().expect("weights");
    folder.finish().expect("folder");
    Checkpoint::open(path).expect("opens")
}

#[test]
fn parts_that_do_not_fit_each_other_are_refused() {
    let folder = tempfile::tempdir().expect("tempdir");
    let name = "model.layers.0.mlp.down_proj.weight";
    for format in ["sparse-bitmask", "sparse-24-bitmask"] {
        let path = folder.path().join(format);
        let sound = parts(&path, format, |_| {});
        assert_eq!(rows(&sound, name, 0..2), [1.0, 0.0, 2.0, 0.0, 0.0, 3.0, 0.0, 4.0]);
        assert_eq!(rows(&sound, name, 1..2), [0.0, 3.0, 0.0, 4.0]);
        assert_eq!(rows(&sound, name, 1..1), [0.0f32; 0]);
        let unreadable = |what: &str, change: &dyn Fn(&mut Parts)| {
            let checkpoint = parts(&folder.path().join(format!("{format}-{what}")), format, change);
            match checkpoint.tensor(name) {
                None => checkpoint.config_fault.clone().expect("a fault").to_string(),
                Some(tensor) => {
                    let mut bytes = Vec::new();
                    checkpoint.read_rows(tensor, 0..2, &mut bytes).expect_err("refused").to_string()
                }
            }
        };
        let message = unreadable("mask", &|tensors| tensors[1].1[1] = 0b1110);
        assert!(message.contains("where its mask says"), "{message}");
        let message = unreadable("shape", &|tensors| tensors[2].1[8] = 200);
        assert!(message.contains("bitmask") || message.contains("fours"), "{message}");
        let message = unreadable("huge", &|tensors| tensors[2].1[15] = 0x7f);
        assert!(message.contains("bitmask"), "{message}");
        let message = unreadable("missing", &|tensors| drop(tensors.remove(0)));
        assert!(message.contains("compressed") && message.contains("missing"), "{message}");
        if format == "sparse-bitmask" {
            for (what, offset) in [("late", 3), ("wrong", 1), ("negative", -1i64)] {
                let message = unreadable(what, &|tensors| {
                    let at = if what == "wrong" { 8..16 } else { 0..8 };
                    tensors[3].1[at].copy_from_slice(&offset.to_le_bytes());
                });
                assert!(message.contains("where its mask says"), "{message}");
            }
        }
    }
    let other = parts(&folder.path().join("other"), "marlin-24", |_| {});
    assert!(other.config_fault.expect("a fault").to_string().contains("marlin-24"));
}

/// `tests/oracles/sparse_bitmask.py`: compressed-tensors' own code, both ways.
#[test]
fn parts_are_those_of_compressed_tensors() {
    let fixture = Checkpoint::open(&root().join("tests/fixtures/sparse_bitmask.safetensors")).expect("opens");
    let bytes = |name: &str| {
        let tensor = fixture.tensor(name).unwrap_or_else(|| panic!("{name} is missing"));
        let mut bytes = Vec::new();
        fixture.read_rows(tensor, 0..tensor.row_count(), &mut bytes).expect("reads");
        (tensor.dtype, tensor.shape.clone(), bytes)
    };
    for case in ["bf16", "f16", "f32"] {
        let (dtype, shape, dense) = bytes(&format!("{case}.dense"));
        let (rows, cols, width) = (shape[0], shape[1], dtype.block_bytes());
        let (mut values, mut mask, mut counts) = (Vec::new(), Vec::new(), Vec::new());
        for row in dense.chunks_exact(cols * width) {
            crate::target::sparse_bitmask::split_row(row, width, &mut values, &mut mask);
            counts.push(crate::target::sparse_bitmask::count_nonzero(row, width) as u32);
        }
        let rest = crate::target::sparse_bitmask::offsets_and_shape(&counts, cols);
        let nonzero = values.len() / width;
        let parts = crate::target::sparse_bitmask::parts(dtype, rows, cols, nonzero);
        let ours = [&values[..], &mask[..], &rest[..8 * rows], &rest[8 * rows..]];
        for (part, ours) in parts.iter().zip(ours) {
            let theirs = bytes(&format!("{case}.{}", part.suffix));
            assert_eq!((part.dtype, &part.shape), (theirs.0, &theirs.1), "{case} {}", part.suffix);
            assert!(ours == theirs.2, "{case} {}", part.suffix);
        }
    }
}
