//! Both ends busy at once, with real doorbells: nothing is lost, reordered or waited for in vain.
#![cfg(not(loom))]

mod common;

use std::collections::VecDeque;
use std::time::Duration;

use common::{Pair, message};
use velo_shm::{Consumer, Limits, Link, LinkSpec, Producer, ReserveError, Spin};

const SPEC: LinkSpec = LinkSpec {
    slots: 130,
    ring_bytes: 256,
    heap_bytes: 64 << 20,
};
/// Far longer than anything here takes: a wake-up that is lost fails a test.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until the link has something for this end, as an event loop would.
fn wait(end: &Link, spin: &mut Spin) {
    if let Some(plan) = spin.plan(|| end.may_share_core())
        && spin.run(plan, || end.any_ready())
    {
        return;
    }
    end.arm();
    if !end.any_ready() {
        assert!(
            end.doorbell().wait(Some(PATIENCE)).unwrap(),
            "a wake-up was lost"
        );
    }
    end.disarm();
    end.doorbell().drain();
}

fn len_of(number: u64) -> usize {
    match number % 97 {
        0 => 30_000,
        1..4 => 700,
        other => other as usize % 50,
    }
}

/// Sends numbered messages, waiting for space where there is none.
fn produce(end: Link, slot: u32, mut producer: Producer, count: u64) {
    let mut spin = Spin::new();
    for number in 0..count {
        let len = len_of(number);
        loop {
            let waits = match producer.reserve(len, true) {
                Ok(mut room) => {
                    room[..len].copy_from_slice(&message(number, len));
                    room.commit(2, len);
                    break;
                }
                Err(ReserveError::Full(velo_shm::Full::Events)) => {
                    notify(&end, slot, &mut producer);
                    producer.wait_for_space().unwrap()
                }
                Err(ReserveError::Full(velo_shm::Full::Bytes)) => {
                    notify(&end, slot, &mut producer);
                    producer.wait_for_bytes(len).unwrap()
                }
                Err(other) => panic!("{other}"),
            };
            if waits {
                wait(&end, &mut spin);
                end.take_ready(|_| ());
            }
        }
        if number % 7 == 0 {
            notify(&end, slot, &mut producer);
        }
    }
    notify(&end, slot, &mut producer);
}

fn notify(end: &Link, slot: u32, producer: &mut Producer) {
    if producer.publish() {
        end.notify(slot);
    }
}

/// Receives what `produce` sends in each of these slots, holding leases of some for a while.
fn consume(end: &Link, mut consumers: Vec<(u32, Consumer)>, count: u64) {
    let mut spin = Spin::new();
    let mut next = vec![0; consumers.len()];
    let mut leases = VecDeque::new();
    while next.iter().any(|&next| next < count) {
        wait(end, &mut spin);
        end.take_ready(|slot| {
            let index = consumers.iter().position(|(own, _)| *own == slot).unwrap();
            let (slot, consumer) = &mut consumers[index];
            while let Some(frame) = consumer.peek().unwrap() {
                let number = next[index];
                assert_eq!(frame.payload, message(number, len_of(number)));
                next[index] += 1;
                if number.is_multiple_of(11) && consumer.may_lease() {
                    leases.push_back((consumer.lease(), number));
                } else {
                    consumer.release();
                }
                if number.is_multiple_of(5) && consumer.publish() {
                    end.notify(*slot);
                }
            }
            while leases.len() > 8 {
                let (lease, number) = leases.pop_front().unwrap();
                assert_eq!(&*lease, &message(number, len_of(number)));
            }
            if consumer.publish() {
                end.notify(*slot);
            }
        });
    }
}

fn one_stream(limits: Limits, count: u64) {
    let pair = Pair::new(SPEC);
    let (producer, consumer) = pair.way_in(1, limits);
    let client = pair.client.clone();
    let sender = std::thread::spawn(move || produce(client, 1, producer, count));
    consume(&pair.worker, vec![(1, consumer)], count);
    sender.join().unwrap();
}

#[test]
fn a_stream_with_a_narrow_event_bound() {
    one_stream(
        Limits {
            events: 2,
            bytes: 1 << 20,
        },
        20_000,
    );
}

#[test]
fn a_stream_with_a_narrow_ring() {
    one_stream(
        Limits {
            events: 10_000,
            bytes: 1 << 16,
        },
        20_000,
    );
}

#[test]
fn streams_in_many_slots_from_several_threads() {
    let pair = Pair::new(SPEC);
    let limits = Limits {
        events: 16,
        bytes: 1 << 18,
    };
    let (mut consumers, mut senders) = (Vec::new(), Vec::new());
    for slot in [0, 63, 64, 129] {
        let (producer, consumer) = pair.way_in(slot, limits);
        consumers.push((slot, consumer));
        senders.push((slot, producer));
    }
    const COUNT: u64 = 3000;
    // One thread sends for all slots in turn; each slot has its own bound, so none may starve.
    let client = pair.client.clone();
    let threads: Vec<_> = senders
        .into_iter()
        .map(|(slot, producer)| {
            let client = client.clone();
            std::thread::spawn(move || patient(client, slot, producer, COUNT))
        })
        .collect();
    consume(&pair.worker, consumers, COUNT);
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
}

/// Like `produce`, without the doorbell: several threads of one side cannot share one.
fn patient(end: Link, slot: u32, mut producer: Producer, count: u64) {
    for number in 0..count {
        let len = len_of(number);
        while let Err(error) = common::try_send(&mut producer, &message(number, len)) {
            assert!(matches!(error, ReserveError::Full(_)), "{error}");
            notify(&end, slot, &mut producer);
            std::thread::yield_now();
        }
        notify(&end, slot, &mut producer);
    }
}
