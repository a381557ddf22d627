//! Warns of tasks that wait for room, or for an answer, while results that no task receives fill all of
//! the room: they wait for ever.

use pyo3::exceptions::PyRuntimeWarning;
use pyo3::intern;
use pyo3::prelude::*;

use super::keyed::Keys;
use super::routing::State;

/// The seconds that a task waits before velo looks for the reason.
const LOOK_AFTER: f64 = 5.0;

/// Has somebody look at keys, a task of which has begun to wait.
pub fn watch(py: Python<'_>, keys: &Py<Keys>) -> PyResult<()> {
    let begun = keys.get().state.with(py, |state| {
        let events = state.counts.events;
        let form = state.live_form.as_mut()?;
        let watched = std::mem::replace(&mut form.watched, true);
        (!watched).then(|| (form.event_loop.clone_ref(py), events, form.taken))
    })?;
    let Some((event_loop, events, taken)) = begun else {
        return Ok(());
    };
    let look = Look {
        keys: keys.clone_ref(py),
        events,
        taken,
    };
    event_loop.call_method1(py, intern!(py, "call_later"), (LOOK_AFTER, look))?;
    Ok(())
}

/// Called by the event loop.
#[pyclass(frozen)]
struct Look {
    keys: Py<Keys>,
    /// The numbers of accepted events and of taken results when the wait began.
    events: u64,
    taken: u64,
}

enum Seen {
    /// No task waits.
    Nothing,
    /// Tasks wait, and events are accepted or results taken.
    Progress,
    /// Tasks wait, and no task reads the results.
    Stuck(String),
}

impl Look {
    fn see(&self, py: Python<'_>, state: &mut State) -> Seen {
        let (events, unread) = (state.counts.events, state.out.len());
        let full = unread as u64 >= state.max_pending;
        let Some(form) = state.live_form.as_mut() else {
            return Seen::Nothing;
        };
        let (in_line, asking) = (!form.line.is_empty(), !form.requests.is_empty());
        if form.finished || !in_line && !asking {
            form.watched = false;
            return Seen::Nothing;
        }
        let still = form.taken == self.taken && !form.reader.is_waiting(py) && unread > 0;
        if !(still && (in_line && events == self.events || full)) {
            form.watched = false;
            return Seen::Progress;
        }
        let waits = if in_line {
            "to send to"
        } else {
            "for an answer of"
        };
        Seen::Stuck(format!(
            "a task has waited for {LOOK_AFTER} s {waits} the keys of `{}`, of which {unread} results are \
             not received, which no task does: receive them in another task, by \
             `async for key, result in keys`",
            form.name
        ))
    }
}

#[pymethods]
impl Look {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        let keys = self.keys.get();
        match keys.state.with(py, |state| self.see(py, state))? {
            Seen::Nothing => Ok(()),
            Seen::Progress => watch(py, &self.keys),
            Seen::Stuck(text) => {
                let Ok(text) = std::ffi::CString::new(text) else {
                    return Ok(());
                };
                PyErr::warn(py, &py.get_type::<PyRuntimeWarning>(), &text, 1)
            }
        }
    }
}
