//! The numbers of the comparison's tables as they are saved: speeds, changed answers, candidates, the scorecard
//! and draft lengths. Those of its plots come from the plots.

use super::compare_data::state;
use crate::app::plots::export::{Table, cell};
use crate::engine::comparison::scorecard::Scorecard;
use crate::engine::comparison::speculation::{Speculation, speed_up, tokens_per_cycle};
use crate::engine::comparison::{Comparison, Flips};
use crate::engine::evaluation::Evaluation;
use crate::engine::scoring::SpeedResult;

/// Speeds with their quartiles, times and sizes of both models, and the candidate's over the original's.
pub(super) fn speed(baseline: &Evaluation, candidate: &Evaluation) -> Table {
    let mut table = Table::new(&[
        "figure",
        "original",
        "original_low_quartile",
        "original_high_quartile",
        "candidate",
        "candidate_low_quartile",
        "candidate_high_quartile",
        "ratio",
    ]);
    let mut line = |name: &str, before: (f64, [f64; 2]), after: (f64, [f64; 2])| {
        table.row([
            name.to_owned(),
            cell(before.0),
            cell(before.1[0]),
            cell(before.1[1]),
            cell(after.0),
            cell(after.1[0]),
            cell(after.1[1]),
            // Over nothing there is no ratio.
            if before.0 > 0.0 { cell(after.0 / before.0) } else { String::new() },
        ]);
    };
    let alone = |value: f64| (value, [f64::NAN; 2]);
    if let (Some(before), Some(after)) = (&baseline.speed, &candidate.speed) {
        let prefill =
            |speed: &SpeedResult| (speed.prefill_tokens_per_second, speed.prefill_tokens_per_second_quartiles);
        let decode = |speed: &SpeedResult| (speed.decode_tokens_per_second, speed.decode_tokens_per_second_quartiles);
        line("prefill_tokens_per_second", prefill(before), prefill(after));
        line("decode_tokens_per_second", decode(before), decode(after));
        line("first_token_secs", alone(before.ttft_secs), alone(after.ttft_secs));
        line("next_token_secs", alone(before.tpot_secs), alone(after.tpot_secs));
    }
    let (before, after) = (&baseline.size, &candidate.size);
    line("resident_bytes", alone(before.resident_bytes as f64), alone(after.resident_bytes as f64));
    line("file_bytes", alone(before.file_bytes as f64), alone(after.file_bytes as f64));
    table
}

/// Flips with their texts, in the order of `chosen`, indices into the comparison's.
///
/// # Errors
/// A sentence, where the texts cannot be read from where they lie.
pub(super) fn flips(flips: &Flips, chosen: &[usize]) -> Result<Table, String> {
    let mut table = Table::new(&["item", "task", "slice", "change", "wanted", "original", "candidate"]);
    for &index in chosen {
        let flip = flips.get(index).map_err(|err| format!("The changed answers cannot be saved: {err}"))?;
        let change = if flip.gained { "gained" } else { "lost" }.to_owned();
        let (original, candidate) = (flip.baseline_prediction, flip.candidate_prediction);
        table.row([flip.id, flip.task, flip.slice, change, flip.wanted, original, candidate]);
    }
    Ok(table)
}

/// Every candidate by name with its comparison, and whether it is on the Pareto front.
pub(super) fn candidates<'a>(compared: impl Iterator<Item = ((&'a str, &'a Comparison), bool)>) -> Table {
    let mut table = Table::new(&[
        "candidate",
        "file_bytes",
        "bits_per_weight",
        "times_smaller",
        "kld_mean_nats",
        "kld_mean_stderr_nats",
        "items",
        "accuracy_percent",
        "difference_points",
        "low_points",
        "high_points",
        "worst_slice",
        "decode_speed_ratio",
        "on_the_front",
        "verdict",
    ]);
    for ((name, comparison), is_on_front) in compared {
        let distance = comparison.text.as_ref().and_then(|text| text.distance.as_ref());
        let overall = comparison.overall.as_ref();
        let number = |value: Option<f64>| value.map(cell).unwrap_or_default();
        let [low, high] = [0, 1].map(|end| number(overall.map(|all| all.difference_interval[end] * 100.0)));
        table.row([
            name.to_owned(),
            comparison.file_bytes.to_string(),
            cell(comparison.bits_per_weight),
            cell(comparison.size_ratio),
            number(distance.map(|distance| distance.kld_mean)),
            number(distance.map(|distance| distance.kld_mean_stderr)),
            overall.map_or_else(String::new, |all| all.n.to_string()),
            number(overall.map(|all| all.candidate_accuracy * 100.0)),
            number(overall.map(|all| all.difference * 100.0)),
            low,
            high,
            comparison.worst_slice.clone().unwrap_or_default(),
            number(comparison.decode_speed_ratio),
            is_on_front.to_string(),
            comparison.verdict().map_or_else(String::new, |verdict| state(verdict).word().to_owned()),
        ]);
    }
    table
}

/// Abilities, then axes; an axis that nothing measured says anything about has no value.
pub(super) fn scorecard(card: &Scorecard) -> Table {
    let mut table = Table::new(&["kind", "name", "items", "original_percent", "candidate_percent", "kept", "from"]);
    let number = |value: Option<f64>| value.map(cell).unwrap_or_default();
    for ability in &card.abilities {
        table.row([
            "ability".to_owned(),
            ability.name.clone(),
            ability.items.to_string(),
            cell(ability.baseline_accuracy * 100.0),
            cell(ability.candidate_accuracy * 100.0),
            number(ability.share),
            format!("worst slice {}", ability.worst_slice),
        ]);
    }
    for axis in &card.axes {
        let [items, original, candidate] = [const { String::new() }; 3];
        let (name, value) = (axis.name.clone(), number(axis.value));
        table.row(["axis".to_owned(), name, items, original, candidate, value, axis.from.clone()]);
    }
    table
}

/// What drafts of every length are predicted to bring, sampled and greedy.
pub(super) fn drafts(found: &Speculation) -> Table {
    let mut table = Table::new(&[
        "draft_tokens",
        "acceptance",
        "tokens_per_cycle",
        "speed_up",
        "greedy_acceptance",
        "greedy_tokens_per_cycle",
        "greedy_speed_up",
        "step_cost_ratio",
    ]);
    for length in &found.lengths {
        table.row([
            length.draft.to_string(),
            cell(found.acceptance),
            cell(length.tokens_per_cycle),
            cell(length.speed_up),
            cell(found.greedy_acceptance),
            cell(tokens_per_cycle(found.greedy_acceptance, length.draft)),
            cell(speed_up(found.greedy_acceptance, length.draft, found.step_cost, length.check_cost)),
            cell(found.step_cost),
        ]);
    }
    table
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::compare_data::{self, tests::compared};
    use super::*;
    use crate::engine::comparison::scorecard::scorecard as card_of;
    use crate::engine::comparison::speculation::{MAX_DRAFT, speculation};

    pub fn speed_of(decode: f64) -> SpeedResult {
        SpeedResult {
            prefill_tokens_per_second: decode * 10.0,
            prefill_tokens_per_second_quartiles: [decode * 9.0, decode * 11.0],
            decode_tokens_per_second: decode,
            decode_tokens_per_second_quartiles: [decode - 1.0, decode + 1.0],
            ttft_secs: 0.5,
            tpot_secs: 1.0 / decode,
            prefill_tokens: 128,
            decode_tokens: 32,
            decode_depth: 0,
            repetitions: 5,
            threads: 2,
            in_turns: true,
            ..SpeedResult::default()
        }
    }

    #[test]
    fn speeds_have_quartiles_and_what_was_not_measured_has_no_line() {
        let (mut baseline, mut candidate, _) = compared();
        let rows = speed(&baseline, &candidate).rows;
        assert_eq!(rows.iter().map(|row| row[0].as_str()).collect::<Vec<_>>(), ["resident_bytes", "file_bytes"]);
        assert_eq!(rows[0][7], "", "nothing is known to be in memory");
        assert_eq!(rows[1][..2], ["file_bytes", "8388608"]);
        assert_eq!((rows[1][4].as_str(), rows[1][7].as_str()), ("2097152", "0.25"));
        (baseline.speed, candidate.speed) = (Some(speed_of(4.0)), Some(speed_of(8.0)));
        let rows = speed(&baseline, &candidate).rows;
        assert_eq!(rows[1], ["decode_tokens_per_second", "4", "3", "5", "8", "7", "9", "2"]);
        assert_eq!(rows[3], ["next_token_secs", "0.25", "", "", "0.125", "", "", "0.5"]);
    }

    #[test]
    fn changed_answers_are_saved_with_both_texts_in_the_order_shown() {
        let (_, _, comparison) = compared();
        let rare = compare_data::flips(&comparison, Some("facts/rare"));
        let table = flips(&comparison.flips, &rare).expect("reads");
        assert_eq!(table.rows.len(), 10);
        assert_eq!(table.rows[0], ["0", "facts", "rare", "lost", "", "right", "wrong"]);
        assert_eq!(flips(&comparison.flips, &[]).expect("reads").rows.len(), 0);
    }

    #[test]
    fn candidates_and_the_scorecard_have_their_figures_or_nothing() {
        let (_, _, comparison) = compared();
        let table = candidates([(("small", &comparison), true)].into_iter());
        let row = &table.rows[0];
        assert_eq!(row[..6], ["small", "2097152", "4.5", "4", "", ""], "no text was read");
        assert_eq!(row[6..9], ["40", "75", "-25"]);
        assert_eq!(row[11..], ["facts/rare", "", "true", ""], "no speed, no gates");
        let card = card_of(&comparison, None);
        let table = scorecard(&card);
        assert_eq!(table.rows.len(), card.abilities.len() + card.axes.len());
        assert_eq!(table.rows[0][0], "ability");
        assert_eq!(table.rows[0][2..6], ["40", "100", "75", "0.75"]);
    }

    #[test]
    fn every_draft_length_is_saved_sampled_and_greedy() {
        let found = speculation(0.5, 1.0, 0.25, 1.0);
        let table = drafts(&found);
        assert_eq!(table.rows.len(), MAX_DRAFT);
        // One draft: 1.5 tokens for 1.25 steps, and 2 where all are accepted.
        assert_eq!(table.rows[0], ["1", "0.5", "1.5", "1.2", "1", "2", "1.6", "0.25"]);
    }
}
