//! The frames of a lane, as its worker reads and writes them.

use pyo3::prelude::*;

use super::ring_port::RingPort;
use crate::codec::{CopyMemory, codec};
use crate::errors;
use crate::flow::{Interest, Offer};
use crate::key_text::{self, KeyText};
use crate::lane_frames::{CANCEL, EVENT, LAST, Name, OPEN, REQUEST, Rest, SAVE, TERMS, Terms};
use crate::process::ring_pair::{END, spin};

/// What the caller of a lane has sent.
pub enum Frame<'py> {
    Terms(Terms),
    /// A key opens; its text; and the state that its function had in another worker, if it did.
    Open(Name, KeyText, Box<[u8]>),
    /// An event, or what reading it has raised; how many bytes it took, and whether it is a request.
    Event(Name, PyResult<Bound<'py, PyAny>>, u32, bool),
    Last(Name),
    Cancel(Name),
    /// A snapshot of the key's state is wanted.
    Save(Name),
    /// No more keys come.
    End,
}

impl RingPort {
    /// The next frame, without waiting. `reads` is told of the key whose event is about to be decoded.
    #[inline]
    pub fn next_frame<'py>(
        &self,
        py: Python<'py>,
        reads: impl FnOnce(Name),
    ) -> PyResult<Option<Frame<'py>>> {
        let codec = codec(py)?;
        self.state.with(py, |ends| {
            if ends.input_ended {
                return Ok(None);
            }
            let Some(rings) = ends.rings.as_mut() else {
                ends.input_ended = true;
                return Ok(Some(Frame::End));
            };
            let frame = match rings.consumer.peek() {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(None),
                Err(found) => return Err(errors::ring_corrupted(&found)),
            };
            let (kind, payload) = (frame.kind, frame.payload);
            let len = payload.len();
            let frame = match kind {
                EVENT | REQUEST => {
                    let (name, event) = Name::read(payload)?;
                    reads(name);
                    let event = codec.decode(py, event, &mut CopyMemory);
                    Frame::Event(
                        name,
                        event.map_err(PyErr::from),
                        len as u32,
                        kind == REQUEST,
                    )
                }
                OPEN => {
                    let (name, rest) = Name::read(payload)?;
                    let Some((text, state)) = key_text::split(rest) else {
                        return Err(errors::corrupted("a key opens without a text"));
                    };
                    Frame::Open(name, KeyText::new(text), state.into())
                }
                LAST => Frame::Last(Name::read(payload)?.0),
                CANCEL => Frame::Cancel(Name::read(payload)?.0),
                SAVE => Frame::Save(Name::read(payload)?.0),
                TERMS => Frame::Terms(Terms::read(payload)?),
                END => {
                    ends.input_ended = true;
                    Frame::End
                }
                other => {
                    let what = format!("the client sent a frame of kind {other} to a lane");
                    return Err(errors::corrupted(what));
                }
            };
            rings.bytes_in += len as u64;
            rings.consumer.release();
            Ok(Some(frame))
        })?
    }

    /// Sends something of a key; false when there is no room now.
    #[inline]
    pub fn push_named(
        &self,
        py: Python<'_>,
        kind: u8,
        name: Name,
        value: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        let codec = codec(py)?;
        self.state.with(py, |ends| match ends.rings.as_mut() {
            Some(rings) => {
                let kind = (kind, value.is_some());
                Ok(rings.push_named(codec, kind, name, value)?.is_some())
            }
            None => Ok(true), // the client has gone: nobody wants it
        })?
    }

    /// Sends the exception of a key; false when there is no room now.
    pub fn push_failure(
        &self,
        py: Python<'_>,
        kind: u8,
        (name, rest): (Name, Rest),
        error: &PyErr,
    ) -> PyResult<bool> {
        if self.state.with(py, |ends| ends.ended_by.is_some())? {
            return Ok(true); // the end of the lane says why
        }
        let mut bytes = name.bytes().to_vec();
        bytes.extend_from_slice(&rest.bytes());
        bytes.extend_from_slice(&self.pack_error(py, error.clone_ref(py)));
        self.push_bytes(py, kind, &bytes)
    }

    /// Sends bytes; false when there is no room now.
    pub fn push_bytes(&self, py: Python<'_>, kind: u8, bytes: &[u8]) -> PyResult<bool> {
        self.state.with(py, |ends| match ends.rings.as_mut() {
            Some(rings) => {
                let sent = rings.push_bytes(bytes, &[], kind, false)?;
                Ok(matches!(sent, Offer::Sent))
            }
            None => Ok(true),
        })?
    }

    /// Registers the running task to be woken when there is a frame, or room if it is `blocked`. None:
    /// there is.
    pub fn wait_frame(&self, py: Python<'_>, blocked: bool) -> PyResult<Option<Py<PyAny>>> {
        let there = self.state.with(py, |ends| {
            let Some(rings) = ends.rings.as_mut() else {
                return Ok(blocked || !ends.input_ended);
            };
            if blocked && rings.has_space()? {
                return Ok(true);
            }
            if ends.input_ended {
                return Ok(false);
            }
            if !blocked && !self.line.end.is_oversubscribed() {
                spin(py, rings, (&self.line.end, self.slot), Interest::RESULTS);
            }
            Ok::<_, PyErr>(rings.consumer.has_data())
        })??;
        match there {
            true => Ok(None),
            false => self.function.wait_event(py, &self.event_loop).map(Some),
        }
    }
}
