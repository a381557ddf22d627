//! Two processes: this test file runs itself once more, as the worker.
#![cfg(all(target_os = "linux", not(loom)))]
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "descriptors are passed on by number"
)]

mod common;

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use common::message;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use velo_shm::{
    Bells, Consumer, Doorbell, Limits, Link, LinkSpec, MemfdSegment, Producer, ReserveError, Side,
    initialise,
};

const FDS: &str = "VELO_SHM_TEST_FDS";
const STAGE: &str = "VELO_SHM_TEST_STAGE";
const SPEC: LinkSpec = LinkSpec {
    slots: 2,
    ring_bytes: 2048,
    heap_bytes: 256 << 20,
};
const LIMITS: Limits = Limits {
    events: 64,
    bytes: 8 << 20,
};
const COUNT: u64 = 5000;
const END: u8 = 9;
const PATIENCE: Duration = Duration::from_secs(20);

fn len_of(number: u64) -> usize {
    if number.is_multiple_of(500) {
        1_000_000
    } else {
        number as usize % 300
    }
}

fn wait(end: &Link) {
    end.arm();
    if !end.any_ready() {
        assert!(end.doorbell().wait(Some(PATIENCE)).unwrap(), "no one rings");
    }
    end.disarm();
    end.doorbell().drain();
    end.take_ready(|_| ());
}

/// Sends when there is space; false when there is none, and the link will tell.
fn try_send(producer: &mut Producer, kind: u8, payload: &[u8]) -> bool {
    loop {
        let waits = match producer.reserve(payload.len(), true) {
            Ok(mut room) => {
                room[..payload.len()].copy_from_slice(payload);
                room.commit(kind, payload.len());
                return true;
            }
            Err(ReserveError::Full(velo_shm::Full::Events)) => producer.wait_for_space().unwrap(),
            Err(ReserveError::Full(_)) => producer.wait_for_bytes(payload.len()).unwrap(),
            Err(other) => panic!("{other}"),
        };
        if waits {
            return false;
        }
    }
}

fn flush(end: &Link, producer: &mut Producer, consumer: &mut Consumer) {
    if producer.publish() | consumer.publish() {
        end.notify(1);
    }
}

/// The worker: sends back what it gets, doubled in every byte.
fn echo(end: Link) {
    let (mut producer, mut consumer) = end.open_slot(1, LIMITS).unwrap();
    loop {
        let mut room = true;
        while let Some(frame) = consumer.peek().unwrap() {
            let kind = frame.kind;
            let reply: Vec<u8> = frame
                .payload
                .iter()
                .map(|byte| byte.wrapping_mul(2))
                .collect();
            room = try_send(&mut producer, kind, &reply);
            if !room {
                break;
            }
            consumer.release();
            if kind == END {
                flush(&end, &mut producer, &mut consumer);
                return;
            }
        }
        flush(&end, &mut producer, &mut consumer);
        if !room || !consumer.has_data() {
            wait(&end);
        }
    }
}

/// Does nothing in a normal run: the test below starts this one in another process.
#[test]
fn worker() {
    let Ok(fds) = std::env::var(FDS) else { return };
    let fds: Vec<OwnedFd> = fds
        .split(',')
        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd.parse().unwrap()) })
        .collect();
    let [segment, mine, theirs]: [OwnedFd; 3] = fds.try_into().unwrap();
    let segment = Arc::new(MemfdSegment::from_fd(segment).unwrap());
    let bells = Bells {
        mine: Doorbell::from_fd(mine).unwrap(),
        theirs: Doorbell::from_fd(theirs).unwrap(),
    };
    let end = Link::attach(segment, Side::Worker, bells).unwrap();
    match std::env::var(STAGE) {
        Ok(stage) => die_at(&stage, &end),
        Err(_) => echo(end),
    }
}

/// How far a worker comes with its last frame before it is gone.
const STAGES: [&str; 5] = ["reserved", "written", "committed", "published", "announced"];

/// Sends one frame, and dies while it sends another.
fn die_at(stage: &str, end: &Link) {
    let die = || unsafe { nix::libc::raise(nix::libc::SIGKILL) };
    let (mut producer, _consumer) = end.open_slot(1, LIMITS).unwrap();
    assert!(try_send(&mut producer, 2, b"before"));
    producer.publish();
    end.notify(1);
    let mut room = producer.reserve(4, true).unwrap();
    if stage == "reserved" {
        die();
    }
    room[..4].copy_from_slice(b"last");
    if stage == "written" {
        die();
    }
    room.commit(2, 4);
    if stage == "committed" {
        die();
    }
    producer.publish();
    if stage == "published" {
        die();
    }
    end.notify(1);
    die();
}

fn start() -> (Link, Child) {
    start_until(None)
}

/// A worker that echoes, or dies at this stage.
fn start_until(stage: Option<&str>) -> (Link, Child) {
    use std::os::fd::AsFd;

    let segment = Arc::new(MemfdSegment::create(SPEC.segment_len()).unwrap());
    initialise(&*segment, &SPEC).unwrap();
    let (mine, theirs) = (Doorbell::create().unwrap(), Doorbell::create().unwrap());
    let passed =
        [segment.as_fd(), theirs.as_fd(), mine.as_fd()].map(|fd| nix::unistd::dup(fd).unwrap());
    for fd in &passed {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["worker", "--exact", "--nocapture"])
        .env(
            FDS,
            passed
                .each_ref()
                .map(|fd| fd.as_raw_fd().to_string())
                .join(","),
        )
        .envs(stage.map(|stage| (STAGE, stage)))
        .spawn()
        .unwrap();
    let end = Link::attach(segment, Side::Client, Bells { mine, theirs }).unwrap();
    (end, child)
}

#[test]
fn events_go_to_another_process_and_back() {
    let (end, mut child) = start();
    let (mut producer, mut consumer) = end.open_slot(1, LIMITS).unwrap();
    let (mut sent, mut received) = (0, 0);
    while received <= COUNT {
        let mut room = true;
        while room && sent <= COUNT {
            room = if sent == COUNT {
                try_send(&mut producer, END, b"end")
            } else {
                try_send(&mut producer, 2, &message(sent, len_of(sent)))
            };
            sent += u64::from(room);
        }
        while let Some(frame) = consumer.peek().unwrap() {
            if frame.kind != END {
                let expected = message(received, len_of(received));
                assert!(
                    frame.payload.iter().eq(expected
                        .iter()
                        .map(|b| b.wrapping_mul(2))
                        .collect::<Vec<_>>()
                        .iter()),
                    "message {received}"
                );
            }
            consumer.release();
            received += 1;
        }
        flush(&end, &mut producer, &mut consumer);
        if received <= COUNT && !consumer.has_data() {
            wait(&end);
        }
    }
    assert!(child.wait().unwrap().success());
    let counters = end.counters();
    assert_eq!(counters.to_worker.events, COUNT + 1);
    assert_eq!(counters.to_client.events, COUNT + 1);
    assert_eq!(counters.to_worker.bytes, counters.to_client.bytes);
}

#[test]
fn a_peer_that_is_killed_leaves_the_rest_usable() {
    let (end, mut child) = start();
    let (mut producer, mut consumer) = end.open_slot(1, LIMITS).unwrap();
    assert!(try_send(&mut producer, 2, b"one"));
    flush(&end, &mut producer, &mut consumer);
    while !consumer.has_data() {
        wait(&end);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(consumer.peek().unwrap().unwrap().kind, 2);
    consumer.release();
    for _ in 0..100 {
        // No one reads any more: full, and not an error.
        if !try_send(&mut producer, 2, &message(1, 100_000)) {
            break;
        }
        flush(&end, &mut producer, &mut consumer);
    }
    assert!(producer.wait_for_space().is_ok());
}

/// What was published is there, announced or not; what was not is no frame, however far it had come.
/// Whoever learns of the death looks, and so does not wait for a doorbell that nobody rings.
#[test]
fn a_death_at_any_stage_of_a_frame_leaves_whole_frames() {
    for stage in STAGES {
        let (end, mut child) = start_until(Some(stage));
        let (mut producer, mut consumer) = end.open_slot(1, LIMITS).unwrap();
        end.arm();
        assert!(!child.wait().unwrap().success());
        let mut frames = Vec::new();
        while let Some(frame) = consumer.peek().unwrap() {
            assert_eq!(frame.kind, 2);
            frames.push(frame.payload.to_vec());
            consumer.release();
        }
        let whole: &[&[u8]] = match stage {
            "published" | "announced" => &[b"before", b"last"],
            _ => &[b"before"],
        };
        assert_eq!(frames, whole, "{stage}");
        consumer.publish();
        // And this side's own is as usable as ever.
        assert!(try_send(&mut producer, 2, b"to nobody"));
        assert!(producer.publish());
        assert!(!consumer.has_data());
    }
}
