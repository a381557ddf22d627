//! Sessions: a stream under a key that outlives each of its users.
//!
//! Each user, one after the other, has an *attachment*: a stream of its own, with the port that any
//! stream of its mode has. A [`SessionPort`] stands between the function and the port of the present
//! attachment. A user that detaches is gone when the function has handled what the user sent; what
//! the function yields until then is dropped. A session without an attachment is *detached*: its
//! function waits for an event.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use velo_shm::Allowance;

use crate::cell::GilCell;
use crate::errors::{self, Thrown};
use crate::flow::Next;
use crate::function_side::FunctionSide;
use crate::inline::InlineStream;
use crate::process::worker::ring_port::RingPort;
use crate::wait::Wait;

/// The port of one attachment.
#[derive(Clone)]
pub enum Attachment {
    /// In inline mode.
    Inline(Arc<InlineStream>),
    /// In a worker.
    Ring(Arc<RingPort>),
}

macro_rules! with_port {
    ($attachment:expr, $side:ident => $call:expr) => {
        match $attachment {
            Attachment::Inline($side) => $call,
            Attachment::Ring($side) => $call,
        }
    };
}

impl Attachment {
    fn is(&self, other: &Attachment) -> bool {
        match (self, other) {
            (Attachment::Inline(one), Attachment::Inline(other)) => Arc::ptr_eq(one, other),
            (Attachment::Ring(one), Attachment::Ring(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    /// Ends this attachment.
    fn end(&self, py: Python<'_>, outcome: Result<(), PyErr>) {
        match self {
            Attachment::Inline(stream) => stream.finish(py, outcome),
            Attachment::Ring(port) => port.end(py, outcome),
        }
    }

    /// Whether its user has given its memory back. That does not end the session.
    fn is_closed(&self, py: Python<'_>) -> bool {
        match self {
            Attachment::Inline(_) => false,
            Attachment::Ring(port) => port.is_closed(py),
        }
    }
}

/// The port of a session: it forwards to the port of the current attachment, if there is one.
pub struct SessionPort {
    state: GilCell<State>,
    function: Arc<FunctionSide>,
    event_loop: Py<PyAny>,
    /// What the function's state is; None: it begins as an empty one.
    values: Option<Py<PyDict>>,
    /// Called with `(over, error, failed)` when an attachment has ended (`over` is false) or the function
    /// has; it has `failed` if it did not return. The call may come in the middle of a step of the function, and before the user learns of it.
    notify_owner: GilCell<Option<Py<PyAny>>>,
}

struct State {
    /// None: the session is detached.
    attachment: Option<Attachment>,
    /// The attachment's user has detached, and gets no more results.
    leaving: bool,
    /// No event will ever come.
    input_ended: bool,
    /// The function has ended.
    over: bool,
    /// Called when the function asks for its next event.
    on_ask: Option<Py<PyAny>>,
}

impl SessionPort {
    /// The attachment of a function that has not begun, whose first user is attached already.
    pub fn new(
        attachment: Attachment,
        function: Arc<FunctionSide>,
        event_loop: Py<PyAny>,
        notify_owner: Py<PyAny>,
        values: Option<Py<PyDict>>,
    ) -> Self {
        let state = State {
            attachment: Some(attachment),
            leaving: false,
            input_ended: false,
            over: false,
            on_ask: None,
        };
        SessionPort {
            state: GilCell::new(state),
            function,
            event_loop,
            values,
            notify_owner: GilCell::new(Some(notify_owner)),
        }
    }

    // The side of the owner, which attaches and detaches users.

    /// What the ports of all attachments share.
    pub fn function(&self) -> &Arc<FunctionSide> {
        &self.function
    }

    /// Attaches a user to a detached session.
    pub fn attach(&self, py: Python<'_>, attachment: Attachment) -> PyResult<()> {
        let attached = self.state.with(py, |state| {
            let free = state.attachment.is_none() && !state.input_ended && !state.over;
            if free {
                state.attachment = Some(attachment.clone());
            }
            free
        })?;
        if !attached {
            return Err(errors::busy(
                "this stream is attached, or has come to its end",
            ));
        }
        if self.function.event.is_waiting(py) {
            with_port!(&attachment, side => side.asked(py))?;
        }
        self.function.resume(py); // events may have come before this
        Ok(())
    }

    /// Detaches the user once the function has handled what the user sent. With `attachment`, only if
    /// it is the present one. False: there is none, or it is detaching already.
    pub fn leave(&self, py: Python<'_>, attachment: Option<&Attachment>) -> PyResult<bool> {
        let leaving = self.state.with(py, |state| {
            let here = state.attachment.clone();
            let here = here.filter(|here| attachment.is_none_or(|attachment| attachment.is(here)));
            let here = here.filter(|_| !state.leaving);
            state.leaving |= here.is_some();
            here
        })?;
        let Some(attachment) = leaving else {
            return Ok(false);
        };
        if with_port!(&attachment, side => side.is_at_rest(py))? {
            self.finish_attachment(py)?;
        } else {
            self.function.space.wake(py); // what waits for room is dropped
            self.function.resume(py);
        }
        Ok(true)
    }

    /// Whether there is an attachment.
    pub fn is_attached(&self, py: Python<'_>) -> bool {
        self.state
            .with(py, |state| state.attachment.is_some())
            .unwrap_or(true)
    }

    /// Ends the input of a detached session: the function's loop ends.
    pub fn end_input(&self, py: Python<'_>) -> PyResult<()> {
        self.state.with(py, |state| state.input_ended = true)?;
        self.function.resume(py);
        Ok(())
    }

    /// Has `call` called once, when the function asks for its next event.
    pub fn when_asking(&self, py: Python<'_>, call: Py<PyAny>) -> PyResult<()> {
        let before = self.state.with(py, |state| state.on_ask.replace(call))?;
        drop(before);
        Ok(())
    }

    fn attachment(&self, py: Python<'_>) -> Option<Attachment> {
        self.state
            .with(py, |state| state.attachment.clone())
            .ok()
            .flatten()
    }

    /// The attachment that gets results: none while the session is detached or detaching.
    fn receiver(&self, py: Python<'_>) -> PyResult<Option<Attachment>> {
        Ok(self.state.with(py, |state| match state.leaving {
            true => None,
            false => state.attachment.clone(),
        })?)
    }

    /// Ends the attachment of a user that has detached.
    fn finish_attachment(&self, py: Python<'_>) -> PyResult<()> {
        let attachment = self.state.with(py, |state| {
            state.leaving = false;
            state.attachment.take()
        })?;
        if let Some(attachment) = attachment {
            self.notify_owner(py, false, None, false);
            attachment.end(py, Ok(()));
        }
        Ok(())
    }

    fn notify_owner(&self, py: Python<'_>, over: bool, error: Option<PyErr>, failed: bool) {
        let call = self.notify_owner.with(py, |notify_owner| match over {
            true => notify_owner.take(),
            false => notify_owner
                .as_ref()
                .map(|notify_owner| notify_owner.clone_ref(py)),
        });
        let Ok(Some(call)) = call else { return };
        if let Err(error) = call.call1(py, (over, error, failed)) {
            error.write_unraisable(py, None);
        }
    }

    // The function's side: see `Port`.

    /// See [`Port::state`](crate::function::port::Port::state).
    pub fn state<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let values = self.values.as_ref().map(|values| values.bind(py).clone());
        Ok(values.unwrap_or_else(|| PyDict::new(py)))
    }

    /// See [`Port::next_event`](crate::function::port::Port::next_event).
    pub fn next_event(&self, py: Python<'_>) -> Result<Next, Thrown> {
        if let Some(call) = self.state.with(py, |state| state.on_ask.take())? {
            call.call0(py)?;
        }
        loop {
            let (attachment, leaving, input_ended) = self.state.with(py, |state| {
                (state.attachment.clone(), state.leaving, state.input_ended)
            })?;
            let Some(attachment) = attachment else {
                return Ok(match input_ended {
                    true => Next::Ended,
                    false => Next::Empty,
                });
            };
            match with_port!(&attachment, side => side.next_event(py))? {
                Next::Event(event) => return Ok(Next::Event(event)),
                Next::Empty if leaving => self.finish_attachment(py)?,
                Next::Empty => return Ok(Next::Empty),
                Next::Ended if attachment.is_closed(py) => self.finish_attachment(py)?,
                Next::Ended => {
                    self.state.with(py, |state| state.input_ended = true)?;
                    return Ok(Next::Ended);
                }
            }
        }
    }

    /// See [`Port::wait_event`](crate::function::port::Port::wait_event).
    pub fn wait_event(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        match self.attachment(py) {
            Some(attachment) => with_port!(attachment, side => side.wait_event(py)),
            None => self.function.wait_event(py, &self.event_loop).map(Some),
        }
    }

    /// The loop that the function runs in.
    pub fn event_loop(&self) -> &Py<PyAny> {
        &self.event_loop
    }

    /// Where the function waits for an event.
    pub fn event_wait(&self) -> &Wait {
        &self.function.event
    }

    /// Where the function waits for room.
    pub fn space_wait(&self) -> &Wait {
        &self.function.space
    }

    /// See [`Port::push`](crate::function::port::Port::push).
    pub fn push(&self, py: Python<'_>, result: &Bound<'_, PyAny>) -> PyResult<bool> {
        match self.receiver(py)? {
            Some(attachment) => with_port!(attachment, side => side.push(py, result)),
            None => Ok(true),
        }
    }

    /// See [`Port::flush_results`](crate::function::port::Port::flush_results).
    pub fn flush_results(&self, py: Python<'_>) {
        if let Some(Attachment::Ring(port)) = self.attachment(py) {
            port.flush_results(py);
        }
    }

    /// See [`Port::flush`](crate::function::port::Port::flush).
    pub fn flush(&self, py: Python<'_>) {
        if let Some(attachment) = self.attachment(py) {
            with_port!(attachment, side => side.flush(py));
        }
    }

    /// See [`Port::wait_space`](crate::function::port::Port::wait_space).
    pub fn wait_space(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        match self.receiver(py)? {
            Some(attachment) => with_port!(attachment, side => side.wait_space(py)),
            None => Ok(None),
        }
    }

    /// See [`Port::is_cancelled`](crate::function::port::Port::is_cancelled).
    pub fn is_cancelled(&self, py: Python<'_>) -> bool {
        self.attachment(py)
            .is_some_and(|attachment| with_port!(attachment, side => side.is_cancelled(py)))
    }

    /// See [`Port::event`](crate::function::port::Port::event). Each attachment counts its own.
    pub fn event(&self, py: Python<'_>) -> u64 {
        self.attachment(py).map_or(
            0,
            |attachment| with_port!(attachment, side => side.event(py)),
        )
    }

    /// See [`Port::allow`](crate::function::port::Port::allow).
    pub fn allow(&self, py: Python<'_>, allowance: Option<Allowance>) {
        if let Some(Attachment::Ring(port)) = self.attachment(py) {
            port.allow(allowance);
        }
    }

    /// Runs a step of the function, which the attachment's link shows meanwhile.
    pub fn observe_step<R>(
        &self,
        py: Python<'_>,
        allowance: Option<Allowance>,
        step: impl FnOnce() -> R,
    ) -> R {
        match self.attachment(py) {
            Some(Attachment::Ring(port)) => port.observe_step(py, allowance, step),
            _ => step(),
        }
    }

    /// See [`Port::finish`](crate::function::port::Port::finish).
    pub fn finish(&self, py: Python<'_>, outcome: Result<(), PyErr>) {
        self.function.forget_runner(py);
        let failed = outcome.is_err();
        let taken = self.state.with(py, |state| {
            state.over = true;
            (state.attachment.take(), state.on_ask.take())
        });
        let attachment = taken.map(|(attachment, on_ask)| {
            drop(on_ask);
            attachment
        });
        match attachment {
            Ok(Some(attachment)) => {
                self.notify_owner(py, true, None, failed);
                attachment.end(py, outcome);
                with_port!(&attachment, side => side.flush(py));
            }
            // There is no user to get the exception.
            _ => self.notify_owner(py, true, outcome.err(), failed),
        }
    }
}
