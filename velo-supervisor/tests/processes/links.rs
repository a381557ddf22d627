//! Getting links: from whom, how many, how fast, and what becomes of them when nobody needs them.

use std::time::{Duration, Instant};

use velo_supervisor::{ClientEvent, EmbeddedOptions, Refusal, SupervisorError, embedded};

use crate::harness::*;

pub const TESTS: &[crate::Test] = &[
    ("a_link_carries_messages", a_link_carries_messages),
    ("links_spread_over_workers_and_stop_at_the_limit", spread),
    ("a_second_client_shares_the_workers", sharing),
    ("a_released_link_makes_room_for_another", released),
    ("a_warm_worker_is_a_fork_of_the_zygote", warm),
    ("a_zygote_that_is_expected_forks_the_first_worker", expected),
    ("a_zygote_that_is_not_needed_leaves", not_needed),
    (
        "a_zygote_that_cannot_be_expected_is_told_of_later",
        expected_in_vain,
    ),
    ("an_idle_pool_scales_to_zero_and_back", scale_to_zero),
    ("a_link_with_open_streams_is_not_retired", resident),
    ("the_minimum_of_workers_is_kept", minimum),
    ("a_zygote_with_threads_is_noticed", threads),
    ("a_missing_command_is_an_error", no_command),
];

fn a_link_carries_messages() {
    let mut peer = Peer::connect(&options());
    let mut linked = peer.link(2);
    for size in [0, 1, 64, 1000, 40_000] {
        linked.echo(&vec![7; size]);
    }
    assert!(is_alive(linked.worker.pid));
    embedded::shutdown(PATIENCE);
}

fn expected() {
    embedded::expect(&options()).expect("a supervisor");
    let zygote = wait_for("a zygote", || embedded::status()?.zygote);
    assert!(status().workers.is_empty());
    // There is one already: of no effect.
    embedded::expect(&options()).expect("a supervisor");
    let mut peer = Peer::connect(&options());
    peer.link(1).echo(b"first");
    assert_eq!(status().zygote, Some(zygote));
    embedded::shutdown(PATIENCE);
    assert_eq!(children(), [] as [i32; 0]);
}

fn not_needed() {
    let options = EmbeddedOptions {
        idle_timeout: Duration::from_millis(50),
        ..options()
    };
    // It may have left before it is seen.
    let zygote = wait_for("a zygote", || {
        embedded::expect(&options).expect("a supervisor");
        embedded::status()?.zygote
    });
    wait_for("it to leave", || (!is_alive(zygote)).then_some(()));
    wait_for("it to be collected", || children().is_empty().then_some(()));
    // A worker that is needed after all has another one.
    let mut peer = Peer::connect(&options);
    peer.link(1).echo(b"first");
    embedded::shutdown(PATIENCE);
}

fn expected_in_vain() {
    let nowhere = || EmbeddedOptions::new(["/nonexistent/python"]);
    assert!(embedded::expect(&EmbeddedOptions::new([""; 0])).is_err());
    embedded::expect(&nowhere()).expect("nobody waits for it");
    let mut peer = Peer::connect(&nowhere());
    let request = peer.acquire(1);
    let Refusal::Failed(why) = peer.refusal(request) else {
        panic!("it was refused for another reason");
    };
    assert!(why.contains("/nonexistent/python"), "{why}");
    embedded::shutdown(PATIENCE);
}

fn spread() {
    let mut peer = Peer::connect(&options());
    // All at once: the pool must not wait for one to start before it thinks of the next.
    let requests = [peer.acquire(2), peer.acquire(2), peer.acquire(2)];
    assert_eq!(peer.refusal(requests[2]), Refusal::AtLimit);
    let (mut one, mut two) = (peer.answer(requests[0]), peer.answer(requests[1]));
    assert_ne!(one.worker, two.worker);
    one.echo(b"one");
    two.echo(b"two");
    embedded::shutdown(PATIENCE);
}

fn sharing() {
    let mut first = Peer::connect(&options());
    let (mut one, two) = (first.link(2), first.link(2));
    assert!(one.end.enter(), "a stream on the first worker");
    let mut second = Peer::connect(&options());
    let mut shared = second.link(2);
    assert_eq!(shared.worker, two.worker, "the least loaded");
    shared.echo(b"from the second client");
    one.echo(b"from the first client");
    let other = second.link(2);
    assert_eq!(other.worker, one.worker);
    drop(second);
    wait_for("the second client's links to go", || {
        let status = embedded::status()?;
        status
            .workers
            .iter()
            .all(|worker| worker.links == 1)
            .then_some(())
    });
    one.echo(b"the first goes on");
    embedded::shutdown(PATIENCE);
}

fn released() {
    let mut peer = Peer::connect(&options());
    let first = peer.link(1);
    let refused = peer.acquire(1);
    assert_eq!(peer.refusal(refused), Refusal::AtLimit);
    peer.client.release(first.link).expect("a supervisor");
    let mut second = peer.link(1);
    assert_eq!(second.worker, first.worker, "the worker is used again");
    assert_ne!(second.link, first.link);
    second.echo(b"a new link");
    embedded::shutdown(PATIENCE);
}

fn warm() {
    let mut peer = Peer::connect(&options());
    let mut pids = vec![peer.link(64).worker.pid];
    let zygote = status().zygote;
    let mut times = Vec::new();
    for _ in 0..20 {
        let start = Instant::now();
        let mut linked = peer.link(64);
        let answered = start.elapsed();
        linked.echo(b"first");
        times.push((answered, start.elapsed()));
        assert!(!pids.contains(&linked.worker.pid), "a worker of its own");
        // A fork of the zygote that is there, and no program that had to start.
        assert_eq!(parent(linked.worker.pid), zygote);
        pids.push(linked.worker.pid);
    }
    times.sort();
    let (answered, echoed) = times[times.len() / 2];
    println!("     a new worker: link after {answered:?}, first echo after {echoed:?} (median)");
    embedded::shutdown(PATIENCE);
}

/// The process that has forked this one.
fn parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(1)?.parse().ok()
}

fn scale_to_zero() {
    let mut options = options();
    options.idle_timeout = Duration::from_millis(40);
    let mut peer = Peer::connect(&options);
    let (one, two) = (peer.link(2), peer.link(2));
    for linked in [&one, &two] {
        peer.wait("an idle link to be retired", |event| {
            matches!(event, ClientEvent::LinkRetired { link } if *link == linked.link).then_some(())
        });
        assert!(!linked.end.enter(), "no stream opens on a retired link");
    }
    wait_for("idle workers to go", || {
        (embedded::status()?.workers.is_empty()).then_some(())
    });
    wait_for("their processes to end", || {
        (!is_alive(one.worker.pid) && !is_alive(two.worker.pid)).then_some(())
    });
    wait_for("the zygote to go", || {
        embedded::status()?.zygote.is_none().then_some(())
    });
    assert_eq!(children(), [] as [i32; 0]);
    peer.link_in_use(2).echo(b"back again");
    embedded::shutdown(PATIENCE);
}

fn resident() {
    let mut options = options();
    options.idle_timeout = Duration::from_millis(20);
    let mut peer = Peer::connect(&options);
    let (mut busy, idle) = (peer.link_in_use(2), peer.link(2));
    peer.wait("the idle link to be retired", |event| {
        matches!(event, ClientEvent::LinkRetired { link } if *link == idle.link).then_some(())
    });
    wait_for("the idle worker to go", || {
        (embedded::status()?.workers.len() == 1).then_some(())
    });
    busy.echo(b"still here");
    busy.end.leave();
    peer.wait("the other link to be retired", |event| {
        matches!(event, ClientEvent::LinkRetired { link } if *link == busy.link).then_some(())
    });
    embedded::shutdown(PATIENCE);
}

fn minimum() {
    let mut options = options();
    options.min_workers = 1;
    options.idle_timeout = Duration::from_millis(20);
    let mut peer = Peer::connect(&options);
    let warm = wait_for("a worker without a request", || {
        embedded::status()?
            .workers
            .iter()
            .find(|worker| worker.pid != 0)
            .map(|worker| worker.pid)
    });
    let (one, _two) = (peer.link(2), peer.link(2));
    assert_eq!(one.worker.pid, warm);
    wait_for("the pool to fall back to its minimum", || {
        let workers = embedded::status()?.workers;
        (workers.len() == 1 && workers[0].links == 0).then_some(())
    });
    embedded::shutdown(PATIENCE);
}

fn threads() {
    for (mode, expected) in [("", 1), ("threaded", 2)] {
        let mut peer = Peer::connect(&in_mode(mode));
        peer.link(1);
        assert_eq!(status().zygote_threads, Some(expected));
        embedded::shutdown(PATIENCE);
    }
}

fn no_command() {
    let mut options = options();
    options.zygote_command.clear();
    assert!(matches!(
        embedded::connect(&options),
        Err(SupervisorError::NoCommand)
    ));
    options.zygote_command = vec!["/no/such/velo-zygote".into()];
    let mut peer = Peer::connect(&options);
    let request = peer.acquire(1);
    let reason = peer.refusal(request).to_string();
    assert!(reason.contains("/no/such/velo-zygote"), "{reason}");
    assert!(!reason.contains("times"), "nothing to try again: {reason}");
    assert!(status().workers.is_empty());
    embedded::shutdown(PATIENCE);
}
