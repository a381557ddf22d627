//! A file descriptor that becomes readable when the other side has something to say.
//!
//! It carries no message and counts nothing: many rings before one look are one ring. Whether it
//! needs to be rung at all is decided by the sleeping flag of the [link](crate::LinkEnd).

#[cfg(not(loom))]
mod fd;
#[cfg(loom)]
mod model;

#[cfg(not(loom))]
pub use fd::{Doorbell, Woken, wait_any};
#[cfg(loom)]
pub use model::Doorbell;

/// The two doorbells of one end of a link.
#[derive(Debug)]
pub struct Bells {
    /// The one this end waits on.
    pub mine: Doorbell,
    /// The one this end rings.
    pub theirs: Doorbell,
}
