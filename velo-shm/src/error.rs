//! What can go wrong with a link or a ring.

use std::io;

use thiserror::Error;

use crate::spec::{MAX_SLOTS, VERSION};

/// Why a link cannot be made, attached to, or used in this way.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LinkError {
    /// More slots than there can be, or none.
    #[error("a link has between 1 and `{MAX_SLOTS}` slots, not `{slots}`")]
    Slots {
        /// What was asked for.
        slots: u32,
    },
    /// A ring length that positions cannot be masked with.
    #[error("a ring has a power of two of bytes, 128 or more, not `{ring_bytes}`")]
    RingBytes {
        /// What was asked for.
        ring_bytes: u32,
    },
    /// A heap length that is not made of pages.
    #[error("a heap has a multiple of 4096 bytes, not `{heap_bytes}`")]
    HeapBytes {
        /// What was asked for.
        heap_bytes: u64,
    },
    /// More than the address space holds.
    #[error("two heaps of `{heap_bytes}` bytes cannot be mapped; ask for less")]
    Unmappable {
        /// What was asked for, per direction.
        heap_bytes: u64,
    },
    /// The segment ends before the link does.
    #[error("the segment has `{len}` bytes and the link needs `{needed}`")]
    TooSmall {
        /// How long the segment is.
        len: usize,
        /// How long it would have to be.
        needed: usize,
    },
    /// No link was initialised here.
    #[error("the segment does not hold a link; initialise it before attaching")]
    NotALink,
    /// The link was made by a version that lays it out in another way.
    #[error(
        "the link has layout version `{found}` and this is `{VERSION}`; restart the older side"
    )]
    Version {
        /// What the segment says.
        found: u32,
    },
    /// The header's numbers do not fit each other.
    #[error("the link's header contradicts itself; make a new link")]
    Layout,
    /// There is no such slot.
    #[error("slot `{slot}` is not below `{slots}`")]
    NoSuchSlot {
        /// What was asked for.
        slot: u32,
        /// How many there are.
        slots: u32,
    },
    /// A producer, a consumer or a lease of the slot is still alive in this process.
    #[error("slot `{slot}` is still in use; drop its producer, consumer and leases first")]
    SlotInUse {
        /// What was asked for.
        slot: u32,
    },
    /// The system has no memory for it.
    #[error("no memory for the link: {source}")]
    NoMemory {
        /// What the system said.
        source: io::Error,
    },
}

/// The other side wrote something that no correct side writes. The stream is lost; the process is
/// not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the ring is corrupted: {what}; close the stream")]
pub struct RingCorrupted {
    /// Which rule was broken.
    pub what: &'static str,
}

impl RingCorrupted {
    pub(crate) const fn new(what: &'static str) -> Self {
        RingCorrupted { what }
    }
}
