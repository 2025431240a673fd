//! int2 to int8: codes with a scale per group, channel or tensor, as compressed-tensors, GPTQ and AWQ hold them.

use super::scheme::{self, Granularity, IntScheme};
use super::survey::{Shared, Survey};
use super::{Dtype, Encoding, Format, ScanBuffers};
use crate::kernels::ints::{self, Codes, Grid, ScaleChoice, ScaleType};
use crate::kernels::packed::{IntLayout, IntScale, Layout};
use crate::kernels::scan::{self, Errors};

/// One weight in so many is kept for the choice of a scale for a whole tensor. A prime, so that
/// the kept ones do not come from few columns.
const SAMPLE_STEP: usize = 61;

/// An integer format.
#[derive(Debug)]
pub(super) struct Ints {
    scheme: IntScheme,
    id: &'static str,
    fallback: Option<&'static str>,
}

impl Ints {
    pub(super) fn new(scheme: IntScheme) -> Self {
        Self { scheme, id: scheme.id().leak(), fallback: scheme.narrower().map(|narrower| &*narrower.id().leak()) }
    }

    /// The one grid of a tensor: surveyed, or else that of the rows given.
    fn tensor_grid(&self, source: &[f32], how: &Encoding<'_>) -> Option<Grid> {
        if self.scheme.granularity() != Granularity::Tensor {
            return None;
        }
        match how.shared {
            Some(Shared::Grid(grid)) => Some(*grid),
            _ => match super::survey_matrix(self, source, how) {
                Some(Shared::Grid(grid)) => Some(grid),
                _ => None,
            },
        }
    }
}

impl Format for Ints {
    fn id(&self) -> &'static str {
        self.id
    }

    fn dtype(&self) -> Dtype {
        Dtype::Int(self.scheme)
    }

    fn fallback(&self) -> Option<&'static str> {
        self.fallback
    }

    fn encode_rows(&self, source: &[f32], how: &Encoding<'_>, out: &mut [u8]) {
        let codes = self.scheme.codes();
        let group = self.scheme.group(how.row_len);
        let row_bytes = self.scheme.row_parts(how.row_len).bytes;
        let tensor_grid = self.tensor_grid(source, how);
        let mut buffer = Vec::new();
        let importance = how.importance.unwrap_or_default();
        for (row, out) in source.chunks_exact(how.row_len.max(1)).zip(out.chunks_exact_mut(row_bytes.max(1))) {
            let choose = |index: usize, values: &[f32]| match tensor_grid {
                Some(grid) => grid,
                None => {
                    let weights = importance.get(index * group..index * group + values.len()).unwrap_or_default();
                    codes.choose(values, weights, how.scale_choice)
                }
            };
            codes.encode_row(row, group, choose, &mut buffer, out);
        }
    }

    fn decode_row(&self, source: &[u8], out: &mut [f32]) {
        self.scheme.codes().decode_row(source, self.scheme.group(out.len()), &mut Vec::new(), out);
    }

    fn survey(&self, how: &Encoding<'_>) -> Option<Box<dyn Survey>> {
        (self.scheme.granularity() == Granularity::Tensor).then(|| {
            Box::new(TensorSurvey {
                codes: self.scheme.codes(),
                choice: how.scale_choice,
                importance: how.importance.unwrap_or_default().to_vec(),
                range: (0.0, 0.0),
                seen: 0,
                sample: Vec::new(),
                weights: Vec::new(),
            }) as Box<dyn Survey>
        })
    }

    fn layout(&self) -> Option<Layout> {
        let group = match self.scheme.granularity() {
            Granularity::Tensor | Granularity::Channel => 0,
            Granularity::Group(len) => u32::from(len),
        };
        let codes = self.scheme.codes();
        let scale = match codes.scale {
            ScaleType::F16 => IntScale::F16,
            ScaleType::Bf16 => IntScale::Bf16,
            ScaleType::F32 => IntScale::F32,
        };
        // Groups of 16 have no kernel: products take runs of 32.
        let has_kernel = group.is_multiple_of(32);
        has_kernel.then_some(Layout::Int(IntLayout {
            bits: codes.bits as u8,
            group,
            has_zeros: !codes.symmetric,
            scale,
        }))
    }

    fn scan(&self, source: &[f32], how: &Encoding<'_>, _: &mut ScanBuffers, errors: &mut Errors) {
        let (codes, group) = (self.scheme.codes(), self.scheme.group(how.row_len).max(1));
        let tensor_grid = self.tensor_grid(source, how);
        if tensor_grid.is_none() && how.scale_choice == ScaleChoice::AbsMax {
            let groups =
                scan::Groups { bits: codes.bits as u8, len: group, symmetric: codes.symmetric, scale: codes.scale };
            return scan::groups(source, how.row_len, groups, errors);
        }
        let importance = how.importance.unwrap_or_default();
        for row in source.chunks_exact(how.row_len.max(1)) {
            for (index, values) in row.chunks(group).enumerate() {
                let grid = tensor_grid.unwrap_or_else(|| {
                    let weights = importance.get(index * group..index * group + values.len()).unwrap_or_default();
                    codes.choose(values, weights, how.scale_choice)
                });
                scan::grid(values, grid.scale, f32::from(grid.zero), f32::from(codes.top()), errors);
            }
        }
    }

    fn bits_per_weight(&self) -> f64 {
        scheme::int_bits(self.scheme)
    }

    fn stored_bytes(&self, rows: u64, len: usize) -> Option<u64> {
        self.fits(len).then(|| self.scheme.stored_bytes(rows, len)).flatten()
    }
}

/// Range and a sample of a tensor.
struct TensorSurvey {
    codes: Codes,
    choice: ScaleChoice,
    importance: Vec<f32>,
    range: (f32, f32),
    seen: usize,
    sample: Vec<f32>,
    weights: Vec<f32>,
}

impl Survey for TensorSurvey {
    fn look(&mut self, rows: &[f32]) {
        let (low, high) = ints::range(rows);
        self.range = (self.range.0.min(low), self.range.1.max(high));
        if self.choice != ScaleChoice::AbsMax {
            let first = self.seen.next_multiple_of(SAMPLE_STEP);
            for at in (first..self.seen + rows.len()).step_by(SAMPLE_STEP) {
                self.sample.push(rows[at - self.seen]);
                if !self.importance.is_empty() {
                    self.weights.push(self.importance[at % self.importance.len()]);
                }
            }
        }
        self.seen += rows.len();
    }

    fn finish(mut self: Box<Self>) -> Shared {
        // Both ends count for themselves: a sample that misses them would clip unasked.
        for end in [self.range.0, self.range.1] {
            self.sample.push(end);
            if !self.importance.is_empty() {
                let mean = self.importance.iter().sum::<f32>() / self.importance.len() as f32;
                self.weights.push(mean / SAMPLE_STEP as f32);
            }
        }
        Shared::Grid(self.codes.choose(&self.sample, &self.weights, self.choice))
    }
}
