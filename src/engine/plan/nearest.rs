//! The nearest legal choice to a misspelled word, by edit distance.

/// Insertions, deletions, substitutions and swaps of neighbours that turn `a` into `b`, letter
/// case aside (optimal string alignment).
pub(super) fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().flat_map(char::to_lowercase).collect();
    let b: Vec<char> = b.chars().flat_map(char::to_lowercase).collect();
    let mut before_last: Vec<usize> = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, &left) in a.iter().enumerate() {
        let mut row = vec![i + 1; b.len() + 1];
        for (j, &right) in b.iter().enumerate() {
            let mut best = (last[j] + usize::from(left != right)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && left == b[j - 1] && a[i - 1] == right {
                best = best.min(before_last[j - 1] + 1);
            }
            row[j + 1] = best;
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

/// Longer words are cut before they are compared: no legal choice is that long.
const LONGEST: usize = 200;

/// The candidate with the smallest distance to `word`; the first of equals.
pub(super) fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let word: String = word.chars().take(LONGEST).collect();
    candidates.iter().copied().min_by_key(|candidate| distance(&word, candidate))
}

/// A remedy that names the nearest candidate and, where they are few, all of them.
pub(super) fn advice(word: &str, candidates: &[&str]) -> String {
    match nearest(word, candidates) {
        None => "remove it".to_owned(),
        Some(best) if candidates.len() == 1 => format!("write \"{best}\""),
        Some(best) if candidates.len() <= 20 => {
            format!("the nearest is \"{best}\"; there are {}", candidates.join(", "))
        }
        Some(best) => format!("the nearest is \"{best}\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits_and_swaps() {
        assert_eq!(distance("", ""), 0);
        assert_eq!(distance("q4_k", "Q4_K"), 0);
        assert_eq!(distance("q4k", "q4_k"), 1);
        assert_eq!(distance("fromat", "format"), 1, "a swap of neighbours is one edit");
        assert_eq!(distance("", "abc"), 3);
    }

    #[test]
    fn the_nearest_of_equals_is_the_first() {
        assert_eq!(nearest("q4k", &["q8_0", "q4_k", "q5_k"]), Some("q4_k"));
        assert_eq!(nearest("x", &["a", "b"]), Some("a"));
        assert_eq!(nearest("x", &[]), None);
    }
}
