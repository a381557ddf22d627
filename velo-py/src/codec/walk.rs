//! Walks over an encoded value without decoding it.

use std::ops::Range;

use super::array::PICKLED_DTYPE;
use super::marker::{self, ext, own};

/// Receives the parts of a value that matter to some walk; `None` ends the walk.
pub trait Visit {
    /// A set, whose items have no order, or a narrow float: equal values may have different bytes.
    fn ambiguous(&mut self) -> Option<()>;

    /// The name of a dtype.
    fn dtype(&mut self, name: &[u8]) -> Option<()>;

    /// The place of bytes that depend on the address of the value.
    fn padding(&mut self, at: Range<usize>);

    /// A pickle. The walk ends there.
    fn pickle(&mut self, pickle: &[u8]);
}

/// Walks over the one value of which `payload` consists. None if the walk was ended, or the bytes are no
/// value.
pub fn walk(payload: &[u8], visit: &mut impl Visit) -> Option<()> {
    if payload.is_empty() {
        return Some(()); // how `None` may travel
    }
    let mut walk = Walk {
        payload,
        at: 0,
        visit,
    };
    let mut owed = 1_u64;
    while owed > 0 {
        owed = owed - 1 + walk.value()?;
    }
    (walk.at == payload.len()).then_some(())
}

struct Walk<'a, V> {
    payload: &'a [u8],
    at: usize,
    visit: &'a mut V,
}

impl<'a, V: Visit> Walk<'a, V> {
    /// Skips the head of a value; returns the number of values in it.
    fn value(&mut self) -> Option<u64> {
        let head = self.u8()?;
        let skipped = match head {
            ..=marker::FIXINT_MAX | marker::NEGATIVE_FIXINT.. => 0,
            marker::NIL | marker::FALSE | marker::TRUE => 0,
            marker::FIXMAP..marker::FIXARRAY => return Some(2 * u64::from(head & 0x0f)),
            marker::FIXARRAY..marker::FIXSTR => return Some(u64::from(head & 0x0f)),
            marker::FIXSTR..marker::NIL => usize::from(head & 0x1f),
            marker::OWN => return self.own(),
            marker::BIN8..=marker::BIN32 => self.len(head - marker::BIN8)?,
            marker::EXT8..=marker::EXT32 => return self.extension(head - marker::EXT8),
            marker::UINT8 | marker::INT8 => 1,
            marker::UINT16 | marker::INT16 => 2,
            marker::UINT32 | marker::INT32 => 4,
            marker::FLOAT32 => {
                self.visit.ambiguous()?;
                4
            }
            marker::UINT64 | marker::INT64 | marker::FLOAT64 => 8,
            marker::STR8..=marker::STR32 => self.len(head - marker::STR8)?,
            marker::ARRAY16 | marker::ARRAY32 => {
                return Some(self.len(head - marker::ARRAY16 + 1)? as u64);
            }
            marker::MAP16 | marker::MAP32 => {
                return Some(2 * self.len(head - marker::MAP16 + 1)? as u64);
            }
            _ => return None,
        };
        self.slice(skipped)?;
        Some(0)
    }

    fn own(&mut self) -> Option<u64> {
        match self.u8()? {
            own::TUPLE => Some(1), // its items follow as a list
            own::SET | own::FROZENSET => {
                self.visit.ambiguous()?;
                Some(1)
            }
            own::ARRAY => self.array(),
            own::PICKLE => {
                self.slice(4)?; // how many buffers follow
                let len = self.len64()?;
                let pickle = self.slice(len)?;
                self.visit.pickle(pickle);
                None
            }
            own::RECORD => Some(7),
            _ => None,
        }
    }

    fn array(&mut self) -> Option<u64> {
        let flags = self.u8()?;
        let dtype_len = u32::from_le_bytes(*self.slice(4)?.first_chunk()?) as usize;
        let dtype = self.slice(dtype_len)?;
        if flags & PICKLED_DTYPE != 0 {
            self.visit.pickle(dtype);
            return None;
        }
        self.visit.dtype(dtype)?;
        let dimensions = usize::from(self.u8()?);
        self.slice(8 * dimensions)?;
        let len = self.len64()?;
        let from = self.at;
        let padding = usize::from(self.u8()?);
        self.slice(padding)?;
        self.visit.padding(from..self.at);
        self.slice(len)?;
        Some(0)
    }

    fn extension(&mut self, size: u8) -> Option<u64> {
        let len = self.len(size)?;
        let kind = self.u8()?;
        let bytes = self.slice(len)?;
        if kind == ext::NUMPY_SCALAR {
            let (&len, rest) = bytes.split_first()?;
            self.visit.dtype(rest.get(..usize::from(len))?)?;
        }
        Some(0)
    }

    #[inline]
    fn u8(&mut self) -> Option<u8> {
        let byte = *self.payload.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    #[inline]
    fn slice(&mut self, len: usize) -> Option<&'a [u8]> {
        let slice = self.payload[self.at..].get(..len)?;
        self.at += len;
        Some(slice)
    }

    /// A big-endian length of 8, 16 or 32 bits.
    fn len(&mut self, size: u8) -> Option<usize> {
        Some(match size {
            0 => usize::from(self.u8()?),
            1 => usize::from(u16::from_be_bytes(*self.slice(2)?.first_chunk()?)),
            _ => u32::from_be_bytes(*self.slice(4)?.first_chunk()?) as usize,
        })
    }

    /// A little-endian length of 64 bits.
    fn len64(&mut self) -> Option<usize> {
        usize::try_from(u64::from_le_bytes(*self.slice(8)?.first_chunk()?)).ok()
    }
}
