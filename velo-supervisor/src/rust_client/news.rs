//! The one descriptor that an event loop watches for a connection.
//!
//! A look at the doorbells silences them for all streams. So a stream that was told something while
//! another was served is remembered, and keeps the descriptor readable until it is served itself.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use velo_shm::Doorbell;

/// Readable when a doorbell rings, or when a stream has news.
#[derive(Debug)]
pub(super) struct News {
    outer: Epoll,
    bell: Doorbell,
    rung: AtomicBool,
    /// The descriptor was handed out.
    watched: AtomicBool,
}

impl News {
    pub(super) fn beside(bells: &Epoll) -> io::Result<Self> {
        let outer = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let bell = Doorbell::create()?;
        for fd in [bells.0.as_fd(), bell.as_fd()] {
            outer.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        }
        Ok(Self {
            outer,
            bell,
            rung: AtomicBool::new(false),
            watched: AtomicBool::new(false),
        })
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.watched.store(true, Relaxed);
        self.outer.0.as_fd()
    }

    /// There are streams with news, or none. Under the lock of the connection.
    pub(super) fn show(&self, any: bool) {
        let rings = any && self.watched.load(Relaxed);
        if self.rung.load(Relaxed) == rings {
            return;
        }
        self.rung.store(rings, Relaxed);
        if rings {
            self.bell.ring();
        } else {
            self.bell.drain();
        }
    }
}
