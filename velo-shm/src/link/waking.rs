//! Marks the side that has work, and wakes a side that sleeps.

use std::sync::atomic::AtomicBool as LocalBool;

use super::end::Link;
use crate::cpu;
use crate::doorbell::Doorbell;
use crate::side::Side;
use crate::sync::Ordering;

impl Link {
    /// Tells the other side to look at a slot, after a publish; rings its doorbell if it sleeps, and
    /// is true then.
    #[inline]
    pub fn notify(&self, slot: u32) -> bool {
        self.region.notify(slot)
    }

    /// As [`notify`](Self::notify), but a side that sleeps goes on sleeping until it is told
    /// something else, or [`wake`](Self::wake) is called.
    ///
    /// Waking a side costs a system call, and the one who wakes it may have to hand over its core.
    #[inline]
    pub fn note(&self, slot: u32) {
        assert!(slot < self.region.geometry.slots, "no slot `{slot}`");
        self.region.direction(self.region.side.peer()).note(slot);
    }

    /// Rings the other side's doorbell if it sleeps, and is true then: slots were noted.
    pub fn wake(&self) -> bool {
        let asleep = self.region.direction(self.region.side.peer()).wake();
        if asleep {
            self.region.ring_for(self.region.side.peer());
        }
        asleep
    }

    /// Whether the worker waits on its doorbell, or is about to.
    pub fn worker_sleeps(&self) -> bool {
        let direction = self.region.direction(Side::Worker);
        direction.sleeping.load(Ordering::Relaxed) != 0
    }

    /// Tells this side to look at a slot: something other than the peer gave it work to do.
    #[inline]
    pub fn notify_self(&self, slot: u32) {
        self.region.notify_self(slot);
    }

    /// Says that a doorbell has woken this side: this one, or that of another link.
    ///
    /// The system often runs a process where its waker runs, though another core idles. Then the
    /// waker waits for the core that this side has got.
    pub fn woken(&self) {
        let rung_on = self
            .region
            .direction(self.region.side)
            .counters
            .rung_on
            .swap(cpu::UNKNOWN, Ordering::Relaxed); // it counts once
        let shared = rung_on != cpu::UNKNOWN && rung_on == cpu::current();
        self.region.core.shared.store(shared, Ordering::Relaxed);
    }

    /// Whether the other side may be waiting for this core since it woke this one, once for each
    /// time: a yield brings it the first of what it waits for.
    #[inline]
    pub fn shares_core(&self) -> bool {
        take(&self.region.core.shared)
    }

    /// Whether the other side may be waiting for this core since one has woken the other, once for
    /// each time: a side that is about to spin yields first.
    #[inline]
    pub fn may_share_core(&self) -> bool {
        take(&self.region.core.rang) | take(&self.region.core.shared)
    }

    /// Rings the other side's doorbell, whether it sleeps or not: for what it is to look at although
    /// no task there waits for it.
    pub fn ring(&self) {
        self.region.bells.theirs.ring();
    }

    /// Says that this side is about to wait on its doorbell. Look once more at what could have
    /// come ([`any_ready`](Self::any_ready), or the rings), and wait only if nothing has.
    pub fn arm(&self) {
        self.region.direction(self.region.side).arm();
    }

    /// Says that this side is awake again.
    pub fn disarm(&self) {
        self.region.direction(self.region.side).disarm();
    }

    /// Whether any slot is marked for this side.
    #[inline]
    pub fn any_ready(&self) -> bool {
        self.region.direction(self.region.side).any()
    }

    /// Whether any slot but this one is marked for this side.
    #[inline]
    pub fn any_ready_but(&self, slot: u32) -> bool {
        self.region.direction(self.region.side).any_but(slot)
    }

    /// Whether this slot is marked for this side.
    #[inline]
    pub fn is_ready(&self, slot: u32) -> bool {
        assert!(slot < self.region.geometry.slots, "no slot `{slot}`");
        self.region.direction(self.region.side).is_marked(slot)
    }

    /// Takes the slots that are marked for this side, and calls `f` with each.
    ///
    /// Look at both halves of such a slot: events may have come, space may have become free, and a
    /// lease may have been dropped, which [`Consumer::publish`] passes on. A slot can be marked
    /// with nothing new in it, and so can one that is not open any more.
    #[inline]
    pub fn take_ready(&self, f: impl FnMut(u32)) {
        if self.region.side == Side::Worker {
            self.region.header().activity.looked();
        }
        self.region
            .direction(self.region.side)
            .take(self.region.geometry.slots, f);
    }

    /// The doorbell that this side waits on.
    pub fn doorbell(&self) -> &Doorbell {
        &self.region.bells.mine
    }
}

/// Takes a flag that only this process sets.
#[inline]
fn take(flag: &LocalBool) -> bool {
    flag.load(Ordering::Relaxed) && flag.swap(false, Ordering::Relaxed)
}
