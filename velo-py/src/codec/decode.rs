//! Reading a value back: bounds, budgets, and which byte begins what.
//!
//! Every length is compared with what is left before anything is allocated for it, and containers
//! may not promise more items, all together, than bytes are left to hold them. So a payload costs
//! memory in proportion to its size, whatever it claims.

use std::convert::Infallible;

use pyo3::exceptions::{PyException, PyImportError, PyMemoryError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyFloat, PyInt, PyString};

use super::error::DecodeError;
use super::keys;
use super::marker::{self, ext, own};
use super::{Codec, MAX_DEPTH, Memory, array, container, pickle, scalar, text, time};
use crate::cell::Busy;

/// [`DecodeError`] while the place is still known from the decoder; small, as every step may return
/// it.
pub enum Fault {
    /// See [`DecodeError::Malformed`].
    Malformed(&'static str),
    /// See [`DecodeError::Python`].
    Raised(Box<PyErr>),
}

impl From<PyErr> for Fault {
    #[cold]
    fn from(error: PyErr) -> Self {
        Self::Raised(Box::new(error))
    }
}

/// The bytes are wrong: `what`.
#[cold]
pub fn fault<T>(what: &'static str) -> Result<T, Fault> {
    Err(Fault::Malformed(what))
}

/// Tells an exception that bad bytes caused from one that this process caused.
#[cold]
pub fn judge(py: Python<'_>, error: PyErr, what: &'static str) -> Fault {
    let ours = !error.is_instance_of::<PyException>(py)
        || error.is_instance_of::<PyMemoryError>(py)
        || error.is_instance_of::<PyImportError>(py);
    if ours {
        error.into()
    } else {
        Fault::Malformed(what)
    }
}

/// One payload being read.
pub struct Decoder<'a, 'py> {
    pub codec: &'a Codec,
    pub py: Python<'py>,
    payload: &'a [u8],
    at: usize,
    depth: usize,
    /// Values that containers begun so far still wait for; each takes a byte at the least.
    owed: usize,
    /// Set by the first pickle, whose objects may raise what they like from then on.
    pub unpickled: bool,
    /// Whether pickles are read at all: they run code.
    trusted: bool,
    pub memory: &'a mut dyn Memory,
}

/// Makes the one value that all of `payload` stands for.
pub fn decode<'py>(
    codec: &Codec,
    py: Python<'py>,
    payload: &[u8],
    memory: &mut dyn Memory,
    trusted: bool,
) -> Result<Bound<'py, PyAny>, DecodeError> {
    // What is nothing but a few bytes needs none of what is kept for the rest.
    if let [marker::BIN8, len, bytes @ ..] = payload
        && usize::from(*len) == bytes.len()
    {
        return Ok(PyBytes::new(py, bytes).into_any());
    }
    let mut decoder = Decoder {
        codec,
        py,
        payload,
        at: 0,
        depth: 0,
        owed: 0,
        unpickled: false,
        trusted,
        memory,
    };
    let value = decoder.value().and_then(|value| match decoder.left() {
        0 => Ok(value),
        _ => fault("more bytes than the value has"),
    });
    value.map_err(|fault| match fault {
        Fault::Malformed(what) => DecodeError::Malformed {
            what,
            at: decoder.at,
        },
        Fault::Raised(error) => DecodeError::Python(*error),
    })
}

impl<'a, 'py> Decoder<'a, 'py> {
    /// How many bytes are left.
    #[inline(always)]
    pub fn left(&self) -> usize {
        self.payload.len() - self.at
    }

    /// The next byte.
    #[inline(always)]
    pub fn u8(&mut self) -> Result<u8, Fault> {
        match self.payload.get(self.at) {
            Some(&byte) => {
                self.at += 1;
                Ok(byte)
            }
            None => fault("an end in the middle"),
        }
    }

    /// The next `N` bytes.
    #[inline(always)]
    pub fn bytes<const N: usize>(&mut self) -> Result<&'a [u8; N], Fault> {
        match self.payload[self.at..].first_chunk() {
            Some(bytes) => {
                self.at += N;
                Ok(bytes)
            }
            None => fault("an end in the middle"),
        }
    }

    /// The next `len` bytes.
    #[inline(always)]
    pub fn slice(&mut self, len: usize) -> Result<&'a [u8], Fault> {
        match self.payload[self.at..].get(..len) {
            Some(bytes) => {
                self.at += len;
                Ok(bytes)
            }
            None => fault("a length beyond the end"),
        }
    }

    /// The next eight bytes, little-endian, as a length in memory.
    pub fn len64(&mut self) -> Result<usize, Fault> {
        match usize::try_from(u64::from_le_bytes(*self.bytes()?)) {
            Ok(len) => Ok(len),
            Err(_) => fault("a length beyond the end"),
        }
    }

    /// The next `len` bytes as an object that exports them: a view of them, a copy, or a copy that
    /// may be written to.
    pub fn buffer(&mut self, len: usize) -> Result<Bound<'py, PyAny>, Fault> {
        let bytes = self.slice(len)?;
        if (!bytes.is_empty() || self.memory.is_private())
            && let Some(view) = self.memory.view(self.py, bytes)?
        {
            return Ok(view);
        }
        Ok(PyBytes::new(self.py, bytes).into_any())
    }

    /// Begins a container of `items` values.
    #[inline]
    pub fn enter(&mut self, items: usize) -> Result<(), Fault> {
        if self.depth == MAX_DEPTH {
            return fault("containers nested too deeply");
        }
        if self.owed.saturating_add(items) > self.left() {
            return fault("more items than bytes");
        }
        self.depth += 1;
        self.owed += items;
        Ok(())
    }

    /// Ends what [`Decoder::enter`] began.
    #[inline]
    pub fn leave(&mut self) {
        self.depth -= 1;
    }

    /// The next value of a container.
    #[inline]
    pub fn item(&mut self) -> Result<Bound<'py, PyAny>, Fault> {
        self.owed -= 1;
        self.value()
    }

    /// The next value of a dict that is a key: short text is looked up among recent keys.
    #[inline]
    pub fn key(&mut self) -> Result<Bound<'py, PyAny>, Fault> {
        self.owed -= 1;
        match self.payload.get(self.at) {
            Some(&head @ 0xa1..=0xbf) => {
                self.at += 1;
                let bytes = self.slice(usize::from(head & 0x1f))?;
                Ok(self.short_key(bytes)?.into_any())
            }
            _ => self.value(),
        }
    }

    fn short_key(&mut self, bytes: &[u8]) -> Result<Bound<'py, PyString>, Fault> {
        const { assert!(keys::MAX_LEN >= 0x1f) };
        let kept = self
            .codec
            .keys
            .with(self.py, |keys| keys.get(self.py, bytes));
        kept.unwrap_or_else(|Busy| text::str(self.py, bytes))
    }

    /// Refuses a pickle, unless its writer is trusted. The error's second argument is the pickle, so that
    /// its caller can say which names it would import.
    pub fn may_unpickle(&mut self, pickle: &[u8]) -> Result<(), Fault> {
        self.unpickled = true;
        if self.trusted {
            return Ok(());
        }
        let pickle = PyBytes::new(self.py, pickle).unbind();
        Err(PyValueError::new_err(("it holds a pickle, which runs code", pickle)).into())
    }

    /// An exception for an object that its container refused, which pickled objects may do for any
    /// reason.
    #[cold]
    pub fn unusable(&self, error: PyErr, what: &'static str) -> Fault {
        if self.unpickled {
            error.into()
        } else {
            judge(self.py, error, what)
        }
    }

    /// The next value.
    pub fn value(&mut self) -> Result<Bound<'py, PyAny>, Fault> {
        let py = self.py;
        match self.u8()? {
            head @ ..=marker::FIXINT_MAX => Ok(int(py, head)),
            head @ marker::FIXMAP..marker::FIXARRAY => {
                container::dict(self, usize::from(head & 0x0f))
            }
            head @ marker::FIXARRAY..marker::FIXSTR => {
                container::list(self, usize::from(head & 0x0f))
            }
            head @ marker::FIXSTR..marker::NIL => self.str(usize::from(head & 0x1f)),
            marker::NIL => Ok(py.None().into_bound(py)),
            marker::OWN => self.own(),
            marker::FALSE => Ok(PyBool::new(py, false).to_owned().into_any()),
            marker::TRUE => Ok(PyBool::new(py, true).to_owned().into_any()),
            head @ marker::BIN8..=marker::BIN32 => {
                let len = self.len(head - marker::BIN8)?;
                Ok(PyBytes::new(py, self.slice(len)?).into_any())
            }
            head @ marker::EXT8..=marker::EXT32 => {
                let len = self.len(head - marker::EXT8)?;
                self.extension(len)
            }
            marker::FLOAT32 => {
                let bits = u32::from_be_bytes(*self.bytes()?);
                Ok(PyFloat::new(py, f64::from(f32::from_bits(bits))).into_any())
            }
            marker::FLOAT64 => {
                let bits = u64::from_be_bytes(*self.bytes()?);
                Ok(PyFloat::new(py, f64::from_bits(bits)).into_any())
            }
            marker::UINT8 => Ok(int(py, self.u8()?)),
            marker::UINT16 => Ok(int(py, u16::from_be_bytes(*self.bytes()?))),
            marker::UINT32 => Ok(int(py, u32::from_be_bytes(*self.bytes()?))),
            marker::UINT64 => Ok(int(py, u64::from_be_bytes(*self.bytes()?))),
            marker::INT8 => Ok(int(py, i8::from_be_bytes(*self.bytes()?))),
            marker::INT16 => Ok(int(py, i16::from_be_bytes(*self.bytes()?))),
            marker::INT32 => Ok(int(py, i32::from_be_bytes(*self.bytes()?))),
            marker::INT64 => Ok(int(py, i64::from_be_bytes(*self.bytes()?))),
            head @ marker::STR8..=marker::STR32 => {
                let len = self.len(head - marker::STR8)?;
                self.str(len)
            }
            head @ (marker::ARRAY16 | marker::ARRAY32) => {
                let len = self.len(head - marker::ARRAY16 + 1)?;
                container::list(self, len)
            }
            head @ (marker::MAP16 | marker::MAP32) => {
                let len = self.len(head - marker::MAP16 + 1)?;
                container::dict(self, len)
            }
            head @ marker::NEGATIVE_FIXINT.. => Ok(int(py, head as i8)),
            _ => fault("an unknown marker"),
        }
    }

    /// A big-endian length of 8, 16 or 32 bits.
    #[inline(always)]
    fn len(&mut self, size: u8) -> Result<usize, Fault> {
        Ok(match size {
            0 => usize::from(self.u8()?),
            1 => usize::from(u16::from_be_bytes(*self.bytes()?)),
            _ => u32::from_be_bytes(*self.bytes()?) as usize,
        })
    }

    #[inline(always)]
    fn str(&mut self, len: usize) -> Result<Bound<'py, PyAny>, Fault> {
        let bytes = self.slice(len)?;
        Ok(text::str(self.py, bytes)?.into_any())
    }

    #[inline(never)]
    fn own(&mut self) -> Result<Bound<'py, PyAny>, Fault> {
        match self.u8()? {
            own::TUPLE => {
                let len = container::array_len(self)?;
                container::tuple(self, len)
            }
            own::SET => {
                let len = container::array_len(self)?;
                container::set(self, len)
            }
            own::FROZENSET => {
                let len = container::array_len(self)?;
                container::frozenset(self, len)
            }
            own::ARRAY => array::array(self),
            own::PICKLE => pickle::load(self),
            _ => fault("an unknown kind"),
        }
    }

    #[inline(never)]
    fn extension(&mut self, len: usize) -> Result<Bound<'py, PyAny>, Fault> {
        let kind = self.u8()?;
        let bytes = self.slice(len)?;
        match kind {
            ext::BIG_INT => scalar::big_int(self.py, bytes),
            ext::COMPLEX => scalar::complex(self.py, bytes),
            ext::BYTEARRAY => text::bytearray(self.py, bytes),
            ext::SURROGATES => text::surrogates(self.py, bytes),
            ext::DATE | ext::TIME | ext::DATETIME | ext::TIMEDELTA => {
                time::time(self.codec, self.py, kind, bytes)
            }
            ext::NUMPY_SCALAR => array::scalar(self, bytes),
            _ => fault("an unknown extension"),
        }
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
