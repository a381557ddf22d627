//! `str`, `bytes` and `bytearray`.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyString};

use super::error::{Fault, Stop, changed, judge};
use super::marker::{self, ext};
use super::out::{Out, copy_short, ext_room, put_ext};
use super::writer::{Encode, Writer};
use crate::ffi::objects::{copy_bytearray, utf8};

/// Reserves room for a marker that a big-endian `len` of `size` bytes follows, and for `len` bytes.
#[inline]
fn sized<O: Out>(out: &mut O, marker: u8, size: usize, len: usize) -> Result<&mut [u8], Stop> {
    let room = out.reserve(1 + size + len)?;
    room[0] = marker;
    room[1..=size].copy_from_slice(&(len as u64).to_be_bytes()[8 - size..]);
    Ok(&mut room[1 + size..])
}

#[inline(always)]
pub fn put_str<'py, O: Out, E: Encode>(
    encoder: &mut Writer<'_, 'py, O, E>,
    text: &Bound<'py, PyString>,
) -> Result<(), Stop> {
    let Some(bytes) = utf8(text) else {
        return put_surrogates(encoder.out, text);
    };
    encoder.note_leaf(text, bytes.len())?;
    let room = match bytes.len() {
        len @ ..32 => {
            let room = encoder.out.reserve(1 + len)?;
            room[0] = marker::FIXSTR | len as u8;
            copy_short(&mut room[1..], bytes);
            return Ok(());
        }
        len @ ..0x100 => sized(encoder.out, marker::STR8, 1, len)?,
        len @ ..0x1_0000 => sized(encoder.out, marker::STR16, 2, len)?,
        len if u32::try_from(len).is_ok() => sized(encoder.out, marker::STR32, 4, len)?,
        _ => return Err(Stop::Whole),
    };
    room.copy_from_slice(bytes);
    Ok(())
}

#[cold]
fn put_surrogates<O: Out>(out: &mut O, text: &Bound<'_, PyString>) -> Result<(), Stop> {
    let py = text.py();
    let args = (intern!(py, "utf-8"), intern!(py, "surrogatepass"));
    let bytes = text.call_method1(intern!(py, "encode"), args)?;
    put_ext(
        out,
        ext::SURROGATES,
        bytes.cast::<PyBytes>().map_err(PyErr::from)?.as_bytes(),
    )
}

/// A `str` from extension [`ext::SURROGATES`].
pub fn surrogates<'py>(py: Python<'py>, bytes: &[u8]) -> Result<Bound<'py, PyAny>, Fault> {
    let args = (intern!(py, "utf-8"), intern!(py, "surrogatepass"));
    PyBytes::new(py, bytes)
        .call_method1(intern!(py, "decode"), args)
        .map_err(|error| judge(py, error, "text that is not UTF-8"))
}

#[inline(always)]
pub fn put_bytes<'py, O: Out, E: Encode>(
    encoder: &mut Writer<'_, 'py, O, E>,
    bytes: &Bound<'py, PyBytes>,
) -> Result<(), Stop> {
    encoder.note_leaf(bytes, bytes.as_bytes().len())?;
    put_plain_bytes(encoder.out, bytes.as_bytes())
}

/// Writes bytes that occur once in the value.
#[inline(always)]
pub fn put_plain_bytes<O: Out>(out: &mut O, bytes: &[u8]) -> Result<(), Stop> {
    let room = match bytes.len() {
        len @ ..0x100 => sized(out, marker::BIN8, 1, len)?,
        len @ ..0x1_0000 => sized(out, marker::BIN16, 2, len)?,
        len if u32::try_from(len).is_ok() => sized(out, marker::BIN32, 4, len)?,
        _ => return Err(Stop::Whole),
    };
    room.copy_from_slice(bytes);
    Ok(())
}

pub fn put_bytearray<'py, O: Out, E: Encode>(
    encoder: &mut Writer<'_, 'py, O, E>,
    bytes: &Bound<'py, PyByteArray>,
) -> Result<(), Stop> {
    encoder.note(bytes)?;
    let room = ext_room(encoder.out, ext::BYTEARRAY, bytes.len())?;
    if copy_bytearray(bytes, room) {
        Ok(())
    } else {
        Err(changed("bytearray"))
    }
}

/// A `bytearray` from extension [`ext::BYTEARRAY`].
pub fn bytearray<'py>(py: Python<'py>, bytes: &[u8]) -> Result<Bound<'py, PyAny>, Fault> {
    match PyByteArray::new_with(py, bytes.len(), |room| {
        room.copy_from_slice(bytes);
        Ok(())
    }) {
        Ok(object) => Ok(object.into_any()),
        Err(error) => Err(error.into()),
    }
}
