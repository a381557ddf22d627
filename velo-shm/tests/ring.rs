//! One ring, both halves in one thread: order, bounds, growth, leases, and who is told when.
#![cfg(not(loom))]

mod common;

use common::{LIMITS, Pair, SMALL, message, receive, send, try_send};
use velo_shm::{Full, Limits, LinkSpec, Producer, ReserveError, ticks};

/// Never grows.
const FIXED: Limits = Limits {
    events: 1 << 20,
    bytes: 256,
};

#[track_caller]
fn full(producer: &mut Producer, len: usize) -> Full {
    match producer.reserve(len, true) {
        Err(ReserveError::Full(full)) => full,
        other => panic!("{other:?}"),
    }
}

#[test]
fn messages_come_out_as_they_went_in() {
    let pair = Pair::new(SMALL);
    let (mut producer, mut consumer) = pair.way_in(0, FIXED);
    for number in 0..1000 {
        let len = number as usize % 100;
        if len as u64 > producer.max_len() {
            continue;
        }
        send(&mut producer, &message(number, len));
        assert_eq!(receive(&mut consumer), Some(message(number, len)));
        assert_eq!(receive(&mut consumer), None);
    }
}

#[test]
fn nothing_is_seen_before_it_is_published() {
    let pair = Pair::new(SMALL);
    let (mut producer, mut consumer) = pair.way_in(0, FIXED);
    assert!(!producer.publish());
    try_send(&mut producer, b"one").unwrap();
    try_send(&mut producer, b"two").unwrap();
    assert!(!consumer.has_data());
    assert_eq!(consumer.peek(), Ok(None));
    assert!(producer.publish());
    assert!(!producer.publish());
    assert!(consumer.has_data());
    assert_eq!(receive(&mut consumer).unwrap(), b"one");
    assert!(consumer.has_data());
    assert_eq!(receive(&mut consumer).unwrap(), b"two");
    assert!(!consumer.has_data());
}

#[test]
fn an_event_that_is_published_alone_has_the_time_of_its_own_release() {
    let pair = Pair::new(SMALL);
    let (mut producer, mut consumer) = pair.way_in(0, FIXED);
    for _ in 0..3 {
        send(&mut producer, b"event");
        assert!(consumer.peek().unwrap().is_some());
        let begin = ticks::shared_now();
        consumer.release();
        let end = ticks::shared_now();
        while end != 0 && ticks::shared_now() == end {}
        consumer.publish();
        assert!((begin..=end).contains(&producer.released_at()));
    }
}

#[test]
fn events_that_are_published_together_have_the_time_of_that() {
    let pair = Pair::new(SMALL);
    let (mut producer, mut consumer) = pair.way_in(0, FIXED);
    for _ in 0..3 {
        send(&mut producer, b"event");
        assert!(consumer.peek().unwrap().is_some());
        consumer.release();
    }
    let begin = ticks::shared_now();
    consumer.publish();
    assert!((begin..=ticks::shared_now()).contains(&producer.released_at()));
}

#[test]
fn peeking_again_gives_the_same_frame() {
    let pair = Pair::new(SMALL);
    let (mut producer, mut consumer) = pair.way_in(0, FIXED);
    send(&mut producer, b"one");
    send(&mut producer, b"two");
    for _ in 0..3 {
        let frame = consumer.peek().unwrap().unwrap();
        assert_eq!(
            (frame.kind, frame.counted, frame.payload),
            (2, true, &b"one"[..])
        );
        assert_eq!(frame.payload.as_ptr().addr() % 8, 0);
    }
    consumer.release();
    consumer.release();
    assert_eq!(receive(&mut consumer).unwrap(), b"two");
}

#[test]
fn a_reservation_that_is_dropped_was_never_there() {
    let pair = Pair::new(SMALL);
    let (mut producer, mut consumer) = pair.way_in(0, FIXED);
    for _ in 0..100 {
        producer.reserve(80, true).unwrap()[..80].fill(1);
    }
    assert_eq!((producer.committed(), producer.publish()), (0, false));
    let mut room = producer.reserve(2, false).unwrap();
    room[0] = 42;
    room.commit(255, 1);
    producer.publish();
    let frame = consumer.peek().unwrap().unwrap();
    assert_eq!(
        (frame.kind, frame.counted, frame.payload),
        (255, false, &[42u8][..])
    );
}

#[test]
fn a_reservation_gives_all_the_room_there_is() {
    let pair = Pair::new(SMALL);
    let (mut producer, mut consumer) = pair.way_in(0, LIMITS);
    let all = producer.reserve(1, true).unwrap();
    let len = all.len();
    assert!(len > 200 && len <= 256 - 8 - 24, "{len}");
    all.commit(2, len);
    producer.publish();
    assert_eq!(receive(&mut consumer).unwrap().len(), len);

    let (mut producer, _consumer) = pair.way_in(1, FIXED);
    let longest = producer.max_len() as usize;
    assert_eq!(
        producer.reserve(1, true).unwrap().len(),
        longest,
        "never more than may be sent"
    );
}

#[test]
#[should_panic(expected = "the ring's own")]
fn the_rings_own_kinds_cannot_be_committed() {
    let pair = Pair::new(SMALL);
    let (mut producer, _consumer) = pair.way_in(0, FIXED);
    producer.reserve(1, true).unwrap().commit(1, 1);
}

#[test]
#[should_panic(expected = "more used than reserved")]
fn more_than_was_reserved_cannot_be_committed() {
    let pair = Pair::new(SMALL);
    let (mut producer, _consumer) = pair.way_in(0, FIXED);
    let room = producer.reserve(1, true).unwrap();
    let len = room.len();
    room.commit(2, len + 1);
}

#[test]
#[should_panic(expected = "peeked at before")]
fn only_a_peeked_frame_can_be_leased() {
    let pair = Pair::new(SMALL);
    pair.way_in(0, FIXED).1.lease();
}

#[test]
fn events_are_bounded_until_they_are_released() {
    let pair = Pair::new(SMALL);
    let limits = Limits {
        events: 3,
        bytes: 1 << 16,
    };
    let (mut producer, mut consumer) = pair.way_in(0, limits);
    for left in (0..3).rev() {
        send(&mut producer, b"event");
        assert_eq!(producer.free_events(), left);
    }
    assert_eq!(full(&mut producer, 1), Full::Events);
    producer.reserve(1, false).unwrap().commit(2, 1);
    assert_eq!(
        (
            producer.in_flight(),
            producer.committed(),
            producer.released()
        ),
        (3, 3, 0)
    );
    consumer.peek().unwrap();
    consumer.release();
    assert_eq!(
        full(&mut producer, 1),
        Full::Events,
        "the release was not published"
    );
    consumer.publish();
    assert_eq!(
        (
            producer.in_flight(),
            producer.released(),
            consumer.released()
        ),
        (2, 1, 1)
    );
    assert_eq!(producer.free_events(), 1);
    send(&mut producer, b"event");
    while receive(&mut consumer).is_some() {}
    assert_eq!((producer.in_flight(), producer.free_events()), (0, 3));
}

#[test]
fn a_ring_that_may_not_grow_is_full_until_space_is_released() {
    let pair = Pair::new(SMALL);
    let (mut producer, mut consumer) = pair.way_in(0, FIXED);
    let mut sent = 0;
    while try_send(&mut producer, &message(sent, 16)).is_ok() {
        sent += 1;
    }
    assert_eq!(sent, (256 - 40) / 24);
    producer.publish();
    assert_eq!(full(&mut producer, 16), Full::Bytes);
    for number in 0..sent {
        assert_eq!(receive(&mut consumer), Some(message(number, 16)));
    }
    send(&mut producer, b"again");
    assert_eq!(receive(&mut consumer).unwrap(), b"again");
}

#[test]
fn what_can_never_fit_is_said_at_once() {
    let pair = Pair::new(SMALL);
    let limits = Limits {
        events: 10,
        bytes: 100_000,
    };
    let (mut producer, mut consumer) = pair.way_in(0, limits);
    let limit = producer.max_len() as usize;
    assert!(limit > 62_000 && limit < 65_536, "{limit}");
    assert!(producer.would_fit(limit) && !producer.would_fit(limit + 1));
    for len in [limit + 1, 1 << 40, usize::MAX] {
        assert!(!producer.would_fit(len));
        let error = producer.reserve(len, true).unwrap_err();
        assert!(matches!(error, ReserveError::TooLarge { .. }), "{error}");
        assert!(error.to_string().contains(&limit.to_string()), "{error}");
    }
    for _ in 0..20 {
        send(&mut producer, &message(1, limit));
        assert_eq!(receive(&mut consumer), Some(message(1, limit)));
    }
}

#[test]
fn the_longest_message_fits_from_every_position_of_an_empty_ring() {
    for start in 0..40 {
        let pair = Pair::new(SMALL);
        let (mut producer, mut consumer) = pair.way_in(0, FIXED);
        for _ in 0..start {
            send(&mut producer, b"");
            receive(&mut consumer).unwrap();
        }
        let longest = message(start, producer.max_len() as usize);
        send(&mut producer, &longest);
        assert_eq!(receive(&mut consumer), Some(longest));
    }
}

#[test]
fn a_large_ring_grows_by_no_more_than_is_needed() {
    let pair = Pair::new(SMALL);
    let limits = Limits {
        events: 100,
        bytes: 32 << 20,
    };
    let (mut producer, _consumer) = pair.way_in(0, limits);
    let frame = message(1, 900_000);
    let capacities = [4, 4, 4, 4, 8, 8].map(|mib| mib << 20);
    for (number, capacity) in capacities.into_iter().enumerate() {
        try_send(&mut producer, &frame).unwrap();
        assert_eq!(producer.capacity(), capacity, "after frame {number}");
    }
}

#[test]
fn a_ring_grows_for_a_message_that_does_not_fit() {
    let pair = Pair::new(SMALL);
    let (mut producer, mut consumer) = pair.way_in(0, LIMITS);
    for start in 0..40 {
        try_send(&mut producer, &message(start, 0)).unwrap();
    }
    for len in [200, 1000, 5000, 20_000, 100_000, 500_000] {
        try_send(&mut producer, &message(7, len)).unwrap();
        try_send(&mut producer, b"between").unwrap();
    }
    assert_eq!(producer.capacity(), 1 << 20);
    assert!(producer.publish());
    for start in 0..40 {
        assert_eq!(receive(&mut consumer), Some(message(start, 0)));
    }
    for len in [200, 1000, 5000, 20_000, 100_000, 500_000] {
        assert_eq!(receive(&mut consumer), Some(message(7, len)));
        assert_eq!(receive(&mut consumer).unwrap(), b"between");
    }
    assert_eq!(consumer.capacity(), 1 << 20);
    assert!(!consumer.has_data());
}

#[test]
fn a_ring_grows_from_every_position() {
    for start in 0..64 {
        let pair = Pair::new(SMALL);
        let (mut producer, mut consumer) = pair.way_in(0, LIMITS);
        for _ in 0..start {
            send(&mut producer, b"");
            receive(&mut consumer).unwrap();
        }
        send(&mut producer, &message(1, 3000));
        assert_eq!(receive(&mut consumer), Some(message(1, 3000)));
    }
}

#[test]
fn a_burst_grows_the_ring_until_the_event_bound() {
    let pair = Pair::new(SMALL);
    let limits = Limits {
        events: 5000,
        bytes: 1 << 20,
    };
    let (mut producer, mut consumer) = pair.way_in(0, limits);
    let mut sent = 0;
    while try_send(&mut producer, &message(sent, 50)).is_ok() {
        sent += 1;
    }
    assert_eq!((sent, full(&mut producer, 1)), (5000, Full::Events));
    assert!(producer.publish());
    for number in 0..sent {
        assert_eq!(receive(&mut consumer), Some(message(number, 50)));
    }
    assert_eq!(producer.free_events(), 5000);
}

#[test]
fn growth_along_with_a_reservation_that_is_dropped_does_no_harm() {
    let pair = Pair::new(SMALL);
    let (mut producer, mut consumer) = pair.way_in(0, LIMITS);
    producer.reserve(1000, true).unwrap().fill(1);
    assert!(!producer.publish(), "a move is nothing to tell of");
    assert_eq!(consumer.peek(), Ok(None));
    assert!(!consumer.has_data());
    try_send(&mut producer, b"one").unwrap();
    producer.reserve(100_000, true).unwrap().fill(1);
    assert!(
        producer.publish(),
        "what went along with the move has to be told of"
    );
    assert!(!producer.publish());
    assert_eq!(receive(&mut consumer).unwrap(), b"one");
}

#[test]
fn a_heap_that_is_used_up_bounds_the_ring() {
    let spec = LinkSpec {
        heap_bytes: 12 << 10,
        ..SMALL
    };
    let pair = Pair::new(spec);
    let limits = Limits {
        events: 1 << 20,
        bytes: 1 << 30,
    };
    let (mut producer, mut consumer) = pair.way_in(0, limits);
    assert_eq!(producer.max_len(), 4096 - 40 - 8);
    send(&mut producer, &message(1, 4048));
    let (mut other, _consumer) = pair.way_in(1, limits);
    // 12 KiB hold one block of 4 KiB with its header page, and not a second.
    let error = other.reserve(1000, true).unwrap_err();
    assert!(matches!(error, ReserveError::NoMemory(_)), "{error}");
    while try_send(&mut other, &message(1, 16)).is_ok() {}
    assert_eq!(full(&mut other, 16), Full::Bytes, "small ones can wait");
    assert_eq!(other.wait_for_space(), Ok(true));
    assert_eq!(receive(&mut consumer), Some(message(1, 4048)));
}

#[test]
fn blocks_come_back_when_their_streams_are_gone() {
    let spec = LinkSpec {
        heap_bytes: 8 << 20,
        ..SMALL
    };
    let pair = Pair::new(spec);
    for _ in 0..50 {
        assert!(pair.client.reset_slot(1).unwrap());
        let (mut producer, mut consumer) = pair.way_in(1, LIMITS);
        send(&mut producer, &message(1, 400_000));
        consumer.peek().unwrap();
        let lease = consumer.lease();
        drop((producer, consumer));
        assert_eq!(&*lease, &message(1, 400_000));
    }
}

#[test]
fn a_block_is_not_reused_while_a_lease_of_it_lives() {
    let spec = LinkSpec {
        heap_bytes: 8 << 20,
        ..SMALL
    };
    let pair = Pair::new(spec);
    let (mut producer, mut consumer) = pair.way_in(1, LIMITS);
    send(&mut producer, &message(1, 3000));
    consumer.peek().unwrap();
    let lease = consumer.lease();
    drop((producer, consumer));
    let (mut producer, mut consumer) = pair.way_in(2, LIMITS);
    for number in 0..100 {
        send(&mut producer, &message(number, 3000));
        assert_eq!(receive(&mut consumer), Some(message(number, 3000)));
    }
    assert_eq!(&*lease, &message(1, 3000));
}

#[test]
fn memory_goes_back_to_the_system_after_a_large_message() {
    let spec = LinkSpec {
        heap_bytes: 256 << 20,
        ..SMALL
    };
    let segment = std::sync::Arc::new(velo_shm::MemfdSegment::create(spec.segment_len()).unwrap());
    let pair = Pair::on(segment.clone(), spec);
    let resident = || nix::sys::stat::fstat(&*segment).unwrap().st_blocks * 512;
    let limits = Limits {
        events: 10,
        bytes: 64 << 20,
    };
    let (mut producer, mut consumer) = pair.way_in(1, limits);
    send(&mut producer, &message(1, 8 << 20));
    receive(&mut consumer).unwrap();
    assert!(resident() > 8 << 20);
    drop((producer, consumer));
    pair.client.reclaim();
    assert!(resident() < 1 << 20, "{}", resident());
}

#[test]
fn leases_hold_space_and_let_go_of_it_in_any_order() {
    let pair = Pair::new(SMALL);
    let (mut producer, mut consumer) = pair.way_in(0, FIXED);
    for number in 0..5 {
        try_send(&mut producer, &message(number, 32)).unwrap();
    }
    producer.publish();
    let mut leases: Vec<_> = (0..5)
        .map(|_| {
            consumer.peek().unwrap().unwrap();
            Some(consumer.lease())
        })
        .collect();
    assert_eq!(
        (consumer.outstanding_leases(), consumer.leased_bytes()),
        (5, 160)
    );
    assert!(!consumer.publish());
    assert_eq!(producer.in_flight(), 0, "a leased event had its turn");
    assert_eq!(full(&mut producer, 32), Full::Bytes);
    assert_eq!(producer.wait_for_bytes(64), Ok(true));
    for (index, free) in [(2, false), (1, false), (0, true)] {
        leases[index] = None;
        assert_eq!(consumer.publish(), free, "lease {index}");
    }
    assert_eq!(
        (consumer.outstanding_leases(), consumer.leased_bytes()),
        (2, 64)
    );
    send(&mut producer, &message(9, 32));
    assert_eq!(&**leases[3].as_ref().unwrap(), &message(3, 32));
    assert_eq!(receive(&mut consumer), Some(message(9, 32)));
}

#[test]
fn dropping_a_lease_tells_its_own_side_to_look() {
    let pair = Pair::new(SMALL);
    let (mut producer, mut consumer) = pair.way_in(3, FIXED);
    send(&mut producer, b"leased");
    consumer.peek().unwrap();
    let lease = consumer.lease();
    pair.worker.arm();
    std::thread::spawn(move || drop(lease)).join().unwrap();
    assert!(pair.worker.doorbell().drain());
    let mut slots = Vec::new();
    pair.worker.take_ready(|slot| slots.push(slot));
    assert_eq!(slots, [3]);
}

#[test]
fn hoarding_leases_makes_the_ring_grow_until_they_may_not_be_had() {
    let pair = Pair::new(SMALL);
    let (mut producer, mut consumer) = pair.way_in(
        0,
        Limits {
            events: 100,
            bytes: 1 << 16,
        },
    );
    let mut leases = Vec::new();
    let mut copies = 0;
    for number in 0..2000 {
        send(&mut producer, &message(number, 100));
        assert_eq!(
            consumer.peek().unwrap().unwrap().payload,
            message(number, 100)
        );
        if consumer.may_lease() {
            leases.push((number, consumer.lease()));
        } else {
            consumer.release();
            copies += 1;
        }
        consumer.publish();
    }
    assert!(
        leases.len() > 100 && copies > 1000,
        "{} leases",
        leases.len()
    );
    assert_eq!(consumer.outstanding_leases(), leases.len());
    for (number, lease) in leases {
        assert_eq!(&*lease, &message(number, 100));
    }
    assert_eq!(
        (consumer.outstanding_leases(), consumer.leased_bytes()),
        (0, 0)
    );
}

#[test]
fn a_producer_that_waits_for_events_is_told() {
    let pair = Pair::new(SMALL);
    let (mut producer, mut consumer) = pair.way_in(
        0,
        Limits {
            events: 1,
            bytes: 256,
        },
    );
    assert_eq!(producer.wait_for_space(), Ok(false), "there is space");
    send(&mut producer, b"one");
    assert_eq!(producer.wait_for_space(), Ok(true));
    consumer.peek().unwrap();
    assert!(!consumer.publish(), "nothing was released yet");
    consumer.release();
    assert!(consumer.publish(), "the producer waits");
    assert!(!consumer.publish());
    assert_eq!(producer.wait_for_space(), Ok(false));
    send(&mut producer, b"two");
    assert_eq!(producer.wait_for_space(), Ok(true));
    producer.stop_waiting();
    consumer.peek().unwrap();
    consumer.release();
    assert!(!consumer.publish(), "the producer does not wait any more");
}

#[test]
fn a_producer_that_waits_for_bytes_is_told() {
    let pair = Pair::new(SMALL);
    let (mut producer, mut consumer) = pair.way_in(0, FIXED);
    for number in 0..3 {
        try_send(&mut producer, &message(number, 40)).unwrap();
    }
    producer.publish();
    assert_eq!(full(&mut producer, 80), Full::Bytes);
    assert_eq!(
        producer.wait_for_space(),
        Ok(false),
        "a small one would fit"
    );
    assert_eq!(producer.wait_for_bytes(80), Ok(true));
    assert!(receive_told(&mut consumer));
    let mut rounds = 0;
    while producer.wait_for_bytes(80).unwrap() {
        assert!(receive_told(&mut consumer));
        rounds += 1;
    }
    assert!(rounds < 3);
    send(&mut producer, &message(9, 80));
}

fn receive_told(consumer: &mut velo_shm::Consumer) -> bool {
    consumer.peek().unwrap().unwrap();
    consumer.release();
    consumer.publish()
}

#[test]
fn what_is_not_wanted_any_more_is_skipped() {
    let pair = Pair::new(SMALL);
    let limits = Limits {
        events: 100,
        bytes: 1 << 16,
    };
    let (mut producer, mut consumer) = pair.way_in(0, limits);
    for number in 0..10 {
        send(&mut producer, &message(number, 30));
    }
    consumer.skip_unwanted().unwrap();
    assert_eq!(receive(&mut consumer), Some(message(0, 30)));
    producer.want_from(4);
    consumer.skip_unwanted().unwrap();
    assert_eq!(receive(&mut consumer), Some(message(4, 30)));
    assert_eq!((producer.skipped(), producer.released()), (3, 5));
    producer.want_from(u64::MAX);
    producer.reserve(1, false).unwrap().commit(2, 1);
    producer.publish();
    consumer.skip_unwanted().unwrap();
    consumer.publish();
    assert!(
        !consumer.peek().unwrap().unwrap().counted,
        "what is not counted is always wanted"
    );
    assert_eq!((producer.skipped(), producer.in_flight()), (8, 0));
}
