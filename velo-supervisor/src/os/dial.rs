//! Connecting to a socket in the file system. A process that is stopped accepts no connection. Once its queue is
//! full, the system would have the next one wait without end.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::SendTimeout;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket};
use nix::sys::time::TimeVal;

/// How long to wait for a place in the queue: many processes may connect at the same time.
const BOUND: Duration = Duration::from_secs(1);

/// Connects to a listener. Signals do not end the wait.
///
/// # Errors
///
/// Among others [`io::ErrorKind::ConnectionRefused`] when no process listens there, and
/// [`io::ErrorKind::WouldBlock`] when one does, whose queue stays full.
pub(crate) fn dial(path: &Path) -> io::Result<UnixStream> {
    let address = UnixAddr::new(path)?;
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let deadline = Instant::now() + BOUND;
    loop {
        // Zero would be no limit.
        let left = deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        limit_waits(&socket, left)?;
        match connect(socket.as_raw_fd(), &address) {
            Ok(()) => break,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    limit_waits(&socket, Duration::ZERO)?;
    Ok(UnixStream::from(socket))
}

fn limit_waits(socket: &impl std::os::fd::AsFd, bound: Duration) -> io::Result<()> {
    let seconds = i64::try_from(bound.as_secs()).unwrap_or(i64::MAX);
    let bound = TimeVal::new(seconds, i64::from(bound.subsec_micros()));
    Ok(setsockopt(socket, SendTimeout, &bound)?)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use nix::sys::socket::{Backlog, bind, listen};
    use std::os::fd::OwnedFd;
    use std::path::PathBuf;

    /// A listener that accepts nobody, whose queue is full; its file goes with it.
    pub(crate) struct Full {
        pub(crate) path: PathBuf,
        _listener: OwnedFd,
        _queued: Vec<UnixStream>,
    }

    impl Full {
        pub(crate) fn new(name: &str) -> Self {
            let file = format!("velo-{name}-{}.sock", std::process::id());
            let path = std::env::temp_dir().join(file);
            let _ = std::fs::remove_file(&path);
            let flags = SockFlag::SOCK_CLOEXEC;
            let listener = socket(AddressFamily::Unix, SockType::Stream, flags, None);
            let listener = listener.expect("a socket");
            let address = UnixAddr::new(&path).expect("an address");
            bind(listener.as_raw_fd(), &address).expect("a file");
            listen(&listener, Backlog::new(0).expect("a length")).expect("a listener");
            let queued = (0..8).map_while(|_| dial(&path).ok()).collect();
            Self {
                path,
                _listener: listener,
                _queued: queued,
            }
        }
    }

    impl Drop for Full {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    #[test]
    fn a_full_queue_is_not_waited_for_without_end() {
        let full = Full::new("full");
        let error = dial(&full.path).expect_err("no place");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let path = full.path.clone();
        drop(full);
        let error = dial(&path).expect_err("no file");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
