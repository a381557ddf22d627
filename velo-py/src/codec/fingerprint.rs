//! Compares encoded values by a hash, without decoding them.

use std::ops::Range;

use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use super::walk::{Visit, walk};

/// A hash of the value in `payload`. None if equal values may have different bytes, or the bytes are no
/// value.
///
/// Sets have no order of their own, pickles depend on the identity of objects, and some dtypes leave
/// gaps between their numbers. The hash leaves out the padding before array data, because it depends on
/// the address of the bytes.
pub fn fingerprint(payload: &[u8]) -> Option<u64> {
    let mut hash = Hash {
        payload,
        hashed: 0,
        pieces: None,
    };
    walk(payload, &mut hash)?;
    match hash.pieces {
        None => Some(xxh3_64(payload)),
        Some(mut pieces) => {
            pieces.update(&payload[hash.hashed..]);
            Some(pieces.digest())
        }
    }
}

/// The hash of a result that is compared with another one; 0 if it cannot be.
#[inline]
pub fn hash_of(payload: &[u8]) -> u64 {
    fingerprint(payload).map_or(0, |hash| hash.max(1))
}

struct Hash<'a> {
    payload: &'a [u8],
    /// Everything before this is in `pieces`, or left out.
    hashed: usize,
    /// Once something was left out.
    pieces: Option<Box<Xxh3Default>>,
}

impl Visit for Hash<'_> {
    fn ambiguous(&mut self) -> Option<()> {
        None
    }

    fn dtype(&mut self, name: &[u8]) -> Option<()> {
        (!has_gaps(name)).then_some(())
    }

    fn padding(&mut self, at: Range<usize>) {
        let pieces = self.pieces.get_or_insert_default();
        pieces.update(&self.payload[self.hashed..at.start]);
        self.hashed = at.end;
    }

    fn pickle(&mut self, _pickle: &[u8]) {}
}

/// Whether items of this dtype hold meaningless bytes, as C's `long double` does.
fn has_gaps(dtype: &[u8]) -> bool {
    [&b"f16"[..], b"f12", b"c32", b"c24"]
        .iter()
        .any(|name| dtype.ends_with(name))
}
