//! From a plan to a written report on the command line: evaluation, comparison, cascade, speculation, audit log.

use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_lapidary");

fn lapidary(folder: &Path, arguments: &[&str]) -> Output {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("evaluation_cli");
    let mut command = std::process::Command::new(BINARY);
    command.current_dir(folder).args(arguments).stdin(Stdio::null());
    command.env("XDG_CACHE_HOME", home.join("cache")).env("XDG_DATA_HOME", home.join("data"));
    for name in ["DISPLAY", "WAYLAND_DISPLAY", "WAYLAND_SOCKET", "LAPIDARY_LOG"] {
        command.env_remove(name);
    }
    command.output().expect("the program starts")
}

fn ok(folder: &Path, arguments: &[&str], code: i32) -> String {
    let output = lapidary(folder, arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn json(folder: &Path, arguments: &[&str], code: i32) -> Value {
    let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
    serde_json::from_str(&ok(folder, &arguments, code)).expect("one document")
}

#[test]
fn a_candidate_is_judged_cascaded_drafted_with_and_written_up() {
    let folder = tempfile::tempdir().expect("folder");
    let folder = folder.path();
    ok(folder, &["plan", "demo", "--recipe", "Q2_K", "-o", "plan.toml"], 0);
    ok(folder, &["run", "demo", "--plan", "plan.toml", "-o", "q2.gguf", "--log", "audit.jsonl"], 0);
    let little = ["--max-items", "4", "--tokens", "2000", "--log", "audit.jsonl", "--watts", "65"];
    let with = |first: &[&'static str]| -> Vec<&str> { first.iter().copied().chain(little).collect() };
    ok(folder, &with(&["evaluate", "demo", "-o", "base.json"]), 0);
    let own = with(&["evaluate", "q2.gguf", "--baseline", "demo", "-o", "q2.json", "--resume", "kept"]);
    let own: Vec<&str> = own.into_iter().collect();
    // The demo's tasks belong to the baseline, which is the demo.
    let evaluated = json(folder, &own, 0);
    assert!(evaluated["text"]["kld_percentiles"]["p999"].as_f64().is_some_and(|kld| kld > 0.01));
    assert!(evaluated["text"]["acceptance_mean"].as_f64().is_some_and(|share| (0.5..1.0).contains(&share)));
    assert!(evaluated["reliability"]["ece"].as_f64().is_some());
    let energy = &evaluated["energy"];
    assert!(energy["joules_per_token"].as_f64().is_some_and(|joules| joules > 0.0), "{energy}");
    assert!(energy["joules_per_correct_answer"].as_f64().is_some_and(|joules| joules > 0.0), "{energy}");
    assert_eq!(energy["is_estimate"], energy["source"] == "named_power", "{energy}");
    // Items of both models, and the text's tokens of the pair.
    assert_eq!(std::fs::read_dir(folder.join("kept")).expect("a folder").count(), 3);
    let items = evaluated["items"].as_array().expect("items");
    assert!(items.iter().any(|item| item["rarest_token_count"].as_u64().is_some_and(|count| count == 1)));

    let conditions = &evaluated["conditions"];
    assert!(conditions["processor"].as_str().is_some_and(|name| !name.is_empty()), "{conditions}");
    assert!(conditions["threads"].as_u64().is_some_and(|threads| threads > 0) && conditions["level"].is_string());
    assert_eq!(conditions, &evaluated["baseline"]["conditions"]);
    assert!(evaluated["speed"]["decode_secs"].as_array().is_some_and(|secs| secs.len() >= 6), "{}", evaluated["speed"]);
    assert_eq!(evaluated["baseline"]["speed"]["checks"][0]["tokens"], 5);

    let kept_ones = ["--max-items", "1", "--tokens", "2000", "--no-speed", "--keep-baseline", "predictions"];
    for _ in 0..2 {
        let first = ["evaluate", "q2.gguf", "--baseline", "demo"];
        let kept = json(folder, &[&first[..], &kept_ones[..]].concat(), 0);
        let figure = |document: &Value, name: &str| document["text"][name].as_f64().expect("a figure");
        let exact = figure(&evaluated, "kld_mean");
        let at_most = kept["text"]["kept"]["kld_mean_at_most"].as_f64().expect("a bound");
        assert!(figure(&kept, "kld_mean") < exact + 1e-6 && exact < at_most + 1e-6, "{exact} {at_most}");
        for name in ["perplexity", "same_top_fraction", "baseline_perplexity"] {
            assert!((figure(&kept, name) / figure(&evaluated, name) - 1.0).abs() < 1e-5, "{name}");
        }
        assert_eq!(kept["text"]["kept"]["k"], 64);
        // The second time reads what the first one wrote.
        assert_eq!(std::fs::read_dir(folder.join("predictions")).expect("a folder").count(), 1);
    }

    let dry = json(folder, &["evaluate", "demo", "--dry-run"], 0);
    assert_eq!((dry[0]["slice"].as_str(), dry[0]["items"].as_u64()), (Some("all"), Some(2500)));
    let detectable = dry[0]["at_5_percent_flips"].as_f64().expect("a share");
    assert!((detectable - 0.0125).abs() < 1e-3, "{detectable}");

    std::fs::write(folder.join("gates.toml"), "[[gate]]\nmetric = \"kld_mean\"\nmax = 0.0001\n").expect("writes");
    let compared =
        json(folder, &["compare", "base.json", "q2.json", "--gates", "gates.toml", "--log", "audit.jsonl"], 3);
    assert_eq!((compared["verdict"].as_str(), compared["rollback"]["name"].as_str()), (Some("fail"), Some("demo")));
    let comparison = &compared["comparisons"][0];
    assert!(
        comparison["worst_slice"].is_string() && comparison["views"].as_array().is_some_and(|views| !views.is_empty())
    );
    assert_eq!(comparison["gates"][0]["is_binding"], true);

    let cascade = json(folder, &["cascade", "base.json", "q2.json"], 0);
    assert!(cascade["curve"].as_array().is_some_and(|curve| curve.len() > 2));
    let answers: String =
        items.iter().map(|item| format!("{{\"id\":{},\"correct\":true,\"confidence\":0.5}}\n", item["id"])).collect();
    std::fs::write(folder.join("answers.jsonl"), answers).expect("writes");
    let third = ["cascade", "base.json", "q2.json", "--answers", "answers.jsonl"];
    assert!(json(folder, &third, 0)["note"].as_str().is_some_and(|note| note.contains("not used")));
    let first = json(folder, &[&third[..], &["--answers-as", "first"]].concat(), 0);
    assert_eq!((first["candidate_accuracy"].as_f64(), first["note"].is_null()), (Some(1.0), true), "{first}");

    let drafted =
        json(folder, &["speculate", "demo", "--draft", "q2.gguf", "--prompt", "17 + 25 =", "--max-tokens", "12"], 0);
    assert_eq!(drafted["is_same_text"], true, "{drafted}");
    assert!(drafted["accepted"].as_u64().is_some_and(|accepted| accepted > 0));

    let report = [
        "report",
        "base.json",
        "q2.json",
        "-o",
        "written",
        "--plan",
        "plan.toml",
        "--gates",
        "gates.toml",
        "--log",
        "audit.jsonl",
        "--base-model",
        "org/demo",
        "--license",
        "mit",
    ];
    assert_eq!(json(folder, &report, 0)["files"].as_array().map(Vec::len), Some(5));
    let read = |name: &str| std::fs::read_to_string(folder.join("written").join(name)).expect(name);
    let html = read("report.html");
    assert!(html.contains("joules a token") && html.contains("joules a correct answer"));
    assert!(html.contains("<svg") && html.contains("Audit log") && html.contains("fail") && !html.contains("src="));
    assert!(read("README.md").starts_with("---\nbase_model: \"org/demo\"\nbase_model_relation: quantized\n"));
    assert!(read("annex.md").contains("to be filled in by the provider"));
    let log = std::fs::read_to_string(folder.join("audit.jsonl")).expect("a log");
    let what: Vec<String> = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("an entry")["what"].as_str().expect("what").to_owned())
        .collect();
    assert_eq!(what, ["pass", "evaluate", "evaluate", "compare", "report"]);

    // A pass that fails is an entry too: a file is no folder to write into.
    ok(folder, &["run", "demo", "--plan", "plan.toml", "-o", "plan.toml/q2.gguf", "--log", "failed.jsonl"], 1);
    let log = std::fs::read_to_string(folder.join("failed.jsonl")).expect("a log");
    let entry: Value = serde_json::from_str(log.lines().next().expect("a line")).expect("an entry");
    assert_eq!((entry["what"].as_str(), entry["outcome"].as_str()), (Some("pass"), Some("failed")), "{entry}");
    assert!(entry["options"]["reason"].as_str().is_some_and(|reason| reason.contains("plan.toml")), "{entry}");
    assert_eq!(entry["inputs"].as_array().map(Vec::len), Some(2), "{entry}");
}

#[test]
fn benchmark_files_and_few_shots_are_evaluated() {
    let folder = tempfile::tempdir().expect("folder");
    let folder = folder.path();
    std::fs::write(
        folder.join("piqa.csv"),
        "goal,sol1,sol2,label\nTo dry it,hang it up,wet it,0\nTo eat,cook,sleep,0\n",
    )
    .expect("writes");
    std::fs::write(folder.join("train.csv"), "goal,sol1,sol2,label\nTo sing,open your mouth,close it,0\n")
        .expect("writes");
    let arguments =
        ["evaluate", "demo", "--tasks", "piqa.csv", "--few-shot", "1", "--examples", "train.csv", "--tokens", "250"];
    let evaluated = json(folder, &arguments, 0);
    let slice = &evaluated["slices"][0];
    assert_eq!((slice["task"].as_str(), slice["n"].as_u64()), (Some("piqa"), Some(2)));
    assert!(slice["acc_norm"].is_number() && slice["acc_bytes"].is_number() && slice["brier"].is_number());
    let same =
        lapidary(folder, &["evaluate", "demo", "--tasks", "piqa.csv", "--few-shot", "1", "--examples", "piqa.csv"]);
    assert_eq!(same.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&same.stderr).contains("also one of the items"));
    let chat = lapidary(folder, &["evaluate", "demo", "--chat-template"]);
    assert!(String::from_utf8_lossy(&chat.stderr).contains("no chat template") || chat.status.success());
}

#[test]
fn speed_is_measured_in_turns_over_lengths_and_batches() {
    let folder = tempfile::tempdir().expect("folder");
    let measured = json(
        folder.path(),
        &[
            "bench",
            "demo",
            "--against",
            "demo",
            "--prompts",
            "8,32",
            "--batches",
            "1,2",
            "--prefill-tokens",
            "16",
            "--decode-tokens",
            "4",
            "--repetitions",
            "2",
            "--watts",
            "50",
            "--price-per-hour",
            "1.5",
        ],
        0,
    );
    let grid = measured["grid"].as_array().expect("a grid");
    assert_eq!(grid.len(), 8);
    assert!(
        grid.iter().all(|cell| cell["decode_tokens_per_second"]["median"].as_f64().is_some_and(|speed| speed > 0.0))
    );
    assert!(measured["energy"]["joules_per_token"].as_f64().is_some_and(|joules| joules > 0.0));
    assert!(measured["cost"]["price_per_million_written_tokens"].as_f64().is_some_and(|price| price > 0.0));
    assert!(measured["kv_bytes_per_token"].as_u64().is_some_and(|bytes| bytes > 0));
}
