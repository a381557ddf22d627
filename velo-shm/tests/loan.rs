//! Loans: memory that frames name instead of holding it, given back in any order, by both sides.
#![cfg(not(loom))]
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "tests write to what they have borrowed"
)]

mod common;

use std::sync::Arc;

use common::{Pair, message, send};
use proptest::prelude::*;
use velo_shm::{
    Consumer, Full, Lease, Limits, LinkSpec, Loan, Part, Producer, ReserveError, lending_len,
};

const SPEC: LinkSpec = LinkSpec {
    slots: 4,
    ring_bytes: 512,
    heap_bytes: 16 << 20,
};
/// Room for four loans of `LEN` bytes.
const LIMITS: Limits = Limits {
    events: 1 << 10,
    bytes: 256 << 10,
};
const LEN: usize = 64 << 10;

fn fill(loan: &Loan, number: u8) {
    unsafe { loan.start().as_ptr().write_bytes(number, loan.len()) };
}

fn lend(producer: &mut Producer, number: u8) -> Arc<Loan> {
    let loan = producer.loan(LEN - 100).unwrap();
    fill(&loan, number);
    loan
}

fn whole(producer: &Producer, loan: &Loan) -> Part {
    producer.part(loan.start().as_ptr(), loan.len()).unwrap()
}

fn name(producer: &mut Producer, parts: &[Part], text: &[u8]) {
    let len = lending_len(text.len(), parts.len());
    let mut room = producer.reserve(len, true).unwrap();
    room[..text.len()].copy_from_slice(text);
    room.commit_lending(2, text.len(), parts);
    producer.publish();
}

/// Sends a loan, and lets go of it.
fn send_loan(producer: &mut Producer, loan: Arc<Loan>) {
    let part = whole(producer, &loan);
    name(producer, &[part], b"a loan");
}

fn borrow(consumer: &mut Consumer) -> Vec<Lease> {
    let frame = consumer.peek().unwrap().unwrap();
    assert!(frame.lends);
    let leases = consumer.borrow();
    consumer.release();
    consumer.publish();
    leases
}

fn is_full(producer: &mut Producer) -> bool {
    matches!(
        producer.loan(LEN - 100),
        Err(ReserveError::Full(Full::Bytes))
    )
}

#[test]
fn a_loan_is_read_where_it_was_written() {
    let pair = Pair::new(SPEC);
    let (mut producer, mut consumer) = pair.way_in(1, LIMITS);
    let loan = lend(&mut producer, 7);
    let part = whole(&producer, &loan);
    name(&mut producer, &[part], b"odd number of bytes");
    let frame = consumer.peek().unwrap().unwrap();
    assert_eq!(
        (frame.payload, frame.lends),
        (&b"odd number of bytes"[..], true)
    );
    let leases = borrow(&mut consumer);
    assert_eq!(leases[0].as_ptr().addr(), loan.start().as_ptr().addr());
    assert_eq!((leases[0].len(), leases[0][0]), (loan.len(), 7));
    assert_eq!(consumer.borrowed_bytes(), loan.len() as u64);
    drop(leases);
    assert_eq!(consumer.borrowed_bytes(), 0);
    assert!(consumer.peek().unwrap().is_none());
}

#[test]
fn parts_are_found_by_their_address() {
    let pair = Pair::new(SPEC);
    let (mut producer, mut consumer) = pair.way_in(1, LIMITS);
    assert!(!producer.lends());
    let (one, two) = (lend(&mut producer, 1), lend(&mut producer, 2));
    assert!(producer.lends());
    let start = one.start().as_ptr();
    assert!(producer.part(start.wrapping_sub(1), 1).is_none());
    assert!(producer.part(start, one.len() + 1).is_none());
    assert!(producer.part(start, usize::MAX).is_none());
    assert!(producer.part(std::ptr::null(), 1).is_none());
    let parts = [
        producer.part(start.wrapping_add(5), 10).unwrap(),
        producer
            .part(two.start().as_ptr().wrapping_add(9), two.len() - 9)
            .unwrap(),
    ];
    drop((one, two));
    name(&mut producer, &parts, b"");
    drop(parts);
    assert!(!producer.lends());
    let leases = borrow(&mut consumer);
    assert_eq!((&*leases[0], leases[1][0]), (&[1; 10][..], 2));
    assert_eq!(leases[1].len(), LEN - 109);
}

#[test]
fn a_loan_of_another_producer_is_not_a_part() {
    let pair = Pair::new(SPEC);
    let (mut one, _) = pair.client.open_slot(1, LIMITS).unwrap();
    let (mut two, _) = pair.client.open_slot(2, LIMITS).unwrap();
    let loan = lend(&mut one, 1);
    assert!(two.part(loan.start().as_ptr(), 8).is_none());
    let _other = lend(&mut two, 1);
    assert!(two.part(loan.start().as_ptr(), 8).is_none());
}

#[test]
fn what_was_never_sent_is_lent_again() {
    let pair = Pair::new(SPEC);
    let (mut producer, _consumer) = pair.way_in(1, LIMITS);
    let starts: Vec<_> = (0..10).map(|n| lend(&mut producer, n).start()).collect();
    assert!(
        starts.iter().all(|start| *start == starts[0]),
        "hot memory first"
    );
}

#[test]
fn both_sides_have_to_let_go_in_either_order() {
    for consumer_first in [true, false] {
        let pair = Pair::new(SPEC);
        let (mut producer, mut consumer) = pair.way_in(1, LIMITS);
        let keeps: Vec<_> = (0..3).map(|n| lend(&mut producer, n)).collect();
        let loan = lend(&mut producer, 9);
        assert!(is_full(&mut producer));
        let part = whole(&producer, &loan);
        name(&mut producer, &[part], b"");
        let mut lent = (Some(loan), Some(borrow(&mut consumer)));
        if consumer_first {
            lent.1 = None;
            assert!(is_full(&mut producer));
            lent.0 = None;
        } else {
            lent.0 = None;
            assert!(is_full(&mut producer));
            lent.1 = None;
        }
        assert!(!is_full(&mut producer), "{lent:?}");
        drop(keeps);
    }
}

#[test]
fn sent_twice_it_is_given_back_twice() {
    let pair = Pair::new(SPEC);
    let (mut producer, mut consumer) = pair.way_in(1, LIMITS);
    let keeps: Vec<_> = (0..3).map(|n| lend(&mut producer, n)).collect();
    let loan = lend(&mut producer, 9);
    for _ in 0..2 {
        let part = whole(&producer, &loan);
        name(&mut producer, &[part], b"");
    }
    drop(loan);
    let first = borrow(&mut consumer);
    let second = borrow(&mut consumer);
    drop(first);
    assert!(is_full(&mut producer));
    assert_eq!(second[0][0], 9);
    drop(second);
    assert!(!is_full(&mut producer));
    drop(keeps);
}

#[test]
fn a_frame_that_is_skipped_gives_its_loans_back() {
    let pair = Pair::new(SPEC);
    let (mut producer, mut consumer) = pair.way_in(1, LIMITS);
    for n in 0..4 {
        let loan = lend(&mut producer, n);
        send_loan(&mut producer, loan);
    }
    assert!(is_full(&mut producer));
    producer.want_from(2);
    consumer.skip_unwanted().unwrap();
    let both = [lend(&mut producer, 5), lend(&mut producer, 6)];
    assert!(is_full(&mut producer));
    consumer.peek().unwrap();
    let lease = consumer.lease();
    assert_eq!(&*lease, b"a loan");
    assert!(!is_full(&mut producer), "a lease of a frame keeps no loan");
    drop(both);
}

#[test]
fn the_producer_is_told_when_it_waits() {
    let pair = Pair::new(SPEC);
    let (mut producer, mut consumer) = pair.way_in(1, LIMITS);
    for n in 0..4 {
        let loan = lend(&mut producer, n);
        send_loan(&mut producer, loan);
    }
    let leases: Vec<_> = (0..4).flat_map(|_| borrow(&mut consumer)).collect();
    pair.client.take_ready(|_| ());
    assert!(producer.wait_for_loan(LEN - 100));
    assert!(!pair.client.any_ready());
    drop(leases);
    assert!(pair.client.is_ready(1));
    assert!(!producer.wait_for_loan(LEN - 100));

    let all: Vec<_> = (0..4).map(|n| lend(&mut producer, n)).collect();
    pair.client.take_ready(|_| ());
    assert!(producer.wait_for_loan(LEN - 100));
    drop(all);
    assert!(
        pair.client.is_ready(1),
        "its own side can be what it waits for"
    );
}

#[test]
fn a_size_that_can_never_be_lent_is_refused_as_a_message_would_be() {
    let pair = Pair::new(SPEC);
    let (mut producer, _consumer) = pair.way_in(1, LIMITS);
    let longest = usize::try_from(producer.max_len()).unwrap();
    match producer.loan(longest + 1) {
        Err(ReserveError::TooLarge { len, limit }) => {
            assert_eq!((len, limit), (longest + 1, longest as u64));
        }
        other => panic!("{other:?}"),
    }
    let _both = [
        producer.loan(longest).unwrap(),
        producer.loan(longest).unwrap(),
    ];
    assert!(is_full(&mut producer));
}

#[test]
fn blocks_of_other_sizes_make_way() {
    let pair = Pair::new(SPEC);
    let (mut producer, _consumer) = pair.way_in(1, LIMITS);
    for len in [LEN, 1, LEN / 2, 3 * LEN / 2, 20_000, LEN] {
        // A block of another size may be lent if it is not more than a quarter larger.
        let least = LIMITS.bytes as usize / len.next_multiple_of(4096) * 4 / 5;
        let all: Vec<_> = (0..least).map(|_| producer.loan(len).unwrap()).collect();
        assert!(all.iter().all(|loan| loan.len() == len));
        let more = (0..).map_while(|_| producer.loan(len).ok());
        let all: Vec<_> = all.into_iter().chain(more).collect();
        assert!(all.len() * len.next_multiple_of(4096) <= LIMITS.bytes as usize);
    }
}

#[test]
fn memory_outlives_the_stream_and_the_link() {
    let pair = Pair::new(SPEC);
    let (mut producer, mut consumer) = pair.way_in(1, LIMITS);
    let unsent = lend(&mut producer, 1);
    let sent = lend(&mut producer, 2);
    let part = whole(&producer, &sent);
    name(&mut producer, &[part], b"");
    let lease = borrow(&mut consumer).pop().unwrap();
    drop((producer, consumer));
    assert!(!pair.client.slot_idle(1), "a loan keeps its slot");
    let (mut other, _consumer) = pair.way_in(2, LIMITS);
    for n in 10..20 {
        lend(&mut other, n);
    }
    drop((pair, other));
    fill(&unsent, 3);
    assert!(lease.iter().all(|&byte| byte == 2));
    drop(sent);
    assert!(lease.iter().all(|&byte| byte == 2));
}

#[test]
fn what_was_in_frames_that_nobody_read_comes_back_with_the_slot() {
    let pair = Pair::new(SPEC);
    for round in 0..100 {
        let (mut producer, consumer) = pair.way_in(1, LIMITS);
        for n in 0..4 {
            let loan = lend(&mut producer, n);
            send_loan(&mut producer, loan);
        }
        let heap_is_bounded = producer.loan(LEN).is_err();
        assert!(heap_is_bounded);
        drop((producer, consumer));
        assert!(pair.client.reset_slot(1).unwrap(), "round {round}");
    }
    // A heap of 16 MiB has room for 64 times what a stream may have, if nothing came back.
    let (mut producer, _consumer) = pair.way_in(1, LIMITS);
    lend(&mut producer, 1);
}

#[test]
fn messages_and_loans_share_a_ring() {
    let pair = Pair::new(SPEC);
    let (mut producer, mut consumer) = pair.way_in(1, LIMITS);
    for round in 0..200u64 {
        let loan = lend(&mut producer, round as u8);
        send(&mut producer, &message(round, 100));
        send_loan(&mut producer, loan);
        assert_eq!(
            consumer.peek().unwrap().unwrap().payload,
            message(round, 100)
        );
        consumer.release();
        assert_eq!(borrow(&mut consumer)[0][0], round as u8);
    }
}

#[derive(Clone, Debug)]
enum Act {
    Lend(usize),
    Drop(usize),
    Send(usize),
    Receive,
    LetGo(usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        (1..3 * LEN / 2).prop_map(Act::Lend),
        (0..8usize).prop_map(Act::Drop),
        (0..8usize).prop_map(Act::Send),
        Just(Act::Receive),
        (0..8usize).prop_map(Act::LetGo),
    ];
    proptest::collection::vec(act, 1..200)
}

proptest! {
    /// Whatever is borrowed, sent, kept and dropped in whatever order: who holds memory sees what was
    /// written to it, and no more is lent than may be.
    #[test]
    fn nobody_writes_where_somebody_reads(acts in acts()) {
        let pair = Pair::new(SPEC);
        let (mut producer, mut consumer) = pair.way_in(1, LIMITS);
        let (mut loans, mut leases, mut number) = (Vec::new(), Vec::new(), 0u8);
        for act in acts {
            match act {
                Act::Lend(len) => match producer.loan(len) {
                    Ok(loan) => {
                        number = number.wrapping_add(1);
                        fill(&loan, number);
                        loans.push((loan, number));
                    }
                    Err(ReserveError::Full(Full::Bytes)) => {}
                    Err(other) => panic!("{other}"),
                },
                Act::Drop(n) if n < loans.len() => drop(loans.swap_remove(n)),
                Act::Send(n) if n < loans.len() => {
                    let (loan, number) = &loans[n];
                    let part = whole(&producer, loan);
                    name(&mut producer, &[part], &[*number]);
                }
                Act::Receive => {
                    if let Some(frame) = consumer.peek().unwrap() {
                        let number = frame.payload[0];
                        leases.push((borrow(&mut consumer).pop().unwrap(), number));
                    }
                }
                Act::LetGo(n) if n < leases.len() => drop(leases.swap_remove(n)),
                _ => {}
            }
            let held: usize = loans.iter().map(|(loan, _)| loan.len()).sum();
            prop_assert!(held as u64 <= LIMITS.bytes);
            for (lease, number) in &leases {
                prop_assert!([0, lease.len() / 2, lease.len() - 1].iter().all(|&i| lease[i] == *number));
            }
        }
        drop((loans, leases));
        while consumer.peek().unwrap().is_some() {
            consumer.release();
        }
        let _all: Vec<_> = (0..3).map(|_| producer.loan(LEN).unwrap()).collect();
    }
}
