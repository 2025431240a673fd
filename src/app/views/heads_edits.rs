//! What clicks and boxes on the heads map do to the plan.

use crate::app::plots::head_map::{HeadMap, Pick};
use crate::engine::checkpoint::{LayerUnits, ModelConfig, Removal};
use crate::engine::plan::units_of;
use crate::workbench::UnitEdit;

fn groups_of(list: &[(usize, usize)]) -> Removal {
    let mut removal = Removal::default();
    for &(layer, group) in list {
        removal.layer_mut(layer).kv_groups.insert(group);
    }
    removal
}

/// All groups of a box go; where all of them go already, they stay.
pub(super) fn boxed_edit(map: &HeadMap, boxed: &[(usize, usize)]) -> (UnitEdit, String) {
    let is_gone = |&(layer, group): &(usize, usize)| {
        let own = &map.layers[layer];
        own.heads[group * own.group..(group + 1) * own.group].iter().all(|head| head.is_gone)
    };
    let count = boxed.len();
    if boxed.iter().all(is_gone) {
        (UnitEdit::GiveBack(groups_of(boxed)), format!("give {count} KV groups back"))
    } else {
        (UnitEdit::TakeAway(groups_of(boxed)), format!("take {count} KV groups away"))
    }
}

/// What a click does: takes away what stays, gives back what goes.
pub(super) fn edit_of(config: &ModelConfig, removal: &Removal, map: &HeadMap, pick: Pick) -> (UnitEdit, String) {
    match pick {
        Pick::Layer(layer) => {
            let own = Removal { layers: [layer].into(), ..Removal::default() };
            match removal.layers.contains(&layer) {
                true => (UnitEdit::GiveBack(own), format!("give layer {layer} back")),
                false => (UnitEdit::TakeAway(own), format!("take layer {layer} away")),
            }
        }
        Pick::Group(layer, group) => {
            let own = groups_of(&[(layer, group)]);
            let is_gone = removal.units.get(&layer).is_some_and(|units| units.kv_groups.contains(&group));
            match is_gone {
                true => (UnitEdit::GiveBack(own), format!("give KV group {group} of layer {layer} back")),
                false => (UnitEdit::TakeAway(own), format!("take KV group {group} of layer {layer} away")),
            }
        }
        Pick::Head(layer, head) => {
            let shape = &config.layers[layer];
            let own = units_of(
                layer,
                LayerUnits {
                    heads: even_heads(shape.heads / shape.kv_heads, map, layer, head),
                    ..LayerUnits::default()
                },
            );
            match map.layers[layer].heads[head].is_gone {
                true => (UnitEdit::GiveBack(own), format!("give head {head} of layer {layer} and its like back")),
                false => (UnitEdit::TakeAway(own), format!("take head {head} of layer {layer} and its like away")),
            }
        }
    }
}

/// A head and one of every other group that stays, so that groups stay alike: the lowest where they go, the
/// highest of those that went where they come back.
fn even_heads(group: usize, map: &HeadMap, layer: usize, head: usize) -> std::collections::BTreeSet<usize> {
    let heads = &map.layers[layer].heads;
    let goes = heads[head].is_gone;
    let mut found = std::collections::BTreeSet::from([head]);
    for first in (0..heads.len()).step_by(group) {
        let members = first..first + group;
        let is_whole_gone = heads[members.clone()].iter().all(|head| head.is_gone);
        if members.contains(&head) || (is_whole_gone && !goes) {
            continue;
        }
        let like = members.filter(|&other| heads[other].is_gone == goes);
        let rank = |&other: &usize| heads[other].score.map_or((other - first) as f64, |score| score.0);
        let chosen = match goes {
            true => like.max_by(|a, b| rank(a).total_cmp(&rank(b))),
            false => like.min_by(|a, b| rank(a).total_cmp(&rank(b))),
        };
        found.extend(chosen);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::heads::map_of;
    use super::*;
    use crate::engine::checkpoint::{Checkpoint, Structure};

    fn demo() -> Checkpoint {
        Checkpoint::open(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo"))).expect("opens")
    }

    #[test]
    fn a_head_goes_with_one_of_every_other_group_and_comes_back_with_it() {
        let demo = demo();
        let config = demo.config.as_ref().expect("config");
        let mut removal = Removal::default();
        removal.layer_mut(2).kv_groups.insert(3);
        let map = map_of(config, &removal, None);
        let (UnitEdit::TakeAway(units), _) = edit_of(config, &removal, &map, Pick::Head(2, 1)) else {
            panic!("a head that stays is taken away")
        };
        assert_eq!(units.units[&2].heads, [1, 2, 4].into(), "one of each group, none of the one that goes");
        removal.add(&units);
        Structure::new(config, &removal).expect("legal");
        let map = map_of(config, &removal, None);
        let (UnitEdit::GiveBack(back), _) = edit_of(config, &removal, &map, Pick::Head(2, 2)) else {
            panic!("a head that goes comes back")
        };
        removal.subtract(&back);
        assert_eq!(removal.units[&2].heads, std::collections::BTreeSet::new());
    }

    #[test]
    fn boxes_take_and_give_back() {
        let demo = demo();
        let config = demo.config.as_ref().expect("config");
        let mut removal = groups_of(&[(0, 0)]);
        let boxed = [(0, 0), (1, 2)];
        let (UnitEdit::TakeAway(units), what) = boxed_edit(&map_of(config, &removal, None), &boxed) else {
            panic!("one of them stays, so all go")
        };
        assert_eq!(what, "take 2 KV groups away");
        removal.add(&units);
        assert!(matches!(boxed_edit(&map_of(config, &removal, None), &boxed).0, UnitEdit::GiveBack(_)));
    }
}
