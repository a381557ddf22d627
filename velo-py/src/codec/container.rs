//! `list`, `dict`, `tuple`, `set` and `frozenset`.
//!
//! A container may change while it is written, because pickling one of its items runs Python code.
//! Every loop here then ends with an error, never with a count that differs from the written items.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFrozenSet, PyList, PySet, PyTuple};

use super::error::{Fault, Stop, changed, fault};
use super::marker::{self, own};
use super::out::Out;
use super::reader::{Decode, Reader};
use super::writer::{Encode, Writer};
use crate::ffi::objects::{self, ListBuilder, TupleBuilder};

/// Writes the head of an array or a map of `len` items.
#[inline(always)]
fn put_head<O: Out>(out: &mut O, len: usize, fix: u8, marker16: u8) -> Result<(), Stop> {
    if len < 16 {
        out.put_u8(fix | len as u8)?;
    } else if let Ok(len) = u16::try_from(len) {
        out.put_marked(marker16, len.to_be_bytes())?;
    } else if let Ok(len) = u32::try_from(len) {
        out.put_marked(marker16 + 1, len.to_be_bytes())?;
    } else {
        return Err(Stop::Whole);
    }
    Ok(())
}

#[inline(always)]
fn put_array_head<O: Out>(out: &mut O, len: usize) -> Result<(), Stop> {
    put_head(out, len, marker::FIXARRAY, marker::ARRAY16)
}

#[inline(never)]
pub fn put_list<'py, O: Out, E: Encode>(
    encoder: &mut Writer<'_, 'py, O, E>,
    list: &Bound<'py, PyList>,
) -> Result<(), Stop> {
    encoder.enter(list)?;
    let len = objects::list_len(list);
    put_array_head(encoder.out, len)?;
    for index in 0..len {
        match objects::list_get(list, index) {
            Some(item) => encoder.value(&item)?,
            None => return Err(changed("list")),
        }
    }
    if objects::list_len(list) != len {
        return Err(changed("list"));
    }
    encoder.leave();
    Ok(())
}

#[inline(never)]
pub fn put_dict<'py, O: Out, E: Encode>(
    encoder: &mut Writer<'_, 'py, O, E>,
    dict: &Bound<'py, PyDict>,
) -> Result<(), Stop> {
    encoder.enter(dict)?;
    let len = dict.len();
    put_head(encoder.out, len, marker::FIXMAP, marker::MAP16)?;
    let (mut cursor, mut left) = (0, len);
    while let Some((key, value)) = objects::dict_next(dict, &mut cursor) {
        if left == 0 {
            return Err(changed("dict"));
        }
        left -= 1;
        encoder.value(&key)?;
        encoder.value(&value)?;
    }
    if left != 0 {
        return Err(changed("dict"));
    }
    encoder.leave();
    Ok(())
}

#[inline(never)]
pub fn put_tuple<'py, O: Out, E: Encode>(
    encoder: &mut Writer<'_, 'py, O, E>,
    tuple: &Bound<'py, PyTuple>,
) -> Result<(), Stop> {
    let len = tuple.len();
    if len == 0 {
        return Ok(encoder
            .out
            .put(&[marker::OWN, own::TUPLE, marker::FIXARRAY])?);
    }
    encoder.immutable(tuple, |encoder| {
        encoder.out.put(&[marker::OWN, own::TUPLE])?;
        put_array_head(encoder.out, len)?;
        tuple.iter().try_for_each(|item| encoder.value(&item))
    })
}

#[inline(never)]
pub fn put_set<'py, O: Out, E: Encode>(
    encoder: &mut Writer<'_, 'py, O, E>,
    set: &Bound<'py, PySet>,
) -> Result<(), Stop> {
    encoder.enter(set)?;
    put_members(encoder, own::SET, set.len(), set)?;
    encoder.leave();
    Ok(())
}

#[inline(never)]
pub fn put_frozenset<'py, O: Out, E: Encode>(
    encoder: &mut Writer<'_, 'py, O, E>,
    set: &Bound<'py, PyFrozenSet>,
) -> Result<(), Stop> {
    if set.is_empty() {
        return Ok(encoder
            .out
            .put(&[marker::OWN, own::FROZENSET, marker::FIXARRAY])?);
    }
    encoder.immutable(set, |encoder| {
        put_members(encoder, own::FROZENSET, set.len(), set)
    })
}

fn put_members<'py, O: Out, E: Encode>(
    encoder: &mut Writer<'_, 'py, O, E>,
    kind: u8,
    len: usize,
    set: &Bound<'py, PyAny>,
) -> Result<(), Stop> {
    encoder.out.put(&[marker::OWN, kind])?;
    put_array_head(encoder.out, len)?;
    let mut left = len;
    // Python's own iterator notices a set that changes.
    for item in set.try_iter()? {
        let item = item?;
        if left == 0 {
            return Err(changed("set"));
        }
        left -= 1;
        encoder.value(&item)?;
    }
    if left == 0 {
        Ok(())
    } else {
        Err(changed("set"))
    }
}

/// A `list` of the `len` values that follow.
pub fn list<'py, D: Decode>(
    decoder: &mut Reader<'_, 'py, D>,
    len: usize,
) -> Result<Bound<'py, PyAny>, Fault> {
    decoder.enter(len)?;
    let mut list = ListBuilder::new(decoder.py, len)?;
    for _ in 0..len {
        list.push(decoder.item()?);
    }
    decoder.leave();
    Ok(list.finish())
}

/// A `tuple` of the `len` values that follow.
pub fn tuple<'py, D: Decode>(
    decoder: &mut Reader<'_, 'py, D>,
    len: usize,
) -> Result<Bound<'py, PyAny>, Fault> {
    decoder.enter(len)?;
    let mut tuple = TupleBuilder::new(decoder.py, len)?;
    for _ in 0..len {
        tuple.push(decoder.item()?);
    }
    decoder.leave();
    Ok(tuple.finish())
}

/// A `dict` of the `len` pairs of values that follow.
pub fn dict<'py, D: Decode>(
    decoder: &mut Reader<'_, 'py, D>,
    len: usize,
) -> Result<Bound<'py, PyAny>, Fault> {
    decoder.enter(len * 2)?;
    let dict = PyDict::new(decoder.py);
    for _ in 0..len {
        let key = decoder.key()?;
        let value = decoder.item()?;
        if let Err(error) = dict.set_item(key, value) {
            return Err(decoder.unusable(error, "a key that cannot be one"));
        }
    }
    decoder.leave();
    Ok(dict.into_any())
}

/// A `set` of the values in the array that follows.
pub fn set<'py, D: Decode>(
    decoder: &mut Reader<'_, 'py, D>,
    len: usize,
) -> Result<Bound<'py, PyAny>, Fault> {
    decoder.enter(len)?;
    let set = PySet::empty(decoder.py)?;
    for _ in 0..len {
        let item = decoder.item()?;
        if let Err(error) = set.add(item) {
            return Err(decoder.unusable(error, "a set member that cannot be one"));
        }
    }
    decoder.leave();
    Ok(set.into_any())
}

/// A `frozenset` of the values in the array that follows.
pub fn frozenset<'py, D: Decode>(
    decoder: &mut Reader<'_, 'py, D>,
    len: usize,
) -> Result<Bound<'py, PyAny>, Fault> {
    let set = set(decoder, len)?;
    Ok(decoder.py.get_type::<PyFrozenSet>().call1((set,))?)
}

/// The length of the MessagePack array that must follow here.
pub fn array_len<D: Decode>(decoder: &mut Reader<'_, '_, D>) -> Result<usize, Fault> {
    match decoder.u8()? {
        head @ 0x90..=0x9f => Ok(usize::from(head & 0x0f)),
        marker::ARRAY16 => Ok(usize::from(u16::from_be_bytes(*decoder.bytes()?))),
        marker::ARRAY32 => Ok(u32::from_be_bytes(*decoder.bytes()?) as usize),
        _ => fault("a tuple or set without items"),
    }
}
