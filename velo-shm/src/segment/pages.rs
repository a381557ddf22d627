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
