//! What a key table tells its caller, as it is read from the frames of a lane.

use pyo3::prelude::*;

use crate::codec::{CopyMemory, codec, hash_of};
use crate::errors;
use crate::lane_frames::{
    ANSWER, ANSWERED, AT_FAULT, ENDED, FAILED, HANDLED, Handled, Message, Name, RESULT, RETURNED,
    Rest, SAVED, read_count, read_saved,
};

/// Reads a frame. `hashes` says that the hash of each result is wanted. None: it is of another kind.
#[inline]
pub fn read_message(
    py: Python<'_>,
    kind: u8,
    payload: &[u8],
    hashes: bool,
) -> PyResult<Option<Message>> {
    let message = match kind {
        RESULT | ANSWER => {
            let (name, result) = Name::read(payload)?;
            let hash = if hashes { hash_of(result) } else { 0 };
            let result = codec(py)?.decode(py, result, &mut CopyMemory)?.unbind();
            match kind {
                RESULT => Message::Result(name, result, hash),
                _ => Message::Answer(name, result, hash),
            }
        }
        SAVED => read_saved(payload)?,
        ANSWERED => Message::Answered(Name::read(payload)?.0),
        AT_FAULT => Message::AtFault(Name::read(payload)?.0),
        RETURNED => {
            let (name, taken) = read_count(payload)?;
            Message::Returned(name, taken)
        }
        ENDED => {
            let (name, rest) = Name::read(payload)?;
            let (rest, _) = Rest::read(rest)?;
            Message::Ended(name, rest, Ok(()))
        }
        FAILED => {
            let (name, packed) = Name::read(payload)?;
            let (rest, packed) = Rest::read(packed)?;
            let packed = codec(py)?.decode(py, packed, &mut CopyMemory)?;
            Message::Ended(name, rest, Err(errors::unpack(py, packed.unbind())))
        }
        HANDLED => Message::Handled(Handled::read(payload)?),
        _ => return Ok(None),
    };
    Ok(Some(message))
}
