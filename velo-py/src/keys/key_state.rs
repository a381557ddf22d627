//! The `state` of the function of one key, and when it is to be saved.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::process::worker::due::Due;

/// The state of one key.
pub struct KeyState {
    pub state: Py<PyDict>,
    pub due: Due,
    /// The caller waits for a snapshot.
    pub wanted: bool,
    /// Events that the last one covers.
    pub covered: u32,
    /// A measure of what went through since.
    pub passed: u64,
    /// Why none could be made while the function waited for an event.
    pub failure: Option<PyErr>,
}

impl KeyState {
    /// One that nothing has been saved of.
    pub fn new(state: Py<PyDict>) -> Self {
        KeyState {
            state,
            due: Due::default(),
            wanted: false,
            covered: 0,
            passed: 0,
            failure: None,
        }
    }
}

impl KeyState {
    /// Notes what has gone through the key since the last snapshot, in bytes of its journal.
    #[inline]
    pub fn passes(&mut self, bytes: u64) {
        self.passed += bytes;
    }
}
