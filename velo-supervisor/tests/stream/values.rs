//! What travels.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use velo_supervisor::stream::StreamError;

use crate::daemon::{Daemon, open};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Reading {
    sensor: String,
    celsius: f64,
    single: f32,
    count: Option<i64>,
    tags: Vec<String>,
    kind: Kind,
    by_hour: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Kind {
    Plain,
    Mean { of: u32 },
}

fn reading(kind: Kind) -> Reading {
    Reading {
        sensor: "é".repeat(40),
        celsius: -1.5e300,
        single: 0.5,
        count: Some(i64::MIN),
        tags: vec![String::new(), "b".repeat(300)],
        kind,
        by_hour: BTreeMap::from([("8".into(), u64::MAX), ("9".into(), 0)]),
    }
}

#[test]
fn structs_come_back_as_they_went() {
    let Some(daemon) = Daemon::start(&[]) else {
        return;
    };
    let mut echo = open(&daemon.connect(), "echo");
    for kind in [Kind::Plain, Kind::Mean { of: 3 }] {
        let sent = reading(kind);
        echo.send(&sent).expect("send");
        assert_eq!(echo.recv::<Reading>().expect("recv"), Some(sent));
    }
    // Larger than the room that an event is first written into, and than the first ring.
    let large: Vec<_> = (0..20_000).map(|n| f64::from(n) / 3.0).collect();
    for size in [10, 1_000, 20_000] {
        echo.send(&large[..size]).expect("send");
        let back: Vec<f64> = echo.recv().expect("recv").expect("a result");
        assert_eq!(back, large[..size]);
    }
}

#[test]
fn python_sees_plain_values() {
    let Some(daemon) = Daemon::start(&[]) else {
        return;
    };
    let mut types = open(&daemon.connect(), "types");
    let mut seen = |event: &dyn erased::Event| {
        event.send(&mut types);
        types.recv::<String>().expect("recv").expect("a result")
    };
    assert_eq!(seen(&()), "None");
    assert_eq!(seen(&(1, -1, true, "a")), "[1, -1, True, 'a']");
    assert_eq!(seen(&0.1f32), "0.10000000149011612");
    assert_eq!(seen(&Kind::Plain), "'Plain'");
    assert_eq!(seen(&Kind::Mean { of: 3 }), "{'Mean': {'of': 3}}");
    assert_eq!(seen(&BTreeMap::from([(1, 2.5)])), "{1: 2.5}");
}

/// Values of any type, one after the other.
mod erased {
    use velo_supervisor::stream::Stream;

    pub trait Event {
        fn send(&self, stream: &mut Stream);
    }

    impl<E: serde::Serialize> Event for E {
        fn send(&self, stream: &mut Stream) {
            stream.send(self).expect("send");
        }
    }
}

#[test]
fn tuples_and_sets_are_read_and_what_only_python_has_is_refused_by_name() {
    let Some(daemon) = Daemon::start(&[]) else {
        return;
    };
    let mut values = open(&daemon.connect(), "values");
    values.send("tuple").expect("send");
    type Nested = (u8, String, (f64, (Bytes, Option<u8>)));
    let (one, two, (three, (four, none))): Nested = values.recv().expect("recv").expect("one");
    assert_eq!((one, &*two, three, none), (1, "two", 3.0, None));
    assert_eq!(four.0, b"four");
    values.send("set").expect("send");
    assert_eq!(values.recv::<Vec<u8>>().expect("recv"), Some(vec![7]));
    // Bytes that look like the codec's own kinds.
    values.send("bytes").expect("send");
    let bytes = values.recv::<Bytes>().expect("recv").expect("bytes");
    assert_eq!(bytes.0, b"\xc1\x01\xc1\x05");
    for (name, says) in [("object", "only Python"), ("array", "NumPy array")] {
        values.send(name).expect("send");
        let error = values.recv::<Vec<i64>>().expect_err("nothing for Rust");
        assert!(matches!(error, StreamError::Decode(_)), "{error:?}");
        let told = error.to_string();
        // Without NumPy, the function yields another thing.
        assert!(
            told.contains(says) || told.contains("only Python"),
            "{told}"
        );
    }
    // It goes on.
    values.send("set").expect("send");
    let error = values.recv::<String>().expect_err("another type");
    assert!(matches!(error, StreamError::Decode(_)), "{error:?}");
    values.send("set").expect("send");
    assert_eq!(values.recv::<(u8,)>().expect("recv"), Some((7,)));
}

/// Bytes, without another crate.
struct Bytes(Vec<u8>);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Bytes;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }
        }
        from.deserialize_bytes(Visitor)
    }
}

#[test]
fn what_cannot_be_written_or_is_too_large_is_said_and_the_stream_goes_on() {
    struct Unwilling;
    impl Serialize for Unwilling {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("not today"))
        }
    }
    let Some(daemon) = Daemon::start(&[]) else {
        return;
    };
    let mut options = crate::daemon::options();
    options.max_bytes = 1 << 16;
    let velo = daemon.connect();
    let mut echo = velo.open("functions:echo", &options).expect("a stream");
    let error = echo.send(&Unwilling).expect_err("unwilling");
    assert!(error.to_string().contains("not today"), "{error}");
    let error = echo.send(&"x".repeat(1 << 16)).expect_err("too large");
    assert!(matches!(error, StreamError::TooLarge { .. }), "{error:?}");
    assert!(error.to_string().contains("`max_bytes`"), "{error}");
    echo.send(&1).expect("send");
    assert_eq!(echo.recv().expect("recv"), Some(1));
}
