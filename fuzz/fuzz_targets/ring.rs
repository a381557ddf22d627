//! Both halves of a ring, in a slot that is written over between any two calls, and now and then
//! during them. Whatever lies there: a call returns, with a frame inside its ring or with an error.
#![no_main]

use std::thread;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use velo_fuzz::{HeapSegment, Value, link, scribble};
use velo_shm::{Consumer, Lease, Limits, LinkSpec, Producer, ReserveError};

const SPEC: LinkSpec = LinkSpec {
    slots: 2,
    ring_bytes: 256,
    heap_bytes: 64 << 10,
};
const LIMITS: Limits = Limits {
    events: 16,
    bytes: 32 << 10,
};
/// Where slot 0 begins: behind the link header, at a page.
const SLOTS_AT: usize = 8192;
const SLOT: usize = 2 * 192 + 2 * 256;
const HEAPS_AT: usize = SLOTS_AT + 4096;
const MOST_OPS: usize = 256;

#[derive(Arbitrary, Debug)]
enum Op {
    Send {
        len: u16,
        counted: bool,
    },
    Publish,
    WaitForSpace,
    WaitForBytes(u16),
    WantFrom(u8),
    Look,
    Peek,
    Release,
    Lease,
    DropLease(u8),
    Skip,
    Free,
    /// A word of the slot: its headers, its data.
    Slot(u16, Value),
    /// A word of the heaps, near the beginning of a block.
    Heap {
        block: u8,
        word: u8,
        value: Value,
    },
    Bytes {
        at: u16,
        bytes: [u8; 24],
    },
    /// A frame that sends the consumer elsewhere.
    Move {
        at: u8,
        offset: Value,
        capacity: Value,
    },
    /// Another thread writes over the segment while the next steps run.
    Race {
        seed: u64,
    },
    /// Both sides let go, and a new stream begins.
    Reopen,
}

struct Halves {
    producer: Producer,
    consumer: Consumer,
    leases: Vec<Lease>,
}

fuzz_target!(|ops: Vec<Op>| {
    let (segment, [client, worker]) = link(&SPEC);
    let open = || {
        let (producer, _) = client.open_slot(0, LIMITS).ok()?;
        let (_, consumer) = worker.open_slot(0, LIMITS).ok()?;
        let leases = Vec::new();
        Some(Halves {
            producer,
            consumer,
            leases,
        })
    };
    let mut halves = open().expect("a fresh slot");
    for op in ops.into_iter().take(MOST_OPS) {
        match op {
            Op::Race { seed } => thread::scope(|scope| {
                scope.spawn(|| scribble(&segment, seed, SLOTS_AT, SLOT + 20_000, 2000));
                for round in 0..24 {
                    let len = (seed >> (round % 56)) as u16 % 900;
                    halves.apply(&segment, Op::Send { len, counted: true });
                    halves.apply(&segment, Op::Publish);
                    halves.apply(&segment, Op::Peek);
                    halves.apply(
                        &segment,
                        if round % 5 == 0 {
                            Op::Lease
                        } else {
                            Op::Release
                        },
                    );
                    halves.apply(&segment, Op::Free);
                    halves.apply(&segment, Op::WaitForSpace);
                }
            }),
            Op::Reopen => {
                drop(halves);
                client.reset_slot(0).expect("memory");
                match open() {
                    Some(next) => halves = next,
                    None => return,
                }
            }
            op => halves.apply(&segment, op),
        }
    }
});

impl Halves {
    fn apply(&mut self, segment: &HeapSegment, op: Op) {
        let Halves {
            producer,
            consumer,
            leases,
        } = self;
        let store = |at: usize, value: Value| {
            let word = segment.word(at);
            let old = word.load(std::sync::atomic::Ordering::SeqCst);
            word.store(value.from(old), std::sync::atomic::Ordering::SeqCst);
        };
        match op {
            Op::Send { len, counted } => {
                let len = usize::from(len) % 20_000;
                match producer.reserve(len, counted) {
                    Ok(mut room) => {
                        assert!(room.len() >= len);
                        inside(segment, &room);
                        room.fill(7);
                        room.commit(2, len);
                    }
                    Err(ReserveError::TooLarge { .. }) => assert!(!producer.would_fit(len)),
                    Err(_) => {}
                }
                assert!(u64::from(producer.in_flight()) <= producer.committed());
                assert!(producer.skipped() <= producer.committed());
            }
            Op::Publish => drop(producer.publish()),
            Op::WaitForSpace => drop(producer.wait_for_space()),
            Op::WaitForBytes(len) => drop(producer.wait_for_bytes(len.into())),
            Op::WantFrom(first) => producer.want_from(first.into()),
            Op::Look => {
                consumer.has_data();
                producer.free_events();
                producer.watch_releases().ok();
                producer.restate();
                consumer.restate();
                consumer.may_lease();
            }
            Op::Peek => match consumer.peek() {
                Ok(Some(frame)) => {
                    inside(segment, frame.payload);
                    assert!(frame.kind >= velo_shm::FIRST_KIND);
                    std::hint::black_box(frame.payload.iter().fold(0u8, |sum, &b| sum ^ b));
                }
                Ok(None) => {}
                Err(broken) => assert_eq!(consumer.peek(), Err(broken), "it stays broken"),
            },
            Op::Release => consumer.release(),
            Op::Lease => {
                if consumer.peek().is_ok_and(|frame| frame.is_some()) {
                    let lease = consumer.lease();
                    inside(segment, &lease);
                    leases.push(lease);
                }
            }
            Op::DropLease(number) => {
                if !leases.is_empty() {
                    leases.swap_remove(usize::from(number) % leases.len());
                }
            }
            Op::Skip => drop(consumer.skip_unwanted()),
            Op::Free => drop(consumer.publish()),
            Op::Slot(at, value) => store(SLOTS_AT + usize::from(at) % SLOT, value),
            Op::Heap { block, word, value } => {
                let at = HEAPS_AT + usize::from(block % 32) * 4096;
                store(at + usize::from(word) * 8, value);
            }
            Op::Bytes { at, bytes } => segment.write(SLOTS_AT + usize::from(at), &bytes),
            Op::Move {
                at,
                offset,
                capacity,
            } => {
                // The way in has the second half of the slot.
                let at = SLOTS_AT + 2 * 192 + 256 + usize::from(at % 32) * 8;
                store(at, Value::Any(16 | 1 << 32));
                store(at + 8, offset);
                store(at + 16, capacity);
            }
            Op::Race { .. } | Op::Reopen => unreachable!("done by the caller"),
        }
    }
}

fn inside(segment: &HeapSegment, bytes: &[u8]) {
    use velo_shm::Segment;

    let start = segment.base().as_ptr().addr() + SLOTS_AT;
    let end = segment.base().as_ptr().addr() + segment.len();
    let at = bytes.as_ptr_range();
    assert!(start <= at.start.addr() && at.end.addr() <= end);
}
