//! Lanes that leave a worker which lives: it has outgrown its limit, is drained, or has a slow neighbour.
//!
//! Another lane is opened first, elsewhere. Keys with a journal go there at once, as if their worker had
//! died; the others stay until they end, and the lane ends with the last of them.

use pyo3::intern;
use pyo3::prelude::*;

use super::index::Stage;
use super::keyed::Keys;
use super::lane::Way;
use super::routing::State;
#[cfg(process_mode)]
use crate::process::client::handle::ClientLinkHandle;
#[cfg(process_mode)]
use crate::user::stream::Opened;

impl Keys {
    /// Has other lanes opened for those that are to leave their workers, and ends those that are empty.
    pub(super) fn leave_workers(&self, py: Python<'_>) -> PyResult<()> {
        let (asking, empty, host) = self.state.with(py, |state| {
            let (mut asking, mut empty) = (Vec::new(), Vec::new());
            for (number, lane) in state.lanes.iter_mut().enumerate() {
                if lane.over {
                    continue;
                }
                if lane.left {
                    if lane.ids.live() == 0 && lane.outgoing.is_empty() {
                        empty.push(lane.way.clone());
                    }
                } else if !lane.asked && lane.way.is_leaving() {
                    lane.asked = true;
                    asking.push(number);
                }
            }
            (asking, empty, state.host(py))
        })?;
        for way in empty {
            way.end(py)?;
        }
        if let Some(host) = host {
            for number in asking {
                host.call_method1(py, intern!(py, "replace_lane"), (number,))?;
            }
        }
        Ok(())
    }
}

impl State {
    /// Takes the keys with a journal from a lane. They open elsewhere.
    fn empty_lane(&mut self, number: usize) -> Option<Way> {
        self.keep?;
        let on_lane = self.index.on_lane(number as u16);
        let entries: Vec<u32> = on_lane.map(|(entry, _)| entry).collect();
        let way = self.lanes[number].lose();
        for entry in entries {
            debug_assert!(self.index.entry(entry).stage != Stage::Unopened);
            self.move_on(entry);
        }
        Some(way)
    }
}

#[cfg(process_mode)]
#[pymethods]
impl Keys {
    /// Whether a lane is on this link.
    fn lane_is_on(&self, py: Python<'_>, number: usize, link: &ClientLinkHandle) -> PyResult<bool> {
        let way = self.state.with(py, |state| {
            state.lanes.get(number).map(|lane| lane.way.clone())
        })?;
        way.map_or(Ok(false), |way| way.is_on(py, &link.link))
    }

    /// There is no better worker for a lane, which stays.
    fn keep_lane(&self, py: Python<'_>, number: usize) -> PyResult<()> {
        Ok(self.state.with(py, |state| {
            if let Some(lane) = state.lanes.get_mut(number) {
                lane.asked = false;
                lane.way.stays();
            }
        })?)
    }

    /// A lane has been opened elsewhere in place of this one.
    fn replace_lane(&self, py: Python<'_>, number: usize, opened: &Opened) -> PyResult<()> {
        self.read(py)?; // what it has sent so far counts
        let way = self.state.with(py, |state| {
            state.opening += 1; // the new one
            let lane = state.lanes.get_mut(number).filter(|lane| lane.asked);
            let lane = lane.filter(|lane| !lane.over)?;
            lane.left = true;
            state.empty_lane(number)
        })?;
        if let Some(way) = way {
            way.cancel(py)?;
        }
        self.add(py, Way::Ring(opened.core().clone()))
    }
}
