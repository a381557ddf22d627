//! The activity of a worker: which function it runs now, and on which event.
//!
//! Others read it after the worker has died or stands still. The worker writes it as a
//! step begins, as the function takes an event and as the step ends: a few relaxed stores to a line
//! that no other side writes, and others rarely read.
//!
//! A reading is a hint about the cause of a death. It is checked for sense, and decides which
//! function is blamed, never an access to memory.

use std::time::Duration;

use crate::allowance::{Allowance, Setting};
use crate::layout::ActivityLine;
use crate::sync::{Ordering, fence};

const BY_EVENT: u32 = 1 << 31;

impl Allowance {
    /// In whole milliseconds, at least one: zero is for none.
    fn pack(allowance: Option<Allowance>) -> u32 {
        let Some(Allowance { time, setting }) = allowance else {
            return 0;
        };
        let ms = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        let by = if setting == Setting::Event {
            BY_EVENT
        } else {
            0
        };
        ms.clamp(1, BY_EVENT - 1) | by
    }

    fn unpack(packed: u32) -> Option<Allowance> {
        let ms = packed & !BY_EVENT;
        let setting = match packed & BY_EVENT {
            0 => Setting::Stall,
            _ => Setting::Event,
        };
        let time = Duration::from_millis(ms.into());
        (ms > 0).then_some(Allowance { time, setting })
    }
}

/// A function that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// Which step of the worker on this link it is: two looks that give the same number have seen
    /// the same step.
    pub step: u64,
    /// The stream's slot.
    pub slot: u32,
    /// The stream's number, as its client counts.
    pub stream: u64,
    /// The event that the function took last, counted from 1; 0 before the first.
    pub event: u64,
    /// How long the step may take.
    pub allowance: Option<Allowance>,
}

/// How far a worker has come on a link: it is another one whenever the worker has worked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Changes as functions begin and stop.
    pub step: u64,
    /// Changes as functions take events.
    pub event: u64,
    /// Changes as the worker looks at what is there for it.
    pub looks: u64,
}

impl ActivityLine {
    #[inline]
    pub(crate) fn begin(&self, slot: u32, stream: u64, event: u64, allowance: Option<Allowance>) {
        // A reader that sees one of these sees that the step before is over.
        fence(Ordering::Release);
        self.slot.store(slot, Ordering::Relaxed);
        self.stream.store(stream, Ordering::Relaxed);
        self.event.store(event, Ordering::Relaxed);
        self.limit
            .store(Allowance::pack(allowance), Ordering::Relaxed);
        let step = self.step.load(Ordering::Relaxed);
        self.step.store(step.wrapping_add(1) | 1, Ordering::Release);
    }

    /// An event that another task than the function's own took for it counts when that runs next.
    #[inline]
    pub(crate) fn took(&self, slot: u32, event: u64) {
        if self.slot.load(Ordering::Relaxed) == slot {
            self.event.store(event, Ordering::Relaxed);
        }
    }

    #[inline]
    pub(crate) fn allow(&self, slot: u32, allowance: Option<Allowance>) {
        if self.slot.load(Ordering::Relaxed) == slot {
            self.limit
                .store(Allowance::pack(allowance), Ordering::Relaxed);
        }
    }

    #[inline]
    pub(crate) fn end(&self) {
        let step = self.step.load(Ordering::Relaxed);
        self.step
            .store(step.wrapping_add(1) & !1, Ordering::Release);
    }

    #[inline]
    pub(crate) fn looked(&self) {
        let looks = self.looks.load(Ordering::Relaxed);
        self.looks.store(looks.wrapping_add(1), Ordering::Relaxed);
    }

    pub(crate) fn running(&self, slots: u32) -> Option<Running> {
        let step = self.step.load(Ordering::Acquire);
        let running = Running {
            step,
            slot: self.slot.load(Ordering::Relaxed),
            stream: self.stream.load(Ordering::Relaxed),
            event: self.event.load(Ordering::Relaxed),
            allowance: Allowance::unpack(self.limit.load(Ordering::Relaxed)),
        };
        // If any of these was of a later step, this look at the number sees that one too.
        fence(Ordering::Acquire);
        let same = self.step.load(Ordering::Relaxed) == step;
        let sane = step % 2 == 1 && (1..slots).contains(&running.slot);
        (same && sane).then_some(running)
    }

    pub(crate) fn progress(&self) -> Progress {
        Progress {
            step: self.step.load(Ordering::Relaxed),
            event: self.event.load(Ordering::Relaxed),
            looks: self.looks.load(Ordering::Relaxed),
        }
    }
}
