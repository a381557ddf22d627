//! A queue that costs one word while it is empty.

use std::collections::VecDeque;

use pyo3::prelude::*;

/// Objects in order, each with its length in bytes.
#[derive(Default)]
pub struct Waiting(Option<Box<VecDeque<(Py<PyAny>, u32)>>>);

impl Waiting {
    /// Adds one at the end.
    pub fn push(&mut self, object: Py<PyAny>, len: u32) {
        self.0.get_or_insert_default().push_back((object, len));
    }

    /// Takes the first one.
    #[inline]
    pub fn pop(&mut self) -> Option<(Py<PyAny>, u32)> {
        let queue = self.0.as_mut()?;
        let first = queue.pop_front();
        if queue.is_empty() {
            self.0 = None;
        }
        first
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |queue| queue.len())
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}
