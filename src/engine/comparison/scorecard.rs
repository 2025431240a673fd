//! Two ways of looking at the same comparison: the abilities of LLM-KICK (Jaiswal et al., ICLR 2024) and the six
//! axes of LLMCBench (Yang et al. 2024), each over the baseline, always with the smallest beside any mean.
//!
//! LLMCBench means its ratios quadratically, which rewards the best of them; a mean that hides its minimum is why
//! both stand side by side here. What one candidate of one model cannot say stays empty.

use serde::{Deserialize, Serialize};

use super::{Comparison, SliceComparison};

/// An ability with the words by which tasks are known to test it. A task belongs to the first that has a word of its
/// name.
const FAMILIES: [(&str, &str); 6] = [
    ("retrieval", "recall retrieval retrieve needle passkey extract extraction niah"),
    ("reading", "reading squad squadv2 boolq race summary summarize summarization comprehension drop"),
    (
        "facts",
        "fact facts factual mmlu knowledge freebase freebaseqa arc openbook openbookqa science sciq trivia \
         triviaqa nq",
    ),
    (
        "instruction following",
        "instruct instruction instructions ifeval intent intents safety refusal refusals sentiment",
    ),
    (
        "reasoning",
        "reason reasoning arithmetic arith math mathqa gsm gsm8k code humaneval mbpp logic logiqa hellaswag \
         winogrande piqa copa bbh hendrycks",
    ),
    ("language", "grammar grammatical cola blimp lambada wsc language languages translation"),
];

/// One ability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ability {
    pub name: String,
    pub items: usize,
    pub baseline_accuracy: f64,
    pub candidate_accuracy: f64,
    /// Candidate's accuracy over the baseline's; `None` where that has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// The slice of it that kept least.
    pub worst_slice: String,
}

/// One axis; empty where nothing that was measured says anything about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CardAxis {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// What it is made of, or what it would take.
    pub from: String,
}

/// Abilities and axes of one candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scorecard {
    pub abilities: Vec<Ability>,
    pub axes: Vec<CardAxis>,
    /// The ability or axis that is smallest, with its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub least: Option<(String, f64)>,
}

/// The ability that a task tests, by its name.
pub fn family(task: &str) -> &'static str {
    let task = task.to_lowercase();
    // Whole words: "arc" is no part of "search", nor "race" of "trace".
    let parts: Vec<&str> = task.split(|letter: char| !letter.is_alphanumeric()).collect();
    let found = FAMILIES.iter().find(|(_, words)| words.split(' ').any(|word| parts.contains(&word)));
    found.map_or("other", |(name, _)| name)
}

fn ability(name: &str, slices: &[&SliceComparison]) -> Option<Ability> {
    let items: usize = slices.iter().map(|slice| slice.paired.n).sum();
    let mean = |value: &dyn Fn(&SliceComparison) -> f64| {
        slices.iter().map(|slice| value(slice) * slice.paired.n as f64).sum::<f64>() / items.max(1) as f64
    };
    let worst = slices.iter().min_by(|a, b| a.paired.difference.total_cmp(&b.paired.difference))?;
    let (baseline, candidate) =
        (mean(&|slice| slice.paired.baseline_accuracy), mean(&|slice| slice.paired.candidate_accuracy));
    Some(Ability {
        name: name.to_owned(),
        items,
        baseline_accuracy: baseline,
        candidate_accuracy: candidate,
        share: (baseline > 0.0).then(|| candidate / baseline),
        worst_slice: worst.name(),
    })
}

fn quadratic_mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| (values.iter().map(|value| value * value).sum::<f64>() / values.len() as f64).sqrt())
}

/// The card of a comparison; `resident_ratio` is the baseline's memory over the candidate's, where it is known.
pub fn scorecard(comparison: &Comparison, resident_ratio: Option<f64>) -> Scorecard {
    let names = FAMILIES.iter().map(|(name, _)| *name).chain(["other"]);
    let abilities: Vec<Ability> = names
        .filter_map(|name| {
            let members: Vec<&SliceComparison> =
                comparison.slices.iter().filter(|slice| family(&slice.task) == name).collect();
            ability(name, &members)
        })
        .collect();
    let shares: Vec<f64> = abilities.iter().filter_map(|ability| ability.share).collect();
    let inference: Vec<f64> = [Some(comparison.size_ratio), resident_ratio].into_iter().flatten().collect();
    let calibration = comparison.baseline_reliability.as_ref().zip(comparison.candidate_reliability.as_ref());
    let trust = calibration.map(|(before, after)| (1.0 - after.ece) / (1.0 - before.ece).max(1e-9));
    let axis = |name: &str, value: Option<f64>, from: &str| CardAxis {
        name: name.to_owned(),
        value: value.filter(|value| value.is_finite()),
        from: from.to_owned(),
    };
    let axes = vec![
        axis("compression performance", quadratic_mean(&shares), "quadratic mean of the abilities' shares"),
        axis("generalisation", None, "needs the same recipe on several models"),
        axis("training consumption", None, "needs the time and memory of other methods on this model"),
        axis("inference consumption", quadratic_mean(&inference), "quadratic mean of size and memory saved, as ratios"),
        axis(
            "hardware acceleration",
            comparison.decode_speed_ratio,
            "decoding speed over the baseline's, on this machine",
        ),
        axis("trustworthiness", trust, "1 − ECE over the baseline's; adversarial tests are not part of it"),
    ];
    let named = abilities.iter().filter_map(|ability| Some((ability.name.clone(), ability.share?)));
    let valued = axes.iter().filter_map(|axis| Some((axis.name.clone(), axis.value?)));
    let least = named.chain(valued).min_by(|a, b| a.1.total_cmp(&b.1));
    Scorecard { abilities, axes, least }
}

#[cfg(test)]
mod tests {
    use super::super::tests::comparison;
    use super::*;

    #[test]
    fn tasks_belong_to_abilities_by_their_names() {
        for (task, expected) in [
            ("facts", "facts"),
            ("mmlu", "facts"),
            ("arithmetic", "reasoning"),
            ("GSM8K", "reasoning"),
            ("recall", "retrieval"),
            ("safety", "instruction following"),
            ("poetry", "other"),
            ("grammar", "language"),
            ("extraction", "retrieval"),
            ("ARC-Challenge", "facts"),
            ("arc_easy", "facts"),
            ("mmlu_pro", "facts"),
            ("squad completion", "reading"),
            ("gsm8k_cot", "reasoning"),
            // Words that only hold one of those.
            ("search", "other"),
            ("trace", "other"),
            ("decode", "other"),
            ("manufacture", "other"),
        ] {
            assert_eq!(family(task), expected, "{task}");
        }
    }

    #[test]
    fn the_least_stands_beside_the_means_and_what_is_unknown_is_empty() {
        let card = scorecard(&comparison(), Some(3.1));
        assert_eq!(card.abilities.len(), 1);
        let facts = &card.abilities[0];
        assert_eq!((facts.items, facts.worst_slice.as_str()), (1200, "facts/rare"));
        let share = facts.share.expect("a share");
        assert!(card.least.as_ref().is_some_and(|(_, value)| (value - share).abs() < 1e-9), "{:?}", card.least);
        let empty: Vec<&str> =
            card.axes.iter().filter(|axis| axis.value.is_none()).map(|axis| axis.name.as_str()).collect();
        assert_eq!(empty, ["generalisation", "training consumption", "trustworthiness"]);
        assert!(card.axes[3].value.is_some_and(|value| (value - 3.1).abs() < 1e-9));
    }
}
