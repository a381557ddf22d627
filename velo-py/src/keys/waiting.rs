//! A queue that costs one word while it is empty.

use std::collections::VecDeque;

use pyo3::prelude::*;

/// An object, and a number: its length in bytes, or whether it is a request.
type Item = (Py<PyAny>, u32);

/// Objects in order. Most keys have no object, so the queue takes one word until there is one.
#[derive(Default)]
#[expect(clippy::box_collection, reason = "one word a key instead of four")]
pub struct Waiting(Option<Box<VecDeque<Item>>>);

impl Waiting {
    /// Adds an object at the end.
    pub fn push(&mut self, object: Py<PyAny>, len: u32) {
        self.0.get_or_insert_default().push_back((object, len));
    }

    /// The first object.
    pub fn first(&self) -> Option<&Item> {
        self.0.as_ref()?.front()
    }

    /// Takes the first object.
    #[inline]
    pub fn pop(&mut self) -> Option<Item> {
        let queue = self.0.as_mut()?;
        let first = queue.pop_front();
        if queue.is_empty() {
            self.0 = None;
        }
        first
    }

    /// The count of objects whose number is not 0.
    pub fn numbered(&self) -> usize {
        let queue = self.0.as_ref();
        queue.map_or(0, |queue| {
            queue.iter().filter(|(_, number)| *number != 0).count()
        })
    }

    /// The count of objects.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |queue| queue.len())
    }

    /// Whether there is no object.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}
