//! Opening a stream in inline mode.

use std::sync::Arc;

use pyo3::intern;
use pyo3::prelude::*;

use crate::function::deadline::Budget;
use crate::function::eager::Aside;
use crate::function::port::Port;
use crate::function::stream_port::StreamPort;
use crate::inline::{InlineChannel, InlineStream};
use crate::user::channel::{Cancel, Channel};
use crate::user::state::StreamCore;
use crate::user::stream::Opened;
use crate::wait::Waits;

/// Opens an inline stream of `function` in the running loop: calls it with its events and runs the
/// generator as a task named `name`. Returns what `Stream` is made of.
#[pyfunction]
#[pyo3(signature = (event_loop, function, has_state, limits, name, event_timeout=None))]
pub fn open_inline(
    py: Python<'_>,
    event_loop: &Bound<'_, PyAny>,
    function: &Bound<'_, PyAny>,
    has_state: bool,
    limits: (usize, String),
    name: &str,
    event_timeout: Option<f64>,
) -> PyResult<Opened> {
    let (buffer, full) = limits;
    let full = full.parse()?;
    let waits = Arc::new(Waits::default());
    let stream = Arc::new(InlineStream::new(
        event_loop.clone().unbind(),
        buffer,
        waits.clone(),
    ));
    let port = Port::Inline(stream.clone());
    // A step of its own thread cannot be stopped by anybody: there is no `stall_timeout` here.
    let budget = Budget::new(name.to_owned(), &port, None, event_timeout);
    let port = StreamPort::new(port, budget);
    let aside = match port.begin(function, has_state)? {
        Some(pump) => Some(Arc::new(Aside::start(event_loop, pump, name)?)),
        None => None,
    };
    let cancel = CancelTask {
        stream: stream.clone(),
        task: aside.as_ref().map(|aside| aside.task().clone_ref(py)),
    };
    let core = StreamCore::new(
        event_loop.clone().unbind(),
        Channel::Inline(InlineChannel::new(stream, aside)),
        waits,
        Arc::new(cancel),
        full,
        name.to_owned(),
    );
    Ok(Opened::new(core))
}

/// Cancels an inline stream's function.
struct CancelTask {
    stream: Arc<InlineStream>,
    /// None when the function failed before it ran.
    task: Option<Py<PyAny>>,
}

impl Cancel for CancelTask {
    fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        self.stream.cancel(py)?;
        match &self.task {
            Some(task) => task.call_method0(py, intern!(py, "cancel")).map(drop),
            None => Ok(()),
        }
    }
}
