//! The journal of one key of a function with `recover="replay"`, by which another lane can take the key
//! over.
//!
//! It is to a key what [the journal of a stream](crate::process::client::journal) is to a stream: it
//! keeps every event, encoded, from the last snapshot of the function's `state` on, or from the
//! beginning. A new worker is given the snapshot and these events. The results that were taken before
//! come again, and are dropped, each compared with the hash of the first one.
//!
//! Events and results have numbers, counted from 1 since the key was opened first; a count is also the
//! number of the last one counted.

use std::collections::VecDeque;
use std::sync::Arc;

use velo_shm::LaneActivity;

use crate::process::client::blame::{Blame, Death, DiedIn, Place, Reached};
use crate::process::client::left_out::LeftOut;
use crate::process::client::log::{Cursor, Log};

/// Hashes of results may take so much of the journal's limit; older results are not compared.
const HASHES: usize = 8;

/// How the keys of a function are kept.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// Bytes of events that the journal of a key may hold.
    pub limit: usize,
    /// Whether the function has a `state`, of which there will be snapshots.
    pub has_state: bool,
    /// How often in a row one event may end its worker.
    pub max_restarts: u32,
}

/// The journal of one key.
#[derive(Default)]
pub struct KeyJournal {
    log: Log,
    /// Events before the first one in the log.
    cut: u64,
    accepted: u64,
    reached: u64,
    left_out: LeftOut,
    /// The input of the key has ended.
    pub ended: bool,
    /// The last snapshot, and the results that came before it.
    state: Option<Arc<[u8]>>,
    state_results: u64,
    /// Results that were taken.
    taken: u64,
    /// Hashes of the last of them; 0 for those that cannot be compared.
    hashes: VecDeque<u64>,
    /// Which of the events in the log are requests.
    requests: VecDeque<u64>,
    /// Requests that were answered, and those of them before the last snapshot.
    answered: u64,
    state_answered: u64,
    run: Run,
    /// The worker was asked for a snapshot, and has not made one.
    pub waits: bool,
    /// The deaths of its workers.
    blame: Blame,
    /// A worker has had it.
    pub was_open: bool,
}

/// How far the present worker has come.
#[derive(Default)]
struct Run {
    /// Events and results before its first ones.
    events: u64,
    results: u64,
    /// The number of the last event that it was sent, or that is left out.
    sent: u64,
    /// How many events it was sent, and how many of those it has told to be handled.
    given: u64,
    handled: u64,
    next: Cursor,
    /// Results of it that were come upon.
    seen: u64,
    /// Requests that were answered before its first event, and by it.
    answered: u64,
    answers: u64,
}

/// What became of an event.
#[derive(Debug, PartialEq, Eq)]
pub enum Accept {
    Accepted,
    /// The limit is reached: the worker has to make a snapshot before.
    Wait,
    /// The limit is reached, with this number of bytes, and no snapshot will make room.
    Full(usize),
}

/// What comes next for the worker.
pub enum Next<'a> {
    /// An event, and whether it is a request.
    Event(&'a [u8], bool),
    /// An event that is left out.
    Skip,
    Nothing,
}

/// What a result is.
#[derive(Debug, PartialEq, Eq)]
pub enum Took {
    /// One that the caller has yet to get.
    New,
    /// One that the caller has.
    Repeated,
    /// Another one than the one with this number that the caller has.
    Differs(u64),
}

impl KeyJournal {
    /// A new worker begins behind the last snapshot, which is given to it first.
    pub fn begin(&mut self) -> Option<Arc<[u8]>> {
        self.run = Run {
            events: self.cut,
            results: self.state_results,
            answered: self.state_answered,
            sent: self.cut,
            next: self.log.start(),
            ..Run::default()
        };
        self.waits = false;
        self.was_open = true;
        self.state.clone()
    }

    // Events.

    /// How many events the present worker has yet to be sent.
    pub fn unsent(&self) -> u64 {
        self.accepted - self.run.sent
    }

    /// Adds an event, which may be a request.
    pub fn accept(&mut self, event: &[u8], request: bool, keep: Keep) -> Accept {
        if !self.log.is_empty() && self.log.bytes() + event.len() > keep.limit {
            return match keep.has_state {
                true => Accept::Wait,
                false => Accept::Full(self.log.bytes()),
            };
        }
        self.log.push(event.to_vec());
        self.accepted += 1;
        if request {
            self.requests.push_back(self.accepted);
        }
        Accept::Accepted
    }

    /// Takes the next event for the worker.
    pub fn next(&mut self) -> Next<'_> {
        if self.unsent() == 0 {
            return Next::Nothing;
        }
        self.run.sent += 1;
        let skip = self.left_out.contains(self.run.sent);
        let run = &mut self.run;
        let Some(event) = self.log.event(&mut run.next) else {
            debug_assert!(false, "a journal has lost an event");
            return Next::Nothing;
        };
        run.next.step();
        if skip {
            return Next::Skip;
        }
        run.given += 1;
        let request = self.requests.binary_search(&run.sent).is_ok();
        Next::Event(event, request)
    }

    /// The worker has told how many more events it has handled.
    /// How many of those no worker had handled before.
    pub fn handled(&mut self, count: u32) -> u64 {
        self.run.handled += u64::from(count);
        let reached = self.number_of(self.run.handled).max(self.reached);
        reached - std::mem::replace(&mut self.reached, reached)
    }

    /// The number of the last event that some worker was done with, or at.
    pub fn reached(&self) -> u64 {
        self.reached
    }

    /// How many events were accepted.
    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    /// An event, while it is kept.
    pub fn event(&self, number: u64) -> Option<&[u8]> {
        let mut at = self.log.start();
        let behind = number.checked_sub(self.cut + 1)?;
        for _ in 0..behind {
            self.log.event(&mut at)?;
            at.step();
        }
        self.log.event(&mut at)
    }

    /// No worker is to be given this event any more.
    pub fn leave_out(&mut self, number: u64) {
        self.left_out.add(number);
        self.blame.forget();
    }

    // Requests.

    /// The worker has answered a request. Whether it is one that was not answered before.
    pub fn answers(&mut self) -> bool {
        self.run.answers += 1;
        let number = self.run.answered + self.run.answers;
        let new = number > self.answered;
        self.answered = self.answered.max(number);
        new
    }

    /// How many requests there are behind this event, if it is a request itself.
    pub fn requests_behind(&self, event: u64) -> Option<usize> {
        let at = self.requests.binary_search(&event).ok()?;
        Some(self.requests.len() - at - 1)
    }

    // Results.

    /// The number of the result that comes next.
    pub fn next_result(&self) -> u64 {
        self.run.results + self.run.seen + 1
    }

    /// Whether the worker is still to yield what was taken before.
    pub fn is_replaying(&self) -> bool {
        self.next_result() <= self.taken
    }

    /// A result of this hash has come; 0 for one that cannot be compared.
    pub fn takes(&mut self, hash: u64, keep: Keep) -> Took {
        let number = self.next_result();
        self.run.seen += 1;
        if number <= self.taken {
            let back = (self.taken - number) as usize;
            let at = self.hashes.len().checked_sub(back + 1);
            let before = at.and_then(|at| self.hashes.get(at)).copied();
            return match before {
                Some(before) if before != 0 && hash != 0 && before != hash => Took::Differs(number),
                _ => Took::Repeated,
            };
        }
        self.taken = number;
        if (self.hashes.len() + 1) * size_of::<u64>() * HASHES > keep.limit {
            self.hashes.pop_front();
        }
        self.hashes.push_back(hash);
        Took::New
    }

    /// A snapshot came, after this number of events of this worker. False: it was not sent as many.
    pub fn saved(&mut self, count: u64, state: &[u8]) -> bool {
        if count > self.run.given {
            return false;
        }
        let until = self.number_of(count).min(self.run.sent);
        while self.cut < until {
            self.log.cut();
            self.cut += 1;
        }
        let old = self.requests.partition_point(|&number| number <= self.cut);
        self.requests.drain(..old);
        self.state_answered = self.run.answered + self.run.answers;
        self.state_results = self.run.results + self.run.seen;
        self.state = Some(state.into());
        let compared = self.taken.saturating_sub(self.state_results) as usize;
        let old = self.hashes.len().saturating_sub(compared);
        self.hashes.drain(..old);
        self.waits = false;
        true
    }

    // Deaths.

    /// The number of the last of `count` events that the present worker is done with.
    fn number_of(&self, count: u64) -> u64 {
        self.left_out.number_of(self.run.events, count)
    }

    /// The worker has died. `ran` is where it was, if it ran this very key. The place, once workers
    /// have died there too often in a row.
    pub fn died(
        &mut self,
        death: Death,
        ran: Option<LaneActivity>,
        heard: bool,
        keep: Keep,
    ) -> Option<Place> {
        let told = self.run.handled;
        let (function, handled) = match (ran, death.function) {
            (Some(ran), _) => {
                let event = widen(ran.event, told);
                let handled = event - u64::from(ran.at_work && event > 0);
                (DiedIn::This(event), handled)
            }
            (None, DiedIn::Unknown) => (DiedIn::Unknown, told),
            (None, _) => (DiedIn::Another, told),
        };
        let reached = Reached {
            sent: self.run.given,
            handled,
            asked: heard,
        };
        let death = Death { function, ..death };
        let (left_out, before) = (&self.left_out, self.run.events);
        let number_of = |place: Place| match place.at_work {
            true => left_out.number_of(before, place.event.saturating_sub(1)) + 1,
            false => left_out.number_of(before, place.event),
        };
        self.blame
            .note(death, reached, keep.max_restarts, number_of)
    }
}

/// A count of which a worker has told the last 30 bits, and of which at least `least` is known.
fn widen(low: u32, least: u64) -> u64 {
    const ROUND: u64 = 1 << 30;
    let near = least / ROUND * ROUND + u64::from(low);
    if near < least { near + ROUND } else { near }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Keep = Keep {
        limit: 4096,
        has_state: true,
        max_restarts: 1,
    };

    fn journal(events: u64) -> KeyJournal {
        let mut journal = KeyJournal::default();
        for number in 1..=events {
            let event = number.to_le_bytes();
            assert_eq!(journal.accept(&event, false, KEEP), Accept::Accepted);
        }
        journal.begin();
        journal
    }

    fn sent(journal: &mut KeyJournal) -> Vec<u64> {
        let mut sent = Vec::new();
        loop {
            match journal.next() {
                Next::Event(event, _) => {
                    sent.push(u64::from_le_bytes(event.try_into().expect("8 bytes")));
                }
                Next::Skip => {}
                Next::Nothing => return sent,
            }
        }
    }

    fn death(function: DiedIn) -> Death {
        Death {
            function,
            killed: false,
        }
    }

    fn at(event: u32, at_work: bool) -> Option<LaneActivity> {
        Some(LaneActivity {
            key: 3,
            event,
            at_work,
        })
    }

    #[test]
    fn each_worker_is_sent_all_events_and_repeated_results_are_known() {
        let mut journal = journal(3);
        assert_eq!(sent(&mut journal), [1, 2, 3]);
        assert_eq!(journal.takes(11, KEEP), Took::New);
        assert_eq!(journal.takes(12, KEEP), Took::New);
        journal.begin();
        assert_eq!(journal.unsent(), 3);
        assert_eq!(sent(&mut journal), [1, 2, 3]);
        assert!(journal.is_replaying());
        assert_eq!(journal.takes(11, KEEP), Took::Repeated);
        assert_eq!(journal.takes(13, KEEP), Took::Differs(2));
        assert!(!journal.is_replaying());
        assert_eq!(journal.takes(14, KEEP), Took::New);
    }

    #[test]
    fn results_that_cannot_be_compared_are_taken_for_the_same() {
        let mut journal = journal(1);
        assert_eq!(journal.takes(0, KEEP), Took::New);
        journal.begin();
        assert_eq!(journal.takes(7, KEEP), Took::Repeated);
    }

    #[test]
    fn a_snapshot_takes_the_place_of_events_and_results_before_it() {
        let mut journal = journal(4);
        sent(&mut journal);
        journal.takes(11, KEEP);
        journal.takes(12, KEEP);
        assert!(journal.saved(2, b"state"));
        journal.takes(13, KEEP);
        assert_eq!(journal.begin().as_deref(), Some(&b"state"[..]));
        assert_eq!(sent(&mut journal), [3, 4]);
        assert_eq!(journal.takes(13, KEEP), Took::Repeated);
        assert_eq!(journal.takes(14, KEEP), Took::New);
        // Counts begin anew with each worker.
        assert!(journal.saved(1, b"later"));
        journal.begin();
        assert_eq!(sent(&mut journal), [4]);
    }

    #[test]
    fn requests_are_sent_again_and_answered_once() {
        let mut journal = KeyJournal::default();
        for number in 1..=4_u64 {
            let request = number % 2 == 0;
            journal.accept(&number.to_le_bytes(), request, KEEP);
        }
        let requests = |journal: &mut KeyJournal| {
            let mut requests = Vec::new();
            while let Next::Event(_, request) = journal.next() {
                requests.push(request);
            }
            requests
        };
        journal.begin();
        assert_eq!(requests(&mut journal), [false, true, false, true]);
        assert!(journal.answers());
        assert_eq!(journal.requests_behind(2), Some(1));
        assert_eq!(journal.requests_behind(3), None);
        journal.begin();
        assert_eq!(requests(&mut journal), [false, true, false, true]);
        assert!(!journal.answers(), "the first one was answered before");
        assert!(journal.saved(2, b"state"));
        assert!(journal.answers());
        journal.begin();
        assert_eq!(requests(&mut journal), [false, true]);
        assert!(!journal.answers());
    }

    #[test]
    fn a_snapshot_of_events_that_were_not_sent_is_refused() {
        let mut journal = journal(2);
        let _ = journal.next();
        assert!(!journal.saved(2, b"state"));
    }

    #[test]
    fn at_its_limit_it_waits_for_a_snapshot_or_is_full() {
        let large = vec![0; 3000];
        let mut journal = KeyJournal::default();
        assert_eq!(
            journal.accept(&vec![0; 9000], false, KEEP),
            Accept::Accepted,
            "alone"
        );
        assert_eq!(journal.accept(&large, false, KEEP), Accept::Wait);
        let stateless = Keep {
            has_state: false,
            ..KEEP
        };
        assert!(matches!(
            journal.accept(&large, false, stateless),
            Accept::Full(9000..)
        ));
        journal.begin();
        let _ = journal.next();
        assert!(journal.saved(1, b""));
        assert_eq!(journal.accept(&large, false, KEEP), Accept::Accepted);
    }

    #[test]
    fn an_event_that_is_left_out_is_sent_to_no_worker() {
        let mut journal = journal(4);
        journal.leave_out(2);
        assert_eq!(sent(&mut journal), [1, 3, 4]);
        // The second event of this worker is the third one.
        assert!(journal.saved(2, b"state"));
        journal.begin();
        assert_eq!(sent(&mut journal), [4]);
    }

    #[test]
    fn two_deaths_at_one_event_are_too_many_after_one_restart() {
        let mut journal = journal(4);
        sent(&mut journal);
        let place = Some(Place {
            event: 3,
            at_work: true,
        });
        assert_eq!(
            journal.died(death(DiedIn::This(0)), at(3, true), true, KEEP),
            None
        );
        journal.begin();
        sent(&mut journal);
        assert_eq!(
            journal.died(death(DiedIn::This(0)), at(3, true), true, KEEP),
            place
        );
    }

    #[test]
    fn numbers_of_events_count_over_all_workers() {
        let mut journal = journal(4);
        sent(&mut journal);
        assert_eq!(
            journal.died(death(DiedIn::This(0)), at(3, true), true, KEEP),
            None
        );
        assert!(journal.saved(2, b"state"));
        journal.begin();
        sent(&mut journal);
        let place = journal.died(death(DiedIn::This(0)), at(1, true), true, KEEP);
        assert_eq!(place.map(|place| place.event), Some(3));
    }

    #[test]
    fn a_death_in_another_key_does_not_count() {
        let mut journal = journal(2);
        sent(&mut journal);
        for _ in 0..100 {
            assert_eq!(journal.died(death(DiedIn::This(0)), None, true, KEEP), None);
        }
    }

    #[test]
    fn a_death_of_unknown_cause_counts_where_an_event_was_not_handled() {
        let mut journal = journal(2);
        sent(&mut journal);
        journal.handled(1);
        assert_eq!(journal.died(death(DiedIn::Unknown), None, true, KEEP), None);
        let place = journal.died(death(DiedIn::Unknown), None, true, KEEP);
        assert_eq!(place.map(|place| place.event), Some(2));
    }

    #[test]
    fn a_count_of_30_bits_is_made_whole() {
        assert_eq!(widen(5, 3), 5);
        assert_eq!(widen(5, (1 << 30) + 3), (1 << 30) + 5);
        assert_eq!(widen(1, (1 << 30) - 1), (1 << 30) + 1);
    }
}
