//! The header of a link: attaching to bytes that say they are one, and using one whose header is
//! written over while both sides are attached.
#![no_main]

use std::sync::atomic::Ordering;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use velo_fuzz::{HeapSegment, Value, attach, link};
use velo_shm::{Limits, Link, LinkSpec, ReserveError, initialise};

const SPEC: LinkSpec = LinkSpec {
    slots: 3,
    ring_bytes: 128,
    heap_bytes: 8192,
};
const LIMITS: Limits = Limits {
    events: 4,
    bytes: 4096,
};
/// The header is a little longer than a page.
const HEADER: usize = 8192;
const MOST_OPS: usize = 256;

#[derive(Arbitrary, Debug)]
struct Input {
    /// The header before the attach: arbitrary, or a valid one with some words changed.
    before: Before,
    ops: Vec<Op>,
}

#[derive(Arbitrary, Debug)]
enum Before {
    Bytes(Vec<u8>),
    Words(Vec<(u8, Value)>),
    /// A segment that is shorter than its link.
    Short(u16),
    Right,
}

#[derive(Arbitrary, Debug)]
enum Op {
    Store(u16, Value),
    Ready(bool),
    Notify(bool, u8),
    Note(bool, u8),
    Arm(bool),
    Disarm(bool),
    Enter(bool),
    Leave(bool),
    CloseEntry(bool),
    Retire(bool),
    Numbers(bool),
    Talk(u8),
}

fuzz_target!(|input: Input| {
    let whole = SPEC.segment_len();
    let segment = match &input.before {
        Before::Short(len) => HeapSegment::new(usize::from(*len) + 1),
        _ => HeapSegment::new(whole),
    };
    match input.before {
        Before::Bytes(bytes) => segment.write(0, &bytes),
        Before::Words(words) => {
            initialise(&*segment, &SPEC).expect("it fits");
            for (word, value) in words {
                // The numbers of the header are its first 72 bytes.
                store(&segment, usize::from(word % 10) * 8, value);
            }
        }
        Before::Short(_) => drop(initialise(&*segment, &SPEC)),
        Before::Right => initialise(&*segment, &SPEC).expect("it fits"),
    }
    let Ok(ends) = attach(&segment) else {
        // The link was refused; the rest of the input runs on a valid one.
        let (segment, ends) = link(&SPEC);
        return run(&segment, &ends, input.ops);
    };
    run(&segment, &ends, input.ops);
});

fn run(segment: &HeapSegment, ends: &[Link; 2], ops: Vec<Op>) {
    let slots = ends[0].slots();
    let end = |side: bool| &ends[usize::from(side)];
    for op in ops.into_iter().take(MOST_OPS) {
        match op {
            Op::Store(at, value) => store(segment, usize::from(at) % HEADER, value),
            Op::Ready(side) => {
                end(side).any_ready();
                end(side).any_ready_but(0);
                end(side).take_ready(|slot| assert!(slot < slots));
            }
            Op::Notify(side, slot) => {
                end(side).notify(u32::from(slot) % slots);
            }
            Op::Note(side, slot) => {
                end(side).note(u32::from(slot) % slots);
                end(side).wake();
            }
            Op::Arm(side) => end(side).arm(),
            Op::Disarm(side) => end(side).disarm(),
            Op::Enter(side) => drop(end(side).enter()),
            Op::Leave(side) => end(side).leave(),
            Op::CloseEntry(side) => end(side).close_entry(),
            Op::Retire(side) => drop(end(side).try_retire()),
            Op::Numbers(side) => {
                end(side).residents();
                end(side).opened_total();
                end(side).counters();
                end(side).check().ok();
                end(side).mend();
            }
            Op::Talk(slot) => talk(ends, u32::from(slot) % slots),
        }
    }
}

/// Sends one message, and receives it unless the slot itself was written over.
fn talk([client, worker]: &[Link; 2], slot: u32) {
    if !client.reset_slot(slot).expect("memory") {
        return;
    }
    let (Ok((mut producer, _)), Ok((_, mut consumer))) = (
        client.open_slot(slot, LIMITS),
        worker.open_slot(slot, LIMITS),
    ) else {
        return;
    };
    match producer.reserve(5, true) {
        Ok(mut room) => {
            room[..5].copy_from_slice(b"hello");
            room.commit(2, 5);
        }
        Err(ReserveError::Full(_) | ReserveError::Corrupted(_)) => return,
        Err(error) => panic!("{error}"),
    }
    producer.publish();
    client.notify(slot);
    let frame = consumer
        .peek()
        .expect("nothing that was written over is read again");
    assert_eq!(frame.expect("it was published").payload, b"hello");
    consumer.release();
    consumer.publish();
}

fn store(segment: &HeapSegment, at: usize, value: Value) {
    let word = segment.word(at);
    word.store(value.from(word.load(Ordering::SeqCst)), Ordering::SeqCst);
}
