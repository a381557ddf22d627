//! The doorbell of a real system: an eventfd where there is one, a pipe elsewhere.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{read, write};

/// Rung by one process, waited for by another. Readable while it has been rung and not drained.
#[derive(Debug)]
pub struct Doorbell {
    waited: BellFd,
    /// The end to ring, where that is another descriptor than the one to wait on.
    rung: Option<BellFd>,
}

/// A descriptor that a forked child has no part in.
#[derive(Debug)]
struct BellFd {
    /// Before the descriptor: it is dropped first.
    #[cfg(target_os = "linux")]
    _shared: crate::fork::SharedFd,
    fd: OwnedFd,
}

impl From<OwnedFd> for BellFd {
    fn from(fd: OwnedFd) -> Self {
        BellFd {
            #[cfg(target_os = "linux")]
            _shared: crate::fork::SharedFd::new(fd.as_fd()),
            fd,
        }
    }
}

impl BellFd {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(self.fd.try_clone()?.into())
    }
}

impl AsFd for BellFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Doorbell {
    /// A new doorbell, of one descriptor that both sides use: an eventfd.
    #[cfg(target_os = "linux")]
    pub fn create() -> io::Result<Self> {
        use nix::sys::eventfd::{EfdFlags, EventFd};

        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let waited = OwnedFd::from(EventFd::from_value_and_flags(0, flags)?).into();
        Ok(Doorbell { waited, rung: None })
    }

    /// A new doorbell: a pipe.
    #[cfg(not(target_os = "linux"))]
    pub fn create() -> io::Result<Self> {
        Self::create_pipe()
    }

    /// The other process's handle of a doorbell of one descriptor.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        Ok(Doorbell {
            waited: fd.into(),
            rung: None,
        })
    }

    /// A new doorbell of two descriptors, for systems without eventfd.
    pub fn create_pipe() -> io::Result<Self> {
        let (reader, writer) = nix::unistd::pipe()?;
        for fd in [&reader, &writer] {
            fcntl(fd, FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
        }
        Self::from_pipe(reader, writer)
    }

    /// The other process's handle of a doorbell of two descriptors.
    pub fn from_pipe(reader: OwnedFd, writer: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&reader)?;
        set_nonblocking(&writer)?;
        Ok(Doorbell {
            waited: reader.into(),
            rung: Some(writer.into()),
        })
    }

    /// Another handle of the same doorbell.
    pub fn try_clone(&self) -> io::Result<Self> {
        let rung = self.rung.as_ref().map(BellFd::try_clone).transpose()?;
        Ok(Doorbell {
            waited: self.waited.try_clone()?,
            rung,
        })
    }

    /// The descriptor to pass on to the one who rings: the same one for an eventfd.
    pub fn ringing_fd(&self) -> BorrowedFd<'_> {
        self.rung.as_ref().unwrap_or(&self.waited).as_fd()
    }

    /// Rings. A bell that is still ringing stays so; a side that is gone is not woken.
    pub fn ring(&self) {
        // An eventfd takes exactly eight bytes and adds them up; a pipe takes them as they are.
        while write(self.ringing_fd(), &1u64.to_ne_bytes()) == Err(Errno::EINTR) {}
    }

    /// Silences it; true if it had been rung. Never blocks.
    pub fn drain(&self) -> bool {
        let mut buffer = [0u8; 512];
        let mut rung = false;
        loop {
            match read(&self.waited.fd, &mut buffer) {
                Err(Errno::EINTR) => {}
                Ok(n) if n == buffer.len() => rung = true,
                Ok(n) => return rung || n > 0,
                Err(_) => return rung,
            }
        }
    }

    /// Waits until it rings, for this long at most; true if it did. Leaves it ringing.
    ///
    /// For those without an event loop; others watch [`as_fd`](AsFd::as_fd) for reading.
    pub fn wait(&self, timeout: Option<std::time::Duration>) -> io::Result<bool> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

        let deadline = timeout.map(|timeout| std::time::Instant::now() + timeout);
        loop {
            let mut fds = [PollFd::new(self.waited.as_fd(), PollFlags::POLLIN)];
            let left = match deadline {
                Some(deadline) => {
                    at_least(deadline.saturating_duration_since(std::time::Instant::now()))
                }
                None => PollTimeout::NONE,
            };
            match poll(&mut fds, left) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(0) if deadline.is_some_and(|deadline| std::time::Instant::now() < deadline) => {}
                Ok(ready) => return Ok(ready > 0),
            }
        }
    }
}

/// Why a sleep is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Woken {
    /// A doorbell rang.
    pub rung: bool,
    /// The other descriptor has something to read.
    pub other: bool,
}

/// Sleeps until one of the doorbells rings, or `other` has something to read, for this long at most.
/// Rung doorbells are silenced.
///
/// May return early with nothing, when a signal came.
pub fn wait_any<'a>(
    bells: impl Iterator<Item = &'a Doorbell>,
    other: BorrowedFd<'_>,
    timeout: Option<std::time::Duration>,
) -> io::Result<Woken> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    let bells: Vec<_> = bells.collect();
    let mut fds: Vec<_> = std::iter::once(other)
        .chain(bells.iter().map(|bell| bell.as_fd()))
        .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
        .collect();
    match poll(&mut fds, timeout.map_or(PollTimeout::NONE, at_least)) {
        Err(Errno::EINTR) | Ok(0) => return Ok(Woken::default()),
        Err(errno) => return Err(errno.into()),
        Ok(_) => {}
    }
    let mut rung = false;
    for (bell, fd) in bells.iter().zip(&fds[1..]) {
        if fd.any().unwrap_or(true) {
            rung |= bell.drain();
        }
    }
    Ok(Woken {
        rung,
        other: fds[0].any().unwrap_or(true),
    })
}

/// Milliseconds, rounded up, so that a short wait does not turn into a busy one.
fn at_least(left: std::time::Duration) -> nix::poll::PollTimeout {
    left.as_micros()
        .div_ceil(1000)
        .try_into()
        .unwrap_or(nix::poll::PollTimeout::MAX)
}

impl AsFd for Doorbell {
    /// The descriptor to wait on: readable when rung.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waited.as_fd()
    }
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
