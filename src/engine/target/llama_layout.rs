//! The order of q and k rows in a GGUF of the Llama architecture, both directions, without loss.
//!
//! Hugging Face keeps the two halves of a rotary pair half a head apart; GGUF keeps them side by
//! side. llama.cpp's converter reshapes the rows to (heads, 2, half) and swaps the last two axes
//! (`convert_hf_to_gguf.py`, `permute`, MIT). Only whole rows move, so packed rows move too.

/// True if `rows` split into `heads` heads of an even width.
pub fn can_permute(rows: usize, heads: usize) -> bool {
    heads > 0 && rows.is_multiple_of(heads) && (rows / heads).is_multiple_of(2)
}

/// The row of Hugging Face's matrix that GGUF's row `row` holds.
///
/// `rows` is the matrix's number of rows, `heads` its number of heads; see [`can_permute`].
pub fn hugging_face_row(row: usize, rows: usize, heads: usize) -> usize {
    let width = rows / heads;
    let half = width / 2;
    let (head, within) = (row / width, row % width);
    head * width + (within % 2) * half + within / 2
}

/// The row of GGUF's matrix that Hugging Face's row `row` goes to.
pub fn gguf_row(row: usize, rows: usize, heads: usize) -> usize {
    let width = rows / heads;
    let half = width / 2;
    let (head, within) = (row / width, row % width);
    head * width + (within % half) * 2 + within / half
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_head_of_six_rows_is_interleaved() {
        let order: Vec<usize> = (0..6).map(|row| hugging_face_row(row, 6, 1)).collect();
        assert_eq!(order, [0, 3, 1, 4, 2, 5]);
    }

    #[test]
    fn odd_heads_cannot_be_permuted() {
        assert!(can_permute(8, 2));
        assert!(!can_permute(6, 2));
        assert!(!can_permute(7, 2));
        assert!(!can_permute(8, 0));
    }

    proptest! {
        #[test]
        fn the_way_back_undoes_the_way_there(heads in 1usize..9, half in 1usize..17, seed in 0usize..10_000) {
            let rows = heads * half * 2;
            let row = seed % rows;
            prop_assert_eq!(gguf_row(hugging_face_row(row, rows, heads), rows, heads), row);
            prop_assert_eq!(hugging_face_row(gguf_row(row, rows, heads), rows, heads), row);
        }
    }
}
