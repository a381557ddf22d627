//! A segment without a name: a memfd, passed on by its fd and sealed against resizing.
//!
//! Nothing is left behind by any death of any process, and no peer can turn a read into SIGBUS.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use memmap2::{Advice, MmapOptions, MmapRaw};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;

use super::base::{Segment, SegmentError, check_range};
use super::pages;
#[cfg(not(loom))]
use crate::fork::SharedMap;

/// A segment backed by an anonymous, sealed memfd.
#[derive(Debug)]
pub struct MemfdSegment {
    /// Before the mapping: it is dropped first.
    #[cfg(not(loom))]
    _shared: SharedMap,
    map: MmapRaw,
    fd: OwnedFd,
}

impl MemfdSegment {
    /// Creates a segment of `len` bytes; none of its pages exist yet.
    pub fn create(len: usize) -> Result<Self, SegmentError> {
        if len == 0 {
            return Err(SegmentError::Empty);
        }
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = memfd_create(c"velo-link", flags).map_err(|errno| SegmentError::Open {
            source: errno.into(),
        })?;
        let file_len = i64::try_from(len).map_err(|_| SegmentError::Resize {
            len,
            source: io::Error::from(io::ErrorKind::FileTooLarge),
        })?;
        ftruncate(&fd, file_len).map_err(|errno| SegmentError::Resize {
            len,
            source: errno.into(),
        })?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(|errno| SegmentError::Seal {
            source: errno.into(),
        })?;
        Self::map(fd, len)
    }

    /// Maps all of a segment that another process created.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, SegmentError> {
        let seals = fcntl(&fd, FcntlArg::F_GET_SEALS).map_err(|errno| SegmentError::Seal {
            source: errno.into(),
        })?;
        let seals = SealFlag::from_bits_truncate(seals);
        if !seals.contains(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW) {
            return Err(SegmentError::Unsealed);
        }
        let len = fstat(&fd)
            .map_err(|errno| SegmentError::Open {
                source: errno.into(),
            })?
            .st_size;
        match usize::try_from(len) {
            Ok(len) if len > 0 => Self::map(fd, len),
            _ => Err(SegmentError::Empty),
        }
    }

    fn map(fd: OwnedFd, len: usize) -> Result<Self, SegmentError> {
        let map = MmapOptions::new()
            .len(len)
            .map_raw(fd.as_raw_fd())
            .map_err(|source| SegmentError::Map { len, source })?;
        // A core file of some GiB helps no one, and one that cannot be left out is still right.
        let _ = map.advise(Advice::DontDump);
        Ok(MemfdSegment {
            #[cfg(not(loom))]
            _shared: SharedMap::new(map.as_ptr() as usize, len, fd.as_fd()),
            map,
            fd,
        })
    }
}

impl AsFd for MemfdSegment {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

// SAFETY: the mapping is made once, shared and writable, page-aligned by mmap, and unmapped on
// drop; the seals keep the file from becoming shorter than it.
unsafe impl Segment for MemfdSegment {
    fn base(&self) -> NonNull<u8> {
        NonNull::new(self.map.as_mut_ptr()).expect("a mapping is never at address zero")
    }

    fn len(&self) -> usize {
        self.map.len()
    }

    fn commit(&self, offset: usize, len: usize) -> io::Result<()> {
        check_range(offset, len, self.len())?;
        pages::allocate(&self.fd, offset, len)
    }

    fn discard(&self, offset: usize, len: usize) -> io::Result<()> {
        check_range(offset, len, self.len())?;
        pages::punch(&self.fd, offset, len)
    }
}
