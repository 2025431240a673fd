//! Values of layers, heads or KV groups that were measured elsewhere, laid over scores: block influence,
//! gradients of head masks, and ablation, as `lapidary sensitivity` writes them.

use super::UnitScores;
use crate::checkpoint::ModelConfig;
use crate::error::{Fault, Result, Stage};
use crate::sensitivity::Label;
use crate::sensitivity::units::{UnitKind, UnitTable};

impl UnitScores {
    /// Puts the values of `table` in the places of these scores; units of other kinds keep theirs.
    ///
    /// # Errors
    /// A table of another checkpoint, or one that lacks units or has too many.
    pub fn lay_over(&mut self, table: &UnitTable, config: &ModelConfig) -> Result<()> {
        let fault = |cause: String| {
            Fault::new(Stage::Sensitivity, cause).at(format!("metric {}", table.metric)).fix("measure this checkpoint")
        };
        if table.checkpoint != self.checkpoint {
            return Err(fault("the table was measured on another checkpoint".to_owned()).into());
        }
        let counts = config.layers.iter().map(|shape| match table.kind {
            UnitKind::Layer => 1,
            UnitKind::Head => shape.heads,
            UnitKind::KvGroup => shape.kv_heads,
        });
        let mut found: Vec<Vec<Option<(f64, f64)>>> = counts.map(|count| vec![None; count]).collect();
        for value in &table.values {
            let place = found.get_mut(value.layer).and_then(|layer| layer.get_mut(value.index.unwrap_or(0)));
            match place {
                Some(place) if value.value.is_finite() => *place = Some((value.value, value.stderr)),
                _ => return Err(fault(format!("it has a value of layer {} that does not fit", value.layer)).into()),
            }
        }
        for (index, (values, target)) in found.into_iter().zip(&mut self.layers).enumerate() {
            let Some(values) = values.into_iter().collect::<Option<Vec<(f64, f64)>>>() else {
                return Err(fault(format!("it lacks units of layer {index}")).into());
            };
            let (values, stderr): (Vec<f64>, Vec<f64>) = values.into_iter().unzip();
            let group = config.layers[index].heads / config.layers[index].kv_heads;
            match table.kind {
                UnitKind::Layer => target.layer = values.first().copied(),
                UnitKind::Head => {
                    target.kv_groups = values.chunks_exact(group).map(|heads| heads.iter().sum()).collect();
                    (target.heads, target.head_stderr) = (values, stderr);
                }
                UnitKind::KvGroup => {
                    target.heads = values.iter().flat_map(|value| vec![value / group as f64; group]).collect();
                    (target.kv_groups, target.head_stderr) = (values, Vec::new());
                }
            }
        }
        self.metric = format!("{} and {}", self.metric, table.metric);
        if table.label != Label::Predicted {
            self.label = table.label;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{LayerShape, Rope};
    use crate::structure::{LayerScores, Take, select};

    fn network() -> (ModelConfig, UnitScores) {
        let config = ModelConfig {
            family: "llama".to_owned(),
            hidden: 32,
            layers: vec![LayerShape { heads: 4, kv_heads: 2, mlp_channels: 3 }; 3],
            head_dim: 8,
            vocab: 40,
            norm_eps: 1e-5,
            rope: Rope { theta: 10_000.0, scaling: None, freq_factors: None },
            tied_embeddings: true,
            context: 64,
            bos: None,
            eos: Vec::new(),
        };
        let layer = LayerScores {
            heads: vec![1.0; 4],
            kv_groups: vec![2.0; 2],
            channels: vec![3.0, 1.0, 2.0],
            layer: None,
            head_stderr: Vec::new(),
        };
        let scores = UnitScores {
            version: 1,
            checkpoint: "f".to_owned(),
            metric: "flap".to_owned(),
            label: Label::Predicted,
            text_hash: None,
            tokens: 0,
            device: None,
            layers: vec![layer; 3],
        };
        (config, scores)
    }

    fn table(kind: &str, values: &[(usize, Option<usize>, f64)]) -> UnitTable {
        let values: Vec<serde_json::Value> = values
            .iter()
            .map(|(layer, index, value)| serde_json::json!({"layer": layer, "index": index, "value": value, "stderr": 0.5}))
            .collect();
        let document = serde_json::json!({
            "version": 1, "checkpoint": "f", "metric": "layer_removal", "unit": "nats", "kind": kind,
            "label": "measured_weights_only", "basis": { "name": "t", "hash": "h", "tokens": 1 }, "values": values,
        });
        serde_json::from_value(document).expect("reads")
    }

    #[test]
    fn layers_are_ranked_by_a_table_and_channels_by_the_score() {
        let (config, mut scores) = network();
        let take = Take { layers: 1, channels: 0.34, ..Take::default() };
        assert!(select(&config, &scores, &take, &|_| 1).is_err(), "flap does not rank layers");
        let measured = table("layer", &[(0, None, 0.9), (1, None, 0.1), (2, None, 0.5)]);
        scores.lay_over(&measured, &config).expect("fits");
        let removal = select(&config, &scores, &take, &|_| 1).expect("selects");
        assert_eq!(removal.layers, [1].into());
        assert_eq!(removal.units[&0].channels, [1].into());
        assert_eq!((scores.metric.as_str(), scores.label), ("flap and layer_removal", Label::MeasuredWeightsOnly));
    }

    #[test]
    fn heads_make_groups_and_what_does_not_fit_is_refused() {
        let (config, mut scores) = network();
        let all = |count: usize| -> Vec<(usize, Option<usize>, f64)> {
            (0..3).flat_map(|layer| (0..count).map(move |index| (layer, Some(index), index as f64))).collect()
        };
        scores.lay_over(&table("head", &all(4)), &config).expect("fits");
        assert_eq!((scores.layers[2].kv_groups.as_slice(), scores.layers[2].head_stderr.len()), (&[1.0, 5.0][..], 4));
        scores.lay_over(&table("kv_group", &all(2)), &config).expect("fits");
        assert_eq!(scores.layers[0].heads, [0.0, 0.0, 0.5, 0.5]);
        for (kind, values) in [("head", all(5)), ("head", all(3)), ("layer", vec![(7, None, 1.0)])] {
            assert!(scores.lay_over(&table(kind, &values), &config).is_err());
        }
        scores.checkpoint = "other".to_owned();
        assert!(scores.lay_over(&table("head", &all(4)), &config).is_err());
    }
}
