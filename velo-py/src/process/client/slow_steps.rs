//! Streams whose functions hold up the others of their worker.

use std::time::Duration;

use pyo3::prelude::*;
use velo_shm::ticks;

use super::link::Link;

/// A stream counts as slow for so long after its worker has said so; workers say it again every
/// minute while it is true.
const FOR: Duration = Duration::from_secs(120);

/// The slow streams of one link, by slot, and until when they count as such, in ticks.
#[derive(Debug, Default)]
pub struct SlowStreams(Vec<(u32, u64)>);

impl SlowStreams {
    fn note(&mut self, slot: u32) {
        self.forget(slot);
        let until = ticks::now().saturating_add(ticks::from_duration(FOR));
        self.0.push((slot, until));
    }

    /// The stream has left.
    pub(super) fn forget(&mut self, slot: u32) {
        self.0.retain(|(known, _)| *known != slot);
    }

    /// Whether there is one.
    pub(super) fn any(&mut self) -> bool {
        if !self.0.is_empty() {
            let now = ticks::now();
            self.0.retain(|(_, until)| *until > now);
        }
        !self.0.is_empty()
    }

    /// Whether it is one.
    pub(super) fn has(&self, slot: u32) -> bool {
        self.0.iter().any(|(known, _)| *known == slot)
    }
}

/// What a worker says of a slow step.
pub(super) struct SlowStep {
    /// Others had to wait for it.
    pub(super) held_up: bool,
    /// It was one of several.
    pub(super) habit: bool,
    pub(super) ms: u64,
}

impl Link {
    /// A stream's function has slow steps: if it is a habit, others are better off elsewhere.
    pub(super) fn note_slow(&self, py: Python<'_>, slot: u32, number: u64, step: &SlowStep) {
        let stream = self.stream(py, slot);
        let Some(stream) = stream.filter(|stream| stream.is_number(py, number)) else {
            return;
        };
        if step.habit {
            let _ = self.slow.with(py, |slow| slow.note(slot));
        }
        let seconds = Duration::from_millis(step.ms).as_secs_f64();
        let tell = self
            .tell_slow
            .with(py, |tell| tell.as_ref().map(|call| call.clone_ref(py)));
        if let Ok(Some(tell)) = tell
            && let Err(error) = tell.call1(py, (&stream.name, seconds, step.held_up, step.habit))
        {
            error.write_unraisable(py, None);
        }
    }
}
