//! Items cut into slices: by task, and by whatever else is known of them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::paired::{ComparisonOptions, Pairs, SliceComparison};
use super::stats;
use crate::error::Result;
use crate::progress::Progress;
use crate::scoring::Item;

/// A field with more values than this is a name, not a property.
const MAX_VALUES: usize = 40;
/// Items of a slice of a view, at least.
const MIN_ITEMS: usize = 5;

/// The items cut in one way, with tests corrected for the number of slices of this cut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SliceView {
    /// `prompt length`, `rarest token` or the name of a field.
    pub by: String,
    pub slices: Vec<SliceComparison>,
}

/// Pairs of each task, slice and metric, in order of first appearance; none is empty.
pub(super) fn by_slice(pairs: &Pairs<'_>) -> Vec<Vec<usize>> {
    let labels = pairs.all.iter().map(|(item, _)| item.label() + 1).max().unwrap_or(0);
    let mut places = vec![None; labels];
    let mut slices: Vec<Vec<usize>> = Vec::new();
    for (index, (item, _)) in pairs.all.iter().enumerate() {
        let place = *places[item.label()].get_or_insert_with(|| {
            slices.push(Vec::new());
            slices.len() - 1
        });
        slices[place].push(index);
    }
    slices
}

/// Statistics of a slice; `name` is the cut and the value where it is not the slice of a task.
pub(super) fn slice_comparison(
    pairs: &Pairs<'_>,
    members: &[usize],
    name: Option<(&str, String)>,
    options: &ComparisonOptions,
    progress: &Progress,
) -> Result<SliceComparison> {
    let (first, _) = pairs.all[members[0]];
    let is_mixed = members.iter().any(|&member| pairs.all[member].0.metric() != first.metric());
    let (task, slice) =
        name.map_or_else(|| (first.task().to_owned(), first.slice().to_owned()), |(by, value)| (by.to_owned(), value));
    let mut paired = pairs.paired(members, options, progress)?;
    paired.versus_rest = pairs.versus_rest(members);
    let metric = if is_mixed { "mixed".to_owned() } else { first.metric().to_owned() };
    Ok(SliceComparison { task, slice, metric, paired })
}

/// Holm's correction over the slices of one cut.
pub(super) fn correct(slices: &mut [SliceComparison]) {
    let p_values: Vec<f64> = slices.iter().map(|slice| slice.paired.mcnemar_p).collect();
    for (slice, adjusted) in slices.iter_mut().zip(stats::holm(&p_values)) {
        slice.paired.mcnemar_p_holm = Some(adjusted);
    }
}

/// A range of counts that doubles: `16–31`; its lower edge orders it.
fn doubling(count: u32, least: u32) -> (u32, String) {
    if count < least {
        return (0, format!("below {least}"));
    }
    let from = least << (count / least).ilog2();
    (from, format!("{from}–{}", 2 * from - 1))
}

/// How often the rarest token of the answer occurs.
fn rarity(count: u32) -> (u32, String) {
    match count {
        0..=1 => (0, "once".to_owned()),
        2..=9 => (2, "2–9 times".to_owned()),
        10..=99 => (10, "10–99 times".to_owned()),
        _ => (100, "100 times and more".to_owned()),
    }
}

/// The slice of an item in one cut, with what orders it.
type Cut = Box<dyn Fn(&Item<'_>) -> Option<(u32, String)>>;

/// Every cut that divides the items: by each field, by the prompt's length, by rare tokens.
pub(super) fn views(pairs: &Pairs<'_>, options: &ComparisonOptions, progress: &Progress) -> Result<Vec<SliceView>> {
    let fields: BTreeSet<&str> = pairs.all.first().into_iter().flat_map(|(item, _)| item.fields()).collect();
    let mut cuts: Vec<(String, Cut)> = fields
        .into_iter()
        .map(|field| {
            let name = field.to_owned();
            let cut: Cut = Box::new(move |item| Some((0, item.field(&name)?.to_owned())));
            (field.to_owned(), cut)
        })
        .collect();
    let known = |count: u32| Some(count).filter(|&count| count > 0);
    cuts.push(("prompt length".to_owned(), Box::new(move |item| Some(doubling(known(item.prompt_tokens())?, 16)))));
    cuts.push(("rarest token".to_owned(), Box::new(move |item| Some(rarity(known(item.rarest_token_count())?)))));
    let mut views = Vec::new();
    for (by, cut) in cuts {
        let mut members: BTreeMap<(u32, String), Vec<usize>> = BTreeMap::new();
        for (index, (item, _)) in pairs.all.iter().enumerate() {
            if let Some(place) = cut(item) {
                members.entry(place).or_default().push(index);
            }
        }
        members.retain(|_, members| members.len() >= MIN_ITEMS);
        if !(2..=MAX_VALUES).contains(&members.len()) {
            continue;
        }
        let mut slices = Vec::with_capacity(members.len());
        for ((_, value), members) in members {
            slices.push(slice_comparison(pairs, &members, Some((&by, value)), options, progress)?);
        }
        correct(&mut slices);
        views.push(SliceView { by, slices });
    }
    Ok(views)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scoring::{ItemResult, Items};

    #[test]
    fn ranges_double_and_are_named_by_their_edges() {
        let name = |count| doubling(count, 16).1;
        assert_eq!([1, 15, 16, 31, 32, 100].map(name), ["below 16", "below 16", "16–31", "16–31", "32–63", "64–127"]);
        assert_eq!([1, 2, 99, 5000].map(|count| rarity(count).0), [0, 2, 10, 100]);
    }

    #[test]
    fn items_are_cut_by_their_fields_and_by_length() {
        let item = |id: usize, correct: bool| ItemResult {
            id: id.to_string(),
            task: "t".into(),
            slice: "s".into(),
            metric: "acc".into(),
            fields: BTreeMap::from([
                ("language".to_owned(), if id.is_multiple_of(4) { "de" } else { "en" }.to_owned()),
                ("name".to_owned(), id.to_string()),
            ]),
            correct,
            score: f64::from(u8::from(correct)),
            prompt_tokens: if id < 50 { 20 } else { 90 },
            ..ItemResult::default()
        };
        let base = Items::of((0..200).map(|id| item(id, true))).expect("items");
        let candidate =
            Items::of((0..200).map(|id| item(id, !id.is_multiple_of(4) || id.is_multiple_of(8)))).expect("items");
        let pairs = Pairs::new(base.iter().zip(candidate.iter()).collect());
        let options = ComparisonOptions { resamples: 500, ..ComparisonOptions::default() };
        let views = views(&pairs, &options, &Progress::default()).expect("views");
        let names: Vec<&str> = views.iter().map(|view| view.by.as_str()).collect();
        assert_eq!(names, ["language", "prompt length"]);
        let german = &views[0].slices[0];
        assert_eq!((german.slice.as_str(), german.paired.n, german.paired.right_to_wrong), ("de", 50, 25));
        let rest = german.paired.versus_rest.expect("enough differ");
        assert!((rest.difference + 0.5).abs() < 1e-12 && rest.interval[1] < -0.3, "{rest:?}");
        assert!(german.paired.mcnemar_p_holm.is_some_and(|p| p < 1e-6));
        assert_eq!(views[1].slices.iter().map(|slice| slice.paired.n).collect::<Vec<_>>(), [50, 150]);
    }
}
