//! The frames of a lane.

use crate::errors;
use pyo3::prelude::*;

/// To the worker, first of all: the terms of the lane.
pub const TERMS: u8 = 8;
/// A key opens.
pub const OPEN: u8 = 9;
/// An event of a key.
pub const EVENT: u8 = 10;
/// A key gets no more events.
pub const LAST: u8 = 11;
/// A key is not wanted any more.
pub const CANCEL: u8 = 12;
/// To the caller: a result of a key.
pub const RESULT: u8 = 13;
/// The function of a key has returned.
pub const ENDED: u8 = 14;
/// It has raised.
pub const FAILED: u8 = 15;
/// How much was handled.
pub const HANDLED: u8 = 16;
/// To the worker: an event whose results are an answer.
pub const REQUEST: u8 = 17;
/// To the caller: a result that is part of an answer.
pub const ANSWER: u8 = 18;
/// An answer is complete: its event is handled.
pub const ANSWERED: u8 = 19;
/// The function has raised at a request: the `FAILED` that follows is its answer.
pub const AT_FAULT: u8 = 20;
/// The function of a key has returned, and is run anew with the key's next event.
pub const RETURNED: u8 = 21;

/// To the worker: a snapshot of a key's state is wanted.
pub const SAVE: u8 = 22;
/// To the caller: a snapshot of a key's state, and how many events it covers.
pub const SAVED: u8 = 23;

/// How many bytes name a key.
pub const HEAD: usize = 8;

/// A key of a lane: its number, and which of those that had it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Name {
    pub id: u32,
    pub generation: u32,
}

impl Name {
    /// As it travels.
    #[inline]
    pub fn bytes(self) -> [u8; HEAD] {
        (u64::from(self.id) | u64::from(self.generation) << 32).to_le_bytes()
    }

    /// Reads a name at the beginning of a frame; and what follows.
    #[inline]
    pub fn read(payload: &[u8]) -> PyResult<(Name, &[u8])> {
        let Some((head, rest)) = payload.split_first_chunk::<HEAD>() else {
            return Err(errors::corrupted("a frame of a lane names no key"));
        };
        let both = u64::from_le_bytes(*head);
        let name = Name {
            id: both as u32,
            generation: (both >> 32) as u32,
        };
        Ok((name, rest))
    }
}

/// A name with a count, as they travel.
pub fn with_count(name: Name, count: u32) -> Vec<u8> {
    let mut bytes = name.bytes().to_vec();
    bytes.extend_from_slice(&count.to_le_bytes());
    bytes
}

/// Reads a name and a count.
pub fn read_count(payload: &[u8]) -> PyResult<(Name, u32)> {
    let (name, rest) = Name::read(payload)?;
    match *rest {
        [a, b, c, d] => Ok((name, u32::from_le_bytes([a, b, c, d]))),
        _ => Err(errors::corrupted("a count of a key makes no sense")),
    }
}

/// What the caller and the table of a lane agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How many events a key may have that it has not handled.
    pub window: u32,
    /// What a key has handled is told whenever the table comes to rest, and not only when half of its
    /// window is reached: somebody looks after the time since a key was used.
    pub tells_all: bool,
    /// A function that returns while events wait for it is run anew, on those.
    pub restarts: bool,
    /// The state of functions is saved: from time to time, so that another lane can take over the keys when
    /// the worker dies; or whenever the caller asks for it, and then only.
    pub recovers: bool,
    pub on_request: bool,
    /// Results get the trace context of the records that they are made from.
    pub traces: bool,
}

impl Terms {
    /// As they travel.
    pub fn bytes(self) -> [u8; 9] {
        let [a, b, c, d] = self.window.to_le_bytes();
        let (all, restarts) = (u8::from(self.tells_all), u8::from(self.restarts));
        let (recovers, on_request) = (u8::from(self.recovers), u8::from(self.on_request));
        let traces = u8::from(self.traces);
        [a, b, c, d, all, restarts, recovers, on_request, traces]
    }

    /// Reads them.
    pub fn read(payload: &[u8]) -> PyResult<Terms> {
        match *payload {
            [a, b, c, d, all, restarts, recovers, on_request, traces] => Ok(Terms {
                window: u32::from_le_bytes([a, b, c, d]),
                tells_all: all != 0,
                restarts: restarts != 0,
                recovers: recovers != 0,
                on_request: on_request != 0,
                traces: traces != 0,
            }),
            _ => Err(errors::corrupted("the terms of a lane make no sense")),
        }
    }
}

/// What a table has handled: of all keys since it began, and of some keys since it was told last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handled {
    pub events: u64,
    pub bytes: u64,
    pub keys: Vec<(Name, u32)>,
}

/// One key's share of `HANDLED`.
const SHARE: usize = HEAD + 4;

impl Handled {
    /// As it travels.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(16 + SHARE * self.keys.len());
        bytes.extend_from_slice(&self.events.to_le_bytes());
        bytes.extend_from_slice(&self.bytes.to_le_bytes());
        for (name, count) in &self.keys {
            bytes.extend_from_slice(&name.bytes());
            bytes.extend_from_slice(&count.to_le_bytes());
        }
        bytes
    }

    /// Reads it.
    pub fn read(payload: &[u8]) -> PyResult<Handled> {
        let wrong = || errors::corrupted("what a lane has handled makes no sense");
        let (events, rest) = payload.split_first_chunk::<8>().ok_or_else(wrong)?;
        let (bytes, rest) = rest.split_first_chunk::<8>().ok_or_else(wrong)?;
        let shares = rest.chunks_exact(SHARE);
        if !shares.remainder().is_empty() {
            return Err(wrong());
        }
        let keys = shares.map(|share| {
            let (name, count) = Name::read(share)?;
            let count = count.first_chunk::<4>().ok_or_else(wrong)?;
            Ok((name, u32::from_le_bytes(*count)))
        });
        Ok(Handled {
            events: u64::from_le_bytes(*events),
            bytes: u64::from_le_bytes(*bytes),
            keys: keys.collect::<PyResult<_>>()?,
        })
    }
}

/// What a key had done when it ended, beyond what was told before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rest {
    /// How many events it had handled.
    pub handled: u32,
    /// It has raised while it had an event, which does not count as handled.
    pub in_hand: bool,
}

impl Rest {
    /// As it travels.
    pub fn bytes(self) -> [u8; 5] {
        let [a, b, c, d] = self.handled.to_le_bytes();
        [a, b, c, d, u8::from(self.in_hand)]
    }

    /// Reads it; and what follows.
    pub fn read(payload: &[u8]) -> PyResult<(Rest, &[u8])> {
        match payload {
            [a, b, c, d, in_hand, rest @ ..] => {
                let handled = u32::from_le_bytes([*a, *b, *c, *d]);
                let in_hand = *in_hand != 0;
                Ok((Rest { handled, in_hand }, rest))
            }
            _ => Err(errors::corrupted("the end of a key makes no sense")),
        }
    }
}

/// What a table tells its caller.
pub enum Message {
    /// A result of a key; and its hash, if it is one that is compared.
    Result(Name, Py<PyAny>, u64),
    /// A snapshot of the state of a key, after so many of its events.
    Saved(Name, u64, Box<[u8]>),
    /// The function of a key has returned, or raised. Nothing of the key comes after it.
    Ended(Name, Rest, Result<(), PyErr>),
    /// So much was handled.
    Handled(Handled),
    /// A result of the key's oldest request, and its hash as that of a result.
    Answer(Name, Py<PyAny>, u64),
    /// The key's oldest request was handled.
    Answered(Name),
    /// The function raises at the key's oldest request, as the end of the key tells next.
    AtFault(Name),
    /// The function has returned after so many events, and is run anew with the next one.
    Returned(Name, u32),
}

/// Reads a snapshot.
pub fn read_saved(payload: &[u8]) -> PyResult<Message> {
    let (name, saved) = Name::read(payload)?;
    let Some((count, state)) = saved.split_first_chunk::<8>() else {
        return Err(errors::corrupted("a snapshot of no events at all"));
    };
    let count = u64::from_le_bytes(*count);
    Ok(Message::Saved(name, count, state.into()))
}
