//! The progress of the functions of keys, and the event at which a function has failed.

use pyo3::prelude::*;

use super::failed_at::FailedAt;
use super::keyed::Keys;
use super::lane::Act;
use super::routing::State;
use crate::lane_frames::{Message, Rest};

impl State {
    /// The function of a key has handled further events, as its worker counts them.
    pub(super) fn works(&mut self, entry: u32, count: u32) {
        let known = self.index.entry(entry);
        self.counts.worked += match &mut known.journal {
            None => count.into(),
            Some(journal) => journal.handled(count),
        };
    }

    /// The function of a key has ended with this progress.
    pub(super) fn ends_at(&mut self, py: Python<'_>, entry: u32, rest: Rest, failed: bool) {
        self.works(entry, rest.handled + u32::from(rest.in_hand));
        if failed && self.failed_at.is_none() {
            let known = self.index.entry(entry);
            let number = match &known.journal {
                Some(journal) => journal.reached(),
                None => {
                    let told = known.sent.wrapping_sub(known.in_flight);
                    u64::from(told) + u64::from(rest.handled) + u64::from(rest.in_hand)
                }
            };
            self.fails_at(py, entry, number);
        }
    }

    /// A key fails at this event, counted among those that it was sent.
    pub(super) fn fails_at(&mut self, py: Python<'_>, entry: u32, number: u64) {
        let known = self.index.entry(entry);
        let taken = known
            .journal
            .as_ref()
            .map_or(u64::from(known.sent), |j| j.accepted());
        let behind = (taken + known.waiting.len() as u64).saturating_sub(number);
        let key = known.key.as_ref().map(|key| key.clone_ref(py));
        self.failed_at.get_or_insert(FailedAt {
            key,
            number,
            behind,
        });
    }

    /// The next event of a lane cannot be sent.
    pub(super) fn fails_unsent(&mut self, py: Python<'_>, lane: usize) {
        let lane = &self.lanes[lane];
        let events = lane.outgoing.iter().filter_map(|act| match act {
            Act::Event(name, ..) | Act::Encoded(name, ..) => Some(*name),
            _ => None,
        });
        let mut events = events.peekable();
        let Some(first) = events.peek().copied() else {
            return;
        };
        let behind = events.filter(|name| *name == first).count() as u64 - 1;
        if let Some(entry) = lane.ids.entry(first.id, first.generation) {
            let known = self.index.entry(entry);
            let behind = behind + known.unsent();
            let key = known.key.as_ref().map(|key| key.clone_ref(py));
            self.failed_at.get_or_insert(FailedAt {
                key,
                number: 0,
                behind,
            });
        }
    }
}

impl Keys {
    /// Counts the messages of a lane that is closing.
    pub(super) fn count_last(
        &self,
        py: Python<'_>,
        number: usize,
        message: &Message,
    ) -> PyResult<()> {
        Ok(self.state.with(py, |state| {
            let mut works = |name: &crate::lane_frames::Name, count| {
                let ids = &state.lanes[number].ids;
                if let Some(entry) = ids.entry(name.id, name.generation) {
                    state.works(entry, count);
                }
            };
            match message {
                Message::Handled(handled) => {
                    handled
                        .keys
                        .iter()
                        .for_each(|(name, count)| works(name, *count));
                }
                Message::Ended(name, rest, _) => {
                    works(name, rest.handled + u32::from(rest.in_hand));
                }
                _ => {}
            }
        })?)
    }
}

#[pymethods]
impl Keys {
    /// The numbers of events that functions have handled or handle now, of open keys, and of keys that
    /// were opened. Any thread may ask.
    fn figures(&self, py: Python<'_>) -> PyResult<(u64, u64, u64)> {
        Ok(self.counts.0.wait_with(py, |shared| {
            let counts = shared.counts;
            let handled = match counts.exact {
                true => counts.worked,
                false => counts.worked.max(counts.taken),
            };
            (handled, counts.live, counts.opened)
        })?)
    }

    /// The key that has failed first, the number of its event, from 1, and the number of its events that
    /// were taken from the source after it. The number is 0 for an event that could not be sent.
    #[getter]
    fn failed_at(&self, py: Python<'_>) -> PyResult<Option<(Py<PyAny>, u64, u64)>> {
        Ok(self.state.with(py, |state| {
            let failed = state.failed_at.as_ref()?;
            let key = failed.key.as_ref()?.clone_ref(py);
            Some((key, failed.number, failed.behind))
        })?)
    }
}
