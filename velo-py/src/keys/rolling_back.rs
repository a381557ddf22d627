//! Keys whose worker has died, and that go on from their last snapshots in the same run of the program.
//!
//! The caller drops their results behind those snapshots, as far as it holds them; their records from there on
//! are not handled any more, and wait. A key that ends its workers again and again fails at the record
//! that it was at, and can go on behind it.

use pyo3::prelude::*;

use super::index::Stage;
use super::routing::{Out, State};
use super::saved_run::Mark;

/// Where a worker was in a key when it died: the event that the key had taken last, counted from 1, and
/// whether it was at work on that.
pub struct At {
    pub event: u32,
    pub at_work: bool,
}

/// What becomes of a key whose worker has died.
pub enum Rolled {
    GoesOn,
    /// It was cancelled.
    Over,
    /// It has ended too many workers; at this record, if at one.
    Fails(Option<Py<PyAny>>),
}

impl State {
    /// How often in a row a worker may die until its keys do not go on from their snapshots; None: they never
    /// do.
    pub(super) fn rolls_back(&mut self) -> Option<u32> {
        self.saving()?.max_restarts
    }

    /// The worker of a key has died, for which it is blamed by `guilt`. From `enough` of that on it fails.
    pub(super) fn roll_back(
        &mut self,
        py: Python<'_>,
        entry: u32,
        at: Option<At>,
        (guilt, enough): (u32, u32),
    ) -> Rolled {
        let known = self.index.entry(entry);
        let (cancelled, is_ending) = (known.cancelled, known.is_ending());
        // The events for its next run come in this one, which does not end any more.
        let goes_on = known.has_next_run();
        let Some(run) = known.run.as_mut().filter(|_| !cancelled) else {
            return Rolled::Over;
        };
        run.deaths = run.deaths.saturating_add(guilt);
        let fails = run.deaths >= enough;
        if fails {
            run.deaths = 0;
        }
        let covered = run.covered;
        let mut tokens = run.roll_back();
        run.unloads &= !goes_on;
        if let Some(tracker) = &mut self.tracker {
            tokens.iter().for_each(|token| tracker.undo(token));
        }
        tokens.append(std::mem::take(&mut known.tokens));
        known.tokens = tokens;
        known.in_flight = 0;
        self.mark(py, entry, Mark::RolledBack);
        if let Some(saving) = self.saving() {
            saving.restores = true;
        }
        let known = self.index.entry(entry);
        if fails {
            self.ending -= usize::from(is_ending);
            let number = at.map_or(0, |at| {
                let before = at.event.wrapping_sub(covered);
                before.saturating_sub(u32::from(at.at_work))
            });
            let token = known.tokens.iter().nth(number as usize);
            return Rolled::Fails(token.map(|token| token.record.clone_ref(py)));
        }
        known.stage = Stage::Unopened;
        known.ends = is_ending && !goes_on;
        if goes_on {
            self.wanting -= 1;
            self.ending -= 1;
            self.tell_end_to(entry);
        }
        self.requeue(py, entry);
        if self.limited {
            self.unopened.push_front(entry); // it has its permit
            self.reserved += 1;
        } else {
            self.unopened.push_back(entry);
        }
        Rolled::GoesOn
    }

    /// A key fails, and waits for the caller to decide what becomes of the record.
    pub(super) fn fail_rolled_back(
        &mut self,
        py: Python<'_>,
        entry: u32,
        record: Option<Py<PyAny>>,
        error: PyErr,
    ) {
        self.counts.ended += 1;
        let failure = self.hold_for(py, entry, record, error);
        self.out.push_back(Out::Held(failure));
    }
}
