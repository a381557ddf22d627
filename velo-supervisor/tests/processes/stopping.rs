//! Ends on purpose: of workers that do and do not listen, and of the whole supervisor.

use std::time::Duration;

use velo_supervisor::{ClientEvent, Exit, embedded};

use crate::harness::*;

pub const TESTS: &[crate::Test] = &[
    ("a_shutdown_leaves_nothing", shutdown_leaves_nothing),
    (
        "a_shutdown_is_bounded_when_workers_do_not_listen",
        shutdown_is_bounded,
    ),
    ("a_shutdown_without_a_bound_kills", shutdown_at_once),
    ("a_worker_that_ignores_signals_is_killed", deaf_worker),
    ("a_shutdown_of_nothing_is_fine", shutdown_of_nothing),
    ("an_idle_supervisor_uses_no_cpu", idle_costs_nothing),
];

fn shutdown_leaves_nothing() {
    let before = descriptors();
    for round in 0..3 {
        let mut peer = Peer::connect(&options());
        let (mut one, mut two) = (peer.link(2), peer.link(2));
        one.echo(b"one");
        two.echo(b"two");
        let all = processes();
        // A refused request and a dead worker must leave nothing behind either.
        let refused = peer.acquire(2);
        peer.refusal(refused);
        kill(one.worker.pid);
        peer.death(one.link);
        embedded::shutdown(PATIENCE);
        peer.lost();
        assert!(embedded::status().is_none());
        assert!(
            all.values().flatten().all(|pid| !is_alive(*pid)),
            "round {round}"
        );
        assert_eq!(children(), [] as [i32; 0], "round {round}");
        drop((peer, one, two));
        assert_eq!(descriptors(), before, "round {round}");
    }
}

fn shutdown_is_bounded() {
    let mut options = options();
    // Only the bound of the shutdown itself is shorter than the patience of the test.
    options.drain_bound = 10 * PATIENCE;
    options.terminate_bound = 10 * PATIENCE;
    let mut peer = Peer::connect(&options);
    let (mut one, mut two) = (peer.link(2), peer.link(2));
    one.echo(b"deaf");
    two.echo(b"deaf");
    embedded::shutdown(Duration::from_millis(500));
    wait_for("the workers to be killed", || {
        (!is_alive(one.worker.pid) && !is_alive(two.worker.pid)).then_some(())
    });
    no_children();
}

fn shutdown_at_once() {
    let mut peer = Peer::connect(&options());
    let mut linked = peer.link(1);
    linked.echo(b"deaf");
    embedded::shutdown(Duration::ZERO);
    wait_for("the worker to be killed", || {
        (!is_alive(linked.worker.pid)).then_some(())
    });
    no_children();
}

fn deaf_worker() {
    let mut options = options();
    options.idle_timeout = Duration::from_millis(20);
    options.drain_bound = Duration::from_millis(50);
    options.terminate_bound = Duration::from_millis(50);
    let mut peer = Peer::connect(&options);
    // In use, so that the link stays until it is released.
    let mut linked = peer.link_in_use(1);
    linked.echo(b"deaf");
    peer.client.release(linked.link).expect("a supervisor");
    wait_for("a deaf worker to be killed", || {
        (!is_alive(linked.worker.pid)).then_some(())
    });
    wait_for("the pool to forget it", || {
        embedded::status()?.workers.is_empty().then_some(())
    });
    peer.events
        .extend(peer.client.poll().expect("a supervisor"));
    let told = |event: &ClientEvent| matches!(event, ClientEvent::WorkerDied { .. });
    assert!(
        !peer.events.iter().any(told),
        "its link was already given back"
    );
    // A stop on purpose is no failure: the next worker comes at once.
    let mut next = peer.link_in_use(1);
    next.echo(b"next");
    kill(next.worker.pid);
    assert_eq!(peer.death(next.link).1, Exit::Signal(9));
    embedded::shutdown(PATIENCE);
}

fn shutdown_of_nothing() {
    embedded::shutdown(PATIENCE);
    let _peer = Peer::connect(&options());
    embedded::shutdown(PATIENCE);
    embedded::shutdown(PATIENCE);
    assert!(embedded::status().is_none());
}

fn idle_costs_nothing() {
    let mut peer = Peer::connect(&options());
    let mut linked = peer.link(1);
    linked.echo(b"warm");
    let thread = wait_for("the supervisor's thread", || {
        std::fs::read_dir("/proc/self/task")
            .ok()?
            .flatten()
            .map(|task| task.path())
            .find(|path| {
                let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
                name.trim() == "velo-supervisor"
            })
    });
    let switches = || -> u64 {
        let status = std::fs::read_to_string(thread.join("status")).expect("the thread's status");
        // The other switches are those of a machine that has more to run than this thread.
        let slept = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))
            .expect("a count");
        slept.trim().parse().expect("a number")
    };
    // What the test has just asked for may take any time. A thread that does something periodically
    // never falls silent: the default options look at links every 2.5 s.
    wait_for("the supervisor to sleep", || {
        let before = switches();
        std::thread::sleep(Duration::from_millis(300));
        (switches() - before <= 2).then_some(())
    });
    embedded::shutdown(PATIENCE);
}
