//! Streams whose functions hold up the others of their worker.

use std::time::Duration;

use velo_shm::ticks;

/// A stream counts as slow for so long after its worker has said so; workers say it again every
/// minute while it is true.
const FOR: Duration = Duration::from_secs(120);

/// The slow streams of one link, by slot, and until when they count as such, in ticks.
#[derive(Debug, Default)]
pub struct SlowStreams(Vec<(u32, u64)>);

impl SlowStreams {
    /// A worker has said that the stream in this slot makes a habit of slow steps.
    pub(super) fn note(&mut self, slot: u32) {
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
