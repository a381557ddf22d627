//! The dispatch from the first byte of a value to the file that reads its type.

use std::convert::Infallible;

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyFloat, PyInt};

use super::error::{DecodeError, Fault, fault};
use super::lookups::Lookups;
use super::marker::{self, ext, own};
use super::memory::Memory;
use super::reader::{Decode, Reader};
use super::{array, container, line, pickle, record, scalar, text, time, utf8};

/// Decodes the one value of which `payload` consists.
pub fn decode<'py>(
    lookups: &Lookups,
    py: Python<'py>,
    payload: &[u8],
    memory: &mut dyn Memory,
    trusted: bool,
) -> Result<Bound<'py, PyAny>, DecodeError> {
    // A short `bytes` alone needs no reader.
    if let [marker::BIN8, len, bytes @ ..] = payload
        && usize::from(*len) == bytes.len()
    {
        return Ok(PyBytes::new(py, bytes).into_any());
    }
    let mut reader = Reader::<Values>::new(lookups, py, payload, memory, trusted);
    let value = reader.value().and_then(|value| match reader.left() {
        0 => Ok(value),
        _ => fault("more bytes than the value has"),
    });
    value.map_err(|fault| match fault {
        Fault::Malformed(what) => DecodeError::Malformed {
            what,
            at: reader.position(),
        },
        Fault::Raised(error) => DecodeError::Python(*error),
    })
}

/// All types of the format.
struct Values;

impl Decode for Values {
    fn value<'py>(reader: &mut Reader<'_, 'py, Self>) -> Result<Bound<'py, PyAny>, Fault> {
        let py = reader.py;
        match reader.u8()? {
            head @ ..=marker::FIXINT_MAX => Ok(int(py, head)),
            head @ marker::FIXMAP..marker::FIXARRAY => {
                container::dict(reader, usize::from(head & 0x0f))
            }
            head @ marker::FIXARRAY..marker::FIXSTR => {
                container::list(reader, usize::from(head & 0x0f))
            }
            head @ marker::FIXSTR..marker::NIL => str(reader, usize::from(head & 0x1f)),
            marker::NIL => Ok(py.None().into_bound(py)),
            marker::OWN => own(reader),
            marker::FALSE => Ok(PyBool::new(py, false).to_owned().into_any()),
            marker::TRUE => Ok(PyBool::new(py, true).to_owned().into_any()),
            head @ marker::BIN8..=marker::BIN32 => {
                let len = reader.len(head - marker::BIN8)?;
                Ok(PyBytes::new(py, reader.slice(len)?).into_any())
            }
            head @ marker::EXT8..=marker::EXT32 => {
                let len = reader.len(head - marker::EXT8)?;
                extension(reader, len)
            }
            marker::FLOAT32 => {
                let bits = u32::from_be_bytes(*reader.bytes()?);
                Ok(PyFloat::new(py, f64::from(f32::from_bits(bits))).into_any())
            }
            marker::FLOAT64 => {
                let bits = u64::from_be_bytes(*reader.bytes()?);
                Ok(PyFloat::new(py, f64::from_bits(bits)).into_any())
            }
            marker::UINT8 => Ok(int(py, reader.u8()?)),
            marker::UINT16 => Ok(int(py, u16::from_be_bytes(*reader.bytes()?))),
            marker::UINT32 => Ok(int(py, u32::from_be_bytes(*reader.bytes()?))),
            marker::UINT64 => Ok(int(py, u64::from_be_bytes(*reader.bytes()?))),
            marker::INT8 => Ok(int(py, i8::from_be_bytes(*reader.bytes()?))),
            marker::INT16 => Ok(int(py, i16::from_be_bytes(*reader.bytes()?))),
            marker::INT32 => Ok(int(py, i32::from_be_bytes(*reader.bytes()?))),
            marker::INT64 => Ok(int(py, i64::from_be_bytes(*reader.bytes()?))),
            head @ marker::STR8..=marker::STR32 => {
                let len = reader.len(head - marker::STR8)?;
                str(reader, len)
            }
            head @ (marker::ARRAY16 | marker::ARRAY32) => {
                let len = reader.len(head - marker::ARRAY16 + 1)?;
                container::list(reader, len)
            }
            head @ (marker::MAP16 | marker::MAP32) => {
                let len = reader.len(head - marker::MAP16 + 1)?;
                container::dict(reader, len)
            }
            head @ marker::NEGATIVE_FIXINT.. => Ok(int(py, head as i8)),
            _ => fault("an unknown marker"),
        }
    }
}

#[inline(always)]
fn str<'py>(reader: &mut Reader<'_, 'py, Values>, len: usize) -> Result<Bound<'py, PyAny>, Fault> {
    let bytes = reader.slice(len)?;
    Ok(utf8::text(reader.py, bytes)?.into_any())
}

#[inline(never)]
fn own<'py>(reader: &mut Reader<'_, 'py, Values>) -> Result<Bound<'py, PyAny>, Fault> {
    match reader.u8()? {
        own::TUPLE => {
            let len = container::array_len(reader)?;
            container::tuple(reader, len)
        }
        own::SET => {
            let len = container::array_len(reader)?;
            container::set(reader, len)
        }
        own::FROZENSET => {
            let len = container::array_len(reader)?;
            container::frozenset(reader, len)
        }
        own::ARRAY => array::array(reader),
        own::PICKLE => pickle::load(reader),
        own::RECORD => record::record(reader),
        own::LINE => line::event(reader),
        _ => fault("an unknown kind"),
    }
}

#[inline(never)]
fn extension<'py>(
    reader: &mut Reader<'_, 'py, Values>,
    len: usize,
) -> Result<Bound<'py, PyAny>, Fault> {
    let kind = reader.u8()?;
    let bytes = reader.slice(len)?;
    match kind {
        ext::BIG_INT => scalar::big_int(reader.py, bytes),
        ext::COMPLEX => scalar::complex(reader.py, bytes),
        ext::BYTEARRAY => text::bytearray(reader.py, bytes),
        ext::SURROGATES => text::surrogates(reader.py, bytes),
        ext::DATE | ext::TIME | ext::DATETIME | ext::TIMEDELTA => {
            time::time(reader.lookups, reader.py, kind, bytes)
        }
        ext::NUMPY_SCALAR => array::scalar(reader, bytes),
        _ => fault("an unknown extension"),
    }
}

#[inline(always)]
fn int<'py, T>(py: Python<'py>, value: T) -> Bound<'py, PyAny>
where
    T: IntoPyObject<'py, Target = PyInt, Output = Bound<'py, PyInt>, Error = Infallible>,
{
    let Ok(int) = value.into_pyobject(py);
    int.into_any()
}
