//! What is known of one run of the function of a key whose state is saved: from its opening to its end.

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes};

use super::runs::beyond;
use super::tracker::Tokens;

/// What has become of a key, behind its results so far.
pub enum Mark {
    /// A snapshot of its state.
    Saved(Py<PyBytes>),
    /// Its run is over, and the next one begins without a state.
    Ended,
    /// Its function has returned by itself, and gets no more events.
    Finished,
    /// Its worker has died: what lies behind its last mark comes again.
    RolledBack,
}

impl Mark {
    /// As the caller has it: bytes, None, False or True.
    pub fn into_object(self, py: Python<'_>) -> Py<PyAny> {
        match self {
            Mark::Saved(state) => state.into_any(),
            Mark::Ended => py.None(),
            Mark::Finished => PyBool::new(py, false).to_owned().into_any().unbind(),
            Mark::RolledBack => PyBool::new(py, true).to_owned().into_any().unbind(),
        }
    }
}

/// The present run of a key.
#[derive(Default)]
pub struct SavedRun {
    /// Which one of all runs of all keys; 0 while the key has none.
    pub number: u32,
    /// How many of its events its table has told to be handled, and how many are known to be.
    told: u32,
    done: u32,
    /// How many events its last snapshot covers, and the records of those behind it that are handled, where
    /// they may have to come again.
    pub covered: u32,
    pub handled: Tokens,
    /// What the deaths of its workers count since a snapshot has covered an event.
    pub deaths: u32,
    /// It is among the dirty ones.
    pub listed: bool,
    /// Results have come since its last snapshot.
    pub behind: bool,
    /// There is a snapshot of it.
    pub kept: bool,
    /// A snapshot was asked for, and has not come.
    pub asked: bool,
    /// It ends with a snapshot, and its function sees no end of its input.
    pub unloads: bool,
    /// It is known whether the caller has its state, and `restored` is what it has.
    pub found: bool,
    pub restored: Option<Py<PyBytes>>,
}

impl SavedRun {
    /// It begins.
    pub fn begin(&mut self, number: u32) -> Option<Py<PyBytes>> {
        let restored = self.restored.take();
        *self = SavedRun {
            number,
            kept: restored.is_some(),
            found: true,
            unloads: self.unloads,
            deaths: self.deaths,
            ..SavedRun::default()
        };
        restored
    }

    /// It is over, and goes on in another one from its last snapshot. The records behind that which were
    /// handled.
    pub fn roll_back(&mut self) -> Tokens {
        let handled = std::mem::take(&mut self.handled);
        *self = SavedRun {
            unloads: self.unloads,
            deaths: self.deaths,
            ..SavedRun::default()
        };
        handled
    }

    /// How many of its events are known to be handled.
    pub fn done(&self) -> u32 {
        self.done
    }

    /// The number of the next event that is handled.
    pub fn next(&mut self) -> u32 {
        self.done = self.done.wrapping_add(1);
        self.done
    }

    /// The table has told of more handled events. Returns how many of them were not known.
    pub fn told(&mut self, count: u32) -> u32 {
        self.told = self.told.wrapping_add(count);
        beyond(self.told, self.done)
    }

    /// A snapshot is about to be noted that covers this number of events. How many of them are not known to be
    /// handled.
    pub fn news(&self, count: u32) -> u32 {
        beyond(count, self.done)
    }

    /// A snapshot has come that covers this number of events, all of which are known to be handled.
    pub fn saved(&mut self, count: u32) {
        for _ in 0..beyond(count, self.covered) {
            drop(self.handled.pop());
        }
        if count > 0 {
            self.deaths = 0;
        }
        self.covered = count;
        (self.asked, self.behind, self.kept) = (false, false, true);
    }

    /// Whether something has happened since the last snapshot, after it was sent this number of events.
    pub fn is_dirty(&self, sent: u32) -> bool {
        self.number != 0 && (sent != self.covered || self.behind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_counted_once_whoever_tells_first() {
        let mut run = SavedRun::default();
        run.begin(1);
        assert_eq!(run.told(2), 2);
        assert_eq!((run.next(), run.next()), (1, 2));
        assert_eq!(run.news(3), 1, "the table tells of the third one later");
        assert_eq!(run.next(), 3);
        run.saved(3);
        assert_eq!(run.told(1), 0);
        assert_eq!(run.told(2), 2);
    }

    #[test]
    fn a_run_is_dirty_until_a_snapshot_covers_all_of_it() {
        let mut run = SavedRun::default();
        assert!(!run.is_dirty(1), "it has not begun");
        run.begin(1);
        assert!(run.is_dirty(2));
        run.saved(1);
        assert!(run.is_dirty(2));
        run.saved(2);
        assert!(!run.is_dirty(2));
        run.behind = true;
        assert!(run.is_dirty(2), "a result came after it");
    }
}
