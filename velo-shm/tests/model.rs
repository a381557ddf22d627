//! A ring against a queue: whatever is done in whatever order, the same comes out.
#![cfg(not(loom))]

mod common;

use std::collections::VecDeque;

use common::{Pair, message};
use proptest::prelude::*;
use velo_shm::{Lease, Limits, LinkSpec, ReserveError};

#[derive(Clone, Debug)]
enum Step {
    /// Reserve this many bytes, and commit a part of them or none.
    Send {
        len: usize,
        counted: bool,
        publish: bool,
        commit: bool,
    },
    Receive {
        publish: bool,
    },
    Lease,
    /// Drop one of the leases, by its number modulo how many there are.
    DropLease(usize),
    PublishProducer,
    PublishConsumer,
    Wait,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = prop_oneof![6 => 0usize..64, 3 => 64usize..600, 1 => 600usize..20_000];
    let send = (len, any::<bool>(), any::<bool>(), prop::bool::weighted(0.9)).prop_map(
        |(len, counted, publish, commit)| Step::Send {
            len,
            counted,
            publish,
            commit,
        },
    );
    let step = prop_oneof![
        8 => send,
        6 => any::<bool>().prop_map(|publish| Step::Receive { publish }),
        2 => Just(Step::Lease),
        2 => any::<usize>().prop_map(Step::DropLease),
        1 => Just(Step::PublishProducer),
        1 => Just(Step::PublishConsumer),
        1 => Just(Step::Wait),
    ];
    prop::collection::vec(step, 1..400)
}

struct Sent {
    payload: Vec<u8>,
    counted: bool,
    kind: u8,
}

fn run(steps: Vec<Step>, ring_bytes: u32, limits: Limits) {
    let pair = Pair::new(LinkSpec {
        slots: 2,
        ring_bytes,
        heap_bytes: 1 << 20,
    });
    let (mut producer, mut consumer) = pair.way_in(1, limits);
    let mut committed: VecDeque<Sent> = VecDeque::new();
    let mut published: VecDeque<Sent> = VecDeque::new();
    let mut leases: Vec<(Lease, Vec<u8>)> = Vec::new();
    let (mut events, mut released) = (0u64, 0u64);
    let mut number = 0;

    for step in steps {
        match step {
            Step::Send {
                len,
                counted,
                publish,
                commit,
            } => {
                number += 1;
                let before = producer.capacity();
                let fits = producer.would_fit(len);
                let error = match producer.reserve(len, counted) {
                    Ok(mut room) => {
                        assert!(room.len() >= len && fits);
                        if commit {
                            let payload = message(number, len);
                            room[..len].copy_from_slice(&payload);
                            let kind = 2 + (number % 254) as u8;
                            room.commit(kind, len);
                            committed.push_back(Sent {
                                payload,
                                counted,
                                kind,
                            });
                            events += u64::from(counted);
                        }
                        None
                    }
                    Err(error) => Some(error),
                };
                match error {
                    None => {}
                    Some(ReserveError::TooLarge { .. }) => assert!(!fits),
                    Some(ReserveError::Full(velo_shm::Full::Events)) => {
                        assert!(counted && producer.free_events() == 0);
                    }
                    // The heap may be used up by blocks that are still leased.
                    Some(ReserveError::Full(_) | ReserveError::NoMemory(_)) => assert!(fits),
                    Some(other) => panic!("{other}"),
                }
                if producer.capacity() != before {
                    // Moving publishes what was committed before it.
                    let new = usize::from(events_of_last(&committed, commit, len));
                    let rest = committed.split_off(committed.len() - new);
                    published.append(&mut committed);
                    committed = rest;
                }
                if publish {
                    producer.publish();
                    published.append(&mut committed);
                }
            }
            Step::Receive { publish } => {
                let frame = consumer.peek().unwrap();
                match (&frame, published.pop_front()) {
                    (None, None) => {}
                    (Some(frame), Some(sent)) => {
                        assert_eq!((frame.kind, frame.counted), (sent.kind, sent.counted));
                        assert_eq!(frame.payload, sent.payload);
                        released += u64::from(sent.counted);
                    }
                    (frame, sent) => panic!("{frame:?}, sent: {}", sent.is_some()),
                }
                consumer.release();
                if publish {
                    consumer.publish();
                }
            }
            Step::Lease => {
                if consumer.peek().unwrap().is_some() {
                    let sent = published.pop_front().unwrap();
                    leases.push((consumer.lease(), sent.payload));
                    released += u64::from(sent.counted);
                }
            }
            Step::DropLease(index) => {
                if !leases.is_empty() {
                    let (lease, payload) = leases.swap_remove(index % leases.len());
                    assert_eq!(&*lease, &*payload);
                }
            }
            Step::PublishProducer => {
                producer.publish();
                published.append(&mut committed);
            }
            Step::PublishConsumer => {
                consumer.publish();
            }
            Step::Wait => {
                let before = producer.capacity();
                let waits = producer.wait_for_space().unwrap();
                let full = producer.reserve(1, true).is_err();
                assert!(full || !waits, "would sleep with space there");
                if producer.capacity() != before {
                    // The look made the ring grow, and moving publishes.
                    published.append(&mut committed);
                }
            }
        }
        assert_eq!(producer.committed(), events);
        assert!(u64::from(producer.in_flight()) >= events - released);
        assert_eq!(consumer.released(), released);
        assert_eq!(consumer.outstanding_leases(), leases.len());
        for (lease, payload) in &leases {
            assert_eq!(&**lease, &**payload);
        }
    }

    producer.publish();
    published.append(&mut committed);
    for sent in published {
        assert_eq!(consumer.peek().unwrap().unwrap().payload, sent.payload);
        consumer.release();
    }
    assert_eq!(consumer.peek(), Ok(None));
    drop(leases);
    consumer.publish();
    assert_eq!(producer.in_flight(), 0);
    assert_eq!(
        producer.wait_for_bytes(producer.max_len().min(1000) as usize),
        Ok(false)
    );
}

/// Whether the last committed message came after the move that it caused.
fn events_of_last(committed: &VecDeque<Sent>, commit: bool, len: usize) -> bool {
    commit
        && committed
            .back()
            .is_some_and(|sent| sent.payload.len() == len)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_growing_ring_is_a_queue(steps in steps()) {
        run(steps, 256, Limits { events: 64, bytes: 1 << 16 });
    }

    #[test]
    fn the_smallest_ring_is_a_queue(steps in steps()) {
        run(steps, 128, Limits { events: 8, bytes: 128 });
    }

    #[test]
    fn a_ring_bounded_by_its_heap_is_a_queue(steps in steps()) {
        run(steps, 256, Limits { events: 1000, bytes: 1 << 30 });
    }
}
