//! The frames of a lane, as its caller reads and writes them.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use pyo3::prelude::*;

use super::blame::Death;
use super::channel::RingChannel;
use super::lane_messages::read_message;
use super::link::ClientLink;
use super::ring_stream::StreamState;
use super::told::Told;
use crate::codec::{CopyMemory, codec};
use crate::errors;
use crate::flow::Offer;
use crate::lane_frames::Name;
use crate::process::ring_pair::{END, ERROR};

/// What reading a frame of a lane came to.
pub enum NextFrame<R> {
    Frame(R),
    /// Nothing is there yet.
    Nothing,
    /// The lane is over; see [`Told::Over`].
    Over(Option<PyErr>, Option<Death>),
}

impl RingChannel {
    /// Whether the lane is to leave its worker, if it can.
    pub fn is_leaving(&self) -> bool {
        self.shared.leaving.load(Relaxed)
    }

    /// It has no better worker to go to.
    pub fn stays(&self) {
        self.shared.leaving.store(false, Relaxed);
    }

    /// Whether it is on this link at present.
    pub fn is_on(&self, py: Python<'_>, link: &Arc<ClientLink>) -> PyResult<bool> {
        Ok(Arc::ptr_eq(&self.shared.link(py)?, link))
    }

    /// Sends something of a key: how many bytes that took, or None when there is no room now.
    #[inline]
    pub fn send_named(
        &self,
        py: Python<'_>,
        kind: (u8, bool),
        name: Name,
        value: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<u32>> {
        let codec = codec(py)?;
        self.shared
            .state
            .with(py, |ends| match ends.rings.as_mut() {
                Some(rings) if !ends.ended && ends.failure.is_none() => {
                    rings.push_named(codec, kind, name, value)
                }
                _ => Ok(None),
            })?
    }

    /// Sends what is encoded behind the name of a key: how many bytes that took, or None when there is
    /// no room now.
    pub fn send_encoded(
        &self,
        py: Python<'_>,
        (kind, counted): (u8, bool),
        name: Name,
        bytes: &[u8],
    ) -> PyResult<Option<u32>> {
        self.shared
            .state
            .with(py, |ends| match ends.rings.as_mut() {
                Some(rings) if !ends.ended && ends.failure.is_none() => {
                    rings.push_named_bytes((kind, counted), name, bytes)
                }
                _ => Ok(None),
            })?
    }

    /// Sends bytes; false when there is no room now.
    pub fn send_bytes(&self, py: Python<'_>, kind: u8, bytes: &[u8]) -> PyResult<bool> {
        self.shared
            .state
            .with(py, |ends| match ends.rings.as_mut() {
                Some(rings) => {
                    let sent = rings.push_bytes(bytes, &[], kind, false)?;
                    Ok(matches!(sent, Offer::Sent))
                }
                None => Ok(false),
            })?
    }

    /// Sends a frame as it is: false when there is no room now. One that is `counted` is an event.
    pub fn send_frame(
        &self,
        py: Python<'_>,
        (kind, counted): (u8, bool),
        payload: &[u8],
    ) -> PyResult<bool> {
        self.shared
            .state
            .with(py, |ends| match ends.rings.as_mut() {
                Some(rings) if !ends.ended && ends.failure.is_none() => {
                    let sent = rings.push_bytes(payload, &[], kind, counted)?;
                    Ok(matches!(sent, Offer::Sent))
                }
                _ => Ok(true), // nobody reads it any more
            })?
    }

    /// The next message of a lane. `hashes` says that the hash of each result is wanted.
    #[inline]
    pub fn next_message(&self, py: Python<'_>, hashes: bool) -> PyResult<Told> {
        let read = |kind, payload: &[u8]| {
            let message = read_message(py, kind, payload, hashes)?;
            Ok::<_, PyErr>(message.ok_or(kind))
        };
        Ok(match self.next_frame(py, read)? {
            NextFrame::Frame(message) => match message? {
                Ok(message) => Told::Message(message),
                Err(kind) => {
                    self.shared.finish(py)?;
                    let what = format!("the worker sent a frame of kind {kind} on a lane");
                    Told::Over(Some(errors::corrupted(what)), None)
                }
            },
            NextFrame::Nothing => Told::Nothing,
            NextFrame::Over(error, death) => Told::Over(error, death),
        })
    }

    /// Reads the next frame of a lane.
    #[inline]
    pub fn next_frame<R>(
        &self,
        py: Python<'_>,
        read: impl FnOnce(u8, &[u8]) -> R,
    ) -> PyResult<NextFrame<R>> {
        let last = self.shared.state.with(py, |ends: &mut StreamState| {
            let Some(rings) = ends.rings.as_mut() else {
                return Ok(Err(ends.failure.take()));
            };
            let frame = match rings.consumer.peek() {
                Ok(Some(frame)) => frame,
                Ok(None) if ends.failure.is_some() => return Ok(Err(None)),
                Ok(None) => return Ok(Ok(NextFrame::Nothing)),
                Err(found) => return Ok(Err(Some(errors::ring_corrupted(&found)))),
            };
            let (kind, payload) = (frame.kind, frame.payload);
            let next = match kind {
                END => Ok(Err(None)),
                ERROR => codec(py)?
                    .decode(py, payload, &mut CopyMemory)
                    .map_err(PyErr::from)
                    .map(|packed| Err(Some(errors::unpack(py, packed.unbind())))),
                _ => Ok(Ok(NextFrame::Frame(read(kind, payload)))),
            };
            rings.bytes_in += payload.len() as u64;
            rings.consumer.release();
            next
        })??;
        match last {
            Ok(next) => Ok(next),
            Err(error) => {
                let failure = self.shared.finish(py)?;
                let death = self.shared.state.with(py, |ends| ends.death.take())?;
                Ok(NextFrame::Over(error.or(failure), death))
            }
        }
    }
}
