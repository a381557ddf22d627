//! The coroutine that runs one stream function: results of the generator go to the port, waits go
//! up to the task, the end goes to the port too.

use std::sync::Arc;

use pyo3::exceptions::{PyGeneratorExit, PyRuntimeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;
use velo_shm::{fork, ticks};

use crate::cell::GilCell;
use crate::errors::{self, Thrown};
use crate::ffi::asyncgen::{AsyncGen, Resumed};
use crate::ffi::send_slot::{Awaitable, Step, coroutine_methods};
use crate::function::deadline::{self, Deadline};
use crate::function::flush_timer::FlushTimer;
use crate::function::port::Port;
use crate::function::slow_steps;
use crate::function::source::Source;

/// Drives one generator; run as an `asyncio.Task`, so that everything that looks for the current
/// task (timeouts, task groups) works inside the user's function.
#[pyclass(frozen, module = "velo._core")]
pub struct Pump {
    state: GilCell<State>,
    port: Port,
    timer: Arc<FlushTimer>,
    deadline: Option<Arc<Deadline>>,
    name: String,
    /// In which generation of forks it was made.
    born: u32,
}

struct State {
    generator: AsyncGen,
    /// A result that had no room yet. The generator stands at its `yield`.
    result: Option<Py<PyAny>>,
    /// `GeneratorExit` was thrown in.
    closing: bool,
    finished: bool,
    /// The task was told so.
    returned: bool,
    pause: Pause,
    /// What a step eager came to wait for; the task has not seen it yet.
    handed: Option<Py<PyAny>>,
}

/// Why the function does not run.
enum Pause {
    /// It has not begun.
    Fresh,
    /// It waits for this future of its own stream. Once that is done, its task is going to run.
    Stream(Py<PyAny>),
    /// It waits for another future, or for its next turn.
    Other,
}

impl Pump {
    /// Drives `generator`, which reads its events from this source.
    pub fn new(py: Python<'_>, generator: Py<PyAny>, source: Source) -> Self {
        let name = generator
            .bind(py)
            .getattr(intern!(py, "__qualname__"))
            .and_then(|name| name.extract())
            .unwrap_or_else(|_| "stream function".to_owned());
        let state = State {
            generator: AsyncGen::new(py, generator),
            result: None,
            closing: false,
            finished: false,
            returned: false,
            pause: Pause::Fresh,
            handed: None,
        };
        let Source {
            port,
            timer,
            deadline,
        } = source;
        Pump {
            state: GilCell::new(state),
            port,
            timer,
            deadline,
            name,
            born: fork::generation(),
        }
    }

    /// It is run by this task.
    pub fn runs_as(&self, task: &Bound<'_, PyAny>) -> PyResult<()> {
        let deadline = self.deadline.as_ref();
        deadline.map_or(Ok(()), |deadline| deadline.set_task(task))
    }

    /// Whether the function's next step needs nothing of the event loop.
    pub fn can_run_eagerly(&self, py: Python<'_>) -> PyResult<bool> {
        let future = self.state.with(py, |state| match &state.pause {
            _ if state.finished || self.port.is_cancelled(py) => None,
            Pause::Fresh => Some(None),
            Pause::Stream(future) => Some(Some(future.clone_ref(py))),
            Pause::Other => None,
        });
        match future {
            Ok(Some(Some(future))) => is_completed(future.bind(py)),
            Ok(Some(None)) => Ok(true),
            Ok(None) | Err(_) => Ok(false), // waiting, over, or running further up the stack
        }
    }

    /// Whether the function waits for its stream, and its task for this future.
    pub fn waits_on(&self, py: Python<'_>, future: &Py<PyAny>) -> bool {
        let waits = |state: &mut State| match &state.pause {
            Pause::Stream(waiting) => waiting.is(future) && !state.finished,
            Pause::Fresh | Pause::Other => false,
        };
        self.state.with(py, waits).unwrap_or(false) && !self.port.is_cancelled(py)
    }

    /// Runs the function in the turn of another task. What it comes to wait for is kept for its
    /// own task, which is going to run in any case.
    pub fn run_eagerly(&self, py: Python<'_>) -> PyResult<()> {
        let none = py.None();
        self.state.with(py, |state| {
            state.handed = None;
            let step = self.watched(py, || self.run(py, state, None, none.bind(py)));
            if let Step::Yield(waiting) = step? {
                state.pause = self.pause_of(py, &waiting);
                state.handed = (!waiting.is_none(py)).then_some(waiting);
            }
            Ok(())
        })?
    }

    /// Runs a step of the function where it can be seen who does it, and for how long.
    #[inline]
    fn watched<R>(&self, py: Python<'_>, step: impl FnOnce() -> R) -> R {
        let deadline = self.deadline.as_ref();
        let (came, took) = match &self.port {
            Port::Inline(_) | Port::Key(_) => slow_steps::watched(py, &self.name, step),
            Port::Ring(port) => {
                let allowance = deadline.and_then(|deadline| deadline.allowance(py));
                let began = ticks::now();
                let came = port.observe_step(py, allowance, step);
                let took = ticks::now().saturating_sub(began);
                if took > slow_steps::limit()
                    && let Some(ran) = slow_steps::without_standstill(took)
                {
                    port.was_slow(py, ran);
                }
                (came, took)
            }
            Port::Session(_, true) => slow_steps::watched(py, &self.name, step),
            Port::Session(port, false) => {
                let allowance = deadline.and_then(|deadline| deadline.allowance(py));
                let began = ticks::now();
                let came = port.observe_step(py, allowance, step);
                (came, ticks::now().saturating_sub(began))
            }
        };
        deadline::ran(took);
        if let Some(deadline) = deadline {
            deadline.ran(py, took);
        }
        came
    }

    fn pause_of(&self, py: Python<'_>, waiting: &Py<PyAny>) -> Pause {
        match self.port.is_wait(py, waiting) {
            true => Pause::Stream(waiting.clone_ref(py)),
            false => Pause::Other,
        }
    }

    /// Tells the task what its step came to.
    fn pause(&self, py: Python<'_>, state: &mut State, step: Step) -> PyResult<Step> {
        match step {
            Step::Yield(waiting) => {
                state.pause = self.pause_of(py, &waiting);
                Ok(Step::Yield(waiting))
            }
            Step::Return(_) => self.returns(py, state),
        }
    }

    /// The task ends, once.
    fn returns(&self, py: Python<'_>, state: &mut State) -> PyResult<Step> {
        if std::mem::replace(&mut state.returned, true) {
            return Err(PyRuntimeError::new_err(
                "this stream function has ended already",
            ));
        }
        Ok(Step::Return(py.None()))
    }

    fn run(
        &self,
        py: Python<'_>,
        state: &mut State,
        mut resumed: Option<Result<Resumed, Thrown>>,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<Step> {
        loop {
            let came = match resumed.take() {
                Some(came) => came,
                None => {
                    self.stay_out(py, None);
                    if let Some(result) = state.result.take() {
                        let result = result.into_bound(py);
                        match self.port.push(py, &result) {
                            Ok(true) => {}
                            Ok(false) => {
                                state.result = Some(result.unbind());
                                self.port.flush(py);
                                if let Some(future) = self.port.wait_space(py)? {
                                    if let Some(deadline) = &self.deadline {
                                        deadline.pauses(py);
                                    }
                                    self.timer.turn_ended();
                                    return Ok(Step::Yield(future));
                                }
                                continue;
                            }
                            // What cannot be sent fails at the `yield` that made it.
                            Err(error) => {
                                resumed = Some(state.generator.throw(py, error));
                                continue;
                            }
                        }
                        if let Some(deadline) = &self.deadline {
                            deadline.goes_on(py);
                        }
                        self.port.flush_results(py);
                        if self.timer.flush_is_due() {
                            self.port.flush(py);
                            if self.timer.turn_is_over() {
                                return Ok(Step::Yield(py.None()));
                            }
                        }
                    }
                    state.generator.resume(py, value)
                }
            };
            self.stay_out(py, came.as_ref().err());
            match came {
                Ok(Resumed::Yielded(_)) if state.closing => {
                    let error = PyRuntimeError::new_err("async generator ignored GeneratorExit");
                    return Ok(self.finish(py, state, Err(error)));
                }
                Ok(Resumed::Yielded(_)) if self.is_over(py) => {
                    state.closing = true;
                    resumed = Some(state.generator.close(py));
                }
                Ok(Resumed::Yielded(result)) => state.result = Some(result),
                Ok(Resumed::Awaiting(waiting)) => {
                    self.port.flush(py);
                    return Ok(Step::Yield(waiting));
                }
                Ok(Resumed::Finished) => return Ok(self.finish(py, state, Ok(()))),
                Err(error) if state.closing && error.is_instance_of::<PyGeneratorExit>(py) => {
                    return Ok(self.finish(py, state, Ok(())));
                }
                Err(error) => return Ok(self.finish(py, state, Err(error.into()))),
            }
        }
    }

    /// Ends a process that the function has forked, and that comes out of the function: everything else
    /// here is the worker's. An inline stream was forked with all that it needs.
    #[inline]
    fn stay_out(&self, py: Python<'_>, error: Option<&Thrown>) {
        if self.born != fork::generation() {
            self.leave(py, error);
        }
    }

    #[cold]
    fn leave(&self, py: Python<'_>, error: Option<&Thrown>) {
        if !matches!(self.port, Port::Inline(_) | Port::Session(_, true)) {
            let error = error.map(|error| error.clone_ref(py).into_value(py));
            let left = py
                .import("velo._worker.forked")
                .and_then(|forked| forked.call_method1("leave", (&self.name, error)));
            if let Err(failed) = left {
                failed.write_unraisable(py, None);
            }
            // It was not left after all, for want of memory perhaps.
            std::process::abort();
        }
    }

    /// Whether the results that the function still yields are dropped.
    #[inline]
    fn is_over(&self, py: Python<'_>) -> bool {
        let deadline = self.deadline.as_ref();
        self.port.is_cancelled(py) || deadline.is_some_and(|deadline| deadline.has_expired(py))
    }

    fn finish(&self, py: Python<'_>, state: &mut State, outcome: Result<(), PyErr>) -> Step {
        state.finished = true;
        let outcome = match &self.deadline {
            Some(deadline) => deadline.outcome(py, outcome),
            None => Some(outcome),
        };
        let Some(outcome) = outcome else {
            return Step::Return(py.None());
        };
        let outcome = outcome.map_err(|error| match is_cancellation(py, &error) {
            true => errors::closed("the stream function was cancelled"),
            false => error,
        });
        self.port.finish(py, outcome);
        self.port.flush(py);
        Step::Return(py.None())
    }
}

/// Whether the future is done, and not cancelled: a cancelled one is its task's to see.
fn is_completed(future: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = future.py();
    let is = |name| future.call_method0(name)?.is_truthy();
    Ok(is(intern!(py, "done"))? && !is(intern!(py, "cancelled"))?)
}

fn is_cancellation(py: Python<'_>, error: &PyErr) -> bool {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    CLASS
        .import(py, "asyncio", "CancelledError")
        .is_ok_and(|class| error.is_instance(py, class.as_any()))
}

impl Awaitable for Pump {
    #[inline]
    fn step(slf: &Bound<'_, Self>, value: &Bound<'_, PyAny>) -> Result<Step, Thrown> {
        let (this, py) = (slf.get(), slf.py());
        this.state.with(py, |state| {
            if let Some(waiting) = state.handed.take() {
                let over =
                    matches!(state.pause, Pause::Stream(_)) && is_completed(waiting.bind(py))?;
                if !over {
                    return Ok(Step::Yield(waiting));
                }
            }
            if state.finished {
                return Ok(this.returns(py, state)?);
            }
            let step = this.watched(py, || this.run(py, state, None, value));
            Ok(this.pause(py, state, step?)?)
        })?
    }

    fn throw(slf: &Bound<'_, Self>, error: PyErr) -> PyResult<Step> {
        let (this, py) = (slf.get(), slf.py());
        let none = py.None();
        this.state.with(py, |state| {
            this.port.stop_waiting_space(py);
            state.handed = None;
            if state.finished {
                return Err(error);
            }
            let step = this.watched(py, || {
                // At a `yield` nothing is awaited that could be cancelled: the generator is closed.
                let thrown = match state.result.take() {
                    Some(_) if is_cancellation(py, &error) => {
                        state.closing = true;
                        state.generator.close(py)
                    }
                    _ => state.generator.throw(py, error),
                };
                this.run(py, state, Some(thrown), none.bind(py))
            });
            this.pause(py, state, step?)
        })?
    }
}

#[pymethods]
impl Pump {
    /// A task that never ran is closed by the garbage collector.
    fn close(&self) {}

    /// The function's generator.
    #[getter]
    fn generator(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(self
            .state
            .with(py, |state| state.generator.object().clone_ref(py))?)
    }

    #[getter]
    fn __qualname__(&self) -> &str {
        &self.name
    }
}

coroutine_methods!(Pump);
