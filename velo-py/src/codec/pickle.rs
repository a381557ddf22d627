//! Values without a native form: pickle protocol 5, or cloudpickle for objects that pickle refuses.
//!
//! The bytes after `c1 05`, with little-endian numbers:
//!
//! | part | bytes |
//! | --- | --- |
//! | number of buffers | `u32` |
//! | length of the pickle | `u64` |
//! | the pickle | that many |
//! | for each out-of-band buffer | length `u64`, padding length `u8`, padding, data |
//! | or, when it lies in a loan | length `u64`, 255, its number `u32` |
//!
//! Padding brings the data to a multiple of 64. In another process `__main__` is another module, so a
//! value that refers to `__main__` by name goes by cloudpickle, by value.

use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use super::error::{Fault, Stop, fault};
use super::lookups::Lookups;
use super::marker::{self, own};
use super::out::Out;
use super::pickler::Pickled;
use super::reader::{Decode, Reader};

/// The least bytes of one buffer: its length and its padding length.
const BUFFER_HEAD: usize = 9;

/// Stands for a padding length where a number follows instead of data.
const LENT: u8 = u8::MAX;

/// Writes the pickle with its buffers.
pub fn put<O: Out>(pickled: &Pickled<'_>, out: &mut O) -> Result<(), Stop> {
    let py = pickled.bytes.py();
    let Ok(count) = u32::try_from(pickled.buffers.len()) else {
        return Err(PyTypeError::new_err("cannot send a value of so many buffers").into());
    };
    let bytes = pickled.bytes.as_bytes();
    out.put(&[marker::OWN, own::PICKLE])?;
    out.put(&count.to_le_bytes())?;
    out.put(&(bytes.len() as u64).to_le_bytes())?;
    out.put(bytes)?;
    for buffer in &pickled.buffers {
        let start = buffer.buf_ptr().cast::<u8>().cast_const();
        put_buffer(out, Some(start), buffer.len_bytes(), |room| {
            Ok(buffer.copy_to_slice(py, room)?)
        })?;
    }
    Ok(())
}

/// Writes a buffer of `len` bytes, by `fill` unless it is lent; `start` is its address if it is
/// contiguous.
pub fn put_buffer<O: Out>(
    out: &mut O,
    start: Option<*const u8>,
    len: usize,
    fill: impl FnOnce(&mut [u8]) -> Result<(), Stop>,
) -> Result<(), Stop> {
    let Some(number) = start.and_then(|start| out.lend(start, len)) else {
        return fill(put_aligned(out, len)?);
    };
    out.put(&(len as u64).to_le_bytes())?;
    out.put_u8(LENT)?;
    Ok(out.put(&number.to_le_bytes())?)
}

/// Writes the head of aligned data and returns the room for its `len` bytes.
fn put_aligned<O: Out>(out: &mut O, len: usize) -> Result<&mut [u8], Stop> {
    let padding = out.padding(BUFFER_HEAD);
    let room = out.reserve(BUFFER_HEAD + padding + len)?;
    room[..8].copy_from_slice(&(len as u64).to_le_bytes());
    room[8] = padding as u8;
    room[BUFFER_HEAD..BUFFER_HEAD + padding].fill(0);
    Ok(&mut room[BUFFER_HEAD + padding..])
}

/// A buffer that came out of a payload.
pub struct Buffer<'py> {
    /// The object that exports the buffer: a view or a copy.
    pub object: Bound<'py, PyAny>,
    pub len: usize,
    /// The memory is shared, so it must not be written to.
    pub shared: bool,
}

/// The buffer that follows.
pub fn buffer<'py, D: Decode>(decoder: &mut Reader<'_, 'py, D>) -> Result<Buffer<'py>, Fault> {
    let len = decoder.len64()?;
    match decoder.u8()? {
        LENT => {
            let number = u32::from_le_bytes(*decoder.bytes()?);
            match decoder.memory.lent(decoder.py, number)? {
                Some((object, size)) if size == len => Ok(Buffer {
                    object,
                    len,
                    shared: !decoder.memory.is_private(),
                }),
                _ => fault("a loan that was not made"),
            }
        }
        padding => {
            decoder.slice(usize::from(padding))?;
            let (object, shared) = decoder.buffer(len)?;
            Ok(Buffer {
                object,
                len,
                shared,
            })
        }
    }
}

/// Writes all of a value as one pickle.
pub fn put_whole<O: Out>(
    lookups: &Lookups,
    obj: &Bound<'_, PyAny>,
    out: &mut O,
) -> Result<(), Stop> {
    put(&lookups.pickle.dump(obj)?, out)
}

/// The object in the pickle that follows.
pub fn load<'py, D: Decode>(decoder: &mut Reader<'_, 'py, D>) -> Result<Bound<'py, PyAny>, Fault> {
    let py = decoder.py;
    let count = u32::from_le_bytes(*decoder.bytes()?) as usize;
    let len = decoder.len64()?;
    // Copied, because unpickled objects must not point into memory that is released.
    let bytes = decoder.slice(len)?;
    decoder.may_unpickle(bytes)?;
    let bytes = PyBytes::new(py, bytes);
    if count > decoder.left() / BUFFER_HEAD {
        return fault("more buffers than bytes");
    }
    let loads = decoder.lookups.pickle.loads(py);
    if count == 0 {
        return Ok(loads.call1((bytes,))?);
    }
    let buffers = PyList::empty(py);
    for _ in 0..count {
        buffers.append(buffer(decoder)?.object)?;
    }
    let options = PyDict::new(py);
    options.set_item(intern!(py, "buffers"), buffers)?;
    Ok(loads.call((bytes,), Some(&options))?)
}
