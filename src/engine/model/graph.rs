//! Where a decoder runs: on our own kernels, or on a device with those to fall back to.

use std::sync::{Mutex, OnceLock, PoisonError};

use super::candle::{Candle, Linear, Precision};
use super::llama::Llama;
use super::native::Native;
use super::{KvCache, load};
use crate::checkpoint::{Checkpoint, ModelConfig};
use crate::device::{Device, tell};
use crate::error::{Error, Result};
use crate::progress::Progress;

/// A decoder's weights where they run.
#[derive(Debug)]
pub(super) enum Graph {
    /// On our own kernels.
    Native(Box<Llama<Native>>),
    /// On a device of candle's.
    Device(Box<OnDevice>),
}

/// A decoder on a device, with what the CPU needs to go on without it.
#[derive(Debug)]
pub(super) struct OnDevice {
    graph: Llama<Candle>,
    name: String,
    streamed: usize,
    checkpoint: Checkpoint,
    /// The weights for the CPU, once the device has failed.
    native: OnceLock<Llama<Native>>,
    failure: Mutex<Option<String>>,
}

/// Evaluates a result on the graph of a model, and again on the CPU's where its device fails; caches
/// are brought back before.
macro_rules! on_graph {
    ($model:ident, $caches:expr, $graph:ident => $body:expr) => {
        match &$model.graph {
            $crate::model::graph::Graph::Native($graph) => $body,
            $crate::model::graph::Graph::Device(device) => {
                let done = match device.on_cpu() {
                    Some($graph) => $body,
                    None => {
                        let $graph = device.graph();
                        $body
                    }
                };
                match done {
                    Err(err) if err.is_of_device() && device.on_cpu().is_none() => {
                        let $graph = device.give_up(&err, $caches)?;
                        $body
                    }
                    done => done,
                }
            }
        }
    };
}
pub(super) use on_graph;

impl Graph {
    /// Loads the weights onto the device for models, if there is one, else for the CPU.
    pub(super) fn load(checkpoint: &Checkpoint, device: &Device, progress: &Progress) -> Result<Self> {
        if let Some(models) = device.models() {
            let shares = super::fit::shares(checkpoint, models);
            let backend = Candle::new(models.handle().clone(), Precision::of(models), shares.stay);
            match load::llama(checkpoint, backend, progress) {
                Ok(graph) => {
                    let streamed: Vec<_> = graph.multiplied().filter_map(Linear::streamed).cloned().collect();
                    let count = streamed.len();
                    graph.backend.stream_ahead(streamed, shares.ahead);
                    return Ok(Self::Device(Box::new(OnDevice {
                        streamed: count,
                        graph,
                        name: models.in_words(),
                        checkpoint: checkpoint.clone(),
                        native: OnceLock::new(),
                        failure: Mutex::default(),
                    })));
                }
                Err(err) if err.is_of_device() => tell(format!("{}: {err}; the CPU is used.", models.name)),
                Err(err) => return Err(err),
            }
        }
        Ok(Self::Native(Box::new(load::llama(checkpoint, Native, progress)?)))
    }

    /// The shape of the decoder.
    pub(super) fn config(&self) -> &ModelConfig {
        match self {
            Self::Native(graph) => &graph.config,
            Self::Device(device) => &device.graph.config,
        }
    }

    /// Bytes of all matrices, on the device or in memory.
    pub(super) fn matrix_bytes(&self) -> u64 {
        match self {
            Self::Native(graph) => graph.matrix_bytes(),
            Self::Device(device) => match device.on_cpu() {
                Some(graph) => graph.matrix_bytes(),
                None => device.graph.matrix_bytes(),
            },
        }
    }

    /// The device's backend, while it computes.
    pub(super) fn device(&self) -> Option<&Candle> {
        match self {
            Self::Device(device) if device.on_cpu().is_none() => Some(&device.graph.backend),
            _ => None,
        }
    }

    /// Goes on without the device.
    pub(super) fn give_up(&self, err: &Error) -> Result<()> {
        match self {
            Self::Native(_) => Ok(()),
            Self::Device(device) => device.give_up(err, &mut []).map(|_| ()),
        }
    }

    /// What computes, in words.
    pub(super) fn device_in_words(&self) -> String {
        let Self::Device(device) = self else { return "cpu".to_owned() };
        let streamed = match device.streamed {
            0 => String::new(),
            count => format!(", {count} matrices streamed"),
        };
        match &*device.failure.lock().unwrap_or_else(PoisonError::into_inner) {
            None => format!("{}{streamed}", device.name),
            Some(failure) => format!("{}, then cpu ({failure})", device.name),
        }
    }
}

impl OnDevice {
    pub(super) fn graph(&self) -> &Llama<Candle> {
        &self.graph
    }

    /// The CPU's graph, once the device has failed.
    pub(super) fn on_cpu(&self) -> Option<&Llama<Native>> {
        self.native.get()
    }

    /// Loads the weights for the CPU and brings the caches back.
    ///
    /// # Errors
    /// Caches that the device does not give back, or what the CPU cannot load either.
    pub(super) fn give_up(&self, err: &Error, caches: &mut [KvCache]) -> Result<&Llama<Native>> {
        tell(format!("{}: {err}; the CPU goes on, and nothing is lost.", self.name));
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(err.to_string());
        caches.iter_mut().try_for_each(KvCache::bring_back)?;
        // Reading the weights again is no progress of the work that goes on.
        let graph = load::llama(&self.checkpoint, Native, &Progress::default())?;
        Ok(self.native.get_or_init(|| graph))
    }
}
