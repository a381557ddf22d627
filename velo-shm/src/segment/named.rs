//! The portable segment: found by name. It goes away when its creator drops it.
//!
//! It cannot be sealed, so it trusts the other side not to shrink it; where memfd exists, that is
//! the one to take.

use std::fmt;
use std::io;
use std::ptr::NonNull;

use shared_memory::{Shmem, ShmemConf, ShmemError};

use super::base::{Segment, SegmentError, check_range};

/// A segment backed by a named shared-memory object.
pub struct NamedSegment {
    shmem: Shmem,
    /// A second handle of the same object: the mapping library keeps its own to itself.
    #[cfg(target_os = "linux")]
    fd: std::os::fd::OwnedFd,
}

impl NamedSegment {
    /// Creates a segment of `len` bytes under a fresh name.
    pub fn create(len: usize) -> Result<Self, SegmentError> {
        if len == 0 {
            return Err(SegmentError::Empty);
        }
        let shmem = ShmemConf::new()
            .size(len)
            .create()
            .map_err(|error| match error {
                ShmemError::MapCreateFailed(code) => SegmentError::Map {
                    len,
                    source: os_error(code),
                },
                ShmemError::UnknownOsError(code) => SegmentError::Resize {
                    len,
                    source: os_error(code),
                },
                other => SegmentError::Open {
                    source: io::Error::other(other.to_string()),
                },
            })?;
        Self::wrap(shmem)
    }

    /// Maps all of a segment that another process created.
    pub fn open(name: &str) -> Result<Self, SegmentError> {
        let shmem = ShmemConf::new()
            .os_id(name)
            .open()
            .map_err(|error| match error {
                ShmemError::MapOpenFailed(code) | ShmemError::UnknownOsError(code) => {
                    SegmentError::Open {
                        source: os_error(code),
                    }
                }
                other => SegmentError::Open {
                    source: io::Error::other(other.to_string()),
                },
            })?;
        Self::wrap(shmem)
    }

    /// What to [`open`](Self::open) in the other process.
    pub fn name(&self) -> &str {
        self.shmem.get_os_id()
    }

    fn wrap(shmem: Shmem) -> Result<Self, SegmentError> {
        if shmem.len() == 0 {
            return Err(SegmentError::Empty);
        }
        Ok(NamedSegment {
            #[cfg(target_os = "linux")]
            fd: reopen(shmem.get_os_id())?,
            shmem,
        })
    }
}

#[cfg(target_os = "linux")]
fn reopen(name: &str) -> Result<std::os::fd::OwnedFd, SegmentError> {
    use nix::fcntl::OFlag;
    use nix::sys::mman::shm_open;
    use nix::sys::stat::Mode;

    shm_open(name, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map_err(|errno| {
        SegmentError::Open {
            source: errno.into(),
        }
    })
}

fn os_error(code: u32) -> io::Error {
    io::Error::from_raw_os_error(code as i32)
}

impl fmt::Debug for NamedSegment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NamedSegment")
            .field("name", &self.name())
            .field("len", &self.shmem.len())
            .finish_non_exhaustive()
    }
}

// SAFETY: `Shmem` is plain data about a mapping; the only thing it does later is to unmap and
// unlink on drop, which any thread may do.
unsafe impl Send for NamedSegment {}
// SAFETY: through a shared reference it only gives out its address, length and name.
unsafe impl Sync for NamedSegment {}

// SAFETY: the mapping is made once, shared and writable, page-aligned by the system, and unmapped
// on drop.
unsafe impl Segment for NamedSegment {
    fn base(&self) -> NonNull<u8> {
        NonNull::new(self.shmem.as_ptr()).expect("a mapping is never at address zero")
    }

    fn len(&self) -> usize {
        self.shmem.len()
    }

    #[cfg(target_os = "linux")]
    fn commit(&self, offset: usize, len: usize) -> io::Result<()> {
        check_range(offset, len, self.len())?;
        super::pages::allocate(&self.fd, offset, len)
    }

    /// Touches every page: there is no portable way to be told in time.
    #[cfg(not(target_os = "linux"))]
    fn commit(&self, offset: usize, len: usize) -> io::Result<()> {
        use std::sync::atomic::{AtomicU8, Ordering};

        check_range(offset, len, self.len())?;
        for page in (offset..offset + len).step_by(4096) {
            // SAFETY: inside the mapping, by the check above; an atomic byte is never torn, and
            // adding nothing keeps what the other side writes there.
            let byte = unsafe { AtomicU8::from_ptr(self.base().add(page).as_ptr()) };
            byte.fetch_add(0, Ordering::Relaxed);
        }
        Ok(())
    }

    #[cfg(target_os = "linux")]
    fn discard(&self, offset: usize, len: usize) -> io::Result<()> {
        check_range(offset, len, self.len())?;
        super::pages::punch(&self.fd, offset, len)
    }

    /// Keeps the pages, and only keeps the promise of zeros.
    #[cfg(not(target_os = "linux"))]
    fn discard(&self, offset: usize, len: usize) -> io::Result<()> {
        check_range(offset, len, self.len())?;
        // SAFETY: inside the mapping, by the check above; who discards owns these bytes.
        unsafe { self.base().add(offset).write_bytes(0, len) };
        Ok(())
    }
}
