//! Statistics of a link and of its open slots. Reading them writes nothing and delays no one.

use super::end::Link;
use crate::side::Side;
use crate::sync::Ordering;

/// What went through one direction of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Counted events published.
    pub events: u64,
    /// Payload bytes published, of uncounted frames too.
    pub bytes: u64,
    /// How often the receiving side was asleep and its doorbell was rung.
    pub wakes: u64,
}

/// What went through a link. Read while others write, so that neighbours may be a moment apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// From the client to the worker.
    pub to_worker: Counters,
    /// From the worker to the client.
    pub to_client: Counters,
}

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
    /// Of a lane: keys that were ended for others.
    pub evicted: u32,
}

impl SlotFigures {
    /// Events that wait, or are being handled.
    pub fn queued(&self) -> u64 {
        // The other side may have scribbled there: nonsense is shown as little.
        self.events.saturating_sub(self.handled)
    }
}

impl Link {
    /// What went through so far. Looks at every slot that was ever open: for people, not for
    /// every event.
    pub fn counters(&self) -> LinkCounters {
        let mut counters = LinkCounters {
            to_worker: self.closed_counters(Side::Worker),
            to_client: self.closed_counters(Side::Client),
        };
        let used = self
            .region
            .header()
            .residence
            .slots_used
            .load(Ordering::Relaxed);
        for slot in 0..used.min(self.region.geometry.slots) {
            for (to, sum) in [
                (Side::Worker, &mut counters.to_worker),
                (Side::Client, &mut counters.to_client),
            ] {
                let line = &self.region.ring_header(slot, to).producer;
                sum.events = sum.events.wrapping_add(line.events.load(Ordering::Relaxed));
                sum.bytes = sum.bytes.wrapping_add(line.bytes.load(Ordering::Relaxed));
            }
        }
        counters
    }

    fn closed_counters(&self, to: Side) -> Counters {
        let line = &self.region.direction(to).counters;
        Counters {
            events: line.closed_events.load(Ordering::Relaxed),
            bytes: line.closed_bytes.load(Ordering::Relaxed),
            wakes: line.wakes.load(Ordering::Relaxed),
        }
    }

    /// The streams that are open, at most `most` of them. For people, as
    /// [`counters`](Self::counters).
    pub fn open_slots(&self, most: usize) -> Vec<SlotFigures> {
        let used = self
            .region
            .header()
            .residence
            .slots_used
            .load(Ordering::Relaxed);
        let slots = 1..used.min(self.region.geometry.slots);
        let open = slots.filter(|&slot| {
            let held = |to| &self.region.ring_header(slot, to).producer.held;
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
            self.region.ring_header(slot, Side::Worker),
            self.region.ring_header(slot, Side::Client),
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
            evicted: events.producer.evicted.load(Ordering::Relaxed),
        }
    }
}
