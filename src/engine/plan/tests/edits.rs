//! Edits: few rules, comments kept, and a text that says what the plan says.

use proptest::prelude::*;

use super::super::resolve::resolve_for;
use super::super::*;
use super::{COMMENTED, decided, fault, llama, parse, subject, tensor};
use crate::checkpoint::Role;
use crate::format::Dtype;

#[test]
fn comments_of_untouched_rules_survive_edits_and_the_text_says_what_the_plan_says() {
    let tensors = llama(4);
    let mut plan = parse(COMMENTED);
    plan.set_exact(subject(&tensors), &["model.layers.3.mlp.down_proj.weight"], Treatment::format("q8_0").expect("id"))
        .expect("edit");
    plan.set_default_format(Some("Q5_K")).expect("edit");
    plan.set_target(Target::HuggingFace);
    let text = plan.to_toml();
    for line in COMMENTED.lines().filter(|line| line.contains('#')) {
        let comment = &line[line.find('#').expect("filtered")..];
        assert!(text.contains(comment), "{comment} is lost in\n{text}");
    }
    assert!(text.contains("format = \"q5_k\""), "{text}");
    assert!(text.contains("match = \"model.layers.3.mlp.down_proj.weight\"\nformat = \"q8_0\""), "{text}");
    assert_eq!(parse(&text), plan);
}

#[test]
fn a_rule_that_changes_from_format_to_protection_keeps_its_comments() {
    let tensors = llama(2);
    let name = "model.layers.1.mlp.up_proj.weight";
    let text = format!("version = 1\n\n[[rule]]\nmatch = \"{name}\"\n# why\nformat = \"q6_k\" # how\n");
    let mut plan = parse(&text);
    plan.set_exact(subject(&tensors), &[name], Treatment::Protect).expect("edit");
    assert_eq!(plan.to_toml(), text.replace("format = \"q6_k\"", "protect = true"));
    plan.set_exact(subject(&tensors), &[name], Treatment::format("q6_k").expect("id")).expect("edit");
    assert_eq!(plan.to_toml(), text);
}

#[test]
fn choosing_again_changes_the_rule_and_adds_none() {
    let tensors = llama(4);
    let name = ["model.layers.1.mlp.up_proj.weight"];
    let mut plan = Plan::new(Target::Gguf, None);
    for id in ["q4_k", "q6_k", "q8_0"] {
        plan.set_exact(subject(&tensors), &name, Treatment::format(id).expect("id")).expect("edit");
    }
    assert_eq!(plan.rules().len(), 1);
    // A later rule about the same tensor: the choice has to move behind it.
    plan.set_role_for(subject(&tensors), Role::Up, Some(&[1, 2]), Treatment::Protect).expect("edit");
    assert_eq!(plan.rules().len(), 1, "the role's rule covers the tensor's");
    plan.set_exact(subject(&tensors), &name, Treatment::format("q4_k").expect("id")).expect("edit");
    plan.set_role_for(subject(&tensors), Role::Up, Some(&[1]), Treatment::format("q2_k").expect("id")).expect("edit");
    assert_eq!(plan.rules().len(), 2, "{}", plan.to_toml());
    plan.set_role_for(subject(&tensors), Role::Up, Some(&[1, 2]), Treatment::format("q3_k").expect("id"))
        .expect("edit");
    assert_eq!(plan.rules().len(), 1, "{}", plan.to_toml());
    assert_eq!(parse(&plan.to_toml()), plan);
}

#[test]
fn a_choice_moves_behind_later_rules_with_its_comment() {
    let tensors = llama(2);
    let name = "model.layers.1.mlp.up_proj.weight";
    let mut plan = parse(&format!(
        "version = 1\n\n# mine\n[[rule]]\nmatch = \"{name}\"\nformat = \"q6_k\"\n\n[[rule]]\nrole = \"up\"\nprotect = true\n"
    ));
    plan.set_exact(subject(&tensors), &[name], Treatment::format("q8_0").expect("id")).expect("edit");
    assert_eq!(
        plan.to_toml(),
        format!(
            "version = 1\n\n[[rule]]\nrole = \"up\"\nprotect = true\n\n# mine\n[[rule]]\nmatch = \"{name}\"\nformat = \"q8_0\"\n"
        )
    );
    let resolved = resolve_for(&plan, subject(&tensors)).expect("resolves");
    assert_eq!(decided(&resolved, &tensors, "1.mlp.up_proj").dtype, Dtype::Q8_0);
}

#[test]
fn lifting_protection_gives_back_what_the_tensor_would_be_without() {
    let tensors = llama(6);
    let name = "model.layers.2.mlp.down_proj.weight";
    let mut plan = Plan::of_recipe(Target::Gguf, None, Recipe::Q4KM);
    plan.set_exact(subject(&tensors), &[name], Treatment::Protect).expect("edit");
    plan.unprotect_for(subject(&tensors), &[name]).expect("edit");
    assert_eq!(plan.rules(), []);
    plan.set_role_for(subject(&tensors), Role::Down, None, Treatment::Protect).expect("edit");
    plan.unprotect_for(subject(&tensors), &[name]).expect("edit");
    let resolved = resolve_for(&plan, subject(&tensors)).expect("resolves");
    assert_eq!(decided(&resolved, &tensors, "2.mlp.down_proj").dtype, Dtype::Q6K, "as the recipe says");
    assert_eq!(decided(&resolved, &tensors, "1.mlp.down_proj").dtype, Dtype::Bf16, "still protected");
    assert_eq!(parse(&plan.to_toml()), plan);
}

#[test]
fn clearing_removes_rules_about_nothing_else() {
    let tensors = llama(2);
    let mut plan = parse(COMMENTED.replace("1-2", "1").as_str());
    let names = ["model.layers.1.mlp.down_proj.weight", "model.layers.0.mlp.up_proj.weight"];
    plan.clear_for(subject(&tensors), &names).expect("edit");
    assert_eq!(plan.rules().len(), 1, "the rule on layer 0 is about more");
    let fault = fault(plan.clear_for(subject(&tensors), &["model.norm.weigth"]));
    assert!(fault.remedy.as_deref().is_some_and(|text| text.contains("model.norm.weight")), "{fault}");
}

#[test]
fn recipe_and_default_replace_each_other() {
    let mut plan = Plan::of_recipe(Target::Gguf, None, Recipe::Q4KM);
    plan.set_default_format(Some("Q8_0")).expect("edit");
    assert_eq!((plan.recipe(), plan.default_format()), (None, Some("q8_0")));
    assert_eq!(parse(&plan.to_toml()), plan);
    plan.set_recipe(Some(Recipe::Q2K));
    assert_eq!((plan.recipe(), plan.default_format()), (Some(Recipe::Q2K), None));
    assert_eq!(parse(&plan.to_toml()), plan);
    plan.set_recipe(None);
    assert_eq!(parse(&plan.to_toml()), Plan::new(Target::Gguf, None));
    assert!(plan.set_default_format(Some("q9")).is_err());
}

#[test]
fn a_glob_protects_all_that_it_matches_and_one_that_matches_nothing_is_refused() {
    let tensors = llama(2);
    let mut plan = Plan::of_recipe(Target::Gguf, None, Recipe::Q4KM);
    plan.set_glob_for(subject(&tensors), "*.down_proj.weight", Treatment::Protect).expect("edit");
    let resolved = resolve_for(&plan, subject(&tensors)).expect("resolves");
    for name in ["0.mlp.down_proj", "1.mlp.down_proj"] {
        assert_eq!(decided(&resolved, &tensors, name).why, Why::Protected(0));
    }
    assert_eq!(parse(&plan.to_toml()), plan);
    let before = plan.clone();
    for bad in ["*.donw_proj.weight", "a["] {
        plan.set_glob_for(subject(&tensors), bad, Treatment::Protect).expect_err("refused");
    }
    assert_eq!(plan, before);
}

#[test]
fn a_name_with_a_globs_special_characters_is_matched_as_it_is() {
    let tensors = [tensor("a[0]*.weight", &[2, 64], Dtype::F32), tensor("a0b.weight", &[2, 64], Dtype::F32)];
    let mut plan = Plan::new(Target::Gguf, None);
    plan.set_exact(subject(&tensors), &["a[0]*.weight"], Treatment::format("q8_0").expect("id")).expect("edit");
    let plan = parse(&plan.to_toml());
    let resolved = resolve_for(&plan, subject(&tensors)).expect("resolves");
    let dtypes: Vec<Dtype> = resolved.decisions.iter().map(|decision| decision.dtype).collect();
    assert_eq!(dtypes, [Dtype::Q8_0, Dtype::F32]);
}

/// One random edit.
#[derive(Clone, Debug)]
enum Edit {
    Exact(usize, usize),
    Protect(usize),
    Unprotect(usize),
    Clear(Vec<usize>),
    Role(usize, Option<Vec<usize>>, usize),
    Recipe(Option<usize>),
    Default(Option<usize>),
    Remove(usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        4 => (0_usize..26, 0_usize..13).prop_map(|(tensor, format)| Edit::Exact(tensor, format)),
        2 => (0_usize..26).prop_map(Edit::Protect),
        1 => (0_usize..26).prop_map(Edit::Unprotect),
        1 => prop::collection::vec(0_usize..26, 1..4).prop_map(Edit::Clear),
        3 => (1_usize..8, prop::option::of(prop::collection::vec(0_usize..3, 1..3)), 0_usize..13)
            .prop_map(|(role, layers, format)| Edit::Role(role, layers, format)),
        1 => prop::option::of(0_usize..17).prop_map(Edit::Recipe),
        1 => prop::option::of(0_usize..13).prop_map(Edit::Default),
        1 => (0_usize..4).prop_map(Edit::Remove),
    ]
}

proptest! {
    #[test]
    fn after_any_edits_the_text_says_what_the_plan_says(edits in prop::collection::vec(edit(), 1..25)) {
        let tensors = llama(3);
        let subject = subject(&tensors);
        let format = |index: usize| crate::format::all()[index].id();
        let treatment = |index| Treatment::format(format(index)).expect("id");
        let mut plan = parse(COMMENTED);
        for edit in edits {
            let mut now = None;
            match edit {
                Edit::Exact(tensor, format) => {
                    plan.set_exact(subject, &[&tensors[tensor].name], treatment(format)).expect("edit");
                    now = Some((tensor, treatment(format)));
                }
                Edit::Protect(tensor) => {
                    plan.set_exact(subject, &[&tensors[tensor].name], Treatment::Protect).expect("edit");
                    now = Some((tensor, Treatment::Protect));
                }
                Edit::Unprotect(tensor) => {
                    plan.unprotect_for(subject, &[&tensors[tensor].name]).expect("edit");
                }
                Edit::Clear(named) => {
                    let names: Vec<_> = named.iter().map(|&tensor| &tensors[tensor].name).collect();
                    plan.clear_for(subject, &names).expect("edit");
                }
                Edit::Role(role, layers, format) => {
                    plan.set_role_for(subject, Role::ALL[role], layers.as_deref(), treatment(format)).expect("edit");
                }
                Edit::Recipe(recipe) => plan.set_recipe(recipe.and_then(|index| Recipe::all().nth(index))),
                Edit::Default(index) => plan.set_default_format(index.map(format)).expect("edit"),
                Edit::Remove(rule) => plan.remove_rule(rule),
            }
            prop_assert_eq!(&parse(&plan.to_toml()), &plan, "{}", plan.to_toml());
            let resolved = resolve_for(&plan, subject).expect("resolves");
            if let Some((tensor, treatment)) = now {
                let requested = match treatment {
                    Treatment::Protect => Choice::Keep,
                    Treatment::Format { format, .. } => Choice::Format(format),
                };
                prop_assert_eq!(resolved.decisions[tensor].requested, requested, "{}", plan.to_toml());
            }
        }
        // One rule a tensor, one for each role and set of layers, and the two that were there.
        prop_assert!(plan.rules().len() <= 26 + 7 * 8 + 2);
    }
}

#[test]
fn where_searches_run_is_part_of_the_plan() {
    let mut plan =
        parse("version = 1 # the first\nsearch = \"device\"\n\n[[rule]]\nrole = \"down\"\nformat = \"q6_k\"\n");
    assert_eq!(plan.search(), Search::Device);
    plan.set_search(Search::Cpu);
    assert!(!plan.to_toml().contains("search") && plan.to_toml().contains("# the first"), "{}", plan.to_toml());
    plan.set_search(Search::Device);
    let again = parse(&plan.to_toml());
    assert!(again == plan && again.search() == Search::Device, "{}", plan.to_toml());
    let refused = Plan::parse("version = 1\nsearch = \"gpu\"\n", None).expect_err("no such place").to_string();
    assert!(refused.contains("there is no search \"gpu\"") && refused.contains("device"), "{refused}");
}
