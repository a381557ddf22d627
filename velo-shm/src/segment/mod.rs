//! Mapped memory that two processes share. Knows nothing of what lies in it.

use std::fmt::Debug;
use std::io;
use std::ptr::NonNull;

use thiserror::Error;

#[cfg(target_os = "linux")]
mod memfd;
#[cfg(feature = "named")]
mod named;

#[cfg(target_os = "linux")]
pub use memfd::MemfdSegment;
#[cfg(feature = "named")]
pub use named::NamedSegment;

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
    /// Whoever made the object could still shrink it, and turn a read into SIGBUS.
    #[error("the shared object is not sealed against resizing; only accept sealed ones")]
    Unsealed,
}

/// `offset + len`, if that is inside a segment of `total` bytes.
fn check_range(offset: usize, len: usize, total: usize) -> io::Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= total => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("`{len}` bytes at `{offset}` are outside the segment of `{total}`"),
        )),
    }
}

#[cfg(target_os = "linux")]
mod pages {
    //! Pages of a file that lives in memory: exist or not.

    use std::io;
    use std::os::fd::AsFd;

    use nix::errno::Errno;
    use nix::fcntl::{FallocateFlags, fallocate};

    /// A signal undoes an allocation that is under way; steps of this size get done between two.
    const STEP: usize = 32 << 20;

    pub(super) fn allocate(fd: impl AsFd, offset: usize, len: usize) -> io::Result<()> {
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let step = STEP.min(end - at);
            retry(|| fallocate(fd.as_fd(), FallocateFlags::empty(), at as i64, step as i64))?;
            at += step;
        }
        Ok(())
    }

    pub(super) fn punch(fd: impl AsFd, offset: usize, len: usize) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        retry(|| fallocate(fd.as_fd(), hole, offset as i64, len as i64))
    }

    fn retry(mut call: impl FnMut() -> nix::Result<()>) -> io::Result<()> {
        loop {
            match call() {
                Err(Errno::EINTR) => {}
                done => return done.map_err(io::Error::from),
            }
        }
    }
}
