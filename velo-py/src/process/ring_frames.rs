//! Frames of lanes in a pair of rings: each begins with the name of a key.

use pyo3::prelude::*;

use crate::codec::{Codec, EncodeError, SliceOut, VecOut};
use crate::flow::Offer;
use crate::lane_frames::{HEAD, Name};
use crate::process::ring_pair::RingPair;

/// Room that is asked for before the encoded size is known.
const GUESS: usize = 64;

impl RingPair {
    /// Encodes `value`, if there is one, behind the name of a key. How many bytes that took; None when
    /// there is no room now.
    #[inline]
    pub fn push_named(
        &mut self,
        codec: &Codec,
        (kind, counted): (u8, bool),
        name: Name,
        value: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<u32>> {
        let Some(value) = value else {
            let sent = self.push_bytes(&name.bytes(), &[], kind, counted)?;
            return Ok(matches!(sent, Offer::Sent).then_some(HEAD as u32));
        };
        let py = value.py();
        let hint = HEAD + codec.size_hint(value).max(GUESS);
        match self.producer.reserve(hint, counted) {
            Ok(mut room) => {
                room[..HEAD].copy_from_slice(&name.bytes());
                let mut out = SliceOut::new(&mut room[HEAD..]);
                match codec.encode(py, value, &mut out) {
                    Ok(()) => {
                        let used = HEAD + out.len();
                        room.commit(kind, used);
                        self.bytes_out += used as u64;
                        self.stalled = None;
                        return Ok(Some(used as u32));
                    }
                    Err(EncodeError::Python(error)) => return Err(error),
                    Err(EncodeError::Overflow { .. }) => {}
                }
            }
            Err(refused) => {
                self.refused(refused, hint)?;
                return Ok(None);
            }
        }
        // It did not fit the room at hand: find out how long it is.
        let mut out = VecOut::with_capacity(2 * hint);
        out.write(&name.bytes());
        codec.encode(py, value, &mut out)?;
        let bytes = out.into_vec();
        let sent = self.push_bytes(&bytes, &[], kind, counted)?;
        Ok(matches!(sent, Offer::Sent).then_some(bytes.len() as u32))
    }

    /// Copies bytes behind the name of a key. How many bytes that took; None when there is no room now.
    pub fn push_named_bytes(
        &mut self,
        (kind, counted): (u8, bool),
        name: Name,
        bytes: &[u8],
    ) -> PyResult<Option<u32>> {
        let len = HEAD + bytes.len();
        match self.producer.reserve(len, counted) {
            Ok(mut room) => {
                room[..HEAD].copy_from_slice(&name.bytes());
                room[HEAD..len].copy_from_slice(bytes);
                room.commit(kind, len);
                self.bytes_out += len as u64;
                self.stalled = None;
                Ok(Some(len as u32))
            }
            Err(refused) => {
                self.refused(refused, len)?;
                Ok(None)
            }
        }
    }
}
