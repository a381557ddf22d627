//! Encoded events in order, in few pieces of memory.

use std::collections::VecDeque;

/// Pieces hold this many bytes; what is longer than a part of it has one of its own.
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
    ends: Vec<u32>,
}

/// A place between two events of a [`Log`], which stays what it is while others are added and cut.
#[derive(Clone, Copy, Default)]
pub struct Cursor {
    piece: u64,
    index: usize,
}

impl Piece {
    fn event(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)? as usize;
        let start = match index {
            0 => 0,
            _ => self.ends[index - 1] as usize,
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
            let ends = vec![len as u32];
            let bytes = memory;
            self.pieces.push_back(Piece { bytes, ends });
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
        piece.ends.push(piece.bytes.len() as u32);
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
        if self.front >= piece.ends.len() {
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
