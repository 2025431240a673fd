//! Budgets as their users meet them: the file is as large as was promised, and at equal bytes the
//! planner's file is closer to the original than a recipe's.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use lapidary::engine::Progress;
use lapidary::engine::checkpoint::{Checkpoint, Role};
use lapidary::engine::model::{Model, Tokenizer};
use lapidary::engine::pass::{self, PassOptions};
use lapidary::engine::plan::budget::{BudgetOptions, Effort, Limit, Planner, Proposal};
use lapidary::engine::plan::{Plan, Recipe, ResolvedPlan, Target, Treatment, resolve};
use lapidary::engine::scoring::{ScoredText, TextOptions, TextSource};
use lapidary::engine::sensitivity::fisher::{self, FisherOptions};
use lapidary::engine::sensitivity::{GroupedText, SensitivityTable};
use serde_json::Value;

fn lapidary(arguments: &[&str]) -> Output {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("budget");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_lapidary"));
    command.env("XDG_CACHE_HOME", home.join("cache")).env("XDG_DATA_HOME", home.join("data")).stdin(Stdio::null());
    command.args(arguments).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// Runs a command with `--json` and reads its document.
fn json(arguments: &[&str]) -> Value {
    let output = lapidary(&[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one document")
}

fn fails(arguments: &[&str]) -> String {
    let output = lapidary(arguments);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    message
}

/// Runs a plan over the demo and answers the file and its size.
fn run(folder: &Path, name: &str, plan: &Path) -> (PathBuf, u64) {
    let file = folder.join(format!("{name}.gguf"));
    json(&["run", "demo", "--plan", path(plan), "-o", path(&file)]);
    let bytes = std::fs::metadata(&file).expect("written").len();
    (file, bytes)
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8 path")
}

#[test]
fn the_file_is_exactly_as_large_as_the_plan_says_and_fits() {
    let folder = tempfile::tempdir().expect("a folder");
    let plan = folder.path().join("plan.toml");
    let document = json(&["plan", "demo", "--size", "2.5MiB", "--protect", "*layers.0.*q_proj*", "-o", path(&plan)]);
    let promised = document["budget"]["file_bytes"].as_u64().expect("a size");
    assert!(promised <= 5 << 19, "{promised}");
    assert!(document["budget"]["is_optimal"].as_bool().expect("known"));
    let kept = document["tensors"]
        .as_array()
        .expect("rows")
        .iter()
        .find(|row| row["name"] == "model.layers.0.self_attn.q_proj.weight");
    assert_eq!(kept.expect("a row")["to"], "bf16");
    assert_eq!(run(folder.path(), "fitted", &plan).1, promised);
    assert!(std::fs::read_to_string(&plan).expect("written").contains("planned = true"));

    // The same limit from the plan's own text; bits per weight do not count the metadata.
    let bits = json(&["plan", "demo", "--bits", "4.5", "--tie", "all"]);
    assert!(bits["new_bits_per_weight"].as_f64().expect("a number") <= 4.5);
    let of = |name: &str| {
        let rows = bits["tensors"].as_array().expect("rows");
        rows.iter().find(|row| row["name"].as_str().is_some_and(|own| own.ends_with(name))).expect("a row")["to"]
            .clone()
    };
    assert_eq!(of("layers.2.self_attn.q_proj.weight"), of("layers.2.self_attn.v_proj.weight"));
}

#[test]
fn a_folder_is_no_larger_than_promised() {
    let folder = tempfile::tempdir().expect("a folder");
    let (plan, output) = (folder.path().join("plan.toml"), folder.path().join("out"));
    let document = json(&["plan", "demo", "--target", "hugging_face", "--size", "20MiB", "-o", path(&plan)]);
    let promised = document["budget"]["file_bytes"].as_u64().expect("a size");
    json(&["run", "demo", "--plan", path(&plan), "-o", path(&output)]);
    let files = std::fs::read_dir(&output).expect("written").map(|entry| entry.expect("an entry").metadata());
    let bytes: u64 = files.map(|metadata| metadata.expect("readable").len()).sum();
    assert!(bytes <= promised && promised <= 20 << 20, "{bytes} {promised}");
    assert!(promised - bytes < 8192, "{bytes} {promised}");
}

#[test]
fn a_limit_that_cannot_be_kept_or_predicted_is_refused_with_the_reason() {
    let message = fails(&["plan", "demo", "--size", "100KiB"]);
    for part in ["the least is", "smallest format", "metadata and tokenizer", "allow more"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let table = folder.path().join("weight.json");
    json(&["sensitivity", "demo", "--formats", "q4_k", "-o", path(&table)]);
    let message = fails(&["plan", "demo", "--max-kld", "0.02", "--sensitivity", path(&table)]);
    assert!(message.contains("predicts no KLD"), "{message}");
    std::fs::write(&table, "{}").expect("writes");
    let message = fails(&["plan", "demo", "--bits", "5", "--sensitivity", path(&table)]);
    assert!(message.contains("not a sensitivity table"), "{message}");
    assert_eq!(lapidary(&["plan", "demo", "--bits", "5", "--size", "3MiB"]).status.code(), Some(2));
    assert_eq!(lapidary(&["plan", "demo", "--bits", "5", "--recipe", "Q4_K_M"]).status.code(), Some(2));
    // Speeds are never guessed; without a text, weights are looked at and that is said.
    let message = fails(&["plan", "demo", "--min-decode-tps", "5"]);
    assert!(message.contains("bench --rates"), "{message}");
}

#[test]
fn limits_are_stated_checked_and_written_as_gates() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let (first, second, gates) = (at("first.toml"), at("second.toml"), at("gates.toml"));
    let table = at("weight.json");
    json(&["sensitivity", "demo", "--formats", "q8_0,q4_k", "-o", path(&table)]);
    let stated = json(&[
        "plan",
        "demo",
        "--recipe",
        "Q8_0",
        "--size",
        "3MiB",
        "--memory",
        "64MiB",
        "--max-slice-loss",
        "facts/*=0.02",
        "--write-gates",
        path(&gates),
        "-o",
        path(&first),
    ]);
    let standings = |document: &Value| -> Vec<String> {
        let checks = document["checks"].as_array().expect("checks").iter();
        checks.map(|check| check["standing"].as_str().expect("a word").to_owned()).collect()
    };
    assert_eq!(standings(&stated), ["missed", "met", "unknown"], "{}", stated["checks"]);
    assert!(stated["budget"].is_null(), "a recipe is no order to plan");
    let text = std::fs::read_to_string(&gates).expect("written");
    assert!(text.contains("max = 3145728") && text.contains("weight_bytes") && text.contains("facts/*"), "{text}");

    // The same constraints, planned for.
    let arguments =
        ["plan", "demo", "--from", path(&first), "--fit", "--sensitivity", path(&table), "-o", path(&second)];
    let fitted = json(&arguments);
    assert_eq!(standings(&fitted), ["met", "met", "unknown"], "{}", fitted["checks"]);
    assert!(fitted["budget"]["limits"].as_array().is_some_and(|limits| limits.len() == 2), "{}", fitted["budget"]);
    let kept = std::fs::read_to_string(&second).expect("written");
    assert!(kept.contains("max_file_size = \"3MiB\"") && kept.contains("[[constraints.slice]]"), "{kept}");

    let diff = json(&["plan", "demo", "--diff", path(&first), path(&second), "--sensitivity", path(&table)]);
    assert!(diff["byte_difference"].as_i64().expect("bytes") < 0);
    assert!(diff["damage_difference"].as_f64().expect("measured") > 0.0);
    assert!(!diff["tensors"].as_array().expect("rows").is_empty());
}

#[test]
fn roles_layers_and_legal_formats_are_chosen_from_the_command_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let plan = folder.path().join("plan.toml");
    let document = json(&[
        "plan",
        "demo",
        "--recipe",
        "Q4_K_M",
        "--set-role",
        "down@0=q8_0",
        "--copy-layer",
        "0=1-2",
        "-o",
        path(&plan),
    ]);
    let rows = document["tensors"].as_array().expect("rows");
    let to = |name: &str| {
        rows.iter().find(|row| row["name"].as_str().is_some_and(|own| own.ends_with(name))).expect("a row")["to"]
            .clone()
    };
    assert_eq!(to("layers.2.mlp.down_proj.weight"), "q8_0");
    assert_eq!(to("layers.1.self_attn.v_proj.weight"), to("layers.0.self_attn.v_proj.weight"));
    let targets = document["targets"].as_array().expect("targets");
    let issues = |name: &str| {
        let found = targets.iter().find(|target| target["target"] == name).expect("a target");
        found["issues"].as_array().expect("issues").len()
    };
    assert_eq!(issues("gguf"), 0);
    assert!(issues("gptq") > 0);
    let legal = json(&["plan", "demo", "--from", path(&plan), "--target", "gptq", "--make-legal"]);
    assert_eq!(legal["target"], "gptq");
    let message = fails(&["plan", "demo", "--from", path(&plan), "--target", "gptq"]);
    assert!(message.contains("cannot hold"), "{message}");
}

/// The demo, ready to be planned for and measured: the planner sees the calibration text, KLD is that
/// of the evaluation text.
struct Demo {
    folder: tempfile::TempDir,
    checkpoint: Checkpoint,
    model: Model,
    text: ScoredText,
    calibration: ScoredText,
}

impl Demo {
    fn new() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo");
        let checkpoint = Checkpoint::open(&path).expect("opens");
        let model = Model::load(&checkpoint, &Progress::default()).expect("loads");
        let tokenizer = Tokenizer::of_checkpoint(&checkpoint).expect("a tokenizer");
        let scored = |name: &str, tokens: usize| {
            let source = TextSource::read(&path.join(name)).expect("reads");
            let options = TextOptions { max_tokens: Some(tokens), ..TextOptions::default() };
            let (context, vocab) = (model.config.context, model.config.vocab);
            ScoredText::new(&tokenizer, &source, context, vocab, &options).expect("windows")
        };
        let (text, calibration) = (scored("evaluation.txt", 16_384), scored("calibration.txt", 4096));
        Self { folder: tempfile::tempdir().expect("a folder"), checkpoint, model, text, calibration }
    }

    /// KLD by Fisher information for the formats that recipes mix.
    fn fisher(&self, formats: &[&str]) -> SensitivityTable {
        let formats = formats.iter().map(|&id| id.to_owned()).collect();
        let options = FisherOptions { formats, ..FisherOptions::default() };
        fisher::predicted_kld(
            &self.checkpoint,
            &GroupedText::plain("calibration.txt", &self.calibration),
            &options,
            &Progress::default(),
            &mut |_, _| {},
        )
        .expect("predicts")
    }

    /// Runs a plan and measures its file: tensor bytes with padding, KLD and its standard error.
    fn measured(&self, name: &str, resolved: &ResolvedPlan) -> (u64, f64, f64) {
        let path = self.folder.path().join(format!("{name}.gguf"));
        pass::run(&self.checkpoint, resolved, &path, &PassOptions::default(), &Progress::default()).expect("runs");
        let candidate = Checkpoint::open(&path).expect("opens");
        let model = Model::load(&candidate, &Progress::default()).expect("loads");
        let (_, found) = self.text.score_pair(&self.model, &model, &Progress::default()).expect("scores");
        let distance = found.distance.expect("a distance");
        (resolved.padded_bytes, distance.kld_mean, distance.kld_mean_stderr)
    }

    /// The planner's best in so many tensor bytes.
    fn planned(&self, table: &SensitivityTable, bytes: u64) -> Proposal {
        let plan = Plan::new(Target::Gguf, None);
        let planner = Planner::new(&self.checkpoint, &plan, table, &BudgetOptions::default()).expect("plans");
        planner.propose(&self.checkpoint, Limit::TensorBytes(bytes), &Effort::default()).expect("fits")
    }

    fn resolved(&self, plan: &Plan) -> ResolvedPlan {
        resolve(plan, &self.checkpoint).expect("resolves")
    }
}

const FORMATS: [&str; 6] = ["q8_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k"];

/// `cargo test --release --test budget -- --ignored --nocapture at_equal_bytes` prints the measured KLD
/// of recipes and single formats of the demo, and of the planner's files that are no larger.
#[test]
#[ignore = "a proof: one backward pass over the demo, then eight files written and measured"]
fn at_equal_bytes_the_planner_beats_recipes_and_single_formats_in_measured_kld() {
    let demo = Demo::new();
    let started = std::time::Instant::now();
    let table = demo.fisher(&FORMATS);
    let mut report = format!("map predicted in {:.0} s\n", started.elapsed().as_secs_f64());
    let mut losses = Vec::new();
    for base in ["Q4_K_M", "Q3_K_M", "q4_k", "q3_k"] {
        let mut plan = Plan::new(Target::Gguf, None);
        match Recipe::find(base).filter(|_| base.starts_with('Q')) {
            Some(recipe) => plan.set_recipe(Some(recipe)),
            None => plan.set_default_format(Some(base)).expect("a format"),
        }
        let (bytes, kld, stderr) = demo.measured(base, &demo.resolved(&plan));
        let proposal = demo.planned(&table, bytes);
        let (own_bytes, own, own_stderr) = demo.measured(&format!("planned for {base}"), &proposal.resolved);
        assert!(own_bytes <= bytes, "{own_bytes} {bytes}");
        writeln!(
            report,
            "{base:8} {bytes:9} bytes measured {kld:.5} ± {stderr:.5}; planner {own_bytes:9} bytes predicted {:.5} \
             measured {own:.5} ± {own_stderr:.5} ({:+.1} %), optimal {}, {} rules",
            proposal.report.damage,
            (own / kld - 1.0) * 100.0,
            proposal.report.is_optimal,
            proposal.plan.rules().len()
        )
        .expect("a string grows");
        if own >= kld {
            losses.push(base);
        }
    }
    println!("{report}");
    assert!(losses.is_empty(), "not better than {losses:?}:\n{report}");
}

/// `cargo test --release --test budget -- --ignored --nocapture protecting` prints both.
#[test]
#[ignore = "a proof: one backward pass over the demo, then two files written and measured"]
fn protecting_what_the_map_says_beats_protecting_the_first_and_last_layers() {
    let demo = Demo::new();
    let table = demo.fisher(&["q8_0", "q3_k"]);
    let mut by_place = Plan::new(Target::Gguf, None);
    by_place.set_default_format(Some("q3_k")).expect("a format");
    let last = demo.model.config.layers.len() - 1;
    for role in Role::ALL.into_iter().filter(|role| role.is_layer_linear()) {
        let treatment = Treatment::format("q8_0").expect("a format");
        by_place.set_role_layers(&demo.checkpoint, role, Some(&[0, last]), treatment).expect("layers");
    }
    let (bytes, kld, stderr) = demo.measured("first and last", &demo.resolved(&by_place));
    // The same two formats in the same bytes, spent where the map says: no stored types.
    let mut by_map = table.clone();
    for row in &mut by_map.rows {
        assert!(row.cells.iter().all(Option::is_some), "{}", row.name);
    }
    by_map.rows.retain(|row| row.role.is_layer_linear() || row.role == Role::Embedding);
    let proposal = demo.planned(&by_map, bytes);
    let (own_bytes, own, own_stderr) = demo.measured("by the map", &proposal.resolved);
    println!(
        "first and last layers in q8_0, the rest in q3_k: {bytes} bytes, KLD {kld:.5} ± {stderr:.5}\n\
         by the map: {own_bytes} bytes, KLD {own:.5} ± {own_stderr:.5} ({:+.1} %)",
        (own / kld - 1.0) * 100.0
    );
    assert!(own_bytes <= bytes && own < kld);
}
