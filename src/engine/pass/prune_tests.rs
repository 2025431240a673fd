//! A network with units taken out computes what the whole one computes with those units silenced.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::json;

use super::*;
use crate::checkpoint::{FolderWriter, LayerUnits, Removal, SafeTensor, Structure};
use crate::format::Dtype;
use crate::model::{Batch, KvCache, Model};

/// A small model with weights of its own.
#[derive(Clone, Debug)]
struct Tiny {
    layers: usize,
    kv_heads: usize,
    group: usize,
    head_dim: usize,
    channels: usize,
    hidden: usize,
    is_tied: bool,
    has_biases: bool,
}

type Weights = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

impl Tiny {
    fn weights(&self) -> Weights {
        let (q, kv) = (self.kv_heads * self.group * self.head_dim, self.kv_heads * self.head_dim);
        let mut shapes = vec![
            ("model.embed_tokens.weight".to_owned(), vec![23, self.hidden]),
            ("model.norm.weight".to_owned(), vec![self.hidden]),
        ];
        if !self.is_tied {
            shapes.push(("lm_head.weight".to_owned(), vec![23, self.hidden]));
        }
        for layer in 0..self.layers {
            for (stem, rows, cols) in [
                ("self_attn.q_proj", q, self.hidden),
                ("self_attn.k_proj", kv, self.hidden),
                ("self_attn.v_proj", kv, self.hidden),
                ("self_attn.o_proj", self.hidden, q),
                ("mlp.gate_proj", self.channels, self.hidden),
                ("mlp.up_proj", self.channels, self.hidden),
                ("mlp.down_proj", self.hidden, self.channels),
            ] {
                let name = format!("model.layers.{layer}.{stem}");
                if self.has_biases {
                    shapes.push((format!("{name}.bias"), vec![rows]));
                }
                shapes.push((format!("{name}.weight"), vec![rows, cols]));
            }
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                shapes.push((format!("model.layers.{layer}.{norm}.weight"), vec![self.hidden]));
            }
        }
        let mut state = 7u32;
        let mut next = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        shapes
            .into_iter()
            .map(|(name, shape)| {
                let count = shape.iter().product();
                let values = (0..count).map(|_| next()).collect();
                (name, (shape, values))
            })
            .collect()
    }

    fn write(&self, weights: &Weights, path: &Path) -> Checkpoint {
        let folder = FolderWriter::create(path).expect("folder");
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": self.hidden, "num_hidden_layers": self.layers, "head_dim": self.head_dim,
            "num_attention_heads": self.kv_heads * self.group, "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.channels, "vocab_size": 23, "rms_norm_eps": 1e-5,
            "tie_word_embeddings": self.is_tied, "max_position_embeddings": 64,
        });
        folder.write_file("config.json", config.to_string().as_bytes()).expect("config");
        let tensors: Vec<SafeTensor> = weights
            .iter()
            .map(|(name, (shape, _))| SafeTensor { name: name.clone(), shape: shape.clone(), dtype: Dtype::F32 })
            .collect();
        let mut writer = folder.safetensors(&tensors).expect("weights");
        for (_, values) in weights.values() {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            writer.write_tensor_rows(&bytes).expect("rows");
        }
        writer.finish().expect("weights");
        folder.finish().expect("folder");
        Checkpoint::open(path).expect("opens")
    }

    /// The weights with what `structure` leaves out silenced: nothing gets past `o` or `down`.
    fn silenced(&self, structure: &Structure) -> Weights {
        let mut weights = self.weights();
        for layer in 0..self.layers {
            let kept = structure.layer(layer).map(|found| found.1);
            let is_silent = |stem: &str, column: usize| match (kept, stem) {
                (None, _) => true,
                (Some(kept), "self_attn.o_proj") => !kept.heads.contains(&(column / self.head_dim)),
                (Some(kept), _) => !kept.channels.contains(&column),
            };
            for stem in ["self_attn.o_proj", "mlp.down_proj"] {
                let (shape, values) = weights.get_mut(&format!("model.layers.{layer}.{stem}.weight")).expect("there");
                for (at, value) in values.iter_mut().enumerate() {
                    if is_silent(stem, at % shape[1]) {
                        *value = 0.0;
                    }
                }
                if kept.is_none()
                    && let Some((_, bias)) = weights.get_mut(&format!("model.layers.{layer}.{stem}.bias"))
                {
                    bias.fill(0.0);
                }
            }
        }
        weights
    }
}

/// Final states of a fixed text, in one go and token by token with a cache.
fn states(checkpoint: &Checkpoint) -> [Vec<f32>; 2] {
    let progress = Progress::default();
    let model = Model::load(checkpoint, &progress).expect("loads");
    let ids = [3u32, 17, 5, 22, 0, 9, 9, 1];
    let mut batch = Batch::default();
    batch.push(&ids, None, None);
    let whole = model.hidden(&batch, &mut [], &progress).expect("runs");
    let mut caches = [KvCache::default()];
    let mut cached = Vec::new();
    for part in [&ids[..5], &ids[5..6], &ids[6..7], &ids[7..]] {
        let mut batch = Batch::default();
        batch.push(part, None, Some(0));
        cached.extend(model.hidden(&batch, &mut caches, &progress).expect("runs"));
    }
    [whole, cached]
}

#[track_caller]
fn assert_alike(ours: &[Vec<f32>; 2], theirs: &[Vec<f32>; 2]) {
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert_eq!(ours.len(), theirs.len());
        for (a, b) in ours.iter().zip(theirs) {
            assert!((a - b).abs() <= 1e-5 * (1.0 + b.abs()), "{a} {b}");
        }
    }
}

fn run_plan(checkpoint: &Checkpoint, plan: &Plan, output: &Path) -> Checkpoint {
    let resolved = plan::resolve(plan, checkpoint).expect("resolves");
    let report = run(checkpoint, &resolved, output, &PassOptions::default(), &Progress::default()).expect("passes");
    assert_eq!(report.file_bytes, file_bytes(checkpoint, &resolved).expect("sizes"));
    Checkpoint::open(output).expect("opens")
}

fn pick(count: usize, most: usize, choices: &[Index]) -> Vec<usize> {
    let mut found: Vec<usize> = choices.iter().map(|choice| choice.index(count)).collect();
    found.sort_unstable();
    found.dedup();
    found.truncate(most);
    found
}

/// A legal removal drawn from `choices`.
fn removal(tiny: &Tiny, choices: &[Index], has: [bool; 4]) -> Removal {
    let mut removal = Removal::default();
    let [layers, groups, heads, channels] = has;
    if layers {
        removal.layers.extend(pick(tiny.layers, tiny.layers - 1, &choices[..1]));
    }
    for layer in 0..tiny.layers {
        let own = &choices[1 + layer * 5..][..5];
        let mut units = LayerUnits::default();
        if groups {
            units.kv_groups.extend(pick(tiny.kv_heads, tiny.kv_heads - 1, &own[..1]));
        }
        if heads && tiny.group > 1 {
            for kv in 0..tiny.kv_heads {
                // One head of every group, but not the same one.
                units.heads.insert(kv * tiny.group + (own[1].index(tiny.group) + kv) % tiny.group);
            }
        }
        if channels {
            units.channels.extend(pick(tiny.channels, tiny.channels - 1, &own[2..]));
        }
        removal.units.insert(layer, units);
    }
    removal
}

fn tiny() -> impl Strategy<Value = Tiny> {
    (1usize..4, 1usize..4, 1usize..4, 1usize..3, 3usize..12, 2usize..5, any::<bool>(), any::<bool>()).prop_map(
        |(layers, kv_heads, group, half, channels, width, is_tied, has_biases)| Tiny {
            layers,
            kv_heads,
            group,
            head_dim: half * 4,
            channels,
            hidden: width * 4,
            is_tied,
            has_biases,
        },
    )
}

/// The sliced network, read in place and written, computes what the silenced one computes.
#[track_caller]
fn assert_sliced_is_silenced(tiny: &Tiny, choices: &[Index], has: [bool; 4]) {
    let folder = tempfile::tempdir().expect("tempdir");
    let original = tiny.write(&tiny.weights(), &folder.path().join("original"));
    let removal = removal(tiny, choices, has);
    let structure = Structure::new(original.require_config().expect("config"), &removal).expect("legal");
    let silenced = tiny.write(&tiny.silenced(&structure), &folder.path().join("silenced"));
    let expected = states(&silenced);
    assert_alike(&states(&original.pruned(&structure, Vec::new())), &expected);

    let mut plan = Plan::new(Target::Lapidary, Some(&original.fingerprint));
    plan.set_removal(&original, removal).expect("legal");
    let again = Plan::parse(&plan.to_toml(), None).expect("reads");
    assert_eq!(again, plan);
    let written = run_plan(&original, &plan, &folder.path().join("sliced"));
    assert_alike(&states(&written), &expected);
    assert_eq!(written.weight_count(), plan::resolve(&plan, &original).expect("resolves").new_weight_count);

    plan.set_target(Target::Gguf);
    let written = run_plan(&original, &plan, &folder.path().join("sliced.gguf"));
    assert_alike(&states(&written), &expected);
    assert_eq!(&written.config.as_ref().expect("config").layers, &structure.config.layers);
    // And from there on, through GGUF's permuted rows.
    let config = written.require_config().expect("config");
    if config.layers[0].kv_heads > 1 {
        let mut more = Plan::new(Target::Lapidary, None);
        let units = LayerUnits { kv_groups: [0].into(), ..LayerUnits::default() };
        more.set_removal(&written, plan::units_of(0, units)).expect("legal");
        let both = run_plan(&written, &more, &folder.path().join("twice"));
        let structure = more.structure(&written).expect("legal").expect("prunes");
        assert_alike(&states(&both), &states(&written.pruned(&structure, Vec::new())));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn sliced_and_silenced_agree(
        tiny in tiny(),
        choices in proptest::collection::vec(any::<Index>(), 16),
        has in any::<[bool; 4]>(),
    ) {
        assert_sliced_is_silenced(&tiny, &choices, has);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1, ..ProptestConfig::default() })]

    /// Layers, KV groups, query heads and channels, in each of their sixteen combinations, with biases and
    /// without, tied and not: none is left to chance.
    #[test]
    fn every_combination_of_units_is_sliced_as_it_is_silenced(
        choices in proptest::collection::vec(any::<Index>(), 16),
    ) {
        for combination in 0..16u32 {
            let has = [0, 1, 2, 3].map(|bit| combination >> bit & 1 == 1);
            for [is_tied, has_biases] in [[false, false], [false, true], [true, false], [true, true]] {
                let tiny =
                    Tiny { layers: 3, kv_heads: 3, group: 2, head_dim: 4, channels: 9, hidden: 12, is_tied, has_biases };
                let removal = removal(&tiny, &choices, has);
                prop_assert_eq!(removal.layers.is_empty(), !has[0]);
                for (index, own) in [(1, removal.units[&0].kv_groups.len()), (2, removal.units[&0].heads.len())] {
                    prop_assert_eq!(own == 0, !has[index]);
                }
                assert_sliced_is_silenced(&tiny, &choices, has);
            }
        }
    }
}

fn demo() -> Checkpoint {
    Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo")).expect("opens")
}

#[test]
fn taking_nothing_away_changes_no_byte() {
    let demo = demo();
    let folder = tempfile::tempdir().expect("tempdir");
    let plain = Plan::new(Target::HuggingFace, Some(&demo.fingerprint));
    let mut empty = plain.clone();
    empty.set_removal(&demo, Removal::default()).expect("legal");
    assert_eq!(empty.to_toml(), plain.to_toml());
    let structure = Structure::new(demo.require_config().expect("config"), &Removal::default()).expect("legal");
    let view = demo.pruned(&structure, Vec::new());
    let (first, second) = (folder.path().join("a"), folder.path().join("b"));
    let [first, second] =
        [run_plan(&demo, &plain, &first), run_plan(&view, &Plan::new(Target::HuggingFace, None), &second)];
    let hash = |checkpoint: &Checkpoint| checkpoint.content_hash(&Progress::default()).expect("hash");
    assert_eq!(hash(&first), hash(&second));
    // A plan that took units away and gave them back is the plan that it was.
    let mut edited = plain.clone();
    let units = plan::units_of(2, LayerUnits { channels: (0..256).collect(), ..LayerUnits::default() });
    edited.remove_units(&demo, &units).expect("legal");
    edited.restore_units(&demo, &units).expect("legal");
    assert_eq!(edited.to_toml(), plain.to_toml());
}

#[test]
fn pruning_and_quantization_go_together() {
    let demo = demo();
    let folder = tempfile::tempdir().expect("tempdir");
    let mut plan = Plan::of_recipe(Target::Gguf, Some(&demo.fingerprint), plan::Recipe::Q4KM);
    for layer in 0..6 {
        let channels = (0..512).filter(|channel| channel % 2 == 0).collect();
        let units = LayerUnits { kv_groups: [layer % 4, (layer + 1) % 4].into(), channels, ..LayerUnits::default() };
        plan.remove_units(&demo, &plan::units_of(layer, units)).expect("legal");
    }
    let resolved = plan::resolve(&plan, &demo).expect("resolves");
    let written = run_plan(&demo, &plan, &folder.path().join("small.gguf"));
    let config = written.require_config().expect("config");
    assert!(config.layers.iter().all(|layer| (layer.heads, layer.kv_heads, layer.mlp_channels) == (4, 2, 256)));
    assert_eq!(written.tensor_bytes(), resolved.new_bytes);
    assert_eq!(checkpoint::gguf_architecture(config), "llama");
    let down = written.tensor("model.layers.3.mlp.down_proj.weight").expect("there");
    assert!(matches!(down.dtype, Dtype::Q6K | Dtype::Q4K), "{}", down.dtype);
    assert_eq!(down.shape, [256, 256]);
    // o has 128 columns now, which no block of 256 fits: the fall-back of llama.cpp.
    assert_eq!(written.tensor("model.layers.0.self_attn.o_proj.weight").expect("there").dtype, Dtype::Q5_0);
    states(&written);
    // The same bytes whatever the number of threads.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("pool");
    let again = pool.install(|| run_plan(&demo, &plan, &folder.path().join("again.gguf")));
    let hash = |checkpoint: &Checkpoint| checkpoint.content_hash(&Progress::default()).expect("hash");
    assert_eq!(hash(&written), hash(&again));
}

#[test]
fn targets_refuse_what_their_loaders_refuse() {
    let demo = demo();
    let text = |prune: &str, target: &str| {
        format!("version = 1\ncheckpoint = \"{}\"\ntarget = \"{target}\"\n\n{prune}", demo.fingerprint)
    };
    let refused = |text: &str| {
        let plan = Plan::parse(text, None).expect("reads");
        plan::resolve(&plan, &demo).expect_err("refused").to_string()
    };
    let uneven = "[prune.layer.3]\nkv_groups = [1]\nchannels = [\"0-255\"]\n";
    let message = refused(&text(uneven, "hugging_face"));
    assert!(message.contains("line 5") && message.contains("differ in shape"), "{message}");
    assert!(message.contains("8 query heads, 4 KV heads and 512 MLP channels"), "{message}");
    for target in ["gguf", "lapidary"] {
        let plan = Plan::parse(&text(uneven, target), None).expect("reads");
        let resolved = plan::resolve(&plan, &demo).expect("holds it");
        assert!(resolved.warnings.iter().any(|warning| warning.contains("differ in shape")), "{:?}", resolved.warnings);
    }
    // Six heads of eight do not divide 256; four do.
    let mut even = String::new();
    (0..6).for_each(|layer| {
        even += &format!("[prune.layer.{layer}]\nkv_groups = [{layer}]\n").replace("[4]", "[0]").replace("[5]", "[1]")
    });
    let message = refused(&text(&even, "hugging_face"));
    assert!(message.contains("6 query heads do not divide the width 256"), "{message}");
    for (prune, line, cause) in [
        ("[prune]\nlayers = [9]\n", 6, "no layer 9"),
        ("[prune.layer.2]\nkv_groups = [0, 1,\n 2, 3]\n", 6, "all query heads of layer 2"),
        ("[prune.layer.2]\nheads = [1,\n 8]\n", 7, "no query head 8"),
        ("[prune.layer.2]\nheads = [1]\n", 6, "every group must keep as many"),
        ("[prune.layer.7]\nheads = [1]\n", 5, "no layer 7"),
    ] {
        let message = refused(&text(prune, "gguf"));
        assert!(message.contains(&format!("line {line}:")) && message.contains(cause), "{message}");
    }
    let other = text(uneven, "gguf").replace(&demo.fingerprint, "another");
    let message = refused(&other);
    assert!(message.contains("line 2") && message.contains("another checkpoint"), "{message}");
}

#[test]
fn the_nearest_even_plan_takes_nothing_that_was_to_stay() {
    let demo = demo();
    let mut plan = Plan::new(Target::HuggingFace, None);
    for layer in 0..6 {
        let channels = (0..128 + 10 * layer).collect();
        let units = LayerUnits { kv_groups: [0, 1 + layer % 3].into(), channels, ..LayerUnits::default() };
        plan.remove_units(&demo, &plan::units_of(layer, units)).expect("legal");
    }
    let structure = plan.structure(&demo).expect("legal").expect("prunes");
    assert!(!plan::can_hold(Target::HuggingFace, &structure));
    let even = plan::nearest_even(Target::HuggingFace, &structure).expect("there is one");
    assert_eq!((even.shape.heads, even.shape.kv_heads, even.shape.mlp_channels), (4, 2, 384));
    let mut evened = plan.clone();
    evened.set_removal(&demo, even.removal.clone()).expect("legal");
    let left = evened.structure(&demo).expect("legal").expect("prunes");
    assert!(plan::can_hold(Target::HuggingFace, &left));
    assert_eq!(left.config.layer_weights(), structure.config.layer_weights() + even.kept_weights);
    let mut union = plan.prune().removal.clone();
    union.add(&even.removal);
    assert_eq!(&union, &plan.prune().removal, "nothing else goes");
}

#[test]
fn bits_and_structure_share_one_budget() {
    use crate::plan::budget::{BudgetOptions, Effort, Limit, Planner};
    use crate::sensitivity::weight::{WeightOptions, weight_error};

    let demo = demo();
    let progress = Progress::default();
    let formats = ["q8_0", "q4_k"].map(str::to_owned).to_vec();
    let options = WeightOptions { formats, ..WeightOptions::default() };
    let table = weight_error(&demo, &options, &progress, &mut |_, _| {}).expect("measures");
    let whole = Plan::new(Target::Gguf, Some(&demo.fingerprint));
    let mut pruned = whole.clone();
    let mut removal = Removal { layers: [4].into(), ..Removal::default() };
    for layer in [0, 1, 2, 3, 5] {
        *removal.layer_mut(layer) = LayerUnits { channels: (0..256).collect(), ..LayerUnits::default() };
    }
    pruned.set_removal(&demo, removal).expect("legal");
    let planner = |plan: &Plan| Planner::new(&demo, plan, &table, &BudgetOptions::default()).expect("prepares");
    let (of_whole, of_pruned) = (planner(&whole), planner(&pruned));
    assert!(of_pruned.floor().tensor_bytes < of_whole.floor().tensor_bytes * 3 / 4);
    let bytes = of_whole.floor().tensor_bytes;
    let proposal = of_pruned.propose(&demo, Limit::TensorBytes(bytes), &Effort::default()).expect("fits");
    assert!(proposal.resolved.padded_bytes <= bytes && proposal.resolved.structure.is_some());
    assert_eq!(proposal.plan.prune(), pruned.prune(), "what goes is not the planner's to change");
    assert!(
        proposal.report.damage
            < of_whole.propose(&demo, Limit::TensorBytes(bytes), &Effort::default()).expect("fits").report.damage
    );
    let folder = tempfile::tempdir().expect("tempdir");
    let written = run_plan(&demo, &proposal.plan, &folder.path().join("budget.gguf"));
    assert_eq!(written.tensor_bytes(), proposal.resolved.new_bytes);
}
