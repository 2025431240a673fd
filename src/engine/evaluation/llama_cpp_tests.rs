//! The figures of `llama-perplexity --kl-divergence` on the bundled demo, reproduced in three recipes.
//!
//! llama.cpp keeps its baseline's log-probabilities in 16 bits and cuts them 16 nats below the largest
//! (`log_softmax` in `tools/perplexity/perplexity.cpp`). On this very certain model that moves PPL(base) by a
//! percent, so that the figures are compared twice: as we measure them, where the storage does not matter, and
//! with a baseline that was stored the same way, where it does.
//!
//! Its cache of keys and values is f16 unless told otherwise, ours is f32. That moves single positions of the long
//! tail: the largest KLD of Q4_K_M is 0.248 nats with f16 and 0.447 with f32, each some percent of the sum of all,
//! and the means are 0.000901 and 0.000923. So the figures here are those that llama.cpp gives with an f32 cache.

use std::path::{Path, PathBuf};

use crate::checkpoint::Checkpoint;
use crate::model::{Batch, Model, Tokenizer};
use crate::pass::{self, PassOptions};
use crate::plan::{self, Plan, Recipe, Target};
use crate::progress::Progress;
use crate::scoring::distance::DistanceStats;
use crate::scoring::{Convention, ScoredText, TextOptions, TextSource, TokenDistance, token_distance};
use serde_json::Value;

fn repository(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join(path)
}

fn written(recipe: &str, folder: &Path) -> (Model, Tokenizer) {
    let demo = Checkpoint::open(&repository("assets/demo")).expect("opens");
    let plan = Plan::of_recipe(Target::Gguf, None, Recipe::find(recipe).expect("known"));
    let resolved = plan::resolve(&plan, &demo).expect("legal");
    let path = folder.join(format!("{recipe}.gguf"));
    pass::run(&demo, &resolved, &path, &PassOptions::default(), &Progress::default()).expect("runs");
    let candidate = Checkpoint::open(&path).expect("opens");
    let model = Model::load(&candidate, &Progress::default()).expect("loads");
    (model, Tokenizer::of_checkpoint(&candidate).expect("tokenizer"))
}

/// Log-probabilities as llama.cpp stores and reads them.
fn stored(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let min = logits.iter().copied().fold(f32::INFINITY, f32::min).max(max - 16.0);
    let sum: f64 = logits.iter().map(|&logit| f64::from((logit - max).exp())).sum();
    let ln_sum = sum.ln() as f32;
    let least = min - max - ln_sum;
    let scale = (max - min) / 65535.0;
    let code = |logit: f32| if logit > min { ((logit - min) / scale).round_ties_even() } else { 0.0 };
    logits.iter().map(|&logit| scale * code(logit) + least).collect()
}

/// llama.cpp's sums over one position.
fn against_stored(base: &[f32], logits: &[f32], target: usize) -> TokenDistance {
    let ours = token_distance(base, logits, target as u32).expect("finite");
    let base = stored(base);
    let first_largest = |row: &[f32]| {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        row.iter().position(|&value| value == max)
    };
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from((logit - max).exp())).sum();
    let norm = max + sum.ln() as f32;
    let kept = base.iter().zip(logits).filter(|(p, _)| **p > -16.0);
    let kld = kept.map(|(&p, &logit)| f64::from(p.exp() * (p - logit + norm))).sum();
    let baseline_nll = -f64::from(base[target]);
    TokenDistance {
        baseline_nll,
        kld,
        same_top: first_largest(&base) == first_largest(logits),
        delta_p: (-ours.nll).exp() - (-baseline_nll).exp(),
        ..ours
    }
}

#[test]
fn figures_of_kl_divergence_are_llama_cpps() {
    let folder = tempfile::tempdir().expect("folder");
    let bytes = std::fs::read(repository("tests/fixtures/llama_cpp_perplexity.json")).expect("fixture");
    let fixture: Value = serde_json::from_slice(&bytes).expect("json");
    let source = TextSource::read(&repository("assets/demo/evaluation.txt")).expect("text");
    let (base, tokenizer) = written("F32", folder.path());
    let options = TextOptions { convention: Convention::LlamaCpp, context: Some(256), ..TextOptions::default() };
    let text = ScoredText::new(&tokenizer, &source, 256, base.config.vocab, &options).expect("windows");
    let (width, vocab) = (base.config.hidden, base.config.vocab);
    let models = ["Q8_0", "Q4_K_M", "Q2_K"].map(|recipe| (recipe, written(recipe, folder.path()).0));
    let mut plain = models.each_ref().map(|_| DistanceStats::new(256));
    let mut as_stored = plain.clone();
    for windows in text.windows.chunks(6) {
        let mut batch = Batch::default();
        let mut scored = Vec::new();
        for window in windows {
            let start = batch.ids.len();
            batch.push(&window.ids[..window.ids.len() - 1], None, None);
            let rows = window.scored_from..window.ids.len();
            scored.extend(rows.map(|position| (start + position - 1, window.ids[position])));
        }
        let logits_of = |model: &Model| {
            let hidden = model.hidden(&batch, &mut [], &Progress::default()).expect("runs");
            let rows: Vec<f32> =
                scored.iter().flat_map(|(row, _)| hidden[row * width..(row + 1) * width].to_vec()).collect();
            model.logits(&rows).expect("logits")
        };
        let baseline = logits_of(&base);
        for (place, (_, model)) in models.iter().enumerate() {
            let candidate = logits_of(model);
            let rows = baseline.chunks_exact(vocab).zip(candidate.chunks_exact(vocab)).zip(&scored);
            for ((baseline, candidate), &(_, target)) in rows {
                plain[place].push(&token_distance(baseline, candidate, target).expect("finite"), 1, 1);
                as_stored[place].push(&against_stored(baseline, candidate, target as usize), 1, 1);
            }
        }
    }
    for (((recipe, model), plain), as_stored) in models.iter().zip(plain).zip(as_stored) {
        let theirs = &fixture["models"][format!("{recipe}, KV cache f32, no flash attention")];
        let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{recipe} has the figure"));
        let perplexity = number(&theirs["perplexity"]);
        let theirs = &theirs["against_f32"];
        let figure = |name: &str| number(&theirs[name][0]);
        let nlls = plain.nlls();
        let own = [nlls.b.mean().exp(), nlls.b.mean().exp() * nlls.b.stderr()];
        let plain = plain.finish();
        assert!((own[0] / perplexity - 1.0).abs() < 1e-3, "{recipe}: {} {perplexity}", own[0]);
        let base_perplexity = number(&fixture["models"]["F32, KV cache f32, no flash attention"]["perplexity"]);
        assert!((plain.baseline_perplexity / base_perplexity - 1.0).abs() < 1e-3, "{}", plain.baseline_perplexity);
        if *recipe == "Q8_0" {
            // What an evaluation says is the same sums.
            let (_, evaluated) = text.score_pair(&base, model, &Progress::default()).expect("scores");
            let evaluated = evaluated.distance.expect("distance");
            assert!((evaluated.kld_mean - plain.kld_mean).abs() < 1e-3 * plain.kld_mean);
            assert!((evaluated.same_top_fraction - plain.same_top_fraction).abs() < 1e-3);
        }
        let same = as_stored.finish();
        let figures = same.llama_cpp_figures((own[0], own[1]));
        for (name, value, _) in &figures {
            println!("{recipe} {name}: {value:.6}, llama.cpp {}", theirs[name.as_str()][0]);
        }
        let (kld, top) = (plain.kld_mean, plain.same_top_fraction * 100.0);
        println!("{recipe} without storage: KLD {kld:.6}, same top {top:.3}");
        let kld = figure("Mean    KLD");
        // llama.cpp prints six decimals, which at Q8_0's 0.000046 nats is as coarse as the percent itself.
        assert!((same.kld_mean - kld).abs() < 0.01 * kld + 5e-7, "{recipe}: KLD {} {kld}", same.kld_mean);
        let top = figure("Same top p");
        assert!((same.same_top_fraction * 100.0 - top).abs() < 0.2, "{recipe}: {} {top}", same.same_top_fraction);
        let others = figures.iter().filter(|(name, ..)| !["Mean    KLD", "Same top p"].contains(&name.as_str()));
        for (name, value, _) in others {
            // Where llama.cpp prints an error, ours lies within half of it: the positions are the same, but the
            // roundings of sums are not, and a few positions of the tail make most of some figures.
            let error = theirs[name.as_str()][1].as_f64().unwrap_or(0.0);
            if error > 0.0 {
                let distance = (value - figure(name)).abs();
                assert!(distance < 0.5 * error || distance < 2e-3, "{recipe} {name}: {value} {}", figure(name));
            }
        }
    }
}
