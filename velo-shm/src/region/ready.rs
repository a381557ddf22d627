//! The slots with work: one bit per slot, and one per word of those bits.
//!
//! A bit is a hint that is never missing: it may be set for a slot that has nothing new.
//!
//! Why no event is lost: the setter of a bit has written to the ring before, with a full fence
//! between. The taker swaps the bits out first, then fences, then looks at the rings. If the setter
//! found its bit set already, then the taker's swap is still to come, and so is its look.

use crate::layout::Direction;
use crate::sync::{AtomicU32, Ordering, full_fence};

impl Direction {
    /// Marks a slot, after something was published in it; true if the other side is asleep (and
    /// counts as awake from now on).
    #[inline]
    pub(crate) fn mark(&self, slot: u32) -> bool {
        self.note(slot);
        take_flag(&self.sleeping)
    }

    /// Marks a slot, after something was published in it, without a look at whether the other side
    /// sleeps: [`wake`](Self::wake) has to follow, sooner or later.
    #[inline]
    pub(crate) fn note(&self, slot: u32) {
        // Orders what was published before everything that is looked at here.
        full_fence();
        let index = slot as usize / 64;
        let bit = 1 << (slot % 64);
        if self.words[index].load(Ordering::Relaxed) & bit == 0 {
            self.words[index].fetch_or(bit, Ordering::Release);
            // Always a read-modify-write: either the taker's swap sees it and with it the word, or
            // it comes after that swap and stays for the next.
            self.summary[index / 64].fetch_or(1 << (index % 64), Ordering::AcqRel);
            // The bits have to be visible before the sleeping flag is looked at; see `arm`.
            full_fence();
        }
    }

    /// True if the other side is asleep (and counts as awake from now on), after slots were noted.
    #[inline]
    pub(crate) fn wake(&self) -> bool {
        full_fence();
        take_flag(&self.sleeping)
    }

    /// Sets the summary bit of each word that has a bit. No side leaves it unset, but a process that
    /// writes over it could, and the slot would never be looked at again.
    pub(crate) fn mend(&self) {
        for (index, word) in self.words.iter().enumerate() {
            if word.load(Ordering::Relaxed) != 0 {
                self.summary[index / 64].fetch_or(1 << (index % 64), Ordering::AcqRel);
            }
        }
    }

    /// Takes every marked slot below `slots`, each before `f` is called for it.
    #[inline]
    pub(crate) fn take(&self, slots: u32, mut f: impl FnMut(u32)) {
        for (group, summary) in self.summary.iter().enumerate() {
            if summary.load(Ordering::Relaxed) == 0 {
                continue;
            }
            for index in bits(summary.swap(0, Ordering::AcqRel)) {
                let index = group * 64 + index;
                let Some(word) = self.words.get(index) else {
                    break;
                };
                let marked = word.swap(0, Ordering::AcqRel);
                // Orders the swap before every look at the rings that follows from it.
                full_fence();
                for bit in bits(marked) {
                    let slot = (index * 64 + bit) as u32;
                    if slot < slots {
                        f(slot);
                    }
                }
            }
        }
    }

    /// Whether any slot is marked.
    #[inline]
    pub(crate) fn any(&self) -> bool {
        self.summary
            .iter()
            .any(|summary| summary.load(Ordering::Acquire) != 0)
    }

    /// Whether any slot but this one is marked.
    #[inline]
    pub(crate) fn any_but(&self, slot: u32) -> bool {
        self.summary.iter().enumerate().any(|(group, summary)| {
            bits(summary.load(Ordering::Acquire)).any(|index| {
                let index = group * 64 + index;
                let own = if index == slot as usize / 64 {
                    1 << (slot % 64)
                } else {
                    0
                };
                let word = self.words.get(index);
                word.is_some_and(|word| word.load(Ordering::Acquire) & !own != 0)
            })
        })
    }

    /// Whether this slot is marked.
    #[inline]
    pub(crate) fn is_marked(&self, slot: u32) -> bool {
        self.words[slot as usize / 64].load(Ordering::Acquire) & (1 << (slot % 64)) != 0
    }

    /// Says that the receiving side will sleep unless its next look finds something.
    #[inline]
    pub(crate) fn arm(&self) {
        self.sleeping.store(1, Ordering::Relaxed);
        // Orders the flag before that look. The other side publishes, fences, looks at the flag:
        // one of the two sees what the other wrote.
        full_fence();
    }

    /// Says that the receiving side is awake.
    #[inline]
    pub(crate) fn disarm(&self) {
        self.sleeping.store(0, Ordering::Relaxed);
    }
}

/// Takes a flag that the other side has set, if it is set; it is written to only then, so that a
/// flag that is taken back and set again meanwhile is not lost.
#[inline]
pub(crate) fn take_flag(flag: &AtomicU32) -> bool {
    flag.load(Ordering::Relaxed) != 0
        && flag
            .compare_exchange(1, 0, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
}

/// The positions of the bits that are set, lowest first.
fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = word.trailing_zeros();
        word &= word.wrapping_sub(1);
        (bit < 64).then_some(bit as usize)
    })
}
