//! Who has something to do, and how the one who sleeps learns of it.

use std::sync::atomic::AtomicBool as LocalBool;

use super::LinkEnd;
use crate::cpu;
use crate::doorbell::Doorbell;
use crate::side::Side;
use crate::sync::Ordering;

/// What this side knows of who waits for the core that it runs on.
#[derive(Debug, Default)]
pub(super) struct Core {
    /// It has woken the other side since it last asked.
    rang: LocalBool,
    /// The other side has woken it from the core that it was woken on.
    shared: LocalBool,
}

impl LinkEnd {
    /// Tells the other side to look at a slot, after a publish; rings its doorbell if it sleeps, and
    /// is true then.
    #[inline]
    pub fn notify(&self, slot: u32) -> bool {
        self.tell(self.side.peer(), slot)
    }

    /// As [`notify`](Self::notify), but a side that sleeps goes on sleeping until it is told
    /// something else, or [`wake`](Self::wake) is called.
    ///
    /// Waking a side costs a system call, and the one who wakes it may have to hand over its core.
    #[inline]
    pub fn note(&self, slot: u32) {
        assert!(slot < self.geometry.slots, "no slot `{slot}`");
        self.direction(self.side.peer()).note(slot);
    }

    /// Rings the other side's doorbell if it sleeps, and is true then: slots were noted.
    pub fn wake(&self) -> bool {
        let asleep = self.direction(self.side.peer()).wake();
        if asleep {
            self.ring_for(self.side.peer());
        }
        asleep
    }

    /// Whether the worker waits on its doorbell, or is about to.
    pub fn worker_sleeps(&self) -> bool {
        let direction = self.direction(Side::Worker);
        direction.sleeping.load(Ordering::Relaxed) != 0
    }

    /// The client: whether more processes are awake than there are cores for. A worker that spins
    /// then takes a core from one that has something to do.
    pub fn set_crowded(&self, crowded: bool) {
        let watch = &self.header().watch;
        let said = watch.crowded.load(Ordering::Relaxed) != 0;
        if said != crowded {
            watch.crowded.store(crowded.into(), Ordering::Relaxed);
        }
    }

    /// The worker: whether the client says so.
    pub fn is_crowded(&self) -> bool {
        self.header().watch.crowded.load(Ordering::Relaxed) != 0
    }

    /// Tells our own side to look at a slot: something other than the peer gave it work to do.
    #[inline]
    pub fn notify_self(&self, slot: u32) {
        let _ = self.tell(self.side, slot);
    }

    #[inline]
    fn tell(&self, to: Side, slot: u32) -> bool {
        assert!(slot < self.geometry.slots, "no slot `{slot}`");
        let asleep = self.direction(to).mark(slot);
        if asleep {
            self.ring_for(to);
        }
        asleep
    }

    /// Wakes a side that slept.
    #[cold]
    fn ring_for(&self, to: Side) {
        let counters = &self.direction(to).counters;
        counters.wakes.fetch_add(1, Ordering::Relaxed);
        if to == self.side {
            counters.rung_on.store(cpu::UNKNOWN, Ordering::Relaxed);
            self.bells.mine.ring();
        } else {
            counters.rung_on.store(cpu::current(), Ordering::Relaxed);
            self.bells.theirs.ring();
            self.core.rang.store(true, Ordering::Relaxed);
        }
    }

    /// Says that a doorbell has woken this side: this one, or that of another link.
    ///
    /// The system often runs a process where its waker runs, though another core idles. Then the
    /// waker waits for the core that this side has got.
    pub fn woken(&self) {
        let rung_on = self
            .direction(self.side)
            .counters
            .rung_on
            .swap(cpu::UNKNOWN, Ordering::Relaxed); // it counts once
        let shared = rung_on != cpu::UNKNOWN && rung_on == cpu::current();
        self.core.shared.store(shared, Ordering::Relaxed);
    }

    /// Whether the other side may be waiting for this core since it woke this one, once for each
    /// time: a yield brings it the first of what it waits for.
    #[inline]
    pub fn shares_core(&self) -> bool {
        take(&self.core.shared)
    }

    /// Whether the other side may be waiting for this core since one has woken the other, once for
    /// each time: whoever is about to spin for it yields first.
    #[inline]
    pub fn may_share_core(&self) -> bool {
        take(&self.core.rang) | take(&self.core.shared)
    }

    /// Rings the other side's doorbell, whether it sleeps or not: for what it is to look at although
    /// nobody there waits for it.
    pub fn ring(&self) {
        self.bells.theirs.ring();
    }

    /// Says that this side is about to wait on its doorbell. Look once more at what could have
    /// come ([`any_ready`](Self::any_ready), or the rings), and wait only if nothing has.
    pub fn arm(&self) {
        self.direction(self.side).arm();
    }

    /// Says that this side is awake again.
    pub fn disarm(&self) {
        self.direction(self.side).disarm();
    }

    /// Whether any slot is marked for this side.
    #[inline]
    pub fn any_ready(&self) -> bool {
        self.direction(self.side).any()
    }

    /// Whether any slot but this one is marked for this side.
    #[inline]
    pub fn any_ready_but(&self, slot: u32) -> bool {
        self.direction(self.side).any_but(slot)
    }

    /// Whether this slot is marked for this side.
    #[inline]
    pub fn is_ready(&self, slot: u32) -> bool {
        assert!(slot < self.geometry.slots, "no slot `{slot}`");
        self.direction(self.side).is_marked(slot)
    }

    /// Takes the slots that are marked for this side, and calls `f` with each.
    ///
    /// Look at both halves of such a slot: events may have come, space may have become free, and a
    /// lease may have been dropped, which [`Consumer::publish`] passes on. A slot can be marked
    /// with nothing new in it, and so can one that is not open any more.
    #[inline]
    pub fn take_ready(&self, f: impl FnMut(u32)) {
        if self.side == Side::Worker {
            self.header().activity.looked();
        }
        self.direction(self.side).take(self.geometry.slots, f);
    }

    /// The doorbell that this side waits on.
    pub fn doorbell(&self) -> &Doorbell {
        &self.bells.mine
    }
}

/// Takes a flag that only this process sets.
#[inline]
fn take(flag: &LocalBool) -> bool {
    flag.load(Ordering::Relaxed) && flag.swap(false, Ordering::Relaxed)
}
