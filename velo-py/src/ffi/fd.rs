//! Descriptors that Python names by number.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use velo_shm::fork::SharedFd;

/// Another handle of a descriptor that Python owns, which it may close meanwhile.
///
/// # Errors
/// When it is not open.
pub fn duplicate(number: i32) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the number is not -1, and it is borrowed for one system call, which makes nothing of
    // a descriptor that is not open.
    unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned()
}

/// Gives forked children of this process a dead descriptor in place of this one, which stays open as
/// long as this process lives.
pub fn keep_from_children(number: i32) {
    if number >= 0 {
        // SAFETY: the number is not -1, and nothing is done with the descriptor here; a child replaces
        // whatever it names.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        std::mem::forget(SharedFd::new(fd));
    }
}
