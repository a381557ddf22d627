//! The function's half of a stream that is kept under a key: it outlives whoever uses it.
//!
//! Each of its users, one after the other, is *attached* by a stream of its own, with the port that
//! any stream of its mode has. A [`KeptPort`] stands between the function and the port that is there
//! at present. Who *leaves* is gone when the function has handled what was sent; what it yields until
//! then is dropped. While nobody is attached the function is *parked*: it waits for an event.

use std::sync::{Arc, Weak};

use pyo3::prelude::*;
use velo_shm::Allowance;

use crate::cell::GilCell;
use crate::errors::{self, Thrown};
use crate::function::eager::Aside;
use crate::function::port::{FunctionSide, Next};
use crate::inline::InlineStream;
use crate::process::worker::RingPort;
use crate::user::stream::Opened;
use crate::wait::Wait;

/// The port of one attachment.
#[derive(Clone)]
pub enum Half {
    /// In inline mode.
    Inline(Arc<InlineStream>),
    /// In a worker.
    Ring(Arc<RingPort>),
}

macro_rules! either {
    ($half:expr, $side:ident => $call:expr) => {
        match $half {
            Half::Inline($side) => $call,
            Half::Ring($side) => $call,
        }
    };
}

impl Half {
    fn is(&self, other: &Half) -> bool {
        match (self, other) {
            (Half::Inline(one), Half::Inline(other)) => Arc::ptr_eq(one, other),
            (Half::Ring(one), Half::Ring(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    /// It is over for its user.
    fn end(&self, py: Python<'_>, outcome: Result<(), PyErr>) {
        match self {
            Half::Inline(stream) => stream.finish(py, outcome),
            Half::Ring(port) => port.end(py, outcome),
        }
    }

    /// Whether its user has let go of its memory, which ends no kept stream.
    fn is_closed(&self, py: Python<'_>) -> bool {
        match self {
            Half::Inline(_) => false,
            Half::Ring(port) => port.is_closed(py),
        }
    }
}

/// The function's half of a kept stream.
pub struct KeptPort {
    state: GilCell<State>,
    function: Arc<FunctionSide>,
    event_loop: Py<PyAny>,
    /// Called with `(over, error)`: an attachment is over, or the function. It may be in the middle of
    /// a step of the function, and before the user learns of it.
    tell: GilCell<Option<Py<PyAny>>>,
}

struct State {
    /// Who is attached. None: the stream is parked.
    half: Option<Half>,
    /// Who is attached wants no more results.
    leaving: bool,
    /// No event will ever come.
    input_ended: bool,
    /// The function has ended.
    over: bool,
}

impl KeptPort {
    /// The half of a function that has not begun, whose first user is attached already.
    pub fn new(
        half: Half,
        function: Arc<FunctionSide>,
        event_loop: Py<PyAny>,
        tell: Py<PyAny>,
    ) -> Self {
        let state = State {
            half: Some(half),
            leaving: false,
            input_ended: false,
            over: false,
        };
        KeptPort {
            state: GilCell::new(state),
            function,
            event_loop,
            tell: GilCell::new(Some(tell)),
        }
    }

    // Its keeper's side.

    /// What the ports of its attachments share.
    pub fn function(&self) -> &Arc<FunctionSide> {
        &self.function
    }

    /// Attaches a user to a function that is parked.
    pub fn attach(&self, py: Python<'_>, half: Half) -> PyResult<()> {
        let attached = self.state.with(py, |state| {
            let free = state.half.is_none() && !state.input_ended && !state.over;
            if free {
                state.half = Some(half.clone());
            }
            free
        })?;
        if !attached {
            return Err(errors::busy(
                "this stream is attached, or has come to its end",
            ));
        }
        if self.function.event.is_waiting(py) {
            either!(&half, side => side.asked(py))?;
        }
        self.function.go_on(py); // events may have come before this
        Ok(())
    }

    /// Whoever is attached leaves: detaches when the function has handled what was sent. `half`
    /// says whom that is about; None for anybody. False: it is not attached, or leaves already.
    pub fn leave(&self, py: Python<'_>, half: Option<&Half>) -> PyResult<bool> {
        let leaves = self.state.with(py, |state| {
            let here = state.half.clone();
            let here = here.filter(|here| half.is_none_or(|half| half.is(here)));
            let here = here.filter(|_| !state.leaving);
            state.leaving |= here.is_some();
            here
        })?;
        let Some(half) = leaves else {
            return Ok(false);
        };
        if either!(&half, side => side.is_at_rest(py))? {
            self.park(py)?;
        } else {
            self.function.space.wake(py); // what waits for room is dropped
            self.function.go_on(py);
        }
        Ok(true)
    }

    /// Whether somebody is attached.
    pub fn is_attached(&self, py: Python<'_>) -> bool {
        self.state
            .with(py, |state| state.half.is_some())
            .unwrap_or(true)
    }

    /// No event will come any more, while nobody is attached: the function's loop ends.
    pub fn end_input(&self, py: Python<'_>) -> PyResult<()> {
        self.state.with(py, |state| state.input_ended = true)?;
        self.function.go_on(py);
        Ok(())
    }

    fn half(&self, py: Python<'_>) -> Option<Half> {
        self.state
            .with(py, |state| state.half.clone())
            .ok()
            .flatten()
    }

    /// Who gets results: nobody while the stream is parked, or about to be.
    fn receiver(&self, py: Python<'_>) -> PyResult<Option<Half>> {
        Ok(self.state.with(py, |state| match state.leaving {
            true => None,
            false => state.half.clone(),
        })?)
    }

    /// The one who left is gone.
    fn park(&self, py: Python<'_>) -> PyResult<()> {
        let half = self.state.with(py, |state| {
            state.leaving = false;
            state.half.take()
        })?;
        if let Some(half) = half {
            self.tell(py, false, None);
            half.end(py, Ok(()));
        }
        Ok(())
    }

    fn tell(&self, py: Python<'_>, over: bool, error: Option<PyErr>) {
        let call = self.tell.with(py, |tell| match over {
            true => tell.take(),
            false => tell.as_ref().map(|tell| tell.clone_ref(py)),
        });
        let Ok(Some(call)) = call else { return };
        if let Err(error) = call.call1(py, (over, error)) {
            error.write_unraisable(py, None);
        }
    }

    // The function's side: see `Port`.

    /// See [`Port::next_event`](crate::function::port::Port::next_event).
    pub fn next_event(&self, py: Python<'_>) -> Result<Next, Thrown> {
        loop {
            let (half, leaving, input_ended) = self.state.with(py, |state| {
                (state.half.clone(), state.leaving, state.input_ended)
            })?;
            let Some(half) = half else {
                return Ok(match input_ended {
                    true => Next::Ended,
                    false => Next::Empty,
                });
            };
            match either!(&half, side => side.next_event(py))? {
                Next::Event(event) => return Ok(Next::Event(event)),
                Next::Empty if leaving => self.park(py)?,
                Next::Empty => return Ok(Next::Empty),
                Next::Ended if half.is_closed(py) => self.park(py)?,
                Next::Ended => {
                    self.state.with(py, |state| state.input_ended = true)?;
                    return Ok(Next::Ended);
                }
            }
        }
    }

    /// See [`Port::wait_event`](crate::function::port::Port::wait_event).
    pub fn wait_event(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        match self.half(py) {
            Some(half) => either!(half, side => side.wait_event(py)),
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
            Some(half) => either!(half, side => side.push(py, result)),
            None => Ok(true),
        }
    }

    /// See [`Port::show_results`](crate::function::port::Port::show_results).
    pub fn show_results(&self, py: Python<'_>) {
        if let Some(Half::Ring(port)) = self.half(py) {
            port.show_results(py);
        }
    }

    /// See [`Port::flush`](crate::function::port::Port::flush).
    pub fn flush(&self, py: Python<'_>) {
        if let Some(half) = self.half(py) {
            either!(half, side => side.flush(py));
        }
    }

    /// See [`Port::wait_space`](crate::function::port::Port::wait_space).
    pub fn wait_space(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        match self.receiver(py)? {
            Some(half) => either!(half, side => side.wait_space(py)),
            None => Ok(None),
        }
    }

    /// See [`Port::is_cancelled`](crate::function::port::Port::is_cancelled).
    pub fn is_cancelled(&self, py: Python<'_>) -> bool {
        self.half(py)
            .is_some_and(|half| either!(half, side => side.is_cancelled(py)))
    }

    /// See [`Port::event`](crate::function::port::Port::event). Each attachment counts its own.
    pub fn event(&self, py: Python<'_>) -> u64 {
        self.half(py)
            .map_or(0, |half| either!(half, side => side.event(py)))
    }

    /// See [`Port::allow`](crate::function::port::Port::allow).
    pub fn allow(&self, py: Python<'_>, allowance: Option<Allowance>) {
        if let Some(Half::Ring(port)) = self.half(py) {
            port.allow(allowance);
        }
    }

    /// Runs a step of the function where it can be seen, if anybody is attached who could look.
    pub fn on_board<R>(
        &self,
        py: Python<'_>,
        allowance: Option<Allowance>,
        step: impl FnOnce() -> R,
    ) -> R {
        match self.half(py) {
            Some(Half::Ring(port)) => port.on_board(py, allowance, step),
            _ => step(),
        }
    }

    /// See [`Port::finish`](crate::function::port::Port::finish).
    pub fn finish(&self, py: Python<'_>, outcome: Result<(), PyErr>) {
        self.function.forget_steps(py);
        let half = self.state.with(py, |state| {
            state.over = true;
            state.half.take()
        });
        match half {
            Ok(Some(half)) => {
                self.tell(py, true, None);
                half.end(py, outcome);
                either!(&half, side => side.flush(py));
            }
            // Nobody is there who could get the exception.
            _ => self.tell(py, true, outcome.err()),
        }
    }
}

/// A kept stream as its keeper holds it.
#[pyclass(frozen, module = "velo._core")]
pub struct Kept {
    pub port: Arc<KeptPort>,
    /// Steps an inline function, for all who are attached to it.
    pub aside: Option<Arc<Aside>>,
}

impl Kept {
    /// One in a worker.
    pub fn in_worker(port: Arc<KeptPort>) -> Self {
        Kept { port, aside: None }
    }
}

#[pymethods]
impl Kept {
    /// Whether somebody is attached.
    #[getter]
    fn attached(&self, py: Python<'_>) -> bool {
        self.port.is_attached(py)
    }

    /// Has whoever is attached leave; see `KeptPort::leave`.
    fn leave(&self, py: Python<'_>) -> PyResult<bool> {
        self.port.leave(py, None)
    }

    /// Ends the input of a parked stream.
    fn end_input(&self, py: Python<'_>) -> PyResult<()> {
        self.port.end_input(py)
    }

    /// Attaches the next user to an inline stream that is parked.
    fn attach_inline(
        &self,
        py: Python<'_>,
        limits: (usize, String),
        name: &str,
    ) -> PyResult<Opened> {
        self.attach_here(py, limits, name)
    }
}

/// Lets go of a kept stream, instead of cancelling its function; unless its input was ended.
pub fn leave(py: Python<'_>, kept: &Weak<KeptPort>, half: &Half) -> PyResult<bool> {
    kept.upgrade()
        .map_or(Ok(false), |port| port.leave(py, Some(half)))
}
