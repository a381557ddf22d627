//! What goes wrong, and what is said of it.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use velo_supervisor::stream::{Connection, StreamError, StreamOptions};
use velo_supervisor::{Exit, SupervisorError};

use crate::daemon::{Daemon, open, options};

#[test]
fn an_exception_arrives_with_its_words_after_the_results_before_it() {
    let Some(daemon) = Daemon::start(&[]) else {
        return;
    };
    let mut fails = open(&daemon.connect(), "fails");
    fails.send(&"milk").expect("send");
    assert_eq!(
        fails.recv::<String>().expect("recv").as_deref(),
        Some("milk")
    );
    let Err(StreamError::Function(error)) = fails.recv::<String>() else {
        panic!("it has raised");
    };
    assert_eq!(error.to_string(), "ValueError: no `milk`");
    assert!(
        error.traceback.contains("functions.py"),
        "{}",
        error.traceback
    );
    assert_eq!(error.notes, ["a note"]);
    assert_eq!(fails.recv::<String>().expect("once"), None);
    assert!(matches!(fails.send(&"more"), Err(StreamError::Ended)));
}

#[test]
fn what_cannot_be_imported_is_said() {
    let Some(daemon) = Daemon::start(&[]) else {
        return;
    };
    let velo = daemon.connect();
    for (function, says) in [
        ("functions:nobody", "no `nobody` in module `functions`"),
        ("no_such_module:f", "no_such_module"),
    ] {
        let mut stream = velo.open(function, &options()).expect("a stream");
        let Err(StreamError::Function(error)) = stream.recv::<()>() else {
            panic!("it cannot be imported");
        };
        assert!(
            error.kind.contains("Error") && error.message.contains(says),
            "{error}"
        );
    }
    for name in [
        "functions",
        "functions:",
        ":echo",
        "a..b:c",
        "a:b:c",
        "a:b.",
        "",
    ] {
        let error = velo.open(name, &options()).expect_err("no name");
        assert!(matches!(error, StreamError::Name(_)), "{error:?}");
        assert!(error.to_string().contains("`module:function`"), "{error}");
    }
}

#[test]
fn nobody_there_is_said_with_the_path() {
    let error = Connection::connect("/nowhere/s.sock").expect_err("nobody");
    assert!(matches!(
        error,
        StreamError::Supervisor(SupervisorError::Nobody { .. })
    ));
    assert!(error.to_string().contains("/nowhere/s.sock"), "{error}");
}

#[test]
fn a_worker_that_dies_is_told_after_its_results_and_others_go_on() {
    let Some(daemon) = Daemon::start(&[]) else {
        return;
    };
    let velo = daemon.connect();
    let mut one = options();
    one.workers = Some(1);
    let mut stream = velo
        .open("functions:pids", &one.clone().name("mine"))
        .expect("a stream");
    stream.send(&()).expect("send");
    let pid: i32 = stream.recv().expect("recv").expect("a pid");
    stream.send(&()).expect("send");
    // The worker comes to this one after the other: by its answer, that one's is there, and not taken.
    let mut beside = velo.open("functions:pids", &one).expect("a stream");
    beside.send(&()).expect("send");
    assert_eq!(beside.recv().expect("recv"), Some(pid));
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill");
    assert_eq!(stream.recv().expect("recv"), Some(pid));
    let Err(StreamError::WorkerDied(died)) = stream.recv::<i32>() else {
        panic!("it is dead");
    };
    assert!(matches!(
        beside.recv::<i32>(),
        Err(StreamError::WorkerDied(_))
    ));
    assert_eq!(
        (died.pid, died.exit, &*died.stream),
        (pid, Exit::Signal(9), "mine")
    );
    assert!(died.to_string().contains("killed by `SIGKILL`"), "{died}");
    assert_eq!(stream.recv::<i32>().expect("once"), None);
    // Who waits is woken, and the next stream has another worker.
    let mut stream = velo.open("functions:pids", &one).expect("a stream");
    stream.send(&()).expect("send");
    let next: i32 = stream.recv().expect("recv").expect("a pid");
    assert_ne!(next, pid);
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        kill(Pid::from_raw(next), Signal::SIGKILL).expect("kill");
    });
    assert!(matches!(
        stream.recv::<i32>(),
        Err(StreamError::WorkerDied(_))
    ));
    assert!(matches!(stream.send(&()), Err(StreamError::WorkerDied(_))));
    killer.join().expect("the other thread");
}

#[test]
fn limits_of_time_end_a_stream() {
    let Some(daemon) = Daemon::start(&[]) else {
        return;
    };
    let velo = daemon.connect();
    let mut strict = options();
    strict.event_timeout = Some(Duration::from_secs(1));
    let mut stream = velo.open("functions:sleeps", &strict).expect("a stream");
    stream.send(&0.0).expect("send");
    assert_eq!(stream.recv().expect("recv"), Some(0.0));
    stream.send(&60.0).expect("send");
    let late = stream.recv::<f64>();
    let Err(StreamError::Function(error)) = late else {
        panic!("it took too long: {late:?}");
    };
    assert!(error.kind.contains("EventTimeout"), "{error}");
    strict.event_timeout = None;
    // A worker that has not had its turn for so long is killed without a culprit.
    strict.stall_timeout = Some(Duration::from_secs(2));
    let mut stream = velo.open("functions:blocks", &strict).expect("a stream");
    stream.send(&60.0).expect("send");
    let Err(StreamError::WorkerDied(died)) = stream.recv::<f64>() else {
        panic!("it held its worker");
    };
    assert_eq!((died.culprit, died.event), (Some(true), Some(1)));
    assert!(died.to_string().contains("`stall_timeout`"), "{died}");
    assert!(died.stack.contains("blocks"), "{}", died.stack);
}

#[test]
fn streams_outlive_the_supervisor_and_the_next_one_is_found() {
    let Some(mut daemon) = Daemon::start(&[]) else {
        return;
    };
    let velo = daemon.connect();
    let mut one = options();
    one.workers = Some(1);
    let mut totals = velo.open("functions:totals", &one).expect("a stream");
    let mut pids = velo.open("functions:pids", &one).expect("a stream");
    totals.send(&1).expect("send");
    assert_eq!(totals.recv().expect("recv"), Some(1));
    daemon.kill();
    totals.send(&2).expect("send");
    assert_eq!(totals.recv().expect("recv"), Some(3));
    pids.send(&()).expect("send");
    let old: i32 = pids.recv().expect("recv").expect("a pid");
    // What needs no supervisor: another stream of a worker that is linked.
    let mut other = velo.open("functions:pids", &one).expect("a stream");
    other.send(&()).expect("send");
    assert_eq!(other.recv().expect("recv"), Some(old));
    daemon.again();
    let mut next = velo.open("functions:pids", &one).expect("a stream");
    next.send(&()).expect("send");
    let new: i32 = next.recv().expect("recv").expect("a pid");
    assert_ne!(new, old);
    totals.send(&3).expect("send");
    assert_eq!(totals.recv().expect("recv"), Some(6));
    // The death of the old worker is seen without its supervisor.
    kill(Pid::from_raw(old), Signal::SIGKILL).expect("kill");
    let Err(StreamError::WorkerDied(died)) = totals.recv::<i32>() else {
        panic!("it is dead");
    };
    assert_eq!((died.pid, died.exit), (old, Exit::Unknown));
    next.send(&()).expect("send");
    assert_eq!(next.recv().expect("recv"), Some(new));
}

#[test]
fn a_quota_is_kept_and_a_place_that_is_given_back_can_be_had() {
    let Some(daemon) = Daemon::start(&["--client-streams", "2"]) else {
        return;
    };
    let (velo, other) = (daemon.connect(), daemon.connect());
    let one = open(&velo, "echo");
    let mut two = open(&other, "echo");
    let error = velo
        .open("functions:echo", &options())
        .expect_err("a quota");
    assert!(
        error.to_string().contains("`--client-streams 2`"),
        "{error}"
    );
    two.end().expect("end");
    assert_eq!(two.recv::<()>().expect("recv"), None);
    drop(open(&velo, "echo"));
    drop(one);
}

#[test]
fn opening_gives_up_in_time() {
    let Some(daemon) = Daemon::start(&[]) else {
        return;
    };
    let velo = daemon.connect();
    let hurried = StreamOptions {
        open_timeout: Duration::ZERO,
        ..options()
    };
    // There is no worker yet, and one takes a while.
    let error = velo.open("functions:echo", &hurried).expect_err("no time");
    assert!(matches!(error, StreamError::TimedOut), "{error:?}");
    let mut echo = open(&velo, "echo");
    echo.send(&1).expect("send");
    assert_eq!(echo.recv().expect("recv"), Some(1));
}
