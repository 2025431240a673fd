//! Where a decoder runs: on our own kernels, or on a device with those to fall back to.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::candle::{Candle, Linear, Precision};
use super::llama::{Hooks, Llama, Start};
use super::native::Native;
use super::{Batch, KvCache, guard, load};
use crate::checkpoint::{Checkpoint, ModelConfig};
use crate::device::{Device, Used, tell};
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
    used: Mutex<Used>,
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
                        let done = $crate::model::guard::on_device(|| $body);
                        if done.is_ok() {
                            device.worked();
                        }
                        done
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
            match guard::on_device(|| load::llama(checkpoint, backend, progress)) {
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
                        used: Mutex::default(),
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
        let used = device.used();
        match (used.failure(), used.in_words()) {
            (None, _) => format!("{}{streamed}", device.name),
            (Some(_), Some(words)) => words,
            (Some(failure), None) => format!("cpu ({}: {failure})", device.name),
        }
    }

    /// Notes that the device made a part of a result before it failed.
    pub(super) fn worked(&self) {
        if let Self::Device(device) = self {
            device.worked();
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

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the device made a result, or a part of one.
    pub(super) fn worked(&self) {
        self.used().worked(&self.name);
    }

    /// Loads the weights for the CPU and brings the caches back; what the device does not give back is computed
    /// again from its tokens.
    ///
    /// # Errors
    /// What the CPU cannot load either, or a cache that is lost and whose tokens depend on others.
    pub(super) fn give_up(&self, err: &Error, caches: &mut [KvCache]) -> Result<&Llama<Native>> {
        tell(format!("{}: {err}; the CPU goes on, and nothing is lost.", self.name));
        self.used().failed(err);
        // Reading the weights again is no progress of the work that goes on.
        let graph = load::llama(&self.checkpoint, Native, &Progress::default())?;
        for cache in caches {
            let back = guard::on_device(|| cache.bring_back(&self.graph.backend));
            if let Err(lost) = back {
                recompute(&graph, cache, lost)?;
            }
        }
        Ok(self.native.get_or_init(|| graph))
    }
}

/// Fills a cache that `lost` the device's rows from its tokens.
fn recompute(graph: &Llama<Native>, cache: &mut KvCache, lost: Error) -> Result<()> {
    if cache.ids.len() != cache.len {
        return Err(lost);
    }
    let mut batch = Batch::default();
    batch.push(&cache.ids, None, Some(0));
    let mut again = [KvCache::default()];
    graph.run(&batch, &mut again, Start::Embedding, &mut Hooks::default())?;
    [*cache] = again;
    Ok(())
}
