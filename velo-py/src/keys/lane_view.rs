//! What a worker's Python code asks of a lane, for `velo top`, `velo status` and `velo inspect`.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::runner::LaneRunner;
use super::watching::SlowKeys;

#[pymethods]
impl LaneRunner {
    /// Of its keys: how many are open, how many were opened, how many events were handled, and the
    /// slowest ones, as `(text, seconds, whether it awaits something)`.
    fn figures(&self, py: Python<'_>) -> PyResult<(usize, u64, u64, SlowKeys)> {
        let table = &self.table;
        let (live, handled) = table.inner.with(py, |inner| (inner.live, inner.events))?;
        let opened = table.watching.seen.with(py, |seen| seen.opened)?;
        Ok((live, opened, handled, table.slowest(py)?))
    }

    /// What is known of the keys of this text.
    fn find<'py>(&self, py: Python<'py>, text: &str) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let named = self.table.named(py, text)?;
        named
            .into_iter()
            .map(|id| self.table.describe(py, id))
            .collect()
    }
}
