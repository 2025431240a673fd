//! Whether what a plan makes fits where models run, known before anything is written.

use super::{Plan, ResolvedPlan};
use crate::checkpoint::Checkpoint;
use crate::model::fit::{Fit, ModelPlace, USUAL_CONTEXT};

/// How the result of a plan fits a place: its matrices as the place holds them, and keys and values at the
/// context of the plan's limit of memory, else of [`USUAL_CONTEXT`] tokens. None where the checkpoint is no network
/// that runs here.
pub fn fit_on(checkpoint: &Checkpoint, plan: &Plan, resolved: &ResolvedPlan, place: &ModelPlace) -> Option<Fit> {
    let config = resolved.structure.as_ref().map(|left| &left.config).or(checkpoint.config.as_ref())?;
    let context = plan.constraints().max_memory.map_or(USUAL_CONTEXT, |limit| limit.context);
    let is_matrix = |index: usize| checkpoint.tensors.get(index).is_some_and(|tensor| tensor.shape.len() == 2);
    let matrices = resolved.decisions.iter().filter(|own| !own.is_removed() && is_matrix(own.tensor_index));
    let held = matrices.map(|own| place.held_bytes(own.dtype, own.new_weight_count, own.new_bytes));
    let weight_bytes = held.fold(0, u64::saturating_add);
    Some(Fit::new(config, weight_bytes, context, place))
}

#[cfg(test)]
mod tests {
    use super::super::resolve;
    use super::*;
    use crate::model::candle::Precision;

    fn demo() -> Checkpoint {
        let folder = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("assets/demo");
        Checkpoint::open(&folder).expect("the demo opens")
    }

    fn fit(demo: &Checkpoint, text: &str, place: &ModelPlace) -> Fit {
        let plan = Plan::parse(&format!("version = 1\ntarget = \"gguf\"\n{text}"), None).expect("a plan");
        let resolved = resolve(&plan, demo).expect("resolves");
        fit_on(demo, &plan, &resolved, place).expect("a network")
    }

    #[test]
    fn a_plan_needs_what_its_choices_take_on_the_device() {
        let demo = demo();
        let place = |precision| ModelPlace { name: "One".to_owned(), memory: None, precision };
        let (cpu, gpu) = (place(None), place(Some(Precision::Stored)));
        let stored = gpu.weight_bytes(&demo);
        let bf16 = "[default]\nformat = \"bf16\"\n";
        assert_eq!(fit(&demo, bf16, &gpu).needs.weight_bytes, stored, "the demo is bf16 itself");
        // 34 bytes a block of 32, where bf16 has 64; held packed on the device and on the CPU.
        let q8_0 = "[default]\nformat = \"q8_0\"\n";
        assert_eq!(fit(&demo, q8_0, &gpu).needs.weight_bytes, stored / 64 * 34);
        assert_eq!(fit(&demo, q8_0, &cpu), fit(&demo, q8_0, &gpu));
        // No kernel on the device, so that it is widened to f32 there.
        let mxfp4 = "[default]\nformat = \"mxfp4\"\n";
        assert_eq!(fit(&demo, mxfp4, &gpu).needs.weight_bytes, stored * 2);
        assert_eq!(fit(&demo, mxfp4, &cpu).needs.weight_bytes, stored / 64 * 17);
    }

    #[test]
    fn a_plan_is_said_to_be_streamed_or_not_by_its_own_size_and_the_context_of_its_limit() {
        let demo = demo();
        let gpu = |memory| ModelPlace { name: "One".to_owned(), memory, precision: Some(Precision::Stored) };
        let (bf16, q8_0) = ("[default]\nformat = \"bf16\"\n", "[default]\nformat = \"q8_0\"\n");
        let small = fit(&demo, q8_0, &gpu(None)).needs;
        // 8 % are left to the driver.
        let between = (small.weight_bytes + small.kv_bytes + small.activation_bytes) * 100 / 91;
        assert!(fit(&demo, q8_0, &gpu(Some(between))).fits());
        let large = fit(&demo, bf16, &gpu(Some(between)));
        assert!(!large.fits() && large.sentence().contains("streamed layer by layer"), "{}", large.sentence());
        let limit = "[constraints]\nmax_memory = \"1GiB\"\ncontext = 64\n";
        let short = fit(&demo, &format!("{limit}{q8_0}"), &gpu(None));
        assert_eq!(short.context, 64);
        assert!(short.needs.kv_bytes < small.kv_bytes);
    }
}
