//! Many streams that one task uses at once: each event goes to the stream of its key, and results come
//! out beside their keys.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use crate::cell::GilCell;
use crate::errors::Thrown;
use crate::ffi::iterate::next_of;
use crate::ffi::send_slot::{Awaitable, Step, coroutine_methods};
use crate::flow::{Interest, Offer};
use crate::user::state::StreamCore;
use crate::user::stream::StreamBase;
use crate::user::turn_budget::TurnBudget;
use crate::wait::{Group, running_loop};

/// So many results of one stream are taken before it is another's turn, and of all of them until there
/// are so many.
const BURST: usize = 256;

/// A key and an event of its stream.
type Keyed<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>);

/// Results with their keys, members whose streams are over, the key and the error of one that has
/// failed, and whether there are more.
type Batch<'py> = (
    Bound<'py, PyList>,
    Bound<'py, PyList>,
    Option<(Py<PyAny>, PyErr)>,
    bool,
);

/// One key's stream.
#[pyclass(frozen, module = "velo._core")]
pub struct GroupMember {
    #[pyo3(get)]
    key: Py<PyAny>,
    #[pyo3(get)]
    stream: Py<StreamBase>,
    core: Arc<StreamCore>,
    /// Its input has ended, its last results are on their way.
    ending: AtomicBool,
    /// Somebody waits for room.
    full: AtomicBool,
    /// Its function is about to have its turn.
    has_turn: AtomicBool,
}

#[pymethods]
impl GroupMember {
    #[new]
    fn new(key: Py<PyAny>, stream: Bound<'_, StreamBase>) -> Self {
        GroupMember {
            key,
            core: stream.get().core().clone(),
            stream: stream.unbind(),
            ending: AtomicBool::new(false),
            full: AtomicBool::new(false),
            has_turn: AtomicBool::new(false),
        }
    }

    #[getter]
    fn ending(&self) -> bool {
        self.ending.load(Relaxed)
    }

    #[setter]
    fn set_ending(&self, ending: bool) {
        self.ending.store(ending, Relaxed);
    }

    /// Sends without waiting; false when there is no room, which it is to be watched for.
    fn offer(&self, py: Python<'_>, event: &Bound<'_, PyAny>) -> PyResult<bool> {
        let sent = self.core.try_send(py, event);
        self.full.store(matches!(sent, Ok(false)), Relaxed);
        sent
    }
}

impl GroupMember {
    /// Sends without waiting. False when there is more to it than that, whatever it is.
    fn sends(
        slf: &Bound<'_, Self>,
        event: &Bound<'_, PyAny>,
        turns: &mut Vec<Py<Self>>,
    ) -> PyResult<bool> {
        let (py, this) = (slf.py(), slf.get());
        let core = &this.core;
        if this.ending.load(Relaxed)
            || core.check_open(py).is_err()
            || matches!(core.offer(py, event)?, Offer::Full)
        {
            return Ok(false);
        }
        core.count(py, 1)?;
        if !core.channel.flush_elsewhere(py)? && !this.has_turn.swap(true, Relaxed) {
            turns.push(slf.clone().unbind());
        }
        Ok(true)
    }

    /// Takes the results that are there; whether there may be more, and whether the stream is over.
    fn drain(&self, py: Python<'_>, results: &Bound<'_, PyList>) -> PyResult<(bool, bool)> {
        let key = self.key.bind(py);
        let (count, over) = self.core.drain(py, BURST, |result| {
            results.append(PyTuple::new(py, [key, result.bind(py)])?)
        })?;
        Ok((count == BURST, over))
    }
}

/// Streams that one task waits for: `await group` comes back when one of them has something.
///
/// A stream is watched once: after it had something, and was drained, it is watched again.
#[pyclass(frozen, module = "velo._core")]
#[derive(Default)]
pub struct StreamGroup {
    group: Arc<Group>,
    /// Members that have something, in the order in which they said so.
    ready: GilCell<VecDeque<Py<PyAny>>>,
    turn: TurnBudget,
}

#[pymethods]
impl StreamGroup {
    #[new]
    fn new() -> Self {
        StreamGroup::default()
    }

    /// Notes when the member has a result, or its end, or room, if somebody waits for that.
    fn watch(&self, member: &Bound<'_, GroupMember>) -> PyResult<()> {
        let (py, this) = (member.py(), member.get());
        this.core.check_thread()?;
        let wait = &this.core.waits.recv;
        let token = member.as_any().clone().unbind();
        wait.join(py, self.group.clone(), token.clone_ref(py))?;
        let full = this.full.load(Relaxed);
        let interest = Interest {
            space: full,
            throughput: full,
            ..Interest::RESULTS
        };
        if !this.core.channel.may_sleep(py, interest)? {
            wait.clear(py);
            self.group.tell(py, token);
        }
        Ok(())
    }

    /// Sends events of an iterator to the members of their keys, `most` of them, as long as nothing
    /// else has to be done for one. How many, and the key and the event that were next, if so.
    ///
    /// `order` says that the members are in the order of their last use.
    fn distribute<'py>(
        &self,
        events: &Bound<'py, PyAny>,
        key_of: &Bound<'py, PyAny>,
        members: &Bound<'py, PyDict>,
        most: usize,
        order: bool,
    ) -> PyResult<(usize, Option<Keyed<'py>>)> {
        let py = events.py();
        let mut turns = Vec::new();
        let done = (|| {
            for sent in 0..most {
                let Some(event) = next_of(events)? else {
                    return Ok((sent, None));
                };
                let key = key_of.call1((&event,))?;
                let Some(member) = members.get_item(&key)? else {
                    return Ok((sent, Some((key, event))));
                };
                if order {
                    members.call_method1(intern!(py, "move_to_end"), (&key,))?;
                }
                let member = member.cast_into::<GroupMember>()?;
                if !GroupMember::sends(&member, &event, &mut turns)? {
                    return Ok((sent, Some((key, event))));
                }
            }
            Ok((most, None))
        })();
        for member in turns {
            member.get().has_turn.store(false, Relaxed);
            member.get().core.channel.give_turn(py);
        }
        done
    }

    /// Takes results of members that have some.
    fn results<'py>(&self, py: Python<'py>) -> PyResult<Batch<'py>> {
        let (results, over) = (PyList::empty(py), PyList::empty(py));
        let mut ready = self.ready.with(py, std::mem::take)?;
        if ready.is_empty() {
            ready = self.group.take(py)?.into();
        }
        let mut failed = None;
        while results.len() < BURST
            && failed.is_none()
            && let Some(token) = ready.pop_front()
        {
            let Ok(member) = token.bind(py).cast::<GroupMember>() else {
                continue; // a nudge
            };
            let next = match member.get().drain(py, &results) {
                Ok((_, true)) => over.append(member),
                Ok((true, false)) => {
                    self.group.tell(py, token.clone_ref(py));
                    Ok(())
                }
                Ok((false, false)) => self.watch(member),
                Err(error) => Err(error),
            };
            failed = next
                .err()
                .map(|error| (member.get().key.clone_ref(py), error));
        }
        let more = !ready.is_empty();
        self.ready.with(py, |kept| *kept = ready)?;
        Ok((results, over, failed, more))
    }

    /// Has the waiting task go on.
    fn nudge(&self, py: Python<'_>) {
        self.group.tell(py, py.None());
    }

    fn close(&self, py: Python<'_>) {
        self.group.wait().clear(py);
    }
}

impl Awaitable for StreamGroup {
    fn step(slf: &Bound<'_, Self>, _value: &Bound<'_, PyAny>) -> Result<Step, Thrown> {
        let (this, py) = (slf.get(), slf.py());
        if this.group.is_empty(py)? && this.ready.with(py, |ready| ready.is_empty())? {
            let future = this.group.wait().start(&running_loop(py)?)?;
            this.turn.ended();
            return Ok(Step::Yield(future));
        }
        if this.turn.is_over() {
            return Ok(Step::Yield(py.None()));
        }
        Ok(Step::Return(py.None()))
    }

    fn throw(slf: &Bound<'_, Self>, error: PyErr) -> PyResult<Step> {
        slf.get().group.wait().clear(slf.py());
        Err(error)
    }
}

coroutine_methods!(StreamGroup);
