//! Importance, type files, pruning and masks from plan to file.

use super::*;

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
    assert!(made["device"].is_string() && shown["device"].is_null(), "only what was computed has a device");
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
