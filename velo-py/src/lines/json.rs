//! Finds lines of NDJSON that hold a JSON object, and their keys, without parsing them.
//!
//! The scanner accepts less than orjson does: a line that it accepts is an object that orjson reads, with
//! the same key. It leaves every other line (escapes in names, exponents, long numbers, other values, and
//! all errors) to its caller, who parses it.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString};

use super::Line;

/// Containers may be nested this deep.
const DEEPEST: usize = 32;
/// Numbers of more digits are left to the caller: they may need more than 64 bits.
const DIGITS: usize = 18;

/// Returns a `Line` for each line of `text`, or None for a line that is to be parsed.
///
/// `key` is the name of the member that holds the key. `written` makes a key of the text of a number or
/// a boolean that no text and no whole number is.
#[pyfunction]
#[pyo3(signature = (text, key, written))]
pub fn json_lines<'py>(
    py: Python<'py>,
    text: &[u8],
    key: Option<&str>,
    written: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyList>> {
    let key = key.map(str::as_bytes);
    let found = py.detach(|| {
        let is_text = std::str::from_utf8(text).is_ok();
        let lines = text.split(|&byte| byte == b'\n');
        let scanned = lines.map(|line| is_text.then(|| scan(line, key)).flatten());
        scanned.collect::<Vec<_>>()
    });
    let lines = text.split(|&byte| byte == b'\n').zip(found);
    let lines = lines.map(|(line, found)| match found {
        Some(found) => {
            let key = match found {
                Key::None => py.None(),
                Key::Text(key) => PyString::new(py, key).into_any().unbind(),
                Key::Whole(whole) => whole.into_pyobject(py)?.into_any().unbind(),
                Key::Written(text) => written.call1((text,))?.unbind(),
            };
            let form: Option<Py<PyBytes>> = None;
            let text = line.into();
            Ok(Bound::new(py, Line { key, text, form })?.into_any())
        }
        None => Ok(py.None().into_bound(py)),
    });
    PyList::new(py, lines.collect::<PyResult<Vec<_>>>()?)
}

/// The key of a line.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Key<'a> {
    /// No key is wanted.
    None,
    Text(&'a str),
    Whole(i64),
    /// A float, a boolean or `-0`, as it is written.
    Written(&'a str),
}

/// The kind of a value, and where its text ends.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// A text without escapes, between quotes.
    Plain,
    Whole,
    Written,
    /// A value that is no key, or a text with escapes.
    Other,
}

/// The key of the object in `line`; None if the line is left to the caller.
fn scan<'a>(line: &'a [u8], name: Option<&[u8]>) -> Option<Key<'a>> {
    let mut scanner = Scanner { line, at: 0 };
    scanner.space();
    let found = scanner.object(0, name)?;
    scanner.space();
    if scanner.at < line.len() {
        return None;
    }
    if name.is_none() {
        return Some(Key::None);
    }
    // Of equal names, the last one counts.
    let (kind, start, end) = found?;
    let text = std::str::from_utf8(line.get(start..end)?).ok()?;
    match kind {
        Kind::Plain => Some(Key::Text(text.get(1..text.len() - 1)?)),
        Kind::Whole if text == "-0" => Some(Key::Written(text)),
        Kind::Whole => text.parse().ok().map(Key::Whole),
        Kind::Written => Some(Key::Written(text)),
        Kind::Other => None,
    }
}

struct Scanner<'a> {
    line: &'a [u8],
    at: usize,
}

/// A member's value: its kind, its begin and its end.
type Member = (Kind, usize, usize);

impl Scanner<'_> {
    #[inline]
    fn peek(&self) -> Option<u8> {
        self.line.get(self.at).copied()
    }

    #[inline]
    fn take(&mut self, byte: u8) -> Option<()> {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found.then_some(())
    }

    #[inline]
    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    /// Passes an object; returns its last member of this name.
    fn object(&mut self, depth: usize, name: Option<&[u8]>) -> Option<Option<Member>> {
        self.take(b'{')?;
        self.space();
        let mut found = None;
        if self.take(b'}').is_some() {
            return Some(None);
        }
        loop {
            let start = self.at;
            if self.text()? != Kind::Plain {
                return None; // a name with escapes may be the wanted one
            }
            let wanted = name.is_some_and(|name| self.line[start + 1..self.at - 1] == *name);
            self.space();
            self.take(b':')?;
            self.space();
            let start = self.at;
            let kind = self.value(depth)?;
            if wanted {
                found = Some((kind, start, self.at));
            }
            self.space();
            if self.take(b',').is_none() {
                self.take(b'}')?;
                return Some(found);
            }
            self.space();
        }
    }

    fn array(&mut self, depth: usize) -> Option<()> {
        self.take(b'[')?;
        self.space();
        if self.take(b']').is_some() {
            return Some(());
        }
        loop {
            self.value(depth)?;
            self.space();
            if self.take(b',').is_none() {
                return self.take(b']');
            }
            self.space();
        }
    }

    fn value(&mut self, depth: usize) -> Option<Kind> {
        match self.peek()? {
            b'"' => self.text(),
            b'{' if depth < DEEPEST => self.object(depth + 1, None).map(|_| Kind::Other),
            b'[' if depth < DEEPEST => self.array(depth + 1).map(|()| Kind::Other),
            b't' => self.word(b"true", Kind::Written),
            b'f' => self.word(b"false", Kind::Written),
            b'n' => self.word(b"null", Kind::Other),
            b'-' | b'0'..=b'9' => self.number(),
            _ => None,
        }
    }

    fn word(&mut self, word: &[u8], kind: Kind) -> Option<Kind> {
        let found = self.line[self.at..].starts_with(word);
        self.at += word.len();
        found.then_some(kind)
    }

    /// Passes a text.
    #[inline]
    fn text(&mut self) -> Option<Kind> {
        self.take(b'"')?;
        let mut kind = Kind::Plain;
        loop {
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return Some(kind);
                }
                b'\\' => {
                    kind = Kind::Other;
                    let escaped = *self.line.get(self.at + 1)?;
                    if !matches!(
                        escaped,
                        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't'
                    ) {
                        return None;
                    }
                    self.at += 2;
                }
                ..b' ' => return None,
                _ => self.at += 1,
            }
        }
    }

    /// Passes a number without an exponent.
    fn number(&mut self) -> Option<Kind> {
        let _ = self.take(b'-');
        let zero = self.peek() == Some(b'0');
        let whole = self.digits();
        if whole == 0 || whole > DIGITS || (zero && whole > 1) {
            return None;
        }
        let mut kind = Kind::Whole;
        if self.take(b'.').is_some() {
            kind = Kind::Written;
            let fraction = self.digits();
            if fraction == 0 || fraction > DIGITS {
                return None;
            }
        }
        // A number goes on with these alone.
        if let Some(b'e' | b'E' | b'.' | b'0'..=b'9') = self.peek() {
            return None;
        }
        Some(kind)
    }

    #[inline]
    fn digits(&mut self) -> usize {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        self.at - start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(line: &str) -> Option<Key<'_>> {
        scan(line.as_bytes(), Some(b"k"))
    }

    #[test]
    fn keys_are_found_as_they_are_written() {
        assert_eq!(key(r#"{"k":"a"}"#), Some(Key::Text("a")));
        assert_eq!(
            key(r#" { "a" : [1, {"k": 2}], "k" : 7 } "#),
            Some(Key::Whole(7))
        );
        assert_eq!(key(r#"{"k":1,"k":-2}"#), Some(Key::Whole(-2)));
        assert_eq!(key(r#"{"k":0}"#), Some(Key::Whole(0)));
        assert_eq!(key(r#"{"k":-0}"#), Some(Key::Written("-0")));
        assert_eq!(key(r#"{"k":3.10}"#), Some(Key::Written("3.10")));
        assert_eq!(key(r#"{"k":true,"a":null}"#), Some(Key::Written("true")));
        assert_eq!(key(r#"{"a":"\"k\":\n","k":"ü"}"#), Some(Key::Text("ü")));
        assert_eq!(scan(br#"{"a":1}"#, None), Some(Key::None));
    }

    #[test]
    fn what_is_unsure_is_left_to_the_caller() {
        for line in [
            "",
            "1",
            "[]",
            "{}",
            r#"{"a":1}"#,
            r#"{"k":null}"#,
            r#"{"k":[]}"#,
            r#"{"k":"a\n"}"#,
            r#"{"k":"\u0041"}"#,
            r#"{"\u006b":1,"k":2}"#,
            r#"{"k":1e5}"#,
            r#"{"k":1}x"#,
            r#"{"k":1,}"#,
            r#"{"k":01}"#,
            r#"{"k":1.}"#,
            r#"{"k":.5}"#,
            r#"{"k":+1}"#,
            r#"{"k":-}"#,
            r#"{"k":1 2}"#,
            r#"{"k":1,"a":1234567890123456789}"#,
            r#"{"k":1,"a":0.1234567890123456789}"#,
            r#"{"k":1,"a":tru}"#,
            r#"{"k":1,"a":NaN}"#,
            r#"{"k" 1}"#,
            r#"{k:1}"#,
            r#"{"k":"a"#,
            "{\"k\":\"\t\"}",
            "{\"k\":\"\0\"}",
        ] {
            assert_eq!(key(line), None, "{line}");
        }
        let deep = format!(r#"{{"k":1,"a":{}{}}}"#, "[".repeat(40), "]".repeat(40));
        assert_eq!(key(&deep), None);
    }
}
