//! The dispatch from the type of a value to the file that writes it.

use pyo3::prelude::*;

use super::error::{EncodeError, Stop};
use super::lookups::Lookups;
use super::out::Out;
use super::writer::{Encode, Writer};
use super::{array, container, line, pickle, record, scalar, text, time, unpicklable};
use crate::ffi::objects::{Exact, exact};

/// Appends `obj`: natively where the native form loses nothing, else by one pickle.
pub fn encode<'py, O: Out>(
    lookups: &Lookups,
    obj: &Bound<'py, PyAny>,
    out: &mut O,
) -> Result<(), EncodeError> {
    let start = out.position();
    let result = match exact(obj) {
        // A `bytes` alone needs no writer.
        Exact::Bytes(bytes) => text::put_plain_bytes(out, bytes.as_bytes()),
        _ => Writer::<O, Values>::new(lookups, obj.py(), out).value(obj),
    };
    let result = match result {
        Err(Stop::Whole) => {
            out.rewind(start);
            pickle::put_whole(lookups, obj, out)
        }
        result => result,
    };
    match result {
        Ok(()) => Ok(()),
        Err(Stop::Full(full)) => Err(EncodeError::Overflow {
            at_least: full.at_least - start,
        }),
        Err(Stop::Raised(error)) => Err(EncodeError::Python(*error)),
        Err(Stop::Refused(error)) => Err(EncodeError::Python(unpicklable::explain(
            &lookups.pickle,
            obj,
            *error,
        ))),
        Err(Stop::Whole) => unreachable!("a pickle carries any value"),
    }
}

/// All types of the format.
struct Values;

impl Encode for Values {
    #[inline]
    fn value<'py, O: Out>(
        writer: &mut Writer<'_, 'py, O, Self>,
        obj: &Bound<'py, PyAny>,
    ) -> Result<(), Stop> {
        match exact(obj) {
            Exact::Str(text) => text::put_str(writer, text),
            Exact::Int(int) => scalar::put_int(writer.out, int),
            Exact::Float(float) => scalar::put_float(writer.out, float),
            Exact::Bytes(bytes) => text::put_bytes(writer, bytes),
            Exact::Bool(value) => scalar::put_bool(writer.out, value),
            Exact::None => scalar::put_none(writer.out),
            Exact::Dict(dict) => container::put_dict(writer, dict),
            Exact::List(list) => container::put_list(writer, list),
            Exact::Tuple(tuple) => container::put_tuple(writer, tuple),
            Exact::Set(set) => container::put_set(writer, set),
            Exact::FrozenSet(set) => container::put_frozenset(writer, set),
            Exact::ByteArray(bytes) => text::put_bytearray(writer, bytes),
            Exact::Complex(complex) => scalar::put_complex(writer.out, complex),
            Exact::Other => other(writer, obj),
        }
    }
}

#[inline(never)]
fn other<'py, O: Out>(
    writer: &mut Writer<'_, 'py, O, Values>,
    obj: &Bound<'py, PyAny>,
) -> Result<(), Stop> {
    if line::put(writer, obj)?
        || record::put(writer, obj)?
        || time::put(writer, obj)?
        || array::put(writer, obj)?
    {
        return Ok(());
    }
    let pickled = writer.pickle_part(obj)?;
    pickle::put(&pickled, writer.out)
}
