//! One Python object to bytes and back: same value, exact same type.
//!
//! [`Codec::encode`] writes straight into the memory that the bytes are meant for,
//! [`Codec::decode`] reads straight out of it and can hand out large buffers as views of it.
//! Neither keeps any part of the other side's memory, and `decode` checks every byte. But it executes
//! pickles, so both sides must belong to one user, and a caller must not pass bytes from a network to
//! it.
//!
//! # Format
//!
//! | Python type (exactly it) | bytes |
//! | --- | --- |
//! | `None`, `bool`, `int` of 64 bits, `float` | MessagePack; floats are written as doubles, and read in both widths |
//! | `str`, `bytes`, `list`, `dict` | MessagePack |
//! | larger `int` | extension 1: little-endian two's complement |
//! | `complex` | extension 2: two little-endian doubles |
//! | `bytearray` | extension 3 |
//! | `str` with lone surrogates | extension 4: UTF-8 with the surrogates left in |
//! | `date`, `time`, `datetime`, `timedelta` | extensions 5 to 8, see `time.rs` |
//! | NumPy scalar | extension 9, see `array.rs` |
//! | `tuple`, `set`, `frozenset` | `c1`, then 1, 2 or 3, then a MessagePack array |
//! | `numpy.ndarray` | `c1 04`, see `array.rs` |
//! | `velo.connect.Record` | `c1 06`, then its seven values |
//! | a line of a file, as the event that it holds | `c1 07`, see `line.rs` |
//! | everything else | `c1 05`, a pickle with its buffers, see `pickle.rs` |
//!
//! `c1` is the byte that MessagePack leaves unused. The value after it is not wrapped in an extension,
//! because an extension begins with its length, which is only known at its end.
//!
//! # When one pickle carries the whole value
//!
//! Only pickle keeps identities, so a value goes by one pickle from top to bottom when it is nested
//! deeper than [`marker::MAX_DEPTH`], contains itself, holds one mutable object in two places, or holds
//! more than one object that has to be pickled. A single such object is pickled at its place.
//! Immutable values made of plain values only (`("a", 1)`) have no identity worth keeping.
//!
//! Arrays, and other buffers that pickle hands over out of band, arrive as read-only views of shared
//! memory, or, if they are small, as copies that the receiver may write to.

mod array;
mod array_spec;
mod container;
mod datetime_types;
mod decode;
mod dtype;
mod encode;
mod error;
mod fingerprint;
mod line;
mod lookups;
mod marker;
mod memory;
mod out;
mod pickle;
mod pickle_in;
mod pickler;
pub mod python;
mod reader;
mod recent_keys;
mod record;
mod scalar;
mod seen;
mod text;
mod time;
mod unpicklable;
mod utf8;
mod walk;
mod writer;

use pyo3::prelude::*;

use crate::ffi::objects::{Exact, exact, utf8};
use lookups::Lookups;

pub use array::seal;
pub use array_spec::ArraySpec;
pub use error::{DecodeError, EncodeError, Overflow};
pub use fingerprint::{fingerprint, hash_of};
pub use memory::{CopyMemory, Memory, OwnMemory};
pub use out::{Out, SliceOut, VecOut};
pub use pickle_in::pickle_in;
pub use python::codec;
pub use record::Record;
pub use unpicklable::say_result;

/// The result of [`Codec::size_hint`] for objects whose size is only known after encoding.
const UNKNOWN_SIZE: usize = 64;

/// The codec, with its lookups: types, pickle's functions, dtypes, recent keys.
///
/// One per process is enough. It holds no state of any value, so encoding and decoding may be
/// entered again from the Python code that they run (`__reduce__`, `__setstate__`).
pub struct Codec(Lookups);

impl Codec {
    /// Looks up the types and functions that every value needs. NumPy and cloudpickle wait until a
    /// value needs them.
    pub fn new(py: Python<'_>) -> PyResult<Self> {
        Ok(Self(Lookups::new(py)?))
    }

    fn lookups(&self) -> &Lookups {
        &self.0
    }

    /// Appends `obj` to `out`. After an error, the bytes of `out` beyond its old position are
    /// meaningless.
    ///
    /// Any Python code may run meanwhile, because pickle calls methods of objects.
    pub fn encode<O: Out>(
        &self,
        _py: Python<'_>,
        obj: &Bound<'_, PyAny>,
        out: &mut O,
    ) -> Result<(), EncodeError> {
        encode::encode(&self.0, obj, out)
    }

    /// An estimate of the encoded size of `obj`, found cheaply. It suffices for text, bytes, numbers
    /// and arrays, with the most padding; for containers it is a lower bound, for other objects a
    /// small constant.
    pub fn size_hint(&self, obj: &Bound<'_, PyAny>) -> usize {
        match exact(obj) {
            Exact::Str(text) => utf8(text).map_or(UNKNOWN_SIZE, |text| text.len() + 5),
            Exact::Bytes(bytes) => bytes.as_bytes().len() + 5,
            Exact::ByteArray(bytes) => bytes.len() + 6,
            Exact::List(list) => list.len() + UNKNOWN_SIZE,
            Exact::Tuple(tuple) => tuple.len() + UNKNOWN_SIZE,
            Exact::Dict(dict) => 2 * dict.len() + UNKNOWN_SIZE,
            Exact::Other => line::size_hint(obj)
                .or_else(|| array::size_hint(&self.0, obj))
                .unwrap_or(UNKNOWN_SIZE),
            _ => UNKNOWN_SIZE,
        }
    }

    /// The contiguous memory of the items of `obj`, if it is an array that is written natively.
    pub fn items_of(&self, obj: &Bound<'_, PyAny>) -> Option<(*const u8, usize)> {
        array::items(&self.0, obj)
    }

    /// Decodes the one object of which `payload` consists.
    ///
    /// Python code may run meanwhile: imports, and the methods that pickle calls.
    pub fn decode<'py>(
        &self,
        py: Python<'py>,
        payload: &[u8],
        memory: &mut dyn Memory,
    ) -> Result<Bound<'py, PyAny>, DecodeError> {
        decode::decode(&self.0, py, payload, memory, true)
    }

    /// Decodes a payload from an untrusted writer. It executes no pickle: a pickle in the payload
    /// raises `ValueError`.
    pub fn decode_untrusted<'py>(
        &self,
        py: Python<'py>,
        payload: &[u8],
    ) -> Result<Bound<'py, PyAny>, DecodeError> {
        decode::decode(&self.0, py, payload, &mut CopyMemory, false)
    }
}
