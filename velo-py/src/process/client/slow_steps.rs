//! The streams of a link whose functions make a habit of slow steps, as their worker reports them.

use std::time::Duration;

use velo_shm::ticks;

/// How long a report stays valid. Workers repeat it every minute while it is true.
const VALID: Duration = Duration::from_secs(120);

/// The slow streams of one link, by slot, and until when they count as such, in ticks.
#[derive(Debug, Default)]
pub struct SlowStreams(Vec<(u32, u64)>);

impl SlowStreams {
    /// The worker reports, `now`, that the stream in this slot makes a habit of slow steps.
    pub fn note(&mut self, slot: u32, now: u64) {
        self.forget(slot);
        let until = now.saturating_add(ticks::from_duration(VALID));
        self.0.push((slot, until));
    }

    /// The stream has left the slot.
    pub fn forget(&mut self, slot: u32) {
        self.0.retain(|(known, _)| *known != slot);
    }

    /// Whether there is a slow stream.
    pub fn any(&mut self, now: impl FnOnce() -> u64) -> bool {
        if !self.0.is_empty() {
            let now = now();
            self.0.retain(|(_, until)| *until > now);
        }
        !self.0.is_empty()
    }

    /// Whether the stream in this slot is slow.
    pub fn has(&self, slot: u32) -> bool {
        self.0.iter().any(|(known, _)| *known == slot)
    }
}

/// A slow step, as the worker reports it.
pub struct SlowStep {
    /// Other streams had to wait for it.
    pub held_up: bool,
    /// Slow steps have become a habit of the function.
    pub habit: bool,
    pub ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Conversions round, so tests keep off the very end of a span.
    fn after(span: Duration) -> u64 {
        1_000 + ticks::from_duration(span)
    }

    #[test]
    fn a_stream_is_slow_until_its_report_is_old() {
        let mut slow = SlowStreams::default();
        assert!(!slow.any(|| unreachable!("there is nothing to be old")));
        slow.note(3, 1_000);
        assert!(slow.has(3) && !slow.has(4));
        assert!(slow.any(|| after(VALID / 2)));
        assert!(!slow.any(|| after(VALID * 2)));
        assert!(!slow.has(3));
    }

    #[test]
    fn a_later_report_counts_from_then_on() {
        let mut slow = SlowStreams::default();
        slow.note(3, after(Duration::ZERO));
        slow.note(3, after(VALID / 2));
        assert!(slow.any(|| after(VALID * 5 / 4)));
        assert!(!slow.any(|| after(VALID * 2)));
    }

    #[test]
    fn a_slot_is_forgotten_with_its_stream() {
        let mut slow = SlowStreams::default();
        slow.note(3, 1_000);
        slow.note(4, 1_000);
        slow.forget(3);
        assert!(!slow.has(3) && slow.has(4));
    }
}
