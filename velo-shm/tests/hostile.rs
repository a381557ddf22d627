//! A peer that scribbles: it can spoil its own stream, and nothing else.
//!
//! Whatever lies in shared memory, a call returns (soon), with a frame inside the ring or with an
//! error; it never panics, never reads outside of the segment, never goes on for ever.
#![cfg(not(loom))]
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "a hostile peer asks no one"
)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Pair, message, send, try_send};
use velo_shm::{Consumer, Limits, LinkSpec, Producer, ReserveError, RingCorrupted, Segment};

const SPEC: LinkSpec = LinkSpec {
    slots: 2,
    ring_bytes: 512,
    heap_bytes: 1 << 20,
};
const LIMITS: Limits = Limits {
    events: 16,
    bytes: 1 << 16,
};
/// Where what is said to the client begins, behind the link's lines; what is said to the worker follows.
const DIRECTION: usize = 320;
const DIRECTION_LEN: usize = 64 + 64 + 16384 / 8 + 64;
/// Where slot 0 begins: behind the link header, at a page.
const SLOTS_AT: usize = 8192;
const HEADER: usize = 192;
const SLOT: usize = 2 * (HEADER + 512);

/// A small generator: the same numbers for the same seed, everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// A value that is likely to be nearly right.
    fn value(&mut self) -> u64 {
        match self.below(6) {
            0 => 0,
            1 => self.next(),
            2 => u64::MAX - self.next() % 16,
            3 => (self.next() % 1024) & !7,
            4 => 1 << self.below(64),
            _ => self.next() % 64,
        }
    }
}

fn word(segment: &dyn Segment, offset: usize) -> &AtomicU64 {
    assert!(offset + 8 <= segment.len());
    unsafe { AtomicU64::from_ptr(segment.base().as_ptr().add(offset & !7).cast()) }
}

/// Uses both halves in every way; ends when they are broken, or after some rounds.
fn exercise(
    producer: &mut Producer,
    consumer: &mut Consumer,
    random: &mut Random,
    segment: &dyn Segment,
) {
    let inside = segment.base().as_ptr().addr()..segment.base().as_ptr().addr() + segment.len();
    let mut leases = Vec::new();
    for _ in 0..20 {
        if random.below(3) == 0
            && let Ok(loan) = producer.loan(1 + random.below(20_000))
        {
            producer.wait_for_loan(loan.len());
            let part = producer.part(loan.start().as_ptr(), loan.len()).unwrap();
            if let Ok(room) = producer.reserve(100, true) {
                room.commit_lending(2, random.below(50), &[part.clone(), part]);
            }
        }
        match try_send(producer, &message(1, random.below(900))) {
            Ok(()) | Err(ReserveError::Full(_) | ReserveError::NoMemory(_)) => {}
            Err(ReserveError::Corrupted(_)) => {}
            Err(other) => panic!("{other}"),
        }
        producer.publish();
        producer.free_events();
        assert!(producer.skipped() <= producer.committed());
        assert!(producer.in_flight() as u64 <= producer.committed());
        let _ = producer.wait_for_space();
        let _ = producer.wait_for_bytes(100);
        for _ in 0..4 {
            consumer.has_data();
            let _ = consumer.skip_unwanted();
            let frame = match consumer.peek() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(broken) => {
                    assert_eq!(
                        consumer.peek(),
                        Err(broken),
                        "broken once is broken for ever"
                    );
                    break;
                }
            };
            let at = frame.payload.as_ptr_range();
            assert!(inside.contains(&at.start.addr()) && at.end.addr() <= inside.end);
            std::hint::black_box(frame.payload.iter().map(|&b| b as u64).sum::<u64>());
            if random.below(2) == 0 {
                leases.extend(consumer.borrow());
                for lease in &leases {
                    let at = lease.as_ptr_range();
                    assert!(inside.contains(&at.start.addr()) && at.end.addr() <= inside.end);
                }
            }
            if random.below(4) == 0 {
                leases.push(consumer.lease());
            } else {
                consumer.release();
            }
            consumer.publish();
        }
        while leases.len() > 3 {
            leases.swap_remove(random.below(leases.len()));
        }
    }
}

#[test]
fn scribbles_anywhere_in_a_slot_do_no_harm() {
    for seed in 0..400 {
        let mut random = Random(seed);
        let pair = Pair::new(SPEC);
        let (mut producer, mut consumer) = pair.way_in(0, LIMITS);
        for _ in 0..10 {
            exercise(&mut producer, &mut consumer, &mut random, &*pair.segment);
            for _ in 0..1 + random.below(4) {
                let offset = match random.below(3) {
                    0 => SLOTS_AT + random.below(2 * HEADER),
                    1 => SLOTS_AT + random.below(SLOT),
                    // The heap: headers of grown rings among others.
                    _ => SLOTS_AT + 4096 + random.below(64 << 10),
                };
                word(&*pair.segment, offset).store(random.value(), Ordering::SeqCst);
            }
        }
    }
}

#[test]
fn a_peer_that_scribbles_all_the_time_does_no_harm() {
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut seed = 0;
    while Instant::now() < deadline {
        seed += 1;
        let pair = Pair::new(SPEC);
        let stop = Arc::new(AtomicBool::new(false));
        let peer = std::thread::spawn({
            let (segment, stop) = (pair.segment.clone(), stop.clone());
            move || {
                let mut random = Random(seed);
                while !stop.load(Ordering::Relaxed) {
                    let offset = SLOTS_AT + random.below(SLOT + 20_000);
                    word(&*segment, offset).store(random.value(), Ordering::SeqCst);
                    if random.below(64) == 0 {
                        std::thread::yield_now();
                    }
                }
            }
        });
        let mut random = Random(!seed);
        let (mut producer, mut consumer) = pair.way_in(0, LIMITS);
        for _ in 0..50 {
            exercise(&mut producer, &mut consumer, &mut random, &*pair.segment);
        }
        stop.store(true, Ordering::Relaxed);
        peer.join().unwrap();
    }
}

#[test]
fn scribbles_over_the_link_header_do_no_harm_to_those_who_are_attached() {
    let pair = Pair::new(SPEC);
    let mut random = Random(7);
    for _ in 0..2000 {
        let offset = random.below(SLOTS_AT);
        word(&*pair.segment, offset).store(random.value(), Ordering::SeqCst);
        for end in [&pair.client, &pair.worker] {
            assert_eq!(end.slots(), 2);
            end.take_ready(|slot| assert!(slot < 2));
            end.notify(1);
            end.any_ready();
            end.arm();
            end.leave();
            end.enter();
            end.residents();
            end.counters();
            end.open_slots(8);
            end.queued();
            end.check().ok();
            end.doorbell().drain();
        }
    }
    // Both can still talk: nothing that was read once is read again.
    let (mut producer, mut consumer) = pair.way_in(1, LIMITS);
    send(&mut producer, b"still here");
    assert_eq!(common::receive(&mut consumer).unwrap(), b"still here");
}

#[test]
fn a_changed_header_is_found() {
    const RESIDENCE: usize = 128;
    let changes = [
        (0, 1),
        (8, 1),
        (16, 1),
        (24, 1),
        (64, 1),
        (RESIDENCE, 1 << 40),
        (DIRECTION, 2),
        (DIRECTION + DIRECTION_LEN, 1 << 31),
    ];
    for (offset, change) in changes {
        let pair = Pair::new(SPEC);
        let _rings = pair.way_in(1, LIMITS);
        pair.client.arm();
        assert!(pair.client.check().is_ok() && pair.worker.check().is_ok());
        word(&*pair.segment, offset).fetch_xor(change, Ordering::SeqCst);
        for end in [&pair.client, &pair.worker] {
            let found = end.check().expect_err("a change");
            assert!(found.to_string().contains("corrupted"), "{offset}");
        }
    }
}

#[test]
fn a_slot_that_was_hidden_is_found_again() {
    for (to, from, side) in [(0, true, 0), (1, false, 1)] {
        let pair = Pair::new(SPEC);
        let ends = [&pair.client, &pair.worker];
        let (teller, looker) = (ends[usize::from(from)], ends[side]);
        // The slot's bit, without the one that says where to look for it.
        let bits = DIRECTION + to * DIRECTION_LEN + 128;
        word(&*pair.segment, bits).store(2, Ordering::SeqCst);
        teller.notify(1);
        assert!(!looker.any_ready(), "it is hidden");
        pair.client.mend();
        let mut found = Vec::new();
        looker.take_ready(|slot| found.push(slot));
        assert_eq!(found, [1]);
    }
}

/// One published message, and then what the peer makes of it.
fn broken_by(scribble: impl FnOnce(&dyn Fn(usize, u64))) -> Result<Vec<u8>, RingCorrupted> {
    let pair = Pair::new(SPEC);
    let (mut producer, mut consumer) = pair.way_in(0, LIMITS);
    send(&mut producer, b"message");
    // Slot 0's ring to the worker: the header of that side is the second of the two.
    scribble(&|offset, value| {
        word(&*pair.segment, SLOTS_AT + offset).store(value, Ordering::SeqCst)
    });
    consumer.peek().map(|frame| {
        frame
            .map(|frame| frame.payload.to_vec())
            .unwrap_or_default()
    })
}

const TAIL: usize = HEADER;
const DATA: usize = 2 * HEADER + 512;

fn frame(len: u64, kind: u64, flags: u64) -> u64 {
    len | kind << 32 | flags << 40
}

#[test]
fn each_rule_that_is_broken_is_named() {
    assert_eq!(broken_by(|_| {}).unwrap(), b"message");
    let what = |broken: Result<Vec<u8>, RingCorrupted>| broken.unwrap_err().what;
    assert!(what(broken_by(|put| put(TAIL, 17))).contains("more was published"));
    assert!(what(broken_by(|put| put(TAIL, 520))).contains("more was published"));
    assert!(what(broken_by(|put| put(TAIL, u64::MAX - 7))).contains("more was published"));
    assert!(what(broken_by(|put| put(DATA, frame(4096, 2, 0)))).contains("beyond the end"));
    assert!(what(broken_by(|put| put(DATA, frame(0xFFFF_FFFF, 2, 0)))).contains("beyond the end"));
    assert!(
        what(broken_by(|put| put(DATA, frame(100, 2, 0)))).contains("beyond what was published")
    );
    assert!(what(broken_by(|put| put(DATA, frame(7, 2, 4)))).contains("flags"));
    assert!(what(broken_by(|put| put(DATA, frame(8, 0, 0)))).contains("padding"));
    assert!(what(broken_by(|put| put(DATA, frame(8, 1, 0)))).contains("moved frame"));
}

/// A moved frame, made up by the peer.
fn moved_to(offset: u64, capacity: u64) -> Result<Vec<u8>, RingCorrupted> {
    broken_by(|put| {
        put(DATA, frame(16, 1, 0));
        put(DATA + 8, offset);
        put(DATA + 16, capacity);
        put(TAIL, 24);
    })
}

#[test]
fn a_move_to_where_no_ring_can_be_is_refused() {
    let heap = (SLOTS_AT + 2 * SLOT).next_multiple_of(4096) as u64;
    // The heap that the client writes comes second: it is the one the worker reads from.
    let to_worker = [heap, heap + (1 << 20)]
        .into_iter()
        .find(|&start| moved_to(start, 4096).is_ok())
        .expect("the beginning of a heap is a place for a ring");
    let end = to_worker + (1 << 20);
    let other = if to_worker == heap { end } else { heap };
    for capacity in [0, 1, 64, 3000, 1 << 33, 1 << 63, u64::MAX] {
        assert!(
            moved_to(to_worker, capacity)
                .unwrap_err()
                .what
                .contains("size")
        );
    }
    for offset in [
        0,
        to_worker + 8,
        to_worker - 4096,
        end - 4096,
        end,
        other,
        u64::MAX - 4095,
    ] {
        assert!(
            moved_to(offset, 4096).unwrap_err().what.contains("outside"),
            "{offset}"
        );
    }
    assert!(
        moved_to(to_worker, 1 << 20)
            .unwrap_err()
            .what
            .contains("outside")
    );
    assert!(
        moved_to(to_worker, 512)
            .unwrap_err()
            .what
            .contains("not larger")
    );
}

/// A frame that names parts of loans, made up by the peer: the words of its payload.
fn naming(words: &[u64]) -> Result<Vec<u8>, RingCorrupted> {
    broken_by(|put| {
        put(DATA, frame(8 * words.len() as u64, 2, 2));
        for (index, word) in words.iter().enumerate() {
            put(DATA + 8 + 8 * index, *word);
        }
        put(TAIL, 8 + 8 * words.len() as u64);
    })
}

/// The last word of such a frame.
fn end(used: u64, parts: u64) -> u64 {
    used | parts << 32
}

#[test]
fn a_loan_where_none_can_be_is_refused() {
    let heap = (SLOTS_AT + 2 * SLOT).next_multiple_of(4096) as u64 + (1 << 20);
    let all = (1 << 20) - 4096;
    for (start, len) in [
        (0, 0),
        (0, 1),
        (0, all),
        (all, 0),
        (all - 1, 1),
        (77, all - 77),
    ] {
        assert_eq!(naming(&[heap, start, len, end(0, 1)]).unwrap(), b"");
    }
    assert_eq!(naming(&[5, heap, 0, 1, end(3, 1)]).unwrap(), [5, 0, 0]);
    assert!(
        naming(&[heap, 0, 1, heap, 0, 1, end(0, 2)]).is_ok(),
        "a block may be named twice"
    );
    for (block, start, len) in [
        (0, 0, 1),
        (heap + 8, 0, 1),
        (heap - 4096, 0, 1),
        (heap - (1 << 20), 0, 1),
        (heap + all, 0, 1),
        (heap + all + 4096, 0, 0),
        (heap, 0, all + 1),
        (heap, all + 1, 0),
        (heap, all, 1),
        (heap, u64::MAX, 1),
        (heap, 1, u64::MAX),
        (heap, u64::MAX - 4095, u64::MAX),
        (u64::MAX - 4095, 0, 1),
    ] {
        let what = naming(&[block, start, len, end(0, 1)]).unwrap_err().what;
        assert!(what.contains("outside"), "{block} {start} {len}");
    }
    for words in [
        &[][..],
        &[end(0, 0)],
        &[end(0, 1)],
        &[heap, 0, 1, end(0, 0)],
        &[heap, 0, 1, end(0, 2)],
        &[heap, 0, 1, end(0, u64::from(u32::MAX))],
        &[heap, 0, 1, end(1, 1)],
        &[heap, 0, 1, end(u64::from(u32::MAX), 1)],
        &[0, 0, heap, 0, 1, end(0, 1)],
        &[0, 0, heap, 0, 1, end(8, 1)],
    ] {
        let what = naming(words).unwrap_err().what;
        assert!(what.contains("table"), "{words:?}");
    }
}

#[test]
fn a_consumer_that_gives_back_what_it_has_not_spoils_only_what_it_reads() {
    let pair = Pair::new(SPEC);
    let (mut producer, mut consumer) = pair.way_in(0, LIMITS);
    for round in 0..100u64 {
        let loan = producer.loan(20_000).unwrap();
        let part = producer.part(loan.start().as_ptr(), 20_000).unwrap();
        let at = loan.start().as_ptr().addr() - 4096 - pair.segment.base().as_ptr().addr();
        let room = producer.reserve(100, true).unwrap();
        room.commit_lending(2, 0, &[part]);
        producer.publish();
        // Where a block counts the frames that are done with.
        let value = [0, 1, 2, u64::MAX, 1 << 40][round as usize % 5];
        word(&*pair.segment, at + 64 + 8).store(value, Ordering::SeqCst);
        drop(loan);
        producer.wait_for_loan(20_000);
        consumer.peek().unwrap();
        let leases = consumer.borrow();
        consumer.release();
        consumer.publish();
        assert_eq!(leases[0].len(), 20_000);
    }
    drop(consumer);
    drop(producer);
    assert!(pair.client.slot_idle(0));
}

#[test]
fn a_consumer_that_lies_to_its_producer_is_found_out() {
    const HEAD: usize = HEADER + 64;
    const RELEASED: usize = HEAD + 8;
    for (offset, value) in [(HEAD, 4), (HEAD, 1 << 20), (HEAD, u64::MAX), (RELEASED, 99)] {
        let pair = Pair::new(SPEC);
        let events = if offset == HEAD { 1000 } else { 16 };
        let (mut producer, _consumer) = pair.way_in(0, Limits { events, bytes: 512 });
        while try_send(&mut producer, b"message").is_ok() {}
        producer.publish();
        word(&*pair.segment, SLOTS_AT + offset).store(value, Ordering::SeqCst);
        let error = match producer.reserve(100, true) {
            Err(ReserveError::Corrupted(broken)) => broken,
            other => panic!("{other:?} for {value} at {offset}"),
        };
        assert!(error.to_string().contains("close the stream"));
        assert_eq!(producer.wait_for_space(), Err(error));
        if offset == RELEASED {
            assert_eq!((producer.free_events(), producer.in_flight()), (0, 16));
        }
    }
}

#[test]
fn what_was_said_is_said_again_where_it_was_written_over() {
    let pair = Pair::new(SPEC);
    let (mut producer, mut consumer) = pair.way_in(0, LIMITS);
    send(&mut producer, b"message");
    let put = |offset: usize, value: u64| {
        word(&*pair.segment, SLOTS_AT + offset).store(value, Ordering::SeqCst)
    };
    put(TAIL, 0);
    assert_eq!(consumer.peek(), Ok(None), "it is hidden");
    producer.restate();
    assert_eq!(common::receive(&mut consumer).unwrap(), b"message");
    put(TAIL + 64, 0);
    put(TAIL + 72, 0);
    assert_eq!(producer.in_flight(), 1, "the release is hidden");
    consumer.restate();
    assert_eq!(producer.in_flight(), 0);
    assert_eq!(producer.wait_for_space(), Ok(false));
}

#[test]
fn bytes_that_change_while_they_are_read_are_only_wrong() {
    let pair = Pair::new(SPEC);
    let (mut producer, mut consumer) = pair.way_in(0, LIMITS);
    send(&mut producer, b"message");
    consumer.peek().unwrap();
    let lease = consumer.lease();
    let byte = unsafe { AtomicU8::from_ptr(lease.as_ptr().cast_mut()) };
    byte.store(b'M', Ordering::SeqCst);
    assert_eq!(lease.len(), 7);
}
