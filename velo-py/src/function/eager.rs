//! Running a function in the turn of whoever waits for it, or has sent to many.
//!
//! A user who waits for a result of an inline stream waits for a task of the same event loop. Going
//! through the loop costs several microseconds per event; stepping the function right here, as its
//! own task and in its own context, costs one. The task itself is never the wiser: whatever the
//! function comes to wait for is handed to it when its own turn comes (see [`Pump`]).

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyString;

use crate::ffi::turn;
use crate::function::pump::Pump;

/// A stream's function, as something other than its own task can step it.
pub struct Aside {
    event_loop: Py<PyAny>,
    pump: Py<Pump>,
    task: Py<PyAny>,
    /// None where the loop makes tasks of its own kind, whose steps are its own business.
    context: Option<Py<PyAny>>,
}

impl Aside {
    /// Starts the task that runs `pump` in `event_loop`.
    pub fn start(event_loop: &Bound<'_, PyAny>, pump: Pump, name: &str) -> PyResult<Self> {
        let py = event_loop.py();
        let pump = Py::new(py, pump)?;
        let factory = event_loop.call_method0(intern!(py, "get_task_factory"))?;
        let create = event_loop.getattr(intern!(py, "create_task"))?;
        let context = turn::copy_context(py)?;
        note_name(context.bind(py), &PyString::new(py, name))?;
        let run = context.bind(py).getattr(intern!(py, "run"))?;
        let (task, context) = if factory.is_none() {
            let arguments = [("context", context.bind(py))];
            let keywords = pyo3::types::IntoPyDict::into_py_dict(arguments, py)?;
            (create.call((&pump,), Some(&keywords))?, Some(context))
        } else {
            (run.call1((create, &pump))?, None)
        };
        task.call_method1(intern!(py, "set_name"), (name,))?;
        pump.get().runs_as(&task)?;
        Ok(Aside {
            event_loop: event_loop.clone().unbind(),
            pump,
            task: task.unbind(),
            context,
        })
    }

    /// Steps `pump`, which `task` runs in `context`.
    pub fn of(
        event_loop: Py<PyAny>,
        pump: Py<Pump>,
        task: Py<PyAny>,
        context: Option<Py<PyAny>>,
    ) -> Self {
        Aside {
            event_loop,
            pump,
            task,
            context,
        }
    }

    /// The task.
    pub fn task(&self) -> &Py<PyAny> {
        &self.task
    }

    /// Lets the function go on until it waits, if its next step needs nothing of the event loop.
    pub fn step(&self, py: Python<'_>) -> PyResult<()> {
        let Some(context) = &self.context else {
            return Ok(());
        };
        match self.pump.get().can_step_aside(py)? {
            true => self.run(py, context),
            false => Ok(()),
        }
    }

    /// Lets the function go on if its task sleeps on this future, which stays as it is: if the
    /// function comes to wait for its stream again, the task never knows.
    pub fn step_parked(&self, py: Python<'_>, future: &Py<PyAny>) -> PyResult<()> {
        let Some(context) = &self.context else {
            return Ok(());
        };
        let asleep = !future
            .bind(py)
            .call_method0(intern!(py, "done"))?
            .is_truthy()?;
        match asleep && self.pump.get().waits_on(py, future) {
            true => self.run(py, context),
            false => Ok(()),
        }
    }

    fn run(&self, py: Python<'_>, context: &Py<PyAny>) -> PyResult<()> {
        turn::as_task(
            self.event_loop.bind(py),
            self.task.bind(py),
            context.bind(py),
            || self.pump.get().step_aside(py),
        )?
    }
}

/// Notes in a context which stream runs in it.
pub fn note_name(context: &Bound<'_, PyAny>, name: &Bound<'_, PyString>) -> PyResult<()> {
    let py = context.py();
    context.call_method1(intern!(py, "run"), (name_setter(py)?, name))?;
    Ok(())
}

/// What notes the name of the running stream in the current context.
fn name_setter(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static SET: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let set = SET.get_or_try_init(py, || {
        let name = py
            .import("velo._function.context")?
            .getattr("stream_name")?;
        name.getattr("set").map(Bound::unbind)
    });
    Ok(set?.bind(py))
}
