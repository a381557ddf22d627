//! What every kind of doorbell promises.
#![cfg(not(loom))]

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use velo_shm::Doorbell;

/// Both kinds, each with the handle that another process would have.
fn pairs() -> Vec<(Doorbell, Doorbell)> {
    let one = Doorbell::create().unwrap();
    let same = Doorbell::from_fd(one.as_fd().try_clone_to_owned().unwrap()).unwrap();
    let two = Doorbell::create_pipe().unwrap();
    let [reader, writer] =
        [two.as_fd(), two.ringing_fd()].map(|fd| fd.try_clone_to_owned().unwrap());
    let piped = Doorbell::from_pipe(reader, writer).unwrap();
    vec![(one, same), (two, piped)]
}

const AT_ONCE: Option<Duration> = Some(Duration::ZERO);

#[test]
fn it_is_silent_until_it_is_rung_and_again_once_drained() {
    for (mine, theirs) in pairs() {
        assert!(!mine.wait(AT_ONCE).unwrap());
        assert!(!mine.drain());
        theirs.ring();
        assert!(mine.wait(None).unwrap());
        assert!(mine.wait(AT_ONCE).unwrap(), "waiting leaves it ringing");
        assert!(mine.drain());
        assert!(!mine.drain());
        assert!(!mine.wait(AT_ONCE).unwrap());
    }
}

#[test]
fn many_rings_are_one_and_none_blocks() {
    for (mine, theirs) in pairs() {
        for _ in 0..20_000 {
            theirs.ring();
        }
        assert!(mine.drain());
        assert!(!mine.drain());
    }
}

#[test]
fn it_wakes_a_thread_that_waits() {
    for (mine, theirs) in pairs() {
        let waiter = std::thread::spawn(move || mine.wait(Some(Duration::from_secs(20))).unwrap());
        theirs.ring();
        assert!(waiter.join().unwrap());
    }
}

#[test]
fn a_wait_ends_by_itself() {
    for (mine, _theirs) in pairs() {
        assert!(!mine.wait(Some(Duration::from_micros(1500))).unwrap());
    }
}

#[test]
fn its_descriptors_are_not_inherited_and_never_block() {
    for (mine, _theirs) in pairs() {
        for fd in [mine.as_fd(), mine.ringing_fd()] {
            let flags = FdFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFD).unwrap());
            assert!(flags.contains(FdFlag::FD_CLOEXEC));
            let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).unwrap());
            assert!(flags.contains(OFlag::O_NONBLOCK));
        }
    }
}

#[test]
fn a_blocking_descriptor_from_elsewhere_is_made_to_not_block() {
    let (reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
    let mine = Doorbell::from_fd(OwnedFd::from(reader)).unwrap();
    assert!(!mine.drain());
    Doorbell::from_fd(OwnedFd::from(writer)).unwrap().ring();
    assert!(mine.wait(None).unwrap() && mine.drain());
}
