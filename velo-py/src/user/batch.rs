//! Events that are sent together, and shown to the function together.

use std::time::Duration;

use pyo3::prelude::*;
use velo_shm::ticks;

use crate::user::channel::Channel;
use crate::user::state::StreamCore;

/// Showing each event costs more than sending it, but whatever comes next may take long: its source may
/// have to make it, and large ones are copied. So none waits for longer than this and the next one.
const SHOW_EVERY: Duration = Duration::from_micros(10);

/// Events of one stream. Call [`show`](Self::show) at the end, whatever has happened.
pub struct Burst<'a> {
    core: &'a StreamCore,
    sent: u64,
    shown: u64,
    /// When some were shown last, in ticks. None where the function runs in this thread: it cannot look
    /// before the end.
    since: Option<u64>,
}

impl<'a> Burst<'a> {
    /// None yet.
    pub fn new(core: &'a StreamCore) -> Self {
        Burst {
            core,
            sent: 0,
            shown: 0,
            since: matches!(core.channel, Channel::Ring(_)).then(ticks::now),
        }
    }

    /// How many there are.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// One more was offered.
    #[inline]
    pub fn add(&mut self, py: Python<'_>) -> PyResult<()> {
        self.sent += 1;
        let Some(since) = self.since else {
            return Ok(());
        };
        let now = ticks::now();
        if ticks::to_duration(now.saturating_sub(since)) > SHOW_EVERY {
            self.since = Some(now);
            self.show(py)?;
        }
        Ok(())
    }

    /// Shows all of them to the function.
    pub fn show(&mut self, py: Python<'_>) -> PyResult<()> {
        match self.sent - std::mem::replace(&mut self.shown, self.sent) {
            0 => Ok(()),
            count => self.core.sent(py, count),
        }
    }
}
