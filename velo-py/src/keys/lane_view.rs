//! The view of a lane for a worker's Python code: `velo top`, `velo status` and `velo inspect`.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::runner::LaneRunner;
use super::watching::SlowKeys;

#[pymethods]
impl LaneRunner {
    /// The numbers of open keys, of opened keys and of handled events, and the slowest keys, as `(text,
    /// seconds, whether it awaits a future)`.
    fn figures(&self, py: Python<'_>) -> PyResult<(usize, u64, u64, SlowKeys)> {
        let table = &self.table;
        let (live, handled) = table.inner.with(py, |inner| (inner.live, inner.events))?;
        let opened = table.watching.seen.with(py, |seen| seen.opened)?;
        Ok((live, opened, handled, table.slowest(py)?))
    }

    /// The data of the keys of this text.
    fn find<'py>(&self, py: Python<'py>, text: &str) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let named = self.table.named(py, text)?;
        named
            .into_iter()
            .map(|id| self.table.describe(py, id))
            .collect()
    }
}
