//! Direct labels that avoid one another, their points and the edges.

use eframe::egui::{Pos2, Rect, Vec2, pos2, vec2};

/// One label to place.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The point that is named.
    pub point: Pos2,
    /// Radius of its mark.
    pub radius: f32,
    /// Room that the text takes.
    pub size: Vec2,
}

/// Finds a place for each label, in order of importance: beside, above or below its point, the first
/// that touches neither an earlier label, a point, one of the `obstacles` nor the edge of `bounds`. A
/// label for which
/// there is no place is left out (`None`); its numbers are still told under the pointer.
pub fn place(wanted: &[Wanted], obstacles: &[Rect], bounds: Rect) -> Vec<Option<Rect>> {
    let marks: Vec<Rect> =
        wanted.iter().map(|label| Rect::from_center_size(label.point, Vec2::splat(2.0 * label.radius + 2.0))).collect();
    let mut taken: Vec<Rect> = Vec::new();
    wanted
        .iter()
        .enumerate()
        .map(|(index, label)| {
            let found = candidates(label).into_iter().find(|rect| {
                bounds.contains_rect(*rect)
                    && !obstacles.iter().any(|other| other.intersects(*rect))
                    && !taken.iter().any(|other| other.intersects(rect.expand(1.0)))
                    && !marks.iter().enumerate().any(|(mark, other)| mark != index && other.intersects(*rect))
            });
            taken.extend(found);
            found
        })
        .collect()
}

fn candidates(label: &Wanted) -> [Rect; 10] {
    let Wanted { point, radius, size } = *label;
    let gap = radius + 4.0;
    let half = size / 2.0;
    let centers = [
        vec2(gap + half.x, 0.0),
        vec2(-gap - half.x, 0.0),
        vec2(0.0, -gap - half.y),
        vec2(0.0, gap + half.y),
        vec2(gap + half.x, -gap - half.y * 0.5),
        vec2(gap + half.x, gap + half.y * 0.5),
        vec2(-gap - half.x, -gap - half.y * 0.5),
        vec2(-gap - half.x, gap + half.y * 0.5),
        vec2(0.0, -gap - half.y * 3.0),
        vec2(0.0, gap + half.y * 3.0),
    ];
    centers.map(|offset| Rect::from_center_size(pos2(point.x, point.y) + offset, size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wanted(x: f32, y: f32, width: f32) -> Wanted {
        Wanted { point: pos2(x, y), radius: 4.0, size: vec2(width, 12.0) }
    }

    #[test]
    fn a_lone_label_stands_at_the_right_and_turns_at_the_edge() {
        let bounds = Rect::from_min_size(Pos2::ZERO, vec2(200.0, 100.0));
        let at = |x| place(&[wanted(x, 50.0, 40.0)], &[], bounds)[0].expect("room");
        assert!(at(50.0).left() > 50.0);
        assert!(at(190.0).right() < 190.0);
    }

    proptest! {
        #[test]
        fn placed_labels_never_touch_one_another_nor_leave_the_plot(
            points in prop::collection::vec((0.0f32..300.0, 0.0f32..200.0, 10.0f32..80.0), 0..24)
        ) {
            let bounds = Rect::from_min_size(Pos2::ZERO, vec2(300.0, 200.0));
            let wanted: Vec<Wanted> =
                points.into_iter().map(|(x, y, width)| wanted(x, y, width)).collect();
            let placed: Vec<Rect> = place(&wanted, &[], bounds).into_iter().flatten().collect();
            for (index, one) in placed.iter().enumerate() {
                prop_assert!(bounds.contains_rect(*one));
                for other in &placed[index + 1..] {
                    prop_assert!(!one.intersects(*other));
                }
            }
        }
    }
}
