//! The slots of one link, as its client uses them.

use std::collections::{HashMap, VecDeque};

use velo_shm::{Link, LinkError, RingCorrupted};

use crate::wire::control;

/// How many freed slots are looked at before a fresh one is taken.
const LOOKS: usize = 4;

/// The streams in the slots of a link, and the slot that comes next.
#[derive(Debug)]
pub struct SlotTable<S> {
    open: HashMap<u32, S>,
    /// Slots of ended streams, in the order in which they ended.
    free: VecDeque<u32>,
    /// The first slot that was never used.
    fresh: u32,
}

/// Why a link makes no sense any more. Its streams fail, and its worker is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsound {
    /// The worker wrote where it must not.
    #[error(transparent)]
    Corrupted(#[from] RingCorrupted),
    /// The worker wrote over the count of streams.
    #[error("the link counts {counted} open streams instead of {open}; its worker wrote over it")]
    Count {
        /// What the link says.
        counted: u32,
        /// How many streams this side has open.
        open: u32,
    },
}

impl<S> Default for SlotTable<S> {
    fn default() -> Self {
        Self {
            open: HashMap::new(),
            free: VecDeque::new(),
            fresh: control::SLOT + 1,
        }
    }
}

impl<S> SlotTable<S> {
    /// A free slot, reset for a new stream; `None` when the link is full.
    ///
    /// # Errors
    ///
    /// When the system has no memory for a slot that was never used.
    pub fn take(&mut self, link: &Link) -> Result<Option<u32>, LinkError> {
        let slots = link.slots();
        // A slot is idle once the worker has let go of it too, and the last lease of its memory is
        // gone on both sides. The slot that was freed first is the likeliest.
        let looks = match self.fresh < slots {
            true => LOOKS,
            false => self.free.len(),
        };
        for _ in 0..looks.min(self.free.len()) {
            let Some(slot) = self.free.pop_front() else {
                break;
            };
            if matches!(link.reset_slot(slot), Ok(true)) {
                return Ok(Some(slot));
            }
            self.free.push_back(slot);
        }
        while self.fresh < slots {
            let slot = self.fresh;
            let reset = link.reset_slot(slot)?;
            self.fresh += 1;
            if reset {
                return Ok(Some(slot));
            }
            // Held, and never used here: the worker wrote over it.
            self.free.push_back(slot);
        }
        Ok(None)
    }

    /// Gives a slot back that [`take`](Self::take) has given, and whose stream has ended or never
    /// began.
    pub fn give_back(&mut self, slot: u32) {
        self.free.push_back(slot);
    }

    /// A stream is open in this slot from now on.
    pub fn insert(&mut self, slot: u32, stream: S) {
        self.open.insert(slot, stream);
    }

    /// The stream in a slot.
    pub fn get(&self, slot: u32) -> Option<&S> {
        self.open.get(&slot)
    }

    /// As [`get`](Self::get), to be changed.
    pub fn get_mut(&mut self, slot: u32) -> Option<&mut S> {
        self.open.get_mut(&slot)
    }

    /// Forgets the stream in a slot. The slot is not free before it is [given
    /// back](Self::give_back).
    pub fn remove(&mut self, slot: u32) -> Option<S> {
        self.open.remove(&slot)
    }

    /// Forgets all streams.
    pub fn clear(&mut self) -> impl Iterator<Item = S> + use<S> {
        std::mem::take(&mut self.open).into_values()
    }

    /// All streams with their slots.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &S)> {
        self.open.iter().map(|(&slot, stream)| (slot, stream))
    }

    /// How many streams are open. The count in the link is no substitute: the worker could write over
    /// it.
    pub fn len(&self) -> u32 {
        u32::try_from(self.open.len()).unwrap_or(u32::MAX)
    }

    /// Whether no stream is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Checks that the link still says of itself what this side knows: what it is, and how many
    /// streams this side has opened on it.
    ///
    /// # Errors
    ///
    /// [`Unsound`] when the worker has written over the link.
    pub fn check(&self, link: &Link) -> Result<(), Unsound> {
        link.check()?;
        let (counted, open) = (link.residents(), self.len());
        match counted == open {
            true => Ok(()), // a retired link counts none, and has none
            false => Err(Unsound::Count { counted, open }),
        }
    }
}

/// Makes up for flags and bits that a worker could have written over: the last step of a check-up,
/// which every client does now and then while streams sleep. `waits` says that the worker has events
/// that it does not look at.
///
/// A side that writes over a flag or a bit cannot make the other miss more than the time between two
/// check-ups.
pub fn mend(link: &Link, waits: bool) {
    link.mend();
    if waits {
        link.ring();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use velo_shm::{Bells, Doorbell, Limits, LinkSpec, MemfdSegment, Side, initialise};

    use super::*;

    fn link(slots: u32) -> Link {
        let spec = LinkSpec {
            slots,
            heap_bytes: 1 << 20,
            ..LinkSpec::default()
        };
        let segment = MemfdSegment::create(spec.segment_len()).expect("memory");
        initialise(&segment, &spec).expect("a link");
        let bell = || Doorbell::create().expect("a doorbell");
        let bells = Bells {
            mine: bell(),
            theirs: bell(),
        };
        Link::attach(Arc::new(segment), Side::Client, bells).expect("an end")
    }

    fn take(table: &mut SlotTable<()>, link: &Link) -> Option<u32> {
        table.take(link).expect("memory")
    }

    #[test]
    fn slots_are_taken_in_order_and_the_control_slot_never() {
        let (link, mut table) = (link(4), SlotTable::default());
        assert_eq!(take(&mut table, &link), Some(1));
        assert_eq!(take(&mut table, &link), Some(2));
        assert_eq!(take(&mut table, &link), Some(3));
        assert_eq!(take(&mut table, &link), None);
    }

    #[test]
    fn a_slot_that_was_freed_first_is_taken_first() {
        let (link, mut table) = (link(8), SlotTable::default());
        let slots = [(); 3].map(|()| take(&mut table, &link).expect("a slot"));
        [2, 1, 3].into_iter().for_each(|slot| table.give_back(slot));
        assert_eq!(slots.map(|_| take(&mut table, &link)), [2, 1, 3].map(Some));
    }

    #[test]
    fn a_slot_that_is_still_held_is_passed_over() {
        let (link, mut table) = (link(3), SlotTable::default());
        let limits = Limits {
            events: 1,
            bytes: 4096,
        };
        let held = take(&mut table, &link).expect("a slot");
        let ends = link.open_slot(held, limits).expect("both rings");
        table.give_back(held);
        assert_eq!(take(&mut table, &link), Some(2));
        assert_eq!(take(&mut table, &link), None);
        drop(ends);
        assert_eq!(take(&mut table, &link), Some(held));
    }

    #[test]
    fn a_link_that_counts_other_streams_than_its_client_is_unsound() {
        let (link, mut table) = (link(4), SlotTable::default());
        assert_eq!(table.check(&link), Ok(()));
        assert!(link.enter());
        let unsound = Unsound::Count {
            counted: 1,
            open: 0,
        };
        assert_eq!(table.check(&link), Err(unsound));
        table.insert(1, ());
        assert_eq!(table.check(&link), Ok(()));
    }
}
