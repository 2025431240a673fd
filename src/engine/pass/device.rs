//! Where a pass encodes: on a GPU that shows for sampled rows of every tensor that it writes what the
//! CPU writes, and on the CPU for everything else and from the first failure on.

use std::cell::RefCell;

use crate::checkpoint::TensorInfo;
use crate::device::Device;
use crate::error::Result;
use crate::format::{Dtype, Encoding};

use super::rtn;

/// The device of a pass with what became of it.
pub(super) struct Machine<'a> {
    device: &'a Device,
    /// True if searches may run there too, whose bytes may differ from the CPU's.
    searches: bool,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    failure: Option<String>,
    /// Tensors that the device encoded.
    tensors: usize,
}

/// An encoder of one tensor on the device.
pub(super) struct OnDevice<'a> {
    #[cfg(feature = "gpu")]
    encoder: crate::format::gpu::DeviceEncoder<'a>,
    #[cfg(not(feature = "gpu"))]
    never: std::marker::PhantomData<&'a ()>,
}

impl<'a> Machine<'a> {
    pub(super) fn new(device: &'a Device, searches: bool) -> Self {
        Self { device, searches, state: RefCell::default() }
    }

    /// What encoded, for the report: none for the CPU alone.
    pub(super) fn used(&self) -> Option<String> {
        let state = self.state.borrow();
        if state.tensors == 0 && state.failure.is_none() {
            return None;
        }
        let name = self.device.kernels_name()?;
        Some(if state.failure.is_some() { format!("{name}, then the CPU") } else { name.to_owned() })
    }

    /// Number of tensors that the device encoded.
    pub(super) fn tensors(&self) -> usize {
        self.state.borrow().tensors
    }

    /// What to tell of a device that failed.
    pub(super) fn warning(&self) -> Option<String> {
        let state = self.state.borrow();
        let failure = state.failure.as_ref()?;
        let name = self.device.kernels_name()?;
        Some(format!("{name} was given up: {failure}. The CPU went on, and nothing is lost."))
    }

    /// The device that searches are allowed on, for the candidate's metadata.
    pub(super) fn search_device(&self) -> Option<&str> {
        if self.searches { self.device.kernels_name() } else { None }
    }

    /// Brings rows of a tensor to `to`, the first of which is `how.first_row`, on the device if `slot` has
    /// its encoder. Answers how many of their weights are NaN or infinite.
    ///
    /// # Errors
    /// Those of [`rtn::convert`].
    pub(super) fn convert(
        &self,
        slot: &mut Option<OnDevice<'a>>,
        tensor: &TensorInfo,
        to: Dtype,
        how: &Encoding<'_>,
        source: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<usize> {
        if let Some(count) = self.try_convert(slot, tensor, to, how, source, out) {
            return Ok(count);
        }
        rtn::convert(&tensor.name, tensor.dtype, to, how, source, out)
    }
}

#[cfg(feature = "gpu")]
impl<'a> Machine<'a> {
    /// An encoder for a tensor's rows, if the device is to make them.
    pub(super) fn encoder(&self, tensor: &TensorInfo, to: Dtype, how: Encoding<'a>) -> Option<OnDevice<'a>> {
        use crate::device::rates::Work;
        use crate::format::gpu::{DeviceEncoder, can_encode};

        /// Fewer weights are encoded before they are up.
        const LEAST_WEIGHTS: u64 = 1 << 12;
        if self.state.borrow().failure.is_some() || tensor.weight_count() < LEAST_WEIGHTS {
            return None;
        }
        let format = crate::format::of_dtype(to).filter(|format| can_encode(*format, &how, self.searches))?;
        let gpu = self.device.gpu_for(Work::Encoding)?;
        match DeviceEncoder::new(gpu, tensor.dtype, format, how) {
            Ok(encoder) => {
                self.state.borrow_mut().tensors += 1;
                Some(OnDevice { encoder })
            }
            // Rows that are too long for it are no failure of the device.
            Err(crate::kernels::gpu::Failure::TooLarge(_) | crate::kernels::gpu::Failure::Missing(_)) => None,
            Err(failure) => {
                self.give_up(tensor, &failure);
                None
            }
        }
    }

    fn give_up(&self, tensor: &TensorInfo, failure: &crate::kernels::gpu::Failure) {
        tracing::warn!("{}: {failure}; the CPU goes on", tensor.name);
        let mut state = self.state.borrow_mut();
        state.tensors = state.tensors.saturating_sub(1);
        state.failure.get_or_insert(format!("{failure} (at {})", tensor.name));
    }

    /// The rows by the device; none where the CPU has to make them.
    fn try_convert(
        &self,
        slot: &mut Option<OnDevice<'a>>,
        tensor: &TensorInfo,
        to: Dtype,
        how: &Encoding<'_>,
        source: &[u8],
        out: &mut Vec<u8>,
    ) -> Option<usize> {
        let on_device = slot.as_mut()?;
        let (in_bytes, out_bytes) = (tensor.dtype.row_bytes(how.row_len)?, to.row_bytes(how.row_len)?);
        out.clear();
        out.resize(source.len() / in_bytes.max(1) * out_bytes, 0);
        match on_device.encoder.encode(how.first_row, source, out) {
            Ok(count) => Some(count),
            Err(failure) => {
                self.give_up(tensor, &failure);
                *slot = None;
                None
            }
        }
    }
}

#[cfg(not(feature = "gpu"))]
impl<'a> Machine<'a> {
    /// None: this build has only the CPU.
    #[expect(clippy::unused_self, reason = "the other build's signature")]
    pub(super) fn encoder(&self, _: &TensorInfo, _: Dtype, _: Encoding<'a>) -> Option<OnDevice<'a>> {
        None
    }

    #[expect(clippy::unused_self, reason = "the other build's signature")]
    fn try_convert(
        &self,
        _: &mut Option<OnDevice<'a>>,
        _: &TensorInfo,
        _: Dtype,
        _: &Encoding<'_>,
        _: &[u8],
        _: &mut Vec<u8>,
    ) -> Option<usize> {
        None
    }
}
