//! What the streams of a link have done so far, read from their slots by somebody who takes no part:
//! nothing is written, and nobody waits for it.

use super::LinkEnd;
use crate::side::Side;
use crate::sync::Ordering;

/// One slot that is in use. Read while others write, so that neighbours may be a moment apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotFigures {
    /// Which one.
    pub slot: u32,
    /// Events that were sent to the function.
    pub events: u64,
    /// Of those, events that the function is done with.
    pub handled: u64,
    /// Results that the function has sent.
    pub results: u64,
    /// Of those, results that the client has taken.
    pub taken: u64,
    /// Payload bytes of all events.
    pub bytes_in: u64,
    /// Payload bytes of all results.
    pub bytes_out: u64,
    /// Median of how long events take, in nanoseconds, as the client last said; 0 if it did not.
    pub median: u64,
    /// As `median`, the 99th percentile.
    pub p99: u64,
}

impl SlotFigures {
    /// Events that wait, or are being handled.
    pub fn queued(&self) -> u64 {
        // The other side may have scribbled there: nonsense is shown as little.
        self.events.saturating_sub(self.handled)
    }
}

impl LinkEnd {
    /// The streams that are open, at most `most` of them. For people, as
    /// [`counters`](Self::counters).
    pub fn open_slots(&self, most: usize) -> Vec<SlotFigures> {
        let used = self.header().residence.slots_used.load(Ordering::Relaxed);
        let slots = 1..used.min(self.geometry.slots);
        let open = slots.filter(|&slot| {
            let held = |to| &self.ring_header(slot, to).producer.held;
            // The client's half is what makes it open; the worker may have let go already.
            held(Side::Worker).load(Ordering::Relaxed) != 0
        });
        open.take(most)
            .map(|slot| self.slot_figures(slot))
            .collect()
    }

    /// Events in all open slots that wait, or are being handled.
    pub fn queued(&self) -> u64 {
        let open = self.open_slots(usize::MAX);
        open.iter()
            .map(SlotFigures::queued)
            .fold(0, u64::wrapping_add)
    }

    fn slot_figures(&self, slot: u32) -> SlotFigures {
        let (events, results) = (
            self.ring_header(slot, Side::Worker),
            self.ring_header(slot, Side::Client),
        );
        // What is done with is read first: it is never more than what was sent by then.
        let handled = events.consumer.released.load(Ordering::Acquire);
        let taken = results.consumer.released.load(Ordering::Acquire);
        SlotFigures {
            slot,
            events: events.producer.events.load(Ordering::Relaxed),
            handled,
            results: results.producer.events.load(Ordering::Relaxed),
            taken,
            bytes_in: events.producer.bytes.load(Ordering::Relaxed),
            bytes_out: results.producer.bytes.load(Ordering::Relaxed),
            median: events.producer.median.load(Ordering::Relaxed),
            p99: events.producer.p99.load(Ordering::Relaxed),
        }
    }
}
