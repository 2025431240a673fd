//! llama.cpp's `--tensor-type-file`: which type each tensor gets, by regular expressions on GGUF names.
//!
//! The file is words separated by white space, each `PATTERN=TYPE` (`tools/quantize/quantize.cpp`,
//! llama.cpp, MIT). There, patterns are lower-cased, searched for anywhere in a tensor's name, and
//! the first that is found wins; a plan's globs are on Hugging Face's names and the last one wins.
//! What no pattern finds is left to the recipe, which does not count the tensors given by hand:
//! [`read`] gives the same types as llama-quantize does, that effect included.

use std::collections::BTreeMap;
use std::path::Path;

use regex::Regex;

use super::recipe::{ModelShape, choose_around};
use super::resolve::{resolve_for, shape_of};
use super::{Choice, Plan, ResolvedPlan, Subject, Treatment, nearest};
use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::error::{Error, Fault, Result, Stage};
use crate::format::{self, Dtype};
use crate::target::gguf_names;

/// Longer files list no tensors' types.
const MOST_BYTES: u64 = 16 << 20;

/// One word of the file.
#[derive(Clone, Debug)]
struct Entry {
    pattern: Regex,
    format: &'static str,
}

/// Adds to `plan` what the file at `path` says of the tensors of `checkpoint`; answers how many it names.
///
/// # Errors
/// A file that cannot be read, a word that is no `PATTERN=TYPE`, a pattern or type that does not
/// exist here, or a file that names no tensor: with the place and the remedy. The plan is then unchanged.
pub fn read(plan: &mut Plan, checkpoint: &Checkpoint, path: &Path) -> Result<usize> {
    let bytes = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
    if bytes > MOST_BYTES {
        let fault = Fault::new(Stage::Plan, format!("{bytes} bytes are too many for a list of tensor types"));
        return Err(fault.fix("choose another file").file(path).into());
    }
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let named = apply(plan, Subject::of(checkpoint), &text).map_err(|err| match err {
        Error::Fault(fault) => (*fault).file(path).into(),
        other => other,
    })?;
    Ok(named)
}

/// As [`read`], from the file's text.
pub(super) fn apply(plan: &mut Plan, subject: Subject<'_>, text: &str) -> Result<usize> {
    let entries = parse(text)?;
    let by_hand: Vec<Option<&'static str>> = subject
        .tensors
        .iter()
        .map(|tensor| {
            let name = gguf_name(tensor);
            let found = entries.iter().find(|entry| entry.pattern.is_match(&name))?;
            // llama-quantize asks for a type by hand only where it quantizes at all.
            shape_of(tensor).may_quantize().then_some(found.format)
        })
        .collect();
    let named = by_hand.iter().flatten().count();
    if named == 0 {
        return Err(Fault::new(Stage::Plan, "no pattern finds a tensor of this checkpoint")
            .fix("patterns are searched for in GGUF's names, such as blk.0.attn_q.weight")
            .into());
    }
    let mut next = plan.clone();
    set(&mut next, subject, &by_hand)?;
    if let Some(recipe) = plan.recipe {
        let shapes: Vec<_> = subject.tensors.iter().map(shape_of).collect();
        let is_by_hand = |index: usize| by_hand[index].is_some();
        let theirs = choose_around(recipe, ModelShape::of(subject), plan.calibration.is_some(), &shapes, &is_by_hand);
        let resolved = resolve_for(&next, subject)?;
        // Only where the recipe itself decides: other rules of the plan stand.
        let shifted: Vec<Option<&'static str>> = resolved
            .decisions
            .iter()
            .zip(theirs)
            .map(|(decision, theirs)| {
                let is_recipes = matches!(decision.why, super::Why::Recipe(_));
                theirs.filter(|id| is_recipes && decision.requested != Choice::Format(id))
            })
            .collect();
        set(&mut next, subject, &shifted)?;
    }
    *plan = next;
    Ok(named)
}

/// One rule per tensor that has a format in the list.
fn set(plan: &mut Plan, subject: Subject<'_>, formats: &[Option<&'static str>]) -> Result<()> {
    let mut names: BTreeMap<&'static str, Vec<&str>> = BTreeMap::new();
    for (tensor, format) in subject.tensors.iter().zip(formats) {
        if let Some(id) = format {
            names.entry(id).or_default().push(&tensor.name);
        }
    }
    names.into_iter().try_for_each(|(id, names)| plan.set_exact(subject, &names, Treatment::format(id)?))
}

fn parse(text: &str) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for word in line.split_ascii_whitespace() {
            let fault = |cause: String| Fault::new(Stage::Plan, cause).at(format!("line {}", index + 1));
            let Some((pattern, id)) =
                word.split_once('=').filter(|(pattern, id)| !pattern.is_empty() && !id.is_empty())
            else {
                return Err(fault(format!("\"{word}\" is no PATTERN=TYPE")).fix("write it as attn_v=q6_k").into());
            };
            let pattern = pattern.to_ascii_lowercase();
            let pattern = Regex::new(&pattern).map_err(|err| {
                let reason = err.to_string();
                let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
                fault(format!("the pattern \"{pattern}\" cannot be read: {reason}"))
                    .fix("neither look-around nor back references are understood here: write it without them")
            })?;
            let Some(format) = format::find(id).filter(|format| format.dtype().ggml_id().is_some()) else {
                let known: Vec<&str> = super::Target::Gguf.formats().collect();
                return Err(fault(format!("\"{id}\" is no type that can be written"))
                    .fix(nearest::advice(id, &known))
                    .into());
            };
            entries.push(Entry { pattern, format: format.id() });
        }
    }
    Ok(entries)
}

/// The tensor's name in a GGUF, as llama-quantize would see it.
fn gguf_name(tensor: &TensorInfo) -> String {
    gguf_names::to_gguf(&tensor.name).unwrap_or_else(|| tensor.stored_name.clone())
}

/// The file that makes llama-quantize choose the types of `resolved`, whatever recipe it is given,
/// as long as that quantizes: one exact name a word, each matrix that it may quantize. Where the plan prunes,
/// the names are those of what is left: layers after one that goes have lower numbers.
pub fn write(resolved: &ResolvedPlan, checkpoint: &Checkpoint) -> String {
    let left = match &resolved.structure {
        Some(structure) => structure.tensors(&checkpoint.tensors),
        None => checkpoint.tensors.iter().cloned().map(Some).collect(),
    };
    let mut text = String::new();
    for decision in &resolved.decisions {
        let Some(tensor) = left.get(decision.tensor_index).and_then(Option::as_ref) else { continue };
        if shape_of(tensor).may_quantize() && !matches!(decision.dtype, Dtype::Unknown(_)) {
            text.push_str(&format!("^{}$={}\n", escaped(&gguf_name(tensor)), decision.dtype.name()));
        }
    }
    text
}

/// A pattern that finds nothing but `name`, in ECMAScript's grammar and in ours. A character that
/// the file's form cannot carry (capitals are lower-cased, words end at white space and `=`)
/// becomes a dot, which stands for any.
fn escaped(name: &str) -> String {
    let mut pattern = String::with_capacity(name.len() + 8);
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' => pattern.push(char::from(byte)),
            b'.' | b'+' | b'*' | b'?' | b'(' | b')' | b'[' | b']' | b'{' | b'}' | b'^' | b'$' | b'|' | b'\\' => {
                pattern.push('\\');
                pattern.push(char::from(byte));
            }
            _ => pattern.push('.'),
        }
    }
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Recipe, Target, resolve};

    fn demo() -> Checkpoint {
        Checkpoint::open(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/demo"))).expect("opens")
    }

    fn plan(recipe: Recipe) -> Plan {
        Plan::of_recipe(Target::Gguf, None, recipe)
    }

    fn types(plan: &Plan, checkpoint: &Checkpoint) -> Vec<Dtype> {
        resolve(plan, checkpoint).expect("resolves").decisions.iter().map(|decision| decision.dtype).collect()
    }

    #[test]
    fn a_plan_written_and_read_again_chooses_the_same_types() {
        let checkpoint = demo();
        let mut first = plan(Recipe::Q4KM);
        let choice = |id: &str| Treatment::format(id).expect("known");
        first.set_glob(&checkpoint, "model.layers.3.*", Treatment::Protect).expect("legal");
        first.set_glob(&checkpoint, "*.k_proj.*", choice("q5_0")).expect("legal");
        first.set_format(&checkpoint, &["model.embed_tokens.weight"], "q8_0").expect("legal");
        let text = write(&resolve(&first, &checkpoint).expect("resolves"), &checkpoint);
        assert!(text.contains("^blk\\.0\\.attn_k\\.weight$=q5_0\n"), "{text}");
        assert!(text.contains("^blk\\.3\\.ffn_down\\.weight$=bf16\n"), "{text}");
        assert!(!text.contains("norm"), "{text}");
        for recipe in [Recipe::Q4KM, Recipe::Q2K, Recipe::Q8_0] {
            let mut again = plan(recipe);
            assert_eq!(apply(&mut again, Subject::of(&checkpoint), &text).expect("reads"), 43);
            assert_eq!(types(&again, &checkpoint), types(&first, &checkpoint), "{recipe}");
        }
    }

    #[test]
    fn layers_after_one_that_goes_are_written_with_their_new_numbers() {
        let checkpoint = demo();
        let mut plan = plan(Recipe::Q8_0);
        plan.set_format(&checkpoint, &["model.layers.4.mlp.up_proj.weight"], "q4_k").expect("legal");
        let mut removal = crate::checkpoint::Removal { layers: [1, 3].into(), ..Default::default() };
        removal.layer_mut(4).kv_groups.insert(0);
        plan.set_removal(&checkpoint, removal).expect("legal");
        let resolved = resolve(&plan, &checkpoint).expect("resolves");
        let text = write(&resolved, &checkpoint);
        assert!(text.contains("^blk\\.2\\.ffn_up\\.weight$=q4_k\n"), "layer 4 is the third now: {text}");
        assert!(text.contains("^blk\\.3\\.attn_q\\.weight$=q8_0\n") && !text.contains("blk\\.4"), "{text}");
        assert_eq!(text.lines().count(), 4 * 7 + 1, "four layers and the embedding");
        // It is the file for what the pass writes: read for that, it gives just the types that were chosen.
        let structure = resolved.structure.as_deref().expect("prunes");
        let left = checkpoint.pruned(structure, Vec::new());
        let mut again = Plan::of_recipe(Target::Gguf, None, Recipe::Q4KM);
        apply(&mut again, Subject::of(&left), &text).expect("reads");
        let staying = resolved.decisions.iter().filter(|decision| !decision.is_removed());
        assert_eq!(types(&again, &left), staying.map(|decision| decision.dtype).collect::<Vec<_>>());
    }

    #[test]
    fn the_first_pattern_wins_and_names_are_found_anywhere_in_any_case() {
        let checkpoint = demo();
        let mut plan = plan(Recipe::Q8_0);
        let text = "ATTN_V=Q6_K attn_=q4_0\n\tblk\\.[01]\\.ffn_(up|gate)=f16";
        assert_eq!(apply(&mut plan, Subject::of(&checkpoint), text).expect("reads"), 6 * 4 + 2 * 2);
        let resolved = resolve(&plan, &checkpoint).expect("resolves");
        let dtype = |name: &str| {
            let index = checkpoint.tensors.iter().position(|tensor| tensor.name == name).expect("a tensor");
            resolved.decisions[index].dtype
        };
        assert_eq!(dtype("model.layers.5.self_attn.v_proj.weight"), Dtype::Q6K);
        assert_eq!(dtype("model.layers.5.self_attn.o_proj.weight"), Dtype::Q4_0);
        assert_eq!(dtype("model.layers.1.mlp.gate_proj.weight"), Dtype::F16);
        assert_eq!(dtype("model.layers.2.mlp.gate_proj.weight"), Dtype::Q8_0);
        assert_eq!(dtype("model.layers.2.input_layernorm.weight"), Dtype::F32, "found by no quantizer");
    }

    #[test]
    fn what_the_recipe_no_longer_counts_shifts_to_later_layers() {
        let checkpoint = demo();
        let mut plan = plan(Recipe::Q3KM);
        // Q3_K_M gives the first two value projections more bits: those that it still counts.
        apply(&mut plan, Subject::of(&checkpoint), "blk.[01].attn_v=q8_0").expect("reads");
        let resolved = resolve(&plan, &checkpoint).expect("resolves");
        let values: Vec<&str> = (0..6)
            .map(|layer| {
                let name = format!("model.layers.{layer}.self_attn.v_proj.weight");
                let index = checkpoint.tensors.iter().position(|tensor| tensor.name == name).expect("a tensor");
                resolved.decisions[index].dtype.name()
            })
            .collect();
        assert_eq!(values, ["q8_0", "q8_0", "q5_k", "q5_k", "q4_k", "q4_k"]);
    }

    #[test]
    fn mistakes_are_told_with_their_line_and_change_nothing() {
        let checkpoint = demo();
        for (text, place, word) in [
            ("attn_v=q6_k\nattn_k", "line 2", "PATTERN=TYPE"),
            ("=q6_k", "line 1", "PATTERN=TYPE"),
            ("attn_v=", "line 1", "PATTERN=TYPE"),
            ("attn_v=q6k", "line 1", "q6_k"),
            ("\n\nattn_(v=q6_k", "line 3", "unclosed"),
            ("attn_(?!v)=q6_k", "line 1", "look-around"),
        ] {
            let mut changed = plan(Recipe::Q4KM);
            let message = apply(&mut changed, Subject::of(&checkpoint), text).expect_err("refused").to_string();
            assert!(message.contains(place) && message.contains(word), "{text}: {message}");
            assert_eq!(changed, plan(Recipe::Q4KM));
        }
        let mut nothing = plan(Recipe::Q4KM);
        let message = apply(&mut nothing, Subject::of(&checkpoint), "ssm_conv=q6_k").expect_err("refused").to_string();
        assert!(message.contains("no pattern finds"), "{message}");
    }

    #[test]
    fn a_name_that_the_form_cannot_carry_is_still_found() {
        let pattern = escaped("V.head=A b(1)");
        assert_eq!(pattern, ".\\.head...b\\(1\\)");
        assert!(Regex::new(&format!("^{pattern}$")).expect("legal").is_match("V.head=A b(1)"));
    }
}
