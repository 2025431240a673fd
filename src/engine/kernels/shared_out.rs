//! One output buffer that several threads fill, each its own places.

use std::marker::PhantomData;

/// A row-major matrix whose elements are written by several threads, never the same one twice.
#[derive(Clone, Copy)]
pub(super) struct SharedOut<'a> {
    start: *mut f32,
    len: usize,
    marker: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer comes from a unique borrow that outlives `'a`; writers keep to disjoint
// elements, which `write`'s contract asks of them.
unsafe impl Send for SharedOut<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedOut<'_> {}

impl<'a> SharedOut<'a> {
    pub(super) fn new(out: &'a mut [f32]) -> Self {
        Self { start: out.as_mut_ptr(), len: out.len(), marker: PhantomData }
    }

    /// Writes one element.
    ///
    /// # Safety
    /// No other thread reads or writes the element at `index` while this value lives.
    #[inline(always)]
    pub(super) unsafe fn write(self, index: usize, value: f32) {
        assert!(index < self.len, "kernel writes inside its output");
        // SAFETY: in bounds by the assertion; not shared by the caller's promise.
        unsafe { self.start.add(index).write(value) };
    }

    /// Writes a run of elements.
    ///
    /// # Safety
    /// No other thread reads or writes these elements while this value lives.
    #[inline(always)]
    pub(super) unsafe fn write_run(self, index: usize, values: &[f32]) {
        assert!(index <= self.len && values.len() <= self.len - index, "kernel writes inside its output");
        // SAFETY: in bounds by the assertion; not shared by the caller's promise.
        unsafe { self.start.add(index).copy_from_nonoverlapping(values.as_ptr(), values.len()) };
    }
}
