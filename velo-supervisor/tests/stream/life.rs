//! The life of a stream.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use velo_supervisor::stream::{Connection, StreamError, StreamOptions};

use crate::daemon::{Daemon, PATIENCE, open, options, wait_for};

#[test]
fn its_own_state_and_the_end() {
    let Some(daemon) = Daemon::start(&[]) else {
        return;
    };
    let velo = daemon.connect();
    let (mut one, mut other) = (open(&velo, "totals"), open(&velo, "totals"));
    assert_eq!(one.name(), "totals");
    for (event, total) in [(1, 1), (2, 3), (3, 6)] {
        one.send(&event).expect("send");
        other.send(&(10 * event)).expect("send");
        assert_eq!(one.recv().expect("recv"), Some(total));
        assert_eq!(other.recv().expect("recv"), Some(10 * total));
    }
    one.end().expect("end");
    one.end().expect("a second time changes nothing");
    assert!(matches!(one.send(&1), Err(StreamError::Ended)));
    assert_eq!(one.recv().expect("recv"), Some(-1));
    assert_eq!(one.recv::<i64>().expect("recv"), None);
    assert_eq!(one.recv::<i64>().expect("recv"), None);
    // The slot is used again.
    for _ in 0..50 {
        let mut stream = open(&velo, "plain");
        stream.send(&1).expect("send");
        stream.end().expect("end");
        assert_eq!(stream.recv().expect("recv"), Some(2));
        assert_eq!(stream.recv::<i64>().expect("recv"), None);
    }
    other.send(&1).expect("send");
    assert_eq!(other.recv().expect("recv"), Some(61));
}

#[test]
fn a_function_that_returns_takes_no_more() {
    let Some(daemon) = Daemon::start(&[]) else {
        return;
    };
    let velo = daemon.connect();
    let mut stream = open(&velo, "returns_at_once");
    wait_for("the end", || {
        matches!(stream.send(&1), Err(StreamError::Ended)).then_some(())
    });
    assert_eq!(stream.recv::<i64>().expect("recv"), None);
    let mut stream = open(&velo, "returns_at_once");
    let fed: Vec<_> = stream.feed::<i64, _>(0..).collect();
    assert!(matches!(fed[..], [Err(StreamError::Ended)]), "{fed:?}");
}

#[test]
fn feeding_sends_while_it_receives_and_leaves_the_stream_open() {
    let Some(daemon) = Daemon::start(&[]) else {
        return;
    };
    let velo = daemon.connect();
    let mut few = options();
    few.buffer = 4;
    for options in [options(), few] {
        let mut totals = velo.open("functions:totals", &options).expect("a stream");
        for _ in 0..2 {
            let asked = AtomicUsize::new(0);
            let source = (0..5_000).inspect(|_| {
                asked.fetch_add(1, Relaxed);
            });
            let (mut last, mut count) = (0, 0);
            for result in totals.feed::<i64, _>(source) {
                last = result.expect("a total");
                count += 1;
                assert!(asked.load(Relaxed) <= count + 2 * options.buffer as usize + 2);
            }
            assert_eq!((count % 5_000, last % 12_497_500), (0, 0));
        }
        totals.send(&1).expect("send");
        assert_eq!(totals.recv().expect("recv"), Some(2 * 12_497_500 + 1));
    }
    // Many results for one event, and none.
    let mut repeat = open(&velo, "repeat");
    let results: Vec<(u32, u32)> = repeat
        .feed([0, 2_000, 0, 1])
        .collect::<Result<_, _>>()
        .expect("results");
    let expected: Vec<_> = (0..2_000).map(|n| (2_000, n)).chain([(1, 0)]).collect();
    assert_eq!(results, expected);
    let nothing = repeat.feed::<(u32, u32), _>([0, 0]).count();
    assert_eq!(nothing, 0);
    assert_eq!(repeat.feed::<(u32, u32), _>([0; 0]).count(), 0);
}

#[test]
fn timeouts_lose_nothing() {
    let Some(daemon) = Daemon::start(&[]) else {
        return;
    };
    let velo = daemon.connect();
    let mut few = options();
    few.buffer = 2;
    let mut stream = velo.open("functions:never_reads", &few).expect("a stream");
    assert!(stream.recv::<i32>().expect("recv").is_some());
    let short = Duration::from_millis(20);
    let mut sent = 0;
    let error = loop {
        match stream.send_timeout(&sent, short) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StreamError::TimedOut));
    assert_eq!(sent, 2);
    let began = Instant::now();
    assert!(matches!(
        stream.recv_timeout::<i32>(short),
        Err(StreamError::TimedOut)
    ));
    assert!(began.elapsed() >= short);

    let mut echo = open(&velo, "echo");
    assert!(matches!(
        echo.recv_timeout::<i32>(Duration::ZERO),
        Err(StreamError::TimedOut)
    ));
    echo.send(&7).expect("send");
    assert_eq!(echo.recv_timeout(PATIENCE).expect("recv"), Some(7));
}

#[test]
fn an_event_loop_waits_for_one_descriptor() {
    let Some(daemon) = Daemon::start(&[]) else {
        return;
    };
    let velo = daemon.connect();
    let mut one = options();
    one.workers = Some(1);
    let mut streams: Vec<_> = (0..3)
        .map(|_| velo.open("functions:sleeps", &one).expect("a stream"))
        .collect();
    let mut turns = 0;
    for round in 0..30 {
        // In another order each time, and sometimes two at once.
        let busy = [round % 3, (round / 2) % 3];
        for &which in &busy {
            let pause = if round % 2 == 0 { 0.0 } else { 0.01 };
            streams[which].send(&pause).expect("send");
        }
        let mut missing = busy.len();
        while missing > 0 {
            for stream in &mut streams {
                loop {
                    match stream.recv_timeout::<f64>(Duration::ZERO) {
                        Ok(result) => missing -= usize::from(result.is_some()),
                        Err(StreamError::TimedOut) => break,
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            if missing > 0 {
                let mut fds = [PollFd::new(velo.as_fd(), PollFlags::POLLIN)];
                let ready = poll(&mut fds, PollTimeout::from(20_000u16)).expect("poll");
                assert_eq!(ready, 1, "the descriptor says when to look");
                turns += 1;
            }
        }
    }
    assert!(turns < 600, "it was readable {turns} times");
    // A death is told, too, to each of them.
    let pid = daemon.status().workers[0].pid;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL)
        .expect("kill");
    let mut alive = streams.len();
    while alive > 0 {
        let mut fds = [PollFd::new(velo.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, PollTimeout::from(20_000u16)).expect("poll");
        assert_eq!(ready, 1, "{alive} have not heard of it");
        // One at a time: the descriptor stays readable for the others.
        for stream in streams.iter_mut().rev() {
            match stream.recv_timeout::<f64>(Duration::ZERO) {
                Err(StreamError::WorkerDied(_)) => {
                    alive -= 1;
                    break;
                }
                Ok(None) | Err(StreamError::TimedOut) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn waiting_costs_nothing() {
    let Some(daemon) = Daemon::start(&[]) else {
        return;
    };
    let velo = daemon.connect();
    let mut echo = open(&velo, "echo");
    echo.send(&1).expect("send");
    assert_eq!(echo.recv().expect("recv"), Some(1));
    let before = cpu_of_this_thread();
    let waited = echo.recv_timeout::<i32>(Duration::from_secs(1));
    assert!(matches!(waited, Err(StreamError::TimedOut)));
    let used = cpu_of_this_thread() - before;
    assert!(used < Duration::from_millis(20), "{used:?} in a second");
    // For room, of events and of bytes.
    for (buffer, max_bytes, size) in [(1, 1 << 20, 1), (1_000, 1 << 16, 20_000)] {
        let small = StreamOptions {
            buffer,
            max_bytes,
            ..options()
        };
        let mut full = velo
            .open("functions:never_reads", &small)
            .expect("a stream");
        let event = "x".repeat(size);
        while full.send_timeout(&event, Duration::ZERO).is_ok() {}
        let before = cpu_of_this_thread();
        let waited = full.send_timeout(&event, Duration::from_secs(1));
        assert!(matches!(waited, Err(StreamError::TimedOut)));
        let used = cpu_of_this_thread() - before;
        assert!(used < Duration::from_millis(20), "{used:?} in a second");
    }
}

#[test]
fn feeding_nothing_to_a_stream_that_is_new_waits_for_what_it_says_first() {
    let Some(daemon) = Daemon::start(&[]) else {
        return;
    };
    let velo = daemon.connect();
    let mut echo = open(&velo, "echo");
    assert_eq!(echo.feed::<i32, _>([0; 0]).count(), 0);
    let mut pid = open(&velo, "greets");
    let said: Vec<_> = pid
        .feed::<String, _>([0; 0])
        .collect::<Result<_, _>>()
        .expect("one");
    assert_eq!(said, ["hello"]);
}

fn cpu_of_this_thread() -> Duration {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID);
    time.expect("a clock").into()
}

#[test]
fn many_threads_share_a_connection() {
    let Some(daemon) = Daemon::start(&[]) else {
        return;
    };
    let velo = daemon.connect();
    std::thread::scope(|scope| {
        for thread in 1..=6 {
            let velo: &Connection = &velo;
            scope.spawn(move || {
                for round in 0..3 {
                    let mut totals = open(velo, "totals");
                    // One at a time, so that all of them wait.
                    let mut total = 0;
                    for event in 0..200 {
                        totals.send(&(thread * event)).expect("send");
                        total += thread * event;
                        assert_eq!(totals.recv().expect("recv"), Some(total));
                    }
                    let fed = totals.feed::<i64, _>(0..2_000).last();
                    let fed = fed.expect("results").expect("a total");
                    assert_eq!(fed, total + 1_999_000, "thread {thread}, round {round}");
                }
            });
        }
    });
}

#[test]
fn dropping_a_stream_cancels_its_function_and_gives_its_place_back() {
    let Some(daemon) = Daemon::start(&[]) else {
        return;
    };
    let velo = daemon.connect();
    let file = daemon.folder().join("cancelled");
    let mut stream = open(&velo, "waits");
    stream.send(&file).expect("send");
    assert!(stream.recv::<i32>().expect("recv").is_some());
    drop(stream);
    wait_for("its `finally` block", || {
        std::fs::read_to_string(&file)
            .ok()
            .filter(|s| !s.is_empty())
    });
    // One that yields without end is stopped, too.
    let mut endless = open(&velo, "repeat");
    endless.send(&1_000_000).expect("send");
    drop(endless);
    let mut other = open(&velo, "echo");
    wait_for("their places", || {
        let _ = other.recv_timeout::<i32>(Duration::ZERO);
        let workers = daemon.status().workers;
        (workers.iter().map(|worker| worker.residents).sum::<u32>() == 1).then_some(())
    });
    // And a connection that is dropped, with all that is open.
    drop((velo, other));
    wait_for("the rest", || {
        let workers = daemon.status().workers;
        workers.iter().all(|worker| worker.links == 0).then_some(())
    });
}

#[test]
fn streams_are_spread_over_workers() {
    let Some(daemon) = Daemon::start(&[]) else {
        return;
    };
    let velo = daemon.connect();
    let mut two = options();
    two.workers = Some(2);
    let mut streams: Vec<_> = (0..4)
        .map(|_| velo.open("functions:pids", &two).expect("a stream"))
        .collect();
    let mut pids: Vec<i32> = streams
        .iter_mut()
        .map(|stream| {
            stream.send(&()).expect("send");
            stream.recv().expect("recv").expect("a pid")
        })
        .collect();
    pids.sort_unstable();
    assert_eq!(pids[0], pids[1]);
    assert_ne!(pids[1], pids[2]);
    assert_eq!(pids[2], pids[3]);
}
