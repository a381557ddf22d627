//! Sessions in inline mode.

use std::sync::{Arc, Weak};

use pyo3::intern;
use pyo3::prelude::*;

use crate::flow::Cancel;
use crate::function::deadline::Deadline;
use crate::function::eager::EagerRunner;
use crate::function::port::Port;
use crate::function::session::{Attachment, SessionPort};
use crate::function::stream_port::StreamPort;
use crate::function_side::{FunctionSide, Runner};
use crate::inline::{InlineChannel, InlineStream, LeaveSession};
use crate::module::session::Session;
use crate::user::channel::Channel;
use crate::user::state::StreamCore;
use crate::user::stream::Opened;
use crate::wait::Waits;

/// Begins a session in the running loop: runs `function` as `open_inline` does. Returns what the first
/// `Stream` on it is made of, and the session. `on_end(over, error, failed)` is called when an
/// attachment has ended (`over` is false) or the function has.
#[pyfunction]
#[pyo3(signature = (event_loop, function, limits, name, event_timeout, on_end))]
pub fn open_inline_session(
    py: Python<'_>,
    event_loop: &Bound<'_, PyAny>,
    function: (Bound<'_, PyAny>, bool),
    limits: (usize, String),
    name: &str,
    event_timeout: Option<f64>,
    on_end: Py<PyAny>,
) -> PyResult<(Opened, Session)> {
    let (function, has_state) = function;
    let side = Arc::new(FunctionSide::default());
    let event_loop_of = || event_loop.clone().unbind();
    let waits = Arc::new(Waits::default());
    let stream = InlineStream::attached(event_loop_of(), limits.0, waits.clone(), side.clone());
    let stream = Arc::new(stream);
    let attachment = Attachment::Inline(stream.clone());
    let port = Arc::new(SessionPort::new(
        attachment,
        side,
        event_loop_of(),
        on_end,
        None,
    ));
    let port_of_function = Port::Session(port.clone(), true);
    let deadline = Deadline::new(py, name.to_owned(), &port_of_function, None, event_timeout);
    let eager = match StreamPort::new(port_of_function, deadline).begin(&function, has_state)? {
        Some(pump) => Some(Arc::new(EagerRunner::start(event_loop, pump, name)?)),
        None => None,
    };
    let session = Session { port, eager };
    let opened = session.opened(py, stream, waits, &limits.1, name)?;
    Ok((opened, session))
}

#[pymethods]
impl Session {
    /// Attaches the next user to a detached session in inline mode.
    fn attach_inline(
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
        self.port.attach(py, Attachment::Inline(stream.clone()))?;
        self.opened(py, stream, waits, &limits.1, name)
    }
}

impl Session {
    fn opened(
        &self,
        py: Python<'_>,
        stream: Arc<InlineStream>,
        waits: Arc<Waits>,
        full: &str,
        name: &str,
    ) -> PyResult<Opened> {
        let user = User {
            session: Arc::downgrade(&self.port),
            stream: stream.clone(),
        };
        let cancel = CancelAttachment {
            user: user.clone(),
            task: self.eager.as_ref().map(|eager| eager.task().clone_ref(py)),
        };
        let eager = self.eager.clone().map(|eager| eager as Arc<dyn Runner>);
        let channel = InlineChannel::attached(stream, eager, Box::new(user));
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

/// One user of a session.
#[derive(Clone)]
struct User {
    session: Weak<SessionPort>,
    stream: Arc<InlineStream>,
}

impl LeaveSession for User {
    fn leave(&self, py: Python<'_>) -> PyResult<()> {
        let Some(session) = self.session.upgrade() else {
            return Ok(());
        };
        let attachment = Attachment::Inline(self.stream.clone());
        session.leave(py, Some(&attachment)).map(drop)
    }
}

/// Detaches a user instead of cancelling the function, unless the user has ended the input.
struct CancelAttachment {
    user: User,
    /// None when the function failed before it began.
    task: Option<Py<PyAny>>,
}

impl Cancel for CancelAttachment {
    fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        if !self.user.stream.has_input_ended(py)? {
            return self.user.leave(py);
        }
        self.user.stream.cancel(py)?;
        match &self.task {
            Some(task) => task.call_method0(py, intern!(py, "cancel")).map(drop),
            None => Ok(()),
        }
    }
}
