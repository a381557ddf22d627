//! Which key has which lane and which permit, what it may be sent, and which one makes room.

use std::collections::VecDeque;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::failed_at::FailedAt;
use super::index::{Entry, Index, Stage};
use super::journal::{Accept, Keep, Next};
use super::lane::{Act, Lane, Way};
use super::requests::LiveForm;
use super::saved_run::Mark;
use super::tracker::{KeyFailure, Tracker};
use crate::errors;
use crate::lane_frames::Name;
use crate::user::key_counts::Counts;

/// What becomes of events for a key whose function has returned.
#[derive(Clone, Copy, PartialEq)]
pub enum AfterEnd {
    Ignore,
    Restart,
    Raise,
}

/// What becomes of a key whose function raises.
pub enum OnError {
    Raise,
    Drop,
    Call(Py<PyAny>),
    /// The key is held until the caller has decided; see `tracking.rs`.
    Hold,
}

/// What changes.
pub struct State {
    pub(super) index: Index,
    pub(super) lanes: Vec<Lane>,
    /// How many lanes there may be, and how many are on their way.
    pub(super) most_lanes: usize,
    pub(super) opening: usize,
    pub(super) host: Option<Py<PyAny>>,
    /// Where events come from; None once it is exhausted.
    pub(super) source: Option<Py<PyAny>>,
    /// More may come of it later: it says itself whether it is exhausted.
    pub(super) live: bool,
    /// An event that cannot be sent before something else has happened.
    pub(super) held: Option<(Py<PyAny>, Py<PyAny>, u64)>,
    /// What the caller gets next, in order.
    pub(super) out: VecDeque<Out>,
    /// Entries that wait for a lane or for a permit.
    pub(super) unopened: VecDeque<u32>,
    /// How many of the first of those have a permit.
    pub(super) reserved: usize,
    /// How many keys want a permit, and how many are about to give theirs back.
    pub(super) wanting: usize,
    pub(super) ending: usize,
    /// Events that wait in entries.
    pub(super) waiting: u64,
    pub(super) window: u32,
    pub(super) max_pending: u64,
    pub(super) max_bytes: u64,
    /// There is a `max_concurrent`.
    pub(super) limited: bool,
    /// A task of the host waits for a permit.
    pub(super) in_line: bool,
    /// The order of use is kept.
    pub(super) ordered: bool,
    /// There is a `timeout`.
    pub(super) timed: bool,
    pub(super) after_end: AfterEnd,
    pub(super) most_finished: usize,
    pub(super) on_error: OnError,
    /// Keys are told that no more events come, up to this entry.
    pub(super) told_end: Option<u32>,
    pub(super) error: Option<PyErr>,
    pub(super) closing: bool,
    pub(super) over: bool,
    /// By how many milliseconds a clock of tests was moved.
    pub(super) aged: u32,
    pub(super) counts: Counts,
    /// For a source of `velo.connect`.
    pub(super) tracker: Option<Tracker>,
    /// Results get the trace context of their records.
    pub(super) traces: bool,
    /// Events come from tasks, and not from a source.
    pub(super) live_form: Option<Box<LiveForm>>,
    /// How keys are kept that outlive their workers.
    pub(super) keep: Option<Keep>,
    /// Keys whose journals are full for good, and how many bytes they hold.
    pub(super) full: Vec<(u32, usize)>,
    /// Where the first key has failed.
    pub(super) failed_at: Option<FailedAt>,
    /// What the deaths count of lanes in a row that never said anything, and ran no key.
    pub(super) stillborn: u32,
}

/// What became of an event.
pub enum Routed {
    /// This entry has it.
    Sent(u32),
    /// Nothing: the function of its key has returned.
    Dropped,
    /// This entry can have it when its key has ended, and not before.
    Held(u32),
    /// The function of its key has returned, which is an error.
    Finished,
}

/// What a caller gets.
pub enum Out {
    /// A result with its key.
    Item(Py<PyAny>),
    /// The function of a key has raised, which `on_error` is called with.
    Failed(Py<PyAny>, PyErr),
    /// A record or a key has failed, which the caller decides about.
    Held(KeyFailure),
    /// What has become of a key.
    Mark(Py<PyAny>, Mark),
}

impl State {
    pub(super) fn ways(&self) -> Vec<(usize, Way)> {
        let lanes = self.lanes.iter().enumerate();
        lanes
            .filter(|(_, lane)| !lane.over)
            .map(|(number, lane)| (number, lane.way.clone()))
            .collect()
    }

    pub(super) fn host(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.host.as_ref().map(|host| host.clone_ref(py))
    }

    /// How many keys have not ended.
    pub(super) fn live(&self) -> usize {
        self.index.len() - self.index.finished()
    }

    /// How many permits the keys have.
    pub(super) fn permits(&self) -> usize {
        if !self.limited {
            return 0;
        }
        let open = |stage| matches!(stage, Stage::Open | Stage::Ending);
        let entries = self.index.all();
        self.reserved + entries.filter(|(_, entry)| open(entry.stage)).count()
    }

    pub(super) fn pending(&self) -> u64 {
        self.waiting + self.lanes.iter().map(Lane::pending).sum::<u64>()
    }

    /// The lane with the least to do.
    pub(super) fn choose(&self) -> Option<usize> {
        let lanes = self.lanes.iter().enumerate();
        lanes
            .filter(|(_, lane)| !lane.over && !lane.left)
            .min_by_key(|(_, lane)| (lane.ids.live(), lane.pending()))
            .map(|(number, _)| number)
    }

    /// Opens a key that has a permit.
    pub(super) fn open(&mut self, py: Python<'_>, entry: u32) -> PyResult<()> {
        let Some(number) = self.choose() else {
            return Err(errors::velo("there is no lane"));
        };
        let (id, generation) = self.lanes[number].ids.take(entry);
        let known = self.index.entry(entry);
        known.lane = number as u16;
        (known.id, known.generation) = (id, generation);
        (known.in_flight, known.sent) = (0, 0);
        known.stage = Stage::Open;
        (known.cancelled, known.began) = (false, false);
        let name = Name { id, generation };
        let mut again = false;
        let mut state = None;
        if self.keep.is_some() {
            let journal = known.journal.get_or_insert_default();
            again = journal.was_open;
            state = journal.begin();
        }
        let state = state.or_else(|| self.begin_run(py, entry));
        let known = self.index.entry(entry);
        let lane = &mut self.lanes[number];
        let shown = match lane.way {
            Way::Inline(_) | Way::Gone => None,
            Way::Ring(_) | Way::Remote(_) => known.key.as_ref().map(|key| key.clone_ref(py)),
        };
        lane.outgoing.push_back(match state {
            None => Act::Open(name, shown),
            Some(state) => Act::Restore(name, state, shown),
        });
        self.counts.opened += u64::from(!again);
        self.send_waiting(py, entry);
        Ok(())
    }

    /// Sends what waits for a key, as far as it may have it.
    pub(super) fn send_waiting(&mut self, py: Python<'_>, entry: u32) {
        if let Some(keep) = self.keep {
            return self.send_kept(py, entry, keep);
        }
        let known = self.index.entry(entry);
        let lane = &mut self.lanes[known.lane as usize];
        let name = known.name();
        let unsent = known.waiting.len();
        while known.in_flight < self.window
            && let Some((event, request)) = known.waiting.pop()
        {
            known.in_flight += 1;
            known.sent = known.sent.wrapping_add(1);
            lane.sent += 1;
            self.waiting -= 1;
            lane.outgoing
                .push_back(Act::Event(name, event, request != 0));
        }
        if known.ends && known.waiting.is_empty() {
            known.ends = false;
            lane.evicted = lane
                .evicted
                .saturating_add(std::mem::take(&mut known.evicted).into());
            known.stage = Stage::Ending;
            match &known.run {
                Some(run) if run.unloads => {}
                _ => lane.outgoing.push_back(Act::Last(name)),
            }
        }
        if unsent > known.waiting.len() {
            self.soil(entry);
        }
        self.unload(entry);
    }

    /// The same for a key with a journal: events that another worker had go first.
    fn send_kept(&mut self, py: Python<'_>, entry: u32, keep: Keep) {
        let known = self.index.entry(entry);
        let lane = &mut self.lanes[known.lane as usize];
        let name = known.name();
        let Some(journal) = &mut known.journal else {
            return;
        };
        while known.in_flight < self.window {
            match journal.next() {
                Next::Event(event, request) => {
                    known.in_flight += 1;
                    known.sent = known.sent.wrapping_add(1);
                    lane.sent += 1;
                    self.waiting -= 1;
                    let event = PyBytes::new(py, event).unbind();
                    lane.outgoing.push_back(Act::Encoded(name, event, request));
                    continue;
                }
                Next::Skip => {
                    self.waiting -= 1;
                    continue;
                }
                Next::Nothing => {}
            }
            if journal.ended {
                break; // what waits is for the next run of the function
            }
            let Some((event, request)) = known.waiting.first() else {
                break;
            };
            // It is: `route` has encoded it.
            let Ok(event) = event.bind(py).cast::<PyBytes>() else {
                debug_assert!(false, "an event of a kept key is not encoded");
                break;
            };
            match journal.accept(event.as_bytes(), *request != 0, keep) {
                Accept::Accepted => drop(known.waiting.pop()),
                Accept::Wait => {
                    if !std::mem::replace(&mut journal.waits, true) {
                        lane.outgoing.push_back(Act::Save(name));
                    }
                    break;
                }
                Accept::Full(size) => {
                    self.full.push((entry, size));
                    break;
                }
            }
        }
        if known.ends && known.waiting.is_empty() {
            known.ends = false;
            journal.ended = true;
        }
        if journal.ended && journal.unsent() == 0 && known.stage == Stage::Open {
            known.stage = Stage::Ending;
            lane.outgoing.push_back(Act::Last(name));
        }
    }

    /// Has a key go on in another lane, which its own is gone for.
    pub(super) fn move_on(&mut self, entry: u32) {
        let known = self.index.entry(entry);
        let before = known.unsent();
        known.stage = Stage::Unopened;
        known.in_flight = 0;
        if let Some(journal) = &mut known.journal {
            journal.begin();
        }
        self.waiting += known.unsent() - before;
        if self.limited {
            self.unopened.push_front(entry); // it has its permit
            self.reserved += 1;
        } else {
            self.unopened.push_back(entry);
        }
    }

    /// Ends the input of a key behind what waits for it.
    pub(super) fn end(&mut self, py: Python<'_>, entry: u32) {
        let known = self.index.entry(entry);
        if known.is_ending() {
            return;
        }
        known.ends = true;
        self.ending += 1;
        if known.stage == Stage::Open {
            self.send_waiting(py, entry);
        }
    }

    /// Cancels the function of a key that is open.
    pub(super) fn cancel_key(&mut self, entry: u32) {
        let known = self.index.entry(entry);
        if !known.is_ending() {
            self.ending += 1;
        }
        known.ends = false;
        known.cancelled = true;
        known.stage = Stage::Ending;
        let name = known.name();
        self.lanes[known.lane as usize]
            .outgoing
            .push_back(Act::Cancel(name));
    }

    /// A key opens anew: if all keys have been told that no more events come, it is told so as well.
    pub(super) fn tell_end_to(&mut self, entry: u32) {
        let told = self.saving().is_some_and(|saving| saving.ends);
        if told || self.source.is_none() {
            self.told_end = Some(self.told_end.map_or(entry, |from| from.min(entry)));
        }
    }

    /// Has keys that were used least recently end, for those that want their permits.
    pub(super) fn evict(&mut self, py: Python<'_>) {
        let last = self.unopened.back().copied();
        // One that ends once it has had a permit gives it to those behind it, but it needs one itself.
        let own = self.unopened.len() > self.reserved
            && last.is_some_and(|last| self.index.entry(last).is_ending());
        let mut next = self.index.oldest();
        while self.ending.saturating_sub(usize::from(own)) < self.wanting
            && let Some(entry) = next
        {
            next = self.index.newer(entry);
            let known = self.index.entry(entry);
            let leaves = known.is_ending() || known.stage == Stage::Held;
            if !leaves && last != Some(entry) {
                self.counts.evicted += 1;
                known.evicted = true;
                self.make_leave(py, entry);
            }
        }
    }

    /// How many lanes may have keys.
    pub(super) fn open_lanes(&self) -> usize {
        let lanes = self.lanes.iter();
        lanes.filter(|lane| !lane.over && !lane.left).count()
    }

    /// With every key a lane is wanted, until there are as many as there may be.
    pub(super) fn wanted_lanes(&self) -> usize {
        self.live().min(self.most_lanes)
    }

    /// Opens the key that has waited longest, if it can be now.
    pub(super) fn open_next(&mut self, py: Python<'_>) -> PyResult<bool> {
        let lanes = self.open_lanes();
        if lanes == 0 || lanes < self.wanted_lanes() || self.limited && self.reserved == 0 {
            return Ok(false);
        }
        let next = self.unopened.front().copied();
        let Some(entry) = next.filter(|&entry| self.may_begin(entry)) else {
            return Ok(false);
        };
        self.unopened.pop_front();
        self.reserved = self.reserved.saturating_sub(1);
        self.open(py, entry)?;
        Ok(true)
    }

    /// Forgets a key.
    pub(super) fn forget(&mut self, entry: u32) -> Entry {
        let known = self.index.remove(entry);
        self.waiting -= known.unsent();
        known
    }
}
