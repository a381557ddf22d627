//! The activity: what a worker was doing, as those see it who are left.
#![cfg(not(loom))]

mod common;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use common::{Pair, SMALL};
use velo_shm::{Allowance, Setting};

#[test]
fn a_function_is_in_the_activity_while_it_runs() {
    let pair = Pair::new(SMALL);
    assert_eq!(pair.client.running(), None);
    let allowance = Allowance {
        time: Duration::from_millis(1500),
        setting: Setting::Event,
    };
    pair.worker.begin_step(3, 77, 5, Some(allowance));
    let seen = pair.client.running().expect("it runs");
    assert_eq!((seen.slot, seen.stream, seen.event), (3, 77, 5));
    assert_eq!(seen.allowance, Some(allowance));
    pair.worker.took_event(3, 6);
    let again = pair.client.running().expect("it still runs");
    assert_eq!((again.step, again.event), (seen.step, 6));
    pair.worker.end_step();
    assert_eq!(pair.client.running(), None);
    pair.worker.begin_step(3, 77, 6, None);
    let next = pair.client.running().expect("it runs again");
    assert_ne!(next.step, seen.step);
    assert_eq!(next.allowance, None);
}

#[test]
fn an_event_that_is_taken_for_another_function_is_not_the_running_ones() {
    let pair = Pair::new(SMALL);
    pair.worker.begin_step(1, 10, 4, None);
    pair.worker.took_event(2, 900);
    assert_eq!(pair.client.running().expect("it runs").event, 4);
}

#[test]
fn the_shortest_and_the_longest_allowance_are_still_allowances() {
    let pair = Pair::new(SMALL);
    for (time, shown) in [
        (Duration::ZERO, Duration::from_millis(1)),
        (Duration::MAX, Duration::from_millis((1 << 31) - 1)),
    ] {
        let setting = Setting::Stall;
        let allowance = Some(Allowance { time, setting });
        pair.worker.begin_step(1, 1, 1, allowance);
        let seen = pair.client.running().and_then(|seen| seen.allowance);
        let expected = Allowance {
            time: shown,
            setting,
        };
        assert_eq!(seen, Some(expected));
        pair.worker.end_step();
    }
}

#[test]
fn work_shows_as_progress_and_idleness_does_not() {
    let pair = Pair::new(SMALL);
    let works: [&dyn Fn(); 4] = [
        &|| pair.worker.take_ready(|_| {}),
        &|| pair.worker.begin_step(1, 1, 1, None),
        &|| pair.worker.took_event(1, 2),
        &|| pair.worker.end_step(),
    ];
    for work in works {
        let before = pair.client.progress();
        assert_eq!(pair.client.progress(), before);
        work();
        assert_ne!(pair.client.progress(), before);
    }
    let before = pair.client.progress();
    pair.client.take_ready(|_| {});
    assert_eq!(
        pair.client.progress(),
        before,
        "the client's looks are its own"
    );
}

#[test]
fn an_allowance_is_renewed_for_the_function_that_runs_alone() {
    let pair = Pair::new(SMALL);
    let allowance = |ms| {
        let setting = Setting::Stall;
        let time = Duration::from_millis(ms);
        Some(Allowance { time, setting })
    };
    pair.worker.begin_step(1, 1, 1, allowance(5));
    pair.worker.allow(2, allowance(7));
    assert_eq!(pair.client.running().unwrap().allowance, allowance(5));
    pair.worker.allow(1, allowance(7));
    assert_eq!(pair.client.running().unwrap().allowance, allowance(7));
}

#[test]
fn watching_ends_with_the_last_stream_that_has_limits() {
    let pair = Pair::new(SMALL);
    assert!(pair.client.begin_limit(), "nobody watches");
    pair.worker.start_watching();
    assert!(!pair.client.begin_limit(), "it is watched");
    pair.client.end_limit();
    assert!(!pair.worker.stop_watching(), "one is left");
    pair.client.end_limit();
    pair.client.end_limit();
    assert!(pair.worker.stop_watching());
    assert!(pair.client.begin_limit(), "nobody watches any more");
}

#[test]
fn input_waits_while_an_awake_worker_does_not_look() {
    let pair = Pair::new(SMALL);
    assert!(!pair.client.worker_input_waits());
    pair.worker.arm();
    pair.client.note(1);
    assert!(
        !pair.client.worker_input_waits(),
        "it sleeps, and was not woken for that"
    );
    pair.client.notify(1);
    assert!(pair.client.worker_input_waits());
    pair.worker.take_ready(|_| {});
    assert!(!pair.client.worker_input_waits());
}

/// Whatever a worker that has gone mad writes there, a look at it gives a slot that there is,
/// or nothing.
#[test]
fn nonsense_in_the_activity_names_no_slot_that_is_not_there() {
    let pair = Pair::new(SMALL);
    for slot in [0, SMALL.slots, u32::MAX] {
        pair.worker.begin_step(slot, u64::MAX, u64::MAX, None);
        assert_eq!(pair.client.running(), None, "slot {slot}");
        pair.worker.end_step();
    }
    pair.worker
        .begin_step(SMALL.slots - 1, u64::MAX, u64::MAX, None);
    assert!(pair.client.running().is_some());
}

/// A look while steps come and go sees one of them whole, or none.
#[test]
fn a_look_never_mixes_two_steps() {
    let pair = Pair::new(SMALL);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..200_000_u64 {
                let slot = 1 + (number % 3) as u32;
                pair.worker.begin_step(slot, number, number, None);
                pair.worker.end_step();
            }
            over.store(true, Relaxed);
        });
        let mut last = 0;
        while !over.load(Relaxed) {
            if let Some(seen) = pair.client.running() {
                assert_eq!(seen.stream, seen.event);
                assert_eq!(seen.slot, 1 + (seen.stream % 3) as u32);
                assert_eq!(seen.step, 2 * seen.stream + 1);
                assert!(seen.stream >= last);
                last = seen.stream;
            }
        }
    });
}
