//! The process on the other side of a unix socket, as the system knows it, not as the peer describes
//! itself.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::{PeerCredentials, PeerPidfd};

use super::calls;

/// The process that has connected.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) uid: u32,
    pub(crate) pid: i32,
    /// Readable when it has ended.
    pub(crate) pidfd: OwnedFd,
}

impl Peer {
    /// The process that has connected to a socket that this process listens on.
    pub(crate) fn of(socket: &impl AsFd) -> io::Result<Self> {
        let credentials = getsockopt(socket, PeerCredentials)?;
        let pid = credentials.pid();
        let pidfd = match getsockopt(socket, PeerPidfd) {
            Ok(pidfd) => pidfd,
            // Before Linux 6.5. The pid may have been used again, if the client has died meanwhile:
            // then its socket is closed, and the connection ends as soon as it is looked at.
            Err(Errno::ENOPROTOOPT) => calls::pidfd_open(pid)?,
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            uid: credentials.uid(),
            pid,
            pidfd,
        })
    }
}

/// The user that listens at the other side, or has connected from there.
pub(crate) fn user(socket: &impl AsFd) -> io::Result<u32> {
    Ok(getsockopt(socket, PeerCredentials)?.uid())
}

/// The process that listens at the other side. Only to be named: it may have ended.
pub(crate) fn process(socket: &impl AsFd) -> io::Result<i32> {
    Ok(getsockopt(socket, PeerCredentials)?.pid())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::transport;

    #[test]
    fn the_other_side_of_a_pair_is_this_process() {
        let (here, _there) = transport::pair().expect("a socketpair");
        let peer = Peer::of(&here).expect("a peer");
        assert_eq!(peer.pid, nix::unistd::getpid().as_raw());
        assert_eq!(peer.uid, nix::unistd::geteuid().as_raw());
        assert_eq!(user(&here).expect("a user"), peer.uid);
        assert_eq!(process(&here).expect("a process"), peer.pid);
        assert!(!calls::is_readable(peer.pidfd.as_fd()), "it lives");
    }
}
