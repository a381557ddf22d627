//! Encoded events in order, in few pieces of memory.

use std::collections::VecDeque;

/// The size of a piece in bytes; an entry that is longer than a part of it has a piece of its own.
const PIECE: usize = 64 << 10;
const LONG: usize = 4 << 10;

/// What an event takes besides its bytes.
const EACH: usize = size_of::<u32>();

/// Events, oldest first. They are added at the end and cut off at the front.
#[derive(Default)]
pub struct Log {
    pieces: VecDeque<Piece>,
    /// Pieces that were cut off.
    gone: u64,
    /// Events of the first piece that were cut off.
    front: usize,
    bytes: usize,
}

/// Events one after the other.
#[derive(Default)]
struct Piece {
    bytes: Vec<u8>,
    state: Vec<u32>,
}

/// A place between two events of a [`Log`], which stays valid while events are added and cut.
#[derive(Clone, Copy, Default)]
pub struct Cursor {
    piece: u64,
    index: usize,
}

impl Piece {
    fn event(&self, index: usize) -> Option<&[u8]> {
        let end = *self.state.get(index)? as usize;
        let start = match index {
            0 => 0,
            _ => self.state[index - 1] as usize,
        };
        self.bytes.get(start..end)
    }
}

impl Log {
    /// How many bytes the events take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there is no event.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Adds the event that `memory` holds. Gives memory back for the next one to be written to.
    pub fn push(&mut self, memory: Vec<u8>) -> Vec<u8> {
        let len = memory.len();
        self.bytes += len + EACH;
        if len > LONG {
            let state = vec![len as u32];
            let bytes = memory;
            self.pieces.push_back(Piece { bytes, state });
            return Vec::new();
        }
        let last = self.pieces.back_mut();
        let piece = match last.filter(|piece| piece.bytes.len() + len <= PIECE) {
            Some(piece) => piece,
            None => {
                self.pieces.push_back(Piece::default());
                self.pieces.back_mut().expect("it was added just now")
            }
        };
        piece.bytes.extend_from_slice(&memory);
        piece.state.push(piece.bytes.len() as u32);
        memory
    }

    /// The place before the first event.
    pub fn start(&self) -> Cursor {
        Cursor {
            piece: self.gone,
            index: self.front,
        }
    }

    /// The event behind a place, which is set right if it has moved.
    pub fn event(&self, at: &mut Cursor) -> Option<&[u8]> {
        if at.piece < self.gone {
            *at = self.start();
        }
        let piece = self.pieces.get((at.piece - self.gone) as usize)?;
        if let Some(event) = piece.event(at.index) {
            return Some(event);
        }
        let next = self.pieces.get((at.piece - self.gone) as usize + 1)?;
        (at.piece, at.index) = (at.piece + 1, 0);
        next.event(0)
    }

    /// Cuts the first event off.
    pub fn cut(&mut self) {
        let Some(piece) = self.pieces.front() else {
            return;
        };
        self.bytes -= piece.event(self.front).map_or(0, <[u8]>::len) + EACH;
        self.front += 1;
        if self.front >= piece.state.len() {
            self.pieces.pop_front();
            (self.gone, self.front) = (self.gone + 1, 0);
        }
    }
}

impl Cursor {
    /// The place behind the event that is there.
    pub fn step(&mut self) {
        self.index += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: usize, len: usize) -> Vec<u8> {
        vec![number as u8; len]
    }

    fn all(log: &Log) -> Vec<Vec<u8>> {
        let mut at = log.start();
        let mut found = Vec::new();
        while let Some(event) = log.event(&mut at) {
            found.push(event.to_vec());
            at.step();
        }
        found
    }

    #[test]
    fn events_come_back_in_order_whatever_their_lengths() {
        let mut log = Log::default();
        let lens = [0, 1, LONG, LONG + 1, 7, PIECE, 0, PIECE - 1, 3];
        let events: Vec<_> = lens
            .iter()
            .enumerate()
            .map(|(n, &len)| event(n, len))
            .collect();
        for event in &events {
            log.push(event.clone());
        }
        assert_eq!(all(&log), events);
        assert_eq!(log.bytes(), lens.iter().sum::<usize>() + EACH * lens.len());
    }

    #[test]
    fn short_events_give_their_memory_back_and_long_ones_keep_it() {
        let mut log = Log::default();
        assert_eq!(log.push(event(1, 8)).len(), 8);
        assert!(log.push(event(2, LONG + 1)).is_empty());
    }

    #[test]
    fn cutting_takes_the_first_event_and_its_bytes() {
        let mut log = Log::default();
        for number in 0..3 {
            log.push(event(number, 10));
        }
        log.cut();
        assert_eq!(all(&log), [event(1, 10), event(2, 10)]);
        assert_eq!(log.bytes(), 2 * (10 + EACH));
        log.cut();
        log.cut();
        assert!(log.is_empty() && all(&log).is_empty());
        log.cut(); // there is nothing left
        log.push(event(9, 4));
        assert_eq!(all(&log), [event(9, 4)]);
    }

    #[test]
    fn a_cursor_stays_at_its_event_while_others_are_cut_and_added() {
        let mut log = Log::default();
        for number in 0..100 {
            log.push(event(number, LONG)); // several pieces
        }
        let mut at = log.start();
        for _ in 0..60 {
            at.step();
            log.event(&mut at);
        }
        for _ in 0..50 {
            log.cut();
        }
        log.push(event(100, 5));
        assert_eq!(log.event(&mut at), Some(&event(60, LONG)[..]));
    }

    #[test]
    fn a_cursor_whose_event_was_cut_goes_to_the_first_that_is_left() {
        let mut log = Log::default();
        for number in 0..100 {
            log.push(event(number, LONG));
        }
        let mut at = log.start();
        for _ in 0..90 {
            log.cut();
        }
        assert_eq!(log.event(&mut at), Some(&event(90, LONG)[..]));
    }

    #[test]
    fn a_cursor_at_the_end_finds_what_is_added_there() {
        let mut log = Log::default();
        log.push(event(1, 4));
        let mut at = log.start();
        at.step();
        assert_eq!(log.event(&mut at), None);
        log.push(event(2, PIECE)); // in a piece of its own
        assert_eq!(log.event(&mut at), Some(&event(2, PIECE)[..]));
    }
}
