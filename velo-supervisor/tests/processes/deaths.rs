//! Deaths of every kind of process: who is told, what is replaced, and that nobody is left behind.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Instant;

use velo_supervisor::{Exit, Refusal, embedded};

use crate::harness::*;

pub const TESTS: &[crate::Test] = &[
    (
        "a_killed_worker_is_told_and_the_other_goes_on",
        killed_worker,
    ),
    ("an_exit_code_is_told", exit_code),
    ("every_client_of_a_dead_worker_is_told", every_client),
    ("a_crash_loop_ends_in_a_refusal", crash_loop),
    (
        "a_zygote_that_cannot_start_ends_in_a_refusal",
        broken_zygote,
    ),
    ("a_zygote_of_another_version_is_named", old_zygote),
    (
        "a_killed_zygote_is_replaced_and_its_workers_go_on",
        killed_zygote,
    ),
    (
        "a_stop_signal_to_the_zygote_changes_nothing",
        signalled_zygote,
    ),
    ("nobody_outlives_a_killed_client", killed_client),
    (
        "nobody_outlives_a_killed_client_when_workers_are_busy",
        killed_client_busy,
    ),
    (
        "nobody_outlives_a_killed_client_when_a_worker_never_looked",
        killed_client_stuck,
    ),
    (
        "nobody_outlives_a_killed_client_whose_zygote_is_dead",
        killed_client_orphans,
    ),
    (
        "nobody_outlives_a_killed_client_whose_zygote_stands_still",
        killed_client_stopped,
    ),
    (
        "nobody_outlives_a_killed_client_whose_child_lives_on",
        killed_client_forked,
    ),
];

fn killed_worker() {
    let mut peer = Peer::connect(&options());
    let (mut one, mut two) = (peer.link(2), peer.link(2));
    one.echo(b"before");
    let start = Instant::now();
    kill(one.worker.pid);
    assert_eq!(peer.death(one.link), (one.worker, Exit::Signal(9)));
    println!("     a worker's death was told after {:?}", start.elapsed());
    two.echo(b"the other goes on");
    let mut new = peer.link(2);
    assert_ne!(new.worker, one.worker);
    new.echo(b"a new one");
    embedded::shutdown(PATIENCE);
}

fn exit_code() {
    let mut peer = Peer::connect(&options());
    let mut linked = peer.link(1);
    linked.send(b"exit");
    assert_eq!(peer.death(linked.link), (linked.worker, Exit::Code(42)));
    embedded::shutdown(PATIENCE);
}

fn every_client() {
    let mut first = Peer::connect(&options());
    let mut second = Peer::connect(&options());
    let (one, two) = (first.link(1), second.link(1));
    assert_eq!(one.worker, two.worker);
    kill(one.worker.pid);
    assert_eq!(first.death(one.link).1, Exit::Signal(9));
    assert_eq!(second.death(two.link).1, Exit::Signal(9));
    embedded::shutdown(PATIENCE);
}

fn crash_loop() {
    let mut peer = Peer::connect(&in_mode("crash"));
    let request = peer.acquire(2);
    let Refusal::Failed(why) = peer.refusal(request) else {
        panic!("not at a limit")
    };
    assert!(why.contains("exit code `7` (5 times)"), "{why}");
    embedded::shutdown(PATIENCE);
}

fn broken_zygote() {
    let mut peer = Peer::connect(&in_mode("broken-zygote"));
    let request = peer.acquire(2);
    let Refusal::Failed(why) = peer.refusal(request) else {
        panic!("not at a limit")
    };
    assert!(
        why.contains("exit code `9`") && why.contains("zygote"),
        "{why}"
    );
    let again = peer.acquire(2);
    assert!(
        matches!(peer.refusal(again), Refusal::Failed(_)),
        "each request is answered"
    );
    embedded::shutdown(PATIENCE);
}

fn old_zygote() {
    let mut peer = Peer::connect(&in_mode("old-zygote"));
    let request = peer.acquire(2);
    let Refusal::Failed(why) = peer.refusal(request) else {
        panic!("not at a limit")
    };
    assert!(why.contains("protocol version `99`"), "{why}");
    wait_for("the zygote to go", || {
        embedded::status()?.zygote.is_none().then_some(())
    });
    embedded::shutdown(PATIENCE);
}

fn killed_zygote() {
    let mut peer = Peer::connect(&options());
    let mut old = peer.link(1);
    let zygote = status().zygote.expect("a zygote");
    kill(zygote);
    wait_for("the death of the zygote to be seen", || {
        (embedded::status()?.zygote != Some(zygote)).then_some(())
    });
    old.echo(b"an orphan goes on");
    let mut new = peer.link(2);
    assert_ne!(new.worker, old.worker);
    new.echo(b"from a new zygote");
    kill(old.worker.pid);
    assert_eq!(peer.death(old.link), (old.worker, Exit::Unknown));
    new.echo(b"and on");
    embedded::shutdown(PATIENCE);
    assert!(!is_alive(new.worker.pid));
}

fn signalled_zygote() {
    use nix::sys::signal::Signal::{SIGINT, SIGTERM};

    let mut peer = Peer::connect(&options());
    let mut old = peer.link(1);
    let zygote = status().zygote.expect("a zygote");
    for signal in [SIGINT, SIGTERM] {
        let pid = nix::unistd::Pid::from_raw(zygote);
        nix::sys::signal::kill(pid, signal).expect("signal the zygote");
    }
    let worker = nix::unistd::Pid::from_raw(old.worker.pid);
    nix::sys::signal::kill(worker, SIGINT).expect("signal the worker");
    old.echo(b"a Ctrl-C is the client's affair");
    peer.link(2).echo(b"and so is a new worker");
    assert_eq!(status().zygote, Some(zygote));
    embedded::shutdown(PATIENCE);
}

fn killed_client() {
    outlive("client-idle");
}

fn killed_client_busy() {
    outlive("client-busy");
}

fn killed_client_stuck() {
    outlive("client-stuck");
}

fn killed_client_forked() {
    outlive("client-forked");
}

fn killed_client_stopped() {
    outlive("client-stopped");
}

fn killed_client_orphans() {
    outlive("client-orphans");
}

/// Kills a client in this role, and sees that its zygote and workers end in time.
fn outlive(role: &str) {
    let mut client = crate::program(role)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a client");
    let mut line = String::new();
    let stdin = client.stdin.take().expect("its input");
    let stdout = client.stdout.take().expect("its output");
    BufReader::new(stdout)
        .read_line(&mut line)
        .expect("a line of process ids");
    let pids: Vec<i32> = line
        .split_whitespace()
        .map(|word| word.parse().expect("a process id"))
        .collect();
    assert!(pids.len() >= 2, "a zygote and workers: {line:?}");
    assert!(pids.iter().all(|pid| is_alive(*pid)), "{line:?}");
    let start = Instant::now();
    client.kill().expect("kill the client");
    wait_for("zygote and workers to end", || {
        pids.iter().all(|pid| !is_alive(*pid)).then_some(())
    });
    println!("     {role}: all gone after {:?}", start.elapsed());
    drop(stdin); // Until now, a child of the client lives on.
    client.wait().expect("collect the client");
}

/// A client that gets itself workers, says who they are, and waits to be killed.
pub fn client(role: &str) {
    let mode = if role == "client-stuck" { "stuck" } else { "" };
    let mut peer = Peer::connect(&in_mode(mode));
    let mut links = Vec::new();
    if role == "client-stuck" {
        peer.acquire(1);
        wait_for("a worker", || {
            embedded::status()?
                .workers
                .iter()
                .any(|worker| worker.pid != 0)
                .then_some(())
        });
    } else {
        links.extend([peer.link(2), peer.link(2)]);
        for linked in &mut links {
            linked.echo(b"hello");
        }
    }
    if role == "client-orphans" {
        kill(processes()["zygote"][0]);
        wait_for("the zygote to go", || {
            embedded::status()?.zygote.is_none().then_some(())
        });
    }
    if role == "client-stopped" {
        for pid in [processes()["zygote"][0], links[0].worker.pid] {
            let pid = nix::unistd::Pid::from_raw(pid);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).expect("stop it");
        }
    }
    if matches!(role, "client-busy" | "client-orphans") {
        for linked in &mut links {
            linked.send(b"spin");
            wait_for("the worker to take it", || {
                // Nothing tells that a worker is stuck but the time it has used.
                (cpu_ticks(linked.worker.pid) > 5).then_some(())
            });
        }
    }
    if role == "client-forked" {
        // Without the calls around the fork: the child keeps copies of all descriptors.
        // SAFETY: the child only waits.
        match unsafe { nix::unistd::fork() }.expect("fork") {
            nix::unistd::ForkResult::Child => {
                // Until the test has seen all others end.
                let _ = nix::unistd::read(std::io::stdin(), &mut [0]);
                // SAFETY: it ends the child at once, whatever the parent's threads have locked.
                unsafe { nix::libc::_exit(0) }
            }
            nix::unistd::ForkResult::Parent { .. } => {}
        }
    }
    let all = processes();
    let pids: Vec<_> = ["zygote", "workers"]
        .iter()
        .flat_map(|kind| &all[kind])
        .collect();
    println!(
        "{}",
        pids.iter()
            .map(|pid| pid.to_string())
            .collect::<Vec<_>>()
            .join(" ")
    );
    loop {
        std::thread::park();
    }
}

/// User and system time of a process.
fn cpu_ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<_> = stat
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest)
        .split_whitespace()
        .collect();
    [11, 12]
        .iter()
        .filter_map(|at| fields.get(*at)?.parse::<u64>().ok())
        .sum()
}
