//! What each client does with its links, whatever its language: which worker a stream goes to, which
//! slot it gets, and whether a link still makes sense.

pub mod placement;
mod slots;

pub use slots::{SlotTable, Unsound, mend};
