//! What a forked child has of the memory and the doorbells that its parent shares: a private copy of
//! the one, and dead ones of the other.
//!
//! A fork gives a child every mapping and every descriptor of its parent. Whatever runs there next (a
//! logger, a destructor, an exit handler, an event loop) would write into rings that the parent still
//! uses. So the child's mappings become private, at the same addresses, and its doorbells are replaced,
//! before any of its own code runs: nothing that it does with them is seen elsewhere. What it reads
//! is what the parent had, so that arrays in shared memory can still be read.
//!
//! [`generation`](super::generation) tells those who want to say so that they live in another process than
//! before.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use nix::libc;

use super::generation;

/// A bit for each signal that children begin with the default action of.
static DEFAULTED: AtomicU64 = AtomicU64::new(0);
static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    maps: BTreeMap::new(),
    bells: BTreeMap::new(),
});
static HANDLERS: Once = Once::new();

thread_local! {
    /// What the thread that forks holds over the fork: the registry, and its own signal mask.
    static HELD: Cell<Option<Held>> = const { Cell::new(None) };
}

type Held = (MutexGuard<'static, Registry>, libc::sigset_t);

#[derive(Debug)]
struct Registry {
    /// Mapped segments by address: their length and their file.
    maps: BTreeMap<usize, (usize, RawFd)>,
    /// Descriptors that wake, with how many of their kind are registered under the number.
    bells: BTreeMap<RawFd, u32>,
}

/// Has children of this process begin with the default action of this signal, whatever it does here.
pub fn default_in_children(signal: i32) {
    watch();
    if let Ok(bit) = u32::try_from(signal)
        && bit < 64
    {
        DEFAULTED.fetch_or(1 << bit, Relaxed);
    }
}

fn lock() -> MutexGuard<'static, Registry> {
    // Each change is one call, so a panic leaves nothing half-changed.
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A mapping that a forked child gets a private copy of, until this is dropped.
#[derive(Debug)]
pub(crate) struct SharedMap(usize);

impl SharedMap {
    /// Registers `len` bytes at `address`, which map all of `file`.
    pub(crate) fn new(address: usize, len: usize, file: BorrowedFd<'_>) -> Self {
        watch();
        lock().maps.insert(address, (len, file.as_raw_fd()));
        SharedMap(address)
    }
}

impl Drop for SharedMap {
    fn drop(&mut self) {
        lock().maps.remove(&self.0);
    }
}

/// A descriptor that a forked child gets a dead one in place of, until this is dropped. It is to be
/// dropped before the descriptor is closed.
#[derive(Debug)]
pub struct SharedFd(RawFd);

impl SharedFd {
    /// Registers an open descriptor.
    pub fn new(fd: BorrowedFd<'_>) -> Self {
        watch();
        let fd = fd.as_raw_fd();
        *lock().bells.entry(fd).or_default() += 1;
        SharedFd(fd)
    }
}

impl Drop for SharedFd {
    fn drop(&mut self) {
        let mut registry = lock();
        if let Some(count) = registry.bells.get_mut(&self.0) {
            *count -= 1;
            if *count == 0 {
                registry.bells.remove(&self.0);
            }
        }
    }
}

/// Has forks of this process watched, and counted by [`generation`](super::generation()).
pub(crate) fn watch() {
    HANDLERS.call_once(|| {
        // SAFETY: the handlers are functions of this library, which is never unloaded: a Python
        // extension stays for as long as its process, and so does a program.
        unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
    });
}

/// Before a fork, on the thread that forks: nobody changes the registry meanwhile, and no signal comes
/// to the child before it has the default action for it.
unsafe extern "C" fn before() {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut mask = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both sets are filled by the calls before they are read.
    let mask = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), mask.as_mut_ptr());
        mask.assume_init()
    };
    let held = (lock(), mask);
    // A thread that forks as it ends has nothing to hold it in: the child does what it can.
    if HELD.try_with(|place| place.set(Some(held))).is_err() {
        restore(&mask);
    }
}

unsafe extern "C" fn in_parent() {
    if let Ok(Some((registry, mask))) = HELD.try_with(Cell::take) {
        drop(registry);
        restore(&mask);
    }
}

unsafe extern "C" fn in_child() {
    generation::forked();
    let held = HELD.try_with(Cell::take).ok().flatten();
    let (registry, mask) = held.unzip();
    // Unlocked: what another thread of the parent held would be locked here for good.
    let registry = registry.or_else(|| REGISTRY.try_lock().ok());
    if let Some(mut registry) = registry {
        registry.abandon();
    }
    let signals = DEFAULTED.swap(0, Relaxed);
    for signal in (1..64).filter(|signal| signals >> signal & 1 == 1) {
        // SAFETY: the default action runs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    if let Some(mask) = mask {
        restore(&mask);
    }
}

fn restore(mask: &libc::sigset_t) {
    // SAFETY: the mask is one that this thread had.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()) };
}

impl Registry {
    /// In a forked child: makes everything its own. System calls alone; it allocates nothing.
    fn abandon(&mut self) {
        for (&address, &(len, file)) in &self.maps {
            let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_NORESERVE;
            let both = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: the range is one mapping of this process, registered for as long as it is
            // mapped. It is replaced in one step by one of the same length, with the same content;
            // what is read through it is not trusted in any case.
            let copy = unsafe { libc::mmap(address as *mut _, len, both, flags, file, 0) };
            if copy == libc::MAP_FAILED {
                // The system counts address space. What must not be written is better not there.
                // SAFETY: as above; a touch ends this process, and nobody else's stream.
                unsafe {
                    let flags = flags | libc::MAP_ANONYMOUS;
                    libc::mmap(address as *mut _, len, libc::PROT_NONE, flags, -1, 0);
                }
            }
        }
        // SAFETY: the call takes two integers.
        let dead = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        let files = self.maps.values().map(|&(_, file)| file);
        for fd in self.bells.keys().copied().chain(files) {
            // SAFETY: `fd` is registered, so it is open, and stays owned by its owner; what it refers
            // to is replaced in one step, by a descriptor that can be read and written like it.
            unsafe {
                match dead {
                    0.. => libc::dup3(dead, fd, libc::O_CLOEXEC),
                    // Out of descriptors. A closed one is worse than none: close nothing twice.
                    _ => -1,
                };
            }
        }
        if dead >= 0 {
            // SAFETY: it was opened above, and nobody else owns it.
            unsafe { libc::close(dead) };
        }
        self.maps.clear();
        self.bells.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    use crate::{Bells, Doorbell, Limits, Link, LinkSpec, MemfdSegment, Segment, Side, initialise};

    /// Runs `work` in a forked child; its exit code.
    fn in_child(work: impl FnOnce() -> i32) -> i32 {
        // SAFETY: the child makes system calls, and touches memory that no other thread of the parent
        // uses.
        match unsafe { fork() }.expect("a child") {
            // SAFETY: the child ends here, without the parent's exit handlers.
            ForkResult::Child => unsafe { nix::libc::_exit(work()) },
            ForkResult::Parent { child } => match waitpid(child, None).expect("its end") {
                WaitStatus::Exited(_, code) => code,
                other => panic!("{other:?}"),
            },
        }
    }

    #[test]
    fn what_a_child_writes_is_its_own() {
        let segment = MemfdSegment::create(1 << 20).expect("a segment");
        segment.commit(0, 4096).expect("a page");
        // SAFETY: the page is mapped, and nobody else uses it.
        let byte = || unsafe { &mut *segment.base().as_ptr() };
        *byte() = 1;
        let code = in_child(|| {
            let seen = *byte();
            *byte() = 7;
            // A hole in the child's segment is none in its parent's.
            let _ = segment.discard(0, 4096);
            seen.into()
        });
        assert_eq!((code, *byte()), (1, 1));
        assert_eq!(super::generation(), 0, "the parent is who it was");
    }

    #[test]
    fn a_child_rings_nobody() {
        let bell = Doorbell::create().expect("a doorbell");
        let theirs = bell.try_clone().expect("a copy");
        let code = in_child(|| {
            theirs.ring();
            i32::from(bell.drain())
        });
        assert_eq!(code, 1, "both are the child's own");
        assert!(!bell.drain(), "and neither is the parent's");
    }

    #[test]
    fn a_whole_link_is_left_alone() {
        let spec = LinkSpec {
            slots: 4,
            heap_bytes: 1 << 20,
            ..LinkSpec::default()
        };
        let segment = Arc::new(MemfdSegment::create(spec.segment_len()).expect("a segment"));
        initialise(&*segment, &spec).expect("a layout");
        let (a, b) = (Doorbell::create().unwrap(), Doorbell::create().unwrap());
        let bells = Bells {
            mine: a.try_clone().unwrap(),
            theirs: b.try_clone().unwrap(),
        };
        let client = Link::attach(segment.clone(), Side::Client, bells).unwrap();
        let bells = Bells { mine: b, theirs: a };
        let worker = Link::attach(segment, Side::Worker, bells).unwrap();
        let limits = Limits {
            events: 16,
            bytes: 1 << 16,
        };
        let (mut events, _results) = client.open_slot(1, limits).unwrap();
        let (_outbox, mut inbox) = worker.open_slot(1, limits).unwrap();
        let mut send = |byte: u8| {
            let mut room = events.reserve(1, true).unwrap();
            room[0] = byte;
            room.commit(2, 1);
            events.publish();
            client.notify(1);
        };
        send(1);
        let code = in_child(|| {
            for byte in 10..14 {
                send(byte);
            }
            client.leave();
            i32::from(super::generation() == 1)
        });
        assert_eq!(code, 1);
        assert_eq!(inbox.peek().unwrap().unwrap().payload, [1]);
        inbox.release();
        assert!(inbox.peek().unwrap().is_none(), "nothing of the child's");
        send(2);
        assert_eq!(inbox.peek().unwrap().unwrap().payload, [2]);
    }
}
