//! The destination of encoded bytes: memory of a fixed size, or a vector that grows.

use super::error::{Overflow, Stop};
use super::marker;

/// The alignment of array data, in bytes.
pub const ALIGN: usize = 64;

/// A place that bytes are appended to.
pub trait Out {
    /// The number of bytes that were written so far.
    fn position(&self) -> usize;

    /// Forgets the bytes that were written after `position`.
    ///
    /// # Panics
    /// May panic when `position` lies ahead.
    fn rewind(&mut self, position: usize);

    /// Appends `len` bytes for the caller to fill; their content is unspecified until then.
    fn reserve(&mut self, len: usize) -> Result<&mut [u8], Overflow>;

    /// The number of bytes to skip so that the byte `ahead` of the position lies at a multiple of
    /// [`ALIGN`].
    fn padding(&self, ahead: usize) -> usize;

    /// The number by which the reader finds these bytes in memory that it shares, if they lie there:
    /// then they are not written. [`rewind`](Self::rewind) gives the number up.
    fn lend(&mut self, _start: *const u8, _len: usize) -> Option<u32> {
        None
    }

    /// Appends `bytes`.
    #[inline(always)]
    fn put(&mut self, bytes: &[u8]) -> Result<(), Overflow> {
        self.reserve(bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }

    /// Appends one byte.
    #[inline(always)]
    fn put_u8(&mut self, byte: u8) -> Result<(), Overflow> {
        self.reserve(1)?[0] = byte;
        Ok(())
    }

    /// Appends a marker and the `N` bytes that belong to it.
    #[inline(always)]
    fn put_marked<const N: usize>(&mut self, marker: u8, bytes: [u8; N]) -> Result<(), Overflow> {
        let room = self.reserve(1 + N)?;
        room[0] = marker;
        room[1..].copy_from_slice(&bytes);
        Ok(())
    }
}

/// Copies up to 32 bytes between slices of one length, in overlapping halves: a call to `memcpy` takes
/// longer than that.
///
/// # Panics
/// When the lengths differ.
#[inline(always)]
pub fn copy_short(to: &mut [u8], from: &[u8]) {
    /// True when there are at least `N` bytes; then the first and the last `N` were copied.
    #[inline(always)]
    fn ends<const N: usize>(to: &mut [u8], from: &[u8]) -> bool {
        let (Some(first), Some(last)) = (from.first_chunk::<N>(), from.last_chunk::<N>()) else {
            return false;
        };
        let (first, last) = (*first, *last);
        if let Some(to) = to.first_chunk_mut() {
            *to = first;
        }
        if let Some(to) = to.last_chunk_mut() {
            *to = last;
        }
        true
    }
    assert_eq!(to.len(), from.len());
    match from.len() {
        33.. => to.copy_from_slice(from),
        _ if ends::<16>(to, from) || ends::<8>(to, from) || ends::<4>(to, from) => {}
        _ => to.iter_mut().zip(from).for_each(|(to, from)| *to = *from),
    }
}

/// Writes into a slice, such as room reserved in a ring; array data is aligned by real addresses.
pub struct SliceOut<'a> {
    room: &'a mut [u8],
    position: usize,
}

impl<'a> SliceOut<'a> {
    /// Starts at the first byte of `room`.
    pub fn new(room: &'a mut [u8]) -> Self {
        Self { room, position: 0 }
    }

    /// The number of bytes that were written.
    pub fn len(&self) -> usize {
        self.position
    }
}

impl Out for SliceOut<'_> {
    #[inline(always)]
    fn position(&self) -> usize {
        self.position
    }

    #[inline]
    fn rewind(&mut self, position: usize) {
        assert!(position <= self.position, "rewind to a position ahead");
        self.position = position;
    }

    #[inline(always)]
    fn reserve(&mut self, len: usize) -> Result<&mut [u8], Overflow> {
        let start = self.position;
        let end = start.saturating_add(len);
        match self.room.get_mut(start..end) {
            Some(room) => {
                self.position = end;
                Ok(room)
            }
            None => Err(Overflow { at_least: end }),
        }
    }

    #[inline]
    fn padding(&self, ahead: usize) -> usize {
        let address = self.room.as_ptr() as usize;
        address.wrapping_add(self.position + ahead).wrapping_neg() % ALIGN
    }
}

/// Writes into a vector that grows; array data is aligned as if the vector began at an aligned
/// address.
#[derive(Default)]
pub struct VecOut(Vec<u8>);

impl VecOut {
    /// An empty vector that has room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// An empty vector in memory that was used before.
    pub fn reusing(mut memory: Vec<u8>) -> Self {
        memory.clear();
        Self(memory)
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// What was written.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// What was written.
    pub fn into_vec(self) -> Vec<u8> {
        self.0
    }
}

impl Out for VecOut {
    #[inline(always)]
    fn position(&self) -> usize {
        self.0.len()
    }

    #[inline]
    fn rewind(&mut self, position: usize) {
        self.0.truncate(position);
    }

    #[inline(always)]
    fn reserve(&mut self, len: usize) -> Result<&mut [u8], Overflow> {
        let start = self.0.len();
        self.0.resize(start + len, 0);
        Ok(&mut self.0[start..])
    }

    #[inline]
    fn padding(&self, ahead: usize) -> usize {
        (self.0.len() + ahead).wrapping_neg() % ALIGN
    }

    #[inline(always)]
    fn put(&mut self, bytes: &[u8]) -> Result<(), Overflow> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// Writes the head of an extension and returns the room for its `len` bytes.
pub fn ext_room<O: Out>(out: &mut O, kind: u8, len: usize) -> Result<&mut [u8], Stop> {
    let (marker, size) = match len {
        0..=0xff => (marker::EXT8, 1),
        0x100..=0xffff => (marker::EXT16, 2),
        len if u32::try_from(len).is_ok() => (marker::EXT32, 4),
        _ => return Err(Stop::Whole),
    };
    let room = out.reserve(2 + size + len)?;
    room[0] = marker;
    room[1..=size].copy_from_slice(&(len as u64).to_be_bytes()[8 - size..]);
    room[1 + size] = kind;
    Ok(&mut room[2 + size..])
}

/// Writes a whole extension.
pub fn put_ext<O: Out>(out: &mut O, kind: u8, bytes: &[u8]) -> Result<(), Stop> {
    ext_room(out, kind, bytes.len())?.copy_from_slice(bytes);
    Ok(())
}
