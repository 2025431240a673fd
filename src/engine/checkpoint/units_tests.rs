//! Tests of what may be taken away.

use super::*;
use crate::checkpoint::Rope;

fn config(layers: usize, heads: usize, kv_heads: usize, channels: usize) -> ModelConfig {
    ModelConfig {
        family: "llama".to_owned(),
        hidden: 32,
        layers: vec![LayerShape { heads, kv_heads, mlp_channels: channels }; layers],
        head_dim: 8,
        vocab: 40,
        norm_eps: 1e-5,
        rope: Rope { theta: 10_000.0, scaling: None, freq_factors: None },
        tied_embeddings: true,
        context: 64,
        bos: None,
        eos: Vec::new(),
    }
}

fn units(layer: usize, kv_groups: &[usize], heads: &[usize], channels: &[usize]) -> Removal {
    let set = |list: &[usize]| list.iter().copied().collect();
    let units = LayerUnits { kv_groups: set(kv_groups), heads: set(heads), channels: set(channels) };
    Removal { layers: BTreeSet::new(), units: BTreeMap::from([(layer, units)]) }
}

#[test]
fn groups_heads_channels_and_layers_go() {
    let config = config(3, 6, 3, 10);
    let mut removal = units(2, &[1], &[0, 5], &[3, 4, 9]);
    removal.layers.insert(0);
    let left = Structure::new(&config, &removal).expect("legal");
    assert_eq!(left.config.layers[0], config.layers[1]);
    assert_eq!(left.config.layers[1], LayerShape { heads: 2, kv_heads: 2, mlp_channels: 7 });
    assert_eq!((left.layers[1].heads.as_slice(), left.layers[1].kv_heads.as_slice()), (&[1, 4][..], &[0, 2][..]));
    assert_eq!(left.layer(2).map(|found| found.0), Some(1));
    assert_eq!(left.layer(0), None);
    assert!(!left.is_whole() && Structure::new(&config, &Removal::default()).expect("legal").is_whole());
}

#[test]
fn a_group_without_query_heads_goes_as_a_whole() {
    let left = Structure::new(&config(1, 6, 3, 4), &units(0, &[], &[2, 3], &[])).expect("legal");
    assert_eq!(left.config.layers[0], LayerShape { heads: 4, kv_heads: 2, mlp_channels: 4 });
    assert_eq!(left.layers[0].kv_heads, [0, 2]);
}

#[test]
fn what_cannot_go_is_refused_with_the_nearest_legal_choice() {
    let config = config(2, 4, 2, 6);
    let layers = |layers: &[usize]| Removal { layers: layers.iter().copied().collect(), ..Removal::default() };
    let all: Vec<usize> = (0..6).collect();
    for (removal, list, cause, remedy) in [
        (units(1, &[0, 1], &[], &[]), "kv_groups", "all query heads of layer 1", "layers = [1]"),
        (units(1, &[], &[0, 1, 2, 3], &[]), "heads", "all query heads", "keep one KV group"),
        (units(0, &[], &[0], &[]), "heads", "every group must keep as many", "take 1 of the heads 2 to 3"),
        (units(0, &[], &[], &all), "channels", "all MLP channels", "keep one"),
        (units(0, &[2], &[], &[]), "kv_groups", "no KV group 2", "layer 0 has 0 to 1"),
        (units(0, &[], &[4], &[]), "heads", "no query head 4", "0 to 3"),
        (units(0, &[], &[], &[6]), "channels", "no MLP channel 6", "0 to 5"),
        (units(2, &[0], &[], &[]), "layers", "no layer 2", "0 to 1"),
        (layers(&[2]), "layers", "no layer 2", "0 to 1"),
        (layers(&[0, 1]), "layers", "all layers", "keep"),
    ] {
        let fault = Structure::new(&config, &removal).expect_err("refused");
        assert_eq!(fault.list, list);
        assert!(fault.cause.contains(cause) && fault.remedy.contains(remedy), "{fault:?}");
    }
}

#[test]
fn adding_and_giving_back_are_opposites() {
    let (first, second) = (units(0, &[1], &[], &[2]), units(1, &[], &[0, 2], &[5]));
    let mut both = first.clone();
    both.add(&second);
    assert_eq!(both.units.len(), 2);
    both.subtract(&second);
    assert_eq!(both, first);
}

#[test]
fn weights_are_counted_with_grouped_heads() {
    // width 32, heads of 8: q and o 2·32·32, k and v 2·32·16, gate, up and down 3·32·10.
    assert_eq!(config(2, 4, 2, 10).layer_weights(), 2 * (2048 + 1024 + 960));
}
