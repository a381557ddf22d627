//! A lane to a worker on another machine: its frames are bytes that Python code carries.
//!
//! | byte | holds |
//! | --- | --- |
//! | 0 | the kind of a frame, as in a ring, or one of those below |
//! | 1 to 4 | the length of its payload |
//! | from 5 on | the payload |
//!
//! The other end is a `LaneRelay`, which puts the same frames into the rings of an ordinary lane.

use std::ops::Range;
use std::sync::Arc;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::cell::GilCell;
use crate::codec::{VecOut, codec};
use crate::errors;
use crate::lane_frames::{Message, Name};
use crate::process::client::blame::{Death, PlainDeath};
use crate::process::client::lane_messages::read_message;
use crate::process::client::told::Told;
use crate::wait::{Group, Wait};

/// No more keys come.
pub const END: u8 = 0xfe;
/// All keys are cancelled.
pub const CANCEL: u8 = 0xff;
/// How many bytes come before a payload.
pub const FRAME_HEAD: usize = 5;

/// The kind and the payload of the first frame, if all of it is there.
pub fn first_frame(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let (&[kind, a, b, c, d], rest) = bytes.split_first_chunk::<FRAME_HEAD>()?;
    let len = u32::from_le_bytes([a, b, c, d]) as usize;
    Some((kind, rest.get(..len)?))
}

/// Appends a frame, whose payload is in parts. The length of the payload.
pub fn put_frame(bytes: &mut Vec<u8>, kind: u8, payload: &[&[u8]]) -> PyResult<u32> {
    let len: usize = payload.iter().map(|part| part.len()).sum();
    let Ok(short) = u32::try_from(len) else {
        return Err(errors::too_large(format!(
            "{len} bytes cannot be sent at once"
        )));
    };
    bytes.push(kind);
    bytes.extend_from_slice(&short.to_le_bytes());
    payload
        .iter()
        .for_each(|part| bytes.extend_from_slice(part));
    Ok(short)
}

/// So many bytes may wait to be carried; then there is no room.
const OUT_LIMIT: usize = 1 << 20;
/// So many bytes may have come and wait to be read; then no more is asked for.
const IN_LIMIT: usize = 1 << 22;

/// The caller's end of such a lane.
#[pyclass(frozen, module = "velo._core")]
pub struct RemoteLane {
    ends: GilCell<Ends>,
    /// Where the caller waits.
    reader: Wait,
    /// Called when there is something to carry, or room for what comes.
    nudge: Py<PyAny>,
    /// Where its worker is, for the notes of exceptions.
    place: String,
    /// The most bytes of one event.
    longest: usize,
}

#[derive(Default)]
struct Ends {
    out: Vec<u8>,
    /// `nudge` was called, and nothing was taken since.
    told: bool,
    /// There was no room for a frame.
    stuck: bool,
    input: Vec<u8>,
    /// How much of that was read.
    read: usize,
    /// So many of the other bytes are the beginning of a frame.
    partial: usize,
    /// What comes after the last frame of the input.
    end: Option<(PyErr, Option<Death>)>,
    over: bool,
    /// No more input is asked for until some of this was read.
    full: bool,
}

impl Ends {
    fn unread(&self) -> usize {
        self.input.len() - self.read
    }

    /// The kind and the payload of the next frame, if all of it is there.
    fn next(&mut self) -> Option<(u8, Range<usize>)> {
        self.partial = self.unread();
        let (kind, payload) = first_frame(&self.input[self.read..])?;
        let start = self.read + FRAME_HEAD;
        let end = start + payload.len();
        (self.read, self.partial) = (end, 0);
        Some((kind, start..end))
    }

    /// Whether there is something to read, or was not seen yet.
    fn has_news(&self) -> bool {
        self.unread() > self.partial || self.end.is_some()
    }
}

#[pymethods]
impl RemoteLane {
    /// `nudge` is called, without arguments, when `take` or `push` has something to do. `place` is told
    /// with each exception. No event may be longer than `longest` bytes.
    #[new]
    fn new(nudge: Py<PyAny>, place: String, longest: usize) -> Self {
        RemoteLane {
            ends: GilCell::default(),
            reader: Wait::default(),
            nudge,
            place,
            longest,
        }
    }

    /// Takes what is to be carried, `most` bytes at most.
    fn take<'py>(&self, py: Python<'py>, most: usize) -> PyResult<Bound<'py, PyBytes>> {
        let (taken, freed) = self.ends.with(py, |ends| {
            ends.told = false;
            let taken = match ends.out.len() <= most {
                true => std::mem::take(&mut ends.out),
                false => {
                    let rest = ends.out.split_off(most);
                    std::mem::replace(&mut ends.out, rest)
                }
            };
            let freed = ends.stuck && ends.out.len() < OUT_LIMIT;
            ends.stuck &= !freed;
            (taken, freed)
        })?;
        if freed {
            self.reader.wake(py);
        }
        Ok(PyBytes::new(py, &taken))
    }

    /// How many bytes are to be carried.
    #[getter]
    fn waiting(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.ends.with(py, |ends| ends.out.len())?)
    }

    /// Whether it can do without more input for now.
    #[getter]
    fn is_full(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.ends.with(py, |ends| {
            ends.full = ends.unread() >= IN_LIMIT;
            ends.full
        })?)
    }

    /// Whether its end was read.
    #[getter]
    fn is_over(&self, py: Python<'_>) -> PyResult<bool> {
        self.over(py)
    }

    /// Has more be read.
    fn push(&self, py: Python<'_>, bytes: &[u8]) -> PyResult<()> {
        self.ends.with(py, |ends| {
            let read = std::mem::take(&mut ends.read);
            ends.input.drain(..read);
            ends.input.extend_from_slice(bytes);
        })?;
        self.reader.wake(py);
        Ok(())
    }

    /// Nothing more comes, for this reason. `death` says how the worker has died, as `LaneRelay.over` does.
    #[pyo3(signature = (error, death=None))]
    fn close(
        &self,
        py: Python<'_>,
        error: &Bound<'_, PyAny>,
        death: Option<PlainDeath>,
    ) -> PyResult<()> {
        self.ends.with(py, |ends| {
            ends.end
                .get_or_insert_with(|| (PyErr::from_value(error.clone()), death.map(Death::from)));
        })?;
        self.reader.wake(py);
        Ok(())
    }
}

impl RemoteLane {
    /// Sends a value of a key, as `RingChannel::send_named` does.
    pub fn send_named(
        &self,
        py: Python<'_>,
        kind: u8,
        name: Name,
        value: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<u32>> {
        let Some(value) = value else {
            return self.send_encoded(py, kind, name, &[]);
        };
        if !self.has_room(py)? {
            return Ok(None);
        }
        let mut out = VecOut::default();
        codec(py)?.encode(py, value, &mut out)?;
        self.send_encoded(py, kind, name, out.as_slice())
    }

    /// Sends what is encoded behind the name of a key.
    pub fn send_encoded(
        &self,
        py: Python<'_>,
        kind: u8,
        name: Name,
        bytes: &[u8],
    ) -> PyResult<Option<u32>> {
        if !self.has_room(py)? {
            return Ok(None);
        }
        if bytes.len() > self.longest {
            return Err(errors::too_large(format!(
                "{} bytes cannot be sent at once: the limit is {} bytes, half of `max_bytes`; raise it \
                 with `StreamConfig(max_bytes=...)`",
                bytes.len(),
                self.longest
            )));
        }
        let sent = self.ends.with(py, |ends| {
            put_frame(&mut ends.out, kind, &[&name.bytes(), bytes])
        })??;
        Ok(Some(sent))
    }

    /// Sends bytes, whether there is room or not.
    pub fn send_bytes(&self, py: Python<'_>, kind: u8, bytes: &[u8]) -> PyResult<()> {
        self.ends
            .with(py, |ends| put_frame(&mut ends.out, kind, &[bytes]))??;
        self.flush(py)
    }

    fn has_room(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.ends.with(py, |ends| {
            ends.stuck = ends.out.len() >= OUT_LIMIT;
            !ends.stuck
        })?)
    }

    /// Has what was sent carried.
    pub fn flush(&self, py: Python<'_>) -> PyResult<()> {
        let tells = self.ends.with(py, |ends| {
            let tells = !ends.out.is_empty() && !ends.told;
            ends.told |= tells;
            tells
        })?;
        match tells {
            true => self.nudge.call0(py).map(drop),
            false => Ok(()),
        }
    }

    /// The next thing that the table says. `hashes` asks for the hash of each result.
    pub fn told(&self, py: Python<'_>, hashes: bool) -> PyResult<Told> {
        let told = self.ends.with(py, |ends| -> PyResult<Told> {
            let Some((kind, place)) = ends.next() else {
                return Ok(match ends.end.take() {
                    Some((error, death)) => {
                        ends.over = true;
                        Told::Over(Some(error), death)
                    }
                    None if ends.over => Told::Over(None, None),
                    None => Told::Nothing,
                });
            };
            match read_message(py, kind, &ends.input[place], hashes)? {
                Some(message) => Ok(Told::Message(message)),
                None => {
                    ends.over = true;
                    let what = format!("a node sent a frame of kind {kind} on a lane");
                    Ok(Told::Over(Some(errors::corrupted(what)), None))
                }
            }
        })??;
        if let Told::Message(Message::Ended(_, _, Err(error))) = &told {
            let note = format!("on {}", self.place);
            error
                .value(py)
                .call_method1(intern!(py, "add_note"), (note,))?;
        }
        Ok(told)
    }

    /// Some of the input was read: there may be room for more.
    pub fn read(&self, py: Python<'_>) -> PyResult<()> {
        let goes_on = self.ends.with(py, |ends| {
            let goes_on = ends.full && ends.unread() < IN_LIMIT;
            ends.full &= !goes_on;
            goes_on
        })?;
        match goes_on {
            true => self.nudge.call0(py).map(drop),
            false => Ok(()),
        }
    }

    /// Has `group` told of what comes; false when something is there already.
    pub fn watch(&self, py: Python<'_>, group: &Arc<Group>, stuck: bool) -> PyResult<bool> {
        self.reader.join(py, group.clone(), py.None())?;
        let there = self.ends.with(py, |ends| {
            let room = stuck && ends.out.len() < OUT_LIMIT;
            ends.stuck |= stuck;
            room || ends.has_news()
        })?;
        if there {
            self.reader.clear(py);
        }
        Ok(!there)
    }

    /// Whether its end was read.
    pub fn over(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.ends.with(py, |ends| ends.over)?)
    }
}
