//! Recognizing packed weights: compressed-tensors, bitsandbytes, GPTQ and AWQ folders.
//!
//! `quantization_config` says how the parts of a weight are to be read, and the parts' own types
//! and shapes are checked against it. What comes out is one tensor `M.weight` of a type with
//! parameters, whose rows [`super::packed_rows`] puts together. Where anything is amiss, the fault
//! says what, and the parts stay listed as they lie in the file.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::files::DataFile;
use super::role::Role;
use super::{TensorInfo, packed_bnb, packed_ct, packed_gptq, packed_sparse};
use crate::error::{Error, Fault, Result, Stage};
use crate::format::Dtype;

/// One part in its file.
#[derive(Clone, Debug)]
pub(crate) struct At {
    pub file: usize,
    pub offset: u64,
    pub byte_count: u64,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

impl At {
    fn of(tensor: &TensorInfo) -> Self {
        Self {
            file: tensor.file,
            offset: tensor.offset,
            byte_count: tensor.byte_count,
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
        }
    }

    /// Number of values.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

/// How the parts are laid out.
#[derive(Clone, Debug)]
pub(crate) enum Layout {
    /// compressed-tensors' pack-quantized; not dense where each word has bits left.
    Packed { is_dense: bool, are_zeros_dense: bool },
    /// One byte a code: int-quantized and float-quantized.
    Bytes,
    /// bitsandbytes; with the tensors of nested maxima and their table, and the offset.
    Bnb { nested: Option<(At, At, f32)> },
    /// GPTQ; the first version stores zeros less one.
    Gptq { is_first_version: bool },
    /// AWQ's gemm layout.
    Awq,
    /// Values that are not zero, and a mask: codes are the values, scales the mask, and zeros, where there are
    /// any, where each row's values begin; without, every row has as many.
    Sparse,
}

/// The parts of one weight.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    pub layout: Layout,
    pub codes: At,
    pub scales: At,
    pub zeros: Option<At>,
}

/// A weight that was found, to take the place of its parts.
pub(super) struct Found {
    /// The module's name.
    pub module: String,
    pub dtype: Dtype,
    pub rows: usize,
    pub cols: usize,
    pub parts: Parts,
    /// Indices of all tensors that it is made of; its codes first.
    pub consumed: Vec<usize>,
}

/// The tensors of a checkpoint while weights are looked for among them.
pub(super) struct Lookup<'a> {
    pub tensors: &'a [TensorInfo],
    by_name: HashMap<&'a str, usize>,
    data: &'a [DataFile],
    pub config: &'a Map<String, Value>,
}

impl<'a> Lookup<'a> {
    /// Index of the tensor called `name`.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// Where the tensor with an index lies.
    pub fn at(&self, index: usize) -> At {
        At::of(&self.tensors[index])
    }

    /// The part of `module` called `suffix`.
    pub fn need(&self, module: &str, suffix: &str) -> Result<usize> {
        let name = format!("{module}.{suffix}");
        self.index(&name).ok_or_else(|| self.fault(&name, "this part of a packed weight is missing").into())
    }

    /// The content of a small part.
    pub fn read(&self, index: usize, most: u64) -> Result<Vec<u8>> {
        let tensor = &self.tensors[index];
        if tensor.byte_count > most {
            return Err(self.fault(&tensor.name, format!("{} bytes are too many for it", tensor.byte_count)).into());
        }
        let mut bytes = vec![0; tensor.byte_count as usize];
        self.data[tensor.file].read_at(tensor.offset, &mut bytes)?;
        Ok(bytes)
    }

    /// A fault about one tensor.
    pub fn fault(&self, name: &str, cause: impl Into<String>) -> Fault {
        Fault::new(Stage::Checkpoint, cause).at(format!("tensor {name}")).fix("copy or download the model again")
    }

    /// A fault about the configuration.
    pub fn config_fault(&self, key: &str, cause: impl Into<String>) -> Fault {
        Fault::new(Stage::Checkpoint, cause)
            .at(format!("key quantization_config.{key}"))
            .fix("its parts can be listed; start from the model's 16-bit checkpoint to run it")
    }

    /// Refuses a part whose type or shape is not what the others ask for.
    pub fn check(&self, index: usize, dtypes: &[Dtype], shape: &[usize]) -> Result<()> {
        let tensor = &self.tensors[index];
        if !dtypes.contains(&tensor.dtype) {
            return Err(self.fault(&tensor.name, format!("type {} is none that it can have", tensor.dtype)).into());
        }
        if tensor.shape != shape {
            let cause = format!("shape {:?}, but the weight's other parts want {shape:?}", tensor.shape);
            return Err(self.fault(&tensor.name, cause).into());
        }
        Ok(())
    }
}

/// What became of the tensors.
pub(super) struct Assembled {
    pub tensors: Vec<TensorInfo>,
    pub warnings: Vec<String>,
}

/// Puts weights together as `quantization_config` says.
///
/// # Errors
/// A method that is not known, parts that are missing or do not fit each other, an unreadable file.
pub(super) fn assemble(tensors: &[TensorInfo], config: &Map<String, Value>, data: &[DataFile]) -> Result<Assembled> {
    let by_name = tensors.iter().enumerate().map(|(index, tensor)| (tensor.name.as_str(), index)).collect();
    let lookup = Lookup { tensors, by_name, data, config };
    let method = config.get("quant_method").and_then(Value::as_str).unwrap_or("(not named)");
    let mut warnings = Vec::new();
    let found = match method {
        "compressed-tensors" => match packed_sparse::find(&lookup)? {
            Some(found) => found,
            None => packed_ct::find(&lookup, &mut warnings)?,
        },
        "bitsandbytes" => packed_bnb::find(&lookup)?,
        "gptq" => packed_gptq::find_gptq(&lookup)?,
        "awq" => packed_gptq::find_awq(&lookup)?,
        other => {
            let fault = lookup.config_fault("quant_method", format!("weights quantized by {other} cannot be read"));
            return Err(fault.into());
        }
    };
    let mut replaced: HashMap<usize, Found> = HashMap::new();
    let mut is_consumed = vec![false; tensors.len()];
    for weight in found {
        let name = format!("{}.weight", weight.module);
        let fault = |cause: String| -> Error { lookup.fault(&name, cause).into() };
        if weight.rows.checked_mul(weight.cols).and_then(|count| count.checked_mul(8)).is_none() {
            return Err(fault(format!("shape [{}, {}] is too large", weight.rows, weight.cols)));
        }
        if weight.dtype.row_bytes(weight.cols).is_none() {
            return Err(fault(format!("rows of {} do not fill the groups of {}", weight.cols, weight.dtype)));
        }
        let Some(&first) = weight.consumed.first() else { continue };
        for &index in &weight.consumed {
            if std::mem::replace(&mut is_consumed[index], true) {
                return Err(fault("its parts belong to two weights".to_owned()));
            }
        }
        if lookup.index(&name).is_some_and(|index| !is_consumed[index]) {
            return Err(fault("the weight is there twice, packed and plain".to_owned()));
        }
        replaced.insert(first, weight);
    }
    let mut assembled = Vec::with_capacity(tensors.len());
    for (index, tensor) in tensors.iter().enumerate() {
        if let Some(weight) = replaced.remove(&index) {
            let name = format!("{}.weight", weight.module);
            let (role, layer) = Role::of_name(&name);
            assembled.push(TensorInfo {
                name,
                stored_name: tensor.stored_name.clone(),
                shape: vec![weight.rows, weight.cols],
                dtype: weight.dtype,
                role,
                layer,
                byte_count: weight.consumed.iter().map(|&part| tensors[part].byte_count).sum(),
                file: tensor.file,
                offset: tensor.offset,
                permuted_heads: None,
                parts: Some(Arc::new(weight.parts)),
                view: None,
            });
        } else if !is_consumed[index] {
            assembled.push(tensor.clone());
        }
    }
    Ok(Assembled { tensors: assembled, warnings })
}
