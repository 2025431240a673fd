//! How fast a device and the CPU run models here: what `auto` chooses by.
//!
//! What is timed is the gated MLP of one small layer with weights in bf16, most of what a decoder does: over many
//! tokens at once, as text is read, and token by token with its answer brought back, as text is written. A device
//! that is fast at products but slow to start them shows it in the second.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};
use half::bf16;
use serde::Serialize;

use super::ModelDevice;
use crate::kernels::dense::{Dense, Panels, Plain};

/// How much of some work is done a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rate {
    /// On the device, uploads included.
    pub device: f64,
    /// On all cores of the CPU.
    pub cpu: f64,
}

impl Rate {
    /// True if the device is worth its trouble.
    pub fn favours_device(self) -> bool {
        self.device > self.cpu
    }
}

/// Tokens a second through the layer that is timed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ModelRates {
    /// Many tokens at once.
    pub prefill: Rate,
    /// One after another.
    pub decode: Rate,
}

const WIDTH: usize = 1024;
const CHANNELS: usize = 2048;
/// Tokens that are read at once, and that are written after them.
const PREFILL: usize = 128;
const STEPS: usize = 8;
/// Whoever takes longer is timed once and not twice.
const PATIENCE: Duration = Duration::from_millis(500);

impl ModelRates {
    /// Seconds for a text that is read and one that is written: on the device, and on the CPU.
    fn seconds(&self) -> (f64, f64) {
        let seconds = |prefill: f64, decode: f64| PREFILL as f64 / prefill + STEPS as f64 / decode;
        (seconds(self.prefill.device, self.decode.device), seconds(self.prefill.cpu, self.decode.cpu))
    }

    /// True if models run faster there.
    pub fn favours_device(&self) -> bool {
        let (device, cpu) = self.seconds();
        device < cpu
    }

    /// Measures a device beside the CPU: some tenths of a second.
    ///
    /// # Errors
    /// What the device failed at, panics of its libraries among them.
    pub fn measure(device: &ModelDevice) -> Result<Self, String> {
        let weights = [(CHANNELS, WIDTH, 0.37), (CHANNELS, WIDTH, 0.53), (WIDTH, CHANNELS, 0.71)];
        let weights = weights.map(|(rows, cols, step)| (rows, cols, wave(rows * cols, step)));
        let of_device = || {
            let layer = OnDevice::new(device, &weights).map_err(|err| err.to_string())?;
            seconds(|x| layer.run(x).map_err(|err| err.to_string()))
        };
        let panicked = |panic: Box<dyn Any + Send>| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            Err(text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("its library gave up").to_owned())
        };
        let of_device = catch_unwind(AssertUnwindSafe(of_device)).unwrap_or_else(panicked)?;
        let layer = OnCpu::new(&weights);
        let of_cpu = seconds(|x| Ok(layer.run(x)))?;
        let rate =
            |tokens: usize, device: f64, cpu: f64| Rate { device: tokens as f64 / device, cpu: tokens as f64 / cpu };
        Ok(Self { prefill: rate(PREFILL, of_device.0, of_cpu.0), decode: rate(STEPS, of_device.1, of_cpu.1) })
    }
}

/// What was measured of a device in this process, or why it failed.
pub(super) fn known(device: &ModelDevice) -> Result<ModelRates, String> {
    static KNOWN: Mutex<Option<HashMap<String, Result<ModelRates, String>>>> = Mutex::new(None);
    // Held while measuring, so that two do not disturb each other.
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_default();
    known.entry(device.in_words()).or_insert_with(|| ModelRates::measure(device)).clone()
}

/// The device that runs models fastest, if one does so faster than the CPU.
pub(super) fn fastest(devices: impl Iterator<Item = ModelDevice>) -> Option<ModelDevice> {
    let mut best: Option<(f64, ModelDevice)> = None;
    for device in devices {
        match known(&device) {
            Ok(rates) if rates.favours_device() => {
                let (seconds, _) = rates.seconds();
                if best.as_ref().is_none_or(|(least, _)| seconds < *least) {
                    best = Some((seconds, device));
                }
            }
            Ok(rates) => tracing::info!("{}: models run faster on the CPU: {rates:?}", device.name),
            Err(failure) => super::tell(format!("{}: {failure}; models do not run on it.", device.name)),
        }
    }
    best.map(|(_, device)| device)
}

fn wave(len: usize, step: f32) -> Vec<bf16> {
    (0..len).map(|at| bf16::from_f32((at as f32 * step).sin() * 0.03)).collect()
}

/// Seconds for all tokens at once and for one after another, of the faster of two goes: the first also wakes
/// the device.
fn seconds(mut run: impl FnMut(&[f32]) -> Result<Vec<f32>, String>) -> Result<(f64, f64), String> {
    let rows: Vec<f32> = wave(PREFILL * WIDTH, 0.91).into_iter().map(bf16::to_f32).collect();
    let mut least = (f64::INFINITY, f64::INFINITY);
    let start = Instant::now();
    for _ in 0..2 {
        let begin = Instant::now();
        run(&rows)?;
        let prefill = begin.elapsed().as_secs_f64().max(1e-9);
        let begin = Instant::now();
        let mut row = rows[..WIDTH].to_vec();
        for _ in 0..STEPS {
            row = run(&row)?;
        }
        let decode = begin.elapsed().as_secs_f64().max(1e-9);
        least = (least.0.min(prefill), least.1.min(decode));
        if start.elapsed() > PATIENCE {
            break;
        }
    }
    Ok(least)
}

/// Rows, columns and values of gate, up and down.
type Weights = [(usize, usize, Vec<bf16>); 3];

/// The layer on a device.
struct OnDevice<'a> {
    device: &'a ModelDevice,
    dtype: DType,
    /// Gate, up and down, columns first.
    weights: Vec<Tensor>,
}

impl<'a> OnDevice<'a> {
    fn new(device: &'a ModelDevice, weights: &Weights) -> candle_core::Result<Self> {
        // As models hold them there.
        let dtype = if device.is_real { DType::BF16 } else { DType::F32 };
        let up = |(rows, cols, values): &(usize, usize, Vec<bf16>)| {
            Tensor::from_slice(values, (*rows, *cols), device.handle())?.to_dtype(dtype)?.t()
        };
        Ok(Self { device, dtype, weights: weights.iter().map(up).collect::<candle_core::Result<_>>()? })
    }

    fn run(&self, x: &[f32]) -> candle_core::Result<Vec<f32>> {
        let x = Tensor::from_slice(x, (x.len() / WIDTH, WIDTH), self.device.handle())?;
        let product = |x: &Tensor, weights: &Tensor| x.to_dtype(self.dtype)?.matmul(weights)?.to_dtype(DType::F32);
        let gated = (product(&x, &self.weights[0])?.silu()? * product(&x, &self.weights[1])?)?;
        (product(&gated, &self.weights[2])? + x)?.flatten_all()?.to_vec1()
    }
}

/// The layer on the CPU's own kernels.
struct OnCpu([Dense; 3]);

impl OnCpu {
    fn new(weights: &Weights) -> Self {
        let take = |(rows, cols, values): &(usize, usize, Vec<bf16>)| {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            Dense::new(Plain::Bf16, &bytes, *rows, *cols)
        };
        Self([take(&weights[0]), take(&weights[1]), take(&weights[2])])
    }

    fn run(&self, x: &[f32]) -> Vec<f32> {
        let tokens = x.len() / WIDTH;
        let product = |weights: &Dense, panels: &Panels, rows: usize| {
            let mut out = vec![0.0; tokens * rows];
            weights.matmul(panels, &mut out);
            out
        };
        let panels = Panels::new(x, WIDTH);
        let mut gated = product(&self.0[0], &panels, CHANNELS);
        let up = product(&self.0[1], &panels, CHANNELS);
        gated.iter_mut().zip(up).for_each(|(gate, up)| *gate = *gate / (1.0 + (-*gate).exp()) * up);
        let down = product(&self.0[2], &Panels::new(&gated, CHANNELS), WIDTH);
        down.into_iter().zip(x).map(|(down, x)| down + x).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_do_the_same_work_and_have_rates() {
        let device = ModelDevice::for_test(None);
        let weights = [(CHANNELS, WIDTH, 0.37), (CHANNELS, WIDTH, 0.53), (WIDTH, CHANNELS, 0.71)];
        let weights = weights.map(|(rows, cols, step)| (rows, cols, wave(rows * cols, step)));
        let x: Vec<f32> = (0..3 * WIDTH).map(|at| (at as f32 * 0.13).cos()).collect();
        let ours = OnCpu::new(&weights).run(&x);
        let theirs = OnDevice::new(&device, &weights).and_then(|layer| layer.run(&x)).expect("runs");
        assert_eq!((ours.len(), theirs.len()), (x.len(), x.len()));
        for (one, other) in ours.iter().zip(&theirs) {
            assert!((one - other).abs() < 1e-2 * (1.0 + other.abs()), "{one} {other}");
        }
        let rates = known(&device).expect("measures");
        for rate in [rates.prefill, rates.decode] {
            assert!(rate.device.is_finite() && rate.device > 0.0 && rate.cpu.is_finite() && rate.cpu > 0.0);
        }
        assert_eq!(known(&device), Ok(rates), "measured once");
    }

    #[test]
    fn reading_and_writing_are_weighed_together() {
        // Reads a text twice as fast, but takes far longer to write one.
        let late =
            ModelRates { prefill: Rate { device: 2000.0, cpu: 1000.0 }, decode: Rate { device: 10.0, cpu: 100.0 } };
        assert!(!late.favours_device());
        let fast = ModelRates { decode: Rate { device: 90.0, cpu: 100.0 }, ..late };
        assert!(fast.favours_device(), "0.064 + 0.089 seconds against 0.128 + 0.08");
    }
}
