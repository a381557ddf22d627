//! Where a key has failed.

use pyo3::prelude::*;

/// Which event of which key has failed.
pub struct FailedAt {
    pub key: Option<Py<PyAny>>,
    /// The number of the event among those of its key, from 1; 0 where none is known.
    pub number: u64,
    /// How many events of the key were taken from the source after it.
    pub behind: u64,
}
