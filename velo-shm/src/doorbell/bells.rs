//! The doorbells of one side.

#[cfg(not(loom))]
use super::fd::Doorbell;
#[cfg(loom)]
use super::model::Doorbell;

/// The two doorbells of one end of a link.
#[derive(Debug)]
pub struct Bells {
    /// The one this end waits on.
    pub mine: Doorbell,
    /// The one this end rings.
    pub theirs: Doorbell,
}
