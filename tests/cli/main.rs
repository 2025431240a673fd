//! The command line as its users meet it: the built binary, its exit codes, and one JSON document on stdout.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

#[path = "../common/synthetic.rs"]
mod synthetic;

mod compressing;
mod measuring;
mod misuse;

const BINARY: &str = env!("CARGO_BIN_EXE_lapidary");

const Q: &str = "model.layers.0.self_attn.q_proj.weight";

/// Evaluates little, so that the tests are quick in an unoptimized build.
const LITTLE: [&str; 4] = ["--max-items", "1", "--tokens", "250"];

/// The program with folders of its own and no display.
fn command() -> std::process::Command {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli");
    let mut command = std::process::Command::new(BINARY);
    command.env("XDG_CACHE_HOME", home.join("cache")).env("XDG_DATA_HOME", home.join("data")).stdin(Stdio::null());
    for name in ["DISPLAY", "WAYLAND_DISPLAY", "WAYLAND_SOCKET", "LAPIDARY_LOG"] {
        command.env_remove(name);
    }
    command
}

fn lapidary<T: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = T>) -> Output {
    command().args(arguments).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// Runs a command with `--json` that must end with `code`, and reads its one document.
fn json_with<T: AsRef<std::ffi::OsStr>>(code: i32, arguments: impl IntoIterator<Item = T>) -> Value {
    let output = command().args(arguments).arg("--json").output().expect("the program starts");
    assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("exactly one document")
}

fn json<T: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = T>) -> Value {
    json_with(0, arguments)
}

/// Runs a command that must fail: one message on stderr, nothing on stdout.
fn fails<T: AsRef<std::ffi::OsStr>>(code: i32, arguments: impl IntoIterator<Item = T>) -> String {
    let output = lapidary(arguments);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert_eq!(text(&output.stdout), "");
    assert_eq!(message.matches("error: ").count(), 1, "{message}");
    assert!(message.starts_with("error: ") && !message.contains("panicked"), "{message}");
    message
}

/// Entries of an audit log.
fn logged(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("a log");
    text.lines().map(|line| serde_json::from_str(line).expect("an entry")).collect()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn path_text(path: &Path) -> &str {
    path.to_str().expect("UTF-8 path")
}

/// Names in a folder, hidden ones too.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The demo in a recipe's formats.
fn candidate(folder: &Path, recipe: &str) -> PathBuf {
    let path = folder.join(format!("{recipe}.gguf"));
    json(["run", "demo", "--recipe", recipe, "-o", path_text(&path)]);
    path
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

fn assert_keys(value: &Value, expected: &[&str]) {
    let keys = keys(value);
    for key in expected {
        assert!(keys.contains(key), "{key} is among {keys:?}");
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is a number"))
}

#[test]
fn help_lists_exactly_the_commands_that_work() {
    let help = text(&lapidary(["--help"]).stdout);
    let listed: Vec<&str> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let expected = [
        "inspect",
        "profile",
        "calibrate",
        "sensitivity",
        "plan",
        "run",
        "mask",
        "evaluate",
        "compare",
        "bench",
        "generate",
        "speculate",
        "cascade",
        "report",
        "demo",
        "devices",
        "help",
    ];
    assert_eq!(listed, expected);
    assert!(help.contains("3 a gate failed") && help.contains("`demo` is the bundled model"), "{help}");
    for command in &expected[..16] {
        let output = lapidary([command, "--help"]);
        let help = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0));
        assert!(help.contains("--json") && help.contains("--threads"), "{help}");
    }
}

#[test]
fn inspect_shows_architecture_and_every_tensor() {
    let document = json(["inspect", "demo"]);
    assert_eq!(document["name"], "demo");
    assert_eq!(document["container"], "hugging_face");
    assert_eq!(document["weight_count"], 4_066_560);
    assert_eq!(document["bits_per_weight"], 16.0);
    assert_eq!(document["architecture"]["layers"].as_array().map(Vec::len), Some(6));
    assert_eq!(document["architecture"]["layers"][0]["kv_heads"], 4);
    let tensors = document["tensors"].as_array().expect("tensors");
    assert_eq!(tensors.len(), 56);
    assert_keys(&tensors[0], &["name", "role", "layer", "dtype", "shape", "weight_count", "bytes", "bits_per_weight"]);
    let sum: u64 = tensors.iter().filter_map(|tensor| tensor["bytes"].as_u64()).sum();
    assert_eq!(document["tensor_bytes"], sum);

    let output = lapidary(["inspect", "demo"]);
    assert_eq!(text(&output.stderr), "", "no progress where nobody watches");
    let shown = text(&output.stdout);
    assert!(
        shown.contains("8 query and 4 KV heads") && shown.contains("model.layers.5.mlp.down_proj.weight"),
        "{shown}"
    );
}

#[test]
fn profile_measures_every_tensor() {
    let document = json(["profile", "demo"]);
    let tensors = document["tensors"].as_array().expect("tensors");
    assert_eq!(tensors.len(), 56);
    for tensor in tensors {
        let counts = tensor["histogram"]["counts"].as_array().expect("counts");
        let sum: u64 = counts.iter().filter_map(Value::as_u64).sum();
        assert_eq!(tensor["count"], sum, "{}", tensor["name"]);
        assert!(number(&tensor["std"]) > 0.0 && tensor["nan_count"] == 0);
    }
    assert!(text(&lapidary(["profile", "demo"]).stdout).contains("kurtosis"));
}

#[test]
fn a_plan_is_shown_written_and_run_and_protected_tensors_keep_their_values() {
    let folder = folder();
    let (plan, out) = (folder.path().join("plan.toml"), folder.path().join("out.gguf"));
    let arguments = [
        "plan",
        "demo",
        "--recipe",
        "q4_k_m",
        "--set",
        "*.down_proj.*=q6_k",
        "--protect",
        "model.layers.0.mlp.*",
        "-o",
        path_text(&plan),
    ];
    let document = json(arguments);
    let find = |document: &Value, name: &str| -> Value {
        let tensors = document["tensors"].as_array().expect("tensors");
        tensors.iter().find(|tensor| tensor["name"] == name).unwrap_or_else(|| panic!("{name}")).clone()
    };
    let protected = find(&document, "model.layers.0.mlp.down_proj.weight");
    assert_eq!((&protected["to"], &protected["new_bytes"]), (&protected["from"], &protected["old_bytes"]));
    assert!(protected["reason"].as_str().is_some_and(|reason| reason.contains("protects")), "{protected}");
    assert_eq!(find(&document, "model.layers.3.mlp.down_proj.weight")["to"], "q6_k");
    assert_eq!(find(&document, "model.layers.3.mlp.gate_proj.weight")["to"], "q4_k");
    assert_eq!(find(&document, "model.norm.weight")["to"], "f32");
    let written = std::fs::read_to_string(&plan).expect("the plan");
    assert_eq!(document["toml"], written);
    let sum: u64 = document["tensors"].as_array().into_iter().flatten().filter_map(|t| t["new_bytes"].as_u64()).sum();
    assert_eq!(document["new_bytes"], sum);

    let shown = text(&lapidary(arguments).stdout);
    assert!(shown.contains("new bpw") && shown.lines().any(|line| line.starts_with("all ")), "{shown}");

    let report = json(["run", "demo", "--plan", path_text(&plan), "-o", path_text(&out)]);
    assert_eq!(report["new_bytes"], document["new_bytes"]);
    assert_eq!(report["file_bytes"], std::fs::metadata(&out).expect("the file").len());
    assert_eq!(report["tensors"], document["tensors"]);
    assert_keys(&report, &["content_hash", "old_bits_per_weight", "new_bits_per_weight", "elapsed_secs", "warnings"]);
    let reopened = json(["inspect", path_text(&out)]);
    assert_eq!(reopened["container"], "gguf");
    assert_eq!(find(&reopened, "model.layers.0.mlp.down_proj.weight")["dtype"], "bf16");
    assert_eq!(find(&reopened, "model.layers.3.mlp.gate_proj.weight")["dtype"], "q4_k");
    assert_eq!(names(folder.path()), ["out.gguf", "plan.toml"]);
}

#[test]
fn the_same_bytes_are_written_whatever_the_number_of_threads() {
    let folder = folder();
    let files = ["1", "2"].map(|threads| {
        let path = folder.path().join(format!("{threads}.gguf"));
        let report = json(["run", "demo", "--recipe", "Q3_K_M", "--threads", threads, "-o", path_text(&path)]);
        (std::fs::read(&path).expect("the file"), report["content_hash"].clone())
    });
    assert!(files[0] == files[1]);
}

#[test]
fn a_hugging_face_folder_is_written_and_opens_again() {
    let folder = folder();
    let out = folder.path().join("half");
    let report = json(["run", "demo", "--recipe", "F16", "--target", "hugging_face", "-o", path_text(&out)]);
    assert_eq!(report["target"], "hugging_face");
    let reopened = json(["inspect", path_text(&out)]);
    assert_eq!(reopened["container"], "hugging_face");
    assert!(reopened["tensors"].as_array().into_iter().flatten().any(|tensor| tensor["dtype"] == "f16"));
    let prompt = "On a sunny Saturday, Hugo";
    let written = |path| json(["generate", path, "--prompt", prompt, "--max-tokens", "6"])["text"].clone();
    assert_eq!(written(path_text(&out)), written("demo"));

    let refused = folder.path().join("q4");
    let message =
        fails(1, ["run", "demo", "--recipe", "Q4_K_M", "--target", "hugging_face", "-o", path_text(&refused)]);
    assert!(message.contains("hugging_face") && message.contains("bf16"), "{message}");
    assert!(!refused.exists());
}

#[test]
fn the_demo_is_written_to_a_folder_and_never_over_something_else() {
    let folder = folder();
    let out = folder.path().join("new");
    let document = json(["demo", "-o", path_text(&out)]);
    assert_eq!(document["files"].as_array().map(Vec::len), Some(names(&out).len()));
    assert!(out.join("tasks.jsonl").is_file());
    assert_eq!(json(["inspect", path_text(&out)])["fingerprint"], json(["inspect", "demo"])["fingerprint"]);
    std::fs::write(out.join("config.json"), "mine").expect("writes");
    let message = fails(1, ["demo", "-o", path_text(&out)]);
    assert!(message.contains("config.json"), "{message}");
    assert_eq!(std::fs::read_to_string(out.join("config.json")).expect("reads"), "mine");
}
