//! `[prune]` as TOML: read with a line for every complaint, and edited in place.
//!
//! ```toml
//! [prune]
//! layers = [4]                   # whole layers, by their index in the checkpoint
//! means = "means.safetensors"    # what stands in for the mean of what went, as biases
//!
//! [prune.layer.3]
//! kv_groups = [1]
//! heads = [0, 2]
//! channels = [3, "7-19", 40]     # a run of indices may be written as a string
//! ```

use std::collections::BTreeSet;
use std::ops::Range;

use toml_edit::{Array, Item, Key, Table, TableLike, Value};

use super::edit::set_value;
use super::text::{Source, kind};
use super::{Plan, Prune};
use crate::checkpoint::{IllegalRemoval, LayerUnits, Removal};
use crate::error::{Fault, Result};

const KEYS: [&str; 3] = ["layers", "layer", "means"];
const LAYER_KEYS: [&str; 3] = ["kv_groups", "heads", "channels"];

/// No layer has more units than this, and no plan names more in all.
const MOST_INDEX: usize = 1 << 20;
const MOST_UNITS: usize = 1 << 24;

/// From this many neighbours on, indices are written as one range.
const SHORTEST_RANGE: usize = 3;

/// An element of a list: one index, or the first and last of a run.
fn bounds(value: &Value) -> Option<(usize, usize)> {
    let number = |text: &str| text.trim().parse::<usize>().ok();
    let (first, last) = match value {
        Value::String(text) => match text.value().split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(text.value())?, number(text.value())?),
        },
        other => {
            let index = usize::try_from(other.as_integer()?).ok()?;
            (index, index)
        }
    };
    (first <= last && last < MOST_INDEX).then_some((first, last))
}

impl Source<'_> {
    /// Reads `[prune]`.
    pub(super) fn prune(&self, item: &Item) -> Result<Prune> {
        let table = item.as_table_like().ok_or_else(|| {
            let fault = self.fault(item.span(), format!("\"prune\" is {}, not a table", kind(item)));
            fault.fix("write [prune] and below it layers = [4]")
        })?;
        self.check_keys(table, &KEYS, " in [prune]")?;
        let mut left = MOST_UNITS;
        let mut removal = Removal { layers: self.indices(table, "layers", &mut left)?, ..Removal::default() };
        if let Some(item) = table.get("layer") {
            let layers = item.as_table_like().ok_or_else(|| {
                let fault = self.fault(item.span(), format!("\"layer\" is {}, not a table", kind(item)));
                fault.fix("write [prune.layer.3] for layer 3")
            })?;
            for (name, item) in layers.iter() {
                let span = layers.key(name).and_then(Key::span).or_else(|| item.span());
                let index = name.parse::<usize>().ok().filter(|index| *index < MOST_INDEX).ok_or_else(|| {
                    self.fault(span.clone(), format!("\"{name}\" is no layer")).fix("write [prune.layer.3] for layer 3")
                })?;
                let units = item.as_table_like().ok_or_else(|| {
                    let fault = self.fault(span, format!("layer {name} is {}, not a table", kind(item)));
                    fault.fix(format!("write [prune.layer.{name}] and below it heads = [0]"))
                })?;
                self.check_keys(units, &LAYER_KEYS, &format!(" in [prune.layer.{name}]"))?;
                let units = LayerUnits {
                    kv_groups: self.indices(units, "kv_groups", &mut left)?,
                    heads: self.indices(units, "heads", &mut left)?,
                    channels: self.indices(units, "channels", &mut left)?,
                };
                if !units.is_empty() {
                    removal.units.insert(index, units);
                }
            }
        }
        let means = self.text(table, "means")?.map(|found| self.beside(found.0));
        Ok(Prune { removal, means })
    }

    /// A list of indices; `left` counts down what all lists of the plan may still name.
    fn indices(&self, table: &dyn TableLike, key: &str, left: &mut usize) -> Result<BTreeSet<usize>> {
        let mut found = BTreeSet::new();
        let Some(item) = table.get(key) else { return Ok(found) };
        let array = item.as_array().ok_or_else(|| {
            let fault = self.fault(item.span(), format!("\"{key}\" is {}, not a list", kind(item)));
            fault.fix(format!("write {key} = [0, \"4-7\"]"))
        })?;
        for value in array {
            let (first, last) = bounds(value).ok_or_else(|| {
                let cause = format!("{} is neither an index from 0 nor a range of them", value.to_string().trim());
                self.fault(value.span(), cause).fix("write 3 or \"3-5\"")
            })?;
            *left = left.checked_sub(last - first + 1).ok_or_else(|| {
                self.fault(value.span(), "the plan names more units than any model has").fix("shorten the list")
            })?;
            found.extend(first..=last);
        }
        Ok(found)
    }
}

/// Indices as a list, runs as ranges.
fn array_of(indices: &BTreeSet<usize>) -> Array {
    let mut array = Array::new();
    let mut runs: Vec<Range<usize>> = Vec::new();
    for &index in indices {
        match runs.last_mut() {
            Some(run) if run.end == index => run.end += 1,
            _ => runs.push(index..index + 1),
        }
    }
    for run in runs {
        if run.len() < SHORTEST_RANGE {
            run.for_each(|index| array.push(index as i64));
        } else {
            array.push(format!("{}-{}", run.start, run.end - 1));
        }
    }
    array
}

/// Writes a list where it changed; an empty one goes.
fn write_list(table: &mut dyn TableLike, key: &str, old: &BTreeSet<usize>, new: &BTreeSet<usize>) {
    if new.is_empty() {
        table.remove(key);
    } else if old != new || table.get(key).is_none() {
        set_value(table, key, Value::Array(array_of(new)));
    }
}

/// The table called `key`, made where it is missing.
fn table_at<'t>(parent: &'t mut dyn TableLike, key: &str, is_implicit: bool) -> Option<&'t mut dyn TableLike> {
    let fresh = || {
        let mut table = Table::new();
        table.set_implicit(is_implicit);
        Item::Table(table)
    };
    parent.entry(key).or_insert_with(fresh).as_table_like_mut()
}

impl Plan {
    /// Writes what is taken away, list by list, so that the rest of the text stays.
    pub(super) fn write_removal(&mut self, old: &Removal) {
        let Prune { removal, means } = self.prune.clone();
        if removal.is_empty() && means.is_none() {
            self.document.remove("prune");
            return;
        }
        let is_bare = removal.layers.is_empty() && means.is_none();
        let Some(prune) = table_at(self.document.as_table_mut(), "prune", is_bare) else { return };
        write_list(prune, "layers", &old.layers, &removal.layers);
        let layers: BTreeSet<usize> = old.units.keys().chain(removal.units.keys()).copied().collect();
        let none = LayerUnits::default();
        if let Some(table) = table_at(prune, "layer", true) {
            for layer in layers {
                let (was, is) = (old.units.get(&layer), removal.units.get(&layer));
                let (was, is) = (was.unwrap_or(&none), is.unwrap_or(&none));
                if is.is_empty() {
                    table.remove(&layer.to_string());
                } else if was != is
                    && let Some(units) = table_at(table, &layer.to_string(), false)
                {
                    write_list(units, "kv_groups", &was.kv_groups, &is.kv_groups);
                    write_list(units, "heads", &was.heads, &is.heads);
                    write_list(units, "channels", &was.channels, &is.channels);
                }
            }
        }
        if removal.units.is_empty() {
            prune.remove("layer");
        }
    }

    /// A part of the removal that cannot be done, with its line.
    pub(super) fn prune_fault(&self, illegal: &IllegalRemoval) -> Fault {
        let fault = self.fault_at(illegal.cause.clone(), |root| {
            let prune = root.get("prune")?;
            let table = prune.as_table_like()?;
            let Some(layer) = illegal.layer else {
                return span_in(table, illegal.list, illegal.index).or_else(|| prune.span());
            };
            let layers = table.get("layer")?.as_table_like()?;
            let name = layer.to_string();
            let item = layers.get(&name)?;
            let own = item.as_table_like().and_then(|units| span_in(units, illegal.list, illegal.index));
            own.or_else(|| item.span()).or_else(|| layers.key(&name).and_then(Key::span))
        });
        fault.fix(illegal.remedy.clone())
    }
}

/// Where an index stands in a list, or the list.
fn span_in(table: &dyn TableLike, list: &str, index: Option<usize>) -> Option<Range<usize>> {
    let item = table.get(list)?;
    let holds = |value: &&Value| {
        bounds(value).is_some_and(|(first, last)| {
            Some(first..=last).is_some_and(|range| index.is_some_and(|index| range.contains(&index)))
        })
    };
    let element = item.as_array()?.iter().find(holds).and_then(Value::span);
    element.or_else(|| item.span())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Target;

    const TEXT: &str = r#"version = 1
target = "gguf"

[prune] # what the team agreed on
layers = [4] # hardly matters

# Layer 3 repeats itself.
[prune.layer.3]
kv_groups = [1]
channels = [3, "7-9"] # the quiet ones
"#;

    fn parse(text: &str) -> Plan {
        Plan::parse(text, None).expect("reads")
    }

    /// Edits without a checkpoint, as [`Plan::set_removal`] does after its checks.
    fn set(plan: &mut Plan, removal: Removal) {
        let old = std::mem::replace(&mut plan.prune.removal, removal);
        plan.write_removal(&old);
    }

    #[test]
    fn lists_and_ranges_are_read() {
        let plan = parse(TEXT);
        let removal = &plan.prune().removal;
        assert_eq!(removal.layers, [4].into());
        assert_eq!(removal.units[&3].kv_groups, [1].into());
        assert_eq!(removal.units[&3].channels, [3, 7, 8, 9].into());
        assert_eq!(plan.to_toml(), TEXT);
        assert_ne!(plan, parse("version = 1\ntarget = \"gguf\"\n"), "what goes counts");
    }

    #[test]
    fn edits_keep_comments_and_come_back() {
        let mut plan = parse(TEXT);
        let before = plan.prune().removal.clone();
        let mut more = before.clone();
        more.layer_mut(3).channels.extend([10, 11]);
        more.layer_mut(0).heads.extend([0, 2, 4, 5, 6]);
        set(&mut plan, more.clone());
        let text = plan.to_toml();
        for kept in ["# what the team agreed on", "# hardly matters", "# Layer 3 repeats itself.", "# the quiet ones"] {
            assert!(text.contains(kept), "{kept} in\n{text}");
        }
        assert!(text.contains("channels = [3, \"7-11\"]") && text.contains("heads = [0, 2, \"4-6\"]"), "{text}");
        assert_eq!(parse(&text).prune().removal, more);
        set(&mut plan, before);
        assert_eq!(parse(&plan.to_toml()), parse(TEXT));
        set(&mut plan, Removal::default());
        assert!(!plan.to_toml().contains("prune"), "{}", plan.to_toml());
    }

    #[test]
    fn a_plan_that_prunes_nothing_yet_gets_its_section() {
        let mut plan = Plan::new(Target::HuggingFace, Some("f"));
        let mut removal = Removal::default();
        removal.layer_mut(1).kv_groups.insert(0);
        set(&mut plan, removal.clone());
        assert_eq!(parse(&plan.to_toml()), plan);
        assert!(plan.to_toml().contains("[prune.layer.1]\nkv_groups = [0]\n"), "{}", plan.to_toml());
        removal.layers.insert(2);
        set(&mut plan, removal);
        assert_eq!(parse(&plan.to_toml()), plan, "{}", plan.to_toml());
    }
}
