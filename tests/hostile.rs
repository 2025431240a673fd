//! Bad input: every broken file ends in one clear error with file, place and remedy. Never a
//! panic, never an allocation sized by a lie, nothing half-written left.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::TinyModel;
use lapidary::engine::checkpoint::{Checkpoint, GgufTensor, GgufValue, GgufWriter};
use lapidary::engine::error::{Error, Result};
use lapidary::engine::format::Dtype;
use lapidary::engine::model::Tokenizer;
use lapidary::engine::pass::{self, PassOptions};
use lapidary::engine::plan::{self, Plan};
use lapidary::engine::progress::Progress;
use proptest::prelude::*;

/// A safetensors file from a header and some data.
fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn open_bytes(name: &str, bytes: &[u8]) -> Result<Checkpoint> {
    let folder = tempfile::tempdir().expect("tempdir");
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).expect("write");
    Checkpoint::open(&path)
}

/// Opening fails with `part` in a message that names the file.
#[track_caller]
fn refused(name: &str, bytes: &[u8], part: &str) {
    let text = open_bytes(name, bytes).expect_err("must be refused").to_string();
    assert!(text.contains(part), "{text:?} lacks {part:?}");
    assert!(text.contains(name), "{text:?} lacks the file's name");
    assert!(text.contains("; "), "{text:?} lacks a remedy");
}

const ONE: &str = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;

#[test]
fn safetensors_that_lie_are_refused_with_the_tensors_name() {
    let two = |a: &str, b: &str| {
        format!(
            r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":{a}}},"b":{{"dtype":"F32","shape":[2],"data_offsets":{b}}}}}"#
        )
    };
    let one = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let double =
        r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#;
    for (header, data, part) in [
        (two("[0,8]", "[4,12]"), 12, "tensor b: its data overlap those of a"),
        (two("[0,8]", "[12,20]"), 20, "tensor b: 4 bytes between it and a"),
        (two("[4,12]", "[12,20]"), 20, "tensor a: 4 bytes between it and the header"),
        (one("F32", "[2]", "[0,8]"), 9, "tensor a: 1 bytes after it"),
        (one("F32", "[2]", "[0,8]"), 7, "tensor a: data at bytes 0 to 8 lie outside"),
        (one("F32", "[2]", "[8,0]"), 8, "tensor a: data at bytes 8 to 0 lie outside"),
        (one("F32", "[3]", "[0,8]"), 8, "tensor a: shape [3] as F32 does not fill"),
        (one("F32", "[18446744073709551615, 2]", "[0,8]"), 8, "tensor a: shape"),
        (one("F32", "[9223372036854775807, 9223372036854775807, 0]", "[0,0]"), 0, "tensor a: shape"),
        (one("F32", "[0, 9223372036854775807, 4, 4]", "[0,0]"), 0, "tensor a: shape"),
        (one("F32", "[2]", "[0,18446744073709551615]"), 8, "tensor a: data"),
        (one("Q9", "[2]", "[0,8]"), 8, "tensor a: storage type \"Q9\" is not known"),
        (one("F32", "[-2]", "[0,8]"), 8, "not a safetensors header"),
        (one("F32", "\"x\"", "[0,8]"), 8, "not a safetensors header"),
        (double.to_owned(), 8, "tensor a: listed twice"),
        ("[]".to_owned(), 0, "not a safetensors header"),
        ("{".repeat(100_000), 0, "not a safetensors header"),
    ] {
        refused("x.safetensors", &safetensors(&header, &vec![0; data]), part);
    }
}

#[test]
fn a_header_longer_than_its_file_is_refused_before_it_is_read() {
    for (len, part) in [
        (u64::MAX, "more than the format's"),
        (100_000_001, "more than the format's"),
        (99_999_999, "the header ends at byte 100000007"),
        (100, "the header ends at byte 108"),
    ] {
        let mut bytes = safetensors(ONE, &[0; 8]);
        bytes[..8].copy_from_slice(&len.to_le_bytes());
        refused("x.safetensors", &bytes, part);
    }
}

#[test]
fn safetensors_cut_anywhere_are_refused() {
    let whole = safetensors(ONE, &[0; 8]);
    assert!(open_bytes("x.safetensors", &whole).is_ok());
    for len in 0..whole.len() {
        assert!(open_bytes("x.safetensors", &whole[..len]).is_err(), "{len} bytes");
    }
}

#[test]
fn every_plain_type_is_listed() {
    for (name, bytes, ours) in [
        ("F64", 8, "f64"),
        ("F32", 4, "f32"),
        ("F16", 2, "f16"),
        ("BF16", 2, "bf16"),
        ("F8_E4M3", 1, "f8_e4m3"),
        ("F8_E5M2", 1, "f8_e5m2"),
        ("I64", 8, "i64"),
        ("I32", 4, "i32"),
        ("I16", 2, "i16"),
        ("I8", 1, "i8"),
        ("U64", 8, "u64"),
        ("U32", 4, "u32"),
        ("U16", 2, "u16"),
        ("U8", 1, "u8"),
        ("BOOL", 1, "bool"),
    ] {
        let header = format!(r#"{{"a":{{"dtype":"{name}","shape":[3,1],"data_offsets":[0,{}]}}}}"#, 3 * bytes);
        let checkpoint = open_bytes("x.safetensors", &safetensors(&header, &vec![0; 3 * bytes])).expect(name);
        assert_eq!(checkpoint.tensors[0].dtype.name(), ours);
        let fault = checkpoint.config_fault.expect("there is no config");
        assert!(fault.to_string().contains("config.json"), "{fault}");
    }
}

/// A small valid GGUF: some metadata of every kind, two tensors.
fn small_gguf() -> Vec<u8> {
    let folder = tempfile::tempdir().expect("tempdir");
    let source = folder.path().join("source");
    TinyModel { is_tied: true, ..TinyModel::default() }.write(&source);
    let path = folder.path().join("x.gguf");
    common::write_gguf(&Checkpoint::open(&source).expect("opens"), &path, Dtype::F32);
    std::fs::read(path).expect("read")
}

/// Where the data of a GGUF of [`small_gguf`] begin.
fn data_start(gguf: &[u8]) -> usize {
    let config = TinyModel { is_tied: true, ..TinyModel::default() };
    let weights: usize =
        config.tensors().iter().map(|(_, shape)| (shape.iter().product::<usize>() * 4).next_multiple_of(32)).sum();
    gguf.len() - weights
}

#[test]
fn a_gguf_cut_anywhere_in_its_header_is_refused() {
    let whole = small_gguf();
    assert!(open_bytes("x.gguf", &whole).is_ok());
    for len in (0..data_start(&whole)).chain([whole.len() / 2, whole.len() - 200]) {
        let text = open_bytes("x.gguf", &whole[..len]).expect_err("cut").to_string();
        assert!(text.contains("x.gguf") && text.contains("; "), "{len}: {text}");
    }
}

#[test]
fn other_versions_of_gguf_are_named() {
    let whole = small_gguf();
    let with_version = |version: [u8; 4]| [&whole[..4], &version, &whole[8..]].concat();
    refused("x.gguf", &with_version([1, 0, 0, 0]), "version 1");
    refused("x.gguf", &with_version([0, 0, 0, 3]), "big-endian");
    refused("x.gguf", &with_version([9, 0, 0, 0]), "version 9");
    refused("x.gguf", &with_version([0, 0, 0, 0]), "version 0");
    refused("x.gguf", &[b"GGML", &whole[4..]].concat(), "does not begin with GGUF");
    assert!(open_bytes("x.gguf", &with_version([2, 0, 0, 0])).is_ok());
}

#[test]
fn counts_that_no_file_could_hold_are_refused_before_anything_is_allocated() {
    let whole = small_gguf();
    for at in [8, 16, 24] {
        for count in [u64::MAX, 1 << 62, 1 << 40, whole.len() as u64] {
            let mut bytes = whole.clone();
            bytes[at..at + 8].copy_from_slice(&count.to_le_bytes());
            let text = open_bytes("x.gguf", &bytes).expect_err("lying count").to_string();
            assert!(text.contains("x.gguf"), "{at} {count}: {text}");
        }
    }
    // An array of 2^61 numbers of 8 bytes, whose byte count overflows to zero.
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend_from_slice(&0u64.to_le_bytes());
    bytes.extend_from_slice(&1u64.to_le_bytes());
    bytes.extend_from_slice(&1u64.to_le_bytes());
    bytes.push(b'k');
    for part in [&9u32.to_le_bytes()[..], &10u32.to_le_bytes()[..], &(1u64 << 61).to_le_bytes()[..], &[0; 64]] {
        bytes.extend_from_slice(part);
    }
    refused("x.gguf", &bytes, "metadata k: 2305843009213693952 numbers cannot lie");
}

/// The bytes of one tensor's description, found by its name.
fn description(bytes: &mut [u8], name: &str) -> usize {
    bytes.windows(name.len()).position(|window| window == name.as_bytes()).expect("name") + name.len()
}

#[test]
fn gguf_tensors_that_lie_are_refused_with_their_names() {
    let whole = small_gguf();
    // After the name: dimensions u32, two u64, type u32, offset u64.
    for (offset, width, value, part) in [
        (0, 4, 9, "9 dimensions"),
        (0, 4, u64::MAX, "dimensions"),
        (4, 8, u64::MAX, "too large"),
        (4, 8, 1 << 60, "too large"),
        (4, 8, 1 << 50, "outside"),
        (12, 8, 1 << 20, "outside"),
        (24, 8, 7, "not a multiple of the alignment"),
        (24, 8, 0, "overlap"),
        (24, 8, !31, "outside"),
        (20, 4, 12, "do not fill the blocks"),
    ] {
        let mut bytes = whole.clone();
        let at = description(&mut bytes, "blk.1.attn_q.weight") + offset;
        bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        let text = open_bytes("x.gguf", &bytes).expect_err("lying tensor").to_string();
        assert!(text.contains(part) && text.contains("tensor "), "{offset} {value}: {text}");
    }
    let mut bytes = whole;
    let at = description(&mut bytes, "blk.1.attn_q.weight");
    bytes[at - 15] = b'0';
    let text = open_bytes("x.gguf", &bytes).expect_err("doubled name").to_string();
    assert!(text.contains("tensor blk.0.attn_q.weight: listed twice"), "{text}");
}

#[test]
fn weights_that_are_not_numbers_open_all_the_same() {
    let header = r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#;
    let folder = tempfile::tempdir().expect("tempdir");
    let path = folder.path().join("nan.safetensors");
    std::fs::write(&path, safetensors(header, &[0xff; 16])).expect("write");
    let checkpoint = Checkpoint::open(&path).expect("opens");
    let values = common::rows_f32(&checkpoint, "a");
    assert!(values.iter().all(|value| value.is_nan()));
}

#[test]
fn a_pass_over_damaged_weights_names_them() {
    let folder = tempfile::tempdir().expect("tempdir");
    let source = folder.path().join("model");
    TinyModel::default().write(&source);
    let weights = source.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).expect("weights");
    let end = bytes.len();
    bytes[end - 12..].fill(0xff);
    std::fs::write(&weights, bytes).expect("damaged");
    let checkpoint = Checkpoint::open(&source).expect("opens");
    let text = "version = 1\ntarget = \"hugging_face\"\n[default]\nformat = \"f16\"\n";
    let plan = plan::resolve(&Plan::parse(text, None).expect("a plan"), &checkpoint).expect("resolves");
    let output = folder.path().join("out");
    let report = pass::run(&checkpoint, &plan, &output, &PassOptions::default(), &Progress::default())
        .expect("runs all the same");
    let said = report.warnings.iter().any(|text| text.contains("3 weights that are NaN or infinite"));
    assert!(said, "{:?}", report.warnings);
}

/// A folder with two shards and an index that `edit` has changed.
fn sharded(edit: impl FnOnce(&mut serde_json::Value)) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("tempdir");
    let path = folder.path().join("model");
    std::fs::create_dir(&path).expect("folder");
    for (file, tensor) in [("one.safetensors", "a"), ("two.safetensors", "b")] {
        let header = format!(r#"{{"{tensor}":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}}}"#);
        std::fs::write(path.join(file), safetensors(&header, &[0; 8])).expect("write");
    }
    std::fs::copy(path.join("one.safetensors"), folder.path().join("x")).expect("copy");
    let mut index = serde_json::json!({"metadata": {}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}});
    edit(&mut index);
    std::fs::write(path.join("model.safetensors.index.json"), index.to_string()).expect("write");
    (folder, path)
}

#[test]
fn an_index_of_shards_opens_by_folder_and_by_file() {
    let (_folder, path) = sharded(|_| ());
    for target in [path.clone(), path.join("model.safetensors.index.json")] {
        let checkpoint = Checkpoint::open(&target).expect("opens");
        let names: Vec<&str> = checkpoint.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
    }
}

#[test]
fn an_index_that_leads_out_of_its_folder_is_refused() {
    for name in ["../x", "../../x", "/etc/passwd", "sub/../../x", ""] {
        let (_folder, path) = sharded(|index| index["weight_map"]["a"] = name.into());
        let text = Checkpoint::open(&path).expect_err(name).to_string();
        assert!(text.contains("path outside the folder") && text.contains("index.json"), "{text}");
    }
    #[cfg(unix)]
    {
        let (folder, path) = sharded(|index| index["weight_map"]["a"] = "link.safetensors".into());
        std::os::unix::fs::symlink(folder.path().join("x"), path.join("link.safetensors")).expect("link");
        let text = Checkpoint::open(&path).expect_err("link").to_string();
        assert!(text.contains("path outside the folder"), "{text}");
    }
}

#[test]
fn a_missing_shard_is_named() {
    let (_folder, path) = sharded(|_| ());
    std::fs::remove_file(path.join("two.safetensors")).expect("remove");
    let text = Checkpoint::open(&path).expect_err("missing").to_string();
    assert!(text.contains("shard two.safetensors: a shard is missing"), "{text}");
}

#[test]
fn an_index_that_does_not_fit_its_shards_is_refused() {
    let (_folder, path) = sharded(|index| index["weight_map"]["c"] = "two.safetensors".into());
    let text = Checkpoint::open(&path).expect_err("lies").to_string();
    assert!(text.contains("tensor c") && text.contains("two.safetensors"), "{text}");
    let (_folder, path) = sharded(|index| index["weight_map"] = serde_json::json!({}));
    assert!(Checkpoint::open(&path).is_err());
    let (_folder, path) = sharded(|_| ());
    std::fs::copy(path.join("one.safetensors"), path.join("two.safetensors")).expect("copy");
    let text = Checkpoint::open(&path).expect_err("doubled").to_string();
    assert!(text.contains("tensor a: it lies in two shards"), "{text}");
}

#[test]
fn a_file_cut_while_it_is_open_is_an_error_with_its_path() {
    let folder = tempfile::tempdir().expect("tempdir");
    let model = folder.path().join("model");
    common::copy_demo(&model);
    let gguf = folder.path().join("model.gguf");
    common::write_gguf(&Checkpoint::open(&model).expect("opens"), &gguf, Dtype::Bf16);
    for (path, file) in [(model.clone(), model.join("model.safetensors")), (gguf.clone(), gguf)] {
        let checkpoint = Checkpoint::open(&path).expect("opens");
        let shortened = std::fs::OpenOptions::new().write(true).open(&file).expect("open");
        shortened.set_len(checkpoint.tensors[5].weight_count() + 4096).expect("cut");
        let mut failures = 0;
        let mut bytes = Vec::new();
        for tensor in &checkpoint.tensors {
            if let Err(err) = checkpoint.read_rows(tensor, 0..tensor.row_count(), &mut bytes) {
                failures += 1;
                let text = err.to_string();
                assert!(matches!(err, Error::Io { .. }), "{text}");
                assert!(text.contains("shorter than its header says"), "{text}");
                assert!(text.contains(&*file.file_name().expect("name").to_string_lossy()), "{text}");
            }
        }
        assert!(failures > checkpoint.tensors.len() / 2, "{failures}");
    }
}

#[test]
fn a_config_that_lacks_a_key_lists_its_tensors_and_names_the_key() {
    let folder = tempfile::tempdir().expect("tempdir");
    let path = folder.path().join("model");
    common::copy_demo(&path);
    let text = std::fs::read_to_string(path.join("config.json")).expect("read");
    std::fs::write(path.join("config.json"), text.replace("\"hidden_size\"", "\"hidden_sise\"")).expect("write");
    let checkpoint = Checkpoint::open(&path).expect("opens");
    assert!(checkpoint.config.is_none() && checkpoint.tensors.len() > 50);
    let text = checkpoint.require_config().expect_err("no config").to_string();
    for part in ["key hidden_size", "missing", "config.json", "; "] {
        assert!(text.contains(part), "{text}");
    }
    std::fs::write(path.join("config.json"), "{\"hidden_size\":").expect("write");
    let text = Checkpoint::open(&path).expect("opens").require_config().expect_err("broken").to_string();
    assert!(text.contains("not a JSON object") && text.contains("config.json"), "{text}");
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let folder = tempfile::tempdir().expect("tempdir");
    let path = folder.path().join("model");
    TinyModel::default().write(&path);
    std::fs::copy(common::demo().join("tokenizer.json"), path.join("tokenizer.json")).expect("copy");
    let text = Tokenizer::of_checkpoint(&Checkpoint::open(&path).expect("opens")).expect_err("2048 > 40").to_string();
    for part in ["does not match", "2048 tokens", "40 rows", "tokenizer.json", "; "] {
        assert!(text.contains(part), "{text}");
    }
    for broken in ["", "{}", "[1]", "{\"version\":\"1.0\",\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]}}"] {
        std::fs::write(path.join("tokenizer.json"), broken).expect("write");
        let checkpoint = Checkpoint::open(&path).expect("opens");
        let text = Tokenizer::of_checkpoint(&checkpoint).expect_err(broken).to_string();
        assert!(text.contains("tokenizer.json"), "{text}");
    }
    std::fs::remove_file(path.join("tokenizer.json")).expect("remove");
    let text = Tokenizer::of_checkpoint(&Checkpoint::open(&path).expect("opens")).expect_err("none").to_string();
    assert!(text.contains("no tokenizer.json"), "{text}");
}

#[test]
fn paths_that_are_no_model_are_told_apart() {
    let folder = tempfile::tempdir().expect("tempdir");
    let refuse = |path: &Path, part: &str| {
        let text = Checkpoint::open(path).expect_err("no model").to_string();
        assert!(text.contains(part), "{text}");
    };
    refuse(&folder.path().join("nothing"), "check the path");
    refuse(folder.path(), "no model file in the folder");
    std::fs::write(folder.path().join("pytorch_model.bin"), b"x").expect("write");
    refuse(folder.path(), "safe_serialization");
    refuse(&folder.path().join("pytorch_model.bin"), "not a kind of model file");
    std::fs::create_dir(folder.path().join("model.safetensors")).expect("folder");
    assert!(Checkpoint::open(folder.path()).is_err());
}

#[test]
fn a_cancelled_hash_stops() {
    let checkpoint = Checkpoint::open(&common::demo()).expect("opens");
    let progress = Progress::default();
    progress.cancel();
    assert!(checkpoint.content_hash(&progress).is_err_and(|err| err.is_cancelled()));
}

/// Tells a child process of [`in_child`] where to write.
const CHILD: &str = "LAPIDARY_HOSTILE_OUTPUT";

/// Runs one test of this binary again in a process with less power, and answers what it printed.
fn in_child(test: &str, output: &Path, wrapper: &[&str]) -> String {
    let executable = std::env::current_exe().expect("executable");
    let mut command = match wrapper {
        [] => Command::new(executable),
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments).arg(executable);
            command
        }
    };
    let done = command
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, output)
        .output()
        .unwrap_or_else(|err| panic!("cannot run {wrapper:?}: {err}"));
    let text = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{text}");
    text
}

/// Writes 4 MiB to the output and prints what happened.
fn write_in_child(output: &Path) {
    let tensors = [GgufTensor { name: "a".to_owned(), shape: vec![1024, 1024], dtype: Dtype::F32 }];
    let metadata = [("general.architecture".to_owned(), GgufValue::String("llama".to_owned()))];
    let written = GgufWriter::create(output, &metadata, &tensors).and_then(|mut writer| {
        for _ in 0..1024 {
            writer.write_tensor_rows(&[7; 4096])?;
        }
        writer.finish()
    });
    match written {
        Ok(size_bytes) => println!("WROTE {size_bytes}"),
        Err(err) => println!("FAILED {err}"),
    }
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_old_file_and_nothing_else() {
    if let Some(output) = std::env::var_os(CHILD) {
        return write_in_child(Path::new(&output));
    }
    let folder = tempfile::tempdir().expect("tempdir");
    let output = folder.path().join("out.gguf");
    std::fs::write(&output, b"old").expect("write");
    // A limit on the file's size stands for a full disk: the write fails in the middle.
    let limited = ["sh", "-c", "trap '' XFSZ; ulimit -f 512; exec \"$0\" \"$@\""];
    let test = "a_full_disk_leaves_the_old_file_and_nothing_else";
    let text = in_child(test, &output, &limited);
    assert!(text.contains("FAILED cannot write") && text.contains("out.gguf"), "{text}");
    assert_eq!(common::names(folder.path()), ["out.gguf"]);
    assert_eq!(std::fs::read(&output).expect("read"), b"old");
    // The same without the limit works, so it was the limit that failed.
    let text = in_child(test, &output, &[]);
    assert!(text.contains("WROTE "), "{text}");
    assert_eq!(common::names(folder.path()), ["out.gguf"]);
}

#[cfg(unix)]
#[test]
fn a_read_only_target_is_told_before_any_work() {
    use std::os::unix::fs::PermissionsExt;
    if let Some(output) = std::env::var_os(CHILD) {
        return write_in_child(Path::new(&output));
    }
    let folder = tempfile::tempdir().expect("tempdir");
    let locked = folder.path().join("locked");
    std::fs::create_dir(&locked).expect("folder");
    std::fs::set_permissions(&locked, PermissionsExt::from_mode(0o555)).expect("permissions");
    // The superuser may write everywhere until its capabilities are gone.
    let is_root = std::fs::write(locked.join("probe"), b"").is_ok();
    let _ = std::fs::remove_file(locked.join("probe"));
    let drop_power = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
    let text = in_child(
        "a_read_only_target_is_told_before_any_work",
        &locked.join("out.gguf"),
        if is_root { &drop_power } else { &[] },
    );
    assert!(text.contains("FAILED cannot create") && text.contains("choose another folder"), "{text}");
    assert_eq!(common::names(&locked), Vec::<String>::new());
    std::fs::set_permissions(&locked, PermissionsExt::from_mode(0o755)).expect("permissions");
}

/// Opens, and reads what a header that got through promises; any error will do, a panic will not.
fn survive(name: &str, bytes: &[u8]) {
    let Ok(checkpoint) = open_bytes(name, bytes) else { return };
    let mut rows = Vec::new();
    for tensor in &checkpoint.tensors {
        let _ = checkpoint.read_rows(tensor, 0..tensor.row_count(), &mut rows);
        let _ = checkpoint.read_rows(tensor, 0..tensor.row_count().min(1), &mut rows);
    }
    let _ = Tokenizer::of_checkpoint(&checkpoint);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn damaged_ggufs_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        static WHOLE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let whole = WHOLE.get_or_init(small_gguf);
        let header = data_start(whole);
        let mut bytes = whole.clone();
        for (at, value) in changes {
            bytes[at.index(header)] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(whole.len()));
        }
        survive("x.gguf", &bytes);
    }

    #[test]
    fn damaged_safetensors_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}}"#;
        let whole = safetensors(header, &[1; 32]);
        let mut bytes = whole.clone();
        for (at, value) in changes {
            bytes[at.index(header.len() + 8)] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(whole.len()));
        }
        survive("x.safetensors", &bytes);
    }

    #[test]
    fn damaged_configs_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        static FOLDER: std::sync::OnceLock<(tempfile::TempDir, Vec<u8>)> = std::sync::OnceLock::new();
        let (folder, config) = FOLDER.get_or_init(|| {
            let folder = tempfile::tempdir().expect("tempdir");
            TinyModel::default().write(&folder.path().join("model"));
            let config = std::fs::read(folder.path().join("model/config.json")).expect("read");
            (folder, config)
        });
        let mut bytes = config.clone();
        for (at, value) in changes {
            bytes[at.index(config.len())] = value;
        }
        let path = folder.path().join("model");
        std::fs::write(path.join("config.json"), &bytes).expect("write");
        let checkpoint = Checkpoint::open(&path).expect("the weights are whole");
        prop_assert_eq!(checkpoint.config.is_none(), checkpoint.config_fault.is_some());
    }
}

#[test]
fn damaged_gguf_tokenizers_never_panic() {
    let folder = tempfile::tempdir().expect("tempdir");
    let path = folder.path().join("demo.gguf");
    let source = Checkpoint::open(&common::demo()).expect("opens");
    let (metadata, _) = common::write_gguf(&source, &path, Dtype::Bf16);
    let keys = ["model", "pre", "tokens", "token_type", "merges", "bos_token_id", "eos_token_id"];
    for key in keys.map(|key| format!("tokenizer.ggml.{key}")) {
        for value in [
            None,
            Some(GgufValue::U32(u32::MAX)),
            Some(GgufValue::String("x y".to_owned())),
            Some(GgufValue::Array(lapidary::engine::checkpoint::GgufArray::String(
                ["a b c", "", " ", "\u{fffd}x"].into_iter().collect(),
            ))),
        ] {
            let mut changed = metadata.clone();
            changed.retain(|(name, _)| *name != key);
            changed.extend(value.clone().map(|value| (key.clone(), value)));
            let broken = folder.path().join("broken.gguf");
            let tensors =
                [GgufTensor { name: "token_embd.weight".to_owned(), shape: vec![2048, 1], dtype: Dtype::F32 }];
            let mut writer = GgufWriter::create(&broken, &changed, &tensors).expect("creates");
            writer.write_tensor_rows(&[0; 8192]).expect("writes");
            writer.finish().expect("finishes");
            let opened = Checkpoint::open(&broken).expect("opens");
            if let Err(err) = Tokenizer::of_checkpoint(&opened) {
                let text = err.to_string();
                assert!(text.contains("broken.gguf") && text.contains("; "), "{key} {value:?}: {text}");
            } else {
                assert!(!key.ends_with("model") && !key.ends_with("tokens"), "{key} {value:?} must be refused");
            }
        }
    }
}
