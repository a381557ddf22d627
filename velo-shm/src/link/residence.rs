//! How many streams live on a link, and whether it takes more.

use super::end::Link;
use crate::layout::{CLOSED, RETIRED};
use crate::sync::Ordering;

impl Link {
    /// Counts one more open stream; false if the link is closed to new ones, or retired.
    pub fn enter(&self) -> bool {
        let residence = &self.region.header().residence;
        let entered = residence
            .residents
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |now| {
                (now < CLOSED - 1).then(|| now + 1)
            })
            .is_ok();
        if entered {
            residence.opened.fetch_add(1, Ordering::Relaxed);
        }
        entered
    }

    /// Counts one open stream less.
    pub fn leave(&self) {
        // Nothing to take from a count that is zero or retired: the other side scribbled on it.
        let _ = self.region.header().residence.residents.fetch_update(
            Ordering::AcqRel,
            Ordering::Relaxed,
            |now| (now != RETIRED && now & !CLOSED > 0).then(|| now - 1),
        );
    }

    /// How many streams are open; none on a retired link.
    pub fn residents(&self) -> u32 {
        match self
            .region
            .header()
            .residence
            .residents
            .load(Ordering::Acquire)
        {
            RETIRED => 0,
            residents => residents & !CLOSED,
        }
    }

    /// Lets no more streams in; those that are open go on. A worker that is about to end calls it.
    pub fn close_entry(&self) {
        let residents = &self.region.header().residence.residents;
        residents.fetch_or(CLOSED, Ordering::AcqRel);
    }

    /// Retires the link if no stream is open; true if it is retired now.
    pub fn try_retire(&self) -> bool {
        let residents = &self.region.header().residence.residents;
        residents
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| {
                (now == RETIRED || now & !CLOSED == 0).then_some(RETIRED)
            })
            .is_ok()
    }

    /// How many streams were ever opened: tells activity between two looks.
    pub fn opened_total(&self) -> u64 {
        self.region
            .header()
            .residence
            .opened
            .load(Ordering::Relaxed)
    }
}
