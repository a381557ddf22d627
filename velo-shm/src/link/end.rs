//! One side's end of a link, as the rest of the world holds it.

use std::fmt;
use std::sync::{Arc, Weak};

use crate::doorbell::Bells;
use crate::error::{LinkError, RingCorrupted};
use crate::region::{Region, SlotHold, says};
use crate::ring::{Consumer, Limits, Producer};
use crate::segment::Segment;
use crate::side::Side;
use crate::sync::Ordering;

/// One side's end of a link. Clones are the same end.
///
/// A process attaches once per side; a second end of the same side, here or elsewhere, would be two
/// writers of one ring.
#[derive(Clone)]
pub struct Link {
    pub(super) region: Arc<Region>,
}

/// An end that keeps no link alive.
#[derive(Debug)]
pub(crate) struct WeakLink(Weak<Region>);

impl WeakLink {
    /// Whether anything still holds the link.
    pub(crate) fn is_alive(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// The link, if anything still holds it.
    pub(crate) fn upgrade(&self) -> Option<Link> {
        let region = self.0.upgrade()?;
        Some(Link { region })
    }
}

impl Link {
    /// Attaches to an initialised link, after checking its header.
    pub fn attach(segment: Arc<dyn Segment>, side: Side, bells: Bells) -> Result<Self, LinkError> {
        let region = Region::attach(segment, side, bells)?;
        Ok(Link { region })
    }

    /// The same end, without keeping the link alive.
    pub(crate) fn downgrade(&self) -> WeakLink {
        WeakLink(Arc::downgrade(&self.region))
    }

    /// Which end this is.
    pub fn side(&self) -> Side {
        self.region.side
    }

    /// How many slots there are; slot 0 is the control slot.
    pub fn slots(&self) -> u32 {
        self.region.geometry.slots
    }

    /// Attaches to both rings of a slot, at their beginning.
    ///
    /// The client resets a slot before it opens it again ([`reset_slot`](Self::reset_slot)); the
    /// worker opens it when told to. The producer, the consumer and every lease of it keep the
    /// link alive and the slot in use.
    pub fn open_slot(&self, slot: u32, limits: Limits) -> Result<(Producer, Consumer), LinkError> {
        let region = &self.region;
        region.check_slot(slot)?;
        region
            .commit_slot(slot)
            .map_err(|source| LinkError::NoMemory { source })?;
        if !region.hold(slot) {
            return Err(LinkError::SlotInUse { slot });
        }
        // Loans of this slot went to a stream that has ended.
        region
            .heap
            .sweep(|other| other == slot || region.slot_idle(other));
        region
            .ring_header(slot, region.side.peer())
            .producer
            .held
            .store(1, Ordering::Release);
        region
            .header()
            .residence
            .slots_used
            .fetch_max(slot + 1, Ordering::Relaxed);
        let hold = Arc::new(SlotHold {
            region: region.clone(),
            slot,
        });
        Ok((
            Producer::new(hold.clone(), limits),
            Consumer::new(hold, limits),
        ))
    }

    /// Makes a slot as good as new; true if it was done. For the client only, and only while
    /// neither side uses the slot: otherwise nothing happens.
    ///
    /// # Errors
    ///
    /// [`LinkError::NoMemory`] when the slot was never used and the system has no pages for it.
    pub fn reset_slot(&self, slot: u32) -> Result<bool, LinkError> {
        if self.region.side != Side::Client || self.region.check_slot(slot).is_err() {
            return Ok(false);
        }
        // Before the first look: a page that cannot be had is an error here, and a signal there.
        self.region
            .commit_slot(slot)
            .map_err(|source| LinkError::NoMemory { source })?;
        if !self.region.slot_idle(slot) {
            return Ok(false);
        }
        for to in [Side::Client, Side::Worker] {
            self.region.ring_header(slot, to).reset();
        }
        Ok(true)
    }

    /// Whether no side holds a producer, a consumer or a lease of the slot, so that the client may
    /// reset it and open it for another stream.
    pub fn slot_idle(&self, slot: u32) -> bool {
        self.region.slot_idle(slot)
    }

    /// Whether the other side has opened a slot, and still holds anything of it.
    pub fn peer_holds(&self, slot: u32) -> bool {
        self.region.check_slot(slot).is_ok()
            && self
                .region
                .ring_header(slot, self.region.side)
                .producer
                .held
                .load(Ordering::Acquire)
                != 0
    }

    /// Checks what no side changes: the numbers that the link is described by, and flags
    /// that have two values. For now and then; what is read on the way of an event is checked there.
    ///
    /// # Errors
    ///
    /// When the other side has written where it must not.
    pub fn check(&self) -> Result<(), RingCorrupted> {
        if !says(&*self.region.segment, &self.region.geometry) {
            return Err(RingCorrupted::new("the link's header was changed"));
        }
        let header = self.region.header();
        let asleep = header.directions.iter().map(|way| &way.sleeping);
        if asleep
            .into_iter()
            .any(|flag| flag.load(Ordering::Relaxed) > 1)
        {
            return Err(RingCorrupted::new("a side is neither asleep nor awake"));
        }
        if header.residence.slots_used.load(Ordering::Relaxed) > self.region.geometry.slots {
            return Err(RingCorrupted::new("more slots were used than there are"));
        }
        Ok(())
    }

    /// Makes what is marked visible again, for both sides, where someone wrote over the marks in a way
    /// that hides slots. For a check-up now and then, as it looks at all slots.
    pub fn mend(&self) {
        for side in [Side::Client, Side::Worker] {
            self.region.direction(side).mend();
        }
    }

    /// Gives memory of grown rings and loans that nobody reads any more back to the system. This
    /// happens by itself as rings grow and slots open and close; call it when going idle.
    pub fn reclaim(&self) {
        self.region.reclaim();
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("side", &self.side())
            .field("slots", &self.slots())
            .field("residents", &self.residents())
            .finish_non_exhaustive()
    }
}
