//! `datetime`, `date`, `time` and `timedelta`.
//!
//! All numbers are little-endian.
//!
//! | type | bytes |
//! | --- | --- |
//! | `date` | year `u16`, month `u8`, day `u8` |
//! | `time` | hour, minute, second `u8`, flags `u8`, microsecond `u32`, then the offset, if any |
//! | `datetime` | a `date`, then a `time` |
//! | `timedelta`, and an offset | days, seconds, microseconds, each `i32` |
//!
//! Flags: bit 0 is `fold`, bit 1 says UTC, bit 2 says that the offset of a nameless `timezone`
//! follows. Times with any other zone are pickled.

use pyo3::ffi::PyTypeObject;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{
    PyDate, PyDateAccess, PyDateTime, PyDelta, PyDeltaAccess, PyTime, PyTimeAccess, PyTuple,
    PyType, PyTzInfo, PyTzInfoAccess,
};

use super::datetime_types::Types;
use super::error::{Fault, Stop, fault, judge};
use super::lookups::Lookups;
use super::marker::ext;
use super::out::{Out, put_ext};
use super::writer::{Encode, Writer};

const FOLD: u8 = 1;
const UTC: u8 = 2;
const OFFSET: u8 = 4;

fn is(ty: *mut PyTypeObject, exactly: &Py<PyType>) -> bool {
    std::ptr::eq(ty.cast(), exactly.as_ptr())
}

/// Up to 24 bytes that are put together piece by piece.
#[derive(Default)]
struct Piece {
    bytes: [u8; 24],
    len: usize,
}

impl Piece {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn add_date(&mut self, date: &impl PyDateAccess) {
        self.add(&(date.get_year() as u16).to_le_bytes());
        self.add(&[date.get_month(), date.get_day()]);
    }

    fn add_time(&mut self, time: &impl PyTimeAccess, zone: &Zone<'_>) {
        let flags = if time.get_fold() { FOLD } else { 0 } | zone.flag();
        self.add(&[time.get_hour(), time.get_minute(), time.get_second(), flags]);
        self.add(&time.get_microsecond().to_le_bytes());
        if let Zone::Offset(offset) = zone {
            self.add_delta(offset);
        }
    }

    fn add_delta(&mut self, delta: &impl PyDeltaAccess) {
        for part in [
            delta.get_days(),
            delta.get_seconds(),
            delta.get_microseconds(),
        ] {
            self.add(&part.to_le_bytes());
        }
    }
}

/// A zone that has a form of its own.
enum Zone<'py> {
    None,
    Utc,
    Offset(Bound<'py, PyDelta>),
}

impl Zone<'_> {
    fn flag(&self) -> u8 {
        match self {
            Self::None => 0,
            Self::Utc => UTC,
            Self::Offset(_) => OFFSET,
        }
    }
}

/// The zone, or `None` if only pickle can carry it.
fn zone<'py>(types: &Types, zone: Option<Bound<'py, PyTzInfo>>) -> PyResult<Option<Zone<'py>>> {
    let Some(zone) = zone else {
        return Ok(Some(Zone::None));
    };
    if zone.is(&types.utc) {
        return Ok(Some(Zone::Utc));
    }
    if !is(zone.get_type_ptr(), &types.timezone) {
        return Ok(None);
    }
    let args = zone.call_method0(intern!(zone.py(), "__getinitargs__"))?;
    let args = args.cast::<PyTuple>()?;
    // A second argument is a name.
    if args.len() != 1 {
        return Ok(None);
    }
    Ok(Some(Zone::Offset(args.get_item(0)?.cast_into()?)))
}

/// Writes `obj` if it is one of the types of this module with a zone that has a form here.
pub fn put<'py, O: Out, E: Encode>(
    encoder: &mut Writer<'_, 'py, O, E>,
    obj: &Bound<'py, PyAny>,
) -> Result<bool, Stop> {
    let types = &encoder.lookups.times;
    let ty = obj.get_type_ptr();
    let mut piece = Piece::default();
    let kind = if is(ty, &types.datetime) {
        let datetime = obj.cast::<PyDateTime>().map_err(PyErr::from)?;
        let Some(zone) = zone(types, datetime.get_tzinfo())? else {
            return Ok(false);
        };
        piece.add_date(datetime);
        piece.add_time(datetime, &zone);
        ext::DATETIME
    } else if is(ty, &types.date) {
        piece.add_date(obj.cast::<PyDate>().map_err(PyErr::from)?);
        ext::DATE
    } else if is(ty, &types.timedelta) {
        piece.add_delta(obj.cast::<PyDelta>().map_err(PyErr::from)?);
        ext::TIMEDELTA
    } else if is(ty, &types.time) {
        let time = obj.cast::<PyTime>().map_err(PyErr::from)?;
        let Some(zone) = zone(types, time.get_tzinfo())? else {
            return Ok(false);
        };
        piece.add_time(time, &zone);
        ext::TIME
    } else {
        return Ok(false);
    };
    put_ext(encoder.out, kind, &piece.bytes[..piece.len])?;
    Ok(true)
}

/// A date or time from its extension.
pub fn time<'py>(
    lookups: &Lookups,
    py: Python<'py>,
    kind: u8,
    bytes: &[u8],
) -> Result<Bound<'py, PyAny>, Fault> {
    let made = match kind {
        ext::DATE => match bytes {
            &[y0, y1, month, day] => {
                PyDate::new(py, i32::from(u16::from_le_bytes([y0, y1])), month, day)
                    .map(Bound::into_any)
            }
            _ => return fault("a date of a wrong length"),
        },
        ext::TIMEDELTA => delta(py, bytes)?.map(Bound::into_any),
        ext::TIME => {
            let clock = Clock::read(lookups, py, bytes)?;
            let Clock {
                hour,
                minute,
                second,
                microsecond,
                fold,
                ..
            } = clock;
            let zone = clock.zone.as_ref();
            PyTime::new_with_fold(py, hour, minute, second, microsecond, zone, fold)
                .map(Bound::into_any)
        }
        _ => {
            let Some((&[y0, y1, month, day], rest)) = bytes.split_first_chunk() else {
                return fault("a datetime of a wrong length");
            };
            let clock = Clock::read(lookups, py, rest)?;
            let Clock {
                hour,
                minute,
                second,
                microsecond,
                fold,
                ..
            } = clock;
            let zone = clock.zone.as_ref();
            let year = i32::from(u16::from_le_bytes([y0, y1]));
            PyDateTime::new_with_fold(
                py,
                year,
                month,
                day,
                hour,
                minute,
                second,
                microsecond,
                zone,
                fold,
            )
            .map(Bound::into_any)
        }
    };
    made.map_err(|error| judge(py, error, "a date or time that does not exist"))
}

struct Clock<'py> {
    hour: u8,
    minute: u8,
    second: u8,
    microsecond: u32,
    fold: bool,
    zone: Option<Bound<'py, PyTzInfo>>,
}

impl<'py> Clock<'py> {
    fn read(lookups: &Lookups, py: Python<'py>, bytes: &[u8]) -> Result<Self, Fault> {
        let Some((&[hour, minute, second, flags, m0, m1, m2, m3], rest)) =
            bytes.split_first_chunk()
        else {
            return fault("a time of a wrong length");
        };
        let zone = match (flags & !FOLD, rest.is_empty()) {
            (0, true) => None,
            (UTC, true) => Some(lookups.times.utc.bind(py).clone()),
            (OFFSET, false) => {
                let offset = delta(py, rest)?;
                let zone = offset.and_then(|offset| PyTzInfo::fixed_offset(py, offset));
                Some(zone.map_err(|error| judge(py, error, "an offset that does not exist"))?)
            }
            _ => return fault("a time with unknown flags"),
        };
        let microsecond = u32::from_le_bytes([m0, m1, m2, m3]);
        if microsecond > 999_999 {
            return fault("a date or time that does not exist");
        }
        Ok(Self {
            hour,
            minute,
            second,
            microsecond,
            fold: flags & FOLD != 0,
            zone,
        })
    }
}

fn delta<'py>(py: Python<'py>, bytes: &[u8]) -> Result<PyResult<Bound<'py, PyDelta>>, Fault> {
    let &[d0, d1, d2, d3, s0, s1, s2, s3, m0, m1, m2, m3] = bytes else {
        return fault("a timedelta of a wrong length");
    };
    let [days, seconds, microseconds] =
        [[d0, d1, d2, d3], [s0, s1, s2, s3], [m0, m1, m2, m3]].map(i32::from_le_bytes);
    Ok(PyDelta::new(py, days, seconds, microseconds, true))
}
