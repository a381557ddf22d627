//! Lines of files as events: a line travels as its text, and arrives as the event that the text holds.

pub mod json;
pub mod keys;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// One event of a file that nothing has parsed yet. The codec writes its text, and the process that
/// reads it gets the event.
#[pyclass(frozen, module = "velo._core")]
pub struct Line {
    /// The key of the event, or None where the run has no keys.
    #[pyo3(get)]
    pub key: Py<PyAny>,
    /// A JSON value, or a record of CSV.
    pub text: Box<[u8]>,
    /// The packed columns of a record of CSV; None: the text is JSON.
    pub form: Option<Py<PyBytes>>,
}
