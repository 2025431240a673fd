//! An open device: its queue, its compiled shaders, and what went wrong with it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::adapter::{Adapter, wait};
use super::{Failure, Kind};

/// A pipeline, what it works on, and how many workgroups lie side by side and below each other.
pub(super) type Dispatch<'a> = (&'a wgpu::ComputePipeline, &'a wgpu::BindGroup, [u32; 2]);

/// A device that does not finish a piece of work in this time is given up.
const PATIENCE: Duration = Duration::from_secs(180);

/// An open device with a queue of its own.
///
/// Errors of the driver never unwind: the first is kept, and every later call returns it.
#[derive(Debug)]
pub struct Device {
    name: String,
    kind: Kind,
    pub(super) handle: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    layout: wgpu::BindGroupLayout,
    pipelines: Mutex<HashMap<String, wgpu::ComputePipeline>>,
    failure: Arc<Mutex<Option<Failure>>>,
    /// Dispatches that still succeed and what comes after them, in tests.
    doomed: Mutex<Option<(usize, Failure)>>,
}

/// Keeps the first failure.
fn keep(slot: &Mutex<Option<Failure>>, failure: Failure) {
    slot.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
}

impl Device {
    /// Opens a device.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn open(adapter: &Adapter) -> Result<Self, Failure> {
        let wanted = wgpu::DeviceDescriptor {
            label: Some("lapidary kernels"),
            required_limits: wgpu::Limits {
                max_storage_buffer_binding_size: adapter.handle.limits().max_storage_buffer_binding_size,
                max_buffer_size: adapter.handle.limits().max_buffer_size,
                ..wgpu::Limits::downlevel_defaults()
            },
            ..wgpu::DeviceDescriptor::default()
        };
        let opened = wait(adapter.handle.request_device(&wanted));
        let (handle, queue) =
            opened.map_err(|error| Failure::Missing(format!("{} could not be opened: {error}", adapter.name)))?;
        let failure = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&failure);
        handle.on_uncaptured_error(Arc::new(move |error| {
            keep(
                &slot,
                match error {
                    wgpu::Error::OutOfMemory { source } => Failure::OutOfMemory(source.to_string()),
                    wgpu::Error::Validation { description, .. } | wgpu::Error::Internal { description, .. } => {
                        Failure::Driver(description)
                    }
                },
            );
        }));
        let slot = Arc::clone(&failure);
        handle.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                keep(&slot, Failure::Lost(message));
            }
        });
        let layout = bind_group_layout(&handle);
        Ok(Self {
            name: adapter.name.clone(),
            kind: adapter.kind,
            handle,
            queue,
            layout,
            pipelines: Mutex::default(),
            failure,
            doomed: Mutex::default(),
        })
    }

    /// The name that results carry.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What kind of device it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What went wrong so far.
    ///
    /// # Errors
    /// The first failure.
    pub fn check(&self) -> Result<(), Failure> {
        match &*self.failure.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(failure) => Err(failure.clone()),
            None => Ok(()),
        }
    }

    /// Does what no driver accepts.
    #[cfg(test)]
    pub(crate) fn break_for_test(&self) {
        let _ = self.pipeline("no shader", "scan");
    }

    /// The largest buffer that a shader can see.
    pub(super) fn most_bytes(&self) -> u64 {
        let limits = self.handle.limits();
        limits.max_storage_buffer_binding_size.min(limits.max_buffer_size)
    }

    /// The compiled shader, made once.
    pub(super) fn pipeline(&self, source: &str, entry: &str) -> Result<wgpu::ComputePipeline, Failure> {
        let mut pipelines = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = pipelines.get(source) {
            return Ok(pipeline.clone());
        }
        let module = self.handle.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(entry),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        });
        let layout = self.handle.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&self.layout)],
            ..Default::default()
        });
        let pipeline = self.handle.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(entry),
            layout: Some(&layout),
            module: &module,
            entry_point: Some(entry),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        self.check()?;
        pipelines.insert(source.to_owned(), pipeline.clone());
        Ok(pipeline)
    }

    /// A buffer; a failure shows in [`Device::check`].
    pub(super) fn buffer(&self, bytes: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
        // Sizes are whole words, and none is empty.
        let size = bytes.max(32).next_multiple_of(4);
        self.handle.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
    }

    /// The five bindings that every shader has.
    pub(super) fn bind(&self, buffers: [&wgpu::Buffer; 5]) -> wgpu::BindGroup {
        let entries: Vec<wgpu::BindGroupEntry<'_>> = (0..)
            .zip(buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
            .collect();
        self.handle.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &self.layout,
            entries: &entries,
        })
    }

    /// The first failure is `failure` from now on, if there was none.
    pub fn give_up(&self, failure: Failure) {
        keep(&self.failure, failure);
    }

    /// Lets the device fail after so many further dispatches: for tests of what its users do then.
    #[doc(hidden)]
    pub fn fail_after(&self, dispatches: usize, failure: Failure) {
        *self.doomed.lock().unwrap_or_else(PoisonError::into_inner) = Some((dispatches, failure));
    }

    /// Counts a dispatch against [`Device::fail_after`].
    fn count_down(&self) {
        let mut doomed = self.doomed.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *doomed {
            None => {}
            Some((0, failure)) => keep(&self.failure, failure.clone()),
            Some((left, _)) => *left -= 1,
        }
    }

    /// Submits one dispatch as work of its own, so that the GPU is never long away from the window.
    pub(super) fn dispatch(&self, pipeline: &wgpu::ComputePipeline, group: &wgpu::BindGroup, counts: [u32; 2]) {
        self.count_down();
        let mut encoder = self.handle.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, group, &[]);
            pass.dispatch_workgroups(counts[0], counts[1], 1);
        }
        self.queue.submit([encoder.finish()]);
    }

    /// Submits many dispatches as one work: for measurements, which need not let anything else in between.
    pub(super) fn dispatch_all<'a>(&self, work: impl Iterator<Item = Dispatch<'a>>) -> wgpu::SubmissionIndex {
        let mut encoder = self.handle.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for (pipeline, group, counts) in work {
                pass.set_pipeline(pipeline);
                pass.set_bind_group(0, group, &[]);
                pass.dispatch_workgroups(counts[0], counts[1], 1);
            }
        }
        self.queue.submit([encoder.finish()])
    }

    /// Fills the first bytes of a buffer with zeros.
    pub(super) fn clear(&self, buffer: &wgpu::Buffer, bytes: u64) {
        let mut encoder = self.handle.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.clear_buffer(buffer, 0, Some(bytes));
        self.queue.submit([encoder.finish()]);
    }

    /// Waits until a submission is done.
    pub(super) fn finish(&self, submission: wgpu::SubmissionIndex) -> Result<(), Failure> {
        let wanted = wgpu::PollType::Wait { submission_index: Some(submission), timeout: Some(PATIENCE) };
        if let Err(error) = self.handle.poll(wanted) {
            keep(&self.failure, Failure::Lost(error.to_string()));
        }
        self.check()
    }

    /// Bytes of a buffer that was copied to be read, once its submission is done.
    pub(super) fn read(&self, ticket: Ticket) -> Result<Vec<u8>, Failure> {
        self.finish(ticket.submission)?;
        let view = ticket.buffer.slice(..ticket.bytes).get_mapped_range();
        let bytes = view.map(|view| view.to_vec()).map_err(|error| Failure::Driver(error.to_string()));
        ticket.buffer.unmap();
        self.check()?;
        bytes
    }

    /// Copies the starts of buffers, one after another, to where they can be read.
    pub(super) fn fetch(&self, sources: &[(&wgpu::Buffer, u64)], target: &wgpu::Buffer) -> Ticket {
        let mut encoder = self.handle.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut at = 0;
        for &(source, bytes) in sources {
            encoder.copy_buffer_to_buffer(source, 0, target, at, bytes);
            at += bytes;
        }
        let submission = self.queue.submit([encoder.finish()]);
        // What the mapping has to say is said by the range that is asked for later.
        target.slice(..at).map_async(wgpu::MapMode::Read, |_| {});
        Ticket { submission, buffer: target.clone(), bytes: at }
    }
}

/// What [`Device::fetch`] started.
#[derive(Debug)]
pub(super) struct Ticket {
    submission: wgpu::SubmissionIndex,
    buffer: wgpu::Buffer,
    bytes: u64,
}

/// Two inputs, two outputs and the parameters.
fn bind_group_layout(handle: &wgpu::Device) -> wgpu::BindGroupLayout {
    let storage = |read_only| wgpu::BufferBindingType::Storage { read_only };
    let kinds = [storage(true), storage(true), storage(false), storage(false), wgpu::BufferBindingType::Uniform];
    let entries: Vec<wgpu::BindGroupLayoutEntry> = (0..)
        .zip(kinds)
        .map(|(binding, ty)| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
            count: None,
        })
        .collect();
    handle.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries })
}
