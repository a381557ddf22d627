//! The frames of a lane, as its caller reads and writes them.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use pyo3::prelude::*;

use super::channel::RingChannel;
use super::journal::hash_of;
use super::link::ClientLink;
use super::ring_stream::StreamState;
use super::told::Told;
use crate::codec::{CopyMemory, codec};
use crate::errors;
use crate::flow::Offer;
use crate::lane_frames::Message;
use crate::lane_frames::{
    ANSWER, ANSWERED, AT_FAULT, ENDED, FAILED, HANDLED, Handled, Name, RESULT, RETURNED, Rest,
    SAVED, read_count, read_saved,
};
use crate::process::ring_pair::{END, ERROR};

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

    /// The next message of a lane. `hashes` says that the hash of each result is wanted.
    #[inline]
    pub fn next_message(&self, py: Python<'_>, hashes: bool) -> PyResult<Told> {
        let codec = codec(py)?;
        let last = self.shared.state.with(py, |ends: &mut StreamState| {
            let Some(rings) = ends.rings.as_mut() else {
                return Ok(Err(ends.failure.take()));
            };
            let frame = match rings.consumer.peek() {
                Ok(Some(frame)) => frame,
                Ok(None) if ends.failure.is_some() => return Ok(Err(None)),
                Ok(None) => return Ok(Ok(Told::Nothing)),
                Err(found) => return Ok(Err(Some(errors::ring_corrupted(&found)))),
            };
            let (kind, payload) = (frame.kind, frame.payload);
            let told =
                match kind {
                    RESULT | ANSWER => Name::read(payload).and_then(|(name, result)| {
                        let hash = if hashes { hash_of(result) } else { 0 };
                        let result = codec.decode(py, result, &mut CopyMemory)?.unbind();
                        let message = match kind {
                            RESULT => Message::Result(name, result, hash),
                            _ => Message::Answer(name, result, hash),
                        };
                        Ok(Ok(Told::Message(message)))
                    }),
                    SAVED => read_saved(payload).map(|saved| Ok(Told::Message(saved))),
                    ANSWERED => Name::read(payload)
                        .map(|(name, _)| Ok(Told::Message(Message::Answered(name)))),
                    AT_FAULT => Name::read(payload)
                        .map(|(name, _)| Ok(Told::Message(Message::AtFault(name)))),
                    RETURNED => read_count(payload)
                        .map(|(name, taken)| Ok(Told::Message(Message::Returned(name, taken)))),
                    ENDED => Name::read(payload).and_then(|(name, rest)| {
                        let (rest, _) = Rest::read(rest)?;
                        Ok(Ok(Told::Message(Message::Ended(name, rest, Ok(())))))
                    }),
                    FAILED => Name::read(payload).and_then(|(name, packed)| {
                        let (rest, packed) = Rest::read(packed)?;
                        let packed = codec.decode(py, packed, &mut CopyMemory)?;
                        let error = super::channel::unpack_error(py, packed.unbind());
                        Ok(Ok(Told::Message(Message::Ended(name, rest, Err(error)))))
                    }),
                    HANDLED => Handled::read(payload)
                        .map(|handled| Ok(Told::Message(Message::Handled(handled)))),
                    END => Ok(Err(None)),
                    ERROR => {
                        let packed = codec.decode(py, payload, &mut CopyMemory);
                        packed.map_err(PyErr::from).map(|packed| {
                            Err(Some(super::channel::unpack_error(py, packed.unbind())))
                        })
                    }
                    other => {
                        let what = format!("the worker sent a frame of kind {other} on a lane");
                        Ok(Err(Some(errors::corrupted(what))))
                    }
                };
            rings.bytes_in += payload.len() as u64;
            rings.consumer.release();
            told
        })??;
        match last {
            Ok(told) => Ok(told),
            Err(error) => {
                let failure = self.shared.finish(py)?;
                let death = self.shared.state.with(py, |ends| ends.death.take())?;
                Ok(Told::Over(error.or(failure), death))
            }
        }
    }
}
