//! A checkpoint read through a mask: what sparsity costs in quality, and nothing that it saves.
//!
//! The answer is a checkpoint like any other: it can be evaluated as it is, quantized by a plan, or
//! written. Its tensors are as large and as slow as before; see [`super::masks`]. SparseGPT can quantize what
//! stays in the same sweep, to integers whose scales come from the weights before it, as in the method's own
//! code: then the matrices of the answer are of that type, and written as they are.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::activations::shared_input;
use super::masks::{Pattern, Smallest, mask_row};
use super::walk::Walk;
use super::{Activations, Sample, sparse_gpt};
use crate::checkpoint::{Checkpoint, Role, RowMap, TensorInfo};
use crate::device::Device;
use crate::error::{Fault, Result, Stage};
use crate::format::{self, Dtype, Format, Granularity, IntScheme};
use crate::kernels::ints::{Grid, ScaleChoice};
use crate::model::Model;
use crate::progress::{Phase, Progress, Unit};

/// How weights are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskMethod {
    /// Smallest in the tensor.
    Magnitude,
    /// Smallest in the row by weight times input.
    Wanda,
    /// By second moments; what stays makes up for what goes.
    SparseGpt,
}

impl MaskMethod {
    /// Every method.
    pub const ALL: [Self; 3] = [Self::Magnitude, Self::Wanda, Self::SparseGpt];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Magnitude => "magnitude",
            Self::Wanda => "wanda",
            Self::SparseGpt => "sparsegpt",
        }
    }

    /// What it is, in one sentence.
    pub fn description(self) -> &'static str {
        match self {
            Self::Magnitude => "The smallest weights of each matrix go",
            Self::Wanda => "The smallest weights of each row go, by weight times the size of its input",
            Self::SparseGpt => "Weights go by second moments of their inputs, and those that stay make up for them",
        }
    }

    /// True if it looks at a text.
    pub fn needs_sample(self) -> bool {
        self != Self::Magnitude
    }

    /// The method called `name`.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }
}

/// What a mask is, in the words that every user of one must see.
pub const STATEMENT: &str = "A mask is for study: in memory the tensors are as large as before and no step runs faster, unless a runtime has a kernel for the pattern.";

/// Windows of a text that say enough of every input, unless told otherwise.
pub const USUAL_WINDOWS: usize = 64;

/// Memory for what SparseGPT computes, unless told otherwise.
pub const USUAL_MEMORY: u64 = 16 << 30;

/// Formats that SparseGPT can bring what stays to within its sweep: integers by group or channel.
pub fn joint_formats() -> impl Iterator<Item = &'static dyn Format> {
    format::all().iter().copied().filter(|format| scheme_of(MaskMethod::SparseGpt, format.dtype()).is_ok())
}

/// How a mask is made.
#[derive(Clone, Copy, Debug)]
pub struct MaskOptions<'a> {
    /// How weights are chosen.
    pub method: MaskMethod,
    /// Which are compared and how many go.
    pub pattern: Pattern,
    /// The text's windows, for methods that look at a text.
    pub sample: Option<&'a Sample>,
    /// Memory for the matrices that SparseGPT computes, and for the states between layers, where some is left.
    pub most_bytes: u64,
    /// The integers, by group or channel, that SparseGPT brings what stays to.
    pub format: Option<Dtype>,
    /// Where the text is read; none for the CPU, which does all else.
    pub device: Option<&'a Device>,
}

/// What was masked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MaskReport {
    /// [`MaskMethod::name`].
    pub method: Cow<'static, str>,
    /// As the field writes it: `2:4`, `0.5`.
    pub pattern: String,
    /// Format of the matrices, where they were quantized in the same sweep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Cow<'static, str>>,
    /// BLAKE3 of the text, where one was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_hash: Option<String>,
    /// Matrices masked.
    pub tensors: usize,
    /// Their weights.
    pub weights: u64,
    /// Sum over matrices of `½ tr(ΔW H ΔWᵀ)`, where the method has second moments.
    pub loss: Option<f64>,
    /// What read the text, where the method looks at one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// [`STATEMENT`].
    pub statement: Cow<'static, str>,
}

impl MaskReport {
    /// Method, pattern and format: `sparsegpt 2:4 int4_g128`.
    pub fn name(&self) -> String {
        let format = self.format.as_ref().map_or_else(String::new, |format| format!(" {format}"));
        format!("{} {}{format}", self.method, self.pattern)
    }
}

/// Rows masked by themselves.
#[derive(Debug)]
struct Rows {
    norms: Option<Vec<f32>>,
    pattern: Pattern,
}

impl RowMap for Rows {
    fn map(&self, _: usize, values: &mut [f32]) {
        mask_row(values, self.norms.as_deref(), self.pattern);
    }
}

/// Values that were computed.
#[derive(Debug)]
struct Computed(Vec<f32>);

impl RowMap for Computed {
    fn map(&self, row: usize, values: &mut [f32]) {
        let len = values.len();
        values.copy_from_slice(&self.0[row * len..(row + 1) * len]);
    }
}

fn decode(checkpoint: &Checkpoint, tensor: &TensorInfo) -> Result<Vec<f32>> {
    let mut values = Vec::new();
    checkpoint.decode_rows(tensor, 0..tensor.row_count(), &mut Vec::new(), &mut values)?;
    Ok(values)
}

/// Reads `checkpoint` through a mask on the linears of its layers. SparseGPT holds the masked matrices in
/// memory and takes the sample through the model layer by layer; inputs are those of the model before the mask.
///
/// # Errors
/// A method that needs a text without one, a model too large, a format that this method cannot bring weights
/// to, weights that cannot be decoded, or cancel.
pub fn masked(
    checkpoint: &Checkpoint,
    options: &MaskOptions<'_>,
    progress: &Progress,
) -> Result<(Checkpoint, MaskReport)> {
    let MaskOptions { method, pattern, sample, most_bytes, format, device } = *options;
    let scheme = format.map(|dtype| scheme_of(method, dtype)).transpose()?;
    let subjects: Vec<&TensorInfo> =
        checkpoint.tensors.iter().filter(|tensor| tensor.role.is_layer_linear() && tensor.shape.len() == 2).collect();
    let weights: u64 = subjects.iter().map(|tensor| tensor.weight_count()).sum();
    let need = |sample: Option<&'_ Sample>| {
        sample.cloned().ok_or_else(|| {
            Fault::new(Stage::Sensitivity, format!("the method {} needs a text", method.name()))
                .fix("give a text, or choose magnitude")
        })
    };
    let mut maps: BTreeMap<String, Arc<dyn RowMap>> = BTreeMap::new();
    let mut rows = BTreeMap::new();
    let (mut loss, mut ran_on) = (None, None);
    let on_cpu = Device::default();
    let load = || Model::load_on(checkpoint, device.unwrap_or(&on_cpu), progress);
    match method {
        MaskMethod::Magnitude => {
            progress.begin(Phase::MeasuringWeights, weights, Unit::Items);
            for tensor in &subjects {
                progress.check()?;
                let map: Arc<dyn RowMap> = match pattern {
                    Pattern::Share(share) => Arc::new(Smallest::of(&decode(checkpoint, tensor)?, share)),
                    Pattern::Blocks { .. } => Arc::new(Rows { norms: None, pattern }),
                };
                maps.insert(tensor.name.clone(), map);
                progress.advance(tensor.weight_count());
            }
        }
        MaskMethod::Wanda => {
            let sample = need(sample)?;
            let model = load()?;
            let roles = [Role::Q, Role::O, Role::Gate, Role::Down];
            let seen = Activations::watch_roles(&model, &sample, &roles, progress)?;
            ran_on = Some(model.device());
            for tensor in &subjects {
                let Some(layer) = tensor.layer else { continue };
                let norms = seen.of(layer, tensor.role).mean_squares().map(|square| square.sqrt() as f32).collect();
                maps.insert(tensor.name.clone(), Arc::new(Rows { norms: Some(norms), pattern }));
            }
        }
        MaskMethod::SparseGpt => {
            if weights.saturating_mul(4) > most_bytes {
                return Err(Fault::new(Stage::Sensitivity, "the masked matrices do not fit the memory allowed")
                    .fix("use Wanda, which streams, or allow more memory")
                    .file(&checkpoint.path)
                    .into());
            }
            let sample = need(sample)?;
            check_groups(&subjects, scheme)?;
            let model = load()?;
            let walk = Walk::new(&model, &sample, most_bytes.saturating_sub(weights.saturating_mul(4)), progress);
            let made = sparse_gpt(checkpoint, walk, &subjects, pattern, scheme, progress)?;
            ran_on = Some(model.device());
            (maps, rows) = (made.maps, made.rows);
            loss = Some(made.loss);
        }
    }
    let report = MaskReport {
        method: method.name().into(),
        pattern: pattern.to_string(),
        format: format.and_then(format::of_dtype).map(|format| format.id().into()),
        text_hash: sample.filter(|_| method.needs_sample()).map(|sample| sample.text_hash.clone()),
        tensors: maps.len() + rows.len(),
        weights,
        loss,
        device: ran_on,
        statement: STATEMENT.into(),
    };
    let hash = sample.map_or("", |sample| sample.text_hash.as_str());
    let what = format!("{} {pattern} {hash} {}", method.name(), report.format.as_deref().unwrap_or_default());
    let view = checkpoint.mapped(&maps, &what);
    Ok((if rows.is_empty() { view } else { view.with_rows(rows, &what)? }, report))
}

/// The integers that a sweep can bring weights to.
fn scheme_of(method: MaskMethod, dtype: Dtype) -> Result<IntScheme> {
    let fault = |cause: String, remedy: &str| Err(Fault::new(Stage::Sensitivity, cause).fix(remedy).into());
    match dtype {
        _ if method != MaskMethod::SparseGpt => {
            fault(format!("{} changes no weight that stays, so it quantizes none", method.name()), "use sparsegpt")
        }
        Dtype::Int(scheme) if scheme.granularity() != Granularity::Tensor => Ok(scheme),
        other => fault(
            format!("the sweep cannot bring weights to {other}"),
            "use integers by group or channel, such as int4_g128",
        ),
    }
}

/// What SparseGPT made: matrices by name, as values or as rows of a quantized type.
#[derive(Default)]
struct Made {
    maps: BTreeMap<String, Arc<dyn RowMap>>,
    rows: BTreeMap<String, (Dtype, Vec<u8>)>,
    loss: f64,
}

/// The grids of a matrix, from its weights before the sweep: one a row and group.
struct Grids {
    scheme: IntScheme,
    group: usize,
    groups: usize,
    all: Vec<Grid>,
}

impl Grids {
    fn new(scheme: IntScheme, values: &[f32], cols: usize) -> Self {
        let parts = scheme.row_parts(cols);
        let choose = |values: &[f32]| scheme.codes().choose(values, &[], ScaleChoice::AbsMax);
        let all = values.par_chunks_exact(cols).flat_map_iter(|row| row.chunks(parts.group).map(choose)).collect();
        Self { scheme, group: parts.group, groups: parts.groups, all }
    }

    fn of(&self, row: usize, group: usize) -> Grid {
        self.all[row * self.groups + group]
    }

    /// The value that is stored for a weight.
    fn store(&self, row: usize, col: usize, value: f64) -> f64 {
        f64::from(self.scheme.codes().nearest(value as f32, self.of(row, col / self.group)))
    }

    /// Rows of values that lie on the grids.
    fn encode(&self, values: &[f32], cols: usize) -> Vec<u8> {
        let row_bytes = self.scheme.row_parts(cols).bytes;
        let mut out = vec![0; values.len() / cols * row_bytes];
        out.par_chunks_exact_mut(row_bytes).zip(values.par_chunks_exact(cols)).enumerate().for_each_init(
            Vec::new,
            |buffer, (row, (out, values))| {
                self.scheme.codes().encode_row(values, self.group, |group, _| self.of(row, group), buffer, out);
            },
        );
        out
    }
}

/// Refuses matrices whose rows do not fill the groups that the sweep brings weights to.
fn check_groups(subjects: &[&TensorInfo], scheme: Option<IntScheme>) -> Result<()> {
    let Some(scheme) = scheme else { return Ok(()) };
    let is_filled = |tensor: &TensorInfo| Dtype::Int(scheme).row_bytes(tensor.row_len()).is_some();
    match subjects.iter().find(|tensor| !is_filled(tensor)) {
        None => Ok(()),
        Some(tensor) => {
            let cause = format!("rows of {} do not fill the groups of {}", tensor.row_len(), scheme.id());
            Err(Fault::new(Stage::Sensitivity, cause).at(&tensor.name).fix("use a smaller group").into())
        }
    }
}

/// Sweeps layer by layer, so that the second moments of one layer are in memory at a time.
fn sparse_gpt(
    checkpoint: &Checkpoint,
    mut walk: Walk<'_>,
    subjects: &[&TensorInfo],
    pattern: Pattern,
    scheme: Option<IntScheme>,
    progress: &Progress,
) -> Result<Made> {
    let mut made = Made::default();
    let scale = 2.0 / walk.tokens().max(1) as f64;
    while let Some(layer) = walk.next_layer() {
        let mut moments: BTreeMap<Role, Vec<f64>> = BTreeMap::new();
        walk.step(progress, &mut |input| {
            if let Some(&first) = input.roles.first() {
                let own = moments.entry(first).or_insert_with(|| vec![0.0; input.width * input.width]);
                add_products(own, input.values, input.width);
            }
        })?;
        moments.values_mut().flatten().for_each(|value| *value *= scale);
        for tensor in subjects.iter().filter(|tensor| tensor.layer == Some(layer)) {
            let Some(hessian) = moments.get(&shared_input(tensor.role)) else { continue };
            let (mut values, cols) = (decode(checkpoint, tensor)?, tensor.row_len());
            let grids = scheme.map(|scheme| Grids::new(scheme, &values, cols));
            let store = grids.as_ref().map(|grids| |row, col, value| grids.store(row, col, value));
            let store = store.as_ref().map(|store| store as &sparse_gpt::Store<'_>);
            made.loss += sparse_gpt::sweep(&mut values, cols, hessian, pattern, store, progress)?.loss;
            match grids {
                Some(grids) => {
                    let rows = grids.encode(&values, cols);
                    made.rows.insert(tensor.name.clone(), (Dtype::Int(grids.scheme), rows));
                }
                None => {
                    made.maps.insert(tensor.name.clone(), Arc::new(Computed(values)));
                }
            }
        }
    }
    Ok(made)
}

/// Adds `x xᵀ` of every row.
fn add_products(sums: &mut [f64], rows: &[f32], width: usize) {
    sums.par_chunks_exact_mut(width).enumerate().for_each(|(a, sums)| {
        for row in rows.chunks_exact(width) {
            let left = f64::from(row[a]);
            sums.iter_mut().zip(row).for_each(|(sum, &right)| *sum += left * f64::from(right));
        }
    });
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::{Batch, Tokenizer};
    use crate::scoring::TextSource;
    use crate::structure::SampleOptions;

    /// The demo, and eight short windows of its text.
    fn demo_sample() -> (Checkpoint, Sample) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo");
        let demo = Checkpoint::open(&folder).expect("opens");
        let text = TextSource::read(&folder.join("calibration.txt")).expect("reads");
        let codec = Tokenizer::of_checkpoint(&demo).expect("tokenizer");
        let options = SampleOptions { context: Some(64), max_windows: Some(8) };
        let sample = Sample::new(&text, &codec, demo.require_config().expect("config"), &options).expect("cuts");
        (demo, sample)
    }

    fn zeros(values: &[f32]) -> usize {
        values.iter().filter(|value| **value == 0.0).count()
    }

    #[test]
    fn masks_on_the_demo_have_their_share_and_sparsegpt_moves_the_outputs_least() {
        let (demo, sample) = demo_sample();
        let progress = Progress::default();
        let mut batch = Batch::default();
        batch.push(&sample.windows[0], None, None);
        let states = |checkpoint: &Checkpoint| {
            Model::load(checkpoint, &progress).expect("loads").hidden(&batch, &mut [], &progress).expect("runs")
        };
        let whole = states(&demo);
        let mut distances = Vec::new();
        for method in MaskMethod::ALL {
            assert_eq!(MaskMethod::find(method.name()), Some(method));
            let make = |pattern| {
                let options = MaskOptions {
                    method,
                    pattern,
                    sample: Some(&sample),
                    most_bytes: 1 << 30,
                    format: None,
                    device: None,
                };
                masked(&demo, &options, &progress).expect("masks")
            };
            let (view, report) = make(Pattern::TWO_OF_FOUR);
            assert_eq!((report.tensors, report.pattern.as_str()), (42, "2:4"));
            assert!(report.statement.contains("no step runs faster"));
            for tensor in view.tensors.iter().filter(|tensor| tensor.role.is_layer_linear()) {
                let values = decode(&view, tensor).expect("decodes");
                assert!(values.chunks_exact(4).all(|group| zeros(group) >= 2), "{}", tensor.name);
            }
            assert_ne!(view.fingerprint, demo.fingerprint);
            let distance: f64 = states(&view).iter().zip(&whole).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            distances.push(distance);
            if method != MaskMethod::SparseGpt {
                let (view, _) = make(Pattern::Share(0.3));
                let tensor = view.tensor("model.layers.2.mlp.up_proj.weight").expect("there");
                let values = decode(&view, tensor).expect("decodes");
                let (all, wide) = (values.len(), tensor.row_len());
                let original = decode(&demo, demo.tensor(&tensor.name).expect("there")).expect("decodes");
                let expected = match method {
                    MaskMethod::Magnitude => (all as f64 * 0.3).floor() as usize,
                    _ => (wide as f64 * 0.3).floor() as usize * tensor.row_count(),
                };
                assert_eq!(zeros(&values), expected.max(zeros(&original)), "{}", method.name());
                assert!(values.iter().zip(&original).all(|(new, old)| *new == 0.0 || new == old));
            }
        }
        let [magnitude, wanda, sparse_gpt] = distances[..] else { panic!("three methods") };
        assert!(sparse_gpt < wanda && sparse_gpt < magnitude, "{magnitude} {wanda} {sparse_gpt}");
        let options = MaskOptions {
            method: MaskMethod::Wanda,
            pattern: Pattern::TWO_OF_FOUR,
            sample: None,
            most_bytes: 0,
            format: None,
            device: None,
        };
        let refused = |options: &MaskOptions<'_>| masked(&demo, options, &progress).expect_err("refused").to_string();
        assert!(refused(&options).contains("needs a text"));
        let int4 = format::find("int4_g128").expect("known").dtype();
        assert!(refused(&MaskOptions { format: Some(int4), ..options }).contains("use sparsegpt"));
        let options =
            MaskOptions { method: MaskMethod::SparseGpt, sample: Some(&sample), most_bytes: 1 << 30, ..options };
        assert!(refused(&MaskOptions { format: Some(Dtype::Q4K), ..options }).contains("int4_g128"));
    }

    /// What is stored is what was computed, zeros included; that weights make up for both is tested in
    /// [`super::super::sparse_gpt`].
    #[test]
    fn sparsegpt_quantizes_in_the_same_sweep() {
        let (demo, sample) = demo_sample();
        let progress = Progress::default();
        for id in ["int4_g128", "int3_channel_asym"] {
            let format = format::find(id).expect("known");
            let options = MaskOptions {
                method: MaskMethod::SparseGpt,
                pattern: Pattern::TWO_OF_FOUR,
                sample: Some(&sample),
                most_bytes: 1 << 30,
                format: None,
                device: None,
            };
            let options = MaskOptions { format: Some(format.dtype()), ..options };
            let (joint, report) = masked(&demo, &options, &progress).expect("masks");
            assert_eq!((report.format.as_deref(), report.tensors), (Some(id), 42));
            for tensor in joint.tensors.iter().filter(|tensor| tensor.role.is_layer_linear()) {
                assert_eq!(tensor.dtype, format.dtype());
                let values = decode(&joint, tensor).expect("decodes");
                assert!(values.chunks_exact(4).all(|group| zeros(group) >= 2), "{}", tensor.name);
            }
            assert_eq!(report.device.as_deref(), Some("cpu"));
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("pool");
            // Without room for the states between layers, which are then computed from the tokens again.
            let linears = demo.tensors.iter().filter(|tensor| tensor.role.is_layer_linear());
            let tight = MaskOptions { most_bytes: linears.map(|tensor| 4 * tensor.weight_count()).sum(), ..options };
            let (again, again_report) = pool.install(|| masked(&demo, &tight, &progress).expect("masks"));
            assert_eq!(again_report, report);
            let bytes = |checkpoint: &Checkpoint| {
                let (mut all, mut rows) = (Vec::new(), Vec::new());
                for tensor in &checkpoint.tensors {
                    checkpoint.read_rows(tensor, 0..tensor.row_count(), &mut rows).expect("reads");
                    all.extend_from_slice(&rows);
                }
                all
            };
            assert!(bytes(&again) == bytes(&joint), "whatever the number of threads and the memory");
        }
    }
}
