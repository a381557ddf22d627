//! Why there is no room in a ring.

use std::io;

use thiserror::Error;

use crate::error::RingCorrupted;

/// The thing that there is no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// As many counted events are in flight as may be.
    Events,
    /// The bytes are taken, and the ring is as large as it may be.
    Bytes,
}

/// Why there is no reservation.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReserveError {
    /// Not now: wait until the consumer has released something.
    #[error("the ring is full; wait for the consumer")]
    Full(Full),
    /// Never: the ceiling does not allow a frame of this length.
    #[error(
        "a message of `{len}` bytes is longer than the `{limit}` that the limit allows; raise it"
    )]
    TooLarge {
        /// The requested size.
        len: usize,
        /// The longest message that can ever be reserved.
        limit: u64,
    },
    /// The ring has to grow for this message and cannot.
    #[error("no memory for a larger ring: {0}")]
    NoMemory(#[source] io::Error),
    /// The other side broke the ring.
    #[error(transparent)]
    Corrupted(#[from] RingCorrupted),
}
