//! Which descriptors of this process belong to its embedded supervisor, so that a forked child can
//! let go of them. It never opens one, and never touches a descriptor that was not registered.
//!
//! Without this a forked child would keep the other ends of the parent's sockets open, and the
//! death of the parent's supervisor would go unseen on them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

/// What a forked child does with its copy of a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InChild {
    /// Nothing in the child can reach its owner (the supervisor's thread does not exist there).
    Close,
    /// Its owner may still be dropped in the child: put a dead socket in its place, so that the
    /// number stays valid and the conversation is seen as ended.
    Replace,
}

type Registry = BTreeMap<RawFd, InChild>;

static REGISTRY: Mutex<Registry> = Mutex::new(Registry::new());

thread_local! {
    /// The registry, for the thread that holds it over a fork.
    static HELD: RefCell<Option<MutexGuard<'static, Registry>>> = const { RefCell::new(None) };
}

fn lock() -> MutexGuard<'static, Registry> {
    // A panic cannot leave the map half-changed in a way that matters: each change is one call.
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Works on the registry. `work` must not register or drop a tracked descriptor itself.
fn with<R>(work: impl FnOnce(&mut Registry) -> R) -> R {
    // The thread that forks may drop a client meanwhile, and must not wait for itself.
    match HELD.try_with(RefCell::take).ok().flatten() {
        Some(mut held) => {
            let outcome = work(&mut held);
            HELD.set(Some(held));
            outcome
        }
        None => work(&mut lock()),
    }
}

/// Keeps the registry and the open descriptors in step over a fork by this thread.
pub(crate) fn hold() {
    if HELD.with_borrow(Option::is_none) {
        HELD.set(Some(lock()));
    }
}

/// Ends what [`hold`] began.
pub(crate) fn release() {
    drop(HELD.take());
}

/// In a forked child: lets go of every registered descriptor of the parent. Without [`hold`] before
/// the fork this may be impossible, and is not done then.
pub(crate) fn abandon_parents() {
    let held = HELD.take().or_else(|| match REGISTRY.try_lock() {
        Ok(registry) => Some(registry),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    });
    if let Some(mut registry) = held {
        abandon(&mut registry);
    }
}

fn abandon(registry: &mut Registry) {
    let dead = socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
    )
    .map(|(dead, _closed_here)| dead);
    for (fd, in_child) in std::mem::take(registry) {
        match (in_child, &dead) {
            (InChild::Close, _) => {
                // SAFETY: `fd` is registered, so it is open and its owner is a value of the
                // supervisor's thread, which does not exist in this process and will never close
                // it a second time.
                unsafe { libc::close(fd) };
            }
            (InChild::Replace, Ok(dead)) => {
                // SAFETY: `fd` is registered, so it is open and stays owned by its owner; what it
                // refers to is replaced in one step, which its owner is made to expect.
                unsafe { libc::dup3(dead.as_raw_fd(), fd, libc::O_CLOEXEC) };
            }
            // Out of descriptors: the copy stays open. The pidfds still tell of the parent's death.
            (InChild::Replace, Err(_)) => {}
        }
    }
}

/// An owned descriptor that a forked child lets go of.
#[derive(Debug)]
pub(crate) struct TrackedFd(ManuallyDrop<OwnedFd>);

impl TrackedFd {
    pub(crate) fn new(fd: OwnedFd, in_child: InChild) -> Self {
        with(|registry| registry.insert(fd.as_raw_fd(), in_child));
        Self(ManuallyDrop::new(fd))
    }
}

impl Drop for TrackedFd {
    fn drop(&mut self) {
        // Closed under the lock: a fork in between would find a foreign descriptor registered.
        with(|registry| {
            registry.remove(&self.0.as_raw_fd());
            // SAFETY: this is the only place that drops the value, and it is not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.0) };
        });
    }
}

impl AsFd for TrackedFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for TrackedFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A value that owns descriptors of its own, which a forked child closes.
#[derive(Debug)]
pub(crate) struct Tracked<T> {
    value: ManuallyDrop<T>,
    fds: Vec<RawFd>,
}

impl<T> Tracked<T> {
    /// `fds` are descriptors that `value` owns, and closes when it is dropped.
    pub(crate) fn new(value: T, fds: Vec<RawFd>) -> Self {
        with(|registry| registry.extend(fds.iter().map(|fd| (*fd, InChild::Close))));
        Self {
            value: ManuallyDrop::new(value),
            fds,
        }
    }
}

impl<T> std::ops::Deref for Tracked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Drop for Tracked<T> {
    fn drop(&mut self) {
        with(|registry| {
            for fd in &self.fds {
                registry.remove(fd);
            }
            // SAFETY: this is the only place that drops the value, and it is not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.value) };
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(
            AddressFamily::Unix,
            SockType::Stream,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .expect("a socketpair")
    }

    #[test]
    fn a_dropped_descriptor_is_closed_and_forgotten() {
        let (one, other) = pair();
        let number = one.as_raw_fd();
        let tracked = TrackedFd::new(one, InChild::Close);
        assert_eq!(lock().get(&number), Some(&InChild::Close));
        drop(tracked);
        assert!(!lock().contains_key(&number));
        assert!(
            super::super::calls::is_readable(other.as_fd()),
            "the other end sees the close"
        );
    }

    #[test]
    fn the_thread_that_holds_the_registry_does_not_wait_for_itself() {
        let (one, other) = pair();
        let tracked = TrackedFd::new(one, InChild::Close);
        hold();
        drop(tracked);
        let again = TrackedFd::new(other, InChild::Close);
        release();
        drop(again);
    }

    #[test]
    fn a_replaced_descriptor_stays_valid_and_dead() {
        let (one, _other) = pair();
        let fd = one.as_raw_fd();
        // A registry of its own: the real one belongs to the tests that run beside this one.
        abandon(&mut Registry::from([(fd, InChild::Replace)]));
        let mut byte = [0];
        assert_eq!(
            nix::unistd::read(one.as_fd(), &mut byte),
            Ok(0),
            "the end is seen at once"
        );
    }
}
