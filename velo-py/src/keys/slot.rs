//! The slot of one key in a table.

use std::collections::VecDeque;
use std::sync::Arc;

use pyo3::prelude::*;

use super::key_state::KeyState;
use super::key_task::KeyTask;
use super::waiting::Waiting;
use crate::ffi::asyncgen::AsyncGen;
use crate::function::deadline::Deadline;
use crate::wait::Wait;

/// In place of an event's length: the object is the exception of reading the event.
pub const UNREADABLE: u32 = u32::MAX;

/// One key.
#[derive(Default)]
pub struct Slot {
    pub(super) generation: u32,
    pub(super) flags: u16,
    /// Its first event, while it has one that it has not taken.
    pub(super) event: Option<Py<PyAny>>,
    /// The length of that event.
    pub(super) len: u32,
    /// The events after it.
    pub(super) more: Waiting,
    /// None while the key runs, and after its end.
    pub(super) generator: Option<AsyncGen>,
    /// A result that had no room. The generator waits at its `yield`.
    pub(super) result: Option<Py<PyAny>>,
    /// The task that is the key's own.
    pub(super) task: Option<Py<KeyTask>>,
    /// The number of events that the key has taken.
    pub(super) taken: u32,
    /// The length of the event that it handles now.
    pub(super) current: u32,
    /// Events that it has handled and that were not reported to the caller yet.
    pub(super) untold: u32,
    /// Where another task than its own waits for an event.
    pub(super) elsewhere: Option<Box<Wait>>,
    /// The numbers of those of its events that are requests.
    #[expect(clippy::box_collection, reason = "one word a key instead of four")]
    pub(super) requests: Option<Box<VecDeque<u32>>>,
    /// The state of its function, if that is saved.
    pub(super) state: Option<Box<KeyState>>,
    /// The time limit of one event.
    pub(super) deadline: Option<Arc<Deadline>>,
}

/// It is open.
pub const LIVE: u16 = 1;
/// It waits for an event, and for no other future.
pub const WAITS: u16 = 2;
/// It is in the queue of runnable keys.
pub const QUEUED: u16 = 4;
/// It gets no more events.
pub const LAST: u16 = 8;
/// The caller has cancelled it.
pub const CANCELLED: u16 = 16;
/// `GeneratorExit` was thrown in.
pub const CLOSING: u16 = 32;
/// It has an event, until it asks for the next one.
pub const AT_WORK: u16 = 64;
/// It can go on, but other keys have their turn first.
pub const ITS_TURN_IS_OVER: u16 = 128;
/// It has begun to run.
pub const STARTED: u16 = 256;
/// The cancellation has yet to be thrown in.
pub const CANCEL_DUE: u16 = 512;
/// It awaits a future, in a task.
pub const SUSPENDED: u16 = 1024;
/// It is in `shares`.
pub const SHARES: u16 = 2048;
/// The event that it took last is a request, whose answer is not complete.
pub const ANSWERS: u16 = 4096;
/// Its function has returned, and is run anew with its next event.
pub const DORMANT: u16 = 8192;
/// The watched data know that it awaits a future at this event.
pub const NOTED: u16 = 16384;
/// Its function has taken an event since it began, or began anew.
pub const TOOK: u16 = 32768;

impl Slot {
    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn set(&mut self, flag: u16, on: bool) {
        if on {
            self.flags |= flag;
        } else {
            self.flags &= !flag;
        }
    }

    pub(super) fn take(&mut self, flag: u16) -> bool {
        let had = self.has(flag);
        self.flags &= !flag;
        had
    }

    /// The place where a task other than its own waits for an event, if one does.
    #[inline]
    pub(super) fn waits_elsewhere(&self, py: Python<'_>) -> Option<&Wait> {
        let wait = self.elsewhere.as_deref()?;
        wait.is_waiting(py).then_some(wait)
    }

    pub(super) fn push(&mut self, event: Py<PyAny>, len: u32) {
        if self.event.is_none() {
            (self.event, self.len) = (Some(event), len);
        } else {
            self.more.push(event, len);
        }
    }

    /// The event that is pushed next is a request.
    #[cold]
    pub(super) fn note_request(&mut self) {
        let waiting = u32::from(self.event.is_some()) + self.more.len() as u32;
        let number = self.taken.wrapping_add(waiting).wrapping_add(1);
        self.requests.get_or_insert_default().push_back(number);
    }

    /// Notes whether the event that was just taken is a request.
    #[cold]
    pub(super) fn take_request(&mut self) {
        let Some(requests) = &mut self.requests else {
            return;
        };
        if requests.front() == Some(&self.taken) {
            requests.pop_front();
            self.flags |= ANSWERS;
        }
        if requests.is_empty() {
            self.requests = None;
        }
    }

    #[inline]
    pub(super) fn pop(&mut self) -> Option<(Py<PyAny>, u32)> {
        let event = self.event.take()?;
        let len = self.len;
        if let Some((next, len)) = self.more.pop() {
            (self.event, self.len) = (Some(next), len);
        }
        Some((event, len))
    }
}

/// The number of bytes that an event of this length counts for.
pub fn size(len: u32) -> u64 {
    if len == UNREADABLE { 0 } else { len.into() }
}
