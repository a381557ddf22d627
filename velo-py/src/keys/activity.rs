//! Which key a lane runs: for `inspect`, and after the worker's death.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use pyo3::prelude::*;
use velo_shm::{Allowance, LaneActivity, Setting};

use super::outlet::Outlet;
use super::table::KeyTable;
use crate::lane_frames::Name;

impl KeyTable {
    /// A key runs from now on: at work on this event, or past it.
    #[inline]
    pub(super) fn enters(&self, py: Python<'_>, key: u32, (event, at_work): (u32, bool)) {
        let Outlet::Ring(port) = &self.outlet else {
            return;
        };
        let at = LaneActivity {
            key,
            event,
            at_work,
        };
        if self.stall.is_none() && self.deadline.is_none() {
            return port.runs_key(at.pack());
        }
        let deadline = self.deadline.and_then(|_| self.deadline_of(py, key));
        let allowance = match deadline {
            Some(deadline) => deadline.allowance(py),
            None => self.allowance(),
        };
        port.runs_key_within(at.pack(), allowance);
    }

    /// The running key is at work on this event, or past it.
    #[inline]
    pub(super) fn is_at(&self, key: u32, event: u32, at_work: bool) {
        if let Outlet::Ring(port) = &self.outlet {
            let at = LaneActivity {
                key,
                event,
                at_work,
            };
            port.runs_key(at.pack());
        }
    }

    /// An event of this key is about to be read, which may run code of its class.
    #[inline]
    pub(super) fn reads(&self, py: Python<'_>, name: Name) {
        if !self.recovers.load(Relaxed) {
            return;
        }
        let next = self.inner.with(py, |inner| {
            let slot = inner.slot(name)?;
            let queued = u32::from(slot.event.is_some()) + slot.more.len() as u32;
            Some(slot.taken.wrapping_add(queued).wrapping_add(1))
        });
        if let Ok(Some(next)) = next {
            self.is_at(name.id, next, true);
        }
    }

    /// It was read.
    #[inline]
    pub(super) fn has_read(&self) {
        if self.recovers.load(Relaxed) {
            self.leaves();
        }
    }

    /// No key runs any more.
    #[inline]
    pub(super) fn leaves(&self) {
        if let Outlet::Ring(port) = &self.outlet {
            port.runs_key(LaneActivity::NONE);
        }
    }

    /// For how long a step may go on.
    pub fn allowance(&self) -> Option<Allowance> {
        let seconds = self.stall?;
        let time = Duration::try_from_secs_f64(seconds).ok()?;
        let setting = Setting::Stall;
        Some(Allowance { time, setting })
    }
}
