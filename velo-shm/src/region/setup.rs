//! The setup of a link: its size, its first contents, and the checks before it is
//! believed. Nothing here is on the way of an event.

use crate::error::LinkError;
#[cfg(loom)]
use crate::layout::RingHeader;
use crate::layout::{Geometry, LinkHeader, LinkInfo, MAGIC, at};
use crate::segment::Segment;
#[cfg(loom)]
use crate::side::Side;
use crate::spec::{LinkSpec, VERSION};

/// Makes a link in a fresh segment, once, before a side attaches to it.
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
pub(crate) fn says(segment: &dyn Segment, geometry: &Geometry) -> bool {
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
