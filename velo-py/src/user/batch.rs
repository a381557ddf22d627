//! Events that are sent together, and flushed to the function together.

use std::time::Duration;

use pyo3::prelude::*;
use velo_shm::ticks;

use crate::user::channel::Channel;
use crate::user::state::StreamCore;

/// Flushing an event costs more than sending it. But the next event may take long: the source has to
/// make it, and a large event is copied. So no event waits for longer than this plus one more event.
const FLUSH_EVERY: Duration = Duration::from_micros(10);

/// Events of one stream. Call [`flush`](Self::flush) at the end, also after an error.
pub struct Batch<'a> {
    core: &'a StreamCore,
    sent: u64,
    flushed: u64,
    /// When events were flushed last, in ticks. None for an inline function: it cannot run before the
    /// end of the batch.
    since: Option<u64>,
}

impl<'a> Batch<'a> {
    /// A batch without events.
    pub fn new(core: &'a StreamCore) -> Self {
        Batch {
            core,
            sent: 0,
            flushed: 0,
            since: matches!(core.channel, Channel::Ring(_)).then(ticks::now),
        }
    }

    /// The number of its events.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// One more event was offered.
    #[inline]
    pub fn add(&mut self, py: Python<'_>) -> PyResult<()> {
        self.sent += 1;
        let Some(since) = self.since else {
            return Ok(());
        };
        let now = ticks::now();
        if ticks::to_duration(now.saturating_sub(since)) > FLUSH_EVERY {
            self.since = Some(now);
            self.flush(py)?;
        }
        Ok(())
    }

    /// Counts the events and flushes them to the function.
    pub fn flush(&mut self, py: Python<'_>) -> PyResult<()> {
        match self.sent - std::mem::replace(&mut self.flushed, self.sent) {
            0 => Ok(()),
            count => self.core.count_and_flush(py, count),
        }
    }
}
