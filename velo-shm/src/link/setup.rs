//! What a link is made of: how large it is, how it is begun, and what is checked before it is
//! believed. Nothing here is on the way of an event.

use std::io;

use thiserror::Error;

#[cfg(loom)]
use super::Side;
#[cfg(loom)]
use crate::layout::RingHeader;
use crate::layout::{Geometry, LinkHeader, LinkInfo, MAGIC, MAX_SLOTS, VERSION, at};
use crate::segment::Segment;

/// How large a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkSpec {
    /// How many streams it can carry at a time, the control slot included.
    pub slots: u32,
    /// How many bytes a ring has to begin with: a power of two, 128 or more.
    pub ring_bytes: u32,
    /// How many bytes the grown rings of each direction can have together: a multiple of 4096.
    /// This is address space, not memory.
    pub heap_bytes: u64,
}

impl Default for LinkSpec {
    fn default() -> Self {
        LinkSpec {
            slots: MAX_SLOTS,
            ring_bytes: 2048,
            heap_bytes: 16 << 30,
        }
    }
}

impl LinkSpec {
    /// How long a segment for such a link has to be; `usize::MAX` where no segment could be.
    pub fn segment_len(&self) -> usize {
        Geometry::new(self).map_or(usize::MAX, |geometry| geometry.total_len)
    }
}

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

/// Makes a link in a fresh segment, before anyone attaches to it. Whoever creates the segment
/// does this, once.
pub fn initialise(segment: &dyn Segment, spec: &LinkSpec) -> Result<(), LinkError> {
    let geometry = Geometry::new(spec)?;
    check_len(segment, &geometry)?;
    let header_len = geometry.slot_range(0).0;
    segment
        .commit(0, header_len)
        .map_err(|source| LinkError::NoMemory { source })?;
    // SAFETY: the header fits, by the length check; the base of a segment is page-aligned; and no
    // one is attached yet. Slots are left alone: a fresh segment is zero, which is an empty ring.
    unsafe { at(segment.base(), 0).write(LinkHeader::new(geometry.info())) };
    #[cfg(loom)]
    for slot in 0..spec.slots {
        for side in [Side::Client, Side::Worker] {
            // SAFETY: as above; loom's atomics do not begin as zeros.
            unsafe {
                at(segment.base(), geometry.ring_header(slot, side)).write(RingHeader::new());
            }
        }
    }
    Ok(())
}

fn check_len(segment: &dyn Segment, geometry: &Geometry) -> Result<(), LinkError> {
    let (len, needed) = (segment.len(), geometry.total_len);
    if len < needed {
        Err(LinkError::TooSmall { len, needed })
    } else {
        Ok(())
    }
}

/// Whether a segment that has this geometry still says so.
pub(super) fn says(segment: &dyn Segment, geometry: &Geometry) -> bool {
    read_info(segment) == geometry.info()
}

/// The numbers at the beginning of a segment, which is long enough for them.
fn read_info(segment: &dyn Segment) -> LinkInfo {
    assert!(segment.len() >= size_of::<LinkHeader>());
    // SAFETY: inside the segment, by the line above, and aligned as its base is. Read once into
    // private memory: volatile, since the other side could write at any time.
    unsafe { at::<LinkInfo>(segment.base(), 0).read_volatile() }
}

/// Reads what the segment says it is, and believes it only if it is what we would have written.
pub(super) fn read_geometry(segment: &dyn Segment) -> Result<Geometry, LinkError> {
    let needed = size_of::<LinkHeader>();
    if segment.len() < needed {
        return Err(LinkError::TooSmall {
            len: segment.len(),
            needed,
        });
    }
    let info = read_info(segment);
    if info.magic != MAGIC {
        return Err(LinkError::NotALink);
    }
    if info.version != VERSION {
        return Err(LinkError::Version {
            found: info.version,
        });
    }
    let spec = LinkSpec {
        slots: info.slots,
        ring_bytes: info.ring_bytes,
        heap_bytes: info.heap_bytes,
    };
    let geometry = Geometry::new(&spec).map_err(|_| LinkError::Layout)?;
    if geometry.info() != info {
        return Err(LinkError::Layout);
    }
    check_len(segment, &geometry)?;
    Ok(geometry)
}
