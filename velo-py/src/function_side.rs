//! What a port has of its function: where the function waits, and what runs it without a turn of the
//! event loop.

use std::sync::Arc;

use pyo3::prelude::*;

use crate::cell::GilCell;
use crate::wait::{Wait, complete};

/// Runs a function on its caller's stack; see `function/eager.rs`.
pub trait Runner: Send + Sync {
    /// Runs the function until it waits, if its next step needs nothing of the event loop.
    fn run(&self, py: Python<'_>) -> PyResult<()>;

    /// Runs the function if its task sleeps on `future`. The future stays pending: if the function
    /// waits for its stream again, its task sleeps on.
    fn run_suspended(&self, py: Python<'_>, future: &Py<PyAny>) -> PyResult<()>;
}

/// Where a function waits for its stream, and what runs it.
#[derive(Default)]
pub struct FunctionSide {
    /// For an event.
    pub event: Wait,
    /// For room for a result.
    pub space: Wait,
    /// Runs the function as soon as its worker was woken for it. None before the function begins and
    /// after it ended, and in inline mode.
    pub eager: GilCell<Option<Arc<dyn Runner>>>,
    /// The future that the function's task sleeps on while `eager` runs the function.
    pub suspended: GilCell<Option<Py<PyAny>>>,
}

impl FunctionSide {
    /// Registers the running task to be woken when an event is there.
    pub fn wait_event(&self, py: Python<'_>, event_loop: &Py<PyAny>) -> PyResult<Py<PyAny>> {
        if let Some(suspended) = self.suspended.with(py, Option::take)? {
            self.event.resume(py, suspended.clone_ref(py))?;
            return Ok(suspended);
        }
        self.event.start(event_loop.bind(py))
    }

    /// Has the function look for events: at once, if it waits for nothing else.
    pub fn resume(&self, py: Python<'_>) {
        let eager = self.eager.with(py, |place| place.clone());
        self.resume_by(py, eager.ok().flatten().as_deref());
    }

    /// As `resume`, by this runner.
    pub fn resume_by(&self, py: Python<'_>, eager: Option<&dyn Runner>) {
        let Some(eager) = eager else {
            return self.event.wake(py);
        };
        if let Err(error) = self.run(py, eager) {
            error.write_unraisable(py, None); // the function's task runs in any case
        }
    }

    fn run(&self, py: Python<'_>, eager: &dyn Runner) -> PyResult<()> {
        let Some(future) = self.event.suspend(py) else {
            return Ok(()); // it does not wait, or a task of its own waits in its place
        };
        self.suspended
            .with(py, |place| *place = Some(future.clone_ref(py)))?;
        let ran = eager.run_suspended(py, &future);
        // Unless the function waits on this future again, its task has to run to see what the
        // function waits for now.
        if let Some(suspended) = self.suspended.with(py, Option::take)? {
            complete(suspended.bind(py));
        }
        ran
    }

    /// Forgets the runner: nothing but its task runs the function from now on.
    pub fn forget_runner(&self, py: Python<'_>) {
        drop(self.eager.with(py, Option::take));
    }
}
