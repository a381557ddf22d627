//! The journal of a stream with `recover="replay"`, by which another worker can take it over.
//!
//! It keeps every event, encoded, from the last snapshot of the function's `state` on, or from the
//! beginning. A new worker is given the snapshot and these events again. The results that come of
//! them are the ones that came before, as far as any were taken: those are dropped once more, each
//! compared with the hash of the first one.
//!
//! It lives in the client's own memory: that outlives every worker, and none can write over it.
//!
//! Events and results have numbers, counted from 1 over the whole life of the stream; a count is
//! also the number of the last one counted.

use std::collections::VecDeque;

use pyo3::prelude::*;

use super::blame::{Blame, Death, Place, Reached};
use super::left_out::LeftOut;
use super::log::{Cursor, Log};
use crate::codec::{Codec, VecOut, hash_of};
use crate::errors;
use crate::flow::{Interest, Offer};
use crate::process::ring_pair::{END, ITEM, RingPair, STATE, too_large};

/// The share of the journal's limit for hashes of results; older results are not compared.
const HASHES: usize = 8;

/// How a stream is kept.
#[derive(Clone, Copy)]
pub struct Terms {
    /// Events that may be accepted and not handled.
    pub buffer: u32,
    /// Bytes of events that may be kept.
    pub limit: usize,
    /// Whether the function has a `state`, of which there will be snapshots.
    pub has_state: bool,
    /// How often in a row one event may end its worker.
    pub max_restarts: u32,
}

/// The journal of one stream.
pub struct Journal {
    pub terms: Terms,
    log: Log,
    /// Memory that events are encoded in.
    scratch: Vec<u8>,
    /// Events before the first one in the log.
    cut: u64,
    accepted: u64,
    /// The longest event that a worker can be sent.
    longest: u64,
    /// Events that some worker was done with.
    handled: u64,
    /// Events that are left out: no worker is given them any more.
    left_out: LeftOut,
    ended: bool,
    /// The last snapshot, and the results that came before it.
    state: Option<Vec<u8>>,
    state_results: u64,
    /// Results that were taken.
    taken: u64,
    /// Hashes of the last of them; 0 for those that cannot be compared.
    hashes: VecDeque<u64>,
    /// Of the worker that has the stream at present.
    run: Run,
    /// The length of the event that was refused for the limit, while none was accepted since.
    refused: Option<usize>,
    /// The worker was asked for a snapshot and has not made one.
    asked: bool,
    /// Snapshots came since senders were woken last.
    shorter: bool,
    /// The deaths of its workers.
    blame: Blame,
    /// No worker has the stream: the client looks for one.
    pub unplaced: bool,
    /// The user has cancelled the stream.
    pub cancelled: bool,
}

/// How far a worker has come.
#[derive(Default)]
struct Run {
    /// Events and results before its first ones.
    events: u64,
    results: u64,
    /// Events that it was sent, or that are left out before the next one.
    sent: u64,
    next: Cursor,
    end_sent: bool,
    /// Results of it that were come upon.
    seen: u64,
}

/// What became of an event.
pub enum Entry {
    Accepted,
    /// As many are accepted and not handled as may be.
    Full,
    /// The limit is reached. The worker has to be asked for a snapshot, or has been.
    Wait,
}

impl Journal {
    /// Of a stream that is about to open.
    pub fn new(terms: Terms) -> Self {
        Journal {
            terms,
            log: Log::default(),
            scratch: Vec::new(),
            cut: 0,
            accepted: 0,
            longest: 0,
            handled: 0,
            left_out: LeftOut::default(),
            ended: false,
            state: None,
            state_results: 0,
            taken: 0,
            hashes: VecDeque::new(),
            run: Run::default(),
            refused: None,
            asked: false,
            shorter: false,
            blame: Blame::default(),
            unplaced: false,
            cancelled: false,
        }
    }

    // Events.

    /// The numbers of accepted events, and of events that a worker has handled.
    pub fn progress(&mut self, rings: Option<&mut RingPair>) -> (u64, u64) {
        if let Some(rings) = rings {
            let released = rings.producer.released();
            self.handled = self.handled.max(self.number_of(released));
        }
        (self.accepted, self.handled)
    }

    /// Events left out that were counted as accepted.
    pub fn left_out(&self) -> u64 {
        self.left_out.len()
    }

    /// Whether the worker that has the stream now is done with every event.
    pub fn is_settled(&self, rings: &mut RingPair) -> bool {
        self.number_of(rings.producer.released()) == self.accepted && !self.is_replaying()
    }

    /// How many more events may be accepted.
    pub fn free(&mut self, rings: Option<&mut RingPair>) -> u64 {
        let (accepted, handled) = self.progress(rings);
        u64::from(self.terms.buffer).saturating_sub(accepted - handled)
    }

    /// Whether the limit leaves room for the event that was refused last.
    pub fn has_room(&self) -> bool {
        let len = self.refused.unwrap_or(0);
        self.log.is_empty() || self.log.bytes() + len <= self.terms.limit
    }

    /// Whether to ask the worker for a snapshot now. True once for each snapshot.
    pub fn asks(&mut self) -> bool {
        let asks = self.terms.has_state && !self.unplaced && !self.has_room();
        asks && !std::mem::replace(&mut self.asked, true)
    }

    /// Whether a sender waits for the journal to become shorter.
    pub fn is_waited_for(&self) -> bool {
        self.refused.is_some()
    }

    /// Adds an event, which is sent by the next `push_to`.
    pub fn accept(
        &mut self,
        rings: Option<&mut RingPair>,
        codec: &Codec,
        event: &Bound<'_, PyAny>,
        stream: &str,
    ) -> PyResult<Entry> {
        if self.accepted - self.handled >= u64::from(self.terms.buffer) && self.free(rings) == 0 {
            return Ok(Entry::Full);
        }
        let mut out = VecOut::reusing(std::mem::take(&mut self.scratch));
        codec.encode(event.py(), event, &mut out)?;
        let memory = out.into_vec();
        if memory.len() as u64 > self.longest {
            return Err(errors::too_large(too_large(memory.len(), self.longest)));
        }
        self.refused = Some(memory.len());
        if !self.has_room() {
            self.scratch = memory;
            self.check_limit(stream)?;
            return Ok(Entry::Wait);
        }
        self.refused = None;
        self.scratch = self.log.push(memory);
        self.accepted += 1;
        Ok(Entry::Accepted)
    }

    /// An error if no snapshot will ever make room.
    pub fn check_limit(&self, stream: &str) -> PyResult<()> {
        if self.terms.has_state || self.log.bytes() + self.refused.unwrap_or(0) < self.terms.limit {
            return Ok(());
        }
        Err(errors::journal_full(
            stream,
            self.log.bytes(),
            self.terms.limit,
        ))
    }

    /// No more events come.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// Whether there are events that the worker has yet to get.
    pub fn is_behind(&self) -> bool {
        self.run.sent < self.accepted || self.ended && !self.run.end_sent
    }

    /// Sends what fits.
    pub fn push_to(&mut self, rings: &mut RingPair) -> PyResult<()> {
        while self.run.sent < self.accepted {
            let run = &mut self.run;
            let Some(event) = self.log.event(&mut run.next) else {
                return Err(errors::velo("a journal has lost an event"));
            };
            let skip = self.left_out.contains(run.sent + 1);
            if !skip && matches!(rings.push_bytes(event, &[], ITEM, true)?, Offer::Full) {
                return Ok(());
            }
            run.next.step();
            run.sent += 1;
        }
        if self.ended && !self.run.end_sent {
            let sent = matches!(rings.push_bytes(&[], &[], END, false)?, Offer::Sent);
            self.run.end_sent = sent;
        }
        Ok(())
    }

    /// The number of the last of `count` events that the present worker is done with.
    fn number_of(&self, count: u64) -> u64 {
        self.left_out.number_of(self.run.events, count)
    }

    // Results.

    /// Whether the worker has yet to repeat results that were taken before.
    pub fn is_replaying(&self) -> bool {
        self.next_result() <= self.taken
    }

    /// The number of the result that comes next.
    fn next_result(&self) -> u64 {
        self.run.results + self.run.seen + 1
    }

    /// Handles the frames at the front that are not for the user: snapshots, and results that were taken
    /// before. True if the next frame is for the user; false if there is none yet.
    pub fn advance(&mut self, rings: &mut RingPair, stream: &str) -> PyResult<bool> {
        loop {
            let sent = rings.producer.committed();
            let frame = match rings.consumer.peek() {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(false),
                Err(found) => return Err(errors::ring_corrupted(&found)),
            };
            match frame.kind {
                STATE => {
                    self.keep(frame.payload, sent)?;
                    self.shorter = true;
                }
                ITEM if self.is_replaying() => {
                    self.compare(frame.payload, stream)?;
                    self.run.seen += 1;
                }
                // Fewer results than were taken; an exception is for the user to see.
                END if self.is_replaying() => return Err(self.diverges(stream)),
                _ => return Ok(true),
            }
            rings.bytes_in += frame.payload.len() as u64;
            rings.consumer.release();
        }
    }

    /// What diverges is the next result, of which there is none.
    pub fn diverges(&self, stream: &str) -> PyErr {
        errors::diverged(stream, self.next_result(), false)
    }

    /// Whether the next frame is handled by [`advance`](Self::advance).
    pub fn is_ours(&self, rings: &mut RingPair) -> bool {
        match rings.consumer.peek() {
            Ok(Some(frame)) => match frame.kind {
                STATE => true,
                ITEM | END => self.is_replaying(),
                _ => false,
            },
            Ok(None) => false,
            Err(_) => true, // it says what is wrong
        }
    }

    /// Whether the journal became shorter since senders were woken last.
    pub fn became_shorter(&self) -> bool {
        self.shorter
    }

    /// As `became_shorter`; the caller wakes the senders.
    pub fn told_senders(&mut self) -> bool {
        std::mem::take(&mut self.shorter)
    }

    /// Whether the thing that a task waits for is there. If not, the worker notifies when it may be.
    pub fn is_there(
        &mut self,
        rings: &mut RingPair,
        interest: Interest,
        asked: bool,
        stream: &str,
    ) -> PyResult<bool> {
        if self.advance(rings, stream)? && interest.results {
            return Ok(true);
        }
        if interest.space || interest.handled {
            rings
                .producer
                .watch_releases()
                .map_err(|found| errors::ring_corrupted(&found))?;
        }
        if interest.space && self.free(Some(rings)) > 0 && self.has_room() {
            return Ok(true);
        }
        Ok(interest.handled && (asked || self.accepted > 0) && self.is_settled(rings))
    }

    /// A snapshot came: the events before it are not needed any more.
    fn keep(&mut self, frame: &[u8], sent: u64) -> PyResult<()> {
        let wrong = |what: &str| Err(errors::corrupted(format!("a snapshot of {what}")));
        let Some((head, state)) = frame.split_first_chunk::<8>() else {
            return wrong("no events at all");
        };
        let count = u64::from_le_bytes(*head);
        if count > sent {
            return wrong("events that were not sent");
        }
        let until = self.number_of(count).min(self.run.sent);
        while self.cut < until {
            self.log.cut();
            self.cut += 1;
        }
        self.state_results = self.run.results + self.run.seen;
        self.state = Some(state.to_vec());
        let compared = self.taken.saturating_sub(self.state_results) as usize;
        let old = self.hashes.len().saturating_sub(compared);
        self.hashes.drain(..old);
        self.asked = false;
        Ok(())
    }

    fn compare(&self, payload: &[u8], stream: &str) -> PyResult<()> {
        let number = self.next_result();
        let back = (self.taken - number) as usize;
        let at = self.hashes.len().checked_sub(back + 1);
        let before = at.and_then(|at| self.hashes.get(at)).copied();
        match (before, hash_of(payload)) {
            (Some(before), now) if before != 0 && now != 0 && before != now => {
                Err(errors::diverged(stream, number, true))
            }
            _ => Ok(()),
        }
    }

    /// A result was taken.
    #[inline]
    pub fn taken(&mut self, hash: u64) {
        self.run.seen += 1;
        self.taken += 1;
        if (self.hashes.len() + 1) * size_of::<u64>() * HASHES > self.terms.limit {
            self.hashes.pop_front();
        }
        self.hashes.push_back(hash);
    }

    // Workers.

    /// The number of the event that the worker took as its `event`th.
    pub fn begun(&self, event: u64) -> u64 {
        self.number_of(event.saturating_sub(1)) + 1
    }

    /// The worker is gone, and the function may be the reason. The place, once the worker has died
    /// there too often in a row.
    pub fn blame(&mut self, rings: &mut RingPair, asked: bool, death: Death) -> Option<Place> {
        let reached = Reached {
            sent: rings.producer.committed(),
            handled: rings.producer.released(),
            asked,
        };
        let (left_out, before) = (&self.left_out, self.run.events);
        let number_of = |place: Place| match place.at_work {
            true => left_out.number_of(before, place.event.saturating_sub(1)) + 1,
            false => left_out.number_of(before, place.event),
        };
        self.blame
            .note(death, reached, self.terms.max_restarts, number_of)
    }

    /// An event, while it is kept.
    pub fn event(&self, number: u64) -> Option<Vec<u8>> {
        let mut at = self.log.start();
        let behind = number.checked_sub(self.cut + 1)?;
        for _ in 0..behind {
            self.log.event(&mut at)?;
            at.step();
        }
        self.log.event(&mut at).map(<[u8]>::to_vec)
    }

    /// No worker is to be given this event any more.
    pub fn leave_out(&mut self, number: u64) {
        self.left_out.add(number);
        self.blame.forget();
    }

    /// The stream is over: nothing is needed any more.
    pub fn close(&mut self) {
        self.log = Log::default();
        self.state = None;
        self.hashes = VecDeque::new();
        self.unplaced = false;
    }

    /// Whether there is a snapshot.
    pub fn has_state(&self) -> bool {
        self.state.is_some()
    }

    /// A new worker begins behind the last snapshot. It is given that first.
    pub fn begin(&mut self, rings: &mut RingPair) -> PyResult<()> {
        self.run = Run {
            events: self.cut,
            results: self.state_results,
            sent: self.cut,
            next: self.log.start(),
            end_sent: false,
            seen: 0,
        };
        (self.unplaced, self.asked) = (false, false);
        self.longest = rings.producer.max_len();
        if let Some(state) = &self.state
            && matches!(rings.push_bytes(state, &[], STATE, false)?, Offer::Full)
        {
            return Err(errors::velo("there is no room for a stream's state"));
        }
        self.push_to(rings)
    }
}
