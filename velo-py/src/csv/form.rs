//! The form of the records of one CSV file: makes the event of one record, in any process.

use std::collections::HashSet;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use super::columns::Columns;
use super::record::{Record, Splitter};

/// Columns and delimiter of a file, made from [packed](Columns::packed) columns.
pub struct Form {
    packed: Box<[u8]>,
    columns: Columns,
    splitter: Splitter,
}

impl Form {
    /// The form that `packed` describes; None if it describes none.
    pub fn new(py: Python<'_>, packed: &[u8]) -> PyResult<Option<Self>> {
        let mut rest = packed;
        let Some((delimiter, numbers, names, text, null)) = unpack(&mut rest) else {
            return Ok(None);
        };
        if !rest.is_empty() {
            return Ok(None);
        }
        let names = names.iter().map(|name| PyString::new(py, name)).collect();
        Ok(Some(Form {
            packed: packed.into(),
            columns: Columns::new(py, names, &text, numbers, null)?,
            splitter: Splitter::new(delimiter),
        }))
    }

    /// Whether this is the form that `packed` describes.
    pub fn is(&self, packed: &[u8]) -> bool {
        *self.packed == *packed
    }

    /// The event of one whole record; None if the bytes are none.
    pub fn event<'py>(
        &mut self,
        py: Python<'py>,
        record: &[u8],
    ) -> PyResult<Option<Bound<'py, PyDict>>> {
        match self.splitter.next(record, true) {
            Some(found)
                if matches!(found.record, Record::Fields)
                    && found.len == record.len()
                    && self.splitter.count() >= self.columns.count() =>
            {
                self.columns.event(py, &self.splitter, record).map(Some)
            }
            _ => Ok(None),
        }
    }
}

type Unpacked<'a> = (u8, bool, Vec<&'a str>, Vec<usize>, HashSet<Vec<u8>>);

fn unpack<'a>(rest: &mut &'a [u8]) -> Option<Unpacked<'a>> {
    let (delimiter, numbers) = (u8(rest)?, u8(rest)? != 0);
    let mut names = Vec::new();
    let mut text = Vec::new();
    for index in 0..u32(rest)? {
        names.push(std::str::from_utf8(slice(rest)?).ok()?);
        if u8(rest)? != 0 {
            text.push(index as usize);
        }
    }
    let null = (0..u32(rest)?).map(|_| Some(slice(rest)?.to_vec()));
    let null = null.collect::<Option<_>>()?;
    Some((delimiter, numbers, names, text, null))
}

fn u8(rest: &mut &[u8]) -> Option<u8> {
    let (&first, after) = rest.split_first()?;
    *rest = after;
    Some(first)
}

fn u32(rest: &mut &[u8]) -> Option<u32> {
    let (first, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u32::from_le_bytes(*first))
}

fn slice<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = u32(rest)? as usize;
    let (slice, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(slice)
}
