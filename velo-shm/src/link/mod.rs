//! A link joins one client with one worker: slots of rings, ready bits and doorbells.
//!
//! It says which side has something to do, and wakes a side that sleeps. It never waits, never looks
//! at an event, and does not decide which stream gets which slot.

mod activity;
mod end;
mod figures;
mod residence;
mod waking;
mod watch;

pub use end::Link;
pub(crate) use end::WeakLink;
pub use figures::{Counters, LinkCounters, SlotFigures};
