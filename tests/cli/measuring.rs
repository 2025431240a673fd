//! Commands that measure: sensitivity, evaluation, speed.

use super::*;

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
