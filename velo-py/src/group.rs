//! Waiting for many streams at once.

use std::sync::Arc;

use pyo3::prelude::*;

use crate::channel::Want;
use crate::errors::Thrown;
use crate::ffi::send_slot::{Awaitable, Step, coroutine_methods};
use crate::stream::StreamBase;
use crate::wait::{Group, running_loop};

/// Streams that one task waits for; `await group` gives the tokens of those that have something.
///
/// A stream is watched once: after its token came out, and it was drained, it is watched again.
#[pyclass(frozen, module = "velo._core")]
#[derive(Default)]
pub struct StreamGroup {
    group: Arc<Group>,
}

#[pymethods]
impl StreamGroup {
    #[new]
    fn new() -> Self {
        StreamGroup::default()
    }

    /// Tells `token` once when `stream` has a result, or its end, or (if asked) room.
    #[pyo3(signature = (stream, token, space=false))]
    fn watch(&self, stream: &Bound<'_, StreamBase>, token: Py<PyAny>, space: bool) -> PyResult<()> {
        let py = stream.py();
        let core = stream.get().core();
        core.check_thread()?;
        let wait = &core.waits.recv;
        wait.join(py, self.group.clone(), token.clone_ref(py))?;
        let want = Want {
            results: true,
            space,
            bulk: true,
            ..Want::NOTHING
        };
        if !core.channel.may_sleep(py, want)? {
            wait.clear(py);
            self.group.tell(py, token);
        }
        Ok(())
    }

    /// The tokens of those that have something, without waiting.
    fn take(&self, py: Python<'_>) -> PyResult<Vec<Py<PyAny>>> {
        self.group.take(py)
    }

    /// Has the waiting task go on: the token None comes out.
    fn nudge(&self, py: Python<'_>) {
        self.group.tell(py, py.None());
    }

    fn close(&self, py: Python<'_>) {
        self.group.wait().clear(py);
    }
}

impl Awaitable for StreamGroup {
    fn step(slf: &Bound<'_, Self>, _value: &Bound<'_, PyAny>) -> Result<Step, Thrown> {
        let (this, py) = (slf.get(), slf.py());
        if this.group.is_empty(py)? {
            let future = this.group.wait().start(&running_loop(py)?)?;
            return Ok(Step::Yield(future));
        }
        Ok(Step::Return(
            this.group.take(py)?.into_pyobject(py)?.into_any().unbind(),
        ))
    }

    fn throw(slf: &Bound<'_, Self>, error: PyErr) -> PyResult<Step> {
        slf.get().group.wait().clear(slf.py());
        Err(error)
    }
}

coroutine_methods!(StreamGroup);
