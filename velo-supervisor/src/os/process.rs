//! A process that is watched and signalled through its pidfd: the one handle that cannot come to
//! mean another process. It reaps no process.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::{AbortHandle, spawn_local};

use super::calls;
use super::fds::{InChild, TrackedFd};

/// A watched process. Dropping it ends the watch, not the process.
#[derive(Debug)]
pub(crate) struct Process {
    pidfd: Rc<AsyncFd<TrackedFd>>,
    watch: AbortHandle,
}

impl Process {
    /// Watches a process; `ended` is called from a task of the current `LocalSet` when it has ended.
    pub(crate) fn watch(pidfd: OwnedFd, ended: impl FnOnce() + 'static) -> io::Result<Self> {
        let pidfd = TrackedFd::new(pidfd, InChild::Close);
        // SAFETY: the descriptor is open, and its owner neither closes nor replaces it before it is
        // dropped.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
        let pidfd = Rc::new(pidfd);
        let watched = Rc::clone(&pidfd);
        let watch = spawn_local(async move {
            // An error here is the runtime's end.
            if watched.readable().await.is_ok() {
                ended();
            }
        });
        Ok(Self {
            pidfd,
            watch: watch.abort_handle(),
        })
    }

    /// A pidfd of it.
    pub(crate) fn handle(&self) -> io::Result<OwnedFd> {
        self.pidfd.get_ref().as_fd().try_clone_to_owned()
    }

    /// Sends a signal. A process that has ended is no error.
    pub(crate) fn signal(&self, signal: i32) {
        if let Err(error) = calls::pidfd_signal(self.pidfd.get_ref().as_fd(), signal) {
            tracing::warn!(signal, %error, "could not signal a process");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.watch.abort();
    }
}
