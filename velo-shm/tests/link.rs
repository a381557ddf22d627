//! Links: what is checked before attaching, who is told what, and who may use which slot.
#![cfg(not(loom))]
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "tests own the whole segment"
)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{LIMITS, Pair, SMALL, backends, memfd, receive, send, try_send};
use velo_shm::{Bells, Counters, Doorbell, Link, LinkError, LinkSpec, MAX_SLOTS, Side, initialise};

fn bells() -> Bells {
    Bells {
        mine: Doorbell::create().unwrap(),
        theirs: Doorbell::create().unwrap(),
    }
}

fn ready(end: &Link) -> Vec<u32> {
    let mut slots = Vec::new();
    end.take_ready(|slot| slots.push(slot));
    slots
}

#[test]
fn a_link_works_on_every_kind_of_segment() {
    for create in backends() {
        let pair = Pair::on(create(SMALL.segment_len()), SMALL);
        let (mut out, _client_in) = pair.client.open_slot(3, LIMITS).unwrap();
        let (mut back, mut worker_in) = pair.worker.open_slot(3, LIMITS).unwrap();
        let large = common::message(1, 300_000);
        send(&mut out, &large);
        assert_eq!(receive(&mut worker_in), Some(large));
        send(&mut back, b"done");
    }
}

#[test]
fn what_was_sent_to_a_side_that_never_opened_the_slot_can_be_read_again() {
    for create in backends() {
        let pair = Pair::on(create(SMALL.segment_len()), SMALL);
        let (mut out, _back) = pair.client.open_slot(3, LIMITS).unwrap();
        assert!(!pair.client.peer_holds(3));
        let messages = [common::message(1, 10), common::message(2, 300_000)];
        for message in &messages {
            send(&mut out, message); // the ring moves for the second one
        }
        let mut unread = out.unread();
        for message in &messages {
            assert_eq!(receive(&mut unread).as_ref(), Some(message));
        }
        assert_eq!(receive(&mut unread), None);
        let ends = pair.worker.open_slot(3, LIMITS).unwrap();
        assert!(pair.client.peer_holds(3));
        drop(ends);
        assert!(!pair.client.peer_holds(3));
        assert!(
            !pair.client.peer_holds(u32::MAX),
            "a slot that there is not"
        );
    }
}

#[test]
fn the_default_link_fits_an_address_space_and_costs_little_memory() {
    let spec = LinkSpec::default();
    assert!(spec.segment_len() > 32 << 30 && spec.segment_len() < 33 << 30);
    let segment = Arc::new(velo_shm::MemfdSegment::create(spec.segment_len()).unwrap());
    initialise(&*segment, &spec).unwrap();
    let end = Link::attach(segment.clone(), Side::Client, bells()).unwrap();
    assert_eq!(end.slots(), MAX_SLOTS);
    let _last = end.open_slot(MAX_SLOTS - 1, LIMITS).unwrap();
    let resident = nix::sys::stat::fstat(&*segment).unwrap().st_blocks * 512;
    assert!(resident < 256 << 10, "{resident}");
}

#[test]
fn impossible_specs_are_refused() {
    let segment = memfd(1 << 20);
    let check = |spec: LinkSpec| initialise(&*segment, &spec).unwrap_err();
    assert!(matches!(
        check(LinkSpec { slots: 0, ..SMALL }),
        LinkError::Slots { slots: 0 }
    ));
    let too_many = LinkSpec {
        slots: MAX_SLOTS + 1,
        ..SMALL
    };
    assert!(matches!(check(too_many), LinkError::Slots { .. }));
    assert_eq!(too_many.segment_len(), usize::MAX);
    for ring_bytes in [0, 64, 1000, u32::MAX] {
        assert!(matches!(
            check(LinkSpec {
                ring_bytes,
                ..SMALL
            }),
            LinkError::RingBytes { .. }
        ));
    }
    let ragged = LinkSpec {
        heap_bytes: 4097,
        ..SMALL
    };
    assert!(matches!(
        check(ragged),
        LinkError::HeapBytes { heap_bytes: 4097 }
    ));
    let vast = LinkSpec {
        heap_bytes: 1 << 63,
        ..SMALL
    };
    assert!(matches!(check(vast), LinkError::Unmappable { .. }));
    assert!(matches!(check(SMALL), LinkError::TooSmall { .. }));
}

#[test]
fn only_an_initialised_link_is_attached_to() {
    let segment = memfd(SMALL.segment_len());
    let attach = || Link::attach(segment.clone(), Side::Client, bells());
    assert!(matches!(attach(), Err(LinkError::NotALink)));
    initialise(&*segment, &SMALL).unwrap();
    attach().unwrap();
    let tiny = memfd(100);
    let error = Link::attach(tiny, Side::Client, bells()).unwrap_err();
    assert!(matches!(error, LinkError::TooSmall { len: 100, .. }));
}

#[test]
fn a_header_that_was_changed_anywhere_is_refused() {
    const INFO: usize = 72;
    let segment = memfd(SMALL.segment_len());
    initialise(&*segment, &SMALL).unwrap();
    for byte in 0..INFO {
        let at = unsafe { segment.base().add(byte) };
        for flip in [1u8, 0x80] {
            unsafe { at.write(at.read() ^ flip) };
            assert!(
                Link::attach(segment.clone(), Side::Worker, bells()).is_err(),
                "byte {byte} was flipped"
            );
            unsafe { at.write(at.read() ^ flip) };
        }
    }
    Link::attach(segment.clone(), Side::Worker, bells()).unwrap();
    unsafe { segment.base().add(8).write(9) };
    let error = Link::attach(segment.clone(), Side::Worker, bells()).unwrap_err();
    assert!(matches!(error, LinkError::Version { found: 9 }), "{error}");
}

#[test]
fn a_header_larger_than_its_segment_is_refused() {
    let large = memfd(SMALL.segment_len());
    initialise(&*large, &SMALL).unwrap();
    let small = memfd(SMALL.segment_len() - 4096);
    let header = 64 << 10;
    unsafe {
        small
            .base()
            .copy_from_nonoverlapping(large.base(), header.min(small.len()))
    };
    let error = Link::attach(small, Side::Client, bells()).unwrap_err();
    assert!(matches!(error, LinkError::TooSmall { .. }), "{error}");
}

#[test]
fn both_sides_are_told_of_the_slots_that_have_something() {
    let pair = Pair::new(LinkSpec {
        slots: MAX_SLOTS,
        ring_bytes: 256,
        heap_bytes: 0,
    });
    let slots = [0, 1, 63, 64, 4095, 4096, MAX_SLOTS - 1];
    for (from, to) in [(&pair.client, &pair.worker), (&pair.worker, &pair.client)] {
        assert!(!to.any_ready());
        for slot in slots {
            from.notify(slot);
            from.notify(slot);
        }
        assert!(to.any_ready());
        assert!(!from.any_ready());
        assert_eq!(ready(to), slots);
        assert!(!to.any_ready());
        assert_eq!(ready(to), []);
    }
}

#[test]
fn the_doorbell_rings_only_for_those_who_sleep() {
    let pair = Pair::new(SMALL);
    let at_once = Some(Duration::ZERO);
    pair.client.notify(1);
    assert!(!pair.worker.doorbell().wait(at_once).unwrap());
    ready(&pair.worker);

    pair.worker.arm();
    assert!(!pair.worker.any_ready());
    pair.client.notify(1);
    pair.client.notify(2);
    assert!(pair.worker.doorbell().wait(at_once).unwrap());
    assert!(pair.worker.doorbell().drain());
    assert_eq!(
        pair.client.counters().to_worker.wakes,
        1,
        "one sleep, one wake"
    );

    pair.worker.arm();
    pair.worker.disarm();
    pair.client.notify(3);
    assert!(!pair.worker.doorbell().drain());
    // A bit that is set already still wakes whoever went to sleep on it.
    pair.worker.arm();
    pair.client.notify(3);
    assert!(pair.worker.doorbell().drain());
}

/// Wakes the worker from a thread on this core; the client's core, and the worker's, may be others.
#[cfg(target_os = "linux")]
fn woken_on(pair: &Pair, client: usize, worker: usize) {
    std::thread::scope(|scope| {
        pair.worker.arm();
        let rings = scope.spawn(|| {
            run_on(client);
            assert!(pair.client.notify(1), "the worker slept");
        });
        rings.join().unwrap();
    });
    run_on(worker);
    pair.worker.woken();
}

#[cfg(target_os = "linux")]
fn run_on(core: usize) {
    let mut cores = nix::sched::CpuSet::new();
    cores.set(core).unwrap();
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cores).unwrap();
}

#[test]
#[cfg(target_os = "linux")]
fn a_side_that_is_woken_on_its_wakers_core_gives_way_once() {
    let this_thread = nix::unistd::Pid::from_raw(0);
    let cores = nix::sched::sched_getaffinity(this_thread).unwrap();
    let usable: Vec<_> = (0..nix::sched::CpuSet::count())
        .filter(|&core| cores.is_set(core).unwrap())
        .collect();
    let pair = Pair::new(SMALL);
    assert!(!pair.worker.shares_core() && !pair.worker.may_share_core());

    woken_on(&pair, usable[0], usable[0]);
    assert!(pair.worker.shares_core());
    assert!(!pair.worker.shares_core(), "once");
    assert!(!pair.worker.may_share_core(), "for whatever comes first");
    woken_on(&pair, usable[0], usable[0]);
    assert!(pair.worker.may_share_core());
    assert!(!pair.worker.shares_core());

    // Whoever rings does not know where the other one wakes up.
    assert!(pair.client.may_share_core());
    assert!(!pair.client.may_share_core(), "once");
    assert!(!pair.client.shares_core(), "nobody has woken it");

    if let Some(&other) = usable.get(1) {
        woken_on(&pair, usable[0], usable[0]);
        woken_on(&pair, other, usable[0]);
        assert!(!pair.worker.may_share_core(), "the last one counts");
    }

    woken_on(&pair, usable[0], usable[0]);
    pair.worker.arm();
    pair.worker.notify_self(1);
    pair.worker.woken();
    assert!(!pair.worker.shares_core(), "nobody waits who told itself");
    nix::sched::sched_setaffinity(this_thread, &cores).unwrap();
}

#[test]
fn a_side_can_tell_itself() {
    let pair = Pair::new(SMALL);
    pair.worker.arm();
    pair.worker.notify_self(2);
    assert!(pair.worker.doorbell().drain());
    assert_eq!(ready(&pair.worker), [2]);
    assert!(!pair.client.any_ready());
}

#[test]
#[should_panic(expected = "no slot `4`")]
fn telling_of_a_slot_that_is_not_there_is_a_mistake() {
    Pair::new(SMALL).client.notify(4);
}

#[test]
fn a_slot_has_one_user_a_side() {
    let pair = Pair::new(SMALL);
    assert!(pair.client.slot_idle(1));
    let (producer, consumer) = pair.client.open_slot(1, LIMITS).unwrap();
    let again = pair.client.open_slot(1, LIMITS).unwrap_err();
    assert!(matches!(again, LinkError::SlotInUse { slot: 1 }));
    assert!(!pair.client.slot_idle(1) && !pair.worker.slot_idle(1));
    let theirs = pair.worker.open_slot(1, LIMITS).unwrap();
    drop(producer);
    assert!(
        pair.client.open_slot(1, LIMITS).is_err(),
        "the consumer is left"
    );
    drop(consumer);
    assert!(
        !pair.client.slot_idle(1) && !pair.client.reset_slot(1).unwrap(),
        "the worker is left"
    );
    drop(theirs);
    assert!(pair.client.slot_idle(1) && pair.client.reset_slot(1).unwrap());
    pair.client.open_slot(1, LIMITS).unwrap();
    let none = pair.client.open_slot(4, LIMITS).unwrap_err();
    assert!(matches!(none, LinkError::NoSuchSlot { slot: 4, slots: 4 }));
    assert!(!pair.client.slot_idle(4) && !pair.client.reset_slot(4).unwrap());
    assert!(
        !pair.worker.reset_slot(2).unwrap(),
        "only the client resets"
    );
}

#[test]
fn a_slot_can_be_used_again_and_again() {
    let pair = Pair::new(SMALL);
    for round in 0..50 {
        assert!(pair.client.reset_slot(2).unwrap());
        let (mut producer, mut consumer) = pair.way_in(2, LIMITS);
        let large = common::message(round, 2000 * round as usize);
        for small in 0..10 {
            send(&mut producer, &common::message(small, 40));
            assert_eq!(receive(&mut consumer), Some(common::message(small, 40)));
        }
        send(&mut producer, &large);
        assert_eq!(receive(&mut consumer), Some(large));
    }
}

#[test]
fn a_lease_keeps_the_slot_and_the_link() {
    let pair = Pair::new(SMALL);
    let (mut producer, mut consumer) = pair.way_in(1, LIMITS);
    send(&mut producer, b"kept");
    consumer.peek().unwrap().unwrap();
    let lease = consumer.lease();
    drop((producer, consumer));
    assert!(!pair.client.slot_idle(1), "the worker still holds a lease");
    assert!(matches!(
        pair.worker.open_slot(1, LIMITS),
        Err(LinkError::SlotInUse { .. })
    ));
    let client = pair.client.clone();
    drop(pair);
    assert_eq!(&*lease, b"kept");
    drop(lease);
    assert!(client.slot_idle(1));
}

#[test]
fn a_link_is_retired_only_when_no_stream_is_open() {
    let pair = Pair::new(SMALL);
    assert!(pair.client.enter() && pair.client.enter());
    assert_eq!(
        (pair.worker.residents(), pair.worker.opened_total()),
        (2, 2)
    );
    assert!(!pair.worker.try_retire());
    pair.client.leave();
    assert!(!pair.worker.try_retire());
    pair.client.leave();
    pair.client.leave();
    assert_eq!(pair.client.residents(), 0, "leaving too often does no harm");
    assert!(pair.worker.try_retire() && pair.worker.try_retire());
    assert!(!pair.client.enter());
    pair.client.leave();
    assert!(!pair.client.enter(), "retired is for ever");
    assert_eq!(
        (pair.client.residents(), pair.client.opened_total()),
        (0, 2)
    );
}

#[test]
fn counters_count_streams_that_are_open_and_those_that_were() {
    let pair = Pair::new(SMALL);
    let (mut producer, _consumer) = pair.way_in(1, LIMITS);
    send(&mut producer, b"12345");
    producer.reserve(3, false).unwrap().commit(9, 3);
    let expected = Counters {
        events: 1,
        bytes: 5,
        wakes: 0,
    };
    assert_eq!(
        pair.worker.counters().to_worker,
        expected,
        "what is not published is not counted"
    );
    producer.publish();
    let expected = Counters {
        events: 1,
        bytes: 8,
        wakes: 0,
    };
    assert_eq!(pair.worker.counters().to_worker, expected);
    drop(producer);
    assert_eq!(pair.client.counters().to_worker, expected);
    assert_eq!(pair.client.counters().to_client, Counters::default());
}

#[test]
fn open_slots_are_seen_with_what_waits_in_them() {
    let pair = Pair::new(SMALL);
    assert!(pair.client.open_slots(8).is_empty());
    let (mut producer, mut consumer) = pair.way_in(1, LIMITS);
    send(&mut producer, b"12");
    send(&mut producer, b"3");
    producer.publish();
    let seen = pair.client.open_slots(8);
    let figures = (
        seen[0].slot,
        seen[0].events,
        seen[0].handled,
        seen[0].bytes_in,
    );
    assert_eq!((seen.len(), figures), (1, (1, 2, 0, 3)));
    assert_eq!(pair.client.queued(), 2);
    consumer.peek().unwrap().expect("a frame");
    consumer.release();
    consumer.publish();
    assert_eq!(pair.client.open_slots(8)[0].queued(), 1);
    assert!(pair.client.open_slots(0).is_empty());
}

/// A side that dies between publishing and ringing has still said what it had to say: whoever looks,
/// for example since the death was told, finds it.
#[test]
fn what_was_published_and_not_announced_is_there_for_whoever_looks() {
    let pair = Pair::new(SMALL);
    let (mut results, _) = pair.worker.open_slot(1, LIMITS).unwrap();
    let (_, mut inbox) = pair.client.open_slot(1, LIMITS).unwrap();
    pair.client.arm();
    assert!(!pair.client.any_ready(), "the client may sleep");
    try_send(&mut results, b"last words").unwrap();
    assert!(results.publish());
    // Here the worker is killed: `notify` never comes, and neither does the bell.
    assert!(!pair.client.any_ready());
    assert!(!pair.client.doorbell().drain(), "nobody rang");
    assert_eq!(receive(&mut inbox).as_deref(), Some(&b"last words"[..]));
    // What it had committed and not published was not said.
    try_send(&mut results, b"unsaid").unwrap();
    assert_eq!(receive(&mut inbox), None);
}

#[test]
fn open_slots_show_how_long_events_take_as_the_client_said() {
    let pair = Pair::new(SMALL);
    let (producer, _consumer) = pair.way_in(1, LIMITS);
    let times = |pair: &Pair| {
        let seen = pair.worker.open_slots(8);
        (seen[0].median, seen[0].p99)
    };
    assert_eq!(times(&pair), (0, 0));
    producer.show_latencies(1_500, 40_000);
    assert_eq!(times(&pair), (1_500, 40_000));
}
