//! What the worker of a link does now, written by it and read by others.

use super::end::Link;
use crate::activity::{Progress, Running};
use crate::allowance::Allowance;

impl Link {
    /// The worker: a function begins a step. It is written to the activity, to be read after the
    /// worker's death what it was doing.
    #[inline]
    pub fn begin_step(&self, slot: u32, stream: u64, event: u64, allowance: Option<Allowance>) {
        let activity = &self.region.header().activity;
        activity.begin(slot, stream, event, allowance);
    }

    /// The worker: the function of this slot has taken an event, the `event`th, counted from 1.
    #[inline]
    pub fn took_event(&self, slot: u32, event: u64) {
        self.region.header().activity.took(slot, event);
    }

    /// The worker: sets how long the running function of this slot may go on from now.
    #[inline]
    pub fn allow(&self, slot: u32, allowance: Option<Allowance>) {
        self.region.header().activity.allow(slot, allowance);
    }

    /// The worker: the function waits, or has ended.
    #[inline]
    pub fn end_step(&self) {
        self.region.header().activity.end();
    }

    /// The function that the worker runs, or was running when it died; None if it ran none, or
    /// was about to begin or to stop. What cannot be is taken for none.
    pub fn running(&self) -> Option<Running> {
        self.region
            .header()
            .activity
            .running(self.region.geometry.slots)
    }

    /// How far the worker has come: two looks that give the same saw no work on this link between
    /// them.
    pub fn progress(&self) -> Progress {
        self.region.header().activity.progress()
    }
}
