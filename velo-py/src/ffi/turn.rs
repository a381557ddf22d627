//! Runs a step of one task in the turn of another task, or of the loop itself. During the step, the task
//! is the current task, and its context the current context.

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

/// A fresh copy of the current context.
pub fn copy_context(py: Python<'_>) -> PyResult<Py<PyAny>> {
    // SAFETY: returns a new reference, or NULL with an error set.
    unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyContext_CopyCurrent()).map(Bound::unbind) }
}

/// A copy of this context.
pub fn copy_of(context: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
    // SAFETY: `context` is a live object; anything but a context is an error that CPython raises.
    // Returns a new reference, or NULL with an error set.
    unsafe {
        let copy = ffi::PyContext_Copy(context.as_ptr());
        Bound::from_owned_ptr_or_err(context.py(), copy).map(Bound::unbind)
    }
}

/// Runs `step` as a step of `task`, in the turn of another task or of the loop.
///
/// # Errors
/// When `context` is in use already. `step` has not run then.
pub fn as_task<R>(
    event_loop: &Bound<'_, PyAny>,
    task: &Bound<'_, PyAny>,
    context: &Bound<'_, PyAny>,
    step: impl FnOnce() -> R,
) -> PyResult<R> {
    let py = event_loop.py();
    let _context = Entered::enter(context)?;
    let switch = Switch::get(py)?;
    let outer = switch.to(event_loop, task)?;
    let result = step();
    switch.back(event_loop, task, &outer)?;
    Ok(result)
}

/// Runs `step` with this context as the current one.
///
/// # Errors
/// When `context` is in use already. `step` has not run then.
pub fn entered<R>(context: &Bound<'_, PyAny>, step: impl FnOnce() -> R) -> PyResult<R> {
    let _context = Entered::enter(context)?;
    Ok(step())
}

/// The turn of one task within that of another task or of the loop, until it is [left](Self::leave).
pub struct TaskTurn {
    event_loop: Py<PyAny>,
    task: Py<PyAny>,
    context: Py<PyAny>,
    outer: Py<PyAny>,
}

impl TaskTurn {
    /// Makes `task` the current one, and `context` the current context.
    ///
    /// # Errors
    /// When `context` is in use already.
    pub fn enter(
        py: Python<'_>,
        event_loop: &Py<PyAny>,
        task: &Py<PyAny>,
        context: &Py<PyAny>,
    ) -> PyResult<Self> {
        let entered = Entered::enter(context.bind(py))?;
        let outer = Switch::get(py)?.to(event_loop.bind(py), task.bind(py))?;
        std::mem::forget(entered); // left by `leave`
        Ok(TaskTurn {
            event_loop: event_loop.clone_ref(py),
            task: task.clone_ref(py),
            context: context.clone_ref(py),
            outer: outer.unbind(),
        })
    }

    /// Makes the task that was current before the current one again.
    ///
    /// # Errors
    /// When another task has become the current one meanwhile.
    pub fn leave(self, py: Python<'_>) -> PyResult<()> {
        let _context = Entered(self.context.bind(py));
        let (event_loop, task) = (self.event_loop.bind(py), self.task.bind(py));
        Switch::get(py)?.back(event_loop, task, self.outer.bind(py))
    }
}

/// A context that is the current one until this is dropped.
struct Entered<'a, 'py>(&'a Bound<'py, PyAny>);

impl<'a, 'py> Entered<'a, 'py> {
    fn enter(context: &'a Bound<'py, PyAny>) -> PyResult<Self> {
        // SAFETY: `context` is a live object; anything but a context, or one that is entered, is an
        // error that CPython raises.
        match unsafe { ffi::PyContext_Enter(context.as_ptr()) } {
            0 => Ok(Entered(context)),
            _ => Err(PyErr::fetch(context.py())),
        }
    }
}

impl Drop for Entered<'_, '_> {
    fn drop(&mut self) {
        // SAFETY: the context was entered by `enter`, on this thread, and is left once.
        if unsafe { ffi::PyContext_Exit(self.0.as_ptr()) } != 0 {
            PyErr::fetch(self.0.py()).write_unraisable(self.0.py(), Some(self.0));
        }
    }
}

/// asyncio's functions for other implementations of tasks, which set the current task.
enum Switch {
    /// From Python 3.12: one call.
    Swap(Py<PyAny>),
    Pair {
        current: Py<PyAny>,
        leave: Py<PyAny>,
        enter: Py<PyAny>,
    },
}

/// Looks up the functions of this interpreter.
pub fn warm_up(py: Python<'_>) -> PyResult<()> {
    Switch::get(py).map(drop)
}

impl Switch {
    fn get(py: Python<'_>) -> PyResult<&'static Switch> {
        static SWITCH: PyOnceLock<Switch> = PyOnceLock::new();
        SWITCH.get_or_try_init(py, || {
            let tasks = py.import("asyncio.tasks")?;
            if let Ok(swap) = tasks.getattr("_swap_current_task") {
                return Ok(Switch::Swap(swap.unbind()));
            }
            Ok(Switch::Pair {
                current: tasks.getattr("current_task")?.unbind(),
                leave: tasks.getattr("_leave_task")?.unbind(),
                enter: tasks.getattr("_enter_task")?.unbind(),
            })
        })
    }

    /// Makes `task` the current one; returns the task that was current, or None.
    fn to<'py>(
        &self,
        event_loop: &Bound<'py, PyAny>,
        task: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = event_loop.py();
        match self {
            Switch::Swap(swap) => swap.bind(py).call1((event_loop, task)),
            Switch::Pair {
                current,
                leave,
                enter,
            } => {
                let outer = current.bind(py).call1((event_loop,))?;
                if !outer.is_none() {
                    leave.bind(py).call1((event_loop, &outer))?;
                }
                enter.bind(py).call1((event_loop, task))?;
                Ok(outer)
            }
        }
    }

    fn back(
        &self,
        event_loop: &Bound<'_, PyAny>,
        task: &Bound<'_, PyAny>,
        outer: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let py = event_loop.py();
        match self {
            Switch::Swap(swap) => swap.bind(py).call1((event_loop, outer)).map(drop),
            Switch::Pair { leave, enter, .. } => {
                leave.bind(py).call1((event_loop, task))?;
                match outer.is_none() {
                    true => Ok(()),
                    false => enter.bind(py).call1((event_loop, outer)).map(drop),
                }
            }
        }
    }
}
