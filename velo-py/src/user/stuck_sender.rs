//! Warns of a task that sends and never receives: it waits for ever once results that no task receives
//! have filled their queue.

use std::sync::{Arc, Weak};

use pyo3::exceptions::PyRuntimeWarning;
use pyo3::intern;
use pyo3::prelude::*;

use crate::user::state::StreamCore;

/// The seconds that a task waits to send before velo looks for the reason.
const LOOK_AFTER: f64 = 5.0;

/// Watches a stream on which a task has begun to wait to send.
pub fn watch(py: Python<'_>, core: &Arc<StreamCore>) -> PyResult<()> {
    if core.state.with(py, |state| {
        std::mem::replace(&mut state.sender_watched, true)
    })? {
        return Ok(());
    }
    let sent = core.channel.progress(py)?.0;
    let look = Look {
        core: Arc::downgrade(core),
        sent,
    };
    let event_loop = core.event_loop().bind(py);
    event_loop.call_method1(intern!(py, "call_later"), (LOOK_AFTER, look))?;
    Ok(())
}

/// Called by the event loop. It does not keep the stream alive.
#[pyclass(frozen)]
struct Look {
    core: Weak<StreamCore>,
    /// The number of events that the stream had accepted when the wait began.
    sent: u64,
}

#[pymethods]
impl Look {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        let Some(core) = self.core.upgrade() else {
            return Ok(());
        };
        let stuck = core.waits.send.is_waiting(py)
            && core.channel.progress(py)?.0 == self.sent
            && core.channel.has_results(py)?
            && !core.has_receiver(py)?;
        if !stuck {
            // The next wait is watched again.
            core.state.with(py, |state| state.sender_watched = false)?;
            return Ok(());
        }
        let name = &core.name;
        let text = format!(
            "a task has waited for {LOOK_AFTER} s to send to stream `{name}`, whose function waits until its \
             results are received, which no task does: receive while you send, as by \
             `async for result in stream.feed(events)`, or in another task"
        );
        let Ok(text) = std::ffi::CString::new(text) else {
            return Ok(());
        };
        PyErr::warn(py, &py.get_type::<PyRuntimeWarning>(), &text, 1)
    }
}
