//! One choice per tensor for one target: readable TOML, edited by hand or from the window.
//!
//! A [`Plan`] names a base (a llama.cpp [`Recipe`], one default format, or nothing: stored types
//! stay) and ordered rules of which the last match wins. [`resolve()`] turns it, for one checkpoint,
//! into one [`Decision`] per tensor with its bytes, and says why. The plan keeps the document it
//! was parsed from, so that comments survive every edit.
//!
//! ```toml
//! version = 1
//! target = "gguf"
//! recipe = "Q4_K_M"
//!
//! search = "device"              # searches may run on a GPU; "cpu" is the default
//!
//! [[rule]]                       # globs match Hugging Face's names
//! match = "model.layers.0.*"
//! format = "q6_k"
//!
//! [[rule]]
//! role = "down"
//! layers = "0-1,14-15"
//! protect = true
//!
//! [constraints]                  # what the result must keep to; see [`constraints`]
//! max_file_size = "2.5MiB"
//!
//! [ties]                         # which tensors of a layer share a format, by target
//! compressed-tensors = "none"
//!
//! [calibration]                  # columns weighted by what they are multiplied with
//! imatrix = "model.imatrix.gguf"
//! ```
//!
//! `[prune]` takes units out of the network, by their index in the checkpoint as it is; see [`Prune`].
//!
//! [`budget`] makes rules of its own, marked `planned = true`: they stand before the others, so that
//! what is said by hand wins, and the next budget replaces them.

pub mod budget;
mod calibration;
mod changes;
pub mod constraints;
mod containers;
mod edit;
pub mod knapsack;
mod layers;
pub mod legality;
mod matcher;
mod nearest;
mod prune;
mod prune_text;
pub mod recipe;
mod resolve;
pub mod room;
mod shapes;
pub mod speed;
pub mod standing;
pub mod tensor_types;
mod text;
mod ties;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;

use toml_edit::DocumentMut;

pub use calibration::{Calibration, check_importance};
pub(crate) use changes::is_alike;
pub use changes::{Change, Changes, changes};
pub use constraints::Constraints;
pub use matcher::{LayerSet, Matcher};
pub use prune::{AddedBias, Prune, units_of};
pub use recipe::Recipe;
pub use resolve::{Choice, Decision, ResolvedPlan, Why, fit, resolve};
pub use shapes::{EvenShape, can_hold, nearest_even, wants_even};
pub use ties::Ties;

use super::checkpoint::{Checkpoint, ModelConfig, TensorInfo};
use super::error::{Fault, Result, Stage};
use super::format;
use super::kernels::ints::ScaleChoice;
use super::target::parts::Scheme;

/// The version of the plan's file format that this program reads and writes.
pub const VERSION: i64 = 1;

/// What the result is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// A GGUF file for llama.cpp: every format of the registry.
    Gguf,
    /// A Hugging Face folder: same names, plain float types.
    HuggingFace,
    /// A Hugging Face folder with compressed-tensors weights: integers and fp8 e4m3, several at once.
    CompressedTensors,
    /// A Hugging Face folder with bitsandbytes weights: nf4 or fp4.
    Bitsandbytes,
    /// A Hugging Face folder with GPTQ's packing: one integer format of 2, 3, 4 or 8 bits.
    Gptq,
    /// A Hugging Face folder with AWQ's packing: one format of 4-bit groups with zeros.
    Awq,
    /// A folder as Hugging Face's whose layers may differ in shape: only this program reads it then.
    Lapidary,
}

impl Target {
    /// Every target.
    pub const ALL: [Self; 7] = [
        Self::Gguf,
        Self::HuggingFace,
        Self::CompressedTensors,
        Self::Bitsandbytes,
        Self::Gptq,
        Self::Awq,
        Self::Lapidary,
    ];

    /// The target as plans write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gguf => "gguf",
            Self::HuggingFace => "hugging_face",
            Self::CompressedTensors => "compressed-tensors",
            Self::Bitsandbytes => "bitsandbytes",
            Self::Gptq => "gptq",
            Self::Awq => "awq",
            Self::Lapidary => "lapidary",
        }
    }

    /// How the target packs quantized weights into safetensors, if it does.
    pub fn scheme(self) -> Option<Scheme> {
        match self {
            Self::Gguf | Self::HuggingFace | Self::Lapidary => None,
            Self::CompressedTensors => Some(Scheme::CompressedTensors),
            Self::Bitsandbytes => Some(Scheme::Bitsandbytes),
            Self::Gptq => Some(Scheme::Gptq),
            Self::Awq => Some(Scheme::Awq),
        }
    }

    /// The target called `name`.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|target| target.name() == name)
    }

    /// True if the target's files can hold tensors of the format called `id`.
    pub fn allows(self, id: &str) -> bool {
        match self {
            Self::Gguf => format::find(id).is_some_and(|format| format.dtype().ggml_id().is_some()),
            _ if matches!(id, "f32" | "f16" | "bf16") => true,
            other => match (other.scheme(), format::find(id)) {
                (Some(scheme), Some(format)) => containers::holds_format(scheme, format.dtype()),
                _ => false,
            },
        }
    }

    /// True if all quantized tensors share one format.
    pub fn holds_one_format(self) -> bool {
        matches!(self, Self::Gptq | Self::Awq | Self::Bitsandbytes)
    }

    /// The ids of all formats that the target can hold, from most bits to fewest.
    pub fn formats(self) -> impl Iterator<Item = &'static str> {
        format::all().iter().map(|format| format.id()).filter(move |id| self.allows(id))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// How the values of a format are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Method {
    /// Round to nearest, every column alike.
    #[default]
    Rtn,
    /// As [`Method::Rtn`], errors weighted by how large each column's input is.
    Imatrix,
    /// Scales of integer groups by least squared error, weighted where the plan has importance.
    RtnMse,
    /// Scales of integer groups by a percentile of the magnitudes; the rest is clipped.
    RtnPercentile(Percentile),
}

/// The percentiles that a method can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are numbers")]
pub enum Percentile {
    P99,
    P99_5,
    P99_9,
    P99_99,
}

impl Method {
    /// Every method.
    pub const ALL: [Self; 7] = [
        Self::Rtn,
        Self::Imatrix,
        Self::RtnMse,
        Self::RtnPercentile(Percentile::P99_9),
        Self::RtnPercentile(Percentile::P99),
        Self::RtnPercentile(Percentile::P99_5),
        Self::RtnPercentile(Percentile::P99_99),
    ];

    /// The method as plans write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rtn => "rtn",
            Self::Imatrix => "imatrix",
            Self::RtnMse => "rtn_mse",
            Self::RtnPercentile(Percentile::P99_9) => "rtn_percentile",
            Self::RtnPercentile(Percentile::P99) => "rtn_percentile_99",
            Self::RtnPercentile(Percentile::P99_5) => "rtn_percentile_99.5",
            Self::RtnPercentile(Percentile::P99_99) => "rtn_percentile_99.99",
        }
    }

    /// How the scales of integer groups are found.
    pub fn scale_choice(self) -> ScaleChoice {
        match self {
            Self::Rtn => ScaleChoice::AbsMax,
            Self::Imatrix | Self::RtnMse => ScaleChoice::LeastSquares,
            Self::RtnPercentile(percentile) => ScaleChoice::Percentile(match percentile {
                Percentile::P99 => 99.0,
                Percentile::P99_5 => 99.5,
                Percentile::P99_9 => 99.9,
                Percentile::P99_99 => 99.99,
            }),
        }
    }

    /// True if the method only concerns integer formats.
    pub(super) fn is_for_integers(self) -> bool {
        matches!(self, Self::RtnMse | Self::RtnPercentile(_))
    }

    /// The method called `name`.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }
}

/// Where searches for codes run, of k-quants, least squares and importance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Search {
    /// On the CPU: the bytes are ggml's.
    #[default]
    Cpu,
    /// On the device that encodes, where there is one: now and then another of two nearly equal choices.
    Device,
}

impl Search {
    /// The places as plans write them.
    pub const NAMES: [&str; 2] = ["cpu", "device"];

    /// The place called `name`.
    pub fn find(name: &str) -> Option<Self> {
        match name {
            "cpu" => Some(Self::Cpu),
            "device" => Some(Self::Device),
            _ => None,
        }
    }

    /// The place as plans write it.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// What a rule does with the tensors it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// Store in a format, its values chosen by a method.
    Format {
        /// Id in the format registry.
        format: &'static str,
        /// How values are chosen; none is imatrix where the plan has one and the format heeds it, else rtn.
        method: Option<Method>,
    },
    /// Keep the stored values.
    Protect,
}

impl Treatment {
    /// The format called `id`, in any case, by whatever method the plan has data for.
    ///
    /// # Errors
    /// The format does not exist; the fault names the nearest that does.
    pub fn format(id: &str) -> Result<Self> {
        match format::find(id) {
            Some(found) => Ok(Self::Format { format: found.id(), method: None }),
            None => Err(unknown_format(id).into()),
        }
    }
}

/// A matcher and what to do with what it matches.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Which tensors the rule is about.
    pub matcher: Matcher,
    /// What happens to them.
    pub treatment: Treatment,
    /// True if the budget planner made the rule and may replace it; editing it makes it the user's.
    pub is_planned: bool,
}

/// Choices for the tensors of a checkpoint, for one target.
///
/// Two plans are equal if they choose alike; comments and spacing do not count.
#[derive(Clone, Debug)]
pub struct Plan {
    checkpoint: Option<String>,
    target: Target,
    recipe: Option<Recipe>,
    default: Option<Treatment>,
    rules: Vec<Rule>,
    calibration: Option<Calibration>,
    constraints: Constraints,
    /// Ties by target, where they are not what its runtimes ask for.
    ties: Vec<(Target, Ties)>,
    prune: Prune,
    search: Search,
    /// The text that the fields above were read from, edited along with them.
    document: DocumentMut,
    /// The file the plan came from, for errors.
    path: Option<PathBuf>,
}

impl PartialEq for Plan {
    fn eq(&self, other: &Self) -> bool {
        self.checkpoint == other.checkpoint
            && self.target == other.target
            && self.recipe == other.recipe
            && self.default == other.default
            && self.rules == other.rules
            && self.calibration == other.calibration
            && self.constraints == other.constraints
            && self.ties == other.ties
            && self.prune == other.prune
            && self.search == other.search
    }
}

impl Plan {
    /// A plan that keeps every stored type; `checkpoint` is the fingerprint it is made for.
    pub fn new(target: Target, checkpoint: Option<&str>) -> Self {
        let mut document = DocumentMut::new();
        document.insert("version", toml_edit::value(VERSION));
        if let Some(fingerprint) = checkpoint {
            document.insert("checkpoint", toml_edit::value(fingerprint));
        }
        document.insert("target", toml_edit::value(target.name()));
        Self {
            checkpoint: checkpoint.map(str::to_owned),
            target,
            recipe: None,
            default: None,
            rules: Vec::new(),
            calibration: None,
            constraints: Constraints::default(),
            ties: Vec::new(),
            prune: Prune::default(),
            search: Search::default(),
            document,
            path: None,
        }
    }

    /// A plan of one recipe and no rules.
    pub fn of_recipe(target: Target, checkpoint: Option<&str>, recipe: Recipe) -> Self {
        let mut plan = Self::new(target, checkpoint);
        plan.set_recipe(Some(recipe));
        plan
    }

    /// Fingerprint of the checkpoint that the plan was made for, if it says so.
    pub fn checkpoint(&self) -> Option<&str> {
        self.checkpoint.as_deref()
    }

    /// Where searches run.
    pub fn search(&self) -> Search {
        self.search
    }

    /// Says where searches run.
    pub fn set_search(&mut self, search: Search) {
        self.search = search;
        match search {
            Search::Cpu => {
                self.document.remove("search");
            }
            Search::Device => {
                self.document.insert("search", toml_edit::value(search.name()));
            }
        }
    }

    /// What the result is written for.
    pub fn target(&self) -> Target {
        self.target
    }

    /// The recipe that rules build on, if any; a plan has a recipe or a default format, not both.
    pub fn recipe(&self) -> Option<Recipe> {
        self.recipe
    }

    /// Id of the format of all tensors that no rule matches; none keeps stored types.
    pub fn default_format(&self) -> Option<&'static str> {
        match self.default {
            Some(Treatment::Format { format, .. }) => Some(format),
            _ => None,
        }
    }

    /// Where the importance matrix comes from, if the plan has one.
    pub fn calibration(&self) -> Option<&Calibration> {
        self.calibration.as_ref()
    }

    /// The rules in their order: of those that match a tensor, the last wins.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }
}

/// What plans need to know of a checkpoint: its tensors, and its shape where it says one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) tensors: &'a [TensorInfo],
    pub(crate) config: Option<&'a ModelConfig>,
    pub(crate) fingerprint: &'a str,
}

impl<'a> Subject<'a> {
    pub(crate) fn of(checkpoint: &'a Checkpoint) -> Self {
        Self { tensors: &checkpoint.tensors, config: checkpoint.config.as_ref(), fingerprint: &checkpoint.fingerprint }
    }

    /// Number of layers, by configuration or by names, whichever says more.
    pub(crate) fn layer_count(&self) -> usize {
        let named = self.tensors.iter().filter_map(|tensor| tensor.layer).max();
        let configured = self.config.map_or(0, |config| config.layers.len());
        named.map_or(0, |last| last.saturating_add(1)).max(configured)
    }
}

/// The fault for a format that the registry does not have.
fn unknown_format(id: &str) -> Fault {
    let ids: Vec<&str> = format::all().iter().map(|format| format.id()).collect();
    Fault::new(Stage::Plan, format!("there is no format \"{id}\"")).fix(nearest::advice(id, &ids))
}
