//! candle's own numbers beside ours: the products of a model's matrices in a plain loop, and nothing else.
//!
//! `candle_rates PATH [cpu]` brings every matrix of the layers and the head to candle's CUDA or Metal device, if this build
//! has one and it opens, else to its CPU path, multiplies a prompt of 512 rows (the head only the last of them) and single
//! rows by candle's `matmul` or `QMatMul`, and prints tokens a second as JSON, medians. Attention, norms and copies are not in
//! it, so that a whole decoder on candle is slower.

use std::path::PathBuf;
use std::time::Instant;

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{DType, Device, Module as _, Tensor};
use half::bf16;
use lapidary::engine::checkpoint::{Checkpoint, Role, TensorInfo};

type Failure = Box<dyn std::error::Error>;

/// Rows of a prompt.
const PROMPT: usize = 512;

/// Tokens written, and repetitions of the prompt; medians are answered.
const REPETITIONS: usize = 20;

/// A matrix as candle multiplies it.
struct Matrix {
    weights: QMatMul,
    inputs: DType,
    cols: usize,
    is_head: bool,
}

/// candle's name of a block format.
fn packed(name: &str) -> Option<GgmlDType> {
    Some(match name {
        "q4_0" => GgmlDType::Q4_0,
        "q4_1" => GgmlDType::Q4_1,
        "q5_0" => GgmlDType::Q5_0,
        "q5_1" => GgmlDType::Q5_1,
        "q8_0" => GgmlDType::Q8_0,
        "q2_k" => GgmlDType::Q2K,
        "q3_k" => GgmlDType::Q3K,
        "q4_k" => GgmlDType::Q4K,
        "q5_k" => GgmlDType::Q5K,
        "q6_k" => GgmlDType::Q6K,
        _ => return None,
    })
}

fn matrix(checkpoint: &Checkpoint, tensor: &TensorInfo, device: &Device) -> Result<Matrix, Failure> {
    let (rows, cols) = (tensor.row_count(), tensor.row_len());
    let mut bytes = Vec::new();
    checkpoint.read_rows(tensor, 0..rows, &mut bytes)?;
    let (weights, inputs) = match (packed(tensor.dtype.name()), tensor.dtype.name()) {
        (Some(kind), _) => {
            let storage = QStorage::from_data(bytes.as_slice().into(), device, kind)?;
            (QMatMul::from_qtensor(QTensor::new(storage, (rows, cols))?)?, DType::F32)
        }
        (None, "bf16") => {
            let values: Vec<bf16> = bytes.as_chunks::<2>().0.iter().map(|&pair| bf16::from_le_bytes(pair)).collect();
            (QMatMul::Tensor(Tensor::from_vec(values, (rows, cols), device)?), DType::BF16)
        }
        (None, other) => {
            return Err(format!("{} is {other}: give a model in bf16, q8_0 or k-quants", tensor.name).into());
        }
    };
    let is_head = matches!(tensor.role, Role::Head | Role::Embedding);
    Ok(Matrix { weights, inputs, cols, is_head })
}

/// Median seconds of one pass over all matrices with so many rows.
fn seconds(matrices: &[Matrix], rows: usize, device: &Device) -> Result<f64, Failure> {
    let input = |matrix: &Matrix| {
        let rows = if matrix.is_head { 1 } else { rows };
        Tensor::ones((rows, matrix.cols), matrix.inputs, device)
    };
    let inputs: Vec<Tensor> = matrices.iter().map(input).collect::<Result<_, _>>()?;
    let mut times = Vec::with_capacity(REPETITIONS);
    // The first is a warm-up: kernels are loaded and weights packed then.
    for repetition in 0..=REPETITIONS {
        device.synchronize()?;
        let start = Instant::now();
        for (matrix, input) in matrices.iter().zip(&inputs) {
            matrix.weights.forward(input)?;
        }
        device.synchronize()?;
        if repetition > 0 {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// The device of this build, if it opens; drivers that are missing make it panic.
fn device() -> Device {
    let open = || {
        let cuda = Device::cuda_if_available(0).ok().filter(|device| !device.is_cpu());
        cuda.or_else(|| Device::metal_if_available(0).ok().filter(|device| !device.is_cpu()))
    };
    std::thread::spawn(open).join().ok().flatten().unwrap_or(Device::Cpu)
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args_os().skip(1);
    let path = PathBuf::from(arguments.next().ok_or("usage: candle_rates PATH [cpu]")?);
    let device = if arguments.next().is_some_and(|word| word == "cpu") { Device::Cpu } else { device() };
    let checkpoint = Checkpoint::open(&path)?;
    let has_head = checkpoint.tensors.iter().any(|tensor| tensor.role == Role::Head);
    let head = if has_head { Role::Head } else { Role::Embedding };
    let is_multiplied =
        |tensor: &&TensorInfo| tensor.shape.len() == 2 && (tensor.role.is_layer_linear() || tensor.role == head);
    let multiplied = checkpoint.tensors.iter().filter(is_multiplied);
    let matrices: Vec<Matrix> =
        multiplied.map(|tensor| matrix(&checkpoint, tensor, &device)).collect::<Result<_, _>>()?;
    let (prefill, decode) = (seconds(&matrices, PROMPT, &device)?, seconds(&matrices, 1, &device)?);
    let document = serde_json::json!({
        "device": format!("{:?}", device.location()),
        "path": path,
        "matrices": matrices.len(),
        "prefill_tokens": PROMPT,
        "decode_tokens": 1,
        "repetitions": REPETITIONS,
        "prefill_tokens_per_second": PROMPT as f64 / prefill,
        "decode_tokens_per_second": 1.0 / decode,
    });
    println!("{document:#}");
    Ok(())
}
