//! Running an inline function in its user's turn.
//!
//! A user who waits for a result of an inline stream waits for a task of the same event loop. Going
//! through the loop costs several microseconds per event; stepping the function right here, as its
//! own task and in its own context, costs one. The task itself is never the wiser: whatever the
//! function comes to wait for is handed to it when its own turn comes (see [`Pump`]).

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::ffi::turn;
use crate::pump::Pump;

/// An inline stream's function, as its user's half can step it.
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
        let run = context.bind(py).getattr(intern!(py, "run"))?;
        run.call1((name_setter(py)?, name))?;
        let (task, context) = if factory.is_none() {
            let arguments = [("context", context.bind(py))];
            let keywords = pyo3::types::IntoPyDict::into_py_dict(arguments, py)?;
            (create.call((&pump,), Some(&keywords))?, Some(context))
        } else {
            (run.call1((create, &pump))?, None)
        };
        task.call_method1(intern!(py, "set_name"), (name,))?;
        Ok(Aside {
            event_loop: event_loop.clone().unbind(),
            pump,
            task: task.unbind(),
            context,
        })
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
        let pump = self.pump.get();
        if !pump.can_step_aside(py)? {
            return Ok(());
        }
        turn::as_task(
            self.event_loop.bind(py),
            self.task.bind(py),
            context.bind(py),
            || pump.step_aside(py),
        )?
    }
}

/// What notes the name of the running stream in the current context.
fn name_setter(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static SET: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let set = SET.get_or_try_init(py, || {
        let name = py.import("velo._context")?.getattr("stream_name")?;
        name.getattr("set").map(Bound::unbind)
    });
    Ok(set?.bind(py))
}
