//! The protocol under every interleaving and every reordering that the memory model allows.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test --release -p velo-shm --test loom`. The code is the
//! real one; only the atomics are loom's, the doorbell is one that loom sees someone wait on, and
//! the segment tells loom of every access to a ring's data, so that a race is found even where the
//! bytes happen to be right.
#![cfg(loom)]
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "a segment of one process"
)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::HashMap;
use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use loom::cell::UnsafeCell;
use loom::thread;
use velo_shm::{
    Bells, Consumer, Doorbell, Full, Limits, Link, LinkSpec, Producer, ReserveError, Segment, Side,
    initialise, lending_len,
};

/// Memory of this process, which knows who may touch what.
#[derive(Debug)]
struct Model {
    base: NonNull<u8>,
    layout: Layout,
    cells: Mutex<HashMap<usize, Arc<UnsafeCell<()>>>>,
}

unsafe impl Send for Model {}
unsafe impl Sync for Model {}

impl Model {
    fn new(len: usize) -> Self {
        let layout = Layout::from_size_align(len, 4096).unwrap();
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap();
        Model {
            base,
            layout,
            cells: Mutex::default(),
        }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

unsafe impl Segment for Model {
    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn len(&self) -> usize {
        self.layout.size()
    }

    fn commit(&self, _offset: usize, _len: usize) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _offset: usize, _len: usize) -> io::Result<()> {
        Ok(())
    }

    fn track(&self, offset: usize, len: usize, write: bool) {
        for granule in offset / 8..(offset + len).div_ceil(8) {
            let cell = self
                .cells
                .lock()
                .unwrap()
                .entry(granule)
                .or_default()
                .clone();
            if write {
                cell.with_mut(|_| ());
            } else {
                cell.with(|_| ());
            }
        }
    }
}

/// The ends of a link.
struct Pair {
    client: Link,
    worker: Link,
}

impl Pair {
    fn new(slots: u32, heap_bytes: u64) -> Self {
        let spec = LinkSpec {
            slots,
            ring_bytes: 128,
            heap_bytes,
        };
        let segment = Arc::new(Model::new(spec.segment_len()));
        initialise(&*segment, &spec).unwrap();
        let (a, b) = (Doorbell::create().unwrap(), Doorbell::create().unwrap());
        let bells = Bells {
            mine: a.clone(),
            theirs: b.clone(),
        };
        let client = Link::attach(segment.clone(), Side::Client, bells).unwrap();
        let bells = Bells { mine: b, theirs: a };
        let worker = Link::attach(segment, Side::Worker, bells).unwrap();
        Pair { client, worker }
    }

    fn way_in(&self, slot: u32, events: u32) -> (Producer, Consumer) {
        let limits = Limits {
            events,
            bytes: 1 << 12,
        };
        let (producer, _) = self.client.open_slot(slot, limits).unwrap();
        let (_, consumer) = self.worker.open_slot(slot, limits).unwrap();
        (producer, consumer)
    }
}

fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    builder.check(model);
}

fn try_send(producer: &mut Producer, number: u8, len: usize) -> Result<(), ReserveError> {
    let mut room = producer.reserve(len, true)?;
    room[..len].fill(number);
    room.commit(2, len);
    Ok(())
}

fn receive(consumer: &mut Consumer) -> Option<u8> {
    let frame = consumer.peek().unwrap()?;
    let number = frame.payload[0];
    assert!(frame.payload.iter().all(|&byte| byte == number));
    consumer.release();
    Some(number)
}

/// Waits on the doorbell unless `look` finds something.
fn sleep(end: &Link, look: impl FnOnce() -> bool) {
    end.arm();
    if !look() {
        end.doorbell().wait();
    }
    end.disarm();
}

#[test]
fn frames_cross_through_a_ring_that_wraps() {
    check(4, || {
        let pair = Pair::new(1, 0);
        let (mut producer, mut consumer) = pair.way_in(0, 100);
        // Shortly before the end, so that padding is needed, and full, so that what the consumer
        // still reads is written over next.
        for number in 0..4 {
            try_send(&mut producer, number, 16).unwrap();
            producer.publish();
            assert_eq!(receive(&mut consumer), Some(number));
            consumer.publish();
        }
        for number in 1..=3 {
            try_send(&mut producer, number, 16).unwrap();
        }
        producer.publish();
        let sender = thread::spawn(move || {
            for number in 4..=6 {
                while try_send(&mut producer, number, 16).is_err() {
                    thread::yield_now();
                }
                producer.publish();
            }
        });
        for expected in 1..=6 {
            let number = loop {
                match receive(&mut consumer) {
                    Some(number) => break number,
                    None => thread::yield_now(),
                }
            };
            assert_eq!(number, expected);
            // Not after every one: the full fence of a publish would help out the next.
            if expected % 3 == 0 {
                consumer.publish();
            }
        }
        assert_eq!(receive(&mut consumer), None);
        sender.join().unwrap();
    });
}

/// The worker sleeps until everything came; `look` is its last look before it does, `tell` is how
/// the client tells it.
fn everything_arrives(
    look: impl Fn(&Link, &mut Consumer) -> bool + Copy + Send + Sync + 'static,
    tell: impl Fn(&Link) + Copy + Send + Sync + 'static,
) {
    check(4, move || {
        let pair = Pair::new(1, 0);
        let (mut producer, mut consumer) = pair.way_in(0, 100);
        let client = pair.client;
        let sender = thread::spawn(move || {
            for number in 1..=2 {
                try_send(&mut producer, number, 8).unwrap();
                assert!(producer.publish());
                tell(&client);
            }
            producer
        });
        let worker = pair.worker;
        let mut got = 0;
        while got < 2 {
            let mut ready = false;
            worker.take_ready(|_| ready = true);
            if ready {
                while let Some(number) = receive(&mut consumer) {
                    got += 1;
                    assert_eq!(number, got);
                }
            }
            if got < 2 {
                sleep(&worker, || look(&worker, &mut consumer));
            }
        }
        sender.join().unwrap();
    });
}

#[test]
fn a_consumer_that_looks_at_the_ready_bits_misses_no_event_and_no_wake() {
    everything_arrives(
        |worker, _| worker.any_ready(),
        |client| {
            client.notify(0);
        },
    );
}

#[test]
fn what_is_noted_arrives_once_the_side_is_woken() {
    everything_arrives(
        |worker, _| worker.any_ready(),
        |client| {
            client.note(0);
            client.wake();
        },
    );
}

#[test]
fn a_consumer_that_looks_at_its_ring_misses_no_event_and_no_wake() {
    check(4, || {
        let pair = Pair::new(1, 0);
        let (mut producer, mut consumer) = pair.way_in(0, 100);
        let client = pair.client;
        let sender = thread::spawn(move || {
            for number in 1..=2 {
                try_send(&mut producer, number, 8).unwrap();
                producer.publish();
                client.notify(0);
            }
            producer
        });
        let mut got = 0;
        while got < 2 {
            match receive(&mut consumer) {
                Some(_) => got += 1,
                None => sleep(&pair.worker, || consumer.has_data()),
            }
        }
        sender.join().unwrap();
    });
}

#[test]
fn two_streams_that_share_a_word_of_ready_bits_are_both_seen() {
    check(3, || {
        let pair = Pair::new(2, 0);
        let (streams, mut consumers): (Vec<_>, Vec<_>) =
            (0..2).map(|slot| pair.way_in(slot, 100)).unzip();
        let senders: Vec<_> = (0..)
            .zip(streams)
            .map(|(slot, mut producer)| {
                let client = pair.client.clone();
                thread::spawn(move || {
                    try_send(&mut producer, 1, 8).unwrap();
                    producer.publish();
                    client.notify(slot);
                    producer
                })
            })
            .collect();
        let mut got = 0;
        while got < 2 {
            pair.worker.take_ready(|slot| {
                while receive(&mut consumers[slot as usize]).is_some() {
                    got += 1;
                }
            });
            if got < 2 {
                sleep(&pair.worker, || pair.worker.any_ready());
            }
        }
        senders
            .into_iter()
            .for_each(|sender| drop(sender.join().unwrap()));
    });
}

/// Sends, and sleeps whenever there is no space.
fn send_patiently(client: &Link, producer: &mut Producer, number: u8, len: usize) {
    loop {
        let waits = match try_send(producer, number, len) {
            Ok(()) => break,
            Err(ReserveError::Full(Full::Events)) => producer.wait_for_space().unwrap(),
            Err(ReserveError::Full(Full::Bytes)) => producer.wait_for_bytes(len).unwrap(),
            Err(other) => panic!("{other}"),
        };
        if waits {
            sleep(client, || client.any_ready());
            client.take_ready(|_| ());
        }
    }
    producer.publish();
}

fn space_is_told_of(events: u32, before: u8, count: u8, len: usize) {
    check(4, move || {
        let pair = Pair::new(1, 0);
        let (mut producer, mut consumer) = pair.way_in(0, events);
        for number in 0..before {
            try_send(&mut producer, number, len).unwrap();
        }
        producer.publish();
        let client = pair.client;
        let sender = thread::spawn(move || {
            for number in before..before + count {
                send_patiently(&client, &mut producer, number, len);
            }
            producer
        });
        // The consumer looks again and again; only the producer sleeps in this model.
        for expected in 0..before + count {
            let number = loop {
                match receive(&mut consumer) {
                    Some(number) => break number,
                    None => thread::yield_now(),
                }
            };
            assert_eq!(number, expected);
            if consumer.publish() {
                pair.worker.notify(0);
            }
        }
        sender.join().unwrap();
    });
}

#[test]
fn a_producer_that_waits_for_events_is_woken() {
    space_is_told_of(1, 1, 1, 8);
}

#[test]
fn a_producer_that_waits_for_bytes_is_woken() {
    space_is_told_of(100, 3, 1, 16);
}

#[test]
fn both_sides_can_sleep() {
    check(3, || {
        let pair = Pair::new(1, 0);
        let (mut producer, mut consumer) = pair.way_in(0, 1);
        let client = pair.client;
        let sender = thread::spawn(move || {
            for number in 1..=2 {
                send_patiently(&client, &mut producer, number, 8);
                client.notify(0);
            }
            producer
        });
        let mut got = 0;
        while got < 2 {
            pair.worker.take_ready(|_| ());
            while receive(&mut consumer).is_some() {
                got += 1;
                if consumer.publish() {
                    pair.worker.notify(0);
                }
            }
            if got < 2 {
                sleep(&pair.worker, || pair.worker.any_ready());
            }
        }
        sender.join().unwrap();
    });
}

#[test]
fn space_of_a_lease_dropped_elsewhere_reaches_a_producer_that_waits() {
    check(3, || {
        let pair = Pair::new(1, 0);
        let (mut producer, mut consumer) = pair.way_in(0, 100);
        for number in 0..3 {
            try_send(&mut producer, number, 16).unwrap();
        }
        producer.publish();
        consumer.peek().unwrap();
        let lease = consumer.lease();
        let client = pair.client;
        let sender = thread::spawn(move || {
            send_patiently(&client, &mut producer, 3, 16);
            producer
        });
        let holder = thread::spawn(move || {
            assert!(lease.iter().all(|&byte| byte == 0));
            drop(lease);
        });
        // The consumer reads nothing on; it only passes on what it is told of.
        let mut told = false;
        while !told {
            sleep(&pair.worker, || pair.worker.any_ready());
            pair.worker.take_ready(|_| told = true);
        }
        if consumer.publish() {
            pair.worker.notify(0);
        }
        holder.join().unwrap();
        sender.join().unwrap();
    });
}

#[test]
fn a_ring_that_moves_keeps_the_order_and_its_block_is_let_go_of() {
    check(4, || {
        let pair = Pair::new(1, 12 << 10);
        let (mut producer, mut consumer) = pair.way_in(0, 100);
        let client = pair.client;
        let sender = thread::spawn(move || {
            try_send(&mut producer, 1, 8).unwrap();
            try_send(&mut producer, 2, 100).unwrap();
            producer.publish();
            drop(producer);
            client
        });
        for expected in 1..=2 {
            let number = loop {
                match receive(&mut consumer) {
                    Some(number) => break number,
                    None => thread::yield_now(),
                }
            };
            assert_eq!(number, expected);
            consumer.publish();
        }
        drop(consumer);
        let client = sender.join().unwrap();
        client.reclaim();
        assert!(client.slot_idle(0));
        // There is room for one block of this size: it has to be the same one.
        client.reset_slot(0).unwrap();
        let (mut producer, _consumer) = client
            .open_slot(
                0,
                Limits {
                    events: 1,
                    bytes: 1 << 12,
                },
            )
            .unwrap();
        try_send(&mut producer, 3, 1000).unwrap();
    });
}

#[test]
fn space_of_a_lease_is_not_written_to_while_it_is_read() {
    check(3, || {
        let pair = Pair::new(1, 0);
        let (mut producer, mut consumer) = pair.way_in(0, 100);
        for number in 1..=3 {
            try_send(&mut producer, number, 16).unwrap();
        }
        producer.publish();
        consumer.peek().unwrap();
        let lease = consumer.lease();
        assert_eq!(receive(&mut consumer), Some(2));
        assert_eq!(receive(&mut consumer), Some(3));
        consumer.publish();
        let holder = thread::spawn(move || assert!(lease.iter().all(|&byte| byte == 1)));
        let sender = thread::spawn(move || {
            // The third of these goes to where the lease is.
            for number in 4..=6 {
                while try_send(&mut producer, number, 16).is_err() {
                    thread::yield_now();
                }
            }
            producer.publish();
        });
        // No one tells the consumer: it happens to see that the lease is gone, or not. It passes
        // all the space on at once, with nothing else to order what was read before it.
        while receive(&mut consumer).is_none() {
            consumer.publish();
            thread::yield_now();
        }
        holder.join().unwrap();
        sender.join().unwrap();
    });
}

#[test]
fn a_producer_that_watches_releases_is_woken() {
    check(4, || {
        let pair = Pair::new(1, 0);
        let (mut producer, mut consumer) = pair.way_in(0, 100);
        try_send(&mut producer, 1, 8).unwrap();
        producer.publish();
        let client = pair.client;
        let sender = thread::spawn(move || {
            loop {
                producer.watch_releases().unwrap();
                if producer.released() == 1 {
                    break;
                }
                sleep(&client, || client.any_ready());
                client.take_ready(|_| ());
            }
        });
        assert_eq!(receive(&mut consumer), Some(1));
        if consumer.publish() {
            pair.worker.notify(0);
        }
        sender.join().unwrap();
    });
}

#[test]
fn a_block_is_not_written_to_while_it_is_read() {
    check(3, || {
        let pair = Pair::new(2, 12 << 10);
        let (mut producer, mut consumer) = pair.way_in(0, 100);
        let (mut next, _next_consumer) = pair.way_in(1, 100);
        try_send(&mut producer, 1, 1000).unwrap();
        producer.publish();
        let client = pair.client;
        let sender = thread::spawn(move || {
            drop(producer);
            // There is room for one such block: this one waits for that of the other stream.
            while try_send(&mut next, 2, 1000).is_err() {
                thread::yield_now();
                client.reclaim();
            }
            next
        });
        assert_eq!(receive(&mut consumer), Some(1));
        drop(consumer);
        sender.join().unwrap();
    });
}

/// A slot's heap has room for one block: what the consumer reads is what the producer writes next.
#[test]
fn a_loan_is_lent_again_once_its_reader_is_done_and_its_producer_is_told() {
    check(3, || {
        let pair = Pair::new(1, 1 << 14);
        let (mut producer, mut consumer) = pair.way_in(0, 100);
        let (client, worker) = (pair.client, pair.worker);
        let len = 16;
        let lend = move |producer: &mut Producer, number: u8| {
            let loan = producer.loan(len)?;
            unsafe { loan.start().as_ptr().write_bytes(number, len) };
            let part = producer.part(loan.start().as_ptr(), len).unwrap();
            let room = producer.reserve(lending_len(0, 1), true).unwrap();
            room.commit_lending(2, 0, &[part]);
            producer.publish();
            Ok::<_, ReserveError>(())
        };
        lend(&mut producer, 1).unwrap();
        client.notify(0);
        let reader = thread::spawn(move || {
            let mut got = 0;
            while got < 2 {
                worker.take_ready(|_| ());
                while consumer.peek().unwrap().is_some() {
                    let leases = consumer.borrow();
                    consumer.release();
                    got += 1;
                    assert!(leases[0].iter().all(|&byte| byte == got));
                }
                if got < 2 {
                    sleep(&worker, || worker.any_ready() || consumer.has_data());
                }
            }
        });
        loop {
            match lend(&mut producer, 2) {
                Ok(()) => break,
                Err(ReserveError::Full(Full::Bytes)) => {}
                Err(other) => panic!("{other}"),
            }
            client.take_ready(|_| ());
            if producer.wait_for_loan(len) {
                sleep(&client, || client.any_ready());
            }
        }
        client.notify(0);
        reader.join().unwrap();
    });
}
