//! Waiting: a task sleeps on a future of its event loop until it is woken.

use std::sync::Arc;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::cell::GilCell;
use crate::errors;

/// One place where at most one task waits, or that a [`Group`] watches.
#[derive(Default)]
pub struct Wait(GilCell<Option<Waiter>>);

enum Waiter {
    Task(Py<PyAny>),
    Member(Arc<Group>, Py<PyAny>),
}

impl Wait {
    /// Makes the future to wait on. The caller yields it to its task, after one more look at what
    /// it waits for.
    pub fn start(&self, event_loop: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let py = event_loop.py();
        let future = event_loop.call_method0(intern!(py, "create_future"))?;
        future.setattr(intern!(py, "_asyncio_future_blocking"), true)?;
        let future = future.unbind();
        let kept = Waiter::Task(future.clone_ref(py));
        self.0.with(py, |place| place.replace(kept))?;
        Ok(future)
    }

    /// Has the group note `token`, instead of waking a task.
    pub fn join(&self, py: Python<'_>, group: Arc<Group>, token: Py<PyAny>) -> PyResult<()> {
        Ok(self
            .0
            .with(py, |place| *place = Some(Waiter::Member(group, token)))?)
    }

    /// Wakes the waiting task, if there is one.
    #[inline]
    pub fn wake(&self, py: Python<'_>) {
        if self.is_waiting(py) {
            self.wake_waiter(py);
        }
    }

    #[inline(never)] // apart from the look that each event takes several times
    fn wake_waiter(&self, py: Python<'_>) {
        match self.0.with(py, Option::take) {
            Ok(Some(Waiter::Task(future))) => complete(future.bind(py)),
            Ok(Some(Waiter::Member(group, token))) => group.tell(py, token),
            Ok(None) | Err(_) => {}
        }
    }

    /// Takes the future of the task that waits here, which sleeps on. None: no task waits here, or it
    /// was woken already.
    pub fn suspend(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        let take = |place: &mut Option<Waiter>| match place.take() {
            Some(Waiter::Task(future)) => Some(future),
            other => {
                *place = other;
                None
            }
        };
        self.0.with(py, take).ok().flatten()
    }

    /// The task behind a suspended future waits here again.
    pub fn resume(&self, py: Python<'_>, suspended: Py<PyAny>) -> PyResult<()> {
        let waiter = Waiter::Task(suspended);
        Ok(self.0.with(py, |place| *place = Some(waiter))?)
    }

    /// Forgets the wait, after a cancellation.
    pub fn clear(&self, py: Python<'_>) {
        drop(self.0.with(py, Option::take));
    }

    /// Forgets the wait on this future, and no other.
    pub fn clear_if(&self, py: Python<'_>, future: &Py<PyAny>) {
        let _ = self.0.with(py, |place| {
            if matches!(place, Some(Waiter::Task(waiting)) if waiting.is(future)) {
                *place = None;
            }
        });
    }

    /// Whether the task that waits here waits on this future.
    pub fn is_on(&self, py: Python<'_>, future: &Py<PyAny>) -> bool {
        let is = |place: &mut Option<Waiter>| match place {
            Some(Waiter::Task(waiting)) => waiting.is(future),
            _ => false,
        };
        self.0.with(py, is).unwrap_or(false)
    }

    /// Whether a task waits here.
    #[inline]
    pub fn is_waiting(&self, py: Python<'_>) -> bool {
        self.0.with(py, |place| place.is_some()).unwrap_or(true)
    }
}

/// Ends the wait of the task behind `future`.
pub fn complete(future: &Bound<'_, PyAny>) {
    let py = future.py();
    let woken = future
        .call_method0(intern!(py, "done"))
        .and_then(|done| done.is_truthy())
        .and_then(|done| match done {
            true => Ok(()), // cancelled meanwhile
            false => future
                .call_method1(intern!(py, "set_result"), (py.None(),))
                .map(drop),
        });
    if let Err(error) = woken {
        // The loop of the waiting task is closed, so the task cannot run any more.
        if !error.is_instance_of::<pyo3::exceptions::PyRuntimeError>(py) {
            error.write_unraisable(py, Some(future));
        }
    }
}

/// Many streams that one task waits for. A stream with an event or a result notes its token here.
#[derive(Default)]
pub struct Group {
    ready: GilCell<Vec<Py<PyAny>>>,
    wait: Wait,
}

impl Group {
    /// The member `token` is ready.
    pub fn tell(&self, py: Python<'_>, token: Py<PyAny>) {
        if self.ready.with(py, |ready| ready.push(token)).is_ok() {
            self.wait.wake(py);
        }
    }

    /// The ready members, each once per `join`.
    pub fn take(&self, py: Python<'_>) -> PyResult<Vec<Py<PyAny>>> {
        Ok(self.ready.with(py, std::mem::take)?)
    }

    /// Where the one task waits.
    pub fn wait(&self) -> &Wait {
        &self.wait
    }

    /// Whether no member is ready.
    pub fn is_empty(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.ready.with(py, |ready| ready.is_empty())?)
    }
}

/// Where the user's tasks wait on their half of a stream: one may receive while another sends.
#[derive(Default)]
pub struct Waits {
    /// For a result.
    pub recv: Wait,
    /// For room for an event.
    pub send: Wait,
    /// For memory to lend.
    pub loan: Wait,
    /// For the end, while closing.
    pub closing: Wait,
}

impl Waits {
    /// The state has changed: wakes all.
    pub fn wake(&self, py: Python<'_>) {
        self.wake_receivers(py);
        self.send.wake(py);
        self.loan.wake(py);
    }

    /// There may be a result, or the end.
    #[inline]
    pub fn wake_receivers(&self, py: Python<'_>) {
        self.recv.wake(py);
        self.closing.wake(py);
    }
}

/// The event loop that runs in this thread, or an error that says what needs it.
pub fn running_loop(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    static GET: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    GET.import(py, "asyncio.events", "_get_running_loop")?
        .call0()
        .and_then(|running| {
            if running.is_none() {
                return Err(errors::velo(
                    "this needs a running event loop; use `run_sync` without one",
                ));
            }
            Ok(running)
        })
}
