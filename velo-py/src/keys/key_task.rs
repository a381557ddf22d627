//! The tasks that step keys.
//!
//! A task without a key sleeps on a future of its own. A key that begins to await a future is handed to
//! the task that stepped it: the task wakes up, awaits that future, and from then on steps the key
//! whenever the awaited future is done.

use std::sync::Weak;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyType};

use super::index::NONE;
use crate::cell::GilCell;
use crate::errors::{self, Thrown};
use crate::ffi::context_vars::{self, Variables};
use crate::ffi::references;
use crate::ffi::send_slot::{Awaitable, Step, coroutine_methods};
use crate::ffi::turn::{self, TaskTurn};
use crate::wait::Wait;

/// The key table, as its tasks see it.
pub trait PinnedKeys: Send + Sync {
    /// The name of the function.
    fn name(&self) -> &str;

    /// The context that no key has changed.
    fn context(&self) -> &Py<PyAny>;

    /// The generator of a key, unless it runs right now.
    fn generator(&self, py: Python<'_>, id: u32) -> PyResult<Option<Py<PyAny>>>;

    /// Steps the key that is pinned to `task`, in the task's own turn, and throws `error` in if there is
    /// one. Returns the future that the key awaits now. None: it awaits none.
    fn step_as(
        &self,
        task: &Bound<'_, KeyTask>,
        id: u32,
        error: Option<PyErr>,
    ) -> PyResult<Option<Py<PyAny>>>;

    /// Forgets a task that has ended while no key was pinned to it.
    fn forget(&self, task: &Bound<'_, KeyTask>) -> PyResult<()>;
}

/// By what other code knows a task.
#[derive(Clone, Copy, Default, PartialEq)]
pub struct References {
    count: isize,
    /// See [`references::first_weak`].
    weak: usize,
}

/// The coroutine of such a task.
#[pyclass(frozen, module = "velo._core")]
pub struct KeyTask {
    table: Weak<dyn PinnedKeys>,
    event_loop: Py<PyAny>,
    context: Py<PyAny>,
    state: GilCell<State>,
    /// The future that the task sleeps on while it has no key.
    asleep: Wait,
}

struct State {
    task: Option<Py<PyAny>>,
    /// The key that is pinned to it.
    key: u32,
    /// The future that the key has begun to await, which the task has yet to see.
    handed: Option<Py<PyAny>>,
    /// The task awaits the future of its key.
    waits: bool,
    /// The number of references to the task that its key has made and not dropped, as last seen.
    held: isize,
    /// The first weak reference to the task before its key made one.
    weak: usize,
    /// Its context's variables while no key has set one.
    variables: Option<Variables>,
    /// It was cancelled, or other code knows it: no other key may use it.
    spoiled: bool,
    /// It is to end.
    leaves: bool,
}

impl State {
    #[inline]
    fn references(&self) -> References {
        let task = self.task.as_ref();
        task.map_or_else(References::default, |task| References {
            count: references::count(task),
            weak: references::first_weak(task),
        })
    }

    /// Whether no variable was set in the context of the task.
    #[inline]
    fn has_variables_of(&self, context: &Py<PyAny>) -> bool {
        let before = self.variables.as_ref();
        before.is_some_and(|before| before.are_those_of(context))
    }
}

impl KeyTask {
    /// Starts a task of `table` to which no key is pinned. Its context is a copy of `context`.
    pub fn start(
        py: Python<'_>,
        table: Weak<dyn PinnedKeys>,
        (event_loop, name): (&Py<PyAny>, &str),
        context: &Py<PyAny>,
    ) -> PyResult<Py<Self>> {
        static TASK: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        let context = turn::copy_of(context.bind(py))?;
        let variables = Variables::of(py, &context);
        let made = Py::new(
            py,
            KeyTask {
                table,
                event_loop: event_loop.clone_ref(py),
                context: context.clone_ref(py),
                state: GilCell::new(State {
                    task: None,
                    key: NONE,
                    handed: None,
                    waits: false,
                    held: 0,
                    weak: 0,
                    variables,
                    spoiled: false,
                    leaves: false,
                }),
                asleep: Wait::default(),
            },
        )?;
        let options = PyDict::new(py);
        options.set_item(intern!(py, "loop"), event_loop)?;
        options.set_item(intern!(py, "name"), name)?;
        options.set_item(intern!(py, "context"), context)?;
        let task = TASK
            .import(py, "asyncio", "Task")?
            .call((&made,), Some(&options))?;
        made.get()
            .state
            .with(py, |state| state.task = Some(task.unbind()))?;
        Ok(made)
    }

    /// Whether no other key may be stepped as this task, because other code knows the task or its
    /// context.
    pub fn is_spoiled(&self, py: Python<'_>) -> bool {
        self.state.with(py, |state| state.spoiled).unwrap_or(true)
    }

    /// The task.
    pub fn task(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let task = self
            .state
            .with(py, |state| state.task.as_ref().map(|t| t.clone_ref(py)))?;
        task.ok_or_else(|| errors::velo("a task of keys is gone"))
    }

    /// Makes it the current task.
    pub fn enter(&self, py: Python<'_>) -> PyResult<TaskTurn> {
        TaskTurn::enter(py, &self.event_loop, &self.task(py)?, &self.context)
    }

    /// The references to the task.
    #[inline]
    pub fn references(&self, py: Python<'_>) -> References {
        self.state
            .with(py, |state| state.references())
            .unwrap_or_default()
    }

    /// Whether the key that was stepped last has made or dropped a reference to the task, or set a context
    /// variable, since the task had these references.
    #[inline]
    pub fn is_kept(&self, py: Python<'_>, before: References) -> bool {
        // One look at the state after each step, and the rest where it does not tell.
        let unchanged = |state: &mut State| {
            state.references() == before && state.has_variables_of(&self.context)
        };
        !self.state.with(py, unchanged).unwrap_or(false)
            && (self.references(py) != before || self.has_changed(py))
    }

    /// Whether a context variable was set, and not set back.
    fn has_changed(&self, py: Python<'_>) -> bool {
        let unchanged = |state: &mut State| state.has_variables_of(&self.context);
        !self.state.with(py, unchanged).unwrap_or(false) && self.differs(py)
    }

    /// The same by looking at each variable: one that was set back makes no difference.
    #[cold]
    fn differs(&self, py: Python<'_>) -> bool {
        let Some(table) = self.table.upgrade() else {
            return true;
        };
        match context_vars::are_same(self.context.bind(py), table.context().bind(py)) {
            Ok(true) => {
                let now = Variables::of(py, &self.context);
                let before = self
                    .state
                    .with(py, |state| std::mem::replace(&mut state.variables, now));
                drop(before); // outside of the state: that may run Python code
                false
            }
            _ => true,
        }
    }

    /// The task belongs to this key from now on. Before the key was stepped, and after that, it had these
    /// references.
    pub fn pin(
        &self,
        py: Python<'_>,
        id: u32,
        (before, after): (References, References),
    ) -> PyResult<()> {
        Ok(self.state.with(py, |state| {
            state.key = id;
            state.held = after.count - before.count;
            state.weak = before.weak;
        })?)
    }

    /// Its key was stepped: it had these references before.
    pub fn hold(&self, py: Python<'_>, before: References) {
        let more = self.references(py).count - before.count;
        let _ = self.state.with(py, |state| state.held += more);
    }

    /// Its key, which was stepped by a turn of the table, awaits `future`: the task wakes to await it.
    pub fn hand(&self, py: Python<'_>, future: Py<PyAny>) -> PyResult<()> {
        self.state.with(py, |state| state.handed = Some(future))?;
        self.asleep.wake(py);
        Ok(())
    }

    /// Whether its key has no use of it: no reference to it, and no context variable that it has set.
    pub fn is_loose(&self, py: Python<'_>) -> PyResult<bool> {
        let weak = self.references(py).weak;
        let known = |state: &mut State| state.held > 0 || state.weak != weak;
        Ok(!self.state.with(py, known)? && !self.has_changed(py))
    }

    /// No key is pinned to it from now on. `loose`: see `is_loose`.
    pub fn unpin(&self, py: Python<'_>, loose: bool) -> PyResult<()> {
        Ok(self.state.with(py, |state| {
            state.key = NONE;
            state.held = 0;
            state.spoiled |= !loose;
        })?)
    }

    /// Cancels the task, and with it the future that its key awaits.
    pub fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        self.task(py)?
            .call_method0(py, intern!(py, "cancel"))
            .map(drop)
    }

    /// Lets the task end.
    pub fn retire(&self, py: Python<'_>) {
        let _ = self.state.with(py, |state| {
            state.leaves = true;
            state.key = NONE;
        });
        self.asleep.wake(py);
    }

    /// Steps the key in the turn of the task itself.
    fn step_key(
        slf: &Bound<'_, Self>,
        id: u32,
        error: Option<PyErr>,
    ) -> PyResult<Option<Py<PyAny>>> {
        let (py, this) = (slf.py(), slf.get());
        let Some(table) = this.table.upgrade() else {
            return Ok(None);
        };
        let future = table.step_as(slf, id, error)?;
        if future.is_some() {
            this.state.with(py, |state| state.waits = true)?;
        }
        Ok(future)
    }

    /// Sleeps until there is work, or ends.
    fn sleep(&self, py: Python<'_>) -> PyResult<Step> {
        let task = self.state.with(py, |state| match state.leaves {
            true => state.task.take(),
            false => None,
        })?;
        match task {
            Some(_) => Ok(Step::Return(py.None())),
            None => Ok(Step::Yield(self.asleep.start(self.event_loop.bind(py))?)),
        }
    }
}

impl Awaitable for KeyTask {
    fn step(slf: &Bound<'_, Self>, _value: &Bound<'_, PyAny>) -> Result<Step, Thrown> {
        // Who calls a slot is not known to be attached: what is dropped would be kept for later.
        Python::attach(|_| Self::advance(slf))
    }

    fn throw(slf: &Bound<'_, Self>, error: PyErr) -> PyResult<Step> {
        Self::interrupt(slf, error)
    }
}

impl KeyTask {
    fn advance(slf: &Bound<'_, Self>) -> Result<Step, Thrown> {
        let (py, this) = (slf.py(), slf.get());
        let (handed, key) = this.state.with(py, |state| {
            let handed = state.handed.take();
            let key = std::mem::take(&mut state.waits).then_some(state.key);
            state.waits = handed.is_some();
            (handed, key)
        })?;
        if let Some(future) = handed {
            return Ok(Step::Yield(future));
        }
        if let Some(id) = key
            && let Some(future) = Self::step_key(slf, id, None)?
        {
            return Ok(Step::Yield(future));
        }
        Ok(this.sleep(py)?)
    }

    fn interrupt(slf: &Bound<'_, Self>, error: PyErr) -> PyResult<Step> {
        let (py, this) = (slf.py(), slf.get());
        this.asleep.clear(py);
        let key = this.state.with(py, |state| {
            state.handed = None;
            state.waits = false;
            state.spoiled = true;
            state.key
        })?;
        if key == NONE {
            // The loop is being closed, or somebody has cancelled all there is.
            let task = this.state.with(py, |state| state.task.take())?;
            drop(task);
            if let Some(table) = this.table.upgrade() {
                table.forget(slf)?;
            }
            return Err(error);
        }
        match Self::step_key(slf, key, Some(error))? {
            Some(future) => Ok(Step::Yield(future)),
            None => this.sleep(py),
        }
    }
}

#[pymethods]
impl KeyTask {
    fn close(&self) {}

    /// The generator of the key that is pinned to it, for the debugger and `inspect`.
    #[getter]
    fn generator(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let key = self.state.with(py, |state| state.key)?;
        match self.table.upgrade() {
            Some(table) if key != NONE => table.generator(py, key),
            _ => Ok(None),
        }
    }

    #[getter]
    fn __qualname__(&self) -> String {
        let table = self.table.upgrade();
        table.map_or_else(|| "keys".to_owned(), |table| table.name().to_owned())
    }
}

coroutine_methods!(KeyTask);
