//! The place where a key has failed.

use pyo3::prelude::*;

/// The key and the event that have failed.
pub struct FailedAt {
    pub key: Option<Py<PyAny>>,
    /// The number of the event among those of its key, from 1; 0 if it is not known.
    pub number: u64,
    /// The number of events of the key that were taken from the source after it.
    pub behind: u64,
}
