//! Events and results as bytes: MessagePack, which velo's codec writes for plain values. What only
//! Python has is written in ways of its own, of which tuples and sets are read as arrays here, and
//! the others are refused by name.

use std::io;
use std::path::PathBuf;

use rmp_serde::Serializer;
use rmp_serde::encode::Error as EncodeError;
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::error::{FunctionError, StreamError};

/// The byte that MessagePack leaves unused: one of the codec's own kinds follows.
const OWN: u8 = 0xc1;

/// How an event went into a piece of memory.
pub(super) enum Written {
    /// It took this many bytes.
    All(usize),
    /// It does not fit.
    Overflow,
}

/// Writes an event: structs as maps, so that Python sees dicts.
pub(super) fn encode<E: Serialize + ?Sized>(
    event: &E,
    room: &mut [u8],
) -> Result<Written, StreamError> {
    let len = room.len();
    let mut rest = room;
    match event.serialize(&mut Serializer::new(&mut rest).with_struct_map()) {
        Ok(()) => Ok(Written::All(len - rest.len())),
        Err(EncodeError::InvalidValueWrite(_)) => Ok(Written::Overflow),
        Err(error) => Err(StreamError::Encode(error.to_string())),
    }
}

/// Writes an event of a length that only writing it tells.
pub(super) fn encode_alone<E: Serialize + ?Sized>(event: &E) -> Result<Vec<u8>, StreamError> {
    rmp_serde::to_vec_named(event).map_err(|error| StreamError::Encode(error.to_string()))
}

/// Reads a result. `bytes` are a copy that no other process can write to.
pub(super) fn decode<R: DeserializeOwned>(bytes: &mut Vec<u8>) -> Result<R, StreamError> {
    make_plain(bytes).map_err(StreamError::Decode)?;
    rmp_serde::from_slice(bytes).map_err(|error| StreamError::Decode(error.to_string()))
}

/// Reads what a function raised; as little as can be said of an exception that makes no sense.
pub(super) fn decode_error(bytes: &mut Vec<u8>) -> FunctionError {
    type Packed = (IgnoredAny, String, String, String, Vec<String>);
    let read = make_plain(bytes)
        .ok()
        .and_then(|()| rmp_serde::from_slice::<Packed>(bytes).ok());
    match read {
        Some((_, kind, message, traceback, notes)) => FunctionError {
            kind,
            message,
            traceback,
            notes,
        },
        None => FunctionError {
            kind: "unknown".into(),
            message: "the exception could not be described".into(),
            traceback: String::new(),
            notes: Vec::new(),
        },
    }
}

/// Makes MessagePack of what velo's codec wrote, in place: tuples and sets become arrays.
fn make_plain(bytes: &mut Vec<u8>) -> Result<(), String> {
    if !bytes.contains(&OWN) {
        return Ok(());
    }
    let (mut from, mut to) = (0, 0);
    // Values that have yet to come. There are never more than bytes, or the bytes end too early.
    let mut owed = 1u64;
    while owed > 0 {
        let rest = &bytes[from..];
        if let [OWN, kind, ..] = rest {
            match kind {
                1..=3 => from += 2,
                4 => return Err("it holds a NumPy array; have the function yield a list".into()),
                _ => {
                    return Err(
                        "it holds an object that only Python can read; have the function yield \
                         plain values"
                            .into(),
                    );
                }
            }
            continue;
        }
        let (len, items) = value(rest).ok_or("the result is no MessagePack")?;
        bytes.copy_within(from..from + len, to);
        from += len;
        to += len;
        owed = owed - 1 + items;
    }
    bytes.truncate(to);
    Ok(())
}

/// How many bytes the value at the beginning takes, without its items, and how many items it has.
fn value(bytes: &[u8]) -> Option<(usize, u64)> {
    let number = |size: usize| -> Option<usize> {
        let digits = bytes.get(1..1 + size)?;
        Some(digits.iter().fold(0, |sum, &d| sum << 8 | usize::from(d)))
    };
    // A marker, `size` bytes of a length, and what has that length.
    let long = |size: usize, more: usize| Some((1 + size + more + number(size)?, 0));
    let (len, items) = match *bytes.first()? {
        0x00..=0x7f | 0xc0 | 0xc2 | 0xc3 | 0xe0..=0xff => (1, 0),
        head @ 0x80..=0x8f => (1, 2 * u64::from(head & 0x0f)),
        head @ 0x90..=0x9f => (1, u64::from(head & 0x0f)),
        head @ 0xa0..=0xbf => (1 + usize::from(head & 0x1f), 0),
        0xc4 | 0xd9 => long(1, 0)?,
        0xc5 | 0xda => long(2, 0)?,
        0xc6 | 0xdb => long(4, 0)?,
        0xc7 => long(1, 1)?,
        0xc8 => long(2, 1)?,
        0xc9 => long(4, 1)?,
        0xca => (5, 0),
        0xcb => (9, 0),
        head @ 0xcc..=0xcf => (1 + (1 << (head - 0xcc)), 0),
        head @ 0xd0..=0xd3 => (1 + (1 << (head - 0xd0)), 0),
        head @ 0xd4..=0xd8 => (2 + (1 << (head - 0xd4)), 0),
        0xdc => (3, number(2)? as u64),
        0xdd => (5, number(4)? as u64),
        0xde => (3, 2 * number(2)? as u64),
        0xdf => (5, 2 * number(4)? as u64),
        OWN => return None,
    };
    (len <= bytes.len()).then_some((len, items))
}

/// What a worker is told of a function: where it can be imported, and which folders to look in
/// besides. `velo/_reference.py` reads it.
pub(super) fn definition(function: &str, paths: &[PathBuf]) -> Result<Vec<u8>, StreamError> {
    let wrong = || StreamError::Name(function.to_owned());
    let (module, name) = function.split_once(':').ok_or_else(wrong)?;
    let named = |part: &str| part.split('.').all(|word| !word.is_empty());
    if !named(module) || !named(name) || name.contains(':') {
        return Err(wrong());
    }
    let paths: Vec<_> = paths
        .iter()
        .map(|path| std::path::absolute(path).map_err(system))
        .collect::<Result<_, _>>()?;
    encode_alone(&(module, name, paths))
}

/// What the system said, as it is passed on.
pub(super) fn system(error: impl Into<io::Error>) -> StreamError {
    StreamError::System(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(bytes: &[u8]) -> Result<Vec<u8>, String> {
        let mut bytes = bytes.to_vec();
        make_plain(&mut bytes).map(|()| bytes)
    }

    #[test]
    fn tuples_and_sets_become_arrays_wherever_they_are() {
        for (python, rust) in [
            (&b"\xc1\x01\x92\x01\xa1a"[..], &b"\x92\x01\xa1a"[..]),
            (b"\xc1\x02\x91\xc1\x03\x90", b"\x91\x90"),
            (b"\x81\xa1k\xc1\x01\x91\xc0", b"\x81\xa1k\x91\xc0"),
            // The same byte inside of text, bytes, numbers and lengths is left alone.
            (
                b"\x92\xc4\x02\xc1\x01\xcd\xc1\x01",
                b"\x92\xc4\x02\xc1\x01\xcd\xc1\x01",
            ),
            (b"\x91\xa2\xc3\x81", b"\x91\xa2\xc3\x81"),
            // What lies behind the value is not a part of it.
            (b"\xc1\x01\x91\x07\xff\xff", b"\x91\x07"),
        ] {
            assert_eq!(plain(python).as_deref(), Ok(rust), "{python:x?}");
        }
        let long = [&b"\xc1\x01\xdc\x01\x00"[..], &[7; 256]].concat();
        assert_eq!(plain(&long).map(|bytes| bytes.len()), Ok(3 + 256));
    }

    #[test]
    fn what_only_python_has_is_named() {
        let refused = |bytes: &[u8]| plain(bytes).expect_err("not for Rust");
        assert!(refused(b"\x91\xc1\x04").contains("NumPy"));
        assert!(refused(b"\xc1\x05").contains("only Python"));
    }

    #[test]
    fn bytes_that_end_too_early_are_refused() {
        let whole =
            b"\x93\xc1\x01\x92\xcb\0\0\0\0\0\0\0\0\xc4\x02ab\xc7\x01\x05a\xdf\0\0\0\x01\x01\x02";
        assert!(plain(whole).is_ok());
        // The byte has to be there for anything to be looked at.
        for len in 2..whole.len() {
            assert!(plain(&whole[..len]).is_err(), "{len} bytes");
        }
        assert!(plain(b"\xc1").is_err());
        assert!(
            plain(b"\xdd\xff\xff\xff\xff\xc1\x01").is_err(),
            "many items"
        );
        assert!(
            plain(b"\xc6\xff\xff\xff\xff\xc1\x01").is_err(),
            "many bytes"
        );
    }

    /// Whatever a worker writes, this side says something or reads something.
    #[test]
    fn random_bytes_harm_nobody() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let heads = [
            OWN, 0x91, 0x82, 0xdc, 0xdf, 0xc4, 0xc7, 0xd9, 0xcb, 0xa3, 0x01,
        ];
        for _ in 0..20_000 {
            let len = random() % 24;
            let bytes: Vec<u8> = (0..len)
                .map(|_| match random() % 3 {
                    0 => random().to_le_bytes()[0],
                    _ => heads[(random() % heads.len() as u64) as usize],
                })
                .collect();
            if let Ok(plain) = plain(&bytes) {
                assert!(plain.len() <= bytes.len());
            }
            let _ = decode::<Vec<(Option<String>, f64)>>(&mut bytes.clone());
            assert!(!decode_error(&mut bytes.clone()).kind.is_empty() || !bytes.is_empty());
        }
    }

    #[test]
    fn an_exception_is_read_or_said_to_be_unreadable() {
        let packed = (
            Option::<u8>::None,
            "KeyError",
            "'k'",
            "Traceback",
            ("a note",),
        );
        let mut bytes = encode_alone(&packed).expect("bytes");
        let error = decode_error(&mut bytes);
        assert_eq!((&*error.kind, &*error.notes[0]), ("KeyError", "a note"));
        assert_eq!(decode_error(&mut vec![0xc0]).kind, "unknown");
        assert_eq!(decode_error(&mut Vec::new()).kind, "unknown");
    }

    #[test]
    fn a_name_has_a_module_and_a_function() {
        let made = definition("a.b:C.d", &["/x".into()]).expect("a name");
        let read: (String, String, Vec<String>) = rmp_serde::from_slice(&made).expect("read");
        assert_eq!(read, ("a.b".into(), "C.d".into(), vec!["/x".into()]));
        for name in ["", "a", "a:", ":b", "a..b:c", "a:b:c", "a:.b"] {
            assert!(definition(name, &[]).is_err(), "{name}");
        }
    }

    #[test]
    fn what_does_not_fit_is_told_apart_from_what_cannot_be_written() {
        let mut room = [0; 4];
        assert!(matches!(encode("abc", &mut room), Ok(Written::All(4))));
        assert!(matches!(encode("abcd", &mut room), Ok(Written::Overflow)));
        assert!(matches!(
            encode(&[0; 3], &mut room[..0]),
            Ok(Written::Overflow)
        ));
        assert!(matches!(encode(&(), &mut room), Ok(Written::All(1))));
    }
}
