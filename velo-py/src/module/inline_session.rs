//! Keeping a stream in inline mode.

use std::sync::{Arc, Weak};

use pyo3::intern;
use pyo3::prelude::*;

use crate::function::deadline::Budget;
use crate::function::eager::Aside;
use crate::function::port::{FunctionSide, Port};
use crate::function::session::{self, Half, Kept, KeptPort};
use crate::function::stream_port::StreamPort;
use crate::inline::{InlineChannel, InlineStream};
use crate::user::channel::{Cancel, Channel};
use crate::user::state::StreamCore;
use crate::user::stream::Opened;
use crate::wait::Waits;

/// Runs `function` in the running loop as `open_inline` does, to be kept. Returns what the first
/// `Stream` on it is made of, and what keeps it: `tell(over, error)` is called when an attachment is
/// over, or the function.
#[pyfunction]
#[pyo3(signature = (event_loop, function, limits, name, event_timeout, tell))]
pub fn keep_inline(
    py: Python<'_>,
    event_loop: &Bound<'_, PyAny>,
    function: (Bound<'_, PyAny>, bool),
    limits: (usize, String),
    name: &str,
    event_timeout: Option<f64>,
    tell: Py<PyAny>,
) -> PyResult<(Opened, Kept)> {
    let (function, has_state) = function;
    let side = Arc::new(FunctionSide::default());
    let event_loop_of = || event_loop.clone().unbind();
    let waits = Arc::new(Waits::default());
    let stream = InlineStream::attached(event_loop_of(), limits.0, waits.clone(), side.clone());
    let stream = Arc::new(stream);
    let half = Half::Inline(stream.clone());
    let kept = Arc::new(KeptPort::new(half, side, event_loop_of(), tell));
    let port = Port::Kept(kept.clone(), true);
    let budget = Budget::new(name.to_owned(), &port, None, event_timeout);
    let aside = match StreamPort::new(port, budget).begin(&function, has_state)? {
        Some(pump) => Some(Arc::new(Aside::start(event_loop, pump, name)?)),
        None => None,
    };
    let kept = Kept { port: kept, aside };
    let opened = kept.opened(py, stream, waits, &limits.1, name)?;
    Ok((opened, kept))
}

impl Kept {
    pub fn attach_here(
        &self,
        py: Python<'_>,
        limits: (usize, String),
        name: &str,
    ) -> PyResult<Opened> {
        let waits = Arc::new(Waits::default());
        let stream = Arc::new(InlineStream::attached(
            self.port.event_loop().clone_ref(py),
            limits.0,
            waits.clone(),
            self.port.function().clone(),
        ));
        self.port.attach(py, Half::Inline(stream.clone()))?;
        self.opened(py, stream, waits, &limits.1, name)
    }

    fn opened(
        &self,
        py: Python<'_>,
        stream: Arc<InlineStream>,
        waits: Arc<Waits>,
        full: &str,
        name: &str,
    ) -> PyResult<Opened> {
        let cancel = LeaveKept {
            kept: Arc::downgrade(&self.port),
            stream: stream.clone(),
            task: self.aside.as_ref().map(|aside| aside.task().clone_ref(py)),
        };
        let kept = Arc::downgrade(&self.port);
        let channel = InlineChannel::attached(stream, self.aside.clone(), kept);
        let core = StreamCore::new(
            self.port.event_loop().clone_ref(py),
            Channel::Inline(channel),
            waits,
            Arc::new(cancel),
            full.parse()?,
            name.to_owned(),
        );
        Ok(Opened::new(core))
    }
}

/// What cancels other streams: lets go of this one, or cancels its function after its input was
/// ended.
struct LeaveKept {
    kept: Weak<KeptPort>,
    stream: Arc<InlineStream>,
    /// None when the function failed before it ran.
    task: Option<Py<PyAny>>,
}

impl Cancel for LeaveKept {
    fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        if !self.stream.has_input_ended(py)? {
            let half = Half::Inline(self.stream.clone());
            return session::leave(py, &self.kept, &half).map(drop);
        }
        self.stream.cancel(py)?;
        match &self.task {
            Some(task) => task.call_method0(py, intern!(py, "cancel")).map(drop),
            None => Ok(()),
        }
    }
}
