//! Proposals on made-up checkpoints and tables: limits, rules by hand, ties, floors.

use proptest::prelude::*;

use super::*;
use crate::checkpoint::TensorInfo;
use crate::plan::Target;
use crate::plan::speed::{SpeedModel, tests::rates};
use crate::plan::tests::{fault, llama, parse, subject};
use crate::plan::{Recipe, Rule, Treatment};
use crate::sensitivity::{self, SensitivityRow, SensitivityValue};

const FORMATS: [&str; 6] = ["q8_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k"];

/// A made-up table: damage falls by four with every bit, and `fragility` scales it per tensor.
fn table(tensors: &[TensorInfo], fragility: impl Fn(&TensorInfo) -> f64) -> SensitivityTable {
    let row = |tensor: &TensorInfo| {
        let mut row = SensitivityRow::new(tensor, FORMATS.len());
        for (cell, id) in row.cells.iter_mut().zip(FORMATS) {
            let asked = format::find(id).expect("registered");
            let stored = format::fitting(asked, tensor.row_len());
            let damage = fragility(tensor) * 4.0_f64.powf(-stored.bits_per_weight());
            *cell = SensitivityValue::new(damage, tensor, asked, stored)
                .map(|value| SensitivityValue { stderr: Some(damage / 10.0), ..value });
        }
        row
    };
    SensitivityTable {
        version: SensitivityTable::VERSION,
        checkpoint: "f1".to_owned(),
        metric: "kld".to_owned(),
        unit: "nats".to_owned(),
        device: None,
        label: Label::MeasuredWeightsOnly,
        imatrix: None,
        basis: None,
        diagonal_only: Vec::new(),
        formats: FORMATS.map(str::to_owned).to_vec(),
        rows: tensors.iter().filter(|tensor| sensitivity::is_default_subject(tensor)).map(row).collect(),
    }
}

/// Down projections and the first layer mind most.
fn usual(tensor: &TensorInfo) -> f64 {
    let role = if tensor.role == Role::Down { 30.0 } else { 1.0 };
    role * if tensor.layer == Some(0) { 10.0 } else { 1.0 }
}

fn planner(tensors: &[TensorInfo], plan: &Plan, options: &BudgetOptions) -> Planner {
    Planner::new_for(subject(tensors), plan, &table(tensors, usual), options).expect("plans")
}

fn propose(planner: &Planner, tensors: &[TensorInfo], limit: Limit) -> Proposal {
    planner.propose_for(subject(tensors), &[limit], &Effort::default()).expect("fits")
}

fn formats_of(proposal: &Proposal, tensors: &[TensorInfo], role: Role) -> Vec<&'static str> {
    let decisions = proposal.resolved.decisions.iter();
    decisions.filter(|one| tensors[one.tensor_index].role == role).map(|one| one.dtype.name()).collect()
}

#[test]
fn every_kind_of_limit_is_kept_and_proven() {
    let tensors = llama(4);
    let plan = Plan::of_recipe(Target::Gguf, Some("f1"), Recipe::Q4KM);
    let options = BudgetOptions { overhead_bytes: 5000, ..BudgetOptions::default() };
    let planner = planner(&tensors, &plan, &options);
    let bytes = resolve_for(&plan, subject(&tensors)).expect("resolves").padded_bytes;

    let report = propose(&planner, &tensors, Limit::TensorBytes(bytes)).report;
    assert!(report.tensor_bytes <= bytes && report.is_optimal && report.gap < 1e-9, "{report:?}");
    assert_eq!(report.file_bytes, report.tensor_bytes + 5000, "no padding at these widths");
    assert!(report.damage_stderr.is_some_and(|stderr| stderr > 0.0 && stderr < report.damage));

    let in_file = propose(&planner, &tensors, Limit::FileBytes(bytes + 5000)).report;
    assert_eq!((in_file.tensor_bytes, in_file.damage), (report.tensor_bytes, report.damage));
    let bits = propose(&planner, &tensors, Limit::BitsPerWeight(4.5)).report;
    assert!(bits.bits_per_weight <= 4.5 && bits.bits_per_weight > 4.3, "{}", bits.bits_per_weight);

    let least = propose(&planner, &tensors, Limit::Damage(report.damage)).report;
    assert!(least.damage <= report.damage && least.tensor_bytes <= report.tensor_bytes && least.is_optimal);
    assert!(least.bound <= least.tensor_bytes as f64 && least.bound > least.tensor_bytes as f64 - 1.0);
}

#[test]
fn a_proposal_beats_recipes_and_single_formats_of_the_same_size() {
    let tensors = llama(6);
    let table = table(&tensors, usual);
    for base in ["Q4_K_M", "Q3_K_M", "q4_k", "q3_k"] {
        let mut plan = Plan::new(Target::Gguf, Some("f1"));
        match Recipe::find(base).filter(|_| base.starts_with('Q')) {
            Some(recipe) => plan.set_recipe(Some(recipe)),
            None => plan.set_default_format(Some(base)).expect("a format"),
        }
        let own = resolve_for(&plan, subject(&tensors)).expect("resolves");
        let damage: f64 = own
            .decisions
            .iter()
            .filter_map(|one| table.cell(&tensors[one.tensor_index].name, one.dtype.name()))
            .map(|cell| cell.value)
            .sum();
        let proposal = propose(
            &planner(&tensors, &plan, &BudgetOptions::default()),
            &tensors,
            Limit::TensorBytes(own.padded_bytes),
        );
        assert!(proposal.report.damage < 0.95 * damage, "{base}: {} {damage}", proposal.report.damage);
        assert!(proposal.resolved.padded_bytes <= own.padded_bytes);
    }
}

#[test]
fn what_is_said_by_hand_stays_and_planned_rules_are_replaced() {
    let tensors = llama(4);
    let text = r#"# Mine.
version = 1
target = "gguf"
recipe = "Q4_K_M"

# The first layer is fragile.
[[rule]]
match = "model.layers.0.*"
protect = true

[[rule]] # a pin
role = "v"
layers = "1-2"
format = "q5_0"
"#;
    let plan = parse(text);
    let small = propose(&planner(&tensors, &plan, &BudgetOptions::default()), &tensors, Limit::BitsPerWeight(6.5));
    assert_eq!(formats_of(&small, &tensors, Role::Down)[0], "bf16");
    let values = formats_of(&small, &tensors, Role::V);
    assert_eq!((values[0], values[1], values[2]), ("bf16", "q5_0", "q5_0"));
    assert!(small.report.warnings.iter().any(|warning| warning.contains("not in the prediction")));
    assert_eq!(small.plan.recipe(), None);
    let written = small.plan.to_toml();
    for kept in ["# Mine.", "# The first layer is fragile.", "# a pin", "planned = true"] {
        assert!(written.contains(kept), "{kept}:\n{written}");
    }
    assert_eq!(parse(&written), small.plan, "\n{written}");
    let by_hand: Vec<Rule> = small.plan.rules().iter().filter(|rule| !rule.is_planned).cloned().collect();
    assert_eq!(by_hand, plan.rules());

    // Proposing again, from the proposal or from its text, forgets the first answer.
    let again = Limit::BitsPerWeight(7.5);
    let afresh = propose(&planner(&tensors, &plan, &BudgetOptions::default()), &tensors, again);
    for from in [&small.plan, &parse(&written)] {
        let second = propose(&planner(&tensors, from, &BudgetOptions::default()), &tensors, again);
        assert_eq!(second.plan.to_toml().matches("planned").count(), afresh.plan.to_toml().matches("planned").count());
        assert_eq!((&second.plan, second.report.damage), (&afresh.plan, afresh.report.damage));
        assert!(second.plan.to_toml().contains("# The first layer is fragile."));
    }
}

#[test]
fn a_planned_rule_that_is_edited_belongs_to_the_user() {
    let tensors = llama(4);
    let plan = Plan::new(Target::Gguf, Some("f1"));
    let first = propose(&planner(&tensors, &plan, &BudgetOptions::default()), &tensors, Limit::BitsPerWeight(4.0));
    let mut edited = first.plan.clone();
    let down = edited.rules().iter().find(|rule| rule.matcher.role() == Some(Role::Down)).expect("differs").clone();
    assert!(down.is_planned);
    edited.set_role_for(subject(&tensors), Role::Down, None, Treatment::format("q8_0").expect("known")).expect("sets");
    let second = propose(&planner(&tensors, &edited, &BudgetOptions::default()), &tensors, Limit::BitsPerWeight(6.0));
    assert_eq!(formats_of(&second, &tensors, Role::Down), ["q8_0"; 4]);
    assert!(second.report.bits_per_weight <= 6.0);
}

#[test]
fn tied_tensors_get_the_same_format() {
    let tensors = llama(5);
    let odd = |tensor: &TensorInfo| match (tensor.role, tensor.layer) {
        (Role::V | Role::Up, Some(layer)) => 100.0 * (layer + 1) as f64,
        _ => 1.0,
    };
    let plan = Plan::new(Target::Gguf, Some("f1"));
    let table = table(&tensors, odd);
    let mut damages = Vec::new();
    for is_tied in [false, true] {
        let ties = Ties { attention: is_tied, mlp: is_tied };
        let options = BudgetOptions { ties, ..BudgetOptions::default() };
        let planner = Planner::new_for(subject(&tensors), &plan, &table, &options).expect("plans");
        assert_eq!(planner.group_count(), if is_tied { 1 + 5 * 4 } else { 1 + 5 * 7 });
        let proposal = propose(&planner, &tensors, Limit::BitsPerWeight(4.5));
        let [q, k, v, gate, up] =
            [Role::Q, Role::K, Role::V, Role::Gate, Role::Up].map(|role| formats_of(&proposal, &tensors, role));
        assert_eq!(q == v && k == v && gate == up, is_tied);
        damages.push(proposal.report.damage);
    }
    assert!(damages[0] < damages[1], "ties cost something: {damages:?}");
    assert_eq!(Ties::of(Target::Gguf), Ties::default());
    assert!(Ties::of(Target::HuggingFace).attention);

    // One of three by hand: the others follow it.
    let pinned = parse("version = 1\n[[rule]]\nrole = \"k\"\nformat = \"q6_k\"\n");
    let options = BudgetOptions { ties: Ties { attention: true, mlp: false }, ..BudgetOptions::default() };
    let planner = Planner::new_for(subject(&tensors), &pinned, &table, &options).expect("plans");
    assert_eq!(formats_of(&propose(&planner, &tensors, Limit::BitsPerWeight(6.0)), &tensors, Role::V), ["q6_k"; 5]);
    let alone = parse("version = 1\n[[rule]]\nrole = \"k\"\nformat = \"q5_0\"\n");
    let refused = fault(Planner::new_for(subject(&tensors), &alone, &table, &options));
    assert!(refused.to_string().contains("no format in common"), "{refused}");
}

#[test]
fn an_impossible_limit_is_refused_with_the_floor_and_what_sets_it() {
    let tensors = llama(4);
    let plan = parse("version = 1\n[[rule]]\nmatch = \"model.embed_tokens.weight\"\nprotect = true\n");
    let options = BudgetOptions { overhead_bytes: 700_000, ..BudgetOptions::default() };
    let planner = planner(&tensors, &plan, &options);
    let floor = planner.floor().clone();
    assert_eq!(floor.parts.iter().map(|part| part.bytes).sum::<u64>(), floor.file_bytes);
    let at_floor = propose(&planner, &tensors, Limit::FileBytes(floor.file_bytes));
    assert_eq!(at_floor.report.file_bytes, floor.file_bytes);
    for limit in [
        Limit::FileBytes(floor.file_bytes - 1),
        Limit::TensorBytes(floor.tensor_bytes - 1),
        Limit::BitsPerWeight(floor.bits_per_weight - 0.01),
        Limit::BitsPerWeight(f64::NAN),
        Limit::FileBytes(0),
    ] {
        let text = fault(planner.propose_for(subject(&tensors), &[limit], &Effort::default())).to_string();
        assert!(text.contains("model.embed_tokens.weight, decided by hand"), "{text}");
        assert!(text.contains("28 tensors in the smallest format") && text.contains("protect less"), "{text}");
        assert_eq!(text.contains("metadata"), floor.parts.iter().any(|part| part.what.contains("metadata")));
    }
    let text = fault(planner.propose_for(subject(&tensors), &[Limit::Damage(-1.0)], &Effort::default())).to_string();
    assert!(text.contains("the least is 0"), "{text}");
}

fn timed(tensors: &[TensorInfo]) -> BudgetOptions {
    BudgetOptions { speed: Some(SpeedModel::of(rates(), tensors, None)), ..BudgetOptions::default() }
}

#[test]
fn a_limit_of_speed_is_kept_and_is_another_one_than_size() {
    let tensors = llama(4);
    let plan = Plan::new(Target::Gguf, Some("f1"));
    let planner = planner(&tensors, &plan, &timed(&tensors));
    let free = propose(&planner, &tensors, Limit::BitsPerWeight(8.6)).report;
    let speed = free.speed.expect("every format is rated");
    let faster = 1.4 * speed.decode_tokens_per_second;
    let report = propose(&planner, &tensors, Limit::DecodeSpeed(faster)).report;
    let reached = report.speed.expect("rated").decode_tokens_per_second;
    assert!(reached >= faster * (1.0 - 1e-9) && reached < 1.2 * faster && report.is_optimal, "{reached} {faster}");
    assert!(report.damage > free.damage);

    // Prompts are read fastest from large formats here, so that size and time pull apart.
    let small = propose(&planner, &tensors, Limit::BitsPerWeight(5.0)).report;
    let prefill = small.speed.expect("rated").prefill_tokens_per_second;
    let wanted = Limit::PrefillSpeed(1.001 * prefill);
    let both = [Limit::BitsPerWeight(5.0), wanted];
    let found = planner.propose_for(subject(&tensors), &both, &Effort::default()).expect("a plan keeps both").report;
    assert!(found.bits_per_weight <= 5.0, "{}", found.bits_per_weight);
    assert!(found.speed.expect("rated").prefill_tokens_per_second >= 1.001 * prefill * (1.0 - 1e-9));
    assert!(found.damage >= small.damage && found.bound <= found.damage);
    assert_eq!(found.limits, both);

    let request = Limit::Request { seconds: 0.999 * (100.0 / prefill), prompt_tokens: 100, output_tokens: 0 };
    let quick = propose(&planner, &tensors, request).report.speed.expect("rated");
    assert!(quick.request_secs(100, 0) <= 0.999 * (100.0 / prefill) * (1.0 + 1e-9));
}

#[test]
fn a_speed_that_cannot_be_reached_or_predicted_is_refused_with_the_reason() {
    let tensors = llama(3);
    let plan = parse("version = 1\n[[rule]]\nmatch = \"model.embed_tokens.weight\"\nprotect = true\n");
    let refused = |options: &BudgetOptions, limits: &[Limit]| {
        let planner = planner(&tensors, &plan, options);
        fault(planner.propose_for(subject(&tensors), limits, &Effort::default())).to_string()
    };
    let text = refused(&BudgetOptions::default(), &[Limit::DecodeSpeed(10.0)]);
    assert!(text.contains("bench --rates"), "{text}");
    for speed in [1e9, f64::NAN, f64::INFINITY] {
        let text = refused(&timed(&tensors), &[Limit::DecodeSpeed(speed)]);
        assert!(text.contains("the most is") && text.contains("fastest format"), "{text}");
    }
    let text = refused(&timed(&tensors), &[Limit::BitsPerWeight(9.0), Limit::Damage(1e-12)]);
    assert!(text.contains("the least damage there is"), "{text}");
    let text = refused(&timed(&tensors), &[Limit::Memory { bytes: 100, cache_bytes: 200 }]);
    assert!(text.contains("KV cache") && text.contains("shorter context"), "{text}");
    assert!(refused(&timed(&tensors), &[]).contains("no limit"));
}

#[test]
fn what_was_not_measured_is_not_chosen_and_said() {
    let tensors = llama(3);
    let mut table = table(&tensors, usual);
    let q2 = table.column("q2_k").expect("measured");
    table.rows[1].cells[q2] = None;
    table.rows.retain(|row| row.role != Role::O);
    table.checkpoint = "another".to_owned();
    let plan = Plan::of_recipe(Target::Gguf, Some("f1"), Recipe::Q4KS);
    let before = resolve_for(&plan, subject(&tensors)).expect("resolves");
    let planner = Planner::new_for(subject(&tensors), &plan, &table, &BudgetOptions::default()).expect("plans");
    let proposal = propose(&planner, &tensors, Limit::TensorBytes(planner.floor().tensor_bytes));
    assert_eq!(formats_of(&proposal, &tensors, Role::Q), ["q3_k", "q2_k", "q2_k"]);
    let outputs = before.decisions.iter().filter(|one| tensors[one.tensor_index].role == Role::O);
    let outputs: Vec<&str> = outputs.map(|one| one.dtype.name()).collect();
    assert_eq!(formats_of(&proposal, &tensors, Role::O), outputs, "as the recipe had them");
    let warnings = proposal.report.warnings.join("\n");
    assert!(
        warnings.contains("another checkpoint") && warnings.contains("self_attn.q_proj.weight in q2_k"),
        "{warnings}"
    );
    assert!(warnings.contains("3 tensors stay in formats that were not measured"), "{warnings}");

    table.rows.clear();
    let refused = fault(Planner::new_for(subject(&tensors), &plan, &table, &BudgetOptions::default()));
    assert!(refused.to_string().contains("no tensor to choose"), "{refused}");
}

#[test]
fn a_folder_of_plain_floats_is_planned_too_and_norms_stay() {
    let tensors = llama(2);
    let plan = Plan::new(Target::HuggingFace, Some("f1"));
    let mut table = table(&tensors, usual);
    let f32 = format::find("f32").expect("registered");
    for row in &mut table.rows {
        let tensor = tensors.iter().find(|tensor| tensor.name == row.name).expect("its own");
        row.cells = vec![SensitivityValue::new(0.0, tensor, f32, f32)];
    }
    table.formats = vec!["f32".to_owned()];
    let options = BudgetOptions { ties: Ties::of(Target::HuggingFace), ..BudgetOptions::default() };
    let planner = Planner::new_for(subject(&tensors), &plan, &table, &options).expect("plans");
    let proposal = propose(&planner, &tensors, Limit::BitsPerWeight(16.0));
    assert!(proposal.resolved.decisions.iter().all(Decision::is_copy));
}

#[test]
fn where_one_format_is_all_there_is_the_best_one_is_found_and_what_it_spares() {
    let tensors = llama(3);
    let formats = ["int8_channel", "int4_g128", "int4_g32"];
    let mut table = table(&tensors, usual);
    table.formats = formats.map(str::to_owned).to_vec();
    for row in &mut table.rows {
        let tensor = tensors.iter().find(|tensor| tensor.name == row.name).expect("its own");
        let cell = |id: &str| {
            let format = format::find(id).expect("registered");
            let damage = usual(tensor) * 4.0_f64.powf(-format.bits_per_weight());
            SensitivityValue::new(damage, tensor, format, format)
        };
        row.cells = formats.iter().map(|id| cell(id)).collect();
    }
    let text = "version = 1\ntarget = \"gptq\"\n[default]\nformat = \"int8_g128\"\n";
    let plan = parse(text);
    let options = BudgetOptions { ties: Ties::of(Target::Gptq), ..BudgetOptions::default() };
    let planner = Planner::new_for(subject(&tensors), &plan, &table, &options).expect("plans");
    let mut damages = Vec::new();
    for bits in [14.0, 11.0, 8.0] {
        let proposal = propose(&planner, &tensors, Limit::BitsPerWeight(bits));
        let mut schemes: Vec<&str> = proposal.resolved.decisions.iter().map(|one| one.dtype.name()).collect();
        schemes.retain(|name| name.starts_with("int"));
        schemes.sort_unstable();
        schemes.dedup();
        assert!(schemes.len() <= 1 && proposal.report.bits_per_weight <= bits, "{bits} {schemes:?}");
        damages.push(proposal.report.damage);
        // Proposing again from the answer is no other question.
        let again = Planner::new_for(subject(&tensors), &proposal.plan, &table, &options).expect("plans");
        assert_eq!(propose(&again, &tensors, Limit::BitsPerWeight(bits)).report.damage, proposal.report.damage);
    }
    assert!(damages[0] <= damages[1] && damages[1] <= damages[2], "{damages:?}");
    let curve = planner.frontier();
    assert!(curve.windows(2).all(|pair| pair[0].cost < pair[1].cost && pair[0].damage > pair[1].damage));
}

#[test]
fn the_rules_of_a_regular_answer_are_few() {
    let tensors = llama(32);
    let plan = Plan::new(Target::Gguf, Some("f1"));
    let proposal = propose(&planner(&tensors, &plan, &BudgetOptions::default()), &tensors, Limit::BitsPerWeight(4.6));
    assert!(proposal.plan.rules().len() <= 24, "\n{}", proposal.plan.to_toml());
    assert!(proposal.plan.rules().iter().all(|rule| rule.matcher.glob().is_none()), "\n{}", proposal.plan.to_toml());
    assert!(proposal.resolved.warnings.is_empty(), "{:?}", proposal.resolved.warnings);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_choice_comes_out_of_its_rules_as_it_went_in(seed in prop::collection::vec(0_usize..6, 29)) {
        let tensors = llama(4);
        let planner = planner(&tensors, &Plan::new(Target::Gguf, None), &BudgetOptions::default());
        let chosen: Vec<Offer> = planner
            .groups
            .iter()
            .zip(&seed)
            .map(|(group, &pick)| group.offers[pick % group.offers.len()])
            .collect();
        let (plan, resolved) = planner.plan_of(subject(&tensors), &chosen).expect("rules");
        for (group, offer) in planner.groups.iter().zip(&chosen) {
            for &index in &group.tensors {
                prop_assert_eq!(resolved.decisions[index].dtype.name(), offer.format);
            }
        }
        prop_assert_eq!(&parse(&plan.to_toml()), &plan);
    }

    #[test]
    fn more_room_is_never_worse(bits in 2.7_f64..12.0, more in 0.0_f64..2.0) {
        let tensors = llama(3);
        let planner = planner(&tensors, &Plan::new(Target::Gguf, None), &BudgetOptions::default());
        let damage = |bits| propose(&planner, &tensors, Limit::BitsPerWeight(bits)).report.damage;
        prop_assert!(damage(bits + more) <= damage(bits));
    }
}

#[test]
fn a_recipe_takes_the_place_of_what_was_planned() {
    let tensors = llama(4);
    let plan = parse("version = 1\n\n# Mine.\n[[rule]]\nrole = \"v\"\nformat = \"q8_0\"\n");
    let options = BudgetOptions::default();
    let mut planned = propose(&planner(&tensors, &plan, &options), &tensors, Limit::BitsPerWeight(4.5)).plan;
    assert!(planned.rules().len() > 1);
    planned.set_recipe(Some(Recipe::Q4KM));
    assert_eq!(planned.rules(), plan.rules());
    assert_eq!(parse(&planned.to_toml()), planned);
    assert!(planned.to_toml().contains("# Mine.") && !planned.to_toml().contains("planned"));
}

#[test]
#[ignore = "a benchmark: prints times"]
fn times_of_a_move_of_the_slider_at_eighty_layers() {
    let tensors = llama(80);
    let table = table(&tensors, |tensor| usual(tensor) * (1.0 + (tensor.name.len() * 7 % 13) as f64));
    let mut plan = Plan::of_recipe(Target::Gguf, Some("f1"), Recipe::Q4KM);
    for percent in [60, 50, 45, 40, 35, 30] {
        let started = std::time::Instant::now();
        let planner = Planner::new_for(subject(&tensors), &plan, &table, &BudgetOptions::default()).expect("plans");
        let prepared = started.elapsed();
        let bits = 16.0 * f64::from(percent) / 100.0;
        let proposal = propose(&planner, &tensors, Limit::BitsPerWeight(bits));
        println!(
            "{} tensors, {bits:.1} bpw: prepare {prepared:?}, in all {:?}, {} rules, optimal {}",
            tensors.len(),
            started.elapsed(),
            proposal.plan.rules().len(),
            proposal.report.is_optimal
        );
        plan = proposal.plan;
    }
}
