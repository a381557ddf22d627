//! Running a function on its caller's stack.
//!
//! In inline mode the function is a task of the user's own event loop. To wait for that task costs
//! several microseconds per event, as the loop has to turn; to run the function at once, in its task's
//! name and context, costs one. A worker that was woken for an event does the same. The task does not
//! notice: it finds the future that the function waits for on its next step (see [`Pump`]).

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyString;

use crate::ffi::turn;
use crate::function::pump::Pump;
use crate::function_side::Runner;

/// Runs one stream's function without a turn of the event loop.
pub struct EagerRunner {
    event_loop: Py<PyAny>,
    pump: Py<Pump>,
    task: Py<PyAny>,
    /// None where a task factory made the task: velo cannot run another kind of task by itself.
    context: Option<Py<PyAny>>,
}

impl EagerRunner {
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
        Ok(EagerRunner {
            event_loop: event_loop.clone().unbind(),
            pump,
            task: task.unbind(),
            context,
        })
    }

    /// Runs `pump`, which is the coroutine of `task`, in `context`.
    pub fn of(
        event_loop: Py<PyAny>,
        pump: Py<Pump>,
        task: Py<PyAny>,
        context: Option<Py<PyAny>>,
    ) -> Self {
        EagerRunner {
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

    fn run_in(&self, py: Python<'_>, context: &Py<PyAny>) -> PyResult<()> {
        turn::as_task(
            self.event_loop.bind(py),
            self.task.bind(py),
            context.bind(py),
            || self.pump.get().run_eagerly(py),
        )?
    }
}

impl Runner for EagerRunner {
    fn run(&self, py: Python<'_>) -> PyResult<()> {
        let Some(context) = &self.context else {
            return Ok(());
        };
        match self.pump.get().can_run_eagerly(py)? {
            true => self.run_in(py, context),
            false => Ok(()),
        }
    }

    fn run_suspended(&self, py: Python<'_>, future: &Py<PyAny>) -> PyResult<()> {
        let Some(context) = &self.context else {
            return Ok(());
        };
        let asleep = !future
            .bind(py)
            .call_method0(intern!(py, "done"))?
            .is_truthy()?;
        match asleep && self.pump.get().waits_on(py, future) {
            true => self.run_in(py, context),
            false => Ok(()),
        }
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
