//! The data of live keys: requests, tasks in line for room, the owner.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyList;
use velo_shm::fork;

use crate::cell::GilCell;
use crate::errors;
use crate::user::state::this_thread;
use crate::wait::Wait;

/// An event whose results go to the task that sent it.
#[derive(Default)]
pub struct Request {
    answer: GilCell<Answer>,
    /// The place where that task waits.
    wait: Wait,
}

#[derive(Default)]
struct Answer {
    results: Vec<Py<PyAny>>,
    /// The outcome of the request.
    outcome: Option<Result<(), PyErr>>,
    /// The function raises at it, as the end of the key tells next.
    at_fault: bool,
    /// Its task was cancelled: the results are dropped.
    abandoned: bool,
}

impl Request {
    /// Adds a result.
    pub fn add(&self, py: Python<'_>, result: Py<PyAny>) -> PyResult<()> {
        let dropped = self.answer.with(py, |answer| {
            if answer.abandoned {
                return Some(result);
            }
            answer.results.push(result);
            None
        })?;
        drop(dropped);
        Ok(())
    }

    /// Notes that the function raises at it.
    pub fn blame(&self, py: Python<'_>) -> PyResult<()> {
        Ok(self.answer.with(py, |answer| answer.at_fault = true)?)
    }

    /// Whether the function raises at it.
    pub fn is_at_fault(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.answer.with(py, |answer| answer.at_fault)?)
    }

    /// Ends it.
    pub fn complete(&self, py: Python<'_>, outcome: Result<(), PyErr>) -> PyResult<()> {
        let unused = self.answer.with(py, |answer| match answer.outcome {
            None => answer.outcome.replace(outcome),
            Some(_) => Some(outcome),
        })?;
        drop(unused);
        self.wait.wake(py);
        Ok(())
    }

    /// The results or the error of the request; None before its end.
    pub fn take(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let done = self.answer.with(py, |answer| {
            let outcome = answer.outcome.take()?;
            Some((outcome, std::mem::take(&mut answer.results)))
        })?;
        match done {
            None => Ok(None),
            Some((Err(error), _)) => Err(error),
            Some((Ok(()), results)) => Ok(Some(PyList::new(py, results)?.into_any().unbind())),
        }
    }

    /// Its task has given it up.
    pub fn abandon(&self, py: Python<'_>) {
        self.wait.clear(py);
        let results = self.answer.with(py, |answer| {
            answer.abandoned = true;
            std::mem::take(&mut answer.results)
        });
        drop(results);
    }

    /// What its task sleeps on.
    pub fn sleep(&self, event_loop: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        self.wait.start(event_loop)
    }
}

/// A task in line for room.
#[derive(Default)]
pub struct Ticket {
    /// Whether the task has its room, and whether it has given up.
    state: GilCell<(bool, bool)>,
    wait: Wait,
}

impl Ticket {
    /// Gives the task its room, unless it has given up.
    pub fn grant(&self, py: Python<'_>) -> PyResult<bool> {
        let wanted = self.state.with(py, |(granted, gone)| {
            *granted = !*gone;
            *granted
        })?;
        self.wait.wake(py);
        Ok(wanted)
    }

    /// Whether the task has its room.
    pub fn is_granted(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.state.with(py, |(granted, _)| *granted)?)
    }

    /// Leaves the line. Returns whether the task had its room.
    pub fn leave(&self, py: Python<'_>) -> bool {
        self.wait.clear(py);
        let left = self.state.with(py, |(granted, gone)| {
            *gone = true;
            std::mem::take(granted)
        });
        left.unwrap_or(false)
    }

    /// Wakes its task.
    pub fn wake(&self, py: Python<'_>) {
        self.wait.wake(py);
    }

    /// What its task sleeps on.
    pub fn sleep(&self, event_loop: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        self.wait.start(event_loop)
    }
}

/// What a key is sent while it ends, and gets once it has ended.
pub enum Behind {
    /// An event, and its request if it is one. The first opens the key anew.
    Event(Py<PyAny>, Option<Arc<Request>>),
    /// The end of the input that the events before it have begun.
    End,
}

impl Behind {
    /// How many of these are events.
    pub fn events(items: &VecDeque<Behind>) -> u64 {
        let events = items.iter();
        events
            .filter(|item| matches!(item, Behind::Event(..)))
            .count() as u64
    }
}

/// The additional data of keys whose events come from tasks, and not from a source.
pub struct LiveForm {
    pub event_loop: Py<PyAny>,
    thread: usize,
    /// The generation of forks in which it was opened.
    born: u32,
    /// Keys run in this process.
    inline: bool,
    /// The name of the function.
    pub name: String,
    /// `send` raises an error instead of waiting for room.
    pub refuses: bool,
    /// The requests of each entry, in the order of their events.
    pub requests: HashMap<u32, VecDeque<Arc<Request>>>,
    /// What keys are sent whose input ends, by entry; and how many events that is.
    pub behind: HashMap<u32, VecDeque<Behind>>,
    pub held: u64,
    /// Tasks that wait for room, and the number of those that have room and have not taken it yet.
    pub line: VecDeque<Arc<Ticket>>,
    pub granted: u64,
    /// The event that a task is about to send, and the error that the task gets for it.
    pub sending: Option<Py<PyAny>>,
    pub unsent: Option<PyErr>,
    /// The place where the iterating task waits.
    pub reader: Wait,
    /// The place where the closing task waits.
    pub closer: Wait,
    /// The number of results that were taken.
    pub taken: u64,
    /// The reason why no more events may be sent.
    pub closed: Option<String>,
    /// Too many unread results are dropped instead of kept.
    pub drops: bool,
    /// A task has received the error that all keys failed with.
    pub told: bool,
    /// All keys have ended, or are about to.
    pub finished: bool,
    /// A caller further up the stack moves events and results.
    pub driving: bool,
    /// A timer watches waiting tasks.
    pub watched: bool,
}

impl LiveForm {
    /// Of the function of this name, for this thread and event loop.
    pub fn new(event_loop: Py<PyAny>, name: String, (inline, refuses): (bool, bool)) -> Self {
        LiveForm {
            event_loop,
            thread: this_thread(),
            born: fork::generation(),
            inline,
            name,
            refuses,
            requests: HashMap::new(),
            behind: HashMap::new(),
            held: 0,
            line: VecDeque::new(),
            granted: 0,
            sending: None,
            unsent: None,
            reader: Wait::default(),
            closer: Wait::default(),
            taken: 0,
            closed: None,
            drops: false,
            told: false,
            finished: false,
            driving: false,
            watched: false,
        }
    }

    /// Refuses use from another thread, event loop or process.
    pub fn check_owner(&self, py: Python<'_>) -> PyResult<()> {
        let name = &self.name;
        if self.born != fork::generation() && !self.inline {
            return Err(errors::closed(format!(
                "the keys of `{name}` were opened before this process was forked, and are its parent's"
            )));
        }
        if this_thread() != self.thread {
            return Err(errors::busy(format!(
                "the keys of `{name}` belong to another thread; use them there, for example with \
                 `asyncio.run_coroutine_threadsafe(keys.send(key, event), loop)`"
            )));
        }
        // As in `StreamCore::check_loop`.
        let running = self
            .event_loop
            .call_method0(py, intern!(py, "is_running"))?;
        if !running.is_truthy(py)? {
            return Err(errors::busy(format!(
                "the keys of `{name}` belong to another event loop; use them in the one that has \
                 entered `async with`"
            )));
        }
        Ok(())
    }
}
