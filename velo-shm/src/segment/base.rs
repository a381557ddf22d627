//! What every kind of segment offers, and why one cannot be had.

use std::fmt::Debug;
use std::io;
use std::ptr::NonNull;

use thiserror::Error;

/// One mapped, zero-initialised, shared object of a length that never changes.
///
/// It is *sparse*: pages that no one touched cost nothing, so a segment is created as long as it
/// could ever need to be.
///
/// # Safety
///
/// From construction to drop, `base` always gives the same address, aligned to a page, and
/// `len` bytes from there are mapped for reading and writing.
#[allow(
    clippy::len_without_is_empty,
    reason = "an empty segment cannot be created"
)]
pub unsafe trait Segment: Send + Sync + Debug {
    /// Where the mapping starts in this process.
    fn base(&self) -> NonNull<u8>;

    /// How many bytes are mapped.
    fn len(&self) -> usize;

    /// Makes sure that these pages exist, so that running out of memory is an error here and not
    /// a SIGBUS later. What they hold stays.
    fn commit(&self, offset: usize, len: usize) -> io::Result<()>;

    /// Gives these pages back to the system; they read as zero afterwards.
    fn discard(&self, offset: usize, len: usize) -> io::Result<()>;

    /// Tells a model that these bytes are read or written.
    #[cfg(loom)]
    #[doc(hidden)]
    fn track(&self, _offset: usize, _len: usize, _write: bool) {}
}

/// Why a segment could not be created or opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SegmentError {
    /// A segment of no bytes holds nothing.
    #[error("a segment needs at least one byte")]
    Empty,
    /// The shared object itself could not be made or found.
    #[error("cannot open the shared object: {source}")]
    Open {
        /// What the system said.
        source: io::Error,
    },
    /// The object exists but cannot be made this long; a shorter one may do.
    #[error("cannot make the shared object `{len}` bytes long: {source}")]
    Resize {
        /// The length asked for.
        len: usize,
        /// What the system said.
        source: io::Error,
    },
    /// This much address space cannot be mapped; a shorter segment may do.
    #[error("cannot map `{len}` bytes of shared memory: {source}")]
    Map {
        /// The length asked for.
        len: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The object cannot be sealed.
    #[error("cannot seal the shared object: {source}")]
    Seal {
        /// What the system said.
        source: io::Error,
    },
    /// Its maker could still shrink the object, and turn a read into SIGBUS.
    #[error("the shared object is not sealed against resizing; only accept sealed ones")]
    Unsealed,
}

/// `offset + len`, if that is inside a segment of `total` bytes.
pub(super) fn check_range(offset: usize, len: usize, total: usize) -> io::Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= total => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("`{len}` bytes at `{offset}` are outside the segment of `{total}`"),
        )),
    }
}
