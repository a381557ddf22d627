//! Opening a stream in inline mode.

use std::sync::Arc;

use pyo3::intern;
use pyo3::prelude::*;

use crate::flow::Cancel;
use crate::function::deadline::Deadline;
use crate::function::eager::EagerRunner;
use crate::function::port::Port;
use crate::function::stream_port::StreamPort;
use crate::function_side::Runner;
use crate::inline::{InlineChannel, InlineStream};
use crate::user::channel::Channel;
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
    // No other thread can stop a step of this one, so there is no `stall_timeout` here.
    let deadline = Deadline::new(py, name.to_owned(), &port, None, event_timeout);
    let port = StreamPort::new(port, deadline);
    let eager = match port.begin(function, has_state)? {
        Some(pump) => Some(Arc::new(EagerRunner::start(event_loop, pump, name)?)),
        None => None,
    };
    let cancel = CancelTask {
        stream: stream.clone(),
        task: eager.as_ref().map(|eager| eager.task().clone_ref(py)),
    };
    let runner = eager.map(|eager| eager as Arc<dyn Runner>);
    let core = StreamCore::new(
        event_loop.clone().unbind(),
        Channel::Inline(InlineChannel::new(stream, runner)),
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
