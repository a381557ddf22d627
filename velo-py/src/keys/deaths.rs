//! A lane whose worker has died: its keys go on in other lanes, or end with errors that name them. The
//! keys of other lanes go on in any case.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use velo_shm::LaneActivity;

use super::index::Stage;
use super::journal::Keep;
use super::keyed::Keys;
use super::lane::Way;
use super::rolling_back::{At, Rolled};
use super::routing::{OnError, State};
use super::tracking::End;
use crate::process::client::blame::{Death, DiedIn, Place, enough};

/// How many of the other keys an error names that is raised for all keys.
const NAMED: usize = 5;

/// A key whose worker has died.
struct Lost {
    entry: u32,
    key: Py<PyAny>,
    /// Events that its function had not finished, as far as the worker has told.
    in_flight: u32,
    /// The worker ran it.
    ran: bool,
}

/// A lane whose worker has died.
struct Gone<'a> {
    number: usize,
    error: &'a PyErr,
    death: Death,
    /// Where the worker was, if it ran a key.
    at: Option<LaneActivity>,
}

/// The key that a worker ran when it died, and the event that the key took last, from 1; 0 before it.
struct Ran {
    key: Py<PyAny>,
    event: u32,
}

impl State {
    /// Takes its lane from the keys that have this one.
    fn lose_lane(
        &mut self,
        py: Python<'_>,
        number: usize,
        at: Option<LaneActivity>,
    ) -> (Vec<Lost>, Way) {
        let way = self.lanes[number].lose();
        let on_lane = self.index.on_lane(number as u16);
        let lost = on_lane.filter_map(|(entry, known)| {
            debug_assert!(matches!(known.stage, Stage::Open | Stage::Ending));
            Some(Lost {
                entry,
                key: known.key.as_ref()?.clone_ref(py),
                in_flight: known.in_flight,
                ran: at.is_some_and(|at| at.key == known.id),
            })
        });
        (lost.collect(), way)
    }
}

impl Keys {
    /// The worker of a lane has died.
    pub(super) fn lane_died(
        &self,
        py: Python<'_>,
        number: usize,
        error: &PyErr,
        death: Death,
    ) -> PyResult<()> {
        let at = match death.function {
            DiedIn::This(event) => LaneActivity::unpack(event),
            DiedIn::Another | DiedIn::Unknown => None,
        };
        let (lost, way) = self
            .state
            .with(py, |state| state.lose_lane(py, number, at))?;
        drop(way);
        let ran = lost.iter().find(|lost| lost.ran).map(|lost| Ran {
            key: lost.key.clone_ref(py),
            event: at.map_or(0, |at| at.event),
        });
        let lane = Gone {
            number,
            error,
            death,
            at,
        };
        if let Some(keep) = self.state.with(py, |state| state.keep)? {
            return self.recover(py, &lane, &lost, ran.as_ref(), keep);
        }
        if let Some(max_restarts) = self.state.with(py, |state| state.rolls_back())? {
            return self.roll_back(py, &lane, &lost, ran.as_ref(), max_restarts);
        }
        let raises = |state: &mut State| matches!(state.on_error, OnError::Raise);
        if self.state.with(py, raises)? {
            return self.raise_for(py, error, death, &lost, ran.as_ref());
        }
        for one in &lost {
            let error = self.error_of(py, error, death, one, ran.as_ref())?;
            self.state
                .with(py, |state| state.counts.dropped += u64::from(one.in_flight))?;
            let end = End::Died {
                ran: one.ran,
                event: at.map_or(0, |at| at.event),
            };
            self.key_ended(py, one.entry, end, Err(error))?;
        }
        Ok(())
    }

    /// The keys of a lane go on in other lanes, but for one that ends its worker again and again.
    fn recover(
        &self,
        py: Python<'_>,
        lane: &Gone<'_>,
        lost: &[Lost],
        ran: Option<&Ran>,
        keep: Keep,
    ) -> PyResult<()> {
        if self.is_stillborn(py, lane, keep.max_restarts)? {
            return Ok(());
        }
        for one in lost {
            let place = self.state.with(py, |state| {
                let heard = state.lanes[lane.number].heard;
                let at = lane.at.filter(|_| one.ran);
                let journal = state.index.entry(one.entry).journal.as_mut()?;
                journal.died(lane.death, at, heard, keep)
            })?;
            let error = match place {
                None => None,
                Some(place) => self.poison(py, lane, one, ran, place)?,
            };
            match error {
                None => self.state.with(py, |state| state.move_on(one.entry))?,
                Some(error) => {
                    let end = End::Died {
                        ran: one.ran,
                        event: 0,
                    };
                    self.key_ended(py, one.entry, end, Err(error))?;
                }
            }
        }
        Ok(())
    }

    /// Whether too many lanes in a row have died before they said anything, which is an error.
    fn is_stillborn(&self, py: Python<'_>, lane: &Gone<'_>, max_restarts: u32) -> PyResult<bool> {
        let stillborn = self.state.with(py, |state| {
            let silent = !state.lanes[lane.number].heard;
            let of_lane = matches!(lane.death.function, DiedIn::This(_)) && lane.at.is_none();
            if silent && of_lane {
                state.stillborn = state.stillborn.saturating_add(lane.death.guilt());
            }
            state.stillborn
        })?;
        if stillborn < enough(max_restarts) {
            return Ok(false);
        }
        let error = lane.error.clone_ref(py);
        let note = format!(
            "its keys are given up after {max_restarts} restarts: the worker dies before one of them \
             begins"
        );
        error.value(py).call_method1("add_note", (note,))?;
        self.set_error(py, error)?;
        Ok(true)
    }

    /// The keys of a lane go on from their last snapshots, but for one that ends its worker again and again.
    fn roll_back(
        &self,
        py: Python<'_>,
        lane: &Gone<'_>,
        lost: &[Lost],
        ran: Option<&Ran>,
        max_restarts: u32,
    ) -> PyResult<()> {
        if self.is_stillborn(py, lane, max_restarts)? {
            return Ok(());
        }
        for one in lost {
            let unknown = ran.is_none() && matches!(lane.death.function, DiedIn::Unknown);
            let blamed = one.ran || unknown && one.in_flight > 0;
            let guilt = if blamed { lane.death.guilt() } else { 0 };
            let at = lane.at.filter(|_| one.ran).map(|at| At {
                event: at.event,
                at_work: at.at_work,
            });
            let rolled = self.state.with(py, |state| {
                state.roll_back(py, one.entry, at, (guilt, enough(max_restarts)))
            })?;
            match rolled {
                Rolled::GoesOn => {}
                Rolled::Over => {
                    let end = End::Died {
                        ran: one.ran,
                        event: 0,
                    };
                    self.key_ended(py, one.entry, end, Ok(()))?;
                }
                Rolled::Fails(record) => {
                    let error = self.error_of(py, lane.error, lane.death, one, ran)?;
                    let limited = self.state.with(py, |state| {
                        state.fail_rolled_back(py, one.entry, record, error);
                        state.limited
                    })?;
                    if limited && let Some(host) = self.state.with(py, |state| state.host(py))? {
                        host.call_method0(py, intern!(py, "give_permit"))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// A key has ended too many workers at one place. The error that it ends with; None if it goes on
    /// without the event.
    fn poison(
        &self,
        py: Python<'_>,
        lane: &Gone<'_>,
        one: &Lost,
        ran: Option<&Ran>,
        place: Place,
    ) -> PyResult<Option<PyErr>> {
        let died = self.error_of(py, lane.error, lane.death, one, ran)?;
        let Some(host) = self.state.with(py, |state| state.host(py))? else {
            return Ok(Some(died));
        };
        let event = self.state.with(py, |state| {
            let journal = state.index.entry(one.entry).journal.as_ref()?;
            Some(PyBytes::new(py, journal.event(place.event)?).unbind())
        })?;
        let about = (died.value(py), &one.key, place.event, place.at_work, event);
        let error = host.call_method1(py, intern!(py, "poisoned"), about)?;
        if !error.is_none(py) {
            self.state
                .with(py, |state| state.fails_at(py, one.entry, place.event))?;
            return Ok(Some(PyErr::from_value(error.into_bound(py))));
        }
        self.state.with(py, |state| {
            state.counts.dropped += 1;
            if let Some(journal) = &mut state.index.entry(one.entry).journal {
                journal.leave_out(place.event);
            }
        })?;
        self.left_out(py, one.entry, place.event, &died)?;
        Ok(None)
    }

    /// Raises the error of the key that ran; if that is not known, of one that had something to do.
    fn raise_for(
        &self,
        py: Python<'_>,
        error: &PyErr,
        death: Death,
        lost: &[Lost],
        ran: Option<&Ran>,
    ) -> PyResult<()> {
        let chosen = lost
            .iter()
            .find(|one| one.ran)
            .or_else(|| lost.iter().find(|one| one.in_flight > 0))
            .or_else(|| lost.first());
        let Some(chosen) = chosen else {
            return self.set_error(py, error.clone_ref(py)); // no key has begun
        };
        let raised = self.error_of(py, error, death, chosen, ran)?;
        self.state.with(py, |state| {
            let known = state.index.entry(chosen.entry);
            let told = u64::from(known.sent.wrapping_sub(known.in_flight));
            let at = ran.filter(|_| chosen.ran).map(|ran| ran.event.into());
            state.fails_at(py, chosen.entry, at.unwrap_or(told));
        })?;
        let others = lost.iter().filter(|one| one.entry != chosen.entry);
        let named: Vec<_> = others.take(NAMED).map(|one| one.key.bind(py)).collect();
        if let Some(host) = self.state.with(py, |state| state.host(py))? {
            let others = lost.len() - 1;
            host.call_method1(py, intern!(py, "name_others"), (&raised, named, others))?;
        }
        self.failed(py, Some(chosen.key.clone_ref(py)), raised)
    }

    /// The error of one key.
    fn error_of(
        &self,
        py: Python<'_>,
        error: &PyErr,
        death: Death,
        lost: &Lost,
        ran: Option<&Ran>,
    ) -> PyResult<PyErr> {
        let Some(host) = self.state.with(py, |state| state.host(py))? else {
            return Ok(error.clone_ref(py));
        };
        let culprit = match (death.function, ran) {
            (_, Some(_)) => Some(lost.ran),
            (DiedIn::Another, None) => Some(false),
            (DiedIn::This(_) | DiedIn::Unknown, None) => None,
        };
        let ran = ran.map(|ran| (&ran.key, ran.event));
        let made = host.call_method1(
            py,
            intern!(py, "died"),
            (error.value(py), &lost.key, lost.in_flight, culprit, ran),
        )?;
        Ok(PyErr::from_value(made.into_bound(py)))
    }
}
