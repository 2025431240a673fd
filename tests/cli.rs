//! The command line as its users meet it: the built binary, its exit codes, and one JSON document on stdout.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

#[path = "common/synthetic.rs"]
mod synthetic;

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
fn devices_say_what_runs_where_and_whether_a_model_fits() {
    let document = json(["devices", "demo", "--context", "512", "--device", "candle on"]);
    let devices = document["devices"].as_array().expect("a list");
    let cpu = devices.last().expect("the CPU");
    assert!(cpu["kind"] == "cpu" && cpu["will_run"].as_array().is_some_and(|work| work.contains(&"passes".into())));
    let candle = devices.iter().find(|device| device["name"] == "candle on the CPU").expect("always there");
    assert_eq!((&candle["is_chosen"], &candle["will_run"]), (&true.into(), &Value::from(vec!["models"])));
    assert!(document["fit"]["weight_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{document}");
    assert!(document["fit_sentence"].as_str().is_some_and(|text| text.contains("candle")), "{document}");
    assert!(document["always_cpu"].as_str().is_some_and(|text| text.contains("SparseGPT")), "{document}");
}

#[test]
fn a_plan_says_what_fits_and_what_would_be_streamed() {
    let limit = ["--memory", "1GiB", "--context", "128"];
    let of = |format: &str, device: &str| {
        json(["plan", "demo", "--format", format, "--device", device].into_iter().chain(limit))
    };
    let small = of("q8_0", "candle on");
    assert_eq!(small["fit"]["context"], 128);
    assert_eq!(small["fit"]["streamed_bytes"], 0);
    assert!(small["fit_sentence"].as_str().is_some_and(|text| text.contains("candle on the CPU")), "{small}");
    // candle's CPU path widens 16-bit weights to f32 and keeps q8_0 packed: 34 bytes of 32 weights.
    let large = of("bf16", "candle on");
    let bytes = |document: &Value| document["fit"]["weight_bytes"].as_u64().expect("bytes");
    assert_eq!(bytes(&large) / 128 * 34, bytes(&small));
    let cpu = of("bf16", "cpu");
    assert_eq!((&cpu["fit"]["device"], bytes(&cpu) * 2), (&"CPU".into(), bytes(&large)));
}

#[test]
fn a_model_gives_the_same_perplexity_on_a_device_and_says_where_it_ran() {
    let folder = tempfile::tempdir().expect("a folder");
    let of = |device: &str| {
        let path = folder.path().join(format!("{}.json", device.replace(' ', "_")));
        let few = ["--max-items", "1", "--tokens", "512"];
        let mut arguments = vec!["evaluate", "demo", "--device", device, "-o", path_text(&path)];
        arguments.extend(few);
        json(arguments)
    };
    let (ours, expected) = (of("candle on"), of("cpu"));
    let perplexity = |document: &serde_json::Value| document["text"]["perplexity"].as_f64().expect("a number");
    assert!((perplexity(&ours) / perplexity(&expected) - 1.0).abs() < 1e-4, "{ours} {expected}");
    assert_eq!((&ours["device"], &expected["device"]), (&"candle on the CPU (candle)".into(), &"cpu".into()));
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
fn evaluations_are_written_compared_and_judged() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let (base, eval) = (path("base.json"), path("eval.json"));
    let model = candidate(folder.path(), "Q4_K_M");

    let own = json(["evaluate", "demo", "-o", path_text(&base)].into_iter().chain(LITTLE));
    assert_eq!(own["model"]["name"], "demo");
    assert!(own.get("baseline").is_none() && own["text"].get("kld_mean").is_none());

    let arguments = ["evaluate", path_text(&model), "--baseline", "demo", "-o", path_text(&eval)];
    let document = json(arguments.into_iter().chain(LITTLE));
    let text_keys =
        ["perplexity", "tokens", "convention", "context", "kld_mean", "kld_mean_stderr", "same_top_fraction"];
    assert_keys(&document["text"], &text_keys);
    assert!(number(&document["text"]["kld_mean"]) > 0.0);
    let slices = document["slices"].as_array().expect("slices");
    assert_eq!(slices.len(), 22);
    assert_keys(&slices[0], &["task", "slice", "metric", "n", "accuracy"]);
    assert!(slices.iter().all(|slice| slice["n"] == 1));
    assert_keys(&document["size"], &["file_bytes", "bits_per_weight"]);
    assert_keys(&document["speed"], &["prefill_tokens_per_second", "decode_tokens_per_second"]);
    assert_eq!(document["baseline"]["items"], own["items"]);
    assert_eq!(document["baseline"]["model"]["id"], own["model"]["id"]);
    let on_disk = std::fs::read_to_string(&eval).expect("the file");
    assert_eq!(serde_json::from_str::<Value>(&on_disk).expect("JSON"), document);
    assert!(on_disk.rfind("\n  \"baseline\"") > on_disk.rfind("\n  \"items\""), "the baseline comes last");

    let plain = json(["compare", path_text(&base), path_text(&eval)]);
    let entry = &plain["comparisons"][0];
    assert_eq!(plain["verdict"], Value::Null);
    assert!(number(&entry["size_ratio"]) > 2.0);
    assert_eq!(entry["text"]["kld_mean"], document["text"]["kld_mean"], "the distance is from this baseline");
    assert_eq!(entry["slices"].as_array().map(Vec::len), Some(22));

    let judge = |gates: &str, code: i32| {
        let file = path("gates.toml");
        std::fs::write(&file, gates).expect("writes");
        let document = json_with(code, ["compare", path_text(&base), path_text(&eval), "--gates", path_text(&file)]);
        document["verdict"].clone()
    };
    assert_eq!(judge("[[gate]]\nmetric = \"size_ratio\"\nmin = 2\n", 0), "pass");
    assert_eq!(judge("[[gate]]\nmetric = \"kld_mean\"\nmax = 0\n", 3), "fail");
    // One item a slice decides nothing.
    assert_eq!(judge("[[gate]]\nmetric = \"accuracy\"\nslice = \"*\"\nmax_loss = 0.01\n", 3), "undecided");

    let output = lapidary(["compare", path_text(&base), path_text(&eval), "--gates", path_text(&path("gates.toml"))]);
    assert_eq!(output.status.code(), Some(3));
    let shown = text(&output.stdout);
    assert!(shown.contains("Q4_K_M: ") && shown.contains("smaller") && shown.contains("undecided"), "{shown}");
    let message = fails(2, ["compare", path_text(&base), "demo"]);
    assert!(message.contains("evaluations with evaluations"), "{message}");
}

#[test]
fn models_are_compared_with_the_demo_on_its_own_tasks() {
    let folder = folder();
    let model = candidate(folder.path(), "Q2_K");
    let output = folder.path().join("compare.json");
    let document = json(["compare", "demo", path_text(&model), "-o", path_text(&output)].into_iter().chain(LITTLE));
    let entry = &document["comparisons"][0];
    assert_eq!(entry["overall"]["n"], 22);
    assert!(entry["on_pareto_front"].is_boolean());
    assert!(number(&entry["text"]["kld_mean"]) > 0.01, "two bits cost something");
    assert!(output.is_file());
}

#[test]
fn sensitivity_is_measured_by_weights_and_by_kld() {
    let folder = folder();
    let file = folder.path().join("s.json");
    let table = json(["sensitivity", "demo", "--formats", "q8_0,Q2_K", "-o", path_text(&file)]);
    assert_eq!(table["formats"], serde_json::json!(["q8_0", "q2_k"]));
    assert_eq!((&table["metric"], &table["label"]), (&"weight".into(), &"predicted".into()));
    let rows = table["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 43);
    for row in rows {
        assert!(number(&row["cells"][0]["value"]) < number(&row["cells"][1]["value"]), "{row}");
    }
    assert_eq!(serde_json::from_slice::<Value>(&std::fs::read(&file).expect("the file")).expect("JSON"), table);

    let measured = json(["sensitivity", "demo", "--formats", "q2_k", "--metric", "kld", "--tokens", "1"]);
    assert_eq!(measured["label"], "measured_weights_only");
    assert!(number(&measured["rows"][0]["cells"][0]["value"]) > 0.0);
    let groups = measured["basis"]["groups"].as_array().expect("the demo's text has domains");
    let name = groups.iter().find(|group| group["tokens"] != 0).expect("a group")["name"].as_str().expect("a name");
    let arguments = ["sensitivity", "demo", "--formats", "q2_k", "--metric", "kld", "--tokens", "1"];
    let of_group = json(arguments.into_iter().chain(["--group", name]));
    let own = measured["basis"]["groups"].as_array().expect("groups").iter().position(|group| group["name"] == name);
    let cell = &measured["rows"][3]["cells"][0]["groups"][own.expect("it is there")];
    assert_eq!(of_group["rows"][3]["cells"][0]["value"], cell["value"]);
    let message = fails(2, arguments.into_iter().chain(["--group", "nowhere"]));
    assert!(message.contains(name), "{message}");
}

#[test]
fn output_error_layers_and_heads_are_measured_and_finished_cells_are_taken_over() {
    let folder = folder();
    let few = folder.path().join("few.jsonl");
    let whole = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo/calibration.jsonl"));
    let lines: String = whole.expect("reads").lines().take(12).map(|line| format!("{line}\n")).collect();
    std::fs::write(&few, lines).expect("writes");
    let measure = |arguments: &[&str]| {
        let first = ["sensitivity", "demo", "--calibration", path_text(&few), "--tokens", "200"];
        json(first.iter().chain(arguments).copied())
    };
    let inputs = folder.path().join("inputs.json");
    let output = measure(&["--metric", "output", "--formats", "q8_0,q2_k", "--activations", path_text(&inputs)]);
    let inputs: Value = serde_json::from_slice(&std::fs::read(&inputs).expect("written")).expect("JSON");
    assert_eq!(inputs["inputs"].as_array().map(Vec::len), Some(25), "four a layer and the head's");
    assert_eq!(inputs["inputs"][3]["largest"].as_array().map(Vec::len), Some(512));
    let cells = &output["rows"][4]["cells"];
    assert!(number(&cells[0]["value"]) < number(&cells[1]["value"]), "{cells}");
    assert_eq!(output["label"], "predicted");

    let influence = measure(&["--metric", "block_influence"]);
    assert_eq!((influence["values"].as_array().map(Vec::len), &influence["kind"]), (Some(6), &"layer".into()));
    let file = folder.path().join("groups.json");
    let groups = measure(&["--metric", "kv_group_ablation", "-o", path_text(&file)]);
    assert_eq!(groups["values"].as_array().map(Vec::len), Some(24));
    assert_eq!(groups, measure(&["--metric", "kv_group_ablation", "-o", path_text(&file)]), "taken over");

    // A cell that is there already stays as it is, even where it says something else.
    let file = folder.path().join("kld.json");
    let mut table =
        measure(&["--metric", "kld", "--formats", "q4_k", "--granularity", "layer", "-o", path_text(&file)]);
    assert_eq!((&table["metric"], table["rows"].as_array().map(Vec::len)), (&"kld_layer".into(), Some(6)));
    table["rows"][2]["cells"][0]["value"] = 77.0.into();
    table["rows"][3]["cells"][0] = Value::Null;
    let partial = folder.path().join("kld.json.partial");
    std::fs::write(&partial, table.to_string()).expect("writes");
    std::fs::remove_file(&file).expect("removes");
    let again = measure(&["--metric", "kld", "--formats", "q4_k", "--granularity", "layer", "-o", path_text(&file)]);
    assert_eq!(again["rows"][2]["cells"][0]["value"], 77.0);
    assert!(number(&again["rows"][3]["cells"][0]["value"]) > 0.0);
    assert!(file.is_file() && !partial.exists());
}

#[test]
fn text_is_generated_the_same_with_the_same_seed() {
    let arguments = ["generate", "demo", "--prompt", "On a sunny Saturday, Hugo", "--max-tokens", "8"];
    let document = json(arguments);
    assert_eq!(document["tokens"].as_array().map(Vec::len), Some(8));
    assert_keys(&document, &["prompt", "text", "prompt_tokens", "stop", "ttft_secs", "tpot_secs"]);
    let streamed = text(&lapidary(arguments).stdout);
    assert_eq!(Value::from(streamed.strip_suffix('\n').expect("a line")), document["text"]);
    let sampled = |seed| {
        let options = ["--temperature", "2", "--seed", seed];
        text(&lapidary(arguments.into_iter().chain(options)).stdout)
    };
    assert_eq!(sampled("1"), sampled("1"));
    assert_ne!(sampled("1"), sampled("2"));
}

#[test]
fn bench_measures_speed_and_memory() {
    let document = json(["bench", "demo", "--repetitions", "1", "--decode-tokens", "4", "--threads", "1"]);
    let expected = [
        "prefill_tokens_per_second",
        "decode_tokens_per_second",
        "ttft_secs",
        "tpot_secs",
        "resident_bytes",
        "peak_rss_bytes",
        "load_secs",
    ];
    assert_keys(&document, &expected);
    assert!(number(&document["decode_tokens_per_second"]) > 0.0);
    assert_eq!((&document["threads"], &document["decode_tokens"]), (&1.into(), &4.into()));
    assert_eq!(document["decode_depth"], document["prefill_tokens"]);
    if cfg!(target_os = "linux") {
        assert!(number(&document["peak_rss_bytes"]) >= number(&document["resident_bytes"]));
    }
}

#[test]
fn bench_measures_kernels_without_a_model() {
    let document = json(["bench", "--kernels", "--quick", "--filter", "bf16", "--threads", "1"]);
    let rows = document["kernels"].as_array().expect("rows");
    for kernel in ["encode", "scan", "profile", "matmul"] {
        let row = rows.iter().find(|row| row["kernel"] == kernel).expect("every kernel has bf16");
        assert_eq!((&row["format"], &row["threads"]), (&"bf16".into(), &1.into()));
        assert!(number(&row["weights_per_second"]) > 0.0, "{row}");
    }
    let table = text(&lapidary(["bench", "--kernels", "--quick", "--filter", "encode", "--threads", "1"]).stdout);
    assert!(table.contains("M weights/s") && table.contains("q4_0"), "{table}");
    assert_eq!(lapidary(["bench"]).status.code(), Some(2), "neither a path nor --kernels");
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

#[test]
fn wrong_usage_exits_with_2_and_says_what_there_is() {
    let cases: [(&[&str], &str); 12] = [
        (&["inspcet", "demo"], "inspect, profile"),
        (&["inspect"], "<PATH>"),
        (&["run", "demo", "-o", "x"], "--plan"),
        (&["run", "demo", "--recipe", "Q4_K_M"], "--output"),
        (&["run", "demo", "--recipe", "Q9", "-o", "x"], "Q4_K_M"),
        (&["plan", "demo", "--format", "q9"], "q4_k"),
        (&["plan", "demo", "--size", "much"], "--size"),
        (&["plan", "demo", "--set", "*"], "GLOB=FORMAT"),
        (&["inspect", "demo", "--threads", "0"], "--threads"),
        (&["sensitivity", "demo", "--metric", "hessian"], "weight, output, fisher, kld"),
        (&["evaluate", "demo", "--perplexity", "mine"], "strided"),
        (&["compare", "demo"], "<CANDIDATE>"),
    ];
    for (arguments, expected) in cases {
        let message = fails(2, arguments);
        assert!(message.contains(expected), "{arguments:?}: {message}");
    }
    let folder = folder();
    json(["demo", "-o", path_text(folder.path())]);
    let message = fails(2, ["evaluate", path_text(folder.path())]);
    assert!(message.contains("--tasks"), "{message}");
    let message = fails(2, ["sensitivity", path_text(folder.path()), "--metric", "kld"]);
    assert!(message.contains("--calibration"), "{message}");
}

#[test]
fn bad_input_exits_with_1_and_one_clear_message() {
    let folder = folder();
    let missing = folder.path().join("missing.gguf");
    let message = fails(1, ["inspect", path_text(&missing), "--json"]);
    assert!(message.contains("missing.gguf"), "{message}");

    let model = candidate(folder.path(), "Q8_0");
    let bytes = std::fs::read(&model).expect("the file");
    let cut = folder.path().join("cut.gguf");
    for length in [0, 3, 40, 5_000, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&cut, &bytes[..length]).expect("writes");
        let message = fails(1, ["inspect", path_text(&cut)]);
        assert!(message.contains("cut.gguf"), "{length}: {message}");
    }
    let bytes = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo/model.safetensors")).expect("it");
    let cut = folder.path().join("cut.safetensors");
    for length in [7, 2_000, bytes.len() - 1] {
        std::fs::write(&cut, &bytes[..length]).expect("writes");
        let message = fails(1, ["run", path_text(&cut), "--recipe", "Q4_K_M", "-o", "never.gguf"]);
        assert!(message.contains("cut.safetensors"), "{length}: {message}");
    }

    let plan = folder.path().join("plan.toml");
    std::fs::write(&plan, "version = 1\ntarget = \"gguf\"\n[[rule]]\nmatch = \"*.nothing\"\nformat = \"q4_k\"\n")
        .expect("writes");
    let message = fails(1, ["run", "demo", "--plan", path_text(&plan), "-o", path_text(&missing)]);
    assert!(message.contains("line 4") && message.contains("plan.toml"), "{message}");

    let message = fails(1, ["run", "demo", "--recipe", "Q4_K_M", "-o", path_text(&folder.path().join("out"))]);
    assert!(message.contains(".gguf"), "{message}");

    let nowhere = folder.path().join("no/such/plan.toml");
    let message = fails(1, ["plan", "demo", "--recipe", "Q4_K_M", "-o", path_text(&nowhere)]);
    assert!(message.contains("no/such"), "{message}");
    assert!(!missing.exists());
}

#[test]
fn the_original_is_never_written_to() {
    let folder = folder();
    json(["demo", "-o", path_text(folder.path())]);
    let weights = folder.path().join("model.safetensors");
    let before = std::fs::read(&weights).expect("weights");
    for arguments in [
        ["run", path_text(folder.path()), "--recipe", "Q4_K_M", "-o", path_text(&weights)],
        ["plan", path_text(folder.path()), "--recipe", "Q4_K_M", "-o", path_text(&weights)],
    ] {
        let message = fails(1, arguments);
        assert!(message.contains("original"), "{message}");
    }
    assert!(std::fs::read(&weights).expect("weights") == before);
}

#[cfg(target_os = "linux")]
#[test]
fn without_a_display_it_says_so_in_one_sentence_and_names_the_command_line() {
    for arguments in [&[][..], &[concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo")][..]] {
        let message = fails(1, arguments);
        assert!(message.contains("lapidary --help") && message.lines().count() == 1, "{message}");
        if cfg!(feature = "gui") {
            assert!(message.contains("no display"), "{message}");
        }
    }
}

#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_is_no_failure() {
    for arguments in [&["inspect", "demo", "--json"][..], &["generate", "demo", "--prompt", "x", "--max-tokens", "40"]]
    {
        let mut child =
            command().args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("ends");
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{arguments:?}");
    }
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_a_run_with_130_and_leaves_nothing() {
    let (source, target) = (folder(), folder());
    let shape = synthetic::Shape {
        layers: 4,
        hidden: 1024,
        mlp: 4096,
        heads: 16,
        kv_heads: 4,
        head_dim: 64,
        vocab: 8192,
        tied: true,
    };
    shape.write(source.path(), 1).expect("a checkpoint");
    let out = target.path().join("out.gguf");
    std::fs::write(&out, "old").expect("writes");
    let mut child = command()
        .args(["run", path_text(source.path()), "--recipe", "Q3_K_M", "--threads", "1", "-o", path_text(&out)])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let started = Instant::now();
    while names(target.path()).len() < 2 {
        assert!(started.elapsed() < Duration::from_secs(30) && child.try_wait().expect("waits").is_none(), "it writes");
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("is told");
    let asked = Instant::now();
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    assert_eq!(text(&output.stderr), "interrupted\n");
    assert_eq!(text(&output.stdout), "");
    assert_eq!(names(target.path()), ["out.gguf"]);
    assert_eq!(std::fs::read_to_string(&out).expect("reads"), "old");
}

#[test]
fn importance_is_computed_shown_and_used_from_plan_to_file() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let (imatrix, plan, out) = (at("demo.imatrix.gguf"), at("plan.toml"), at("out.gguf"));
    let made = json(["calibrate", "demo", "--chunks", "3", "--context", "200", "-o", path_text(&imatrix)]);
    assert_eq!((made["chunk_count"].as_u64(), made["chunk_tokens"].as_u64()), (Some(3), Some(200)));
    let tensors = made["tensors"].as_array().expect("tensors");
    assert_eq!(tensors.len(), 42);
    let first = &tensors[0];
    assert_eq!((first["name"].as_str(), first["tokens"].as_u64()), (Some(Q), Some(600)));
    assert!(first["sum"].as_f64().expect("a number") > 0.0 && first["coverage_is_low"] == false);
    assert_eq!(made["warnings"].as_array().map(Vec::len), Some(0));

    let shown = json(["calibrate", "demo", "--imatrix", path_text(&imatrix)]);
    assert_eq!((&shown["tensors"], &shown["imatrix_hash"]), (&made["tensors"], &made["imatrix_hash"]));
    let output = lapidary(["calibrate", "demo", "--imatrix", path_text(&imatrix)]);
    assert!(text(&output.stdout).contains("3 chunks of 200 tokens of calibration.txt"), "{output:?}");

    let planned =
        json(["plan", "demo", "--recipe", "Q2_K_S", "--imatrix", path_text(&imatrix), "-o", path_text(&plan)]);
    assert!(planned["toml"].as_str().expect("text").contains("[calibration]"), "{planned}");
    let method = |document: &Value, name: &str| {
        let tensors = document["tensors"].as_array().expect("tensors");
        let found = tensors.iter().find(|tensor| tensor["name"] == name).expect("it");
        found["method"].as_str().expect("a word").to_owned()
    };
    assert_eq!(method(&planned, Q), "imatrix");
    let run = json(["run", "demo", "--plan", path_text(&plan), "-o", path_text(&out)]);
    assert_eq!((method(&run, Q), run["recipe"].as_str()), ("imatrix".to_owned(), Some("Q2_K_S")));
    let weighted = std::fs::read(&out).expect("written");
    // The same recipe as a flag gives the same file, and other weights give another.
    json(["run", "demo", "--recipe", "Q2_K_S", "--imatrix", path_text(&imatrix), "-o", path_text(&out)]);
    assert!(std::fs::read(&out).expect("written") == weighted, "plan and flag agree");
    let theirs = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama_cpp_imatrix.dat");
    json(["run", "demo", "--recipe", "Q2_K_S", "--imatrix", path_text(&theirs), "-o", path_text(&out)]);
    assert!(std::fs::read(&out).expect("written") != weighted, "another matrix, other bytes");

    let names = ["sensitivity", "demo", "--formats", "q2_k", "--imatrix", path_text(&imatrix)];
    assert_eq!(json(names)["imatrix"], made["imatrix_hash"]);
}

#[test]
fn importance_that_is_missing_or_foreign_is_refused_and_little_text_is_warned_about() {
    let folder = folder();
    let short = folder.path().join("short.txt");
    let calibration = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo/calibration.txt");
    let whole = std::fs::read_to_string(calibration).expect("reads");
    std::fs::write(&short, &whole[..whole.floor_char_boundary(500)]).expect("writes");
    let output = lapidary(["calibrate", "demo", "--text", path_text(&short), "--context", "64"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("42 of 42 matrices saw too few tokens"), "{}", text(&output.stderr));
    let message = fails(1, ["calibrate", "demo", "--text", path_text(&short)]);
    assert!(message.contains("too few for one chunk"), "{message}");
    let message = fails(1, ["calibrate", "demo", "--context", "64", "-o", path_text(folder.path())]);
    assert!(message.contains("folder"), "{message}");
    let message = fails(1, ["plan", "demo", "--recipe", "Q2_K_S"]);
    assert!(message.contains("needs an importance matrix"), "{message}");
    let message = fails(1, ["run", "demo", "--recipe", "Q4_0", "--imatrix", path_text(&short), "-o", "x.gguf"]);
    assert!(message.contains("short.txt"), "{message}");
    let copy = folder.path().join("copy");
    json(["demo", "-o", path_text(&copy)]);
    let message = fails(2, ["calibrate", path_text(&copy)]);
    assert!(message.contains("--text"), "{message}");
    let text_file = copy.join("calibration.txt");
    let message =
        fails(1, ["calibrate", path_text(&copy), "--text", path_text(&text_file), "-o", path_text(&text_file)]);
    assert!(message.contains("replace the text"), "{message}");
}

#[test]
fn types_go_to_llama_cpps_form_and_come_back() {
    let folder = folder();
    let file = folder.path().join("types.txt");
    let name = path_text(&file);
    let first = json(["plan", "demo", "--recipe", "Q4_K_M", "--set", "*.k_proj.*=q5_0", "--write-tensor-types", name]);
    let written = std::fs::read_to_string(&file).expect("written");
    assert!(written.contains("^blk\\.5\\.attn_k\\.weight$=q5_0"), "{written}");
    let second = json(["plan", "demo", "--recipe", "Q8_0", "--tensor-type-file", name]);
    let types = |document: &Value| -> Vec<(String, String)> {
        let tensors = document["tensors"].as_array().expect("tensors").iter();
        tensors.map(|tensor| (tensor["name"].to_string(), tensor["to"].to_string())).collect()
    };
    assert_eq!(types(&first), types(&second));
    std::fs::write(&file, "attn_k=q5_0 attn_v").expect("writes");
    let message = fails(1, ["plan", "demo", "--recipe", "Q8_0", "--tensor-type-file", name]);
    assert!(message.contains("line 1") && message.contains("types.txt"), "{message}");
}

#[test]
fn heads_and_channels_are_taken_away_and_the_file_shrinks() {
    let folder = folder();
    let plan = folder.path().join("plan.toml");
    let shares = ["--prune-groups", "0.5", "--prune-channels", "0.5", "--windows", "4"];
    let made = json(["plan", "demo", "--recipe", "Q8_0", "-o", path_text(&plan)].into_iter().chain(shares));
    let prune = &made["prune"];
    assert_eq!((&prune["score"], &prune["removed_kv_groups"]), (&Value::from("flap"), &Value::from(12)));
    assert_eq!(prune["removed_channels"], 6 * 256, "whole blocks of q8_0");
    assert_eq!(number(&prune["new_kv_bytes_per_token"]) * 2.0, number(&prune["old_kv_bytes_per_token"]));
    assert!(number(&made["new_weight_count"]) < number(&made["weight_count"]));

    let smaller = folder.path().join("smaller.gguf");
    let run = json(["run", "demo", "--plan", path_text(&plan), "-o", path_text(&smaller)]);
    let whole = json(["run", "demo", "--recipe", "Q8_0", "-o", path_text(&folder.path().join("whole.gguf"))]);
    assert!(number(&run["file_bytes"]) < 0.75 * number(&whole["file_bytes"]));
    let shape = json(["inspect", path_text(&smaller)]);
    assert_eq!(shape["tensors"].as_array().map(Vec::len), Some(56), "{shape}");
    json(["generate", path_text(&smaller), "--prompt", "Anna", "--max-tokens", "4"]);

    // Its mean stays with --compensate, and a folder that loaders of even layers read has even layers.
    let compensated = folder.path().join("compensated.toml");
    let args = ["plan", "demo", "--target", "hugging_face", "--compensate", "-o", path_text(&compensated)];
    json(args.into_iter().chain(shares));
    assert!(folder.path().join("compensated.means.safetensors").exists());
    let output = folder.path().join("folder");
    json(["run", "demo", "--plan", path_text(&compensated), "-o", path_text(&output)]);
    let config = std::fs::read_to_string(output.join("config.json")).expect("reads");
    assert!(config.contains("\"attention_bias\": true") && config.contains("\"num_attention_heads\": 4"), "{config}");
    let uneven = ["plan", "demo", "--target", "hugging_face", "--prune-weights", "0.3", "--windows", "4"];
    let message = fails(1, uneven);
    assert!(message.contains("differ in shape") && message.contains("target = \"gguf\""), "{message}");
    assert!(fails(2, ["plan", "demo", "--prune-groups", "1.5"]).contains("below 1"));
}

#[test]
fn a_mask_is_written_and_called_a_mask() {
    let folder = folder();
    let output = folder.path().join("masked");
    let log = folder.path().join("audit.jsonl");
    let args = ["mask", "demo", "--method", "magnitude", "--pattern", "2:4", "--log", path_text(&log)];
    let made = json(args.into_iter().chain(["-o", path_text(&output)]));
    let entries = logged(&log);
    assert_eq!((entries.len(), &entries[0]["what"]), (1, &Value::from("pass")));
    assert_eq!(entries[0]["options"]["mask"], "magnitude 2:4");
    assert_eq!(entries[0]["outputs"][0]["hash"], made["content_hash"]);
    assert_eq!((&made["tensors"], &made["pattern"]), (&Value::from(42), &Value::from("2:4")));
    assert!(made["statement"].as_str().is_some_and(|text| text.contains("as large as before")));
    let ratio = |key: &str| number(&made[key]) / number(&made["old_file_bytes"]);
    assert!((0.99..1.01).contains(&ratio("dense_file_bytes")), "a mask saves nothing: {made}");
    assert!((0.5..0.7).contains(&ratio("file_bytes")) && made["is_compact"] == true, "but on disk: {made}");
    assert!(made["size_statement"].as_str().is_some_and(|text| text.contains("on disk only")));
    let weights = |path: &str| json(["inspect", path])["weight_count"].clone();
    assert_eq!(weights(path_text(&output)), weights("demo"));
    let plain = folder.path().join("plain");
    let made = json(["mask", "demo", "--method", "magnitude", "--dense", "-o", path_text(&plain)]);
    assert_eq!((&made["is_compact"], &made["file_bytes"]), (&Value::from(false), &made["dense_file_bytes"]));
    let joint = folder.path().join("joint");
    let args =
        ["mask", "demo", "--method", "sparsegpt", "--pattern", "2:4", "--quantize", "int4_g128", "--windows", "2"];
    let made = json(args.into_iter().chain(["-o", path_text(&joint)]));
    assert_eq!((&made["format"], &made["tensors"]), (&Value::from("int4_g128"), &Value::from(42)));
    assert!(number(&made["file_bytes"]) < 0.5 * number(&made["old_file_bytes"]), "{made}");
    assert!(fails(2, args.into_iter().chain(["--target", "gguf", "-o", "x.gguf"])).contains("--target"));
}

#[test]
fn pruning_in_steps_keeps_every_step_and_stops_at_a_limit() {
    let folder = folder();
    let plan = folder.path().join("plan.toml");
    let take = ["--prune-groups", "0.5", "--prune-channels", "0.5", "--windows", "2", "--target", "lapidary"];
    let log = folder.path().join("audit.jsonl");
    let args = ["plan", "demo", "--prune-steps", "2", "--log", path_text(&log), "-o", path_text(&plan)];
    let made = json(args.into_iter().chain(take));
    let entries = logged(&log);
    let told: Vec<(&Value, &Value)> =
        entries.iter().map(|entry| (&entry["what"], &entry["outputs"][0]["name"])).collect();
    let expected = [("prune step", "plan.step-1.toml"), ("prune step", "plan.step-2.toml"), ("plan", "plan.toml")];
    assert_eq!(told.len(), expected.len());
    assert!(told.iter().zip(expected).all(|((what, name), own)| **what == own.0 && **name == own.1), "{told:?}");
    for entry in &entries {
        assert_eq!((&entry["options"]["score"], &entry["inputs"][0]["name"]), (&"flap".into(), &"demo".into()));
        assert_eq!(entry["inputs"][1]["hash"], made["prune"]["text_hash"], "the text that units were scored on");
    }
    assert_eq!(entries[1]["options"]["step"], "2");
    assert!(fails(2, ["plan", "demo", "--log", path_text(&log)]).contains("--output"));
    let steps = made["prune"]["steps"].as_array().expect("steps").clone();
    assert_eq!(steps.len(), 2);
    assert!(number(&steps[0]["kld"]) < number(&steps[1]["kld"]));
    let first = folder.path().join("plan.step-1.toml");
    assert!(first.exists() && folder.path().join("plan.step-2.toml").exists());

    let limit = ((number(&steps[0]["kld"]) + number(&steps[1]["kld"])) / 2.0).to_string();
    let again = folder.path().join("again.toml");
    let args = ["plan", "demo", "--prune-steps", "2", "--prune-max-kld", &limit, "-o", path_text(&again)];
    let stopped = json(args.into_iter().chain(take));
    assert_eq!(
        (stopped["prune"]["steps"].as_array().map(Vec::len), &stopped["prune"]["is_stopped"]),
        (Some(1), &Value::from(true))
    );
    let resumed = folder.path().join("resumed.toml");
    let args = ["plan", "demo", "--prune-steps", "1", "--prune-from", path_text(&first), "-o", path_text(&resumed)];
    json(args.into_iter().chain(take));
    let read = |path: &Path| std::fs::read_to_string(path).expect("reads");
    assert_eq!(read(&resumed), read(&plan), "from the first step, one more leads to the same end");

    // With biases and a slice, stopped after the first step and gone on with.
    let slice = ["--compensate", "--prune-slice", "recall/long context", "--prune-items", "8", "--prune-max-loss"];
    let whole = folder.path().join("whole.toml");
    let run = |from: &[&str], most: &str, output: &Path| {
        let args = ["plan", "demo", "--prune-steps", "2", "-o", path_text(output)];
        json(args.into_iter().chain(take).chain(slice).chain([most]).chain(from.iter().copied()))
    };
    let made = run(&[], "1", &whole);
    assert_eq!(made["prune"]["steps"][1]["slice"]["n"], 8);
    let first = folder.path().join("whole.step-1.toml");
    let again = folder.path().join("again2.toml");
    let resumed = run(&["--prune-from", path_text(&first)], "1", &again);
    assert_eq!(resumed["prune"]["steps"].as_array().map(Vec::len), Some(1));
    assert_eq!(resumed["prune"]["steps"][0], made["prune"]["steps"][1]);
    let bytes = |path: &str| std::fs::read(folder.path().join(path)).expect("reads");
    assert!(bytes("whole.means.safetensors") == bytes("again2.means.safetensors"));
    assert!(bytes("whole.means.safetensors") != bytes("whole.step-1.means.safetensors"));
    let stopped = run(&[], "-1", &folder.path().join("stopped.toml"));
    assert_eq!(stopped["prune"]["refused_step"]["index"], 1, "any loss is too much");
}
