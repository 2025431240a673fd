//! Which candidates no other beats in size, accuracy and speed at once.

/// One model's place among others; what was not measured is `None`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ParetoPoint {
    /// Smaller is better.
    pub file_bytes: u64,
    /// Larger is better.
    pub accuracy: Option<f64>,
    /// Decoded tokens a second; larger is better.
    pub speed: Option<f64>,
}

impl ParetoPoint {
    /// True if `self` is nowhere worse than `other` and somewhere better.
    ///
    /// A figure that one of both lacks cannot be shown to be better, so it stands in the way.
    pub fn dominates(&self, other: &Self) -> bool {
        let at_least = |own: Option<f64>, others: Option<f64>| match (own, others) {
            (Some(own), Some(others)) => own >= others,
            (None, None) => true,
            _ => false,
        };
        let nowhere_worse = self.file_bytes <= other.file_bytes
            && at_least(self.accuracy, other.accuracy)
            && at_least(self.speed, other.speed);
        nowhere_worse
            && (self.file_bytes < other.file_bytes || self.accuracy > other.accuracy || self.speed > other.speed)
    }
}

/// For each point, whether no other dominates it. Equal points are both on the front.
pub fn pareto_front(points: &[ParetoPoint]) -> Vec<bool> {
    points.iter().map(|point| !points.iter().any(|other| other.dominates(point))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn point(file_bytes: u64, accuracy: f64, speed: f64) -> ParetoPoint {
        ParetoPoint { file_bytes, accuracy: Some(accuracy), speed: Some(speed) }
    }

    #[test]
    fn a_point_that_is_larger_slower_and_worse_is_off_the_front() {
        let points = [
            point(100, 0.9, 10.0),
            point(50, 0.8, 20.0),
            point(60, 0.7, 15.0),
            point(50, 0.8, 20.0),
            point(10, 0.1, 5.0),
        ];
        assert_eq!(pareto_front(&points), [true, true, false, true, true]);
    }

    #[test]
    fn what_was_not_measured_is_not_taken_for_worse() {
        let unmeasured = ParetoPoint { file_bytes: 100, accuracy: None, speed: None };
        assert_eq!(pareto_front(&[unmeasured, point(50, 0.9, 9.0)]), [true, true]);
        let smaller = ParetoPoint { file_bytes: 50, ..unmeasured };
        assert_eq!(pareto_front(&[unmeasured, smaller]), [false, true]);
    }

    proptest! {
        #[test]
        fn every_point_off_the_front_is_dominated_by_one_on_it(values in prop::collection::vec((0_u64..5, 0_u8..5, 0_u8..5), 1..30)) {
            let points: Vec<ParetoPoint> =
                values.iter().map(|&(bytes, accuracy, speed)| point(bytes, accuracy.into(), speed.into())).collect();
            let front = pareto_front(&points);
            prop_assert!(front.contains(&true));
            for (index, on_front) in front.iter().enumerate() {
                let beaten = points.iter().zip(&front).any(|(other, &front)| front && other.dominates(&points[index]));
                prop_assert_eq!(beaten, !on_front);
            }
        }
    }
}
