//! A client that forks: the child lets go of its parent's supervisor and has its own, and the parent
//! notices nothing.

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use velo_supervisor::embedded;

use crate::harness::*;

pub const TESTS: &[crate::Test] = &[
    ("a_forked_child_has_its_own_supervisor", child_of_its_own),
    ("a_fork_of_a_fork_works_too", fork_of_a_fork),
    ("forks_race_with_deaths_and_connections", forks_under_load),
];

/// Forks as a host language would, and gives the child's exit code.
fn in_child(child: impl FnOnce()) -> nix::unistd::Pid {
    embedded::before_fork();
    // SAFETY: the other threads are the supervisor's, whose locks are held over the fork.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Parent { child } => {
            embedded::after_fork_parent();
            child
        }
        ForkResult::Child => {
            embedded::after_fork_child();
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child));
            // SAFETY: the test's own cleaning up belongs to the parent.
            unsafe { nix::libc::_exit(i32::from(outcome.is_err())) }
        }
    }
}

fn expect_success(child: nix::unistd::Pid) {
    assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
}

fn child_of_its_own() {
    let mut peer = Peer::connect(&options());
    let mut linked = peer.link(1);
    linked.echo(b"before");
    let inherited: Vec<_> = descriptors();
    let sockets = |all: &[String]| all.iter().filter(|name| name.starts_with("socket")).count();
    assert!(
        sockets(&inherited) >= 4,
        "client, supervisor, zygote, worker: {inherited:?}"
    );
    let child = in_child(|| {
        assert!(embedded::status().is_none());
        let left = descriptors();
        assert_eq!(sockets(&left), 1, "the dead client's: {left:?}");
        assert!(!left.iter().any(|name| name.contains("pidfd")), "{left:?}");
        peer.lost();
        let mut mine = Peer::connect(&options());
        let mut link = mine.link(1);
        assert_ne!(link.worker.pid, linked.worker.pid);
        link.echo(b"in the child");
        embedded::shutdown(PATIENCE);
        assert!(!is_alive(link.worker.pid));
    });
    expect_success(child);
    linked.echo(b"after");
    let mut second = Peer::connect(&options());
    assert_eq!(
        second.link(1).worker,
        linked.worker,
        "the parent's supervisor is the same"
    );
    assert_eq!(peer.client.poll().expect("a supervisor").len(), 0);
    embedded::shutdown(PATIENCE);
}

fn fork_of_a_fork() {
    let mut peer = Peer::connect(&options());
    peer.link(1).echo(b"first");
    let child = in_child(|| {
        let grandchild = in_child(|| {
            let mut peer = Peer::connect(&options());
            peer.link(1).echo(b"third");
            embedded::shutdown(PATIENCE);
        });
        let mut peer = Peer::connect(&options());
        peer.link(1).echo(b"second");
        expect_success(grandchild);
        embedded::shutdown(PATIENCE);
    });
    expect_success(child);
    peer.link(2).echo(b"first again");
    embedded::shutdown(PATIENCE);
}

fn forks_under_load() {
    let mut peer = Peer::connect(&options());
    let doomed = peer.link(1);
    for round in 0..20 {
        let request = peer.acquire(64);
        // The supervisor opens and closes descriptors meanwhile.
        let child = in_child(|| {
            let before = descriptors();
            drop(Peer::connect(&options()));
            embedded::shutdown(PATIENCE);
            assert_eq!(descriptors(), before);
        });
        if round == 10 {
            kill(doomed.worker.pid);
            peer.death(doomed.link);
        }
        let mut linked = peer.answer(request);
        linked.echo(b"on");
        if round % 2 == 0 {
            peer.client.release(linked.link).expect("a supervisor");
        }
        expect_success(child);
    }
    embedded::shutdown(PATIENCE);
}
