//! Finds a pickle in an encoded value, without decoding the value.

use std::ops::Range;

use super::walk::{Visit, walk};

/// The bytes are no encoded value.
#[derive(Debug, PartialEq, Eq)]
pub struct NoValue;

/// The first pickle in `payload`, which decoding would run; None if it holds none.
pub fn pickle_in(payload: &[u8]) -> Result<Option<Vec<u8>>, NoValue> {
    let mut first = First(None);
    match (walk(payload, &mut first), first.0) {
        (Some(()), None) => Ok(None),
        (_, Some(pickle)) => Ok(Some(pickle)),
        (None, None) => Err(NoValue),
    }
}

struct First(Option<Vec<u8>>);

impl Visit for First {
    fn ambiguous(&mut self) -> Option<()> {
        Some(())
    }

    fn dtype(&mut self, _name: &[u8]) -> Option<()> {
        Some(())
    }

    fn padding(&mut self, _at: Range<usize>) {}

    fn pickle(&mut self, pickle: &[u8]) {
        self.0 = Some(pickle.to_vec());
    }
}
